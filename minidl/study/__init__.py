"""For studying backprop: `python -m minidl.study` lists the commands. Nothing else in minidl imports this package."""
