"""Statistics by session, where an episode is one: daily results, and intervals that resample whole sessions.

Every session begins with the same equity, so that its profit in money does not depend on the sessions before it; growth
is chained for the total return, as if each session's return had been earned on the equity so far. Ratios are of returns
per session, annualised with 252 of them; falls are measured minute by minute. Minutes of one session depend on each
other (one position, one volatility), sessions much less so: intervals come from the stationary bootstrap over sessions
(Politis & Romano 1994) whose blocks average one week, and a resampled fall is that of the resampled sessions' minutes,
put one after the other. A total loss ends the chained curve, as :data:`agents.metrics.RUIN` ends any other, in the
score and in its intervals alike; results in money go on, since the next session begins with its equity anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import bootstrap, metrics
from agents.trades import COLUMNS as TRADE_COLUMNS
from agents.trades import Trade, summary
from agents.trades import rows_of as trade_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Days:
    """The D sessions of a walk at S cost scales.

    Attributes:
        first: ``(D,)`` place in the walk at which each begins. date: ``(D,)`` days (UTC).
        start: equity at the beginning of each. pnl: ``(D, S)`` change of equity in each.
        illegal: ``(D, S)`` actions that the environment held since they were not legal.
        steps: decisions of each cost scale's account.
        trades: at cost scale 1, or the first one; none of a family without a ledger.
    """

    first: NDArray[np.int64]
    date: NDArray[np.datetime64]
    start: float
    pnl: Floats
    illegal: Floats
    steps: int
    trades: tuple[Trade, ...]

    def returns(self, lane: int) -> Floats:
        """Simple return of each session, ``(D,)``."""
        return self.pnl[:, lane] / self.start

    def curve(self, lane: int) -> Floats:
        """Chained growth at the sessions' ends, ``(D+1,)`` from 1."""
        return np.concatenate([[1.0], np.cumprod(1.0 + self.returns(lane))])


def statistics(days: Days, lane: int) -> dict[str, Any]:
    """Return daily and trade statistics of one cost scale; money in USD, 0 where nothing was traded."""
    pnl = days.pnl[:, lane]
    return {
        "sessions": len(pnl),
        "total_pnl": float(pnl.sum()),
        "mean_session_pnl": float(pnl.mean()),
        "deviation_session_pnl": float(pnl.std(ddof=1)) if len(pnl) > 1 else 0.0,
        "best_session_pnl": float(pnl.max()),
        "worst_session_pnl": float(pnl.min()),
        "sessions_won": float(np.mean(pnl > 0.0)),
        "sessions_lost": float(np.mean(pnl < 0.0)),
        "illegal_actions": float(days.illegal[:, lane].sum()),
        "decisions": days.steps,
        **summary(days.trades),
    }


def intervals(
    days: Days, equity: Floats, lane: int, mean_block: float, draws: int, seed: int
) -> dict[str, list[float] | None]:
    """Return 95 % intervals over resampled sessions, widened as those of bars; None for each with under two sessions.

    Resampled are the returns that are scored: of the chained curve, and in money the sessions' own profits.

    Args:
        equity: ``(T+1,)`` the walk's curve at that scale. mean_block: in sessions.
    """
    names = ("log_growth", "sharpe", "max_drawdown", "mean_session_pnl")
    returns = metrics.simple_returns(days.curve(lane))
    if len(returns) < 2:
        return dict.fromkeys(names)
    block = min(max(mean_block, 1.0), len(returns) / 2.0)
    rows = bootstrap.stationary_bootstrap_indices(len(returns), block, draws, np.random.default_rng(seed))
    drawn = returns[rows]
    spread = drawn.std(axis=1, ddof=1)
    moving = spread > metrics.RESOLUTION
    values = {
        "log_growth": np.log1p(returns)[rows].sum(axis=1),
        "sharpe": np.where(moving, drawn.mean(axis=1) / np.where(moving, spread, 1.0), 0.0),
        "max_drawdown": _drawdowns(days.first, equity, rows),
        "mean_session_pnl": days.pnl[:, lane][rows].mean(axis=1),
    }
    found: dict[str, list[float] | None] = {}
    for name in names:
        low, middle, high = np.percentile(values[name], [2.5, 50.0, 97.5])
        factor = 1.0 if name == "max_drawdown" else bootstrap.widening(len(returns), block)
        found[name] = [float(middle + factor * (bound - middle)) for bound in (low, high)]
    return found


def _drawdowns(first: NDArray[np.int64], equity: Floats, rows: NDArray[np.int64]) -> Floats:
    """Deepest fall of each resampled order of sessions, ``(draws, D)`` -> ``(draws,)``, over all their minutes.

    With P the peak before a session (in units of its start), a minute's fall is ``1 - v / max(P, peak so far)``, the
    larger of ``1 - v / P`` and the fall within the session: three numbers of a session are all that is needed.
    """
    parts = [part / part[0] for part in np.split(metrics.growth_curve(equity), first[1:])]
    growth, low, high = (np.array([f(part) for part in parts]) for f in (lambda v: v[-1], np.min, np.max))
    inner = np.array([float((1.0 - part / np.maximum.accumulate(part)).max()) for part in parts])
    value, peak, worst = np.ones(len(rows)), np.ones(len(rows)), np.zeros(len(rows))
    for place in range(rows.shape[1]):
        session = rows[:, place]
        worst = np.maximum(worst, np.maximum(inner[session], 1.0 - value * low[session] / peak))
        peak = np.maximum(peak, value * high[session])
        value = value * growth[session]
    return worst


def rows_of(agent: str, days: Days, equity: Floats, lane: int) -> list[dict[str, Any]]:
    """Return an agent's sessions as rows of a table; money in cents."""
    parts = np.split(equity, days.first[1:])
    dates = [str(date) for date in days.date]
    counts, fees = Counter(trade.session for trade in days.trades), dict.fromkeys(dates, 0.0)
    for trade in days.trades:
        fees[trade.session] += trade.fee
    return [
        {
            "agent": agent,
            "session": date,
            "pnl": round(float(days.pnl[place, lane]), 2),
            "return": float(days.returns(lane)[place]),
            "max_drawdown": metrics.max_drawdown(parts[place]),
            "trades": counts[date],
            "fee": round(fees[date], 2),
            "illegal_actions": int(days.illegal[place, lane]),
        }
        for place, date in enumerate(dates)
    ]


def tables(walks: Mapping[str, Any]) -> dict[str, tuple[list[str], list[dict[str, Any]]]]:
    """Return the trades and the sessions of walks at cost scale 1: headings and rows; empty without sessions."""
    found: dict[str, tuple[list[str], list[dict[str, Any]]]] = {}
    for name, walk in walks.items():
        if walk.days is not None:
            lane = walk.scales.index(1.0)
            found.setdefault("trades", (list(TRADE_COLUMNS), []))[1].extend(trade_rows(name, walk.days.trades))
            rows = rows_of(name, walk.days, walk.equity[:, lane], lane)
            found.setdefault("sessions", (list(rows[0]), []))[1].extend(rows)
    return found
