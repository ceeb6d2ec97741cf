"""--mixup, --cutout, --ema and --mirror-test of train_cifar_resnet.py, and --model: formulas, repeats, bad input."""

import signal
from argparse import Namespace

import numpy as np
import pytest
import train_cifar_resnet
from common.average import MovingAverage
from common.evaluate import error_rate
from common.mixup import mixup, mixup_loss, random_mixup
from common.options import options_of_run
from common.recipes import MODEL_ERROR, PAPER_ERROR, published_error
from models.config import BUILDERS, cifar_model
from models.resnet_variants import SHORTCUT_KINDS, preact_resnet
from models.weights import load_network
from safetensors.numpy import load_file

from minidl import Tensor
from minidl.functional import cross_entropy, log_softmax
from minidl.nn import BatchNorm2d, Dropout, Linear, Module
from tests.examples.tools import assert_same_run, metrics, shapes, signal_after

# -- mixup -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_the_formula_of_section_2(share, device, rng):
    """The images, and the cross-entropy with the mixed one-hot targets."""
    images, labels, partners = (
        rng.standard_normal((4, 5, 6, 3), np.float32),
        np.array([0, 3, 1, 3]),
        np.array([2, 0, 1, 3]),
    )
    on_device = [Tensor(array, device=device) for array in (images, labels, partners)]
    mixed, *targets = mixup(*on_device, share)
    np.testing.assert_allclose(mixed.numpy(), share * images + (1 - share) * images[partners], rtol=1e-6, atol=1e-6)
    logits = Tensor(rng.standard_normal((4, 10), np.float32), device=device)
    loss = mixup_loss(logits, *targets)
    one_hot = np.eye(10)
    target = share * one_hot[labels] + (1 - share) * one_hot[labels[partners]]
    expected = -(target * log_softmax(logits, dim=1).numpy()).sum(axis=1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == np.float32 and loss.shape == ()


def test_a_batch_mixed_with_a_share_of_1_has_the_loss_of_the_batch(rng):
    logits, labels = Tensor(rng.standard_normal((4, 10), np.float32)), Tensor(np.array([1, 2, 3, 4]))
    _, *targets = mixup(Tensor(rng.random((4, 2, 2, 3))), labels, Tensor(np.array([1, 2, 3, 0])), 1.0)
    assert mixup_loss(logits, *targets).item() == cross_entropy(logits, labels).item()


def test_mixups_are_drawn_from_the_seed_and_the_step(rng):
    images, labels = Tensor(rng.random((8, 2, 2, 3), np.float32)), Tensor(np.arange(8))

    def draw(seed, step):
        return [tensor.numpy().tolist() for tensor in random_mixup(images, labels, 0.5, seed, step)]

    assert draw(1, 7) == draw(1, 7)
    assert draw(1, 7) != draw(1, 8)
    assert draw(1, 7) != draw(2, 7)
    _, _, others, _ = draw(1, 7)
    assert sorted(others) == list(range(8)), "a permutation"


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.75), (1e4, 0.5), (1e-4, 1.0)])
def test_the_share_is_the_larger_part_of_a_beta_draw(alpha, expected):
    """Beta(1, 1) is uniform: the mean of the larger part is 3/4."""
    images, labels = Tensor(np.zeros((2, 1, 1, 3), np.float32)), Tensor(np.array([0, 1]))
    shares = [random_mixup(images, labels, alpha, 0, step)[3].item() for step in range(400)]
    assert 0.5 <= min(shares) <= max(shares) <= 1
    assert np.mean(shares) == pytest.approx(expected, abs=0.04)  # five standard deviations


# -- the moving average ------------------------------------------------------------------------------------------------


def small_network():
    """Parameters, running statistics, and a counter that is no floating-point number."""
    model = Module()
    model.layers = {"fc": Linear(3, 2), "bn": BatchNorm2d(2), "dropout": Dropout(0.5)}
    return model


def test_the_average_is_the_formula_over_several_steps(device, rng):
    model = small_network().to(device)
    average = MovingAverage(model, 0.9)
    expected = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
    for _ in range(5):
        for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.data[...] = Tensor(rng.standard_normal(tensor.shape, np.float32), device=device).data
        average.update()
        expected = {name: 0.9 * old + 0.1 * model.state_dict()[name] for name, old in expected.items()}
    actual = average.model.state_dict()
    assert {"layers.fc.weight", "layers.bn.running_var"} <= actual.keys()
    for name, array in actual.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_average_with_decay_0_is_the_network(rng):
    model = small_network()
    average = MovingAverage(model, 0.0)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    average.update()
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(average.model.state_dict()[name], array, rtol=1e-6, atol=1e-7)


def test_the_average_does_not_change_the_network_nor_the_network_the_average():
    model = small_network()
    average = MovingAverage(model, 0.5)
    before = model.state_dict()
    model.layers["fc"].weight.data += 1
    assert np.array_equal(average.model.state_dict()["layers.fc.weight"], before["layers.fc.weight"])
    average.update()
    model.layers["fc"].weight.data -= 1
    np.testing.assert_allclose(model.state_dict()["layers.fc.weight"], before["layers.fc.weight"], atol=1e-6)


# -- the mirror image --------------------------------------------------------------------------------------------------


def test_a_mirror_test_adds_the_logits_of_both_images(device, rng):
    model = preact_resnet(8).to(device)
    images, labels = rng.standard_normal((20, 32, 32, 3), np.float32), rng.integers(0, 10, 20)
    batch = [(Tensor(images, device=device), Tensor(labels, device=device))]
    model.eval()
    plain, mirrored = (
        model(Tensor(x, device=device)).numpy() for x in (images, np.ascontiguousarray(images[:, :, ::-1]))
    )
    assert error_rate(model, batch) == (plain.argmax(axis=1) != labels).mean()
    both = ((plain + mirrored).argmax(axis=1) != labels).mean()
    assert error_rate(model, batch, mirror=True) == both
    assert error_rate(model, [(batch[0][0][:, :, ::-1], batch[0][1])], mirror=True) == both


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(run, device):
    """Trains a small pre-activation network for two epochs of three steps, the last one smaller."""

    def train(folder, *options, model="preact-8"):
        same = [
            "--recipe",
            "paper",
            "--batch-size",
            16,
            "--epochs",
            2,
            "--lr",
            0.05,
            "--device",
            device,
            "--out",
            folder,
        ]
        return run(train_cifar_resnet, "--model", model, *same, *options)

    return train


ALL = "--mixup", "0.8", "--cutout", 8, "--ema", 0.7, "--mirror-test"
RUNS = {
    "all of them": (ALL, "preact-8"),
    "mixup": (ALL[:2], "preact-8"),
    "stochastic depth and average": (("--ema", 0.7), "stochastic-8"),
    "dropout and average": (("--ema", 0.7), "dropout-shortcut-8"),
}


@pytest.mark.parametrize(("options", "model"), RUNS.values(), ids=RUNS)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(tmp_path, train, options, model):
    assert train(tmp_path / "whole", *options, model=model)[0] == 0
    with signal_after(5, signal.SIGTERM):
        assert train(tmp_path / "parts", *options, model=model)[0] == 143
    assert train(tmp_path / "parts", *options, "--resume", model=model)[0] == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    names = load_file(tmp_path / "whole" / "checkpoint.safetensors").keys()
    assert any(name.startswith("extra/average/") for name in names) == ("--ema" in options)


@pytest.mark.parametrize("option", [ALL[:2], ALL[2:4]], ids=["mixup", "cutout"])
def test_a_regularised_run_repeats_and_differs_from_one_without(tmp_path, train, option):
    train(tmp_path / "once", *option)
    train(tmp_path / "again", *option)
    train(tmp_path / "without")
    assert_same_run(tmp_path / "once", tmp_path / "again")
    losses = [metrics(tmp_path / name)[0]["train_loss"] for name in ("once", "without")]
    assert losses[0] != losses[1]


def test_the_average_is_what_is_tested_and_what_average_safetensors_holds(tmp_path, train):
    train(tmp_path / "run", "--ema", 0.7)
    model, config = load_network(tmp_path / "run" / "average.safetensors")
    assert config.name == "preact-8"
    assert error_rate(model, shapes().test_loader()) == pytest.approx(
        metrics(tmp_path / "run")[-1]["test_error"], abs=0.051
    )
    arrays = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, arrays[f"extra/average/{name}"])
    assert not np.array_equal(arrays["conv1.weight"], arrays["extra/average/conv1.weight"])
    plain, _ = load_network(tmp_path / "run" / "checkpoint.safetensors")
    np.testing.assert_array_equal(plain.state_dict()["conv1.weight"], arrays["conv1.weight"])


def test_an_average_changes_nothing_of_the_training(tmp_path, train):
    train(tmp_path / "with", "--ema", 0.7)
    train(tmp_path / "without")
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("with", "without"))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ((), ("--ema", 0.7), "ema was None, is 0.7"),
        (("--mixup", 1), ("--mixup", 2), "mixup was 1.0, is 2.0"),
        (("--cutout", 8), (), "cutout was 8, is None"),
        ((), ("--mirror-test",), "mirror_test was None, is True"),
    ],
)
def test_a_run_is_resumed_with_the_options_that_it_began_with(tmp_path, train, before, after, changed):
    with signal_after(2, signal.SIGTERM):
        train(tmp_path, *before)
    status, _ = train(tmp_path, *after, "--resume")
    assert changed in str(status)


def test_a_checkpoint_from_before_these_options_resumes(copy_of_begun, resnet):
    """They are None where they are not given, which is what a checkpoint without them says."""
    parser_options = train_cifar_resnet.options_of_run
    assert parser_options is options_of_run
    status, _ = resnet("--epochs", 1, "--resume", "--out", copy_of_begun)
    assert status == 0


# -- bad input ---------------------------------------------------------------------------------------------------------

WRONG = {
    "mixup of 0": (("--mixup", 0), "argument --mixup: expected a finite number > 0, got 0"),
    "mixup below 0": (("--mixup", -1), "argument --mixup: expected a finite number > 0, got -1"),
    "mixup of nan": (("--mixup", "nan"), "argument --mixup: expected a finite number > 0, got nan"),
    "mixup of inf": (("--mixup", "inf"), "argument --mixup: expected a finite number > 0, got inf"),
    "ema of 1": (("--ema", 1), "argument --ema: expected a number in [0, 1), got 1"),
    "ema below 0": (("--ema", -0.1), "argument --ema: expected a number in [0, 1), got -0.1"),
    "ema of nan": (("--ema", "nan"), "argument --ema: expected a number in [0, 1), got nan"),
    "cutout of 0": (("--cutout", 0), "argument --cutout: expected a whole number >= 1, got 0"),
    "cutout of half a pixel": (("--cutout", 0.5), "argument --cutout: expected a whole number"),
    "a large cutout": (("--cutout", 33), "Cutout: expected a size from 1 to 32 for 32x32 images, got 33"),
    "depth of preact": (
        ("--model", "preact-21"),
        "preact_resnet: expected a depth of 6n + 2 (20, 32, 44, 56, 110, ...), got 21",
    ),
    "depth of bottlenecks": (
        ("--model", "preact-165"),
        "expected a depth of 9n + 2 (with bottlenecks: 164, 1001, ...), got 165",
    ),
    "depth of wide": (("--model", "wrn-20-4"), "wide_resnet: expected a depth of 6n + 4 (16, 22, 28, 40, ...), got 20"),
    "width 0": (("--model", "wrn-16-0"), "wide_resnet: expected a width of 1 or more, got 0"),
    "unknown model": (("--model", "vit-12"), "--model: expected resnet-DEPTH, plain-DEPTH, "),
    "model and depth": (("--model", "preact-20", "--depth", 32), "--model names the depth and the shortcut too"),
    "model and shortcut": (("--model", "preact-20", "--shortcut", "B"), "omit --depth and --shortcut"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_one_line_and_nothing_is_written(run, tmp_path, options, message):
    status, output = run(train_cifar_resnet, *options, "--out", tmp_path / "run")
    assert status == 2
    assert message in output
    assert not (tmp_path / "run").exists()


# -- the papers' errors ------------------------------------------------------------------------------------------------


def test_the_papers_errors_are_those_of_networks_that_exist():
    for name in MODEL_ERROR:
        builder, _ = cifar_model(name)
        assert builder in BUILDERS
    assert MODEL_ERROR["preact-164"] == 5.46 and MODEL_ERROR["wrn-28-10"] == 4.00
    assert MODEL_ERROR["constant-scaling-110"] == 12.35 and "dropout-shortcut-110" not in MODEL_ERROR
    # Table 1 of He et al. 2016, in the order of figure 2.
    assert [error for _, error in SHORTCUT_KINDS.values()] == [6.61, 12.35, 8.70, 6.91, 12.22, None]
    assert {f"resnet-{depth}": error for depth, error in PAPER_ERROR.items()}.items() <= MODEL_ERROR.items()


@pytest.mark.parametrize(
    ("model", "depth", "shortcut", "expected"),
    [
        (None, 20, "A", "test error in the paper, after 64,000 iterations: 8.75 %\n"),
        (None, 20, "B", ""),
        (None, 14, "A", ""),
        ("resnet-56", 20, "A", "test error in the paper, after 64,000 iterations: 6.97 %\n"),
        ("preact-110", 20, "A", "test error in the paper, after all of its training: 6.37 %\n"),
        ("preact-20", 20, "A", ""),
    ],
)
def test_the_papers_error_stands_beside_its_own_network(model, depth, shortcut, expected):
    options = {"model": model, "depth": depth, "shortcut": shortcut}
    assert published_error(Namespace(dataset="cifar10", **options)) == expected
    assert published_error(Namespace(dataset="cifar100", **options)) == ""
