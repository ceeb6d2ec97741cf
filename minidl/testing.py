"""Gradient checks that can fail, for the operations here and for a user's own."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minidl.autograd import Node, count_consumers, no_grad
from minidl.tensor import Tensor, check_tensors

# Central differences over five points: (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h, with an error of order h^4.
FIVE_POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))

# The step begins at `eps` and is divided by 4 until differences and backward agree, eight times at most.
STEP_FACTORS = [4.0**-k for k in range(9)]

# Rounding moves an output by about this part of itself. Differences divide that by the step.
ROUNDING = 4 * np.finfo(np.float64).eps

# Where differences say 0, what backward says may be its own rounding, up to this.
ZERO = 1e-12


class GradientError(AssertionError):
    """backward() and the differences disagree, or an operation breaks the contract of `Function`."""


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    eps: float = 1e-3,
    rtol: float = 1e-9,
    atol: float = 0.0,
    directions: int = 3,
    max_elements: int = 200,
    seed: int = 0,
) -> None:
    """Raise GradientError unless function's backward agrees with differences of its forward, in float64.

        minidl.gradcheck(lambda x, w: conv2d(x, w, padding=1), [x, w])

        layer = Conv2d(3, 4, 3).to("float64")  # a layer, with its parameters
        minidl.gradcheck(lambda x, *parameters: layer(x), [x, *layer.parameters()])

    The scalar L that is differentiated weighs the outputs with random numbers, never with ones: the sum of a
    batch-norm's or softmax's outputs is constant, so any wrong gradient would pass. Each input that requires grad is
    checked

    - element by element if it has at most `max_elements`, and in `directions` random directions,
    - alone, with the other inputs frozen, where the gradient must be the same,
    - for what an operation must not do: write into its inputs or into dL/dy, return another dtype or shape, or keep
      values of one call on the class, where the next call replaces them.

    An element passes if |backward - differences| <= atol + rtol |differences| + the error of the differences. The step
    is eps max(1, |x|), and shorter ones tell the error of the differences from a mistake in backward. At a kink (a ReLU
    at 0, equal numbers in a max-pool) there is no derivative to compare with; keep inputs away from it.
    """
    _check_inputs(inputs)
    rng = np.random.default_rng([seed, *b"gradcheck"])  # not the numbers that a test draws its inputs from
    _call_on_other_inputs(function, inputs, rng)
    with no_grad(), _no_input_changes(inputs, "the function"):
        output = function(*inputs)
    check_tensors("gradcheck", output)
    if output.dtype != np.float64:
        raise TypeError(f"gradcheck: the function returned {output.dtype}; differences need float64 all the way")
    cotangent = rng.standard_normal(output.shape)
    grads = _analytic(function, inputs, cotangent, rng)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if grad is None:
            continue
        slopes = _Slopes(function, inputs, cotangent, tensor, eps)
        tolerance = _Tolerance(rtol, atol)
        if tensor.numel() <= max_elements:  # first, as it can say which number is wrong
            _check_elements(slopes, grad, number, tolerance)
        _check_directions(slopes, grad, number, tolerance, rng.standard_normal((directions, *tensor.shape)))
    for number, grad in enumerate(grads):
        if grad is not None:
            _check_alone(function, inputs, cotangent, number, grad, rng)


def _check_inputs(inputs: Sequence[Tensor]) -> None:
    if isinstance(inputs, Tensor):
        raise TypeError("gradcheck: expected a list of tensors, got one Tensor; put it into [...]")
    check_tensors("gradcheck", *inputs)
    for number, tensor in enumerate(inputs):
        if tensor.requires_grad and tensor.dtype != np.float64:
            raise TypeError(f"gradcheck: input {number} is {tensor.dtype}; differences need float64: .to('float64')")
    if not any(tensor.requires_grad for tensor in inputs):
        raise ValueError("gradcheck: no input requires grad; there is nothing to check")


# -- what backward says ------------------------------------------------------------------------------------------------


def _analytic(function, inputs, cotangent, rng) -> list[np.ndarray | None]:
    """What backward says, one array for each input that requires grad. Gradients that were there before stay there."""
    before = [tensor.grad for tensor in inputs]
    _set_grads(inputs, [None] * len(inputs))
    try:
        with _no_input_changes(inputs, "the function, or its backward,"):
            output = function(*inputs)
            _call_on_other_inputs(function, inputs, rng)
            _guard_backward(output)
            try:
                output.backward(Tensor(cotangent.copy(), device=output.device))
            except ValueError as error:  # the shape or the dtype of a gradient, or how many there are
                raise GradientError(f"gradcheck: {error}") from error
        grads = [tensor.grad for tensor in inputs]
    finally:
        _set_grads(inputs, before)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if tensor.requires_grad and grad is None:
            raise GradientError(f"gradcheck: backward gave input {number}, of shape {tensor.shape}, no gradient")
    return [None if grad is None else grad.numpy() for grad in grads]


def _set_grads(inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for tensor, grad in zip(inputs, grads, strict=True):
        if tensor.requires_grad:
            tensor.grad = grad


@contextlib.contextmanager
def _no_input_changes(inputs: Sequence[Tensor], actor: str) -> Iterator[None]:
    """A GradientError if the block writes into the array of an input. The input has its old numbers afterwards."""
    copies = [tensor.data.copy() for tensor in inputs]
    yield
    for number, (tensor, copy) in enumerate(zip(inputs, copies, strict=True)):
        if not _same(tensor.data, copy):
            tensor.data[...] = copy
            raise GradientError(f"gradcheck: {actor} wrote into input {number}; operations return new arrays")


def _call_on_other_inputs(function, inputs, rng) -> None:
    """Call the function on its inputs with their elements shuffled, before its own forward and before its backward.

    A Function that keeps values on the class, and not in ctx, then goes backward with those of another call.
    """
    others = [Tensor(tensor.data.copy(), requires_grad=tensor.requires_grad) for tensor in inputs]
    for other in others:
        if other.requires_grad:
            order = rng.permutation(other.numel())
            other.data.reshape(-1)[...] = other.data.reshape(-1)[order]
    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # the function may not be defined there
        function(*others)


def _guard_backward(output: Tensor) -> None:
    """Let each operation that output was computed with raise a GradientError if it writes into its dL/dy."""
    root = output._place
    for node in {root, *count_consumers(root)} if isinstance(root, Node) else ():
        if isinstance(node, Node):
            node.backward = _guarded(node.name, node.backward)


def _guarded(name: str, backward: Callable) -> Callable:
    def guarded(grad):
        copy = grad.copy()
        grads = backward(grad)
        if not _same(grad, copy):
            raise GradientError(
                f"gradcheck: {name}.backward wrote into the gradient that it was given, which others use too; "
                "return a new array"
            )
        return grads

    return guarded


def _same(a, b) -> bool:
    """Whether two arrays of one shape hold the same numbers; NaN equals NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _check_alone(function, inputs, cotangent, number, grad, rng) -> None:
    """The gradient of one input does not depend on which others ask for theirs."""
    tensor = inputs[number]
    with _frozen([other for other in inputs if other is not tensor]):
        alone = _analytic(function, inputs, cotangent, rng)[number]
    error = np.abs(alone - grad)
    if error.size and not error.max() <= 1e-10 * np.abs(grad).max():
        worst = _worst(error)
        raise GradientError(
            f"gradcheck: input {number} {tensor.shape}: worst at index {worst}: backward says {grad[worst]:.10g}, and "
            f"{alone[worst]:.10g} in a second call in which no other input requires grad"
        )


@contextlib.contextmanager
def _frozen(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these tensors do not require grad; afterwards they have the places and gradients that they had."""
    places = [tensor._place for tensor in tensors]
    for tensor in tensors:
        tensor._place = None
    try:
        yield
    finally:
        for tensor, place in zip(tensors, places, strict=True):
            tensor._place = place


# -- what differences say ----------------------------------------------------------------------------------------------


class _Tolerance(NamedTuple):
    rtol: float
    atol: float

    def of(self, numeric: np.ndarray) -> np.ndarray:
        return self.atol + self.rtol * np.abs(numeric)


class _Slopes:
    """Derivatives of L = sum of outputs times cotangent as one input moves along a direction."""

    def __init__(self, function, inputs, cotangent, tensor: Tensor, eps: float):
        self.function, self.inputs, self.cotangent, self.tensor, self.eps = function, inputs, cotangent, tensor, eps
        self.scale = np.maximum(1.0, np.abs(tensor.numpy()))

    def along(self, direction: np.ndarray, factor: float) -> tuple[float, float]:
        """(the derivative along the direction, the part of it that may be rounding) by a step of factor times eps."""
        before, step = self.tensor.data.copy(), factor * self.eps
        move = Tensor(direction, device=self.tensor.device).data
        difference = largest = 0.0
        try:
            for multiple, weight in FIVE_POINTS:
                self.tensor.data[...] = before + (multiple * step) * move
                output = self._outputs()
                difference = difference + weight * output
                largest = np.maximum(largest, np.abs(output))
        finally:
            self.tensor.data[...] = before
        rounding = ROUNDING * (np.where(difference != 0, largest, 0) * np.abs(self.cotangent)).sum()
        return float((difference * self.cotangent).sum()) / step, float(rounding) / step

    def _outputs(self) -> np.ndarray:
        with no_grad(), np.errstate(all="ignore"):  # a long step may leave the domain, as that of log
            return self.function(*self.inputs).numpy()


def _check_elements(slopes: _Slopes, grad, number: int, tolerance: _Tolerance) -> None:
    def numeric(factor):
        results = np.zeros((2, *grad.shape))
        for index in np.ndindex(grad.shape):
            direction = np.zeros(grad.shape)
            direction[index] = slopes.scale[index]
            results[(slice(None), *index)] = slopes.along(direction, factor)
        return results / slopes.scale

    wrong = _compare(numeric, grad, tolerance)
    if wrong is not None:
        index, value = wrong
        raise GradientError(
            f"gradcheck: input {number} {grad.shape}: worst at index {index}: backward says {grad[index]:.10g}, "
            f"differences say {value:.10g}"
        )


def _check_directions(slopes: _Slopes, grad, number: int, tolerance: _Tolerance, directions) -> None:
    directions = [direction / np.linalg.norm(direction) * slopes.scale for direction in directions]
    analytic = np.array([float((grad * direction).sum()) for direction in directions])
    # The sum along a direction may be small by chance, and is then no measure of its own error.
    size = np.array([np.linalg.norm(grad * direction) for direction in directions])
    size = np.where(np.isfinite(size), size, 0)
    wrong = _compare(
        lambda factor: np.array([slopes.along(direction, factor) for direction in directions]).T,
        analytic,
        tolerance,
        size,
    )
    if wrong is not None:
        (which,), value = wrong
        raise GradientError(
            f"gradcheck: input {number} {grad.shape}: along a random direction backward says {analytic[which]:.10g}, "
            f"differences say {value:.10g}"
        )


@np.errstate(invalid="ignore")  # infinity minus infinity
def _compare(
    numeric_at: Callable[[float], tuple[np.ndarray, np.ndarray]],
    analytic: np.ndarray,
    tolerance: _Tolerance,
    size: np.ndarray | float = 0.0,
) -> tuple[tuple[int, ...], float] | None:
    """None if the differences agree with `analytic`; else the index of the worst number, and what differences say.

    `numeric_at(factor)` gives the differences with a step of factor times eps, and their rounding. Long steps have an
    error of order h^4 (truncation), short ones of order 1/h (rounding), and a mistake stays where it is. So the steps
    become shorter until a number agrees, or until it moves by no more than its rounding and does not agree.
    """
    agreed, contradicted = np.zeros(analytic.shape, bool), np.zeros(analytic.shape, bool)
    previous, steps = (np.nan, np.nan), []
    for factor in STEP_FACTORS:
        numeric, rounding = numeric_at(factor)
        moved = np.abs(numeric - previous[0])
        is_settled = moved <= rounding + previous[1]
        error = np.abs(numeric - analytic)
        allowed = tolerance.of(np.maximum(np.abs(numeric), size)) + rounding + np.where(numeric == 0, ZERO, 0)
        agreed |= ~contradicted & (error <= allowed)
        contradicted |= ~agreed & is_settled
        if (agreed | contradicted).all():
            break
        steps.append((numeric, error, allowed, moved))
        previous = numeric, rounding
    else:
        contradicted = ~agreed & ~_agree_where_they_move_least(steps, ~agreed & ~contradicted)
    if not contradicted.any():
        return None
    worst = _worst(np.where(contradicted, error, 0))
    return worst, float(numeric[worst])


def _agree_where_they_move_least(steps: list[tuple], undecided: np.ndarray) -> np.ndarray:
    """Whether the undecided numbers agree at the step at which they moved least from the step before.

    There truncation and rounding are smallest together, and that move is the measure of both: of each number, and as
    it may be small by chance, of half of the numbers.
    """
    numeric, error, allowed, moved = min(
        steps[1:], key=lambda step: np.nan_to_num(np.linalg.norm(step[3][undecided]), nan=np.inf)
    )
    moves, numbers = np.linalg.norm(moved[undecided]), np.linalg.norm(numeric[undecided])
    if not (moves <= 1e-3 * numbers or moves <= 1e-9):
        return np.zeros_like(undecided)  # a random function, say: there is no derivative to agree with
    return undecided & (error <= allowed + 10 * (moved + np.median(moved[undecided])))


def _worst(error: np.ndarray) -> tuple[int, ...]:
    """The index of the largest number; NaN is larger than all."""
    return tuple(map(int, np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape)))
