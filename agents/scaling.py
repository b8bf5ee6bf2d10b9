"""Scaling: what a step costs on long series and late in long episodes, and what an environment costs to build.

A series of sessions is made longer by more sessions, and has no episode that is longer than one.

Step costs are compared over the *same working set*: all lanes stand on one row and walk on together, so that a longer
series brings more rows but no more of them are read. Lanes that stand anywhere in a series whose tables do not fit the
processor's cache wait for memory; that figure is printed beside, without a bound, since it is the machine's: a bare
``numpy.take`` of rows as far apart, printed too, waits as well.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from agents.stopwatch import Fact, Loop, Stopwatch
from envs.simulation import START
from markets import sources
from markets.bars import Bars
from markets.errors import ConfigError
from markets.session_calendar import MINUTES, SESSION_MARKETS
from markets.sources.memory import register_bars

SHORT, LONG = 5_000, 100_000  # bars of the two series
EPISODE, LATE = 50_000, 40_000  # bars of the long episode, and how far into it the cost is taken
LANES, CALLS = 256, 300
HELD = 0.1  # target: little, so that every account lives through the long episode
SAME = 1.2  # most that a cost may grow by and still count as the same: neighbours on the machine move it by 10 %
MILLION = 1_000_000
BUILD_SECONDS, BUILD_MEMORY = 2.0, 1.5

Make = Callable[..., Any]


def default_bars(env_id: str) -> Bars:
    """Return the bars that an environment has without arguments."""
    return gym.make(env_id).unwrapped.simulation.game.bars  # type: ignore[attr-defined]


def tiled(bars: Bars, count: int) -> Bars:
    """Return ``count`` bars: the given ones again and again, without gaps (prices jump where they begin anew).

    Bars of sessions are at least as many, of whole sessions: those of the synthetic market.
    """
    if bars.market in SESSION_MARKETS:
        return sources.load(f"synthetic:spy?seed=0&sessions={-(-count // MINUTES)}&early_close=skip")
    times = -(-count // len(bars))
    span = len(bars) * bars.interval
    inside = bars.funding_time - bars.time[0] < span
    stamps = [bars.funding_time[inside] + number * span for number in range(times)]
    return replace(
        bars,
        time=bars.time[0] + np.arange(count) * bars.interval,
        funding_time=np.concatenate(stamps),
        funding_rate=np.tile(bars.funding_rate[inside], (times, 1)),
        labels=None if bars.labels is None else np.tile(bars.labels, times)[:count],
        **{name: np.tile(value, (times, 1))[:count] for name, value in bars.columns.items()},  # type: ignore[arg-type]
    )


def scaling(env_id: str, watch: Stopwatch) -> list[Fact]:
    """Compare the cost of a step, in native lanes without info, on a short and a long series, early and late."""
    bars = default_bars(env_id)
    specs = [register_bars(f"benchmark-{count}", tiled(bars, count)) for count in (SHORT, LONG)]
    near = [_lanes(env_id, spec) for spec in specs]
    apart = [_lanes(env_id, spec) for spec in specs]
    for env in apart:
        env.reset(seed=0)
    beside = watch.medians([_walk(env, CALLS) for env in near], [partial(_begin, env) for env in near])
    spread = watch.medians([_walk(env, CALLS) for env in apart])
    taken = watch.medians([_take(env, CALLS) for env in apart])
    series = f"step cost on {LONG:,} bars over that on {SHORT:,}"
    return [
        Fact(f"{series}, lanes side by side", beside[1] / beside[0], SAME),
        Fact(f"{series}, lanes anywhere (waits for memory)", spread[1] / spread[0]),
        Fact(f"the same of a bare numpy.take of {LANES} rows anywhere", taken[1] / taken[0]),
        *([] if bars.market in SESSION_MARKETS else [_lateness(env_id, specs[1], watch)]),
    ]


def _lateness(env_id: str, spec: str, watch: Stopwatch) -> Fact:
    """Compare the cost of a step late in a long episode with that at its beginning."""
    early, late = (_lanes(env_id, spec, episode_bars=EPISODE) for _ in range(2))
    _begin(late)
    begun = late.unwrapped.simulation.accounts[0, :, START].copy()
    _walk(late, LATE)()
    first, last = watch.medians([_walk(early, CALLS), _walk(late, CALLS)], [partial(_begin, early), None])
    if (late.unwrapped.simulation.accounts[0, :, START] != begun).any():
        raise ConfigError(f"{env_id}: an episode of {EPISODE:,} bars ended before its cost was taken")
    return Fact(f"step cost {LATE:,} bars into an episode over that at its beginning", last / first, SAME)


def _lanes(env_id: str, spec: str, **arguments: Any) -> Any:
    return gym.make_vec(
        env_id, num_envs=LANES, vectorization_mode="vector_entry_point", bars=spec, info="none", **arguments
    )


def _begin(env: Any) -> None:
    """Put every lane on the first row of the split."""
    game = env.unwrapped.simulation.game
    env.reset(seed=0, options={"start": game.bars.time[game.first]})


def _walk(env: Any, calls: int) -> Loop:
    real = isinstance(env.single_action_space, gym.spaces.Box)
    actions = np.full(env.action_space.shape, HELD if real else 1, env.action_space.dtype)  # 1: a call, held

    def go() -> int:
        for _ in range(calls):
            env.step(actions)
        return calls * LANES

    return go


def _take(env: Any, calls: int) -> Loop:
    """Take the rows of lanes that walk on from where they stand, and nothing else."""
    simulation = env.unwrapped.simulation
    table, rows = simulation.game.table, simulation.rows + np.arange(calls)[:, None]

    def go() -> int:
        for line in rows:
            np.take(table, line, axis=0, mode="clip")
        return calls * LANES

    return go


def construction(env_id: str, count: int = MILLION, make: Make = gym.make, make_vec: Make = gym.make_vec) -> list[Fact]:
    """Take CPU time and memory of building environments over ``count`` loaded bars.

    Memory counts what one environment, a second one and 1,024 lanes hold, over the bars and one set of tables.
    """
    bars = tiled(default_bars(env_id), count)
    size = sum(value.nbytes for value in vars(bars).values() if isinstance(value, np.ndarray))
    name = register_bars("benchmark-built", bars)
    tracemalloc.start()
    try:
        first = make(env_id, bars=name)
        peak = tracemalloc.get_traced_memory()[1]
        second = make(env_id, bars=name)
        lanes = make_vec(env_id, num_envs=1024, vectorization_mode="vector_entry_point", bars=name)
        lanes.reset(seed=0)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    game = first.unwrapped.simulation.game
    tables = game.table.nbytes + game.market.nbytes
    del first, second, lanes, game
    other = register_bars("benchmark-built", replace(bars, volume=2.0 * bars.volume))  # nothing of it is known yet
    sources.load(other)
    began = time.process_time()
    make(env_id, bars=other)
    seconds = time.process_time() - began
    symbols = len(bars.symbols)
    of_each = f", for each of {symbols} symbols" if symbols > 1 else ""
    return [
        Fact(f"CPU seconds to build over {count:,} loaded bars{of_each}", seconds / symbols, BUILD_SECONDS),
        Fact("memory of two envs and 1,024 lanes over bars plus tables", (size + held) / (size + tables), BUILD_MEMORY),
        Fact("memory while building over bars plus tables", (size + peak) / (size + tables)),
        Fact("MB of bars", size / 1e6),
        Fact("MB of tables", tables / 1e6),
    ]
