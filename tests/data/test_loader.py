import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data import ArrayDataset, AugmentedLoader, CropAndFlip, DataLoader, DeviceLoader

BOTH = pytest.mark.parametrize("prefetch", [0, 2])


def numbered(count=10):
    """A data set whose image i is full of i, with label i."""
    labels = np.arange(count, dtype=np.int64)
    return ArrayDataset(np.broadcast_to(labels[:, None, None, None], (count, 2, 2, 3)).astype(np.float32), labels)


def add_noise(images, rng):
    return images + rng.random(images.shape)


def run(loader):
    """One epoch, as lists of labels."""
    return [labels.tolist() for _, labels in loader]


def record(batches):
    """Batches as bytes, to compare bit by bit."""
    return [(images.tobytes(), labels.tobytes()) for images, labels in batches]


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("DataLoader")]


def wait_for_the_end_of_background_threads():
    """A thread ends after the batch that it loads."""
    deadline = time.monotonic() + 300
    while background_threads():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Recording:
    """A data set that notes which thread asked for what, and can fail at one label."""

    def __init__(self, count=20, failing=None):
        self.dataset, self.failing = numbered(count), failing
        self.asked, self.threads = [], set()

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, indices):
        self.asked.append(indices.tolist())
        self.threads.add(threading.current_thread().name)
        if self.failing in indices:
            raise KeyError(f"no image {self.failing}")
        return self.dataset[indices]


# Batches


@BOTH
def test_without_shuffling_an_epoch_is_the_data_set_in_order(prefetch):
    loader = DataLoader(numbered(10), batch_size=4, prefetch=prefetch)
    assert len(loader) == 3
    assert run(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@BOTH
def test_drop_last_leaves_out_a_batch_that_is_not_full_and_no_other(prefetch):
    loader = DataLoader(numbered(10), batch_size=4, drop_last=True, prefetch=prefetch)
    assert len(loader) == 2
    assert run(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(DataLoader(numbered(8), batch_size=4, drop_last=True)) == 2


@BOTH
def test_images_stay_with_their_labels(prefetch):
    for images, labels in DataLoader(numbered(20), batch_size=3, shuffle=True, prefetch=prefetch):
        np.testing.assert_array_equal(images[:, 1, 1, 2], labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": numbered(0)}, "the data set is empty"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"prefetch": -1}, "prefetch must be a whole number >= 0, got -1"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"batch_size": 11, "drop_last": True}, "drop_last leaves no batch: 10 images are fewer than batch_size 11"),
    ],
)
def test_a_loader_without_a_batch_to_give_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=f"^DataLoader: {message}"):
        DataLoader(**({"dataset": numbered(10), "batch_size": 4} | arguments))


# Randomness


@BOTH
def test_shuffling_gives_each_image_once_an_epoch_in_ever_new_order(prefetch):
    loader = DataLoader(numbered(50), batch_size=8, shuffle=True, prefetch=prefetch)
    epochs = [np.concatenate(run(loader)).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(50))}) == 4


def test_the_seed_decides_all_randomness_whatever_the_prefetching():
    def epochs(seed, prefetch):
        loader = DataLoader(numbered(30), 8, shuffle=True, seed=seed, transform=add_noise, prefetch=prefetch)
        return record([*loader, *loader])

    assert epochs(1, prefetch=0) == epochs(1, prefetch=1) == epochs(1, prefetch=100)
    assert epochs(1, prefetch=0) != epochs(2, prefetch=0)


def test_no_two_batches_share_their_random_numbers():
    drawn = []
    loader = DataLoader(numbered(6), 2, transform=lambda images, rng: drawn.append(rng.random()) or images, prefetch=0)
    for _ in range(4):
        run(loader)
    assert len(set(drawn)) == 12
    drawn_as_shuffle = [loader._generator(0, epoch).random() for epoch in range(4)]
    assert not set(drawn) & set(drawn_as_shuffle)


def test_randomness_drawn_elsewhere_changes_nothing():
    loader = DataLoader(numbered(30), 8, shuffle=True, transform=add_noise)
    before = record(loader)
    np.random.seed(3)
    loader.load_state_dict({"epoch": 0, "batch": 0})
    assert record(loader) == before


# Position


@settings(max_examples=60)
@given(
    count=st.integers(4, 20),
    batch_size=st.integers(1, 4),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    prefetch=st.integers(0, 3),
    stop=st.integers(1, 45),
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(count, batch_size, drop_last, shuffle, prefetch, stop):
    def batches(loader):
        return itertools.chain.from_iterable(itertools.repeat(loader))

    def new_loader():
        return DataLoader(numbered(count), batch_size, shuffle, 7, add_noise, drop_last, prefetch)

    uninterrupted = record(itertools.islice(batches(new_loader()), 50))
    interrupted, resumed = new_loader(), new_loader()
    first_part = record(itertools.islice(batches(interrupted), stop))
    resumed.load_state_dict(interrupted.state_dict())
    assert first_part + record(itertools.islice(batches(resumed), 50 - stop)) == uninterrupted


@BOTH
def test_the_position_counts_the_batches_handed_out_not_those_loaded_ahead(prefetch):
    loader = DataLoader(numbered(12), batch_size=4, prefetch=prefetch)
    assert loader.state_dict() == {"epoch": 0, "batch": 0}
    assert [loader.state_dict() for _ in loader] == [
        {"epoch": 0, "batch": 1},
        {"epoch": 0, "batch": 2},
        {"epoch": 1, "batch": 0},
    ]


@BOTH
def test_a_look_at_the_first_batch_takes_nothing_from_an_epoch(prefetch):
    loader = DataLoader(numbered(12), batch_size=4, prefetch=prefetch)
    next(iter(loader))
    assert len(run(loader)) == 3


@BOTH
def test_after_a_break_the_next_loop_runs_the_next_epoch(prefetch):
    loader = DataLoader(numbered(12), batch_size=4, shuffle=True, prefetch=prefetch)
    epochs = [run(loader), run(loader)]
    again = DataLoader(numbered(12), batch_size=4, shuffle=True, prefetch=prefetch)
    next(iter(again))
    assert run(again) == epochs[1]


@BOTH
def test_two_loops_at_a_time_have_epochs_of_their_own(prefetch):
    epochs = DataLoader(numbered(12), batch_size=4, shuffle=True, prefetch=prefetch)
    first, second = run(epochs), run(epochs)
    loader = DataLoader(numbered(12), batch_size=4, shuffle=True, prefetch=prefetch)
    pairs = [(list(a[1]), list(b[1])) for a, b in zip(loader, loader, strict=True)]
    assert pairs == list(zip(first, second, strict=True))
    assert loader.state_dict() == {"epoch": 2, "batch": 0}


@BOTH
def test_a_loaded_position_is_continued_once(prefetch):
    loader = DataLoader(numbered(12), batch_size=4, prefetch=prefetch)
    loader.load_state_dict({"epoch": 0, "batch": 2})
    assert run(loader) == [[8, 9, 10, 11]]
    assert len(run(loader)) == 3


@BOTH
def test_a_loop_left_at_the_last_batch_has_finished_its_epoch(prefetch):
    loader = DataLoader(numbered(12), batch_size=4, prefetch=prefetch)
    for _, labels in loader:
        if 11 in labels:
            break
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    assert len(run(loader)) == 3


@pytest.mark.parametrize("state", [{"epoch": 0, "batch": 3}, {"epoch": 0, "batch": -1}, {"epoch": -1, "batch": 0}])
def test_a_position_that_no_epoch_has_is_an_error_and_changes_nothing(state):
    loader = DataLoader(numbered(12), batch_size=4)
    with pytest.raises(ValueError, match=rf"no batch {state['batch']} of epoch {state['epoch']}: .* 3 batches"):
        loader.load_state_dict(state)
    assert loader.state_dict() == {"epoch": 0, "batch": 0}


# Prefetching


def test_while_the_caller_computes_one_thread_loads_as_many_batches_as_asked_and_no_more():
    dataset = Recording()
    iterator = iter(DataLoader(dataset, batch_size=1, prefetch=3))
    assert dataset.asked == []
    for handed_out in range(1, 6):
        next(iterator)
        deadline = time.monotonic() + 300
        while len(dataset.asked) < handed_out + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)  # for a fourth, if there were one
        assert len(dataset.asked) == handed_out + 3
    assert len(dataset.threads) == 1
    assert threading.current_thread().name not in dataset.threads


def test_without_prefetching_each_batch_is_loaded_when_asked_in_the_callers_thread():
    dataset = Recording()
    iterator = iter(DataLoader(dataset, batch_size=1, prefetch=0))
    for handed_out in range(1, 4):
        next(iterator)
        assert len(dataset.asked) == handed_out
    assert dataset.threads == {threading.current_thread().name}


@BOTH
@pytest.mark.parametrize("part", ["dataset", "transform"])
def test_an_error_while_loading_reaches_the_loop_with_its_traceback_after_the_batches_before_it(prefetch, part):
    def fragile(images, rng):
        if 9 in images:
            raise KeyError("no image 9")
        return images

    dataset = Recording(20, failing=9 if part == "dataset" else None)
    loader = DataLoader(dataset, 4, transform=fragile if part == "transform" else None, prefetch=prefetch)
    seen = []
    with pytest.raises(KeyError, match="no image 9") as caught:
        seen.extend(labels.tolist() for _, labels in loader)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
    place = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert place.name == ("__getitem__" if part == "dataset" else "fragile")
    assert loader.state_dict() == {"epoch": 0, "batch": 2}
    wait_for_the_end_of_background_threads()


# Threads: each way to leave a loop ends the one in the background.


def leave_at_the_end(loader):
    run(loader)


def leave_by_break(loader):
    for _ in loader:
        break


def leave_by_an_error(loader):
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0  # noqa: B018 (the error is the point)


def leave_by_forgetting(loader):
    iterator = iter(loader)
    next(iterator)
    assert len(background_threads()) == 1
    del iterator


def leave_by_garbage_collection(loader):
    cycle = [iter(loader)]
    cycle.append(cycle)
    next(cycle[0])
    del cycle
    gc.collect()


@pytest.mark.parametrize(
    "leave",
    [leave_at_the_end, leave_by_break, leave_by_an_error, leave_by_forgetting, leave_by_garbage_collection],
)
def test_no_thread_outlives_its_loop(leave):
    dataset = Recording(1000)
    leave(DataLoader(dataset, batch_size=1))
    wait_for_the_end_of_background_threads()
    assert len(dataset.asked) == 1000 if leave is leave_at_the_end else len(dataset.asked) <= 3


def test_a_loop_left_early_does_not_wait_for_all_that_was_planned():
    dataset, left = Recording(100), threading.Event()

    def slow(images, rng):
        if len(dataset.asked) > 3:
            left.wait(300)
        return images

    leave_by_break(DataLoader(dataset, batch_size=1, transform=slow, prefetch=100))
    left.set()
    wait_for_the_end_of_background_threads()
    assert len(dataset.asked) <= 4


def test_a_loop_left_early_does_not_wait_for_a_slow_batch():
    released, loaded = threading.Event(), []

    def slow(images, rng):
        if images[0, 0, 0, 0] > 0:
            released.wait(60)
            loaded.append(images)
        return images

    with pytest.raises(KeyboardInterrupt):
        for _ in DataLoader(numbered(3), batch_size=1, transform=slow):
            raise KeyboardInterrupt
    assert not loaded
    released.set()
    wait_for_the_end_of_background_threads()


def test_ctrl_c_while_waiting_for_a_slow_batch_ends_the_program_at_once():
    code = """
import time
from minidl.data import DataLoader, make_shapes
print("begun", flush=True)
for _ in DataLoader(make_shapes(3), batch_size=1, transform=lambda images, rng: time.sleep(3600)):
    pass
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in errors and process.returncode != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_goes_on_with_its_parents_loop_gets_an_error_and_does_not_wait_for_ever():
    code = """
import os, warnings
warnings.simplefilter("ignore")
from minidl.data import DataLoader, make_shapes
loader = DataLoader(make_shapes(9), batch_size=1)
batches = iter(loader)
next(batches)
child = os.fork()
if child == 0:
    try:
        next(batches)
    except RuntimeError as error:
        print(error, len(list(loader)))  # a new loop works
    os._exit(0)
os.waitpid(child, 0)
print(len(list(batches)))
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-uc", code], env=env, capture_output=True, text=True, timeout=300)
    assert result.stderr == ""
    childs, parents = result.stdout.splitlines()
    assert childs.startswith("DataLoader: this loop began before the process was forked") and childs.endswith("9")
    assert parents == "8"


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "loader.extra = iterator"])
def test_a_program_may_end_in_the_middle_of_an_epoch(ending):
    code = f"""
from minidl.data import DataLoader, make_shapes
loader = DataLoader(make_shapes(50), batch_size=1)
iterator = iter(loader)
next(iterator)
{ending}
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")


# AugmentedLoader


def noise(count=30):
    """Images of noise."""
    rng = np.random.default_rng(3)
    return ArrayDataset(rng.integers(0, 256, (count, 6, 5, 3), np.uint8), rng.integers(0, 9, count))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_augmented_loader_has_the_batches_of_a_loader_with_its_augmentation(shuffle, drop_last, device):
    dataset, augment = noise(), CropAndFlip(100.0, 64.0, padding=2)
    expected = DataLoader(dataset, 8, shuffle, seed=5, transform=augment, drop_last=drop_last)
    loader = AugmentedLoader(dataset.to(device), 8, augment, shuffle, seed=5, drop_last=drop_last)
    assert len(loader) == len(expected)
    for _ in range(2):
        for (images, labels), (our_images, our_labels) in zip(expected, loader, strict=True):
            assert (our_images.device, our_labels.device) == (device, device)
            assert (our_images.dtype, our_labels.dtype) == (np.float32, np.int64)
            assert our_images.numpy().tobytes() == images.tobytes()
            assert our_labels.numpy().tolist() == labels.tolist()
            assert loader.state_dict() == expected.state_dict()


def test_the_images_of_an_augmented_loader_have_its_dtype(device):
    dtype = "float64" if device == "cpu" else "bfloat16"
    (images, labels), *_ = AugmentedLoader(noise().to(device), 8, CropAndFlip(0.0), dtype=dtype)
    assert (str(images.dtype), labels.dtype) == (dtype, np.int64)


def test_an_augmented_loader_can_be_stopped_and_put_back():
    loader = AugmentedLoader(noise(), 8, CropAndFlip(0.0), shuffle=True)
    whole = [images.numpy().tobytes() for images, _ in loader]
    loader.load_state_dict({"epoch": 0, "batch": 2})
    assert [images.numpy().tobytes() for images, _ in loader] == whole[2:]


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs(device):
    """About half of them mirrored at first, then the others; whatever their order, and after a restart too."""
    dataset = ArrayDataset(noise().images, np.arange(30))

    def loader(seed=0, shuffle=True):
        plain = CropAndFlip(0.0, padding=0)
        return AugmentedLoader(dataset.to(device), 8, plain, shuffle, seed, alternating_flip=True)

    def flipped(batches):
        """{number of an image: whether it came mirrored}."""
        found = {}
        for images, labels in batches:
            for image, label in zip(images.numpy(), labels.numpy().tolist(), strict=True):
                original = dataset.images[label].astype(np.float32)
                found[label] = np.array_equal(image, original[:, ::-1])
                assert found[label] or np.array_equal(image, original)
        return found

    endless = loader()
    first, second, third = (flipped(endless) for _ in range(3))
    assert len(first) == len(dataset) and 0 < sum(first.values()) < len(dataset)
    assert second == {label: not flip for label, flip in first.items()}
    assert third == first == flipped(loader(shuffle=False))
    assert flipped(loader(seed=1)) != first
    later = loader()
    later.load_state_dict({"epoch": 1, "batch": 1})
    rest = flipped(later)
    assert len(rest) == 22 and rest.items() <= second.items()


def test_the_errors_of_an_augmented_loader_have_its_name():
    with pytest.raises(ValueError, match=r"^AugmentedLoader: batch_size must be a whole number >= 1, got 0"):
        AugmentedLoader(noise(), 0, CropAndFlip(0.0))


# DeviceLoader


@pytest.fixture
def on_host():
    """Batches of a device as lists of labels, if their images show the same numbers."""

    def lists(batches):
        for images, labels in batches:
            np.testing.assert_array_equal(images.numpy()[:, 1, 1, 2], labels.numpy())
            assert (images.dtype, labels.dtype) == (np.float32, np.int64)
            yield labels.numpy().tolist()

    return lists


def test_a_device_loader_has_the_batches_of_its_loader_on_the_device(device, on_host):
    loader = DeviceLoader(DataLoader(numbered(10), 4, shuffle=True), device)
    assert len(loader) == 3
    expected = DataLoader(numbered(10), 4, shuffle=True)
    for _ in range(3):
        assert list(on_host(loader)) == run(expected)
    assert all(tensor.device == device for tensor in next(iter(loader)))


def test_images_of_bytes_travel_as_bytes(device):
    batches = [(np.zeros((2, 3, 3, 1), np.uint8), np.arange(2))]
    assert [(images.dtype, labels.dtype) for images, labels in DeviceLoader(batches, device)] == [(np.uint8, np.int64)]


def test_a_device_loader_converts_the_floats(device):
    dtype = "float64" if device == "cpu" else "bfloat16"
    batches = [(np.ones((2, 3), np.float32), np.arange(2))]
    ((images, labels),) = DeviceLoader(batches, device, dtype)
    assert (str(images.dtype), labels.dtype) == (dtype, np.int64)


def test_batches_may_grow_and_shrink(device):
    sizes = [1, 3, 2, 5, 5, 1]
    batches = [(np.full((size, 2), size, np.float32),) for size in sizes]
    for size, (tensor,) in zip(sizes, DeviceLoader(batches, device), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), np.full((size, 2), size))


def test_on_the_cpu_nothing_is_copied():
    batch = np.zeros(3), np.arange(3)
    ((images, labels),) = DeviceLoader([batch], "cpu")
    assert images.data is batch[0]
    assert labels.data is batch[1]


@BOTH
def test_the_position_of_the_loader_counts_what_the_device_loader_has_handed_out(prefetch, device, on_host):
    loader = DataLoader(numbered(12), 4, prefetch=prefetch)
    for batch in DeviceLoader(loader, device):
        assert loader.state_dict() == DeviceLoader(loader, device).state_dict() == {"epoch": 0, "batch": 1}
        assert list(on_host([batch])) == [[0, 1, 2, 3]]
        break
    loader.load_state_dict(loader.state_dict())
    assert list(on_host(DeviceLoader(loader, device))) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    wait_for_the_end_of_background_threads()


def test_an_error_of_the_loader_comes_after_the_batches_before_it(device, on_host):
    loader, seen = DataLoader(Recording(20, failing=9), 4), []
    with pytest.raises(KeyError, match="no image 9"):
        seen.extend(on_host(DeviceLoader(loader, device)))
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert loader.state_dict() == {"epoch": 0, "batch": 2}


def test_a_device_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"^DeviceLoader: expected device 'cpu', 'cuda' or 'cuda:N', got 'gpu'"):
        DeviceLoader([], "gpu")


# -- shards ------------------------------------------------------------------------------------------------------------


def sharded(loader, size):
    """The batches of all shards, put together again."""
    shards = [loader.shard(rank, size) for rank in range(size)]
    for parts in zip(*shards, strict=True):
        images, labels = zip(*parts, strict=True)
        yield np.concatenate(images), np.concatenate(labels)


@settings(max_examples=30)
@given(count=st.integers(1, 20), batch_size=st.integers(1, 8), size=st.integers(1, 5), drop_last=st.booleans())
def test_shards_together_are_the_whole_batches(count, batch_size, size, drop_last):
    if drop_last and count < batch_size:
        return
    loader = DataLoader(numbered(count), batch_size, shuffle=True, drop_last=drop_last, prefetch=0)
    assert record(sharded(loader, size)) == record(loader)


@BOTH
@pytest.mark.parametrize("transform", [CropAndFlip(5.0, padding=1), lambda images, rng: add_noise(images, rng)])
def test_shards_are_augmented_as_the_whole_batches(transform, prefetch):
    rng = np.random.default_rng(0)
    dataset = ArrayDataset(rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), np.arange(10))
    loader = DataLoader(dataset, 4, shuffle=True, transform=transform, prefetch=prefetch)
    assert record(sharded(loader, 3)) == record(loader)


def test_shards_of_an_augmented_loader_are_its_batches(device):
    rng = np.random.default_rng(0)
    dataset = ArrayDataset(rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), np.arange(10)).to(device)
    loader = AugmentedLoader(dataset, 4, CropAndFlip(5.0, padding=1), shuffle=True, alternating_flip=True)
    shards = [loader.shard(rank, 3) for rank in range(3)]
    for whole, *parts in zip(loader, *shards, strict=True):
        for number in (0, 1):
            together = np.concatenate([part[number].numpy() for part in parts])
            np.testing.assert_array_equal(together, whole[number].numpy())


def test_the_first_row_of_a_shard_is_its_place_in_the_batch():
    """Batches of 7 and 3 for two ranks: 4 + 3 and 2 + 1."""
    first, second = (DataLoader(numbered(10), 7).shard(rank, 2) for rank in range(2))
    places = [(second.first_row, labels.tolist()) for _, labels in second]
    assert places == [(4, [4, 5, 6]), (2, [9])]
    assert [(first.first_row, labels.tolist()) for _, labels in first] == [(0, [0, 1, 2, 3]), (0, [7, 8])]


def test_the_first_shard_is_never_empty():
    """Rank 0 saves the running statistics, which are those of its images."""
    loader = DataLoader(numbered(9), 4)
    assert [[len(labels) for _, labels in loader.shard(rank, 3)] for rank in range(3)] == [
        [2, 2, 1],
        [1, 1, 0],
        [1, 1, 0],
    ]


def test_shards_resume_where_they_were_saved():
    loader = DataLoader(numbered(), 4, shuffle=True).shard(1, 2)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = record(batches)
    again = DataLoader(numbered(), 4, shuffle=True).shard(1, 2)
    again.load_state_dict(state)
    assert record(again) == rest != []


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0), (0.5, 2), (0, 2.5), ("0", "2")])
def test_a_shard_that_does_not_exist_is_refused(rank, size):
    with pytest.raises(ValueError, match=rf"expected whole numbers 0 <= rank < size, got rank {rank!r}, size {size!r}"):
        DataLoader(numbered(), 4).shard(rank, size)


def test_a_shard_is_not_divided_again():
    with pytest.raises(ValueError, match="expected the loader of whole batches, got a shard of it"):
        DataLoader(numbered(), 4).shard(0, 2).shard(0, 2)
