"""What a table of agents is worth after everything that was tried: deflated Sharpe ratios and overfitting.

The number of trials N is that of different training runs known on the bars (:mod:`agents.trial_registry`) or at hand,
since picking the best seed is a choice like any other. Their spread is that of the validation Sharpe ratios per
period, on which runs are chosen; where fewer than two are known it is ``1 / sqrt(T)``, what T returns of strategies
without skill have, and it is no less than that where fewer than ten are. The deflated Sharpe ratio of a test split that
nobody chose on is stricter than it had to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents import metrics
from agents.deflated_sharpe import deflated_sharpe, expected_maximum_sharpe, minimum_backtest_years
from agents.evaluation import DRAWS, WEEK, Walk, scored_curve
from agents.overfitting import blocks_for, probability_of_overfitting
from agents.selection import CLASSES, select
from agents.trial_registry import Trials

FEW = 10  # scored trials, or strategies of a PBO, below which their spread says little


def deflate(walks: Mapping[str, Walk], names: Sequence[str], trials: Trials, periods_per_year: float) -> dict[str, Any]:
    """Return what was tried, and ``rows``: name -> deflated Sharpe ratio (a probability) of each named walk.

    It is None for a walk without spread, whose Sharpe ratio is not defined. ``chance_sharpe`` is the annual Sharpe
    ratio that the best of the trials shows without skill (the spread of fewer than ``FEW`` scored trials is luck
    itself: there it is no less than the error of a ratio, 1/sqrt(T)), ``minimum_years`` the length below which that is
    above 1, ``years`` the length there is.
    """
    rows: dict[str, float | None] = {}
    chance = years = 0.0
    for name in names:
        curve, periods = _curve(walks[name], periods_per_year)
        returns = metrics.simple_returns(curve)
        years = len(returns) / periods
        deviation = 1.0 / math.sqrt(len(returns))  # of ratios without skill
        if trials.deviation is not None:
            deviation = trials.deviation if trials.scored >= FEW else max(trials.deviation, deviation)
        chance = expected_maximum_sharpe(max(trials.runs, 1), deviation) * math.sqrt(periods)
        rows[name] = None
        if metrics.annual_volatility(curve, periods) > 0.0:
            rows[name] = deflated_sharpe(
                metrics.sharpe(curve, 1.0), len(returns), metrics.skewness(curve), metrics.excess_kurtosis(curve) + 3.0,
                max(trials.runs, 1), deviation,
            )  # fmt: skip
    return {
        "configurations": trials.configurations,
        "runs": trials.runs,
        "scored": trials.scored,
        "chance_sharpe": chance,
        "minimum_years": minimum_backtest_years(max(trials.runs, 1)),
        "years": years,
        "rows": rows,
    }


def overfitting(walks: Mapping[str, Walk], names: Sequence[str], periods_per_year: float) -> dict[str, Any] | None:
    """Return the probability of overfitting over the named walks, with the numbers of strategies, periods and blocks.

    None for fewer than two, and where the split has under 20 periods (bars, or sessions where an episode is one).
    """
    if len(names) < 2:
        return None
    table = np.stack([metrics.simple_returns(_curve(walks[name], periods_per_year)[0]) for name in names], axis=1)
    blocks = blocks_for(len(table))
    if not blocks:
        return None
    found = probability_of_overfitting(table, blocks)
    return {
        "probability": found.probability,
        "loss": found.loss,
        "strategies": found.strategies,
        "blocks": found.blocks,
        "ways": len(found.logits),
        "periods": len(table),
    }


def best_by_validation(
    walks: Mapping[str, Walk], names: Sequence[str], periods_per_year: float
) -> dict[str, Any] | None:
    """Return which of the named validation walks :func:`agents.selection.select` chooses, ratios annual.

    ``candidates`` has them best first, with ratio, interval and class; ``skilled`` and ``ahead`` as there. None for a
    split of one period.
    """
    returns, periods = {}, periods_per_year
    for name in names:
        curve, periods = _curve(walks[name], periods_per_year)
        returns[name] = metrics.simple_returns(curve)
    count = len(returns[names[0]])
    if count < 2:
        return None
    found = select(returns, min(max(periods * WEEK, 1.0), max(count / 2.0, 1.0)), draws=DRAWS)
    annual = math.sqrt(periods)
    return {
        "chosen": found.name,
        "skilled": found.skilled,
        "ahead": found.ahead,
        "candidates": {
            name: {
                "sharpe": annual * candidate.sharpe,
                "interval": None if candidate.interval is None else [annual * bound for bound in candidate.interval],
                "class": CLASSES[candidate.rank],
            }
            for name, candidate in found.candidates.items()
        },
    }


def _curve(walk: Walk, periods_per_year: float) -> tuple[Any, float]:
    return scored_curve(walk, walk.scales.index(1.0), periods_per_year)
