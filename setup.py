"""Packaging. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# What minidl exchanges files with, and the type checker.
FORMATS = ["onnx>=1.17", "onnxruntime>=1.20", "tensorboardX>=2.6.2", "tensorboard>=2.18", "mypy>=1.18"]
TEST = ["pytest>=8", "hypothesis>=6.100", "matplotlib>=3.8", "ruff>=0.12", "ml_dtypes>=0.5", *FORMATS]

setup(
    name="minidl",
    version="0.1.0",
    description="A deep-learning framework small enough to read in an afternoon and fast enough to train with",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["minidl", "minidl.*"]),
    package_data={"minidl": ["py.typed"], "minidl.study.page": ["*.html", "*.css", "*.js"]},
    install_requires=["numpy>=2.1", "pillow>=10.3", "threadpoolctl>=3.5", "tqdm>=4.66", "safetensors>=0.4.3"],
    extras_require={
        "examples": ["matplotlib>=3.8"],
        "cuda12": ["cupy-cuda12x[ctk]>=14", "ml_dtypes>=0.5"],  # ml_dtypes: bfloat16
        "cuda13": ["cupy-cuda13x[ctk]>=14", "ml_dtypes>=0.5"],
        "onnx": ["onnx>=1.17"],
        "tensorboard": ["tensorboardX>=2.6.2"],
        "hub": ["huggingface_hub>=1"],  # load_network("hf:...")
        "mpi": ["mpi4py>=4.1", "mpich"],  # several processes; mpich brings the library and mpiexec
        "nccl": ["nccl4py[cu13]>=0.6"],  # several GPUs, beside mpi and cuda13
        "test": TEST,
        # `pytest --device fake`: CuPy on a CUDA driver for the CPU; 300 MB. This exact version, as some of its inside
        # is replaced; of CUDA, headers only.
        "fake-gpu": ["cupy-cuda13x==14.2.0", "nvidia-cuda-runtime>=13", "nvidia-cuda-crt>=13", "nvidia-cuda-cccl>=13"],
        # To compile the CUDA kernels in tests without a GPU, and to read their machine code; 240 MB.
        "nvrtc": ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-nvdisasm==13.5.37"],
        "bench": ["torch==2.13.0"],
        # To build the site: sphinx-build -W docs build/site. latex2mathml turns formulas into MathML; no JavaScript.
        # Selenium tests the pages in Debian's chromium, if that is there.
        "docs": [
            "sphinx>=8.2",
            "myst-parser>=4",
            "furo>=2025.9.25",
            "sphinx-design>=0.6",
            "latex2mathml>=3.78",
            "matplotlib>=3.8",
            "selenium>=4.30",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
