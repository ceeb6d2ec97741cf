"""The parts of examples/localize.py and its networks by hand-made numbers, and the script as a user runs it."""

import re
from argparse import Namespace

import localize
import numpy as np
import pytest
from common.boxes import decode, encode
from models.localization import STRIDE, VIEW, box_network, boxes_of_class, euclidean_loss, small_vgg
from models.vgg import DenseVGG
from PIL import Image

from minidl import Tensor, gradcheck, no_grad

TINY = ["--images", 64, "--test-images", 24, "--class-epochs", 1, "--box-epochs", 1]


# -- the loss and the networks -----------------------------------------------------------------------------------------


def test_the_euclidean_loss_by_hand():
    predicted, target = Tensor([[1.0, 0, 0, 0], [0, 2, 0, 1]]), Tensor([[0.0, 0, 0, 0], [0, 0, 0, 0]])
    assert euclidean_loss(predicted, target).item() == (1 + 4 + 1) / (2 * 2)


def test_the_gradient_of_the_euclidean_loss(rng):
    predicted = Tensor(rng.standard_normal((3, 4)), requires_grad=True)
    target = Tensor(rng.standard_normal((3, 4)))
    gradcheck(lambda predicted: euclidean_loss(predicted, target), [predicted])
    euclidean_loss(predicted, target).backward()
    np.testing.assert_allclose(predicted.grad.numpy(), (predicted.numpy() - target.numpy()) / 3)


def test_boxes_and_targets_that_do_not_fit_are_a_clear_error():
    with pytest.raises(ValueError, match=r"the same shape, got \(2, 40\) and \(2, 4\); select one box"):
        euclidean_loss(Tensor(np.zeros((2, 40))), Tensor(np.zeros((2, 4))))


@pytest.mark.parametrize("places", [(), (2, 5)], ids=str)
def test_each_image_gets_the_box_of_its_class(places, rng):
    output, labels = rng.random((3, *places, 8)), np.array([1, 0, 1])
    chosen = boxes_of_class(Tensor(output), labels).numpy()
    expected = np.stack([output[0, ..., 4:], output[1, ..., :4], output[2, ..., 4:]])
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("places", [(), (2, 5)], ids=str)
def test_a_single_box_is_that_of_every_class(places, rng):
    output = rng.random((3, *places, 4))
    np.testing.assert_array_equal(boxes_of_class(Tensor(output), np.array([1, 0, 7])).numpy(), output)


def test_only_the_box_of_the_true_class_has_a_gradient(rng):
    output = Tensor(rng.standard_normal((2, 12)), requires_grad=True)
    labels, target = np.array([2, 0]), Tensor(rng.standard_normal((2, 4)))
    gradcheck(lambda output: euclidean_loss(boxes_of_class(output, labels), target), [output])
    euclidean_loss(boxes_of_class(output, labels), target).backward()
    np.testing.assert_array_equal(output.grad.numpy() != 0, [[False] * 8 + [True] * 4, [True] * 4 + [False] * 8])


@pytest.mark.parametrize("boxes", [1, 10])
def test_a_box_network_starts_with_the_weights_of_the_classification_network_and_a_new_last_layer(boxes):
    classification = small_vgg(10, seed=3)
    before = classification.state_dict()
    network = box_network(classification, boxes, seed=4)
    ours = network.state_dict()
    assert ours.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(before[name], ours[name])}
    assert {name for name in changed if name.endswith("weight")} == {"classifier.2.weight"}
    assert network.classifier[2].weight.shape == (256, 4 * boxes)
    for parameter in network.parameters():
        parameter.data[...] = 0
    assert all(np.array_equal(array, before[name]) for name, array in classification.state_dict().items())


@pytest.mark.parametrize("boxes", [1, 10])
def test_the_dense_network_at_the_training_size_is_the_network(boxes, rng):
    network = box_network(small_vgg(10), boxes).eval()
    images = Tensor(rng.standard_normal((2, VIEW, VIEW, 3), np.float32))
    with no_grad():
        single, dense = network(images).numpy(), DenseVGG(network).places(images).numpy()
    assert dense.shape == (2, 1, 1, 4 * boxes)
    np.testing.assert_allclose(dense[:, 0, 0], single, rtol=1e-4, atol=1e-5)


def test_the_next_place_of_the_dense_network_is_a_stride_away(rng):
    """An image moved by one stride has its map moved by one place, but for what the padding at the edges reaches."""
    network = box_network(small_vgg(10), 1).eval()
    image = rng.standard_normal((1, 176, 176, 3)).astype(np.float32)
    with no_grad():
        here, moved = (DenseVGG(network).places(Tensor(view)).numpy()[0] for view in (image, image[:, STRIDE:]))
    assert here.shape == (9, 9, 4)
    np.testing.assert_allclose(here[3:6, 2:7], moved[2:5, 2:7], rtol=1e-3, atol=1e-5)
    assert abs(here[3:6, 2:7] - moved[3:6, 2:7]).max() > 1e-2


# -- the data ----------------------------------------------------------------------------------------------------------


def test_placed_shapes_depend_on_seed_split_and_size_alone():
    short, long = (localize.make_placed_shapes(count, 64, 8, seed=1) for count in (3, 6))
    for ours, theirs in zip(vars(short).values(), vars(long.first(3)).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    others = [localize.make_placed_shapes(3, 64, 8, seed=2), localize.make_placed_shapes(3, 64, 8, seed=1, train=False)]
    assert not any(np.array_equal(short.images, other.images) for other in others)


def test_placed_shapes_stay_within_the_margin_and_have_all_sizes():
    data = localize.make_placed_shapes(200, 64, 8)
    assert data.images.shape == (200, 64, 64, 3) and data.images.dtype == np.uint8
    assert data.boxes.min() > 7.9 and data.boxes.max() < 56.1
    sides = np.maximum(data.boxes[:, 2] - data.boxes[:, 0], data.boxes[:, 3] - data.boxes[:, 1])
    assert 12 < sides.min() < 19 and 33 < sides.max() < 36.1
    assert set(data.labels) == set(range(10))


def test_a_view_takes_its_box_along():
    data = localize.make_placed_shapes(3, 64, 8)
    views, boxes = data.views(np.array([2, 0]), lefts=np.array([5, 16]), tops=np.array([1, 0]))
    np.testing.assert_array_equal(views[0], localize.prepare(data.images[2, 1:49, 5:53]))
    np.testing.assert_array_equal(views[1], localize.prepare(data.images[0, 0:48, 16:64]))
    np.testing.assert_array_equal(boxes, [data.boxes[2] - [5, 1, 5, 1], data.boxes[0] - [16, 0, 16, 0]])


def test_random_views_reach_all_places_and_no_further(monkeypatch):
    data, rng, seen = localize.make_placed_shapes(1, 64, 8), np.random.default_rng(0), []
    monkeypatch.setattr(data, "views", lambda rows, lefts, tops: seen.append((lefts, tops)))
    data.random_views(np.zeros(3000, int), rng)
    for corners in seen[0]:
        np.testing.assert_array_equal(np.unique(corners), np.arange(17))


# -- the two protocols -------------------------------------------------------------------------------------------------


def perfect(data, labels):
    """Stands for a box network: a box for each class of a central view, of which only the true class's is right."""

    def network(views):
        outputs = np.full((len(views), 10, 4), 9.0)
        _, boxes = data.central_views()
        outputs[np.arange(len(views)), labels] = encode(boxes, VIEW)
        return Tensor(outputs.reshape(len(views), 40))

    network.training, network.eval, network.train = True, lambda: None, lambda mode: None
    return network


def test_the_central_box_is_that_of_the_true_class_in_pixels_of_the_image():
    data = localize.make_placed_shapes(5, 64, 8)
    np.testing.assert_allclose(localize.central_boxes(perfect(data, data.labels), data), data.boxes)
    assert not np.allclose(localize.central_boxes(perfect(data, (data.labels + 1) % 10), data), data.boxes)


def maps_of(truth, boxes, rows=2, columns=3):
    """(rows, columns, 4 * boxes): every place says where the truth is, as seen from there."""
    row, column = STRIDE * np.indices((rows, columns))
    seen = truth - np.stack([column, row, column, row], axis=-1)
    return np.tile(encode(seen, VIEW), boxes)


@pytest.mark.parametrize("boxes", [1, 4])
def test_places_that_agree_give_their_box_and_the_class_with_the_highest_sum(boxes):
    truth, scores = np.array([20.0, 10, 40, 44]), np.zeros((2, 3, 4))
    scores[..., 1], scores[0, 0, 3] = 0.3, 0.9
    label, box = localize.localise(scores, maps_of(truth, boxes))
    assert label == 1  # 6 * 0.3 > 0.9
    np.testing.assert_allclose(box, truth)


def test_each_class_has_its_own_boxes():
    truth, scores = np.array([20.0, 10, 40, 44]), np.zeros((2, 3, 4))
    scores[..., 2] = 1
    maps = maps_of(truth, 4)
    maps[..., :8] = maps[..., 12:] = 5
    np.testing.assert_allclose(localize.localise(scores, maps)[1], truth)


def test_a_place_that_disagrees_is_outvoted():
    truth, scores = np.array([20.0, 10, 40, 44]), np.full((2, 3, 4), 0.1)
    scores[..., 0] = 0.5
    maps = maps_of(truth, 1)
    maps[0, 0] = encode([200, 200, 210, 210], VIEW)
    label, box = localize.localise(scores, maps)
    assert label == 0
    np.testing.assert_allclose(box, truth)


def test_classes_are_compared_by_their_best_box():
    """Class 0: five places agree and one does not, 5 * 0.3; class 1: all agree, 6 * 0.1."""
    truth, scores = np.array([20.0, 10, 40, 44]), np.zeros((2, 3, 2))
    scores[..., 0], scores[..., 1] = 0.3, 0.1
    maps = maps_of(truth, 2)
    maps[1, 1, :4] = encode([200, 200, 210, 210], VIEW)
    assert localize.localise(scores, maps)[0] == 0


@pytest.mark.parametrize("boxes", [1, 10])
def test_an_image_with_a_single_place_gets_its_most_likely_class_and_that_ones_box(boxes):
    data = localize.make_placed_shapes(6, VIEW, 0)
    classes = small_vgg(10, seed=1)
    network = box_network(classes, boxes, seed=2)
    labels, found = localize.whole_image(classes, network, data)
    images = Tensor(localize.prepare(data.images))
    with no_grad():
        expected = classes.eval()(images).argmax(dim=1).numpy()
        targets = boxes_of_class(network.eval()(images), expected).numpy()
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(found, decode(targets, VIEW), rtol=1e-3, atol=1e-3)


def test_the_report_counts_what_is_right(monkeypatch):
    """Of four: the central box is right once; the whole image's three times, twice with the class."""
    data = localize.make_placed_shapes(4, 64, 8)
    central, whole, labels = data.boxes + 100, data.boxes.copy(), data.labels.copy()
    central[2], whole[0] = data.boxes[2], 0
    labels[:2] = (labels[:2] + 1) % 10
    monkeypatch.setattr(localize, "central_boxes", lambda boxes, data: central)
    monkeypatch.setattr(localize, "whole_image", lambda classes, boxes, data: (labels, whole))
    assert localize.report(None, None, data).split() == ["25.0%", "75.0%", "50.0%"]


# -- the script --------------------------------------------------------------------------------------------------------


def results(output):
    """The last lines, without the time that the training took."""
    return re.findall(r"^\d\d pixels, .*$", output, re.MULTILINE)


def test_localize_runs_and_draws(run, tmp_path):
    status, output = run(localize, *TINY, "--out", tmp_path / "new")
    assert status == 0
    assert "per-class boxes" in output
    lines = results(output)
    assert [line.split(",")[0] for line in lines] == ["64 pixels", "96 pixels"]
    assert all(re.search(r"(\s+\d+\.\d%){3}$", line) for line in lines)
    with Image.open(tmp_path / "new" / "boxes.png") as picture:
        assert picture.size == (1000, 1300)


def test_a_single_box_and_few_images_are_enough_and_the_same_seed_gives_the_same_results(run):
    options = "--boxes", "single", "--images", 70, "--test-images", 1, "--class-epochs", 1, "--box-epochs", 2
    (_, first), (_, again) = run(localize, *options), run(localize, *options)
    assert "single boxes" in first
    assert results(first) == results(again) != []


def test_training_learns_where_a_shape_is():
    """A few steps on a few images: the loss falls, so labels, views and boxes belong together."""
    data = localize.make_placed_shapes(16, 64, 8)
    network = box_network(small_vgg(10), 10)
    before = localize.localisation_error(localize.central_boxes(network, data), data.boxes)
    localize.learn_boxes(network, data, Namespace(box_epochs=40, box_lr=0.05, seed=0))
    after = localize.localisation_error(localize.central_boxes(network, data), data.boxes)
    assert before > 0.9
    assert after < 0.5
