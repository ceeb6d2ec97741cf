"""Graceful stop: Ctrl-C, SIGTERM and SIGHUP end a run after the current step, when its state can be saved."""

import signal


class Stopped(SystemExit):
    """Raised after a requested stop, once the checkpoint is saved. `code` is the exit status."""


class StopRequest:
    """A context in which Ctrl-C, SIGTERM and SIGHUP set a flag instead of ending the process.

    A second Ctrl-C or SIGTERM ends it at once. A second SIGHUP does not, as a closing terminal often sends several. A
    SIGHUP or SIGTERM that was ignored before, as under nohup, stays ignored.

    Args:
        second_ends: False if a second one is ignored too. mpiexec passes a signal to its processes more than once, and
            ends them itself if Ctrl-C is repeated.

    Attributes:
        asked: True once a signal has arrived.
        status: the exit status for the process: 0 after Ctrl-C, which is what the user wanted; otherwise 128 + the
            signal number, which tells a job scheduler that the run is unfinished.
    """

    def __init__(self, second_ends: bool = True):
        self.second_ends = second_ends

    def __enter__(self) -> "StopRequest":
        self.asked, self.status = False, 0
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self._before = {
            number: signal.signal(number, self._ask)
            for number in numbers
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, *_) -> None:
        if not self.asked and number != signal.SIGINT:
            self.status = 128 + number
        self.asked = True
        if self.second_ends and number in (signal.SIGINT, signal.SIGTERM):
            for other in {signal.SIGINT, signal.SIGTERM} & self._before.keys():
                signal.signal(other, self._before[other])
