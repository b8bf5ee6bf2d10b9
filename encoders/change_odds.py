"""Odds of a change of regime, from a filter's odds and its chain: within the last bars, and within the next ones.

With b_t the filter's odds after bar t and P the chain, in a hidden Markov model the regime before bar s, given the one
at s and everything known, depends on the bars before s only::

    stay_s(k)  = P(k_{s-1} = k | k_s = k, r_1..r_t) = b_{s-1}(k) P_kk / (b_{s-1} P)(k)           any t >= s
    recent_t   = 1 - sum_k b_t(k) prod_{s = t-h+1 .. t} stay_s(k)       the regime changed within the last h bars
    coming_t   = 1 - sum_k b_t(k) P_kk^h                                it changes within the next h bars

``recent`` is exact under the model: the probability of the event itself, over all paths. The distance of b_t from
b_{t-h} is not: it is large after a change of mind about one long spell, and small where two regimes alternate. Causal,
O(h K) a bar whatever the length of the history, and it needs no density, so odds that came from elsewhere (the exact
posterior of a generated market) can be read with their own chain. Odds of a softmax or of k-means are no filter's.

Source: L. Rabiner (1989), "A Tutorial on Hidden Markov Models", for the recursions; the product is their consequence.
Shapes: T bars, K regimes, h bars looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]

SHARE = 1 / 6  # of the mean spell that is looked back on where nobody says otherwise: a change there is rare, 15 %
LONGEST = 4096  # bars that are looked back on then: a chain that hardly ever leaves would ask for all memory
LIKELY = 0.7  # odds from which a change is taken to have happened; below half of it the next one may be


def usual_window(chain: Any) -> int:
    """Return a sixth of the mean spell of a chain ``(K, K)``, in whole bars, at least 2 and at most 4,096.

    The longer the window, the more certain is a change in it before anything was seen; a window of a mean spell or
    more says nothing.
    """
    matrix = np.asarray(chain, np.float64)
    shares = np.linalg.matrix_power(matrix, 2**20).mean(axis=0)
    leaving = float(shares @ (1.0 - np.diag(matrix)))
    return min(max(2, round(SHARE / max(leaving, 1e-9))), LONGEST)


def recent_change(odds: Any, chain: Any, within: int | None = None) -> Floats:
    """Return the probability that the regime changed within the last ``within`` bars: ``(T, K)`` odds to ``(T,)``.

    Row t knows odds 0..t; before ``within`` bars have passed it speaks of the bars since row 0, which itself is 0.

    Args:
        within: h, :func:`usual_window` where None.

    Raises:
        DataError: odds or chain that are not finite, or whose shapes do not fit. ConfigError: ``within`` below 1.
    """
    table, matrix, within = _checked(odds, chain, within)
    stream = ChangeStream(matrix, within)
    out = np.empty(len(table))
    _run(table, matrix, stream.ring, stream.last, out)
    return out


def coming_change(odds: Any, chain: Any, within: int | None = None) -> Floats:
    """Return the probability that the regime changes within the next ``within`` bars: ``(T, K)`` odds to ``(T,)``."""
    table, matrix, within = _checked(odds, chain, within)
    return np.clip(1.0 - table @ np.diag(matrix) ** within, 0.0, 1.0)


def change_flags(recent: Floats, least: float = LIKELY) -> NDArray[np.bool_]:
    """Flag the bars at which the odds of :func:`recent_change` rise to ``least``: ``(T,)``, causal.

    After a flag there is no other before they have fallen below half of ``least``: odds that tremble about the
    threshold are one change.

    Raises:
        ConfigError: ``least`` outside 0 to 1.
    """
    if not 0.0 < least < 1.0:
        raise ConfigError(f"least={least!r} must be between 0 and 1")
    flags, armed = np.zeros(len(recent), bool), True
    for row, value in enumerate(np.asarray(recent, np.float64).tolist()):
        if armed and value >= least:
            flags[row], armed = True, False
        elif value < 0.5 * least:
            armed = True
    return flags


class ChangeStream:
    """The live face of :func:`recent_change`: odds of one bar in, a probability out, the same numbers."""

    def __init__(self, chain: Any, within: int | None = None) -> None:
        matrix = np.ascontiguousarray(chain, np.float64)
        within = _window(matrix, within)
        self.chain = matrix
        self.ring = np.ones((within, len(matrix)))  # stay_s of the last bars; 1 where there was none
        self.last = np.full(len(matrix) + 1, -1.0)  # odds of the bar before (-1: none yet), place in the ring

    def update(self, odds: Any) -> float:
        """Take the odds ``(K,)`` after a closed bar.

        Raises:
            DataError: another number of regimes, or odds that are not finite; the state is as it was.
        """
        row = np.ascontiguousarray(odds, np.float64)
        if row.shape != (len(self.chain),) or not np.isfinite(row).all():
            raise DataError(f"odds {row!r} must be {len(self.chain)} finite numbers")
        out = np.empty(1)
        _run(row[None], self.chain, self.ring, self.last, out)
        return float(out[0])

    def state_dict(self) -> dict[str, Floats]:
        """Return what has to be kept to go on after a restart."""
        return {"ring": self.ring.copy(), "last": self.last.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.ring[...], self.last[...] = state["ring"], state["last"]


@compiled
def _run(odds: Floats, chain: Floats, ring: Floats, last: Floats, out: Floats) -> None:
    within, count = ring.shape
    for t in range(odds.shape[0]):
        if last[0] >= 0.0:
            place = int(last[count])
            for k in range(count):
                arriving = 0.0
                for j in range(count):
                    arriving += last[j] * chain[j, k]
                ring[place, k] = last[k] * chain[k, k] / arriving if arriving > 0.0 else 0.0
            last[count] = (place + 1) % within
        else:
            last[count] = 0.0
        stayed = 0.0
        for k in range(count):
            product = odds[t, k]
            for s in range(within):
                product *= ring[s, k]
            stayed += product
        out[t] = min(max(1.0 - stayed, 0.0), 1.0)
        for k in range(count):
            last[k] = odds[t, k]


def _checked(odds: Any, chain: Any, within: int | None) -> tuple[Floats, Floats, int]:
    table, matrix = np.ascontiguousarray(odds, np.float64), np.ascontiguousarray(chain, np.float64)
    if table.ndim != 2 or matrix.shape != (table.shape[1], table.shape[1]):
        raise DataError(f"odds {table.shape} and chain {matrix.shape}, expected (T, K) and (K, K)")
    if not np.isfinite(matrix).all():
        raise DataError("the chain holds a number that is not finite")
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        raise DataError(f"odds: row {int(np.argmin(finite))} is not finite")
    return table, matrix, _window(matrix, within)


def _window(chain: Floats, within: int | None) -> int:
    if within is None:
        return usual_window(chain)
    if not isinstance(within, int | np.integer) or isinstance(within, bool) or within < 1:
        raise ConfigError(f"within={within!r} must be a whole number of bars of at least 1")
    return int(within)
