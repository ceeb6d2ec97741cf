"""Run a script on the fake GPU, in a process of its own.

    python -m tests.run_on_fake benchmarks/gpu.py --models resnet20 --batch 2
    python -m tests.run_on_fake -m minidl

As tests/fake_gpu it needs ".[fake-gpu]" and g++. What went wrong on the device, and nobody has seen, makes it fail.
"""

import runpy
import sys
from pathlib import Path

from tests import fake_gpu


def main() -> None:
    """Install the fake GPU, then run the script as Python would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.run_on_fake SCRIPT | -m MODULE [ARGUMENTS]")
    try:
        fake_gpu.install()
    except fake_gpu.UnavailableError as error:
        sys.exit(f"no fake GPU: {error}")
    _, first, *rest = sys.argv
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path.insert(0, str(Path(first).resolve().parent))
            runpy.run_path(first, run_name="__main__")
    finally:
        fake_gpu.finish()


if __name__ == "__main__":
    main()
