"""The known mistakes: wrong results that people really compute, by name. The workbench recognises them.

Each one computes its wrong result from the arguments of a call and from the right result, so it can be compared with
what a student's function returns, and it can be planted in place of the right kernel, to see which check finds it.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minidl.kernels import cpu
from minidl.study.calls import WRITTEN, Call, arrays_in, backward_of, kernels, map_arrays, ops, result_names, returning
from minidl.study.slips import arrays, convolution, elementwise, normalisation, pooling, residual, updates, upsample
from minidl.study.slips import ops as slips_of_ops
from minidl.study.slips.tools import Wrong, changed, only, scaled


class Mistake(NamedTuple):
    """A wrong result: `wrong(call)` computes it. `target` is the name of a kernel or of an op's class.

    The wrong result of an op is its gradients, as a tuple.
    """

    target: str
    name: str
    wrong: Wrong

    def __str__(self):
        return f"{self.target}: {self.name}"


def _general(target: str, results: tuple[str, ...]) -> dict[str, Wrong]:
    """The slips that any result may have, whatever computes it."""
    slips: dict[str, Wrong] = {}
    for number, result in enumerate(results):
        part = number if len(results) > 1 else None
        if result in ("best_tap", "steps"):  # integers
            continue
        slips |= {
            f"{result} of 0": scaled(0, part),
            f"{result} with the other sign": scaled(-1, part),
            f"{result} ten times too large": scaled(10, part),
            f"{result} 0.1 % too large": scaled(1.001, part),
        }
        if _has_images(target, result):
            slips[f"{result} for the first image alone, 0 for the others"] = changed(lambda r, call: only(0, r), part)
            slips[f"{result} with the images in the reversed order"] = changed(lambda r, call: r[::-1], part)
    return slips


def _has_images(target: str, result: str) -> bool:
    """True if the first axis of a result is the batch."""
    return result in ("y", "dL/dx", "dL/dlogits", "probabilities", "dL/dz", "dL/dshortcut") and target not in (
        "mse_loss_forward",
        "mse_loss_backward",
        "add",
        "matmul",
        "scatter_add",
        "im2col",
    )


def _collected() -> Iterator[Mistake]:
    tables: dict[str, dict[str, Wrong]] = {}
    for file in (convolution, arrays, pooling, upsample, normalisation, elementwise, residual, updates):
        tables |= file.MISTAKES
    for target in kernels():
        results = result_names(target)
        table = tables.get(target, {})
        general = {} if target in WRITTEN else _general(target, results)
        general = {name: wrong for name, wrong in general.items() if not any(t.startswith(name) for t in table)}
        for name, wrong in (table | general).items():
            yield Mistake(target, name, wrong)
    for target, table in slips_of_ops.MISTAKES.items():
        for name, wrong in table.items():
            yield Mistake(target, name, wrong)


MISTAKES = tuple(_collected())


def mistakes_of(target: str) -> list[Mistake]:
    """The known mistakes of a kernel or an op."""
    return [mistake for mistake in MISTAKES if mistake.target == target]


def find(target: str, name: str) -> Mistake:
    """The mistake of that name; KeyError if there is none."""
    for mistake in mistakes_of(target):
        if mistake.name == name:
            return mistake
    raise KeyError(f"no mistake {name!r} of {target!r} is known; it has {[m.name for m in mistakes_of(target)]}")


# -- a mistake in its place --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def planted(mistake: Mistake) -> Iterator[None]:
    """In the `with` block, the CPU's kernel or the op's backward makes this mistake.

        with planted(find("relu_backward", "dL/dx as dL/dy times y: the values for their mask")):
            loss.backward()

    ValueError for a kernel that the CPU does not have, as it only stands in `kernels/reference.py`.
    """
    if mistake.target in ops():
        owner, attribute, put = ops()[mistake.target], "backward", staticmethod(_wrong_backward(mistake))
    elif hasattr(cpu, mistake.target):
        owner, attribute, put = cpu, mistake.target, _wrong_kernel(mistake)
    else:
        raise ValueError(f"planted: no kernel of the CPU and no op is called {mistake.target!r}")
    right = vars(owner)[attribute]
    setattr(owner, attribute, put)
    try:
        yield
    finally:
        setattr(owner, attribute, right)


def _wrong_kernel(mistake: Mistake) -> Callable:
    right = getattr(cpu, mistake.target)
    signature = inspect.signature(right)

    def kernel(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        if mistake.target not in WRITTEN:
            return _as_arrays(mistake.wrong(Call(right, arguments)), right(**arguments))
        return _write_wrong(mistake, right, arguments)

    return kernel


def _write_wrong(mistake: Mistake, right: Callable, arguments: dict) -> None:
    """An update writes its wrong results into its arguments."""
    results = mistake.wrong(Call(returning(mistake.target, right), map_arrays(np.copy, arguments)))
    written = arrays_in([arguments[name] for name in WRITTEN[mistake.target]])
    for place, result in zip(written, results, strict=True):
        place[...] = result


def _wrong_backward(mistake: Mistake) -> Callable:
    op = ops()[mistake.target]
    right = backward_of(op)

    def backward(ctx, grad):
        arguments = {"grad": grad, "saved": ctx.saved, "needs_grad": ctx.needs_grad}
        return _as_arrays(mistake.wrong(Call(right, arguments)), right(**arguments))

    return backward


def _as_arrays(wrong, right):
    """Contiguous arrays of the right result's dtypes, in its structure."""
    if isinstance(right, tuple):
        return tuple(_as_arrays(*pair) for pair in zip(wrong, right, strict=True))
    return wrong if wrong is None or right is None else np.array(wrong, right.dtype, order="C")
