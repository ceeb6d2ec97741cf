"""`--log tensorboard`, read by TensorBoard itself."""

import contextlib
import sys

import pytest
import train_cifar_resnet
from common.folder import RunFolder
from common.tensorboard import TensorBoardLog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.examples.tools import metrics, run_main, shapes, signal_after

OPTIONS = "--depth", 8, "--batch-size", 10, "--iterations", 12, "--log", "tensorboard"  # three epochs of four steps


def scalars(folder):
    """{tag: [(step, value), ...]} as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(folder):
    """The numbers of metrics.jsonl, which TensorBoard rounds to float32."""
    records = metrics(folder)
    names = [name for name, value in records[0].items() if name != "step" and not isinstance(value, str)]
    return {name: [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in records] for name in names}


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(train_cifar_resnet, "load_data", shapes)


def test_tensorboard_shows_what_metrics_jsonl_says(tmp_path, capsys):
    assert run_main(train_cifar_resnet, [*OPTIONS, "--out", tmp_path], capsys)[0] == 0
    found = scalars(tmp_path)
    assert found.keys() == {"epoch", "lr", "train_loss", "train_error", "test_error", "seconds"}
    assert [step for step, _ in found["train_loss"]] == [4, 8, 12]
    assert found == expected(tmp_path)


def test_a_resumed_run_has_each_point_once(tmp_path, capsys):
    with signal_after(9):
        run_main(train_cifar_resnet, [*OPTIONS, "--out", tmp_path], capsys)
    assert [step for step, _ in scalars(tmp_path)["lr"]] == [4, 8]
    assert run_main(train_cifar_resnet, [*OPTIONS, "--out", tmp_path, "--resume"], capsys)[0] == 0
    assert [step for step, _ in scalars(tmp_path)["lr"]] == [4, 8, 12]
    assert scalars(tmp_path) == expected(tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_run_may_begin_to_log_when_it_is_resumed(tmp_path, capsys):
    with signal_after(5):
        run_main(train_cifar_resnet, [*OPTIONS[:-2], "--out", tmp_path], capsys)
    assert not (tmp_path / "tensorboard").exists()
    assert run_main(train_cifar_resnet, [*OPTIONS, "--out", tmp_path, "--resume"], capsys)[0] == 0
    assert scalars(tmp_path) == expected(tmp_path)


def test_what_is_no_number_is_left_out(tmp_path):
    with contextlib.closing(TensorBoardLog(tmp_path / "tensorboard")) as log:
        log.write([{"step": 3, "lr": 0.5, "split": "test", "gradients": [1.0, 2.0]}])
    assert scalars(tmp_path) == {"lr": [(3, 0.5)]}


def test_each_record_is_there_as_soon_as_it_is_written(tmp_path):
    with contextlib.closing(TensorBoardLog(tmp_path / "tensorboard")) as log:
        records = [{"step": 1, "lr": 0.5}]
        log.write(records)
        assert scalars(tmp_path) == {"lr": [(1, 0.5)]}
        log.write([*records, {"step": 2, "lr": 0.25}])
        assert scalars(tmp_path) == {"lr": [(1, 0.5), (2, 0.25)]}


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r'--log tensorboard needs tensorboardX: pip install "minidl\[tensorboard\]"'):
        RunFolder(tmp_path / "run", False, {}, log_to="tensorboard")
    assert not (tmp_path / "run").exists()
    RunFolder(tmp_path / "run", False, {})
