"""torchvision's networks beside ours: the same weights in both, their logits, gradients and running statistics.

python tests/models/torchvision_twin.py        a table of all networks, in some minutes
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2] / "examples")] if __name__ == "__main__" else []

from models.resnet import imagenet_resnet  # noqa: E402
from models.vgg import DenseVGG, vgg  # noqa: E402

from minidl import Tensor  # noqa: E402
from minidl.functional import cross_entropy  # noqa: E402
from minidl.nn import Dropout, Module  # noqa: E402

LAYERS = {"A": 11, "B": 13, "D": 16, "E": 19}
RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
VGGS = [f"vgg{layers}{bn}" for layers in LAYERS.values() for bn in ("", "_bn")]


def import_torchvision() -> ModuleType:
    """torchvision, also beside a PyTorch for which its compiled part is not built: no network here needs that."""
    import torch

    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import_torchvision.library = torch.library.Library("torchvision", "DEF")  # it lives as long as this object
        for name in "nms", "qnms":
            import_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def ours(name: str, num_classes: int = 1000) -> Module:
    """Our network with torchvision's name for it."""
    if name.startswith("resnet"):
        return imagenet_resnet(int(name.removeprefix("resnet")), num_classes=num_classes)
    config = {str(layers): config for config, layers in LAYERS.items()}[name.removesuffix("_bn").removeprefix("vgg")]
    return vgg(config, batch_norm=name.endswith("_bn"), num_classes=num_classes)


def twins(name: str) -> tuple[Module, "torch.nn.Module"]:  # noqa: F821 - imported when needed
    """Our network, and torchvision's with the weights that ours saves."""
    import torch

    model = ours(name)
    options = {"init_weights": False} if name.startswith("vgg") else {}
    twin = getattr(import_torchvision().models, name)(weights=None, **options)
    state = {key: torch.tensor(array) for key, array in model.state_dict().items()}
    twin.load_state_dict(state, strict=True)
    return model, twin


def images(size: int, dtype=np.float32, count: int = 2) -> np.ndarray:
    """Images (N, H, W, 3) of noise."""
    return np.random.default_rng(size).standard_normal((count, size, size, 3)).astype(dtype)


def difference(ours, theirs, least: float = 0.0) -> float:
    """The largest difference, as a share of the largest number, which is taken to be `least` or more."""
    theirs = theirs.detach().numpy()
    return float(abs(ours - theirs).max() / max(abs(theirs).max(), least))


def logits_differ(name: str, sizes: tuple[int, ...]) -> float:
    """The largest difference of the logits in evaluation mode, at several sizes, with torchvision's weights."""
    import torch

    model, twin = twins(name)
    model.load_state_dict({key: value.numpy() for key, value in twin.state_dict().items()})  # and back again
    model.eval(), twin.eval()
    worst = 0.0
    for size in sizes:
        x = images(size)
        nchw = torch.tensor(x.transpose(0, 3, 1, 2))
        with torch.no_grad():
            if name.startswith("vgg") and size != 224:
                worst = max(worst, difference(DenseVGG(model)(Tensor(x)).numpy(), dense(twin, nchw)))
            else:
                worst = max(worst, difference(model(Tensor(x)).numpy(), twin(nchw)))
    return worst


def dense(twin, x):
    """torchvision's VGG with its linear layers as convolutions, averaged over all positions."""
    import torch

    x = twin.features(x)
    for layer in twin.classifier:
        if isinstance(layer, torch.nn.Linear):
            side = round((layer.in_features // x.shape[1]) ** 0.5)
            x = torch.nn.functional.conv2d(x, layer.weight.view(-1, x.shape[1], side, side), layer.bias)
        else:
            x = layer(x)
    return x.mean(dim=(2, 3))


def training_differs(name: str, size: int) -> float:
    """The largest difference of a gradient or a running statistic after one training step, in float64, dropout off.

    The two networks take their step one after the other, ours into files: a VGG in float64 takes 1.1 GB for its
    weights and as much for the gradients.
    """
    import torch

    model, twin = twins(name)
    x, labels = images(size, np.float64), np.array([3, 7])
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with TemporaryDirectory() as folder:
        save_step(model, x, labels, Path(folder))
        del model
        twin.double().train()
        torch.nn.functional.cross_entropy(twin(torch.tensor(x.transpose(0, 3, 1, 2))), torch.tensor(labels)).backward()
        theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
        theirs |= {name: buffer for name, buffer in twin.named_buffers() if not name.endswith("num_batches_tracked")}
        # The bias of a convolution before batch-norm has the gradient 0, and both compute no more than rounding errors.
        least = 1e-6 * max(float(abs(parameter.grad).max()) for parameter in twin.parameters())
        return max(
            difference(np.load(Path(folder, f"{name}.npy"), "r"), array, least) for name, array in theirs.items()
        )


def save_step(model: Module, x: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """Take a training step and save each gradient and running statistic to a file, with its name and PyTorch's layout.

    The gradients are written over the parameters, so that state_dict() gives them that layout.
    """
    for _, module in model.named_modules():
        if isinstance(module, Dropout):
            module.probability = 0.0
    cross_entropy(model.to("float64").train()(Tensor(x)), labels).backward()
    for parameter in model.parameters():
        parameter.data[...], parameter.grad = parameter.grad.data, None
    for name, array in model.state_dict().items():
        np.save(folder / f"{name}.npy", array)


def table(names: list[str]) -> Iterator[str]:
    """A line for each network."""
    yield "network       logits, 224 and another size      gradients and statistics of a step (float64)"
    for name in names:
        other, step = (160, 64) if name.startswith("resnet") else (256, 224)
        yield f"{name:12}  {logits_differ(name, (224, other)):.1e} {other:30}     {training_differs(name, step):.1e}"


if __name__ == "__main__":
    for line in table([*RESNETS, *VGGS]):
        print(line, flush=True)
