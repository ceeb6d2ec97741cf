"""A captured step does what an eager one does, bit for bit; and what would be frozen in a graph is an error."""

import contextlib
import importlib
import re
import types
from pathlib import Path

import numpy as np
import pytest
from models.resnet import cifar_resnet

import minidl
from minidl import Tensor, nn
from minidl.data import DeviceLoader
from minidl.functional import cross_entropy
from minidl.optim import SGD, Adam

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETWORKS = {"every kind of layer": small_network, "ResNet-8": lambda: cifar_resnet(8)}
OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "Adam": lambda parameters: Adam(parameters, 0.01),
}


class Training:
    """A network, an optimiser, and a step of it."""

    def __init__(self, device, network="every kind of layer", optimizer="SGD"):
        minidl.manual_seed(0)
        self.model = NETWORKS[network]().to(device)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

    def step(self, images, labels):
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, logits

    def state(self):
        """Whatever a step changes."""
        tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])  # with dropout's counters
        return {name: tensor.numpy() for name, tensor in tensors.items()} | self.optimizer.state_dict()


@pytest.fixture
def training(device):
    return Training(device)


@pytest.fixture
def graph(kernels):
    return importlib.import_module("minidl.kernels.cuda.graph")


def batches(count, device="cpu", size=8):
    """Images as tensors and labels as arrays."""
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((2, size, size, 3), np.float32) for _ in range(count)]
    labels = [rng.integers(10, size=2) for _ in range(count)]
    return [(Tensor(x, device=device), Tensor(y, device=device).data) for x, y in zip(images, labels, strict=True)]


def captured(training, calls=3):
    """A step that has been captured."""
    step = minidl.cuda_graph(training.step)
    for images, labels in batches(calls):
        step(images, labels)
    return step


# -- a captured step is a step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_captured_steps_have_the_bits_of_eager_ones(network, optimizer, source, device):
    """Losses, weights, running statistics, the optimiser's state, dropout's counters; the learning rate changes."""
    eager, other = Training(device, network, optimizer), Training(device, network, optimizer)
    step = minidl.cuda_graph(other.step)
    for number, (images, labels) in enumerate(batches(5, source)):
        eager.optimizer.lr = other.optimizer.lr = 0.1 / (number + 1)
        expected = eager.step(images.to(device), labels)
        for ours, theirs in zip(step(images, labels), expected, strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), number
    state = other.state()
    for name, array in eager.state().items():
        assert array.tobytes() == state[name].tobytes(), name


def test_captured_steps_of_adam_count_for_each_parameter(device):
    """A parameter that was frozen for two steps stays two steps behind."""
    eager, other = Training(device, optimizer="Adam"), Training(device, optimizer="Adam")
    for training in (eager, other):
        frozen = training.optimizer.parameters[0]
        frozen.requires_grad = False
        for images, labels in batches(2, device):
            training.step(images, labels)
        frozen.requires_grad = True
    step = minidl.cuda_graph(other.step)
    for images, labels in batches(5, "cuda"):
        eager.step(images, labels)
        step(images, labels)
    state = other.state()
    assert [int(state[f"step.{i}"]) for i in (0, 1)] == [5, 7]
    for name, array in eager.state().items():
        assert array.tobytes() == state[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_captured_steps_with_rounded_products_have_the_bits_of_eager_ones(dtype, device):
    eager, other = Training(device), Training(device)

    def step_of(training):
        def step(images, labels):
            with minidl.tf32() if dtype == "tf32" else contextlib.nullcontext():
                return training.step(images.to("bfloat16") if dtype == "bfloat16" else images, labels)

        return step

    step = minidl.cuda_graph(step_of(other))
    for images, labels in batches(4, "cuda"):
        expected = step_of(eager)(images, labels)
        for ours, theirs in zip(step(images, labels), expected, strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()


class Recomputed(nn.Module):
    """A network that is computed again in backward; where it has recomputed stages, they are parts within a part."""

    def __init__(self, network):
        self.network = network

    def forward(self, x):
        return minidl.recompute(self.network, x)


RECOMPUTED = {
    "every kind of layer": lambda: Recomputed(small_network()),
    "ResNet-8": lambda: Recomputed(cifar_resnet(8, recompute=True)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_captured_steps_that_recompute_have_the_bits_of_eager_ones_that_do_not(network, device, monkeypatch):
    """With running statistics and dropout's counters, which change once in a step."""
    eager = Training(device, network)
    monkeypatch.setitem(NETWORKS, network, RECOMPUTED[network])
    other = Training(device, network)
    step = minidl.cuda_graph(other.step)
    for images, labels in batches(5, "cuda"):
        for ours, theirs in zip(step(images, labels), eager.step(images, labels), strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    state = {name.removeprefix("network."): array for name, array in other.state().items()}
    for name, array in eager.state().items():
        assert array.tobytes() == state[name].tobytes(), name


def test_a_capture_executes_nothing_by_itself(training, graph):
    (images, labels), *_ = batches(1, "cuda")
    work = graph.Graph()
    work.run(lambda: training.step(images, labels))
    before = training.state()
    work.capture(lambda: training.step(images, labels))
    assert all(array.tobytes() == before[name].tobytes() for name, array in training.state().items())
    work.launch()
    assert any(array.tobytes() != before[name].tobytes() for name, array in training.state().items())


def test_what_is_computed_lies_in_a_pool_of_its_own(training, graph):
    (images, labels), *_ = batches(1, "cuda")
    work = graph.Graph()
    work.run(lambda: training.step(images, labels))
    assert work.pool.total_bytes() > images.data.nbytes


def test_the_memory_is_given_back_with_the_graph(training, graph):
    (images, labels), *_ = batches(1, "cuda")
    work = graph.Graph()
    work.run(lambda: training.step(images, labels))
    pool, before = work.pool, work.pool.total_bytes()
    del work
    assert pool.total_bytes() < before


def test_outputs_are_copies_without_a_graph_behind_them(training):
    step = minidl.cuda_graph(training.step)
    results = [step(images, labels)[0] for images, labels in batches(5)]
    assert not any(loss.requires_grad for loss in results)
    assert len({loss.item() for loss in results}) == 5


def test_a_step_may_return_nothing_or_nested_tuples_and_take_constants(device):
    total = Tensor(np.zeros(2, np.float32), device=device)

    def add(x, sign, scale):
        total.data[...] += x.data * (scale if sign == "plus" else -scale)
        return (x * 2, (x, total)) if sign == "plus" else None

    plus, minus = minidl.cuda_graph(add), minidl.cuda_graph(add)
    for number in range(4):
        x = Tensor([1.0, number], device=device)
        doubled, (same, sums) = plus(x, "plus", 2)
        np.testing.assert_array_equal(doubled.numpy(), [2, 2 * number])
        np.testing.assert_array_equal(same.numpy(), [1, number])
        assert minus(x, "minus", 1) is None
    np.testing.assert_array_equal(sums.numpy(), [5, 9])
    np.testing.assert_array_equal(total.numpy(), [4, 6])


def test_evaluation_is_captured_too(training, device):
    training.model.eval()

    @minidl.no_grad()
    def predict(images):
        return training.model(images)

    step = minidl.cuda_graph(predict)
    for images, _ in batches(4):
        assert step(images).numpy().tobytes() == predict(images.to(device)).numpy().tobytes()


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2, 1, 2, 1), (1, 2, 2, 1, 2, 2, 2, 1)], ids=["last is smaller", "so is first"]
)
def test_a_batch_of_another_size_runs_as_it_is(sizes, device):
    """As the last batch of an epoch, with which a resumed run may also begin. The bits are those of eager steps."""
    eager, other, calls = Training(device), Training(device), []
    step, called = minidl.cuda_graph(lambda *batch: calls.append(batch) or other.step(*batch)), []
    for size, (images, labels) in zip(sizes, batches(len(sizes), device), strict=True):
        expected = eager.step(images[:size], labels[:size])
        before = len(calls)
        for ours, theirs in zip(step(images[:size], labels[:size]), expected, strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
        called.append(len(calls) > before)
    state = other.state()
    for name, array in eager.state().items():
        assert array.tobytes() == state[name].tobytes(), name
    # Two calls with batches of 2, and the capture; each one of 1; after the capture no other.
    assert called == [size == 1 or sizes[: i + 1].count(2) <= 3 for i, size in enumerate(sizes)]


def test_the_host_waits_before_it_writes_to_pinned_memory_again(graph, to_host):
    buffer, seen = graph.InputBuffer((2,), np.dtype(np.float32)), []
    buffer.copied = types.SimpleNamespace(
        synchronize=lambda: seen.append(buffer.pinned.tolist()), record=lambda stream: seen.append("recorded")
    )
    buffer.fill(np.array([1, 2], np.float32))
    buffer.fill(np.array([3, 4], np.float32))
    assert seen[1:] == ["recorded", [1, 2], "recorded"]
    assert to_host(buffer.array).tolist() == [3, 4]


# -- what cannot be captured -------------------------------------------------------------------------------------------

CANNOT = {
    "a number read": lambda training, loss: loss.item(),
    "an array read": lambda training, loss: loss.numpy(),
    "a condition": lambda training, loss: loss > 1 or None,
    "data from the host": lambda training, loss: Tensor([1.0, 2.0], device="cuda"),
    "labels from the host": lambda training, loss: cross_entropy(loss.reshape(1, 1), [0]),
    "a mask": lambda training, loss: training.model[0].bias[training.model[0].bias > 0],
    "an index from the host": lambda training, loss: training.model[0].bias[[0, 2]],
    "the learning rate set": lambda training, loss: setattr(training.optimizer, "lr", 0.5),
    "the learning rate read": lambda training, loss: training.optimizer.lr,
    "random numbers": lambda training, loss: loss * minidl.randn().item(),
    "a layer made": lambda training, loss: nn.Dropout(0.5).to("cuda")(loss),
    "clipping": lambda training, loss: minidl.optim.clip_grad_norm_(training.model.parameters(), 1.0),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_be_captured_is_an_error_and_the_process_goes_on(what, training, device):
    def train_step(images, labels):
        loss = cross_entropy(training.model(images), labels)
        loss.backward()
        CANNOT[what](training, loss)
        training.optimizer.step()
        training.optimizer.zero_grad()

    step = minidl.cuda_graph(train_step)
    (images, labels), *_ = batches(1)
    step(images, labels)
    step(images, labels)
    before = training.state()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"cuda_graph: the step cannot be captured: .*; read numbers after the"):
            step(images, labels)
    assert all(array.tobytes() == before[name].tobytes() for name, array in training.state().items())
    training.optimizer.zero_grad()
    train_step(images.to(device), labels)  # eagerly
    captured(training)


def test_a_spoilt_capture_ends_too(training, graph):
    cupy = graph.cupy

    def wait(images, labels):
        training.step(images, labels)
        cupy.cuda.get_current_stream().synchronize()

    step = minidl.cuda_graph(wait)
    (images, labels), *_ = batches(1)
    step(images, labels)
    step(images, labels)
    with pytest.raises(RuntimeError, match="cannot be captured: cudaErrorStreamCaptureUnsupported"):
        step(images, labels)
    training.optimizer.zero_grad()
    captured(training)


def test_another_error_comes_as_it_is(training):
    def fail(images, labels):
        training.step(images, labels)
        if fail.now:
            raise KeyError("mine")

    fail.now = False
    step = minidl.cuda_graph(fail)
    (images, labels), *_ = batches(1)
    step(images, labels)
    step(images, labels)
    fail.now = True
    with pytest.raises(KeyError, match="mine"):
        step(images, labels)
    fail.now = False
    training.optimizer.zero_grad()
    step(images, labels)


def test_setting_the_learning_rate_inside_is_explained(training):
    def train_step(images, labels):
        training.optimizer.lr = 0.25
        training.step(images, labels)

    step = minidl.cuda_graph(train_step)
    (images, labels), *_ = batches(1)
    step(images, labels)
    step(images, labels)
    with pytest.raises(RuntimeError, match=r"SGD\.lr: set inside a captured step, it would be 0\.25 in every step"):
        step(images, labels)


# -- arguments and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: (images.to("float64"), labels),
        lambda images, labels: (images.numpy(), labels),
        lambda images, labels: (images,),
    ],
)
@pytest.mark.parametrize("calls", [1, 3])
def test_other_arguments_than_the_first_are_refused(change, calls, training):
    step = captured(training, calls)
    (images, labels), *_ = batches(1)
    expected = r"expected the arguments \(Tensor float32, array int64\) of the first call, got \("
    with pytest.raises(ValueError, match=expected + r".*\); call step\.function\(\.\.\.\)"):
        step(*change(images, labels))
    step(images, labels)


def test_a_constant_must_stay_the_same(device):
    step = minidl.cuda_graph(lambda x, scale: x * scale)
    x = Tensor([1.0], device=device)
    step(x, 2)
    for other in (3, 2.0, None):
        with pytest.raises(ValueError, match=r"got \(Tensor float32, .*; call step\.function"):
            step(x, other)


def test_the_first_call_that_succeeds_decides(device):
    step = minidl.cuda_graph(lambda x: x.reshape(2))
    with pytest.raises(ValueError, match="reshape"):
        step(Tensor([1.0, 2.0, 3.0]))
    assert [step(Tensor([1.0, 2.0])).shape for _ in range(4)] == [(2,)] * 4


@pytest.mark.parametrize("argument", [[1, 2], {"x": 1}, nn.ReLU()])
def test_an_argument_of_another_kind_is_refused(argument, device):
    with pytest.raises(TypeError, match="expected tensors, arrays, numbers and strings as arguments, got"):
        minidl.cuda_graph(lambda x: None)(argument)


def test_an_argument_that_requires_grad_is_refused(device):
    with pytest.raises(ValueError, match=r"an argument requires grad.*pass argument\.detach\(\)"):
        minidl.cuda_graph(lambda x: None)(Tensor([1.0], device=device, requires_grad=True))


@pytest.mark.parametrize("output", [1.5, [1], {"loss": 1}])
def test_an_output_of_another_kind_is_refused(output, device):
    with pytest.raises(TypeError, match="expected the step to return a Tensor, a tuple of Tensors or None, got"):
        minidl.cuda_graph(lambda: output)()


def test_a_step_on_the_cpu_is_refused(device):
    with pytest.raises(ValueError, match=r"expected the step to compute on device 'cuda'.*model\.to\('cuda'\)"):
        minidl.cuda_graph(lambda: Tensor([1.0]))()
    with pytest.raises(TypeError, match=r"conv2d: inputs of device cuda and cpu"):
        captured(Training("cpu"), calls=1)


# -- README ------------------------------------------------------------------------------------------------------------


def test_what_readme_shows_runs(training):
    (program,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    names = {
        "minidl": minidl,
        "cross_entropy": cross_entropy,
        "model": training.model,
        "optimizer": training.optimizer,
        "schedule": lambda number: 0.1 / (number + 1),
        "loader": [(images.numpy(), labels) for images, labels in batches(4)],
        "DeviceLoader": DeviceLoader,
    }
    before = training.state()["0.weight"]
    exec(program, names)
    assert (training.state()["0.weight"] != before).any()
    assert np.isfinite(names["loss"].item())
