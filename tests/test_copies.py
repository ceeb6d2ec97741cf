"""The order of copies and steps, on a device made of queues that takes its streams in any order that events allow."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from minidl.system import copies


class Device:
    """Streams are queues. What stands at their heads is done in an order that the seed decides."""

    def __init__(self, seed):
        self.choose, self.streams = random.Random(seed), []
        self.eagerness = self.choose.random()  # how much is done before the host goes on: from nothing to nearly all

    def do_one(self):
        """One piece of work, if any may start."""
        ready = [queue for queue in self.streams if queue and queue[0].may_start()]
        if ready:
            self.choose.choice(ready).pop(0).do()
        return bool(ready)

    def run_for_a_while(self):
        while self.choose.random() < self.eagerness and self.do_one():
            pass

    def run_until(self, work):
        while not work.is_done:
            assert self.do_one(), "the host waits forever"

    def run(self):
        """As far as it goes."""
        while self.do_one():
            pass


class Work:
    """What a stream does, once another work is done."""

    def __init__(self, action=lambda: None, after=None):
        self.action, self.after, self.is_done = action, after, False

    def may_start(self):
        return self.after is None or self.after.is_done

    def do(self):
        self.action()
        self.is_done = True


class Stream:
    def __init__(self, device):
        self.queue = []
        device.streams.append(self.queue)

    def add(self, work):
        self.queue.append(work)
        return work

    def wait_event(self, event):
        self.add(Work(after=event.recorded))


class Event:
    def __init__(self, device):
        self.device, self.recorded = device, None

    def record(self, stream):
        self.recorded = stream.add(Work())

    def synchronize(self):
        if self.recorded:
            self.device.run_until(self.recorded)


class Buffer:
    """An array on the device: what is in it is known when the device gets there."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return Buffer(self.numbers[index])

    def view(self, dtype):
        return Buffer(self.numbers.view(dtype))

    def reshape(self, shape):
        return Buffer(self.numbers.reshape(shape))

    def set(self, source, stream):
        assert source.shape == self.numbers.shape
        stream.add(Work(lambda: np.copyto(self.numbers, source)))


@pytest.fixture(params=range(60))
def gpu(request, monkeypatch):
    device = Device(request.param)
    device.current = Stream(device)
    device.pool = []
    cuda = SimpleNamespace(
        get_current_stream=lambda: device.current,
        Stream=lambda non_blocking: Stream(device),
        Event=lambda disable_timing: Event(device),
        alloc_pinned_memory=bytearray,
    )

    def empty(length, dtype):
        return Buffer(device.pool.pop() if device.pool else np.zeros(length, dtype))

    monkeypatch.setattr(copies, "select_gpu", lambda device: SimpleNamespace(cuda=cuda, empty=empty))
    return device


def batches(lengths):
    """Images full of their batch's number, and as many labels."""
    for number, length in enumerate(lengths):
        yield np.full((length, 2, 3), number, np.uint8), np.full(length, number, np.int64)


def test_every_step_reads_its_own_batch_whatever_order_the_device_takes(gpu):
    ring, seen = copies.CopyRing(), []
    lengths = [3, 4, 4, 2, 4, 5, 1, 5, 5, 5]
    for arrays in batches(lengths):
        on_device = ring.copy(arrays)
        for array in arrays:
            array[...] = 99  # the loader's memory is its own again
        gpu.current.add(Work(lambda arrays=on_device: seen.append([array.numbers.copy() for array in arrays])))
        gpu.run_for_a_while()
    gpu.run()
    assert len(seen) == len(lengths)
    for found, expected in zip(seen, batches(lengths), strict=True):
        for array, expected_array in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, expected_array, strict=True)


def test_a_batch_is_copied_while_the_device_works_on_the_one_before(gpu):
    ring = copies.CopyRing()
    step = Work()
    for number, arrays in enumerate(batches([4] * 6)):
        images, labels = ring.copy(arrays)
        gpu.run()
        assert (images.numbers == number).all()
        assert (labels.numbers == number).all()
        step.do()  # the step on the batch before is done only now
        step = Work()
        if number:  # the first copies wait for all, as their memory is new
            gpu.current.add(Work(after=step))


def test_memory_from_the_pool_is_not_overwritten_while_earlier_work_reads_it(gpu):
    old, seen = np.full(24, 7, np.uint8), []
    gpu.pool.append(old)
    gpu.current.add(Work(lambda: seen.append(old.copy())))
    copies.CopyRing().copy((np.zeros((4, 2, 3), np.uint8),))
    gpu.run()
    assert (seen[0] == 7).all()
