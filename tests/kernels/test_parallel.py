"""The threads under the CPU kernels: every chunk once, results in order, errors not lost, BLAS given back."""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import threadpoolctl

import minidl
from minidl.kernels.cpu import _blas
from minidl.kernels.cpu._parallel import even_chunk, map_chunks, scratch, sum_chunks


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = minidl.get_num_threads()
    minidl.set_num_threads(request.param)
    yield request.param
    minidl.set_num_threads(before)


@pytest.mark.parametrize(("total", "chunk"), [(0, 3), (1, 3), (7, 3), (9, 3), (1000, 1)])
def test_every_chunk_is_worked_on_once_and_the_results_are_in_order(total, chunk, threads):
    pieces = map_chunks(lambda start, stop: list(range(start, stop)), total, chunk)
    assert [number for piece in pieces for number in piece] == list(range(total))
    assert all(len(piece) == chunk for piece in pieces[:-1])


def test_sums_are_added_in_the_order_of_the_chunks(threads):
    """In float32 (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1."""
    numbers = np.array([1e8, 1, -1e8], np.float32)
    assert sum_chunks(lambda start, stop: numbers[start:stop].copy(), 3, 1) == [0]


def test_numpys_error_state_of_the_caller_holds_on_every_thread(threads):
    """Which is a context variable: without care, a helper has its own, and warns where the caller wants an error."""
    both = threading.Barrier(min(threads, 8))

    def overflow(start, stop):
        both.wait(timeout=10)  # so that each thread has a chunk
        return np.geterr()["over"]

    with np.errstate(over="raise"):
        assert map_chunks(overflow, threads, 1) == ["raise"] * threads


def test_several_threads_work_at_the_same_time():
    """A chunk that waits for the other one: a single thread would wait for ever."""
    before = minidl.get_num_threads()
    minidl.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)
    try:
        map_chunks(lambda start, stop: both.wait(), 2, 1)
    finally:
        minidl.set_num_threads(before)


def test_an_error_in_a_chunk_is_raised_and_the_next_call_works(threads):
    def fail_late(start, stop):
        if start == 5:
            raise RuntimeError("the sixth chunk")

    with pytest.raises(RuntimeError, match="the sixth chunk"):
        map_chunks(fail_late, 10, 1)
    assert map_chunks(lambda start, stop: start, 3, 1) == [0, 1, 2]


def test_the_error_of_the_first_chunk_is_raised_whichever_thread_was_faster(threads):
    started = threading.Barrier(min(threads, 4))

    def fail(start, stop):
        started.wait(timeout=30)
        raise RuntimeError(f"chunk {start}")

    with pytest.raises(RuntimeError, match="chunk 0"):
        map_chunks(fail, min(threads, 4), 1)


def test_no_array_is_kept_alive_after_a_result_or_an_error(threads):
    class Array:
        pass

    def references(fails):
        array = Array()

        def work(start, stop):
            return array, 1 / (0 if fails else 1)

        with contextlib.suppress(ZeroDivisionError):
            map_chunks(work, 8, 1)
        return weakref.ref(array)

    gc.disable()
    try:
        for reference in (references(fails=False), references(fails=True)):
            deadline = time.monotonic() + 10  # a helper may still be on its way out of its last chunk
            while reference() is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert reference() is None
    finally:
        gc.enable()


def test_a_chunk_may_call_map_chunks_itself(threads):
    inner = map_chunks(lambda start, stop: sum(map_chunks(lambda a, b: a, 10, 1)), 6, 1)
    assert inner == [45] * 6


def test_several_callers_share_the_threads(threads):
    results = {}

    def call(name):
        results[name] = [map_chunks(lambda start, stop: start + name, 20, 1) for _ in range(20)]

    callers = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert all(results[name] == [[start + name for start in range(20)]] * 20 for name in range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    map_chunks(lambda start, stop: None, 8, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if map_chunks(lambda start, stop: start, 4, 1) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def test_blas_has_one_thread_inside_and_its_own_number_again_afterwards(two_blas_threads):
    inner = []

    def work(start, stop):
        map_chunks(lambda start, stop: inner.append(blas_threads()), 1, 1)
        inner.append(blas_threads())

    map_chunks(work, 1, 1)
    assert inner == [{1}, {1}]
    assert blas_threads() == {2}


def test_blas_is_given_back_wherever_ctrl_c_comes(two_blas_threads):
    """Python looks for signals where a function begins and where one of C returns; each such place in turn."""
    interrupted = 0
    for event_number in range(1000):
        countdown = iter([True] * event_number)

        def interrupt(frame, event, argument, countdown=countdown):
            ours = frame.f_globals["__name__"] in (_blas.__name__, map_chunks.__module__)
            if ours and event in ("call", "c_return") and not next(countdown, False):
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            map_chunks(lambda start, stop: None, 3, 1)
            break
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.setprofile(None)
        assert blas_threads() == {2}, f"after an interrupt at event {event_number}"
        assert not _blas._users
    assert interrupted > 20


def test_ctrl_c_is_never_lost_in_a_kernel():
    """NumPy's np.dtype((np.void, n)) clears an exception that a signal handler raised in the call before it."""
    x, weight = np.ones((32, 16, 16, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
    presses = 40
    for _ in range(presses):
        pressed = threading.Event()

        def press(pressed=pressed):
            time.sleep(0.005)
            pressed.set()
            signal.raise_signal(signal.SIGINT)

        presser = threading.Thread(target=press)
        deadline = time.monotonic() + 10
        with pytest.raises(KeyboardInterrupt):
            presser.start()
            while time.monotonic() < deadline:
                minidl.kernels.cpu.conv2d_forward(x, weight, None, (1, 1), (1, 1))
                if pressed.is_set() and not presser.is_alive():
                    deadline = min(deadline, time.monotonic() + 0.2)
        presser.join()


def test_blas_is_given_back_after_an_error():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        map_chunks(lambda start, stop: 1 / 0, 2, 1)
    assert blas_threads() == before


@pytest.mark.parametrize(("total", "longest", "expected"), [(8, 5, 4), (10, 5, 5), (3, 100, 3), (128, 8, 8), (7, 3, 3)])
def test_chunks_are_even(total, longest, expected):
    assert even_chunk(total, longest) == expected


def test_scratch_of_one_name_is_one_buffer_for_each_thread():
    here = scratch("test", (4, 2), np.float32)
    assert np.shares_memory(here, scratch("test", (3,), np.float32))
    assert not np.shares_memory(here, scratch("another", (3,), np.float32))
    there = []
    other = threading.Thread(target=lambda: there.append(scratch("test", (4, 2), np.float32)))
    other.start()
    other.join()
    assert not np.shares_memory(here, there[0])


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(number):
    with pytest.raises(ValueError, match="set_num_threads"):
        minidl.set_num_threads(number)
