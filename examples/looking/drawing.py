"""Sheets of pictures: arrays in, a figure of Matplotlib out. Nothing is computed here."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from looking.style import Curves

SIDE = 1.75  # of a picture, in inches
Step = tuple[float, np.ndarray] | None  # what `smallest_step` returns


def draw_maps(images: np.ndarray, answers: list[str], maps: dict[str, np.ndarray]) -> "Figure":
    """A row for each image: the image under its class, then each map of {title: (N, h, w)}.

    A map with a value for each pixel is shown from black to white. A coarser one is enlarged and laid over the image,
    from blue to red; its negative values are shown as 0. The largest value has the last colour.
    """
    figure, axes = sheet(len(images), 1 + len(maps))
    for image, answer, row in zip(images, answers, axes, strict=True):
        show(row[0], image, answer)
    for column, (title, values) in enumerate(maps.items(), start=1):
        for number, image in enumerate(images):
            strength = values[number].clip(0) / max(values[number].max(), 1e-12)
            picture = overlay(image, strength) if strength.shape != image.shape[:2] else strength
            show(axes[number, column], picture, title if number == 0 else "")
    return figure


def overlay(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Enlarge the map (h, w) of 0..1 to the image (H, W, 3), and mix its colours with the image in grey, half each."""
    from matplotlib import colormaps

    height, width = image.shape[:2]
    enlarged = Image.fromarray(np.float32(strength)).resize((width, height), Image.Resampling.BICUBIC)
    grey = image.mean(axis=2, keepdims=True)
    return 0.5 * grey + 0.5 * colormaps["turbo"](np.asarray(enlarged).clip(0, 1))[..., :3]


def draw_steps(images: np.ndarray, answers: list[str], found: list[Step], new_answers: list[str | None]) -> "Figure":
    """A row for each image: the image, the step (dark for -, light for +), and the changed image."""
    figure, axes = sheet(len(images), 3)
    for image, answer, step, new_answer, row in zip(images, answers, found, new_answers, axes, strict=True):
        show(row[0], image, answer)
        if step is None:
            row[1].set_title("no step changes\nthe answer", fontsize=9)
            continue
        size, changed = step
        show(row[1], 0.5 + (changed - image) / (2 * size), f"step {255 * size:.0f}/255")
        show(row[2], changed, str(new_answer))
    return figure


def draw_columns(columns: dict[str, np.ndarray]) -> "Figure":
    """Columns of images, {title: (N, H, W, 3)}."""
    figure, axes = sheet(len(next(iter(columns.values()))), len(columns))
    for column, (title, images) in enumerate(columns.items()):
        for number, image in enumerate(images):
            show(axes[number, column], image, title if number == 0 else "")
    return figure


def draw_grid(images: np.ndarray, titles: list[str], columns: int = 5) -> "Figure":
    """Images (N, H, W, 3) from left to right and from top to bottom."""
    figure, axes = sheet(-(-len(images) // columns), min(columns, len(images)))
    for image, title, place in zip(images, titles, axes.flat, strict=False):  # the last row may have empty places
        show(place, image, title)
    return figure


def draw_style(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, "Curves"]]) -> "Figure":
    """A row for each content: content, style, result, and both terms of the loss at each step."""
    figure, axes = sheet(len(rows), 4, side=2.4, above=0.75)
    for (content, style, result, curves), row in zip(rows, axes, strict=True):
        for place, image, title in zip(row, (content, style, result), ("content", "style", "result"), strict=False):
            show(place, image, title)
        row[3].set_axis_on()
        for name, losses in curves.items():
            row[3].plot(losses, label=name)
        row[3].set(yscale="log", xlabel="step", title="loss, relative to features 0", box_aspect=1)
        row[3].title.set_fontsize(9)
        row[3].legend(fontsize=8)
        row[3].grid(alpha=0.3)
    return figure


def sheet(rows: int, columns: int, side: float = SIDE, above: float = 0.35) -> tuple["Figure", np.ndarray]:
    """A figure with rows x columns empty places, each `side` inches wide, with `above` inches for titles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * columns, (side + above) * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def show(axes: "Axes", picture: np.ndarray, title: str) -> None:
    """Draw an image (H, W, 3) or a grey one (H, W), with values in 0..1, pixel by pixel."""
    axes.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
