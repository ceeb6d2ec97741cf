"""Checkpoints: whole or not there, readable by others, and enough to go on with the same bits."""

import numpy as np
import pytest
import safetensors.numpy

import minidl
from minidl import Tensor, load_checkpoint, nn, save_checkpoint
from minidl.checkpoint import read_checkpoint
from minidl.files import write_whole
from minidl.functional import cross_entropy
from minidl.optim import SGD, Adam
from minidl.tensor import Buffer

OPTIMIZERS = [lambda parameters: SGD(parameters, 0.1, momentum=0.9), lambda parameters: Adam(parameters)]


def make_model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.GlobalAvgPool(), nn.Linear(4, 2)
    )


def train(model, optimizer, steps, device):
    images = Tensor(np.random.default_rng(0).standard_normal((8, 6, 6, 3), np.float32), device=device)
    for _ in range(steps):
        cross_entropy(model(images), [0, 1] * 4).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS, ids=["sgd", "adam"])
def test_a_run_goes_on_with_the_same_bits(tmp_path, device, make_optimizer):
    """Weights, running statistics, the optimiser's state, and the count of dropout's steps."""
    minidl.manual_seed(1)
    model = make_model().to(device)
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, 3, device)
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, {"step": 3})
    train(model, optimizer, 2, device)

    minidl.manual_seed(1)
    again = make_model().to(device)
    again_optimizer = make_optimizer(again.parameters())
    assert load_checkpoint(tmp_path / "checkpoint", again, again_optimizer) == {"step": 3}
    train(again, again_optimizer, 2, device)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_the_weights_are_what_pytorch_would_have_written(tmp_path, torch):
    model = make_model()
    save_checkpoint(tmp_path / "checkpoint", model, SGD(model.parameters(), 0.1, momentum=0.9))
    twin = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5)),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 2)),
    )
    arrays = safetensors.numpy.load_file(tmp_path / "checkpoint")
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items() if "/" not in name})
    np.testing.assert_array_equal(twin[0].weight.detach().numpy(), model[0].weight.numpy().transpose(3, 2, 0, 1))


def test_a_file_of_weights_alone_loads_too(tmp_path):
    model, other = make_model(), make_model()
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "weights")
    assert load_checkpoint(tmp_path / "weights", other) == {}
    np.testing.assert_array_equal(model[0].weight.numpy(), other[0].weight.numpy())


def test_extra_arrays_come_back_and_are_no_weights(tmp_path):
    model = make_model()
    mean = np.arange(3, dtype=np.float32)
    save_checkpoint(tmp_path / "checkpoint", model, extra={"mean": mean, "scale": np.float32(64)})
    arrays, _ = read_checkpoint(tmp_path / "checkpoint")
    np.testing.assert_array_equal(arrays["extra/mean"], mean)
    assert arrays["extra/scale"] == 64
    load_checkpoint(tmp_path / "checkpoint", make_model())
    assert read_checkpoint(tmp_path / "checkpoint", "extra/")[0].keys() == {"extra/mean", "extra/scale"}


def test_a_truncated_checkpoint_is_an_error_that_names_it_and_loads_nothing(tmp_path):
    model = make_model()
    save_checkpoint(tmp_path / "checkpoint", model)
    whole = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(whole[:-10])
    before = model[0].weight.numpy().copy()
    with pytest.raises(ValueError, match=r"checkpoint is no whole safetensors file"):
        load_checkpoint(tmp_path / "checkpoint", model)
    np.testing.assert_array_equal(model[0].weight.numpy(), before)


def test_a_checkpoint_of_another_model_or_optimiser_changes_nothing(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", nn.Sequential(nn.Linear(2, 2)))
    model = make_model()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    before = model.state_dict()
    with pytest.raises(ValueError, match="missing"):
        load_checkpoint(tmp_path / "checkpoint", model, optimizer)
    save_checkpoint(tmp_path / "checkpoint", make_model(), SGD(model.parameters()[1:], 0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"SGD\.load_state_dict: nothing was loaded"):
        load_checkpoint(tmp_path / "checkpoint", model, optimizer)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_optimiser_is_not_changed_where_only_the_model_does_not_fit(tmp_path):
    model, other = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    optimizer, other_optimizer = (SGD(each.parameters(), 0.1, momentum=0.9) for each in (model, other))
    for velocity in optimizer.state()["velocity"]:
        velocity += 1
    save_checkpoint(tmp_path / "checkpoint", model, optimizer)
    with pytest.raises(ValueError, match="missing"):
        load_checkpoint(tmp_path / "checkpoint", other, other_optimizer)
    assert all((velocity == 0).all() for velocity in other_optimizer.state()["velocity"])


def test_a_buffer_of_another_shape_changes_nothing(tmp_path):
    class Counting(nn.Module):
        def __init__(self, size):
            self.linear = nn.Linear(2, 2)
            self.seen = Buffer(np.zeros(size), persistent=False)

    save_checkpoint(tmp_path / "checkpoint", Counting(1))
    other = Counting(3)
    before = other.linear.weight.numpy().copy()
    with pytest.raises(ValueError, match="buffer seen: expected"):
        load_checkpoint(tmp_path / "checkpoint", other)
    np.testing.assert_array_equal(other.linear.weight.numpy(), before)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    write_whole(path, b"old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
