"""Differences of two arms over the same N seeds, with paired bootstrap intervals, and ratios of such differences.

Letters: N seeds, ``x, y (N,)`` scores of two arms, one a seed. What a seed's market and training did to both cancels in
``d = x - y``, so the interquartile mean is of the differences, and the bootstrap draws seeds, the same for every arm::

    difference = IQM(d),   d*_b = d[i_b],   i_b (N,) drawn with replacement,   b = 1 .. draws
    ratio      = IQM(d) / IQM(e),   both at the same i_b

Percentiles of few seeds lie too close together (95 % intervals of 5 normal differences hold the truth 90 % of the
time); they are widened about their median by :func:`agents.bootstrap.widening` for N blocks of one seed. That is on
the safe side: 97 % at 5 seeds, 98 % at 10, 96 % at 20 (800 draws each). With 2 or 3 seeds they are an indication only.

Source of the interquartile mean over runs and of its bootstrap: Agarwal et al., NeurIPS 34 (2021), section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agents.bootstrap import interquartile_mean, widening
from agents.metrics import Array, vector
from markets.errors import ConfigError

LEVEL, DRAWS = 0.95, 10_000


def difference(first: npt.ArrayLike, second: npt.ArrayLike) -> dict[str, Any]:
    """Return ``IQM(first - second)`` of scores (N,) that are paired by seed, with its 95 % interval.

    Raises:
        ConfigError: unequal lengths, fewer than 2 seeds, or a score that is not finite.
    """
    values = _paired(first, second)
    return {
        "values": values.tolist(),
        "iqm": interquartile_mean(values),
        "interval": list(_interval(_drawn(values), len(values))),
        "level": LEVEL,
    }


def aggregate(scores: npt.ArrayLike) -> dict[str, Any]:
    """Return the interquartile mean of an arm's scores (N,) with its 95 % interval over seeds."""
    return difference(scores, np.zeros(len(np.atleast_1d(scores))))


def ratio(
    first: npt.ArrayLike, second: npt.ArrayLike, upper: npt.ArrayLike, lower: npt.ArrayLike
) -> dict[str, Any]:  # fmt: skip
    """Return ``IQM(first - second) / IQM(upper - lower)`` with its 95 % interval, all four paired by seed (N,).

    A ratio to nothing is no number: where the interval of ``upper - lower`` does not lie above 0, ``value`` and
    ``interval`` are None and ``refused`` says so. A draw whose denominator is not above 0 counts as infinite.
    """
    numerator, denominator = _paired(first, second), _paired(upper, lower)
    if len(numerator) != len(denominator):
        raise ConfigError(f"a ratio of {len(numerator)} and {len(denominator)} seeds: they must be the same")
    low, high = _interval(_drawn(denominator), len(denominator))
    if not low > 0.0:
        why = f"the difference it is a share of is not above 0: 95 % interval {low:+.4f} .. {high:+.4f}"
        return {"value": None, "interval": None, "level": LEVEL, "refused": why}
    over, under = _drawn(numerator), _drawn(denominator)
    with np.errstate(divide="ignore"):
        shares = np.where(under > 0.0, over / np.where(under > 0.0, under, 1.0), np.copysign(np.inf, over))
    bounds = _interval(shares, len(numerator))
    value = interquartile_mean(numerator) / interquartile_mean(denominator)
    finite = [float(bound) if np.isfinite(bound) else None for bound in bounds]
    return {"value": value, "interval": finite, "level": LEVEL, "refused": None}


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    one, other = vector("scores", first, least=2), vector("scores", second, least=2)
    if len(one) != len(other):
        raise ConfigError(f"scores of {len(one)} and {len(other)} seeds cannot be paired")
    values: Array = one - other
    return values


def _drawn(values: Array) -> Array:
    """Return the interquartile mean at each draw; the same seeds are drawn for any values of the same N."""
    count = len(values)
    rows = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    cut = count // 4
    middle: Array = np.sort(values[rows], axis=1)[:, cut : count - cut].mean(axis=1)
    return middle


def _interval(drawn: Array, count: int) -> tuple[float, float]:
    low, middle, high = np.quantile(drawn, [(1.0 - LEVEL) / 2.0, 0.5, (1.0 + LEVEL) / 2.0])
    factor = widening(count, 1.0, LEVEL)
    return float(middle + factor * (low - middle)), float(middle + factor * (high - middle))
