"""The outputs of layers inside a network, by their names."""

import numpy as np
import pytest
from models.resnet import cifar_resnet
from models.vgg import vgg

from minidl import FeatureExtractor, Tensor, nn, no_grad, watch
from minidl.autograd import Node, count_consumers


@pytest.fixture
def images(device, rng):
    return Tensor(rng.standard_normal((2, 8, 8, 3)), np.float32, device)


@pytest.fixture
def chain(device):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(4, 2)).to(
        device
    )


def test_a_layer_by_its_name_is_the_network_up_to_there(chain, images):
    chain.eval()
    with no_grad():
        for number in range(len(chain)):
            expected = images
            for module in chain.modules[: number + 1]:
                expected = module(expected)
            features = FeatureExtractor(chain, str(number))(images)
            np.testing.assert_allclose(features.numpy(), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_what_is_behind_the_layer_is_not_computed(images, device):
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("computed")

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Never())).to(device)
    assert FeatureExtractor(model, "1.0")(images).shape == (2, 6, 6, 4)


@pytest.mark.parametrize(
    ("make", "size", "layer", "shape"),
    [
        (lambda: cifar_resnet(8), 8, "layer2.0", (2, 4, 4, 32)),
        (lambda: cifar_resnet(8), 8, "layer3.0.conv1", (2, 2, 2, 64)),
        (lambda: vgg("A", True, 10, image_size=32), 32, "features.2", (2, 32, 32, 64)),
    ],
)
def test_layers_inside_the_networks_of_the_papers(make, size, layer, shape, device):
    model, images = make().to(device), Tensor(np.ones((2, size, size, 3), np.float32), device=device)
    with watch(model, layer) as outputs:
        model(images)
    assert outputs[layer].shape == shape
    assert FeatureExtractor(model.eval(), layer)(images).shape == shape


def test_what_is_watched_changes_no_number_and_nothing_stays_behind(chain, images):
    before = {name: tensor.numpy().copy() for name, tensor in chain.named_buffers()}
    plain = chain(images)
    for name, buffer in chain.named_buffers():
        buffer.data[...] = Tensor(before[name], device=buffer.device).data
    with watch(chain, "1", "2") as outputs, watch(chain, "2") as inner:
        watched = chain(images)
    np.testing.assert_array_equal(watched.numpy(), plain.numpy())
    assert (outputs["1"].numpy() < 0).any()  # before the ReLU
    assert (outputs["2"].numpy() >= 0).all()
    assert inner["2"] is outputs["2"]
    assert not any("forward" in vars(module) for _, module in chain.named_modules())


def test_gradients_flow_through_features(chain, images):
    FeatureExtractor(chain, "3")(images).sum().backward()
    assert chain[0].weight.grad is not None
    assert chain[4].weight.grad is None


@pytest.mark.parametrize("layer", ["0.0", "0"])
def test_an_extractor_may_take_features_from_inside_of_another(layer, images, device):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.GlobalAvgPool()).to(device)
    outer = FeatureExtractor(FeatureExtractor(model, "0"), f"model.{layer}")
    np.testing.assert_array_equal(outer(images).numpy(), FeatureExtractor(model, layer)(images).numpy())


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.numpy().tobytes() for name, grad in found.items() if grad is not None}


def through_features(model, images):
    return FeatureExtractor(model, "layer2.0.conv2")(images)


def watched(model, images):
    with watch(model, "layer2.0.conv2") as outputs:
        model(images)
    return outputs["layer2.0.conv2"]


@pytest.mark.parametrize("features", [through_features, watched])
def test_gradients_flow_through_features_from_inside_of_what_is_recomputed(features, images, device):
    """Those of the layers before the recomputed part too."""
    plain, recomputed = (cifar_resnet(8, recompute=recompute).to(device) for recompute in (False, True))
    for model in (plain, recomputed):
        features(model, images).sum().backward()
    assert "conv1.weight" in gradients(plain)
    assert gradients(recomputed) == gradients(plain)
    nodes = [place for place in count_consumers(recomputed(images)._node) if isinstance(place, Node)]
    assert any(node.name == "recompute" for node in nodes)  # afterwards it recomputes again


def test_an_error_inside_leaves_the_network_as_it_was(chain):
    with pytest.raises(ValueError, match="conv2d"), watch(chain, "3"):
        chain(Tensor(np.ones((1, 8, 8, 5), np.float32), device=chain[0].weight.device))
    assert not any("forward" in vars(module) for _, module in chain.named_modules())


def test_unknown_layers_and_layers_that_are_not_used_are_named(chain, images, device):
    with pytest.raises(ValueError, match="Sequential has no layer 'layer9'; it has 0, 1, 2"):
        FeatureExtractor(chain, "layer9")

    class Unused(nn.Module):
        def __init__(self):
            self.spare = nn.ReLU()

        def forward(self, x):
            return x

    with pytest.raises(RuntimeError, match="does not use its layer 'spare'"):
        FeatureExtractor(Unused().to(device), "spare")(images)
