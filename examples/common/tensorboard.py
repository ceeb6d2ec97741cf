"""`--log tensorboard`: the records of metrics.jsonl as curves in TensorBoard."""

import contextlib
import time
from pathlib import Path


class TensorBoardLog:
    """DIR/events.out.tfevents...: one scalar for each number of each record, at the record's step. Lists are left out.

    Show it with `tensorboard --logdir DIR`. The file is made from the records alone. A run that is resumed writes it
    anew, so no point is there twice, and points after the checkpoint are dropped.

    Raises ValueError if tensorboardX is not installed.
    """

    def __init__(self, path: Path):
        tensorboardx()
        self.path, self._file = path, None
        self._written = 0  # number of records in the file

    def write(self, records: list[dict]) -> None:
        """Bring the file up to date with all records so far."""
        events, event_pb2, summary = tensorboardx()
        if self._file is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_old_files()
            self._file = events.EventsWriter(str(self.path / "events"))  # SummaryWriter's thread would write later
        started = time.time() - records[-1].get("seconds", 0.0)
        for record in records[self._written :]:
            when = started + record.get("seconds", 0.0)
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    scalar = summary.scalar(name, value)
                    self._file.write_event(event_pb2.Event(wall_time=when, step=record["step"], summary=scalar))
        self._written = len(records)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _remove_old_files(self) -> None:
        for file in self.path.glob("events.out.tfevents*"):
            with contextlib.suppress(OSError):
                file.unlink()


def tensorboardx() -> tuple:
    """The modules of tensorboardX that write files, protocol buffers and scalars; a ValueError if it is missing."""
    try:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
    except ImportError:
        raise ValueError('--log tensorboard needs tensorboardX: pip install "minidl[tensorboard]"') from None
    return event_file_writer, event_pb2, summary
