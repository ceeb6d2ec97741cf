"""The page that `python -m minidl.study explain` writes."""
