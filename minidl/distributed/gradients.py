"""The gradients of the whole batch, from those of each rank's share of it."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar

import numpy as np

from minidl.checks import check_whole
from minidl.distributed.communicator import Communicator
from minidl.distributed.safety import check_same
from minidl.kernels import is_capturing
from minidl.nn.module import Module
from minidl.tensor import Buffer, Parameter, Tensor

# The images of this rank inside of `AveragedGradients.average(images)`, else None. With 0, nothing here is counted.
images_of_block: ContextVar[int | None] = ContextVar("images_of_block", default=None)


class AveragedGradients:
    """Sets the gradient of each parameter to its mean over the images of all ranks, while backward still runs.

    With n_r images on rank r, and g_r the gradient of the mean loss over them,
        grad = sum over r of n_r g_r, divided by the sum over r of n_r.
    That is the gradient of the mean loss over the whole batch.

        gradients = AveragedGradients(model, communicator)
        with gradients.average(len(images)):
            cross_entropy(model(images), labels).backward()

    Backward completes the gradients of the last layers first. As soon as those of a bucket are complete, another thread
    adds them to those of the other ranks, and backward goes on (Li et al. 2020, "PyTorch distributed: experiences on
    accelerating data parallel training", section 3.2). The thread takes the buckets in the same order on all ranks. So
    the sums have the same bits in each run.

    The constructor copies the parameters and buffers of rank 0 to all ranks, also the keys of dropout. Create the
    optimiser before or after it.

    Args:
        model: its parameters that require grad; the same ones on all ranks.
        communicator: of `minidl.distributed.start`.
        bucket_bytes: gradients are added in pieces of about this size. Small ones begin earlier, large ones cost
            fewer calls.

    Raises:
        RuntimeError: the parameters or buffers of some rank have other names, shapes or dtypes, or another order.
    """

    def __init__(self, model: Module, communicator: Communicator, bucket_bytes: int = 2**22):
        if not isinstance(bucket_bytes, int) or bucket_bytes < 1:
            raise ValueError(f"AveragedGradients: expected bucket_bytes >= 1, got {bucket_bytes!r}")
        tensors = list(model.named_tensors(Parameter | Buffer))
        kinds = [[name, x.shape, str(x.dtype), x.requires_grad] for name, x in tensors]  # a list: the order counts
        check_same(communicator, "names, shapes and dtypes of the model's parameters, in this order", kinds)
        check_same(communicator, "bucket_bytes", bucket_bytes)
        self._communicator = communicator.duplicate()  # the thread's own
        self._thread = ThreadPoolExecutor(1, "AveragedGradients")
        self._interrupted = False
        parameters = [parameter for parameter in reversed(model.parameters()) if parameter.requires_grad]
        if not parameters:
            raise ValueError(f"AveragedGradients: {type(model).__name__} has no parameter that requires grad")
        self.buckets = [Bucket(group) for group in _groups(parameters, bucket_bytes)]
        self._model, self._averaged = model, set(map(id, parameters))
        for _, tensor in tensors:
            communicator.broadcast(tensor.data)

    @contextlib.contextmanager
    def average(self, images_here: int, backwards: int = 1) -> Iterator[None]:
        """Around forward and backward of the mean loss over this rank's `images_here` images.

        At the end of the block each parameter has the gradient of the whole batch, or None if it has none on any rank.
        With 0 images, what is computed here counts for nothing: see `at_least_one`. A rank that calls no backward adds
        zeros, and its images count.

        To save memory the images can be computed in parts, with a backward pass for each (gradient accumulation).
        `backwards` is their number, which may differ between the ranks. The loss of a part has to be weighted by its
        share of `images_here`. The gradients are sent during the last backward pass. Synchronised batch-norm needs
        the same number of parts on each rank.

        Raises:
            RuntimeError: a parameter requires grad that did not when this object was made, there are gradients already,
                backward is called more often than stated, an earlier block ended with an error, a rank cannot be
                reached, or the block is inside of a step that is captured by `cuda_graph`.
            ValueError: there are no images on any rank, or an argument is not a whole number.
        """
        check_whole("AveragedGradients.average", 0, images_here=images_here)
        check_whole("AveragedGradients.average", 1, backwards=backwards)
        self._check_parameters()
        if is_capturing(self.buckets[0].sums):
            raise RuntimeError(
                "AveragedGradients.average: a CUDA graph cannot hold the exchange of gradients, which is started from "
                "Python; call the step without cuda_graph"
            )
        if self._interrupted:
            raise RuntimeError(
                "AveragedGradients.average: an earlier block ended with an error, when gradients may have been on "
                "their way, so the ranks no longer agree; end the job, and resume from a checkpoint"
            )
        if any(parameter.grad is not None for bucket in self.buckets for parameter in bucket.parameters):
            raise RuntimeError(
                "AveragedGradients.average: there are gradients already, which would count twice; "
                "call model.zero_grad() before"
            )
        reduction = _Reduction(self.buckets, images_here, backwards, self._thread, self._communicator)
        token = images_of_block.set(images_here)
        try:
            with reduction.hooks():
                yield
            images = reduction.finish()
        except BaseException:
            self._interrupted = self._communicator.size > 1
            raise
        finally:
            images_of_block.reset(token)
        if images == 0:
            raise ValueError("AveragedGradients.average: expected images on some rank, got 0 on all")

    def _check_parameters(self) -> None:
        """Raise RuntimeError if a parameter requires grad that is in no bucket."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._averaged:
                raise RuntimeError(
                    f"AveragedGradients.average: {name} was frozen or not there when AveragedGradients(model, ...) was "
                    "called; call it again after such a change"
                )


class Bucket:
    """Parameters whose gradients travel together, in one array."""

    def __init__(self, parameters: list[Parameter]):
        self.parameters = parameters
        ends = np.cumsum([parameter.numel() for parameter in parameters]).tolist()
        first = parameters[0].data
        self.sums = np.empty_like(first, shape=(ends[-1],))  # on the device of the parameters
        self.parts = [
            self.sums[end - parameter.numel() : end].reshape(parameter.shape)
            for parameter, end in zip(parameters, ends, strict=True)
        ]

    def pack(self, weight: int) -> None:
        """Write weight * grad of each parameter into `sums`; 0 if it has none."""
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            if parameter.grad is None or weight == 0:  # 0 * grad could be NaN
                part[...] = 0
            else:
                np.multiply(parameter.grad.data, weight, out=part)

    def unpack(self, total: int, has_grad: np.ndarray) -> None:
        """Set the gradients to sums / total."""
        for parameter, part, there in zip(self.parameters, self.parts, has_grad, strict=True):
            if there:
                parameter.grad = Tensor(part / total)
            elif parameter.grad is not None:  # that of a blank image
                parameter.grad = None


class _Reduction:
    """The buckets of one batch, on their way through the thread."""

    def __init__(
        self,
        buckets: list[Bucket],
        images: int,
        backwards: int,
        thread: ThreadPoolExecutor,
        communicator: Communicator,
    ):
        self._buckets, self._images, self._thread, self._communicator = buckets, images, thread, communicator
        # How many gradients of the bucket are still to come: each backward pass completes each of them once.
        self._missing = [backwards * sum(p.requires_grad for p in bucket.parameters) for bucket in buckets]
        self._futures: list[Future] = []  # of the buckets that were handed over: the first ones

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside the block, backward hands over each bucket as soon as its gradients are complete."""
        added = []
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                if not parameter.requires_grad:  # frozen since the buckets were made
                    continue
                hook = self._hook(number)
                parameter._node.hooks.append(hook)
                added.append((parameter._node.hooks, hook))
        try:
            yield
        finally:
            for hooks, hook in added:
                hooks.remove(hook)

    def _hook(self, number: int):
        def complete():
            self._missing[number] -= 1
            if self._missing[number] < 0 or number < len(self._futures):
                raise RuntimeError(
                    "AveragedGradients.average: backward ran twice in the block, after gradients were sent; add the "
                    "losses and call backward once, or state the number of calls as `backwards`"
                )
            while len(self._futures) < len(self._buckets) and self._missing[len(self._futures)] == 0:
                self._hand_over()

        return complete

    def _hand_over(self) -> None:
        """Hand the next bucket to the thread. The order is that of the buckets, so that the ranks agree."""
        bucket = self._buckets[len(self._futures)]
        bucket.pack(self._images)
        self._futures.append(self._thread.submit(self._communicator.all_reduce, bucket.sums))

    def finish(self) -> int:
        """Hand over the buckets with parameters that got no gradient here, wait for all, and set the gradients.

        Return the number of images on all ranks. With 0 images no gradient is set.
        """
        while len(self._futures) < len(self._buckets):
            self._hand_over()
        parameters = [parameter for bucket in self._buckets for parameter in bucket.parameters]
        has_grad_here = [self._images > 0 and parameter.grad is not None for parameter in parameters]
        counts = np.array([self._images, *has_grad_here], np.int64)
        self._futures.append(self._thread.submit(self._communicator.all_reduce, counts))
        for future in self._futures:
            future.result()  # raises the thread's error
        total, has_grad = int(counts[0]), counts[1:]
        if total == 0:
            return 0
        for bucket in self._buckets:
            bucket.unpack(total, has_grad[: len(bucket.parameters)])
            has_grad = has_grad[len(bucket.parameters) :]
        return total


Data = np.ndarray | Tensor


def at_least_one(*batch: Data) -> tuple[Data, ...]:
    """Return the images (N, ...) and labels (N,), or one blank image with label 0 if N = 0.

    There may be more arrays with a row for each image, and numbers, which stay as they are.

    A rank whose share of a batch is empty still runs the network, as its batch-norm layers exchange statistics:

        with gradients.average(len(images)):
            images, labels = at_least_one(images, labels)
            cross_entropy(model(images), labels).backward()
    """
    if len(batch[0]):
        return batch
    return tuple(_one_zero(values) if getattr(values, "ndim", 0) else values for values in batch)


def _one_zero(values: Data) -> Data:
    """Zeros of the shape (1, ...), of the kind and on the device of values (0, ...)."""
    if isinstance(values, Tensor):
        return Tensor(_one_zero(values.data))
    return np.zeros_like(values, shape=(1, *values.shape[1:]))


def _groups(parameters: list[Parameter], bucket_bytes: int) -> Iterator[list[Parameter]]:
    """Cut the list into groups of at least `bucket_bytes`, each of one dtype; the last may be smaller."""
    group: list[Parameter] = []
    for parameter in parameters:
        if group and (group[-1].dtype != parameter.dtype or sum(p.data.nbytes for p in group) >= bucket_bytes):
            yield group
            group = []
        group.append(parameter)
    yield group
