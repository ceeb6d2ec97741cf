"""Bounding boxes: regression targets, intersection over union, and merging of predictions.

A box is (left, top, right, bottom) in pixels, along the last dimension of an array; x points right and y down.
"""

import numpy as np

# A box is correct if its intersection over union with the truth is above this (ILSVRC; VGG paper, appendix A).
IOU_THRESHOLD = 0.5

# The match score of two equal squares a third of a side apart: distance 1/3, intersection over union 1/2.
MERGE_THRESHOLD = 1 / 3 + 1 / 2


# -- regression targets ------------------------------------------------------------------------------------------------


def encode(boxes: np.ndarray, size: int) -> np.ndarray:
    """The regression targets: (left, top, right, bottom) -> (centre x, centre y, width, height) / size.

    Appendix A of Simonyan and Zisserman (2014) predicts these four numbers. Dividing by `size`, the side of the
    network's input, is our choice: all four are then around 1 for images of any size.
    """
    left, top, right, bottom = np.moveaxis(np.asarray(boxes), -1, 0)
    return np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=-1) / size


def decode(targets: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `encode`: boxes in pixels, relative to the network's input."""
    x, y, width, height = np.moveaxis(size * np.asarray(targets), -1, 0)
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)


def decode_map(targets: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Decode the predictions of a dense network, (..., rows, columns, 4), to boxes in pixels of the whole image.

    The view at (row, column) starts `stride` * row pixels from the top and `stride` * column from the left, where
    `stride` is the product of the strides of the network's poolings.
    """
    row, column = np.indices(targets.shape[-3:-1])
    return decode(targets, size) + stride * np.stack([column, row, column, row], axis=-1)


# -- comparing boxes ---------------------------------------------------------------------------------------------------


def area(boxes: np.ndarray) -> np.ndarray:
    """Width times height, 0 if right < left or bottom < top: (..., 4) -> (...)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return width.clip(0) * height.clip(0)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a and b| / |a or b|, from 0 for disjoint to 1 for equal boxes; (..., 4) and (..., 4) broadcast to (...).

    |a or b| = |a| + |b| - |a and b|. The result for two boxes of area 0 is 0.
    """
    corners = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = area(np.concatenate(corners, axis=-1))
    either = area(a) + area(b) - shared
    return np.divide(shared, either, out=np.zeros_like(either, dtype=np.float64), where=either > 0)


def localisation_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The fraction of boxes (N, 4) whose intersection over union with the truth (N, 4) is at most 0.5."""
    return float(np.mean(intersection_over_union(predicted, truth) <= IOU_THRESHOLD))


# -- merging predictions -----------------------------------------------------------------------------------------------


def match_score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance between two boxes: 0 if they are equal, more than 1 if they are disjoint.

        |centre a - centre b| / sqrt((|a| + |b|) / 2)  +  1 - IoU(a, b)

    OverFeat (Sermanet et al. 2014, section 4.3) adds the distance between the centres to the area of the intersection,
    and merges the two boxes with the smallest sum. It gives no units, and taken literally a large intersection would
    keep boxes apart. So three details are our choice: the distance is in units of the boxes' mean size, the
    intersection is relative to the union, and 1 - IoU replaces IoU.
    """
    distance = np.linalg.norm((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2, axis=-1)
    size = np.sqrt((area(a) + area(b)) / 2)
    return distance / np.maximum(size, 1e-9) + 1 - intersection_over_union(a, b)


def merge_greedily(
    boxes: np.ndarray, scores: np.ndarray, threshold: float = MERGE_THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """Merge boxes (N, 4) with scores (N,) and sort them by score, highest first (Sermanet et al. 2014, section 4.3).

    While the smallest `match_score` of any two boxes is at most `threshold`, that pair is replaced by one box:

    - Its coordinates are the mean of all predictions merged into it so far. (The paper averages the two boxes, which
      would give the predictions different weights.)
    - Its score is the sum of the two scores, as in the paper: a box that many positions agree on has a high score.

    The paper gives no threshold; `MERGE_THRESHOLD` is our choice.
    """
    boxes, scores, counts = np.array(boxes, np.float64), np.array(scores, np.float64), np.ones(len(scores))
    while len(boxes) > 1:
        matches = match_score(boxes[:, None], boxes)
        np.fill_diagonal(matches, np.inf)
        pair = list(np.unravel_index(matches.argmin(), matches.shape))
        if matches.min() > threshold:
            break
        merged = np.average(boxes[pair], axis=0, weights=counts[pair])
        boxes = np.vstack([np.delete(boxes, pair, axis=0), merged])
        scores, counts = (np.append(np.delete(values, pair), values[pair].sum()) for values in (scores, counts))
    best_first = np.argsort(-scores, kind="stable")
    return boxes[best_first], scores[best_first]
