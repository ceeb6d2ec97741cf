"""Images made from features: one that has the features of a photograph, and one that excites a part of the network."""

from collections.abc import Callable

import numpy as np

from looking.gradients import class_scores
from minidl import FeatureExtractor, Tensor
from minidl.nn import Module
from minidl.optim import Adam
from minidl.tensor import Parameter

Objective = Callable[[Tensor], Tensor]  # images (N, H, W, 3) -> a scalar


def descend(loss_of: Objective, images: np.ndarray, steps: int, lr: float) -> np.ndarray:
    """Minimise loss_of(images) with Adam, from these images on. Pixels stay in 0..1."""
    x = Parameter(images.copy())
    adam = Adam([x], lr)
    for _ in range(steps):
        adam.zero_grad()
        loss_of(x).backward()
        adam.step()
        x.data.clip(0, 1, out=x.data)
    return x.numpy()


def total_variation(images: Tensor) -> Tensor:
    """sum |x[h+1, w] - x[h, w]|^2 + |x[h, w+1] - x[h, w]|^2, divided by the number of pixels: small for smooth images.

    Mahendran and Vedaldi, equation 4, with beta = 2. Images are (N, H, W, 3).
    """
    down, right = images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]
    count, height, width, _ = images.shape
    return ((down * down).sum() + (right * right).sum()) * (1 / (count * height * width))


def invert(
    model: Module, images: np.ndarray, layer: str, steps: int = 200, smoothness: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Images with the features F(x0) that the layer has for these images x0, found from noise by gradient descent.

        loss(x) = |F(x) - F(x0)|^2 / |F(x0)|^2 + smoothness * total_variation(x)

    Mahendran and Vedaldi 2014, arXiv 1412.0035, equations 1, 2 and 4. They descend with momentum; this is Adam.

    Returns:
        The images found, and the loss at each step.
    """
    features_of = FeatureExtractor(model, layer)
    target = features_of(Tensor(images)).detach()
    scale, losses = float((target * target).sum()) or 1.0, []  # 1 if all features are 0

    def loss_of(x: Tensor) -> Tensor:
        difference = features_of(x) - target
        loss = (difference * difference).sum() / scale + smoothness * total_variation(x)
        losses.append(float(loss))
        return loss

    noise = np.random.default_rng(seed).uniform(0.4, 0.6, images.shape)
    return descend(loss_of, noise.astype(images.dtype), steps, lr=0.05), losses


def ascend(
    score_of: Objective,
    images: np.ndarray,
    steps: int,
    step_size: float = 0.01,
    jitter: int = 2,
    blur: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, list[float]]:
    """Maximise score_of(images) by steps along the gradient, scaled to a mean of `step_size` per pixel.

    Before each step the images are shifted cyclically by up to `jitter` pixels, and after it back: patterns that excite
    the network at one position only disappear (Mordvintsev, Olah and Tyka 2015, "Inceptionism"). The gradient is
    averaged over neighbouring pixels `blur` times, so that patterns larger than a pixel grow.

    Returns:
        The images found, with pixels in 0..1, and the score at each step.
    """
    rng, scores = np.random.default_rng(seed), []
    for _ in range(steps):
        down, right = rng.integers(-jitter, jitter + 1, 2).tolist()
        x = Tensor(np.roll(images, (down, right), axis=(1, 2)), requires_grad=True)
        score = score_of(x)
        score.backward()
        grad = blurred(x.grad.numpy(), blur)
        grad = grad / (np.abs(grad).mean(axis=(1, 2, 3), keepdims=True) + 1e-12)
        moved = np.clip(x.numpy() + np.float32(step_size) * grad, 0, 1)
        images = np.roll(moved, (-down, -right), axis=(1, 2))
        scores.append(float(score))
    return images, scores


def blurred(images: np.ndarray, times: int) -> np.ndarray:
    """Replace each pixel by 1/4, 1/2, 1/4 of itself and its two neighbours, along both axes, several times."""
    for axis in (1, 2) * times:
        images = (np.roll(images, 1, axis) + 2 * images + np.roll(images, -1, axis)) / 4
    return images


def maximise_classes(
    model: Module, classes: np.ndarray, size: int, steps: int = 150, smoothness: float = 100.0, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """An image (size, size, 3) for each class with a high score S_c, from grey noise: argmax of S_c(x) - R(x).

    Simonyan, Vedaldi and Zisserman 2013, arXiv 1312.6034, section 2. They take R(x) = lambda |x|^2; a penalty on
    differences between neighbours, `smoothness` * total_variation(x), leaves fewer isolated pixels.

    Returns:
        The images, and at each step the mean of S_c(x) - R(x).
    """

    def score_of(x: Tensor) -> Tensor:
        return class_scores(model(x), classes).mean() - smoothness * total_variation(x)

    return ascend(score_of, grey_noise(len(classes), size, seed), steps, seed=seed)


def maximise_channels(
    model: Module,
    layer: str,
    channels: np.ndarray,
    size: int,
    steps: int = 150,
    smoothness: float = 10.0,
    seed: int = 0,
) -> tuple[np.ndarray, list[float]]:
    """An image (size, size, 3) for each channel of the layer whose mean activation is high, from grey noise.

    Erhan, Bengio, Courville and Vincent 2009, "Visualizing higher-layer features of a deep network", equation 1.

    Returns:
        The images, and at each step the mean of the activations less the penalty of `maximise_classes`.
    """
    features_of = FeatureExtractor(model, layer)

    def score_of(x: Tensor) -> Tensor:
        activations = features_of(x).mean(dim=(1, 2))
        return class_scores(activations, channels).mean() - smoothness * total_variation(x)

    return ascend(score_of, grey_noise(len(channels), size, seed), steps, seed=seed)


def grey_noise(count: int, size: int, seed: int) -> np.ndarray:
    """Images (count, size, size, 3), grey with a standard deviation of 0.05."""
    noise = np.random.default_rng(seed).normal(0.5, 0.05, (count, size, size, 3))
    return noise.clip(0, 1).astype(np.float32)


def deep_dream(
    model: Module, images: np.ndarray, layer: str, steps: int = 25, blur: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Photographs changed so that the layer is more active: whatever it sees a little of, it sees more of.

    The score is the mean square of the layer's output (Mordvintsev, Olah and Tyka 2015, "Inceptionism").

    Returns:
        The images, and the score at each step.
    """
    features_of = FeatureExtractor(model, layer)
    return ascend(lambda x: (features_of(x) ** 2).mean(), images, steps, jitter=4, blur=blur, seed=seed)
