"""Bootstrap intervals over sessions: how far a statistic of one number a session could lie elsewhere by chance.

Sessions are drawn with replacement, one by one: what happens from open to close, over what was implied for it, depends
on the day before only through what was implied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError

Floats = NDArray[np.float64]
CHUNK = 2**21  # numbers in memory at once


def session_interval(
    values: Floats, statistic: Callable[[Floats], Floats], draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return the statistic of ``values (S,)`` or ``(S, K)`` and the ends of its percentile interval.

    Args:
        statistic: ``(n, S)`` or ``(n, S, K)`` resampled sessions -> ``(n,)``.

    Raises:
        ConfigError: fewer than two sessions.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ConfigError(f"{len(values)} sessions have no interval: at least 2 are needed")
    generator, found = np.random.default_rng(seed), []
    rows = max(1, CHUNK // values.size)
    for done in range(0, draws, rows):
        drawn = generator.integers(len(values), size=(min(rows, draws - done), len(values)))
        found.append(statistic(values[drawn]))
    low, high = np.quantile(np.concatenate(found), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(statistic(values[None])[0]), float(low), float(high)


def mean(sessions: Floats) -> Floats:
    """Mean over sessions ``(n, S) -> (n,)``."""
    return np.asarray(sessions.mean(axis=1))


def deviation(sessions: Floats) -> Floats:
    """Standard deviation over sessions ``(n, S) -> (n,)``."""
    return np.asarray(sessions.std(axis=1))


def ratio(sessions: Floats) -> Floats:
    """Sum of the first column over the sum of the second ``(n, S, 2) -> (n,)``; NaN where that is 0."""
    total = sessions.sum(axis=1)
    return np.where(total[:, 1] != 0.0, total[:, 0] / np.where(total[:, 1] != 0.0, total[:, 1], 1.0), np.nan)
