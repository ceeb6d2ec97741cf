"""A moving average of a network's weights, which is tested in place of the network (Polyak, Juditsky 1992)."""

import copy

from minidl.nn import Module
from minidl.tensor import Buffer, Parameter


class MovingAverage:
    """average = decay * average + (1 - decay) * value, after each step, for each parameter and running statistic.

    It starts as a copy of the model. After t steps the initial values have the weight decay^t: with a decay of 0.999,
    2 % after 3,900 steps. Running statistics are averaged too, so that they fit the averaged weights.

    Attributes:
        model: the averaged network; use it in evaluation mode.
    """

    def __init__(self, model: Module, decay: float):
        self.model, self.decay = copy.deepcopy(model), decay
        kind = Parameter | Buffer
        pairs = zip(self.model.named_tensors(kind), model.named_tensors(kind), strict=True)
        self._pairs = [(average, value) for (_, average), (_, value) in pairs if value.is_floating_point()]

    def update(self) -> None:
        """Include the model's present values, in place: the step of a CUDA graph may call this."""
        for average, value in self._pairs:
            average.data += (1 - self.decay) * (value.data - average.data)
