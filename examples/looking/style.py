"""Style transfer: the content of one picture in the style of another (Gatys, Ecker and Bethge 2015)."""

import numpy as np

from looking.features import descend, total_variation
from minidl import FeatureExtractor, Tensor, no_grad, watch
from minidl.nn import Module

Curves = dict[str, list[float]]


def gram(features: Tensor) -> Tensor:
    """G_ij = sum_k F_ik F_jk over the pixels k, for the channels i and j of (1, H, W, C): (C, C). Equation 3."""
    rows = features.reshape(-1, features.shape[3])  # (pixels, channels), the transpose of the paper's F
    return rows.T @ rows


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """1/2 sum (F - P)^2 of two feature maps. Equation 1."""
    difference = features - target
    return (difference * difference).sum() * 0.5


def style_loss(features: Tensor, target: Tensor) -> Tensor:
    """sum (G - A)^2 / (4 N^2 M^2), with G the Gram matrix of N channels of M pixels and A the target. Equation 4."""
    _, height, width, channels = features.shape
    difference = gram(features) - target
    return (difference * difference).sum() * (1 / (2 * channels * height * width) ** 2)


def transfer_style(
    model: Module,
    content: np.ndarray,
    style: np.ndarray,
    content_layer: str,
    style_layers: list[str],
    steps: int = 200,
    style_weight: float = 100.0,
    smoothness: float = 100.0,
) -> tuple[np.ndarray, Curves]:
    """A picture with the content features of one image and the Gram matrices of another, both (1, H, W, 3).

        loss(x) = content_loss(x) / c + style_weight * (mean over the layers l of style_loss_l(x) / s_l)
                  + smoothness * total_variation(x)

    Gatys, Ecker and Bethge 2015, arXiv 1508.06576, equations 1 to 7. They choose the weights for one network. Here c
    and s_l are the losses of features that are 0, so one weight serves networks and images of any size. The last term
    is not theirs: it keeps single pixels from satisfying the losses. They start from noise and use L-BFGS; this starts
    from the content and uses Adam.

    Returns:
        The picture (1, H, W, 3), and both terms of the loss at each step, {"content": [...], "style": [...]}.
    """
    outputs_of = LayerOutputs(model, {content_layer, *style_layers}, content)
    with no_grad():
        content_target = outputs_of(content)[content_layer]
        style_targets = {name: gram(output) for name, output in outputs_of(style).items() if name in style_layers}
        zeros = {name: output * 0 for name, output in outputs_of(content).items()}
        content_scale = float(content_loss(zeros[content_layer], content_target)) or 1.0  # 1 if all features are 0
        style_scales = {name: float(style_loss(zeros[name], target)) or 1.0 for name, target in style_targets.items()}
    curves: Curves = {"content": [], "style": []}

    def loss_of(x: Tensor) -> Tensor:
        outputs = outputs_of(x)
        of_content = content_loss(outputs[content_layer], content_target) * (1 / content_scale)
        parts = [style_loss(outputs[name], target) * (1 / style_scales[name]) for name, target in style_targets.items()]
        of_style = sum(parts) * (1 / len(parts))
        curves["content"].append(float(of_content))
        curves["style"].append(float(of_style))
        return of_content + style_weight * of_style + smoothness * total_variation(x)

    return descend(loss_of, content, steps, lr=0.02), curves


class LayerOutputs:
    """The outputs of several layers, {name: (N, H, W, C)}. The layers after the last of these are not computed.

    So images may have any size, even if the fully connected layers cannot take it. `example` is any batch (N, H, W, 3):
    on it the constructor finds the last one of the layers.
    """

    def __init__(self, model: Module, names: set[str], example: np.ndarray):
        self.model, self.names = model, sorted(names)
        with no_grad():  # the network that ends with the last of the layers computes all of them
            self.last = next(name for name in self.names if len(self._up_to(name, Tensor(example))) == len(names))

    def __call__(self, images: Tensor | np.ndarray) -> dict[str, Tensor]:
        return self._up_to(self.last, images if isinstance(images, Tensor) else Tensor(images))

    def _up_to(self, last: str, images: Tensor) -> dict[str, Tensor]:
        with watch(self.model, *self.names) as outputs:
            FeatureExtractor(self.model, last)(images)
        return outputs
