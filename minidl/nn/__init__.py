"""Modules: layers and networks with parameters, buffers, and a training and an evaluation mode."""

from minidl.nn import init as init  # "as": for type checkers, a public name of this package
from minidl.nn.layers import *  # noqa: F403 - each layer is written in one file
from minidl.nn.module import Module as Module
from minidl.nn.sequential import Sequential as Sequential
from minidl.tensor import Buffer as Buffer
from minidl.tensor import Parameter as Parameter
