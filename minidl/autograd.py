"""The graph, and the walk back through it.

Every computed tensor remembers the `Node` that made it: the op, what the op saved, and the places its inputs came
from. Edges run from a node to the makers of its inputs and nothing points forward, so a graph has no cycles and
disappears with the last tensor that refers to it. Nothing here knows what a tensor or an operation is; gradients are
plain arrays.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence


class Leaf:
    """The end of the walk: the place in the graph of a tensor that asks for its gradient and was not computed."""

    __slots__ = ("__weakref__", "grad", "hooks")
    inputs = ()

    def __init__(self):
        self.grad = None
        self.hooks: list[Callable[[], None]] = []  # called when a backward pass has completed `grad`


class Node:
    """One application of an op: `backward` turns dL/d(output) into one dL/d(input), or None, for each of `inputs`.

    `inputs` holds the Node or Leaf of each input, and None for an input that needs no gradient. `kinds` holds the shape
    and dtype of each input, which its gradient must have. `backward` is None after its use: what the op had saved is
    freed.
    """

    __slots__ = ("__weakref__", "backward", "inputs", "kinds", "name")

    def __init__(self, name: str, backward: Callable, inputs: Sequence, kinds: Sequence = ()):
        self.name = name
        self.backward: Callable | None = backward
        self.inputs, self.kinds = inputs, kinds or (None,) * len(inputs)

    def input_grads(self, grad) -> tuple:
        """dL/d(input) for each input. It frees what the op saved, so it works once."""
        grads = self.backward(grad)
        self.backward = None
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(self.inputs):
            raise ValueError(
                f"{self.name}.backward: expected {len(self.inputs)} gradients, one for each input, got {len(grads)}"
            )
        for number, (source, kind, grad) in enumerate(zip(self.inputs, self.kinds, grads, strict=True)):
            if source is None or grad is None or kind is None:
                continue
            if (grad.shape, grad.dtype) != kind:
                expected = f"a gradient of {kind[0]} {kind[1]} for input {number}"
                raise ValueError(f"{self.name}.backward: expected {expected}, got {grad.shape} {grad.dtype}")
        return grads


def backward(root: Node | Leaf, grad) -> None:
    """Add dL/d(leaf) to `leaf.grad` for every leaf that root was computed from; `grad` is dL/d(root)."""
    for leaf, grad_leaf in gradients(root, grad):
        if grad_leaf is None:
            continue
        # Never in place: another leaf may hold the same array.
        leaf.grad = grad_leaf if leaf.grad is None else leaf.grad + grad_leaf
        for hook in leaf.hooks:
            hook()


def gradients(root: Node | Leaf, grad) -> Iterator[tuple[Leaf, object]]:
    """(leaf, dL/d(leaf)) for every leaf that root was computed from, each as soon as it is complete.

    The gradient of a place is the sum of what its consumers send it; each sum is a new array. None, from a consumer
    that does not depend on a place, adds nothing.
    """
    pending = {root: grad}
    for place in in_order(root):
        grad = pending.pop(place, None)
        if isinstance(place, Leaf):
            yield place, grad
        elif grad is not None:
            for source, contribution in zip(place.inputs, place.input_grads(grad), strict=True):
                if source is not None and contribution is not None:
                    pending[source] = pending[source] + contribution if source in pending else contribution


def in_order(root: Node | Leaf) -> Iterator[Node | Leaf]:
    """Every place below root, each after all places that use it.

    This is Kahn's topological sort (1962): no recursion, however deep the network, and a leaf comes as soon as its
    last consumer, not at the end.
    """
    waiting = count_consumers(root)
    ready = [root]
    while ready:
        place = ready.pop()
        yield place
        for source in filter(None, place.inputs):
            waiting[source] -= 1
            if waiting[source] == 0:
                ready.append(source)


def count_consumers(root: Node | Leaf) -> Counter:
    """How often each place below root is used. A freed graph is an error here, before any gradient is added."""
    waiting = Counter()
    found = [root]
    while found:
        place = found.pop()
        if isinstance(place, Node) and place.backward is None:
            raise RuntimeError(
                f"backward: the graph was walked before, and what {place.name} had saved is freed; "
                "run the forward pass again, or add the losses up and call backward once"
            )
        for source in filter(None, place.inputs):
            if source not in waiting:
                found.append(source)
            waiting[source] += 1
    return waiting


_thread = threading.local()


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded."""
    return getattr(_thread, "grad_enabled", True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside the `with` block (or the decorated function), in this thread only."""
    with set_grad_enabled(False):
        yield


@contextlib.contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Switch recording on or off inside the `with` block, in this thread only."""
    before = is_grad_enabled()
    _thread.grad_enabled = enabled
    try:
        yield
    finally:
        _thread.grad_enabled = before
