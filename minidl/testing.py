"""For tests: `gradcheck` compares backward with finite differences, `check_layer` checks a whole layer."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np

from minidl.autograd import Node, count_consumers, no_grad
from minidl.nn.module import Module
from minidl.tensor import Tensor, check_tensors

# Five-point central differences: (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h, with an error of order h^4.
FIVE_POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))

# The step starts at `eps` and is divided by 4, at most eight times, until the differences agree with backward.
STEP_FACTORS = [4.0**-k for k in range(9)]

# The relative rounding error of an output. Differences divide this error by the step.
ROUNDING = 4 * np.finfo(np.float64).eps

# Where the differences are exactly 0, backward may have a rounding error up to this.
ZERO = 1e-12


class GradientError(AssertionError):
    """Raised if backward disagrees with the finite differences, or an operation breaks the contract of `Function`."""


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
    """Raise GradientError unless the backward of `function` agrees with finite differences of its forward, in float64.

        minidl.gradcheck(lambda x, w: conv2d(x, w, padding=1), [x, w])

        layer = Conv2d(3, 4, 3).to("float64")  # a layer, with its parameters
        minidl.gradcheck(lambda x, *parameters: layer(x), [x, *layer.parameters()])

    It differentiates a scalar L, the sum of the outputs with random weights. Weights of one would hide mistakes: the
    sum of the outputs of batch-norm or softmax is constant. Each input that requires grad is checked

    - element by element if it has at most `max_elements`, and in `directions` random directions,
    - alone, with the other inputs frozen: the gradient must be the same,
    - for forbidden side effects: writing into the inputs, the output or dL/dy, returning another dtype or shape, or
      storing values on the class, where the next call overwrites them.

    An element passes if |backward - differences| <= atol + rtol |differences| + the error of the differences. The step
    is eps max(1, |x|); shorter steps separate the error of the differences from a mistake in backward. At a kink (a
    ReLU at 0, equal numbers in a max-pool) there is no derivative to compare with; keep inputs away from it.
    """
    _check_inputs(inputs)
    if directions < 1:
        raise ValueError(f"gradcheck: expected directions >= 1, got {directions}")
    rng = np.random.default_rng([seed, *b"gradcheck"])  # not the stream that a test draws its inputs from
    _call_on_other_inputs(function, inputs, rng)
    with no_grad(), _no_input_changes(inputs, "the function"):
        output, again = function(*inputs), function(*inputs)
    check_tensors("gradcheck", output)
    if not _same(output.data, again.data):
        raise GradientError(
            "gradcheck: the function returned another output for the same inputs; fix what is random, such as a mask"
        )
    if output.dtype != np.float64:
        raise TypeError(f"gradcheck: the function returned {output.dtype}; differences need float64 throughout")
    cotangent = rng.standard_normal(output.shape)
    grads = _analytic(function, inputs, cotangent, rng)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if grad is None:
            continue
        slopes = _Slopes(function, inputs, cotangent, tensor, eps)
        tolerance = _Tolerance(rtol, atol)
        if tensor.numel() <= max_elements:  # first, because its error names the wrong element
            _check_elements(slopes, grad, number, tolerance)
        _check_directions(slopes, grad, number, tolerance, rng.standard_normal((directions, *tensor.shape)))
    for number, grad in enumerate(grads):
        if grad is not None:
            _check_alone(function, inputs, cotangent, number, grad, rng)


def check_layer(
    layer: Module,
    input_shape: tuple[int, ...],
    device: str = "cpu",
    dtypes: Sequence[str] = ("float32",),
    seed: int = 0,
) -> None:
    """Raise GradientError unless a layer or block computes right gradients and behaves as layers must.

        @pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 5, 3)])  # (N, H, W, C), also odd sizes
        def test_my_block(shape):
            minidl.testing.check_layer(MyBlock(3, 8), shape)

    On a copy of the layer, for a random input of that shape, in training and in evaluation mode:

    - the gradients of the input and of each parameter agree with finite differences, in float64 (`gradcheck`),
    - an input of each of `dtypes` gives an output of that dtype, and near the one in float64: "bfloat16" and "float16"
      may be among them, in which the network computes while its parameters stay float32;

    in evaluation mode also:

    - the same input gives the same output again, and no buffer changes,
    - the output for an image does not depend on the other images of the batch;

    and a copy of the layer that loads its `state_dict()` computes the same.
    """
    numbers = np.random.default_rng([seed, *b"check_layer"]).standard_normal(input_shape)
    if not isinstance(layer, Module):
        raise TypeError(f"check_layer: expected a layer, a Module, got {layer!r}")
    if not (numbers.ndim and numbers.size):
        raise ValueError(f"check_layer: expected an input shape (N, ...) with N >= 1, got {input_shape}")
    if isinstance(dtypes, str) or not set(dtypes) <= _FAR.keys():
        raise ValueError(f"check_layer: expected a list of dtypes among {', '.join(_FAR)}, got {dtypes!r}")
    layer = deepcopy(layer).to(device)
    for training in (True, False):
        mode = "training" if training else "evaluation"
        layer.train(training)
        _check_layer_gradients(layer, numbers, mode, device, seed)
        for dtype in dtypes:
            _check_layer_dtype(layer, Tensor(numbers, device=device), mode, dtype)
    _check_evaluation(layer, Tensor(numbers, "float32", device))
    _check_state_dict(layer, Tensor(numbers, "float32", device))


def _check_layer_gradients(layer: Module, numbers: np.ndarray, mode: str, device: str, seed: int) -> None:
    layer = deepcopy(layer).to("float64")
    learned = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    restore = _buffers_of(layer)

    def function(x, *_):
        restore()  # every call starts with the same running statistics, and draws the same dropout mask
        return layer(x)

    x = Tensor(numbers, device=device, requires_grad=True)
    try:
        gradcheck(function, [x, *learned.values()], seed=seed)
    except (GradientError, TypeError) as error:
        names, message = ["the input", *learned], str(error)
        if message.startswith("gradcheck: "):
            message = re.sub(r"\binput (\d+)", lambda found: names[int(found[1])], message.removeprefix("gradcheck: "))
        raise GradientError(f"check_layer: in {mode}: {message}") from error


def _buffers_of(layer: Module) -> Callable[[], None]:
    """Return a function that gives the layer's buffers the numbers that they have now."""
    before = [(buffer, buffer.data.copy()) for _, buffer in layer.named_buffers()]

    def restore() -> None:
        for buffer, numbers in before:
            buffer.data[...] = numbers

    return restore


# Norm of the difference to the output in float64, divided by the norm of that: rounding in each of some operations.
_FAR = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


@no_grad()
def _check_layer_dtype(layer: Module, x: Tensor, mode: str, dtype: str) -> None:
    exact = deepcopy(layer).to("float64")(x).numpy()
    output = deepcopy(layer)(x.to(dtype))
    if str(output.dtype) != dtype:
        raise GradientError(f"check_layer: in {mode}: a {dtype} input gives an output of {output.dtype}, not {dtype}")
    far = np.linalg.norm(output.numpy().astype(np.float64) - exact)
    if not far <= _FAR[dtype] * np.linalg.norm(exact):
        raise GradientError(
            f"check_layer: in {mode}: the output for a {dtype} input is far from the one in float64: the norm of their "
            f"difference is {far:.2g}, that of the output {np.linalg.norm(exact):.2g}"
        )


@no_grad()
def _check_evaluation(layer: Module, x: Tensor) -> None:
    before = [(name, buffer, buffer.numpy().copy()) for name, buffer in layer.named_buffers()]
    output = layer(x).numpy()
    if not _same(output, layer(x).numpy()):
        raise GradientError("check_layer: in evaluation: a second call with the same input gives another output")
    for name, buffer, numbers in before:
        if not _same(buffer.numpy(), numbers):
            raise GradientError(f"check_layer: in evaluation: the forward pass changes the buffer {name}")
    if output.shape[:1] != x.shape[:1]:
        raise GradientError(f"check_layer: expected an output for each of {len(x)} images, got shape {output.shape}")
    others = x.numpy()[1:] if len(x) > 1 else -x.numpy()  # a single image needs another one beside it
    together = layer(Tensor(np.concatenate([x.numpy()[:1], others]), device=x.device)).numpy()
    alone = layer(Tensor(x.data[:1].copy())).numpy()
    if not np.allclose(alone[0], together[0], rtol=1e-4, atol=1e-5 * np.abs(together).max(initial=0)):
        raise GradientError("check_layer: in evaluation: the output for an image depends on the others of its batch")


@no_grad()
def _check_state_dict(layer: Module, x: Tensor) -> None:
    state, other = layer.state_dict(), deepcopy(layer)
    for _, tensor in [*other.named_parameters(), *other.named_buffers()]:
        tensor.data[...] = 1
    other.load_state_dict(state)
    if not _same(layer(x).numpy(), other(x).numpy()):
        raise GradientError("check_layer: a copy that loads state_dict() computes something else: it lacks a tensor")


def _check_inputs(inputs: Sequence[Tensor]) -> None:
    if isinstance(inputs, Tensor):
        raise TypeError("gradcheck: expected a list of tensors, got one Tensor; wrap it in [...]")
    check_tensors("gradcheck", *inputs)
    for number, tensor in enumerate(inputs):
        if isinstance(tensor._node, Node):
            remedy = "Tensor(x.numpy(), requires_grad=True)"
            raise ValueError(f"gradcheck: input {number} was computed by {tensor._node.name}; pass {remedy}")
        if tensor.requires_grad and tensor.dtype != np.float64:
            raise TypeError(f"gradcheck: input {number} is {tensor.dtype}; differences need float64: .to('float64')")
    if not any(tensor.requires_grad for tensor in inputs):
        raise ValueError("gradcheck: no input requires grad; there is nothing to check")


# -- gradients from backward -------------------------------------------------------------------------------------------


def _analytic(function, inputs, cotangent, rng) -> list[np.ndarray | None]:
    """Return the gradient of each input from backward, None without requires_grad. `grad` of the inputs is restored."""
    before = [tensor.grad for tensor in inputs]
    _set_grads(inputs, [None] * len(inputs))
    try:
        with _no_input_changes(inputs, "the function, or its backward,"):
            output = function(*inputs)
            _call_on_other_inputs(function, inputs, rng)
            _guard_backward(output)
            before_backward = output.data.copy()
            try:
                output.backward(Tensor(cotangent.copy(), device=output.device))
            except (ValueError, RuntimeError) as error:  # wrong shape, dtype or number of gradients; or no graph
                raise GradientError(f"gradcheck: {error}") from error
            if not _same(output.data, before_backward):
                raise GradientError("gradcheck: backward wrote into the output of the function; return a new array")
        grads = [tensor.grad for tensor in inputs]
    finally:
        _set_grads(inputs, before)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        if tensor.requires_grad and grad is None:
            unused = "if the output does not depend on it, leave it out"
            raise GradientError(
                f"gradcheck: backward returned no gradient for input {number} of shape {tensor.shape}; {unused}"
            )
    return [None if grad is None else grad.numpy() for grad in grads]


def _set_grads(inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for tensor, grad in zip(inputs, grads, strict=True):
        if tensor.requires_grad:
            tensor.grad = grad


@contextlib.contextmanager
def _no_input_changes(inputs: Sequence[Tensor], actor: str) -> Iterator[None]:
    """Raise GradientError if the `with` block writes into an input, after restoring the input's values."""
    copies = [tensor.data.copy() for tensor in inputs]
    yield
    for number, (tensor, copy) in enumerate(zip(inputs, copies, strict=True)):
        if not _same(tensor.data, copy):
            tensor.data[...] = copy
            raise GradientError(f"gradcheck: {actor} wrote into input {number}; operations return new arrays")


def _call_on_other_inputs(function, inputs, rng) -> None:
    """Call the function on other inputs: once before the real forward, once before the real backward.

    They are copies of the inputs, shuffled and made a tenth smaller, so that sums and single numbers differ too.

    A Function that stores values on the class instead of in ctx then uses the wrong ones in backward.
    """
    others = [Tensor(tensor.data.copy(), requires_grad=tensor.requires_grad) for tensor in inputs]
    for other in others:
        if other.requires_grad:
            order = rng.permutation(other.numel())
            other.data.reshape(-1)[...] = 0.9 * other.data.reshape(-1)[order]
    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # the function may not be defined there
        function(*others)


def _guard_backward(output: Tensor) -> None:
    """Make every operation in the graph of `output` raise GradientError if its backward writes into dL/dy."""
    root = output._node
    for node in {root, *count_consumers(root)} if isinstance(root, Node) else ():
        if isinstance(node, Node):
            node.backward = _guarded(node.name, node.backward)


def _guarded(name: str, backward: Callable) -> Callable:
    def guarded(grad):
        copy = grad.copy()
        grads = backward(grad)
        if not _same(grad, copy):
            raise GradientError(
                f"gradcheck: {name}.backward wrote into the gradient of its output, which other operations share; "
                "return a new array"
            )
        return grads

    return guarded


def _same(a, b) -> bool:
    """True if two arrays of the same shape hold the same numbers; NaN equals NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _check_alone(function, inputs, cotangent, number, grad, rng) -> None:
    """Check that the gradient of one input does not depend on which other inputs require grad."""
    tensor = inputs[number]
    with _frozen([other for other in inputs if other is not tensor]):
        alone = _analytic(function, inputs, cotangent, rng)[number]
    error = np.abs(alone - grad)
    if error.size and not error.max() <= 1e-10 * np.abs(grad).max():
        worst = _worst(error)
        raise GradientError(
            f"gradcheck: input {number} {tensor.shape}: worst at index {worst}: backward computed {grad[worst]:.10g}, "
            f"but {alone[worst]:.10g} in a second call in which no other input requires grad"
        )


@contextlib.contextmanager
def _frozen(tensors: Sequence[Tensor]) -> Iterator[None]:
    """In the `with` block these tensors do not require grad; afterwards their places and gradients are restored."""
    places = [tensor._node for tensor in tensors]
    for tensor in tensors:
        tensor._node = None
    try:
        yield
    finally:
        for tensor, place in zip(tensors, places, strict=True):
            tensor._node = place


# -- gradients from finite differences ---------------------------------------------------------------------------------


class _Tolerance(NamedTuple):
    rtol: float
    atol: float

    def of(self, numeric: np.ndarray) -> np.ndarray:
        return self.atol + self.rtol * np.abs(numeric)


class _Slopes:
    """Directional derivatives of L = sum(outputs * cotangent) with respect to one input, by finite differences."""

    def __init__(self, function, inputs, cotangent, tensor: Tensor, eps: float):
        self.function, self.inputs, self.cotangent, self.tensor, self.eps = function, inputs, cotangent, tensor, eps
        self.scale = np.maximum(1.0, np.abs(tensor.numpy()))

    def along(self, direction: np.ndarray, factor: float) -> tuple[float, float]:
        """Return (derivative along the direction, bound of its rounding error) for a step of factor * eps."""
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
        with no_grad(), np.errstate(all="ignore"):  # a long step may leave the domain, of log for example
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
            f"gradcheck: input {number} {grad.shape}: worst at index {index}: backward computed {grad[index]:.10g}, "
            f"finite differences {value:.10g}"
        )


def _check_directions(slopes: _Slopes, grad, number: int, tolerance: _Tolerance, directions) -> None:
    directions = [direction / np.linalg.norm(direction) * slopes.scale for direction in directions]
    analytic = np.array([float((grad * direction).sum()) for direction in directions])
    # The sum along a direction may be small by chance; rtol then applies to the norm of its terms.
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
            f"gradcheck: input {number} {grad.shape}: along a random direction backward computed "
            f"{analytic[which]:.10g}, finite differences {value:.10g}"
        )


@np.errstate(invalid="ignore")  # infinity minus infinity
def _compare(
    numeric_at: Callable[[float], tuple[np.ndarray, np.ndarray]],
    analytic: np.ndarray,
    tolerance: _Tolerance,
    size: np.ndarray | float = 0.0,
) -> tuple[tuple[int, ...], float] | None:
    """Return None if the differences agree with `analytic`, else (index of the worst element, its difference).

    `numeric_at(factor)` returns the differences for a step of factor * eps, and bounds of their rounding errors. Long
    steps have a truncation error of order h^4, short ones a rounding error of order 1/h; a mistake in backward does not
    depend on h. So the steps get shorter until an element agrees, or until it disagrees and no longer changes by more
    than its rounding error.
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
    """Return which undecided elements agree at the step where the differences changed least from the step before.

    There truncation plus rounding is smallest, and the change estimates it. An element may change little by chance, so
    the median change of all undecided elements is added.
    """
    numeric, error, allowed, moved = min(
        steps[1:], key=lambda step: np.nan_to_num(np.linalg.norm(step[3][undecided]), nan=np.inf)
    )
    moves, numbers = np.linalg.norm(moved[undecided]), np.linalg.norm(numeric[undecided])
    if not (moves <= 1e-3 * numbers or moves <= 1e-9):
        return np.zeros_like(undecided)  # the differences do not converge, as for a random function
    return undecided & (error <= allowed + 10 * (moved + np.median(moved[undecided])))


def _worst(error: np.ndarray) -> tuple[int, ...]:
    """The index of the largest number; NaN counts as the largest."""
    return tuple(map(int, np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape)))
