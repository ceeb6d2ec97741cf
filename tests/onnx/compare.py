"""A module, and the file that it is exported to, side by side."""

import numpy as np
import onnxruntime

import minidl.onnx
from minidl import Tensor, nn, no_grad


class Layer(nn.Module):
    """A function as a module, with tensors that it uses."""

    def __init__(self, function, **tensors):
        self.function = function
        vars(self).update(tensors)

    def forward(self, x):
        return self.function(x)


def run(path, x):
    """What onnxruntime computes; x and the result are (N, H, W, C) if they have four dimensions."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(["output"], {"input": x.transpose(0, 3, 1, 2) if x.ndim == 4 else x})
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def assert_same(model, example, path, sizes=(1, 3), tolerance=1e-5):
    """Exported with one batch size, the file computes what the model does with these, to `tolerance` of the maximum."""
    rng = np.random.default_rng(1)
    minidl.onnx.export(model, Tensor(example), path)
    model.eval()
    for size in sizes:
        x = rng.standard_normal((size, *example.shape[1:])).astype(example.dtype)
        with no_grad():
            expected = model(Tensor(x)).numpy()
        actual = run(path, x)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=1e-3))
