"""Quantiles of Student's t, for intervals of means; numpy alone.

Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: the distribution in closed form for whole degrees of freedom. The
quantile is its inverse by bisection.
"""

from __future__ import annotations

import functools
import math

from markets.errors import ConfigError

WIDEST = 1e6  # quantiles beyond are not looked for


def t_probability(t: float, freedom: int) -> float:
    """Return the probability that a t of ``freedom`` degrees lies between ``-t`` and ``t``, for t of at least 0."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(1, (freedom - 1) // 2 if odd else freedom // 2):
        term *= cosine * cosine * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


@functools.lru_cache(maxsize=256)
def t_quantile(level: float, freedom: int) -> float:
    """Return the t that ``level`` of the distribution lies within, on both sides of 0.

    Raises:
        ConfigError: a level outside (0, 1), or no degree of freedom.
    """
    if not 0.0 < level < 1.0 or freedom < 1:
        raise ConfigError(f"level={level!r} must lie between 0 and 1, freedom={freedom!r} be at least 1")
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level and high < WIDEST:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return 0.5 * (low + high)
