"""im2col on an image of 4x4 pixels with a 3x3 kernel: the four windows, and the matrix of their patches."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minidl.kernels.reference import im2col

SIZE, KERNEL = 4, 3
COLOURS = ["#3a86d8", "#e07a2f", "#3fa672", "#b05cc4"]


def cells(axes: Axes, numbers: np.ndarray, colour_of) -> None:
    """A table of numbers; the rows have colours."""
    for (i, j), number in np.ndenumerate(numbers):
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour_of(i), alpha=0.35, edgecolor="#808890", lw=0.8))
        axes.text(j + 0.5, i + 0.5, str(int(number)), ha="center", va="center")
    axes.set(xlim=(-0.1, numbers.shape[1] + 0.1), ylim=(numbers.shape[0] + 0.1, -0.1), aspect="equal")
    axes.axis("off")


def draw() -> Figure:
    """The image with the four windows as frames, and `columns`, from reference.py itself."""
    image = np.arange(SIZE * SIZE, dtype=float).reshape(1, SIZE, SIZE, 1)
    columns = im2col(image, (KERNEL, KERNEL), (1, 1), (0, 0))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", width_ratios=[1, 2])
    cells(left, image[0, :, :, 0], lambda i: "none")
    for window, (i, j) in enumerate(np.ndindex(2, 2)):
        inset = 0.06 * (window + 1)
        frame = (j + inset, i + inset), KERNEL - 2 * inset, KERNEL - 2 * inset
        left.add_patch(Rectangle(*frame, fill=False, edgecolor=COLOURS[window], lw=2))
    cells(right, columns, lambda i: COLOURS[i])
    left.set_title("x and its four windows")
    right.set_title("columns: a row for each window, a column for each tap")
    return figure
