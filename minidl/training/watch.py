"""What the layers inside a network compute."""

import contextlib
import functools
from collections.abc import Iterator

from minidl.nn.module import Module
from minidl.tensor import Tensor
from minidl.training.recompute import keep_all


@contextlib.contextmanager
def watch(model: Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Within it, what the layers of these names compute is noted: {name: the output of its last call}.

    The names are those of `model.named_modules()`:

        with minidl.watch(model, "layer1.0.bn1", "layer3") as outputs:
            model(images)
        outputs["layer3"].shape

    Meanwhile `recompute` keeps everything, as outputs from inside of it would have no gradient otherwise.
    """
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            note = functools.partial(_note, outputs, name)
            stack.enter_context(find_layer(model, name).forward_hook(note))
        stack.enter_context(keep_all())  # a tensor from inside a recomputed part has no way back to what came before
        yield outputs


def _note(outputs: dict[str, Tensor], name: str, layer: Module, inputs: tuple, output: Tensor) -> None:
    outputs[name] = output


class FeatureExtractor(Module):
    """A network up to one of its layers: FeatureExtractor(resnet, "layer3")(images) is what `layer3` computes.

    The layers behind it are not computed, and `recompute` keeps everything. Its parameters are the network's; for
    features that stay as they are, call it in evaluation mode and inside no_grad().
    """

    def __init__(self, model: Module, layer: str):
        find_layer(model, layer)
        self.model, self.layer = model, layer

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer's first call."""
        call = object()

        def leave(layer: Module, inputs: tuple, output: Tensor) -> None:
            raise _Reached(call, output)

        with find_layer(self.model, self.layer).forward_hook(leave), keep_all():
            try:
                self.model(x)
            except _Reached as reached:
                if reached.call is not call:
                    raise  # it is for an extractor around this one
                return reached.output
        raise RuntimeError(f"FeatureExtractor: the network does not use its layer {self.layer!r}; name another one")

    def extra_repr(self) -> str:
        """The name of the layer."""
        return repr(self.layer)


class _Reached(Exception):  # noqa: N818 - no error: the way out of the layers around
    """Carries a layer's output past the layers behind it, to the call of the extractor that wants it."""

    def __init__(self, call: object, output: Tensor):
        self.call, self.output = call, output


def find_layer(model: Module, name: str) -> Module:
    """The module of that name, like "layer1.0.conv1"."""
    layers = dict(model.named_modules())
    if name not in layers or not name:
        raise ValueError(
            f"find_layer: {type(model).__name__} has no layer {name!r}, but {', '.join(filter(None, layers))}"
        )
    return layers[name]
