"""`python -m minidl.study exercise`: lists the exercises, writes one, checks it, gives hints, grades."""

import argparse
import difflib
import shlex
import sys
import textwrap
import time
from pathlib import Path

from minidl.study.workbench.check import check_file
from minidl.study.workbench.exercises import Exercise, exercises
from minidl.study.workbench.grade import grade_folder, grades_text
from minidl.study.workbench.hints import next_hint
from minidl.study.workbench.process import Limits
from minidl.study.workbench.show import report_text, width, wrapped

NAME, HELP = "exercise", "write a kernel or an op yourself, and be told which mistake it has"
RIGHT, WRONG, MISUSED = 0, 1, 2  # exit codes
DEFAULT_FOLDER = Path("workbench")
SECONDS_BETWEEN_LOOKS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="an exercise; without one, all are listed")
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help="the folder of the files (default: workbench)"
    )
    parser.add_argument("--watch", action="store_true", help="check the file whenever it is saved, until Ctrl-C")
    parser.add_argument("--hint", action="store_true", help="print the next hint")
    parser.add_argument("--show", action="store_true", help="print the solution")
    parser.add_argument("--force", action="store_true", help="begin again: overwrite the file")
    parser.add_argument(
        "--grade",
        type=Path,
        metavar="DIR",
        help="grade the files of a folder, or of its subfolders; they run with your rights, in no sandbox",
    )
    parser.add_argument("--json", action="store_true", help="print the grades as JSON")
    parser.add_argument(
        "--seed", type=int, help="seed of the shapes and numbers to try with (default: 0; random for grades)"
    )
    parser.add_argument(
        "--seconds", type=int, default=Limits().seconds, help="limit of CPU time for a file (default: 20)"
    )
    parser.add_argument(
        "--memory", type=int, default=Limits().megabytes, help="limit of memory for a file, in MB (default: 2048)"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the options say. Returns the exit code: 0 if all is right, 1 if something is wrong, 2 if misused."""
    problem = _misuse(args)
    if problem:
        return _misused(problem)
    if args.grade:
        return _grade(args)
    if not args.names:
        print(listing(args.folder))
        return RIGHT
    try:
        return _one(args, exercises()[args.names[0]])
    except OSError as error:
        return _misused(f"cannot write in {args.folder} ({error.strerror or error}); choose another --folder")


def _misuse(args: argparse.Namespace) -> str:
    """Why these options cannot be followed; '' if they can."""
    unknown = [name for name in args.names if name not in exercises()]
    alone = [option for option in ("watch", "hint", "show", "force") if vars(args)[option]]
    if unknown:
        return _not_found(unknown[0])
    if min(args.seconds, args.memory) < 1 or (args.seed or 0) < 0:
        return "expected --seconds and --memory of at least 1, and --seed of at least 0"
    if args.grade and not args.grade.is_dir():
        return f"--grade expected a folder, got {args.grade}"
    if alone and (args.grade or not args.names):
        return f"--{alone[0]} goes with the NAME of one exercise"
    if args.json and not args.grade:
        return "--json goes with --grade DIR"
    if len(args.names) > 1 and not args.grade:
        return "expected one NAME at a time; several go with --grade DIR"
    return ""


def _one(args: argparse.Namespace, exercise: Exercise) -> int:
    path = args.folder / f"{exercise.name}.py"
    if args.show:
        print(exercise.solution().rstrip())
        return RIGHT
    if args.hint:
        print(wrapped(next_hint(exercise, args.folder)))
        return RIGHT
    if args.force or not path.exists():
        _write(path, exercise)
        if not args.watch:
            print(f"Its check:  {_command(exercise, args)}")
            return RIGHT
    return _watch(path, exercise, args) if args.watch else _check(path, exercise, args)


def _misused(words: str) -> int:
    print(wrapped(f"exercise: {words}"), file=sys.stderr)
    return MISUSED


def _not_found(name: str) -> str:
    stem = Path(name).stem  # of a file, workbench/relu.py
    close = difflib.get_close_matches(stem, exercises(), n=3, cutoff=0.5) or [n for n in exercises() if stem in n][:3]
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"there is no exercise {name!r}.{meant} `python -m minidl.study exercise` lists them."


# -- the list ----------------------------------------------------------------------------------------------------------


def listing(folder: Path) -> str:
    """The course in its order, then all others in columns. A star marks those that have a file."""
    lessons = [one for one in exercises().values() if one.number]
    kernels = [one.name for one in exercises().values() if not one.number and one.tasks[0].kind == "function"]
    ops = [one.name for one in exercises().values() if not one.number and one.tasks[0].kind == "op"]
    lines = ["The course, in a good order:", ""]
    for one in lessons:
        head = f" {_mark(one.name, folder)}{one.number:2}  {one.name:24}"
        words = f"{one.title} (about {one.minutes} min)"
        lines += textwrap.wrap(words, width(), initial_indent=head, subsequent_indent=" " * len(head))
    lines += ["", "All other kernels, a function each:", "", _columns(kernels, folder)]
    lines += ["", "The ops, forward and backward of each:", "", _columns(ops, folder)]
    lines += ["", wrapped("`python -m minidl.study exercise NAME` writes the file of one; the same again checks it.")]
    return "\n".join([*lines, f"* has a file in {folder}/"] if folder.is_dir() else lines)


def _mark(name: str, folder: Path) -> str:
    return "*" if (folder / f"{name}.py").exists() else " "


def _columns(names: list[str], folder: Path) -> str:
    length = max(map(len, names)) + 3
    per_line = max(1, (width() - 1) // length)
    marked = [f"{_mark(name, folder)}{name}" for name in names]
    rows = [marked[start : start + per_line] for start in range(0, len(marked), per_line)]
    return "\n".join(" " + "".join(f"{name:{length}}" for name in row).rstrip() for row in rows)


# -- one exercise ------------------------------------------------------------------------------------------------------


def _write(path: Path, exercise: Exercise) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(exercise.text(), encoding="utf-8")
    functions = ", ".join(task.name for task in exercise.tasks)
    print(wrapped(f"{path} has the signature, the formula and an empty body of {functions}. Write it."))


def _check(path: Path, exercise: Exercise, args: argparse.Namespace) -> int:
    report = check_file(path, exercise, args.seed or 0, Limits(args.seconds, args.memory))
    print(report_text(report, exercise))
    if report.is_right:
        _say_what_is_next(exercise, args)
    return RIGHT if report.is_right else WRONG


def _say_what_is_next(exercise: Exercise, args: argparse.Namespace) -> None:
    following = [one for one in exercises().values() if exercise.number and one.number == exercise.number + 1]
    if following:
        print(f"Next of the course:  {_command(following[0], args)}")


def _command(exercise: Exercise, args: argparse.Namespace) -> str:
    """The command of an exercise in the same folder."""
    folder = "" if args.folder == DEFAULT_FOLDER else f" --folder {shlex.quote(str(args.folder))}"
    return f"python -m minidl.study exercise {exercise.name}{folder}"


def _watch(path: Path, exercise: Exercise, args: argparse.Namespace) -> int:
    """Check at each save. Ctrl-C ends it without a word; the exit code is that of the last check."""
    seen, code = None, WRONG
    try:
        while True:
            saved = _saved(path)
            if saved != seen:
                seen = saved
                print(f"\n---- {path} at {time.strftime('%H:%M:%S')}; Ctrl-C ends ----\n", flush=True)
                code = _check(path, exercise, args)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        print()
        return code


def _saved(path: Path) -> tuple[int, int] | None:
    """When the file was saved, and its length; None while an editor replaces it."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


# -- grades ------------------------------------------------------------------------------------------------------------


def _grade(args: argparse.Namespace) -> int:
    grades = grade_folder(args.grade, args.names, args.seed, Limits(args.seconds, args.memory))
    if not any(student["exercises"] for student in grades["students"]):
        return _misused(f"{args.grade} and its subfolders have no file of an exercise, such as relu.py")
    print(grades_text(grades, args.json))
    return RIGHT
