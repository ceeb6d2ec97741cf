"""minidl: a deep-learning framework small enough to read in an afternoon and fast enough to train with."""

from minidl import _process

_process.tune()  # must come before NumPy is imported

from minidl import data, functional, nn, optim  # noqa: E402
from minidl.autograd import is_grad_enabled, no_grad  # noqa: E402
from minidl.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from minidl.creation import arange, ones, randn, zeros  # noqa: E402
from minidl.functional import cat, maximum, stack, where  # noqa: E402
from minidl.kernels.cpu._parallel import get_num_threads, set_num_threads  # noqa: E402
from minidl.ops.function import Function  # noqa: E402
from minidl.random import fork_rng, manual_seed  # noqa: E402
from minidl.tensor import Buffer, Parameter, Tensor, apply, float32, float64, int64, matmul  # noqa: E402
from minidl.testing import gradcheck  # noqa: E402

__version__ = "0.1.0"
