"""See what a network does: a training step as a table (`trace`). `import minidl` does not load this package."""

from minidl.study.trace import Trace, trace
