"""Update rules and learning-rate schedules."""

from minidl.optim.adam import Adam, AdamW
from minidl.optim.clip import clip_grad_norm_
from minidl.optim.optimizer import Optimizer, weight_decay_groups
from minidl.optim.schedule import CosineAnnealingLR, LinearWarmup, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from minidl.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LinearWarmup",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "ReduceLROnPlateau",
    "clip_grad_norm_",
    "weight_decay_groups",
]
