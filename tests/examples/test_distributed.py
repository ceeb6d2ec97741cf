"""The training scripts on several ranks: the same training as in one process, and errors that say what is wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from common.fit import classification_step
from common.mixup import MixedBatches, random_mixup
from common.ranks import Ranks
from common.run import Run
from common.stop import StopRequest
from PIL import Image
from safetensors.numpy import load_file

import minidl
from minidl import Tensor, nn
from minidl.data.loader import part_of
from minidl.distributed import SingleProcess
from minidl.optim import SGD
from minidl.training.checkpoint import read_checkpoint
from tests.distributed.ranks import MPIEXEC, environment, needs_mpi, on_threads
from tests.examples.tools import ROOT, assert_same_run, command, metrics, shapes

CIFAR = command("train_cifar_resnet.py")
# Two epochs of 16, 16 and 2 images: with three ranks, one has no image of the last batch. The network has batch-norm
# and dropout.
SHORT = ["--model", "dropout-shortcut-8", "--limit-train", 34, "--limit-test", 10, "--batch-size", 16, "--lr", 0.002]
SHORT += ["--mixup", 1, "--cutout", 8, "--ema", 0.5, "--epochs", 2, "--sync-batch-norm"]

# train_cifar_resnet.py, in which rank RANK sends itself SIGNAL when it has logged step STEP.
SIGNALLED = """
import os, signal, sys
from common.run import Run
import train_cifar_resnet

rank, step, number = (int(sys.argv.pop(1)) for _ in range(3))
log = Run.log

def log_and_signal(run, *arguments):
    log(run, *arguments)
    if (run.ranks.rank, run.step) == (rank, step):
        os.kill(os.getpid(), number)

Run.log = log_and_signal
train_cifar_resnet.main()
"""

# train_cifar_resnet.py, in which rank 1 has another label of a training image.
OTHER_DATA = """
import os, train_cifar_resnet
load_data = train_cifar_resnet.load_data

def other_data(args):
    data = load_data(args)
    data.train.labels[0] ^= int(os.environ["PMI_RANK"])
    return data

train_cifar_resnet.load_data = other_data
train_cifar_resnet.main()
"""

NO_MPI4PY = """
import importlib.util, train_cifar_resnet
importlib.util.find_spec = lambda name: None
train_cifar_resnet.main()
"""


def ranks(size, *line):
    """A command line on that many ranks."""
    return [MPIEXEC, "-n", size, *line, "--distributed"]


def script(code):
    return [sys.executable, "-c", code]


def start(line, **env):
    path = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    env = environment() | {"PYTHONPATH": path} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(part) for part in line], env=env, cwd=ROOT, **pipes)


def run(line, **env):
    """Exit status, output and errors of a command that ends within 30 s, by itself."""
    with start(line, **env) as process:
        try:
            output, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, output, errors


def train(folder, size, *options, code=None):
    line = [*(CIFAR if code is None else script(code)), *options, *SHORT, "--out", folder]
    return run(line if size is None else ranks(size, *line))


def assert_same_training(folder, other, tolerance):
    """The same parameters, running statistics, velocities, losses and errors. The tolerance is relative to the norm."""
    arrays, others = load_file(folder / "checkpoint.safetensors"), load_file(other / "checkpoint.safetensors")
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        difference = np.linalg.norm(array.astype(np.float64) - others[name])
        assert difference <= tolerance * np.linalg.norm(others[name].astype(np.float64)), name
    for ours, theirs in zip(metrics(folder), metrics(other), strict=True):
        names = [name for name, value in theirs.items() if isinstance(value, float) and name != "seconds"]
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-5)


# -- the same training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    status, _, errors = train(folder, None)
    assert status == 0, errors
    return folder


@needs_mpi
@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_trains_like_one_process_and_rank_0_alone_prints(alone, tmp_path, size):
    status, output, errors = train(tmp_path, size)
    assert status == 0, errors
    assert_same_training(tmp_path, alone, 1e-5)
    assert output.count("test error of dropout-shortcut-8") == 1
    assert output.count("epoch   1") == 1
    assert errors.count(" 0/6 steps") == 1  # one progress bar
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in alone.iterdir())


@needs_mpi
def test_a_job_whose_rank_is_killed_ends_with_its_name_and_goes_on_with_other_ranks(alone, tmp_path):
    began = time.monotonic()
    status, _, errors = train(tmp_path, 2, 1, 5, int(signal.SIGKILL), code=SIGNALLED)
    assert status != 0 and time.monotonic() - began < 30
    assert re.search(r"rank 1 of 2, process \d+, was killed \(SIGKILL\); the job ends", errors)
    assert read_checkpoint(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == 3  # of the first epoch
    status, _, errors = train(tmp_path, 3, "--resume")
    assert status == 0, errors
    assert_same_training(tmp_path, alone, 1e-5)


@needs_mpi
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_one_process_goes_on(alone, tmp_path):
    status, output, errors = train(tmp_path, 3, 2, 4, int(signal.SIGTERM), code=SIGNALLED)
    assert "stopped after step 4; checkpoint saved." in output, errors
    assert status == 128 + signal.SIGTERM
    assert not (tmp_path / "lock").exists()
    status, _, errors = train(tmp_path, None, "--resume")
    assert status == 0, errors
    assert_same_training(tmp_path, alone, 1e-5)


@needs_mpi
def test_with_batch_norm_per_rank_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path):
    """The ranks have other running statistics, of which those of rank 0 are tested and saved."""
    options = ["--depth", 8, "--limit-train", 34, "--limit-test", 10, "--batch-size", 16, "--epochs", 2]
    status, _, errors = run(ranks(3, *CIFAR, *options, "--out", tmp_path / "whole"))
    assert status == 0, errors
    parts = [*options, "--out", tmp_path / "parts"]
    status, output, _ = run(ranks(3, *script(SIGNALLED), 1, 4, int(signal.SIGTERM), *parts))
    assert "stopped after step 4" in output
    status, _, errors = run(ranks(3, *CIFAR, *parts, "--resume"))
    assert status == 0, errors
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@needs_mpi
def test_ctrl_c_saves_once(tmp_path):
    """mpiexec passes the signal to each rank twice."""
    options = ["--depth", 8, "--limit-train", 32, "--limit-test", 10, "--batch-size", 16, "--epochs", 100_000]
    with start(ranks(2, *CIFAR, *options, "--out", tmp_path)) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "checkpoint.safetensors").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    (step,) = re.findall(r"stopped after step ([\d,]+); checkpoint saved", output)
    step = int(step.replace(",", ""))
    assert read_checkpoint(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == step


@needs_mpi
def test_the_speedrun_trains_like_one_process(tmp_path):
    """But for ties of max-pooling, which rounding decides. The first bias is frozen after three epochs."""
    options = ["--dataset", "shapes", "--limit-train", 16, "--limit-test", 10, "--batch-size", 8, "--epochs", 4]
    line = [*command("speedrun_cifar10.py"), *options, "--sync-batch-norm", "--out"]
    for name, size in (("alone", None), ("ranks", 3)):
        status, _, errors = run([*line, tmp_path / name] if size is None else ranks(size, *line, tmp_path / name))
        assert status == 0, errors
    assert_same_training(tmp_path / "ranks" / "seed0", tmp_path / "alone" / "seed0", 1e-2)


@pytest.fixture
def photographs(tmp_path):
    """11 photographs of two classes, of which 3 are to validate with."""
    rng, folder = np.random.default_rng(0), tmp_path / "photographs"
    for split, count in (("train", 4), ("val", 2)):
        for name in ("n01", "n02"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count - (split == "val" and name == "n02")):
                image = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{number}.png")
    return folder


@needs_mpi
def test_imagenet_trains_like_one_process(photographs, tmp_path):
    """Rank 0 measures the mean image, which the others read."""
    options = ["--data", photographs, "--model", "resnet18", "--size", 64, "--sides", 70, "--batch-size", 5]
    options += ["--epochs", 1, "--lr", 0.001, "--threads", 1, "--sync-batch-norm"]
    for name, size in (("alone", None), ("ranks", 2)):
        line = [*command("train_imagenet.py"), *options, "--statistics", tmp_path / f"{name}.npz"]
        line = [*line, "--out", tmp_path / name]
        status, _, errors = run(line if size is None else ranks(size, *line))
        assert status == 0, errors
    assert_same_training(tmp_path / "ranks", tmp_path / "alone", 1e-4)


# -- what is wrong is said ---------------------------------------------------------------------------------------------

TINY = ["--depth", 8, "--limit-train", 16, "--limit-test", 10, "--batch-size", 8, "--epochs", 1]
TINY_CIFAR = [*CIFAR, *TINY]


def test_without_mpiexec_or_mpi_the_error_says_what_to_do(tmp_path):
    line = [*TINY_CIFAR, "--out", tmp_path / "run"]
    for env, distributed, message in [
        ({}, True, "expected processes that mpiexec started, got a single one without it; launch with mpiexec -n 4"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True, "srun started 4 processes, .* pass --mpi=pmi2 to srun, or launch inside"),
        ({"PMI_SIZE": "4"}, False, "mpiexec started 4 processes, each of which would train alone; pass --distributed"),
    ]:
        status, _, errors = run([*line, "--distributed"] if distributed else line, **env)
        assert status == 1
        assert re.fullmatch(rf"error: .*{message}.*\n", errors), errors
    line = [*script(NO_MPI4PY), *TINY, "--out", tmp_path / "run", "--distributed"]
    status, _, errors = run(line, PMI_SIZE="2")
    assert (status, errors.count("\n")) == (1, 1)
    assert 'several processes need mpi4py: pip install "minidl[mpi]"' in errors
    assert not (tmp_path / "run").exists()


@needs_mpi
def test_the_mpiexec_of_another_library_is_one_line(tmp_path):
    status, _, errors = run([*TINY_CIFAR, "--out", tmp_path, "--distributed"], OMPI_COMM_WORLD_SIZE="3")
    assert status == 1
    assert re.search(r"^error: .*mpiexec started 3 processes, but each sees 1: it is not the mpiexec of", errors, re.M)


@needs_mpi
@pytest.mark.parametrize(
    ("size", "line", "message"),
    [
        (
            3,
            [*TINY_CIFAR, "--limit-train", 2],
            "error: --distributed: expected batches of at least 3 images, .* got 2;",
        ),
        (
            2,
            [*TINY_CIFAR, "--device", "cuda"],
            r'several GPUs need NCCL: pip install "minidl\[nccl\]"|CuPy finds no GPU',
        ),
        (2, [*TINY_CIFAR, "--device", "cuda:0"], "each rank takes its own GPU; expected --device cuda, got cuda:0"),
        (2, [*TINY_CIFAR, "--lr", 1e30], r"rank \d of 2 ends the job: error: the loss is .*; try a lower --lr"),
        (2, [*TINY_CIFAR, "--dataset", "cifar10", "--data-dir", "FILE"], r"rank \d of 2 ends the job: error: .*FILE"),
        (2, [*script(OTHER_DATA), *TINY], "expected the same data on every rank, got rank 0: .*; rank 1: "),
    ],
    ids=["images", "NCCL", "GPU", "NaN", "no data", "other data"],
)
def test_what_is_wrong_ends_the_job_in_one_line(size, line, message, tmp_path):
    (tmp_path / "FILE").write_text("no folder")
    line = [tmp_path / "FILE" if part == "FILE" else part for part in line]
    status, _, errors = run(ranks(size, *line, "--out", tmp_path / "run"))
    assert status != 0
    assert re.search(message, errors), errors
    assert "Traceback" not in errors


@needs_mpi
def test_ranks_with_other_options_or_scripts_are_named(tmp_path):
    line = [*TINY_CIFAR, "--out", tmp_path / "run", "--distributed"]
    status, _, errors = run([MPIEXEC, "-n", 2, *line, ":", "-n", 1, *line, "--lr", 0.3])
    assert status != 0
    assert re.search(r"the same --lr on every rank, got ranks 0 and 1: digest \w+; rank 2: digest", errors), errors
    other = shutil.copytree(ROOT / "examples", tmp_path / "other", ignore=shutil.ignore_patterns("__pycache__"))
    mixup = other / "common" / "mixup.py"
    mixup.write_text(mixup.read_text() + "# another line\n")
    line[1] = other / "train_cifar_resnet.py"
    status, _, errors = run([MPIEXEC, "-n", 1, *TINY_CIFAR, "--distributed", ":", "-n", 1, *line])
    assert status != 0
    assert re.search("the same code of the scripts on every rank, got rank 0: .*; rank 1: ", errors), errors


def test_sync_batch_norm_has_no_parts(photographs, tmp_path):
    options = ["--data", photographs, "--model", "resnet18", "--micro-batch", 2, "--sync-batch-norm"]
    status, _, errors = run([*command("train_imagenet.py"), *options, "--out", tmp_path / "run"])
    assert status == 2
    assert "--sync-batch-norm takes statistics over the whole batch; omit it, or --micro-batch" in errors


def test_a_signal_while_the_ranks_ask_each_other_keeps_its_exit_status():
    class Signalled(SingleProcess):
        size, arrived = 2, False

        def all_reduce(self, array):
            if not self.arrived:
                self.arrived = True
                os.kill(os.getpid(), signal.SIGTERM)

    run = Run.__new__(Run)
    run.ranks = Ranks(Signalled())
    with StopRequest(second_ends=False) as run._stop:
        assert run._asked_to_stop() == (0, 0)  # the exchange had begun
        assert run._asked_to_stop() == (1, 143)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_mixed_batch_are_those_of_the_whole(device):
    """Also from the middle of an epoch, and where a part is empty."""
    data = shapes(type("Options", (), {"device": device}))
    loader = MixedBatches(data.train_loader(19, seed=3), alpha=1.0, seed=3)
    assert len(loader) == 3
    parts = [MixedBatches(data.train_loader(19, seed=3), 1.0, 3).shard(rank, 3) for rank in range(3)]
    for loop in (loader, *parts):
        loop.load_state_dict({"epoch": 1, "batch": 1})
    rows = []
    for whole, *together in zip(loader, *parts, strict=True):
        for number in range(3):
            joined = np.concatenate([part[number].numpy() for part in together])
            np.testing.assert_array_equal(joined, whole[number].numpy())
        assert {part[3].item() for part in together} == {whole[3].item()}
        rows.append([part.first_row for part in parts])
    assert rows == [[0, 7, 13], [0, 1, 2]]


def test_mixed_batches_are_drawn_by_the_number_of_the_step():
    """So that a run of an older version is resumed with the same draws."""
    data = shapes()
    loader = MixedBatches(data.train_loader(20, seed=1), alpha=0.5, seed=1)
    batches = data.train_loader(20, seed=1)
    for step, (mixed, (images, labels)) in enumerate(zip(loader, batches, strict=True)):
        expected = random_mixup(images, labels, 0.5, 1, step)
        for ours, theirs in zip(mixed, expected, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_ranks_that_compute_in_parts_make_the_step_of_the_whole_batch(rng):
    """Nine images: three parts on the first rank, two on the second."""
    images, labels = Tensor(rng.standard_normal((9, 5, 5, 3))), Tensor(rng.integers(0, 4, 9))

    def trained(communicator, micro_batch):
        minidl.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(4, 4)).to("float64")
        ranks, part = Ranks(communicator), part_of(9, communicator.rank, communicator.size)
        ranks.attach(model)
        place = SimpleNamespace(first_row=part.start)  # of a loader

        def average(backwards):
            return ranks.average(part.stop - part.start, place, backwards)

        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        step = classification_step(model, optimizer, micro_batch, average_gradients=average)
        for _ in range(2):
            step(images[part], labels[part])
        return [parameter.numpy() for parameter in model.parameters()]

    expected = trained(SingleProcess(), None)
    for parameters in on_threads(2, lambda communicator: trained(communicator, 2)):
        for parameter, other in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter, other, rtol=1e-12, atol=1e-14)
