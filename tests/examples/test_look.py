"""examples/look.py and examples/looking: what each method promises, and what bad input gets."""

import re
import shlex
import sys

import look
import numpy as np
import pytest
from looking.features import (
    ascend,
    blurred,
    deep_dream,
    grey_noise,
    invert,
    maximise_channels,
    maximise_classes,
    total_variation,
)
from looking.gradients import class_scores, fgsm, image_gradient, saliency, sign_of_gradient, smallest_step, smooth_grad
from looking.maps import class_activation_map, grad_cam
from looking.network import OnPixels, UnsuitedError, feature_maps, last_convolution, last_of_each_size, layers_of_style
from looking.pictures import read_pixels
from looking.style import content_loss, gram, style_loss, transfer_style
from models.config import NetworkConfig
from models.resnet import cifar_resnet
from models.vgg import vgg
from PIL import Image

from minidl import FeatureExtractor, Tensor, fork_rng, no_grad, save_checkpoint
from minidl.data import CentreView, normalize
from minidl.functional import cross_entropy
from minidl.nn import AvgPool2d, Conv2d, Flatten, GlobalAvgPool, Linear, MaxPool2d, ReLU, Sequential
from tests.examples.tools import ROOT, run_main

NAMES = tuple("abcdef")
MEAN = np.array([120, 110, 100], np.float32)


@pytest.fixture
def images(rng):
    """Two smooth images of 32 x 32 pixels: enlarged ones of 8 x 8."""
    return rng.random((2, 8, 8, 3), dtype=np.float32).repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture
def resnet():
    """An untrained ResNet of 8 layers on pixels."""
    return OnPixels(cifar_resnet(8, num_classes=6, seed=1), MEAN, 64.0)


def smooth_network(dtype="float64"):
    """A small network in which finite differences are accurate: no ReLU is near 0 at every pixel."""
    with fork_rng(3):
        network = Sequential(
            Conv2d(3, 8, 3, padding=1), ReLU(), AvgPool2d(2), Conv2d(8, 8, 3), GlobalAvgPool(), Linear(8, 5)
        )
    return network.to(dtype).eval()


# -- gradients of the image --------------------------------------------------------------------------------------------


def test_the_gradient_of_the_image_is_that_of_finite_differences(rng):
    model, images, classes = smooth_network(), rng.random((2, 6, 6, 3)), np.array([4, 1])
    grad, step = image_gradient(model, images, classes), 1e-6
    for place in zip(*(rng.integers(0, n, 20) for n in images.shape), strict=True):
        scores = []
        for sign in (1, -1):
            moved = images.copy()
            moved[place] += sign * step
            scores.append(model(Tensor(moved)).numpy()[place[0], classes[place[0]]])
        assert grad[place] == pytest.approx((scores[0] - scores[1]) / (2 * step), rel=1e-6, abs=1e-9)
    np.testing.assert_array_equal(saliency(model, images, classes), np.abs(grad).max(axis=3))


def test_smooth_grad_without_noise_is_saliency(resnet, images):
    classes = np.array([0, 5])
    smooth = smooth_grad(resnet, images, classes, noise=0.0, samples=3)
    np.testing.assert_allclose(smooth, saliency(resnet, images, classes), rtol=1e-5)
    noisy = smooth_grad(resnet, images, classes, noise=0.2, samples=3)
    assert np.abs(noisy - smooth).max() > 0.1 * smooth.max()


def test_smooth_grad_is_the_mean_over_its_samples(images):
    model, classes = smooth_network("float32"), np.array([2, 3])
    rng, total = np.random.default_rng(7), 0
    for _ in range(4):
        noise = np.float32(0.3) * rng.standard_normal(images.shape, dtype=np.float32)
        total = total + image_gradient(model, images + noise, classes)
    smooth = smooth_grad(model, images, classes, noise=0.3, samples=4, seed=7)
    np.testing.assert_allclose(smooth, np.abs(total / 4).max(axis=3), rtol=1e-5)


def test_the_network_on_pixels_normalises_as_in_training(images):
    network = cifar_resnet(8, num_classes=6, seed=1).eval()
    std = np.array([60, 61, 62], np.float32)
    pixels = np.uint8(255 * images)
    expected = network(Tensor(normalize(pixels, MEAN, std))).numpy()
    np.testing.assert_allclose(
        OnPixels(network, MEAN, std)(Tensor(np.float32(pixels) / 255)).numpy(), expected, atol=1e-5
    )
    assert [name for name, _ in OnPixels(network, MEAN, std).named_modules()] == [n for n, _ in network.named_modules()]


def test_looking_leaves_the_network_as_it_is(resnet, images):
    before = {name: array.copy() for name, array in resnet.network.state_dict().items()}
    classes = np.array([1, 2])
    grad_cam(resnet, images, classes, "layer3")
    invert(resnet, images, "layer1", steps=2)
    maximise_classes(resnet, classes, 32, steps=2)
    after = resnet.network.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in resnet.network.parameters())


# -- the fast gradient sign method -------------------------------------------------------------------------------------


def loss(model, images, labels):
    with no_grad():
        return float(cross_entropy(model(Tensor(images)), labels))


def test_a_step_along_the_sign_raises_the_loss(resnet, images):
    labels = np.array([3, 4])
    changed = fgsm(resnet, images, labels, 1 / 255)
    assert loss(resnet, changed, labels) > loss(resnet, images, labels)
    assert np.abs(changed - images).max() <= 1 / 255 + 1e-7
    assert changed.min() >= 0 and changed.max() <= 1
    inside = (images > 0.01) & (images < 0.99)
    expected = np.sign(changed - images)
    np.testing.assert_array_equal(expected[inside], sign_of_gradient(resnet, images, labels)[inside])


def test_the_step_that_is_found_is_the_smallest_on_its_grid():
    """Two classes, and scores that are linear in the image: the answer changes where s_0 = s_1."""
    model = Sequential(Flatten(), Linear(12, 2))
    model[1].weight.data[...] = np.array([1.0, -1.0]) * np.ones((12, 1))
    model[1].bias.data[...] = (0.0, 12.0)  # s_0 - s_1 = 2 sum(x) - 12 = 24 (mean(x) - 0.5)
    image = np.full((2, 2, 3), 0.575, np.float32)
    steps = np.arange(1, 33) / 255
    step, changed = smallest_step(model, image, steps)
    assert step == 20 / 255  # 0.575 - 19/255 = 0.5005, 0.575 - 20/255 = 0.4966
    np.testing.assert_allclose(changed, image - 20 / 255, atol=1e-6)
    assert smallest_step(model, image, steps[:19]) is None


def test_it_agrees_with_trying_each_step(resnet, images):
    steps = np.arange(1, 33) / 255
    for image in images:
        answer = resnet(Tensor(image[None])).argmax(dim=1).numpy()
        changes = [
            resnet(Tensor(fgsm(resnet, image[None], answer, step))).argmax(dim=1).numpy() != answer for step in steps
        ]
        found = smallest_step(resnet, image, steps)
        assert (found is None) == (not any(changes))
        assert found is None or found[0] == steps[int(np.argmax(changes))]


# -- class maps --------------------------------------------------------------------------------------------------------


def hand_made():
    """Channel 0 sees red, channel 1 sees blue; class 0 is red less blue, class 1 is twice blue."""
    network = Sequential(Conv2d(3, 2, 1, bias=False), ReLU(), GlobalAvgPool(), Linear(2, 2))
    network[0].weight.data[...] = np.array([[1, 0], [0, 0], [0, 1]], np.float32).reshape(1, 1, 3, 2)
    network[3].weight.data[...] = np.array([[1, 0], [-1, 2]], np.float32)
    network[3].bias.data[...] = (5, 7)
    return network.eval()


def test_the_maps_of_a_network_made_by_hand(rng):
    images = rng.random((2, 4, 5, 3), dtype=np.float32)
    red, blue = images[..., 0], images[..., 2]
    classes = np.array([0, 1])
    expected = np.stack([(red - blue)[0], (2 * blue)[1]])
    np.testing.assert_allclose(class_activation_map(hand_made(), images, classes), expected, rtol=1e-6)
    expected = np.maximum(expected, 0) / 20  # dS/dA_k = w_k / 20, as the pooling divides by 4 x 5 pixels
    np.testing.assert_allclose(grad_cam(hand_made(), images, classes, "1"), expected, rtol=1e-5, atol=1e-8)


def test_the_mean_of_a_class_activation_map_is_the_score_less_the_bias(resnet, images):
    resnet.network.fc.bias.data[...] = np.arange(6)
    classes = np.array([2, 5])
    maps = class_activation_map(resnet, images, classes)
    scores = resnet(Tensor(images)).numpy()[np.arange(2), classes]
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), scores - classes, rtol=1e-3, atol=1e-5)


def test_grad_cam_is_the_positive_part_of_cam_divided_by_the_pixels(resnet, images):
    """Section 3 of the paper: for networks with global average pooling, Grad-CAM generalises CAM."""
    classes = np.array([1, 4])
    cam = class_activation_map(resnet, images, classes)
    pixels = cam[0].size
    assert (cam > 0).any() and (cam < 0).any()
    found = grad_cam(resnet, images, classes, "layer3")
    np.testing.assert_allclose(found, np.maximum(cam, 0) / pixels, rtol=1e-4, atol=1e-6 * np.abs(cam).max())


def test_grad_cam_of_a_network_without_batch_norm_and_average_pooling(images):
    """Max-pooling sends the gradient of each channel, a weight of the linear layer, to one of four pixels."""
    network = vgg("A", num_classes=3, image_size=32).eval()
    classes = np.arange(len(images)) % 3
    with no_grad():
        features = FeatureExtractor(network, "features.19")(Tensor(images)).numpy()  # (N, 2, 2, 512)
    weights = network.classifier.state_dict()["1.weight"][classes] / 4  # (N, 512)
    expected = np.maximum(np.einsum("nhwk,nk->nhw", features, weights), 0)
    np.testing.assert_allclose(grad_cam(network, images, classes, "features.19"), expected, rtol=1e-4, atol=1e-7)


def test_cam_needs_global_average_pooling_before_the_last_layer(images):
    pooled_early = Sequential(Conv2d(3, 4, 3), GlobalAvgPool(), Linear(4, 4), ReLU(), Linear(4, 2))
    for network in (vgg("A", num_classes=3, image_size=32), pooled_early):
        with pytest.raises(
            UnsuitedError, match="expected a network that ends with the layers GlobalAvgPool and Linear"
        ):
            class_activation_map(network.eval(), images, np.array([0, 0]))


def test_the_layer_of_grad_cam_is_the_last_with_the_pixels_of_the_last_convolution(resnet, images):
    assert last_convolution(resnet, feature_maps(resnet, images)) == "layer3"
    network = vgg("A", num_classes=3, image_size=32).eval()
    assert last_convolution(network, feature_maps(network, images)) == "features.19"  # the ReLU; 20 is the pooling
    flat = Sequential(MaxPool2d(2), Flatten(), Linear(16 * 16 * 3, 2))
    with pytest.raises(UnsuitedError, match="expected a network with a convolution"):
        last_convolution(flat, feature_maps(flat, images))


def test_layers_are_known_by_size_and_order(resnet, images):
    maps = feature_maps(resnet, images)
    assert list(maps)[:3] == ["conv1", "bn1", "layer1.0.conv1"]
    assert maps["layer2"] == (16, 16, 32)
    assert {"avgpool", "fc"}.isdisjoint(maps)
    assert last_of_each_size(maps) == ["layer1", "layer2", "layer3"]
    assert layers_of_style(maps)[0] == "bn1"
    assert layers_of_style({"only": (1, 1, 1)}) == ["only"] * 4


# -- images from features ----------------------------------------------------------------------------------------------


def test_the_total_variation_has_the_formulas_value():
    image = np.zeros((1, 2, 3, 3), np.float32)
    image[0, 0, 1] = (1, 2, 0)  # differs by 5 (squared) from three neighbours
    assert float(total_variation(Tensor(image))) == pytest.approx(3 * 5 / 6)


def test_an_inverted_image_comes_closer_to_the_features(resnet, images):
    found, losses = invert(resnet, images, "layer1", steps=60, smoothness=0.0)
    assert losses[-1] < 0.2 * losses[0]
    noise = np.random.default_rng(0).uniform(0.4, 0.6, images.shape)
    assert np.abs(found - images).mean() < 0.7 * np.abs(noise - images).mean()
    assert found.min() >= 0 and found.max() <= 1
    rough, smooth = (invert(resnet, images, "layer1", steps=30, smoothness=s)[0] for s in (0.0, 50.0))
    assert float(total_variation(Tensor(smooth))) < float(total_variation(Tensor(rough)))


def test_the_first_loss_of_an_inversion_is_that_of_the_noise(images):
    model = hand_made()
    _, losses = invert(model, images, "0", steps=1, smoothness=2.0, seed=4)
    noise = np.random.default_rng(4).uniform(0.4, 0.6, images.shape).astype(np.float32)
    seen = [0, 2]  # the colours that the layer sees
    distance = ((noise - images)[..., seen] ** 2).sum() / (images[..., seen] ** 2).sum()
    assert losses[0] == pytest.approx(distance + 2 * float(total_variation(Tensor(noise))), rel=1e-5)


def without_strides():
    """An untrained network that sees a shifted image as it sees the image, but for the border."""
    with fork_rng(5):
        layers = [Conv2d(3, 8, 3, padding=1), ReLU(), Conv2d(8, 8, 3, padding=1), ReLU(), GlobalAvgPool(), Linear(8, 4)]
    return Sequential(*layers).eval()


def test_images_of_classes_excite_them():
    model, classes = without_strides(), np.arange(4)
    found, scores = maximise_classes(model, classes, 16, steps=20, smoothness=0.0)
    assert found.shape == (4, 16, 16, 3) and found.min() >= 0 and found.max() <= 1
    assert (np.diff(scores) > 0).mean() > 0.9 and scores[-1] > scores[0] + 0.1
    with no_grad():
        before, after = (class_scores(model(Tensor(x)), classes).numpy() for x in (grey_noise(4, 16, seed=0), found))
    assert (after > before).all()


def test_images_of_channels_excite_them():
    model, channels = without_strides(), np.array([1, 4, 6])
    found, scores = maximise_channels(model, "2", channels, 16, steps=20, smoothness=0.0)
    assert (np.diff(scores) > 0).mean() > 0.9 and scores[-1] > scores[0] + 0.1
    smooth, _ = maximise_channels(model, "2", channels, 16, steps=20, smoothness=100.0)
    assert float(total_variation(Tensor(smooth))) < 0.5 * float(total_variation(Tensor(found)))


def test_ascent_is_steady_where_the_image_is_not_shifted(resnet, images):
    classes = np.array([0, 3])
    _, scores = ascend(lambda x: class_scores(resnet(x), classes).mean(), images, 10, jitter=0)
    assert (np.diff(scores) > 0).all()
    np.testing.assert_array_equal(blurred(np.ones((1, 4, 4, 3)), 3), 1)
    point = np.zeros((1, 5, 5, 1))
    point[0, 2, 2] = 16
    np.testing.assert_array_equal(blurred(point, 1)[0, 1:4, 1:4, 0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])


def test_a_dream_makes_the_layer_more_active(resnet, images):
    found, scores = deep_dream(resnet, images, "layer2", steps=10)
    assert scores[-1] > 1.2 * scores[0]
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1


# -- style -------------------------------------------------------------------------------------------------------------


def test_the_losses_of_style_transfer_have_the_formulas_values(rng):
    ours, theirs = (rng.random((1, 3, 5, 4)) for _ in range(2))
    gram_of = lambda x: np.array([[(x[0, ..., i] * x[0, ..., j]).sum() for j in range(4)] for i in range(4)])  # noqa: E731
    np.testing.assert_allclose(gram(Tensor(ours)).numpy(), gram_of(ours), rtol=1e-12)
    assert float(content_loss(Tensor(ours), Tensor(theirs))) == pytest.approx(((ours - theirs) ** 2).sum() / 2)
    expected = ((gram_of(ours) - gram_of(theirs)) ** 2).sum() / (4 * 4**2 * 15**2)
    assert float(style_loss(Tensor(ours), gram(Tensor(theirs)))) == pytest.approx(expected)


def test_the_picture_takes_on_the_style(resnet):
    content, style = (read_pixels(source, 40)[None] for source in ("shapes:3", "pattern:strokes"))
    layers = ["bn1", "layer1.0"]
    picture, curves = transfer_style(resnet, content, style, "layer2", layers, steps=30)
    assert picture.shape == content.shape and picture.min() >= 0 and picture.max() <= 1
    assert curves["style"][-1] < 0.3 * curves["style"][0]
    assert curves["content"][0] == 0  # it starts from the content
    assert len(curves["content"]) == len(curves["style"]) == 30
    _, weak = transfer_style(resnet, content, style, "layer2", layers, steps=30, style_weight=0.01, smoothness=0.0)
    assert weak["content"][-1] < 0.1 * curves["content"][-1]


def test_features_that_are_all_0_are_no_error():
    """A black picture has no features in layers without bias."""
    network, black = hand_made(), np.zeros((1, 8, 8, 3), np.float32)
    assert np.isfinite(invert(network, black, "0", steps=2)[1]).all()
    picture, curves = transfer_style(network, black, black, "1", ["0"], steps=2)
    assert np.isfinite(picture).all() and np.isfinite([*curves["content"], *curves["style"]]).all()


def test_style_takes_images_that_only_the_last_layers_refuse():
    """The fully connected layer of this VGG takes 32 x 32 pixels. The content layer is the deepest here."""
    model = OnPixels(vgg("A", num_classes=3, image_size=32), MEAN, 64.0)
    picture = np.full((1, 64, 64, 3), 0.3, np.float32)
    with pytest.raises(ValueError):
        model(Tensor(picture))
    found, _ = transfer_style(model, picture, picture + 0.5, "features.7", ["features.4", "features.1"], steps=1)
    assert found.shape == picture.shape


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_a_photograph_is_read_as_predict_reads_it(tmp_path, rng):
    for mode, shape in (("RGB", (40, 60, 3)), ("L", (40, 60))):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save(tmp_path / f"{mode}.png")
        found = read_pixels(str(tmp_path / f"{mode}.png"), 32)
        np.testing.assert_array_equal(np.uint8(np.rint(255 * found)), CentreView(32, 32)(tmp_path / f"{mode}.png"))
        assert found.dtype == np.float32 and found.shape == (32, 32, 3)


def test_a_cmyk_photograph_has_its_colours(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    np.testing.assert_allclose(read_pixels(str(tmp_path / "red.jpg"), 32)[16, 16], (1, 0, 0), atol=0.03)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_picture_is_put_on_white(tmp_path, mode):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))  # black, which nobody sees
    image.paste((0, 0, 0, 255), (0, 0, 40, 20))
    image.convert(mode).save(tmp_path / "half.png")
    found = read_pixels(str(tmp_path / "half.png"), 40)
    np.testing.assert_allclose(found[5], 0, atol=0.01)
    np.testing.assert_allclose(found[35], 1, atol=0.01)


@pytest.mark.parametrize("source", ["shapes:0", "shapes:3", "pattern:mosaic", "pattern:strokes"])
def test_drawn_pictures_are_the_same_each_time_and_not_empty(source):
    picture = read_pixels(source, 48)
    assert picture.shape == (48, 48, 3) and picture.std() > 0.05
    np.testing.assert_array_equal(picture, read_pixels(source, 48))


def test_the_images_of_cifar10(real_cifar10):
    from minidl.data import load_cifar10

    expected = load_cifar10(real_cifar10, train=False).images[3]
    np.testing.assert_array_equal(np.uint8(np.rint(255 * read_pixels("cifar10:3", 32, real_cifar10))), expected)


# -- the script --------------------------------------------------------------------------------------------------------


def save_network(path, name, builder, network=None, **arguments):
    """A checkpoint that describes its network."""
    arguments |= {"num_classes": len(NAMES)}
    config = NetworkConfig(name, builder, arguments, NAMES, None, shorter_side=32, size=32, mean=MEAN, std=64.0)
    save_checkpoint(path, config.build(seed=1), None, {"network": config.to_json()}, config.arrays())
    return path


@pytest.fixture
def weights(tmp_path):
    """The folder of a run."""
    (tmp_path / "run").mkdir()
    save_network(tmp_path / "run" / "checkpoint.safetensors", "resnet8", "cifar_resnet", depth=8)
    return tmp_path / "run"


@pytest.fixture
def run(weights, tmp_path, capsys):
    """run(*options): (exit status or message, stdout, stderr) of look.py."""

    def run(*options, weights=weights):
        status, output, errors = run_main(look, ["--weights", weights, "--out", tmp_path / "looks", *options], capsys)
        assert "Traceback" not in errors
        return status, output, errors

    return run


def test_one_command_draws_a_picture_of_each_method(run, tmp_path):
    options = ["--images", "shapes:0", "shapes:1", "--style", "pattern:mosaic", "--steps", 2, "--size", 32]
    status, output, _ = run(*options)
    assert status == 0
    names = ["maps.png", "fgsm.png", "invert.png", "maximise.png", "dream.png", "style.png"]
    assert output.splitlines() == [str(tmp_path / "looks" / name) for name in names]
    for name in names:
        with Image.open(tmp_path / "looks" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    assert sorted(path.name for path in (tmp_path / "looks").iterdir()) == sorted(names)


def test_two_runs_draw_the_same(run, tmp_path):
    options = ["--images", "shapes:0", "--methods", "smoothgrad", "maximise", "--steps", 2]
    contents = []
    for _ in range(2):
        assert run(*options)[0] == 0
        contents.append([(tmp_path / "looks" / name).read_bytes() for name in ("maps.png", "maximise.png")])
    assert contents[0] == contents[1]


def test_a_layer_and_a_class_can_be_chosen(run, monkeypatch):
    seen = []

    def note(model, images, classes, layer):
        seen.extend([classes.tolist(), layer])
        return images[..., 0]

    monkeypatch.setattr(look, "grad_cam", note)
    assert run("--images", "shapes:0", "--methods", "gradcam", "--layer", "layer1.0", "--class", 4)[0] == 0
    assert seen == [[4], "layer1.0"]
    status, output, _ = run("--images", "shapes:0", "--methods", "maximise", "--layer", "layer1", "--steps", 1)
    assert status == 0 and "maximise.png" in output


def test_methods_that_do_not_suit_the_network_are_left_out_or_an_error(run, tmp_path):
    path = save_network(tmp_path / "vgg.safetensors", "vgg-A", "vgg", config="A", image_size=32)
    options = ["--images", "shapes:0", "--steps", 1, "--size", 32]
    status, output, _ = run(*options, weights=path)
    assert status == 0
    assert "left out: cam: expected a network that ends with the layers GlobalAvgPool and Linear" in output
    assert "maps.png" in output
    status, output, errors = run(*options, "--methods", "cam", weights=path)
    assert status == 2 and "look: error: cam: expected" in errors.splitlines()[-1] and not output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "layer9"], "--layer: expected one of conv1, bn1, layer1.0.conv1"),
        (["--layer", "fc"], "--layer: expected one of conv1"),
        (
            ["--methods", "style", "--style", "shapes:0", "--style-layers", "nine"],
            "--style-layers: expected one of conv1",
        ),
        (["--class", 6], "--class: expected a number from 0 to 5, as the network has 6 classes, got 6"),
        (["--class", -1], "expected a whole number >= 0, got -1"),
        (["--methods", "style"], "pass the picture with the style"),
        (["--methods", "x-ray"], "invalid choice"),
        (["--steps", 0], "expected a whole number >= 1"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(run, tmp_path, options, message):
    status, output, errors = run("--images", "shapes:0", *options)
    assert status == 2
    assert message in errors
    assert not output and not (tmp_path / "looks").exists()


def test_a_folder_that_cannot_be_made_is_an_error_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "PICTURES", None)
    (tmp_path / "file").write_text("")
    status, output, errors = run("--images", "shapes:0", "--methods", "cam", "--out", tmp_path / "file" / "looks")
    assert status == 2 and not output
    assert "Not a directory" in errors


def bad_picture(kind, folder):
    """(option, what the message says)."""
    path = folder / "picture.png"
    if kind == "text":
        path.write_text("no image")
        return path, f"read_pixels: {path} is damaged or no image; pass JPEG or PNG files"
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:1000])
        return path, f"{path} is damaged or no image"
    if kind == "small":
        Image.new("RGB", (60, 31)).save(path)
        return path, f"read_pixels: expected at least 32 x 32 pixels, which the network needs, got 60 x 31 in {path}"
    if kind == "missing":
        return path, "No such file"
    if kind == "empty":
        (folder / "empty").mkdir()
        return folder / "empty", "no image in"
    return kind, "read_pixels: expected"


@pytest.mark.parametrize(
    "kind",
    ["text", "truncated", "small", "missing", "empty", "shapes:1000", "shapes:x", "cifar10:10000", "pattern:dots"],
)
def test_pictures_that_cannot_be_read_are_errors_of_one_line(run, tmp_path, kind):
    path, message = bad_picture(kind, tmp_path)
    for options in (["--images", path], ["--images", "shapes:0", "--methods", "style", "--style", path, "--steps", 1]):
        if kind in ("small", "empty") and "--style" in options:
            continue  # a picture of style may be small, and is one file
        status, output, errors = run(*options)
        assert status == 2 and message in errors.splitlines()[-1]
        assert not output and not (tmp_path / "looks").exists()


def test_weights_that_are_not_there_or_no_weights_are_errors(run, tmp_path):
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "folder").mkdir()
    for path, message in (("missing", "no file, folder"), ("folder", "has neither"), ("text", "load_checkpoint")):
        status, output, errors = run("--images", "shapes:0", weights=tmp_path / path)
        assert status == 2 and message in errors and str(tmp_path / path) in errors.splitlines()[-1]
        assert not output and not (tmp_path / "looks").exists()


def test_without_weights_images_or_out_it_says_what_is_missing(capsys):
    status, _, errors = run_main(look, [], capsys)
    assert status == 2 and "--weights, --images, --out" in errors


def test_a_file_in_place_of_the_folder_is_found_before_the_work(run, tmp_path):
    (tmp_path / "looks").write_text("a file")
    status, _, errors = run("--images", "shapes:0")
    assert status == 2 and "--out: expected a folder, got the file" in errors
    assert (tmp_path / "looks").read_text() == "a file"


def test_without_matplotlib_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, _ = run("--images", "shapes:0")
    assert status == "error: import of matplotlib halted; None in sys.modules: pip install matplotlib"


# -- the chapter -------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_chapter_draw_its_figures():
    """One of them is for the reader's own photograph; each of the others draws a figure."""
    text = (ROOT / "docs" / "chapters" / "what-it-sees.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"^\$ python examples/look\.py (.*)$", text, re.MULTILINE)
    drawn = set()
    for command in commands:
        args = look.options_parser().parse_args(shlex.split(command))
        if all(image.startswith("cifar10:") for image in args.images):
            drawn |= {name for name, (_, methods) in look.PICTURES.items() if set(methods) & set(args.methods)}
    assert len(commands) == 7
    assert drawn == look.PICTURES.keys()
    assert sorted(re.findall(r"^```{figure} \.\./figures/looks/(.*)$", text, re.MULTILINE)) == sorted(drawn)
    folder = ROOT / "docs" / "figures" / "looks"
    assert {path.name for path in folder.iterdir()} == drawn
    assert all(path.stat().st_size < 300_000 for path in folder.iterdir())
