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
import pandas as pd

import envs
from markets import features, session_features, sources, spot_features
from markets.bars import Bars
from markets.features import FeatureScaler
from markets.session_calendar import MINUTE, sessions_from
from markets.session_features import SessionScaler
from markets.sources.memory import register_bars
from markets.spot_features import SpotScaler

IDS = envs.ids()
HOUR = np.timedelta64(3600 * 10**9, "ns")
SESSIONS = "synthetic:spy?seed=1&sessions=20"
EARLY = "synthetic:spy?seed=1&sessions=24&early_close=only"  # of 210 minutes
SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
BASKET = "synthetic:basket?seed=1&interval=1h&bars=4000"


@cache
def perpetual_market(rows: int = 2600) -> Bars:
    """Hourly bars with marks, funding and labels that open apart from the close before, so that a fill at either shows.

    At most 4,000 rows.
    """
    bars = sources.load(SMALL).between(0, rows)
    opened = bars.open * np.exp(np.random.default_rng(41).normal(0.0, 0.001, bars.open.shape))
    return replace(bars, open=opened, high=np.maximum(bars.high, opened), low=np.minimum(bars.low, opened))


@cache
def basket_market(rows: int = 2600) -> Bars:
    """Hourly bars of three coins with labels, that open apart from the close before; at most 4,000 rows."""
    bars = sources.load(BASKET).between(0, rows)
    opened = bars.open * np.exp(np.random.default_rng(41).normal(0.0, 0.001, bars.open.shape))
    return replace(bars, open=opened, high=np.maximum(bars.high, opened), low=np.minimum(bars.low, opened))


@cache
def session_market() -> Bars:
    """Twelve sessions of minutes with quotes, an index and labels, that open apart from the close before."""
    bars = sources.load(SESSIONS).between(0, 12 * 390)
    opened = bars.open * np.exp(np.random.default_rng(41).normal(0.0, 0.0002, bars.open.shape))
    return replace(bars, open=opened, high=np.maximum(bars.high, opened), low=np.minimum(bars.low, opened))


def session_times(rows: int, start: str = "2025-01-02") -> np.ndarray[Any, Any]:
    """Openings of the first ``rows`` minutes of full sessions."""
    opens = sessions_from(start, rows // 390 + 1, "skip").open
    return (opens[:, None] + np.arange(390) * MINUTE).ravel()[:rows]


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


def basket_walk(seed: int = 41, rows: int = 12_000) -> Bars:
    """Three coins of independent returns, each as :func:`random_walk`; the labels are those of the first."""
    parts = [random_walk(seed + place, rows) for place in range(3)]
    columns: dict[str, Any] = {
        name: np.concatenate([part.columns[name] for part in parts], axis=1) for name in parts[0].columns
    }
    return Bars(
        time=parts[0].time, interval=HOUR, symbols=("BTCUSDT", "ETHUSDT", "SOLUSDT"), labels=parts[0].labels,
        label_names=parts[0].label_names, **columns,
    )  # fmt: skip


def session_walk(seed: int = 41, rows: int = 40 * 390) -> Bars:
    """Minutes of sessions with independent returns, ranges, volumes, sizes, indices and labels."""
    walk = random_walk(seed, rows)
    generator = np.random.default_rng([seed, 1])
    scale = 0.1  # of a return of 0.5 %
    columns = {name: 500.0 * (walk.columns[name] / 50_000.0) ** scale for name in ("open", "high", "low", "close")}
    index = np.repeat(generator.uniform(10.0, 30.0, rows // 390 + 1), 390)[:rows, None]
    return Bars(
        time=session_times(rows), interval=MINUTE, symbols=("SPY",), market="spy", **columns, volume=walk.volume,
        bid_size=generator.lognormal(6.0, 1.0, (rows, 1)), ask_size=generator.lognormal(6.0, 1.0, (rows, 1)),
        previous_vix=index, labels=walk.labels, label_names=walk.label_names,
    )  # fmt: skip


def candles(rows: int, seed: int = 71) -> pd.DataFrame:
    """Hourly candles of a seeded random walk, as a table that a source reads."""
    random = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(random.normal(0.0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq="1h", tz="UTC"),
            "open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close,
            "volume": random.lognormal(5.0, 1.0, rows),
        }
    )  # fmt: skip


def session_candles(rows: int) -> pd.DataFrame:
    """Minutes of sessions, with the index beside them."""
    return candles(rows).assign(timestamp=pd.to_datetime(session_times(rows), utc=True), previous_vix=20.0)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What tests need to know about a family.

    Attributes:
        arguments: of ``gym.make`` for a market that is quick to prepare.
        volatile: more arguments with which a few hundred random steps end episodes in every way the family has.
        short: arguments for episodes of as many bars, none where the market says how long they are.
        market: bars to perturb, about 2,600 rows.
        played: first and last row of that market which an episode of its test split plays, and the rows at which
            training and validation end.
        many: rows of candles that are enough for every split, and for the memory of an encoder.
        enduring: arguments with which no loss ends an episode.
        idle: an action that asks for no position; trade: one that asks for one.
        ends: how an episode ends in which nothing happened.
        features: the module whose ``raw`` the observation is made of, and its scaler.
        behind: lengths of history before the row (see ``market``) at which an episode begins, and rows from there on.
        walk: a market in which nothing says anything about later, from a seed.
        candles: a table of as many bars that a source reads with the options ``query``.
        misspelt: an argument, and the valid one that is nearest.
    """

    arguments: Mapping[str, Any]
    volatile: Mapping[str, Any]
    short: Callable[[int], Mapping[str, Any]]
    market: Callable[[], Bars]
    played: tuple[int, int]
    ends_of_splits: tuple[int, int]
    many: int
    enduring: Mapping[str, Any]
    idle: Any
    trade: Any
    ends: str
    features: Any
    scaler: type[FeatureScaler]
    behind: tuple[tuple[int, ...], int, int]
    walk: Callable[[int], Bars]
    candles: Callable[[int], pd.DataFrame]
    query: str
    misspelt: Mapping[str, str]


FAMILIES = {
    "PerpFutures": Family(
        arguments={"bars": SMALL},
        volatile={"bars": SMALL + "&annual_volatility=2.5", "episode_bars": 60, "leverage": 20.0},
        short=lambda bars: {"episode_bars": bars},
        market=perpetual_market,
        played=(1_850, 2_400),
        ends_of_splits=(1_500, 1_800),
        many=3_000,
        enduring={"continue_after_liquidation": True, "ruin": 1e-6},
        idle=np.zeros(1, np.float32),
        trade=np.full(1, 0.5, np.float32),
        ends="truncated",
        features=features,
        scaler=FeatureScaler,
        behind=((200, 400, 1_000, 1_500, 1_700), 2_000, 200),
        walk=random_walk,
        candles=candles,
        query="",
        misspelt={"epsiode_bars": "episode_bars"},
    ),
    "ZeroDTE": Family(
        arguments={"bars": SESSIONS},
        volatile={"bars": EARLY, "fill": "market"},
        short=lambda bars: {},
        market=session_market,
        played=(10 * 390, 11 * 390 - 1),
        ends_of_splits=(9 * 390 - 1, 10 * 390 - 1),
        many=16 * 390,
        enduring={},
        idle=0,
        trade=1,
        ends="terminated",
        features=session_features,
        scaler=SessionScaler,
        behind=((2 * 390 + 10, 3 * 390, 4 * 390 + 200, 7 * 390 + 50, 9 * 390, 10 * 390), 10 * 390, 390),
        walk=session_walk,
        candles=session_candles,
        query="?market=spy",
        misspelt={"strike_ofset": "strike_offset"},
    ),
    "SpotCrypto": Family(
        arguments={"bars": BASKET},
        volatile={
            "bars": BASKET + "&annual_volatility=2.5",
            "episode_bars": 60,
            "allow_short": True,
            "ruin": 0.85,
            "maximum_drawdown": 0.1,
        },
        short=lambda bars: {"episode_bars": bars},
        market=basket_market,
        played=(1_850, 2_400),
        ends_of_splits=(1_500, 1_800),
        many=3_000,
        enduring={"ruin": 1e-6},
        idle=np.zeros(3, np.float32),
        trade=np.array([0.5, 0.2, 0.1], np.float32),
        ends="truncated",
        features=spot_features,
        scaler=SpotScaler,
        behind=((200, 400, 1_000, 1_500, 1_700), 2_000, 200),
        walk=basket_walk,
        candles=candles,
        query="",
        misspelt={"alow_short": "allow_short"},
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
