"""Benchmark: CPU time of the environments against reference loops, interleaved in one process, one thread.

Absolute rates differ from machine to machine and minute to minute; the ratios do not, since each round times ours and
its reference one after the other. References: an *empty* environment through ``gym.make`` (same spaces, returns a copy
of one observation and an empty info) for the single env; a bare ``numpy.take`` of the observation rows for the vector
env; the same PPO recipe on an empty native vector env for training. Ratio = reference time / our time.
"""

from __future__ import annotations

import importlib
import logging
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from agents.peers import PEERS, drive
from agents.vec_env import NativeVecEnv
from envs.make import build, build_vector
from markets import synthetic
from markets.bars import Bars

ROUNDS = 7
SINGLE_STEPS = 20_000
LANE_STEPS = 200_000  # over all lanes
STREAMS = ("constant", "random")  # an exposure of 0.3 for ever; a fresh target every bar, the worst case
EMPTY_ID = "RegimeGymEmpty-v0"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One comparison: median CPU nanoseconds per environment step of both sides, bound and goal of the ratio."""

    name: str
    stream: str
    nanoseconds: float
    reference: float
    bound: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """Reference time over our time."""
        return self.reference / self.nanoseconds

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with ratio, rate and whether the bound holds."""
        holds = None if self.bound is None else self.ratio >= self.bound
        return {**asdict(self), "ratio": self.ratio, "steps_per_second": 1e9 / self.nanoseconds, "holds": holds}


class EmptyEnv(gym.Env[NDArray[np.float32], Any]):
    """The least an environment can do: the spaces of ours, a copy of one observation, an empty info."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, like: str = "PerpFutures-v0") -> None:
        made = gym.make(like)
        self.observation_space, self.action_space = made.observation_space, made.action_space
        self._observation = made.reset(seed=0)[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the one observation."""
        return self._observation.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the one observation."""
        return self._observation.copy(), 0.0, False, False, {}


class _EmptyKernel:
    """A native step that does nothing: what is left of a training run is the learner and the bridge."""

    def __call__(self, *_: Any) -> int:
        return 0


def run(env_id: str = "PerpFutures-v0", rounds: int = ROUNDS, training: bool = True) -> dict[str, Any]:
    """Measure everything and return rows and facts as plain values."""
    torch.set_num_threads(1)
    if EMPTY_ID not in gym.registry:
        gym.register(EMPTY_ID, entry_point="agents.benchmark:EmptyEnv")
    rows: list[Row] = []
    for stream in STREAMS:
        rows += _single_rows(env_id, stream, rounds)
        rows += [_vector_row(env_id, stream, lanes, rounds) for lanes in (64, 1024)]
        rows += _peer_rows(env_id, stream, rounds)
    if training:
        rows.append(_training_row(env_id, rounds))
    return {
        "env": env_id,
        "rounds": rounds,
        "rows": [row.to_json() for row in rows],
        "scaling": _scaling(env_id),
        "construction": _construction(env_id),
    }


def _median(loops: Sequence[Callable[[], int]], rounds: int) -> list[float]:
    """Median CPU nanoseconds per step of loops that are run in turn, round after round; the first is thrown away."""
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([])
        for loop in loops:
            began = time.process_time()
            steps = loop()
            times[-1].append((time.process_time() - began) / steps * 1e9)
    return [float(value) for value in np.median(np.array(times[1:]), axis=0)]


def _actions(stream: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if stream == "constant":
        return np.full(shape, 0.3, np.float32)
    return np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)


def _single_rows(env_id: str, stream: str, rounds: int) -> list[Row]:
    actions = list(_actions(stream, (SINGLE_STEPS, 1)))
    made = [gym.make(EMPTY_ID, like=env_id), gym.make(env_id), gym.make(env_id, info="none")]
    empty, full, none = _median([drive(env, actions) for env in made], rounds)
    bound, lean = (0.13, 0.22) if stream == "constant" else (None, None)
    return [
        Row("single env, full info, against an empty env", stream, full, empty, bound, 0.20),
        Row('single env, info="none", against an empty env', stream, none, empty, lean, 0.30),
    ]


def _vector_row(env_id: str, stream: str, lanes: int, rounds: int) -> Row:
    env = gym.make_vec(env_id, num_envs=lanes, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
    width = simulation.obs.shape[2]
    table = np.zeros((len(simulation.game.table), width), np.float32)
    table[:, : simulation.game.table.shape[1]] = simulation.game.table
    calls = max(LANE_STEPS // lanes, 1)
    actions = _actions(stream, (calls, lanes, 1))
    starts = simulation.rows

    def ours() -> int:
        for action in actions:
            env.step(action)
        return calls * lanes

    def reference() -> int:
        for call in range(calls):
            np.take(table, starts + call % 256, axis=0, mode="clip")
        return calls * lanes

    step, take = _median([ours, reference], rounds)
    bound, goal = {64: (0.028, 0.05), 1024: (0.04, 0.10)}[lanes]
    return Row(
        f"{lanes} lanes, info arrays, against numpy.take of the rows", stream, step, take,
        bound if stream == "constant" else None, goal,
    )  # fmt: skip


def _training_row(env_id: str, rounds: int, lanes: int = 512) -> Row:
    """PPO end to end on 512 lanes against the same recipe on a native env whose step does nothing."""
    from agents.sb3 import build_model

    settings = {"n_steps": 32, "batch_size": 4096, "n_epochs": 4, "net_arch": [64, 64]}

    def loop(empty: bool) -> Callable[[], int]:
        vector = gym.make_vec(
            env_id, num_envs=lanes, vectorization_mode="vector_entry_point", info="none",
            autoreset_mode=AutoresetMode.SAME_STEP.value,
        )  # fmt: skip
        if empty:
            simulation = vector.unwrapped.simulation  # type: ignore[attr-defined]
            simulation.run = _EmptyKernel()
        model = build_model("ppo", NativeVecEnv(vector), seed=0, device="cpu", settings=settings)

        def go() -> int:
            model.learn(4 * 32 * lanes, reset_num_timesteps=False)
            return 4 * 32 * lanes

        return go

    ours, reference = _median([loop(False), loop(True)], rounds)
    return Row(f"PPO end to end, {lanes} lanes, against an empty native env", "policy", ours, reference, 0.90, None)


def _peer_rows(env_id: str, stream: str, rounds: int) -> list[Row]:
    """Add public trading envs where they are installed: single envs, ratio = their time over ours."""
    rows = []
    for name, module, make in PEERS:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        ours = drive(gym.make(env_id), list(_actions(stream, (SINGLE_STEPS // 4, 1))))
        step, peer = _median([ours, make(SINGLE_STEPS // 4, stream)], rounds)
        rows.append(Row(f"single env, full info, against {name}", stream, step, peer))
    return rows


def _scaling(env_id: str) -> dict[str, float]:
    """Cost of a step on a long series and a long episode, as a multiple of that on short ones (about 1)."""
    short = build_vector("PerpFutures", num_envs=64, bars="synthetic:crypto?bars=5000", info="none")
    long = build_vector("PerpFutures", num_envs=64, bars="synthetic:crypto?bars=100000", info="none")
    whole = build_vector(
        "PerpFutures", num_envs=64, bars="synthetic:crypto?bars=100000", info="none", episode_bars=50_000
    )
    actions = _actions("constant", (400, 64, 1))

    def loop(env: Any) -> Callable[[], int]:
        env.reset(seed=0)

        def go() -> int:
            for action in actions:
                env.step(action)
            return len(actions) * 64

        return go

    few, many, deep = _median([loop(env) for env in (short, long, whole)], ROUNDS)
    return {"series of 100,000 bars / 5,000": many / few, "episodes of 50,000 bars / 512": deep / many}


def _construction(env_id: str, bars: int = 1_000_000) -> dict[str, float]:
    """CPU seconds and memory to build an env over a million loaded bars, and what a second one adds."""
    market: Bars = synthetic.crypto(seed=1, interval="5m", bars=bars)
    size = sum(array.nbytes for array in market.columns.values()) + market.time.nbytes
    build("PerpFutures", bars="synthetic:crypto?bars=2000").reset(
        seed=0
    )  # what compiles and imports is not construction
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    first = build("PerpFutures", bars=market)
    held = tracemalloc.get_traced_memory()[0] - before
    second = build("PerpFutures", bars=market)
    more = tracemalloc.get_traced_memory()[0] - before - held
    tracemalloc.stop()
    tables = first.simulation.game.table.nbytes + first.simulation.game.market.nbytes
    assert second.simulation.game.table is first.simulation.game.table
    other: Bars = synthetic.crypto(seed=2, interval="5m", bars=bars)
    began = time.process_time()
    build("PerpFutures", bars=other)
    return {
        "bars": float(bars),
        "cpu_seconds": time.process_time() - began,
        "memory_over_bars_plus_tables": (held + size) / (size + tables),
        "bytes_of_a_second_env": float(more),
    }
