"""The computational graph, and the backward pass through it (reverse-mode automatic differentiation).

Each computed tensor refers to the `Node` that produced it: the op's backward, with the values the op saved, and an edge
to the Node or Leaf of each input. Edges only point back, from an output to its inputs. So a graph has no reference
cycles, and is freed with the last tensor that refers to it. This file imports neither tensors nor operations:
gradients are plain arrays.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from minidl.kernels import add


class Leaf:
    """A leaf of the graph, for a tensor that requires grad and was not computed from others. It holds the gradient."""

    __slots__ = ("__weakref__", "grad", "hooks", "retains_grad")
    inputs = ()

    def __init__(self):
        self.grad, self.retains_grad = None, True
        self.hooks: list[Callable[[], None]] = []  # called when a backward pass has completed `grad`

    def __getstate__(self):
        """Return what pickle and copy.deepcopy keep: the gradient. Hooks belong to whoever added them."""
        return None, {"grad": self.grad, "hooks": [], "retains_grad": True}


class Node:
    """One application of an op: `backward` maps dL/d(output) to dL/d(input), or None, for each input.

    `inputs` holds the edges: the Node or Leaf of each input, or None if that input needs no gradient. `kinds` holds the
    shape and dtype of each input, which its gradient must have too. After its use `backward` is set to None, which
    frees the values that the op saved. A node keeps its gradient, as leaves do, only if `retains_grad` is set.
    """

    __slots__ = ("__weakref__", "backward", "grad", "inputs", "kinds", "name", "retains_grad")
    hooks = ()

    def __init__(self, name: str, backward: Callable, inputs: Sequence, kinds: Sequence = ()):
        self.name, self.grad, self.retains_grad = name, None, False
        self.backward: Callable | None = backward
        self.inputs, self.kinds = inputs, kinds or (None,) * len(inputs)

    def input_grads(self, grad) -> tuple:
        """Return dL/d(input) for each input. Works once: it frees what the op saved."""
        grads = self.backward(grad)  # type: ignore[misc]  # count_consumers has checked that it is there
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
    """Add dL/d(leaf) to `leaf.grad` for every leaf that root was computed from; `grad` is dL/d(root).

    Nodes that retain their gradient, root among them, receive theirs in the same way.
    """
    for node, grad_node in gradients(root, grad):
        if grad_node is not None:
            # Never in place: another leaf may hold the same array.
            node.grad = grad_node if node.grad is None else add(node.grad, grad_node)
            for hook in node.hooks:
                hook()


def gradients(root: Node | Leaf, grad) -> Iterator[tuple[Node | Leaf, object]]:
    """Yield (leaf, dL/d(leaf)) for every leaf that root was computed from, each as soon as it is complete.

    Also yield those nodes that retain their gradient. By the chain rule, the gradient of a node is the sum of the
    contributions of its consumers; each sum is a new array. A contribution of None counts as zero. If a leaf receives
    nothing else, its gradient is None.
    """
    pending = {root: grad}
    for node in in_order(root):
        grad = pending.pop(node, None)
        if node.retains_grad:
            yield node, grad
        if isinstance(node, Node) and grad is not None:
            for source, contribution in zip(node.inputs, node.input_grads(grad), strict=True):
                if source is not None and contribution is not None:
                    pending[source] = add(pending[source], contribution) if source in pending else contribution


def in_order(root: Node | Leaf) -> Iterator[Node | Leaf]:
    """Yield root and every node and leaf below it, each after all its consumers: Kahn's topological sort (1962).

    There is no recursion, so a deep network cannot overflow the stack. Most leaves come right after their last consumer
    and not at the end, so their gradients are complete early.
    """
    waiting_for = count_consumers(root)
    ready = [root]
    while ready:
        node = ready.pop()
        yield node
        for source in filter(None, node.inputs):
            waiting_for[source] -= 1
            if waiting_for[source] == 0:
                ready.append(source)


def count_consumers(root: Node | Leaf) -> Counter:
    """Return how many edges lead to each node and leaf below root. Raise RuntimeError if one of them is freed."""
    consumers: Counter = Counter()
    unvisited = [root]
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, Node) and node.backward is None:  # found here, before any gradient is added
            raise RuntimeError(
                f"backward: this graph was used before, and the values that {node.name} saved are freed; "
                "run the forward pass again, or add the losses and call backward once"
            )
        for source in filter(None, node.inputs):
            if source not in consumers:
                unvisited.append(source)
            consumers[source] += 1
    return consumers


_thread = threading.local()


def is_grad_enabled() -> bool:
    """True if this thread records operations in the graph."""
    return getattr(_thread, "grad_enabled", True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record no operations inside the `with` block (or the decorated function), in this thread only."""
    with set_grad_enabled(False):
        yield


@contextlib.contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Switch the recording of operations on or off inside the `with` block, in this thread only."""
    before = is_grad_enabled()
    _thread.grad_enabled = enabled
    try:
        yield
    finally:
        _thread.grad_enabled = before
