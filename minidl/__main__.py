"""`python -m minidl` prints the CPU, BLAS and GPU that minidl runs on, and warns about settings that make it slow."""

import argparse
import os
import platform

import numpy as np
from threadpoolctl import threadpool_info

import minidl
from minidl.system.cpus import available_cpus
from minidl.system.malloc import keep_freed_memory
from minidl.system.report import (
    cpu_flags,
    describe_blas,
    describe_cpu,
    describe_cupy,
    describe_gpus,
    describe_threads,
    describe_workspace,
    read_cpuinfo,
    warnings_about_blas,
)


def main() -> None:
    """Print one line per component, and a warning if OpenBLAS does not use all instruction sets of the CPU."""
    cpuinfo, libraries = read_cpuinfo(), threadpool_info()
    rows = {
        "minidl": minidl.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "CPU": describe_cpu(cpuinfo, available_cpus()),
        "BLAS": describe_blas(libraries),
        "threads": describe_threads(minidl.get_num_threads(), os.environ),
        "scratch": describe_workspace(os.environ),
        "CuPy": describe_cupy(),
        **describe_gpus(),
        "malloc": "keeps freed memory for the next step" if keep_freed_memory() else "system default",
    }
    for name, value in rows.items():
        print(f"{name:9}{value}")
    for warning in warnings_about_blas(libraries, cpu_flags(cpuinfo), os.environ):
        print(f"\nwarning: {warning}")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m minidl", description=__doc__).parse_args()  # there are no options
    main()
