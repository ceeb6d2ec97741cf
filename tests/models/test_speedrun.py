"""The network of the speedrun: how it starts, and every number of a training step beside PyTorch's."""

import numpy as np
import pytest
from models.config import NetworkConfig
from models.speedrun import ConvGroup, dirac_conv, speedrun, whitening_weight
from models.weights import load_network

from minidl import Tensor, fork_rng, save_checkpoint
from minidl.data import make_shapes, normalize
from minidl.functional import conv2d
from tests.models.compare import assert_equals_its_twin
from tests.models.counting import count_parameters


def test_it_has_the_papers_number_of_parameters():
    """1.97 million."""
    assert count_parameters(speedrun()) == 1_972_792


def test_what_is_learned_are_convolutions_biases_and_the_last_layer():
    frozen = {name for name, parameter in speedrun().named_parameters() if not parameter.requires_grad}
    norms = {f"groups.{group}.norm{number}.weight" for group in range(3) for number in (1, 2)}
    assert frozen == norms | {"whitening.weight"}


def test_each_group_halves_the_size_and_the_last_pooling_leaves_one_pixel():
    x, sizes = Tensor(np.zeros((2, 32, 32, 3), np.float32)), []
    model = speedrun(num_classes=7)
    y = model.activ(model.whitening(x))
    for group in model.groups:
        y = group(y)
        sizes.append(y.shape[1:])
    assert sizes == [(15, 15, 64), (7, 7, 256), (3, 3, 256)]
    assert model(x).shape == (2, 7)


# -- how it starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["noise", "shapes"])
def test_whitened_patches_are_uncorrelated_and_of_unit_size(images, rng):
    """E[f f^T] of the first 12 outputs is the identity; the others are the same with the other sign."""
    if images == "noise":  # of correlated colours, around a mean that is not 0
        images = rng.standard_normal((50, 8, 8, 3)) @ rng.standard_normal((3, 3)) + 0.3
    else:
        images = normalize(make_shapes(50).images, 128.0, 64.0)
    weight = whitening_weight(images.astype(np.float32), eps=0.0 if images.shape[1] == 8 else 1e-9)
    assert (weight.shape, weight.dtype) == ((2, 2, 3, 24), np.float32)
    y = conv2d(Tensor(images.astype(np.float32)), Tensor(weight)).numpy().reshape(-1, 24).astype(np.float64)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=2e-3)
    np.testing.assert_allclose(y[:, 12:], -y[:, :12], atol=1e-4)


def test_a_patch_of_little_variance_is_not_blown_up():
    """Of grey images two thirds of the components are 0: eps keeps the weight finite."""
    grey = np.random.default_rng(0).standard_normal((20, 6, 6, 1)).repeat(3, axis=3).astype(np.float32)
    assert abs(whitening_weight(grey)).max() <= 1 / np.sqrt(5e-4) + 1


def test_the_whitening_is_that_of_the_author(rng, torch):
    """legacy/airbench94.py: unfold, eigh, the largest eigenvalue first; an eigenvector's sign is not defined."""
    images = rng.standard_normal((20, 9, 9, 3)).astype(np.float32) @ rng.standard_normal((3, 3)).astype(np.float32)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    patches = x.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 3, 2, 2).double()
    flat = patches.reshape(len(patches), -1)
    eigenvalues, eigenvectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    scaled = eigenvectors.T.reshape(12, 3, 2, 2).flip(0) / torch.sqrt(eigenvalues.flip(0).reshape(-1, 1, 1, 1) + 5e-4)
    expected = torch.cat((scaled, -scaled)).permute(2, 3, 1, 0).numpy()
    actual = whitening_weight(images)
    signs = np.sign((actual * expected).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(actual * signs, expected, atol=1e-4)


def test_a_dirac_convolution_shows_its_input(rng):
    x = Tensor(rng.standard_normal((2, 6, 5, 3)).astype(np.float32))
    with fork_rng(1):
        same, wider, narrower = dirac_conv(3, 3), dirac_conv(3, 8), dirac_conv(3, 2)
    np.testing.assert_allclose(same(x).numpy(), x.numpy(), atol=1e-5)
    np.testing.assert_allclose(wider(x).numpy()[..., :3], x.numpy(), atol=1e-5)
    np.testing.assert_allclose(narrower(x).numpy(), x.numpy()[..., :2], atol=1e-5)
    others = wider.weight.numpy()[..., 3:]
    assert 0.9 / np.sqrt(27) < abs(others).max() <= 1 / np.sqrt(27)
    assert abs(others.mean()) < 0.03


def test_the_seed_decides_the_weights():
    def weights(seed):
        return np.concatenate([parameter.numpy().ravel() for parameter in speedrun(seed=seed).parameters()])

    assert np.array_equal(weights(1), weights(1))
    drawn = 9 * 24 * 40 + 9 * 64 * 192 + 24 * 12 + 2560  # the other outputs of two convolutions, the first and the last
    assert (weights(1) != weights(2)).sum() == pytest.approx(drawn, rel=1e-3)


# -- beside PyTorch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
def test_the_network_equals_its_twin(dtype, tolerance, device, rng, twins):
    model = speedrun()
    images = rng.standard_normal((4, 32, 32, 3))
    model.whiten(images)
    model.to(dtype).to(device)
    twin = twins.twin_of(model, twins.SpeedrunNet, 10)
    assert_equals_its_twin(model, twin, images.astype(dtype), tolerance)


def test_the_twin_of_the_benchmarks_learns_the_same_parameters(twins):
    ours = {name: parameter.requires_grad for name, parameter in speedrun().named_parameters()}
    theirs = twins.make("speedrun", (), 32, 10)
    assert {name: parameter.requires_grad for name, parameter in theirs.named_parameters()} == ours


def test_a_group_pools_before_it_normalises(rng):
    """So that batch-norm's statistics are those of a quarter of the pixels."""
    group = ConvGroup(3, 3)
    x = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    group(Tensor(x))
    pooled = x.reshape(2, 2, 2, 2, 2, 3).max(axis=(2, 4))  # the convolution is the identity
    np.testing.assert_allclose(group.norm1.running_mean.numpy(), 0.4 * pooled.mean(axis=(0, 1, 2)), rtol=1e-4)


def test_a_checkpoint_says_that_it_is_a_speedrun(tmp_path, rng):
    names = tuple("abc")
    mean = np.array([1.0, 2.0, 3.0], np.float32)
    config = NetworkConfig("speedrun", "speedrun", {"num_classes": 3}, names, names, 32, 32, mean, 2 * mean)
    model = config.build(seed=3)
    save_checkpoint(tmp_path / "w", model, None, {"network": config.to_json()}, config.arrays())
    again, found = load_network(tmp_path / "w")
    np.testing.assert_array_equal(found.std, 2 * mean)
    images = Tensor(rng.standard_normal((2, 32, 32, 3), np.float32))
    np.testing.assert_array_equal(again(images).numpy(), model.eval()(images).numpy())
