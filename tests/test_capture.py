"""Without a GPU. What a captured step does on one is in tests/kernels/cuda/test_cuda_graph.py."""

import sys

import pytest

import minidl


def test_without_cupy_a_step_is_not_captured_and_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    with pytest.raises(RuntimeError, match=r"device 'cuda' needs CuPy: pip install \"minidl\[cuda13\]\""):
        minidl.cuda_graph(lambda: None)
