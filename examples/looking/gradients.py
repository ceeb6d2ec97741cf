"""Gradients with respect to the image: saliency, SmoothGrad, and the smallest step that changes the answer."""

import numpy as np

from minidl import Tensor, no_grad
from minidl.functional import cross_entropy
from minidl.nn import Module


def class_scores(logits: Tensor, classes: np.ndarray) -> Tensor:
    """S_c for each image, its logit of class c: (N, classes) -> (N,). It is taken before the softmax."""
    return logits[np.arange(len(classes)), classes]


def image_gradient(model: Module, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """dS_c/dx for each image x and its class c, (N, H, W, 3)."""
    x = Tensor(images, requires_grad=True)
    class_scores(model(x), classes).sum().backward()  # the scores of other images do not depend on x
    return x.grad.numpy()


def saliency(model: Module, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each pixel changes the score of the class: max over colours of |dS_c/dx|, (N, H, W).

    Simonyan, Vedaldi and Zisserman 2013, arXiv 1312.6034, section 3.1.
    """
    return np.abs(image_gradient(model, images, classes)).max(axis=3)


def smooth_grad(
    model: Module, images: np.ndarray, classes: np.ndarray, noise: float = 0.1, samples: int = 50, seed: int = 0
) -> np.ndarray:
    """Saliency from the mean of dS_c/dx over noisy copies of the image, x + N(0, noise^2): (N, H, W).

    Smilkov et al. 2017, arXiv 1706.03825, section 3. They recommend 50 samples, and noise of 10 to 20 % of the range of
    the pixels.
    """
    rng, total = np.random.default_rng(seed), 0
    for _ in range(samples):
        noisy = images + np.float32(noise) * rng.standard_normal(images.shape, dtype=np.float32)
        total = total + image_gradient(model, noisy.astype(images.dtype), classes)
    return np.abs(total / samples).max(axis=3)


def sign_of_gradient(model: Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """sign(dL/dx) of the cross-entropy L, (N, H, W, 3): the direction of the fast gradient sign method."""
    x = Tensor(images, requires_grad=True)
    cross_entropy(model(x), labels).backward()
    return np.sign(x.grad.numpy())


def fgsm(model: Module, images: np.ndarray, labels: np.ndarray, step: float) -> np.ndarray:
    """The fast gradient sign method: x + step sign(dL/dx), cut to 0..1. No pixel changes by more than `step`.

    Goodfellow, Shlens and Szegedy 2014, arXiv 1412.6572, section 4.
    """
    return np.clip(images + np.float32(step) * sign_of_gradient(model, images, labels), 0, 1)


def smallest_step(model: Module, image: np.ndarray, steps: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The first of the ascending `steps` with which `fgsm` changes the network's answer to the image (H, W, 3).

    Returns:
        (step, changed image), or None if no step changes the answer.
    """
    with no_grad():
        answer = model(Tensor(image[None])).argmax(dim=1).numpy()
    direction = sign_of_gradient(model, image[None], answer)
    candidates = np.clip(image + np.float32(steps)[:, None, None, None] * direction, 0, 1)
    with no_grad():
        changed = np.flatnonzero(model(Tensor(candidates)).argmax(dim=1).numpy() != answer)
    return (float(steps[changed[0]]), candidates[changed[0]]) if len(changed) else None
