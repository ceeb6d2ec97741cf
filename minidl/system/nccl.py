"""NCCL, which adds arrays of several GPUs, by NVIDIA's binding nccl4py. Imported on demand, as CuPy is."""

from minidl.system.gpu import require_cupy, select_gpu

ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES


def require_nccl():
    """Import and return nccl.core. Raise RuntimeError with the remedy if it is not installed or finds no library."""
    try:
        import nccl.core
    except (ImportError, RuntimeError, OSError) as error:
        raise RuntimeError(
            f'several GPUs need NCCL: pip install "minidl[nccl]"; the import of nccl4py failed: {error}'
        ) from error
    return nccl.core


def gpu_count() -> int:
    """Return how many GPUs this process sees."""
    return require_cupy().cuda.runtime.getDeviceCount()


def new_id() -> bytes:
    """Return the name of a new group of ranks. One rank asks for it and sends it to the others."""
    return require_nccl().get_unique_id().as_bytes


class Nccl:
    """A group of ranks with a GPU each. Creating it is collective, like its calls.

    A call waits for what this thread has queued on the GPU, runs on a stream of its own, and returns when the array is
    complete. Meanwhile other threads may queue work. Any thread may call.
    """

    def __init__(self, rank: int, size: int, unique_id: bytes):
        nccl = require_nccl()
        cupy = select_gpu("cuda")
        self._sum = nccl.SUM
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._group = nccl.Communicator.init(size, rank, nccl.UniqueId.from_bytes(unique_id))

    def all_reduce(self, array) -> None:
        """Replace the array by its sum over all ranks, in place."""
        self._run(self._group.allreduce, array, array, self._sum)

    def broadcast(self, array, root: int) -> None:
        """Replace the array by that of rank `root`, in place."""
        self._run(self._group.broadcast, array, array, root)

    def _run(self, call, *arguments) -> None:
        cupy = select_gpu("cuda")  # each thread starts on GPU 0
        self._stream.wait_event(cupy.cuda.get_current_stream().record())
        call(*arguments, stream=self._stream.ptr)
        self._stream.synchronize()
