"""Averaged gradients: ranks are threads here."""

import numpy as np
import pytest

from minidl import Buffer, Tensor, nn
from minidl.distributed import AveragedGradients, SingleProcess, at_least_one
from minidl.functional import mse_loss
from tests.distributed.ranks import on_threads


class TwoHeads(nn.Module):
    """A layer that every rank uses, one that some ranks use, and one that none uses."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.body, self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)
        for parameter in self.parameters():
            parameter.data = rng.standard_normal(parameter.shape)

    def forward(self, x, use_first):
        y = self.body(x)
        return self.first(y) if use_first else y[:, :2]


def batch(count):
    rng = np.random.default_rng(count)
    return Tensor(rng.standard_normal((count, 3))), Tensor(rng.standard_normal((count, 2)))


COUNTS = [3, 1, 2]  # images of each rank


def step(communicator, bucket_bytes=30):
    """The gradients of a batch of which rank r has COUNTS[r] images, and of which rank 1 alone uses the first head."""
    model = TwoHeads()
    gradients = AveragedGradients(model, communicator, bucket_bytes)
    x, target = batch(COUNTS[communicator.rank])
    with gradients.average(len(x)):
        mse_loss(model(x, communicator.rank == 1), target).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("bucket_bytes", [1, 30, 10**6])
def test_the_gradient_is_that_of_the_mean_over_all_images(bucket_bytes):
    model, total = TwoHeads(), 0
    for rank, count in enumerate(COUNTS):
        x, target = batch(count)
        total = total + mse_loss(model(x, rank == 1), target) * (count / sum(COUNTS))
    total.backward()
    for grads in on_threads(3, lambda communicator: step(communicator, bucket_bytes)):
        assert grads["second.weight"] is grads["second.bias"] is None  # no rank uses it
        for name, parameter in model.named_parameters():
            if not name.startswith("second"):
                np.testing.assert_allclose(grads[name].numpy(), parameter.grad.numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("bucket_bytes", [1, 10**6])
def test_gradients_of_parts_are_added_up_before_they_are_sent(bucket_bytes):
    """Gradient accumulation: three parts on one rank, two on the other."""
    x, target = batch(9)
    model = TwoHeads()
    mse_loss(model(x, True), target).backward()
    expected = [parameter.grad for parameter in model.parameters()]

    def parts(communicator):
        model = TwoHeads()
        mine, length = (slice(0, 5), 2) if communicator.rank == 0 else (slice(5, 9), 2)
        images, targets = x[mine], target[mine]
        starts = range(0, len(images), length)
        with AveragedGradients(model, communicator, bucket_bytes).average(len(images), len(starts)):
            for start in starts:
                part = slice(start, start + length)
                share = len(images[part]) / len(images)
                (mse_loss(model(images[part], True), targets[part]) * share).backward()
        return [parameter.grad for parameter in model.parameters()]

    for grads in on_threads(2, parts):
        for grad, other in zip(grads, expected, strict=True):
            assert (grad is None) == (other is None)
            if grad is not None:
                np.testing.assert_allclose(grad.numpy(), other.numpy(), rtol=1e-13, atol=1e-15)


def test_a_parameter_that_is_frozen_later_gets_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    communicator, sent = SingleProcess(), []
    communicator.all_reduce = lambda array: sent.append(array.size)
    gradients = AveragedGradients(model, communicator, bucket_bytes=1)
    sent.clear()  # what the constructor compared
    model[1].bias.requires_grad = False
    with gradients.average(1):
        model(Tensor([[1.0, 2.0]])).sum().backward()
        gradients._thread.submit(lambda: None).result()
        assert sent == [1, 2, 2, 4]  # during backward, all the same
    assert model[0].weight.grad is not None and model[1].bias.grad is None


def test_buckets_have_about_the_stated_size_and_begin_with_the_last_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    buckets = AveragedGradients(model, SingleProcess(), bucket_bytes=60).buckets
    assert [[names[id(parameter)] for parameter in bucket.parameters] for bucket in buckets] == [
        ["2.bias", "2.weight", "1.bias", "1.weight"],  # 8, 32 and 16 bytes are too few
        ["0.bias", "0.weight"],
    ]
    assert [bucket.sums.nbytes for bucket in buckets] == [120, 80]


def test_the_last_layers_are_on_their_way_before_backward_ends():
    """When backward comes to the first layer, the gradients of the last one have been handed over."""
    communicator, sent = SingleProcess(), []
    communicator.all_reduce = lambda array: sent.append(array.size)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    gradients = AveragedGradients(model, communicator, bucket_bytes=1)
    sent_before = []

    def look():
        gradients._thread.submit(lambda: None).result()  # the thread has done what it was given
        sent_before.extend(sent)

    with gradients.average(2):
        y = model(Tensor(np.ones((2, 4), np.float32)))
        model[0].weight._node.hooks.append(look)
        y.sum().backward()
    assert {6, 30} <= set(sent_before)


def test_parameters_and_buffers_become_those_of_rank_0():
    def first_values(communicator):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2), nn.Dropout())
        for _, tensor in model.named_tensors(Tensor):
            tensor.data[...] = communicator.rank + 1
        AveragedGradients(model, communicator)
        return [tensor.numpy().min() for _, tensor in model.named_tensors(Tensor)]

    assert on_threads(2, first_values) == [[1] * 7] * 2


def test_ranks_with_other_parameters_are_named():
    """They would add gradients of different layers."""

    def build(communicator):
        with pytest.raises(RuntimeError, match=r"ranks 0 and 2: digest .*; rank 1: digest"):
            AveragedGradients(nn.Linear(2, 2 + communicator.rank % 2), communicator)

    on_threads(3, build)


class Holder(nn.Module):
    def __init__(self, **members):
        vars(self).update(members)


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: Holder(**{name: nn.Linear(2, 2) for name in ("ab", "ba")[rank]}),
        lambda rank: Holder(fc=nn.Linear(2, 2), kept=Buffer(np.zeros(4 - 2 * rank, ("float32", "float64")[rank]))),
        lambda rank: Holder(fc=nn.Linear(2, 2), kept=Buffer(np.zeros(rank + 1))),
    ],
    ids=["another order", "another dtype", "another size"],
)
def test_ranks_with_another_order_or_other_buffers_are_named(make):
    """They would add gradients of different parameters, and copy bytes of another dtype."""
    with pytest.raises(RuntimeError, match=r"expected the same names, shapes and dtypes .* in this order"):
        on_threads(2, lambda communicator: AveragedGradients(make(communicator.rank), communicator))


def test_ranks_with_another_size_of_buckets_are_named():
    with pytest.raises(RuntimeError, match="expected the same bucket_bytes on every rank"):
        on_threads(2, lambda ranks: AveragedGradients(nn.Linear(2, 2), ranks, bucket_bytes=ranks.rank + 1))


def test_a_parameter_that_requires_grad_later_is_named():
    """In no bucket, it would have another gradient on each rank."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad = False
    gradients = AveragedGradients(model, SingleProcess())
    with gradients.average(1):
        pass
    model[0].weight.requires_grad = True
    with pytest.raises(RuntimeError, match=r"average: 0\.weight was frozen or not there .* call it again"):
        gradients.average(1).__enter__()


def test_an_error_of_the_thread_reaches_the_caller():
    communicator = SingleProcess()
    model = nn.Linear(2, 1)
    gradients = AveragedGradients(model, communicator)

    def fail(array):
        raise OSError("the network is down")

    communicator.all_reduce = fail
    with pytest.raises(OSError, match="the network is down"), gradients.average(1):
        model(Tensor([[1.0, 2.0]])).sum().backward()


def test_after_an_error_while_gradients_are_sent_no_other_block_begins():
    """Some buckets may have been added, and others not; so the ranks may differ from now on."""

    def fail(array):
        raise OSError("the network is down")

    def run(communicator):
        model = nn.Linear(2, 1)
        gradients = AveragedGradients(model, communicator)
        gradients._communicator.all_reduce = fail
        with pytest.raises(OSError, match="the network is down"), gradients.average(1):
            model(Tensor([[1.0, 2.0]])).sum().backward()
        model.zero_grad()
        with pytest.raises(RuntimeError, match="an earlier block ended with an error"):
            gradients.average(1).__enter__()

    on_threads(2, run)


def test_after_a_batch_without_images_the_next_one_is_computed():
    def run(communicator):
        model = nn.Linear(2, 1)
        gradients, loss = AveragedGradients(model, communicator), model(Tensor([[1.0, 2.0]])).sum()
        with pytest.raises(ValueError, match="expected images on some rank, got 0 on all"), gradients.average(0):
            pass
        with gradients.average(1):
            loss.backward()
        return model.weight.grad.numpy().tolist()

    assert on_threads(2, run) == [[[1.0], [2.0]]] * 2


def test_an_error_of_the_block_is_raised_as_it_is_and_hooks_are_removed():
    model = nn.Linear(2, 1)
    gradients = AveragedGradients(model, SingleProcess())
    with pytest.raises(KeyError, match="mine"), gradients.average(1):
        raise KeyError("mine")
    assert not any(parameter._node.hooks for parameter in model.parameters())


def test_misuse_is_refused():
    model = nn.Linear(2, 1)
    gradients, x = AveragedGradients(model, SingleProcess()), Tensor([[1.0, 2.0]])
    with pytest.raises(RuntimeError, match="backward ran twice in the block"), gradients.average(1):
        model(x).sum().backward()
        model(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"there are gradients already.* call model.zero_grad\(\)"):
        gradients.average(1).__enter__()
    model.zero_grad()
    with pytest.raises(ValueError, match="expected images on some rank, got 0 on all"), gradients.average(0):
        model(x).sum().backward()
    with pytest.raises(ValueError, match="images_here to be a whole number >= 0, got -1"):
        gradients.average(-1).__enter__()
    for images, backwards, message in (
        (2.5, 1, "images_here.* got 2.5"),
        (None, 1, "None"),
        (1, 0, "backwards.* got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            gradients.average(images, backwards).__enter__()
    with pytest.raises(ValueError, match="expected bucket_bytes >= 1, got 0"):
        AveragedGradients(model, SingleProcess(), 0)
    with pytest.raises(ValueError, match="ReLU has no parameter that requires grad"):
        AveragedGradients(nn.ReLU(), SingleProcess())


def test_an_empty_share_gets_a_blank_image():
    images, labels = at_least_one(np.ones((0, 2, 3), np.float32), np.ones(0, np.int64))
    assert (images.tolist(), labels.tolist()) == ([[[0, 0, 0], [0, 0, 0]]], [0])
    assert images.dtype == np.float32 and labels.dtype == np.int64
    images, labels = at_least_one(Tensor(np.ones((0, 2), np.float32)), Tensor(np.ones(0, np.int64)))
    assert (images.numpy().tolist(), labels.numpy().tolist(), str(labels.dtype)) == ([[0, 0]], [0], "int64")
    assert at_least_one(np.ones((0, 2)), np.ones(0), 0.3)[2] == 0.3
    *_, share = at_least_one(np.ones((0, 2)), np.ones(0), np.ones(0), np.array(0.3))
    assert share == 0.3
    kept = np.ones((1, 2)), np.ones(1)
    assert at_least_one(*kept)[0] is kept[0]
