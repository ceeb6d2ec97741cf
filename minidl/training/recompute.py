"""Recomputation: a part of a network saves only its inputs, and is computed a second time during backward."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial

from minidl.autograd import Leaf, Node, count_consumers, gradients, is_grad_enabled, set_grad_enabled
from minidl.random import once_through
from minidl.tensor import Tensor, check_tensors

_thread = threading.local()


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return function(*inputs), saving only the inputs. Backward calls the function again and differentiates it then.

        for block in blocks:
            x = minidl.recompute(block, x)

    Backward needs the values of forward, so the memory of a training step grows with the number of layers L. Cut
    the network into parts of k layers. Memory then holds L / k inputs and, during backward, the k layers of one part:

        memory(k) = L / k + k,   least at k = sqrt(L), where it is 2 sqrt(L);

    The price is a second forward pass, about a third more time. Chen, Xu, Zhang, Guestrin 2016, "Training deep nets
    with sublinear memory cost" (arXiv 1604.06174), section 4. Parts may be nested.

    The gradients of inputs and parameters equal those without `recompute`, bit for bit (three or more gradients of one
    input may be summed in another order). Running statistics are updated once, and dropout and `minidl.randn` draw the
    same numbers in both runs: see `once`. All else that the function reads must be the same in backward as in forward:
    parameters, training or evaluation mode, `tf32`, and random numbers drawn with NumPy.

    Raises TypeError unless the inputs and the output are tensors. Raises RuntimeError if the function uses a tensor
    that was computed outside and is not an input, if a tensor that it computed is still referenced outside, or if the
    second run is seen to differ from the first.
    """
    check_tensors("recompute", *inputs)
    if not is_grad_enabled() or getattr(_thread, "keeping_all", False):
        return function(*inputs)
    copies = [Tensor(x, requires_grad=x.requires_grad) for x in inputs]  # same memory, separate graph
    values = []
    with once_through(partial(_record, values)):
        array, leaves = _first_run(function, copies)
    y = Tensor(array)
    if leaves:
        outside = {copy._node: x._node for copy, x in zip(copies, inputs, strict=True)}
        sources = tuple(outside.get(leaf, leaf) for leaf in leaves)
        versions = [(leaf.version, leaf.version.count) for leaf in leaves]  # backward computes with them again
        y._node = Node("recompute", partial(_backward, function, copies, values, leaves), sources, saved=versions)
    return y


@contextlib.contextmanager
def keep_all() -> Iterator[None]:
    """In the `with` block `recompute` just calls the function, for code that reads intermediate tensors (`watch`)."""
    before = getattr(_thread, "keeping_all", False)
    _thread.keeping_all = True
    try:
        yield
    finally:
        _thread.keeping_all = before


def _first_run(function: Callable, inputs: list[Tensor]) -> tuple:
    """Call the function. Return the output's array and the leaves it was computed from, and free the graph.

    The leaves become inputs of a single node, so a parameter shared by several parts is finished once, with its whole
    gradient. The graph needs no more memory here than in backward, which also treats one part at a time.
    """
    y = function(*inputs)
    check_tensors("recompute", y)
    if y._node is None:
        return y.data, []
    array, graph = y.data, [y._node, *count_consumers(y._node)]
    leaves = [node for node in graph if isinstance(node, Leaf)]
    nodes = [weakref.ref(node) for node in graph if isinstance(node, Node)]
    del y, graph
    alive = [node.name for node in (reference() for reference in nodes) if node is not None]
    if alive:
        raise RuntimeError(
            f"recompute: expected all tensors that are computed inside to be freed there, but one from {alive[0]} is "
            "held outside; pass it to recompute(function, ...) as an input, or use its detach()"
        )
    return array, leaves


def _backward(function: Callable, inputs: list[Tensor], values: list, leaves: list[Leaf], grad) -> tuple:
    """Return dL/d(leaf) for each leaf. The graph of the second run is freed before this returns."""
    remaining = iter(values)
    with set_grad_enabled(True), once_through(partial(_replay, remaining)):
        root = _root(function(*inputs), grad.shape)
    found = {leaf: grad_leaf for leaf, grad_leaf in gradients(root, grad) if isinstance(leaf, Leaf)}
    if next(remaining, _NOTHING) is not _NOTHING or found.keys() != set(leaves):
        raise _changed()
    return tuple(found[leaf] for leaf in leaves)


def _root(y: Tensor, shape: tuple[int, ...]) -> Node | Leaf:
    """Return the node (or leaf) of the second run's output. The tensor itself is freed on return."""
    if not isinstance(y, Tensor) or y.shape != shape or y._node is None:
        raise _changed()
    return y._node


# -- side effects that the second run must not repeat: see `minidl.once` -----------------------------------------------

_NOTHING = object()  # marks that no result is left; None can be a result


def _record(values: list, outer: Callable, compute: Callable):
    """Return compute() and keep it for the second run. A nested part gets it from the outer part."""
    values.append(outer(compute))
    return values[-1]


def _replay(remaining: Iterator, outer: Callable, compute: Callable):
    """Return the result that compute() had in the first run."""
    value = next(remaining, _NOTHING)
    if value is _NOTHING:
        raise _changed()
    return value


def _changed() -> RuntimeError:
    return RuntimeError(
        "recompute: expected the function to do in backward what it did in forward, but it did something else; let it "
        "depend only on its inputs and on parameters, and change no module between forward and backward"
    )
