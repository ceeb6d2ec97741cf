"""Checks of numbers that a user chooses."""

from minidl.checks import expect


def check_range(owner: str, low: float, high: float, closed: bool = False, **values: float) -> None:
    """Each is a number in [low, high), or in [low, high] if `closed`; NaN is outside."""
    for name, value in values.items():
        is_inside = hasattr(value, "__float__") and (low <= value < high or (closed and value == high))
        expect(owner, is_inside, f"{name} in [{low}, {high}{']' if closed else ')'}", repr(value))
