"""Losses."""

import math

import numpy as np
import pytest

from minidl import Tensor
from minidl.functional import cross_entropy, mse_loss
from tests.ops.case import Case, Constant

LABELS = np.array([2, 0, 3])


def entropy(name, shape, labels, smoothing=0.0):
    labels = Constant(labels)
    return Case(
        name,
        lambda logits: cross_entropy(logits, labels.on(logits.device), smoothing),
        lambda torch, logits: torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels.array), label_smoothing=smoothing
        ),
        [shape],
    )


CASES = [
    entropy("cross-entropy", (3, 4), LABELS),
    entropy("cross-entropy, smoothed", (3, 4), LABELS, 0.1),
    entropy("cross-entropy, smoothed to evenness", (3, 4), LABELS, 1.0),
    entropy("cross-entropy of one row", (1, 5), LABELS[:1]),
    entropy("cross-entropy of one class", (2, 1), LABELS[:2] * 0),
    Case("mse", mse_loss, lambda torch, a, b: torch.nn.functional.mse_loss(a, b), [(2, 3, 2), (2, 3, 2)]),
    Case("mse of scalars", mse_loss, lambda torch, a, b: torch.nn.functional.mse_loss(a, b), [(), ()]),
]


def test_who_knows_nothing_loses_the_logarithm_of_the_classes(device):
    assert cross_entropy(Tensor(np.zeros((3, 10)), device=device), LABELS).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.uint8), LABELS.tolist(), tuple(LABELS), Tensor(LABELS)])
def test_labels_come_as_any_integers(labels, device, rng):
    logits = Tensor(rng.standard_normal((3, 4)), device=device)
    assert cross_entropy(logits, labels).item() == cross_entropy(logits, LABELS).item()


def test_the_gradient_of_each_row_adds_up_to_0(device, rng):
    logits = Tensor(rng.standard_normal((3, 4)), device=device, requires_grad=True)
    cross_entropy(logits, LABELS, 0.1).backward()
    np.testing.assert_allclose(logits.grad.sum(1).numpy(), 0, atol=1e-15)


def test_no_logit_is_too_large(device):
    logits = Tensor([[1e4, 0.0], [-1e4, 0.0]], device=device, requires_grad=True)
    loss = cross_entropy(logits, [1, 1])
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    np.testing.assert_allclose(logits.grad.numpy(), [[0.5, -0.5], [0, 0]])
