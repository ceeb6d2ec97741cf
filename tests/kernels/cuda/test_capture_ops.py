"""Every operation in a captured step: replayed, it has the bits of an eager one; or it is refused, by its name."""

import numpy as np
import pytest

import minidl
from minidl import Tensor
from tests.ops.test_every_op import CASES

# Operations that read an index from the host, or let the host count the places of a mask.
INDICES = ["a list with repeats", "two lists with repeats", "a list beside a slice", "a mask", "a mask, on the device"]
REFUSED = [f"x[{name}]" for name in INDICES]
CAPTURED = [pytest.param(case, id=f"{name}: {case}") for name, case in CASES if case.name not in REFUSED]


class Step:
    """A case as a training step: of its inputs and dL/dy it makes y and dL/d(inputs), all new tensors."""

    def __init__(self, case, dtype):
        self.case, self.dtypes, self.calls = case, case.dtypes(dtype), 0

    def arguments(self, seed, device):
        """Other numbers for each seed."""
        arrays = self.case.draw(np.random.default_rng(seed), self.case.shapes)
        inputs = [Tensor(x, np.float32, device).to(d) for x, d in zip(arrays, self.dtypes, strict=True)]
        y = self.case.ours(*inputs)
        grad = np.random.default_rng(seed + 1).standard_normal(y.shape)
        return *inputs, Tensor(grad, np.float32, device).to(y.dtype)

    def __call__(self, *arguments):
        self.calls += 1
        inputs = [Tensor(x, requires_grad=True) for x in arguments[:-1]]
        y = self.case.ours(*inputs)
        y.backward(arguments[-1])
        return y, *(x.grad for x in inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CAPTURED)
def test_a_captured_operation_has_the_bits_of_an_eager_one(case, dtype, device):
    eager, function = Step(case, dtype), Step(case, dtype)
    step = minidl.cuda_graph(function)
    for seed in range(5):
        arguments = eager.arguments(seed, device)
        for ours, theirs in zip(step(*arguments), eager(*arguments), strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), seed
    assert function.calls == 3  # twice, and for the capture


@pytest.mark.parametrize("name", REFUSED)
def test_an_index_that_needs_the_host_is_refused_and_the_error_tells_the_remedy(name, device):
    (case,) = (case for _, case in CASES if case.name == name)
    function = Step(case, "float32")
    step = minidl.cuda_graph(function)
    for seed in range(2):
        step(*function.arguments(seed, device))
    arguments = function.arguments(2, device)
    refused = r"getitem: the index is a list, NumPy array or mask; use integers on the device, or minidl\.where"
    with pytest.raises(RuntimeError, match=rf"cuda_graph: the step cannot be captured: {refused}"):
        step(*arguments)
    function(*arguments)  # eagerly it goes on
