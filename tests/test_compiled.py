"""Compiled kernels: an edit of a rule is never answered with a stale kernel, and every set-up gives the same bits.

The tests copy the packages and run small programs in fresh interpreters, each with its own cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from markets import compiled
from markets.perpetual import fee

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("markets", "encoders", "envs")
SEED = 6

EQUITY = f"""
import gymnasium as gym
import envs

env = gym.make("PerpFutures-v0", bars="synthetic:crypto?seed={SEED}&bars=600", episode_bars=50)
env.reset(seed={SEED})
for step in range(20):
    info = env.step([0.5 if step % 2 else -0.5])[4]
print(repr(info["equity"]))
"""

TRAJECTORY = f"""
import hashlib
import gymnasium as gym
import numpy as np
import envs
from envs import perp_kernel

digest = hashlib.sha256()
rng = np.random.default_rng({SEED})
env = gym.make("PerpFutures-v0", bars="synthetic:crypto?seed={SEED}&bars=1500", episode_bars=300, leverage=20)
lanes = gym.make_vec("PerpFutures-v0", num_envs=4, bars="synthetic:crypto?seed={SEED}&bars=1500", episode_bars=300)
digest.update(env.reset(seed={SEED})[0].tobytes() + lanes.reset(seed={SEED})[0].tobytes())
for _ in range(1_500):
    obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
    digest.update(obs.tobytes() + np.float64([reward, info["equity"], info["funding"]]).tobytes())
    if terminated or truncated:
        digest.update(env.reset()[0].tobytes())
    obs, rewards, *_ = lanes.step(rng.uniform(-1, 1, (4, 1)).astype(np.float32))
    digest.update(obs.tobytes() + rewards.tobytes())
signatures = len(getattr(perp_kernel.step, "signatures", ()))
print(digest.hexdigest(), signatures, type(getattr(perp_kernel.step, "_cache", None)).__name__)
"""


def copy_of_the_packages(place: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return place


def output_of(program: str, place: Path, **environment: str) -> str:
    """Run a program beside a copy of the packages, with the machine's own numba settings left out."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "PYTHONPATH", "COVERAGE", "COV_"))
    }
    (place / "program.py").write_text(program)
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=place,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4_000:]
    return run.stdout.strip()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} does not hold {old!r} once"
    path.write_text(text.replace(old, new))


def double_the_fee(place: Path) -> None:
    edit(
        place / "markets" / "perpetual.py",
        "return abs(quantity) * price * rate",
        "return 2.0 * abs(quantity) * price * rate",
    )


def remove_the_stamp(place: Path) -> None:
    edit(
        place / "markets" / "compiled.py",
        "entry._source_stamp = (entry._source_stamp, fingerprint())",
        "entry._source_stamp = entry._source_stamp",
    )


def equities(place: Path, change: Callable[[Path], None]) -> tuple[float, float, float]:
    """Equity cold, with a warm cache, and after a change of the source."""
    cold, warm = float(output_of(EQUITY, place)), float(output_of(EQUITY, place))
    assert list(place.rglob("perp_kernel.step-*.nbc")), "nothing was cached, so nothing could be stale"
    change(place)
    return cold, warm, float(output_of(EQUITY, place))


@pytest.mark.slow
def test_an_edited_rule_reaches_the_loop_of_another_file(tmp_path: Path) -> None:
    cold, warm, edited = equities(copy_of_the_packages(tmp_path), double_the_fee)
    assert cold == warm
    assert edited < cold  # twice the fees


@pytest.mark.slow
def test_without_the_stamp_the_loop_is_stale(tmp_path: Path) -> None:
    place = copy_of_the_packages(tmp_path)
    remove_the_stamp(place)
    cold, warm, edited = equities(place, double_the_fee)
    assert cold == warm == edited  # the fault that the stamp prevents


def no_cache_place(place: Path) -> dict[str, str]:
    """Take away every place numba could write to (also from root, whom permissions do not stop)."""
    for package in (*PACKAGES, "markets/sources"):
        (place / package / "__pycache__").write_text("a file where the cache folder would be")
    (place / "occupied").write_text("a file")
    nowhere = "/dev/null/nowhere"
    return {
        "NUMBA_CACHE_DIR": str(place / "occupied"),
        "HOME": nowhere,
        "XDG_CACHE_HOME": nowhere,
        "LOCALAPPDATA": nowhere,
    }


@pytest.mark.slow
def test_every_set_up_gives_the_same_trajectory(tmp_path: Path) -> None:
    outputs = {}
    for name in ("compiled", "interpreted", "no cache place"):
        place = copy_of_the_packages(tmp_path / name)
        settings = {"interpreted": {"NUMBA_DISABLE_JIT": "1"}, "no cache place": {}}.get(name, {})
        if name == "no cache place":
            settings = no_cache_place(place)
        outputs[name] = output_of(TRAJECTORY, place, **settings).split()
    warm = output_of(TRAJECTORY, tmp_path / "compiled").split()
    assert len({digest for digest, *_ in (*outputs.values(), warm)}) == 1, outputs
    assert outputs["compiled"][1:] == ["1", "FunctionCache"]  # one specialisation, cached
    assert outputs["interpreted"][1:] == ["0", "NoneType"]
    assert outputs["no cache place"][1:] == ["1", "NullCache"]
    assert not list((tmp_path / "no cache place").rglob("*.nb[ci]"))


@pytest.mark.slow
def test_the_trajectory_shows_a_changed_rule(tmp_path: Path) -> None:
    place = copy_of_the_packages(tmp_path)
    before = output_of(TRAJECTORY, place, NUMBA_DISABLE_JIT="1").split()[0]
    double_the_fee(place)
    assert output_of(TRAJECTORY, place, NUMBA_DISABLE_JIT="1").split()[0] != before


@pytest.mark.slow
def test_a_cache_folder_that_is_a_file_is_tolerated(tmp_path: Path) -> None:
    place = copy_of_the_packages(tmp_path)
    (place / "occupied").write_text("a file")
    assert float(output_of(EQUITY, place, NUMBA_CACHE_DIR=str(place / "occupied"))) > 0.0


def test_the_fingerprint_covers_every_package_that_can_hold_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_the_packages(tmp_path)
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "markets" / "compiled.py"))
    fresh = compiled.fingerprint.__wrapped__
    seen = {fresh()}
    assert fresh() in seen
    for name in ("markets/perpetual.py", "markets/sources/files.py", "encoders/__init__.py", "envs/rewards.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# edited\n")
        assert fresh() not in seen, name
        seen.add(fresh())
    (tmp_path / "markets" / "new_rules.py").write_text("")
    assert fresh() not in seen
    (tmp_path / "markets" / "notes.txt").write_text("no rule")
    assert len({fresh()} - seen) == 1


@pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") != "0",
    reason="NUMBA_DISABLE_JIT: functions stay plain, there is nothing cached",
)
def test_a_compiled_function_is_reported_as_cached_and_keeps_its_python_face() -> None:
    assert fee(2.0, 100.0, 0.001) == pytest.approx(0.2, rel=1e-15)
    assert compiled.is_cached(fee)
    assert fee.py_func(2.0, 100.0, 0.001) == fee(2.0, 100.0, 0.001)
    assert fee.__doc__ == fee.py_func.__doc__


def test_a_plain_function_counts_as_cached() -> None:
    assert compiled.is_cached(len)
