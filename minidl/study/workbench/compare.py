"""Whether two results are the same: up to the rounding of floating-point numbers, and up to a factor."""

import numpy as np

# The relative error, of the largest number, that is taken for rounding. That of float64 leaves room for a function that
# computes in float32 on the way: it is as right as float32 is.
TOLERANCE = {"float64": 5e-6, "float32": 1e-4}


def same(actual: np.ndarray | None, expected: np.ndarray, tolerance: float = TOLERANCE["float64"]) -> bool:
    """True if both have the same shape and, up to the tolerance, the same numbers. NaN equals NaN."""
    if actual is None or actual.shape != expected.shape:
        return False
    return not different(actual, expected, tolerance).any()


def different(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE["float64"]) -> np.ndarray:
    """True for each element that differs, of two arrays of the same shape."""
    if expected.dtype.kind in "iub":
        return np.asarray(actual != expected)
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    scale = abs(expected[finite]).max(initial=0)
    with np.errstate(invalid="ignore"):
        close = abs(actual - expected) <= tolerance * scale
    return np.where(finite, ~close, ~((actual == expected) | (np.isnan(actual) & np.isnan(expected))))


def factor(actual: np.ndarray | None, expected: np.ndarray) -> float | None:
    """The number f with actual = f * expected, up to rounding; None if there is none, or if expected is 0."""
    if actual is None or actual.shape != expected.shape or expected.dtype.kind != "f":
        return None
    flat, others = expected.ravel().astype(np.float64), actual.ravel().astype(np.float64)
    if not (np.isfinite(flat).all() and np.isfinite(others).all() and flat.any()):
        return None
    ratio = float(flat @ others / (flat @ flat))
    return ratio if same(others, ratio * flat) else None
