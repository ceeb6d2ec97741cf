"""Ways in and out of a Tensor: DLPack, NumPy, Python's numbers and formats, pickle and copy."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl import Buffer, Parameter, Tensor, nn, optim
from minidl.functional import cross_entropy
from minidl.system.gpu import require_cupy

# -- DLPack ------------------------------------------------------------------------------------------------------------


class Exporter:
    """An array of another library: nothing but the two methods of DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_an_array_of_another_library_shares_its_memory(dtype):
    array = np.zeros((2, 3), dtype)
    x = Tensor(Exporter(array))
    array[1, 2] = 1
    assert x.numpy()[1, 2] == 1 and (x.dtype, x.shape, x.device) == (array.dtype, (2, 3), "cpu")
    x.data[0, 0] = 1
    assert array[0, 0] == 1


def test_it_is_copied_only_if_it_must_be():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(Tensor(Exporter(array)).data, array)
    transposed, converted = Tensor(Exporter(array.T)), Tensor(Exporter(array), "float64")
    assert transposed.data.flags.c_contiguous and not np.shares_memory(transposed.data, array)
    np.testing.assert_array_equal(transposed.numpy(), array.T)
    assert converted.dtype == np.float64


def test_what_is_read_only_stays_so_and_a_parameter_of_it_is_a_copy():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    for given in (array, Exporter(array)):
        x = Tensor(given)
        assert np.shares_memory(x.data, array) and not x.data.flags.writeable
        for learned in (Parameter(given), Tensor(given, requires_grad=True)):
            optimizer = optim.SGD([learned], lr=1.0)
            learned.sum().backward()
            optimizer.step()
            np.testing.assert_array_equal(learned.numpy(), [-1, -1, -1])
    np.testing.assert_array_equal(array, 0)


def test_memory_of_a_device_that_minidl_lacks_is_an_error_that_names_the_remedy():
    with pytest.raises(
        TypeError, match=r"Tensor: expected memory of the CPU or of a CUDA GPU, got .*device type 8.* CPU"
    ):
        Tensor(Exporter(np.zeros(1), device=(8, 0)))  # 8 is Metal


def test_what_an_exporter_refuses_is_an_error_that_quotes_it():
    def refuse(**options):
        raise BufferError("not today")

    exporter = SimpleNamespace(__dlpack__=refuse, __dlpack_device__=lambda: (1, 0))
    with pytest.raises(TypeError, match=r"cannot read the memory of this types.SimpleNamespace: not today; detach it"):
        Tensor(exporter)


def test_cuda_memory_without_cupy_is_an_error(monkeypatch):
    from minidl.system import gpu

    def missing():
        raise RuntimeError("device 'cuda' needs CuPy")

    monkeypatch.setattr(gpu, "require_cupy", missing)
    with pytest.raises(RuntimeError, match="needs CuPy"):
        Tensor(Exporter(np.zeros(1), device=(2, 0)))


def test_numpy_reads_a_tensor_without_a_copy():
    x = Tensor([1.0, 2.0])
    assert x.__dlpack_device__() == (1, 0)
    assert np.shares_memory(np.from_dlpack(x), x.data)
    assert not np.shares_memory(np.from_dlpack(x, copy=True), x.data)


@pytest.mark.parametrize("make", [lambda: Parameter([1.0]), lambda: Parameter([1.0]) * 2], ids=["leaf", "computed"])
def test_a_tensor_that_requires_grad_is_exported_by_its_detach(make):
    x = make()
    with pytest.raises(BufferError, match=r"__dlpack__: .*requires grad.*\.detach\(\)"):
        np.from_dlpack(x)
    np.testing.assert_array_equal(np.from_dlpack(x.detach()), x.numpy())


def test_tensors_go_to_pytorch_and_back_with_one_memory(torch):
    ours = Tensor([[1.0, 2.0], [3.0, 4.0]])
    theirs = torch.from_dlpack(ours)
    theirs[0, 0] = 7
    assert ours[0, 0].item() == 7
    back = Tensor(theirs)
    assert np.shares_memory(back.data, ours.data) and back.data.flags.writeable
    np.testing.assert_array_equal(Tensor(theirs.T).numpy(), ours.numpy().T)
    assert Tensor(torch.tensor(3)).item() == 3 and Tensor(torch.ones(2, dtype=torch.bool)).dtype == bool


def test_what_pytorch_does_not_export_is_an_error_that_says_what_to_do(torch):
    with pytest.raises(TypeError, match=r"Tensor: cannot read the memory of this torch.Tensor: .*detach\(\)"):
        Tensor(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"cannot read the memory of this torch.Tensor: .*; .*convert it to float32"):
        Tensor(torch.ones(2, dtype=torch.bfloat16))


def test_a_tensor_of_pytorch_without_memory_is_refused(torch):
    with pytest.raises(TypeError, match="Tensor: expected memory of the CPU or of a CUDA GPU"):
        Tensor(torch.zeros(2, device="meta"))


def address(array):
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr


def test_a_tensor_goes_to_the_library_of_its_device_and_back_with_one_memory(device):
    x = Tensor([1.0, 2.0], device=device)
    kind = x.__dlpack_device__()
    assert kind[0] == {"cpu": 1, "cuda": 2}[device]
    array = (np if device == "cpu" else require_cupy()).from_dlpack(x)
    y = Tensor(Exporter(array, kind))
    assert address(array) == address(x.data) == address(y.data) and y.device == device


# -- numbers, formats, arrays ------------------------------------------------------------------------------------------


def test_a_scalar_is_formatted_as_its_number(device):
    loss = Tensor(0.693147, device=device)
    assert f"{loss:.3f}" == "0.693"
    assert f"{Tensor(3, device=device):>4d}" == "   3"
    assert f"{loss}" == f"{loss.item()}"


def test_a_larger_tensor_is_formatted_as_its_repr_and_a_format_for_numbers_is_refused(device):
    x = Tensor([1.0, 2.0], device=device)
    assert f"{x}" == repr(x)
    with pytest.raises(TypeError, match=r"format: '\.3f' formats one number, got a tensor \(2,\); .*numpy\(\)"):
        f"{x:.3f}"


def test_a_scalar_cannot_be_iterated_over(device):
    with pytest.raises(TypeError, match=r"\(\) has no length; use \.item\(\)"):
        iter(Tensor(1.0, device=device))


def test_numpy_decides_about_the_copy():
    x = Tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.data) and np.shares_memory(np.asarray(x, copy=False), x.data)
    assert not np.shares_memory(np.array(x), x.data) and not np.shares_memory(np.asarray(x, copy=True), x.data)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float64, copy=False)


def test_an_array_of_a_gpu_tensor_is_always_a_copy(device):
    x = Tensor([1.0, 2.0], device=device)
    np.testing.assert_array_equal(np.asarray(x), [1, 2])
    if device != "cpu":
        with pytest.raises(ValueError, match=r"__array__: .*'cuda'.*copy"):
            np.asarray(x, copy=False)


# -- pickle and deepcopy -----------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}
each_copy = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


@each_copy
def test_a_tensor_comes_back_with_its_gradient_and_memory_of_its_own(duplicate, device):
    x = Tensor([1.0, 2.0], device=device, requires_grad=True)
    (x * x).sum().backward()
    y = duplicate(x)
    assert type(y) is Tensor and y.requires_grad and y.device == device
    y.data[...] = 5
    np.testing.assert_array_equal(x.numpy(), [1, 2])
    np.testing.assert_array_equal(y.grad.numpy(), [2, 4])
    (y * 3).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), [5, 7])
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])


@each_copy
def test_kinds_of_tensors_keep_their_attributes(duplicate):
    frozen = duplicate(Parameter([1.0], layout=nn.layout.LinearWeight((1, 1, 1)), requires_grad=False))
    assert type(frozen) is Parameter and not frozen.requires_grad and frozen.layout == nn.layout.LinearWeight((1, 1, 1))
    assert duplicate(Buffer([1.0], persistent=False)).persistent is False
    plain = duplicate(Tensor([1, 2]))
    assert not plain.requires_grad and plain.dtype == np.int64


@each_copy
def test_one_tensor_in_two_places_stays_one(duplicate):
    x = Parameter([1.0])
    first, second = duplicate([x, x])
    assert first is second


@each_copy
def test_a_computed_tensor_has_a_graph_that_cannot_be_copied(duplicate):
    y = Parameter([1.0]) * 2
    with pytest.raises(RuntimeError, match=r"copy: this tensor was computed by Mul.*detach\(\)"):
        duplicate({"loss": y})
    assert duplicate(y.detach()).item() == 2


@each_copy
def test_hooks_stay_with_the_original(duplicate):
    x = Parameter([1.0])
    x._node.hooks.append(lambda: None)
    assert duplicate(x)._node.hooks == []


OPTIMIZERS = {
    "SGD": lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda model: optim.AdamW(optim.weight_decay_groups(model, 0.1), lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@each_copy
def test_a_copied_model_and_optimiser_train_on_with_the_same_bits(duplicate, make, device, rng):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GlobalAvgPool(), nn.Dropout(0.5), nn.Linear(4, 5)
    ).to(device)
    optimizer = make(model)
    images = Tensor(rng.standard_normal((6, 8, 8, 3)).astype(np.float32), device=device)
    labels = Tensor(rng.integers(0, 5, 6), device=device)

    def train(model, optimizer, steps):
        for _ in range(steps):
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    train(model, optimizer, 2)
    before = model.state_dict()
    other_model, other_optimizer = duplicate((model, optimizer))
    train(other_model, other_optimizer, 3)
    for name, array in model.state_dict().items():  # the original has not moved
        np.testing.assert_array_equal(array, before[name])
    train(model, optimizer, 3)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other_model.state_dict()[name], array)
    assert any((model.state_dict()[name] != array).any() for name, array in before.items())


def test_the_copy_of_a_running_model_shares_no_gradient():
    model = nn.Linear(2, 1)
    twin = copy.deepcopy(model)
    twin(minidl.ones(1, 2)).sum().backward()
    assert model.weight.grad is None and twin.weight.grad is not None
