"""What an adversarial review found wrong: each test states what must hold and fails until it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_perp_env import FREE, SMALL, bar, flat, play, script
from test_resume import KILLED_AFTER, SEED, config, kill, train_until

from agents import artefact, checkpoint
from agents.training import train
from envs.make import build
from markets.errors import ArtefactError


def test_a_tiered_liquidation_with_a_negative_cross_wallet_conserves_money() -> None:
    """E22. Long 20 BTC at 60,000; funding at 120,000 takes more than the wallet, which the profit carries."""
    settings = {
        **FREE, "margin_mode": "cross", "liquidation": "tiered", "initial_equity": 100_000.0, "leverage": 25.0,
        "clearance_fee": 0.0005, "participation": 1.0, "rebalance_band": 10.0,
    }  # fmt: skip
    rows = [flat(60_000.0), flat(120_000.0), bar(120_000.0, 120_000.0, 61_300.0, 62_000.0)]
    infos = play(script(rows, [(1.0, 0.05)]), (0.48, 0.2, 0.2), None, **settings)
    before, after = infos[-2], infos[-1]
    assert before["wallet"] == pytest.approx(-20_000.0)
    assert after["liquidated"]
    assert after["position"] > 0.0
    booked = after["market_pnl"] - after["funding"] - after["clearance"] + after["cover"]
    assert after["equity"] - before["equity"] == pytest.approx(booked, abs=1e-6)
    assert after["wallet"] == pytest.approx(before["wallet"] + after["realised"] - after["clearance"], abs=1e-6)


def test_two_environments_in_human_mode_have_a_window_each() -> None:
    """A training and an evaluation environment, or a copy of one: each draws into its own, and closes its own."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    first, second = (build("PerpFutures", bars=SMALL, render_mode="human") for _ in range(2))
    try:
        for env in (first, second):
            env.reset(seed=1)
        assert len(pyplot.get_fignums()) == 2
        first.close()
        assert len(pyplot.get_fignums()) == 1, "the other window is still open"
    finally:
        first.close()
        second.close()


@pytest.mark.slow
def test_a_second_training_in_the_folder_of_a_running_one_is_refused(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    """Else each removes the other's checkpoints, and ``agent.zip`` belongs to whoever wrote last."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from test_resume import config\n"
        "from agents.training import train\n"
        "from markets.errors import ConfigError\n"
        "try:\n"
        f"    train(config(Path({str(tmp_path)!r}), seed=5))\n"
        "except ConfigError:\n"
        "    print('refused')\n"
        "else:\n"
        "    print('trained')\n"
    )
    said: list[str] = []
    train_until(config(tmp_path), KILLED_AFTER, lambda: said.append(run_python(code)))
    assert said[0].split()[-1] == "refused"
    assert artefact.load(tmp_path).manifest["seed"] == SEED


def test_a_training_that_replaces_another_leaves_no_agent_of_the_old_one_beside_its_checkpoints(tmp_path: Path) -> None:
    """Killed before its first score, the new run would be evaluated by the old run's weights, without a word."""
    train(config(tmp_path))
    kill(config(tmp_path, seed=5), 20)
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.identity["seed"] == 5
    try:
        seed = artefact.load(tmp_path).manifest["seed"]
    except ArtefactError:
        return  # there is no agent yet
    assert seed == 5
