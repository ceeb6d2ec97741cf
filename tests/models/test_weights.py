"""Trained networks by name: from the repository, a run's folder, and a hub played by a local server."""

import dataclasses
import functools
import hashlib
import http.server
import json
import re
import shutil
import threading
import time
from typing import ClassVar

import export_weights
import numpy as np
import pytest
from models import weights
from models.config import NetworkConfig
from models.resnet import cifar_resnet, imagenet_resnet
from models.vgg import vgg
from models.weights import ARCHITECTURES, find_weights, load_network
from safetensors.numpy import save_file

from minidl import Tensor, save_checkpoint
from minidl.data import load_cifar10, make_shapes
from tests.models.torchvision_twin import import_torchvision

CONFIG = NetworkConfig(
    "resnet8", "cifar_resnet", {"depth": 8}, tuple("abcdefghij"), tuple("abcdefghij"), 32, 32, np.full(3, 120.0), 60.0
)


def logits(model, size=32):
    return model.eval()(Tensor(np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32))).numpy()


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a run, and the network in it."""
    model = cifar_resnet(8, seed=5)
    (tmp_path / "run").mkdir()
    counters = {"network": CONFIG.to_json(), "options": {"depth": 8, "recipe": "fast", "holdout": True, "lr": None}}
    save_checkpoint(tmp_path / "run" / "checkpoint.safetensors", model, counters=counters, extra=CONFIG.arrays())
    return tmp_path / "run", model


# -- names, folders, files ---------------------------------------------------------------------------------------------


def test_a_folder_a_checkpoint_and_a_name_give_the_same_network(run_folder, tmp_path, monkeypatch, capsys):
    folder, model = run_folder
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr("sys.argv", ["export", "--run", str(folder), "--name", "tiny", "--folder", str(weights.FOLDER)])
    export_weights.main()
    for name in folder, str(folder), folder / "checkpoint.safetensors", "tiny":
        again, config = load_network(name)
        assert config.to_json() == CONFIG.to_json()
        np.testing.assert_array_equal(logits(again), logits(model))
    card = (tmp_path / "weights" / "tiny.md").read_text()
    assert "python examples/train_cifar_resnet.py --depth 8 --recipe fast --holdout\n" in card
    for heading in "Data", "Recipe", "Command", "Error", "Licence":
        assert f"\n## {heading}\n" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    with pytest.raises(SystemExit):
        export_weights.main()  # it overwrites nothing
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("builder", "options", "command"),
    [
        (
            "vgg",
            {"config": "A", "mirror_test": True, "seed": 0},
            "train_cifar_vgg.py --config A --mirror-test --seed 0",
        ),
        ("vgg", {"config": "A", "batch_norm": False}, "train_cifar_vgg.py --config A --no-batch-norm"),
        ("speedrun", {"epochs": 9.9, "seeds": None}, "speedrun_cifar10.py --epochs 9.9"),
        (
            "vgg",
            {"model": "vgg-A", "sides": [256, 512], "validation_side": 384},
            "train_imagenet.py --data DIR --model vgg-A --sides 256 512 --validation-side 384",
        ),
    ],
)
def test_the_command_on_the_card_is_that_of_the_script(builder, options, command):
    config = dataclasses.replace(CONFIG, builder=builder)
    assert export_weights.command_of(config, options) == f"python examples/{command}"


def test_a_file_of_weights_has_neither_optimiser_nor_position(run_folder, tmp_path):
    folder, _ = run_folder
    model, config = load_network(folder)
    export_weights.export(model, config, tmp_path / "w.safetensors")
    counters = weights.read_checkpoint(tmp_path / "w.safetensors")[1]
    assert set(counters) == {"network"}


def test_the_card_of_a_network_for_cifar_has_the_error_of_the_file(tmp_path, monkeypatch):
    test = make_shapes(1100, train=False)
    monkeypatch.setitem(export_weights.CIFAR, "cifar10", lambda folder, train: test)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    model = cifar_resnet(8, seed=5)
    options = {"depth": 8, "recipe": "fast", "dataset": "cifar10", "holdout": True}
    counters = {"network": CONFIG.to_json(), "options": options}
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, counters=counters, extra=CONFIG.arrays())
    monkeypatch.setattr(
        "sys.argv", ["export", "--run", str(tmp_path), "--name", "tiny", "--folder", str(weights.FOLDER)]
    )
    export_weights.main()
    x = (test.images.astype(np.float32) - CONFIG.mean.astype(np.float32)) / 60
    wrong = model.eval()(Tensor(x)).numpy().argmax(axis=1) != test.labels
    card = (tmp_path / "weights" / "tiny.md").read_text()
    assert f"{wrong.mean():.2%}: {wrong.sum():,} of the 1,100 test images wrong" in card
    assert "The 45,000 training images of cifar10" in card
    assert wrong_on_the_card(card) == (wrong[:1000].sum(), wrong.sum())


def test_without_the_data_there_is_neither_file_nor_card(tmp_path, monkeypatch, capsys):
    def absent(folder, train):
        raise FileNotFoundError("no CIFAR-10")

    monkeypatch.setitem(export_weights.CIFAR, "cifar10", absent)
    counters = {"network": CONFIG.to_json(), "options": {"dataset": "cifar10"}}
    save_checkpoint(tmp_path / "checkpoint.safetensors", cifar_resnet(8), counters=counters, extra=CONFIG.arrays())
    monkeypatch.setattr("sys.argv", ["export", "--run", str(tmp_path), "--name", "x", "--folder", str(tmp_path / "w")])
    with pytest.raises(SystemExit):
        export_weights.main()
    assert "no CIFAR-10" in capsys.readouterr().err
    assert not list((tmp_path / "w").iterdir())


def wrong_on_the_card(card):
    """(wrong of the first 1,000, wrong of all) test images."""
    every, first = re.search(r"([\d,]+) of the [\d,]+ test images wrong, ([\d,]+) of the first 1,000", card).groups()
    return int(first.replace(",", "")), int(every.replace(",", ""))


def test_each_file_for_cifar10_has_the_error_on_its_card(real_cifar10, monkeypatch, request):
    """On the first 1,000 images; with --long on all. Rounding may turn one answer in a thousand."""
    if not request.config.getoption("--long"):
        test = load_cifar10(real_cifar10, train=False).subset(slice(export_weights.FIRST))
        monkeypatch.setitem(export_weights.CIFAR, "cifar10", lambda folder, train: test)
    cards = sorted(weights.FOLDER.glob("*-cifar10.md"))
    assert [card.stem for card in cards] == ["resnet20-cifar10"]
    for card in cards:
        first, every, count = export_weights.count_wrong(card.with_suffix(".safetensors"), "cifar10", real_cifar10)
        expected = wrong_on_the_card(card.read_text(encoding="utf-8"))
        assert abs(first - expected[0]) <= 1, card
        assert count == export_weights.FIRST or abs(every - expected[1]) <= 10, card


def test_a_name_that_does_not_exist_is_told_with_the_nearest_one(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no file, folder or network nonsense; give a file, or hf:OWNER/NAME"):
        load_network("nonsense")
    for name in "resnet20-cifar10", "vgg-shapes":
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"network resnet20-cifar100; did you mean resnet20-cifar10\?"):
        find_weights("resnet20-cifar100")
    with pytest.raises(ValueError, match="network zzz; there are the names resnet20-cifar10, vgg-shapes"):
        find_weights("zzz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"expected a folder with checkpoint\.safetensors, or .*empty, which has neither"
    ):
        find_weights(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["truncated", "another network", "pickle"])
def test_what_does_not_fit_is_an_error_that_names_the_file(damage, run_folder, tmp_path):
    folder, _ = run_folder
    path = folder / "checkpoint.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "another network":
        counters = {"network": CONFIG.to_json()}
        save_checkpoint(path, cifar_resnet(14), counters=counters, extra=CONFIG.arrays())
    else:
        path = tmp_path / "weights.pth"
        path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match=path.name) as error:
        load_network(path)
    if damage == "another network":
        assert "nothing was loaded" in str(error.value) and "unexpected" in str(error.value)
    if damage == "pickle":
        assert "torch.load" in str(error.value) and "weights_only=True" in str(error.value)


# -- timm --------------------------------------------------------------------------------------------------------------

PREPARED = {"input_size": [3, 224, 224], "crop_pct": 0.875, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def describe(path, **changes):
    described = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": PREPARED} | changes
    path.write_text(json.dumps(described))


def made_by_timm(name, folder, classes=10):
    """The two files that timm puts into a repository of the hub, and the network."""
    import_torchvision()
    import timm
    from timm.models._hub import save_config_for_hf

    model = timm.create_model(name, pretrained=False, num_classes=classes).eval()
    save_file({key: value.numpy() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    save_config_for_hf(model, folder / "config.json", None)
    return model


@pytest.mark.parametrize("name", ["resnet18.tv_in1k", "vgg11_bn.tv_in1k"])
def test_the_files_of_timm_give_its_network(name, tmp_path, torch):
    theirs = made_by_timm(name, tmp_path)
    model, config = load_network(tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert abs(model(Tensor(x)).numpy() - expected).max() <= 1e-4 * abs(expected).max()
    assert (config.shorter_side, config.size, len(config.names)) == (256, 224, 10)
    np.testing.assert_allclose(config.mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(config.std, [58.395, 57.12, 57.375], rtol=1e-6)


def test_every_architecture_is_one_of_timm(torch):
    import_torchvision()
    import timm

    assert set(ARCHITECTURES) <= set(timm.list_models())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vit_base"}, "expected one of resnet18, .*, got 'vit_base'"),
        ({"architecture": ["resnet18"]}, "expected one of resnet18, .*, got .'resnet18'."),
        ({"num_classes": 10**9}, "expected num_classes in 1..32768, got 1000000000"),
        ({"num_classes": 10.5}, "expected num_classes in 1..32768, got 10.5"),
        ({"pretrained_cfg": {}}, "KeyError: 'input_size'"),
        ({"pretrained_cfg": PREPARED | {"input_size": [1, 64, 64]}}, "expected input_size .3, N, N., got .1, 64, 64."),
        ({"pretrained_cfg": PREPARED | {"input_size": [3, 8.5, 8.5]}}, "expected size in 0..32768, got 8.5"),
        ({"pretrained_cfg": PREPARED | {"crop_pct": 0}}, "ZeroDivisionError"),
        ({"pretrained_cfg": PREPARED | {"mean": "dark"}}, "ValueError: could not convert"),
        ({"pretrained_cfg": PREPARED | {"mean": [float("nan")] * 3}}, "expected finite numbers as mean, got others"),
        ({"pretrained_cfg": PREPARED | {"std": [0, 0, 0]}}, "expected finite numbers > 0 as std, got others"),
    ],
)
def test_a_description_that_lies_is_an_error_with_the_name_of_the_file(changes, words, tmp_path):
    describe(tmp_path / "config.json", **changes)
    (tmp_path / "model.safetensors").write_bytes(b"")
    expected = f"config.json is not the config.json of a network that minidl has .*{words}"
    with pytest.raises(ValueError, match=expected):
        weights.timm_config(tmp_path / "config.json")


def test_weights_of_another_network_are_refused_as_a_whole(tmp_path):
    save_file(imagenet_resnet(18).state_dict(), tmp_path / "model.safetensors")
    describe(tmp_path / "config.json", architecture="resnet34")
    with pytest.raises(ValueError, match=r"load_network: .*model\.safetensors: .*nothing was loaded .*missing"):
        load_network(tmp_path)


# -- the hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0" * 39 + "1"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs: /OWNER/NAME/resolve/main/FILE. It counts the downloads."""

    files: ClassVar[dict[str, bytes]] = {}
    checksums: ClassVar[dict[str, str]] = {}
    downloads = 0
    fault = None  # of all answers: "silent"; of model.safetensors: "stalls", "breaks off", "breaks off once"
    ranges: ClassVar[list[str]] = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        if self.fault == "silent":
            time.sleep(0.6)  # longer than the client waits
            self.close_connection = True
            return
        name = self.path.partition("/resolve/main/")[2]
        body = self.files.get(name) if "/timm/" in self.path else None
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.checksums[name]}"')
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if with_body:
            self.send_body(name, body[start:], start)

    def send_body(self, name, body, start):
        """The body, or what is left of it by the fault."""
        type(self).downloads += 1
        fault = self.fault if name == "model.safetensors" else None
        if fault is None:
            self.ranges += [start] if start else []
            self.wfile.write(body)
            return
        if not start:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
        if fault == "stalls":
            time.sleep(0.6)  # longer than the client waits
        elif fault == "breaks off once":
            type(self).fault = None
        self.close_connection = True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with the files of a small network, and an empty cache."""
    library = pytest.importorskip("huggingface_hub")
    model = vgg("A", num_classes=3, image_size=32)
    monkeypatch.setitem(ARCHITECTURES, "vgg11", ("vgg", {"config": "A", "image_size": 32}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    describe(tmp_path / "config.json", architecture="vgg11", num_classes=3)
    files = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")}
    monkeypatch.setattr(Hub, "files", files)
    monkeypatch.setattr(Hub, "checksums", {name: hashlib.sha256(body).hexdigest() for name, body in files.items()})
    for name, value in (("downloads", 0), ("fault", None), ("ranges", [])):
        monkeypatch.setattr(Hub, name, value)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    download = functools.partial(
        library.hf_hub_download, endpoint=f"http://127.0.0.1:{server.server_port}", cache_dir=tmp_path / "cache"
    )
    monkeypatch.setattr(library, "hf_hub_download", download)
    monkeypatch.setattr(library.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT":  # 10 seconds
        monkeypatch.setattr(library.constants, name, 0.3)
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.6)))  # up to 8 seconds before it tries again
    yield model, server, tmp_path / "cache"
    server.shutdown()
    server.server_close()


def test_a_network_of_the_hub_is_downloaded_once(hub):
    model, server, _ = hub
    for _ in range(2):
        again, config = load_network("hf:timm/vgg11.tv_in1k")
        np.testing.assert_array_equal(logits(again), logits(model))
    assert Hub.downloads == 2 and len(config.names) == 3
    server.shutdown()
    server.server_close()
    np.testing.assert_array_equal(logits(load_network("hf:timm/vgg11.tv_in1k")[0]), logits(model))  # from the cache


def test_a_network_that_the_hub_does_not_have_is_an_error(hub):
    with pytest.raises(
        ValueError, match=r"^hf:nobody/nothing: model\.safetensors could not be fetched \(RepositoryNotFoundError: "
    ):
        load_network("hf:nobody/nothing")
    for name in ("a/b/c", "", "../../etc"):
        with pytest.raises(ValueError, match=f"^load_network: expected hf:OWNER/NAME, got hf:{re.escape(name)}$"):
            load_network(f"hf:{name}")


def test_without_a_network_the_error_says_what_to_bring_and_where(hub):
    _, server, cache = hub
    server.shutdown()
    server.server_close()
    with pytest.raises(
        ValueError, match=r"bring model\.safetensors and config\.json of https://.*/timm/vgg11 into a folder"
    ):
        load_network("hf:timm/vgg11")
    assert not list(cache.rglob("*.safetensors"))


def test_a_download_that_breaks_off_is_resumed(hub):
    model, _, _ = hub
    Hub.fault = "breaks off once"
    np.testing.assert_array_equal(logits(load_network("hf:timm/vgg11")[0]), logits(model))
    (begin,) = Hub.ranges
    assert 0 < begin <= len(Hub.files["model.safetensors"]) // 2


@pytest.mark.parametrize("fault", ["silent", "stalls", "breaks off"])
def test_what_is_not_whole_is_an_error_and_is_not_kept(hub, fault):
    model, _, cache = hub
    Hub.fault = fault
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"model\.safetensors could not be fetched .*bring model\.safetensors and"):
        load_network("hf:timm/vgg11")
    assert time.monotonic() - begin < 60
    assert not list(cache.rglob("*.safetensors"))
    Hub.fault = None
    np.testing.assert_array_equal(logits(load_network("hf:timm/vgg11")[0]), logits(model))


@pytest.mark.parametrize("damage", ["another byte", "another size"])
def test_a_file_with_another_content_than_announced_is_removed(hub, damage):
    model, _, cache = hub
    whole = Hub.files["model.safetensors"]
    Hub.files["model.safetensors"] = whole[:-1] + b"x" if damage == "another byte" else whole[:1000]
    for _ in range(2):  # it is not kept
        with pytest.raises(ValueError, match=r"model\.safetensors could not be fetched \(OSError: SHA-256 expected "):
            load_network("hf:timm/vgg11")
        assert not list(cache.rglob("*.safetensors"))
    Hub.files["model.safetensors"] = whole
    np.testing.assert_array_equal(logits(load_network("hf:timm/vgg11")[0]), logits(model))


def test_a_damaged_file_of_the_hub_is_an_error_with_its_name(hub):
    """Damaged when it was put there, so that its checksum is right."""
    damaged = Hub.files["model.safetensors"][:1000]
    Hub.files["model.safetensors"], Hub.checksums["model.safetensors"] = damaged, hashlib.sha256(damaged).hexdigest()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_network("hf:timm/vgg11")


def test_the_folder_that_is_brought_by_hand_works(hub, tmp_path):
    model, _, _ = hub
    folder = tmp_path / "by_hand"
    folder.mkdir()
    for name in "model.safetensors", "config.json":
        shutil.copy(tmp_path / name, folder)
    np.testing.assert_array_equal(logits(load_network(folder)[0]), logits(model))
