"""Conditions that values of the generative model's configs must meet; each names its key in the error."""

from __future__ import annotations

import math

from synthseg.errors import ConfigError


def require(condition: bool, key: str, value: object, fix: str) -> None:
    """Raise ConfigError naming ``generation.KEY`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"generation.{key}", found=repr(value), fix=fix)


def probability(key: str, value: float) -> None:
    """0 to 1."""
    require(0 <= value <= 1, key, value, "give a probability between 0 and 1")


def positive(key: str, value: float, fix: str = "give a finite number above 0") -> None:
    """Above 0, finite."""
    require(0 < value < math.inf, key, value, fix)


def not_negative(key: str, value: float) -> None:
    """0 or above, finite."""
    require(value >= 0 and math.isfinite(value), key, value, "give a finite number of at least 0")


def ordered(key: str, value: tuple[float, float], low: float, high: float) -> None:
    """A range within [low, high], its ends in order."""
    first, last = value
    require(low <= first <= last <= high, key, value, f"give two numbers, {low:g} <= first <= second <= {high:g}")
