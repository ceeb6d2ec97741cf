"""See what a network does, and do it: a training step as a table (`trace`), exercises (`python -m minidl.study`).

`import minidl` does not load this package.
"""

from minidl.study.trace import Trace, trace
