"""`python -m minidl.study explain NETWORK`: forward and backward of a network as a page to walk through.

    python -m minidl.study explain resnet20                               # writes resnet20.html
    python -m minidl.study explain vgg16 --image cat.jpg --out vgg.html
    python -m minidl.study explain mynet:make                             # def make() in mynet.py returns the network
    python -m minidl.study explain path/to/mynet.py:make --input-shape 28x28x1 --weights mynet.safetensors

The page shows the network from the image to the loss. Modules unfold into their parts, down to single operations. An
operation shows its formula, the source of its forward and backward, shapes, what it saved, and pictures of its result
and its gradient. Where a value is used twice, as at a skip connection, the page shows both gradients and their sum.
The file needs no server and loads nothing.
"""

import argparse
import math
import sys
import traceback
from pathlib import Path

import numpy as np

from minidl.functional import cross_entropy
from minidl.nn import BatchNorm2d, Dropout, Module
from minidl.study._input import Example, Weights, load_weights, make_example
from minidl.study._network import BadInputError, Network, Shape, find_network
from minidl.study.page.document import TooLargeError, make_document
from minidl.study.page.render import render
from minidl.study.page.words import shape_text
from minidl.study.record import Op, Recording, record
from minidl.system.files import write_whole
from minidl.tensor import Tensor

NAME = "explain"
HELP = "write forward and backward of a network as a page to walk through in a browser"


def shape_of(text: str) -> Shape:
    """An argparse type: the shape of one input, such as 32x32x3 or 784."""
    try:
        shape = tuple(map(int, text.lower().split("x")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected a shape such as 32x32x3 or 784, got {text}")
    return shape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `explain`."""
    parser.add_argument("network", help="resnet20, vgg16, ..., or MODULE:FUNCTION, or path/to/file.py:FUNCTION")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint, or a safetensors file; default: fresh weights")
    parser.add_argument(
        "--image", metavar="FILE", help="an image, scaled and cut to the network's input; default: a drawn shape"
    )
    parser.add_argument("--label", type=int, metavar="N", help="the class for the loss; default: the predicted one")
    parser.add_argument(
        "--input-shape", type=shape_of, metavar="HxWxC", help="the shape of one input; default: the network's own"
    )
    parser.add_argument(
        "--mode",
        choices=("train", "eval"),
        help="the mode of batch-norm and dropout; default: eval with --weights, else train",
    )
    parser.add_argument("--out", metavar="FILE", help="the page; default: NETWORK.html in the current folder")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path. Return 0, or 2 after a message if something that was given cannot be used."""
    path = Path(args.out or f"{args.network.rpartition(':')[2]}.html")
    try:
        _check_path(path)
        page = explain(args.network, args.weights, args.image, args.label, args.input_shape, args.mode)
        write_whole(path, page.encode("utf-8"))
    except BadInputError as error:
        print(f"explain: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"explain: --out: cannot write {path} ({error.strerror or error})", file=sys.stderr)
        return 2
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _check_path(path: Path) -> None:
    """Refuse a path that no page can be written to, before the network runs."""
    if path.is_dir():
        raise BadInputError(f"--out: {path} is a folder; name a file in it, such as {path / 'page.html'}")
    if path.exists() and not path.is_file():  # the page would replace a device, such as /dev/null
        raise BadInputError(f"--out: {path} is not a file; name a file")
    if not path.parent.is_dir():
        raise BadInputError(f"--out: there is no folder {path.parent}; make it first")


def explain(
    network: str,
    weights: str | None = None,
    image: str | None = None,
    label: int | None = None,
    input_shape: Shape | None = None,
    mode: str | None = None,
) -> str:
    """Return the page of a network as HTML. The arguments are the options of the command.

    Raises BadInputError with a message that says what to do.
    """
    found = find_network(network, input_shape)
    loaded = load_weights(found.model, weights, found.statistics)
    example = make_example(image, found.input_shape, loaded)
    mode = mode or ("train" if weights is None else "eval")
    found.model.train(mode == "train")
    recording, facts = _training_step(found, example, loaded, label)
    head = _head(found, loaded, example, mode, recording, facts)
    try:
        return render(make_document(recording, head, example.pixels))
    except TooLargeError as error:
        raise BadInputError(f"{network}: {error}") from error


# -- the training step -------------------------------------------------------------------------------------------------


def _training_step(network: Network, example: Example, weights: Weights, label: int | None) -> tuple[Recording, dict]:
    """Run forward, the loss and backward. Return the recording, and what the page says of the loss."""
    x = Tensor(example.array, requires_grad=True)
    with record(network.model) as recording, np.errstate(all="ignore"):  # the page says what is not finite
        try:
            y = network.model(x)
        except (Exception, SystemExit) as error:
            raise _failed("forward", network, recording, error) from error
        loss, facts = _loss(y, weights, label)
        try:
            loss.backward()
        except Exception as error:
            raise _failed("backward", network, recording, error) from error
    return recording, facts


def _failed(direction: str, network: Network, recording: Recording, error: BaseException) -> BadInputError:
    """An error in the user's network, with the name of the layer."""
    what = traceback.format_exception_only(error)[-1].strip()
    if direction == "backward":
        op = _op_that_failed(recording, error)
        return BadInputError(
            f"{network.name} fails in the backward of {op.function.__name__}, layer {op.layer!r}: {what}"
        )
    name = recording.failed_layer
    layer = dict(network.model.named_modules()).get(name)
    place = f"layer {name!r} ({type(layer).__name__})" if name else "its own forward"
    return BadInputError(f"{network.name} fails in {place}: {what}; {_remedy(network, layer)}")


def _remedy(network: Network, layer: Module | None) -> str:
    """What to change so that forward works."""
    shape = "x".join(map(str, network.input_shape))
    if any(parameter.dtype != np.float32 for parameter in network.model.parameters()):
        return "images are float32; return the network with .to('float32')"
    if isinstance(layer, BatchNorm2d) and layer.training:
        return f"one image of {shape} may be too little for its statistics; use --mode eval, or a larger --input-shape"
    return f"the input was {shape}, set by --input-shape"


def _op_that_failed(recording: Recording, error: BaseException) -> Op:
    """The operation whose backward raised the error, or returned the gradients that the engine then refused."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised = [frame.f_locals["op"] for frame in frames if isinstance(frame.f_locals.get("op"), Op)]
    finished = [op for op in recording.ops if op.backward_start is not None]
    return raised[-1] if raised else max(finished, key=lambda op: op.backward_start)


def _loss(y: Tensor, weights: Weights, label: int | None) -> tuple[Tensor, dict]:
    """Cross-entropy for (1, classes), else the mean of the squares. Return it with what the page says of it."""
    if not isinstance(y, Tensor):
        raise BadInputError(f"expected the network to return a Tensor, got {type(y).__name__}; return one tensor")
    if not (y.requires_grad and y.numel()):
        raise BadInputError(
            f"no gradient flows back from the result, which is {y.dtype} of shape {y.shape}; compute it by operations "
            "of minidl, outside of no_grad()"
        )
    if y.ndim != 2 or len(y) != 1 or y.shape[1] < 2:
        if label is not None:
            raise BadInputError(f"--label: the result has shape {y.shape}, not (1, classes); leave --label out")
        return (y * y).mean(), {"loss": "the mean of the squares of the result, as it has no classes"}
    classes, predicted = y.shape[1], int(y.argmax(dim=1).item())
    if label is not None and not 0 <= label < classes:
        raise BadInputError(f"--label: expected a class in 0 ... {classes - 1}, got {label}")
    loss = cross_entropy(y, np.array([predicted if label is None else label]))
    chosen = weights.class_name(predicted if label is None else label)
    logits = y.numpy()[0].astype(np.float64)
    probability = 1 / np.exp(logits - logits[predicted]).sum()
    words = f"cross-entropy with {chosen}, {'which was predicted' if label is None else 'as given'}"
    return loss, {"loss": words, "prediction": f"{weights.class_name(predicted)}, {probability:.1%}"}


# -- what the page says of itself --------------------------------------------------------------------------------------

MODES = {  # what a layer does in each mode
    "train": {BatchNorm2d: "batch-norm takes its statistics of this image alone", Dropout: "dropout is active"},
    "eval": {BatchNorm2d: "batch-norm uses its running statistics", Dropout: "dropout does nothing"},
}


def _mode_words(model: Module, mode: str) -> str:
    """The mode, and what it means for the layers that the network has."""
    kinds = {type(module) for _, module in model.named_modules()}
    words = [text for kind, text in MODES[mode].items() if any(issubclass(other, kind) for other in kinds)]
    return ": ".join(filter(None, ["training" if mode == "train" else "evaluation", ", ".join(words)]))


def _head(network: Network, weights: Weights, example: Example, mode: str, recording: Recording, facts: dict) -> dict:
    """Return the title of the page, the line below it, its facts and notes."""
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    macs = sum(op.macs for op in recording.ops)
    value = recording.ops[-1].value.item()
    notes = []
    if not math.isfinite(value):
        notes.append("The loss is not finite. NaN and infinity are magenta in the pictures.")
    if all(op.grad_norm in (None, 0) for op in recording.ops[:-1]):
        notes.append("No gradient came back from the loss, or all are 0.")
    return {
        "title": f"{network.name}: forward and backward",
        "head": [
            f"{parameters:,} parameters",
            f"{macs:,} multiply-adds",
            f"{len(recording.ops):,} operations",
            f"loss {value:.4g}",
            f"weights {weights.words}",
        ],
        "facts": [
            ["network", f"{type(network.model).__name__}, {network.call}"],
            ["input", f"{example.words}, {shape_text(network.input_shape)}"],
            ["pixels scaled", None if example.pixels is None else weights.scaling],
            ["loss", facts["loss"]],
            ["prediction", facts.get("prediction")],
            ["weights", weights.words],
            ["mode", _mode_words(network.model, mode)],
        ],
        "notes": notes,
    }
