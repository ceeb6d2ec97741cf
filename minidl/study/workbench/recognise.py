"""Which mistake it is: the wrong results are compared with what each known mistake would have given.

First exactly, then up to a factor, then as the right result in another arrangement, then as two mistakes that show in
different trials. What is said has to hold in all trials, so a coincidence in one of them names nothing. Only if nothing
does, the mistake is named that accounts for most of the wrong ones.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minidl.study.mistakes import Mistake
from minidl.study.workbench.compare import factor, same
from minidl.study.workbench.tasks import Task, Trial, wrong_results

Results = list[np.ndarray | None] | None  # of one trial; None if it raised an error


class Suspect(NamedTuple):
    """A mistake, what it computes in each trial, and the numbers of the results that it makes wrong."""

    mistake: Mistake
    results: list[Results]
    parts: frozenset[int]


class Verdict(NamedTuple):
    """What a wrong result is, in words, and the mistakes that compute it: several if they cannot be told apart."""

    words: str
    mistakes: list[Mistake]


def suspects(task: Task, trials: list[Trial]) -> list[Suspect]:
    """The known mistakes that make any of these trials wrong."""
    found = []
    for mistake in task.mistakes():
        results = [wrong_results(task, mistake, trial) for trial in trials]
        parts = frozenset(
            part
            for one, trial in zip(results, trials, strict=True)
            for part in range(len(trial.right))
            if one is not None and (len(one) <= part or not same(one[part], trial.right[part]))
        )
        if parts:
            found.append(Suspect(mistake, results, parts))
    return found


def recognise(
    task: Task, trials: list[Trial], student: list[Results], known: list[Suspect] | None = None
) -> list[Verdict]:
    """What is wrong with the student's results; an empty list if nothing that is known explains them."""
    known = suspects(task, trials) if known is None else known
    wrong = [part for part in range(_count(trials)) if not _is_right(part, trials, student)]
    verdicts, explained = _exact(known, wrong, student)
    known = [suspect for suspect in known if not suspect.parts & explained]
    names = task.names_in(max(trials, key=lambda trial: len(trial.right)))
    for part in wrong:
        if part not in explained:
            name = names[part]
            verdict = (
                _scaled(part, name, trials, student, known)
                or _arranged(part, name, trials, student)
                or _two(part, trials, student, known)
                or _some(part, trials, student, known)
            )
            verdicts += [verdict] if verdict else []
    return verdicts


def _count(trials: list[Trial]) -> int:
    return max(len(trial.right) for trial in trials)


def _is_right(part: int, trials: list[Trial], student: list[Results]) -> bool:
    return all(
        one is not None and part < len(one) and same(one[part], trial.right[part])
        for one, trial in zip(student, trials, strict=True)
        if part < len(trial.right)
    )


# -- exactly -----------------------------------------------------------------------------------------------------------


def _exact(known: list[Suspect], wrong: list[int], student: list[Results]) -> tuple[list[Verdict], set[int]]:
    """The mistakes that compute exactly this, those first that explain most results."""
    fitting = [suspect for suspect in known if suspect.parts <= set(wrong) and _fits(suspect, student)]
    verdicts, explained = [], set()
    for parts in sorted({suspect.parts for suspect in fitting}, key=len, reverse=True):
        if not parts & explained:
            mistakes = [suspect.mistake for suspect in fitting if suspect.parts == parts]
            verdicts.append(Verdict("This is " + ", or ".join(mistake.name for mistake in mistakes) + ".", mistakes))
            explained |= parts
    return verdicts, explained


def _fits(suspect: Suspect, student: list[Results]) -> bool:
    return all(_agree(suspect, one, theirs) for one, theirs in zip(suspect.results, student, strict=True))


def _agree(suspect: Suspect, one: Results, theirs: Results) -> bool:
    if one is None or theirs is None:
        return one is theirs
    return all(part < min(len(one), len(theirs)) and same(theirs[part], one[part]) for part in suspect.parts)


def _two(part: int, trials: list[Trial], student: list[Results], known: list[Suspect]) -> Verdict | None:
    """Two mistakes, of which each shows in other trials: together they account for all that is wrong."""
    wrong = _wrong_trials(part, trials, student)
    covers = _covers(part, wrong, student, known)
    for (first, some), (second, others) in itertools.combinations(covers, 2):
        if some and others and some | others == wrong and not (some <= others or others <= some):
            names = f"{first.mistake.name}. It is also {second.mistake.name}"
            return Verdict(f"This looks like two mistakes. It is {names}.", [first.mistake, second.mistake])
    return None


def _some(part: int, trials: list[Trial], student: list[Results], known: list[Suspect]) -> Verdict | None:
    """The mistake that accounts for most of the wrong trials; of a single one, if no other mistake does."""
    wrong = _wrong_trials(part, trials, student)
    covers = _covers(part, wrong, student, known)
    most = max((len(some) for _, some in covers), default=0)
    found = [(suspect, some) for suspect, some in covers if len(some) == most]
    if most == 0 or (most == 1 and len(found) > 1):
        return None
    suspect, some = found[0]
    where = f"{most} of the {len(wrong)} wrong cases{_what_they_share(some, wrong, trials)}"
    words = f"In {where} this is {suspect.mistake.name}."
    return Verdict(words + " The others are wrong in another way." * (some != wrong), [suspect.mistake])


def _what_they_share(some: set[int], wrong: set[int], trials: list[Trial]) -> str:
    """The words " (through_statistics=True)", if an argument tells these trials from the other wrong ones."""
    for name, value in trials[min(some)].arguments.items():
        if isinstance(value, bool | int | float) and some == {i for i in wrong if trials[i].arguments[name] == value}:
            return f" ({name}={value!r})"
    return ""


def _wrong_trials(part: int, trials: list[Trial], student: list[Results]) -> set[int]:
    return {
        number
        for number, (one, trial) in enumerate(zip(student, trials, strict=True))
        if one is None or part >= len(one) or not same(one[part], trial.right[part])
    }


def _covers(part: int, wrong: set[int], student: list[Results], known: list[Suspect]) -> list[tuple[Suspect, set[int]]]:
    """(suspect, the wrong trials that it accounts for) of each that makes this result wrong."""
    return [(suspect, _agreeing(suspect, part, student) & wrong) for suspect in known if part in suspect.parts]


def _agreeing(suspect: Suspect, part: int, student: list[Results]) -> set[int]:
    """The trials in which one result is what the mistake computes."""
    return {
        number
        for number, (one, theirs) in enumerate(zip(suspect.results, student, strict=True))
        if one is not None
        and theirs is not None
        and part < min(len(one), len(theirs))
        and same(theirs[part], one[part])
    }


# -- up to a factor ----------------------------------------------------------------------------------------------------


def _scaled(part: int, name: str, trials, student, known: list[Suspect]) -> Verdict | None:
    """A factor times the right result; or times that of a known mistake."""
    words = _factor_in_words(part, student, [trial.right for trial in trials], trials)
    if words:
        return Verdict(f"This is {name}, but {words}.", [])
    for suspect in known:
        if part in suspect.parts:
            words = _factor_in_words(part, student, suspect.results, trials)
            if words:
                return Verdict(f"This is {suspect.mistake.name}, and {words}.", [suspect.mistake])
    return None


def _factor_in_words(part: int, student, results, trials: list[Trial]) -> str | None:
    """The factor between two lists of results, if each trial has one, and if it is a number or a size."""
    ratios = []
    for one, other in zip(student, results, strict=True):
        if one is None or other is None or len(one) <= part or len(other) <= part:
            return None
        ratios.append(factor(one[part], other[part]))
    if None in ratios:
        return None
    if np.allclose(ratios, ratios[0], rtol=1e-4):
        return _number_in_words(ratios[0])
    sizes = [_sizes(trial) for trial in trials]
    arguments = trials[0].arguments
    for size in sizes[0]:
        if np.allclose(ratios, [each.get(size, np.nan) for each in sizes], rtol=1e-4):
            return f"times {size}: a division is missing"
        if np.allclose(ratios, [1 / each.get(size, np.nan) for each in sizes], rtol=1e-4):
            return f"not multiplied by {size}" if size in arguments else f"divided by {size}"
    return None


def _number_in_words(ratio: float) -> str:
    if ratio == 0:
        return "0 everywhere"
    if abs(ratio + 1) < 1e-4:
        return "with the other sign"
    size = f"{abs(ratio):.4g} times as large"
    return size if ratio > 0 else f"{size} and with the other sign"


def _sizes(trial: Trial) -> dict[str, float]:
    """What a result may be divided by, by its name."""
    sizes: dict[str, float] = {}
    for name, value in trial.arguments.items():
        if isinstance(value, np.ndarray) and value.ndim:
            sizes[f"N (the first axis of {name})"] = len(value)
            sizes[f"the number of elements of {name}"] = value.size
            sizes[f"the last axis of {name}"] = value.shape[-1]
            sizes[f"the number of elements of {name} in each channel"] = value.size / value.shape[-1]
            if value.ndim == 4:
                taps, pixels = value.shape[0] * value.shape[1], value.shape[1] * value.shape[2]
                sizes |= {"KH*KW": taps} if name == "weight" else {f"H*W (of {name})": pixels}
        elif isinstance(value, tuple) and len(value) == 2 and all(isinstance(number, int) for number in value):
            sizes[f"the product of {name}"] = value[0] * value[1]
        elif isinstance(value, float | np.ndarray):
            sizes[name] = float(value)
    return {name: size for name, size in sizes.items() if size != 0}


# -- in another arrangement --------------------------------------------------------------------------------------------


def _arranged(part: int, name: str, trials: list[Trial], student: list[Results]) -> Verdict | None:
    """The right numbers in another order or shape."""
    if any(one is None or len(one) <= part or one[part] is None for one in student):
        return None
    pairs = [(trial.right[part], one[part]) for one, trial in zip(student, trials, strict=True)]
    for words, change in _arrangements(pairs[0][0].ndim, name):
        if all(_is_changed(change, right, actual) for right, actual in pairs):
            return Verdict(f"This is {words}.", [])
    return None


def _is_changed(change: Callable, right: np.ndarray, actual: np.ndarray) -> bool:
    try:
        return same(actual, change(right, actual))
    except (ValueError, IndexError):  # of another number of axes, or of elements
        return False


def _arrangements(ndim: int, name: str) -> Iterator[tuple[str, Callable]]:
    """(in words, the change of the right result). A change may look at the actual result for its shape."""
    for axes in list(itertools.permutations(range(ndim)))[1:]:
        yield f"{name} with its axes in the order {axes}", lambda right, _, axes=axes: right.transpose(axes)
    for axis in range(ndim):
        yield f"{name} in the reversed order along axis {axis}", lambda right, _, axis=axis: np.flip(right, axis)
        for step in (1, -1):
            words = f"{name} one element {'further' if step > 0 else 'back'} along axis {axis}"
            yield words, lambda right, _, axis=axis, step=step: np.roll(right, step, axis)
            yield words, lambda right, _, axis=axis, step=step: _shifted(right, step, axis)
    yield f"{name} in another shape: the numbers are right", lambda right, actual: right.reshape(actual.shape)


def _shifted(array: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Rolled, with 0 where it came in again."""
    rolled = np.roll(array, step, axis).swapaxes(0, axis).copy()
    rolled[0 if step > 0 else -1] = 0
    return rolled.swapaxes(0, axis)
