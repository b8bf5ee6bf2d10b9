"""Lookahead in environments: replayed with other futures, and the one leak that replaying cannot see.

An order that is filled at the close it was decided on earns the gap to the next open, which no honest order does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.counterfactual import changed, gapped
from agents.leak_search import TERMINATED, TRIALS, TRUNCATED, search
from agents.leaks import Leak, Leaks, Record, named
from markets.bars import Bars
from markets.errors import ConfigError

Make = Callable[[Bars], Any]

STEPS = 1_000  # longest replay of an environment
HELD = 0.6  # how often an action is held for another bar
GAP = 0.02  # jump of the price in the check of fills
FILL_TRIALS = 5


def check_env(
    make: Make,
    bars: Bars,
    *,
    subject: str = "env",
    first_row: int | None = None,
    train_rows: int = 0,
    steps: int = STEPS,
    trials: int = TRIALS,
    seed: int = 0,
) -> Leaks:
    """Look for the future in the observations, rewards and fills of the environments that ``make(bars)`` builds.

    Args:
        make: builds an environment, with its wrappers; keep split dates and fitted statistics the same in each.
        bars: the market.
        subject: what reports call it.
        first_row: bar on which the first observation stands; where None, infos say so by ``row`` or ``time`` (close).
        train_rows: bars that something was fitted on, which stay as they are.
        steps: longest replay.
        trials: random places at which the future begins.
        seed: of reset, actions, places and noise.

    Raises:
        ConfigError: the bar of the first observation is unknown, or two equal replays differ.
    """
    actions = _actions(make(bars), steps, seed)

    def base() -> Record:
        return _play(make(bars), bars, actions, seed, first_row)

    def rebuild(k: int, how: str) -> Record:
        return _play(make(changed(bars, k, how, seed)), bars, actions, seed, first_row)

    leaks = search(subject, rebuild, base, train_rows, trials, seed)
    fill = _early_fill(make, bars, actions, base(), _Walk(subject, first_row, train_rows, seed))
    if fill is not None:
        leaks.append(fill)
    return leaks


@dataclass(frozen=True)
class _Walk:
    """How an environment is walked."""

    subject: str
    first_row: int | None
    train_rows: int
    seed: int


def _actions(env: gym.Env[Any, Any], steps: int, seed: int) -> list[Any]:
    """Draw actions, each held for a while."""
    generator = np.random.default_rng(seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample()]
    while len(actions) < steps:
        actions.append(actions[-1] if generator.random() < HELD else env.action_space.sample())
    env.close()
    return actions


def _play(env: gym.Env[Any, Any], bars: Bars, actions: Sequence[Any], seed: int, first_row: int | None) -> Record:
    """Replay given actions: observations, then the reward and the end that came with each of them."""
    obs, info = env.reset(seed=seed)
    row = _row(info, bars)
    if row is None and first_row is None:
        raise ConfigError(
            "the bar of the first observation is unknown: put 'row' or 'time' (close of the bar) into info, or say "
            "which one it is (first_row=, FIRST_ROW in the module, --first-row)"
        )
    rows = [row if row is not None else int(first_row or 0)]
    lines = [[*_flat(obs), 0.0, 0.0]]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        row = _row(info, bars)
        rows.append(rows[-1] + 1 if row is None else row)
        lines.append([*_flat(obs), float(reward), TERMINATED if terminated else TRUNCATED * float(truncated)])
        if terminated or truncated:
            break
    names = (*_observation_names(env, obs), "reward", "ended")
    env.close()
    return Record(np.array(lines, np.float64), np.array(rows, np.int64), names)


def _row(info: Mapping[str, Any], bars: Bars) -> int | None:
    if "row" in info:
        return int(info["row"])
    if "time" in info:
        return int(np.searchsorted(bars.close_time, np.datetime64(info["time"], "ns")))
    return None


def _flat(obs: Any) -> list[float]:
    if isinstance(obs, Mapping):
        return [number for key in obs for number in _flat(obs[key])]
    if isinstance(obs, tuple):
        return [number for part in obs for number in _flat(part)]
    values: list[float] = np.asarray(obs, np.float64).ravel().tolist()
    return values


def _observation_names(env: gym.Env[Any, Any], obs: Any) -> tuple[str, ...]:
    """Name the numbers of an observation: by the environment's own names, by keys of a dictionary, by place."""
    if isinstance(obs, Mapping):
        counts = {key: len(_flat(part)) for key, part in obs.items()}
        return tuple(str(key) if count == 1 else f"{key}[{i}]" for key, count in counts.items() for i in range(count))
    names = env.get_wrapper_attr("observation_names") if env.has_wrapper_attr("observation_names") else None
    return named(names, len(_flat(obs)))


def _extremes(space: gym.Space[Any]) -> tuple[Any, Any] | None:
    """Return two actions that want different positions."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return space.low, space.high
    return None


def _early_fill(make: Make, bars: Bars, actions: Sequence[Any], reference: Record, settings: _Walk) -> Leak | None:
    """Find an action that earns the gap between the close it was decided on and the next open."""
    extremes = _extremes(make(bars).action_space)
    steps = [step for step in range(1, len(reference.rows)) if reference.rows[step] >= max(settings.train_rows, 1)]
    if extremes is None or not steps:
        return None

    def effect(step: int, gap: float, move: float) -> float:
        """Return how much more the step pays for one extreme than for the other."""
        other = gapped(bars, int(reference.rows[step]), gap, move)
        rewards = []
        for action in extremes:
            played = _play(make(other), bars, [*actions[: step - 1], action], settings.seed, settings.first_row)
            if len(played.rows) <= step:
                return np.nan
            rewards.append(played.values[step, -2])
        return float(rewards[1] - rewards[0])

    drawn = np.random.default_rng(settings.seed).choice(steps, FILL_TRIALS).tolist()
    for step in sorted({steps[0], *drawn}):
        jump = abs(effect(step, GAP, 0.0) - effect(step, -GAP, 0.0))
        move = abs(effect(step, 0.0, GAP) - effect(step, 0.0, -GAP))
        if jump > 0.5 * move > 0.0 and jump > 0.25 * abs(effect(step, 0.0, 0.0)):  # beyond what costs can do
            how = "the action earns the gap between the close that it has seen and the next open"
            return Leak(settings.subject, "fill", step, 1, how, int(reference.rows[step]))
    return None
