from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

from minidl.data import (
    RESNET_SIDES,
    VGG_SIDES,
    CentreView,
    ColourComponents,
    CropsView,
    ImageFolder,
    TrainingView,
    WholeView,
    corner_boxes,
    grid_boxes,
    normalize,
    read_image,
)
from minidl.data.views import centre_box, draw_side, mirror_at_random, random_box


def rng(seed=0):
    return np.random.default_rng(seed)


def coordinates(width, height):
    """An image whose red is x, whose green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.fixture
def path(tmp_path):
    """A photograph, 90 x 60, in which no pixel is another's mirror image."""
    coordinates(90, 60).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [VGG_SIDES, RESNET_SIDES])
def test_all_scales_are_equally_likely_and_both_ends_occur(sides):
    generator, (least, largest) = rng(), sides
    drawn = np.array([draw_side(sides, generator) for _ in range(20_000)])
    assert (drawn.min(), drawn.max()) == sides
    count = largest - least + 1
    assert abs(drawn.mean() - (least + largest) / 2) < 5 * count / np.sqrt(12 * 20_000)
    quarters = np.histogram(drawn, np.linspace(least, largest + 1, 5))[0] / 20_000
    np.testing.assert_allclose(quarters, 0.25, atol=0.02)


def test_one_scale_is_no_draw():
    generator = rng()
    assert draw_side(256, generator) == 256
    assert generator.random() == rng().random()


def test_the_papers_draw_their_scales_from_these_ranges():
    """Simonyan and Zisserman (2014), section 3.1; He et al. (2015), section 3.4."""
    assert VGG_SIDES == (256, 512)
    assert RESNET_SIDES == (256, 480)


def test_all_crops_are_equally_likely():
    generator = rng()
    places = Counter(random_box((7, 6), 5, generator) for _ in range(6000))
    assert sorted(places) == [(left, top, left + 5, top + 5) for left in range(3) for top in range(2)]
    assert max(abs(count - 1000) for count in places.values()) < 150  # five standard deviations


@pytest.mark.parametrize(
    ("sides", "corner"), [((10, 8), (3, 2)), ((11, 8), (4, 2)), ((9, 8), (2, 2)), ((4, 9), (0, 2)), ((7, 5), (2, 0))]
)
def test_the_centre_is_as_far_from_both_edges_and_an_odd_pixel_is_left_over_where_torchvision_leaves_it(sides, corner):
    """It begins at half of the rest, and a half is rounded to the even number."""
    left, top = corner
    assert centre_box(sides, 4) == (left, top, left + 4, top + 4)


def test_the_five_boxes_are_the_corners_and_the_centre_of_the_square_in_the_middle():
    square = [(0, 0, 224, 224), (32, 0, 256, 224), (0, 32, 224, 256), (32, 32, 256, 256), (16, 16, 240, 240)]
    assert corner_boxes((256, 256), 224) == square
    wide = [(left + 64, top, right + 64, bottom) for left, top, right, bottom in square]
    assert corner_boxes((384, 256), 224) == wide


def test_the_grid_reaches_from_edge_to_edge_in_equal_steps():
    boxes = grid_boxes((264, 304), 224)
    assert len(set(boxes)) == 25
    assert sorted({left for left, *_ in boxes}) == [0, 10, 20, 30, 40]
    assert sorted({top for _, top, *_ in boxes}) == [0, 20, 40, 60, 80]
    assert all((right - left, bottom - top) == (224, 224) for left, top, right, bottom in boxes)
    assert boxes[-1][2:] == (264, 304)


def test_half_of_the_images_are_mirrored_left_to_right():
    generator, pixels = rng(), np.asarray(coordinates(3, 2))
    lefts = [mirror_at_random(pixels, generator)[:, 0, 0].tolist() for _ in range(2000)]
    assert all(left in ([0, 0], [2, 2]) for left in lefts)
    assert abs(lefts.count([2, 2]) - 1000) < 112  # five standard deviations


# -- colours -----------------------------------------------------------------------------------------------------------

COVARIANCE = np.array([[4900.0, 4500, 4000], [4500, 4700, 4300], [4000, 4300, 5000]])  # of about a photograph's size


def test_the_components_are_those_of_pixels_in_0_to_1_the_largest_first():
    eigenvalues, eigenvectors = ColourComponents.of(COVARIANCE)
    np.testing.assert_allclose(eigenvectors @ np.diag(eigenvalues) @ eigenvectors.T, COVARIANCE / 255**2)
    np.testing.assert_allclose(eigenvectors.T @ eigenvectors, np.eye(3), atol=1e-12)
    assert eigenvalues[0] > eigenvalues[1] > eigenvalues[2] > 0
    assert (eigenvectors[:, 0] > 0).all()  # red, green and blue rise and fall together
    assert (np.abs(eigenvectors).max(axis=0) == eigenvectors.max(axis=0)).all()


def test_the_colour_shift_has_the_covariance_of_krizhevsky():
    """Sum_i alpha_i lambda_i p_i, alpha_i ~ N(0, 0.1^2): its covariance is 0.1^2 times that of the pixels, squared."""
    generator, components = rng(), ColourComponents.of(COVARIANCE)
    shifts = np.array([components.draw(generator) for _ in range(20_000)])
    assert shifts.shape == (20_000, 3)
    expected = 255**2 * 0.1**2 * np.linalg.matrix_power(COVARIANCE / 255**2, 2)
    np.testing.assert_allclose(np.cov(shifts.T), expected, rtol=0.05)  # five of 1 % each: sqrt(2 / 20,000)
    assert (np.abs(shifts.mean(axis=0)) < 5 * np.sqrt(np.diag(expected) / 20_000)).all()
    assert 1 < shifts.std() < 10  # of 255: to be seen, but not to hide the photograph


# -- whole views -------------------------------------------------------------------------------------------------------


def test_a_training_view_is_scaled_cropped_and_mirrored_in_this_order_of_draws(path):
    view, generator = TrainingView((40, 60), 32), rng(5)
    image = read_image(path, draw_side((40, 60), generator))
    expected = mirror_at_random(np.asarray(image.crop(random_box(image.size, 32, generator))), generator)
    np.testing.assert_allclose(view(path, rng(5)), expected, atol=2)
    assert view(path, rng(5)).dtype == np.uint8
    assert len({view(path, rng(seed)).tobytes() for seed in range(20)}) == 20


def test_the_colour_shift_is_the_same_for_all_pixels_and_leaves_the_range_of_bytes(path):
    components = ColourComponents.of(np.diag([255.0**2 * 100, 0, 0]))  # 2,500 in red
    plain, shifted = (TrainingView(60, 32, colours=colours)(path, rng(5)) for colours in (None, components))
    shift = shifted - plain
    assert shifted.dtype == np.float32
    np.testing.assert_allclose(shift[..., 0], shift[0, 0, 0], rtol=1e-5)
    assert np.abs(shift[..., 0]).min() > 255
    generator = rng(5)
    random_box((90, 60), 32, generator), generator.random()  # what is drawn before it
    np.testing.assert_allclose(shift[0, 0], components.draw(generator), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shift[..., 1:], 0, atol=1e-5)


@pytest.mark.parametrize("mean", [np.array([1.0, 2, 3]), np.arange(32 * 32 * 3.0).reshape(32, 32, 3), 128.0])
def test_the_mean_of_channels_or_pixels_is_subtracted_last(path, mean):
    """Also of a mirrored image: the mean image stays as it is."""
    components = ColourComponents.of(COVARIANCE)
    for seed in range(4):
        plain, shifted = (TrainingView(60, 32, colours=colours)(path, rng(seed)) for colours in (None, components))
        np.testing.assert_array_equal(TrainingView(60, 32, mean)(path, rng(seed)), normalize(plain[None], mean)[0])
        both = TrainingView(60, 32, mean, components)(path, rng(seed))
        np.testing.assert_allclose(both, shifted - mean, atol=1e-3)
        assert both.dtype == np.float32


def test_a_centre_view_is_the_middle_of_the_scaled_photograph(path):
    expected = np.asarray(read_image(path, 40).crop((14, 4, 46, 36)))  # of 60 x 40
    view = CentreView(40, 32)(path)
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(CentreView(40, 32, mean=128.0)(path, rng()), view.astype(np.float32) - 128)


@pytest.mark.parametrize(("boxes", "count"), [(corner_boxes, 10), (grid_boxes, 50)])
def test_several_crops_are_those_of_the_scaled_photograph_and_then_their_mirror_images(path, boxes, count):
    photograph = read_image(path, 40)
    crops = CropsView(boxes, 40, 32)(path)
    assert (crops.shape, crops.dtype) == ((count, 32, 32, 3), np.uint8)
    for crop, mirrored, box in zip(crops[: count // 2], crops[count // 2 :], boxes(photograph.size, 32), strict=True):
        np.testing.assert_array_equal(crop, np.asarray(photograph.crop(box)))
        np.testing.assert_array_equal(mirrored, crop[:, ::-1])


def test_the_whole_photograph_comes_with_its_mirror_image(path):
    whole = WholeView(40)(path)
    assert (whole.shape, whole.dtype) == ((2, 40, 60, 3), np.uint8)
    np.testing.assert_array_equal(whole[0], np.asarray(read_image(path, 40)))
    np.testing.assert_array_equal(whole[1], whole[0, :, ::-1])


VIEWS = {
    "training": partial(TrainingView, 40, 32),
    "centre": partial(CentreView, 40, 32),
    "crops": partial(CropsView, corner_boxes, 40, 32),
    "whole": partial(WholeView, 40),
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_subtracts_the_mean_and_divides_by_the_standard_deviation(path, name):
    """Either, or both; nothing at all leaves the bytes as they are."""
    mean, std = np.array([1.0, 2, 3]), np.array([4.0, 5, 6])
    plain = VIEWS[name]()(path, rng())
    assert plain.dtype == np.uint8
    for options in ({"mean": mean}, {"std": std}, {"mean": mean, "std": std}):
        view = VIEWS[name](**options)(path, rng())
        expected = (plain - options.get("mean", 0.0)) / options.get("std", 1.0)
        assert view.dtype == np.float32
        np.testing.assert_allclose(view, expected, rtol=1e-6)


# -- torchvision's pixels ----------------------------------------------------------------------------------------------


def torchvision_resize(image, size):
    """torchvision.transforms.Resize(size): `_compute_resized_output_size`, and the PIL branch of `resize`."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    return image.resize(new, Image.Resampling.BILINEAR)


def torchvision_center_crop(image, size):
    """torchvision.transforms.CenterCrop(size): `center_crop`."""
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def torchvision_five_crop(image, size):
    """torchvision.transforms.FiveCrop(size): top left, top right, bottom left, bottom right, centre."""
    right, bottom = image.width - size, image.height - size
    corners = [image.crop((x, y, x + size, y + size)) for y in (0, bottom) for x in (0, right)]
    return [*corners, torchvision_center_crop(image, size)]


def noise(width, height):
    """An image in which each shift and each other weight of the filter changes nearly all pixels."""
    return Image.fromarray(rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


SIZES = [(333, 500), (500, 333), (257, 255), (375, 500), (301, 257), (224, 224), (256, 256), (255, 257), (3, 50)]
SIZES += [(640, 517), (1201, 1023)]  # a JPEG as large as these could be decoded at half and a quarter of its size
SCALES = [(256, 224), (255, 224), (256, 256)]


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def odd_photograph(request, tmp_path):
    """The path of a JPEG of an odd size, and what Pillow alone makes of it."""
    noise(*request.param).save(tmp_path / "odd.jpg", quality=90)
    with Image.open(tmp_path / "odd.jpg") as file:
        return tmp_path / "odd.jpg", file.convert("RGB")


@pytest.mark.parametrize(("scale", "size"), SCALES)
def test_a_centre_view_has_the_pixels_of_torchvision(odd_photograph, scale, size):
    """Of `Resize(scale), CenterCrop(size)`, which weights from torchvision were tested with: bit for bit."""
    path, photograph = odd_photograph
    expected = torchvision_center_crop(torchvision_resize(photograph, scale), size)
    np.testing.assert_array_equal(CentreView(scale, size)(path), np.asarray(expected))


def test_a_normalised_view_has_the_numbers_of_torchvision(odd_photograph):
    """Of `ToTensor(), Normalize(mean, std)` behind them, which divide by 255 first."""
    path, photograph = odd_photograph
    pixels = np.asarray(torchvision_center_crop(torchvision_resize(photograph, 256), 224))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    view = CentreView(mean=np.float32(255 * mean), std=np.float32(255 * std))(path)
    np.testing.assert_allclose(view, (pixels / 255 - mean) / std, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [255, 384])
def test_a_whole_view_has_the_pixels_of_torchvision(odd_photograph, scale):
    path, photograph = odd_photograph
    expected = torchvision_resize(photograph, scale)
    whole, mirrored = WholeView(scale)(path)
    np.testing.assert_array_equal(whole, np.asarray(expected))
    np.testing.assert_array_equal(mirrored, np.asarray(ImageOps.mirror(expected)))


@pytest.mark.parametrize("size", [224, 225, 226])
def test_ten_crops_have_the_pixels_of_torchvision(odd_photograph, size):
    """Of `Resize(256), CenterCrop(256), TenCrop(size)`: the paper takes its corners from the square in the middle."""
    path, photograph = odd_photograph
    square = torchvision_center_crop(torchvision_resize(photograph, 256), 256)
    five, mirrored = torchvision_five_crop(square, size), torchvision_five_crop(ImageOps.mirror(square), size)
    crops = CropsView(corner_boxes, 256, size)(path)
    np.testing.assert_array_equal(crops[:5], np.stack([np.asarray(crop) for crop in five]))
    if size % 2 == 0:  # else the centre of torchvision's mirror image is one pixel off the mirror image of the centre
        ours = {crop.tobytes() for crop in crops[5:]}
        assert ours == {np.asarray(crop).tobytes() for crop in mirrored}


def test_a_grid_of_crops_is_cut_from_the_pixels_of_torchvision(odd_photograph):
    path, photograph = odd_photograph
    scaled = torchvision_resize(photograph, 256)
    crops = CropsView(grid_boxes)(path)
    for crop, box in zip(crops, grid_boxes(scaled.size, 224), strict=False):
        np.testing.assert_array_equal(crop, np.asarray(scaled.crop(box)))
    np.testing.assert_array_equal(crops[12], np.asarray(torchvision_center_crop(scaled, 224)))


@pytest.mark.parametrize("seed", range(8))
def test_a_training_view_is_within_rounding_of_the_crop_of_torchvisions_scaled_photograph(tmp_path, seed):
    """Its crop is scaled alone."""
    photograph = noise(301, 257)
    photograph.save(tmp_path / "odd.png")
    generator = rng(seed)
    scaled = torchvision_resize(photograph, draw_side((256, 300), generator))
    expected = mirror_at_random(np.asarray(scaled.crop(random_box(scaled.size, 224, generator))), generator)
    np.testing.assert_allclose(TrainingView((256, 300))(tmp_path / "odd.png", rng(seed)), expected.astype(int), atol=2)


def test_real_photographs_have_the_pixels_of_torchvision(imagenet_sample):
    paths = ImageFolder(imagenet_sample).paths
    sizes = set()
    for path in paths[::4]:
        with Image.open(path) as file:
            photograph = ImageOps.exif_transpose(file).convert("RGB")
        expected = torchvision_center_crop(torchvision_resize(photograph, 256), 224)
        np.testing.assert_array_equal(CentreView()(path), np.asarray(expected), err_msg=path)
        sizes.add(photograph.size)
    assert len(sizes) > 10


@pytest.mark.parametrize(("sides", "size"), [(223, 224), ((200, 256), 224), ((480, 256), 224), (256, 0)])
def test_a_crop_larger_than_the_photograph_is_an_error(sides, size):
    with pytest.raises(ValueError, match=r"TrainingView: expected 1 <= size <= shorter_side"):
        TrainingView(sides, size)
    with pytest.raises(ValueError, match=r"CentreView: expected 1 <= size <= shorter_side"):
        CentreView(sides, size)
    with pytest.raises(ValueError, match=r"CropsView: expected 1 <= size <= shorter_side"):
        CropsView(corner_boxes, sides, size)
