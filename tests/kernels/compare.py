"""Run a kernel and its specification on the same numbers, and measure how far apart they are."""

import numpy as np

from minidl.kernels import reference

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-4}

# The numbers of the arguments that a kernel is meant to write into. No kernel may write into any other.
WRITTEN = {"sgd_update": (0, 2), "adam_update": (0, 2, 3, 4), "update_running_statistics": (0, 1)}


def as_it_is(array):
    return array


def every_second(array):
    """The same numbers in every second place of rows that are twice as long."""
    return array.repeat(2, axis=-1)[..., ::2] if array.ndim else array


def column_major(array):
    """The same numbers with the first axis innermost."""
    return array.T.copy().T


LAYOUTS = (as_it_is, every_second, column_major)


def map_arrays(function, value):
    """`value` with each array in it, however deep in lists and tuples, replaced by function(array)."""
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(function, item) for item in value)
    return function(value) if hasattr(value, "dtype") else value


def arrays_in(value):
    """All arrays in nested lists and tuples, as one list."""
    found = []
    map_arrays(found.append, value)
    return found


def with_dtype(value, dtype):
    """Every array of floats converted; labels, taps, keys and counts stay as they are."""
    return map_arrays(lambda array: array.astype(dtype) if array.dtype.kind == "f" else array, value)


def assert_close(actual, expected, tolerance=1e-12):
    """max|actual - expected| <= tolerance * max|expected|; integers are equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    if expected.dtype.kind != "f":
        assert actual.dtype.kind in "iu"
        np.testing.assert_array_equal(actual, expected)
        return
    error = abs(actual - expected).max(initial=0)
    assert error <= tolerance * abs(expected).max(initial=0), f"max|error| {error}, max|{expected}|"


class Runner:
    """Calls kernels of one device with NumPy arrays in and out."""

    def __init__(self, kernels, to_device=as_it_is, to_host=as_it_is):
        self.kernels, self.to_device, self.to_host = kernels, to_device, to_host

    def __call__(self, name, *args, layout=as_it_is):
        """What the kernel returns, or, if it is an update, what it has written."""
        written = WRITTEN.get(name, ())
        placed = [self._place(arg, as_it_is if i in written else layout) for i, arg in enumerate(args)]
        result = getattr(self.kernels, name)(*placed)
        self._assert_unchanged(name, args, placed, written)
        if written:
            assert result is None
            result = [placed[i] for i in written]
        assert all(array.flags.c_contiguous for array in arrays_in(result)), f"{name}: not C-contiguous"
        return map_arrays(self.to_host, result)

    def _place(self, value, layout):
        return map_arrays(lambda array: layout(self.to_device(array.copy())), value)

    def _assert_unchanged(self, name, before, after, written):
        for i in set(range(len(before))) - set(written):
            for old, new in zip(arrays_in(before[i]), arrays_in(after[i]), strict=True):
                np.testing.assert_array_equal(self.to_host(new), old, err_msg=f"{name} wrote into argument {i}")


def assert_agrees(run, name, *args):
    """The kernel gives what the plain loops give, in both dtypes and all layouts of memory, and keeps the dtype."""
    args = with_dtype(args, np.float32)  # numbers that both dtypes can hold, so that one expectation serves both
    expected = Runner(reference)(name, *with_dtype(args, np.float64))
    _assert_result(Runner(reference)(name, *args), expected, np.float32)  # the loops keep the dtype too
    for dtype in TOLERANCE:
        for layout in LAYOUTS:
            _assert_result(run(name, *with_dtype(args, dtype), layout=layout), expected, dtype)


def _assert_result(actual, expected, dtype):
    for array, specified in zip(arrays_in(actual), arrays_in(expected), strict=True):
        assert isinstance(array, np.ndarray)  # a 0-d result too, and not one of NumPy's scalars
        assert array.dtype == dtype or specified.dtype.kind != "f"
        assert_close(array, specified, TOLERANCE[dtype])


def torch_gradients(torch, function, arrays, grad):
    """(y, [dL/d(array), ...]) of y = function(*arrays) by PyTorch's autograd, for dL/dy = grad."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    y = function(*tensors)
    y.backward(torch.tensor(grad))
    return y.detach().numpy(), [tensor.grad.numpy() for tensor in tensors]


def nchw(tensor):
    """minidl's layout of images -> PyTorch's; (N, C) is the same in both."""
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def nhwc(tensor):
    """PyTorch's layout of images -> minidl's."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
