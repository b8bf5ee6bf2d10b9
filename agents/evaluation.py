"""Evaluation: a deterministic walk through a whole split, with costs scaled, uncertainty and baselines.

Every agent is walked at several cost scales at once (one lane each). After a termination the rest of the split counts
as flat. Returns are per bar of the split; intervals come from a stationary bootstrap over the walk, whose blocks
average one week. Where an episode is a session, the sessions of the split are walked one after the other, each from the
start equity, every lane with the same fills; the total return chains their growth, and returns and intervals are of
whole sessions (:mod:`agents.daily`). Agents are given the masks of legal actions where the family has some. Reading a
test split is written down (:mod:`agents.trial_registry`), because a split that was read often is no longer a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agents import bootstrap, daily, metrics
from agents.agent import Agent
from agents.baselines import baselines_of, unlevered_of
from agents.daily import Days
from agents.lanes import Lanes
from agents.market_view import MarketView
from agents.option_samples import model_in_sample
from agents.trades import LEDGERS, OptionTrades
from agents.trial_registry import overlapping_touches, record_touch
from envs.make import game_of
from envs.simulation import END, END_CODE, END_CODES, EQUITY, OUTCOME, Game
from markets.errors import ConfigError
from markets.session_calendar import SESSIONS_PER_YEAR

COST_SCALES = (0.0, 1.0, 2.0, 5.0)
DRAWS = 2_000
WEEK = 7.0 / 365.0  # of a year
AS_PLANNED = ("", "end of the split", "episode length", "session close")  # ends that nobody caused


@dataclass(frozen=True)
class Steps:
    """What one account did step by step, the T steps of a walk (of all its sessions, one after the other).

    Attributes:
        row: ``(T,)`` bar in which each step traded. gain: ``(T,)`` simple return. exposure: ``(T,)`` at its close.
        turnover: ``(T,)`` in units of the equity before. items: of the family's ledger, ``(T,)`` each, in money.
        costs: ``(T,)`` money; the ledger's costs together. equity: ``(T,)`` before the step.
    """

    row: NDArray[np.int64]
    gain: NDArray[np.float64]
    exposure: NDArray[np.float64]
    turnover: NDArray[np.float64]
    items: dict[str, NDArray[np.float64]]
    costs: NDArray[np.float64]
    equity: NDArray[np.float64]


@dataclass(frozen=True)
class Walk:
    """What one agent did over a split at S cost scales.

    Attributes:
        time: ``(T+1,)`` close times; ``equity``: ``(T+1, S)``; ``exposure``: ``(T+1, S)`` notional / equity.
        items: totals ``(S,)`` of what the family's ledger adds up. turnover: ``(S,)`` in units of equity.
        ended_by: reason per scale; empty where the whole split was walked.
        days: the sessions, where an episode is one; ``equity`` then chains their growth, and each begins with at least
            :data:`agents.metrics.RUIN` of the start.
        steps: step by step, at cost scale 1 or the first one.
    """

    time: NDArray[np.datetime64]
    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    items: dict[str, NDArray[np.float64]]
    turnover: NDArray[np.float64]
    ended_by: tuple[str, ...]
    scales: tuple[float, ...]
    days: Days | None = None
    steps: Steps | None = None


def walk(
    agent: Agent, game: Game, scales: Sequence[float] = (1.0,), progress: Callable[[int], None] | None = None
) -> Walk:
    """Walk ``agent`` deterministically through the whole split of ``game`` at each cost scale, none drawn at random."""
    agent.bind(game.all_names)
    lanes, every = Lanes(game, scales), np.ones(len(scales), bool)
    agent.watch(MarketView(game.bars, lanes.rows))
    ledger, watched = game.ledger, scales.index(1.0) if 1.0 in scales else 0
    costly, listed = list(ledger.costs), list(ledger.items.values())
    book = LEDGERS[game.recipe[0]](game) if game.recipe[0] in LEDGERS else None
    sessions: list[tuple[int, NDArray[Any], NDArray[Any]]] = []
    parts: list[Steps] = []
    totals = {name: np.zeros(len(scales)) for name in ledger.items}
    turnover, codes = np.zeros(len(scales)), np.zeros(len(scales), dtype=np.int64)
    times, curves, exposures = [], [], []
    state, chained = None, np.ones(len(scales))
    for start in [game.first] if game.starts is None else game.starts.tolist():
        lanes.begin(start)
        accounts = lanes.accounts
        if book is not None:
            book.begin(accounts[watched])
        steps = int(accounts[0, END]) - start
        equity = np.empty((steps + 1, len(scales)))
        exposure = np.zeros((steps + 1, len(scales)))
        equity[0] = accounts[:, EQUITY]
        alive, episode_start = every.copy(), every.copy()
        flows = np.zeros((2 + len(ledger.items), steps))  # of the watched account: turnover, costs, items
        for step in range(1, steps + 1):
            actions, state = agent.predict(lanes.seen(), state, episode_start, True, lanes.action_masks())
            episode_start[:] = False
            lanes.step(actions)
            accounts = lanes.accounts
            equity[step] = np.where(alive, accounts[:, EQUITY], equity[step - 1])
            exposure[step] = np.where(alive, ledger.held(accounts) / np.maximum(equity[step], 1e-9), 0.0)
            for name, column in ledger.items.items():
                totals[name] += np.where(alive, accounts[:, column], 0.0)
            traded = np.where(alive, ledger.traded(accounts) / np.maximum(equity[step - 1], 1e-9), 0.0)
            turnover += traded
            if alive[watched]:
                account = accounts[watched]
                flows[:, step - 1] = (traded[watched], account[costly].sum(), *account[listed])
                if book is not None:
                    book.step(account)
            ending = alive & (accounts[:, OUTCOME] != 0.0)
            codes[ending] = accounts[ending, END_CODE].astype(np.int64)
            alive &= ~ending
            if progress is not None:
                progress(1)
            if not alive.any():
                equity[step + 1 :] = equity[step]
                break
        if game.starts is not None:
            illegal = accounts[:, game.columns.index("illegal_actions")] if game.masks is not None else 0.0 * turnover
            sessions.append((steps, equity[-1] - equity[0], illegal.copy()))
        times.append(game.bars.close_time[start : start + steps + 1])
        curves.append(equity * chained)
        exposures.append(exposure)
        chained = np.maximum(chained * (equity[-1] / equity[0]), metrics.RUIN)  # 0 would hide the sessions after it
        parts.append(_steps_of(start, equity[:, watched], exposure[1:, watched], flows, tuple(ledger.items)))
    reasons = tuple("" if END_CODES[code] in AS_PLANNED else END_CODES[code] for code in codes)
    whole = (np.concatenate(times), np.concatenate(curves), np.concatenate(exposures))
    days = None if game.starts is None else _days(game, sessions, curves[0][0, 0], book)
    return Walk(*whole, totals, turnover, reasons, tuple(scales), days, _joined(parts))


def _steps_of(
    start: int, equity: NDArray[np.float64], exposure: NDArray[np.float64], flows: NDArray[np.float64],
    names: tuple[str, ...],
) -> Steps:  # fmt: skip
    rows = np.arange(start + 1, start + len(equity))
    items = dict(zip(names, flows[2:], strict=True))
    gain = metrics.simple_returns(equity) if len(rows) else np.zeros(0)
    return Steps(rows, gain, exposure, flows[0], items, flows[1], equity[:-1])


def _joined(parts: Sequence[Steps]) -> Steps:
    if len(parts) == 1:
        return parts[0]
    return Steps(
        row=np.concatenate([part.row for part in parts]),
        gain=np.concatenate([part.gain for part in parts]),
        exposure=np.concatenate([part.exposure for part in parts]),
        turnover=np.concatenate([part.turnover for part in parts]),
        items={name: np.concatenate([part.items[name] for part in parts]) for name in parts[0].items},
        costs=np.concatenate([part.costs for part in parts]),
        equity=np.concatenate([part.equity for part in parts]),
    )


def _days(game: Game, sessions: Sequence[tuple[int, Any, Any]], start: float, book: OptionTrades | None) -> Days:
    steps, pnl, illegal = (np.array(part) for part in zip(*sessions, strict=True))
    assert game.starts is not None
    return Days(
        first=np.concatenate([[0], np.cumsum(steps + 1)[:-1]]),
        date=game.bars.time[game.starts].astype("datetime64[D]"),
        start=float(start),
        pnl=pnl,
        illegal=illegal,
        steps=int(steps.sum()),
        trades=() if book is None else tuple(book.trades),
    )


def scored_curve(result: Walk, lane: int, periods_per_year: float) -> tuple[NDArray[np.float64], float]:
    """Return the curve whose returns are scored, and how many of them a year has: bars, or sessions where there are."""
    if result.days is None:
        return result.equity[:, lane], periods_per_year
    return result.days.curve(lane), float(SESSIONS_PER_YEAR)


def steps_of(game: Game) -> int:
    """Return how many steps a walk through the split of ``game`` takes."""
    if game.lengths is None:
        return min(game.last - game.first, game.episode)
    return int(game.lengths.sum())


def score(result: Walk, periods_per_year: float, seed: int = 0) -> dict[str, Any]:
    """Turn a walk into numbers: summary and intervals at cost scale 1, growth at every scale, break-even scale."""
    base = result.scales.index(1.0)
    curve, periods = scored_curve(result, base, periods_per_year)
    returns = metrics.simple_returns(curve)
    intervals: Mapping[str, Sequence[float] | None]
    if result.days is None:
        block = min(periods * WEEK, max(len(returns) / 2.0, 1.0))
        intervals = {
            name: bootstrap.confidence_interval(returns, statistic=name, mean_block=block, draws=DRAWS, seed=seed)
            for name in ("log_growth", "sharpe", "max_drawdown")
        }
    else:
        intervals = daily.intervals(result.days, result.equity[:, base], base, periods * WEEK, DRAWS, seed)
    years = len(returns) / periods
    growths = [
        float(np.log1p(metrics.total_return(scored_curve(result, k, periods_per_year)[0])))
        for k in range(len(result.scales))
    ]
    annual = np.sqrt(periods)
    return {
        **metrics.summary(curve, periods),
        **_of_minutes(result, base, periods),
        "total_return_interval": _bounds(intervals["log_growth"], np.expm1),
        "sharpe_interval": _bounds(intervals["sharpe"], lambda bound: annual * bound),
        "max_drawdown_interval": _bounds(intervals["max_drawdown"], float),
        **{f"{name}_interval": list(intervals[name] or []) or None for name in intervals if name == "mean_session_pnl"},
        "turnover_per_year": float(result.turnover[base] / years),
        "mean_absolute_exposure": float(np.mean(np.abs(result.exposure[:, base]))),
        "mean_exposure": float(np.mean(result.exposure[:, base])),
        **{name: float(total[base]) for name, total in result.items.items()},
        "ended_by": result.ended_by[base],
        "total_return_at_cost_scale": {
            f"{scale:g}": float(np.expm1(g)) for scale, g in zip(result.scales, growths, strict=True)
        },
        "break_even_cost_scale": _finite(bootstrap.break_even_cost_scale(result.scales, growths)),
        "bars": len(result.equity) - 1,
        "years": years,
    }


def _of_minutes(result: Walk, lane: int, periods: float) -> dict[str, Any]:
    """Return what a walk through sessions adds to the summary of their returns: falls by the minute, and the days."""
    if result.days is None:
        return {}
    curve, deepest = result.equity[:, lane], metrics.max_drawdown(result.equity[:, lane])
    return {
        "max_drawdown": deepest,
        "ulcer_index": metrics.ulcer_index(curve),
        "longest_drawdown_bars": metrics.longest_drawdown_bars(curve),
        "calmar": metrics.annual_return(result.days.curve(lane), periods) / deepest if deepest > 0.0 else 0.0,
        **daily.statistics(result.days, lane),
    }


def _bounds(interval: Sequence[float] | None, change: Callable[[float], Any]) -> list[float] | None:
    return None if interval is None else [float(change(bound)) for bound in interval]


def evaluate(
    agents: Mapping[str, Agent], family: str, config: Any, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Walk every agent and every baseline through the split of ``config``.

    Returns:
        ``rows`` (name -> scores of :func:`score`), ``walks`` (name -> :class:`Walk`) and facts about the split;
        ``in_sample_until`` is the end of what scaler, encoder or signals were fitted on where the split begins before
        it, and ``model_in_sample`` names the defaults of the option model that were fitted on days of the split.
    """
    game = game_of(family, config)
    if game.details.get("optimistic"):
        raise ConfigError(
            f"fill={config.fill!r} fills orders as nobody's orders are filled, and no report accepts it: evaluate with "
            "fill='limit' or 'market' (on the command line: --env-arg fill=limit)"
        )
    games = {name: game_of(family, replace(config, **changes)) for name, changes in unlevered_of(family).items()}
    players = {**{name: kind() for name, kind in baselines_of(family, game.all_names).items()}, **agents}
    steps = steps_of(game)
    if steps < 2:
        raise ConfigError(f"split {config.split!r} has {steps} bar to trade; an evaluation needs at least 2")
    walks: dict[str, Walk] = {}
    with tqdm(
        total=steps * len(players), unit="bar", unit_scale=True, disable=quiet or None, desc=f"evaluate {config.split}"
    ) as bar:
        for name, agent in players.items():
            walks[name] = walk(agent, games.get(name, game), COST_SCALES, bar.update)
    periods = game.bars.periods_per_year
    rows = {name: score(result, periods, seed) for name, result in walks.items()}
    overlapping = overlapping_touches(game) if config.split == "test" else 0
    touches = record_touch(game, list(agents)) if config.split == "test" else 0
    return {
        "rows": rows,
        "walks": walks,
        "split": config.split,
        "first": str(game.bars.close_time[game.first]),
        "last": str(game.bars.close_time[game.last]),
        "source": game.bars.source,
        "touches": touches,
        "overlapping_touches": overlapping,
        "periods_per_year": periods,
        "sessions": None if game.starts is None else len(game.starts),
        "encoder": game.details.get("encoder"),
        "model_in_sample": model_in_sample(game),
        "in_sample_until": str(game.fitted_until) if game.bars.close_time[game.first] <= game.fitted_until else None,
    }


def over_seeds(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Interquartile mean over training runs, with percentile-bootstrap intervals (Agarwal et al. 2021).

    The break-even scale is the median, since some runs may have none.
    """
    merged: dict[str, Any] = {"runs": len(rows)}
    for name, value in rows[0].items():
        if name == "break_even_cost_scale":
            merged[name] = _median_break_even([row[name] for row in rows])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values = np.array([float(row[name]) for row in rows])
            merged[name] = bootstrap.interquartile_mean(values)
            if name in ("total_return", "sharpe", "max_drawdown", "mean_session_pnl"):
                merged[f"{name}_interval"] = [
                    float(b) for b in bootstrap.interquartile_mean_interval(values, draws=DRAWS, seed=seed)
                ]
        elif name == "total_return_at_cost_scale":
            merged[name] = {scale: bootstrap.interquartile_mean([row[name][scale] for row in rows]) for scale in value}
    merged["ended_by"] = ", ".join(sorted({row["ended_by"] for row in rows if row["ended_by"]}))
    return merged


def _median_break_even(scales: Sequence[float | None]) -> float | None:
    """Median where None stands for "beyond every scale tried", which a mean cannot take; None where it reaches that."""
    return _finite(float(np.median([np.inf if scale is None else scale for scale in scales])))


def _finite(value: float) -> float | None:
    """JSON has no infinity: None means that no cost scale that was tried breaks even."""
    return float(value) if np.isfinite(value) else None
