"""How a test reaches every registered id: a market that is quick to prepare, and settings, by family.

Tests that are parametrised over ``IDS`` take their markets from here, so that a new id of a known family passes through
them without an edit, and an id of a new family fails with a message until it has a row in ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

import envs
from markets import sources
from markets.bars import Bars
from markets.sources.memory import register_bars

IDS = envs.ids()
HOUR = np.timedelta64(3600 * 10**9, "ns")
SESSIONS = "synthetic:spy?seed=1&sessions=20"
SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"


@cache
def perpetual_market(rows: int = 2600) -> Bars:
    """Hourly bars with marks, funding and labels that open apart from the close before, so that a fill at either shows.

    At most 4,000 rows.
    """
    bars = sources.load(SMALL).between(0, rows)
    opened = bars.open * np.exp(np.random.default_rng(41).normal(0.0, 0.001, bars.open.shape))
    return replace(bars, open=opened, high=np.maximum(bars.high, opened), low=np.minimum(bars.low, opened))


@cache
def session_market() -> Bars:
    """Seven sessions of minutes with quotes, an index and labels."""
    return sources.load("synthetic:spy?seed=1&sessions=7")


def random_walk(seed: int = 41, rows: int = 12_000) -> Bars:
    """Hourly bars of independent returns, ranges, volumes, funding rates and labels: nothing says anything about later.

    The label of a bar is a coin that nothing else of the bar depends on. They come after what shipped weights were
    fitted on.
    """
    generator = np.random.default_rng(seed)
    close = 50_000.0 * np.exp(np.cumsum(generator.normal(0.0, 0.005, rows)))
    opened = np.concatenate([close[:1], close[:-1]])
    spread = np.exp(np.abs(generator.normal(0.0, 0.002, (2, rows))))
    time = np.datetime64("2024-01-01", "ns") + np.arange(rows) * HOUR
    return Bars(
        time=time, interval=HOUR, symbols=("BTCUSDT",), open=opened[:, None], close=close[:, None],
        high=(np.maximum(opened, close) * spread[0])[:, None], low=(np.minimum(opened, close) / spread[1])[:, None],
        volume=generator.lognormal(8.0, 1.0, (rows, 1)), funding_time=time[::8],
        funding_rate=generator.normal(1e-4, 1e-4, (len(time[::8]), 1)),
        labels=generator.integers(0, 2, rows).astype(np.int8), label_names=("heads", "tails"),
    )  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What tests need to know about a family.

    Attributes:
        arguments: of ``gym.make`` for a market that is quick to prepare.
        volatile: more arguments with which a few hundred random steps end episodes in every way the family has.
        market: bars to perturb, about 2,600 rows.
        enduring: arguments with which no loss ends an episode.
        idle: an action that asks for no position.
    """

    arguments: Mapping[str, Any]
    volatile: Mapping[str, Any]
    market: Callable[[], Bars]
    enduring: Mapping[str, Any]
    idle: Any


FAMILIES = {
    "PerpFutures": Family(
        arguments={"bars": SMALL},
        volatile={"bars": SMALL + "&annual_volatility=2.5", "episode_bars": 60, "leverage": 20.0},
        market=perpetual_market,
        enduring={"continue_after_liquidation": True, "ruin": 1e-6},
        idle=np.zeros(1, np.float32),
    ),
    "ZeroDTE": Family(
        arguments={"bars": SESSIONS},
        volatile={"bars": SESSIONS + "&early_close=only", "fill": "market"},
        market=session_market,
        enduring={},
        idle=0,
    ),
}


def family(name: str) -> Family:
    """Return the row of an id's family."""
    kind = name.split("-")[0]
    assert kind in FAMILIES, f"family {kind} has no row in tests/registered.py"
    return FAMILIES[kind]


def make(name: str, **more: Any) -> gym.Env[Any, Any]:
    """Make an id on its quick market."""
    return gym.make(name, **{**family(name).arguments, **more})


def make_on(name: str, bars: Bars, **more: Any) -> gym.Env[Any, Any]:
    """Make an id on bars of the test's own."""
    return gym.make(name, bars=register_bars(f"test-{name}", bars), **more)
