"""The machine: CPUs, memory, files, the GPU library. Nothing here depends on tensors."""
