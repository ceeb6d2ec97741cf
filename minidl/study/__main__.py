"""`python -m minidl.study COMMAND`: see and practise backprop.

Each command is a module with NAME, HELP, `add_arguments(parser)` and `run(args)`, which returns the exit code.
"""

import argparse
import sys

from minidl.study import list_mistakes
from minidl.study.workbench import command as exercise

COMMANDS = (exercise, list_mistakes)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; without one, list them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m minidl.study", description="See and practise backprop.")
    parsers = parser.add_subparsers(metavar="COMMAND", required=False)
    for command in COMMANDS:
        one = parsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
