"""Synchronised batch-norm against `BatchNorm2d` on the whole batch: ranks are threads here."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, nn
from minidl.distributed import AveragedGradients, SingleProcess, SyncBatchNorm2d, convert_sync_batch_norm
from minidl.distributed.batch_norm import merge_statistics
from tests.distributed.ranks import on_threads


def layer():
    rng = np.random.default_rng(3)
    made = nn.BatchNorm2d(3).to("float64")
    for parameter in made.parameters():
        parameter.data[...] = rng.standard_normal(3)
    return made


def run(model, x, cotangent, images):
    """y, dL/dx of the mean loss, with L = sum of y * cotangent / images."""
    x = Tensor(x, requires_grad=True)
    y = model(x)
    ((y * Tensor(cotangent)).sum() / images).backward()
    return y.numpy(), x.grad.numpy()


def test_a_batch_may_be_computed_in_parts_that_differ_between_the_ranks():
    """Gradients of parts of 4 and 1 images on one rank, and of 2 and 2 on the other; each pair has its statistics."""
    rng = np.random.default_rng(1)
    x, cotangent = rng.standard_normal((2, 9, 2, 3, 3)) + 5
    parts = [[slice(0, 4), slice(4, 5)], [slice(5, 7), slice(7, 9)]]  # of each rank

    def network():
        return nn.Sequential(layer(), layer())

    def part(communicator):
        model, mine = convert_sync_batch_norm(network(), communicator), parts[communicator.rank]
        images = sum(len(x[rows]) for rows in mine)
        gradients = AveragedGradients(model, communicator)
        with gradients.average(images, backwards=2):
            for rows in mine:
                ((model(Tensor(x[rows])) * Tensor(cotangent[rows])).sum() / images).backward()
        return [parameter.grad.numpy() for parameter in model.parameters()]

    whole = network()
    for pair in zip(*parts, strict=True):
        rows = np.r_[pair]
        ((whole(Tensor(x[rows])) * Tensor(cotangent[rows])).sum() / 9).backward()
    for grads in on_threads(2, part):
        for grad, parameter in zip(grads, whole.parameters(), strict=True):
            np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-11, atol=1e-13)


def test_a_subclass_is_named_and_nothing_is_converted():
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(layer(), nn.BatchNorm2d(3), Own(3))
    with pytest.raises(TypeError, match="convert_sync_batch_norm: 2: expected a BatchNorm2d, got a Own"):
        convert_sync_batch_norm(model, SingleProcess())
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("counts", [(4,), (2, 2), (3, 1), (1, 4, 2), (3, 0, 1)])
def test_values_gradients_and_running_statistics_are_those_of_the_whole_batch(counts):
    rng, total = np.random.default_rng(0), sum(counts)
    x, cotangent = rng.standard_normal((2, total, 2, 3, 3)) + 5
    whole = layer()
    y, grad_x = run(whole, x, cotangent, total)
    starts = np.cumsum([0, *counts])

    def part(communicator):
        model = convert_sync_batch_norm(layer(), communicator)
        mine = slice(starts[communicator.rank], starts[communicator.rank + 1])
        images = counts[communicator.rank]
        blank = np.full((1, 2, 3, 3), np.nan)  # what a layer may make of a blank image
        with AveragedGradients(model, communicator).average(images):
            result = run(model, x[mine] if images else blank, cotangent[mine] if images else blank, max(images, 1))
        return model, mine, images, result

    for model, mine, images, (y_here, grad_here) in on_threads(len(counts), part):
        if images:
            np.testing.assert_allclose(y_here, y[mine], rtol=1e-11, atol=1e-12)
            # In the scale of this rank's loss, which is a mean over its images.
            np.testing.assert_allclose(grad_here * images / total, grad_x[mine], rtol=1e-9, atol=1e-12)
        for name in ("weight", "bias"):
            expected = getattr(whole, name).grad.numpy()
            np.testing.assert_allclose(getattr(model, name).grad.numpy(), expected, rtol=1e-11)
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(getattr(model, name).numpy(), getattr(whole, name).numpy(), rtol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    """The loss of the whole batch changes with one number of rank 0 as dL/dx says."""
    rng = np.random.default_rng(1)
    x, cotangent = rng.standard_normal((2, 3, 2, 2, 3))
    parts = slice(0, 2), slice(2, 3)

    def loss(x, want_grad=False):
        def part(communicator):
            model = convert_sync_batch_norm(layer(), communicator)
            mine = parts[communicator.rank]
            y, grad = run(model, x[mine], cotangent[mine], len(x[mine]))
            return (y * cotangent[mine]).sum() / 3, grad * len(x[mine]) / 3

        losses, grads = zip(*on_threads(2, part), strict=True)
        return np.concatenate(grads) if want_grad else sum(losses)

    grad = loss(x, want_grad=True)
    for index in [(0, 0, 1, 2), (1, 1, 1, 0), (2, 0, 0, 1)]:
        step = np.zeros_like(x)
        step[index] = 1e-5
        assert (loss(x + step) - loss(x - step)) / 2e-5 == pytest.approx(grad[index], rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(sum), offset=st.floats(-1e6, 1e6))
def test_merged_statistics_are_those_of_all_numbers_together(counts, offset):
    rng = np.random.default_rng(sum(counts))
    parts = [rng.standard_normal((count, 2)) + offset for count in counts]

    def merge(communicator):
        mine = parts[communicator.rank]
        statistics = (mine.mean(axis=0), mine.var(axis=0)) if len(mine) else (np.zeros(2), np.zeros(2))
        return merge_statistics(communicator, *statistics, len(mine))

    together = np.concatenate(parts)
    for mean, variance, count in on_threads(len(counts), merge):
        assert count == len(together)
        np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(variance, together.var(axis=0), rtol=1e-7, atol=1e-12)


def test_conversion_keeps_the_parameters_and_the_names():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    before = dict(model.named_tensors(Tensor))
    assert convert_sync_batch_norm(model, SingleProcess()) is model
    assert type(model[1][0]) is SyncBatchNorm2d
    assert {name: id(tensor) for name, tensor in model.named_tensors(Tensor)} == {
        name: id(tensor) for name, tensor in before.items()
    }


def test_a_copy_of_a_converted_network_has_the_same_communicator():
    communicator = SingleProcess()
    model = nn.Sequential(convert_sync_batch_norm(layer(), communicator))
    assert copy.deepcopy(model)[0].communicator is communicator


def test_in_evaluation_nothing_is_exchanged():
    class Silent(SingleProcess):
        def all_reduce(self, array):
            raise AssertionError("exchanged")

    model, x = convert_sync_batch_norm(layer(), Silent()).eval(), Tensor(np.ones((1, 2, 2, 3)))
    np.testing.assert_array_equal(model(x).numpy(), layer().eval()(x).numpy())


def test_a_single_number_per_channel_has_no_statistics():
    with pytest.raises(ValueError, match="SyncBatchNorm2d: expected more than one number per channel on all ranks"):
        convert_sync_batch_norm(layer(), SingleProcess())(Tensor(np.ones((1, 1, 1, 3))))
