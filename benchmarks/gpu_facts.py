"""The GPU, its driver and the versions of what runs on it, as JSON.

python benchmarks/gpu_facts.py facts.json
"""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cuda-nvrtc", "ml_dtypes", "torch", "pytest")


def version_of(name: str) -> str:
    """Of an installed package, or 'absent'."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def device_facts() -> dict:
    """The GPU's name, compute capability times ten and memory; the versions of driver, CUDA and packages."""
    import cupy

    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    facts = {
        "gpu": properties["name"].decode(),
        "capability": int(device.compute_capability),
        "memory_mb": device.mem_info[1] // 2**20,
        "multiprocessors": properties.get("multiProcessorCount"),
        "l2_mb": properties.get("l2CacheSize", 0) / 2**20,
        "cuda_of_driver": runtime.driverGetVersion(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return facts | {name: version_of(name) for name in PACKAGES}


if __name__ == "__main__":
    found = json.dumps(device_facts(), indent=1) + "\n"
    print(found)
    Path(sys.argv[1]).write_text(found)
