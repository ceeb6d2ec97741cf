"""Scripts in this process, with few images."""

import degradation
import pytest
import train_cifar_resnet
import train_cifar_vgg
import transfer

from tests.examples.tools import run_main, shapes


@pytest.fixture
def run(monkeypatch, capsys):
    """run(script, *options): (exit status or message, stdout and stderr), with few shapes as data."""
    for script in (train_cifar_resnet, train_cifar_vgg, degradation, transfer):
        monkeypatch.setattr(script, "load_data", shapes)

    def run(script, *options):
        status, output, errors = run_main(script, options, capsys)
        assert "Traceback" not in errors
        return status, output + errors

    return run


@pytest.fixture
def resnet(run):
    """Runs train_cifar_resnet.py, with epochs of two steps."""
    return lambda *options: run(train_cifar_resnet, "--depth", 8, "--batch-size", 20, *options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run of one epoch, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar_resnet, "load_data", shapes)
        patch.setattr("sys.argv", ["", "--depth", "8", "--batch-size", "20", "--epochs", "1", "--out", str(folder)])
        train_cifar_resnet.main()
    return folder


@pytest.fixture
def copy_of_begun(begun, tmp_path):
    """A copy of that folder."""
    for path in begun.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path
