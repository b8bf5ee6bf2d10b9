"""Differences of two walks over the same bars, for N seeds that share one market: an interval over *time*.

Seeds that share a market share its luck. An interval over seeds says how much trainings differ on these bars, and
nothing of other bars; this one draws the bars anew, in blocks, the same for every seed and for both walks, and says
nothing of other trainings::

    D_b = IQM over seeds of  f(first_n[I_b]) - f(second_n[I_b]),   I_b (T,) stationary bootstrap, b = 1 .. draws

Letters: N seeds, T bars, ``first, second (N, T)`` simple returns. A drawdown of resampled bars is that of other orders
of the same weeks. Source: Politis & Romano, JASA 89 (1994); f and widening as in :mod:`agents.bootstrap`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agents.bootstrap import interquartile_mean, stationary_bootstrap_indices, widening
from agents.metrics import RUIN, Array
from markets.errors import ConfigError, unknown

LEVEL, DRAWS, CHUNK = 0.95, 2_000, 100


def max_drawdown(growth: Array) -> Array:
    """Deepest fall of paths of log returns, ``(..., T) -> (...)``, a fraction."""
    path = np.cumsum(growth, axis=-1)
    deepest: Array = (path - np.maximum(np.maximum.accumulate(path, axis=-1), 0.0)).min(axis=-1)
    return -np.expm1(deepest)


def log_growth(growth: Array) -> Array:
    """Sum of log returns, ``(..., T) -> (...)``, nats."""
    total: Array = growth.sum(axis=-1)
    return total


STATISTICS = {"max_drawdown": max_drawdown, "log_growth": log_growth}
WIDENED = ("log_growth",)


def difference(
    first: npt.ArrayLike, second: npt.ArrayLike, statistic: str, mean_block: float, draws: int = DRAWS
) -> dict[str, Any]:
    """Return ``iqm`` over seeds of ``statistic(first) - statistic(second)`` and its 95 % interval over time.

    Args:
        first, second: simple returns ``(N, T)``. mean_block: bars of a block on average, from 1 to T / 2.

    Raises:
        ConfigError: shapes that differ. UnknownNameError: a statistic that is none of ``STATISTICS``.
    """
    if statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    one, other = np.atleast_2d(first).astype(np.float64), np.atleast_2d(second).astype(np.float64)
    if one.shape != other.shape or one.ndim != 2:
        raise ConfigError(f"walks of shape {one.shape} and {other.shape} are not over the same seeds and bars")
    function, length, generator = STATISTICS[statistic], one.shape[1], np.random.default_rng(0)
    logs = [np.log1p(np.maximum(part, RUIN - 1.0)) for part in (one, other)]
    values = np.concatenate([
        _middle(np.stack([function(a[rows]) - function(b[rows]) for a, b in zip(*logs, strict=True)], axis=1))
        for rows in (
            stationary_bootstrap_indices(length, mean_block, min(CHUNK, draws - done), generator)
            for done in range(0, draws, CHUNK)
        )
    ])  # fmt: skip
    low, middle, high = np.quantile(values, [(1.0 - LEVEL) / 2.0, 0.5, (1.0 + LEVEL) / 2.0])
    factor = widening(length, mean_block, LEVEL) if statistic in WIDENED else 1.0
    return {
        "iqm": interquartile_mean(function(logs[0]) - function(logs[1])),
        "interval": [float(middle + factor * (low - middle)), float(middle + factor * (high - middle))],
        "level": LEVEL,
        "mean_block": float(mean_block),
    }


def _middle(values: Array) -> Array:
    """Return the interquartile mean over seeds at each draw, ``(draws, N) -> (draws,)``."""
    cut = values.shape[1] // 4
    mean: Array = np.sort(values, axis=1)[:, cut : values.shape[1] - cut].mean(axis=1)
    return mean
