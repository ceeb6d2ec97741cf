"""How exactly a GPU multiplies float32 numbers."""

import contextlib
import contextvars
from collections.abc import Iterator

_tf32 = contextvars.ContextVar("tf32", default=False)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Within it, a GPU rounds the factors of convolutions and linear layers to TF32, and adds products in float32.

    TF32 has float32's range, and 10 bits of its 23 of mantissa: a product's relative error is up to 2^-10 instead of
    2^-23. Tensor cores multiply such numbers (compute capability 8.0 or more). float64 and the CPU compute as ever.

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
    """Whether float32 products may be rounded to TF32."""
    return _tf32.get()
