"""The GPU, its driver and the versions of what runs on it, as JSON.

python benchmarks/gpu_facts.py facts.json
"""

import argparse
import functools
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cuda-nvrtc", "ml_dtypes", "torch", "pytest")


def version_of(name: str) -> str:
    """Of an installed package, or 'absent'."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


@functools.cache
def half_dtype() -> str:
    """bfloat16; on GPUs before Ampere float16, or float32 if convolutions have no float16 there."""
    import cupy
    import numpy as np

    from minidl import Tensor
    from minidl.functional import conv2d

    if int(cupy.cuda.Device().compute_capability) >= 80:
        return "bfloat16"
    x, weight = (Tensor(np.ones(size, np.float32), device="cuda") for size in ((1, 4, 4, 8), (1, 1, 8, 8)))
    try:
        conv2d(x.to("float16"), weight)
    except TypeError:
        return "float32"
    return "float16"


def device_facts() -> dict:
    """The GPU's name, compute capability times ten, half precision and memory; the versions of what runs on it."""
    import cupy

    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    facts = {
        "gpu": properties["name"].decode(),
        "capability": int(device.compute_capability),
        "half": half_dtype(),
        "memory_mb": device.mem_info[1] // 2**20,
        "multiprocessors": properties.get("multiProcessorCount"),
        "l2_mb": properties.get("l2CacheSize", 0) / 2**20,
        "cuda_of_driver": runtime.driverGetVersion(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return facts | {name: version_of(name) for name in PACKAGES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="to write")
    args = parser.parse_args()
    found = json.dumps(device_facts(), indent=1) + "\n"
    print(found)
    args.file.write_text(found)
