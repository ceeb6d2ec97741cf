"""A file of weights says which network it is for."""

import numpy as np
import pytest
from models.config import BUILDERS, IMAGENET_MODELS, NetworkConfig, load_network, read_config
from models.resnet import cifar_resnet

from minidl import Tensor, save_checkpoint
from minidl.data import normalize

MEAN = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)


@pytest.fixture
def config():
    arguments = {"depth": 8, "shortcut": "B", "num_classes": 3}
    return NetworkConfig(
        "resnet8", "cifar_resnet", arguments, ("cat", "dog", "bird"), ("n1", "n2", "n3"), 32, 32, MEAN, 64.0
    )


@pytest.fixture
def saved(config, tmp_path):
    """(file, the network whose weights it holds)."""
    model = config.build(seed=7)
    save_checkpoint(tmp_path / "w", model, None, {"network": config.to_json()}, config.arrays())
    return tmp_path / "w", model


def test_the_network_comes_back_with_all_that_is_needed_to_use_it(config, saved):
    path, model = saved
    again, found = load_network(path)
    assert found.to_json() == config.to_json()
    assert (found.names, found.classes) == (("cat", "dog", "bird"), ("n1", "n2", "n3"))
    np.testing.assert_array_equal(found.mean, MEAN)
    assert found.std == 64
    images = Tensor(np.random.default_rng(1).standard_normal((2, 32, 32, 3), np.float32))
    np.testing.assert_array_equal(again(images).numpy(), model.eval()(images).numpy())


def test_its_view_is_the_middle_of_a_photograph_normalised(config, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    np.testing.assert_array_equal(config.view()(tmp_path / "i.png"), normalize(pixels[None], MEAN, 64.0)[0])


def test_weights_from_elsewhere_need_a_config(config, tmp_path):
    model = cifar_resnet(8, "B", 3, seed=5)
    save_checkpoint(tmp_path / "w", model)
    assert read_config(tmp_path / "w") is None
    with pytest.raises(ValueError, match=r"does not say which network it is for; name it with --model"):
        load_network(tmp_path / "w")
    again, found = load_network(tmp_path / "w", config)
    assert found is config
    np.testing.assert_array_equal(again.fc.weight.numpy(), model.fc.weight.numpy())


def test_the_networks_of_both_papers_have_names():
    expected = {f"vgg-{config}{norm}" for config in ("A", "A-LRN", "B", "C", "D", "E") for norm in ("", "-bn")}
    expected |= {f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (18, 34, 50, 101, 152)}
    assert expected == IMAGENET_MODELS.keys()
    for builder, arguments in IMAGENET_MODELS.values():
        assert builder in BUILDERS
        assert arguments.keys() <= {"config", "batch_norm", "depth", "shortcut"}
    builder, arguments = IMAGENET_MODELS["plain18"]
    assert BUILDERS[builder](**arguments, num_classes=2).layer2[0].is_plain
