"""Evaluation: a deterministic walk through a whole split, with costs scaled, uncertainty, baselines and a touch log.

Every agent is walked at several cost scales at once (one lane each). After a termination the rest of the split counts
as flat. Where an episode is a session, the sessions of the split are walked one after the other, each from the start
equity, and their growth is chained; every lane draws the same fills. Returns are per bar of the split; intervals come
from a stationary bootstrap over the walk, whose blocks average one week. Reading a test split is written down, because
a split that was read often is no longer a test.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agents import bootstrap, metrics
from agents.agent import Agent
from agents.baselines import baselines_of, unlevered_of
from envs.make import game_of
from envs.simulation import (
    COST_SCALE,
    END,
    END_CODE,
    END_CODES,
    EQUITY,
    MODE_DISABLED,
    OUTCOME,
    Game,
    Simulation,
)
from markets.errors import ConfigError

COST_SCALES = (0.0, 1.0, 2.0, 5.0)
DRAWS = 2_000
WEEK = 7.0 / 365.0  # of a year
AS_PLANNED = ("", "end of the split", "episode length", "session close")  # ends that nobody caused

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Walk:
    """What one agent did over a split at S cost scales.

    Attributes:
        time: ``(T+1,)`` close times; ``equity``: ``(T+1, S)``; ``exposure``: ``(T+1, S)`` notional / equity.
        items: totals ``(S,)`` of what the family's ledger adds up. turnover: ``(S,)`` in units of equity.
        ended_by: reason per scale; empty where the whole split was walked.
    """

    time: NDArray[np.datetime64]
    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    items: dict[str, NDArray[np.float64]]
    turnover: NDArray[np.float64]
    ended_by: tuple[str, ...]
    scales: tuple[float, ...]


def walk(
    agent: Agent, game: Game, scales: Sequence[float] = (1.0,), progress: Callable[[int], None] | None = None
) -> Walk:
    """Walk ``agent`` deterministically through the whole split of ``game`` at each cost scale, none drawn at random."""
    game = replace(game, randomised_costs=0.0)
    simulation = Simulation(game, len(scales))
    simulation.accounts[0, :, COST_SCALE] = np.array(scales) * simulation.accounts[0, :, COST_SCALE]
    agent.bind(game.all_names)
    generators = [np.random.default_rng(0) for _ in scales]  # of fills: the start is given
    lanes = np.ones(len(scales), bool)
    accounts, ledger = simulation.accounts[0], game.ledger
    totals = {name: np.zeros(len(scales)) for name in ledger.items}
    turnover, codes = np.zeros(len(scales)), np.zeros(len(scales), dtype=np.int64)
    times, curves, exposures = [], [], []
    state, chained = None, np.ones(len(scales))
    for start in [game.first] if game.starts is None else game.starts.tolist():
        simulation.reset(generators, None, np.full(len(scales), start), lanes)
        steps = int(accounts[0, END]) - start
        equity = np.empty((steps + 1, len(scales)))
        exposure = np.zeros((steps + 1, len(scales)))
        equity[0] = accounts[:, EQUITY]
        alive, episode_start = lanes.copy(), lanes.copy()
        for step in range(1, steps + 1):
            actions, state = agent.predict(simulation.seen(), state, episode_start, deterministic=True)
            episode_start[:] = False
            simulation.set_actions(actions)
            simulation.run(MODE_DISABLED)
            equity[step] = np.where(alive, accounts[:, EQUITY], equity[step - 1])
            exposure[step] = np.where(alive, ledger.held(accounts) / np.maximum(equity[step], 1e-9), 0.0)
            for name, column in ledger.items.items():
                totals[name] += np.where(alive, accounts[:, column], 0.0)
            turnover += np.where(alive, ledger.traded(accounts) / np.maximum(equity[step - 1], 1e-9), 0.0)
            ending = alive & (accounts[:, OUTCOME] != 0.0)
            codes[ending] = accounts[ending, END_CODE].astype(np.int64)
            alive &= ~ending
            if progress is not None:
                progress(1)
            if not alive.any():
                equity[step + 1 :] = equity[step]
                break
        times.append(game.bars.close_time[start : start + steps + 1])
        curves.append(equity * chained)
        exposures.append(exposure)
        chained = chained * (equity[-1] / equity[0])
    reasons = tuple("" if END_CODES[code] in AS_PLANNED else END_CODES[code] for code in codes)
    whole = (np.concatenate(times), np.concatenate(curves), np.concatenate(exposures))
    return Walk(*whole, totals, turnover, reasons, tuple(scales))


def steps_of(game: Game) -> int:
    """Return how many steps a walk through the split of ``game`` takes."""
    if game.lengths is None:
        return min(game.last - game.first, game.episode)
    return int(game.lengths.sum())


def score(result: Walk, periods_per_year: float, seed: int = 0) -> dict[str, Any]:
    """Turn a walk into numbers: summary and intervals at cost scale 1, growth at every scale, break-even scale."""
    base = result.scales.index(1.0)
    curve = result.equity[:, base]
    returns = metrics.simple_returns(curve)
    block = min(periods_per_year * WEEK, max(len(returns) / 2.0, 1.0))
    intervals = {
        name: bootstrap.confidence_interval(returns, statistic=name, mean_block=block, draws=DRAWS, seed=seed)
        for name in ("log_growth", "sharpe", "max_drawdown")
    }
    years = len(returns) / periods_per_year
    growths = [
        float(np.log(max(result.equity[-1, k] / result.equity[0, k], metrics.RUIN))) for k in range(len(result.scales))
    ]
    annual = np.sqrt(periods_per_year)
    low, high = intervals["log_growth"]
    return {
        **metrics.summary(curve, periods_per_year),
        "total_return_interval": [float(np.expm1(low)), float(np.expm1(high))],
        "sharpe_interval": [float(annual * bound) for bound in intervals["sharpe"]],
        "max_drawdown_interval": [float(bound) for bound in intervals["max_drawdown"]],
        "turnover_per_year": float(result.turnover[base] / years),
        "mean_absolute_exposure": float(np.mean(np.abs(result.exposure[:, base]))),
        "mean_exposure": float(np.mean(result.exposure[:, base])),
        **{name: float(total[base]) for name, total in result.items.items()},
        "ended_by": result.ended_by[base],
        "total_return_at_cost_scale": {
            f"{scale:g}": float(np.expm1(g)) for scale, g in zip(result.scales, growths, strict=True)
        },
        "break_even_cost_scale": _finite(bootstrap.break_even_cost_scale(result.scales, growths)),
        "bars": len(returns),
        "years": years,
    }


def evaluate(
    agents: Mapping[str, Agent], family: str, config: Any, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Walk every agent and every baseline through the split of ``config``.

    Returns:
        ``rows`` (name -> scores of :func:`score`), ``walks`` (name -> :class:`Walk`) and facts about the split;
        ``in_sample_until`` is the end of what scaler or encoder were fitted on where the split begins before it.
    """
    game = game_of(family, config)
    games = {name: game_of(family, replace(config, **changes)) for name, changes in unlevered_of(family).items()}
    players = {**{name: kind() for name, kind in baselines_of(family).items()}, **agents}
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
    touches = record_touch(game, list(agents)) if config.split == "test" else 0
    return {
        "rows": rows,
        "walks": walks,
        "split": config.split,
        "first": str(game.bars.close_time[game.first]),
        "last": str(game.bars.close_time[game.last]),
        "source": game.bars.source,
        "touches": touches,
        "periods_per_year": periods,
        "encoder": game.details.get("encoder"),
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
            if name in ("total_return", "sharpe", "max_drawdown"):
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


def touch_log() -> Path:
    """Return the file in which readings of test splits are written down."""
    folder = os.environ.get("REGIMEGYM_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "regimegym") / "test-touches.jsonl"


def record_touch(game: Game, names: Sequence[str]) -> int:
    """Write down that a test split was read and return how often it has been, this time included.

    The same bars and rows count as the same split, whatever they are called. An unwritable log is said and tolerated.
    """
    path = touch_log()
    key = f"{game.bars.hash}:{game.first}:{game.last}"
    entry = {
        "split": key,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": game.bars.source,
        "agents": list(names),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        return sum(1 for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if f'"{key}"' in line)
    except OSError as error:
        _log.warning("the reading of the test split could not be written down in %s: %s", path, error)
        return 1


def _finite(value: float) -> float | None:
    """JSON has no infinity: None means that no cost scale that was tried breaks even."""
    return float(value) if np.isfinite(value) else None
