"""Module: the base class of layers and networks."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any

import numpy as np

from minidl.nn.layout import Plain
from minidl.tensor import Buffer, Parameter, Tensor

# A counter of PyTorch's batch-norm, used with momentum=None, which minidl does not have.
IGNORED_ON_LOAD = "num_batches_tracked"
MOST_TO_NAME = 6  # arrays listed in an error message


class Module:
    """A layer or a network. A subclass sets attributes in `__init__` and defines `forward`.

    Parameters, buffers and submodules are found in the attributes, and in lists, tuples and dicts there, in the order
    in which they were set. They need not be registered, and `super().__init__()` need not be called.
    """

    training = True
    forward_hooks: tuple[Callable, ...] = ()

    def forward(self, *inputs, **options) -> Any:
        """Return the output for these inputs. Every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__}: define forward(self, ...)")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        output = self.forward(*inputs, **options)
        for hook in self.forward_hooks:
            hook(self, inputs, output)
        return output

    @contextlib.contextmanager
    def forward_hook(self, hook: Callable[["Module", tuple, Tensor], None]) -> Iterator[None]:
        """Inside the `with` block, call hook(module, inputs, output) after each call of this module."""
        added = functools.partial(hook)  # an object of its own: the same hook may be added by several blocks
        self.forward_hooks = (*self.forward_hooks, added)
        try:
            yield
        finally:
            self.forward_hooks = tuple(other for other in self.forward_hooks if other is not added)

    def __setattr__(self, name: str, value):
        old = vars(self).get(name)
        if isinstance(old, Parameter | Buffer) and type(value) is Tensor:
            kind = type(old).__name__
            raise TypeError(
                f"{type(self).__name__}.{name}: expected a {kind}, got a Tensor, which would not be trained or saved; "
                f"change the values with {name}.data[...] = values, or assign minidl.{kind}(values)"
            )
        super().__setattr__(name, value)

    # -- submodules, parameters, buffers -------------------------------------------------------------------------------

    def members(self) -> Iterator[tuple[str, object]]:
        """Yield (name, value) of each attribute; for a list, tuple or dict, those of its items instead."""
        for name, value in vars(self).items():
            if name != "forward_hooks":
                yield from _parts(name, value)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) of the direct submodules."""
        return ((name, value) for name, value in self.members() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) of this module, whose name is "", and of all modules below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_tensors(self, kind: type[Tensor] | UnionType) -> Iterator[tuple[str, Any]]:
        """Yield (name, tensor) of all tensors of type `kind`, here and below. A shared tensor appears once only."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in module.members():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter) of all parameters, also frozen ones: ("layer1.0.conv1.weight", ...), ..."""
        return self.named_tensors(Parameter)

    def parameters(self) -> list[Parameter]:
        """Return all parameters, also frozen ones."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield (name, buffer) of all buffers."""
        return self.named_tensors(Buffer)

    # -- mode, gradients, device ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Set the mode. In training, batch-norm uses the batch's statistics and dropout is active. Return self."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Set evaluation mode: batch-norm uses its running statistics, dropout does nothing. Return self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = None

    def to(self, target) -> "Module":
        """Move to a device ('cpu', 'cuda', 'cuda:1'), or convert all floating-point numbers to a dtype. Return self.

        Gradients are dropped and parameters get new arrays: create the optimiser afterwards. bfloat16 and float16
        are errors, as such parameters would lose small updates: to compute in them, call model(images.to('bfloat16')).
        """
        if str(target) in ("bfloat16", "float16"):
            raise ValueError(f"to: parameters stay float32; to compute in {target}, call model(images.to('{target}'))")
        if Tensor(0.0).to(target).dtype.kind != "f":
            raise ValueError(f"to: expected a device or a floating-point dtype, got {target!r}")
        moves = str(target).startswith(("cpu", "cuda"))
        for _, tensor in self.named_tensors(Parameter | Buffer):
            if moves or tensor.dtype.kind == "f":
                tensor.data = tensor.detach().to(target).data
        self.zero_grad()
        return self

    # -- saving and loading --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters and persistent buffers, on the CPU, with PyTorch's names and layouts."""
        return {name: _layout(tensor).to_file(tensor.numpy()) for name, tensor in self._saved()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy a state dict of minidl or PyTorch into this module. If any part does not fit, nothing is copied."""
        self.check_state_dict(state)
        for name, tensor in self._saved():
            array = _layout(tensor).from_file(np.asarray(state[name], tensor.dtype))
            tensor.data[...] = Tensor(array, device=tensor.device).data
            tensor._version.count += 1  # a later backward of a graph that saved the old values raises an error

    def check_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Raise ValueError if load_state_dict would refuse this state dict."""
        expected = {name: (_layout(tensor).shape_in_file(tensor.shape), tensor.dtype) for name, tensor in self._saved()}
        check_state("load_state_dict", expected, state, ignored=(IGNORED_ON_LOAD,))

    def _saved(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, t) for name, t in self.named_tensors(Parameter | Buffer) if getattr(t, "persistent", True)]

    # -- printing ------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Return the arguments that repr shows between the parentheses."""
        return ""

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        head = f"{type(self).__name__}({self.extra_repr()}"
        tail = f")  # {count:,} parameters" if count else ")"
        return "\n".join([head, *lines, tail]) if lines else head + tail


def _parts(name: str, value) -> Iterator[tuple[str, object]]:
    """Yield (name, value). For a list or dict, yield ("name.0", item) or ("name.key", item), ..., at any depth."""
    if isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _parts(f"{name}.{number}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            for below, found in _parts(f"{name}.{key}", part):
                if isinstance(found, Module | Tensor):
                    _check_key(name, key)
                yield below, found
    elif isinstance(value, set | frozenset) and any(isinstance(part, Module | Tensor) for part in value):
        raise TypeError(f"{name}: expected layers in a list, tuple or dict, got a set, which has no order; use a list")
    else:
        yield name, value


def _check_key(name: str, key) -> None:
    """Raise ValueError for a key that would make names ambiguous, or that files cannot have."""
    if not isinstance(key, str) or not key or set(key) & set("./"):
        raise ValueError(f"{name}: expected a key that is a string without '.' and '/', got {key!r}; rename it")


def _layout(tensor: Tensor):
    return getattr(tensor, "layout", None) or Plain()


def check_state(
    operation: str, expected: dict[str, tuple[tuple[int, ...], np.dtype]], state: dict, ignored: tuple[str, ...] = ()
) -> None:
    """Raise ValueError unless `state` has exactly the expected names, and each array fits its (shape, dtype).

    Further names are right if they end with one of `ignored`.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{operation}: expected a dict of arrays by name, got {type(state).__name__}")
    missing = [repr(name) for name in expected if name not in state]
    unexpected = [repr(name) for name in state if name not in expected and not str(name).endswith(ignored)]
    wrong = [_misfit(name, *fact, np.asarray(state[name])) for name, fact in expected.items() if name in state]
    problems = [f"missing [{_first(missing, ', ')}]"] if missing else []
    problems += [f"unexpected [{_first(unexpected, ', ')}]"] if unexpected else []
    problems += [_first(list(filter(None, wrong)), "; ")] if any(wrong) else []
    if problems:
        raise ValueError(f"{operation}: nothing was loaded (shapes as in the file): {'; '.join(problems)}")


def _misfit(name: str, shape: tuple[int, ...], dtype: np.dtype, array: np.ndarray) -> str | None:
    if array.shape != shape:
        return f"{name}: expected {shape}, got {array.shape}"
    if not np.can_cast(array.dtype, dtype, "same_kind") or (array.dtype.kind in "biu" and dtype.kind == "f"):
        return f"{name}: expected real numbers like {dtype}, got {array.dtype}"
    return None


def _first(parts: list[str], separator: str) -> str:
    """Join the first parts, and add how many more there are."""
    more = [f"{len(parts) - MOST_TO_NAME:,} more"] if len(parts) > MOST_TO_NAME else []
    return separator.join([*(part[:200] for part in parts[:MOST_TO_NAME]), *more])
