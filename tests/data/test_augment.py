import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data import (
    CropAndFlip,
    Cutout,
    channel_mean_std,
    normalize,
    per_pixel_mean,
    random_crop,
    random_cutout,
    random_flip,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def some_images(count=8, height=6, width=5, channels=3, dtype=np.uint8):
    return rng(1).integers(1, 256, (count, height, width, channels)).astype(dtype)


def cut_2_pixels(images, rng):
    return random_cutout(images, rng, size=2)


def all_crops(image, padding):
    """Every crop of one padded image, by plain loops."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    shifts = range(2 * padding + 1)
    return [padded[top : top + height, left : left + width] for top in shifts for left in shifts]


@settings(max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    padding=st.integers(0, 4),
    dtype=st.sampled_from([np.uint8, np.float32]),
    seed=st.integers(0, 99),
)
def test_each_crop_is_a_crop_of_its_own_padded_image(shape, padding, dtype, seed):
    images = some_images(*shape, dtype=dtype)
    cropped = random_crop(images, rng(seed), padding)
    assert cropped.shape == images.shape
    assert cropped.dtype == dtype
    for before, after in zip(images, cropped, strict=True):
        assert any(np.array_equal(after, crop) for crop in all_crops(before, padding))


def test_all_crops_of_an_image_are_equally_likely():
    image = some_images(1)
    cropped = random_crop(np.repeat(image, 9000, axis=0), rng(), padding=1)
    counts = [(cropped == crop).all(axis=(1, 2, 3)).sum() for crop in all_crops(image[0], 1)]
    assert sum(counts) == 9000
    assert max(abs(count - 1000) for count in counts) < 150  # five standard deviations


def test_padding_0_crops_nothing():
    np.testing.assert_array_equal(random_crop(some_images(), rng(), padding=0), some_images())


def test_a_flip_mirrors_each_image_left_to_right_or_leaves_it():
    images = some_images(200)
    flipped = random_flip(images, rng())
    kept = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert np.array_equal(kept, ~mirrored)
    assert 65 <= mirrored.sum() <= 135  # 100, five standard deviations


@pytest.mark.parametrize("augment", [random_crop, random_flip, cut_2_pixels])
def test_augmentation_is_decided_by_the_generator_alone(augment):
    images = some_images(50)
    np.testing.assert_array_equal(augment(images, rng(5)), augment(images, rng(5)))
    assert not np.array_equal(augment(images, rng(5)), augment(images, rng(6)))


@pytest.mark.parametrize(
    "function", [random_crop, random_flip, cut_2_pixels, lambda images, _: normalize(images, 9.0, 2.0)]
)
@pytest.mark.parametrize("images", [some_images(), some_images(dtype=np.float32), some_images()[:, ::-1, ::2]])
def test_the_result_is_a_new_contiguous_array_and_the_argument_is_untouched(function, images):
    before = images.copy()
    result = function(images, rng())
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("shape", [(), (3,), (6, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize_is_the_formula_in_float32_for_each_kind_of_statistic(shape, dtype):
    mean, std = rng(2).uniform(50, 200, shape), rng(3).uniform(1, 60, shape)  # float64: must not spread
    images = some_images(dtype=dtype)
    result = normalize(images, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (images.astype(np.float64) - mean) / std, rtol=1e-5, atol=1e-5)


def test_normalize_does_not_wrap_around_below_the_mean():
    dark = np.zeros((1, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(normalize(dark, 100.0), np.full((1, 2, 2, 3), -100, np.float32))


def test_normalized_by_its_own_statistics_an_image_set_has_mean_0_and_deviation_1():
    images = some_images(50)
    result = normalize(images, *channel_mean_std(images))
    np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_the_per_pixel_mean_is_exact_where_8_and_32_bits_overflow():
    images = np.full((70_000, 2, 2, 3), 255, np.uint8)
    images[0] = 0
    expected = np.float32(255 * 69_999 / 70_000)
    np.testing.assert_array_equal(per_pixel_mean(images), np.full((2, 2, 3), expected))


def test_the_per_pixel_mean_has_the_shape_of_an_image_and_ignores_the_order():
    images = some_images(100)
    mean = per_pixel_mean(images)
    assert mean.shape == (6, 5, 3)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, per_pixel_mean(images[::-1]))
    np.testing.assert_allclose(mean[2, 3, 1], images[:, 2, 3, 1].tolist() @ np.full(100, 0.01), rtol=1e-6)


def test_channel_statistics_agree_with_float64():
    images = some_images(300) // np.array([1, 2, 50], np.uint8)  # channels with different spreads
    mean, std = channel_mean_std(images)
    assert (mean.dtype, std.dtype) == (np.float32, np.float32)
    as_float = images.astype(np.float64)
    np.testing.assert_allclose(mean, as_float.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, as_float.std(axis=(0, 1, 2)), rtol=1e-6)


def test_channel_statistics_are_exact_where_32_bits_overflow():
    mean, std = channel_mean_std(np.full((70_000, 2, 2, 3), 255, np.uint8))
    np.testing.assert_array_equal(mean, np.full(3, 255, np.float32))
    np.testing.assert_array_equal(std, np.zeros(3, np.float32))


# CropAndFlip


@settings(max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    padding=st.integers(0, 4),
    statistics=st.sampled_from([(128, 64), (np.arange(1, 361).reshape(6, 5, 12), 1.5), (0.1, np.full(1, 3.7))]),
    seed=st.integers(0, 99),
)
def test_crop_and_flip_as_a_transform_has_the_bits_of_the_three_functions(shape, padding, statistics, seed):
    images = some_images(*shape)
    mean, std = (np.resize(each, shape[1:]) if np.ndim(each) == 3 else each for each in statistics)
    draws = rng(seed)
    expected = random_flip(random_crop(normalize(images, mean, std), draws, padding), draws)
    assert CropAndFlip(mean, std, padding)(images, rng(seed)).tobytes() == expected.tobytes()


def test_what_is_drawn_on_the_host_is_applied_where_the_images_are(to_device, to_host):
    images, mean = some_images(50), rng(3).uniform(0, 255, (6, 5, 3))
    augment, chosen = CropAndFlip(mean, 64.0), rng(4).permutation(50)[:20]
    draws = augment.draw(rng(5), 20)
    expected = augment(images[chosen], rng(5))
    for place in (to_device, lambda draw: draw):  # the draws may be on the device already, or not yet
        y = augment.apply(to_device(images), *map(place, (chosen, *draws)))
        assert type(y) is type(to_device(images))
        assert to_host(y).tobytes() == expected.tobytes()


def test_draws_are_whole_numbers_one_column_for_each_image():
    draws = CropAndFlip(0.0, padding=2).draw(rng(), 1000)
    assert (draws.shape, draws.dtype) == ((3, 1000), np.int64)
    tops, lefts, flips = draws
    assert set(tops) == set(lefts) == set(range(5))
    assert set(flips) == {0, 1}


def test_without_padding_and_flips_an_image_is_normalised_and_no_more():
    images = some_images()
    plain = CropAndFlip(100.0, 2.0, padding=0, flip_probability=0)(images, rng())
    np.testing.assert_array_equal(plain, normalize(images, 100.0, 2.0))


def test_flip_probability_1_mirrors_every_image():
    images = some_images()
    mirrored = CropAndFlip(0.0, padding=0, flip_probability=1)(images, rng())
    np.testing.assert_array_equal(mirrored, images[:, :, ::-1])


def test_a_reflected_border_is_that_of_pytorch(torch):
    """Corner by corner: the crop that is shifted by all of the padding shows two sides of the border."""
    images, padding = some_images(), 3
    augment = CropAndFlip(100.0, 50.0, padding, padding_mode="reflect")
    theirs = torch.from_numpy(normalize(images, 100.0, 50.0)).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(theirs, (padding,) * 4, "reflect").permute(0, 2, 3, 1).numpy()
    count, height, width, _ = images.shape
    for top, left in ((0, 0), (0, 6), (6, 0), (6, 6), (3, 3), (1, 4)):
        draws = np.full(count, top), np.full(count, left), np.zeros(count, int)
        actual = augment.apply(images, np.arange(count), *draws)
        np.testing.assert_array_equal(actual, padded[:, top : top + height, left : left + width])


def test_an_image_that_is_too_small_to_be_reflected_is_an_error():
    augment = CropAndFlip(0.0, padding=5, padding_mode="reflect")
    with pytest.raises(
        ValueError, match=r"CropAndFlip: expected images larger than the padding of 5 pixels, got \(8, 6"
    ):
        augment(some_images(), rng())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": -1}, "expected padding >= 0, got -1"),
        ({"flip_probability": 50}, r"expected flip_probability in \[0, 1\], got 50"),
        ({"padding_mode": "mirror"}, "expected padding_mode 'zeros' or 'reflect', got 'mirror'"),
    ],
)
def test_a_crop_and_flip_that_cannot_be_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=f"^CropAndFlip: {message}"):
        CropAndFlip(0.0, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": some_images(dtype=np.float32)}, r"expected uint8 images .*, got float32 \(8, 6, 5, 3\); pass the"),
        ({"images": some_images()[0]}, r"expected uint8 images .*, got uint8 \(6, 5, 3\)"),
        ({"chosen": [0, 8]}, r"expected chosen in \[0, 8\), got numbers from 0 to 8"),
        ({"chosen": [-1, 2]}, r"expected chosen in \[0, 8\), got numbers from -1 to 2"),
        ({"tops": [0, 9]}, r"expected tops in \[0, 9\), got numbers from 0 to 9"),
        ({"lefts": [-1, 0]}, r"expected lefts in \[0, 9\), got numbers from -1 to 0"),
        ({"flips": [0, 2]}, r"expected flips in \[0, 2\), got numbers from 0 to 2"),
        ({"flips": [0, 1, 1]}, r"expected chosen, .* of one shape .*, got \(2,\), \(2,\), \(2,\), \(3,\)"),
    ],
)
def test_draws_that_do_not_fit_the_images_are_an_error(changes, message):
    arguments = {"images": some_images(), "chosen": [7, 0], "tops": [8, 0], "lefts": [0, 4], "flips": [1, 0]}
    arguments = {name: np.asarray(value) for name, value in (arguments | changes).items()}
    with pytest.raises(ValueError, match=f"^CropAndFlip: .*{message}"):
        CropAndFlip(0.0).apply(**arguments)


# Cutout


def test_a_cutout_is_a_square_of_zeros_that_the_border_clips():
    """A single image, all its 30 centres: rows r - 1, r, r + 1 for size 3, and r - 1, r for size 2."""
    images, height, width = some_images(3000), 6, 5
    for size in (2, 3):
        for before, after in zip(images, random_cutout(images, rng(), size), strict=True):
            rows, columns = np.nonzero((after == 0).all(axis=2))
            kept = np.ones((height, width), bool)
            kept[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = False
            assert len(rows) == (~kept).sum(), "a rectangle"
            assert np.array_equal(after[kept], before[kept]), "nothing else changes"
            for places, length in ((rows, height), (columns, width)):
                first, last = places.min(), places.max()
                clipped = first == 0 or last == length - 1
                assert last - first + 1 == size or (clipped and size // 2 <= last - first + 1 < size)


def test_all_centres_of_a_cutout_are_equally_likely():
    images = np.ones((30_000, 6, 5, 1), np.uint8)
    cut = random_cutout(images, rng(), size=1)[..., 0] == 0
    assert (cut.sum(axis=(1, 2)) == 1).all()
    assert abs(cut.sum(axis=0) - 1000).max() < 160  # five standard deviations


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_cutout_as_a_transform_has_the_bits_of_the_functions(size):
    images, draws = some_images(50), rng(5)
    expected = random_cutout(CropAndFlip(100.0, 64.0)(images, draws), draws, size)
    augment = Cutout(CropAndFlip(100.0, 64.0), size, (6, 5))
    assert augment(images, rng(5)).tobytes() == expected.tobytes()


def test_a_cutout_is_drawn_on_the_host_and_applied_where_the_images_are(to_device, to_host):
    images, augment = some_images(50), Cutout(CropAndFlip(100.0, 64.0), 3, (6, 5))
    chosen, draws = rng(4).permutation(50)[:20], augment.draw(rng(5), 20)
    assert (draws.shape, draws.dtype) == ((5, 20), np.int64)
    expected = augment(images[chosen], rng(5))
    for place in (to_device, lambda draw: draw):
        y = augment.apply(to_device(images), *map(place, (chosen, *draws)))
        assert type(y) is type(to_device(images))
        assert to_host(y).tobytes() == expected.tobytes()


def test_with_cutout_the_crops_and_flips_are_the_same_as_without():
    plain = CropAndFlip(100.0)
    assert np.array_equal(Cutout(plain, 2, (6, 5)).draw(rng(1), 20)[:3], plain.draw(rng(1), 20))


@pytest.mark.parametrize("size", [0, -1, 6])
def test_a_cutout_larger_than_the_image_or_without_a_pixel_is_an_error(size):
    with pytest.raises(ValueError, match=rf"Cutout: expected a size from 1 to 5 for 6x5 images, got {size}"):
        Cutout(CropAndFlip(0.0), size, (6, 5))


def test_a_cutout_of_images_of_another_size_is_an_error():
    with pytest.raises(
        ValueError, match=r"Cutout: expected images of \(32, 32\) pixels as declared, got \(8, 6, 5, 3\)"
    ):
        Cutout(CropAndFlip(0.0), 8, (32, 32))(some_images(), rng())
