"""The same seed and actions give the same bytes: in another process, with another hash seed, without the compiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from registered import SESSIONS

import envs
from envs.simulation import EQUITY

FAULT = f"env.unwrapped.simulation.accounts[0, 0, {EQUITY}] *= "

STEPS = 1_000
SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
OPTIONS = {"reward": "log_return=1,differential_sharpe=0.1,drawdown=1,costs=1"}

# Prints a hash of every observation, reward, flag and info, to the last bit.
TRAJECTORY = """
import hashlib, sys
import gymnasium as gym
import numpy as np
import envs
def trajectory(name, seed):
    reward = "log_return=1,differential_sharpe=0.1,drawdown=1,costs=1,funding=1"
    settings = {{"bars": {small!r}, "leverage": 20.0, "reward": reward}}
    env = gym.make(name, **(settings if name.startswith("PerpFutures") else {{"bars": {sessions!r}, **{options!r}}}))
    random = np.random.default_rng(seed)
    box = isinstance(env.action_space, gym.spaces.Box)
    def action():
        if box:
            return random.uniform(env.action_space.low, env.action_space.high)
        return int(random.choice([0, 0, 0, 1, 2, 3]))
    digest, steps, resets = hashlib.sha256(), {steps}, 0
    obs, info = env.reset(seed=seed)
    digest.update(obs.tobytes() + repr(sorted(info.items(), key=str)).encode())
    while steps:
        {inside}
        obs, reward, terminated, truncated, info = env.step(action())
        digest.update(obs.tobytes() + np.float64(reward).tobytes() + bytes([terminated, truncated]))
        digest.update(repr(info).encode())
        steps -= 1
        if terminated or truncated:
            resets += 1
            obs, info = env.reset()
            digest.update(obs.tobytes() + repr(info).encode())
    assert resets, "no episode ended"
    return digest.hexdigest()
for name in envs.ids():
    print(name, trajectory(name, {seed}))
"""


def trajectories(run_python: Callable[..., str], seed: int = 3, inside: str = "pass", **environment: str) -> str:
    """Hashes of 1,000 steps of every id, from a process of its own."""
    environment = {"NUMBA_DISABLE_JIT": "0", **environment}
    return run_python(
        TRAJECTORY.format(small=SMALL, sessions=SESSIONS, options=OPTIONS, steps=STEPS, seed=seed, inside=inside),
        **environment,
    )


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """Hashes that several tests compare with, made once."""
    return {}


def first(reference: dict[str, str], run_python: Callable[..., str]) -> str:
    if not reference:
        print("seed 3")
        reference["hashes"] = trajectories(run_python, PYTHONHASHSEED="0")
    return reference["hashes"]


def test_two_processes_with_different_hash_seeds_give_the_same_bytes(
    reference: dict[str, str], run_python: Callable[..., str]
) -> None:
    """E10."""
    want = first(reference, run_python)
    assert len(want.splitlines()) == len(envs.ids())
    assert trajectories(run_python, PYTHONHASHSEED="4242") == want


def test_without_the_compiler_the_same_bytes_come_out(
    reference: dict[str, str], run_python: Callable[..., str]
) -> None:
    assert trajectories(run_python, NUMBA_DISABLE_JIT="1") == first(reference, run_python)


def test_mutant_a_number_that_hangs_on_the_compiler_is_found(
    reference: dict[str, str], run_python: Callable[..., str]
) -> None:
    fault = "import numba; " + FAULT + "1.0 + 1e-15 * numba.config.DISABLE_JIT"
    assert trajectories(run_python, inside=fault) == first(reference, run_python)
    assert trajectories(run_python, inside=fault, NUMBA_DISABLE_JIT="1") != first(reference, run_python)


@pytest.mark.slow
def test_on_another_processor_target_the_same_bytes_come_out(
    reference: dict[str, str], run_python: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = str(tmp_path_factory.mktemp("numba"))
    got = trajectories(run_python, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=cache)
    assert got == first(reference, run_python)


def test_another_seed_gives_other_bytes(reference: dict[str, str], run_python: Callable[..., str]) -> None:
    for one, two in zip(
        trajectories(run_python, seed=4).splitlines(), first(reference, run_python).splitlines(), strict=True
    ):
        assert one != two


@pytest.mark.parametrize(
    "fault",
    [
        FAULT + "1.0 + 1e-15 * (hash('fee') % 7)",  # depends on the hash seed
        FAULT + "1.0 + 1e-15 * int(np.random.default_rng().integers(1, 9))",
    ],
)
def test_mutant_a_number_that_hangs_on_the_process_is_found(
    fault: str, reference: dict[str, str], run_python: Callable[..., str]
) -> None:
    """Twin of E10."""
    want = first(reference, run_python)
    print("hash seeds 0, 1, 2")
    assert any(trajectories(run_python, inside=fault, PYTHONHASHSEED=seed) != want for seed in ("1", "2"))
