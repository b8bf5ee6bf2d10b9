"""Fixtures that several test files share: caches a planted fault may not outlive, and fresh Python processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One thread, here and in processes that tests start: threads that wait for each other cost minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell gives what it runs in the background an ignored Ctrl-C, which children inherit; tests send them one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the trainings and readings of tests out of the user's trial registry."""
    os.environ["REGIMEGYM_CACHE"] = str(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def fresh_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare every game anew in this test, so that a planted fault neither meets nor leaves a cached game."""
    import encoders.signals.fitted
    import envs.encoding
    import envs.make
    import envs.perp_market
    import envs.spot_market

    monkeypatch.setattr(envs.make, "_games", OrderedDict())
    monkeypatch.setattr(envs.perp_market, "_cache", {})
    monkeypatch.setattr(envs.spot_market, "_cache", {})
    monkeypatch.setattr(envs.encoding, "_encoded", OrderedDict())
    monkeypatch.setattr(encoders.signals.fitted, "_tables", OrderedDict())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny default encoder of the market ``synthetic:regimes``, with all its facts."""
    from tiny_encoders import tiny_encoder

    folder = tmp_path_factory.mktemp("tiny-encoder")
    tiny_encoder(folder)
    return folder


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run a piece of Python in a process of its own, from the repository, and return what it printed."""

    def run(code: str, **environment: str) -> str:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
