"""Adam, and AdamW."""

from collections.abc import Iterable

import numpy as np

from minidl.checks import check_range
from minidl.kernels import kernels_for
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Parameter


class Adam(Optimizer):
    """m and v follow the gradient's mean and mean square;   p -= lr m_hat / (sqrt(v_hat) + eps).

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  m_hat = m / (1 - beta1^t),  v_hat = v / (1 - beta2^t),
    in step t (Kingma, Ba 2015, algorithm 1). The weight decay is added to the gradient, g = dL/dp + weight_decay p.
    Each parameter counts its own steps: those in which it had a gradient.
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

    def update(
        self, parameters: list, grads: list, weight_decay: float, means: list, squares: list, steps: list
    ) -> None:
        """One step; see the class."""
        options = *self.betas, self.eps, weight_decay, self.decoupled
        kernels_for(parameters[0]).adam_update(parameters, grads, means, squares, steps, self._lr, *options)

    def state(self) -> dict[str, list]:
        """The means, the mean squares, and the counts of steps."""
        return {"mean": self.means, "square": self.squares, "step": self.steps}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy a state dict into the state's arrays. All of it fits, or nothing is copied."""
        super().load_state_dict(self._with_each_step(state))

    def check_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """A ValueError unless load_state_dict would take it."""
        super().check_state_dict(self._with_each_step(state))

    def _with_each_step(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Older checkpoints hold one count for all parameters: "steps.0"."""
        if "steps.0" not in state:
            return state
        counts = {f"step.{i}": state["steps.0"] for i in range(len(self.steps))}
        return {name: array for name, array in state.items() if name != "steps.0"} | counts


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
