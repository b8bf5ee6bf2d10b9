"""A labelled series to measure encoders of blocks on: a Markov chain over four regimes of ticks, its truth kept.

Regimes are {quiet, wild} x {trending, reverting}. With k the regime of tick t, which leaves with probability q to one
of the three others::

    x_t = phi_k x_{t-1} + s_k sqrt(1 - phi_k^2) e_t,   e_t Student-5 of unit variance
    r_t = mu_k + x_t

Six features: the return r, its size |r|, log volume and log spread (both raised in wild regimes, in noise), signed flow
(r in noise), and noise alone. A switch may fall on any tick; the label of a block is the regime of most of its ticks.
As x has mean 0 on every path of regimes, what the next L ticks bring on average is known exactly for each regime; and
as every density is known, so is what a reader of one block alone can expect of them (:func:`block_expectation`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ConfigError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

NAMES = ("quiet trending", "quiet reverting", "wild trending", "wild reverting")
SIZE = np.array([0.6, 0.6, 1.2, 1.2])  # s, deviation of a tick
FOLLOW = np.array([0.33, -0.33, 0.33, -0.33])  # phi
DRIFT = np.array([0.05, -0.05, 0.08, -0.08])  # mu
FREEDOM = 5.0  # of the shocks
RAISED, BLUR = 0.2, 0.5  # log volume and log spread in wild regimes, and their noise
FEATURES = ("return", "size", "volume", "flow", "spread", "noise")


@dataclass(frozen=True, eq=False)
class LabelledSeries:
    """Ticks with their truth.

    Attributes:
        features: ``(T, 6)`` float32. regimes: ``(T,)`` of ticks. labels: ``(N,)`` of blocks.
        outcomes: ``(T,)`` sum of the returns of the L ticks that follow, nan where they do not all exist.
        expected: ``(T,)`` its mean given the regime of the tick, from the parameters.
        block_len: L. leave: q.
    """

    features: NDArray[np.float32]
    regimes: Labels
    labels: Labels
    outcomes: Floats
    expected: Floats
    block_len: int
    leave: float

    @property
    def windows(self) -> NDArray[np.float32]:
        """Blocks ``(N, L, 6)``."""
        return self.features.reshape(len(self.labels), self.block_len, -1)

    def at_ends(self, values: Floats) -> Floats:
        """Of ``(T,)`` values those at the last tick of each block, ``(N,)``."""
        return values[self.block_len - 1 :: self.block_len]


def switching_series(blocks: int, dwell: float, seed: int, block_len: int = 64) -> LabelledSeries:
    """Draw ``blocks`` blocks; a regime lasts ``dwell`` blocks on average.

    Raises:
        ConfigError: no block, or a dwell below one block.
    """
    if blocks < 1 or not dwell >= 1.0:
        raise ConfigError(f"blocks={blocks!r} and dwell={dwell!r} must both be at least 1")
    rng = np.random.default_rng([seed, 0xDEF])
    count, leave = blocks * block_len, 1.0 / (dwell * block_len)
    regimes = _regimes(count, leave, rng)
    shocks = rng.standard_t(FREEDOM, count) * ((FREEDOM - 2.0) / FREEDOM) ** 0.5
    deviation = np.empty(count)
    _recursion(regimes, shocks * (SIZE * np.sqrt(1.0 - FOLLOW**2))[regimes], FOLLOW, deviation)
    returns = DRIFT[regimes] + deviation
    wild = _wild()[regimes]
    noise = rng.standard_normal((count, 4))
    columns = (
        returns, np.abs(returns), RAISED * wild + BLUR * noise[:, 0], 0.4 * returns + noise[:, 1],
        RAISED * wild + BLUR * noise[:, 2], noise[:, 3],
    )  # fmt: skip
    labels = np.array([np.bincount(block, minlength=4).argmax() for block in regimes.reshape(blocks, block_len)])
    summed = np.concatenate([[0.0], np.cumsum(returns)])
    outcomes = np.full(count, np.nan)
    outcomes[: count - block_len] = summed[1 + block_len :] - summed[1:-block_len]
    expected = expected_outcomes(leave, block_len)[regimes]
    features = np.stack(columns, 1).astype(np.float32)
    return LabelledSeries(features, regimes, labels, outcomes, expected, block_len, leave)


def expected_outcomes(leave: float, ticks: int) -> Floats:
    """Mean sum of the next ``ticks`` returns given each regime now, ``(4,)``, where ``leave`` is q."""
    step, ahead, total = _transition(leave), DRIFT.copy(), np.zeros(4)
    for _ in range(ticks):
        ahead = step @ ahead
        total += ahead
    return total


def block_odds(series: LabelledSeries) -> Floats:
    """Odds of each regime at a block's last tick for one who knows the parameters and reads that block alone.

    ``(N, 4)``. The forward recursion over pairs of regimes, as x of the tick before follows from r and the regime it
    was in. The first tick is taken as a Student-5 of deviation s, which its x is but nearly.
    """
    windows = series.windows.astype(np.float64)
    returns, step = windows[:, :, 0], _transition(series.leave)
    raised = RAISED * _wild()
    beside = -0.5 * (((windows[:, :, 2, None] - raised) / BLUR) ** 2 + ((windows[:, :, 4, None] - raised) / BLUR) ** 2)
    spread = SIZE * np.sqrt(1.0 - FOLLOW**2)
    odds = _shares(_log_density((returns[:, :1] - DRIFT) / SIZE) - np.log(SIZE) + beside[:, 0])
    for t in range(1, series.block_len):
        before = returns[:, t - 1, None, None] - DRIFT[None, :, None]
        surprise = (returns[:, t, None, None] - DRIFT - FOLLOW * before) / spread
        likelihood = _log_density(surprise) - np.log(spread) + beside[:, t, None]
        with np.errstate(divide="ignore"):
            pairs = likelihood + np.log(odds[:, :, None] * step)
        odds = np.exp(pairs - pairs.max((1, 2), keepdims=True)).sum(1)
        odds /= odds.sum(1, keepdims=True)
    return odds


def block_expectation(series: LabelledSeries) -> Floats:
    """Mean of a block's outcome given the block alone and the parameters, ``(N,)``: the best there is to estimate."""
    return np.asarray(block_odds(series) @ expected_outcomes(series.leave, series.block_len))


def _transition(leave: float) -> Floats:
    return np.full((4, 4), leave / 3.0) + np.eye(4) * (1.0 - leave - leave / 3.0)


def _wild() -> NDArray[np.bool_]:
    return np.greater(SIZE, SIZE.mean())


def _log_density(x: Floats) -> Floats:
    """Of the shocks, up to a constant."""
    return np.asarray(-0.5 * (FREEDOM + 1.0) * np.log1p(x * x / (FREEDOM - 2.0)))


def _shares(logs: Floats) -> Floats:
    shares = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _regimes(count: int, leave: float, rng: np.random.Generator) -> Labels:
    """Regime of each tick: stays of geometric length, each in one of the three others."""
    switches = rng.random(count) < leave
    moves = rng.integers(1, 4, count) * switches
    result: Labels = (int(rng.integers(0, 4)) + np.cumsum(moves)) % 4
    return result


@compiled
def _recursion(regimes: Labels, shocks: Floats, follow: Floats, out: Floats) -> None:
    before = 0.0
    for t in range(len(regimes)):
        before = follow[regimes[t]] * before + shocks[t]
        out[t] = before
