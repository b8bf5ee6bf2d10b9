"""Lookahead in vector environments: lanes replayed with other futures, the last observation of every episode included.

A lane that begins anew goes back in time, so a line (one lane, one step) may know every bar that its lane has seen
since the reset: lines are compared as long as the lane has not met a changed bar. What a lane shows after it began
anew further back is therefore compared with futures that begin after its furthest bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from agents.counterfactual import changed, cut_behind_session, gapped
from agents.fills import HOW, early_fill, extremes
from agents.infos import InfoColumns, batch
from agents.leak_search import TRIALS, search
from agents.leaks import Floats, Leak, Leaks, Record
from agents.lookahead_envs import draw_actions, ended, flat, observation_names, row_of
from markets.bars import Bars
from markets.errors import ConfigError

Make = Callable[[Bars], Any]
Rows = NDArray[np.int64]

LANE_STEPS = 120  # calls of a replay
FILL_TRIALS = 2  # per lane
ENDS = 12  # ends and beginnings of episodes at which the future is replaced from the next bar on
ABSENT = -1  # row of a line that is not there: no episode began at that call


def check_vector_env(
    make: Make,
    bars: Bars,
    *,
    subject: str = "vector env",
    options: dict[str, Any] | None = None,
    train_rows: int = 0,
    steps: int = LANE_STEPS,
    trials: int = TRIALS,
    seed: int = 0,
    whole_sessions: bool = False,
) -> Leaks:
    """Look for the future in every lane, and in ``final_obs``, of the vector environments that ``make(bars)`` builds.

    Args:
        make: builds a vector environment (SAME_STEP or NEXT_STEP), with its wrappers; short episodes show their ends.
        bars: the market.
        subject: what reports call it.
        options: of the first reset; where lanes begin at random, a cut off future moves their starts, and a lane that
            begins elsewhere cannot be compared.
        train_rows: bars that something was fitted on, which stay as they are.
        steps: calls of a replay.
        trials: random places at which the future begins.
        seed: of reset, actions, places and noise.
        whole_sessions: the environment plays whole sessions only, so that bars are cut off behind a session.

    Raises:
        ConfigError: infos do not name the bars by ``row`` or ``time``, or two equal replays differ.
    """
    env = make(bars)
    if env.metadata.get("autoreset_mode") not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise ConfigError(f"{subject}: the autoreset mode must be SAME_STEP or NEXT_STEP to play several episodes")
    walk = _Walk(bars, draw_actions(env.action_space, steps, seed), seed, options, InfoColumns())
    env.close()
    base = _play(make(bars), walk)
    order = _order(base.rows)

    def rebuild(k: int, how: str) -> Record:
        k = cut_behind_session(bars, k) if how == "cut" and whole_sessions else k
        lines = _play(make(changed(bars, k, how, seed)), walk)
        return _record(base, order, _filled(lines, base, how == "cut"))

    def again() -> Record:
        return _record(base, order, _filled(_play(make(bars), walk), base, False))

    turns = _turns(base)
    leaks = search(subject, rebuild, again, train_rows, trials, seed, more=turns)
    fill = _early_fill(make, walk, base, subject, train_rows)
    if fill is not None:
        leaks.append(fill)
    return leaks


@dataclass(frozen=True)
class _Walk:
    """How lanes are walked."""

    bars: Bars
    actions: Sequence[Any]
    seed: int
    options: dict[str, Any] | None
    infos: InfoColumns


@dataclass(frozen=True, eq=False)
class _Lines:
    """What S calls showed of N lanes: at ``2 t`` what call t showed, at ``2 t + 1`` what began at that call.

    Attributes:
        values: ``(2 S, N, D)``. ``rows``: ``(2 S, N)`` bars, ``ABSENT`` where nothing began.
    """

    values: Floats
    rows: Rows
    names: tuple[str, ...]


def _play(env: Any, walk: _Walk) -> _Lines:
    """Replay given actions in all lanes, through the ends of their episodes."""
    lanes = env.num_envs
    nothing, nowhere = np.zeros(lanes), np.full(lanes, ABSENT)
    obs, infos = env.reset(seed=walk.seed, options=walk.options)
    shown = _shown(env, obs)
    columns = observation_names(getattr(env, "observation_names", None), next(_each(env, obs)))
    numbers = [np.column_stack([shown, nothing, nothing])] * 2
    told: list[dict[str, Floats]] = [batch(infos, lanes), {}]
    rows = [_rows(infos, walk.bars, lanes), nowhere]
    for action in walk.actions:
        obs, reward, terminated, truncated, infos = env.step(action)
        shown, live, place = _shown(env, obs), batch(infos, lanes), _rows(infos, walk.bars, lanes)
        end = np.array([ended(*flags) for flags in zip(terminated, truncated, strict=True)])
        over = (end != 0.0) & (env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP)
        last, final = shown.copy(), live
        if over.any():
            for lane in np.flatnonzero(over):
                last[lane] = flat(infos["final_obs"][lane])
            ending = batch(infos.get("final_info", {}), lanes)
            final = {name: np.where(over, ending.get(name, np.nan), live.get(name, np.nan)) for name in live | ending}
        numbers += [np.column_stack([last, reward, end]), np.column_stack([shown, nothing, nothing])]
        told += [final, live if over.any() else {}]
        was = _rows(infos.get("final_info", {}), walk.bars, lanes) if over.any() else place
        rows += [np.where(over, was, place), np.where(over, place, ABSENT)]
    env.close()
    values = np.concatenate([np.array(numbers), walk.infos.stack(told, lanes)], axis=2)
    places = np.array(rows, np.int64)
    if (places[0::2] == ABSENT).any():
        raise ConfigError("the bars of the lanes are unknown: put 'row' or 'time' (close of the bar) into infos")
    return _Lines(values, places, (*columns, "reward", "ended", *(walk.infos.names or ())))


def _each(env: Any, obs: Any) -> Iterator[Any]:
    return iter(gym.vector.utils.iterate(env.observation_space, obs))


def _shown(env: Any, obs: Any) -> Floats:
    """Return the numbers of each lane's observation: ``(N, D)``."""
    return np.array([flat(one) for one in _each(env, obs)], np.float64)


def _rows(infos: Mapping[str, Any], bars: Bars, lanes: int) -> Rows:
    """Return the bars that infos name, ``ABSENT`` where they name none."""
    rows = np.full(lanes, ABSENT)
    for key in ("time", "row"):
        mask = infos.get(f"_{key}", np.ones(lanes, bool))
        for lane in np.flatnonzero(mask) if key in infos else ():
            rows[lane] = row_of({key: infos[key][lane]}, bars)
    return rows


def _furthest(rows: Rows) -> Rows:
    """Return the last bar that each line's lane has met: ``(2 S, N)``."""
    return np.maximum.accumulate(rows, axis=0)


def _order(rows: Rows) -> NDArray[np.intp]:
    """Return the lines that are there, by the last bar that they may know."""
    there = np.flatnonzero(rows.ravel() != ABSENT)
    return there[np.argsort(_furthest(rows).ravel()[there], kind="stable")]


def _record(base: _Lines, order: NDArray[np.intp], lines: _Lines) -> Record:
    """Put the lines of a replay in the order of the first one."""
    place, lane = np.unravel_index(order, base.rows.shape)
    values = lines.values.reshape(base.rows.size, -1)[order]
    rows = _furthest(base.rows).ravel()[order]
    return Record(values, rows, lines.names, place // 2, base.rows.ravel()[order], lane)


def _filled(lines: _Lines, base: _Lines, cut: bool) -> _Lines:
    """Replace what another replay cannot show by what the first one showed.

    That is: what began where no episode ended (``ended`` tells), and, where data was cut off, all that a lane shows
    once it stands on another bar, since where it begins is drawn from what there is.
    """
    if lines.names != base.names:
        return lines
    unknown = lines.rows == ABSENT
    if cut:
        unknown |= np.maximum.accumulate(lines.rows != base.rows, axis=0)
    return _Lines(np.where(unknown[:, :, None], base.values, lines.values), lines.rows, lines.names)


def _over(lines: _Lines) -> NDArray[np.bool_]:
    """Say which call ended an episode in which lane: ``(S, N)``."""
    return np.asarray(lines.values[0::2, :, lines.names.index("ended")] != 0.0)


def _turns(base: _Lines) -> list[int]:
    """Return the bars that follow on ends and beginnings of episodes, where these stand at their lane's furthest."""
    over = _over(base)
    turning = np.zeros(base.rows.shape, bool)
    turning[0::2] = turning[1::2] = over
    turning[2::2] |= over[:-1]
    bars = np.unique(base.rows[turning & (base.rows == _furthest(base.rows)) & (base.rows != ABSENT)]) + 1
    return [int(bar) for bar in bars[np.linspace(0, len(bars) - 1, min(ENDS, len(bars))).astype(int)]]


def _early_fill(make: Make, walk: _Walk, base: _Lines, subject: str, train_rows: int) -> Leak | None:
    """Find a lane in which an action earns the gap between the close it was decided on and the next open."""
    env = make(walk.bars)
    space, lanes = env.single_action_space, env.num_envs
    env.close()
    single = extremes(space)
    if single is None:
        return None
    empty = gym.vector.utils.create_empty_array
    actions = tuple(
        gym.vector.utils.concatenate(space, [one] * lanes, empty(space, lanes))  # type: ignore[arg-type]
        for one in single
    )
    reward = base.names.index("reward")

    def pay(spot: tuple[int, int], gap: float, move: float, action: Any) -> float:
        step, lane = spot
        other = gapped(walk.bars, int(base.rows[2 * step, lane]), gap, move)
        played = _play(make(other), replace(walk, actions=[*walk.actions[: step - 1], action]))
        return float(played.values[2 * step, lane, reward])

    generator = np.random.default_rng(walk.seed)
    spots: list[tuple[int, int]] = []
    over = _over(base)
    for lane in range(lanes):
        first = int(over[:, lane].argmax()) if over[:, lane].any() else len(walk.actions)
        steps = [step for step in range(1, first) if base.rows[2 * step, lane] >= max(train_rows, 1)]
        if steps:
            spots += sorted({(step, lane) for step in (steps[0], *generator.choice(steps, FILL_TRIALS).tolist())})
    found = early_fill(pay, actions, spots)
    if found is None:
        return None
    step, lane = found
    return Leak(subject, "fill", step, 1, HOW, int(base.rows[2 * step, lane]), lane)
