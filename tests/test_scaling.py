"""benchmarks/scaling*.py: the model against sums by hand, and the measurement on one and two ranks."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import scaling
import scaling_model
from scaling_model import CLUSTERS, Cluster, Profile, alone, gpu_profile, grouped, interpolate, predict, simulate
from step_worker import make_ours

from minidl.distributed import AveragedGradients, SingleProcess
from tests.distributed.ranks import needs_mpi

ROOT = Path(__file__).parents[1]
STEP = Profile(forward=10, backward=10, after=1, ready=(2, 5, 10), sizes=(1, 1, 1))

# -- a step ------------------------------------------------------------------------------------------------------------


def test_a_step_by_hand():
    """Backward takes 10. Buckets are complete at 2, 5 and 10, each exchange takes 4."""
    step = simulate(STEP, lambda size: 4)
    assert step.exchanges == [(2, 6), (6, 10), (10, 14)]
    assert (step.backward_end, step.waiting, step.seconds) == (10, 4, 10 + 14 + 1)


@pytest.mark.parametrize(
    ("lost", "exchanges"),
    [
        # While the first travels, from 2 to 6, backward goes on to 4; the second is complete at 7.
        (0.5, [(2, 6), (7, 11), (14, 18)]),
        # Backward stands still while a bucket travels, so the times add up.
        (1.0, [(2, 6), (9, 13), (18, 22)]),
    ],
)
def test_an_exchange_that_takes_the_core_delays_backward(lost, exchanges):
    step = simulate(STEP, lambda size: 4, lost)
    assert step.exchanges == exchanges
    end = exchanges[-1][1]
    assert (step.backward_end, step.waiting, step.seconds) == (end - 4, 4, 10 + end + 1)


def test_backward_may_end_while_a_bucket_travels_or_after_the_last():
    profile = Profile(0, 4, 0, (1, 2), (1, 1))
    step = simulate(profile, lambda size: 3)
    assert (step.exchanges, step.backward_end, step.waiting) == ([(1, 4), (4, 7)], 4, 3)
    step = simulate(profile, lambda size: 0.5)
    assert (step.exchanges, step.backward_end, step.waiting) == ([(1, 1.5), (2, 2.5)], 4, 0)
    assert simulate(profile, lambda size: 3, 0.5).backward_end == 7  # at 4 it is at 2.5; the second takes it to 4


@pytest.mark.parametrize("lost", [0, 0.5, 1])
def test_an_exchange_that_takes_no_time_costs_nothing(lost):
    step = simulate(STEP, lambda size: 0, lost)
    assert (step.seconds, step.waiting) == (alone(STEP), 0) == (21, 0)


def test_without_buckets_there_is_backward_alone():
    step = simulate(Profile(1, 2, 3, (), ()), lambda size: 4)
    assert (step.seconds, step.waiting, step.exchanges) == (6, 0, [])


# -- an all-reduce -----------------------------------------------------------------------------------------------------

ONE_EACH = Cluster("one GPU in a machine", 1e9, 1e9, gpus=1)


def test_the_ring_by_hand():
    """14 us for the call; hops of 1.9 us inside of a machine and 4 us to another; 2 (n-1)/n S bytes."""
    cluster, size = CLUSTERS[0], 10**9
    rate = 0.92 * 0.8 * 450e9
    assert cluster.ring(8, size) == pytest.approx(14e-6 + 14 * 1.9e-6 + 2 * 7 / 8 * size / rate)
    rate = 0.92 * 0.8 * 400e9
    assert cluster.ring(16, size) == pytest.approx(14e-6 + 28 * 1.9e-6 + 2 * 4e-6 + 2 * 15 / 16 * size / rate)


def test_the_tree_by_hand():
    """Two log2(n) hops where each machine has one GPU (Thakur et al. 2005), and 2 S bytes."""
    rate = 0.92 * 120 / 128 * 0.8 * 1e9
    assert ONE_EACH.tree(64, 10**6) == pytest.approx(14e-6 + 2 * 6 * 8.5e-6 + 2 * 10**6 / rate)


def test_one_rank_exchanges_nothing():
    for cluster in CLUSTERS:
        assert cluster.all_reduce(1, 10**9) == 0
        step = predict(cluster, 1, gpu_profile(32))
        assert step.waiting == 0 and step.seconds == pytest.approx(alone(gpu_profile(32)))


def test_long_arrays_take_the_ring_and_short_ones_on_many_gpus_the_tree():
    cluster = CLUSTERS[0]
    assert cluster.all_reduce(64, 10**10) == cluster.ring(64, 10**10) < cluster.tree(64, 10**10)
    assert cluster.all_reduce(1024, 10**4) == cluster.tree(1024, 10**4) < cluster.ring(1024, 10**4)


def test_more_gpus_and_a_slower_network_never_help():
    for batch in scaling_model.BATCHES:
        for cluster in CLUSTERS:
            seconds = [predict(cluster, ranks, gpu_profile(batch)).seconds for ranks in (1, *scaling_model.GPUS)]
            assert seconds == sorted(seconds)
        fast, slow = (predict(cluster, 64, gpu_profile(batch)).seconds for cluster in CLUSTERS)
        assert fast < slow


def test_a_table_is_read_between_its_points():
    seconds = interpolate([(200, 3.0), (100, 1.0), (400, 4.0)])
    assert [seconds(size) for size in (1, 100, 150, 200, 300, 400, 600)] == [1, 1, 2, 3, 3.5, 4, 5]


# -- ResNet-50 ---------------------------------------------------------------------------------------------------------


def test_the_buckets_are_those_of_averaged_gradients():
    model = make_ours("resnet50")
    steps = json.loads((scaling_model.RESULTS / "gpu_steps.json").read_text())
    assert steps.keys() == {str(batch) for batch in scaling_model.BATCHES}
    for step in steps.values():
        assert step["sizes"] == [parameter.data.nbytes for parameter in reversed(model.parameters())]
        assert min(step["ready"]) > 0
        assert max(step["ready"]) <= step["backward"]
    for bucket_bytes in (2**20, 2**22):
        buckets = AveragedGradients(model, SingleProcess(), bucket_bytes).buckets
        sizes, ready = grouped(step["sizes"], step["ready"], bucket_bytes)
        assert sizes == [bucket.sums.nbytes for bucket in buckets]
        assert ready == sorted(ready)


def test_a_bucket_is_complete_with_its_last_parameter_and_after_those_before():
    assert grouped([4, 4, 4, 4, 1], [1.0, 3.0, 2.0, 2.5, 9.0], 8) == ([8, 8, 1], [3.0, 3.0, 9.0])


@pytest.mark.parametrize("page", ["benchmarks/results/scaling/README.md", "docs/scale.md"])
def test_the_pages_have_the_tables_of_the_model(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert scaling_model.efficiency_table() in text and scaling_model.bucket_table() in text


# -- the measurement ---------------------------------------------------------------------------------------------------


def times(begin, forward, backward, end, exchanges=()):
    """What a process says of a step."""
    parts = {"begin": begin, "forward": forward, "backward": backward, "end": end, "cpu": 1.0}
    return parts | {"exchanges": list(exchanges)}


def test_waiting_is_told_from_waiting_for_the_other():
    """Rank 0 ends backward at 6, rank 1 at 8; the last exchange ends at 9, the step at 10."""
    first = times(0, 2, 6, 10, [(3, 4, 100), (6, 9, 50)])
    second = times(0, 3, 8, 10, [(3, 4, 100), (8, 9, 50)])
    turn = [[first], [second]]
    assert scaling.parts(turn, scaling.waiting) == pytest.approx([0.3, 0.1])
    assert scaling.parts(turn, scaling.for_the_other) == pytest.approx([0.2, 0])


def test_the_profile_is_the_median_step_and_the_slower_process_is_known():
    exchanges = [(3, 3, 100), (6, 6, 8)]
    turn = [[times(0, 2, 6, 7, exchanges)], [times(0, 2, 6, 9, exchanges)]]
    found = scaling.profile(SimpleNamespace(turns=[turn]))
    assert found == {"forward": 2, "backward": 4, "after": 2, "ready": [1, 4], "sizes": [100, 8], "slower": 1}
    record = {"profile": found, "all_reduce": [[8, 0.5], [100, 1.5]]}
    # On a core for each rank: 2 forward, 4 backward and 1.5 + 0.5 for the exchanges, 2 after, 1 for the slower rank.
    assert scaling.predicted(record, cores=2).seconds == pytest.approx(11)
    # With cores to spare the first exchange is hidden.
    assert scaling.predicted(record, cores=4).seconds == pytest.approx(9.5)


def run(*options):
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, cwd=ROOT)


@needs_mpi
def test_one_and_two_ranks_are_measured(tmp_path):
    page = "<!-- measured -->\nold\n<!-- end of measured -->\n"
    (tmp_path / "README.md").write_text(page)
    done = run("--out", tmp_path, "--quick", "--rounds", 1, "--steps", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "scaling.json").read_text())
    (record,) = result["records"]
    assert list(record["sides"]) == ["1 rank, 1 thread", "1 rank, 2 threads", "2 ranks", "2 alone"]
    for side in record["sides"].values():
        assert side["images_per_second"] > 0 and side["cpu_ms"] > 0
    assert 0 <= record["sides"]["2 ranks"]["for_the_other"] <= record["sides"]["2 ranks"]["waiting"] < 1
    # Beside the gradients, 8 bytes for each of 65 parameters and for the number of images are handed over.
    parameters = make_ours("resnet20").parameters()
    assert record["least_bytes"] == sum(parameter.data.nbytes for parameter in parameters)
    assert record["handed_bytes"] == record["least_bytes"] + 8 * (len(parameters) + 1)
    assert record["least_bytes"] < record["sent_bytes"]
    assert record["model_ms"] > 0 and "2 ranks / 2 threads" in done.stdout
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert (scaling.NOT_QUIET in text) == (result["busy"] > scaling.BUSY) == ("PROVISIONAL" in done.stdout)


def test_what_was_not_measured_is_not_written(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- measured -->\nold\n<!-- end of measured -->\n")
    side = {"ms": 1.0, "images_per_second": 1.0, "cpu_ms": 1.0, "waiting": 0.01, "for_the_other": 0.0}
    names = "1 rank, 1 thread", "1 rank, 2 threads", "2 ranks", "2 alone"
    record = {"model": "resnet20", "batch": 128, "sides": dict.fromkeys(names, side), "model_ms": 1.05}
    record |= {"sent_bytes": 2, "handed_bytes": 1, "least_bytes": 1}
    result = {
        "machine": "this",
        "versions": {"Python": "3"},
        "date": "today",
        "records": [record],
        "busy": scaling.BUSY + 1,
    }
    scaling.write_tables(result, page)
    assert scaling.NOT_QUIET in page.read_text() and "1.05" not in page.read_text()
    scaling.write_tables(result | {"busy": 0.0}, page)
    assert scaling.NOT_QUIET not in page.read_text() and "| 1.05 |" in page.read_text()
    assert "resnet20, 128 images a rank 1.0%" in scaling.marks([record])


def test_a_side_that_fails_is_named():
    with (
        pytest.raises(SystemExit, match="the side '1 rank, 1 thread' did not start"),
        scaling.started([("1 rank, 1 thread", ["nonsense", 1, 1])]),
    ):
        pass
