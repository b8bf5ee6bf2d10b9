"""Report by regime: return, falls, turnover, exposure, funding and costs of each regime, and what entering one costs.

A step trades one bar. It belongs to the *true* regime of that bar where the market is generated; where there are no
true labels, to the regime that the encoder held most likely at the decision, at the close of the bar before, so that
nothing is sorted by what the step itself brought. Every step belongs to one regime: counts add up to the steps, log
growth to that of the walk, money to its totals.

*Transition cost* of a regime: fees, spread and impact in its first ``window`` bars after each change into it, as a
fraction of the equity before each step, averaged over the entries. The drawdown is that of the regime's own steps, put
one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import metrics
from agents.evaluation import Steps, Walk
from envs.simulation import Game
from markets.errors import ConfigError

WINDOW = 5  # bars after a change that its costs are counted in


def regimes_of(game: Game) -> tuple[NDArray[np.int64], tuple[str, ...], str]:
    """Return the regime of a step that trades bar t, ``(T,)`` for every bar, the regimes' names, and whose they are.

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


def by_regime(walks: Mapping[str, Walk], game: Game, window: int = WINDOW) -> dict[str, Any]:
    """Return ``source`` of the regimes, ``window``, and ``rows``: agent -> regime -> :func:`statistics`.

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
    return {"source": source, "window": window, "rows": rows}


def statistics(
    steps: Steps, regime: NDArray[np.int64], names: tuple[str, ...], periods_per_year: float, window: int = WINDOW
) -> dict[str, dict[str, float]]:
    """Return the scores of each regime that has a step, by name.

    ``steps``, ``share`` of them, ``entries`` (runs of steps in it); ``log_growth`` (adds up), ``total_return``,
    ``mean_return`` and ``deviation`` per step, ``sharpe`` (annual), ``max_drawdown``; ``turnover_per_year``,
    ``mean_exposure``, ``mean_absolute_exposure``; ``costs``, ``funding`` (where the family has some; positive is paid)
    in money; ``transition_cost``, a fraction of equity per entry, and ``transition_share`` of the regime's costs.
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
            "deviation": float(gains.std(ddof=1)) if count > 1 else 0.0,
            "sharpe": metrics.sharpe(curve, periods_per_year),
            "max_drawdown": metrics.max_drawdown(curve),
            "turnover_per_year": float(steps.turnover[here].mean() * periods_per_year),
            "mean_exposure": float(steps.exposure[here].mean()),
            "mean_absolute_exposure": float(np.abs(steps.exposure[here]).mean()),
            "costs": float(costs.sum()),
            **({"funding": float(steps.items["funding"][here].sum())} if "funding" in steps.items else {}),
            "transition_cost": cost / entries if entries else 0.0,
            "transition_share": float(steps.costs[here & early].sum() / costs.sum()) if costs.sum() > 0.0 else 0.0,
        }
    return found
