"""The comparison that every optimiser has to pass."""

from tests.kernels.compare import assert_close
from tests.optim.problem import LR, set_lr, train, values

# After 40 steps; what float32 leaves of a number grows with them.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


def assert_trains_like_pytorch(ours, theirs, options, problem, dtype, device, torch):
    """20 steps, another learning rate, and 20 steps more end at the same parameters."""
    ends = []
    for make, (parameters, make_loss) in (
        (ours, problem.minidl(dtype, device)),
        (theirs, problem.torch(torch, dtype)),
    ):
        optimizer = make(parameters, lr=LR, **options)
        train(optimizer, make_loss)
        set_lr(optimizer, LR / 3)
        train(optimizer, make_loss)
        ends.append(values(parameters))
    for actual, expected, start in zip(*ends, problem.start, strict=True):
        assert_close(actual, expected, TOLERANCE[dtype])
        assert abs(expected - start).max() > 0.01  # they have gone somewhere
