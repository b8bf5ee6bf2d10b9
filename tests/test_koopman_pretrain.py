"""``regimegym pretrain --config koopman``: the windowed encoders of the source, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from encoders import koopman_pretrain, koopman_training
from encoders.koopman_checkpoint import load_model
from encoders.koopman_config import koopman_config
from encoders.koopman_pretrain import WindowPretrain, pretrain_windows
from markets import synthetic_regimes
from markets.errors import DataError

SPEC = "synthetic:regimes?seed=1&bars=6000"
SMALL = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 32, "context_window": 64, "prediction_horizon": 16}


def words(out: Path, *more: str) -> list[str]:
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    return ["pretrain", "--config", "koopman", "--bars", SPEC, *settings, "--quiet", "--out", str(out), *more]


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps learn nothing: no alarm."""
    monkeypatch.setattr(koopman_training, "SLACK", 9.0)


def test_the_command_line_trains_a_windowed_encoder_and_writes_its_card(tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert regimegym.main(words(out)) == 0
    model = load_model(out)
    bars = synthetic_regimes.regimes(2, bars=300)
    z, odds = model.encode_price_history(bars.close[:, 0], bars.time)
    assert z.shape[-1] == 32
    assert np.isfinite(odds).all()
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    card = (out / "card.md").read_text()
    assert "configuration `koopman`" in card
    assert facts["command"] in card
    assert f"{facts['volatility_r2']:.3f}" in card
    for part in ("trained", "M = I", "untrained net"):
        assert part in card
    assert facts["predictor"]["at_identity"]["identity_deviation"] == 0.0
    assert facts["predictor"]["identity_deviation"] > 0.0
    assert any((out / "tensorboard").iterdir())
    assert regimegym.main(words(out)) == 2, "an encoder is replaced only when asked for"


def plan(**changes: Any) -> WindowPretrain:
    return WindowPretrain(name="koopman", config=koopman_config("koopman", **SMALL), **changes)


def weights(out: Path) -> str:
    return str(json.loads((out / "manifest.json").read_text())["sha256"])


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    series = [synthetic_regimes.regimes(seed, bars=6000) for seed in (1, 2)]

    def stop(epoch: int, epochs: int, figures: dict[str, float]) -> None:
        raise KeyboardInterrupt

    pretrain_windows(series, plan(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain_windows(series, plan(), tmp_path / "stopped", told=stop)
    pretrain_windows(series, plan(), tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    pretrain_windows(series, plan(seed=1), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(tmp_path / "whole")


def check_purge(split: Any = koopman_pretrain._split) -> None:
    """No training target ends after the first bar that validation reads."""
    series = [synthetic_regimes.regimes(seed, bars=4000) for seed in (1, 2)]
    train, late = split(series, plan())
    cut = int(len(series[0]) * 0.9)
    first = train.ends[train.ends < cut]  # rows are counted through the training parts of both series
    assert int(first.max()) + train.shift == cut - 1
    assert late.channels == train.channels
    assert len(late) == sum(
        len(one) - cut - SMALL["context_window"] - SMALL["prediction_horizon"] + 1 for one in series
    )


def test_training_and_validation_windows_share_no_bar_and_one_scale() -> None:
    check_purge()


def test_mutant_a_split_that_lets_training_targets_reach_into_validation_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaky(series: Any, given: WindowPretrain) -> Any:
        train, late = koopman_pretrain._split(series, given)
        train.ends = train.ends + given.config.prediction_horizon
        return train, late

    with pytest.raises(AssertionError):
        check_purge(leaky)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--steps", "5"), "--steps is of --config default"),
        (("--bank-cap", "0.5"), "--bank-cap is of --config default"),
        (("--set", "epoch=3"), "'epochs'"),
        (("--channels", "volume"), "unknown channel"),
    ],
)
def test_settings_that_a_windowed_encoder_has_no_use_for_are_refused(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regimegym.main(words(tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_configuration_is_answered_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["pretrain", "--config", "koopmann", "--bars", SPEC, "--quiet", "--out", str(tmp_path / "out")]
    assert regimegym.main(told) == 2
    assert "koopman" in capsys.readouterr().err


def test_too_few_bars_are_refused_with_what_a_pair_takes() -> None:
    with pytest.raises(DataError, match="a pair of windows takes 81"):
        koopman_pretrain._split([synthetic_regimes.regimes(1, bars=500)], plan())
