"""Pictures to look at: photographs, CIFAR-10's test images, and drawn ones that need no file."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from minidl.data import BrokenImageError, image_files, load_cifar10, make_shapes, read_image
from minidl.data.views import centre_box


def expand(sources: list[str]) -> list[str]:
    """Replace each folder with the image files in it."""
    return [file for source in sources for file in (image_files(source) if Path(source).is_dir() else [source])]


def read_pixels(source: str, size: int, data_dir: str = "data", least: int = 1) -> np.ndarray:
    """The central square of a picture, scaled to (size, size, 3), float32 in 0..1.

    Args:
        source: an image file; cifar10:N, number N of the test set; shapes:N, a drawn shape; pattern:mosaic or
            pattern:strokes.
        size: height and width of the result.
        data_dir: folder of CIFAR-10.
        least: the shorter side that an image file must have.
    """
    kind, _, name = source.partition(":")
    if kind in ("cifar10", "shapes", "pattern") and not Path(source).exists():
        picture = Image.fromarray(_drawn(kind, name, size, data_dir))
        return np.float32(picture.resize((size, size), Image.Resampling.BICUBIC)) / 255
    photograph = read_photograph(source, size, least)
    return np.float32(photograph.crop(centre_box(photograph.size, size))) / 255


def read_photograph(path: str, shorter_side: int, least: int = 1) -> Image.Image:
    """`minidl.data.read_image`, and two things more: a transparent picture is put on white, a small one is an error."""
    try:
        photograph = read_image(path, shorter_side)
    except BrokenImageError as problem:
        raise ValueError(f"read_pixels: {path} is damaged or no image; pass JPEG or PNG files") from problem
    with Image.open(path) as image:
        if min(image.size) < least:
            raise ValueError(
                f"read_pixels: expected at least {least} x {least} pixels, which the network needs, got "
                f"{image.width} x {image.height} in {path}; pass a larger photograph"
            )
        if image.has_transparency_data:
            layer = ImageOps.exif_transpose(image).convert("RGBA").resize(photograph.size, Image.Resampling.BILINEAR)
            photograph = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return photograph


def _drawn(kind: str, name: str, size: int, data_dir: str) -> np.ndarray:
    """The pixels of a picture that needs no image file, uint8 (H, W, 3)."""
    if kind == "pattern":
        if name not in PATTERNS:
            raise ValueError(f"read_pixels: expected pattern:{' or pattern:'.join(PATTERNS)}, got pattern:{name}")
        return PATTERNS[name](size)
    count = {"cifar10": 10_000, "shapes": 1000}[kind]
    if not name.isdecimal() or int(name) >= count:
        raise ValueError(f"read_pixels: expected {kind}:0 to {kind}:{count - 1}, got {kind}:{name}")
    if kind == "shapes":
        return make_shapes(int(name) + 1, train=False, size=size).images[-1]
    return load_cifar10(data_dir, train=False).images[int(name)]


def mosaic(size: int) -> np.ndarray:
    """Tiles of warm and cold colours with dark joints: each pixel has the colour of the nearest of 250 points."""
    rng = np.random.default_rng(1)
    points = rng.random((250, 2)) * size
    colours = np.array([[226, 88, 34], [247, 183, 51], [20, 54, 120], [58, 134, 216], [240, 234, 214]])
    h, w = np.mgrid[:size, :size]
    distances = np.hypot(h[..., None] - points[:, 0], w[..., None] - points[:, 1])
    tiles = colours[rng.integers(0, len(colours), len(points))][distances.argmin(axis=2)]
    nearest, second = np.partition(distances, 1, axis=2)[..., :2].transpose(2, 0, 1)
    return np.where((second - nearest < size / 100)[..., None], 25, tiles).astype(np.uint8)


def strokes(size: int) -> np.ndarray:
    """Short brush strokes around the centre of a swirl, in blue, white and yellow."""
    rng = np.random.default_rng(2)
    colours = ["#10265e", "#2454a0", "#68a0d0", "#ececdc", "#f4c430"]
    canvas = Image.new("RGB", (2 * size, 2 * size), colours[0])
    drawing = ImageDraw.Draw(canvas)
    for x, y in rng.random((3000, 2)) * 2 * size:
        angle = np.arctan2(y - 0.8 * size, x - 1.2 * size) + np.pi / 2 + rng.normal(0, 0.15)
        dx, dy = size / 16 * np.cos(angle), size / 16 * np.sin(angle)
        drawing.line((x - dx, y - dy, x + dx, y + dy), fill=str(rng.choice(colours)), width=size // 32)
    return np.asarray(canvas.reduce(2))


PATTERNS = {"mosaic": mosaic, "strokes": strokes}
