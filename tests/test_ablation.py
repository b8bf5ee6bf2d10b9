"""The ablation: two arms that differ in the hidden columns only, kept runs, an interval, and what goes along."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import regimegym
from agents import ablation
from agents.ablation import AblationConfig, paired, remains, student_t
from envs.make import game_of
from envs.zero_dte_config import ZeroDTEConfig
from markets.errors import ConfigError, UnknownNameError

BARS = "synthetic:spy?seed={seed}&sessions=12"
CLOCK = "hours_to_close,session_sin,session_cos,entry_time,exit_time"
TINY = {"n_steps": 4, "batch_size": 64, "n_epochs": 1, "net_arch": [4]}


def config(out: Path, **changes: Any) -> AblationConfig:
    given = {"env": "ZeroDTE-v0", "hide": CLOCK, "out": out, "seeds": 2, "steps": 1_000, "settings": TINY}
    return AblationConfig(**{**given, "arguments": {"bars": BARS}, **changes})


def test_arms_differ_and_finished_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    train = ablation.train

    def spied(config: AblationConfig, seed: int, arm: str) -> dict[str, Any]:
        asked.append(ablation._arguments(config, seed, arm))
        return train(config, seed, arm)

    monkeypatch.setattr(ablation, "train", spied)
    first = ablation.run(config(tmp_path))
    assert asked == [
        {"bars": f"synthetic:spy?seed={seed}&sessions=12", **extra}
        for seed in (0, 1)
        for extra in ({}, {"hide": CLOCK})
    ]
    assert [len(rows) for rows in first["runs"].values()] == [2, 2]
    assert json.loads((tmp_path / "ablation.json").read_text()) == json.loads(json.dumps(first))
    (tmp_path / "hidden-1.json").unlink()
    again = ablation.run(config(tmp_path))
    assert len(asked) == 5  # one more
    assert again == first  # the same seed trains the same policy
    assert len(ablation.run(config(tmp_path, seeds=3))["difference"]["values"]) == 3
    assert len(asked) == 7
    with pytest.raises(ConfigError, match=r"shown-0\.json is a run with steps=1000, not 2000"):
        ablation.run(config(tmp_path, steps=2_000))
    kept = json.loads((tmp_path / "shown-0.json").read_text())
    for text in (
        "{}", "[]", "3", "{", '{"identity": 3}', '{"identity": {}}', json.dumps({"identity": kept["identity"]}),
        json.dumps({**kept, "mean": "much"}), json.dumps({**kept, "costs": math.nan}),
        json.dumps({**kept, "mean": True}),
    ):  # fmt: skip
        (tmp_path / "shown-0.json").write_text(text)
        with pytest.raises(ConfigError, match=r"shown-0\.json is no run of an ablation"):
            ablation.run(config(tmp_path))
    (tmp_path / "shown-0.json").write_text(json.dumps({**kept, "identity": {}}))
    with pytest.raises(ConfigError, match=r"shown-0\.json is a run with env=None"):
        ablation.run(config(tmp_path))


def test_a_run_is_of_its_encoder_s_weights_and_its_scaler(tmp_path: Path) -> None:
    plain = config(tmp_path)
    found = ablation._identity(plain, 0, "shown")
    assert found["encoder"] is None
    assert len(found["scaler"]) == 64
    game = game_of("ZeroDTE", ZeroDTEConfig(bars="synthetic:spy?seed=0&sessions=20"))
    (tmp_path / "scaler.json").write_text(json.dumps(game.details["scaler"].to_json()))
    given = config(tmp_path, arguments={"bars": BARS, "scaler": str(tmp_path / "scaler.json")})
    assert ablation._identity(given, 0, "shown")["scaler"] == game.details["scaler"].hash != found["scaler"]
    again = game_of("ZeroDTE", ZeroDTEConfig(bars="synthetic:spy?seed=7&sessions=20"))
    before = ablation._identity(given, 0, "shown")
    (tmp_path / "scaler.json").write_text(json.dumps(again.details["scaler"].to_json()))
    after = ablation._identity(given, 0, "shown")
    assert {name for name in before if before[name] != after[name]} == {"scaler"}, "the same file name, other numbers"
    jepa = config(tmp_path, env="ZeroDTE-JEPA-v0")
    seen = ablation._identity(jepa, 0, "shown")["encoder"]
    assert seen["name"] == "jepa-spy-1m"
    assert len(seen["sha256"]) == 64


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    table = np.array([[3.0, 1.0], [1.0, 1.0], [3.0, 0.0], [2.0, 1.0], [3.0, 1.0]])
    ranks = ablation.average_ranks(table)
    assert ranks[:, 0].tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]
    assert ranks[:, 1].tolist() == [3.5, 3.5, 1.0, 3.5, 3.5]
    draw = np.random.default_rng(3)
    flag = draw.integers(0, 2, 5_000).astype(float)
    pair = np.stack([flag, flag * draw.integers(0, 3, 5_000)], axis=1)
    known = pd.DataFrame(pair).corr("spearman").iloc[0, 1]
    assert np.corrcoef(ablation.average_ranks(pair).T)[0, 1] == pytest.approx(known, abs=1e-12)
    in_order_of_rows = pair.argsort(axis=0).argsort(axis=0)
    assert np.corrcoef(in_order_of_rows.T)[0, 1] != pytest.approx(known, abs=0.05), "the mutant without ties"


def test_paired_differences_have_their_mean_and_interval() -> None:
    found = paired([1.0, 1.2, 0.8, 1.1, 0.9])
    assert found["mean"] == pytest.approx(1.0)
    assert found["interval"] == pytest.approx([1.0 - 0.196325, 1.0 + 0.196325], abs=1e-5)


def test_the_quantiles_of_student_are_those_of_the_tables() -> None:
    for degrees, quantile in ((1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281)):
        assert student_t(0.95, degrees) == pytest.approx(quantile, abs=5e-5)
    assert student_t(0.95, 100_000) == pytest.approx(1.95999, abs=1e-4)


def test_what_goes_along_with_a_hidden_column_is_named() -> None:
    game = game_of("ZeroDTE", ZeroDTEConfig(bars="synthetic:spy?seed=1&sessions=12"))
    found = remains(game, "hours_to_close, session_sin")
    assert found["entry_time"][0] == "hours_to_close"
    assert found["entry_time"][1] > 0.95
    assert "hours_to_close" not in found
    assert next(iter(found)) in ("entry_time", "exit_time")
    assert "imbalance" not in found
    values = [abs(rank) for _, rank in found.values()]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"seeds": 1}, ConfigError, "seeds=1"),
        ({"hide": ""}, ConfigError, "names no column"),
        ({"algo": "tqc"}, UnknownNameError, "algo of an ablation"),
        ({"arguments": {"hide": "theta"}}, ConfigError, "given twice"),
        ({"hide": "hours_to_clos"}, UnknownNameError, "hours_to_close"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ablation.run(config(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_the_verb_prints_both_arms_and_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "ablate", "--env", "ZeroDTE-v0", "--hide", "theta,gamma", "--bars", BARS, "--steps", "1000", "--seeds", "2",
        "--out", str(tmp_path), "--revealed", "--env-arg", "fill=market", "--env-arg", "contracts=1",
        *(word for key, value in TINY.items() for word in ("--set", f"{key}={json.dumps(value)}")),
    ]  # fmt: skip
    assert regimegym.main(words) == 0
    text = capsys.readouterr().out
    assert "shown - hidden: " in text
    assert "95% t-interval" in text
    assert regimegym.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = zip(result["runs"]["shown"], result["runs"]["hidden"], strict=True)
    assert result["difference"]["values"] == [one["mean"] - other["mean"] for one, other in rows]
    assert np.isfinite(result["difference"]["interval"]).all()
    assert result["runs"]["shown"][0]["identity"]["revealed"] is True
    assert result["runs"]["shown"][0]["identity"]["arguments"]["contracts"] == 1


def test_bad_names_are_refused_before_a_folder_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert regimegym.main(["ablate", "--env", "ZeroDTE-v0", "--hide", "hours", "--bars", BARS, "--out", str(out)]) == 2
    assert "unknown observation column to hide 'hours'" in capsys.readouterr().err
    assert not out.exists()
