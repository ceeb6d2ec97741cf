"""The precision of float32 on a GPU.

CuPy compiles all kernels, its own and minidl's, with the option -ftz=true ("flush to zero"): float32 numbers smaller
than 2^-126 = 1.2e-38 in size (subnormal numbers) are 0 on the GPU, as inputs and as results. The CPU keeps them, and
float64 is not affected.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_tf32 = contextvars.ContextVar("tf32", default=False)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Inside the `with` block a GPU rounds the factors of matrix products to TF32, and sums in float32.

    These are the products of convolutions, linear layers and `a @ b`. TF32 has float32's range, but 10 instead of 23
    bits of mantissa: a product's relative error is up to 2^-10 instead of 2^-23. Tensor cores multiply TF32 numbers
    (compute capability 8.0 or more). float64 and the CPU are unaffected.

        with minidl.tf32():
            loss = cross_entropy(model(images), labels)
            loss.backward()
    """
    before = _tf32.set(True)
    try:
        yield
    finally:
        _tf32.reset(before)


def tf32_is_on() -> bool:
    """True inside `tf32()`: the factors of float32 products may be rounded to TF32."""
    return _tf32.get()
