"""Around the training step: recompute, capture in a CUDA graph, watch, save."""
