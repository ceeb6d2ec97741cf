"""Parts of a network that are computed twice: the same bits, less memory, and nothing else that shows."""

import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
from models.resnet import BasicBlock

import minidl
from minidl import Tensor, nn, recompute
from minidl.functional import cross_entropy
from tests.watched import Watched

SHAPE = 4, 8, 8, 16
BLOCKS = 9


twice = partial(minidl.apply, Watched)

pytestmark = pytest.mark.usefixtures("no_garbage_collector")


@pytest.fixture
def images(device, rng):
    return rng.standard_normal(SHAPE, np.float32)


def make_network(device, blocks=3):
    """Convolutions, batch-norm, additions and dropout; always the same weights."""
    with minidl.fork_rng(5):
        parts = [nn.Sequential(BasicBlock(16, 16, 1, "A"), nn.Dropout(0.3)) for _ in range(blocks)]
        return nn.Sequential(*parts).to(device)


def plainly(network, x):
    return network(x)


def each_block(network, x):
    for block in network:
        x = recompute(block, x)
    return x


def as_one(network, x):
    return recompute(network, x)


def nested(network, x):
    return recompute(partial(each_block, network), x)


def nested_deeper(network, x):
    return recompute(partial(nested, network[1:]), recompute(partial(nested, network[:1]), x))


def bits_after(run, images, device, steps=2, x_requires_grad=True, training=True):
    """Outputs, gradients and the modules' state of some steps of training, as bytes."""
    network = make_network(device).train(training)
    seen = []
    for _ in range(steps):
        x = Tensor(images, device=device, requires_grad=x_requires_grad)
        y = run(network, x)
        (y * y).mean().backward()
        seen += [y.numpy(), *(parameter.grad.numpy() for parameter in network.parameters())]
        seen += [x.grad.numpy()] if x_requires_grad else []
        seen += [buffer.numpy().copy() for _, buffer in network.named_buffers()]
    return [array.tobytes() for array in seen]


each_way = pytest.mark.parametrize("run", [each_block, as_one, nested, nested_deeper], ids=lambda run: run.__name__)


@each_way
def test_outputs_gradients_running_statistics_and_dropout_have_the_bits_they_have_without(run, images, device):
    assert bits_after(run, images, device) == bits_after(plainly, images, device)


@each_way
def test_images_that_need_no_gradient_may_go_in(run, images, device):
    assert bits_after(run, images, device, x_requires_grad=False) == bits_after(
        plainly, images, device, x_requires_grad=False
    )


@each_way
def test_evaluation_has_the_same_bits_too(run, images, device):
    assert bits_after(run, images, device, training=False) == bits_after(plainly, images, device, training=False)


def test_statistics_that_change_before_backward_do_not_change_the_gradient(images, device):
    def gradient(run):
        network = make_network(device, 1).eval()
        x = Tensor(images, device=device, requires_grad=True)
        loss = run(network, x).sum()
        network.train()(x)
        network.eval()
        loss.backward()
        return x.grad.numpy().tobytes()

    assert gradient(as_one) == gradient(plainly)


def test_a_part_runs_once_in_forward_and_once_in_backward(device):
    calls = []

    def part(x):
        calls.append(x.requires_grad)
        return x * 2

    x = Tensor([1.0], device=device, requires_grad=True)
    y = recompute(part, x)
    assert calls == [True]
    y.backward()
    assert calls == [True, True]


def test_under_no_grad_it_simply_calls(device):
    x = Tensor([1.0], device=device, requires_grad=True)
    with minidl.no_grad():
        assert recompute(lambda given: given, x) is x
        assert not recompute(twice, x).requires_grad


def test_backward_within_no_grad_records_the_part_all_the_same(device):
    x = Tensor([3.0], device=device, requires_grad=True)
    y = recompute(lambda x: x * x, x)
    with minidl.no_grad():
        y.backward()
        assert not minidl.is_grad_enabled()
    assert x.grad.item() == 6


def test_where_nothing_requires_grad_the_output_does_not(device):
    assert not recompute(twice, Tensor([1.0], device=device)).requires_grad


def test_several_inputs_each_get_their_gradient_and_one_that_needs_none_gets_none(device):
    a, b, c = (Tensor([v], device=device, requires_grad=v != 5) for v in (2.0, 3.0, 5.0))
    recompute(lambda a, b, c: a * b * c, a, b, c).backward()
    assert (a.grad.item(), b.grad.item(), c.grad) == (15, 10, None)


def test_an_input_given_twice_and_one_that_is_not_used(device):
    a, b = (Tensor([v], device=device, requires_grad=True) for v in (2.0, 3.0))
    recompute(lambda p, q, r: p * q, a, a, b).backward()
    assert a.grad.item() == 4
    assert b.grad is None


def test_a_function_may_give_back_its_input_or_a_parameter(device):
    x, w = (Tensor([v], device=device, requires_grad=True) for v in (2.0, 3.0))
    (recompute(lambda x: x, x) * recompute(lambda x: w, x)).backward()
    assert (x.grad.item(), w.grad.item()) == (3, 2)


def test_a_parameter_of_several_parts_is_finished_once_with_its_whole_gradient(device):
    x, w = (Tensor([v], device=device, requires_grad=True) for v in (2.0, 3.0))
    seen = []
    w._node.hooks.append(lambda: seen.append(w.grad.item()))
    y = recompute(lambda x: x * w, recompute(lambda x: x * w, x))
    (y * w).backward()  # x w^3
    assert seen == [54]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_nothing_that_was_saved_inside_outlives_forward_or_backward():
    x = Tensor([1.0], requires_grad=True)
    y = recompute(twice, x)
    first = Watched.saved
    assert first() is None
    y.backward()
    assert Watched.saved is not first and Watched.saved() is None


def test_what_was_recomputed_for_one_part_is_freed_before_the_next_one_is():
    alive = []

    def part(x):
        alive.append(Watched.saved is not None and Watched.saved() is not None)
        return twice(x)

    x = Tensor([1.0], requires_grad=True)
    recompute(part, recompute(part, recompute(part, x))).backward()
    assert alive == [False] * 6


def test_a_dropped_output_frees_the_inputs():
    x = Tensor([1.0], requires_grad=True) * 1
    y = recompute(twice, x)
    place, array = weakref.ref(x._node), weakref.ref(x.data)
    del x
    assert place() is not None and array() is not None
    del y
    assert place() is None and array() is None


def test_backward_frees_the_inputs_though_the_output_lives_on():
    x = Tensor([1.0], requires_grad=True) * 1
    y = recompute(twice, x)
    array = weakref.ref(x.data)
    del x
    y.backward()
    assert array() is None


def peak(run):
    """Of a training step of many blocks, in bytes, with one thread's scratch buffers there before."""
    with minidl.fork_rng(0):
        network = nn.Sequential(*(BasicBlock(16, 16, 1, "A") for _ in range(BLOCKS)))
    x = Tensor(np.random.default_rng(0).standard_normal((16, 16, 16, 16), np.float32))
    for _ in range(2):  # the first step makes what stays
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        run(network, x).sum().backward()
        network.zero_grad()
    return tracemalloc.get_traced_memory()[1] - before


def test_groups_of_a_square_root_need_the_least_memory():
    def in_groups(network, x, size=3):
        for start in range(0, BLOCKS, size):
            x = recompute(nn.Sequential(*network[start : start + size]), x)
        return x

    threads = minidl.get_num_threads()
    minidl.set_num_threads(1)
    tracemalloc.start()
    plain, whole, groups = peak(plainly), peak(as_one), peak(in_groups)
    tracemalloc.stop()
    minidl.set_num_threads(threads)
    assert groups < 0.6 * plain
    assert groups < 0.6 * whole


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_inside_comes_out_and_leaves_everything_as_it_was(images, device):
    layer = nn.Dropout().to(device)
    x = Tensor(images, device=device, requires_grad=True)

    def part(x):
        x = layer(x)
        if broken:
            raise KeyError("inside")
        return x

    broken = True
    with pytest.raises(KeyError, match="inside"):
        recompute(part, x)
    broken = False
    y = recompute(part, x).sum()
    broken = True
    with pytest.raises(KeyError, match="inside"):
        y.backward()
    counted = Tensor(layer.key).numpy()[2]
    layer(x)
    assert Tensor(layer.key).numpy()[2] == counted + 1 == 3
    assert minidl.is_grad_enabled()


def test_a_second_backward_is_the_usual_error(device):
    y = recompute(twice, Tensor([1.0], device=device, requires_grad=True))
    y.backward()
    with pytest.raises(RuntimeError, match="used before, and the values that recompute saved are freed"):
        y.backward()


def test_an_array_is_no_input_and_no_output(device):
    with pytest.raises(TypeError, match="recompute: expected a Tensor, got ndarray"):
        recompute(twice, np.ones(1))
    with pytest.raises(TypeError, match="recompute: expected a Tensor, got tuple"):
        recompute(lambda x: (x, x), Tensor([1.0], device=device))


def test_a_tensor_computed_outside_must_be_given_as_an_input(device):
    w = Tensor([3.0], device=device, requires_grad=True)
    computed = w * 2
    with pytest.raises(RuntimeError, match="from Mul is held outside; pass it to recompute"):
        recompute(lambda x: x * computed, Tensor([1.0], device=device))
    recompute(lambda x, c: x * c, Tensor([1.0], device=device), computed).backward()
    assert w.grad.item() == 2


def test_a_tensor_that_is_kept_inside_would_keep_the_graph_and_is_an_error(device):
    kept = []

    def part(x):
        kept.append(twice(x))
        return kept[-1] + 1

    with pytest.raises(RuntimeError, match=r"from Watched is held outside.*detach"):
        recompute(part, Tensor([1.0], device=device, requires_grad=True))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_function_that_goes_another_way_in_backward_is_an_error(first, second, device):
    layer = nn.Dropout().to(device)
    times = first

    def part(x):
        for _ in range(times):
            x = layer(x)
        return x

    loss = recompute(part, Tensor(np.ones(50), device=device, requires_grad=True)).sum()
    times = second
    with pytest.raises(RuntimeError, match="in backward what it did in forward"):
        loss.backward()


def test_a_parameter_that_comes_in_only_in_backward_is_an_error(device):
    x, w, v = (Tensor([2.0], device=device, requires_grad=True) for _ in range(3))
    chosen = w
    y = recompute(lambda x: x * chosen, x)
    chosen = v
    with pytest.raises(RuntimeError, match="in backward what it did in forward"):
        y.backward()


@pytest.mark.parametrize(
    "second",
    [
        lambda x, w: x * 2,  # w would have no gradient
        lambda x, w: x.detach() * w,
        lambda x, w: (x * w).detach(),
        lambda x, w: (x * w)[:1],
        lambda x, w: None,
    ],
    ids=["without w", "without x", "without both", "another shape", "nothing"],
)
def test_an_output_of_another_kind_in_backward_is_an_error_and_no_missing_gradient(second, device):
    x, w = (Tensor([2.0, 3.0], device=device, requires_grad=True) for _ in range(2))
    ways = iter([lambda x, w: x * w, second])
    y = recompute(lambda x: next(ways)(x, w), x)
    with pytest.raises(RuntimeError, match="in backward what it did in forward"):
        y.sum().backward()


# -- once --------------------------------------------------------------------------------------------------------------


def test_once_is_a_call_elsewhere_and_is_not_repeated_in_backward(device):
    count = []

    def part(x):
        return x * minidl.once(lambda: count.append(1) or float(len(count)))

    x = Tensor([1.0], device=device, requires_grad=True)
    part(x)
    y = recompute(lambda x: recompute(part, x), x)
    part(x)
    y.backward()
    assert len(count) == 3
    assert x.grad.item() == 2


def test_random_numbers_drawn_inside_are_the_same_in_backward(device):
    """Noise on the weights, say."""
    x = Tensor(np.ones(5), device=device, requires_grad=True)
    y = recompute(lambda x: x * minidl.randn(5, dtype=np.float64, device=device), x)
    drawn = minidl.random.draws_so_far()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert minidl.random.draws_so_far() == drawn


def test_what_once_remembers_may_be_none(device):
    x = Tensor([1.0], device=device, requires_grad=True)
    recompute(lambda x: x * 2 if minidl.once(lambda: None) is None else x, x).backward()
    assert x.grad.item() == 2


def test_a_loss_in_the_part_has_the_same_gradient(images, device):
    """The labels are no tensor, and reach the function by another way."""
    labels = np.arange(4)

    def gradient(run):
        network = make_network(device, 1)
        x = Tensor(images, device=device, requires_grad=True)
        run(lambda x: cross_entropy(network(x).mean((1, 2)), labels), x).backward()
        return x.grad.numpy().tobytes()

    assert gradient(recompute) == gradient(lambda function, x: function(x))
