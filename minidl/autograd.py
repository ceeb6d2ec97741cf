"""The computational graph, and the backward pass through it (reverse-mode automatic differentiation).

Each computed tensor refers to the `Node` that produced it: the op's backward, with the values the op saved, and an edge
to the Node or Leaf of each input. Edges only point back, from an output to its inputs. So a graph has no reference
cycles, and is freed with the last tensor that refers to it. This file imports neither tensors nor operations:
gradients are plain arrays.
"""

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from minidl.kernels import add


class Version:
    """Counts how often a tensor was changed in place, which optimisers do. Tensors that share memory share it."""

    count = 0


class Leaf:
    """A leaf of the graph, for a tensor that requires grad and was not computed from others. It holds the gradient."""

    __slots__ = ("__weakref__", "grad", "hooks", "retains_grad", "version")
    inputs = ()
    saved = ()

    def __init__(self, version: Version | None = None):
        self.grad, self.retains_grad = None, True
        self.hooks: list[Callable[[], None]] = []  # called when a backward pass has completed `grad`
        self.version = version or Version()

    def __getstate__(self):
        """Return what pickle and copy.deepcopy keep: the gradient. Hooks belong to whoever added them."""
        return None, {"grad": self.grad, "hooks": [], "retains_grad": True, "version": self.version}


class Node:
    """One application of an op: `backward` maps dL/d(output) to dL/d(input), or None, for each input.

    `inputs` holds the edges: the Node or Leaf of each input, or None if that input needs no gradient. `kinds` holds the
    shape and dtype of each input, which its gradient must have too. After its use `backward` is set to None, which
    frees the values that the op saved. `saved` holds (version, its count) of each parameter among these values. A
    node keeps its gradient, as leaves do, only if `retains_grad` is set.
    """

    __slots__ = ("__weakref__", "backward", "grad", "inputs", "kinds", "name", "retains_grad", "saved")
    hooks = ()

    def __init__(self, name: str, backward: Callable, inputs: Sequence, kinds: Sequence = (), saved: Sequence = ()):
        self.name, self.grad, self.retains_grad = name, None, False
        self.backward: Callable | None = backward
        self.inputs, self.kinds, self.saved = inputs, kinds or (None,) * len(inputs), saved

    def input_grads(self, grad) -> tuple:
        """Return dL/d(input) for each input. Works once: it frees what the op saved."""
        grads = self.backward(grad)  # type: ignore[misc]  # count_consumers has checked that it is there
        self.backward = None
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(self.inputs):
            raise ValueError(
                f"{self.name}.backward: expected {len(self.inputs)} gradients, one for each input, got {len(grads)}"
            )
        for number, (source, kind, input_grad) in enumerate(zip(self.inputs, self.kinds, grads, strict=True)):
            if source is None or input_grad is None or kind is None:
                continue
            if (input_grad.shape, input_grad.dtype) != kind:
                expected = f"a gradient of {kind[0]} {kind[1]} for input {number}"
                got = f"{input_grad.shape} {input_grad.dtype}"
                raise ValueError(f"{self.name}.backward: expected {expected}, got {got}")
        return grads


def backward(root: Node | Leaf, grad) -> None:
    """Add dL/d(leaf) to `leaf.grad` for every leaf that root was computed from; `grad` is dL/d(root).

    Nodes that retain their gradient, root among them, receive theirs in the same way. Each has memory of its own, so
    that `p.grad.data *= 0.5` changes no other gradient.
    """
    owners = {id(grad), id(grad.base)}  # of the memory that is taken; a view refers to the owner by `base`
    for node, grad_node in gradients(root, grad):
        if grad_node is not None:
            owner = grad_node if grad_node.base is None else grad_node.base
            if node.grad is not None:
                node.grad = add(node.grad, grad_node)
            else:
                node.grad = grad_node.copy() if id(owner) in owners else grad_node
            owners.add(id(owner))
            for hook in node.hooks:
                hook()


def gradients(root: Node | Leaf, grad) -> Iterator[tuple[Node | Leaf, Any]]:
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
    """Return how many edges lead to each node and leaf below root.

    Raise RuntimeError if a node's saved values are freed, or a saved parameter was changed since the forward pass.
    """
    consumers: Counter = Counter()
    unvisited = [root]
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, Node) and node.backward is None:  # found here, before any gradient is added
            raise RuntimeError(
                f"backward: this graph was used before, and the values that {node.name} saved are freed; "
                "run the forward pass again, or add the losses and call backward once"
            )
        for version, count in node.saved:
            if version.count != count:
                raise RuntimeError(
                    f"backward: {node.name} saved a parameter that was changed since, by an optimiser's step or in "
                    "place; call backward before step, or run the forward pass again"
                )
        for source in filter(None, node.inputs):
            if source not in consumers:
                unvisited.append(source)
            consumers[source] += 1
    return consumers


F = TypeVar("F", bound=Callable)
STARTS_LATER = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction

# The open `with` blocks, from the outermost to the innermost. As a context variable, each thread and each asyncio task
# has its own.
_blocks: ContextVar[tuple["set_grad_enabled", ...]] = ContextVar("blocks", default=())


def is_grad_enabled() -> bool:
    """True if operations are recorded in the graph here: in this thread and this asyncio task."""
    blocks = _blocks.get()
    return blocks[-1].enabled if blocks else True


class set_grad_enabled(contextlib.ContextDecorator):  # noqa: N801 - the name in PyTorch
    """Switch the recording of operations on or off inside the `with` block, or in the decorated function.

    It applies to this thread and this asyncio task only. If a generator yields inside the block, the block also applies
    to its caller, until the generator continues.
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def __enter__(self) -> None:
        _blocks.set((*_blocks.get(), self))

    def __exit__(self, *error) -> None:
        # Generators may leave their blocks in another order than they entered them: take out this block, not the last.
        blocks = _blocks.get()
        place = max((i for i, block in enumerate(blocks) if block is self), default=len(blocks))
        _blocks.set(blocks[:place] + blocks[place + 1 :])

    def _recreate_cm(self) -> "set_grad_enabled":
        return set_grad_enabled(self.enabled)  # a block of its own for each call of a decorated function

    def __call__(self, function: F) -> F:
        if any(is_one(function) for is_one in STARTS_LATER):
            raise TypeError(
                f"no_grad: {function.__name__} only begins to run when it is decorated like this, as it is a generator "
                "or a coroutine; write `with minidl.no_grad():` inside it"
            )
        return super().__call__(function)


def no_grad() -> set_grad_enabled:
    """Record no operations inside the `with` block, or in the decorated function: `set_grad_enabled(False)`."""
    return set_grad_enabled(False)
