"""The later residual networks: sizes, formulas, and every number of a training step beside PyTorch's."""

import re
from pathlib import Path

import numpy as np
import pytest
from common.recipes import MODEL_ERROR
from models import resnet_variants
from models.config import CIFAR_FAMILIES, cifar_model
from models.resnet import BasicBlock, cifar_resnet
from models.resnet_variants import (
    SHORTCUT_KINDS,
    PreActivationBlock,
    PreActivationBottleneck,
    SEPreActivationBlock,
    SqueezeExcitation,
    StochasticDepthBlock,
    cifar_se_resnet,
    cifar_shortcut_resnet,
    imagenet_se_resnet,
    linear_decay,
    preact_resnet,
    stochastic_resnet,
    wide_resnet,
)

import minidl
from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.nn import Conv2d, Linear
from tests.kernels.compare import assert_close
from tests.models.compare import assert_equals_its_twin
from tests.models.counting import count_parameters, no_draws

ROOT = Path(__file__).parents[2]

# -- sizes -------------------------------------------------------------------------------------------------------------

# network: (parameters, millions as the papers print them)
PARAMETERS = {
    "preact-110": (1_730_522, "1.7"),  # 1603.05027, section 5; He et al. 2015, table 6
    "preact-164": (1_703_258, "1.7"),  # 1603.05027, table 4
    "wrn-40-1": (563_930, "0.6"),  # 1605.07146, table 4, as all the following
    "wrn-40-2": (2_243_546, "2.2"),
    "wrn-40-4": (8_949_210, "8.9"),
    "wrn-40-8": (35_748_314, "35.7"),
    "wrn-28-10": (36_479_194, "36.5"),
    "wrn-28-12": (52_517_850, "52.5"),
    "wrn-22-8": (17_158_106, "17.2"),
    "wrn-22-10": (26_797_914, "26.8"),
    "wrn-16-8": (10_961_370, "11.0"),
    "wrn-16-10": (17_116_634, "17.1"),
    "stochastic-110": (1_727_962, "1.7"),  # those of the network without stochastic depth
    "stochastic-1202": (19_421_274, "19.4"),
    "se-preact-110": (1_744_760, "1.7"),
    "se-preact-164": (1_905_362, "1.9"),
    "se-wrn-16-8": (11_049_290, "11.0"),
    "se-resnet-20": (272_095, "0.3"),
    "original-110": (1_727_962, "1.7"),
    "constant-scaling-110": (1_727_962, "1.7"),
    "exclusive-gating-110": (1_824_186, "1.8"),
    "shortcut-only-gating-110": (1_824_186, "1.8"),
    "conv-shortcut-110": (1_826_202, "1.8"),
    "dropout-shortcut-110": (1_727_962, "1.7"),
}
BUILDERS = {
    "cifar_resnet": cifar_resnet,
    "cifar_shortcut_resnet": cifar_shortcut_resnet,
    "stochastic_resnet": stochastic_resnet,
    "cifar_se_resnet": cifar_se_resnet,
    "preact_resnet": preact_resnet,
    "wide_resnet": wide_resnet,
}


def make(name, **options):
    """The network of a name."""
    builder, arguments = cifar_model(name)
    return BUILDERS[builder](**arguments, **options)


@pytest.mark.parametrize(("name", "numbers"), PARAMETERS.items(), ids=PARAMETERS)
def test_networks_have_the_papers_number_of_parameters(name, numbers, monkeypatch):
    no_draws(monkeypatch)
    parameters, millions = numbers
    assert count_parameters(make(name)) == parameters
    assert f"{parameters / 1e6:.1f}" == millions


def test_1001_layers_have_the_papers_number_of_parameters_without_those_of_batch_norm(monkeypatch):
    """1603.05027, table 4, has 10.2 million. With the weights and biases of batch-norm they are 10.3 million."""
    no_draws(monkeypatch)
    model = preact_resnet(1001)
    products = [module for _, module in model.named_modules() if isinstance(module, Conv2d | Linear)]
    assert count_parameters(model) == 10_327_706
    assert sum(map(count_parameters, products)) == 10_178_490


ROWS = [
    line
    for text in ((ROOT / "docs/networks.md").read_text(encoding="utf-8"), resnet_variants.__doc__)
    for line in text.splitlines()
    if re.match(r"(\| `|    )[a-z-]+\d", line)
]


def test_there_are_rows_of_both_tables():
    assert len(ROWS) == 11 + 6 + 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.search(r"[a-z][\w-]+", row)[0])
def test_the_tables_of_networks_have_the_numbers_of_parameters_and_the_papers_errors(row):
    name = re.search(r"[a-z][\w-]+", row)[0]
    (parameters,) = re.findall(r" (\d+(?:,\d{3})+) (?=[ |])", row)[:1]
    expected, _ = {"preact-1001": (10_327_706, "10.3"), **PARAMETERS}[name]  # counted above
    assert int(parameters.replace(",", "")) == expected
    published = [MODEL_ERROR[name]] if name in MODEL_ERROR else []
    assert [float(error) for error in re.findall(r"([\d.]+) %", row)] == published


# 1709.01507, table 10 for 50 layers; the others follow from equation 5 with C / 16 hidden units, and the biases.
@pytest.mark.parametrize(("depth", "parameters"), [(50, 28_088_024), (101, 49_326_872), (152, 66_821_848)])
def test_se_networks_have_the_papers_number_of_parameters(depth, parameters, monkeypatch):
    no_draws(monkeypatch)
    model = imagenet_se_resnet(depth)
    assert count_parameters(model) == parameters
    shapes = {name: array.shape for name, array in model.state_dict().items()}
    assert shapes["layer1.0.se.fc1.weight"] == (16, 256, 1, 1)  # timm's names and shapes in seresnet50
    assert shapes["layer4.2.se.fc2.bias"] == (2048,)


@pytest.mark.parametrize("width", [1, 3])
def test_the_channels_of_a_wide_network_are_those_of_table_1_times_the_width(width, monkeypatch):
    no_draws(monkeypatch)
    model = wide_resnet(16, width)
    stages = model.layer1, model.layer2, model.layer3
    assert [stage[1].conv2.weight.shape for stage in stages] == [
        (3, 3, c, c) for c in (16 * width, 32 * width, 64 * width)
    ]
    assert [len(stage) for stage in stages] == [2, 2, 2]


# -- beside PyTorch ----------------------------------------------------------------------------------------------------


def their_blocks(torch):
    """Pre-activation and squeeze-and-excitation in PyTorch, from the figures of the papers."""
    nn, relu = torch.nn, torch.relu

    def conv(inputs, outputs, size, stride=1):
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class SE(nn.Module):
        def __init__(self, channels):
            super().__init__()
            hidden = max(1, channels // 16)
            self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.fc2(relu(self.fc1(x.mean((2, 3), keepdim=True)))))

    class Block(nn.Module):
        def __init__(self, inputs, channels, stride, bottleneck, se, is_first):
            super().__init__()
            outputs = channels * (4 if bottleneck else 1)
            self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(channels)
            if bottleneck:
                self.conv1, self.conv2 = conv(inputs, channels, 1, stride), conv(channels, channels, 3)
                self.bn3, self.conv3 = nn.BatchNorm2d(channels), conv(channels, outputs, 1)
            else:
                self.conv1, self.conv2 = conv(inputs, channels, 3, stride), conv(channels, channels, 3)
            self.grows = stride > 1 or inputs != outputs
            self.is_first = is_first
            if self.grows:
                self.downsample = conv(inputs, outputs, 1, stride)
            self.se = SE(outputs) if se else nn.Identity()

        def forward(self, x):
            a = relu(self.bn1(x))
            y = self.conv2(relu(self.bn2(self.conv1(a))))
            y = self.conv3(relu(self.bn3(y))) if hasattr(self, "conv3") else y
            shortcut = self.downsample(a) if self.grows else a if self.is_first else x
            return self.se(y) + shortcut

    class Network(nn.Module):
        def __init__(self, blocks, width, bottleneck, se):
            super().__init__()
            self.conv1, inputs = conv(3, 16, 3), 16
            for number in (1, 2, 3):
                stage, channels = nn.Sequential(), 8 * width * 2**number
                for block in range(blocks):
                    stride = 2 if number > 1 and block == 0 else 1
                    stage.append(Block(inputs, channels, stride, bottleneck, se, number == 1 and block == 0))
                    inputs = channels * (4 if bottleneck else 1)
                setattr(self, f"layer{number}", stage)
            self.bn, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
            return self.fc(relu(self.bn(x)).mean((2, 3)))

    return Network


TWINS = {
    "basic": (lambda: preact_resnet(14), (2, 1, False, False)),
    "bottleneck": (lambda: preact_resnet(20, bottleneck=True), (2, 1, True, False)),
    "wide": (lambda: wide_resnet(16, 2), (2, 2, False, False)),
    "squeeze-and-excitation": (lambda: wide_resnet(10, 4, se=True, seed=1), (1, 4, False, True)),
    "bottleneck with squeeze-and-excitation": (lambda: preact_resnet(11, True, True), (1, 1, True, True)),
}


@pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS)
def test_a_network_equals_its_twin(ours, theirs, device, rng, twins, torch):
    model = ours().to("float64").to(device)
    twin = twins.twin_of(model, their_blocks(torch), *theirs)
    assert_equals_its_twin(model, twin, rng.standard_normal((4, 16, 16, 3)), 1e-9)


# -- the formulas ------------------------------------------------------------------------------------------------------


def halves(rng, shape):
    """Float64 numbers."""
    return Tensor(rng.standard_normal(shape))


def both_paths(block, x):
    """F(x) and the shortcut of a block in evaluation mode, and the gate if it has one, as arrays."""
    gate = 1 / (1 + np.exp(-block.gate(x).numpy())) if hasattr(block, "gate") else None
    return block.residual(x).numpy(), block.shortcut(x).numpy(), gate


# Table 1 of 1603.05027: what multiplies F(x) and the shortcut.
FORMULAS = {
    "original": lambda f, x, g: f + x,
    "constant-scaling": lambda f, x, g: 0.5 * f + 0.5 * x,
    "exclusive-gating": lambda f, x, g: g * f + (1 - g) * x,
    "shortcut-only-gating": lambda f, x, g: f + (1 - g) * x,
    "conv-shortcut": lambda f, x, g: f + x,
    "dropout-shortcut": lambda f, x, g: f + x,  # in evaluation
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
def test_a_block_is_the_formula_of_table_1(kind, stride, rng):
    assert FORMULAS.keys() == SHORTCUT_KINDS.keys()
    block = SHORTCUT_KINDS[kind][0](4, 4 * stride, stride).to("float64").eval()
    x = halves(rng, (2, 6, 6, 4))
    expected = np.maximum(FORMULAS[kind](*both_paths(block, x)), 0)
    assert_close(block(x).numpy(), expected, 1e-12)


@pytest.mark.parametrize("kind", ["exclusive-gating", "shortcut-only-gating"])
def test_gates_begin_nearly_closed_for_f_and_open_for_the_shortcut(kind, rng):
    """With a bias of -6 the gate is 1 / 400 for x = 0: the best row of table 1."""
    block = SHORTCUT_KINDS[kind][0](4, 4, 1)
    assert np.array_equal(block.gate.bias.numpy(), np.full(4, -6, np.float32))
    assert block.gate(Tensor(np.zeros((1, 2, 2, 4), np.float32))).sigmoid().max().item() == pytest.approx(
        1 / 404.4, rel=1e-3
    )


def test_a_dropout_shortcut_drops_half_of_the_shortcut_in_training(rng):
    block = SHORTCUT_KINDS["dropout-shortcut"][0](4, 4, 1)
    block.bn2.weight.data[...] = 0  # F(x) = 0
    y = block(Tensor(np.ones((8, 16, 16, 4), np.float32))).numpy()
    assert set(np.unique(y)) == {0, 2}
    assert 0.45 < (y == 0).mean() < 0.55


def test_the_kinds_without_a_new_layer_are_those_of_the_first_paper(rng):
    """The same weights give the same numbers: (a) is option A, (e) option C."""
    images = Tensor(rng.standard_normal((2, 32, 32, 3), np.float32))
    for kind, option in (("original", "A"), ("conv-shortcut", "C")):
        model, first = cifar_shortcut_resnet(8, kind), cifar_resnet(8, option)
        assert np.array_equal(model(images).numpy(), first(images).numpy())


@pytest.mark.parametrize("block", [PreActivationBlock, PreActivationBottleneck, SEPreActivationBlock])
def test_a_pre_activation_block_of_zeros_is_the_identity_and_so_is_its_gradient(block, rng, monkeypatch):
    """Equations 4 and 5: nothing but addition is on the way, so negative numbers pass too, unlike after relu(F + x)."""
    no_draws(monkeypatch)
    values = rng.standard_normal((2, 4, 4, 8 * block.expansion), np.float32)
    x = Tensor(values, requires_grad=True)
    y = block(8 * block.expansion, 8, 1)(x)
    assert np.array_equal(y.numpy(), values)
    y.backward(Tensor(np.ones_like(values)))
    assert np.array_equal(x.grad.numpy(), np.ones_like(values))


def test_squeeze_and_excitation_multiplies_each_channel_of_an_image_by_a_number(rng):
    module = SqueezeExcitation(32).to("float64")
    x = halves(rng, (3, 5, 4, 32))
    w1, b1, w2, b2 = (parameter.numpy() for parameter in module.parameters())
    z = x.numpy().mean(axis=(1, 2))
    s = 1 / (1 + np.exp(-(np.maximum(z @ w1[0, 0] + b1, 0) @ w2[0, 0] + b2)))
    assert w1.shape == (1, 1, 32, 2)  # r = 16
    assert_close(module(x).numpy(), x.numpy() * s[:, None, None, :], 1e-12)


# -- stochastic depth --------------------------------------------------------------------------------------------------


def test_survival_falls_from_nearly_1_to_one_half_in_a_straight_line():
    probabilities = list(linear_decay(54))
    assert probabilities[0] == pytest.approx(1 - 0.5 / 54)
    assert probabilities[-1] == 0.5
    assert np.diff(probabilities) == pytest.approx(np.full(53, -0.5 / 54))
    assert sum(probabilities) == pytest.approx(40, abs=0.5)  # "E[L] is about 3L / 4 = 40 blocks", section 3
    model = stochastic_resnet(20)
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage.modules]
    assert [block.survival for block in blocks] == list(linear_decay(9))


def test_a_block_is_skipped_as_often_as_its_survival_says_and_then_nothing_of_it_runs(rng):
    block, x = StochasticDepthBlock(4, 4, 1, survival=0.75), Tensor(rng.random((2, 4, 4, 4), np.float32))
    ran = []
    with block.conv1.forward_hook(lambda *_: ran.append("conv1")):
        skipped = sum(block(x) is x for _ in range(400))
    assert len(ran) + skipped == 400
    assert abs(skipped - 100) < 45  # five standard deviations


def test_in_evaluation_a_block_is_its_expectation(rng):
    block = StochasticDepthBlock(4, 8, 2, survival=0.6).to("float64").eval()
    f, shortcut, _ = both_paths(block, x := halves(rng, (2, 4, 4, 4)))
    assert_close(block(x).numpy(), np.maximum(0.6 * f + shortcut, 0), 1e-12)
    assert block.key.numpy()[2] == 0, "a test draws nothing"


def test_the_draws_depend_on_the_seed_and_the_step(rng):
    def draws(seed):
        model = stochastic_resnet(20, seed=seed)
        return [[block._survives() for _ in range(30)] for block in model.layer3.modules]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    first, second, _ = draws(1)
    assert first != second


@pytest.mark.parametrize("name", ["stochastic-20", "preact-14", "dropout-shortcut-14", "se-resnet-14"])
def test_a_recomputed_network_has_the_bits_of_the_other(name, rng):
    images, labels = Tensor(rng.standard_normal((2, 32, 32, 3), np.float32)), np.array([3, 7])

    def two_steps(recompute):
        model = make(name, recompute=recompute)
        for _ in range(2):
            loss = cross_entropy(model(images), labels)
            loss.backward()
        gradients = [p.grad.numpy().tobytes() if p.grad is not None else None for p in model.parameters()]
        return loss.item(), gradients, [array.tobytes() for array in model.state_dict().values()]

    assert two_steps(True) == two_steps(False)


# -- how they are made -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CIFAR_FAMILIES)
def test_every_family_trains_on_images(family, rng):
    name = f"{family}-10-1" if family.endswith("wrn") else f"{family}-8"
    images = Tensor(rng.standard_normal((4, 32, 32, 3), np.float32))
    model = make(name, num_classes=7, seed=3)
    assert model(images).shape == (4, 7)
    assert np.array_equal(model.parameters()[0].numpy(), make(name, num_classes=7, seed=3).parameters()[0].numpy())
    assert not np.array_equal(model.parameters()[0].numpy(), make(name, num_classes=7).parameters()[0].numpy())


def test_making_a_network_leaves_the_global_draws_as_they_were():
    with minidl.fork_rng(5):
        expected = minidl.randn(3).numpy()
    with minidl.fork_rng(5):
        stochastic_resnet(8)
        assert np.array_equal(minidl.randn(3).numpy(), expected)


def test_from_164_layers_on_blocks_are_bottlenecks_as_in_the_paper(monkeypatch):
    no_draws(monkeypatch)
    assert isinstance(preact_resnet(164).layer1[0], PreActivationBottleneck)
    assert not isinstance(preact_resnet(110).layer1[0], PreActivationBottleneck)
    assert not isinstance(preact_resnet(164, bottleneck=False).layer1[0], PreActivationBottleneck)
    assert not issubclass(PreActivationBlock, BasicBlock)


WRONG = {
    "preact, depth": (lambda: preact_resnet(21), r"preact_resnet: expected a depth of 6n \+ 2 .*, got 21"),
    "preact, bottlenecks": (lambda: preact_resnet(165), r"preact_resnet: expected a depth of 9n \+ 2 .*, got 165"),
    "preact, no block": (lambda: preact_resnet(2), r"preact_resnet: expected a depth of 6n \+ 2 .*, got 2"),
    "wide, depth": (lambda: wide_resnet(20, 2), r"wide_resnet: expected a depth of 6n \+ 4 .*, got 20"),
    "wide, width": (lambda: wide_resnet(16, 0), r"wide_resnet: expected a width of 1 or more, got 0"),
    "stochastic, depth": (lambda: stochastic_resnet(9), r"stochastic_resnet: expected a depth of 6n \+ 2 .*, got 9"),
    "se, depth": (lambda: cifar_se_resnet(0), r"cifar_se_resnet: expected a depth of 6n \+ 2 .*, got 0"),
    "kind": (lambda: cifar_shortcut_resnet(20, "gate"), r"expected kind original, constant-scaling, .*, got 'gate'"),
    "kind, depth": (lambda: cifar_shortcut_resnet(21, "original"), r"expected a depth of 6n \+ 2 .*, got 21"),
    "ImageNet, depth": (lambda: imagenet_se_resnet(18), "expected a depth of 50, 101, 152, got 18"),
    "ImageNet, shortcut": (lambda: imagenet_se_resnet(50, "none"), "expected shortcut 'A', 'B' or 'C', got 'none'"),
    "ImageNet, variant": (
        lambda: imagenet_se_resnet(50, variant="v1"),
        "expected variant 'torchvision' or 'he2015', got 'v1'",
    ),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG)
def test_networks_that_do_not_exist_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "name", ["preact", "preact-20-2", "wrn-28", "wrn--28-10", "vgg-16", "resnet20", "preact-2e1", ""]
)
def test_a_name_that_is_none_is_refused_with_the_list_of_those_that_are(name):
    with pytest.raises(ValueError, match=f"--model: expected resnet-DEPTH, .*wrn-DEPTH-WIDTH.*, got {name}$"):
        cifar_model(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet-20", ("cifar_resnet", {"depth": 20})),
        ("plain-56", ("cifar_resnet", {"shortcut": "none", "depth": 56})),
        ("preact-1001", ("preact_resnet", {"depth": 1001})),
        ("se-wrn-16-8", ("wide_resnet", {"se": True, "depth": 16, "width": 8})),
        ("shortcut-only-gating-110", ("cifar_shortcut_resnet", {"kind": "shortcut-only-gating", "depth": 110})),
    ],
)
def test_a_name_is_a_builder_and_its_arguments(name, expected):
    assert cifar_model(name) == expected
