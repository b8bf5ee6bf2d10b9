"""Report by regime: return, falls, turnover, exposure, funding and costs of each regime, and what entering one costs.

A step trades one bar. It belongs to the *true* regime of that bar where the market is generated; where there are no
true labels, to the regime that the encoder held most likely at the decision, at the close of the bar before, so that
nothing is sorted by what the step itself brought. Every step belongs to one regime: counts add up to the steps, log
growth to that of the walk, money to its totals.

*Transition cost* of a regime: fees, spread and impact in its first ``window`` bars after each change into it, as a
fraction of the equity before each step, averaged over the entries. The drawdown is that of the regime's own steps, put
one after the other.

*Interval of the mean return*: the mean of a regime is a ratio, return earned in it over steps spent in it, and both
depend on their neighbours. The stationary bootstrap resamples the whole walk in blocks, other regimes included, and the
ratio enters by its linear part ``1[regime] (gain - mean) / share`` (Cochran 1977, ratio estimates).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import bootstrap, metrics
from agents.evaluation import DRAWS, WEEK, Steps, Walk
from envs.simulation import Game
from markets.errors import ConfigError
from markets.symbols import base_asset

WINDOW = 5  # bars after a change that its costs are counted in
BLOCKS = 2000  # of a walk at most: a regime so short that it needs more has no interval
FEWEST = 10  # blocks that a regime has at least: they are made shorter where it has few steps
OWED = ("funding", "borrow")  # what an account pays for holding, of which a family has one


def regimes_of(game: Game) -> tuple[NDArray[np.int64], tuple[str, ...], str]:
    """Return the regime of a step that trades bar t, ``(T,)`` for every bar, the regimes' names, and whose they are.

    A portfolio has one regime at a time: that of its first coin, by an encoder, or of the market its coins share.

    Raises:
        ConfigError: neither true labels nor an encoder.
    """
    bars, encoded = game.bars, game.encoded
    if bars.labels is not None:
        count = int(bars.labels.max()) + 1
        names = tuple(bars.label_names) or tuple(f"regime {number}" for number in range(count))
        return bars.labels.astype(np.int64), names, "true"
    place = None if encoded is None else next((key for key in encoded.facts if key.endswith("_regime")), None)
    if encoded is None or place is None:
        raise ConfigError(
            f"{bars.source!r} has no true regimes and {game.recipe[0]} no encoder that tells any: a report by regime "
            "needs a generated market (synthetic:..) or agents of an id with an encoder, such as PerpFutures-JEPA-v0"
        )
    told = encoded.facts[place].astype(np.int64)
    names = tuple(f"regime {number}" for number in range(int(told.max()) + 1))
    return np.concatenate([told[:1], told[:-1]]), names, f"encoder {encoded.name}"


def asset_of(game: Game, source: str) -> str:
    """Return whose regimes they are, as words; empty where there is one asset."""
    bars = game.bars
    if len(bars.symbols) == 1:
        return ""
    if source == "true":
        return f"the common market of the {len(bars.symbols)} coins"
    return f"{base_asset(bars.symbols[0])}, the first of {len(bars.symbols)} coins"


def by_regime(walks: Mapping[str, Walk], game: Game, window: int = WINDOW) -> dict[str, Any]:
    """Return ``source`` and ``asset`` of the regimes, ``window``, and ``rows``: agent -> regime -> :func:`statistics`.

    ``game`` is of the market that was walked.

    Raises:
        ConfigError: as :func:`regimes_of`; walks that were not written down step by step.
    """
    regime, names, source = regimes_of(game)
    rows = {}
    for name, walk in walks.items():
        if walk.steps is None:
            raise ConfigError(f"the walk of {name!r} was not written down step by step")
        rows[name] = statistics(walk.steps, regime[walk.steps.row], names, game.bars.periods_per_year, window)
    return {"source": source, "asset": asset_of(game, source), "window": window, "rows": rows}


def statistics(
    steps: Steps, regime: NDArray[np.int64], names: tuple[str, ...], periods_per_year: float, window: int = WINDOW
) -> dict[str, dict[str, Any]]:
    """Return the scores of each regime that has a step, by name.

    ``steps``, ``share`` of them, ``entries`` (runs of steps in it); ``log_growth`` (adds up), ``total_return``,
    ``mean_return`` with ``mean_return_interval`` (:func:`mean_interval`, 95 %) and ``deviation`` per step, ``sharpe``
    (annual), ``max_drawdown``; ``turnover_per_year``, ``mean_exposure``, ``mean_absolute_exposure``; ``costs``, and
    ``funding`` or ``borrow`` (where the family has one; positive is paid) in money; ``transition_cost``, a fraction of
    equity per entry, and ``transition_share`` of the regime's costs.
    """
    change = np.concatenate([[True], regime[1:] != regime[:-1]])
    since = np.arange(len(regime)) - np.maximum.accumulate(np.where(change, np.arange(len(regime)), 0))
    entered = change.copy()
    entered[0] = False  # a walk begins in a regime, it does not change into it
    early = (since < window) & (np.cumsum(entered) > 0)
    found = {}
    for number, name in enumerate(names):
        here = regime == number
        count = int(here.sum())
        if not count:
            continue
        gains, costs = steps.gain[here], steps.costs[here]
        curve = np.concatenate([[1.0], np.cumprod(1.0 + gains)])
        entries = int((entered & here).sum())
        cost = float((steps.costs / np.maximum(steps.equity, 1e-9))[here & early].sum())
        found[name] = {
            "steps": count,
            "share": count / len(regime),
            "entries": entries,
            "log_growth": float(np.log1p(gains).sum()),
            "total_return": metrics.total_return(curve),
            "mean_return": float(gains.mean()),
            "mean_return_interval": mean_interval(steps.gain, here, periods_per_year * WEEK),
            "deviation": float(gains.std(ddof=1)) if count > 1 else 0.0,
            "sharpe": metrics.sharpe(curve, periods_per_year),
            "max_drawdown": metrics.max_drawdown(curve),
            "turnover_per_year": float(steps.turnover[here].mean() * periods_per_year),
            "mean_exposure": float(steps.exposure[here].mean()),
            "mean_absolute_exposure": float(np.abs(steps.exposure[here]).mean()),
            "costs": float(costs.sum()),
            **{owed: float(steps.items[owed][here].sum()) for owed in OWED if owed in steps.items},
            "transition_cost": cost / entries if entries else 0.0,
            "transition_share": float(steps.costs[here & early].sum() / costs.sum()) if costs.sum() > 0.0 else 0.0,
        }
    return found


def mean_interval(
    gain: NDArray[np.float64], here: NDArray[np.bool_], mean_block: float, seed: int = 0
) -> list[float] | None:
    """Return the 95 % interval of the mean of ``gain (T,)`` over the steps ``here (T,)``; None where they are too few.

    Blocks have ``mean_block`` steps on average, or a tenth of the regime's steps where that is less; the interval is
    widened as one of so many steps as the regime has (:func:`agents.bootstrap.widening`).
    """
    count, steps = int(here.sum()), len(gain)
    block = min(mean_block, count / FEWEST)
    if block < max(1.0, steps / BLOCKS):
        return None
    mean = float(gain[here].mean())
    part = np.where(here, gain - mean, 0.0)
    size = float(np.abs(part).max())
    if size == 0.0:
        return [mean, mean]
    drawn = bootstrap.bootstrap_statistic(part / size, "mean", mean_block=block, draws=DRAWS, seed=seed)
    low, high = np.quantile(drawn, (0.025, 0.975)) * size * steps / count * bootstrap.widening(count, block)
    return [mean + float(low), mean + float(high)]
