"""Adam, and AdamW."""

from collections.abc import Iterable

import numpy as np

from minidl.kernels import kernels_for
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Parameter


class Adam(Optimizer):
    """m and v follow the gradient's mean and mean square;   p -= lr m_hat / (sqrt(v_hat) + eps).

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  m_hat = m / (1 - beta1^t),  v_hat = v / (1 - beta2^t),
    in step t (Kingma, Ba 2015, algorithm 1). The weight decay is added to the gradient, g = dL/dp + weight_decay p.
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
        self.means, self.squares = self._zeros(), self._zeros()
        self.steps = np.zeros_like(self._lr, dtype=np.int64)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.steps += 1
        super().step()

    def update(self, parameters: list, grads: list, chosen: list[int], weight_decay: float) -> None:
        """One step; see the class."""
        if parameters:
            means, squares = [self.means[i] for i in chosen], [self.squares[i] for i in chosen]
            kernels_for(parameters[0]).adam_update(
                parameters,
                grads,
                means,
                squares,
                self.steps,
                self._lr,
                *self.betas,
                self.eps,
                weight_decay,
                self.decoupled,
            )

    def state(self) -> dict[str, list]:
        """The means, the mean squares, and the count of steps."""
        return {"mean": self.means, "square": self.squares, "steps": [self.steps]}


class AdamW(Adam):
    """Adam with the weight decay beside the gradient: p -= lr weight_decay p (Loshchilov, Hutter 2019, algorithm 2)."""

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
