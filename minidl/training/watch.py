"""Read the outputs of layers inside a network."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from minidl.nn.module import Module
from minidl.tensor import Tensor
from minidl.training.recompute import keep_all


@contextlib.contextmanager
def watch(model: Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers inside the `with` block, as {name: output of the layer's last call}.

    The names are as in `model.named_modules()`::

        with minidl.watch(model, "layer1.0.bn1", "layer3") as outputs:
            model(images)
        outputs["layer3"].shape

    Inside the block `recompute` saves everything; otherwise the outputs inside it would have no gradient.
    """
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            note = functools.partial(_note, outputs, name)
            stack.enter_context(find_layer(model, name).forward_hook(note))
        stack.enter_context(keep_all())  # the graph of a tensor inside a recomputed part would end at the part's input
        yield outputs


def _note(outputs: dict[str, Tensor], name: str, layer: Module, inputs: tuple, output: Tensor) -> None:
    outputs[name] = output


class FeatureExtractor(Module):
    """A network cut off after one of its layers: FeatureExtractor(resnet, "layer3")(images) is the output of `layer3`.

    The later layers are not computed, and `recompute` saves everything. The parameters are those of the whole network.
    To use the features without training the network, call it in evaluation mode inside no_grad().
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
                    raise  # meant for an enclosing extractor
                return reached.output
        raise RuntimeError(f"FeatureExtractor: the network does not use its layer {self.layer!r}; name another one")

    def extra_repr(self) -> str:
        """The name of the layer."""
        return repr(self.layer)


class _Reached(Exception):  # noqa: N818 - not an error: it leaves the enclosing layers
    """Carries a layer's output past the later layers, to the call of the extractor that needs it."""

    def __init__(self, call: object, output: Tensor):
        self.call, self.output = call, output


def find_layer(model: Module, name: str) -> Module:
    """Return the module with this name, such as "layer1.0.conv1"."""
    layers = dict(model.named_modules())
    if name not in layers or not name:
        raise ValueError(
            f"find_layer: {type(model).__name__} has no layer {name!r}; it has {', '.join(filter(None, layers))}"
        )
    return layers[name]


@contextlib.contextmanager
def wrap_layers(model: Module, wrap: Callable[[str, Module, Callable], Callable]) -> Iterator[None]:
    """Inside the `with` block, each layer calls wrap(name, layer, layer.forward) in place of its `forward`.

    The model itself is a layer too, whose name is its class. A layer with several names is wrapped once, under the
    first of them. Blocks may be nested: at the end of a block each `forward` is what it was before it.
    """
    layers: dict[Module, str] = {}
    for name, layer in model.named_modules():
        layers.setdefault(layer, name or type(layer).__name__)
    with contextlib.ExitStack() as stack:
        for layer, name in layers.items():
            if "forward" in vars(layer):  # an enclosing block has wrapped it, or the user has set it
                stack.callback(setattr, layer, "forward", layer.forward)
            else:
                stack.callback(delattr, layer, "forward")  # the class has the method
            layer.forward = wrap(name, layer, layer.forward)  # type: ignore[method-assign]
        yield
