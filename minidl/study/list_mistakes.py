"""`python -m minidl.study mistakes`: the known mistakes by name; with --train, what training makes of them."""

import argparse
import sys

from minidl.study import train_mistakes
from minidl.study.mistakes import MISTAKES

NAME, HELP = "mistakes", "the wrong results that the workbench recognises, by name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("targets", nargs="*", metavar="NAME", help="a kernel, or the class of an op; without one, all")
    train_mistakes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print them. Returns the exit code: 2 for a name that has none."""
    targets = dict.fromkeys(mistake.target for mistake in MISTAKES)
    unknown = [name for name in args.targets if name not in targets]
    if unknown:
        print(f"mistakes: none are known of {unknown[0]!r}; there are some of {', '.join(targets)}", file=sys.stderr)
        return 2
    if args.train:
        return train_mistakes.run(args)
    for target in args.targets or targets:
        names = [mistake.name for mistake in MISTAKES if mistake.target == target]
        print("\n".join([target, *(f"    {name}" for name in names), ""]))
    if not args.targets:
        print(f"{len(MISTAKES)} mistakes of {len(targets)} kernels and ops")
    return 0
