"""Gradient checks that can fail, for the operations here and for a user's own."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from minidl.autograd import no_grad
from minidl.tensor import Tensor, check_tensors

# Central differences over five points: (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h, with an error of order h^4.
FIVE_POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))


class GradientError(AssertionError):
    """backward() and the numbers disagree."""


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    eps: float = 1e-3,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    directions: int = 3,
    max_elements: int = 200,
    seed: int = 0,
) -> None:
    """Raise GradientError unless function's backward agrees with differences of its forward, in float64.

        minidl.gradcheck(lambda x, w: conv2d(x, w, padding=1), [x, w])

        layer = Conv2d(3, 4, 3).to("float64")  # a layer, with its parameters
        minidl.gradcheck(lambda x, *parameters: layer(x), [x, *layer.parameters()])

    Every input that requires grad is checked: in `directions` random directions at once, and element by element if it
    has at most `max_elements`. The scalar that is differentiated weighs the outputs with random numbers, never with
    ones: the sum of a batch-norm's or softmax's outputs is constant, so any wrong gradient would pass. Keep inputs away
    from kinks (a ReLU at 0, equal numbers in a max-pool) by more than 2 eps.
    """
    _check_inputs(inputs)
    rng = np.random.default_rng([seed, *b"gradcheck"])  # not the numbers that a test draws its inputs from
    with no_grad():
        output = function(*inputs)
    check_tensors("gradcheck", output)
    if output.dtype != np.float64:
        raise TypeError(f"gradcheck: the function returned {output.dtype}; differences need float64 all the way")
    cotangent = rng.standard_normal(output.shape)
    grads = _analytic(function, inputs, cotangent)

    def loss() -> float:
        with no_grad():
            return float((function(*inputs).numpy() * cotangent).sum())

    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if grad is None:
            continue
        if tensor.numel() <= max_elements:  # first, as it can say which number is wrong
            _check_elements(loss, tensor, grad, number, eps, rtol, atol)
        _check_directions(
            loss, tensor, grad, number, eps, rtol, atol, [rng.standard_normal(tensor.shape) for _ in range(directions)]
        )


def _check_inputs(inputs: Sequence[Tensor]) -> None:
    if isinstance(inputs, Tensor):
        raise TypeError("gradcheck: expected a list of tensors, got one Tensor; put it into [...]")
    check_tensors("gradcheck", *inputs)
    for number, tensor in enumerate(inputs):
        if tensor.requires_grad and tensor.dtype != np.float64:
            raise TypeError(f"gradcheck: input {number} is {tensor.dtype}; differences need float64: .to('float64')")
    if not any(tensor.requires_grad for tensor in inputs):
        raise ValueError("gradcheck: no input requires grad; there is nothing to check")


def _analytic(function, inputs, cotangent) -> list[np.ndarray | None]:
    """What backward says, one array for each input that requires grad. Gradients that were there before stay there."""
    before = [tensor.grad for tensor in inputs]
    _set_grads(inputs, [None] * len(inputs))
    try:
        output = function(*inputs)
        output.backward(Tensor(cotangent, device=output.device))
        grads = [tensor.grad for tensor in inputs]
    finally:
        _set_grads(inputs, before)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if tensor.requires_grad and (grad is None or grad.shape != tensor.shape):
            got = "no gradient" if grad is None else f"a gradient of shape {grad.shape}"
            raise GradientError(f"gradcheck: backward gave input {number}, of shape {tensor.shape}, {got}")
    return [None if grad is None else grad.numpy() for grad in grads]


def _set_grads(inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for tensor, grad in zip(inputs, grads, strict=True):
        if tensor.requires_grad:
            tensor.grad = grad


def _check_directions(loss, tensor, grad, number, eps, rtol, atol, directions) -> None:
    for direction in directions:
        direction /= np.linalg.norm(direction)
        numeric, analytic = _slope(loss, tensor, direction, eps), float((grad * direction).sum())
        scale = max(float(np.linalg.norm(grad)), abs(numeric))
        if not (math.isfinite(scale) and abs(numeric - analytic) <= atol + rtol * scale):
            raise GradientError(
                f"gradcheck: input {number} {tensor.shape}: along a random direction backward says {analytic:.10g}, "
                f"differences say {numeric:.10g}"
            )


def _check_elements(loss, tensor, grad, number, eps, rtol, atol) -> None:
    numeric = np.zeros(tensor.shape)
    for index in np.ndindex(tensor.shape):
        direction = np.zeros(tensor.shape)
        direction[index] = 1
        numeric[index] = _slope(loss, tensor, direction, eps)
    error = np.abs(numeric - grad)
    if error.size and not error.max() <= atol + rtol * np.abs(numeric).max():
        worst = np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape)
        raise GradientError(
            f"gradcheck: input {number} {tensor.shape}: worst at index {tuple(map(int, worst))}: backward says "
            f"{grad[worst]:.10g}, differences say {numeric[worst]:.10g}"
        )


def _slope(loss, tensor: Tensor, direction: np.ndarray, eps: float) -> float:
    """The derivative of loss() as the tensor's numbers move along the direction. They are put back afterwards."""
    before = tensor.data.copy()
    step = Tensor(direction, device=tensor.device).data
    total = 0.0
    try:
        for multiple, weight in FIVE_POINTS:
            tensor.data[...] = before + (multiple * eps) * step
            total += weight * loss()
    finally:
        tensor.data[...] = before
    return total / eps
