"""Modules one after the other."""

from collections.abc import Iterator

from minidl.nn.layers import BatchNorm2d, ReLU
from minidl.nn.module import Module
from minidl.tensor import Tensor


class Sequential(Module):
    """Modules one after the other; they are named "0", "1", ..."""

    def __init__(self, *modules: Module):
        self.modules = list(modules)

    def members(self) -> Iterator[tuple[str, object]]:
        """The modules by their numbers, and what a subclass has besides."""
        return ((name.removeprefix("modules."), value) for name, value in super().members())

    def forward(self, x: Tensor) -> Tensor:
        """The last module's output of ... of the first one's of x; a ReLU after a BatchNorm2d is taken in its pass."""
        pairs = zip(self.modules, [*self.modules[1:], None], strict=True)
        for module, following in pairs:
            if _are_plain(module, following):
                x = module(x, relu=True)
                next(pairs)
            else:
                x = module(x)
        return x

    def __getitem__(self, index: int) -> Module:
        return self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)


def _are_plain(batch_norm: Module, relu: Module | None) -> bool:
    """Whether they are these two, not subclasses, and no hook waits for the output of either."""
    are_these = type(batch_norm) is BatchNorm2d and type(relu) is ReLU
    return are_these and not batch_norm.forward_hooks and not relu.forward_hooks
