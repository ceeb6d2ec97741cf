"""Copies from the host to a GPU that overlap with its computation."""

import numpy as np

from minidl.system.gpu import select_gpu


class CopyRing:
    """Copies batches of host arrays to the device on its own stream, alternating between two slots.

    While the GPU works on the batch in one slot, the next batch goes into the other. The host copies it into pinned
    memory, which the GPU can read directly; from there the GPU copies it to the device.
    """

    def __init__(self, device: str = "cuda") -> None:
        cupy = select_gpu(device)
        self._current_stream = cupy.cuda.get_current_stream
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._slots = _Slot(cupy), _Slot(cupy)

    def copy(self, arrays: tuple[np.ndarray, ...]) -> tuple:
        """Copy the arrays to the device, for work that is queued on the current stream before the next call.

        The host waits until the copy from two calls ago is done, as it reuses that slot, but not for the new copy.
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
    """A pinned buffer and a device buffer of bytes for each array of a batch; they grow when an array needs it.

    The event `copied` fires when the copy from pinned to device is done: the host may refill the pinned buffers, and
    the current stream may read the device buffers. `read` fires when that reading is done: they may be overwritten.
    """

    def __init__(self, cupy) -> None:
        self._cupy = cupy
        self._pinned, self._device = [], []
        self.copied, self.read = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def make_room(self, arrays: tuple[np.ndarray, ...], current) -> None:
        """Allocate new buffers if these arrays do not fit."""
        lengths, room = [array.nbytes for array in arrays], [len(buffer) for buffer in self._device]
        if len(lengths) == len(room) and all(length <= space for length, space in zip(lengths, room, strict=True)):
            return
        self._pinned = [np.frombuffer(self._cupy.cuda.alloc_pinned_memory(n), np.uint8, n) for n in lengths]
        self._device = [self._cupy.empty(n, np.uint8) for n in lengths]
        # CuPy's pool may return memory that earlier work on the current stream still reads.
        self.read.record(current)

    def pinned_arrays(self, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Views of the pinned buffers with the shapes and dtypes of these arrays."""
        return [_shaped(buffer, array) for buffer, array in zip(self._pinned, arrays, strict=True)]

    def device_arrays(self, arrays: tuple[np.ndarray, ...]) -> list:
        """Views of the device buffers with the shapes and dtypes of these arrays."""
        return [_shaped(buffer, array) for buffer, array in zip(self._device, arrays, strict=True)]


def _shaped(buffer, like: np.ndarray):
    return buffer[: like.nbytes].view(like.dtype).reshape(like.shape)
