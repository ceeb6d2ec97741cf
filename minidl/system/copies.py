"""Copies from the host to a GPU that run while it computes."""

import numpy as np

from minidl.system.gpu import require_cupy


class CopyRing:
    """Takes batches of host arrays to the device, on a stream of its own, through two slots that take turns.

    While the GPU works on the batch in one slot, the next batch is copied into the other: by the host into pinned
    memory, which the GPU can read by itself, and from there to the device.
    """

    def __init__(self) -> None:
        cupy = require_cupy()
        self._current_stream = cupy.cuda.get_current_stream
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._slots = _Slot(cupy), _Slot(cupy)

    def copy(self, arrays: tuple[np.ndarray, ...]) -> tuple:
        """The arrays on the device, for what is queued on the current stream before the next call.

        The host waits for the copy before the last one, if that is not done, and not for the one that it begins.
        """
        current = self._current_stream()
        before, slot = self._slots
        self._slots = slot, before
        before.read.record(current)
        slot.copied.synchronize()
        slot.make_room(arrays, current)
        pinned, device = slot.pinned_arrays(arrays), slot.device_arrays(arrays)
        for source, target in zip(arrays, pinned, strict=True):
            np.copyto(target, source)
        self._copies.wait_event(slot.read)
        for source, target in zip(pinned, device, strict=True):
            target.set(source, stream=self._copies)
        slot.copied.record(self._copies)
        current.wait_event(slot.copied)
        return tuple(device)


class _Slot:
    """For each array of a batch a pinned buffer and one on the device, bytes, as long as the longest so far.

    `copied` happens when the copy between them is done: the host may fill the pinned ones again, and the current stream
    may read those on the device. `read` happens when what was queued to read these is done: they may be overwritten.
    """

    def __init__(self, cupy) -> None:
        self._cupy = cupy
        self._pinned, self._device = [], []
        self.copied, self.read = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def make_room(self, arrays: tuple[np.ndarray, ...], current) -> None:
        """Longer buffers where these arrays need them."""
        lengths, room = [array.nbytes for array in arrays], [len(buffer) for buffer in self._device]
        if len(lengths) == len(room) and all(length <= space for length, space in zip(lengths, room, strict=True)):
            return
        self._pinned = [np.frombuffer(self._cupy.cuda.alloc_pinned_memory(n), np.uint8, n) for n in lengths]
        self._device = [self._cupy.empty(n, np.uint8) for n in lengths]
        # CuPy's pool hands out memory that earlier work on the current stream may still read.
        self.read.record(current)

    def pinned_arrays(self, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """The beginnings of the pinned buffers, in the shapes of these arrays."""
        return [_shaped(buffer, array) for buffer, array in zip(self._pinned, arrays, strict=True)]

    def device_arrays(self, arrays: tuple[np.ndarray, ...]) -> list:
        """The same of the buffers on the device."""
        return [_shaped(buffer, array) for buffer, array in zip(self._device, arrays, strict=True)]


def _shaped(buffer, like: np.ndarray):
    return buffer[: like.nbytes].view(like.dtype).reshape(like.shape)
