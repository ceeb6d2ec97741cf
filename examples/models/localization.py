"""Localisation: a VGG whose last layer predicts a box (Simonyan and Zisserman 2014, arXiv 1409.1556, appendix A).

The outputs are the four numbers of a box instead of class scores: one box for all classes (single-class regression, 4
outputs) or one box per class (per-class regression, 4 K outputs). The other layers are those of the classification
network, and the box network starts from its weights.

The last layers must be fully connected to the features at all positions. Global average pooling, as in ResNet, would
keep what is in the image but lose where it is.
"""

import copy

import numpy as np

from minidl import Tensor, fork_rng
from minidl.nn import Linear, ReLU, Sequential
from models.vgg import VGG, make_features

# Input side of the small network, and distance between neighbouring views when it runs densely, in pixels.
VIEW, STRIDE = 48, 16  # four poolings: 2^4
SMALL_CONFIG = [16, "M", 32, "M", 64, "M", 128, "M"]
HIDDEN = 256


def small_vgg(num_classes: int, seed: int = 0) -> VGG:
    """Four convolutions and two fully connected layers for views of 48 x 48 pixels.

    Unlike the paper's networks it has batch-norm and no dropout. Dropout makes learning much slower, and this network
    is meant to train in a few epochs.
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

    As in the paper, only the last layer is new; all other weights are copied.
    """
    network = copy.deepcopy(classification)
    inputs, _ = network.classifier[-1].weight.shape
    with fork_rng(seed):
        network.classifier.modules[-1] = Linear(inputs, 4 * boxes)
    return network


def boxes_of_class(output: Tensor, labels: np.ndarray) -> Tensor:
    """Select the box of class labels[i] for image i: (N, ..., 4 K) -> (N, ..., 4).

    "..." may be (rows, columns) of a dense network. With K = 1 there is one box for all classes.
    """
    boxes = output.reshape(*output.shape[:-1], -1, 4)
    which = labels if boxes.shape[-2] > 1 else np.zeros_like(labels)
    return boxes[np.arange(len(labels)), ..., which, :]


def euclidean_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L = 1 / (2 N) sum_i |predicted_i - target_i|^2 for (N, 4) and (N, 4); dL/dpredicted = (predicted - target) / N.

    This is the loss of appendix A. The factor 1/2 comes from Caffe, which the authors used.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"euclidean_loss: expected two tensors of the same shape, got {predicted.shape} and {target.shape}; "
            "select one box per image with boxes_of_class"
        )
    deviation = predicted - target
    return (deviation * deviation).sum() / (2 * len(predicted))
