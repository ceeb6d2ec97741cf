"""minidl: a deep-learning framework small enough to read in an afternoon and fast enough to train with."""

from minidl import data, functional, nn, optim
from minidl.autograd import is_grad_enabled, no_grad
from minidl.creation import arange, ones, randn, zeros
from minidl.dtypes import float32, float64, int64
from minidl.functional import cat, maximum, stack, where
from minidl.kernels.cpu._threads import get_num_threads, set_num_threads
from minidl.kernels.cpu.conv import get_convolution, set_convolution
from minidl.ops.function import Function
from minidl.random import fork_rng, manual_seed, once
from minidl.system.malloc import keep_freed_memory
from minidl.system.memory import explain_out_of_memory, set_per_process_memory_fraction
from minidl.system.precision import tf32
from minidl.tensor import Buffer, Parameter, Tensor, apply, matmul
from minidl.testing import gradcheck
from minidl.training.anomaly import AnomalyError, detect_anomaly
from minidl.training.capture import CapturedStep, cuda_graph
from minidl.training.checkpoint import BrokenCheckpointError, load_checkpoint, save_checkpoint
from minidl.training.nvtx import emit_nvtx
from minidl.training.recompute import recompute
from minidl.training.scaler import GradScaler
from minidl.training.watch import FeatureExtractor, watch

__version__ = "0.1.0"

keep_freed_memory()

# For type checkers, these names are public.
__all__ = [
    "AnomalyError",
    "Buffer",
    "CapturedStep",
    "FeatureExtractor",
    "Function",
    "GradScaler",
    "Parameter",
    "Tensor",
    "apply",
    "arange",
    "cat",
    "cuda_graph",
    "data",
    "detect_anomaly",
    "emit_nvtx",
    "explain_out_of_memory",
    "float32",
    "float64",
    "fork_rng",
    "functional",
    "get_convolution",
    "get_num_threads",
    "gradcheck",
    "int64",
    "is_grad_enabled",
    "keep_freed_memory",
    "load_checkpoint",
    "manual_seed",
    "matmul",
    "maximum",
    "nn",
    "no_grad",
    "once",
    "ones",
    "optim",
    "randn",
    "recompute",
    "save_checkpoint",
    "set_convolution",
    "set_num_threads",
    "set_per_process_memory_fraction",
    "stack",
    "tf32",
    "watch",
    "where",
    "zeros",
]
