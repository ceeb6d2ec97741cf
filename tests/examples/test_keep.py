"""The checkpoints that a run keeps, what it does when one is damaged, and what it says about a disk that is full."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest
import speedrun_cifar10
import train_cifar_resnet
from common.folder import RunFolder
from common.imagenet import describe_files
from models.weights import find_weights
from safetensors.numpy import load_file, save_file

from minidl.data import ImageFolder
from minidl.nn import Linear
from minidl.system import files
from minidl.training.checkpoint import read_checkpoint
from tests.examples.test_run import small_run, train
from tests.examples.tools import assert_same_run, metrics, shapes, signal_after


def step_of(path):
    return read_checkpoint(path)[1]["progress"]["step"]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")


@pytest.fixture
def errors_are(monkeypatch):
    """errors_are(a, b, ...): the test errors that train_cifar_resnet.py measures, in place of the real ones."""

    def errors_are(*errors):
        rest = iter(errors)
        monkeypatch.setattr(train_cifar_resnet, "error_rate", lambda *_: next(rest))

    return errors_are


# -- which are kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "expected"),
    [([], ["step-6", "step-8"]), (["--keep", 1], []), (["--keep", 3], ["step-4", "step-6", "step-8"])],
    ids=["default", "1", "3"],
)
def test_the_last_checkpoints_and_the_best_are_kept(resnet, tmp_path, errors_are, keep, expected):
    """The best is the first with the lowest test error: after step 4 of 8."""
    errors_are(0.5, 0.3, 0.4, 0.3)
    assert resnet("--epochs", 4, *keep, "--out", tmp_path)[0] == 0
    assert names(tmp_path) == [
        "best.safetensors",
        "checkpoint.safetensors",
        *(f"{name}.safetensors" for name in expected),
    ]
    assert step_of(tmp_path / "best.safetensors") == 4
    assert step_of(tmp_path / "checkpoint.safetensors") == 8
    for name in expected:
        assert step_of(tmp_path / f"{name}.safetensors") == int(name[5:])


def test_a_checkpoint_with_three_names_is_on_the_disk_once(resnet, tmp_path):
    resnet("--epochs", 1, "--out", tmp_path)
    inodes = {(tmp_path / name).stat().st_ino for name in names(tmp_path)}
    assert len(names(tmp_path)) == 3 and len(inodes) == 1


def test_a_file_system_without_hard_links_gets_copies(resnet, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    assert resnet("--epochs", 2, "--out", tmp_path)[0] == 0
    assert [step_of(tmp_path / f"step-{step}.safetensors") for step in (2, 4)] == [2, 4]
    assert not list(tmp_path.glob("*.part"))


def test_what_cannot_be_kept_is_a_warning(resnet, tmp_path):
    (tmp_path / "step-2.safetensors").mkdir(parents=True)
    status, output = resnet("--epochs", 1, "--out", tmp_path)
    assert status == 0
    assert f"warning: could not keep {tmp_path / 'checkpoint.safetensors'} under another name" in output


def test_other_files_of_the_folder_stay(resnet, tmp_path):
    ours = "step-.safetensors", "step-1.safetensors.bak", "my-step-1.safetensors", "step-x.safetensors"
    for name in ours:
        (tmp_path / name).write_text("keep")
    resnet("--epochs", 3, "--out", tmp_path)
    assert all((tmp_path / name).read_text() == "keep" for name in ours)


def test_the_speedrun_keeps_as_many_as_it_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        speedrun_cifar10, "load_data", lambda args, kind: kind(*(getattr(shapes(), s) for s in ("train", "test")))
    )
    monkeypatch.setattr(speedrun_cifar10, "error_of_views", lambda *_: 0.5)
    options = ["--dataset", "shapes", "--batch-size", 20, "--epochs", 3, "--keep", 3]
    assert run(speedrun_cifar10, *options, "--out", tmp_path)[0] == 0
    expected = ["best", "checkpoint", "step-2", "step-4", "step-6"]
    assert names(tmp_path / "seed0") == [f"{name}.safetensors" for name in expected]


@pytest.mark.parametrize("left", ["step-4", "best", "average"])
def test_a_new_run_does_not_replace_the_files_of_an_earlier_one(resnet, tmp_path, left):
    """Its checkpoint was moved away, such as after damage: the others are all that is left."""
    resnet("--epochs", 3, "--ema", 0.5, "--out", tmp_path)
    for name in names(tmp_path):
        if name != f"{left}.safetensors":
            (tmp_path / name).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    status, output = resnet("--epochs", 1, "--out", tmp_path)
    assert status == 2
    path = tmp_path / f"{left}.safetensors"
    assert f"{path} is of an earlier run, which has no checkpoint.safetensors; choose another --out" in output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_best_is_the_network_that_was_tested(resnet, tmp_path, errors_are):
    """With --ema that is the moving average."""
    errors_are(0.5, 0.3)
    resnet("--epochs", 2, "--ema", 0.5, "--out", tmp_path)
    average = (tmp_path / "average.safetensors").read_bytes()
    assert (tmp_path / "best.safetensors").read_bytes() == average
    assert find_weights(tmp_path) == tmp_path / "average.safetensors"
    errors_are(0.5, 0.3, 0.4)
    resnet("--epochs", 3, "--ema", 0.5, "--out", tmp_path / "longer")
    longer = tmp_path / "longer"
    assert (longer / "best.safetensors").read_bytes() != (longer / "average.safetensors").read_bytes()


def test_the_best_is_known_without_the_metrics(resnet, tmp_path, errors_are):
    errors_are(0.5, 0.1)
    with signal_after(5):
        resnet("--epochs", 4, "--out", tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    errors_are(0.4, 0.3)
    assert resnet("--epochs", 4, "--out", tmp_path, "--resume")[0] == 0
    assert step_of(tmp_path / "best.safetensors") == 4


def test_a_kill_between_a_checkpoint_and_its_average_is_made_good(resnet, tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit("killed")

    resnet("--epochs", 1, "--ema", 0.5, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_save_average", die)
        assert resnet("--epochs", 1, "--ema", 0.5, "--out", tmp_path / "parts")[0] == "killed"
    assert resnet("--epochs", 1, "--ema", 0.5, "--out", tmp_path / "parts", "--resume")[0] == 0
    ours, theirs = (load_file(folder / "average.safetensors") for folder in (tmp_path / "parts", tmp_path))
    assert all((array == theirs[name]).all() for name, array in ours.items())


# -- a damaged checkpoint ----------------------------------------------------------------------------------------------


def test_after_damage_the_run_goes_on_from_the_checkpoint_before_with_the_same_bits(resnet, tmp_path):
    """The command is the one that the message gives."""
    resnet("--epochs", 4, "--out", tmp_path / "whole")
    resnet("--epochs", 4, "--out", tmp_path / "damaged")
    checkpoint = tmp_path / "damaged" / "checkpoint.safetensors"
    with checkpoint.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    status, _ = resnet("--epochs", 4, "--out", tmp_path / "damaged", "--resume")
    assert status.startswith(f"error: --resume: load_checkpoint: {checkpoint} is damaged (")
    assert "\n" not in status
    command = status.rpartition(": ")[2]
    assert command == f"mv {tmp_path / 'damaged' / 'step-6.safetensors'} {checkpoint}"
    subprocess.run(command.split(), check=True)
    assert step_of(checkpoint) == 6
    assert resnet("--epochs", 4, "--out", tmp_path / "damaged", "--resume")[0] == 0
    assert_same_run(tmp_path / "damaged", tmp_path / "whole")
    assert names(tmp_path / "damaged") == names(tmp_path / "whole")
    assert step_of(tmp_path / "damaged" / "best.safetensors") == step_of(tmp_path / "whole" / "best.safetensors")


def test_damage_with_nothing_kept_says_so(resnet, tmp_path):
    resnet("--epochs", 1, "--keep", 1, "--out", tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    status, _ = resnet("--epochs", 1, "--out", tmp_path, "--resume")
    assert status.endswith(f"or start anew with another --out (none was kept in {tmp_path}: see --keep)")


def test_a_kill_between_a_checkpoint_and_its_other_names_is_made_good(resnet, tmp_path, monkeypatch):
    resnet("--epochs", 3, "--out", tmp_path / "whole")

    def die(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr("common.folder.link_whole", die)
        assert resnet("--epochs", 3, "--out", tmp_path / "parts")[0] == "killed"
    assert names(tmp_path / "parts") == ["checkpoint.safetensors"]
    assert resnet("--epochs", 3, "--out", tmp_path / "parts", "--resume")[0] == 0
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    best = [load_file(tmp_path / name / "best.safetensors") for name in ("whole", "parts")]
    assert all((array == best[1][name]).all() for name, array in best[0].items())


# -- other data --------------------------------------------------------------------------------------------------------


def change_pixel(data):
    data.train.images[3, 5, 5, 0] ^= 1


def change_label(data):
    data.train.labels[3] = (data.train.labels[3] + 1) % 10


def change_test_image(data):
    data.test.images[-1, -1, -1, -1] ^= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [(change_pixel, "training images"), (change_label, "training images"), (change_test_image, "test images")],
)
def test_a_run_does_not_go_on_with_other_images(resnet, copy_of_begun, monkeypatch, change, named):
    data = shapes()
    change(data)
    monkeypatch.setattr(train_cifar_resnet, "load_data", lambda args: data)
    checkpoint = copy_of_begun / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    status, _ = resnet("--epochs", 1, "--out", copy_of_begun, "--resume")
    assert status.startswith(f"error: {checkpoint}: the data are not those that the run was started with ({named}: ")
    assert status.count(" with SHA-256 ") == 2
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_does_not_describe_its_data_goes_on(resnet, copy_of_begun):
    arrays, old = read_checkpoint(copy_of_begun / "checkpoint.safetensors")
    assert set(old.pop("data")) == {"training images", "test images"}
    save_file(arrays, copy_of_begun / "checkpoint.safetensors", metadata={"counters": json.dumps(old)})
    assert resnet("--epochs", 1, "--out", copy_of_begun, "--resume")[0] == 0


@pytest.fixture
def photographs(tmp_path):
    """Three files in each of two classes. They are not read."""
    for wnid in ("n01", "n02"):
        (tmp_path / "photographs" / wnid).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photographs" / wnid / f"{number}.jpeg").write_bytes(b"." * (10 + number))
    return tmp_path / "photographs"


def add(folder):
    (folder / "n01" / "7.jpeg").write_bytes(b"")


def remove(folder):
    (folder / "n02" / "1.jpeg").unlink()


def rename(folder):
    (folder / "n01" / "0.jpeg").rename(folder / "n01" / "00.jpeg")


def enlarge(folder):
    (folder / "n01" / "0.jpeg").write_bytes(b"." * 99)


def move(folder):
    (folder / "n01" / "2.jpeg").rename(folder / "n02" / "3.jpeg")


@pytest.mark.parametrize("change", [add, remove, rename, enlarge, move])
def test_photographs_are_described_by_their_names_and_sizes(photographs, change):
    before = describe_files(ImageFolder(photographs))
    change(photographs)
    assert describe_files(ImageFolder(photographs)) != before


def test_a_copy_of_the_photographs_has_the_same_description(photographs, tmp_path, monkeypatch):
    shutil.copytree(photographs, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "n01" / "0.jpeg", (0, 0))
    description = describe_files(ImageFolder(photographs))
    assert description.startswith("6 with SHA-256 ")
    assert describe_files(ImageFolder(tmp_path / "copy")) == description
    monkeypatch.chdir(tmp_path)
    assert describe_files(ImageFolder("copy/")) == description


# -- a full disk, and one that cannot be written to --------------------------------------------------------------------


def can_mount():
    """Whether this process may mount file systems, as root may."""
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return done.returncode == 0


def fails(name, code):
    """A context in which a function of the system fails, as on a full disk."""

    @contextlib.contextmanager
    def failing(folder):
        def fail(*_):
            raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, name, fail)
            yield

    return failing


@contextlib.contextmanager
def no_more_bytes(folder):
    """As `ulimit -f` makes it: a real file of which only a part can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full(folder):
    """The file system of the folder, a small one, has no byte left."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    (folder / "ballast").unlink()


@contextlib.contextmanager
def read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


DISKS = {
    "fsync fails": (fails("fsync", errno.ENOSPC), "No space left on device"),
    "ulimit": (no_more_bytes, "File too large"),
}
MOUNTED = {"full": (full, "No space left on device"), "read-only": (read_only, "Read-only file system")}
if can_mount():
    DISKS |= MOUNTED


@pytest.fixture
def small_disk(request, tmp_path):
    """A folder of 128 KB on a file system of its own where the test needs one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.node.callspec.params["disk"] not in MOUNTED:
        yield disk
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def run_on(disk, resume=False):
    """A run of four steps, whose checkpoints of 15 KB are saved after every second one."""
    run = small_run(disk, resume)
    run.model.ballast = Linear(60, 60)
    return run


@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_does_not_take_a_checkpoint_is_one_line_and_the_older_one_stays(small_disk, capsys, disk):
    """It fails for the second checkpoint. When it works again the run goes on."""
    failing, reason = DISKS[disk]
    checkpoint, run = small_disk / "checkpoint.safetensors", run_on(small_disk)
    with contextlib.ExitStack() as stack, pytest.raises(SystemExit) as end:
        train(run, lambda: run.step == 4 and stack.enter_context(failing(small_disk)))
    assert end.value.code == f"error: could not write {checkpoint} ({reason}); the last good checkpoint is {checkpoint}"
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line for line in lines if line.strip() and "steps [" not in line] == []
    assert step_of(checkpoint) == 2
    assert [record["step"] for record in metrics(small_disk)] in ([2], [2, 4])
    assert not list(small_disk.glob("*.part"))
    train(run_on(small_disk, resume=True))
    assert step_of(checkpoint) == 4
    assert [record["step"] for record in metrics(small_disk)] == [2, 4]


def test_a_folder_on_a_full_disk_is_named_before_any_training(resnet, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.folder._lock", fail)
    status, output = resnet("--out", tmp_path / "run")
    message = f"--out: cannot write to {tmp_path / 'run'} (No space left on device); choose another --out"
    assert status == 2 and message in output
    assert "%|" not in output and not np.any([*tmp_path.iterdir()])
