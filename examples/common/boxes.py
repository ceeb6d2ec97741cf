"""Boxes around things in images: as a network predicts them, how well they fit, and how many become one.

A box is (left, top, right, bottom) in pixels, x to the right and y down; arrays hold it in their last dimension.
"""

import numpy as np

# A box is right if its intersection over union with the truth is larger (ILSVRC, and appendix A of VGG's paper).
LEAST_OVERLAP = 0.5

# Two equal squares, one moved by a third of its side: the centres are 1/3 apart, the intersection over union is 1/2.
MERGE_BELOW = 1 / 3 + 1 / 2


# -- what a network predicts -------------------------------------------------------------------------------------------


def encode(boxes: np.ndarray, size: int) -> np.ndarray:
    """(left, top, right, bottom) -> (centre x, centre y, width, height) / size: the target of the regression.

    Appendix A of Simonyan and Zisserman (2014) predicts these four. The unit is ours: the side `size` of the view that
    the network sees, so that all four are around 1 for images of any size.
    """
    left, top, right, bottom = np.moveaxis(np.asarray(boxes), -1, 0)
    return np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=-1) / size


def decode(targets: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `encode`: the boxes in pixels of the view."""
    x, y, width, height = np.moveaxis(size * np.asarray(targets), -1, 0)
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)


def decode_places(targets: np.ndarray, size: int, stride: int) -> np.ndarray:
    """What a network says at each place of an image, (..., rows, columns, 4), as boxes in pixels of the image.

    The view at (row, column) begins `stride` * row pixels from the top and `stride` * column from the left; `stride` is
    the product of the network's poolings.
    """
    row, column = np.indices(targets.shape[-3:-1])
    return decode(targets, size) + stride * np.stack([column, row, column, row], axis=-1)


# -- how well a box fits -----------------------------------------------------------------------------------------------


def area(boxes: np.ndarray) -> np.ndarray:
    """Width times height, and 0 for a box that is turned inside out: (..., 4) -> (...)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return width.clip(0) * height.clip(0)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a and b| / |a or b|, from 0 for boxes apart to 1 for equal ones; (..., 4) and (..., 4) broadcast to (...).

    |a or b| = |a| + |b| - |a and b|. Two boxes without an area have 0.
    """
    corners = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = area(np.concatenate(corners, axis=-1))
    either = area(a) + area(b) - shared
    return np.divide(shared, either, out=np.zeros_like(either, dtype=np.float64), where=either > 0)


def localisation_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The part of the boxes (N, 4) whose intersection over union with the truth (N, 4) is 0.5 or less."""
    return float(np.mean(intersection_over_union(predicted, truth) <= LEAST_OVERLAP))


# -- many predictions of one thing -------------------------------------------------------------------------------------


def match_score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two boxes are from being the same: 0 for equal ones, more than 1 for boxes apart.

        |centre a - centre b| / sqrt((|a| + |b|) / 2)  +  1 - IoU(a, b)

    OverFeat (Sermanet et al. 2014, section 4.3) adds the distance between the two centres and the area of the
    intersection, and merges where the sum is least. It gives no units, and taken literally an intersection would keep
    apart what overlaps. So three things here are our choice: the distance in units of the boxes' mean size, the
    intersection as a part of the union, and of this part what is missing to 1.
    """
    distance = np.linalg.norm((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2, axis=-1)
    size = np.sqrt((area(a) + area(b)) / 2)
    return distance / np.maximum(size, 1e-9) + 1 - intersection_over_union(a, b)


def merge_greedily(
    boxes: np.ndarray, scores: np.ndarray, threshold: float = MERGE_BELOW
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) with scores (N,) -> fewer of both, the highest score first (Sermanet et al. 2014, section 4.3).

    As long as any two boxes have a `match_score` of at most `threshold`, the two with the least become one:

    - its coordinates are the mean of all the predictions that it was made of. The paper averages the two boxes; where
      one of them is a mean already, we weigh it by their number, so that all of them count the same;
    - its score is the sum of theirs, as in the paper: the more places agree on a box, the more it counts.

    The threshold is our choice, as the paper gives none: see `MERGE_BELOW`.
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
