"""Modules: parameters, buffers, training and evaluation."""

from minidl.nn import init
from minidl.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    LocalResponseNorm,
    LogSoftmax,
    MaxPool2d,
    MSELoss,
    PadChannels,
    ReLU,
    Softmax,
)
from minidl.nn.module import Module
from minidl.nn.sequential import Sequential
from minidl.tensor import Buffer, Parameter
