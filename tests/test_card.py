"""The card of an encoder: what it measures is what a reader would measure, and a fault shows in it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import CONFIG, SPEC

import regimegym
from encoders import controls, measure
from encoders import encoder as files
from encoders.belief import BeliefConfig
from encoders.card import card
from encoders.clustering import cluster_scores
from encoders.controls import config_of, untrained_of
from encoders.encoder import Provenance
from encoders.jepa import JEPAEncoder, JEPAStream
from encoders.jepa_training import JEPATraining, prepare
from encoders.probes import edmd_spectrum, effective_rank
from encoders.unseen import bars_for, cautions, seen_rows
from markets import sources, synthetic
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.synthetic_regimes import regime_market

COUNT = 8000


@pytest.fixture(scope="module")
def made(tiny_folder: Path) -> JEPAEncoder:
    return measure.default_encoder(files.load(tiny_folder))


@pytest.fixture(scope="module")
def bars(made: JEPAEncoder) -> Bars:
    return bars_for(made.provenance, count=COUNT)


@pytest.fixture(scope="module")
def measured(made: JEPAEncoder, bars: Bars) -> dict[str, Any]:
    pytest.importorskip("sklearn", reason="k-means and probe need the extra 'models'")
    return measure.measure(made, bars)


# ---- bars ---------------------------------------------------------------------------------------------------------


def test_bars_are_of_the_same_market_and_an_unseen_seed(made: JEPAEncoder, bars: Bars) -> None:
    assert bars.source == "synthetic:regimes?seed=3&interval=1h&bars=8000&level=clear&regimes=3&start=2020-01-01"
    assert seen_rows(made.provenance, bars) == 0
    assert cautions(made.provenance, bars) == []


def test_bars_that_were_seen_or_are_of_another_market_are_said(made: JEPAEncoder) -> None:
    seen = sources.load(SPEC.format(seed=2, bars=3000))
    assert cautions(made.provenance, seen) == [
        "3,000 of 3,000 bars lie in the range that the encoder was fitted on: in sample."
    ]
    other = synthetic.crypto(1, "1d", 300)
    assert "'synthetic' at 1d, the encoder was fitted on 'regimes' at 1h" in cautions(made.provenance, other)[0]
    real = Provenance("crypto", "1h", str(other.close_time[99]), ("x",))
    assert seen_rows(real, replace(other, market="crypto", source="parquet:btc.parquet")) == 100


def test_an_encoder_of_real_bars_asks_for_bars() -> None:
    with pytest.raises(ConfigError, match=r"--bars is needed.*'crypto' at 1h up to 2022-12-31"):
        bars_for(Provenance("crypto", "1h", "2022-12-31T00:00:00", ("parquet:x.parquet",)))


# ---- controls -----------------------------------------------------------------------------------------------------


def test_the_untrained_net_is_the_one_that_training_began_with(made: JEPAEncoder) -> None:
    assert config_of(made.facts) == CONFIG
    before = torch.get_rng_state()
    found = untrained_of(made)
    assert torch.equal(torch.get_rng_state(), before), "the user's random state is left alone"
    assert found is not None
    assert found.same is True
    training = JEPATraining(prepare([sources.load(SPEC.format(seed=1, bars=3000))], CONFIG), CONFIG)
    theirs = training.untrained.trunk.weights().arrays()
    assert all(np.array_equal(value, theirs[name]) for name, value in found.trunk.weights.arrays().items())


def test_another_net_is_not_taken_for_the_untrained_one(made: JEPAEncoder, measured: dict[str, Any]) -> None:
    other = made.speaking("belief")
    other.facts = {**made.facts, "config": {**made.facts["config"], "seed": 9}}
    found = untrained_of(other)
    assert found is not None
    assert found.same is False
    assert "is not the one that training began with" in card(made, {**measured, "untrained_is_the_same": False})
    other.facts = {}
    assert untrained_of(other) is None


def test_the_predictor_stands_beside_the_identity_and_the_untrained_net(made: JEPAEncoder) -> None:
    """K15, B7."""
    stored = made.facts["predictor"]
    keys = {"identity_deviation", "symmetry_measure", "eigenvalues_near_one", "centroid_action"}
    assert all(keys <= set(stored[name]) for name in ("trained", "at_identity", "untrained"))
    assert stored["trained"]["identity_deviation"] > 0.0
    for name in ("at_identity", "untrained"):
        assert stored[name]["identity_deviation"] == stored[name]["centroid_action"] == 0.0
        assert stored[name]["eigenvalues_near_one"] == CONFIG.latent
    text = card(made)
    assert "| of the predictor M, on the training range | trained | M = I | untrained net |" in text
    assert "| eigenvalues near 1 (complex distance at most .05) |" in text


# ---- figures ------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_embedding(made: JEPAEncoder, bars: Bars, measured: dict[str, Any]) -> None:
    """B7: by another way, from the served embedding, whose standardisation changes none of them."""
    rows = np.arange(made.warm_up, COUNT, 8)
    served = made.embed(bars).astype(np.float64)
    points = served[rows]
    latent = measured["latent"]["trained"]
    np.testing.assert_allclose(latent["std"], points.std(axis=0) * made.deviation, rtol=1e-3)
    assert latent["effective_rank"] == pytest.approx(effective_rank(points / points.std(axis=0)), rel=1e-3)
    assert latent["std_mean"] > 2.0 * measured["latent"]["untrained"]["std_mean"]
    starts = np.arange(made.warm_up, COUNT - CONFIG.horizon, 8)
    moduli, r2 = edmd_spectrum(served[starts], served[starts + CONFIG.horizon])
    koopman = measured["koopman"]
    np.testing.assert_allclose(koopman["edmd_trained"], moduli[:8], atol=1e-3)
    assert koopman["r2_trained"] == pytest.approx(r2, abs=1e-3)
    assert koopman["lag"] == CONFIG.horizon
    assert koopman["edmd_untrained"] != koopman["edmd_trained"]
    np.testing.assert_allclose(koopman["truth"], regime_market("clear", 3).spectrum(CONFIG.horizon))


def test_the_chains_moduli_are_those_of_its_power() -> None:
    market = regime_market("market", 6)
    np.testing.assert_allclose(measure.chain_moduli(market.transition, 64), market.spectrum(64))


def test_readings_are_scored_against_the_second_half(made: JEPAEncoder, bars: Bars, measured: dict[str, Any]) -> None:
    rows = np.arange(made.warm_up, COUNT, 8)
    judged = rows[len(rows) // 2 :]
    assert bars.labels is not None
    by_name = {row["of"]: row for row in measured["labels"]["rows"]}
    for voice in ("belief", "softmax", "kmeans"):
        expected = cluster_scores(bars.labels[judged], made.odds(bars, voice)[judged].argmax(axis=1))
        assert {key: by_name[f"{voice} odds"][key] for key in expected} == expected
    assert by_name["a constant"]["ari"] == 0.0
    for row in measured["labels"]["rows"]:
        for key in ("purity", "ari"):
            low, high = row[f"{key}_interval"]
            assert low <= row[key] <= high
    low, high = by_name["belief odds"]["ari_interval"]
    assert 0.02 < high - low < 0.6
    assert by_name["belief odds"]["ari"] > by_name["27 hand features, k-means"]["ari"] > 0.1
    assert by_name["belief odds"]["probe"] > by_name["a constant"]["probe"] + 0.2
    assert "embedding of the untrained net, k-means" in by_name
    assert by_name["exact filter of the generator, the ceiling"]["ari"] > by_name["belief odds"]["ari"] - 0.05
    assert "K = 3 clusters against 3 true regimes" in card(made, measured)


def test_without_labels_or_facts_the_card_says_less_and_nothing_wrong(made: JEPAEncoder, bars: Bars) -> None:
    bare = JEPAEncoder(
        made.scaler, made.trunk_weights, made.mean, made.deviation, made.softmax, made.kmeans, made.belief,
        made.provenance,
    )  # fmt: skip
    found = measure.measure(bare, replace(bars, labels=None, label_names=()))
    assert found["labels"] is None
    assert "untrained" not in found["latent"]
    text = card(bare, found)
    assert "No untrained net stands beside" in text
    assert "true regimes" not in text
    assert "None are stored" in text


def test_without_scikit_learn_the_voices_are_scored_all_the_same(
    made: JEPAEncoder, bars: Bars, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = measure.measure(made, bars)
    rows = {row["of"]: row for row in found["labels"]["rows"]}
    assert rows["belief odds"]["ari"] == measured["labels"]["rows"][0]["ari"]
    assert rows["belief odds"]["probe"] is None
    assert "ari" not in rows["embedding, k-means"]
    assert "needs the extra `models`" in card(made, found)


def test_too_few_bars_are_refused_with_the_number_that_is_needed(made: JEPAEncoder, bars: Bars) -> None:
    with pytest.raises(DataError, match=f"2000 bars are too few.*: {made.warm_up + 8 * 256 + 64} are needed"):
        measure.measure(made, bars.between(0, 2000))


# ---- checks -------------------------------------------------------------------------------------------------------


def test_a_causal_encoder_passes_its_checks(measured: dict[str, Any]) -> None:
    checks = measured["checks"]
    assert checks["prefix_difference"] == 0.0
    assert checks["stream_difference"] <= 1e-5
    assert checks["stream_bars"] == measure.STREAMED
    assert measured["seconds_per_bar"]["table"] > 0.0


@pytest.mark.parametrize("fault", ["prefix_difference", "stream_difference"])
def test_an_encoder_that_sees_the_future_or_lives_apart_is_caught(
    made: JEPAEncoder, bars: Bars, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, update = JEPAEncoder.encode, JEPAStream.update
    if fault == "prefix_difference":
        monkeypatch.setattr(JEPAEncoder, "encode", lambda self, one: whole(self, one) * whole(self, one).std())
    else:
        monkeypatch.setattr(JEPAStream, "update", lambda self, bar: _louder(update(self, bar)))
    assert measure.checks(made, bars.between(0, 6000), 0)[fault] > 1e-3


def _louder(row: Any) -> Any:
    return None if row is None else row + np.float32(0.01)


# ---- the command line ---------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_card(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encoder-card", str(tiny_folder), "--bars", SPEC.format(seed=5, bars=7000)]
    assert regimegym.main([*words, "--out", str(tmp_path / "card.md")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "card.md").read_text(encoding="utf-8")
    for title in ("# Encoder card", "## Regimes of the belief", "## The predictor", "### Is it alive", "### Causality"):
        assert title in printed
    assert printed.startswith((tiny_folder / "card.md").read_text(encoding="utf-8").rstrip()), "one source of the text"
    assert regimegym.main([*words, "--json", "--out", str(tmp_path / "card.json")]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert content["measured"]["bars"]["count"] == 7000
    assert content["seeds"] == [1, 2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--bars", "synthetic:regimes?bars=500"], "500 bars are too few"),
        (["--bars", "synthetic:regime"], "Did you mean 'regimes'"),
        (["--seed", "-1"], "--seed -1"),
        (["--out", "."], "is a folder"),
    ],
)
def test_bad_input_of_the_command_is_named(
    tiny_folder: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regimegym.main(["encoder-card", str(tiny_folder), *more]) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert regimegym.main(["encoder-card", "jepa-crypto-7m"]) == 2
    assert "unknown encoder 'jepa-crypto-7m'" in capsys.readouterr().err


# ---- knobs --------------------------------------------------------------------------------------------------------


def test_fewer_dimensions_than_regimes_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """K33."""
    material = prepare([sources.load(SPEC.format(seed=1, bars=1_000))], replace(CONFIG, length=400))
    few = replace(CONFIG, latent=2, belief=BeliefConfig(regimes=3))
    JEPATraining(replace(material), few)
    assert "latent=2 is below the 3 regimes" in caplog.text
    caplog.clear()
    JEPATraining(replace(material), CONFIG)
    assert caplog.text == ""


def test_the_predictor_is_measured_within_each_series() -> None:
    series = [sources.load(SPEC.format(seed=seed, bars=1_200)) for seed in (1, 2)]
    training = JEPATraining(prepare(series, CONFIG), CONFIG)
    trunk = untrained_of_training(training)
    now, later = controls._pairs(trunk, training, series)
    whole = [trunk.embed(training.material.scaler.of_bars(one)) for one in series]
    count = len(series[0]) - CONFIG.horizon - controls.WARM_UP
    assert len(now) == 2 * count
    np.testing.assert_array_equal(later[count - 1].numpy(), whole[0][-1].astype(np.float64))
    np.testing.assert_array_equal(now[count].numpy(), whole[1][controls.WARM_UP].astype(np.float64))


def untrained_of_training(training: JEPATraining) -> Any:
    from encoders.box_trunk import BoxTrunk

    return BoxTrunk(training.untrained.trunk.weights())
