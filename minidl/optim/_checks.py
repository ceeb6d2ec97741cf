"""Checks of numbers that a user chooses."""


def check_range(owner: str, low: float, high: float, closed: bool = False, **values: float) -> None:
    """A ValueError that names the first value outside [low, high), or [low, high] if `closed`; NaN is outside."""
    for name, value in values.items():
        if not (hasattr(value, "__float__") and (low <= value < high or (closed and value == high))):
            bracket = "]" if closed else ")"
            raise ValueError(f"{owner}: expected {name} in [{low}, {high}{bracket}, got {value!r}")
