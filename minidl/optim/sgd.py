"""Stochastic gradient descent."""

from collections.abc import Iterable, Sequence

from minidl.checks import check_range
from minidl.kernels import kernels_for
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Parameter


class SGD(Optimizer):
    """Gradient descent with momentum: for each parameter p, whose velocity v starts at 0,

        g = dL/dp + weight_decay p
        v = momentum v + g
        p = p - lr v                      with nesterov=True: p = p - lr (g + momentum v)

    With momentum=0, v is g. As in PyTorch, lr multiplies v; in Sutskever et al. 2013 it multiplies g inside of v.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[dict],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(parameters, lr, weight_decay)
        check_range("SGD", 0, 1, momentum=momentum)
        if nesterov and momentum <= 0:
            raise ValueError(f"SGD: nesterov needs a momentum > 0, got {momentum}")
        self.momentum, self.nesterov = momentum, nesterov
        self.velocities = self._zeros() if momentum else []

    def update(  # type: ignore[override]  # the state of this class by name
        self, parameters: list, grads: list, lr, weight_decay: float, velocities: Sequence = ()
    ) -> None:
        """Update the arrays of p and v in place, by the formulas of the class."""
        options = self.momentum, weight_decay, self.nesterov
        kernels_for(parameters[0]).sgd_update(parameters, grads, velocities, lr, *options)

    def state(self) -> dict[str, list]:
        """Return the velocities v; without momentum there are none."""
        return {"velocity": self.velocities} if self.velocities else {}
