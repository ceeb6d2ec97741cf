"""One hint at a time: how many were given is kept in a small file beside the exercises."""

import json
from pathlib import Path

from minidl.study.workbench.exercises import Exercise

KEPT_IN = ".hints.json"


def next_hint(exercise: Exercise, folder: Path) -> str:
    """The next hint, in words; after the last one, that there are no more."""
    given = _given(folder)
    number = given.get(exercise.name, 0)
    count = len(exercise.hints)
    if number >= count:
        again = f"To begin with them again, delete {folder / KEPT_IN}"
        return f"These were all {count} hints. {again}; --show prints the solution."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT_IN).write_text(json.dumps({**given, exercise.name: number + 1}), encoding="utf-8")
    return f"Hint {number + 1} of {count}: {exercise.hints[number]}"


def _given(folder: Path) -> dict[str, int]:
    """How many hints were given of each exercise; a file that cannot be read counts as none."""
    try:
        given = json.loads((folder / KEPT_IN).read_text(encoding="utf-8"))
        return {name: int(number) for name, number in given.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
