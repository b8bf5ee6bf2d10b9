"""Selection: which of several agents to trust with the next period, by past returns and how sure they are.

An ensemble that takes the highest Sharpe ratio can be won by doing nothing: an account without a trade has no spread,
and whatever number stands for its undefined ratio (0, or an infinity) beats every agent in a bad quarter. One lucky bar
wins as well: its ratio over T bars is ``sqrt(1 / T)`` whatever it earned, 1 a year over a year. A cautious rule
("highest lower bound") has the same holes: 0 is above the lower bound of an agent with real but noisy skill. Here
agents are put into classes first:

2. *earning*: it trades (:func:`trades`), and its Sharpe ratio is above 0. Among them the highest lower bound of its
   interval is taken.
1. *flat*: it does not trade, or hardly, and did not lose; the ratio means nothing and is reported as 0 without an
   interval. The highest mean is taken, where that of a few trades counts as 0: it is luck.
0. *losing*: the rest; the highest lower bound is taken. A loss without spread comes last of all.

The highest class that is not empty wins. So idle is chosen where everything else lost, and only there.

Two faces of the rule. :func:`select` chooses once, on a validation split, with bootstrap intervals: ``regimegym
evaluate --split validation`` and ``--choose``. :func:`best_of` chooses again and again on a moving window of past
returns (``combine=select`` of an ensemble): returns count as independent there, which makes the lower bound of a Sharpe
ratio ``S - errors / sqrt(n)``, and standing aside, an idle account, is chosen where no bound is above 0.

Neither corrects for having had a choice: the best of N is luckier than its interval says. That is what the deflated
Sharpe ratio is for (:mod:`agents.significance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents import bootstrap
from agents.metrics import RESOLUTION, Array, vector
from markets.errors import ConfigError

EARNING, FLAT, LOSING = 2, 1, 0
CLASSES = ("losing", "flat", "earning")
ACTIVITY = 0.01  # share of the returns that must not be 0 for a record to be one of trading


@dataclass(frozen=True)
class Candidate:
    """An agent's validation: per-period Sharpe ratio, its interval (None where it is flat or has no spread), mean
    return, class."""

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
            and where either has no interval, so that there is no difference to speak of.
    """

    name: str
    candidates: dict[str, Candidate]
    skilled: bool
    ahead: bool


def trades(returns: Array, activity: float = ACTIVITY) -> npt.NDArray[np.bool_]:
    """Return of returns ``(T,)`` or ``(T, M)`` which are a record of trading, shape ``()`` or ``(M,)``: they have a
    spread beyond rounding, and at least the share ``activity`` of them is not 0."""
    if len(returns) < 2:
        return np.zeros(returns.shape[1:], bool)
    size = np.abs(returns)
    noise = RESOLUTION * (1.0 + size.max(axis=0))
    return np.asarray((returns.std(axis=0, ddof=1) > noise) & ((size > noise).mean(axis=0) >= activity))


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
    lucky = set()
    for name, values in series.items():
        mean = float(values.mean())
        moving = bool(trades(values, 0.0))
        if mean >= 0.0 and not trades(values):
            found[name] = Candidate(0.0, None, mean, FLAT)
            lucky |= {name} if moving else set()
            continue
        if not moving:
            found[name] = Candidate(0.0, None, mean, LOSING)
            continue
        bounds = bootstrap.confidence_interval(
            values, "sharpe", mean_block=mean_block, draws=draws, level=level, seed=seed
        )
        rank = EARNING if mean > 0.0 else LOSING
        found[name] = Candidate(mean / float(values.std(ddof=1)), bounds, mean, rank)
    order = sorted(found, key=lambda name: _merit(found[name], name in lucky), reverse=True)
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


def best_of(returns: Array, errors: float = 1.0, activity: float = ACTIVITY) -> int:
    """Return which member of past returns ``(n, M)`` to follow, or -1 for none: of the earning ones that with the
    highest lower bound of its Sharpe ratio, ``errors`` standard errors below it, where that is above 0.

    Ties go to the first. Fewer than 3 returns tell nothing.
    """
    count = len(returns)
    if count < 3:
        return -1
    standing = np.full(returns.shape[1], -np.inf)
    candidates = trades(returns, activity)
    spread = returns.std(axis=0, ddof=1)
    np.divide(returns.mean(axis=0) * np.sqrt(count), spread, out=standing, where=candidates & (spread > 0.0))
    best = int(standing.argmax())
    return best if standing[best] - errors > 0.0 else -1


def _merit(candidate: Candidate, lucky: bool) -> tuple[int, float, float]:
    low = -np.inf if candidate.interval is None else candidate.interval[0]
    return candidate.rank, 0.0 if candidate.rank == FLAT else float(low), 0.0 if lucky else candidate.mean
