"""Small environments, alone and in lanes, that see the future or do not: what the detector is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from markets.bars import Bars

Floats = np.ndarray[Any, Any]

FIRST = 20  # bar of the first observation of the toy environments
LENGTH = 30  # bars of an episode of a lane


def returns(bars: Bars) -> Floats:
    return np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.close[0, 0]))


class ToyEnv(gym.Env[Any, Any]):
    """Target position -1..1 in one asset; an honest order fills at the open of the next bar."""

    observation_names = ("return_1", "position")

    def __init__(
        self, bars: Bars, fill: str = "next open", reward: str = "own bar", length: int = 0, spread: int = 0
    ) -> None:
        self.bars, self.fill, self.pays, self.length, self.spread = bars, fill, reward, length, spread
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def _see(self) -> tuple[Floats, dict[str, Any]]:
        closes = self.bars.close[:, 0]
        values = np.array([np.log(closes[self.row] / closes[self.row - 1]), self.position])
        return values, {"time": self.bars.close_time[self.row]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.row, self.position = FIRST, 0.0
        if self.spread:
            self.row += int(self.np_random.integers(0, self.spread))
        self.begun = self.row
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
        over = self.length > 0 and self.row - self.begun >= self.length
        return seen, reward, False, over or self.row >= len(closes) - 1, info


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


class Tells(gym.Wrapper[Any, Any, Any, Any]):
    """Adds entries to info that a policy could read."""

    def __init__(self, env: ToyEnv, tell: Callable[[ToyEnv], dict[str, Any]]) -> None:
        super().__init__(env)
        self.inner, self.tell = env, tell

    def reset(self, **arguments: Any) -> Any:
        seen, info = self.env.reset(**arguments)
        return seen, {**info, **self.tell(self.inner)}

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return *rest, {**info, **self.tell(self.inner)}


def next_close(env: ToyEnv) -> dict[str, Any]:
    return {"hint": {"target": env.bars.close[min(env.row + 1, len(env.bars) - 1), 0]}}


def whole_series(env: ToyEnv) -> dict[str, Any]:
    return {"prices": env.bars.close[:, 0], "row": env.row}


def past_only(env: ToyEnv) -> dict[str, Any]:
    """A label of its own bar, the last returns, all prices so far, and a clock that no two replays share."""
    label = -1 if env.bars.labels is None else int(env.bars.labels[env.row])
    past = env.bars.close[: env.row + 1, 0]
    return {"label": label, "last": np.diff(past[-4:]), "prices": past, "seconds": time.perf_counter()}


# ---- lanes ------------------------------------------------------------------------------------------------------


class Lanes(SyncVectorEnv):
    """Four toy environments whose episodes begin at random and last 30 bars."""

    observation_names = ToyEnv.observation_names

    def __init__(self, bars: Bars, mode: AutoresetMode = AutoresetMode.SAME_STEP, **settings: Any) -> None:
        self.bars = bars
        super().__init__([lambda: ToyEnv(bars, length=LENGTH, spread=60, **settings)] * 4, autoreset_mode=mode)

    def ahead(self, row: int) -> float:
        """The return of the next bar, by the formula of the observation; of the last bar its own."""
        closes, later = self.bars.close[:, 0], min(row + 1, len(self.bars) - 1)
        return float(np.log(closes[later] / closes[later - 1]))


class OneLanePeeks(Lanes):
    """Lane 2 is shown the next return, the others their own."""

    def reset(self, **arguments: Any) -> Any:
        seen, info = super().reset(**arguments)
        return self._peek(seen), info

    def step(self, actions: Any) -> Any:
        seen, *rest = super().step(actions)
        return self._peek(seen), *rest

    def _peek(self, seen: Floats) -> Floats:
        seen[2, 0] = self.ahead(self.envs[2].unwrapped.row)
        return seen


class LastObservationPeeks(Lanes):
    """Only the last observation of an episode, which nobody looks at but the learner, shows the next return."""

    def step(self, actions: Any) -> Any:
        seen, reward, terminated, truncated, info = super().step(actions)
        for lane in np.flatnonzero(terminated | truncated):
            row = int(np.searchsorted(self.bars.close_time, info["final_info"]["time"][lane]))
            info["final_obs"][lane] = np.array([self.ahead(row), info["final_obs"][lane][1]])
        return seen, reward, terminated, truncated, info


class InfoOfOneLanePeeks(Lanes):
    """The infos of lane 1 tell the next return, those of the others nothing."""

    def reset(self, **arguments: Any) -> Any:
        seen, info = super().reset(**arguments)
        return seen, self._tell(info)

    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        return *rest, self._tell(info)

    def _tell(self, info: dict[str, Any]) -> dict[str, Any]:
        hint = np.array([0.0, self.ahead(self.envs[1].unwrapped.row), 0.0, 0.0])
        return {**info, "hint": hint, "_hint": np.array([False, True, False, False])}
