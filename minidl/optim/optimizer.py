"""The base class of the optimisers: parameters, learning rate, and the state that checkpoints keep."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from minidl.autograd import Leaf
from minidl.checks import check_range, expect
from minidl.kernels import device_of, is_capturing, to_device
from minidl.nn.module import Module, check_state
from minidl.tensor import Parameter, Tensor


class Optimizer:
    """Updates parameters in place from their gradients. A subclass defines `update` and `state`.

    `parameters` are parameters, or groups of them: {"params": [...], "weight_decay": ..., "lr_scale": ...}. A group may
    have a weight decay of its own, and its learning rate is lr_scale * lr. `lr` may be set between steps. The learning
    rates and all state stay in the same arrays: a CUDA graph refers to them.
    """

    def __init__(self, parameters: Iterable[Parameter] | Iterable[dict], lr: float, weight_decay: float):
        groups = _as_groups(type(self).__name__, parameters)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        _check(type(self).__name__, groups, self.parameters)
        self._options = []  # (weight decay, scale of the learning rate) of each parameter
        for group in groups:
            decay, scale = group.get("weight_decay", weight_decay), group.get("lr_scale", 1.0)
            check_range(type(self).__name__, 0, np.inf, weight_decay=decay, lr_scale=scale)
            self._options += [(float(decay), float(scale))] * len(group["params"])
        scales = {1.0, *(scale for _, scale in self._options)}
        self._rates = {scale: np.zeros((), np.float64, like=self.parameters[0].data) for scale in scales}
        self.lr = lr

    @property
    def lr(self) -> float:
        """The learning rate, which the `lr_scale` of a group multiplies."""
        return float(self._rates[1.0])

    @lr.setter
    def lr(self, value: float) -> None:
        check_range(type(self).__name__, 0, np.inf, lr=value)
        if is_capturing(self._rates[1.0]):
            raise RuntimeError(
                f"{type(self).__name__}.lr: set inside a captured step, it would be {value} in every step; "
                "set it before you call the step"
            )
        for scale, rate in self._rates.items():
            rate[...] = scale * value

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for parameter in self.parameters:
            if parameter.requires_grad:
                parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        ready = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for weight_decay, scale in dict.fromkeys(self._options):
            chosen = [i for i in ready if self._options[i] == (weight_decay, scale)]
            if chosen:
                parameters = [self.parameters[i].data for i in chosen]
                grads = [self.parameters[i].grad.data for i in chosen]
                state = [[arrays[i] for i in chosen] for arrays in self.state().values()]
                self.update(parameters, grads, self._rates[scale], weight_decay, *state)
        for i in ready:  # a later backward of a graph that saved the old values raises an error
            self.parameters[i]._version.count += 1

    def update(self, parameters: list, grads: list, lr, weight_decay: float, *state: list) -> None:
        """Update these arrays of parameters in place, given their gradients and a list of arrays per kind of state.

        `lr` is an array of shape () on their device.
        """
        raise NotImplementedError

    def state(self) -> dict[str, list]:
        """Return {name: [one array per parameter]}: what the next step depends on besides the parameters."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the state on the CPU: "velocity.0", "velocity.1", ... in the order of the parameters."""
        return {name: to_device(array, "cpu").copy() for name, array in self._named_state().items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy a state dict into the state's arrays. If any part does not fit, nothing is copied."""
        self.check_state_dict(state)
        for name, array in self._named_state().items():
            array[...] = to_device(np.asarray(state[name], array.dtype), device_of(array))

    def check_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Raise ValueError if load_state_dict would refuse this state dict."""
        expected = {name: (array.shape, array.dtype) for name, array in self._named_state().items()}
        check_state(f"{type(self).__name__}.load_state_dict", expected, state)

    def _named_state(self) -> dict[str, Any]:
        return {f"{name}.{i}": array for name, arrays in self.state().items() for i, array in enumerate(arrays)}

    def _zeros(self) -> list:
        """Return an array of zeros for each parameter."""
        return [np.zeros_like(parameter.data) for parameter in self.parameters]


def _as_groups(owner: str, parameters: Iterable[Parameter] | Iterable[dict]) -> list[dict]:
    """Return the groups with their parameters as lists, because an iterator can be read only once."""
    groups = as_list(owner, parameters)
    if not any(isinstance(group, dict) for group in groups):
        groups = [{"params": groups}]
    for group in groups:
        expect(owner, isinstance(group, dict) and "params" in group, 'groups {"params": [...], ...}', repr(group)[:80])
    return [{**group, "params": as_list(owner, group["params"])} for group in groups]


def as_list(owner: str, values) -> list:
    """Return the parameters, or the groups of them, as a list. A single parameter is an error."""
    if isinstance(values, Tensor | Module) or not isinstance(values, Iterable):
        got = type(values).__name__
        raise TypeError(f"{owner}: expected a list of parameters, got {got}; pass [parameter], or model.parameters()")
    return list(values)


def _check(owner: str, groups: list[dict], parameters: list[Parameter]) -> None:
    if not parameters:
        raise ValueError(f"{owner}: expected at least one parameter, got none")
    for parameter in parameters:
        if not isinstance(parameter, Parameter) and not isinstance(getattr(parameter, "_node", None), Leaf):
            got = repr(parameter) if isinstance(parameter, Tensor) else type(parameter).__name__
            remedy = "pass model.parameters(), or tensors made with requires_grad=True"
            raise TypeError(f"{owner}: expected parameters, got {got}; {remedy}")
    if len(set(map(id, parameters))) < len(parameters):
        raise ValueError(f"{owner}: a parameter is given twice and would be updated twice per step; pass it once")
    unknown = sorted({key for group in groups for key in group} - {"params", "weight_decay", "lr_scale"})
    if unknown:
        raise ValueError(f"{owner}: expected groups of 'params', 'weight_decay' and 'lr_scale', got also {unknown}")


def weight_decay_groups(model: Module, weight_decay: float) -> list[dict]:
    """Return groups for an optimiser that exempt vectors (biases, batch-norm's weights) from the weight decay."""
    parameters = model.parameters()
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
