"""Where in the image: a VGG whose last layer predicts a box (Simonyan, Zisserman 2014, arXiv 1409.1556, appendix A).

The four numbers of a box replace the scores of the classes: one box for all classes (single-class regression, 4
outputs), or a box for each of them (per-class regression, 4 K outputs). Everything else is the classification network,
whose weights the box network starts with.

The last layers must be fully connected on the features of all places: the mean over the places, which ResNet ends with,
would say what is in the image and forget where.
"""

import copy

import numpy as np

from minidl import Tensor, fork_rng
from minidl.nn import Linear, ReLU, Sequential
from models.vgg import VGG, make_features

# What the small network sees of an image, and from one place of a larger image to the next: both in pixels.
VIEW, STRIDE = 48, 16  # four poolings: 2^4
SMALL_CONFIG = [16, "M", 32, "M", 64, "M", 128, "M"]
HIDDEN = 256


def small_vgg(num_classes: int, seed: int = 0) -> VGG:
    """Four convolutions and two fully connected layers for views of 48 x 48 pixels.

    Unlike the paper's networks it has batch-norm, and no dropout, with which it learns much more slowly: it is to be
    trained in a few epochs.
    """
    side = VIEW // STRIDE
    with fork_rng(seed):
        classifier = Sequential(
            Linear(side * side * 128, HIDDEN, flattened_from=(side, side, 128)),
            ReLU(),
            Linear(HIDDEN, num_classes),
        )
        return VGG(make_features(SMALL_CONFIG, batch_norm=True), classifier)


def box_network(classification: VGG, boxes: int, seed: int = 0) -> VGG:
    """A copy of a classification network that predicts `boxes` boxes: (N, H, W, 3) -> (N, 4 * boxes).

    As in the paper, all its weights are those of the classification network, but for the last layer's, which are new.
    """
    network = copy.deepcopy(classification)
    inputs, _ = network.classifier[-1].weight.shape
    with fork_rng(seed):
        network.classifier.modules[-1] = Linear(inputs, 4 * boxes)
    return network


def boxes_of_class(output: Tensor, labels: np.ndarray) -> Tensor:
    """Image i's boxes for its class labels[i]: (N, ..., 4 K) -> (N, ..., 4), whether of one place or of many.

    With K = 1 there is one box for all classes.
    """
    boxes = output.reshape(*output.shape[:-1], -1, 4)
    which = labels if boxes.shape[-2] > 1 else np.zeros_like(labels)
    return boxes[np.arange(len(labels)), ..., which, :]


def euclidean_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L = 1 / (2 N) sum_i |predicted_i - target_i|^2 for (N, 4) and (N, 4); dL/dpredicted = (predicted - target) / N.

    The loss of appendix A; the factor 1/2 is Caffe's, which the paper was made with.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"euclidean_loss: expected two tensors of one shape, got {predicted.shape} and {target.shape}; "
            "boxes_of_class chooses one box for each image"
        )
    deviation = predicted - target
    return (deviation * deviation).sum() / (2 * len(predicted))
