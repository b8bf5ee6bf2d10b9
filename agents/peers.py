"""Public trading environments that the benchmark can be run against where they are installed.

Each entry: name, module, and a function ``(steps, stream) -> loop`` whose loop makes that many steps and returns their
number. Peers trade a position of discrete size and keep less of an account; the rows compare speed, not mechanics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from markets.sources import load

Loop = Callable[[], int]


def _frame(names: dict[str, str]) -> pd.DataFrame:
    bars = load("synthetic:crypto?seed=0&bars=5000")
    columns = {new: bars.columns[old][:, 0] for old, new in names.items()}
    return pd.DataFrame(columns, index=pd.DatetimeIndex(bars.time, name="date"))


def drive(env: Any, actions: Sequence[Any]) -> Loop:
    """Return a loop that resets a single env, sends it every action, and returns how many there were."""

    def go() -> int:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return len(actions)

    return go


def _choices(steps: int, stream: str, count: int) -> list[int]:
    if stream == "constant":
        return [1] * steps
    return [int(choice) for choice in np.random.default_rng(0).integers(0, count, steps)]


def gym_anytrading(steps: int, stream: str) -> Loop:
    """StocksEnv of gym-anytrading: long or short, a fee, no account."""
    stocks_env = importlib.import_module("gym_anytrading.envs").StocksEnv
    frame = _frame({"open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"})
    return drive(stocks_env(df=frame, window_size=10, frame_bound=(10, len(frame))), _choices(steps, stream, 2))


def gym_trading_env(steps: int, stream: str) -> Loop:
    """TradingEnv of gym-trading-env: positions -1, 0, 1 with fee and borrow interest."""
    trading_env = importlib.import_module("gym_trading_env.environments").TradingEnv
    frame = _frame({name: name for name in ("open", "high", "low", "close", "volume")})
    frame["feature_close"] = frame["close"].pct_change().fillna(0.0)
    frame["feature_volume"] = frame["volume"] / frame["volume"].rolling(168, min_periods=1).max()
    env = trading_env(df=frame, positions=[-1, 0, 1], trading_fees=0.0005, verbose=0)
    return drive(env, _choices(steps, stream, 3))


PEERS: tuple[tuple[str, str, Callable[[int, str], Loop]], ...] = (
    ("gym-anytrading", "gym_anytrading", gym_anytrading),
    ("gym-trading-env", "gym_trading_env", gym_trading_env),
)
