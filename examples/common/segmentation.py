"""How well masks are predicted: mean intersection over union."""

import numpy as np

from common.evaluate import evaluating
from minidl import Tensor
from minidl.nn import Module


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes): how many pixels of class i were predicted as class j, of two arrays of the same shape."""
    if truth.shape != predicted.shape:
        raise ValueError(f"confusion_matrix: expected masks of one shape, got {truth.shape} and {predicted.shape}")
    pairs = classes * truth.ravel().astype(np.int64) + predicted.ravel()  # uint8 ends at 255
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """(classes,): of each class, the pixels in both masks / the pixels in at least one; NaN if there are none."""
    both = confusion.diagonal()
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean of `class_ious` over the classes, without those that are in no mask (Long et al. 2014, section 5).

    The confusion matrix is that of all test images together: the mean over images would be another number.
    """
    return float(np.nanmean(class_ious(confusion)))


def pixel_error(confusion: np.ndarray) -> float:
    """The fraction of the pixels whose class is wrong."""
    return float(1 - confusion.trace() / confusion.sum())


def predict_masks(model: Module, images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """The class with the highest score at each pixel, in evaluation mode: (N, H, W, C) -> (N, H, W)."""
    with evaluating(model):
        return model(Tensor(images, device=device)).argmax(dim=-1).numpy()
