"""Files hold PyTorch's layout. Numbers are compared: a square weight in the wrong one passes every check of shapes."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.nn import Conv2d, Flatten, Linear, ReLU, Sequential
from minidl.nn.layout import ConvWeight, LinearWeight, Plain
from tests.kernels.compare import assert_close, nchw

# layout, shape in memory; where there is a choice, all axes are of one length
LAYOUTS = {
    "vector": (Plain(), (4,)),
    "matrix that is no weight": (Plain(), (4, 4)),
    "conv": (ConvWeight(), (3, 3, 3, 3)),
    "conv with four lengths": (ConvWeight(), (2, 3, 4, 5)),
    "conv of one input channel": (ConvWeight(), (1, 1, 1, 6)),
    "linear": (LinearWeight(), (4, 4)),
    "linear with one output": (LinearWeight(), (6, 1)),
    "flattened": (LinearWeight((2, 2, 2)), (8, 8)),
    "flattened with four lengths": (LinearWeight((2, 3, 4)), (24, 5)),
}
layouts = pytest.mark.parametrize(("layout", "shape"), LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "a transposed view"])
def test_a_round_trip_through_a_file_changes_nothing(layout, shape, transposed, rng, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    array = rng.standard_normal(shape[::-1]).T if transposed else rng.standard_normal(shape)
    saved = layout.to_file(array)
    safetensors.save_file({"weight": saved}, tmp_path / "weights.safetensors")
    loaded = safetensors.load_file(tmp_path / "weights.safetensors")["weight"]
    np.testing.assert_array_equal(loaded, saved)
    np.testing.assert_array_equal(layout.from_file(loaded), array)


@layouts
@pytest.mark.parametrize("direction", ["to_file", "from_file"])
def test_both_directions_give_contiguous_copies(layout, shape, direction, rng):
    array = rng.standard_normal(shape)
    if direction == "from_file":
        array = layout.to_file(array)
    for given in (array, np.asfortranarray(array)):
        converted = getattr(layout, direction)(given)
        assert converted.flags.c_contiguous and not np.shares_memory(converted, given)


def test_every_number_of_a_weight_goes_where_pytorch_has_it(rng):
    conv, linear, flat = rng.random((2, 3, 4, 5)), rng.random((4, 5)), rng.random((24, 5))
    conv_file, linear_file = ConvWeight().to_file(conv), LinearWeight().to_file(linear)
    flat_file = LinearWeight((2, 3, 4)).to_file(flat).reshape(5, 4, 2, 3)  # (O, C, H, W)
    assert conv_file[4, 3, 0, 2] == conv[0, 2, 3, 4]
    assert linear_file[4, 3] == linear[3, 4]
    assert flat_file[1, 3, 0, 2] == flat.reshape(2, 3, 4, 5)[0, 2, 3, 1]


def our_net():
    return Sequential(
        Conv2d(3, 4, 3), ReLU(), Flatten(), Linear(4 * 4 * 4, 64, flattened_from=(4, 4, 4)), Linear(64, 5)
    )


def their_net(nn):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 5))


@pytest.mark.parametrize("direction", ["from minidl to PyTorch", "from PyTorch to minidl"])
def test_a_net_that_flattens_gives_the_same_outputs_after_exchanging_weights(direction, device, rng, torch):
    ours, theirs = our_net().to(device), their_net(torch.nn)
    if direction == "from minidl to PyTorch":
        theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()}, strict=True)
    else:
        ours.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((2, 6, 6, 3), np.float32)
    expected = theirs(nchw(torch.from_numpy(x))).detach().numpy()
    assert_close(ours(Tensor(x, device=device)).numpy(), expected, 1e-5)


def test_a_linear_layer_that_is_not_told_of_the_flatten_would_give_other_outputs(rng, torch):
    """The check above can fail: the weights of this net fit PyTorch's by their shapes alone."""
    ours = Sequential(Conv2d(3, 4, 3), ReLU(), Flatten(), Linear(64, 64), Linear(64, 5))
    theirs = their_net(torch.nn)
    ours.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((2, 6, 6, 3), np.float32)
    expected = theirs(nchw(torch.from_numpy(x))).detach().numpy()
    assert abs(ours(Tensor(x)).numpy() - expected).max() > 0.01 * abs(expected).max()
