"""Element-wise operations of a captured step, computed together with the one that follows.

Batch norm, addition and ReLU read and write their arrays in separate passes over memory: the end of a residual block,
relu(bn(x) + shortcut), has seven. While a step is captured (`cuda_graph`), the result of a batch norm or an addition
is therefore a `Deferred`, which is not computed yet. If a ReLU takes it, one kernel computes all of them, in three
passes. Whatever else takes it has it computed first. The numbers are rounded as by the separate kernels, so the bits
are those of the eager step.

The optimisers, which change parameters in place, have all that is deferred computed first. A step that writes into an
array itself (`x.data[...] = 0`) must not do so between a batch norm that reads it and the use of its result.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import cupy

from minidl.kernels.cuda._launch import CudaKernel, real_dtype
from minidl.kernels.cuda._slabs import SLABS, columns_of, cut_without_sums
from minidl.kernels.cuda._vectors import aligned

THEN_NOTHING, THEN_RELU, THEN_RELU_BACKWARD = 0, 1, 2  # what follows the sum
NORM = "const real* {0}_mean, const real* {0}_variance, const real* {0}_weight, const real* {0}_bias, real {0}_eps"

FUSED = CudaKernel(
    "fused_sum",
    SLABS
    + f"""
// y = then(a + b), where a, and b if there is one, are arrays or batch norms of arrays: see batch_norm_apply. For the
// backward of ReLU, `output` is that of its forward. A thread for each column of a few rows.
struct Norm {{
    Numbers centre, scale, shift;
}};

__device__ Norm norm(
    const real* mean, const real* variance, const real* weight, const real* bias, real eps, index column
) {{
    Numbers scale = load(weight, column) * inverse_sqrt(load(variance, column) + eps);
    return {{load(mean, column), scale, load(bias, column)}};
}}

__device__ Numbers rounded(Numbers numbers) {{
    Vector<stored> vector;
    convert(numbers, vector);
    convert(vector, numbers);
    return numbers;
}}

__device__ Numbers apply(Norm norm, Numbers x) {{
    return rounded(norm.scale * (x - norm.centre) + norm.shift);
}}

extern "C" __global__ void fused_sum(
    const stored* a, {NORM.format("a")}, const stored* b, {NORM.format("b")},
    const stored* output, stored* y, index rows, index columns, index rows_per_thread
) {{
    Walk walk = walk_down(rows, columns, rows_per_thread);
    if (!walk.count) return;
    index column = thread_number();
    Norm a_norm, b_norm;
    if (NORM_A) a_norm = norm(a_mean, a_variance, a_weight, a_bias, a_eps, column);
    if (NORM_B) b_norm = norm(b_mean, b_variance, b_weight, b_bias, b_eps, column);
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {{
        index i = walk.first + k * walk.stride;
        Numbers sum = load(a, i);
        if (NORM_A) sum = apply(a_norm, sum);
        if (HAS_B) {{
            Numbers other = load(b, i);
            if (NORM_B) other = apply(b_norm, other);
            sum = rounded(sum + other);
        }}
        if (THEN == {THEN_RELU})
            for (int n = 0; n < VECTOR; n++) sum.number[n] = sum.number[n] < 0 ? (real)0 : sum.number[n];
        if (THEN == {THEN_RELU_BACKWARD}) {{
            Numbers decides = load(output, i);
            for (int n = 0; n < VECTOR; n++) sum.number[n] = decides.number[n] <= 0 ? (real)0 : sum.number[n];
        }}
        store(y, i, sum);
    }}
}}
""",
    examples=tuple(
        {"VECTOR": vector, "NORM_A": norm_a, "HAS_B": has_b, "NORM_B": norm_b, "THEN": then}
        for vector, norm_a, has_b, norm_b, then in (
            (8, 1, 0, 0, THEN_RELU),
            (8, 1, 1, 0, THEN_RELU),
            (8, 1, 1, 1, THEN_RELU),
            (8, 0, 1, 0, THEN_RELU_BACKWARD),
            (1, 1, 1, 1, THEN_NOTHING),
        )
    ),
)


class Term(NamedTuple):
    """A term of the sum: x, or its batch norm with these (mean, variance, weight, bias, eps)."""

    x: object
    norm: tuple | None = None


class Deferred:
    """The sum of one or two terms, computed when somebody reads it. It looks like the array that it will be."""

    def __init__(self, *terms: Term):
        self.terms, self._array, x = terms, None, terms[0].x
        self.shape, self.dtype, self.size, self.ndim = x.shape, x.dtype, x.size, x.ndim
        _thread.deferred.append(weakref.ref(self))

    @property
    def is_pending(self) -> bool:
        """True until the sum is computed."""
        return self._array is None

    @property
    def array(self):
        """The sum."""
        if self._array is None:
            self._array = self.followed_by(THEN_NOTHING)
            self.terms = ()  # which frees them
        return self._array

    def followed_by(self, then: int, output=None):
        """A new array: the sum after ReLU, or as dL/dy of a ReLU whose output is given."""
        a, b = self.terms if len(self.terms) == 2 else (*self.terms, None)
        y = cupy.empty_like(a.x)
        rows, columns, constants = columns_of(a.x)
        slabs = cut_without_sums(rows, columns)
        constants |= {"NORM_A": int(a.norm is not None), "HAS_B": int(b is not None)}
        constants |= {"NORM_B": int(b is not None and b.norm is not None), "THEN": then}
        arguments = *_arguments(a), *_arguments(b or a), y if output is None else output, y
        FUSED.launch(
            slabs.blocks, slabs.threads, (*arguments, rows, columns, slabs.rows_per_thread), y.dtype, constants
        )
        return y

    # What is not known before the sum is computed is asked of the array.

    __array_priority__ = 1000  # so that `array + deferred` calls __radd__
    is_on_gpu = True  # for `kernels.device_of`

    @property
    def itself(self) -> "Deferred":
        """For the operations that take a deferred array: `apply` reads this attribute instead of `array`."""
        return self

    def __getattr__(self, name: str):
        return getattr(self.array, name)

    def __getitem__(self, index):
        return self.array[index]

    def __setitem__(self, index, value) -> None:
        self.array[index] = value

    def __array_ufunc__(self, function, method, *inputs, **options):
        return getattr(function, method)(*map(computed, inputs), **options)

    def __array_function__(self, function, types, arguments, options):
        return self.array.__array_function__(function, (cupy.ndarray,), tuple(map(computed, arguments)), options)


def _forward(name: str) -> None:
    """Let an operator work on the array."""
    setattr(Deferred, name, lambda self, *others: getattr(self.array, name)(*map(computed, others)))


for _operator in ("add", "sub", "mul", "truediv", "matmul", "pow", "floordiv", "mod", "and", "or", "xor"):
    _forward(f"__{_operator}__")
    _forward(f"__r{_operator}__")
for _operator in ("neg", "invert", "abs", "lt", "le", "gt", "ge", "eq", "ne", "len", "iter", "float", "int", "bool"):
    _forward(f"__{_operator}__")


def _arguments(term: Term) -> tuple:
    """The arguments of FUSED for a term. An array without a norm has any arrays instead."""
    if term.norm is not None:
        *arrays, eps = term.norm
        return term.x, *arrays, eps
    nothing = cupy.empty(0, real_dtype(term.x.dtype))
    return term.x, nothing, nothing, nothing, nothing, 0.0


# -- while a step is captured ------------------------------------------------------------------------------------------


class _Thread(threading.local):
    deferred: list[weakref.ref] | None = None  # those of the step that this thread captures


_thread = _Thread()


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Inside the `with` block results are deferred. At its end those that are still in use are computed."""
    _thread.deferred = []
    try:
        yield
        compute_deferred()
    finally:
        _thread.deferred = None


def is_fusing() -> bool:
    """True inside `fusing`."""
    return _thread.deferred is not None


def compute_deferred() -> None:
    """Compute all that is deferred. A kernel that changes arrays in place calls this first: a term may read them."""
    for reference in _thread.deferred or ():
        if (deferred := reference()) is not None:
            computed(deferred)
    if _thread.deferred:
        _thread.deferred.clear()


def computed(value):
    """The array of a Deferred; any other value itself."""
    return value.array if type(value) is Deferred else value


def terms_of(x) -> tuple[Term, ...]:
    """What x contributes to a sum: the term that it defers, or itself."""
    if type(x) is Deferred and x.is_pending and len(x.terms) == 1:
        return x.terms
    return (Term(aligned(x)),)
