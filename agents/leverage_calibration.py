"""Calibration of a leverage control, on the bars of one split and nothing else.

Multipliers give every regime the same risk. With r_{t+1} the log return of the bar after t, both bars of the split,
k(t) the most likely regime at the close of t, n_k how many bars have it and s_k the deviation of their r_{t+1}, s that
of all n::

    v_k = (n_k s_k^2 + n_0 s^2) / (n_k + n_0)      a regime of few bars is taken for an ordinary one; n_0 = 200
    m_k = c s / sqrt(v_k),   sum_k n_k m_k = n     so that multipliers are 1 on average, and a shape without a level
    then clipped to 0.25 .. 2

The level is the base leverage. :func:`matched` finds the one at which a policy behind the control has the mean absolute
exposure that it has without it, again on bars of that split: what differs after that is when it is held.

Source: Moreira & Muir, "Volatility-Managed Portfolios", J. Finance 72 (2017), who scale by the inverse of the variance.
By the inverse of the deviation, as here, each regime has the same volatility, and errors of the estimate cost less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.simulation import Game
from markets.errors import ConfigError

LOWEST, HIGHEST = 0.25, 2.0
PRIOR = 200.0  # n_0, bars
TOLERANCE = 0.01  # of the mean absolute exposure, relative
ROUNDS = 16  # walks at most
HELD = 0.001  # mean absolute exposure below which a policy holds nothing that could be matched


@dataclass(frozen=True)
class Calibration:
    """Multipliers by regime, calmest first, and what they were made from.

    Attributes:
        multipliers: ``m_k``. counts: ``n_k``. deviations: ``s_k`` of a bar, 0 where a regime has fewer than 2 bars.
        first, last: rows of the bars whose closes were read, both included.
    """

    multipliers: tuple[float, ...]
    counts: tuple[int, ...]
    deviations: tuple[float, ...]
    first: int
    last: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def calibrated(game: Game) -> Calibration:
    """Calibrate the multipliers on the split of a game.

    Raises:
        ConfigError: a game without an encoder, or of several symbols.
    """
    encoded = game.encoded
    if encoded is None or not encoded.regimes or len(game.bars.symbols) > 1:
        raise ConfigError("multipliers are calibrated by an encoder's regimes of one symbol: pass encoded='jepa'")
    rows = slice(game.first, game.last + 1)
    regime = encoded.table.values[rows, -encoded.regimes :].argmax(axis=1)
    return of_returns(np.diff(np.log(game.bars.close[rows, 0])), regime[:-1], encoded.regimes, game.first, game.last)


def of_returns(
    returns: npt.ArrayLike, regime: npt.ArrayLike, count: int, first: int = 0, last: int = 0
) -> Calibration:  # fmt: skip
    """Calibrate from log returns ``(T,)`` and the regime ``(T,)`` known before each of them, of ``count`` regimes.

    Raises:
        ConfigError: lengths that differ, or returns without any spread.
    """
    values, known = np.asarray(returns, np.float64), np.asarray(regime)
    if values.ndim != 1 or values.shape != known.shape or len(values) < 2:
        raise ConfigError(f"returns {values.shape} and regimes {known.shape} must be two series of one length")
    whole = float(values.var())
    if not whole > 0.0:
        raise ConfigError("returns without any spread have no volatility by regime")
    counts = np.bincount(known, minlength=count)
    own = np.array([values[known == k].var() if counts[k] > 1 else 0.0 for k in range(count)])
    shrunk = (counts * own + PRIOR * whole) / (counts + PRIOR)
    shape = np.sqrt(whole / shrunk)
    shape *= len(values) / float((counts * shape).sum())
    return Calibration(
        multipliers=tuple(float(value) for value in np.clip(shape, LOWEST, HIGHEST)),
        counts=tuple(int(value) for value in counts),
        deviations=tuple(float(value) for value in np.sqrt(own)),
        first=int(first),
        last=int(last),
    )


@dataclass(frozen=True)
class Match:
    """A base leverage and how well it does.

    Attributes:
        base_leverage: b. wanted, reached: mean absolute exposures. matched: they agree within ``TOLERANCE``.
        why: what kept them apart, where something did.
    """

    base_leverage: float
    wanted: float
    reached: float
    matched: bool
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def matched(exposure: Callable[[float], float], wanted: float, start: float, most: float) -> Match:
    """Find the base leverage at which ``exposure(base)`` is ``wanted``.

    Exposure is about proportional to the base, which gives the next one to try; where that lies outside of what is
    known to be too little and too much, and every third time, it is the geometric mean of these two.

    Args:
        exposure: mean absolute exposure of a walk at a base leverage.
        start: the first one tried, from 1 to ``most``, the largest.
    """
    if wanted < HELD:
        return Match(start, wanted, exposure(start), False, "nothing is held that could be matched")
    low, high, base = 1.0, most, start
    best = Match(start, wanted, math.inf, False)
    for step in range(1, ROUNDS + 1):
        reached = exposure(base)
        if abs(reached - wanted) < abs(best.reached - wanted):
            best = Match(base, wanted, reached, abs(reached - wanted) <= TOLERANCE * wanted)
        if best.matched or high < 1.0001 * low:
            break
        low, high = (base, high) if reached < wanted else (low, base)
        base *= wanted / max(reached, HELD * wanted)
        if step % 3 == 0 or not low < base < high:
            base = math.sqrt(low * high)
    return best if best.matched else replace(best, why="no base leverage reaches it")
