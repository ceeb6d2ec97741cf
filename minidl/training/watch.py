"""What the layers inside a network compute."""

import contextlib
from collections.abc import Callable, Iterator

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

    def noting(name: str, forward: Callable) -> Callable:
        def forward_and_note(*inputs, **options):
            outputs[name] = forward(*inputs, **options)
            return outputs[name]

        return forward_and_note

    with contextlib.ExitStack() as stack:
        for name in names:
            layer = find_layer(model, name)
            stack.enter_context(_replaced_forward(layer, noting(name, layer.forward)))
        yield outputs


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
        layer = find_layer(self.model, self.layer)
        compute, call = layer.forward, object()

        def compute_and_leave(*inputs, **options):
            raise _Reached(call, compute(*inputs, **options))

        with _replaced_forward(layer, compute_and_leave):
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


@contextlib.contextmanager
def _replaced_forward(layer: Module, forward: Callable) -> Iterator[None]:
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        with keep_all():  # a tensor from inside of what is recomputed has no way back to what came before
            yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before
