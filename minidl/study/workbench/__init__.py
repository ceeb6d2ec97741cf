"""The exercises, and the checker that names a student's mistake: `python -m minidl.study exercise`."""
