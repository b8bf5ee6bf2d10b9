"""Probability of backtest overfitting: how often the best of several strategies is below the median afterwards.

Combinatorially symmetric cross-validation (CSCV). The T rows of returns ``(T, N)`` are cut into S blocks of equal
length; each of the C(S, S/2) ways to choose half of them makes an in-sample and an out-of-sample set. The strategy with
the best in-sample Sharpe ratio has rank r of N out of sample, ``w = r / (N + 1)`` and logit ``ln(w / (1 - w))``. The
probability is the share of negative logits.

Deviations from the source: a logit of exactly 0 (the median itself, possible for odd N and for ties) counts a half, so
that strategies without skill give one half for every N; equal performances share their mean rank, and several that are
best in sample count each with an equal part. A strategy without spread in a set has a Sharpe ratio of 0 there.

Source: Bailey, Borwein, Lopez de Prado & Zhu, "The Probability of Backtest Overfitting", J. Computational Finance 20
(2017), section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from agents.metrics import RESOLUTION, Array
from markets.errors import ConfigError

BLOCKS = 16  # of the source: 12,870 ways
LEAST_ROWS = 10  # of a block


@dataclass(frozen=True)
class Overfitting:
    """What :func:`probability_of_overfitting` found.

    Attributes:
        probability: share of the ways in which the chosen strategy falls below the median out of sample.
        logits: ``(ways,)`` mean logit of the chosen strategies. degradation: slope of out-of-sample on in-sample Sharpe
            ratios of the chosen ones, over the ways; nan where the latter do not vary.
        loss: share of the ways in which the chosen strategy has a negative Sharpe ratio out of sample.
        strategies, blocks: N and S.
    """

    probability: float
    logits: Array
    degradation: float
    loss: float
    strategies: int
    blocks: int


def blocks_for(rows: int) -> int:
    """Return the largest even number of blocks up to 16 that leaves each 10 rows at least; 0 where not even 2 do."""
    return min(BLOCKS, rows // LEAST_ROWS // 2 * 2)


def probability_of_overfitting(returns: npt.ArrayLike, blocks: int = BLOCKS) -> Overfitting:
    """Estimate the probability from simple returns ``(T, N)`` of N strategies over the same T periods.

    What is left over by ``T / blocks`` is cut from the beginning.

    Raises:
        ConfigError: not two strategies at least, a number of blocks that is odd or below 2 or above 16, fewer than 2
            rows in a block, a value that is not finite.
    """
    table = np.asarray(returns, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ConfigError(f"returns has shape {table.shape}, expected (periods, strategies) with at least 2 strategies")
    if (
        isinstance(blocks, bool)
        or not isinstance(blocks, int | np.integer)
        or blocks < 2
        or blocks % 2
        or blocks > BLOCKS
    ):
        raise ConfigError(f"blocks={blocks!r} must be even, from 2 to {BLOCKS}")
    rows, size = len(table), len(table) // blocks
    if size < 2:
        raise ConfigError(f"blocks={blocks}: {rows} rows leave {size} in a block, at least 2 are needed")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ConfigError(f"returns[{row}, {column}]={table[row, column]} is not finite")
    inside, outside = _sharpes(table[rows - size * blocks :], blocks)
    ranks = _ranks(outside)
    share = ranks / (table.shape[1] + 1.0)
    logit = np.log(share / (1.0 - share))
    best = inside == inside.max(axis=1, keepdims=True)
    weight = best / best.sum(axis=1, keepdims=True)
    below = np.where(np.abs(logit) < 1e-12, 0.5, logit < 0.0)
    chosen_in, chosen_out = inside.max(axis=1), (weight * outside).sum(axis=1)
    spread = chosen_in.std() > RESOLUTION
    return Overfitting(
        probability=float((weight * below).sum(axis=1).mean()),
        logits=(weight * logit).sum(axis=1),
        degradation=float(np.polyfit(chosen_in, chosen_out, 1)[0]) if spread else float("nan"),
        loss=float((weight * (outside < 0.0)).sum(axis=1).mean()),
        strategies=table.shape[1],
        blocks=blocks,
    )


def _sharpes(table: Array, blocks: int) -> tuple[Array, Array]:
    """Per-period Sharpe ratios in and out of sample, both ``(ways, N)``, from sums over blocks."""
    count = len(table)
    shifted = table - table.mean(axis=0)  # sums of squares without cancellation
    parts = shifted.reshape(blocks, count // blocks, -1)
    sums, squares = parts.sum(axis=1), (parts**2).sum(axis=1)
    ways = list(combinations(range(blocks), blocks // 2))
    member = np.zeros((len(ways), blocks))
    member[np.arange(len(ways))[:, None], np.array(ways)] = 1.0
    found = []
    for chosen in (member, 1.0 - member):
        half = count / 2.0
        mean = chosen @ sums / half
        variance = (chosen @ squares / half - mean**2) * half / (half - 1.0)
        moving = variance > (RESOLUTION * (1.0 + np.abs(table).max())) ** 2 + 1e-12 * table.var(axis=0)
        found.append(np.where(moving, (mean + table.mean(axis=0)) / np.sqrt(np.where(moving, variance, 1.0)), 0.0))
    return found[0], found[1]


def _ranks(values: Array) -> Array:
    """Ranks 1..N of each row, ties at their mean."""
    ordered = np.sort(values, axis=1)
    result = np.empty_like(values)
    for row, (line, order) in enumerate(zip(values, ordered, strict=True)):
        result[row] = 0.5 * (np.searchsorted(order, line, "left") + np.searchsorted(order, line, "right") + 1)
    return result
