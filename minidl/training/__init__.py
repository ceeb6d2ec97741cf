"""Tools around the training step: recomputation, CUDA graphs, anomalies, outputs of inner layers, checkpoints."""
