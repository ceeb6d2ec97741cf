"""The dtypes of tensors: NumPy's, and bfloat16 from the package ml_dtypes."""

import numpy as np

float32 = np.dtype("float32")
float64 = np.dtype("float64")
int64 = np.dtype("int64")


def as_dtype(name) -> np.dtype:
    """Return the dtype for a name or type; raise TypeError if there is none."""
    if str(name) != "bfloat16":
        return np.dtype("None" if name is None else name)  # np.dtype(None) is float64
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeError("dtype 'bfloat16' needs ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def is_half(dtype) -> bool:
    """True for bfloat16 and float16. Weights, statistics and sums stay float32 beside them."""
    return dtype.char in "Ee"  # NumPy's letters for the two
