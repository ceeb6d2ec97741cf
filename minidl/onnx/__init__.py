"""Export networks to ONNX (https://onnx.ai), the file format that most inference engines read."""

from minidl.onnx.exporter import export
from minidl.onnx.graph import OPSET, Graph, Value, converts

__all__ = ["OPSET", "Graph", "Value", "converts", "export"]
