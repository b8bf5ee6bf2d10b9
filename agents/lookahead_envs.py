"""Lookahead in environments: the same actions replayed with other futures, observations, rewards and infos compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.counterfactual import changed, cut_behind_session, gapped
from agents.fills import HOW, early_fill, extremes
from agents.infos import InfoColumns
from agents.leak_search import TERMINATED, TRIALS, TRUNCATED, leak_at, search
from agents.leaks import Leak, Leaks, Record, named
from markets.bars import Bars
from markets.errors import ConfigError

Make = Callable[[Bars], Any]

STEPS = 1_000  # longest replay of an environment
HELD = 0.6  # how often an action is held for another bar
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
    whole_sessions: bool = False,
) -> Leaks:
    """Look for the future in observations, rewards, infos and fills of the environments that ``make(bars)`` builds.

    Args:
        make: builds an environment, with its wrappers; keep split dates and fitted statistics the same in each.
        bars: the market.
        subject: what reports call it.
        first_row: bar on which the first observation stands; where None, infos say so by ``row`` or ``time`` (close).
        train_rows: bars that something was fitted on, which stay as they are.
        steps: longest replay.
        trials: random places at which the future begins.
        seed: of reset, actions, places and noise.
        whole_sessions: the environment plays whole sessions only, so that bars are cut off behind a session.

    Raises:
        ConfigError: the bar of the first observation is unknown, or two equal replays differ.
    """
    env = make(bars)
    walk = _Walk(bars, draw_actions(env.action_space, steps, seed), seed, first_row, InfoColumns())
    env.close()

    def base() -> Record:
        return _play(make(bars), walk)

    def rebuild(k: int, how: str) -> Record:
        k = cut_behind_session(bars, k) if how == "cut" and whole_sessions else k
        return _play(make(changed(bars, k, how, seed)), walk)

    leaks = search(subject, rebuild, base, train_rows, trials, seed)
    fill = _early_fill(make, walk, base(), subject, train_rows)
    if fill is not None:
        leaks.append(fill)
    return leaks


@dataclass(frozen=True)
class _Walk:
    """How an environment is walked."""

    bars: Bars
    actions: Sequence[Any]
    seed: int
    first_row: int | None
    infos: InfoColumns


def draw_actions(space: gym.Space[Any], steps: int, seed: int) -> list[Any]:
    """Draw actions, each held for a while."""
    generator = np.random.default_rng(seed)
    space.seed(seed)
    actions = [space.sample()]
    while len(actions) < steps:
        actions.append(actions[-1] if generator.random() < HELD else space.sample())
    return actions


def _play(env: gym.Env[Any, Any], walk: _Walk, actions: Sequence[Any] | None = None) -> Record:
    """Replay given actions: observations, then reward, end and info that came with each of them."""
    obs, info = env.reset(seed=walk.seed)
    row = row_of(info, walk.bars)
    if row is None and walk.first_row is None:
        raise ConfigError(
            "the bar of the first observation is unknown: put 'row' or 'time' (close of the bar) into info, or say "
            "which one it is (first_row=, FIRST_ROW in the module, --first-row)"
        )
    rows = [row if row is not None else int(walk.first_row or 0)]
    lines, infos = [[*flat(obs), 0.0, 0.0]], [info]
    for action in walk.actions if actions is None else actions:
        obs, reward, terminated, truncated, info = env.step(action)
        row = row_of(info, walk.bars)
        rows.append(rows[-1] + 1 if row is None else row)
        lines.append([*flat(obs), float(reward), ended(terminated, truncated)])
        infos.append(info)
        if terminated or truncated:
            break
    names = env.get_wrapper_attr("observation_names") if env.has_wrapper_attr("observation_names") else None
    told = walk.infos.table(infos)
    named_columns = (*observation_names(names, obs), "reward", "ended", *(walk.infos.names or ()))
    env.close()
    return Record(np.concatenate([np.array(lines, np.float64), told], axis=1), np.array(rows, np.int64), named_columns)


def ended(terminated: Any, truncated: Any) -> float:
    """Return what the column ``ended`` says."""
    return TERMINATED if terminated else TRUNCATED * float(truncated)


def row_of(info: Mapping[str, Any], bars: Bars) -> int | None:
    """Return the bar that an info names by ``row`` or by ``time`` (its close), None where it names none."""
    if "row" in info:
        return int(info["row"])
    if "time" in info:
        return int(np.searchsorted(bars.close_time, np.datetime64(info["time"], "ns")))
    return None


def flat(obs: Any) -> list[float]:
    """Return the numbers of an observation, of whatever space."""
    if isinstance(obs, Mapping):
        return [number for key in obs for number in flat(obs[key])]
    if isinstance(obs, tuple):
        return [number for part in obs for number in flat(part)]
    values: list[float] = np.asarray(obs, np.float64).ravel().tolist()
    return values


def observation_names(names: Sequence[str] | None, obs: Any) -> tuple[str, ...]:
    """Name the numbers of an observation: by the environment's own names, by keys of a dictionary, by place."""
    if isinstance(obs, Mapping):
        counts = {key: len(flat(part)) for key, part in obs.items()}
        return tuple(str(key) if count == 1 else f"{key}[{i}]" for key, count in counts.items() for i in range(count))
    return named(names, len(flat(obs)))


def _early_fill(make: Make, walk: _Walk, reference: Record, subject: str, train_rows: int) -> Leak | None:
    """Find an action that earns the gap between the close it was decided on and the next open."""
    actions = extremes(make(walk.bars).action_space)
    steps = [step for step in range(1, len(reference.rows)) if reference.rows[step] >= max(train_rows, 1)]
    if actions is None or not steps:
        return None
    column = reference.names.index("reward")

    def pay(step: int, gap: float, move: float, action: Any) -> float:
        other = gapped(walk.bars, int(reference.rows[step]), gap, move)
        played = _play(make(other), walk, [*walk.actions[: step - 1], action])
        return float(played.values[step, column]) if len(played.rows) > step else np.nan

    drawn = np.random.default_rng(walk.seed).choice(steps, FILL_TRIALS).tolist()
    step = early_fill(pay, actions, sorted({steps[0], *drawn}))
    return None if step is None else leak_at(reference, step, subject, "fill", 1, HOW)
