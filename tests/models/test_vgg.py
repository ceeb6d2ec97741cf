"""VGG: sizes, names, and every number of a training step beside PyTorch's."""

import numpy as np
import pytest
from models.vgg import CONFIGS, DenseVGG, vgg

import minidl
from minidl import Tensor, no_grad
from tests.models.compare import assert_equals_its_twin, without_dropout
from tests.models.counting import count_conv_parameters, count_macs, count_parameters, no_draws

# -- sizes -------------------------------------------------------------------------------------------------------------

# config: parameters, with batch-norm, of the convolutions alone, thousands of millions of multiply-adds
SIZES = {
    "A": (132_863_336, 132_868_840, 9_220_480, "7.609"),
    "A-LRN": (132_863_336, 132_868_840, 9_220_480, "7.609"),
    "B": (133_047_848, 133_053_736, 9_404_992, "11.308"),
    "C": (133_638_952, 133_647_400, 9_996_096, "11.771"),
    "D": (138_357_544, 138_365_992, 14_714_688, "15.470"),
    "E": (143_667_240, 143_678_248, 20_024_384, "19.632"),
}


def test_every_configuration_is_in_the_table():
    assert list(CONFIGS) == list(SIZES)


@pytest.mark.parametrize("config", SIZES)
def test_networks_have_the_papers_number_of_parameters(config, monkeypatch):
    no_draws(monkeypatch)
    plain, with_batch_norm, convolutions, _ = SIZES[config]
    model = vgg(config)
    assert count_parameters(model) == plain
    assert count_conv_parameters(model) == convolutions
    assert count_parameters(vgg(config, batch_norm=True)) == with_batch_norm


@pytest.mark.parametrize("config", SIZES)
def test_networks_do_the_papers_number_of_multiply_adds(config, monkeypatch):
    no_draws(monkeypatch)
    macs = count_macs(vgg(config), 224, monkeypatch)
    assert f"{macs / 1e9:.3f}" == SIZES[config][3]


@pytest.mark.parametrize(
    ("image_size", "inputs"), [(224, 7 * 7 * 512), (64, 2 * 2 * 512), (100, 3 * 3 * 512), (32, 512)]
)
def test_the_first_linear_layer_fits_the_size_of_the_images(image_size, inputs, monkeypatch):
    no_draws(monkeypatch)
    model = vgg("A", image_size=image_size, num_classes=7).eval()
    assert next(p for _, p in model.classifier.named_parameters()).shape[0] == inputs
    with minidl.no_grad():
        assert model(Tensor(np.zeros((1, image_size, image_size, 3), np.float32))).shape == (1, 7)


# -- names -------------------------------------------------------------------------------------------------------------

CLASSIFIER = {
    "classifier.0.weight": (4096, 25088),
    "classifier.0.bias": (4096,),
    "classifier.3.weight": (4096, 4096),
    "classifier.6.weight": (1000, 4096),
}

# Literally those of torchvision's vgg16, vgg16_bn and vgg19, with their shapes; and how many tensors there are.
NAMES = {
    ("D", False): (
        32,
        {
            "features.0.weight": (64, 3, 3, 3),
            "features.5.weight": (128, 64, 3, 3),
            "features.28.weight": (512, 512, 3, 3),
            "features.28.bias": (512,),
        },
    ),
    ("D", True): (
        13 * 6 + 6,
        {
            "features.0.bias": (64,),
            "features.1.running_mean": (64,),
            "features.7.weight": (128, 64, 3, 3),
            "features.40.weight": (512, 512, 3, 3),
            "features.41.running_var": (512,),
        },
    ),
    ("E", False): (38, {"features.34.weight": (512, 512, 3, 3), "features.19.weight": (512, 256, 3, 3)}),
}


@pytest.mark.parametrize(("config", "batch_norm"), NAMES)
def test_modules_have_the_names_of_torchvision(config, batch_norm, monkeypatch):
    no_draws(monkeypatch)
    count, expected = NAMES[config, batch_norm]
    expected = expected | CLASSIFIER
    model = vgg(config, batch_norm)
    shapes = {name: t.layout.shape_in_file(t.shape) if t.ndim > 1 else t.shape for name, t in model.named_parameters()}
    shapes |= {name: buffer.shape for name, buffer in model.named_buffers() if buffer.persistent}
    assert len(shapes) == count
    assert {name: shapes.get(name) for name in expected} == expected


# -- numbers -----------------------------------------------------------------------------------------------------------

# config, batch-norm, size of the images: 64 has the three linear layers, behind a flatten of 2x2 pixels
TWINS = [
    ("A-LRN", False, 32),
    ("B", True, 32),
    ("C", False, 32),
    ("D", True, 32),
    ("E", False, 32),
    ("A", False, 64),
]


def make_pair(twins, config, batch_norm, image_size, dtype, device):
    model = without_dropout(vgg(config, batch_norm, 10, image_size)).to(dtype).to(device)
    return model, twins.twin_of(model, twins.VGG, config, batch_norm, image_size, 10)


@pytest.mark.parametrize(("config", "batch_norm", "image_size"), TWINS)
def test_a_network_equals_its_twin(config, batch_norm, image_size, device, rng, twins):
    model, twin = make_pair(twins, config, batch_norm, image_size, "float64", device)
    assert_equals_its_twin(model, twin, rng.standard_normal((2, image_size, image_size, 3)), 1e-10)


@pytest.mark.parametrize(("config", "batch_norm"), [("A-LRN", False), ("D", True)])
def test_the_logits_equal_those_of_the_twin_in_float32_too(config, batch_norm, device, rng, twins, torch):
    model, twin = make_pair(twins, config, batch_norm, 32, "float32", device)
    x = rng.standard_normal((2, 32, 32, 3), np.float32)
    for mode in (True, False):
        logits = model.train(mode)(Tensor(x, device=device)).numpy()
        expected = twin.train(mode)(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
        assert abs(logits - expected).max() <= 1e-4 * abs(expected).max()


def test_dropout_is_active_in_training_alone():
    model, x = vgg("A", num_classes=10, image_size=32), Tensor(np.ones((2, 32, 32, 3), np.float32))
    with minidl.no_grad():
        first, second = (model(x).numpy() for _ in range(2))
        assert not np.array_equal(first, second)
        model.eval()
        assert np.array_equal(model(x).numpy(), model(x).numpy())


# -- how they are made -------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_weights_and_the_dropout():
    def drawn(seed):
        model = vgg("A", image_size=32, seed=seed)
        return model.features[0].weight.numpy().tobytes(), model.classifier[0].key.numpy().tobytes()

    first = drawn(1)
    assert drawn(1) == first
    assert not set(drawn(2)) & set(first)


def test_making_a_network_leaves_the_global_draws_as_they_were():
    with minidl.fork_rng(5):
        expected = minidl.randn(3).numpy()
    with minidl.fork_rng(5):
        vgg("A", image_size=32)
        assert np.array_equal(minidl.randn(3).numpy(), expected)


WRONG = {
    "an unknown configuration": ({"config": "F"}, "vgg: expected config A, A-LRN, B, C, D, E, got 'F'"),
    "images too small for five poolings": ({"config": "A", "image_size": 31}, "vgg: expected image_size >= 32.*got 31"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_networks_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vgg(**arguments)


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_dense_scores_of_an_image_of_the_usual_size_are_those_of_the_network(image_size, rng):
    network = vgg("A", num_classes=5, image_size=image_size).eval()
    images = Tensor(rng.standard_normal((1, image_size, image_size, 3)), "float32")
    with no_grad():
        expected, dense = network(images).numpy(), DenseVGG(network)(images).numpy()
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_dense_scores_of_a_larger_image_are_the_mean_over_its_places(rng):
    network = vgg("A", num_classes=5, image_size=64).eval()
    with no_grad():
        images = Tensor(rng.standard_normal((2, 96, 128, 3)), "float32")
        features = network.features(images)  # (2, 3, 4, 512): 2 x 3 places of 2 x 2
        places = [features[:, i : i + 2, j : j + 2].reshape(2, 2 * 2 * 512) for i in range(2) for j in range(3)]
        expected = np.mean([network.classifier(place).numpy() for place in places], axis=0)
        dense = DenseVGG(network)(images).numpy()
    assert dense.shape == (2, 5)
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_a_dense_network_has_the_parameters_of_the_network():
    network = vgg("A", num_classes=5, image_size=64)
    assert set(map(id, DenseVGG(network).parameters())) == set(map(id, network.parameters()))
