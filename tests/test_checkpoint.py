"""Checkpoints: whole or not there, readable by others, and enough to go on with the same bits."""

import hashlib
import importlib
import json
import pickle
import re
import sys

import numpy as np
import pytest
import safetensors.numpy

import minidl
from minidl import Tensor, load_checkpoint, nn, save_checkpoint
from minidl.functional import cross_entropy
from minidl.optim import SGD, Adam
from minidl.tensor import Buffer
from minidl.training.checkpoint import BrokenCheckpointError, read_checkpoint

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
    with pytest.raises(ValueError, match=r"checkpoint is not a complete safetensors file"):
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

    model, other = Counting(1), Counting(3)
    save_checkpoint(tmp_path / "checkpoint", model, SGD(model.parameters(), 0.1))
    before = other.linear.weight.numpy().copy()
    with pytest.raises(ValueError, match="buffer/seen: expected"):
        load_checkpoint(tmp_path / "checkpoint", other)
    np.testing.assert_array_equal(other.linear.weight.numpy(), before)


# -- other people's files ----------------------------------------------------------------------------------------------


def write_file(path, tensors, metadata=None):
    """A safetensors file by hand: {name: (dtype, shape, bytes)}."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def upper_halves(array):
    """The bytes of bfloat16 numbers, for float32 numbers that have no more digits."""
    return (np.asarray(array, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


@pytest.mark.parametrize("ml_dtypes", ["there", "absent"])
def test_halves_are_read_as_float32(tmp_path, ml_dtypes, monkeypatch):
    if ml_dtypes == "absent":
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    numbers = np.array([[1, -2.5, 3e38], [np.inf, 2**-130, 0]], np.float32)  # 2^-130 is subnormal
    numbers = (numbers.view(np.uint32) >> 16 << 16).view(np.float32)
    halves = np.array([1, -2.5, 65504, 2**-24], np.float16)
    write_file(
        tmp_path / "w",
        {
            "a": ("BF16", [2, 3], upper_halves(numbers)),
            "scalar": ("BF16", [], upper_halves(1.5)),
            "empty": ("BF16", [0, 3], b""),
            "nan": ("BF16", [1], b"\xc1\xff"),
            "half": ("F16", [4], halves.tobytes()),
            "extra/double": ("F64", [1], np.float64(0.1).tobytes()),
        },
    )
    arrays, _ = read_checkpoint(tmp_path / "w")
    np.testing.assert_array_equal(arrays["a"], numbers)
    np.testing.assert_array_equal(arrays["half"], halves.astype(np.float32))
    assert arrays["scalar"].shape == () and arrays["scalar"] == 1.5
    assert arrays["empty"].shape == (0, 3)
    assert np.isnan(arrays["nan"]).all()
    assert {array.dtype for name, array in arrays.items() if name != "extra/double"} == {np.dtype("float32")}
    assert arrays["extra/double"] == 0.1 and arrays["extra/double"].dtype == np.float64
    assert read_checkpoint(tmp_path / "w", "extra/")[0].keys() == {"extra/double"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_weights_of_pytorch_load_in_all_its_floating_point_dtypes(tmp_path, dtype, torch):
    twin = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(getattr(torch, dtype))
    importlib.import_module("safetensors.torch").save_file(twin.state_dict(), tmp_path / "w")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_checkpoint(tmp_path / "w", model)
    expected = twin[0].weight.detach().float().numpy()
    np.testing.assert_array_equal(model[0].weight.numpy(), expected.transpose(2, 3, 1, 0))
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_a_dtype_that_is_not_supported_is_named_with_its_tensor_and_its_file(tmp_path, dtype, size):
    float32 = ("F32", [2], np.ones(2, np.float32).tobytes())
    write_file(tmp_path / "w", {"extra/a": float32, "last.weight": (dtype, [2], bytes(2 * size))})
    with pytest.raises(ValueError, match=rf"w: last\.weight: expected .*BF16.*, got {dtype}; convert it"):
        read_checkpoint(tmp_path / "w")
    assert read_checkpoint(tmp_path / "w", "extra/")[0].keys() == {"extra/a"}  # what is not read does no harm


GOOD = {"weight": ("F32", [1, 1], bytes(4)), "bias": ("F32", [1], bytes(4))}
NO_COUNTERS = ["{", "", "5", "[]", "null", "[" * 100_000]


@pytest.mark.parametrize("text", NO_COUNTERS, ids=[text[:4] for text in NO_COUNTERS])
def test_counters_that_are_damaged_are_an_error_that_names_the_file(tmp_path, text):
    write_file(tmp_path / "w", GOOD, {"counters": text})
    for read in (read_checkpoint, lambda path: load_checkpoint(path, nn.Linear(1, 1))):
        with pytest.raises(ValueError, match=r"w: expected counters as minidl writes them"):
            read(tmp_path / "w")


def test_a_file_whose_bytes_are_changed_is_read_or_refused_with_its_name(tmp_path, rng):
    path, optimizer = tmp_path / "changed", SGD(make_model().parameters(), 0.1, momentum=0.9)
    save_checkpoint(path, make_model(), optimizer, {"step": 3, "options": {"lr": 0.1}}, {"mean": np.ones(3)})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for number in range(500):
        content = bytearray(whole)
        for place in rng.integers(0, header if number % 2 else 8, 1 + number % 3):
            content[place] = rng.integers(256) if number % 5 else b'{}[]",:0'[rng.integers(8)]
        path.write_bytes(content)
        try:
            load_checkpoint(path, make_model(), SGD(make_model().parameters(), 0.1, momentum=0.9))
        except ValueError as error:
            refused += 1
            assert "changed" in str(error)
    assert refused > 300


def pytorch_files(torch, folder):
    """A state dict in PyTorch's formats."""
    state = torch.nn.Linear(2, 3).state_dict()
    torch.save(state, folder / "new.pth")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "renamed.safetensors").write_bytes((folder / "new.pth").read_bytes())
    return state, [folder / name for name in ("new.pth", "old.pt", "renamed.safetensors")]


def test_a_file_of_pytorch_is_called_so_and_the_lines_that_convert_it_run(tmp_path, torch, monkeypatch):
    state, files = pytorch_files(torch, tmp_path)
    for path in files:
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="looks like a PyTorch file") as error:
            patch.setattr("pickle.Unpickler", None)  # what torch.load needs
            load_checkpoint(path, nn.Linear(2, 3))
        first, *program = str(error.value).splitlines()
        if path.suffix == ".safetensors":
            path.rename(re.search(r"rename it to (\S+) and convert", first)[1])
        assert len(program) == 2
        exec("\n".join(map(str.strip, program)))
        converted = path.with_suffix(".safetensors")
        model = nn.Linear(2, 3)
        load_checkpoint(converted, model)
        np.testing.assert_array_equal(model.weight.numpy(), state["weight"].numpy().T)


def test_any_pickle_is_called_so_and_not_opened(tmp_path):
    """What it would do when it is opened: raise a KeyError."""

    class Bomb:
        def __reduce__(self):
            return {}.__getitem__, ("opened",)

    (tmp_path / "w").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="looks like a PyTorch file"):
        read_checkpoint(tmp_path / "w")


# -- what is written ---------------------------------------------------------------------------------------------------

NOT_IN_ORDER = {
    "reversed": np.arange(6.0)[::-1],
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "Fortran's order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "every second": np.arange(12.0)[::2],
    "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
    "one channel": np.arange(24.0).reshape(2, 3, 4)[..., 1],
    "big-endian": np.arange(6, dtype=">f4"),
    "no array": [1.0, 2.0],
    "a number": 3,
}


@pytest.mark.parametrize("array", NOT_IN_ORDER.values(), ids=NOT_IN_ORDER)
def test_extra_arrays_are_written_as_they_are_whatever_their_layout(tmp_path, array):
    before = np.array(array)
    save_checkpoint(tmp_path / "checkpoint", make_model(), extra={"array": array})
    after = read_checkpoint(tmp_path / "checkpoint")[0]["extra/array"]
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(array, before)
    assert after.shape == before.shape


@pytest.mark.parametrize(
    "array", [np.zeros(2, complex), np.array(["x"]), np.array([None]), np.zeros(2, "datetime64[s]")]
)
def test_an_extra_array_that_could_not_be_read_again_is_not_written(tmp_path, array):
    with pytest.raises(ValueError, match=r"save_checkpoint: extra/array: expected float16, .*, got .*; convert it"):
        save_checkpoint(tmp_path / "checkpoint", make_model(), extra={"array": array})
    assert not (tmp_path / "checkpoint").exists()


def test_without_an_optimiser_a_file_holds_weights_and_nothing_else(tmp_path, torch):
    """PyTorch takes it strictly: dropout's counters are there to resume a run."""
    layers = torch.nn
    twin = layers.Module()  # named as torchvision's VGG
    twin.features = layers.Sequential(layers.Conv2d(3, 4, 3), layers.BatchNorm2d(4), layers.ReLU(), layers.MaxPool2d(2))
    twin.classifier = layers.Sequential(
        *(layers.Linear(16, 8), layers.ReLU(), layers.Dropout(0.5)),
        *(layers.Linear(8, 8), layers.ReLU(), layers.Dropout(0.5), layers.Linear(8, 2)),
    )

    class Small(nn.Module):
        def __init__(self):
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
            self.classifier = nn.Sequential(
                *(nn.Linear(16, 8, flattened_from=(2, 2, 4)), nn.ReLU(), nn.Dropout(0.5)),
                *(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)),
            )

    model = Small()
    save_checkpoint(tmp_path / "weights", model)
    twin.load_state_dict(importlib.import_module("safetensors.torch").load_file(tmp_path / "weights"), strict=True)
    np.testing.assert_array_equal(twin.classifier[6].weight.detach().numpy(), model.classifier[6].weight.numpy().T)
    assert safetensors.numpy.load_file(tmp_path / "weights").keys() == model.state_dict().keys()
    save_checkpoint(tmp_path / "run", model, SGD(model.parameters(), 0.1))
    names = set(safetensors.numpy.load_file(tmp_path / "run"))
    assert names - model.state_dict().keys() == {"buffer/classifier.2.key", "buffer/classifier.5.key"}


def test_weights_with_the_buffers_beside_them_as_once_written_still_load(tmp_path):
    model, other = make_model(), make_model()
    key = np.array([1, 2, 3, 4], np.uint32)
    safetensors.numpy.save_file(model.state_dict() | {"buffer/3.key": key}, tmp_path / "w")
    load_checkpoint(tmp_path / "w", other)
    np.testing.assert_array_equal(other[3].key.numpy(), key)


# -- all of it fits, or nothing is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["5.bias", "optimizer/velocity.1", "buffer/3.key"])
@pytest.mark.parametrize("dtype", ["complex64", "float32", "shape"])
def test_one_array_that_does_not_fit_changes_neither_model_nor_optimiser(tmp_path, name, dtype):
    model = make_model()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1, "cpu")
    save_checkpoint(tmp_path / "good", model, optimizer)
    arrays = safetensors.numpy.load_file(tmp_path / "good")
    arrays[name] = np.zeros(9, np.float32) if dtype == "shape" else arrays[name].astype(dtype)
    safetensors.numpy.save_file(arrays, tmp_path / "bad")
    other = make_model()
    other_optimizer = SGD(other.parameters(), 0.1, momentum=0.9)
    before = other.state_dict(), other_optimizer.state_dict(), other[3].key.numpy().copy()
    if dtype == "float32" and not name.startswith("buffer/"):
        load_checkpoint(tmp_path / "bad", other, other_optimizer)  # it does fit
        return
    with pytest.raises(ValueError, match=rf"bad: .*{name.removeprefix('optimizer/')}: expected"):
        load_checkpoint(tmp_path / "bad", other, other_optimizer)
    after = other.state_dict(), other_optimizer.state_dict(), other[3].key.numpy()
    np.testing.assert_equal(after, before)


def test_what_does_not_fit_is_said_with_the_name_of_the_file(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", make_model())
    with pytest.raises(ValueError, match=r"load_checkpoint: .*checkpoint: .*missing \['weight', 'bias'\]"):
        load_checkpoint(tmp_path / "checkpoint", nn.Linear(2, 2))


def test_a_safetensors_file_whose_header_has_a_length_of_80_in_its_first_byte_is_not_taken_for_pytorchs(tmp_path):
    """A pickle begins with this byte too. The file is cut off, so that it cannot be read."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes((0x580).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        read_checkpoint(path)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """The path of a checkpoint with all kinds of arrays, and a function that loads it into another model.

    The function returns the counters, or None if the file was refused with its name and nothing of it was loaded.
    """
    model = make_model()
    path, optimizer = tmp_path / "damaged", SGD(model.parameters(), 0.1, momentum=0.9)
    for velocity in optimizer.velocities:
        velocity[...] = 1
    save_checkpoint(path, model, optimizer, {"step": 3}, {"mean": np.ones(3), "zeros": np.zeros(9)})

    def load():
        model = make_model()
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        for tensor in model.parameters():
            tensor.data[...] = 7
        try:
            return load_checkpoint(path, model, optimizer)
        except BrokenCheckpointError as error:
            assert str(path) in str(error) and "use an earlier checkpoint" in str(error)
            assert all((tensor.data == 7).all() for tensor in model.parameters())
            assert all((array == 0).all() for array in optimizer.state_dict().values())
            return None

    return path, load


def test_every_flipped_bit_is_found(saved, rng):
    """All bits of the header's length and of its metadata, with the checksum, and 200 of the whole file."""
    path, load = saved
    whole = path.read_bytes()
    assert load() is not None
    places = [*range(8 * (whole.index(b'},"') + 1)), *rng.integers(8 * len(whole), size=200).tolist()]
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        assert load() is None, f"bit {place % 8} of byte {place // 8}"


def test_every_truncation_and_every_longer_file_is_found(saved, rng):
    """In the header's length, throughout the header, at the border of each array, at pages, and at 50 other places."""
    path, load = saved
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:header])
    borders = {header + end for entry in entries.values() if "shape" in entry for end in entry["data_offsets"]}
    pages = range(0, len(whole), 512)
    lengths = {
        *range(12),
        *range(12, header, 16),
        header - 1,
        header,
        header + 1,
        *borders,
        *pages,
        *rng.integers(len(whole), size=50).tolist(),
        len(whole) - 1,
    }
    for length in sorted(lengths - {len(whole)}):
        path.write_bytes(whole[:length])
        assert load() is None, length
        path.write_bytes(whole[:length] + bytes(len(whole) - length))
        assert load() is None or not any(whole[length:]), length
    path.write_bytes(whole + b"\0")
    assert load() is None


def test_blocks_of_zeros_and_blocks_of_another_place_are_found(saved, rng):
    """As a disk that lost a write leaves them."""
    path, load = saved
    whole = path.read_bytes()
    for _ in range(100):
        size = int(rng.integers(1, 513))
        start, other = (int(place) for place in rng.integers(len(whole) - size, size=2))
        for block in (bytes(size), whole[other : other + size]):
            content = whole[:start] + block + whole[start + size :]
            path.write_bytes(content)
            assert (load() is not None) == (content == whole)


def test_a_checksum_is_compared_even_if_only_a_few_arrays_are_read(saved):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpointError, match=r"damaged is damaged \(its bytes do not have the SHA-256"):
        read_checkpoint(path, "extra/mean")


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(saved):
    """The digits may occur elsewhere in the header, too."""
    path, _ = saved
    save_checkpoint(path, make_model(), None, {"zeros": "0" * 64, "key": '"sha256":"' + "0" * 64})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    digits = header["__metadata__"]["sha256"].encode()
    key = b'"sha256":"'
    assert hashlib.sha256(content.replace(key + digits, key + b"0" * 64)).hexdigest().encode() == digits
    assert load_checkpoint(path, make_model())["zeros"] == "0" * 64


def test_a_checkpoint_without_a_checksum_loads_with_a_note(tmp_path, caplog):
    """minidl wrote such files until December 2026. Files of other programs are read without a word."""
    write_file(tmp_path / "old", GOOD, {"counters": '{"step": 3}'})
    assert load_checkpoint(tmp_path / "old", nn.Linear(1, 1)) == {"step": 3}
    assert f"{tmp_path / 'old'} has no checksum" in caplog.text
    caplog.clear()
    for metadata in (None, {"format": "pt"}):
        write_file(tmp_path / "other", GOOD, metadata)
        assert load_checkpoint(tmp_path / "other", nn.Linear(1, 1)) == {}
    assert caplog.text == ""


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="load_checkpoint: expected a file, got the folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="load_checkpoint: expected a file, got the device /dev/null"):
        read_checkpoint("/dev/null")
