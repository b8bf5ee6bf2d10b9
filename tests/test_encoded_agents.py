"""What people are told of agents with an encoder: refusals that name the way out, and in-sample tables that say so."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents import fit, recipe, report
from agents.baselines import baseline
from agents.evaluation import evaluate
from agents.recipe import resolve
from encoders import encoder as files
from markets import synthetic
from markets.errors import ArtefactError, UnknownNameError
from markets.sources.memory import register_bars

ID = "PerpFutures-JEPA-v0"
FACTS = {
    "split": "test", "source": "s", "first": "2022-03-31T00:00:00", "last": "2022-05-01T00:00:00", "touches": 1,
    "periods_per_year": 8760.0, "env": ID, "arguments": {},
}  # fmt: skip


def before_the_end_of_training() -> str:
    """Hourly bars of a coin in 2022, which the shipped weights may have seen."""
    bars = synthetic.crypto(3, "1h", 4000)
    start = np.datetime64("2022-01-01", "ns")
    real = replace(
        bars, time=start + np.arange(len(bars)) * bars.interval, market="crypto", source="frame", labels=None,
        funding_time=bars.funding_time - bars.time[0] + start,
    )  # fmt: skip
    return register_bars("in-sample", real)


def test_an_evaluation_inside_the_fitted_range_says_so_above_everything_else() -> None:
    """E18."""
    family, config = resolve(ID, {"bars": before_the_end_of_training(), "allow_in_sample": True})
    result = evaluate({"idle again": baseline("idle")}, family, replace(config, split="test", episode_bars=None))
    assert result["encoder"]["name"] == "jepa-crypto-1h"
    assert result["in_sample_until"][:10] == "2023-01-01"
    notes = report.notes({**FACTS, **{key: result[key] for key in ("encoder", "in_sample_until")}})
    assert notes[0].startswith("**IN SAMPLE**")
    assert "2023-01-01" in notes[0]
    assert any("jepa-crypto-1h" in note for note in notes)


def test_an_evaluation_of_later_bars_says_nothing_of_the_kind() -> None:
    """Twin of E18."""
    family, config = resolve(ID, {"bars": "synthetic:crypto?seed=4&interval=1h&bars=4000"})
    result = evaluate({}, family, replace(config, split="test", episode_bars=None))
    assert result["in_sample_until"] is None
    assert not any("IN SAMPLE" in note for note in report.notes({**FACTS, **result}))


def test_an_id_with_an_encoder_is_resolved_with_it_and_its_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(ID, {})[1].encoded == "jepa"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert recipe.located({"encoder": "mine"}) == {"encoder": str(tmp_path / "mine")}
    for kept in ({"encoder": "jepa-crypto-1h"}, {"leverage": 2.0}, {}):
        assert recipe.located(kept) == kept


def test_a_pickled_environment_refuses_other_bars_under_the_same_name() -> None:
    bars = synthetic.crypto(3, "1h", 2000)
    env = gym.make("PerpFutures-v0", bars=register_bars("pickled", bars))
    env.reset(seed=1)
    kept = pickle.dumps(env.unwrapped)
    assert pickle.loads(kept).simulation.game.bars.hash == bars.hash
    register_bars("pickled", synthetic.crypto(4, "1h", 2000))
    with pytest.raises(ArtefactError, match="the bars of this environment are not those"):
        pickle.loads(kept)


def test_a_pickled_environment_refuses_other_weights_in_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    files.save(files.load("jepa-synthetic-1h"), folder)
    env = gym.make(ID, bars="synthetic:crypto?seed=4&interval=1h&bars=4000", encoder=str(folder))
    env.reset(seed=1)
    kept = pickle.dumps(env.unwrapped)
    pickle.loads(kept)
    files.save(files.load("jepa-crypto-1h"), folder)
    with pytest.raises(ArtefactError, match="encoder's weights"):
        pickle.loads(kept)


def test_a_missing_encoder_comes_first_and_its_columns_in_one_line() -> None:
    manifest: dict[str, Any] = {"env": ID, "encoder": {"name": "jepa-crypto-1h"}}
    lines = [
        *(f"observation.jepa_{d:02d}: expected [-5.0, 5.0], found nothing" for d in range(32)),
        "argument.leverage: expected 3.0, found 5.0", "encoder: expected {'name': 'jepa-crypto-1h'}, found None",
    ]  # fmt: skip
    told = fit.told(lines, manifest)
    assert len(told) == 3
    assert told[0].startswith("encoder: ")
    assert ID in told[0]
    assert told[1].startswith("32 columns")
    assert told[2] == lines[-2]
    assert fit.told(lines[-2:-1], manifest) == lines[-2:-1]


@pytest.mark.parametrize(
    ("file", "said"),
    [("agent.zip", "holds an agent"), ("manifest.json", "windowed Koopman"), ("pretrain.log", "--resume")],
)
def test_a_folder_without_an_encoder_is_told_what_it_holds(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ArtefactError, match=said):
        files.find(tmp_path)


def test_a_name_that_is_nowhere_is_answered_with_where_it_was_looked_for() -> None:
    with pytest.raises(UnknownNameError, match="no such file or folder in") as raised:
        files.find("runs/nowhere")
    assert "jepa-crypto-1h" in str(raised.value)


def test_weights_of_another_market_or_interval_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    files.resolve("jepa", synthetic.crypto(3, "15m", 200), "jepa-synthetic-1h")
    assert "synthetic bars at 1h, and these are synthetic at 15m" in caplog.text
    caplog.clear()
    files.resolve("jepa", synthetic.crypto(3, "1h", 200), "jepa-synthetic-1h")
    assert caplog.text == ""
