"""A part of a network that keeps nothing for its backward pass, and is computed again when that comes."""

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
    """function(*inputs). Only the inputs are kept: backward computes it again, and then walks back through it.

        for block in blocks:
            x = minidl.recompute(block, x)

    Backward needs what forward computed, so the memory of a training step grows with the number of layers L. Cut
    the network into parts of k layers: L / k inputs are kept, and during backward the k layers of one part,

        memory(k) = L / k + k,   least at k = sqrt(L), where it is 2 sqrt(L);

    the price is a second forward pass, about a third more time. Chen, Xu, Zhang, Guestrin 2016, "Training deep nets
    with sublinear memory cost" (arXiv 1604.06174), section 4. Parts may stand within parts.

    The gradients, of the inputs and of the parameters inside, are those without `recompute`, bit for bit (where three
    or more meet at an input, they may be summed in another order). Running statistics change once, and dropout and
    `minidl.randn` draw the same numbers: see `once`. What the function reads must be in backward as it was in forward:
    parameters, training or evaluation, `tf32`, and random numbers of NumPy's own.

    Raises TypeError unless the inputs and the output are tensors, and RuntimeError if the function depends on a tensor
    that was computed outside and is no input, or keeps one that it computed itself, or is seen to do something else the
    second time.
    """
    check_tensors("recompute", *inputs)
    if not is_grad_enabled() or getattr(_thread, "keeping_all", False):
        return function(*inputs)
    copies = [Tensor(x.data, requires_grad=x.requires_grad) for x in inputs]  # the same memory, another place
    values = []
    with once_through(partial(_note, values)):
        array, leaves = _first_run(function, copies)
    y = Tensor(array)
    if leaves:
        outside = {copy._place: x._place for copy, x in zip(copies, inputs, strict=True)}
        sources = tuple(outside.get(leaf, leaf) for leaf in leaves)
        y._place = Node("recompute", partial(_backward, function, copies, values, leaves), sources)
    return y


@contextlib.contextmanager
def keep_all() -> Iterator[None]:
    """Inside, `recompute` only calls the function: for code that reads intermediate tensors, such as `watch`."""
    before = getattr(_thread, "keeping_all", False)
    _thread.keeping_all = True
    try:
        yield
    finally:
        _thread.keeping_all = before


def _first_run(function: Callable, inputs: list[Tensor]) -> tuple:
    """The output's array, and the leaves that it was computed from: the graph that tells them dies here.

    So the leaves become inputs of one node, and a parameter that several parts share is finished once, with its whole
    gradient. The graph costs no memory that backward would not need later, for one part at a time.
    """
    y = function(*inputs)
    check_tensors("recompute", y)
    if y._place is None:
        return y.data, []
    array, places = y.data, [y._place, *count_consumers(y._place)]
    leaves = [place for place in places if isinstance(place, Leaf)]
    nodes = [weakref.ref(place) for place in places if isinstance(place, Node)]
    del y, places
    alive = [node.name for node in (reference() for reference in nodes) if node is not None]
    if alive:
        raise RuntimeError(
            f"recompute: expected tensors that are computed inside and die there, but one from {alive[0]} is held "
            "outside; give it to recompute(function, ...) as an input, or use its detach()"
        )
    return array, leaves


def _backward(function: Callable, inputs: list[Tensor], values: list, leaves: list[Leaf], grad) -> tuple:
    """dL/d(leaf) for each of the leaves, through a graph that lives no longer than this call."""
    remaining = iter(values)
    with set_grad_enabled(True), once_through(partial(_repeat, remaining)):
        root = _root(function(*inputs), grad.shape)
    found = dict(gradients(root, grad))
    if next(remaining, _NOTHING) is not _NOTHING or found.keys() != set(leaves):
        raise _changed()
    return tuple(found[leaf] for leaf in leaves)


def _root(y: Tensor, shape: tuple[int, ...]) -> Node | Leaf:
    """Where the output of the second run was computed: it is held no longer than that takes."""
    if not isinstance(y, Tensor) or y.shape != shape or y._place is None:
        raise _changed()
    return y._place


# -- what the second run must not do again: see `minidl.once` ----------------------------------------------------------

_NOTHING = object()  # in place of a result: all others, None too, may be one


def _note(values: list, outer: Callable, compute: Callable):
    """Keep what compute() gave for the second run. A part within a part asks the outer part first."""
    values.append(outer(compute))
    return values[-1]


def _repeat(remaining: Iterator, outer: Callable, compute: Callable):
    """What compute() gave in the first run."""
    value = next(remaining, _NOTHING)
    if value is _NOTHING:
        raise _changed()
    return value


def _changed() -> RuntimeError:
    return RuntimeError(
        "recompute: expected the function to do in backward what it did in forward, but it went another way; let it "
        "depend on its inputs and on parameters alone, and change no module between forward and backward"
    )
