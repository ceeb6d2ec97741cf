"""A small problem, and how to train on it with minidl and with PyTorch."""

from collections.abc import Callable

import numpy as np

from minidl import Parameter, Tensor
from minidl.optim import SGD, Adam, AdamW

STEPS = 20
LR = 0.05

# Every optimiser with each of its options at least once; PyTorch's have the same names.
SGD_OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum and weight decay": {"momentum": 0.8, "weight_decay": 0.1},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "Nesterov and weight decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
ADAM_OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "betas and eps": {"betas": (0.8, 0.95), "eps": 1e-2},
}
OPTIMIZERS = {
    **{f"SGD, {name}": (SGD, options) for name, options in SGD_OPTIONS.items()},
    **{f"Adam, {name}": (Adam, options) for name, options in ADAM_OPTIONS.items()},
    **{f"AdamW, {name}": (AdamW, options) for name, options in ADAM_OPTIONS.items()},
}


class Problem:
    """Least squares with one hidden layer, in formulas that both minidl's and PyTorch's tensors understand."""

    def __init__(self, rng: np.random.Generator):
        self.start = [rng.standard_normal(shape) for shape in ((6, 8), (8,), (8, 3), (3,))]
        self.x, self.y = rng.standard_normal((10, 6)), rng.standard_normal((10, 3))

    def minidl(self, dtype="float64", device: str = "cpu") -> tuple[list[Parameter], Callable]:
        """New parameters, and their loss."""
        parameters = [Parameter(Tensor(array.astype(dtype), device=device).data) for array in self.start]
        x, y = (Tensor(array.astype(dtype), device=device) for array in (self.x, self.y))
        return parameters, lambda: loss(parameters, x, y)

    def torch(self, torch, dtype="float64") -> tuple[list, Callable]:
        """The same in PyTorch."""
        parameters = [torch.tensor(array.astype(dtype), requires_grad=True) for array in self.start]
        x, y = (torch.tensor(array.astype(dtype)) for array in (self.x, self.y))
        return parameters, lambda: loss(parameters, x, y)


def loss(parameters, x, y):
    """The mean squared error of tanh(x w1 + b1) w2 + b2."""
    w1, b1, w2, b2 = parameters
    error = (x @ w1 + b1).tanh() @ w2 + b2 - y
    return (error * error).mean()


def train(optimizer, make_loss: Callable, steps: int = STEPS) -> None:
    """Steps of either library's optimiser."""
    for _ in range(steps):
        optimizer.zero_grad()
        make_loss().backward()
        optimizer.step()


def set_lr(optimizer, lr: float) -> None:
    """For either library."""
    if hasattr(optimizer, "param_groups"):
        for group in optimizer.param_groups:
            group["lr"] = lr
    else:
        optimizer.lr = lr


def values(parameters) -> list[np.ndarray]:
    """Copies of the parameters' numbers."""
    return [np.array(parameter.detach().numpy()) for parameter in parameters]
