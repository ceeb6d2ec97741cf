"""A recorded step does what an ordinary one does, bit for bit, and what cannot be recorded is refused."""

import numpy as np
import pytest
from models.resnet import cifar_resnet

import minidl
from minidl import Tensor, nn
from minidl.functional import cross_entropy
from minidl.optim import SGD, Adam

CALLS = 5  # two ordinary ones, one that records, and two replays


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 4),
    )


OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda parameters: Adam(parameters, 0.01),
}


@pytest.fixture
def batches(rng):
    """Images and labels for each call."""
    images = rng.standard_normal((CALLS, 4, 8, 8, 3)).astype(np.float32)
    return list(zip(images, rng.integers(0, 4, (CALLS, 4)), strict=True))


def make_step(model, optimizer):
    def train_step(images, labels):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return train_step


def train(make, optimizer, batches, device, recorded, dtype="float32"):
    """(losses, everything that training has changed)."""
    minidl.manual_seed(1)
    model = make().to(device)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    step = make_step(model, optimizer)
    step = minidl.cuda_graph(step) if recorded else step
    losses = []
    for number, (images, labels) in enumerate(batches):
        optimizer.lr = 0.1 / (1 + number)
        losses.append(step(Tensor(images, device=device).to(dtype), Tensor(labels, device=device).data))
    return [loss.item() for loss in losses], model.state_dict() | optimizer.state_dict()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recorded_run_is_an_ordinary_one_bit_for_bit(optimizer, dtype, device, batches):
    ordinary, expected = train(small_network, optimizer, batches, device, recorded=False, dtype=dtype)
    recorded, state = train(small_network, optimizer, batches, device, recorded=True, dtype=dtype)
    assert recorded == ordinary
    assert len(set(recorded)) == CALLS
    for key, array in expected.items():
        assert state[key].tobytes() == array.tobytes(), key


def test_a_recorded_resnet_is_an_ordinary_one_bit_for_bit(device, batches):
    ordinary, expected = train(lambda: cifar_resnet(8, "A", 4), "SGD", batches[:4], device, recorded=False)
    recorded, state = train(lambda: cifar_resnet(8, "A", 4), "SGD", batches[:4], device, recorded=True)
    assert recorded == ordinary
    for key, array in expected.items():
        assert state[key].tobytes() == array.tobytes(), key


def test_inputs_may_come_from_the_host_and_outputs_stay_as_they_are(device):
    double = minidl.cuda_graph(lambda x, y: (x + x, y, None))
    results = [double(Tensor(np.full(3, number, np.float32)), np.arange(2) + number) for number in range(CALLS)]
    for number, (x, y, nothing) in enumerate(results):
        np.testing.assert_array_equal(x.numpy(), np.full(3, 2 * number))
        np.testing.assert_array_equal(Tensor(y).numpy(), np.arange(2) + number)
        assert nothing is None
        assert x.device == "cuda"


def test_another_shape_is_refused_and_the_graph_still_works(device, to_device):
    double = minidl.cuda_graph(lambda x: x + x)
    for _ in range(3):
        double(to_device(np.ones(3)))
    with pytest.raises(ValueError, match=r"expected inputs like .*, float64 \(3,\), got float64 \(2,\); .*call .step"):
        double(to_device(np.ones(2)))
    with pytest.raises(ValueError, match="got float32"):
        double(to_device(np.ones(3, np.float32)))
    with pytest.raises(TypeError, match="expected tensors or arrays as inputs, got int"):
        double(3)
    assert Tensor(double.step(to_device(np.ones(2)))).numpy().tolist() == [2, 2]
    assert Tensor(double(to_device(np.full(3, 4.0)))).numpy().tolist() == [8, 8, 8]


UNRECORDABLE = {
    "reading a number": lambda x: x * x.sum().item(),
    "a copy to the host": lambda x: Tensor(x.numpy(), device="cuda"),
    "a copy from the host": lambda x: x + Tensor(np.ones(3, np.float32), device="cuda"),
    "cuBLAS": lambda x: x.reshape(1, 3) @ x.reshape(3, 1),
}


@pytest.mark.parametrize("what", UNRECORDABLE)
def test_what_cannot_be_recorded_is_refused_and_the_process_goes_on(what, device):
    graph, x = minidl.cuda_graph(UNRECORDABLE[what]), Tensor(np.arange(3, dtype=np.float32), device=device)
    ordinary = [graph(x), graph(x)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"cuda_graph: the step cannot be recorded: .*Read numbers"):
            graph(x)
    again = UNRECORDABLE[what](x)
    np.testing.assert_array_equal(again.numpy(), ordinary[0].numpy())


def test_a_learning_rate_set_inside_the_step_is_refused(device):
    weight = minidl.Parameter(Tensor(np.ones(3, np.float32), device=device))
    optimizer = SGD([weight], 0.1)

    def step(x):
        optimizer.lr = 0.2
        return x

    graph, x = minidl.cuda_graph(step), Tensor(np.ones(3), device=device)
    graph(x), graph(x)
    with pytest.raises(RuntimeError, match="lr: set inside a recorded step"):
        graph(x)
    optimizer.lr = 0.3
    assert optimizer.lr == 0.3
