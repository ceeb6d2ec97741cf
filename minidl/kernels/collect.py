"""Finds the functions that are a device's kernels."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

from minidl.kernels import reference


def kernels_in(package: str, folder: list[str]) -> dict[str, Callable]:
    """{name: function} for each public function of `reference` that a public file of the package also defines."""
    defined = {}
    for file in pkgutil.iter_modules(folder):
        if not file.name.startswith("_"):
            defined |= vars(importlib.import_module(f"{package}.{file.name}"))
    contract = [name for name, value in vars(reference).items() if inspect.isfunction(value) and name[0] != "_"]
    return {name: defined[name] for name in contract if name in defined}
