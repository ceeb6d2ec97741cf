"""Our weights in torchvision's networks and theirs in ours: same names, logits, gradients and running statistics."""

import pytest

from tests.models.torchvision_twin import logits_differ, training_differs


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("resnet18", (224, 97)), ("resnet50", (160,)), ("vgg11", (224,)), ("vgg16_bn", (256,))],
)
def test_the_logits_are_those_of_torchvision(name, sizes, torch):
    assert logits_differ(name, sizes) <= 1e-4


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet50", 64), ("vgg11_bn", 224)])
def test_a_training_step_is_that_of_torchvision(name, size, torch):
    assert training_differs(name, size) <= 1e-7
