"""examples/transfer.py: a linear classifier on the features of a network."""

import json
import re

import numpy as np
import pytest
import transfer
from models.config import NetworkConfig
from models.resnet import cifar_resnet, imagenet_resnet
from safetensors.numpy import save_file

from minidl import FeatureExtractor, Tensor
from minidl.data import make_shapes
from tests.examples.tools import shapes


def test_transfer_runs_on_any_layer_and_names_one_that_does_not_exist(run, begun):
    options = "--weights", begun / "checkpoint.safetensors", "--epochs", 2  # the file says that it is of 8 layers
    _, output = run(transfer, *options, "--layer", "layer2.0.conv1")
    assert re.search(r"training accuracy \d+\.\d+%, test accuracy \d+\.\d+%", output)
    assert "an untrained network" in run(transfer, "--random-init", "--depth", 8)[1]
    status, output = run(transfer, *options, "--layer", "layer9")
    assert status == 2
    assert "has no layer 'layer9'" in output


@pytest.mark.parametrize("layer", ["layer2", "fc"])
def test_the_features_of_transfer_are_those_of_the_network_on_any_device(layer, device):
    data, model = shapes(), cifar_resnet(8).eval()
    images = Tensor(data.prepare(make_shapes(20, train=False).images, np.random.default_rng(0)))
    expected = FeatureExtractor(model, layer)(images).numpy()
    expected = expected.mean(axis=(1, 2)) if layer == "layer2" else expected
    loader = type(data)(data.train, data.test, device=device).test_loader()
    features = transfer.features_of(loader, FeatureExtractor(model.to(device), layer), "test")
    assert isinstance(features, np.ndarray)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)


def test_transfer_runs_on_any_device(device):
    data = shapes()
    there = type(data)(data.train, data.test, device=device)
    accuracies = transfer.transfer(cifar_resnet(8).to(device), there, "layer3", epochs=5, seed=0)
    on_the_cpu = transfer.transfer(cifar_resnet(8), data, "layer3", epochs=5, seed=0)
    assert accuracies == pytest.approx(on_the_cpu, abs=0.1)


def test_transfer_takes_a_folder_of_the_hub(run, tmp_path):
    save_file(imagenet_resnet(18, num_classes=5).state_dict(), tmp_path / "model.safetensors")
    prepared = {"input_size": [3, 224, 224], "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.25] * 3}
    description = {"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": prepared}
    (tmp_path / "config.json").write_text(json.dumps(description))
    status, output = run(transfer, "--weights", tmp_path, "--layer", "layer1", "--epochs", 1)
    assert status == 0 and "a linear classifier on layer1" in output


@pytest.mark.parametrize("size", [32, 16])
def test_images_are_normalised_as_in_the_networks_training(size):
    mean = np.arange(size * size * 3, dtype=np.float32).reshape(size, size, 3)
    config = NetworkConfig("resnet8", "cifar_resnet", {}, ("a",), None, size, size, mean, 50.0)
    data = shapes()
    transfer.normalise_as(config, data)
    images, _ = next(iter(data.test_loader(20)))
    expected = (data.test.images - (mean if size == 32 else mean.mean(axis=(0, 1)))) / 50.0
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_classifier_of_transfer_learns_what_is_linear():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = rng.standard_normal((300, 5)).astype(np.float32)
    features[np.arange(300), labels] += 6
    classifier = transfer.fit_classifier(features[:200], labels[:200], classes=3, epochs=200, seed=0)
    assert transfer.accuracy(classifier, features[200:], labels[200:]) > 0.95
