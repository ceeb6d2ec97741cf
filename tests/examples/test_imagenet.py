"""The ImageNet scripts on photographs that the tests make: both papers' recipes and ways of testing."""

import re
import signal
from argparse import Namespace
from dataclasses import replace

import evaluate_imagenet
import models.resnet
import models.vgg
import numpy as np
import pytest
import train_imagenet
from common.evaluate import top_errors
from common.fit import classification_step
from common.ranks import Ranks
from common.recipes import IMAGENET_RECIPES
from models.config import IMAGENET_MODELS, TORCHVISION_STD, standard_config
from models.resnet import imagenet_resnet
from models.vgg import start_from_a, vgg
from models.weights import load_network
from PIL import Image
from safetensors.numpy import load_file, save_file

from minidl import Tensor, nn, save_checkpoint
from minidl.data import CentreView, DeviceLoader, ImageFolder, ImageLoader, read_image
from minidl.functional import softmax
from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import assert_same_run, metrics, run_main, signal_after

CLASSES = "n01", "n02", "n03"
TINY = ["--model", "resnet18", "--size", 32, "--sides", 36, 40, "--validation-side", 36, "--batch-size", 3]


def narrow(channels):
    """A sixteenth of the channels; those of an image (3), and classes, stay as they are."""
    return channels // 16 if channels % 16 == 0 else channels


def narrowed(layer):
    """The layer with a sixteenth of the channels that it is asked for."""

    def make(self, *sizes, flattened_from=None, **options):
        if flattened_from is not None:
            options["flattened_from"] = (*flattened_from[:2], narrow(flattened_from[2]))
        layer.__init__(self, *map(narrow, sizes), **options)  # kernels and strides are no multiples of 16

    return type(layer.__name__, (layer,), {"__init__": make})


@pytest.fixture(autouse=True, scope="module")
def narrow_networks():
    """VGG-A for 64 x 64 pixels has 42 million parameters, all drawn, copied and saved by most tests here."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nn.BatchNorm2d, nn.Linear, nn.Conv2d):
            patch.setattr(models.resnet, layer.__name__, narrowed(layer))
        patch.setattr(models.vgg, "Linear", narrowed(nn.Linear))
        for name, config in models.vgg.CONFIGS.items():
            short = [narrow(entry) if isinstance(entry, int) else entry for entry in config]
            short = [f"1x1-{narrow(int(entry[4:]))}" if str(entry).startswith("1x1") else entry for entry in short]
            patch.setitem(models.vgg.CONFIGS, name, short)
        yield


@pytest.fixture
def photographs(tmp_path, rng):
    """DIR/train with three photographs of each of three classes, which differ in colour; DIR/val with one of each."""
    for split, count in (("train", 3), ("val", 1)):
        for number, wnid in enumerate(CLASSES):
            folder = tmp_path / "photographs" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (44, 50 + i + number, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photographs"


@pytest.fixture
def train(photographs, capsys, tmp_path):
    """Runs train_imagenet.py into the folder tmp_path / name; (exit status, stdout, stderr)."""

    def train(name, *options):
        shared = ["--data", photographs, "--statistics", tmp_path / "statistics.npz", "--out", tmp_path / name]
        return run_main(train_imagenet, [*TINY, *shared, *options], capsys)

    return train


@pytest.fixture
def evaluate(photographs, capsys):
    def evaluate(*options):
        return run_main(evaluate_imagenet, ["--data", photographs, *options], capsys)

    return evaluate


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_handful_of_photographs_is_learnt_by_heart(train, tmp_path):
    status, output, _ = train("run", "--epochs", 8, "--batch-size", 9, "--lr", 0.02, "--patience", 100)
    assert status == 0
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == list(range(1, 9))
    assert records[0]["train_error"] > 0
    assert records[-1]["train_error"] == 0
    assert f"validation error of resnet18: {records[-1]['test_error']:.2%}" in output
    assert records[-1]["top5_error"] == 0
    model, config = load_network(tmp_path / "run" / "checkpoint.safetensors")
    assert (config.name, config.classes, config.shorter_side, config.size) == ("resnet18", CLASSES, 36, 32)
    assert config.mean.shape == (32, 32, 3)
    assert model.fc.weight.shape == (512 // 16, 3)


def test_detect_anomaly_names_the_layer_and_changes_no_bit(train, tmp_path):
    train("plain", "--epochs", 2)
    assert train("checked", "--epochs", 2, "--detect-anomaly", "--micro-batch", 3)[0] == 0
    assert_same_run(tmp_path / "checked", tmp_path / "plain")
    status, _, _ = train("broken", "--epochs", 2, "--detect-anomaly", "--lr", 1e30)
    assert re.match(r"error: step \d: \w+, (forward|backward) of [\w.]+.*; no checkpoint exists", status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(train, tmp_path, number):
    """Stopped in the middle of the second epoch."""
    train("whole", "--epochs", 3)
    with signal_after(4, number):
        status, output, _ = train("parts", "--epochs", 3)
    assert status == (0 if number == signal.SIGINT else 128 + number)
    assert "stopped after step 4; checkpoint saved" in output
    assert len(metrics(tmp_path / "parts")) == 1
    train("parts", "--epochs", 3, "--resume")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.filterwarnings("default:ImageLoader")  # as for users: printed
def test_a_run_that_met_a_broken_photograph_can_go_on_without_it(train, photographs, monkeypatch):
    """It is among those that the run is validated on, after a checkpoint."""
    (photographs / "val" / "n02" / "0.png").write_bytes(b"no image")
    monkeypatch.setattr("common.run.SAVE_EVERY", 1)
    status, *_ = train("run", "--epochs", 1)
    assert "0.png cannot be decoded" in str(status)
    assert "--skip-broken" in str(status)
    status, output, errors = train("run", "--epochs", 1, "--resume", "--skip-broken")
    assert status == 0
    assert re.search(r"[\r\n]warning: ImageLoader: skipped: .*0\.png cannot be decoded", errors)
    assert "validation error of resnet18" in output
    assert "photographs that cannot be decoded, each replaced by the next one in the folder: 1\n" in output


@pytest.mark.filterwarnings("default:ImageLoader")
def test_a_broken_photograph_is_named_and_counted_when_testing(photographs, evaluate):
    (photographs / "val" / "n02" / "0.png").write_bytes(b"no image")
    options = ["--random-init", "--model", "resnet18", "--mode", "dense", "--scales", 64]
    status, _, errors = evaluate(*options)
    assert status == 2
    assert "0.png cannot be decoded" in errors
    status, output, errors = evaluate(*options, "--skip-broken")
    assert status == 0
    assert re.search(r"[\r\n]warning: ImageLoader: skipped: .*0\.png cannot be decoded", errors)
    assert "photographs that cannot be decoded, each replaced by the next one in the folder: 1\n" in output


@pytest.mark.filterwarnings("default:measure_images")
def test_a_run_does_not_go_on_with_other_classes(train, photographs):
    """Of the same number: the labels would mean something else."""
    train("run", "--iterations", 1)
    for split in ("train", "val"):
        (photographs / split / "n01").rename(photographs / split / "n09")
    status, *_ = train("run", "--iterations", 1, "--resume")
    assert "the classes of the data differ from those that the run was started with" in status


def test_the_rate_falls_when_the_validation_error_stops_falling(train, tmp_path, monkeypatch):
    errors = iter([0.5, 0.4, 0.4, 0.45, 0.4, 0.39, 0.6])
    monkeypatch.setattr(train_imagenet, "validate", lambda *_: (next(errors), 0.0))
    _, output, _ = train("run", "--epochs", 7, "--patience", 1, "--lr", 0.01, "--batch-size", 9)
    rates = [record["lr"] for record in metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001])
    counters = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")[1]
    assert "learning rate reduced from 0.01 to 0.001" in output
    assert counters["plateau"] == {"lr": pytest.approx(0.001), "best": 0.39, "bad_reports": 1}


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_parts_of_a_batch_make_the_same_step_as_the_whole(micro_batch, rng):
    """In a network without batch-norm, and with dropout off; 6 images in parts of 4 and 2, too."""
    images, labels = Tensor(rng.standard_normal((6, 64, 64, 3), np.float32)), Tensor(np.arange(6) % 3)
    ends, totals = [], []
    for size in (None, micro_batch):
        model = vgg("A", num_classes=3, image_size=64, seed=1).eval()
        optimizer = train_imagenet.make_optimizer(model, IMAGENET_RECIPES["vgg"])
        totals.append([float(total) for total in classification_step(model, optimizer, size)(images, labels)])
        ends.append(model.state_dict())
    for name, array in ends[0].items():
        np.testing.assert_allclose(ends[1][name], array, atol=1e-6, err_msg=name)
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_a_step_and_its_validation_are_those_of_the_cpu_on_any_device(photographs, device):
    ends = []
    for where in ("cpu", device):
        # In evaluation mode: statistics of three images would turn the rounding of the last bits into large numbers.
        model = imagenet_resnet(18, num_classes=3, seed=1).eval().to(where)
        optimizer = train_imagenet.make_optimizer(model, replace(IMAGENET_RECIPES["resnet"], lr=0.01))
        view = CentreView(40, 32, mean=np.array([120.0, 110, 100]), std=64.0)
        loader = DeviceLoader(ImageLoader(ImageFolder(photographs / "train"), 3, view, shuffle=True), where)
        totals = classification_step(model, optimizer)(*next(iter(loader)))
        errors = train_imagenet.validate(model, loader, Ranks())
        ends.append((model.state_dict(), [float(total) for total in totals], errors))
    (ours, totals, errors), (theirs, other_totals, other_errors) = ends
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    assert totals == pytest.approx(other_totals, rel=1e-5)
    assert errors == other_errors


def test_vgg_decays_its_weights_alone_and_resnet_all(rng):
    for name, decays in (("vgg", False), ("resnet", True)):
        model = vgg("A", num_classes=3, image_size=32, seed=1)
        recipe = replace(IMAGENET_RECIPES[name], lr=0.1)
        optimizer = train_imagenet.make_optimizer(model, recipe)
        weight, bias = model.features[0].weight, model.features[0].bias
        bias.data[...] = 1
        before = weight.numpy().copy()
        for parameter in (weight, bias):
            parameter.grad = Tensor(np.zeros(parameter.shape, np.float32))
        optimizer.step()
        np.testing.assert_allclose(weight.numpy(), before * (1 - 0.1 * recipe.weight_decay), rtol=1e-6)
        np.testing.assert_allclose(bias.numpy(), 1 - 0.1 * recipe.weight_decay * decays, rtol=1e-6)


@pytest.mark.parametrize("config", ["B", "C", "D", "E"])
def test_a_deeper_net_starts_from_four_convolutions_and_the_classifier_of_net_a(config):
    a = vgg("A", num_classes=3, image_size=64, seed=1).state_dict()
    network = vgg(config, num_classes=3, image_size=64, seed=2)
    before = network.state_dict()
    start_from_a(network, a)
    copied = {"features.0": "features.0", "features.3": "features.5", "features.6": "features.10"}
    copied |= {"features.8": "features.12", **{f"classifier.{i}": f"classifier.{i}" for i in (0, 3, 6)}}
    expected = dict(before)
    for name, place in copied.items():
        expected |= {f"{place}.{part}": a[f"{name}.{part}"] for part in ("weight", "bias")}
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_weights_of_other_widths_than_net_a_are_a_clear_error():
    a = vgg("A", num_classes=3, image_size=64, seed=1).state_dict()
    a["features.3.weight"] = a["features.3.weight"][:7]
    with pytest.raises(
        ValueError, match=r"start_from_a: no convolution fits features.3 of the weights, \(7, 4, 3, 3\)"
    ):
        start_from_a(vgg("B", num_classes=3, image_size=64), a)


def test_training_can_start_from_weights(train, tmp_path):
    """Of net A for a deeper net, of the same network for any; others are an error."""
    small = ["--model", "vgg-A", "--size", 64, "--sides", 64, "--validation-side", 64, "--iterations", 1, "--lr", 0]
    train("A", *small)
    a = tmp_path / "A" / "checkpoint.safetensors"
    train("B", *small, "--model", "vgg-B", "--init-from", a)
    weights = load_file(tmp_path / "B" / "checkpoint.safetensors")
    np.testing.assert_array_equal(weights["features.5.weight"], load_file(a)["features.3.weight"])
    train("again", *small, "--seed", 5, "--init-from", a)
    weights = load_file(tmp_path / "again" / "checkpoint.safetensors")
    np.testing.assert_array_equal(weights["features.16.weight"], load_file(a)["features.16.weight"])
    status, _, errors = train("resnet", "--init-from", a)
    assert status == 2
    assert "checkpoint.safetensors does not fit resnet18: load_state_dict: nothing was loaded" in errors


@pytest.mark.parametrize("model", ["resnet18", "vgg-A"])
def test_with_another_number_of_classes_the_last_layer_is_new(train, tmp_path, model):
    """And the images are normalised as for the weights."""
    size = ["--model", model, "--size", 64, "--sides", 64, "--validation-side", 64, "--iterations", 1, "--lr", 0]
    config = standard_config(model, 5)
    config = replace(config, size=64, shorter_side=64)
    if model == "vgg-A":
        config = replace(config, arguments=config.arguments | {"image_size": 64})
    theirs, last = config.build(seed=2), "fc" if model == "resnet18" else "classifier.6"
    save_checkpoint(tmp_path / "five", theirs, counters={"network": config.to_json()}, extra=config.arrays())
    status, output, _ = train("three", *size, "--init-from", tmp_path / "five")
    assert status == 0
    assert f"five has 5 classes, the photographs 3: the last layer, {last}, is new" in output
    trained, now = load_network(tmp_path / "three")
    np.testing.assert_array_equal(now.mean, config.mean)
    np.testing.assert_array_equal(now.std, config.std)
    expected = dict(theirs.named_parameters())
    for name, parameter in trained.named_parameters():
        if name.startswith(last):
            assert parameter.shape[-1] == 3
        else:
            np.testing.assert_array_equal(parameter.numpy(), expected[name].numpy())


def test_weights_without_a_description_are_normalised_as_torchvisions(train, tmp_path):
    save_checkpoint(tmp_path / "bare", standard_config("resnet18", 3).build(seed=2))
    assert train("run", "--model", "resnet18", "--iterations", 1, "--init-from", tmp_path / "bare")[0] == 0
    np.testing.assert_array_equal(load_network(tmp_path / "run")[1].std, TORCHVISION_STD)


def test_a_name_of_weights_that_does_not_exist_is_named(train):
    status, _, errors = train("run", "--init-from", "resnet20-nonsense")
    assert status == 2
    assert "no file, folder or network resnet20-nonsense" in errors


def test_a_run_goes_on_with_the_weights_that_it_began_with(train, tmp_path):
    """As they decide how images are normalised."""
    save_checkpoint(tmp_path / "bare", standard_config("resnet18", 3).build(seed=2))
    started = ["--model", "resnet18", "--iterations", 1, "--init-from", tmp_path / "bare"]
    assert train("run", *started)[0] == 0
    assert "checkpoint.safetensors: init_from was" in train("run", *started[:-2], "--resume")[0]


def test_a_resumed_run_does_not_need_the_weights_that_it_began_with(train, tmp_path):
    save_checkpoint(tmp_path / "bare", standard_config("resnet18", 3).build(seed=2))
    options = ["--model", "resnet18", "--iterations", 3, "--init-from", tmp_path / "bare"]
    assert train("whole", *options)[0] == 0
    with signal_after(2):
        train("parts", *options)
    (tmp_path / "bare").unlink()
    assert train("parts", *options, "--resume")[0] == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    ours, theirs = (load_network(tmp_path / name)[1] for name in ("parts", "whole"))
    np.testing.assert_array_equal(ours.mean, theirs.mean)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size", 36, "--sides", 34], "--sides: expected at least 36, the side of the crops (--size), got 34"),
        (["--validation-side", 20], "--validation-side: expected at least 32, the side of the crops (--size), got 20"),
        (["--init", "paper"], "--init: has no effect on resnet18; omit it"),
        (["--model", "vgg-A", "--shortcut", "A"], "--shortcut: has no effect on vgg-A; omit it"),
        (["--model", "vgg-A", "--variant", "torchvision"], "--variant: has no effect on vgg-A; omit it"),
        (["--model", "plain18", "--shortcut", "A"], "--shortcut: has no effect on plain18; omit it"),
        (["--model", "vgg-A", "--size", 20, "--sides", 20], "20"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_options_are_an_error_before_the_images_are_measured(train, tmp_path, options, expected):
    status, _, errors = train("run", *options)
    assert status == 2
    assert expected in errors
    assert not (tmp_path / "statistics.npz").exists()


def test_the_statistics_have_the_name_of_the_folder_and_the_size(capsys, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(train_imagenet, "train", lambda args, ranks: found.append(args))
    options = ["--data", "some/flowers/", "--out", tmp_path, "--model", "resnet18", "--size", 192, "--sides", 192]
    run_main(train_imagenet, options, capsys)
    assert found[0].statistics == "runs/flowers-192.npz"


@pytest.mark.parametrize(
    ("model", "expected"),
    [("vgg-A", ("glorot", None, None)), ("resnet18", (None, "B", "he2015")), ("plain18", (None, None, "he2015"))],
)
def test_options_of_other_networks_stay_empty(capsys, tmp_path, monkeypatch, model, expected):
    """The command on the card of exported weights has all that are filled in."""
    found = []
    monkeypatch.setattr(train_imagenet, "train", lambda args, ranks: found.append(args))
    run_main(train_imagenet, ["--data", "-", "--out", tmp_path, "--model", model], capsys)
    assert (found[0].init, found[0].shortcut, found[0].variant) == expected


def test_a_model_beside_weights_that_describe_another_is_an_error(weights, evaluate):
    status, _, errors = evaluate("--weights", weights[0], "--model", "vgg-E")
    assert status == 2
    assert "--model: the weights describe their network, resnet18; leave --model out" in errors


def test_weights_of_the_same_network_may_come_from_pytorch(tmp_path):
    """Whose batch-norm also counts its batches, which makes more names than ours."""
    args = Namespace(init="glorot", init_from=tmp_path / "w", seed=1, device="cpu", resume=False)
    config = standard_config("vgg-A-bn", 3)
    config = replace(config, arguments=config.arguments | {"image_size": 32})
    arrays = config.build(seed=2).state_dict()
    save_file(arrays | {"features.1.num_batches_tracked": np.array(7)}, tmp_path / "w")
    for name, array in train_imagenet.make_network(config, args).state_dict().items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_wrong_data_is_a_clear_error(train, photographs, tmp_path):
    (photographs / "val" / "n01").rename(photographs / "val" / "n99")
    status, _, errors = train("run", "--iterations", 1)
    assert status == 2
    assert "n99 is not among the 3 given classes" in errors
    assert not (tmp_path / "statistics.npz").exists()  # to measure them takes as long as an epoch of loading
    (photographs / "val" / "n99").rename(photographs / "val" / "n01")
    status, _, errors = train("run", "--iterations", 1, "--sides", 20)
    assert status == 2
    assert "--sides: expected at least 32, the side of the crops (--size), got 20" in errors
    status, _, errors = train("run", "--iterations", 1, "--patience", -1)
    assert status == 2
    assert "argument --patience: expected a whole number >= 0, got -1" in errors
    status, _, errors = train("run", "--iterations", 1, "--sides", 36, 38, 40)
    assert status == 2
    assert "--sides: expected one number or two, got 36 38 40" in errors


@pytest.mark.parametrize(
    ("options", "sides", "validation_side"),
    [
        (["vgg-D"], [256, 256], 256),
        (["vgg-D", "--sides", 512, 256], [256, 512], 384),
        (["resnet50"], [256, 480], 256),
        (["resnet50", "--sides", 272, 296], [272, 296], 272),
    ],
)
def test_what_the_options_leave_open_is_as_in_the_papers(
    capsys, tmp_path, monkeypatch, options, sides, validation_side
):
    """VGG is validated at the middle of the sides it was trained on, ResNet at the least of them."""
    found = []
    monkeypatch.setattr(train_imagenet, "train", lambda args, ranks: found.append(args))
    run_main(train_imagenet, ["--data", "-", "--out", tmp_path, "--model", *options], capsys)
    assert (found[0].sides, found[0].validation_side) == (sides, validation_side)


def test_a_step_that_breaks_the_network_is_an_error_and_no_checkpoint(train, tmp_path):
    """Its loss is of before the update, and fine."""
    status, *_ = train("run", "--iterations", 1, "--lr", 1e300)
    assert "NaN or infinity in" in str(status)
    assert "no checkpoint exists" in str(status)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("weights_alone", [False, True])
def test_a_checkpoint_that_cannot_be_resumed_is_named(train, tmp_path, weights_alone):
    train("run", "--iterations", 1)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    if weights_alone:
        save_file({name: array for name, array in load_file(checkpoint).items() if "/" not in name}, checkpoint)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-8])
    status, *_ = train("run", "--iterations", 1, "--resume")
    assert re.fullmatch(rf"error: [^\n]*{re.escape(str(checkpoint))}[^\n]*", status)
    assert ("'options' is missing" if weights_alone else "not a complete safetensors file") in status


def test_a_run_that_is_over_says_so_again_also_without_its_metrics(train, tmp_path):
    train("run", "--iterations", 1)
    status, output, _ = train("run", "--iterations", 1, "--resume")
    assert status == 0
    assert "validation error of resnet18" in output
    (tmp_path / "run" / "metrics.jsonl").unlink()
    status, output, _ = train("run", "--iterations", 1, "--resume")
    assert status == 0
    assert "validation error of resnet18: nan%" in output


def test_an_existing_checkpoint_is_an_error_before_the_images_are_measured(train, tmp_path):
    """Which takes as long as an epoch of loading."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").touch()
    status, _, errors = train("run")
    assert status == 2
    assert "continue with --resume" in errors
    assert not (tmp_path / "statistics.npz").exists()


# -- where the photographs are -----------------------------------------------------------------------------------------


def break_layout(photographs, layout):
    """Make of DIR/train and DIR/val something else; the folder to pass as --data."""
    if layout == "plain":
        return photographs / "train"
    if layout == "nothing there":
        return photographs / "elsewhere"
    if layout == "a file":
        return photographs / "train" / "n01" / "0.png"
    if layout == "unsorted":
        return photographs / "train" / "n01"
    if layout == "empty":
        (photographs / "empty").mkdir()
        return photographs / "empty"
    missing = layout.removesuffix(" is missing").removesuffix(" is a file")
    (photographs / missing).rename(photographs.parent / missing)
    if layout.endswith("file"):
        (photographs / missing).touch()
    return photographs


NOT_FOR_TRAINING = {
    "nothing there": "expected a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, got a path that does not exist",
    "a file": "expected a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, got a file",
    "empty": "got no subfolders; sort the photographs into one folder per class",
    "unsorted": "got no subfolders; sort the photographs into one folder per class",
    "plain": "got n01, n02, ... (3 folders) directly in it; move most photographs of each class to train/<class>",
    "train is missing": "got no train; put the training photographs into train/<class>",
    "train is a file": "got no train; put the training photographs into train/<class>",
    "val is missing": "got no val; put the validation photographs into val/<class>, one folder per class",
    "val is a file": "got no val; put the validation photographs into val/<class>, one folder per class",
}


@pytest.mark.parametrize("layout", NOT_FOR_TRAINING)
def test_training_says_which_folders_it_expects(train, photographs, tmp_path, layout):
    place = break_layout(photographs, layout)
    status, _, errors = train("run", "--iterations", 1, "--data", place)
    (line,) = (line for line in errors.splitlines() if "error:" in line)
    assert status == 2
    assert "error: --data: expected" in line
    assert str(place) in line
    assert NOT_FOR_TRAINING[layout] in line
    assert not (tmp_path / "run").exists()


NOT_FOR_TESTING = {
    "nothing there": "expected a folder with val/<wnid>/*.JPEG, or <wnid>/*.JPEG, got a path that does not exist",
    "a file": "expected a folder with val/<wnid>/*.JPEG, or <wnid>/*.JPEG, got a file",
    "empty": "got no subfolders; sort the photographs into one folder per class",
    "unsorted": "got no subfolders; sort the photographs into one folder per class",
    "val is missing": "got train without val; create val, or test on the training photographs with --data",
    "val is a file": "got train without val; create val, or test on the training photographs with --data",
}


@pytest.mark.parametrize("layout", NOT_FOR_TESTING)
def test_testing_says_which_folders_it_expects(weights, evaluate, photographs, layout):
    place = break_layout(photographs, layout)
    status, _, errors = evaluate("--weights", weights[0], "--data", place)
    (line,) = (line for line in errors.splitlines() if "error:" in line)
    assert status == 2
    assert "error: --data: expected" in line
    assert str(place) in line
    assert NOT_FOR_TESTING[layout] in line


def test_a_plain_folder_of_classes_is_tested_as_it_is(weights, evaluate, photographs):
    _, expected, _ = evaluate("--weights", weights[0])
    status, output, _ = evaluate("--weights", weights[0], "--data", photographs / "val")
    assert status == 0
    assert output.splitlines()[0] == expected.splitlines()[0]
    assert "of 3 photographs" in output
    status, output, _ = evaluate("--weights", weights[0], "--data", photographs / "train")
    assert status == 0
    assert "of 9 photographs" in output


def test_the_sample_of_imagenet_is_tested_as_it_is(evaluate, imagenet_sample, tmp_path):
    """A folder for each of 146 classes, and no train or val; a few of these are enough."""
    (tmp_path / "sample").mkdir()
    for folder in [folder for folder in sorted(imagenet_sample.iterdir()) if folder.is_dir()][:3]:
        (tmp_path / "sample" / folder.name).symlink_to(folder)
    options = ["--random-init", "--model", "resnet18", "--scales", 224]
    status, output, _ = evaluate(*options, "--data", tmp_path / "sample")
    assert status == 0
    assert re.search(r"of \d+ photographs", output)


# -- testing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["center", "10crop", "multicrop"])
def test_a_scale_smaller_than_the_crop_is_an_error_before_anything_is_tested(weights, evaluate, monkeypatch, mode):
    monkeypatch.setattr(evaluate_imagenet, "run_pass", None)
    status, _, errors = evaluate("--weights", weights[0], "--mode", mode, "--scales", 80, 63)
    assert status == 2
    assert "expected 1 <= size <= shorter_side" in errors


def test_an_ensemble_needs_networks_for_as_many_classes(weights, evaluate, tmp_path, monkeypatch):
    """Also where only one of them says which classes these are."""
    save_checkpoint(tmp_path / "w", standard_config("resnet18", 4).build(seed=1))
    monkeypatch.setattr(evaluate_imagenet, "run_pass", None)
    status, _, errors = evaluate("--weights", weights[0], tmp_path / "w", "--model", "resnet18")
    assert status == 2
    assert "got networks for 3 and 4 classes" in errors


@pytest.mark.parametrize(("mode", "size"), [("10crop", 7), ("dense", 1)])
def test_the_network_sees_no_more_views_at_a_time_than_asked_for(weights, evaluate, monkeypatch, mode, size):
    """And a last part may be smaller: ten in parts of 7."""
    seen, compute, scores = [], evaluate_imagenet.probabilities, []

    def note(network, images):
        seen.append(len(images))
        return compute(network, images)

    monkeypatch.setattr(evaluate_imagenet, "report", lambda _, found, *others: scores.append(found))
    monkeypatch.setattr(evaluate_imagenet, "probabilities", note)
    for number in (50, size):
        seen.clear()
        evaluate("--weights", weights[0], "--mode", mode, "--scales", 64, "--batch-size", number)
    assert max(seen) == size
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def test_top_errors_count_the_first_and_the_first_five():
    scores = np.array([[6, 5, 4, 3, 2, 1, 0]] * 4, np.float32)
    assert top_errors(scores, np.array([0, 4, 5, 6])) == (0.75, 0.5)
    equal = np.zeros((7, 7), np.float32)  # nothing was learnt: of equal scores the first class is the highest
    assert top_errors(equal, np.arange(7)) == (pytest.approx(6 / 7), pytest.approx(2 / 7))
    assert top_errors(np.full((2, 7), np.nan, np.float32), np.array([5, 6])) == (1, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of an untrained ResNet-18 and VGG-A for the three classes and 64 x 64 pixels."""
    files, folder = [], tmp_path_factory.mktemp("weights")
    for model, options in (("resnet18", {}), ("vgg-A", {"image_size": 64})):
        config = standard_config(model, 3)
        config = type(config)(
            *(model, config.builder, config.arguments | options, ("a", "b", "c"), CLASSES, 64, 64),
            *(np.array([120.0, 110, 100], np.float32), 64.0),
        )
        files.append(folder / model)
        network = config.build(seed=3)
        save_checkpoint(files[-1], network, None, {"network": config.to_json()}, config.arrays())
    return files


@pytest.mark.parametrize("mode", evaluate_imagenet.MODES)
@pytest.mark.parametrize("number", [0, 1], ids=["resnet18", "vgg-A"])
def test_every_mode_averages_the_probabilities_of_its_views(weights, photographs, evaluate, monkeypatch, mode, number):
    """Against the network applied to each view by itself, at two scales, of photographs that differ in size."""
    found = {}

    def note(_, scores, labels, *others):
        found.update(scores=scores, labels=labels)

    monkeypatch.setattr(evaluate_imagenet, "report", note)
    status, *_ = evaluate("--weights", weights[number], "--mode", mode, "--scales", 64, 80)
    assert status == 0
    model, config = load_network(weights[number])
    path, means, count = photographs / "val" / "n02" / "0.png", [], 0
    for network, view, _ in evaluate_imagenet.passes(model, config, mode, [64, 80]):
        images = view(path)
        images = images.reshape(-1, *images.shape[-3:])
        means.append(np.mean([softmax(network(Tensor(image[None]))).numpy()[0] for image in images], axis=0))
        count += len(images)
    assert count == {"center": 2, "10crop": 20, "multicrop": 100, "dense": 4, "dense+multicrop": 104}[mode]
    np.testing.assert_allclose(found["scores"][1], np.mean(means, axis=0), atol=1e-5)  # each pass has the same weight
    assert found["labels"].tolist() == [0, 1, 2]


def test_a_pass_gives_the_cpus_probabilities_on_any_device(weights, photographs, device):
    model, config = load_network(weights[0])
    scores = []
    for where in ("cpu", device):
        args = Namespace(device=where, dtype="float32", mode="10crop", batch_size=50)
        network, view, _ = evaluate_imagenet.one_pass(model.to(where), config, "10crop", 64)
        loader = ImageLoader(ImageFolder(photographs / "val"), 2, view)
        found, labels = evaluate_imagenet.run_pass(network, loader, args)
        assert labels.tolist() == [0, 1, 2]
        scores.append(found)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def test_dense_at_the_size_of_the_crop_and_without_the_mirror_image_is_the_single_crop(weights, photographs):
    """On a square photograph, where the whole is the crop."""
    path = photographs / "val" / "n01" / "0.png"
    read_image(path, 64).crop((0, 0, 64, 64)).save(path)
    for file in weights:
        model, config = load_network(file)
        (single, centre, _), (dense, whole, _) = (
            evaluate_imagenet.one_pass(model, config, mode, 64) for mode in ("center", "dense")
        )
        image, mirrored = whole(path)
        np.testing.assert_array_equal(image, centre(path))
        np.testing.assert_array_equal(mirrored, image[:, ::-1])
        np.testing.assert_allclose(
            dense(Tensor(image[None])).numpy(), single(Tensor(centre(path)[None])).numpy(), rtol=1e-4, atol=1e-5
        )


def test_several_files_are_an_ensemble(weights, evaluate, monkeypatch):
    scores = []
    monkeypatch.setattr(evaluate_imagenet, "report", lambda _, found, *others: scores.append(found))
    for files in ([weights[0]], [weights[1]], weights):
        evaluate("--weights", *files, "--mode", "center")
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-6)


def test_the_report_has_our_errors_and_the_papers(weights, evaluate):
    status, output, _ = evaluate("--weights", weights[1], "--mode", "dense")
    assert status == 0
    assert "vgg-A, dense: top-1 error" in output
    assert "ms per photograph" in output
    assert "dense, S = Q = 256: top-1 29.6 %, top-5 10.4 %" in output
    _, output, _ = evaluate("--weights", *weights, "--mode", "center")
    assert "resnet18 + vgg-A, center: top-1 error" in output
    assert "the papers report no error for it" in output


def test_the_papers_errors_belong_to_networks_and_modes_that_there_are():
    for (networks, mode), rows in evaluate_imagenet.PAPER_ERRORS.items():
        assert set(networks.split(" + ")) <= IMAGENET_MODELS.keys()
        assert mode in evaluate_imagenet.MODES
        assert all(top1 > (top5 or 0) > 3 or top5 is None for _, top1, top5 in rows)


def test_labels_follow_the_classes_of_the_training_also_where_some_are_absent(
    weights, photographs, evaluate, monkeypatch
):
    for file in (photographs / "val" / "n01").iterdir():
        file.unlink()
    (photographs / "val" / "n01").rmdir()
    labels = []
    monkeypatch.setattr(evaluate_imagenet, "report", lambda _, scores, found, *others: labels.append(found))
    evaluate("--weights", weights[0])
    assert labels[0].tolist() == [1, 2]


def test_weights_that_do_not_name_their_classes_need_all_of_them_or_names(photographs, evaluate, tmp_path):
    config = standard_config("resnet18", 4)
    save_checkpoint(tmp_path / "w", config.build(seed=1))
    options = ["--weights", tmp_path / "w", "--scales", 224]
    status, _, errors = evaluate(*options)
    assert status == 2
    assert "pass --model" in errors
    status, _, errors = evaluate(*options, "--model", "resnet18")
    assert status == 2
    assert "expected the 4 classes" in errors
    (tmp_path / "names").write_text("n00 ant\nn01 bee\nn02 cat\nn03 dog\n")
    status, output, _ = evaluate(*options, "--model", "resnet18", "--names", tmp_path / "names")
    assert status == 0
    assert "resnet18, center" in output


def test_an_untrained_network_is_tested_as_well(evaluate):
    status, output, _ = evaluate("--random-init", "--model", "resnet18", "--mode", "dense", "--scales", 64)
    assert status == 0
    assert "of 3 photographs" in output
    status, _, errors = evaluate("--random-init")
    assert status == 2
    assert "expected --model" in errors
