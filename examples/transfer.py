"""Fit a linear classifier on the features of a trained network, which stay as they are.

    python examples/train_cifar_resnet.py --dataset cifar10 --out runs/cifar10
    python examples/transfer.py --weights runs/cifar10/checkpoint.safetensors --dataset shapes
    python examples/transfer.py --random-init --dataset shapes                 what an untrained network's are worth
    python examples/transfer.py --weights FILE --layer layer2 --dataset cifar100
    python examples/transfer.py --weights FILE --dataset cifar10 --device cuda      the features on a GPU

Expect (a ResNet-20 trained for 10 epochs on CIFAR-10, 15 seconds on two CPU cores): 49 % of the test shapes right, 28 %
on layer2, and 15 % with an untrained network. The features are the mean over the pixels of what one layer computes
(--layer, any name that `model.named_modules()` gives). VGG's paper does so with its last hidden layer, appendix B.
"""

import argparse

import numpy as np
from cifar_data import CifarData, add_data_options, load_data, positive, whole
from models.config import read_config
from models.resnet import cifar_resnet
from tqdm import tqdm
from training import one_line_errors

from minidl import FeatureExtractor, Tensor, load_checkpoint, manual_seed, no_grad
from minidl.data import ArrayDataset, IndexLoader
from minidl.functional import cross_entropy, global_avg_pool
from minidl.nn import Linear, Module
from minidl.optim import Adam, CosineAnnealingLR
from minidl.training.checkpoint import read_checkpoint

BATCH, LR = 256, 0.01


def load_network(args: argparse.Namespace) -> Module:
    """The network that the file says it is for; where it says nothing, or without a file, that of the options."""
    if args.random_init:
        return cifar_resnet(args.depth, args.shortcut, seed=args.seed)
    config = read_config(args.weights)
    if config is not None:
        model = config.build()
    else:
        arrays, _ = read_checkpoint(args.weights, "fc.bias")
        if "fc.bias" not in arrays:
            raise ValueError(f"--weights: {args.weights} holds no CIFAR ResNet: there is no fc.bias in it")
        model = cifar_resnet(args.depth, args.shortcut, num_classes=len(arrays["fc.bias"]))
    load_checkpoint(args.weights, model)
    return model


def features_of(data: CifarData, dataset: ArrayDataset, extractor: FeatureExtractor, name: str) -> np.ndarray:
    """(N, C): for each image and channel, the mean of what the layer computes."""
    loader = IndexLoader(dataset, BATCH, data.prepare)
    parts = []
    with no_grad():
        for batch in tqdm(loader, desc=f"features of the {name} images", unit="batch"):
            images, _ = data.take(batch, dataset, data.prepare)
            output = extractor(images)
            parts.append((global_avg_pool(output) if output.ndim == 4 else output).numpy())
    return np.concatenate(parts)


def fit(features: np.ndarray, labels: np.ndarray, classes: int, epochs: int, seed: int) -> Linear:
    """A linear classifier by gradient descent on the cross-entropy; it is small, and stays on the host."""
    manual_seed(seed)
    classifier = Linear(features.shape[1], classes)
    optimizer = Adam(classifier.parameters(), LR)
    order = np.random.default_rng(seed)
    schedule = CosineAnnealingLR(LR, total_steps=epochs)
    for epoch in range(epochs):
        optimizer.lr = schedule(epoch)
        for rows in np.array_split(order.permutation(len(labels)), -(-len(labels) // BATCH)):
            cross_entropy(classifier(Tensor(features[rows])), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return classifier


def accuracy(classifier: Linear, features: np.ndarray, labels: np.ndarray) -> float:
    """The part of the images that are classified rightly."""
    return float((classifier(Tensor(features)).argmax(dim=1).numpy() == labels).mean())


def transfer(model: Module, data: CifarData, layer: str, epochs: int, seed: int) -> tuple[float, float]:
    """(training, test) accuracy of the classifier on that layer's features."""
    extractor = FeatureExtractor(model.eval(), layer)
    train, test = (
        features_of(data, dataset, extractor, name)
        for dataset, name in ((data.train, "training"), (data.test, data.test_split))
    )
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    classifier = fit(train, data.train.labels, len(data.train.classes), epochs, seed)
    return accuracy(classifier, train, data.train.labels), accuracy(classifier, test, data.test.labels)


def main() -> None:
    """Read the options, extract the features, fit the classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help="a checkpoint of train_cifar_resnet.py, or its weights alone")
    source.add_argument("--random-init", action="store_true", help="an untrained network instead")
    parser.add_argument("--depth", type=int, default=20, help="where FILE does not say it; default: 20")
    parser.add_argument("--shortcut", choices=("A", "B", "C", "none"), default="A")
    parser.add_argument("--layer", default="layer3", help="whose output the features are; default: layer3, the last")
    parser.add_argument("--epochs", type=positive, default=20, help="of the linear classifier; default: 20")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that computes the features")
    add_data_options(parser)
    args = parser.parse_args()
    with one_line_errors(parser):
        data, model = load_data(args).to(args.device), load_network(args).to(args.device)
        train_accuracy, test_accuracy = transfer(model, data, args.layer, args.epochs, args.seed)
    network = "an untrained network" if args.random_init else args.weights
    print(f"a linear classifier on {args.layer} of {network}, {args.dataset}:")
    print(f"training accuracy {train_accuracy:.2%}, {data.test_split} accuracy {test_accuracy:.2%}")


if __name__ == "__main__":
    main()
