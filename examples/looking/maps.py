"""Where in the image the network finds a class: class activation maps and Grad-CAM."""

import contextlib

import numpy as np

from looking.gradients import class_scores
from looking.network import UnsuitedError
from minidl import Tensor, no_grad, watch
from minidl.nn import GlobalAvgPool, Linear, Module


def grad_cam(model: Module, images: np.ndarray, classes: np.ndarray, layer: str) -> np.ndarray:
    """relu(sum_k a_k A_k) of the layer's feature maps A_k, where a_k is the mean of dS_c/dA_k over the pixels.

    Selvaraju et al. 2016, arXiv 1610.02391, equations 1 and 2. The result is (N, H, W), with the pixels of the layer.
    """
    with watch(model, layer) as outputs:
        scores = class_scores(model(Tensor(images, requires_grad=True)), classes)
    features = outputs[layer]
    features.retain_grad()
    scores.sum().backward()
    weights = features.grad.numpy().mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * features.numpy()).sum(axis=3), 0)


def class_activation_map(model: Module, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """sum_k w_kc A_k: the feature maps before global average pooling, weighted as the last layer weights their means.

    Zhou et al. 2015, arXiv 1512.04150, equations 1 and 2. The score S_c is the mean of this map over the pixels, plus
    the bias. The result is (N, H, W), with the pixels of the feature maps.

    Raises:
        UnsuitedError: the network does not end with global average pooling and a linear layer.
    """
    features, classifier = pooled_features(model, images)
    weights = classifier.weight.numpy()[:, classes]  # (C, N)
    return np.einsum("nhwc,cn->nhw", features, weights)


def pooled_features(model: Module, images: np.ndarray) -> tuple[np.ndarray, Linear]:
    """The input (N, H, W, C) of the global average pooling, and the linear layer that takes its output."""
    calls = []
    with no_grad(), contextlib.ExitStack() as stack:
        for _, layer in model.named_modules():
            if isinstance(layer, GlobalAvgPool | Linear):
                stack.enter_context(layer.forward_hook(lambda *call: calls.append(call)))
        logits = model(Tensor(images))
    match calls:
        case [*_, (GlobalAvgPool(), (features,), means), (Linear() as last, (x,), y)] if x is means and y is logits:
            return features.numpy(), last
    raise UnsuitedError(
        "cam: expected a network that ends with the layers GlobalAvgPool and Linear, got another one; "
        "choose other methods (gradcam needs no such layers)"
    )
