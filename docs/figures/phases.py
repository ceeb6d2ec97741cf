"""Which taps of a 3x3 kernel see a pixel, for stride 2 and padding 1: four phases."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

STRIDE, PADDING, KERNEL, SIZE = 2, 1, 3, 8
COLOURS = {(0, 0): "#3a86d8", (0, 1): "#e07a2f", (1, 0): "#3fa672", (1, 1): "#b05cc4"}


def phase_of_tap(u: int, v: int) -> tuple[int, int]:
    """The pixels (h, w) that tap (u, v) sees have h = SH i + u - PH, so h % SH = (u - PH) % SH."""
    return (u - PADDING) % STRIDE, (v - PADDING) % STRIDE


def grid(axes: Axes, size: int, phase_of, title: str) -> None:
    """Squares in the colours of their phases."""
    for h, w in np.ndindex(size, size):
        axes.add_patch(Rectangle((w, h), 1, 1, facecolor=COLOURS[phase_of(h, w)], edgecolor="white", lw=1.5))
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", title=title)
    axes.axis("off")


def draw() -> Figure:
    """The pixels of x, and the taps of the kernel."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 3), layout="constrained")
    grid(left, SIZE, lambda h, w: (h % STRIDE, w % STRIDE), f"pixels of x, {SIZE} x {SIZE}")
    grid(right, KERNEL, phase_of_tap, "taps of the kernel")
    for u, v in np.ndindex(KERNEL, KERNEL):
        right.text(v + 0.5, u + 0.5, f"{u},{v}", ha="center", va="center", color="white")
    return figure
