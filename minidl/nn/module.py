"""Module: what has parameters, and what is made of modules."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from minidl.nn.layout import Plain
from minidl.tensor import Buffer, Parameter, Tensor

# Counted by PyTorch's batch-norm for a mode that minidl does not have.
IGNORED_ON_LOAD = "num_batches_tracked"
MOST_TO_NAME = 6  # of the arrays that do not fit


class Module:
    """A part of a network. Write `__init__` that sets attributes, and `forward`.

    Parameters, buffers and modules are found among the attributes, also in lists and dicts of them, in the order in
    which they were set; nothing needs to be registered, nor `super().__init__()` to be called.
    """

    training = True
    forward_hooks: tuple[Callable, ...] = ()

    def forward(self, *inputs, **options):
        """What the module computes."""
        raise NotImplementedError(f"{type(self).__name__}: define forward(self, ...)")

    def __call__(self, *inputs, **options):
        output = self.forward(*inputs, **options)
        for hook in self.forward_hooks:
            hook(self, inputs, output)
        return output

    @contextlib.contextmanager
    def forward_hook(self, hook: Callable[["Module", tuple, Tensor], None]) -> Iterator[None]:
        """Inside the `with` block, hook(module, inputs, output) is called after each call of this module."""
        self.forward_hooks = (*self.forward_hooks, hook)
        try:
            yield
        finally:
            self.forward_hooks = tuple(other for other in self.forward_hooks if other is not hook)

    # -- what it is made of --------------------------------------------------------------------------------------------

    def members(self) -> Iterator[tuple[str, object]]:
        """(name, value) of the attributes that hold a part of the module."""
        for name, value in vars(self).items():
            if name != "forward_hooks":
                yield from _parts(name, value)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) of the modules that it is directly made of."""
        return ((name, value) for name, value in self.members() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(name, module) of this module, whose name is empty, and of all below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_tensors(self, kind: type[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all tensors of that kind, here and below. One that stands in two places is named once."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in module.members():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) of all parameters, frozen ones too, like ("layer1.0.conv1.weight", ...)."""
        return self.named_tensors(Parameter)

    def parameters(self) -> list[Parameter]:
        """All parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(name, buffer) of all buffers."""
        return self.named_tensors(Buffer)

    # -- what can be done to it ----------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Training: batch-norm takes the batch's statistics, dropout drops."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Evaluation: batch-norm takes its running statistics, dropout does nothing."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = None

    def to(self, target) -> "Module":
        """Move to a device ('cpu', 'cuda') or convert the floating-point numbers to a dtype; gradients are dropped.

        The parameters get new arrays: make the optimiser afterwards. They stay float32 for computing in bfloat16, as
        small steps would not change them otherwise: give the model images.to('bfloat16').
        """
        if str(target) == "bfloat16":
            raise ValueError("to: parameters stay float32; give the model images.to('bfloat16') to compute in bfloat16")
        if target not in ("cpu", "cuda") and not _is_floating_point(target):
            raise ValueError(f"to: expected 'cpu', 'cuda' or a floating-point dtype, got {target!r}")
        for _, tensor in self.named_tensors(Parameter | Buffer):
            if target in ("cpu", "cuda") or tensor.dtype.kind == "f":
                tensor.data = tensor.detach().to(target).data
        self.zero_grad()
        return self

    # -- what is saved -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and persistent buffers on the CPU, under PyTorch's names, in PyTorch's layouts."""
        return {name: _layout(tensor).to_file(tensor.numpy()) for name, tensor in self._saved()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy a state dict, from here or from PyTorch, into our arrays. All of it fits, or nothing is copied."""
        self.check_state_dict(state)
        for name, tensor in self._saved():
            array = _layout(tensor).from_file(np.asarray(state[name], tensor.dtype))
            tensor.data[...] = Tensor(array, device=tensor.device).data

    def check_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """A ValueError unless load_state_dict would take it."""
        expected = {name: (_layout(tensor).shape_in_file(tensor.shape), tensor.dtype) for name, tensor in self._saved()}
        arrays = {name: value for name, value in state.items() if not name.endswith(IGNORED_ON_LOAD)}
        check_state("load_state_dict", expected, arrays)

    def _saved(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, t) for name, t in self.named_tensors(Parameter | Buffer) if getattr(t, "persistent", True)]

    # -- how it prints -------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments to show between the parentheses."""
        return ""

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        head = f"{type(self).__name__}({self.extra_repr()}"
        tail = f")  # {count:,} parameters" if count else ")"
        return "\n".join([head, *lines, tail]) if lines else head + tail


def _parts(name: str, value) -> Iterator[tuple[str, object]]:
    """(name, value), or for a list or a dict ("name.0", part), ("name.key", part), ..., however deep."""
    if isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _parts(f"{name}.{key}", part)
    else:
        yield name, value


def _is_floating_point(target) -> bool:
    try:
        return target is not None and np.dtype(target).kind == "f"  # NumPy takes None for float64
    except TypeError:  # no dtype
        return False


def _layout(tensor: Tensor):
    return getattr(tensor, "layout", None) or Plain()


def check_state(operation: str, expected: dict[str, tuple[tuple[int, ...], np.dtype]], state: dict) -> None:
    """A ValueError unless the names are those expected, and each value an array that fits its (shape, dtype)."""
    missing = [repr(name) for name in expected if name not in state]
    unexpected = [repr(name) for name in state if name not in expected]
    wrong = [_misfit(name, *fact, np.asarray(state[name])) for name, fact in expected.items() if name in state]
    problems = [f"missing [{_first(missing, ', ')}]"] if missing else []
    problems += [f"unexpected [{_first(unexpected, ', ')}]"] if unexpected else []
    problems += [_first(list(filter(None, wrong)), "; ")] if any(wrong) else []
    if problems:
        raise ValueError(f"{operation}: nothing was loaded (shapes as in the file): {'; '.join(problems)}")


def _misfit(name: str, shape: tuple[int, ...], dtype: np.dtype, array: np.ndarray) -> str | None:
    if array.shape != shape:
        return f"{name}: expected {shape}, got {array.shape}"
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        return f"{name}: expected real numbers that convert to {dtype}, got {array.dtype}"
    return None


def _first(parts: list[str], separator: str) -> str:
    """The first of them, and how many more there are."""
    more = [f"{len(parts) - MOST_TO_NAME:,} more"] if len(parts) > MOST_TO_NAME else []
    return separator.join([*(part[:200] for part in parts[:MOST_TO_NAME]), *more])
