"""Tools around the training step: recomputation, CUDA graphs, outputs of inner layers, checkpoints."""
