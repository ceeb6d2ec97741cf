"""The graph, and the walk back through it."""

import asyncio
import threading
import weakref

import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, no_grad
from minidl.autograd import Leaf, Node, backward
from tests.ops.case import gradients


def leaf(value, device):
    return Tensor(np.asarray(value, np.float64), device=device, requires_grad=True)


@pytest.fixture
def x(device):
    return leaf([1.0, 2.0, 3.0], device)


def logged(log, name, count=1):
    """A node's backward that notes its name, and sends its gradient to each of so many inputs."""

    def run(grad):
        log.append(name)
        return (grad,) * count

    return run


# -- the sums ----------------------------------------------------------------------------------------------------------


def test_gradients_of_all_paths_add_up():
    """y = ((x * 2) + (x * 3)) * 5, as nodes on plain numbers: the walk knows neither tensors nor operations."""
    x = Leaf()
    twice, thrice = Node("twice", lambda grad: grad * 2, (x,)), Node("thrice", lambda grad: grad * 3, (x,))
    total = Node("total", lambda grad: (grad, grad), (twice, thrice))
    backward(Node("five times", lambda grad: grad * 5, (total,)), np.float64(1))
    assert x.grad == 25


def test_a_diamond_of_diamonds(x, device):
    y = x * x
    z = (y + x) * (y - x)  # x^4 - x^2
    z.backward(leaf([1.0, 10.0, 100.0], device).detach())
    np.testing.assert_allclose(x.grad.numpy(), (4 * x.numpy() ** 3 - 2 * x.numpy()) * [1, 10, 100], rtol=1e-12)


def test_a_tensor_may_be_used_many_times(x):
    total = x
    for _ in range(99):
        total = total + x
    total.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [100, 100, 100])


def test_both_inputs_may_be_the_same_tensor(x):
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4, 6])


def test_a_skip_around_a_long_way_gets_both_gradients(x):
    y = x
    for _ in range(5):
        y = y * 2
    (y + x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [33, 33, 33])


def test_no_recursion_however_deep_the_graph(x):
    y = x
    for _ in range(10_000):
        y = y + 1
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1, 1])


def test_a_deep_graph_is_forgotten_without_recursion():
    place = Leaf()
    for _ in range(200_000):
        place = Node("", None, (place,))
    last = weakref.ref(place)
    del place
    assert last() is None


def test_a_leaf_is_its_own_gradients_way(x, device):
    x.backward(leaf([1.0, 2.0, 3.0], device).detach())
    np.testing.assert_array_equal(x.grad.numpy(), [1, 2, 3])


# -- when --------------------------------------------------------------------------------------------------------------


def test_a_leaf_is_finished_as_soon_as_its_last_consumer_is():
    """The hook of the last layer's weight runs before the backward of the layers below it."""
    log, weights = [], [Leaf() for _ in range(3)]
    node = Leaf()
    for i, weight in enumerate(weights):
        weight.hooks.append(lambda i=i: log.append(f"hook {i}"))
        node = Node(f"layer {i}", logged(log, f"layer {i}", 2), (node, weight))
    backward(node, np.float64(1))
    assert log == ["layer 2", "hook 2", "layer 1", "hook 1", "layer 0", "hook 0"]


def test_a_shared_leaf_is_finished_once_with_its_whole_gradient():
    log, x = [], Leaf()
    x.hooks.append(lambda: log.append(x.grad))
    first, second = Node("first", lambda grad: grad, (x,)), Node("second", lambda grad: 2 * grad, (x,))
    backward(Node("sum", lambda grad: (grad, grad), (first, second)), np.float64(1))
    assert log == [3]


@pytest.mark.parametrize("short_way", [0, 1])
def test_a_node_waits_for_all_its_consumers(short_way):
    """The short way around a block arrives first, and must not be sent on before the long way has come."""
    log, x = [], Leaf()
    stem = Node("stem", logged(log, "stem"), (x,))
    block = stem
    for i in range(3):
        block = Node(f"block {i}", logged(log, f"block {i}"), (block,))
    inputs = (stem, block) if short_way == 0 else (block, stem)
    backward(Node("sum", logged(log, "sum", 2), inputs), np.float64(1))
    assert log == ["sum", "block 2", "block 1", "block 0", "stem"]
    assert x.grad == 2


def test_the_other_branch_is_walked_though_one_says_that_nothing_depends_on_it():
    x = Leaf()
    dead = Node("dead", lambda grad: None, (x,))
    alive = Node("alive", lambda grad: grad, (x,))
    below = Node("below", pytest.fail, (dead,))
    backward(Node("sum", lambda grad: (None, grad), (below, alive)), np.float64(1))
    assert x.grad == 1


def test_a_leaf_that_nothing_depends_on_gets_no_gradient():
    x = Leaf()
    x.hooks.append(pytest.fail)
    backward(Node("constant", lambda grad: None, (x,)), np.float64(1))
    assert x.grad is None


# -- gradients on the way ----------------------------------------------------------------------------------------------


def chain(tensor):
    """A tensor on the way, used twice, and a scalar behind it: in minidl and in PyTorch."""
    y = tensor * 3
    return y, (y * y + y * 5).sum()


def test_retain_grad_keeps_the_sum_of_all_contributions_as_in_pytorch(x, torch):
    their_x = torch.tensor(x.numpy(), requires_grad=True)
    (y, loss), (their_y, their_loss) = chain(x), chain(their_x)
    for tensor, end in ((y, loss), (their_y, their_loss)):
        tensor.retain_grad()
        tensor.retain_grad()  # changes nothing
        assert tensor.grad is None
        end.backward()
    np.testing.assert_array_equal(y.grad.numpy(), their_y.grad.numpy())
    np.testing.assert_array_equal(x.grad.numpy(), their_x.grad.numpy())
    assert (y.grad.shape, y.grad.dtype, y.grad.requires_grad) == (y.shape, y.dtype, False)


def test_what_backward_starts_from_can_retain_its_gradient_too(x, torch):
    for tensor in (x, torch.tensor(x.numpy(), requires_grad=True)):
        _, loss = chain(tensor)
        loss.retain_grad()
        loss.backward()
        assert loss.grad.item() == 1


def test_on_a_leaf_retain_grad_does_nothing(x, torch):
    for tensor in (x, torch.tensor(x.numpy(), requires_grad=True)):
        tensor.retain_grad()
        assert tensor.grad is None
        tensor.sum().backward()
        assert tensor.grad.numpy().tolist() == [1, 1, 1]


def test_a_tensor_without_grad_cannot_retain_one(x, torch):
    with no_grad():
        unrecorded = x * 2
    for tensor in (unrecorded, x.detach(), torch.ones(3)):
        with pytest.raises(RuntimeError, match=r"retain_grad"):
            tensor.retain_grad()


def test_a_retained_gradient_is_added_to_the_one_that_is_there(x, torch):
    """Over backward passes; PyTorch's goes twice through one graph, here the first gradient is set."""
    their_y, their_loss = chain(torch.tensor(x.numpy(), requires_grad=True))
    their_y.retain_grad()
    their_loss.backward(retain_graph=True)
    first = their_y.grad.numpy().copy()
    their_loss.backward()
    y, loss = chain(x)
    y.retain_grad()
    given = Tensor(first, device=x.device)
    y.grad = given
    loss.backward()
    np.testing.assert_array_equal(y.grad.numpy(), their_y.grad.numpy())
    np.testing.assert_array_equal(given.numpy(), first)  # and not in place


def test_a_tensor_that_gets_no_gradient_retains_none(x):
    y = x * 2
    y.retain_grad()
    dead = Node("dead", lambda grad: None, (y._node,))
    backward(dead, np.float64(1))
    assert y.grad is None


def test_retaining_gradients_changes_no_other_gradient_and_frees_the_graph_as_ever(x):
    y, loss = chain(x)
    loss.backward()
    expected = x.grad.numpy().copy()
    x.grad = None
    y, loss = chain(x)
    for tensor in (y, loss):
        tensor.retain_grad()
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), expected)
    with pytest.raises(RuntimeError, match="freed"):
        loss.backward()


def test_what_recompute_returns_and_what_it_takes_can_retain_gradients(x):
    inside = []

    def square(x):
        y = x * x
        inside.append(y.requires_grad and y.retain_grad())
        return y

    taken = x * 1
    returned = minidl.recompute(square, taken)
    for tensor in (taken, returned):
        tensor.retain_grad()
    (returned * 2).sum().backward()
    assert len(inside) == 2
    np.testing.assert_array_equal(returned.grad.numpy(), [2, 2, 2])
    np.testing.assert_array_equal(taken.grad.numpy(), x.grad.numpy())
    np.testing.assert_array_equal(x.grad.numpy(), [4, 8, 12])


# -- twice -------------------------------------------------------------------------------------------------------------


def test_gradients_of_two_passes_add_up(x):
    (x * 2).sum().backward()
    first = x.grad.numpy().copy()
    (x * 3).sum().backward()
    np.testing.assert_array_equal(first, [2, 2, 2])
    np.testing.assert_array_equal(x.grad.numpy(), [5, 5, 5])


def test_adding_a_second_gradient_leaves_the_array_of_the_first_alone(x, device):
    other = leaf([0.0, 0.0, 0.0], device)
    (x + other).sum().backward()
    shared = other.grad.data
    (x * 3).sum().backward()
    np.testing.assert_array_equal(minidl.kernels.to_device(shared, "cpu"), [1, 1, 1])


def test_a_second_backward_is_an_error_that_says_what_to_do(x):
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"Sum.*freed.*run the forward pass again, or add the losses and"):
        loss.backward()


def test_a_walk_that_meets_a_freed_part_adds_nothing_to_any_gradient(x, device):
    fresh = leaf([1.0, 1.0, 1.0], device)
    shared = x * x
    shared.sum().backward()
    before = x.grad.numpy().copy()
    with pytest.raises(RuntimeError, match=r"Mul.*freed"):
        (shared * fresh + fresh).sum().backward()
    assert fresh.grad is None
    np.testing.assert_array_equal(x.grad.numpy(), before)


def test_what_the_failed_walk_did_not_touch_can_still_be_walked(x):
    shared, other = x * x, x * 3
    shared.sum().backward()
    with pytest.raises(RuntimeError):
        (shared + other).sum().backward()
    x.grad = None
    other.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 3, 3])


# -- where there is nothing to walk ------------------------------------------------------------------------------------


def test_backward_from_what_is_not_a_scalar_needs_a_gradient(x):
    with pytest.raises(ValueError, match=r"backward.*scalar.*\(3,\).*\.mean\(\)"):
        (x * 2).backward()


def test_one_number_is_a_scalar_in_any_shape(device):
    x = leaf([[2.0]], device)
    (x * x).backward()
    assert x.grad.item() == 4


def test_backward_from_what_was_not_recorded_is_an_error(x):
    with no_grad():
        loss = (x * x).sum()
    for tensor in (loss, (x.detach() * 2).sum(), x.detach().sum()):
        with pytest.raises(RuntimeError, match=r"backward.*nothing that requires grad.*no_grad"):
            tensor.backward()


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (Tensor(np.ones(2)), r"backward.*float64 \(3,\).*got float64 \(2,\)"),
        (Tensor([1.0, 1.0, 1.0]), r"backward.*float64 \(3,\).*got float32 \(3,\)"),
        (np.ones(3), r"backward.*Tensor.*ndarray.*minidl.Tensor"),
    ],
    ids=["shape", "dtype", "an array"],
)
def test_the_gradient_to_start_from_has_to_be_like_the_tensor(grad, message, x, device):
    grad = grad.to(device) if isinstance(grad, Tensor) else grad
    with pytest.raises((ValueError, TypeError), match=message):
        (x * 2).backward(grad)
    assert x.grad is None


# -- no_grad -----------------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_inside_no_grad(x):
    with no_grad():
        assert not minidl.is_grad_enabled()
        assert not (x * 2).requires_grad
    assert minidl.is_grad_enabled()
    assert (x * 2).requires_grad


def test_no_grad_nests(x):
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2).requires_grad


def test_a_block_of_no_grad_may_be_entered_inside_itself():
    block = no_grad()
    with block:
        with block:
            assert not minidl.is_grad_enabled()
        assert not minidl.is_grad_enabled()
    assert minidl.is_grad_enabled()


def test_no_grad_ends_with_an_exception_too():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert minidl.is_grad_enabled()


def test_no_grad_decorates_functions_again_and_again(x):
    @no_grad()
    def double(x):
        return x * 2

    for _ in range(2):
        assert not double(x).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_is_of_its_own_thread(x):
    recorded = []
    with no_grad():
        thread = threading.Thread(target=lambda: recorded.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert recorded == [True]


def test_no_grad_is_of_its_own_asyncio_task(x):
    """Two tasks enter their blocks one after the other, and leave them in the same order."""

    async def evaluate(inside, other_is_inside):
        with no_grad():
            inside.set()
            await other_is_inside.wait()
            assert not (x * 2).requires_grad

    async def train(inside):
        await inside.wait()
        assert (x * 2).requires_grad

    async def everything():
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(evaluate(a, b), evaluate(b, a), train(a))

    asyncio.run(everything())
    assert minidl.is_grad_enabled()


def test_generators_may_leave_their_blocks_in_any_order():
    def generate():
        with no_grad():
            yield

    first, second = generate(), generate()
    next(first), next(second)
    first.close()
    assert not minidl.is_grad_enabled()  # the second one is still inside
    second.close()
    assert minidl.is_grad_enabled()


def test_no_grad_decorates_no_generator_and_no_coroutine():
    def generate():
        yield

    async def answer():
        pass

    async def generate_later():
        yield

    for function in generate, answer, generate_later:
        with pytest.raises(TypeError, match=rf"no_grad: {function.__name__} only begins .* write `with minidl.no_grad"):
            no_grad()(function)


def test_a_decorated_function_may_call_itself(x):
    @no_grad()
    def count_down(number):
        if number:
            count_down(number - 1)
        assert not minidl.is_grad_enabled()

    count_down(3)
    assert minidl.is_grad_enabled()


# -- what is left out --------------------------------------------------------------------------------------------------


def test_what_was_computed_before_freezing_keeps_its_place(x, device):
    frozen = leaf([1.0, 1.0, 1.0], device)
    frozen.requires_grad = False
    y = x * frozen
    y.sum().backward()
    assert frozen.grad is None
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1, 1])


def test_detach_cuts_the_way_back(x):
    ((x * 2).detach() * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4, 6])


def test_an_op_knows_which_gradients_are_wanted(x, device):
    seen = []

    class Watch(Function):
        @staticmethod
        def forward(ctx, a, b, c):
            seen.append(ctx.needs_grad)
            return a + b + c

        @staticmethod
        def backward(ctx, grad):
            seen.append(ctx.needs_grad)
            return None, grad, None

    constant = x.detach()
    minidl.apply(Watch, constant, x * 2, constant).sum().backward()
    with no_grad():
        minidl.apply(Watch, constant, x, constant)
    assert seen == [(False, True, False), (False, True, False), (False, False, False)]
    np.testing.assert_array_equal(x.grad.numpy(), [2, 2, 2])


def test_the_first_convolution_never_computes_its_gradient_with_respect_to_the_images(device, kernels, monkeypatch):
    needs, backward = [], kernels.conv2d_backward
    monkeypatch.setattr(kernels, "conv2d_backward", lambda *args: needs.append(args[-2:]) or backward(*args))
    with minidl.fork_rng(0):
        network = minidl.nn.Sequential(minidl.nn.Conv2d(2, 3, 3), minidl.nn.ReLU(), minidl.nn.Conv2d(3, 2, 3)).to(
            device
        )
    network(minidl.randn(1, 6, 6, 2).to(device)).sum().backward()
    assert needs == [(True, True), (False, True)]
    assert all(parameter.grad is not None for parameter in network.parameters())


def record(monkeypatch, module, name, calls):
    """Note every call of the function."""
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(name) or function(*args))


# -- a user's own operation --------------------------------------------------------------------------------------------


class Square(Function):
    """y = x^2.   dL/dx = 2 x dL/dy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return 2 * x * grad


def test_an_operation_of_ones_own_is_checked_and_used_like_the_others(x):
    minidl.gradcheck(lambda x: minidl.apply(Square, x), [x])
    y = minidl.apply(Square, x * 3)
    assert "from Square" in repr(y)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [18, 36, 54])


def test_hyperparameters_come_by_name(device):
    class Scale(Function):
        @staticmethod
        def forward(ctx, x, *, factor):
            ctx.save(factor)
            return x * factor

        @staticmethod
        def backward(ctx, grad):
            (factor,) = ctx.saved
            return grad * factor

    y, (grad_x,) = gradients(lambda x: minidl.apply(Scale, x, factor=3), [np.ones(2)], np.array([1.0, 2.0]), device)
    np.testing.assert_array_equal(y, [3, 3])
    np.testing.assert_array_equal(grad_x, [3, 6])


def test_a_forward_that_returns_several_arrays_is_an_error(x):
    class Both(Function):
        @staticmethod
        def forward(ctx, x):
            return x, -x

    with pytest.raises(TypeError, match=r"Both\.forward: expected one array, got a tuple"):
        minidl.apply(Both, x)


@pytest.mark.parametrize("count", [1, 3])
def test_a_backward_with_too_few_or_too_many_gradients_is_an_error(count, x):
    class Wrong(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, grad):
            return (grad,) * count

    with pytest.raises(ValueError, match=rf"Wrong\.backward.*2 gradients, one for each input, got {count}"):
        minidl.apply(Wrong, x, x).sum().backward()


def test_an_operation_without_its_methods_says_so(x):
    with pytest.raises(NotImplementedError):
        minidl.apply(Function, x)
