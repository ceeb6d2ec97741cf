"""What the ranks of a job can do together. All else in this package is made of these calls."""

import numpy as np

LONGEST_TEXT = 2000  # bytes of a rank's text that `gather_text` keeps


class Communicator:
    """The ranks 0 to `size` - 1 of a job; this process is `rank`.

    The first three calls are collective: every rank makes the same calls in the same order, with arrays of the same
    shape and dtype, and a call returns when the ranks have done their part. Arrays are C-contiguous. A communicator
    serves one thread; `duplicate` gives another thread its own.
    """

    rank: int
    size: int

    def all_reduce(self, array) -> None:
        """Replace the array by its sum over all ranks, in place. All ranks receive the same bits."""
        raise NotImplementedError

    def broadcast(self, array, root: int = 0) -> None:
        """Replace the array by that of rank `root`, in place."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        raise NotImplementedError

    def abort(self, message: str) -> None:
        """Print the message with the name of this rank, and end the processes of all ranks. Does not return."""
        raise NotImplementedError

    def duplicate(self) -> "Communicator":
        """Return a communicator of the same ranks, for use in another thread. This call is collective too."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> "Communicator":
        """The copy of a network with synchronised batch-norm exchanges with the same ranks."""
        return self


class SingleProcess(Communicator):
    """The communicator of a job with one process: there is nobody to exchange with."""

    rank, size = 0, 1

    def all_reduce(self, array) -> None:
        """Leave the array unchanged: it is the sum already."""

    def broadcast(self, array, root: int = 0) -> None:
        """Leave the array unchanged."""

    def barrier(self) -> None:
        """Return at once."""

    def abort(self, message: str) -> None:
        """End this process with the message."""
        raise SystemExit(message)

    def duplicate(self) -> "SingleProcess":
        """Return this communicator, which has no state."""
        return self


def gather(communicator: Communicator, row: np.ndarray) -> np.ndarray:
    """Return the rows of all ranks, (size, *row.shape), on every rank.

    Each rank adds a table that is zero but for its own row. A sum with zeros is exact.
    """
    table = np.zeros_like(row, shape=(communicator.size, *row.shape))
    table[communicator.rank] = row
    communicator.all_reduce(table)
    return table


def gather_text(communicator: Communicator, text: str) -> list[str]:
    """Return the texts of all ranks on every rank, each cut off after `LONGEST_TEXT` bytes."""
    letters = np.zeros(LONGEST_TEXT, np.uint8)
    encoded = text.encode(errors="backslashreplace")[:LONGEST_TEXT]
    letters[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = gather(communicator, letters)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


def name_ranks(ranks: list[int]) -> str:
    """Return 'rank 2', or 'ranks 0, 1 and 3'."""
    numbers = [str(rank) for rank in ranks]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}"
