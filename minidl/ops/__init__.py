"""The operations on arrays: one class each, forward above backward."""
