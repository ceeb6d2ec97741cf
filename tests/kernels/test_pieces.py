"""The threads under the CPU kernels: every piece once, results in order, errors not lost, BLAS given back."""

import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import threadpoolctl

import minidl
from minidl.kernels import cpu, reference
from minidl.kernels.cpu import _pieces, _threads
from minidl.kernels.cpu._pieces import even_slices, remembered, scratch, slices
from minidl.kernels.cpu._threads import SMALL_FOR_BLAS, map_pieces, sum_pieces


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = minidl.get_num_threads()
    minidl.set_num_threads(request.param)
    yield request.param
    minidl.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_every_piece_is_worked_on_once_and_the_results_are_in_order(count, threads):
    begun = []
    assert map_pieces(lambda piece: begun.append(piece) or -piece, range(count)) == [-piece for piece in range(count)]
    assert sorted(begun) == list(range(count))


def test_sums_are_added_in_the_order_of_the_pieces(threads):
    """In float32 (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1."""
    numbers = np.array([1e8, 1, -1e8], np.float32)
    assert sum_pieces(lambda some: numbers[some].copy(), slices(3, 1)) == [0]


def test_numpys_error_state_of_the_caller_holds_on_every_thread(threads):
    """Which is a context variable: without care, a helper has its own, and warns where the caller wants an error."""
    both = threading.Barrier(min(threads, 8))

    def overflow(piece):
        both.wait(timeout=3000)  # so that each thread has a piece
        return np.geterr()["over"]

    with np.errstate(over="raise"):
        assert map_pieces(overflow, range(threads)) == ["raise"] * threads


def test_several_threads_work_at_the_same_time():
    """A piece that waits for the other one: a single thread would wait for ever."""
    before = minidl.get_num_threads()
    minidl.set_num_threads(2)
    both = threading.Barrier(2, timeout=300)
    try:
        map_pieces(lambda piece: both.wait(), range(2))
    finally:
        minidl.set_num_threads(before)


def test_an_error_in_a_piece_is_raised_and_the_next_call_works(threads):
    def fail_late(piece):
        if piece == 5:
            raise RuntimeError("the sixth piece")

    with pytest.raises(RuntimeError, match="the sixth piece"):
        map_pieces(fail_late, range(10))
    assert map_pieces(lambda piece: piece, range(3)) == [0, 1, 2]


def test_the_error_of_the_first_piece_is_raised_whichever_thread_was_faster(threads):
    started = threading.Barrier(min(threads, 4))

    def fail(piece):
        started.wait(timeout=300)
        raise RuntimeError(f"piece {piece}")

    with pytest.raises(RuntimeError, match="piece 0"):
        map_pieces(fail, range(min(threads, 4)))


def test_no_array_is_kept_alive_after_a_result_or_an_error(threads):
    class Array:
        pass

    def references(fails):
        array = Array()

        def work(piece):
            return array, 1 / (0 if fails else 1)

        with contextlib.suppress(ZeroDivisionError):
            map_pieces(work, range(8))
        return weakref.ref(array)

    gc.disable()
    try:
        for reference in (references(fails=False), references(fails=True)):
            deadline = time.monotonic() + 300  # a helper may still be on its way out of its last piece
            while reference() is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert reference() is None
    finally:
        gc.enable()


def test_a_piece_may_call_map_pieces_itself(threads):
    inner = map_pieces(lambda piece: sum(map_pieces(lambda number: number, range(10))), range(6))
    assert inner == [45] * 6


def test_several_callers_share_the_threads(threads):
    results = {}

    def call(name):
        results[name] = [map_pieces(lambda piece: piece + name, range(20)) for _ in range(20)]

    callers = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=300)
    assert all(results[name] == [[start + name for start in range(20)]] * 20 for name in range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    map_pieces(lambda piece: None, range(8))
    child = os.fork()
    if child == 0:
        os._exit(0 if map_pieces(lambda piece: piece, range(4)) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def test_blas_has_one_thread_inside_and_its_own_number_again_afterwards(two_blas_threads):
    inner = []

    def work(piece):
        map_pieces(lambda piece: inner.append(blas_threads()), [0])
        inner.append(blas_threads())

    map_pieces(work, [0])
    assert inner == [{1}, {1}]
    assert blas_threads() == {2}


def test_blas_has_one_thread_inside_whichever_thread_calls(two_blas_threads):
    """threadpoolctl 3.8 obeys one thread, here the main one, and ignores the others."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(map_pieces, lambda piece: blas_threads(), [0]).result() == [{1}]
    assert blas_threads() == {2}


def test_the_thread_that_leaves_last_gives_blas_back(two_blas_threads):
    inside, leave = threading.Event(), threading.Event()

    def work(piece):
        inside.set()
        leave.wait(300)

    other = threading.Thread(target=map_pieces, args=(work, [0]))

    def start_the_other(piece):
        other.start()
        inside.wait(300)

    map_pieces(start_the_other, [0])
    assert blas_threads() == {1}
    leave.set()
    other.join()
    assert blas_threads() == {2}


@pytest.mark.parametrize(
    ("pieces", "multiplications", "expected"),
    [(1, SMALL_FOR_BLAS, 2), (1, SMALL_FOR_BLAS + 1, 1), (2, SMALL_FOR_BLAS, 2), (2, SMALL_FOR_BLAS + 1, 1)],
)
def test_blas_is_left_alone_for_small_products(pieces, multiplications, expected, two_blas_threads):
    inner = []
    for function in (map_pieces, sum_pieces):
        function(lambda piece: inner.append(blas_threads()) or 0, range(pieces), multiplications)
    assert inner == [{expected}] * 2 * pieces


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_product_has_the_same_bits_on_any_number_of_blas_threads(dtype, rng):
    """Of matrices and of a matrix and a vector, in either order in memory."""
    controller = threadpoolctl.ThreadpoolController()
    for rows, inner, columns in [
        (128, 27, 4),
        (64, 64, 64),
        (2, 65536, 2),
        (512, 512, 1),
        (1, 512, 512),
        (1, 131072, 2),
    ]:
        assert rows * inner * columns <= SMALL_FOR_BLAS
        a, b = rng.standard_normal((rows, inner)).astype(dtype), rng.standard_normal((inner, columns)).astype(dtype)
        for left in (a, np.asfortranarray(a)):
            for right in (b, np.asfortranarray(b)):
                results = []
                for threads in (1, 2, 4):
                    with controller.limit(limits=threads, user_api="blas"):
                        results.append((left @ right).tobytes())
                assert results == results[:1] * 3


def test_blas_is_given_back_wherever_ctrl_c_comes(threads, two_blas_threads):
    """Python looks for signals where a function begins and where one of C returns; each such place in turn."""
    interrupted = 0
    for event_number in range(1000):
        countdown = iter([True] * event_number)

        def interrupt(frame, event, argument, countdown=countdown):
            ours = frame.f_globals["__name__"] == _threads.__name__
            if ours and event in ("call", "c_return") and not next(countdown, False):
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            map_pieces(lambda piece: None, range(3))
            break
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.setprofile(None)
        assert blas_threads() == {2}, f"after an interrupt at event {event_number}"
        assert not _threads._blas_users
    assert interrupted > 10


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
        deadline = time.monotonic() + 300
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
        map_pieces(lambda piece: 1 / 0, range(2))
    assert blas_threads() == before


@pytest.mark.parametrize(
    ("total", "longest", "expected"), [(8, 5, [4, 4]), (10, 5, [5, 5]), (3, 100, [3]), (7, 3, [3, 3, 1])]
)
def test_even_slices_differ_only_in_the_last(total, longest, expected):
    some = even_slices(total, longest)
    assert [each.stop - each.start for each in some] == expected
    assert [number for each in some for number in range(total)[each]] == list(range(total))


def test_scratch_of_one_name_is_one_buffer_for_each_thread():
    here = scratch("test", (4, 2), np.float32)
    assert np.shares_memory(here, scratch("test", (3,), np.float32))
    assert not np.shares_memory(here, scratch("another", (3,), np.float32))
    there = []
    other = threading.Thread(target=lambda: there.append(scratch("test", (4, 2), np.float32)))
    other.start()
    other.join()
    assert not np.shares_memory(here, there[0])


def test_views_of_scratch_are_made_once_until_a_buffer_grows(monkeypatch):
    made = []

    def make(*key):
        made.append(key)
        return key

    scratch("test", (8,), np.float32)
    for _ in range(2):
        assert remembered(make, 1, "a") == (1, "a")
        scratch("test", (8,), np.float32)
    remembered(make, 2)
    assert made == [(1, "a"), (2,)]
    scratch("test", (scratch("test", (1,), np.float32).base.size + 1,), np.float32)
    remembered(make, 2)
    assert made[2:] == [(2,)]
    monkeypatch.setattr(_pieces, "MOST_VIEWS", 2)
    for number in (3, 4, 2):  # there is no room for 4 until the others are forgotten
        remembered(make, number)
    assert made[3:] == [(3,), (4,), (2,)]


def test_what_a_convolution_leaves_in_scratch_does_not_reach_the_next_one(rng):
    """The padding of one shape lies where another one has pixels, here NaN."""
    geometries = [
        ((2, 6, 5, 3), (3, 3), (1, 1), (1, 1)),
        ((2, 5, 6, 3), (3, 3), (1, 1), (1, 1)),
        ((1, 4, 4, 3), (5, 3), (1, 2), (2, 0)),
        ((2, 8, 7, 3), (3, 3), (1, 1), (0, 0)),
        ((3, 6, 5, 2), (2, 2), (2, 1), (1, 1)),
    ]
    for number in rng.integers(len(geometries), size=40):
        x_shape, kernel_size, stride, padding = geometries[number]
        dtype = rng.choice([np.float32, np.float64])
        x = rng.standard_normal(x_shape).astype(dtype)
        weight = rng.standard_normal((*kernel_size, x_shape[3], 2)).astype(dtype)
        y = cpu.conv2d_forward(x, weight, None, stride, padding)
        np.testing.assert_allclose(y, reference.conv2d_forward(x, weight, None, stride, padding), atol=1e-5)
        other_shape, _, other_stride, other_padding = geometries[rng.integers(len(geometries))]
        nan = np.full(other_shape, np.nan, dtype)
        cpu.conv2d_forward(nan, np.ones((*kernel_size, other_shape[3], 2), dtype), None, other_stride, other_padding)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(number):
    with pytest.raises(ValueError, match="set_num_threads"):
        minidl.set_num_threads(number)


# -- MINIDL_WORKSPACE_MB -----------------------------------------------------------------------------------------------


def bytes_kept():
    return sum(buffer.nbytes for buffer in _pieces._scratch.buffers.values())


def convolutions(threads):
    """The outputs and gradients of convolutions by im2col, by Winograd and with strides, and the scratch they leave."""
    rng = np.random.default_rng(0)
    before = minidl.get_num_threads()
    minidl.set_num_threads(threads)
    kept, results = [], []
    try:
        for channels, size, kernel, stride in (3, 64, 7, 2), (64, 28, 3, 1), (256, 7, 3, 1), (32, 40, 3, 2):
            x = rng.standard_normal((4, size, size, channels), np.float32)
            weight = rng.standard_normal((kernel, kernel, channels, 64), np.float32)
            y = cpu.conv2d_forward(x, weight, None, (stride, stride), (1, 1))
            grad = rng.standard_normal(y.shape, np.float32)
            results += [y, *cpu.conv2d_backward(grad, x, weight, (stride, stride), (1, 1), True, True)]
            kept.append(bytes_kept())
    finally:
        minidl.set_num_threads(before)
    return results, kept


@pytest.mark.parametrize("megabytes", [1, 4])
def test_no_more_scratch_is_kept_than_the_user_allows(megabytes, monkeypatch):
    free, kept = run_on_a_new_thread(lambda: convolutions(1))
    assert max(kept) > 6 * 2**20
    monkeypatch.setattr(_pieces, "_workspace", megabytes * 2**20)
    bounded, kept = run_on_a_new_thread(lambda: convolutions(1))
    assert max(kept) <= megabytes * 2**20
    for ours, expected in zip(bounded, free, strict=True):
        assert abs(ours - expected).max() <= 1e-5 * abs(expected).max()


def test_two_threads_share_what_is_allowed(monkeypatch):
    monkeypatch.setattr(_pieces, "_workspace", 4 * 2**20)
    _, kept = run_on_a_new_thread(lambda: convolutions(2))
    assert max(kept) <= 2 * 2**20


def test_with_a_bound_too_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(_pieces, "_workspace", 2 * 2**20)
    one, three = convolutions(1)[0], convolutions(3)[0]
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("wanted", ["0", "-1", "much", "1.5", ""])
def test_a_bound_that_is_no_number_of_megabytes_is_an_error(wanted):
    environment = os.environ | {"MINIDL_WORKSPACE_MB": wanted}
    done = subprocess.run([sys.executable, "-c", "import minidl"], env=environment, capture_output=True, text=True)
    assert f"MINIDL_WORKSPACE_MB: expected a whole number of megabytes >= 1, got {wanted!r}" in done.stderr


def run_on_a_new_thread(function):
    """function(), on a thread that has no scratch yet."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()
