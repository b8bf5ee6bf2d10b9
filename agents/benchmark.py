"""Benchmark: CPU time of the environments against reference loops, interleaved in one process, one thread.

Absolute rates differ from machine to machine and minute to minute; the ratios do not, since each round times ours and
its reference one after the other. References: an *empty* environment through ``gym.make`` (same spaces, returns a copy
of one observation and an empty info) for the single env; a bare ``numpy.take`` of the very rows that the lanes stood on
for the vector env; the same PPO recipe on an empty native vector env for training; public peers where they are
installed. Ratio = reference time / our time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import envs
from agents.empty_env import EmptyKernel, make_empty
from agents.encoder_speed import encoded_ids, speed_facts, speed_rows
from agents.peers import PEERS, drive
from agents.scaling import construction, scaling
from agents.stopwatch import ROUNDS, Loop, Row, Stopwatch
from agents.vec_env import NativeVecEnv
from markets.errors import ConfigError, unknown

SINGLE_STEPS = 20_000
PEER_STEPS = 5_000  # of a single env
LANE_STEPS = 200_000  # over all lanes
# "constant": an exposure of 0.3 for ever, or a first choice (a call) once an episode and nothing (choice 0) after it;
# "random": a fresh target or choice every bar, the worst case.
STREAMS = ("constant", "random")
HELD = 0.3
FULL = "single env, full info"
ORIGINAL = "PerpFutures"  # the family whose game the peers play
# Bound and goal of the constant stream, by family: one env with full info, without, and so many lanes.
BOUNDS: dict[str, dict[str | int, tuple[float | None, float | None]]] = {
    "PerpFutures": {"full": (0.13, 0.20), "none": (0.22, 0.30), 64: (0.028, 0.05), 1024: (0.04, 0.10)},
    "ZeroDTE": {"full": (0.10, None), "none": (None, None), 64: (None, None), 1024: (0.03, None)},
    "SpotCrypto": {"full": (None, None), "none": (None, None), 64: (None, None), 1024: (0.02, 0.04)},
}


def run(env_id: str = "PerpFutures-v0", rounds: int = ROUNDS, training: bool = True) -> dict[str, Any]:
    """Measure everything and return rows and facts as plain values.

    Raises:
        UnknownNameError: no such environment.
        ConfigError: ``rounds`` below 1.
    """
    if env_id not in envs.ids():
        raise unknown("environment", env_id, envs.ids())
    if rounds < 1:
        raise ConfigError(f"rounds={rounds} must be at least 1")
    torch.set_num_threads(1)
    watch = Stopwatch(rounds)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for stream in STREAMS:
        rows += _single_rows(env_id, stream, watch)
        rows += [_vector_row(env_id, stream, lanes, watch) for lanes in (64, 1024)]
        added, missing = _peer_rows(env_id, stream, watch)
        rows += added
        for encoded in encoded_ids(env_id):
            rows += _encoded_rows(env_id, encoded, stream, watch)
    if training:
        rows.append(_training_row(env_id, watch))
    facts = [*scaling(env_id, watch), *construction(env_id)]
    for encoded in encoded_ids(env_id):
        facts += speed_facts(encoded, rounds)
    facts.append(watch.other_threads())
    if gym.spec(env_id).kwargs.get("encoded"):  # its bound is the plain environment's speed, in the plain one's table
        rows = [replace(row, bound=None, goal=None) for row in rows]
    return {
        "env": env_id,
        "rounds": rounds,
        "rows": [row.to_json() for row in rows],
        "no_row_for": missing,
        "facts": [fact.to_json() for fact in facts],
    }


def _actions(env: Any, stream: str, steps: int, lanes: tuple[int, ...] = ()) -> NDArray[Any]:
    """Draw the actions of a stream: ``(steps, *lanes, ...)``."""
    space = env.single_action_space if lanes else env.action_space
    shape = (steps, *lanes, *space.shape)
    if not isinstance(space, gym.spaces.Box):
        counts = env.unwrapped.simulation.game.choices
        if stream == "random":
            drawn = np.random.default_rng(0).integers(0, np.array(counts), (*shape[: 1 + len(lanes)], len(counts)))
            return drawn.reshape(shape).astype(space.dtype)
        every = env.unwrapped.simulation.game.episode + len(lanes[:1])  # of lanes one more call resets them
        chosen = np.zeros(shape, space.dtype)
        chosen[::every] = 1
        return chosen
    if stream == "constant":
        return np.full(shape, HELD, space.dtype)
    return np.random.default_rng(0).uniform(space.low, space.high, shape).astype(space.dtype)


def _single_rows(env_id: str, stream: str, watch: Stopwatch) -> list[Row]:
    made = [make_empty(env_id), gym.make(env_id), gym.make(env_id, info="none")]
    actions = list(_actions(made[1], stream, SINGLE_STEPS))
    empty, full, none = watch.medians([drive(env, actions) for env in made])
    return [
        Row(f"{FULL}, against an empty env", stream, full, empty, *_bounds(env_id, "full", stream)),
        Row('single env, info="none", against an empty env', stream, none, empty, *_bounds(env_id, "none", stream)),
    ]


def _bounds(env_id: str, what: str | int, stream: str) -> tuple[float | None, float | None]:
    """Return bound and goal of a row; the random stream has no bound."""
    bound, goal = BOUNDS[_family(env_id)][what]
    return bound if stream == "constant" else None, goal


def _family(env_id: str) -> str:
    return str(gym.spec(env_id).kwargs["family"])


def _lanes(env_id: str, lanes: int, **arguments: Any) -> Any:
    return gym.make_vec(env_id, num_envs=lanes, vectorization_mode="vector_entry_point", **arguments)


def _steps(env: Any, actions: NDArray[Any]) -> Loop:
    """Return a loop that sends native lanes every action; it goes on where the last one stopped."""
    env.reset(seed=0)

    def go() -> int:
        for action in actions:
            env.step(action)
        return len(actions) * env.num_envs

    return go


def _vector_row(env_id: str, stream: str, lanes: int, watch: Stopwatch) -> Row:
    env = _lanes(env_id, lanes)
    table = _served(env)
    actions = _actions(env, stream, max(LANE_STEPS // lanes, 1), (lanes,))
    stood = iter(_rows(env_id, lanes, actions, watch.rounds + 1))

    def reference() -> int:
        for rows in next(stood):
            np.take(table, rows, axis=0, mode="clip")
        return len(actions) * lanes

    step, take = watch.medians([_steps(env, actions), reference])
    name = f"{lanes:,} lanes, info arrays, against numpy.take of the rows"
    return Row(name, stream, step, take, *_bounds(env_id, lanes, stream))


def _encoded_rows(env_id: str, encoded: str, stream: str, watch: Stopwatch) -> list[Row]:
    """Compare an id that observes an encoder with the plain one, as far as both are driven alike."""

    def single(name: str) -> Loop:
        env = gym.make(name)
        return drive(env, list(_actions(env, stream, SINGLE_STEPS)))

    def lanes(name: str) -> Loop:
        env = _lanes(name, 1024)
        return _steps(env, _actions(env, stream, max(LANE_STEPS // 1024, 1), (1024,)))

    return speed_rows(env_id, encoded, stream, watch, single, lanes)


def _served(env: Any) -> NDArray[np.float32]:
    """Return a table of rows as wide as an observation: ``(T, D)``."""
    game = env.unwrapped.simulation.game
    table = np.zeros((len(game.table), env.single_observation_space.shape[0]), np.float32)
    table[:, : game.table.shape[1]] = game.table
    return table


def _rows(env_id: str, lanes: int, actions: NDArray[Any], rounds: int) -> NDArray[np.int64]:
    """Return the rows that the lanes will stand on: ``(rounds, steps, N)``, from a run of the same seed."""
    twin = _lanes(env_id, lanes, info="none")
    twin.reset(seed=0)
    rows = np.empty((rounds, len(actions), lanes), np.int64)
    for line in rows:
        for place, action in enumerate(actions):
            twin.step(action)
            line[place] = twin.unwrapped.simulation.rows
    return rows


def _training_row(env_id: str, watch: Stopwatch, lanes: int = 512) -> Row:
    """PPO end to end on 512 lanes against the same recipe on a native env whose step does nothing."""
    from agents.sb3 import build_model

    settings = {"n_steps": 32, "batch_size": 4096, "n_epochs": 4, "net_arch": [64, 64]}

    def loop(empty: bool) -> Loop:
        vector = _lanes(env_id, lanes, info="none", autoreset_mode=AutoresetMode.SAME_STEP.value)
        if empty:
            vector.unwrapped.simulation.run = EmptyKernel()
        model = build_model("ppo", NativeVecEnv(vector), seed=0, device="cpu", settings=settings)

        def go() -> int:
            model.learn(4 * 32 * lanes, reset_num_timesteps=False)
            return 4 * 32 * lanes

        return go

    ours, reference = watch.medians([loop(False), loop(True)])
    return Row(f"PPO end to end, {lanes} lanes, against an empty native env", "policy", ours, reference, 0.90, None)


def _peer_rows(env_id: str, stream: str, watch: Stopwatch) -> tuple[list[Row], dict[str, str]]:
    """Add public trading envs where they are installed, with as many lanes as theirs; ratio = their time over ours.

    Returns:
        The rows, and for each peer without one the reason.
    """
    rows, missing = [], {}
    for peer in PEERS:
        if _family(env_id) != ORIGINAL:
            missing[peer.name] = "another game"
            continue
        steps = PEER_STEPS if peer.lanes == 1 else LANE_STEPS // 4
        theirs = peer.loop(steps, stream)
        if isinstance(theirs, str):
            missing[peer.name] = theirs
            continue
        if peer.lanes == 1:
            env = gym.make(env_id)
            ours, what = drive(env, list(_actions(env, stream, steps))), FULL
        else:
            env = _lanes(env_id, peer.lanes)
            ours = _steps(env, _actions(env, stream, max(steps // peer.lanes, 1), (peer.lanes,)))
            what = f"{peer.lanes:,} lanes, info arrays"
        step, reference = watch.medians([ours, theirs])
        rows.append(Row(f"{what}, against {peer.name}", stream, step, reference))
    return rows, missing
