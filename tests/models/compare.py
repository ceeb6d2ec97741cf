"""A network and its twin in PyTorch, number by number."""

import copy
import itertools

import numpy as np

from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.nn import BatchNorm2d, Dropout, Module
from minidl.nn.layout import Plain
from tests.kernels.compare import assert_close


def without_dropout(model: Module) -> Module:
    """The same model, whose dropout drops nothing, as two libraries draw different masks."""
    for _, module in model.named_modules():
        if isinstance(module, Dropout):
            module.probability = 0.0
    return model


def images_away_from_kinks(twin, shape: tuple[int, ...], rng: np.random.Generator, distance: float) -> np.ndarray:
    """Random float32 images that give no ReLU of the twin a number within `distance` of 0.

    Rounding would send such a number to either side, and a single one changes a gradient by percents, in any library.
    The twin is asked in float64, and what enters its ReLUs has a variance of about 1.
    """
    from torch import from_numpy, nn

    judge, nearest = copy.deepcopy(twin).double(), []
    for module in judge.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: nearest.append(inputs[0].abs().min().item()))
    for _ in range(100):
        images = rng.standard_normal(shape, np.float32)
        nearest.clear()
        judge(from_numpy(images).double().permute(0, 3, 1, 2))
        if min(nearest) > distance:
            return images
    raise AssertionError(f"100 batches of {shape} all came within {distance} of a kink: make them smaller")


def assert_equals_its_twin(model: Module, twin, images: np.ndarray, tolerance: float) -> None:
    """Logits in training, all gradients, the running statistics after it, and the logits in evaluation."""
    from torch import from_numpy
    from torch.nn.functional import cross_entropy as their_cross_entropy

    ours = Tensor(images, device=model.parameters()[0].device)
    theirs = from_numpy(images).permute(0, 3, 1, 2)
    labels = np.arange(len(images))
    logits, expected = model(ours), twin(theirs)
    assert_close(logits.numpy(), expected.detach().numpy(), tolerance)
    cross_entropy(logits, labels).backward()
    their_cross_entropy(expected, from_numpy(labels)).backward()
    assert_gradients_equal(model, twin, tolerance)
    statistics = twin.state_dict()
    for name, buffer in model.named_buffers():
        if buffer.persistent:
            assert_close(buffer.numpy(), statistics[name].numpy(), tolerance)
    assert_close(model.eval()(ours).numpy(), twin.eval()(theirs).detach().numpy(), tolerance)


def assert_gradients_equal(model: Module, twin, tolerance: float) -> None:
    """Each to `tolerance` of its largest value. Frozen parameters have none on either side."""
    expected = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters() if parameter.requires_grad}
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned.keys() == expected.keys()
    cancelled = cancelled_biases(model)
    for name, parameter in learned.items():
        actual = (parameter.layout or Plain()).to_file(parameter.grad.numpy())
        if name in cancelled:
            scale = abs(expected[name.replace("bias", "weight")]).max()
            assert max(abs(actual).max(), abs(expected[name]).max()) <= tolerance * scale, name
        else:
            assert abs(actual).max() > 0, name
            assert_close(actual, expected[name], tolerance)


def cancelled_biases(model: Module) -> set[str]:
    """The biases that batch-norm takes away again: their gradient is 0, of which rounding leaves something."""
    if not hasattr(model, "features"):
        return set()
    neighbours = itertools.pairwise(model.features.children())
    return {f"features.{name}.bias" for (name, _), (_, after) in neighbours if isinstance(after, BatchNorm2d)}
