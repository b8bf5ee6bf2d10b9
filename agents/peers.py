"""Public trading environments that the benchmark can be run against where they are installed.

A peer's ``make(steps, stream)`` returns a loop that makes that many steps over all lanes and returns their number. All
trade the closes of the same synthetic market. The rows compare speed, not
mechanics; what a peer leaves out is in the docstring of its function.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from agents.stopwatch import Loop
from markets.sources import load

TARGETS = np.linspace(-1.0, 1.0, 21).round(2).tolist()  # discrete positions where a peer takes a list of them
FEE, SLIPPAGE = 0.0005, 0.0001


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


def _module(name: str) -> Any:
    """Import a peer's module; gym-trading-env turns every warning of the process into an error, which is undone."""
    with warnings.catch_warnings():
        return importlib.import_module(name)


def _choices(steps: int, stream: str, constant: int, count: int) -> list[int]:
    if stream == "constant":
        return [constant] * steps
    return [int(choice) for choice in np.random.default_rng(0).integers(0, count, steps)]


def gym_anytrading(steps: int, stream: str) -> Loop:
    """StocksEnv of gym-anytrading: all in or all out, a fee; no account, margin, funding, spread or impact."""
    stocks_env = _module("gym_anytrading.envs").StocksEnv
    frame = _frame({"open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"})
    env = stocks_env(df=frame, window_size=10, frame_bound=(10, len(frame)))
    return drive(env, _choices(steps, stream, 1, 2))


def gym_trading_env(steps: int, stream: str) -> Loop:
    """TradingEnv of gym-trading-env: positions from a list, fee, borrow interest; fills at the close that was seen.

    It has no margin, liquidation, funding stamps, spread or impact.
    """
    trading_env = _module("gym_trading_env.environments").TradingEnv
    frame = _frame({name: name for name in ("open", "high", "low", "close", "volume")})
    frame["feature_close"] = frame["close"].pct_change().fillna(0.0)
    frame["feature_volume"] = frame["volume"] / frame["volume"].rolling(168, min_periods=1).max()
    env = trading_env(df=frame, positions=TARGETS, trading_fees=FEE, verbose=0)
    return drive(env, _choices(steps, stream, TARGETS.index(0.3), len(TARGETS)))


def _torchtrade(kind: str, **more: Any) -> Any:
    offline = _module("torchtrade.envs.offline")
    frame = _frame({name: name for name in ("open", "high", "low", "close", "volume")})
    config = getattr(offline, f"{kind}Config")(
        time_frames="1Hour", window_sizes=10, execute_on="1Hour", action_levels=TARGETS, leverage=3,
        transaction_fee=FEE, slippage=SLIPPAGE, max_traj_length=512, **more,
    )  # fmt: skip
    return getattr(offline, kind)(frame.rename_axis("timestamp").reset_index(), config)


def torchtrade(steps: int, stream: str) -> Loop:
    """SequentialTradingEnv of TorchTrade, TorchRL's protocol: levels from a list, fee, isolated liquidation.

    Fills at the close that was seen with random slippage; one maintenance rate, no funding, mark price, tiers, impact.
    """
    import torch

    env = _torchtrade("SequentialTradingEnv")
    actions = torch.tensor(_choices(steps, stream, TARGETS.index(0.3), len(TARGETS))).unbind()

    def go() -> int:
        seen = env.reset()
        for action in actions:
            seen["action"] = action
            seen = env.step(seen)["next"]
            if seen["done"].item():
                seen = env.reset()
        return steps

    return go


def torchtrade_lanes(steps: int, stream: str, lanes: int = 1024) -> Loop:
    """VectorizedSequentialTradingEnv of TorchTrade: the rules of :func:`torchtrade` on tensors of N accounts."""
    import torch

    env = _torchtrade("VectorizedSequentialTradingEnv", num_envs=lanes)
    calls = max(steps // lanes, 1)
    choices = _choices(calls * lanes, stream, TARGETS.index(0.3), len(TARGETS))
    actions = torch.tensor(choices).reshape(calls, lanes).unbind()

    def go() -> int:
        seen = env.reset()
        for action in actions:
            seen["action"] = action
            _, seen = env.step_and_maybe_reset(seen)
        return calls * lanes

    return go


@dataclass(frozen=True)
class Peer:
    """A public environment: its name, the module that shows it is installed, its lanes, and how to make its loop."""

    name: str
    module: str
    lanes: int
    make: Callable[[int, str], Loop]

    def loop(self, steps: int, stream: str) -> Loop | str:
        """Return its loop, or why there is none: not installed, or not of a version that is known here."""
        if importlib.util.find_spec(self.module) is None:
            return "not installed"
        try:
            loop = self.make(steps, stream)
            loop()
        except Exception as error:  # somebody else's code: its failure must not take our rows away
            return f"fails: {type(error).__name__}: {error}"
        return loop


PEERS = (
    Peer("gym-anytrading", "gym_anytrading", 1, gym_anytrading),
    Peer("gym-trading-env", "gym_trading_env", 1, gym_trading_env),
    Peer("TorchTrade", "torchtrade", 1, torchtrade),
    Peer("TorchTrade", "torchtrade", 1024, torchtrade_lanes),
)
