"""How many bars a belief filter needs before it no longer matters where its history began."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LONGEST = 4096  # bars; what cannot be measured on a short series is taken to be this long
STARTS = 256  # rows of the series at which a second history begins
GAP = 1e-7  # of an odds: below the last digit of the float32 that is served
MARGIN = 1.25  # other bars may say less about the regime than these did


class Filter(Protocol):
    """What is measured: a filter that begins anew with every table."""

    def table(self, returns: Floats) -> Floats:
        """Return ``(T, K)`` odds of ``(T,)`` returns."""


def forgetting(served: Filter, returns: Floats, longest: int = LONGEST) -> int:
    """Return the bars after which a filter begun anywhere in ``returns`` equals one that saw all of them.

    Measured from :data:`STARTS` rows: the last bar at which an odds still differs by more than :data:`GAP`, the worst
    of all starts, a quarter added. At most ``longest``, which is also the answer where it was not reached.
    """
    whole = served.table(returns)
    bars = len(returns)
    span = min(longest, bars // 2)
    worst = 0
    for begin in np.unique(np.linspace(bars // 8, bars - span, STARTS).astype(int)).tolist():
        fresh = served.table(returns[begin : begin + span])
        apart = np.flatnonzero(np.abs(fresh - whole[begin : begin + span]).max(axis=1) > GAP)
        worst = max(worst, int(apart[-1]) + 1 if len(apart) else 0)
    return longest if worst >= span else min(longest, math.ceil(MARGIN * worst))
