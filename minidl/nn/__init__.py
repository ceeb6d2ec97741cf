"""Modules: layers and networks with parameters, buffers, and a training and an evaluation mode."""

from minidl.nn import init
from minidl.nn.layers import *  # noqa: F403 - each layer is written in one file
from minidl.nn.module import Module
from minidl.nn.sequential import Sequential
from minidl.tensor import Buffer, Parameter
