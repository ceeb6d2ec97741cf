"""Loss scaling, for training in float16."""

import logging
import math

from minidl.checks import check_range
from minidl.dtypes import float32, is_half
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Tensor


class GradScaler:
    """Scales the loss, so that gradients in float16 neither become 0 nor overflow.

    float16 has no numbers between 0 and 6e-8, and none above 65,504. Backward of `scale * loss` multiplies every
    gradient by the scale; `step` divides the gradients of the parameters, which are float32, by it again. If one of
    them is infinite or NaN, the step is skipped and the scale is multiplied by `backoff_factor`. After
    `growth_interval` steps without overflow the scale is multiplied by `growth_factor`. (Micikevicius et al. 2018,
    "Mixed precision training", section 3.2; the names are PyTorch's.)

        scaler = minidl.GradScaler()
        for images, labels in loader:
            loss = cross_entropy(model(images.to("float16")), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()

    `step` waits for the device once, as it has to know whether to skip. So it cannot be captured by `cuda_graph`. With
    enabled=False, for the other dtypes, `scale` returns the loss and `step` is `optimizer.step`.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        check_range("GradScaler", 1, math.inf, init_scale=init_scale, growth_factor=growth_factor)
        check_range("GradScaler", 0, 1, backoff_factor=backoff_factor)
        check_range("GradScaler", 1, math.inf, growth_interval=growth_interval)
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.enabled = enabled
        self._scale, self._steps_without_overflow, self._told = float(init_scale), 0, False

    def get_scale(self) -> float:
        """The factor of the loss; 1 if not enabled."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """Return loss * scale; in float32 for a loss in float16, which cannot hold the first scale."""
        if not self.enabled:
            return loss
        return (loss.to(float32) if is_half(loss.dtype) else loss) * self._scale

    def step(self, optimizer: Optimizer) -> bool:
        """Divide the gradients by the scale and update the parameters. Return False if the step was skipped."""
        if not self.enabled:
            optimizer.step()
            return True
        parameters = [parameter for parameter in optimizer.parameters if parameter.grad is not None]
        finite = _all_finite([parameter.grad for parameter in parameters])
        if finite:
            for parameter in parameters:
                parameter.grad = parameter.grad * (1 / self._scale)
            optimizer.step()
        self._update(finite)
        return finite

    def state_dict(self) -> dict[str, float]:
        """Return the scale and the number of steps since it changed."""
        return {"scale": self._scale, "steps_without_overflow": self._steps_without_overflow}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take the values of a state dict."""
        self._scale, self._steps_without_overflow = state["scale"], state["steps_without_overflow"]

    def _update(self, finite: bool) -> None:
        """Let the scale fall after an overflow, or grow after many steps without one."""
        before = self._scale
        self._steps_without_overflow = self._steps_without_overflow + 1 if finite else 0
        if not finite:
            self._scale *= self.backoff_factor
        elif self._steps_without_overflow == self.growth_interval:
            self._scale, self._steps_without_overflow = self._scale * self.growth_factor, 0
        if not finite and not self._told:
            self._told = True  # the first steps often overflow, until the scale has fallen
            logging.getLogger("minidl").warning(
                "minidl: a gradient overflowed float16: this step is skipped, and the loss scale falls from %g to %g",
                before,
                self._scale,
            )


def _all_finite(grads: list) -> bool:
    """True if no gradient has an infinity or NaN: each makes the sum of all infinite or NaN. One value is read."""
    return math.isfinite(sum(grad.data.sum() for grad in grads))
