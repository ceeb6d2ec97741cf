"""Every operation in a captured step: replayed, it has the bits of an eager one; or an error names it."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn
from minidl.functional import cross_entropy, dropout, softmax
from minidl.optim import Adam
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


@pytest.mark.parametrize("case", CAPTURED)
def test_an_operation_takes_what_a_captured_step_defers(case, device, monkeypatch):
    """Here each input and each gradient is a sum that is not computed yet: see kernels/cuda/_fusion.py."""
    monkeypatch.setattr("minidl.kernels.THREADS_PAY", 0)  # elements, from which on sums have a kernel

    def sums(*arguments):
        inputs = [Tensor(x, requires_grad=True) for x in arguments[:-1]]
        y = case.ours(*(x + x for x in inputs))
        (y + y).backward(arguments[-1])
        return y, *(x.grad for x in inputs)

    step, eager = minidl.cuda_graph(sums), Step(case, "float32")
    for seed in range(4):
        arguments = eager.arguments(seed, device)
        for ours, theirs in zip(step(*arguments), sums(*arguments), strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), seed


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


HOST = {
    "crossentropy": lambda x: cross_entropy(x, [0, 1]),
    "dropout": lambda x: dropout(x, 0.5, np.zeros(4, np.uint32)),
    "move": lambda x: x.to("cpu"),
}


@pytest.mark.parametrize("name", HOST)
def test_an_operation_that_copies_from_or_to_the_host_is_named(name, device):
    step = minidl.cuda_graph(lambda x: (HOST[name](x), None)[1])
    x = minidl.ones(2, 3, device=device)
    step(x)
    step(x)
    with pytest.raises(RuntimeError, match=rf"cannot be captured: {name}: .* keep data on the device"):
        step(x)


def test_a_product_of_whole_numbers_is_captured(device):
    rng = np.random.default_rng(0)
    step = minidl.cuda_graph(lambda a, b: a @ b)
    for _ in range(5):
        a, b = (rng.integers(-9, 9, shape) for shape in ((2, 3, 5), (5, 4)))
        np.testing.assert_array_equal(step(Tensor(a), Tensor(b)).numpy(), a @ b)


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) by operators, and a linear layer."""

    def __init__(self, features, classes):
        minidl.manual_seed(0)
        self.query, self.key, self.value = (nn.Parameter(np.eye(features, dtype=np.float32)) for _ in range(3))
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        q, k, v = (x @ weight.to(x.dtype) for weight in (self.query, self.key, self.value))
        scores = q @ k.permute(0, 2, 1) * x.shape[-1] ** -0.5
        return self.head((softmax(scores).to(x.dtype) @ v).mean(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_step_with_attention_has_the_bits_of_an_eager_one_and_learns(dtype, device):
    def training():
        model = Attention(8, 3).to(device)
        optimizer = Adam(model.parameters(), 0.05)

        def step(x, labels):
            loss = cross_entropy(model(x.to(dtype)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    x, labels = np.random.default_rng(0).standard_normal((6, 5, 8), np.float32), np.arange(6) % 3
    eager, step = training(), minidl.cuda_graph(training())
    losses = []
    for _ in range(12):
        losses.append(step(Tensor(x), labels).item())
        assert losses[-1] == eager(Tensor(x, device=device), labels).item()
    assert losses[-1] < 0.7 * losses[0]
