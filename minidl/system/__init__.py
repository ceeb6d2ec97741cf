"""The machine below: CPUs, memory, files, the GPU's library. Nothing here knows what a tensor is."""
