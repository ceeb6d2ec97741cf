"""The graph, and the walk back through it.

Every computed tensor remembers the `Node` that made it: the op, what the op saved, and the places its inputs came
from. Edges run from a node to the makers of its inputs and nothing points forward, so a graph has no cycles and
disappears with the last tensor that refers to it. Nothing here knows what a tensor or an operation is; gradients are
plain arrays.
"""

import contextlib
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator


class Leaf:
    """Where the walk ends: the place of a tensor that asks for its gradient and was not computed from others."""

    __slots__ = ("__weakref__", "grad", "hooks")

    def __init__(self):
        self.grad = None
        self.hooks: list[Callable[[], None]] = []  # called when `grad` has been completed by a backward pass

    def finish(self, grad):
        """Called once in a backward pass, with its whole gradient. Sums are new arrays: that one may be shared."""
        if grad is None:
            return
        self.grad = grad if self.grad is None else self.grad + grad
        for hook in self.hooks:
            hook()


class Node:
    """One application of an op: `backward` turns dL/d(output) into one dL/d(input), or None, for each of `inputs`.

    `inputs` holds the Node or Leaf behind each input, and None behind an input that needs no gradient. `backward` is
    None once it was used: what the op had saved is gone then.
    """

    __slots__ = ("__weakref__", "backward", "inputs", "name")

    def __init__(self, name: str, backward: Callable, inputs: tuple):
        self.name = name
        self.backward: Callable | None = backward
        self.inputs = inputs

    def input_grads(self, grad) -> tuple:
        """dL/d(input) for each input; frees what the op saved, so it can be asked once."""
        grads = self.backward(grad)
        self.backward = None
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(self.inputs):
            raise ValueError(
                f"{self.name}.backward: expected {len(self.inputs)} gradients, one for each input, got {len(grads)}"
            )
        return grads


def backward(root: Node | Leaf, grad, add: Callable = operator.add) -> None:
    """Add dL/d(leaf) to `leaf.grad` for every leaf that root was computed from; `grad` is dL/d(root)."""
    for leaf, grad_leaf in gradients(root, grad, add):
        leaf.finish(grad_leaf)


def gradients(root: Node | Leaf, grad, add: Callable = operator.add) -> Iterator[tuple[Leaf, object]]:
    """(leaf, dL/d(leaf)) for every leaf that root was computed from, each as soon as it is known.

    Gradients that meet at a place are summed by `add`, into a new array, as each may belong to others too.
    A place is visited when all its consumers have been, so its gradient is complete and is used once. This is Kahn's
    topological sort (1962): no recursion, however deep the network, and a leaf is finished as soon as its last
    consumer is, not at the end. What a node saved is freed as soon as it was used.
    """
    waiting = count_consumers(root)
    pending = {root: grad}
    ready = [root]
    while ready:
        place = ready.pop()
        grad = pending.pop(place, None)  # None: every consumer said that it does not depend on this place
        if isinstance(place, Leaf):
            yield place, grad
            continue
        grads = (None,) * len(place.inputs) if grad is None else place.input_grads(grad)
        for source, contribution in zip(place.inputs, grads, strict=True):
            if source is None:
                continue
            if contribution is not None:
                pending[source] = add(pending[source], contribution) if source in pending else contribution
            waiting[source] -= 1
            if waiting[source] == 0:
                ready.append(source)


def count_consumers(root: Node | Leaf) -> Counter:
    """How many gradients each place below root will be sent. An error comes here, before any gradient is added."""
    waiting = Counter()
    found = [root]
    while found:
        place = found.pop()
        if isinstance(place, Leaf):
            continue
        if place.backward is None:
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
    """Record inside the `with` block, or do not, whatever was so before; in this thread only."""
    before = is_grad_enabled()
    _thread.grad_enabled = enabled
    try:
        yield
    finally:
        _thread.grad_enabled = before
