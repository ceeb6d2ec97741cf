"""Run a program on the fake GPU: python -m tests.fake_gpu SCRIPT [ARGS], or -m MODULE [ARGS]."""

import runpy
import sys
from pathlib import Path

from tests import fake_gpu


def main(arguments: list[str]) -> None:
    if not arguments or arguments == ["-m"]:
        sys.exit(__doc__)
    try:
        fake_gpu.install()
    except fake_gpu.UnavailableError as error:
        sys.exit(f"error: the fake GPU cannot be had: {error}")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))  # as `python SCRIPT` does
        runpy.run_path(arguments[0], run_name="__main__")
    fake_gpu.finish()  # what went wrong and nobody waited for is an error, too


main(sys.argv[1:])
