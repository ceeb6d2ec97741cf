"""Modules one after the other."""

from collections.abc import Iterator

from minidl.nn.module import Module
from minidl.tensor import Tensor


class Sequential(Module):
    """Modules called one after the other. They are named "0", "1", ..."""

    def __init__(self, *modules: Module):
        for module in modules:
            if not callable(module):
                raise TypeError(f"Sequential: expected modules, got {type(module).__name__}; pass Sequential(*layers)")
        self.modules = list(modules)

    def members(self) -> Iterator[tuple[str, object]]:
        """Yield (name, value) of the modules, named by number, and of the other attributes of a subclass."""
        return ((name.removeprefix("modules."), value) for name, value in super().members())

    def forward(self, x: Tensor) -> Tensor:
        """Apply all modules to x, one after the other."""
        for module in self.modules:
            x = module(x)
        return x

    def __getitem__(self, index: int | slice) -> Module:
        return Sequential(*self.modules[index]) if isinstance(index, slice) else self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)
