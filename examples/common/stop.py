"""Ctrl-C and its kin: a request to stop, obeyed where nothing is lost."""

import signal


class Stopped(SystemExit):
    """The run was asked to stop, and has saved all that it did. `code` is the exit status."""


class StopRequest:
    """Inside `with`, Ctrl-C, SIGTERM and SIGHUP ask to stop after the step in progress.

    A second Ctrl-C or SIGTERM stops at once. A second SIGHUP does not: a terminal that closes often sends several. A
    SIGHUP or SIGTERM that is ignored, as under nohup, stays ignored.

    Attributes:
        asked: whether one has come.
        status: what the process should end with: 0 after Ctrl-C, as a person got what they asked for; else 128 + the
            number of the signal, from which a scheduler learns that the run is not finished.
    """

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
        if number in (signal.SIGINT, signal.SIGTERM):
            for other in {signal.SIGINT, signal.SIGTERM} & self._before.keys():
                signal.signal(other, self._before[other])
