"""Twenty things a lookahead detector is asked about: ten that see the future, and a clean twin of each.

Every fixture says which columns leak, on which row that can first be seen, and (where it is exact) by how many bars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from markets.bars import Bars

Floats = np.ndarray[Any, Any]

DAY = 24  # bars
TRAINED = 150  # rows that the clean scaler is fitted on
LATE = 257  # row on which the whispered leak begins
FIRST = 20  # bar of the first observation of the toy environments


@dataclass(frozen=True)
class Fixture:
    """What to test and what must be found: ``leaks`` maps a column to (first offending step, bars ahead or None)."""

    name: str
    kind: str  # table, normaliser, env or policy
    subject: Callable[..., Any]
    leaks: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def returns(bars: Bars) -> Floats:
    return np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.close[0, 0]))


def shifted(values: Floats, by: int) -> Floats:
    """pandas' shift: positive looks back, negative looks ahead; the ends are NaN."""
    result = np.full_like(values, np.nan)
    if by > 0:
        result[by:] = values[:-by]
    elif by < 0:
        result[:by] = values[-by:]
    return result


# ---- environments -----------------------------------------------------------------------------------------------


class ToyEnv(gym.Env[Any, Any]):
    """Target position -1..1 in one asset; an honest order fills at the open of the next bar."""

    observation_names = ("return_1", "position")

    def __init__(self, bars: Bars, fill: str = "next open", reward: str = "own bar") -> None:
        self.bars, self.fill, self.pays = bars, fill, reward
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def _see(self) -> tuple[Floats, dict[str, Any]]:
        closes = self.bars.close[:, 0]
        values = np.array([np.log(closes[self.row] / closes[self.row - 1]), self.position])
        return values, {"time": self.bars.close_time[self.row]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.row, self.position = FIRST, 0.0
        return self._see()

    def step(self, action: Any) -> Any:
        target, before = float(action[0]), self.position
        self.row += 1
        opened, closes = self.bars.open[self.row, 0], self.bars.close[:, 0]
        previous, close = closes[self.row - 1], closes[self.row]
        if self.fill == "observed close":
            reward = target * (close / previous - 1.0)
        else:
            reward = before * (opened / previous - 1.0) + target * (close / opened - 1.0)
        if self.pays == "next bar":
            reward = target * (closes[min(self.row + 1, len(closes) - 1)] / close - 1.0)
        self.position = target
        reward -= 0.0005 * abs(target - before)
        seen, info = self._see()
        return seen, reward, False, self.row >= len(closes) - 1, info


class DictEnv(gym.Env[Any, Any]):
    """Discrete orders that fill at the next close, a dictionary as observation, no word about its bar."""

    def __init__(self, bars: Bars) -> None:
        self.closes = bars.close[:, 0]
        self.observation_space = gym.spaces.Dict(
            {"price": gym.spaces.Box(0.0, np.inf, (2,), np.float64), "position": gym.spaces.Discrete(3)}
        )
        self.action_space = gym.spaces.Discrete(3)

    def _see(self) -> dict[str, Any]:
        return {"price": self.closes[self.row - 1 : self.row + 1].copy(), "position": self.position}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.row, self.position = FIRST, 1
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.row += 1
        reward = (self.position - 1) * (self.closes[self.row] / self.closes[self.row - 1] - 1.0)
        reward -= 0.001 * abs(int(action) - self.position) * self.closes[self.row] / self.closes[self.row - 1]
        self.position = int(action)
        return self._see(), reward, False, self.row >= len(self.closes) - 1, {}


class NextReturn(gym.ObservationWrapper[Any, Any, Any]):
    """Appends the return of the bar to come: the classic off-by-one of a hand-written wrapper."""

    def __init__(self, env: ToyEnv) -> None:
        super().__init__(env)
        self.inner = env
        self.observation_names = (*env.observation_names, "momentum")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def observation(self, observation: Any) -> Any:
        later = returns(self.inner.bars)[min(self.inner.row + 1, len(self.inner.bars) - 1)]
        return np.append(observation, later)


class RunningNormaliser(gym.ObservationWrapper[Any, Any, Any]):
    """Mean and deviation of what was observed so far."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seen: list[Floats] = []

    def observation(self, observation: Any) -> Any:
        self.seen.append(observation)
        past = np.array(self.seen)
        return (observation - past.mean(axis=0)) / (past.std(axis=0) + 1e-8)


# ---- features ---------------------------------------------------------------------------------------------------


def windows(values: Floats, before: int, after: int) -> Floats:
    """Mean of rows t-before..t+after, of those there are."""
    return np.array([values[max(0, t - before) : t + after + 1].mean() for t in range(len(values))])


def centred(bars: Bars) -> Floats:
    change = returns(bars)
    ahead = np.log(shifted(bars.close[:, 0], -24) / bars.close[:, 0])
    return np.column_stack([change, windows(bars.close[:, 0], 6, 6), np.where(np.isnan(ahead), 0, np.sign(ahead))])


def trailing(bars: Bars) -> Floats:
    change = returns(bars)
    past = np.log(bars.close[:, 0] / shifted(bars.close[:, 0], 24))
    return np.column_stack([change, windows(bars.close[:, 0], 12, 0), np.sign(past)])


def whispered(bars: Bars) -> Floats:
    """A next return, from row ``LATE`` on, so faint (a millionth of a millionth) that tolerance does not hear it."""
    change = returns(bars)
    ahead = np.clip(np.nan_to_num(shifted(change, -1)), -1.0, 1.0)
    ahead[:LATE] = 0.0
    return np.column_stack([change, change + 1e-12 * ahead])


def remembered(bars: Bars) -> Floats:
    change = returns(bars)
    return np.column_stack([change, change + 1e-12 * np.nan_to_num(shifted(change, 1))])


def filled_back(bars: Bars) -> Any:
    """A warm-up of a rolling mean filled from its first value, and a threshold over the whole series."""
    import pandas as pd

    close, volume = pd.Series(bars.close[:, 0]), pd.Series(bars.volume[:, 0])
    busy = (volume > volume.quantile(0.9)).astype(float)
    return pd.DataFrame({"mean_20": close.rolling(20).mean().bfill(), "busy": busy, "volume": volume})


def filled_forward(bars: Bars) -> Any:
    import pandas as pd

    close, volume = pd.Series(bars.close[:, 0]), pd.Series(bars.volume[:, 0])
    busy = (volume > volume.expanding(30).quantile(0.9)).astype(float)
    return pd.DataFrame({"mean_20": close.rolling(20).mean().ffill(), "busy": busy, "volume": volume})


def unfinished_day(bars: Bars) -> Floats:
    """The close of the day that every one of its hours belongs to, as a resample that is joined by its label."""
    rows = np.arange(len(bars))
    ends = np.minimum(rows // DAY * DAY + DAY - 1, len(bars) - 1)
    return np.column_stack([returns(bars), bars.close[ends, 0]])


def finished_day(bars: Bars) -> Floats:
    rows = np.arange(len(bars))
    ends = (rows + 1) // DAY * DAY - 1
    return np.column_stack([returns(bars), np.where(ends >= 0, bars.close[np.maximum(ends, 0), 0], np.nan)])


# ---- normalisers, encoders, policies ----------------------------------------------------------------------------


def full_score(values: Floats) -> Floats:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def trained_score(values: Floats) -> Floats:
    head = values[:TRAINED]
    return (values - head.mean(axis=0)) / head.std(axis=0)


KERNEL = np.random.default_rng(5).normal(size=9)


def same_conv(bars: Bars) -> Floats:
    """A convolution with padding on both sides (four bars ahead), and a smoothing that runs there and back."""
    change = returns(bars)
    return np.column_stack(
        [np.convolve(np.pad(change, 4), KERNEL, "valid"), smooth(smooth(change)[::-1])[::-1], change]
    )


def valid_conv(bars: Bars) -> Floats:
    change = returns(bars)
    return np.column_stack([np.convolve(np.pad(change, (8, 0)), KERNEL, "valid"), smooth(change), change])


def smooth(values: Floats) -> Floats:
    result = np.array(values, np.float64)
    for t in range(1, len(result)):
        result[t] = 0.9 * result[t - 1] + 0.1 * result[t]
    return result


class Momentum:
    """Follows the last return of the history; with ``peek`` the next one, which it looks up in the bars."""

    def __init__(self, bars: Bars, peek: int) -> None:
        self.returns, self.peek = returns(bars), peek

    def predict(self, history: Floats) -> Any:
        row = min(len(history) - 1 + self.peek, len(self.returns) - 1)
        return np.array([np.sign(self.returns[row])]), None


def first_hours(bars: Bars) -> Floats:
    return returns(bars)[:, None]


ENV = {"steps": 300}
POLICY = {"observe": first_hours}

LEAKY = (
    Fixture(
        "env: fills at the observed close", "env", lambda b: ToyEnv(b, fill="observed close"),
        {"fill": (1, 1)}, settings=ENV,
    ),
    Fixture(
        "env: reward of the next bar", "env", lambda b: ToyEnv(b, reward="next bar"), {"reward": (1, 1)}, settings=ENV
    ),
    Fixture(
        "wrapper: appends the next return", "env", lambda b: NextReturn(ToyEnv(b)), {"momentum": (0, 1)}, settings=ENV
    ),
    Fixture(
        "table: centred mean, label of the next day", "table", centred,
        {"mean_13": (0, 6), "label": (0, 24)}, ("return_1", "mean_13", "label"),
    ),
    Fixture("table: shift(-1), whispered", "table", whispered, {"noisy": (LATE, 1)}, ("return_1", "noisy")),
    Fixture("table: bfill and percentile of the series", "table", filled_back, {"mean_20": (0, 19), "busy": (0, None)}),
    Fixture("table: day that is not finished", "table", unfinished_day, {"day": (0, 23)}, ("return_1", "day")),
    Fixture("normaliser: whole series", "normaliser", full_score, {"a": (0, 299), "b": (0, 299)}, ("a", "b")),
    Fixture(
        "encoder: same padding, there and back", "table", same_conv,
        {"conv": (0, 4), "smooth": (0, None)}, ("conv", "smooth", "return_1"),
    ),
    Fixture("policy: peeks", "policy", lambda b: Momentum(b, 1), {"action": (0, 1)}, settings=POLICY),
)  # fmt: skip

CLEAN = (
    Fixture("env: fills at the next open", "env", ToyEnv, settings=ENV),
    Fixture("env: dictionary, fills at the next close", "env", DictEnv, settings={**ENV, "first_row": FIRST}),
    Fixture("wrapper: running statistics", "env", lambda b: RunningNormaliser(ToyEnv(b)), settings=ENV),
    Fixture("table: trailing mean, label of the past day", "table", trailing),
    Fixture("table: shift(1), whispered", "table", remembered),
    Fixture("table: ffill and running percentile", "table", filled_forward),
    Fixture("table: last finished day", "table", finished_day),
    Fixture("normaliser: training range", "normaliser", trained_score, settings={"train_rows": TRAINED}),
    Fixture("encoder: valid convolution", "table", valid_conv),
    Fixture("policy: follows the past", "policy", lambda b: Momentum(b, 0), settings=POLICY),
)
