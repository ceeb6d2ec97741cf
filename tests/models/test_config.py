"""A file of weights says which network it is for."""

import argparse

import numpy as np
import pytest
from models.config import BUILDERS, IMAGENET_MODELS, NetworkConfig, read_config
from models.resnet import IMAGENET_BLOCKS, PlainBasicBlock, cifar_resnet
from models.weights import load_network
from train_imagenet import make_network

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
    with pytest.raises(ValueError, match=r"does not describe its network; pass --model"):
        load_network(tmp_path / "w")
    again, found = load_network(tmp_path / "w", config)
    assert found is config
    np.testing.assert_array_equal(again.fc.weight.numpy(), model.fc.weight.numpy())


def test_the_networks_for_photographs_have_names():
    expected = {f"vgg-{config}{norm}" for config in ("A", "A-LRN", "B", "C", "D", "E") for norm in ("", "-bn")}
    expected |= {f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (18, 34, 50, 101, 152)}
    expected |= {f"se-resnet{depth}" for depth in (50, 101, 152)}
    assert expected == IMAGENET_MODELS.keys()
    for builder, arguments in IMAGENET_MODELS.values():
        assert builder in BUILDERS
        assert arguments.keys() <= {"config", "batch_norm", "depth", "shortcut"}
    builder, arguments = IMAGENET_MODELS["plain18"]
    assert isinstance(BUILDERS[builder](**arguments, num_classes=2).layer2[0], PlainBasicBlock)


# -- the two variants of bottleneck blocks, whose weights have the same names and shapes ------------------------------


@pytest.fixture
def shallow(monkeypatch):
    """Networks with a single block in each stage, under the names of the deep ones."""
    for depth, (kind, _) in list(IMAGENET_BLOCKS.items()):
        monkeypatch.setitem(IMAGENET_BLOCKS, depth, (kind, (1, 1, 1, 1)))


def imagenet_config(depth, **arguments):
    arguments = {"depth": depth, "num_classes": 3} | arguments
    return NetworkConfig(
        f"resnet{depth}", "imagenet_resnet", arguments, ("a", "b", "c"), None, 256, 224, np.zeros(3, np.float32)
    )


def save(path, config, says_so):
    """The weights of a new network; returns the last of them."""
    model = config.build(seed=3)
    note = ({"network": config.to_json()}, config.arrays()) if says_so else ()
    save_checkpoint(path, model, None, *note)
    return model.fc.weight.numpy()


def start_from(path, config):
    """As train_imagenet.py --init-from does."""
    return make_network(config, argparse.Namespace(seed=0, init_from=path, device="cpu", resume=False))


def load_as(path, config):
    return load_network(path, config)[0]


# Who says what of the file, the variant that is asked for, and the error.
TORCHVISION, HE2015 = {"variant": "torchvision"}, {"variant": "he2015"}
FOREIGN = (
    "variant 'he2015', got .*w, which has no description and is assumed to be torchvision's; .*: pass --variant {}"
)
SAYS_SO = "variant '{}', got .*w, of variant '{}'; .*: pass --variant {}"
MISMATCHED = [
    (start_from, {}, False, HE2015, FOREIGN.format("torchvision")),
    (start_from, TORCHVISION, True, HE2015, SAYS_SO.format("he2015", "torchvision", "torchvision")),
    (start_from, {}, True, HE2015, SAYS_SO.format("he2015", "torchvision", "torchvision")),
    (start_from, HE2015, True, TORCHVISION, SAYS_SO.format("torchvision", "he2015", "he2015")),
    (start_from, HE2015, True, {}, SAYS_SO.format("torchvision", "he2015", "he2015")),
    (load_as, {}, False, HE2015, FOREIGN.format("torchvision")),
]


@pytest.mark.parametrize(("load", "saved_as", "says_so", "wanted", "message"), MISMATCHED)
def test_weights_of_the_other_variant_are_refused(load, saved_as, says_so, wanted, message, tmp_path, shallow):
    save(tmp_path / "w", imagenet_config(50, **saved_as), says_so)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w", imagenet_config(50, **wanted))


MATCHING = [
    (50, start_from, TORCHVISION, False, TORCHVISION),
    (50, start_from, {}, False, {}),
    (50, start_from, HE2015, True, HE2015),
    (50, load_as, {}, False, {}),
    (50, load_as, HE2015, True, {}),  # the file says what it is
    (34, start_from, {}, False, HE2015),  # basic blocks are the same in both
    (18, start_from, HE2015, True, TORCHVISION),
    (18, load_as, {}, False, HE2015),
]


@pytest.mark.parametrize(("depth", "load", "saved_as", "says_so", "wanted"), MATCHING)
def test_weights_of_the_same_variant_or_without_one_are_loaded(
    depth, load, saved_as, says_so, wanted, tmp_path, shallow
):
    expected = save(tmp_path / "w", imagenet_config(depth, **saved_as), says_so)
    np.testing.assert_array_equal(load(tmp_path / "w", imagenet_config(depth, **wanted)).fc.weight.numpy(), expected)


# -- damaged files -----------------------------------------------------------------------------------------------------

# What is done to what a file says of its network, or to the arrays beside it.
DAMAGE = {
    "a number": lambda note, arrays: 5,
    "a list": lambda note, arrays: [note],
    "nothing in it": lambda note, arrays: {},
    "an unknown field": lambda note, arrays: note | {"more": 1},
    "a missing field": lambda note, arrays: {name: value for name, value in note.items() if name != "size"},
    "an unknown builder": lambda note, arrays: note | {"builder": "os.system"},
    "a builder that is no name": lambda note, arrays: note | {"builder": []},
    "an unknown argument": lambda note, arrays: note | {"arguments": {"depth": 8, "more": 1}},
    "no arguments": lambda note, arrays: note | {"arguments": 5},
    "other classes": lambda note, arrays: note | {"names": ["cat"]},
    "names that are none": lambda note, arrays: note | {"names": 5},
    "more classes than memory": lambda note, arrays: note | {"arguments": {"depth": 8, "num_classes": 10**9}},
    "an argument that is a word": lambda note, arrays: note | {"arguments": note["arguments"] | {"depth": "x"}},
    "an argument of no network": lambda note, arrays: note | {"arguments": note["arguments"] | {"depth": 9}},
    "no mean": lambda note, arrays: arrays.pop("mean") is None or note,
    "no standard deviation": lambda note, arrays: arrays.pop("std") is None or note,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_damaged_in_what_it_says_of_its_network_is_refused_by_name(damage, config, tmp_path):
    note, arrays = config.to_json(), config.arrays()
    note = damage(note, arrays)
    save_checkpoint(tmp_path / "w", config.build(), None, {"network": note}, arrays)
    with pytest.raises(ValueError, match=r"load_network: the network description in .*w is damaged \(.+\)"):
        load_network(tmp_path / "w")
