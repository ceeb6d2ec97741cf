"""Adam and AdamW."""

from collections.abc import Iterable

import numpy as np

from minidl.checks import check_range
from minidl.kernels import kernels_for
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Parameter


class Adam(Optimizer):
    """Adam (Kingma, Ba 2015, algorithm 1): for each parameter p in its step t, with m and v that start at 0,

        g = dL/dp + weight_decay p
        m = beta1 m + (1 - beta1) g,    m_hat = m / (1 - beta1^t)
        v = beta2 v + (1 - beta2) g^2,  v_hat = v / (1 - beta2^t)
        p = p - lr m_hat / (sqrt(v_hat) + eps)

    Each parameter has a t of its own, which counts only the steps in which it had a gradient.
    """

    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps
        check_range(type(self).__name__, 0, 1, beta1=betas[0], beta2=betas[1])
        check_range(type(self).__name__, 0, np.inf, eps=eps)
        self.means, self.squares = self._zeros(), self._zeros()
        self.steps = [np.zeros((), np.int64, like=mean) for mean in self.means]

    def update(  # type: ignore[override]  # the state of this class by name
        self, parameters: list, grads: list, lr, weight_decay: float, means: list, squares: list, steps: list
    ) -> None:
        """Update the arrays of p, m, v and t in place, by the formulas of the class."""
        options = *self.betas, self.eps, weight_decay, self.decoupled
        kernels_for(parameters[0]).adam_update(parameters, grads, means, squares, steps, lr, *options)

    def state(self) -> dict[str, list]:
        """Return the means m, the mean squares v and the step counts t."""
        return {"mean": self.means, "square": self.squares, "step": self.steps}


class AdamW(Adam):
    """Adam with decoupled weight decay: g = dL/dp, and each step begins with p = p - lr weight_decay p.

    Loshchilov, Hutter 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(parameters, lr, betas, eps, weight_decay)
