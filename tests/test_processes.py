"""Environments in other processes: with nothing but the package, and as workers of Gymnasium's vector envs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registered import IDS, family

ROOT = Path(__file__).resolve().parent.parent
SEED = 51

# ---- only the package -------------------------------------------------------------------------------------------

ALONE = """
import pathlib, socket, sys
def refuse(*_): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
import gymnasium as gym
import envs
assert pathlib.Path(envs.__file__).is_relative_to(sys.argv[1]), envs.__file__
for name in envs.ids():
    env = gym.make(f"regimegym:{name}")
    env.reset(seed=1)
    print(name, len(env.step(env.action_space.sample())[0]), "torch" in sys.modules)
"""


def installation(place: Path) -> Path:
    """Copy the packages alone, without a place for caches beside them, and take the right to write away.

    A file where a cache folder would be stops root too, whom permissions do not stop.
    """
    for package in ("markets", "encoders", "envs", "agents", "scripts"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "regimegym.py", place)
    for folder in [place, *(path for path in place.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("a file where the cache folder would be")
    for path in [*place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return place


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """Run Python with a read-only installation in an empty, missing-home, unconnected, GPU-less world."""
    place, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    installation(place)
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH")}
    (tmp_path / "a file").write_text("")
    nowhere = str(tmp_path / "a file" / "home")  # cannot be made either
    world = {
        **kept, "PYTHONPATH": str(place), "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LOCALAPPDATA": nowhere,
        "USERPROFILE": nowhere, "CUDA_VISIBLE_DEVICES": "", "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", *arguments]
        return subprocess.run(command, cwd=work, env=world, capture_output=True, text=True, timeout=900)

    yield run, place
    for path in [place, *(path for path in place.rglob("*") if path.is_dir())]:
        path.chmod(0o755)


def test_every_id_is_made_with_nothing_but_a_read_only_package(alone: Any) -> None:
    """E02. No data files, no network, no GPU, no home folder, no torch, another working folder."""
    run, place = alone
    done = run("-c", ALONE, str(place))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(IDS)
    assert all(int(row[1]) > 0 and row[2] == "False" for row in rows)


@pytest.mark.slow
def test_training_and_evaluating_work_from_a_read_only_package_without_a_home_folder(alone: Any) -> None:
    """E02. The log of readings of the test split has no place either."""
    run, _ = alone
    bars = "synthetic:crypto?seed=1&interval=1h&bars=1200"
    done = run(
        "-m", "regimegym", "train", "--env", IDS[0], "--algo", "a2c", "--lanes", "8", "--steps", "500", "--bars", bars,
        "--env-arg", "episode_bars=100", "--out", "agent",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run("-m", "regimegym", "evaluate", "agent", "--split", "test", "--bars", bars, "--json")
    assert done.returncode == 0, done.stderr
    assert "idle" in done.stdout


def test_mutant_an_id_that_writes_beside_its_package_is_found(alone: Any) -> None:
    """Twin of E02."""
    run, place = alone
    done = run("-c", f"open({str(place / 'envs' / '__pycache__' / 'x')!r}, 'w')")
    assert done.returncode != 0


# ---- workers ----------------------------------------------------------------------------------------------------

# Compares lanes with single environments seeded seed + lane, which go on after an end as NEXT_STEP does.
LANES = """
import gymnasium as gym
import numpy as np
import envs
name, settings, seed, fault = {name!r}, {settings!r}, {seed}, {fault!r}
def singles(lanes, actions):
    streams = []
    for lane in range(lanes):
        env = gym.make(name, **settings)
        stream, ended = [env.reset(seed=seed + lane)[0].tobytes()], False
        for action in actions:
            if ended:
                obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
            else:
                obs, reward, terminated, truncated, _ = env.step(action[lane])
            ended = terminated or truncated
            stream.append((obs.tobytes(), float(reward), bool(terminated), bool(truncated)))
        streams.append(stream)
    return streams
if __name__ == "__main__":
    ends = 0
    for lanes in (1, 3, 8):
        probe = gym.make(name, **settings)
        probe.action_space.seed(seed)
        actions = [np.stack([probe.action_space.sample() for _ in range(lanes)]) for _ in range({steps})]
        want = singles(lanes, actions)
        for mode in {modes!r}:
            env = gym.make_vec(name, num_envs=lanes, vectorization_mode=mode, **settings)
            obs, _ = env.reset(seed=seed + (fault == "seed"))
            got = [[obs[lane].tobytes()] for lane in range(lanes)]
            for action in actions:
                obs, rewards, terminated, truncated, _ = env.step(action)
                for lane in range(lanes):
                    got[lane].append(
                        (obs[lane].tobytes(), float(rewards[lane]), bool(terminated[lane]), bool(truncated[lane]))
                    )
                ends += int((terminated | truncated).sum())
            env.close()
            env.close()
            for lane in range(lanes):
                for count, (one, two) in enumerate(zip(got[lane], want[lane])):
                    assert one == two, f"{{mode}}, {{lanes}} lanes, lane {{lane}}, step {{count}}"
    print(ends)
"""


def lanes_of(name: str, modes: tuple[str, ...], fault: str = "") -> str:
    steps = 150 if family(name).ends == "truncated" else 230  # over the end of a session
    settings = {**family(name).arguments, **family(name).volatile}
    return LANES.format(name=name, settings=settings, seed=SEED, steps=steps, modes=modes, fault=fault)


@pytest.mark.parametrize("name", IDS)
def test_lanes_of_every_kind_of_vector_env_equal_single_envs_with_the_same_seeds(
    name: str, run_python: Callable[..., str]
) -> None:
    """E08. 1, 3 and 8 lanes, native, sync and in worker processes, across the ends of episodes."""
    print(f"seed {SEED}")
    assert int(run_python(lanes_of(name, ("vector_entry_point", "sync", "async")))) > 30


def test_mutant_lanes_seeded_otherwise_are_found(run_python: Callable[..., str]) -> None:
    """Twin of E08."""
    with pytest.raises(AssertionError, match="lane 0, step 0"):
        run_python(lanes_of(IDS[0], ("async",), "seed"))


CLOSING = """
import faulthandler
import warnings
import gymnasium as gym
import envs
if __name__ == "__main__":
    env = gym.make_vec({name!r}, num_envs=2, vectorization_mode="async", **{settings!r})
    env.reset(seed=1)
    env.step_async(env.action_space.sample())
    workers = env.processes
    faulthandler.dump_traceback_later(10, exit=True)
    with warnings.catch_warnings(record=True) as caught:  # Gymnasium says that a step was pending
        warnings.simplefilter("always")
        env.close()
    assert len(caught) == 1
    env.close()
    assert not any(worker.is_alive() for worker in workers)
    env = gym.make_vec({name!r}, num_envs=2, **{settings!r})
    env.reset(seed=1)
    env.close()
    env.close()
    single = gym.make({name!r}, **{settings!r})
    single.close()
    single.close()
    print("closed")
"""


@pytest.mark.parametrize("name", IDS)
def test_closing_twice_and_in_the_middle_of_an_asynchronous_step_does_not_hang(
    name: str, run_python: Callable[..., str]
) -> None:
    """E09. After ten seconds a process that hangs ends itself with an error."""
    assert run_python(CLOSING.format(name=name, settings=dict(family(name).arguments))).split() == ["closed"]
