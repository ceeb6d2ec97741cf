"""examples/speedrun_cifar10.py: its parts beside the author's formulas, a whole small run beside PyTorch's."""

import math
import re
import signal

import models.speedrun
import numpy as np
import pytest
import speedrun_cifar10
from common.ranks import Ranks
from models.speedrun import speedrun
from safetensors.numpy import load_file
from speedrun_cifar10 import LookaheadSGD, SpeedrunData, error_of_views, make_optimizer, triangle

from minidl import Parameter, Tensor
from minidl.data import make_shapes, normalize
from minidl.nn import BatchNorm2d, Module
from tests.examples.tools import assert_same_run, metrics, run_main, signal_after

BATCH = 16


def small(args=None, kind=SpeedrunData):
    """48 + 20 shapes: epochs of three steps."""
    device, dtype = getattr(args, "device", "cpu"), getattr(args, "dtype", "float32").replace("tf32", "float32")
    return kind(make_shapes(48), make_shapes(20, train=False), "test", device, dtype)


@pytest.fixture
def speed(monkeypatch, capsys):
    """speed(folder, *options): (exit status or message, output), on few shapes."""
    monkeypatch.setattr(speedrun_cifar10, "load_data", small)

    def speed(folder, *options):
        options = ["--dataset", "shapes", "--batch-size", BATCH, "--out", folder, *options]
        status, output, errors = run_main(speedrun_cifar10, options, capsys)
        assert "Traceback" not in errors
        return status, output + errors

    return speed


@pytest.fixture
def narrow(monkeypatch):
    """A network of fewer channels, for tests of what is around it."""
    monkeypatch.setattr(models.speedrun, "WIDTHS", (8, 16, 16))


# -- its parts ---------------------------------------------------------------------------------------------------------


def factors_of_the_author(total_steps):
    """get_lr of legacy/airbench94.py."""
    warmup_steps = int(total_steps * 0.23)
    warmdown_steps = total_steps - warmup_steps
    for step in range(total_steps):
        if step < warmup_steps:
            frac = step / warmup_steps
            yield 0.2 * (1 - frac) + 1.0 * frac
        else:
            frac = (step - warmup_steps) / warmdown_steps
            yield 1.0 * (1 - frac) + 0.07 * frac


@pytest.mark.parametrize("total_steps", [1, 2, 5, 14, 476])
def test_the_learning_rate_is_that_of_the_author(total_steps):
    actual = [triangle(step, total_steps) for step in range(total_steps)]
    assert actual == pytest.approx(list(factors_of_the_author(total_steps)))


def test_the_decoupled_hyperparameters_are_those_of_the_author():
    """Each weight shrinks by lr * weight decay in a step, biases of batch-norm as fast as the others."""
    optimizer = make_optimizer(speedrun(), 1024)
    assert optimizer.lr == pytest.approx(11.5 / (1024 * (1 + 1 / 0.15)))
    options = dict(zip(map(id, optimizer.parameters), optimizer._options, strict=True))
    assert len(options) == 6 + 6 + 2  # biases of batch-norm, 3x3 convolutions, the first bias and the last layer
    assert sorted({scale for _, scale in options.values()}) == [1, 64]
    shrink = {
        round(decay * scale * optimizer.lr / (0.0153 * 1024 / (1024 * (1 + 1 / 0.15))), 9)
        for decay, scale in options.values()
    }
    assert shrink == {1.0}


class Pair(Module):
    def __init__(self):
        self.weight, self.norm = Parameter(np.array([2.0, 4.0])), BatchNorm2d(2)


def test_lookahead_pulls_the_network_back_to_its_moving_average(device):
    model = Pair().to(device)
    optimizer = LookaheadSGD(model, [{"params": [model.weight]}], 0.1)
    model.weight.data[...] = np.array([6.0, 0.0]) if device == "cpu" else Tensor([6.0, 0.0], device=device).data
    model.norm.running_mean.data[...] = 10.0
    optimizer.average(0.75)
    np.testing.assert_allclose(model.weight.numpy(), [0.75 * 2 + 0.25 * 6, 0.75 * 4])
    np.testing.assert_allclose(model.norm.running_mean.numpy(), [2.5, 2.5])
    model.weight.data[...] = 100.0
    optimizer.average(1.0)
    np.testing.assert_allclose(model.weight.numpy(), [3, 3])  # the average itself


def test_images_are_normalised_shifted_with_reflected_borders_and_flipped_in_turn(device):
    data = small(type("Options", (), {"device": device}))
    loader = data.train_loader(BATCH, seed=0)
    assert loader.drop_last and loader.alternating_flip and loader.shuffle
    assert (loader.augment.padding, loader.augment.padding_mode) == (2, "reflect")
    images = np.concatenate([images.numpy() for images, _ in loader])
    assert abs(images.mean(axis=(0, 1, 2))).max() < 0.1 and abs(images.std(axis=(0, 1, 2)) - 1).max() < 0.1


class Scores(Module):
    """Random class scores of the pixels, to which every view matters."""

    def __init__(self):
        self.weight = np.random.default_rng(0).standard_normal((32 * 32 * 3, 10)).astype(np.float32)

    def forward(self, x):
        return x.reshape(len(x), -1) @ Tensor(self.weight, device=x.device)


def views_of_the_author(torch, images, network):
    """infer_mirror_translate of legacy/airbench94.py, on (N, C, H, W)."""

    def infer_mirror(inputs):
        return 0.5 * network(inputs) + 0.5 * network(inputs.flip(-1))

    padded = torch.nn.functional.pad(images, (1,) * 4, "reflect")
    shifted = [infer_mirror(padded[:, :, 0:32, 0:32]), infer_mirror(padded[:, :, 2:34, 2:34])]
    return 0.5 * infer_mirror(images) + 0.5 * torch.stack(shifted).mean(0)


def test_six_views_are_those_of_the_author(device, torch, monkeypatch):
    monkeypatch.setattr(speedrun_cifar10, "TEST_BATCH", 7)
    data, model = small(type("Options", (), {"device": device})), Scores()
    images = torch.from_numpy(normalize(make_shapes(20, train=False).images, data.mean, data.std)).permute(0, 3, 1, 2)

    def network(x):
        return x.permute(0, 2, 3, 1).reshape(len(x), -1) @ torch.from_numpy(model.weight)

    data.test.labels[...] = views_of_the_author(torch, images, network).argmax(1).numpy()
    assert error_of_views(model, data, Ranks()) == 0
    data.test.labels[...] = network(images).argmax(1).numpy()
    assert error_of_views(model, data, Ranks()) > 0.2  # one view alone sees other classes
    assert model.training


# -- a whole run -------------------------------------------------------------------------------------------------------


def train_as_the_author(torch, twin, loader, epochs, total_steps):
    """The loop of legacy/airbench94.py, in PyTorch, on the batches of our loader."""
    kilostep_scale = 1024 * (1 + 1 / (1 - 0.85))
    lr, wd = 11.5 / kilostep_scale, 0.0153 * BATCH / kilostep_scale
    learned = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
    biases = {"params": [p for name, p in learned if "norm" in name], "lr": 64 * lr, "weight_decay": wd / (64 * lr)}
    others = {"params": [p for name, p in learned if "norm" not in name], "lr": lr, "weight_decay": wd / lr}
    optimizer = torch.optim.SGD([biases, others], momentum=0.85, nesterov=True)
    factors = list(factors_of_the_author(total_steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, total_steps - 1)])
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")
    alpha = 0.95**5 * (torch.arange(total_steps + 1) / total_steps) ** 3
    slow = {name: array.clone() for name, array in twin.state_dict().items()}

    def lookahead(decay):
        for name, fast in twin.state_dict().items():
            if fast.dtype == torch.float:
                slow[name].lerp_(fast, 1 - decay)
                fast.copy_(slow[name])

    done = 0
    for epoch in range(math.ceil(epochs)):
        twin.whitening.bias.requires_grad = epoch < 3
        for images, labels in loader:
            loss = loss_fn(twin(torch.from_numpy(images.numpy()).permute(0, 3, 1, 2)), torch.from_numpy(labels.numpy()))
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done % 5 == 0:
                lookahead(alpha[done].item())
            if done >= total_steps:
                lookahead(1.0)
                return


def test_a_whole_run_is_that_of_the_author(speed, tmp_path, torch):
    """14 steps: the first bias is frozen after the ninth; averages after the fifth, the tenth and the last."""
    import torch_twins

    epochs, total_steps = 4.5, 14
    data = small()
    model = speedrun(seed=3)
    model.whiten(normalize(data.first_images, data.mean, data.std))
    twin = torch_twins.twin_of(model, torch_twins.SpeedrunNet, 10)
    train_as_the_author(torch, twin, data.train_loader(BATCH, 3), epochs, total_steps)
    status, output = speed(tmp_path, "--epochs", epochs, "--seed", 3)
    assert status == 0, output
    actual, start = load_file(tmp_path / "seed3" / "checkpoint.safetensors"), model.state_dict()
    for name, array in twin.state_dict().items():
        if "num_batches" not in name:
            moved = abs(array.numpy() - start[name]).max()
            frozen = name == "whitening.weight" or name.endswith(("norm1.weight", "norm2.weight"))
            assert (moved == 0) == frozen, name
            assert abs(actual[name] - array.numpy()).max() <= max(1e-6, 0.01 * moved), name


def test_seeds_are_averaged_and_each_has_its_own_folder(speed, narrow, tmp_path):
    status, output = speed(tmp_path, "--epochs", 1, "--seeds", 2, "--seed", 5)
    assert status == 0
    first, second = (float(number) for number in re.findall(r"^seed [56]: test accuracy ([\d.]+) %$", output, re.M))
    mean, spread = re.search(r"^2 seeds: mean ([\d.]+) %, standard deviation ([\d.]+) %$", output, re.M).groups()
    assert float(mean) == pytest.approx((first + second) / 2, abs=0.011)
    assert float(spread) == pytest.approx(abs(first - second) / math.sqrt(2), abs=0.011)
    assert "accuracy says nothing about CIFAR-10" in output
    for seed in (5, 6):
        (record,) = metrics(tmp_path / f"seed{seed}")
        assert record["step"] == 3 and 0 <= record["tta_error"] <= 1
        assert (tmp_path / f"seed{seed}" / "curves.png").exists()
    again = speed(tmp_path, "--epochs", 1, "--seeds", 2, "--seed", 5)[1]
    assert re.search(r"^2 seeds: .*$", again, re.M)[0] == re.search(r"^2 seeds: .*$", output, re.M)[0]


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(speed, narrow, tmp_path):
    """Between two averages, and after the first bias was frozen."""
    speed(tmp_path / "whole", "--epochs", 4.5)
    with signal_after(11, signal.SIGTERM):
        status, output = speed(tmp_path / "parts", "--epochs", 4.5)
    assert status == 143 and "the same command" in output
    assert speed(tmp_path / "parts", "--epochs", 4.5)[0] == 0
    assert_same_run(tmp_path / "parts" / "seed0", tmp_path / "whole" / "seed0")


def test_a_signal_in_the_last_step_of_a_seed_stops_before_the_next(speed, narrow, tmp_path):
    options = "--epochs", 1, "--seeds", 2
    with signal_after(3, signal.SIGTERM):
        status, output = speed(tmp_path, *options)
    assert status == 143 and "stopped after step 3; checkpoint saved. To continue: the same command" in output
    assert (tmp_path / "seed0" / "best.safetensors").exists() and not (tmp_path / "seed1").exists()
    with signal_after(3, signal.SIGTERM):  # which seed 0 does not reach again, and after seed 1 nothing is left to do
        status, output = speed(tmp_path, *options)
    assert status == 0 and "2 seeds: mean" in output


def test_other_options_do_not_continue_a_run(speed, narrow, tmp_path):
    speed(tmp_path, "--epochs", 1)
    status, _ = speed(tmp_path, "--epochs", 2)
    assert "epochs was 1.0, is 2.0" in status


def test_a_finished_run_whose_metrics_are_lost_is_tested_again(speed, narrow, tmp_path):
    options = tmp_path, "--epochs", 2
    expected = re.search(r"^seed 0: .*$", speed(*options)[1], re.M)[0]
    path = tmp_path / "seed0" / "metrics.jsonl"
    first, _ = path.read_text().splitlines(keepends=True)
    for left in (first, ""):
        path.write_text(left)
        status, output = speed(*options)
        assert status == 0
        assert re.search(r"^seed 0: .*$", output, re.M)[0] == expected


def test_a_batch_larger_than_the_data_is_an_error_that_names_the_option(speed, tmp_path):
    status, output = speed(tmp_path, "--batch-size", 1000)
    assert status == 2
    assert f"--batch-size: expected at most the {len(small().train)} images, got 1000" in output
    assert not list(tmp_path.iterdir())


def test_a_loss_of_nan_ends_the_run_with_advice_that_can_be_followed(speed, narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun_cifar10, "LR", 1e30)
    with np.errstate(all="ignore"):
        status, _ = speed(tmp_path, "--epochs", 2)
    assert re.search("error: (the loss is|NaN or infinity)", status)
    assert "--lr" not in status and "--batch-size" in status  # the script has no --lr


def test_detect_anomaly_names_the_layer(speed, narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun_cifar10, "LR", 1e30)
    status, _ = speed(tmp_path, "--epochs", 2, "--detect-anomaly")
    assert re.match(
        r"error: step 1: Conv2d, forward of groups\.0\.conv1: the output .* try a smaller --batch-size", status
    )


def test_a_run_on_a_device_ends_as_on_the_cpu(speed, narrow, tmp_path, device):
    """There it is two graphs: with the bias of the first layer, and without it."""
    if device == "cpu":
        return
    options = "--epochs", 4.5
    assert speed(tmp_path / "device", *options, "--device", device)[0] == 0
    speed(tmp_path / "cpu", *options)
    arrays, expected = (load_file(tmp_path / name / "seed0" / "checkpoint.safetensors") for name in ("device", "cpu"))
    for name, array in expected.items():
        assert abs(arrays[name] - array).max() <= 0.02 * max(abs(array).max(), 1e-3), name


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_a_run_with_rounded_activations_begins_alike(dtype, speed, narrow, tmp_path, device):
    """A sum of losses needs no scaling in float16: its gradients are as many times as large as the batch."""
    options = "--epochs", 1
    if device == "cpu":
        assert speed(tmp_path, *options, "--dtype", dtype)[0] == 2
        return
    speed(tmp_path / "exact", *options, "--device", device)
    assert speed(tmp_path / "rounded", *options, "--device", device, "--dtype", dtype)[0] == 0
    (rounded,), (exact,) = metrics(tmp_path / "rounded" / "seed0"), metrics(tmp_path / "exact" / "seed0")
    assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)
    assert rounded["train_loss"] != exact["train_loss"]
