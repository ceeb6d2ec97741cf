"""Learning-rate schedules."""

import itertools
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minidl.optim import CosineAnnealingLR, LinearWarmup, MultiStepLR, OneCycleLR, ReduceLROnPlateau

LR = 0.3


def rates_of_torch(torch, make_scheduler, steps, lr=LR):
    """The learning rate of PyTorch's optimiser in each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def rates_of(schedule, steps):
    return [schedule(step) for step in range(steps)]


def one_cycle_of_torch(torch, total_steps, pct_start, **options):
    return rates_of_torch(
        torch,
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=total_steps, pct_start=pct_start, cycle_momentum=False, **options
        ),
        total_steps,
    )


# -- against PyTorch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("milestones", [[3, 7], [7, 3, 4], [5, 5], [1], []], ids=str)
def test_multi_step_is_that_of_pytorch(milestones, torch):
    scheduler = torch.optim.lr_scheduler.MultiStepLR
    expected = rates_of_torch(torch, lambda optimizer: scheduler(optimizer, milestones, gamma=0.3), 12)
    assert rates_of(MultiStepLR(LR, milestones, gamma=0.3), 12) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("total_steps", [1, 2, 25])
@pytest.mark.parametrize("min_lr", [0.0, 0.02])
def test_cosine_annealing_is_that_of_pytorch(total_steps, min_lr, torch):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
    expected = rates_of_torch(torch, lambda optimizer: scheduler(optimizer, total_steps, min_lr), total_steps + 1)
    actual = rates_of(CosineAnnealingLR(LR, total_steps, min_lr), total_steps + 1)
    assert actual == pytest.approx(expected, rel=1e-10, abs=1e-12)


CYCLES = [
    (total_steps, pct_start)
    for total_steps in (1, 2, 3, 4, 5, 7, 10, 50)
    for pct_start in (0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0)
    if pct_start * total_steps != 1  # where PyTorch divides by 0: a test of its own says what is done here
]


@pytest.mark.parametrize(("total_steps", "pct_start"), CYCLES)
def test_one_cycle_is_that_of_pytorch(total_steps, pct_start, torch):
    expected = one_cycle_of_torch(torch, total_steps, pct_start)
    assert rates_of(OneCycleLR(LR, total_steps, pct_start), total_steps) == pytest.approx(expected, rel=1e-10)


def test_one_cycle_begins_and_ends_where_pytorch_does(torch):
    options = {"div_factor": 10.0, "final_div_factor": 50.0}
    expected = one_cycle_of_torch(torch, 20, 0.3, **options)
    assert expected[0] == pytest.approx(LR / 10) and expected[-1] == pytest.approx(LR / 500)
    assert rates_of(OneCycleLR(LR, 20, 0.3, **options), 20) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("factor", [0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_warmup_of_a_schedule_is_that_of_pytorch(steps, factor, torch):
    schedulers = torch.optim.lr_scheduler

    def make(optimizer):
        warmup = schedulers.LinearLR(optimizer, factor, total_iters=steps)
        return schedulers.ChainedScheduler([warmup, schedulers.MultiStepLR(optimizer, [3, 8])], optimizer)

    expected = rates_of_torch(torch, make, 12)
    assert rates_of(LinearWarmup(MultiStepLR(LR, [3, 8]), steps, factor), 12) == pytest.approx(expected, rel=1e-12)


PLATEAUS = {
    "defaults": {},
    "impatient": {"factor": 0.5, "patience": 0},
    "patient": {"factor": 0.5, "patience": 3},
    "strict": {"factor": 0.5, "patience": 2, "threshold": 0.1},
    "bounded": {"factor": 0.3, "patience": 1, "min_lr": 0.02},
}


@pytest.mark.parametrize("options", PLATEAUS.values(), ids=PLATEAUS)
def test_reducing_on_a_plateau_is_that_of_pytorch(options, rng, torch):
    metrics = [*(2 / (1 + 0.1 * i) + 0.2 * rng.standard_normal() for i in range(60)), math.nan, -1.0, -1.0, -2.0, 0.0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    make = torch.optim.lr_scheduler.ReduceLROnPlateau
    theirs = make(optimizer, mode="min", threshold_mode="rel", eps=0, **options)
    ours = ReduceLROnPlateau(LR, **options)
    for metric in metrics:
        theirs.step(metric)
        assert ours.report(metric) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert ours.lr < LR


# -- what they promise -------------------------------------------------------------------------------------------------

rates = st.floats(1e-6, 10)
fractions = st.floats(0, 1)
counts = st.integers(1, 60)


@given(lr=rates, milestones=st.lists(counts, max_size=4), gamma=st.floats(0.01, 1))
def test_multi_step_falls_at_the_milestones_and_nowhere_else(lr, milestones, gamma):
    schedule = MultiStepLR(lr, milestones, gamma)
    assert schedule(0) == lr
    for before, after in itertools.pairwise(range(62)):
        fall = gamma ** milestones.count(after)
        assert schedule(after) == pytest.approx(schedule(before) * fall, rel=1e-12)


@given(lr=rates, total_steps=counts, part=fractions)
def test_cosine_annealing_falls_from_first_to_last_and_stays(lr, total_steps, part):
    schedule = CosineAnnealingLR(lr, total_steps, min_lr=lr * part)
    falling = rates_of(schedule, total_steps + 1)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(lr, rel=1e-12)
    assert falling[-1] == pytest.approx(lr * part, rel=1e-12, abs=1e-15)
    assert schedule(total_steps + 1) == schedule(10 * total_steps) == falling[-1]


@given(lr=rates, total_steps=counts, pct_start=fractions)
def test_one_cycle_rises_to_the_top_and_falls_to_the_end(lr, total_steps, pct_start):
    schedule = OneCycleLR(lr, total_steps, pct_start)
    cycle = rates_of(schedule, total_steps)
    top = cycle.index(max(cycle))
    assert cycle[: top + 1] == sorted(cycle[: top + 1])
    assert cycle[top:] == sorted(cycle[top:], reverse=True)
    assert min(cycle) > 0 and max(cycle) <= lr * (1 + 1e-12)
    assert abs(top - max(pct_start * total_steps - 1, 0)) <= 1
    assert schedule(total_steps) == schedule(10 * total_steps) == cycle[-1]


@pytest.mark.parametrize("total_steps", [1, 2, 4, 10])
def test_one_cycle_whose_top_is_the_first_step_starts_there(total_steps):
    """The top is at step pct_start * total_steps - 1 = 0, by which PyTorch divides."""
    cycle = rates_of(OneCycleLR(LR, total_steps, pct_start=1 / total_steps), total_steps)
    assert cycle[0] == LR
    assert cycle == sorted(cycle, reverse=True)
    if total_steps > 1:
        assert cycle[-1] == pytest.approx(LR / 25 / 1e4)


@given(lr=rates, steps=counts, start_factor=fractions)
def test_warmup_rises_evenly_and_then_leaves_the_schedule_alone(lr, steps, start_factor):
    warmup = LinearWarmup(MultiStepLR(lr, [steps + 3]), steps, start_factor)
    rising = rates_of(warmup, steps + 1)
    assert rising[0] == pytest.approx(lr * start_factor, rel=1e-12)
    for before, after in itertools.pairwise(rising):
        assert after - before == pytest.approx(lr * (1 - start_factor) / steps, rel=1e-9, abs=1e-12 * lr)
    assert [warmup(steps + i) for i in range(5)] == pytest.approx([lr, lr, lr, lr * 0.1, lr * 0.1], rel=1e-12)


def test_no_steps_of_warmup_are_none():
    assert LinearWarmup(MultiStepLR(LR, []), 0)(0) == LR


@given(metrics=st.lists(st.floats(0, 100), max_size=30), patience=st.integers(0, 5), min_lr=st.floats(0, LR))
def test_the_rate_on_a_plateau_never_rises_nor_falls_below_its_least(metrics, patience, min_lr):
    plateau = ReduceLROnPlateau(LR, 0.5, patience, min_lr=min_lr)
    reported = [LR, *map(plateau.report, metrics)]
    assert reported == sorted(reported, reverse=True) and min(reported) >= min_lr
    falls = [i for i, (before, after) in enumerate(itertools.pairwise(reported)) if after < before]
    assert all(after - before > patience for before, after in itertools.pairwise([-1, *falls]))


@given(metrics=st.lists(st.floats(0, 10), min_size=2, max_size=30), data=st.data())
def test_a_plateau_that_is_resumed_goes_on_as_if_nothing_had_happened(metrics, data):
    stop = data.draw(st.integers(0, len(metrics)))
    whole, first, second = (ReduceLROnPlateau(LR, 0.5, patience=1) for _ in range(3))
    expected = [whole.report(metric) for metric in metrics]
    begun = [first.report(metric) for metric in metrics[:stop]]
    second.load_state_dict(first.state_dict())
    assert begun + [second.report(metric) for metric in metrics[stop:]] == expected


@given(lr=rates, steps=counts, at=st.integers(0, 200))
def test_a_rate_depends_on_the_step_alone(lr, steps, at):
    """Whoever resumes asks for the middle first."""
    assume(at > 0)
    schedules = [MultiStepLR(lr, [steps]), CosineAnnealingLR(lr, steps), OneCycleLR(lr, steps)]
    for schedule in [*schedules, LinearWarmup(schedules[1], steps)]:
        first = schedule(at)
        rates_of(schedule, at)
        assert schedule(at) == first >= 0


BAD_SCHEDULES = [
    (lambda: CosineAnnealingLR(0.1, 0), "CosineAnnealingLR: expected total_steps in [1, inf), got 0"),
    (lambda: OneCycleLR(0.1, 0), "OneCycleLR: expected total_steps in [1, inf), got 0"),
    (lambda: OneCycleLR(0.1, 9, pct_start=1.5), "OneCycleLR: expected pct_start in [0, 1], got 1.5"),
    (lambda: OneCycleLR(0.1, 9, pct_start=-0.1), "OneCycleLR: expected pct_start in [0, 1], got -0.1"),
    (lambda: OneCycleLR(0.1, 9, div_factor=0), "OneCycleLR: expected div_factor in [1, inf), got 0"),
    (lambda: OneCycleLR(0.1, 9, final_div_factor=0), "OneCycleLR: expected final_div_factor in [1, inf), got 0"),
    (lambda: LinearWarmup(MultiStepLR(0.1, []), -1), "LinearWarmup: expected warmup_steps in [0, inf), got -1"),
    (lambda: ReduceLROnPlateau(0.1, factor=1.0), "ReduceLROnPlateau: expected factor in [0, 1), got 1.0"),
    (lambda: ReduceLROnPlateau(0.1, patience=-1), "ReduceLROnPlateau: expected patience in [0, inf), got -1"),
    (lambda: ReduceLROnPlateau(math.nan), "ReduceLROnPlateau: expected min_lr in [0, nan], got 0.0"),
    (lambda: ReduceLROnPlateau(0.1, threshold=math.nan), "ReduceLROnPlateau: expected threshold in [0, inf), got nan"),
    (lambda: ReduceLROnPlateau(0.1, min_lr=0.2), "ReduceLROnPlateau: expected min_lr in [0, 0.1], got 0.2"),
]


@pytest.mark.parametrize(("make", "message"), BAD_SCHEDULES, ids=[message for _, message in BAD_SCHEDULES])
def test_a_number_outside_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
