"""Pictures of arrays, as PNG files inside the page (data URIs)."""

import base64
import io

import numpy as np

CHANNELS = 6  # shown of each array, evenly spaced, so that an operation and the next one show the same channels
LARGEST_SIDE = 56  # in pixels; larger feature maps are averaged over squares
LARGEST_VECTOR = 512  # numbers; longer vectors are averaged too
GAP = 1  # pixels between two channels
LEVELS = 31  # of each sign; few, so that the files stay small


def shown_channels(shape: tuple[int, ...]) -> list[int]:
    """Return the numbers of the channels that a picture of (N, H, W, C) or (N, C) shows; a vector has one row."""
    count = shape[-1] if len(shape) == 4 else 1
    return sorted({i * count // min(CHANNELS, count) for i in range(min(CHANNELS, count))})


def picture(array: np.ndarray | None, largest: float | None = None) -> dict | None:
    """Return a picture of the first image of (N, H, W, C), its channels side by side, or of a vector (N, C).

    Blue is negative, black is 0, amber is positive. `largest` is the absolute value of the brightest colour; by default
    the largest one in the picture. Returns None for no array, for one of other dimensions and for an empty one.
    """
    if array is None or array.ndim not in (2, 4) or not array.size:
        return None
    first = np.asarray(array[0], np.float32)
    maps = [first[None]] if first.ndim == 1 else [first[:, :, channel] for channel in shown_channels(array.shape)]
    maps = [_shrunk(part) for part in maps]
    finite = np.concatenate([part[np.isfinite(part)] for part in maps])
    largest = float(np.abs(finite).max(initial=0)) if largest is None else largest
    strip = _side_by_side([_levels(part, largest) for part in maps])
    return {
        "src": _png(strip, _palette()),
        "width": strip.shape[1],
        "height": strip.shape[0],
        "largest": f"{largest:.3g}",
        "channels": shown_channels(array.shape) if array.ndim == 4 else None,
    }


def photograph(pixels: np.ndarray) -> dict:
    """Return a picture of (H, W, 3) or (H, W, 1), uint8."""
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((2 * LARGEST_SIDE, 2 * LARGEST_SIDE))
    return {"src": _encode(image), "width": image.width, "height": image.height}


def _shrunk(part: np.ndarray) -> np.ndarray:
    """Average over blocks, so that the result fits."""
    for axis, most in enumerate((LARGEST_SIDE, LARGEST_VECTOR if len(part) == 1 else LARGEST_SIDE)):
        block = -(-part.shape[axis] // most)
        if block > 1:
            starts = np.arange(0, part.shape[axis], block)
            sums = np.add.reduceat(part, starts, axis)
            lengths = np.diff([*starts, part.shape[axis]]).astype(np.float32)
            part = sums / (lengths[:, None] if axis == 0 else lengths)
    return part


def _levels(part: np.ndarray, largest: float) -> np.ndarray:
    """Numbers of colours: 0 ... 2 LEVELS, with LEVELS for zero, and one more for NaN and infinity."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        level = LEVELS + np.rint(part / (largest or 1) * LEVELS).clip(-LEVELS, LEVELS)
    return np.where(np.isfinite(part), level, 2 * LEVELS + 1).astype(np.uint8)


def _side_by_side(maps: list[np.ndarray]) -> np.ndarray:
    height, width = maps[0].shape
    strip = np.full((height, len(maps) * (width + GAP) - GAP), 2 * LEVELS + 2, np.uint8)
    for number, part in enumerate(maps):
        strip[:, number * (width + GAP) :][:, :width] = part
    return strip


# From black to the brightest colour of each sign: red, green, blue.
NEGATIVE = (0, 0, 0), (18, 70, 150), (60, 150, 230), (200, 235, 255)
POSITIVE = (0, 0, 0), (150, 60, 10), (240, 150, 30), (255, 240, 190)
NOT_FINITE, BETWEEN = (255, 0, 255), (128, 128, 128)


def _palette() -> bytes:
    positions = np.linspace(0, 1, LEVELS + 1)

    def ramp(colours: tuple) -> np.ndarray:
        return np.stack([np.interp(positions, np.linspace(0, 1, 4), part) for part in np.transpose(colours)], axis=1)

    return np.uint8([*ramp(NEGATIVE)[:0:-1], *ramp(POSITIVE), NOT_FINITE, BETWEEN]).tobytes()


def _png(levels: np.ndarray, palette: bytes) -> str:
    from PIL import Image

    image = Image.fromarray(levels)
    image.putpalette(palette)
    image.info["transparency"] = 2 * LEVELS + 2
    return _encode(image)


def _encode(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
