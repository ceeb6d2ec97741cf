"""The operations: one class each, forward above backward, on arrays."""
