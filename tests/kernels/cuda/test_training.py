"""Whole networks on the GPU: they learn what they learn on the CPU, and the same bits in every run."""

import numpy as np
import pytest
from models.resnet import cifar_resnet, imagenet_resnet
from models.vgg import vgg

import minidl
from minidl import Tensor
from minidl.data import make_shapes, normalize
from minidl.functional import cross_entropy
from minidl.optim import SGD, Adam

NETWORKS = {
    "ResNet-8, option A": lambda: cifar_resnet(8),
    "ResNet-18": lambda: imagenet_resnet(18, num_classes=10),
    "VGG-A with batch-norm": lambda: vgg("A", batch_norm=True, num_classes=10, image_size=32),
}
OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "Adam": lambda parameters: Adam(parameters, 0.001),
}


def train(make, device, make_optimizer, dtype="float32", steps=2):
    """(losses, weights) after some steps on drawn shapes, 32x32."""
    minidl.manual_seed(0)
    model = make().to(dtype).to(device)
    optimizer = make_optimizer(model.parameters())
    shapes = make_shapes(4 * steps)
    losses = []
    for step in range(steps):
        batch = slice(4 * step, 4 * step + 4)
        images = Tensor(normalize(shapes.images[batch], 128, 64), dtype=dtype, device=device)
        loss = cross_entropy(model(images), shapes.labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_what_it_learns_on_the_cpu(name, device):
    """In float64, as rounding grows from step to step."""
    losses, weights = train(NETWORKS[name], device, OPTIMIZERS["SGD"], "float64")
    expected_losses, expected = train(NETWORKS[name], "cpu", OPTIMIZERS["SGD"], "float64")
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for key, array in expected.items():
        assert abs(weights[key] - array).max() <= 1e-8, key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_runs_give_the_same_bits(optimizer, device):
    _, first = train(NETWORKS["ResNet-8, option A"], device, OPTIMIZERS[optimizer])
    _, second = train(NETWORKS["ResNet-8, option A"], device, OPTIMIZERS[optimizer])
    for key, array in first.items():
        assert array.tobytes() == second[key].tobytes(), key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_moves_from_device_to_device(optimizer, device, tmp_path):
    def make(place, seed):
        minidl.manual_seed(seed)
        model = NETWORKS["ResNet-8, option A"]().to(place)
        return model, OPTIMIZERS[optimizer](model.parameters())

    ours = make(device, 0)
    for parameter in ours[0].parameters():
        parameter.grad = parameter.detach() * 0.1
    ours[1].step()
    expected = ours[0].state_dict() | ours[1].state_dict()
    for place in ("cpu", device):  # there, and back from there
        minidl.save_checkpoint(tmp_path / "checkpoint", *ours, {"place": place})
        ours = make(place, 1)
        assert minidl.load_checkpoint(tmp_path / "checkpoint", *ours) == {"place": place}
        for name, array in (ours[0].state_dict() | ours[1].state_dict()).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
