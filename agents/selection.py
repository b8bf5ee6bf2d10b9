"""Selection: which of several agents to trust with the next period, by validation returns and their intervals.

An ensemble that takes the highest Sharpe ratio can be won by doing nothing: an account without a trade has no spread,
and whatever number stands for its undefined ratio (0, or an infinity) beats every agent in a bad quarter. A cautious
rule ("highest lower bound") has the same hole: 0 is above the lower bound of an agent with real but noisy skill. Here
agents are put into classes first:

2. *earning*: spread, and a Sharpe ratio above 0. Among them the highest lower bound of its interval is taken.
1. *flat*: no spread and no loss; the ratio is undefined and reported as 0 with no interval. The highest mean is taken.
0. *losing*: a Sharpe ratio of 0 or less; the highest lower bound is taken. A loss without spread comes last of all.

The highest class that is not empty wins. So idle is chosen where everything else lost, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents import bootstrap
from agents.metrics import RESOLUTION, vector
from markets.errors import ConfigError

EARNING, FLAT, LOSING = 2, 1, 0


@dataclass(frozen=True)
class Candidate:
    """An agent's validation: per-period Sharpe ratio, its interval (None without spread), mean return, class."""

    sharpe: float
    interval: tuple[float, float] | None
    mean: float
    rank: int


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        name: the agent. candidates: all of them by name, best first.
        skilled: the interval of the chosen one lies above 0.
        ahead: the interval of its Sharpe ratio less that of the second lies above 0; False where there is no second,
            and where either has no spread, so that there is no difference to speak of.
    """

    name: str
    candidates: dict[str, Candidate]
    skilled: bool
    ahead: bool


def select(
    returns: Mapping[str, npt.ArrayLike], mean_block: float, draws: int = 1_000, level: float = 0.95, seed: int = 0
) -> Selection:
    """Choose an agent by its simple returns ``(T,)`` over the same validation periods.

    ``mean_block`` in periods; draws, level and seed are of the stationary bootstrap. Ties go to the name given first.

    Raises:
        ConfigError: no agent, series of unequal length, or what :func:`agents.bootstrap.confidence_interval` refuses.
    """
    if not returns:
        raise ConfigError("returns names no agent to choose from")
    series = {name: vector(f"returns of {name!r}", values, least=2) for name, values in returns.items()}
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"returns cover unequal periods, {lengths}: agents are compared over the same ones")
    found: dict[str, Candidate] = {}
    for name, values in series.items():
        mean, spread = float(values.mean()), float(values.std(ddof=1))
        if spread <= RESOLUTION * (1.0 + float(np.abs(values).max())):
            found[name] = Candidate(0.0, None, mean, FLAT if mean >= 0.0 else LOSING)
            continue
        bounds = bootstrap.confidence_interval(
            values, "sharpe", mean_block=mean_block, draws=draws, level=level, seed=seed
        )
        found[name] = Candidate(mean / spread, bounds, mean, EARNING if mean > 0.0 else LOSING)
    order = sorted(found, key=lambda name: _merit(found[name]), reverse=True)
    best = found[order[0]]
    ahead = False
    if len(order) > 1 and best.interval is not None and found[order[1]].interval is not None:
        low, _ = bootstrap.paired_difference_interval(
            series[order[0]], series[order[1]], "sharpe", mean_block=mean_block, draws=draws, level=level, seed=seed
        )
        ahead = low > 0.0
    return Selection(
        name=order[0],
        candidates={name: found[name] for name in order},
        skilled=best.interval is not None and best.interval[0] > 0.0,
        ahead=ahead,
    )


def _merit(candidate: Candidate) -> tuple[int, float, float]:
    low = -np.inf if candidate.interval is None else candidate.interval[0]
    return candidate.rank, 0.0 if candidate.rank == FLAT else float(low), candidate.mean
