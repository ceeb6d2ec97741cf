"""Residual networks: their sizes, their names, and every number of a training step beside PyTorch's."""

import numpy as np
import pytest
from models import resnet
from models.resnet import BasicBlock, PlainBasicBlock, cifar_resnet, imagenet_resnet

import minidl
from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.optim import SGD
from tests.models.compare import assert_equals_its_twin, images_away_from_kinks
from tests.models.counting import count_macs, count_parameters, no_draws

# -- sizes -------------------------------------------------------------------------------------------------------------

# depth: parameters with option A (and none), B, C
CIFAR_PARAMETERS = {
    20: (269_722, 272_474, 283_962),
    32: (464_154, 466_906, 489_594),
    44: (658_586, 661_338, 695_226),
    56: (853_018, 855_770, 900_858),
    110: (1_727_962, 1_730_714, 1_826_202),
    1202: (19_421_274, 19_424_026, 20_538_714),
}
IMAGENET_PARAMETERS = {
    18: (11_515_688, 11_689_512, 12_043_816),
    34: (21_623_848, 21_797_672, 22_716_840),
    50: (22_780_456, 25_557_032, 40_128_552),
    101: (41_772_584, 44_549_160, 76_981_288),
    152: (57_416_232, 60_192_808, 107_335_720),
}


def by_option(table):
    """(depth, option, number) for each option; a plain network has as many parameters as option A."""
    return [
        (depth, option, number)
        for depth, (a, b, c) in table.items()
        for option, number in (("none", a), ("A", a), ("B", b), ("C", c))
    ]


@pytest.mark.parametrize(("depth", "shortcut", "parameters"), by_option(CIFAR_PARAMETERS))
def test_cifar_networks_have_the_papers_number_of_parameters(depth, shortcut, parameters, monkeypatch):
    no_draws(monkeypatch)
    assert count_parameters(cifar_resnet(depth, shortcut)) == parameters


@pytest.mark.parametrize(("depth", "shortcut", "parameters"), by_option(IMAGENET_PARAMETERS))
@pytest.mark.parametrize("variant", ["torchvision", "he2015"])
def test_imagenet_networks_have_the_papers_number_of_parameters(depth, shortcut, parameters, variant, monkeypatch):
    no_draws(monkeypatch)
    assert count_parameters(imagenet_resnet(depth, shortcut, variant)) == parameters


@pytest.mark.parametrize(
    "make", [lambda k: cifar_resnet(20, num_classes=k), lambda k: imagenet_resnet(18, num_classes=k)]
)
def test_the_number_of_classes_is_that_of_the_last_layer(make, monkeypatch):
    no_draws(monkeypatch)
    assert make(7).fc.bias.shape == (7,)


# depth, option, millions of multiply-adds as the paper's facts give them
CIFAR_MMACS = [
    (20, "A", "40.6"),
    (20, "none", "40.6"),
    (20, "B", "40.8"),
    (20, "C", "42.6"),
    (32, "A", "68.9"),
    (44, "A", "97.2"),
    (56, "A", "125.5"),
    (110, "A", "252.9"),
    (1202, "A", "2829"),
]


def rounded(number, text):
    """With as many decimals as the text has."""
    return f"{number:.{len(text.partition('.')[2])}f}"


@pytest.mark.parametrize(("depth", "shortcut", "millions"), CIFAR_MMACS)
def test_cifar_networks_do_the_papers_number_of_multiply_adds(depth, shortcut, millions, monkeypatch):
    no_draws(monkeypatch)
    macs = count_macs(cifar_resnet(depth, shortcut), 32, monkeypatch)
    assert rounded(macs / 1e6, millions) == millions


# depth, option, variant, thousands of millions
IMAGENET_GMACS = [
    (18, "none", "torchvision", "1.795"),
    (18, "A", "torchvision", "1.795"),
    (18, "B", "torchvision", "1.814"),
    (18, "B", "he2015", "1.814"),
    (18, "C", "torchvision", "1.878"),
    (34, "none", "torchvision", "3.644"),
    (34, "A", "torchvision", "3.644"),
    (34, "B", "torchvision", "3.664"),
    (34, "C", "torchvision", "3.831"),
    (50, "B", "he2015", "3.858"),
    (50, "B", "torchvision", "4.089"),
    (101, "B", "he2015", "7.570"),
    (101, "B", "torchvision", "7.801"),
    (152, "B", "he2015", "11.282"),
    (152, "B", "torchvision", "11.514"),
]


@pytest.mark.parametrize(("depth", "shortcut", "variant", "billions"), IMAGENET_GMACS)
def test_imagenet_networks_do_the_papers_number_of_multiply_adds(depth, shortcut, variant, billions, monkeypatch):
    no_draws(monkeypatch)
    macs = count_macs(imagenet_resnet(depth, shortcut, variant), 224, monkeypatch)
    assert rounded(macs / 1e9, billions) == billions


# -- names -------------------------------------------------------------------------------------------------------------

# Literally those of torchvision, with their shapes.
NAMES = {
    (imagenet_resnet, 18): {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    },
    (imagenet_resnet, 50): {
        "bn1.weight": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.2.conv3.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.0.downsample.1.bias": (2048,),
        "layer4.2.bn3.running_mean": (2048,),
        "fc.weight": (1000, 2048),
    },
    (cifar_resnet, 20): {
        "conv1.weight": (16, 3, 3, 3),
        "layer1.2.bn2.weight": (16,),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer3.2.conv2.weight": (64, 64, 3, 3),
        "fc.weight": (10, 64),
    },
}
TENSORS = {18: 102, 50: 267, 20: 97}  # 5 for each pair of convolution and batch-norm, and 2 of the last layer


@pytest.mark.parametrize(("make", "depth"), NAMES)
def test_modules_have_the_names_of_torchvision(make, depth, monkeypatch):
    no_draws(monkeypatch)
    shapes = {name: array.shape for name, array in make(depth).state_dict().items()}
    assert len(shapes) == TENSORS[depth]
    assert {name: shapes.get(name) for name in NAMES[make, depth]} == NAMES[make, depth]


def test_parameters_come_in_the_order_in_which_they_are_used_and_shortcuts_last():
    names = [name for name, _ in cifar_resnet(8, "B").named_parameters()]
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert [name.removeprefix("layer2.0.") for name in names if name.startswith("layer2.")] == [
        *("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"),
        *("downsample.0.weight", "downsample.1.weight", "downsample.1.bias"),
    ]
    assert names[-2:] == ["fc.weight", "fc.bias"]


# -- numbers -----------------------------------------------------------------------------------------------------------

OPTIONS = ["A", "B", "C", "none"]


def images(rng, count, size, dtype="float64"):
    return rng.standard_normal((count, size, size, 3)).astype(dtype)


@pytest.mark.parametrize("shortcut", OPTIONS)
def test_a_cifar_network_equals_its_twin(shortcut, device, rng, twins):
    model = cifar_resnet(20, shortcut).to("float64").to(device)
    twin = twins.twin_of(model, twins.cifar_resnet, 20, shortcut)
    assert_equals_its_twin(model, twin, images(rng, 4, 32), 1e-10)


@pytest.mark.parametrize("shortcut", OPTIONS)
def test_a_cifar_network_equals_its_twin_in_float32_too(shortcut, device, rng, twins):
    model = cifar_resnet(20, shortcut).to(device)
    twin = twins.twin_of(model, twins.cifar_resnet, 20, shortcut)
    x = images_away_from_kinks(twin, (4, 8, 8, 3), rng, distance=2e-5)
    assert_equals_its_twin(model, twin, x, 1e-4)


IMAGENET_TWINS = [
    (18, "B", "torchvision"),
    (18, "C", "torchvision"),
    (18, "none", "torchvision"),
    (50, "A", "torchvision"),
    (50, "B", "torchvision"),
    (50, "B", "he2015"),
]


@pytest.mark.parametrize(("depth", "shortcut", "variant"), IMAGENET_TWINS)
def test_an_imagenet_network_equals_its_twin(depth, shortcut, variant, device, rng, twins):
    model = imagenet_resnet(depth, shortcut, variant, num_classes=10).to("float64").to(device)
    twin = twins.twin_of(model, twins.imagenet_resnet, depth, shortcut, variant, 10)
    assert_equals_its_twin(model, twin, images(rng, 2, 64), 1e-10)


# In float32 rounding grows from step to step, and faster with a larger learning rate.
@pytest.mark.parametrize(("dtype", "lr", "tolerance"), [("float64", 0.1, 1e-10), ("float32", 0.01, 1e-3)])
def test_the_first_five_losses_of_training_are_those_of_the_twin(dtype, lr, tolerance, device, rng, twins, torch):
    model = cifar_resnet(20).to(dtype).to(device)
    twin = twins.twin_of(model, twins.cifar_resnet, 20)
    x, labels = images(rng, 16, 32, dtype), rng.integers(0, 10, 16)
    ours = losses(model, SGD(model.parameters(), lr, 0.9, 1e-4), cross_entropy, Tensor(x, device=device), labels)
    theirs = losses(
        twin,
        torch.optim.SGD(twin.parameters(), lr, 0.9, weight_decay=1e-4),
        torch.nn.functional.cross_entropy,
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
    )
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert ours[-1] < ours[0]


def losses(model, optimizer, loss_function, x, labels):
    """The losses of five steps on one batch."""
    found = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_function(model(x), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("size", [224, 256, 33])
def test_images_of_other_sizes_pass_through(size, monkeypatch):
    no_draws(monkeypatch)
    model = imagenet_resnet(18, num_classes=3).eval()
    with minidl.no_grad():
        assert model(Tensor(np.zeros((1, size, size, 3), np.float32))).shape == (1, 3)


# -- recomputed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 14, 32], ids=lambda depth: f"{(depth - 2) // 6} blocks")
def test_a_recomputed_network_has_the_names_and_the_bits_of_the_other(depth, rng):
    images, labels = Tensor(rng.standard_normal((2, 32, 32, 3), np.float32)), np.array([3, 7])

    def step(recompute):
        model = cifar_resnet(depth, recompute=recompute)
        loss = cross_entropy(model(images), labels)
        loss.backward()
        gradients = [(name, parameter.grad.numpy().tobytes()) for name, parameter in model.named_parameters()]
        return loss.item(), gradients, [(name, array.tobytes()) for name, array in model.state_dict().items()]

    assert step(True) == step(False)


def test_a_recomputed_stage_keeps_the_input_of_each_group_of_a_square_root(monkeypatch):
    no_draws(monkeypatch)
    parts = []
    monkeypatch.setattr(resnet, "recompute", lambda part, x: parts.append(len(part)) or part(x))
    cifar_resnet(68, recompute=True)(Tensor(np.zeros((2, 32, 32, 3), np.float32)))
    assert parts == [3, 3, 3, 2] * 3


# -- how they are made -------------------------------------------------------------------------------------------------


def weights(model):
    return np.concatenate([parameter.numpy().ravel() for parameter in model.parameters()])


def test_the_seed_decides_the_weights():
    first = weights(cifar_resnet(8, seed=1))
    assert np.array_equal(weights(cifar_resnet(8, seed=1)), first)
    assert (weights(cifar_resnet(8, seed=2)) != first).mean() > 0.9


@pytest.mark.parametrize("make", [lambda: cifar_resnet(8), lambda: imagenet_resnet(18, num_classes=2)])
def test_making_a_network_leaves_the_global_draws_as_they_were(make):
    with minidl.fork_rng(5):
        expected = minidl.randn(3).numpy()
    with minidl.fork_rng(5):
        make()
        assert np.array_equal(minidl.randn(3).numpy(), expected)


WRONG = {
    "a depth that is not 6n + 2": (lambda: cifar_resnet(21), r"expected a depth of 6n \+ 2 .*, got 21"),
    "a depth without blocks": (lambda: cifar_resnet(2), r"expected a depth of 6n \+ 2 .*, got 2"),
    "an unknown depth": (lambda: imagenet_resnet(20), "expected a depth of 18, 34, 50, 101, 152, got 20"),
    "an unknown shortcut": (lambda: cifar_resnet(20, "D"), "expected shortcut 'A', 'B', 'C' or 'none', got 'D'"),
    "an unknown shortcut in a bottleneck": (lambda: imagenet_resnet(50, "b"), "expected shortcut .*, got 'b'"),
    "an unknown variant": (
        lambda: imagenet_resnet(50, variant="v1"),
        "expected variant 'torchvision' or 'he2015', got 'v1'",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_networks_that_do_not_exist_are_refused(make, message, monkeypatch):
    no_draws(monkeypatch)
    with pytest.raises(ValueError, match=f"resnet: {message}"):
        make()


@pytest.mark.parametrize("shortcut", OPTIONS)
def test_a_block_of_zeros_passes_on_what_its_shortcut_gives(shortcut, monkeypatch):
    """With F(x) = 0 a residual block is relu(shortcut(x)), and a plain one is 0."""
    no_draws(monkeypatch)
    block = (PlainBasicBlock if shortcut == "none" else BasicBlock)(2, 4, 2, shortcut)
    x = np.arange(1, 33, dtype=np.float32).reshape(1, 4, 4, 2) - 9
    y = block.eval()(Tensor(x)).numpy()
    if shortcut == "A":
        assert np.array_equal(y[..., :2], np.maximum(x[:, ::2, ::2], 0)) and not y[..., 2:].any()
    else:
        assert y.shape == (1, 2, 2, 4) and not y.any()
