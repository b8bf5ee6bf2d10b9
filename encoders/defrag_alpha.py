"""Alpha: what followed the neighbours of a window on average, with its standard error and interval.

``a = sum w_i y_i``, ``se^2 = n / (n - 1) sum w_i^2 (y_i - a)^2`` with weights that sum to 1 over the n known outcomes
(Cochran 1977, ratio of means, equal denominators). The interval at level p is ``a +- 1.1 t_p(n - 1) se``: Student's t,
as 16 neighbours tell the spread of their outcomes but roughly. It is one of the mean outcome, not of the outcome.

The 1.1 is measured, not derived. For 16 blocks drawn at random from the true regime, t alone covers at its nominal rate
(.80 and .95); for 16 chosen by likeness, now and then of another regime, it covers .75 to .78 and .92 to .94 on
:mod:`encoders.defrag_series` (mean stays of 8 and 32 blocks, 112 seeds; ``docs/defrag.md`` has the rate on others).
Outcomes are taken as independent: with a horizon above a block's length those of adjacent blocks overlap, and the
interval is too narrow as well.
"""

from __future__ import annotations

import numpy as np

from encoders.defrag_router import Neighbours
from encoders.student import t_quantile

CHOSEN = 1.1  # neighbours are chosen and not drawn: see above


def weighted_outcome(found: Neighbours) -> tuple[np.float64, int, np.float64]:
    """Return the weighted mean of known outcomes, their count, and the mean's standard error.

    All nan and 0 where there is no outcome; the error is nan below two.
    """
    known = ~np.isnan(found.outcomes)
    count = int(known.sum())
    total = found.weights[known].sum() if count else 0.0
    if not total > 0.0:
        return np.float64(np.nan), 0, np.float64(np.nan)
    weights, values = found.weights[known] / total, found.outcomes[known]
    mean = np.float64(weights @ values)
    if count < 2:
        return mean, count, np.float64(np.nan)
    apart = weights * (values - mean)
    return mean, count, np.float64(np.sqrt(count / (count - 1.0) * (apart @ apart)))


def alpha_interval(mean: float, count: int, error: float, level: float) -> tuple[float, float]:
    """Return the ends of the interval at ``level`` (in (0, 1)); both nan below two outcomes.

    Raises:
        ConfigError: a level outside (0, 1).
    """
    if count < 2:
        return np.nan, np.nan
    reach = CHOSEN * t_quantile(level, count - 1) * float(error)
    return float(mean) - reach, float(mean) + reach
