"""The regime gap: what each arm sees, the exact filter's columns, the closed form, and when a share is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from agents import regime_gap, regime_truth
from agents.arms import game_for, play, seen_columns
from agents.regime_gap import check_encoder, judged, plan
from agents.regime_truth import exposure_band, market_of, next_bar, returns_of, truth
from encoders import encoder as encoders
from envs.perp_columns import ACCOUNT_NAMES
from envs.perp_config import PerpFuturesConfig
from markets.errors import ConfigError
from markets.features import FEATURES
from markets.sources import load
from markets.synthetic_regimes import posterior, regime_market, simulate

BARS = "synthetic:regimes?seed=3&bars=6000"
FEES = PerpFuturesConfig(bars=BARS, leverage=5.0, taker_fee=0.0001)
TINY = {"n_steps": 4, "batch_size": 64, "n_epochs": 1, "net_arch": [4]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shipped weights that say they were fitted on this generator: they stand in for a pretraining of two minutes."""
    made = encoders.load("jepa-synthetic-1h")
    sources = tuple(f"synthetic:regimes?seed={seed}&interval=1h" for seed in (9001, 9002))
    made.provenance = replace(made.provenance, market="regimes", sources=sources, seeds=(9001, 9002))
    folder = tmp_path_factory.mktemp("encoder")
    encoders.save(made, folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))


def test_no_arm_sees_what_it_should_not(weights: str, tmp_path: Path) -> None:
    names = ("bull", "bear", "sideways", "lowvol", "highvol", "crash")
    base = {*ACCOUNT_NAMES, "return_1"}
    jepa = {f"jepa_{k:02d}" for k in range(32)}
    wanted = {
        "A": base, "B": {*ACCOUNT_NAMES, *(feature.name for feature in FEATURES)}, "C1": base | jepa,
        "C2": base | jepa | {f"regime_{k}" for k in range(4)}, "D": base | {f"exact_{name}" for name in names},
        "E": base | {f"true_{name}" for name in names}, "F": {"exposure", "best_exposure_low", "best_exposure_high"},
    }  # fmt: skip
    comparison = plan(tmp_path, weights, bars=6_000)
    served, sizes = {}, set()
    for one in comparison.arms:
        game = game_for(one, comparison.bars_of(3), "validation", comparison.revealed)
        places, _ = game.hidden  # type: ignore[misc]
        served[one.name] = set(np.delete(game.all_names, places))
        sizes.add((len(game.all_names), game.first, game.last, game.episode))
        assert set(seen_columns(one, game.all_names)) == served[one.name]
    assert served == wanted
    assert len(sizes) == 1, "the same width, so the same network and first weights, and the same episodes"
    leaky = replace(comparison.arms[0], sees=(*comparison.arms[0].sees, "*e*_bull"))
    assert set(seen_columns(leaky, game.all_names)) != wanted["A"], "the mutant that sees more"
    assert [one.name for one in comparison.arms if one.plays is not None] == ["F"]


def test_the_columns_of_the_filter_know_the_past_only() -> None:
    whole = truth(load(BARS), FEES)
    short = truth(load(BARS).between(0, 4_000), FEES)
    np.testing.assert_array_equal(whole.values[:4_000], short.values)
    shifted = np.roll(whole.values, -1, axis=0)[:4_000]
    assert not np.array_equal(shifted, short.values), "the mutant that is a bar ahead"
    np.testing.assert_allclose(whole.values[:, :6].sum(axis=1), 1.0, atol=1e-5)
    assert (whole.values[:, 6:12].argmax(axis=1) == load(BARS).labels).all()
    agree = (whole.values[:, :6].argmax(axis=1) == load(BARS).labels).mean()
    assert agree > 0.8


def test_odds_from_prices_are_those_from_the_returns_of_the_generator() -> None:
    returns, _ = simulate(3, 6_000, regime_market())
    np.testing.assert_allclose(returns_of(load(BARS)), returns, atol=1e-9)
    np.testing.assert_allclose(truth(load(BARS), FEES).values[:, :6], posterior(returns, regime_market()), atol=1e-6)


def test_next_returns_have_the_mean_and_variance_that_were_expected() -> None:
    bars = load("synthetic:regimes?seed=5&bars=60000")
    returns, market = returns_of(bars), market_of(bars)
    mean, variance = next_bar(returns, market)

    def standardised(shift: int) -> float:
        surprise = returns[shift:][1:] - mean[: len(mean) - shift][:-1]
        return float((surprise**2 / variance[: len(variance) - shift][:-1]).mean())

    assert standardised(0) == pytest.approx(1.0, abs=0.06)
    slope = np.cov(mean[:-1], returns[1:])[0, 1] / mean.var()
    assert slope == pytest.approx(1.0, abs=0.15)
    late = np.cov(mean[:-2], returns[2:])[0, 1] / mean.var()
    assert abs(late - 1.0) > 0.3, "the mutant that expects it of the bar after"


def test_the_nearest_end_of_the_band_is_the_best_move() -> None:
    mean, variance, cost = 0.05, 0.36, 0.0002
    low, high = (float(end) for end in exposure_band(np.array(mean), np.array(variance), cost))
    grid = np.linspace(-60.0, 60.0, 240_001)
    for held in (-3.0, low + 0.1, 25.0):
        growth = grid * (mean / 100 + variance / 2e4) - grid**2 * variance / 2e4 - cost * np.abs(grid - held)
        best = grid[growth.argmax()]
        assert best == pytest.approx(np.clip(held, low, high), abs=1e-3)
        costless = mean / 100 / (variance / 1e4) + 0.5
        assert best != pytest.approx(costless, abs=1e-2), "the mutant that knows no costs"


def test_the_closed_form_gains_and_its_opposite_loses(weights: str, tmp_path: Path) -> None:
    comparison = plan(tmp_path, weights, bars=12_000)
    best = comparison.arms[-1]

    class Opposite(regime_truth.BestExposure):
        def act(self, columns: Any, *rest: Any) -> Any:
            return -np.clip(-columns[:, :1], columns[:, 1:2], columns[:, 2:]), None

    found = play(best, comparison.recipe, comparison.bars_of(3), 0, truth)
    other = play(replace(best, plays=Opposite.of), comparison.recipe, comparison.bars_of(3), 0, truth)
    assert found["score"] > 0.2
    assert other["score"] < 0.0


def test_weights_of_another_generator_or_of_a_compared_seed_are_refused(weights: str, tmp_path: Path) -> None:
    check_encoder(weights, range(10))
    with pytest.raises(ConfigError, match="synthetic:crypto"):
        check_encoder("jepa-synthetic-1h", range(10))
    with pytest.raises(ConfigError, match="seed 9001, which is a seed of the comparison"):
        plan(tmp_path, weights, first_seed=9_000)
    for wrong, said in (("synthetic:crypto?seed=1&bars=3000", "exact filter"), (f"{BARS}&stress=sv", "stress")):
        with pytest.raises(ConfigError, match=said):
            truth(load(wrong), FEES)
    with pytest.raises(ConfigError, match="taker_fee"):
        truth(load(BARS), replace(FEES, taker_fee=None))


def result(a: float, c: float, d: float) -> dict[str, Any]:
    market = np.random.default_rng(1).normal(0.0, 1.0, 10)
    levels = {"A": a, "B": a + 0.1, "C1": c, "C2": c, "D": d, "E": d, "F": d + 0.2}
    draw = np.random.default_rng(2)
    return {
        "runs": {name: [{"score": s + level + draw.normal(0, 0.01)} for s in market] for name, level in levels.items()}
    }


def test_the_goal_is_a_share_of_a_gap_that_is_there() -> None:
    there = judged(result(0.0, 0.95, 1.0))
    assert there["closed"]["C2"]["value"] == pytest.approx(0.95, abs=0.02)
    assert there["goal"] == {"share": 0.9, "closes": True, "closes_surely": True, "beats_B": True}
    assert there["regret"]["D"]["iqm"] == pytest.approx(0.2, abs=0.02)
    missed = judged(result(0.0, 0.05, 1.0))
    assert missed["goal"] == {"share": 0.9, "closes": False, "closes_surely": False, "beats_B": False}
    nothing = judged(result(0.0, 0.5, -0.1))
    assert {part["value"] for part in nothing["closed"].values()} == {None}
    assert nothing["goal"]["closes"] is None


def test_the_plan_runs_from_the_command_line(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--plan", "regime-gap", "--quick", "--encoder", weights, "--steps", "512", "--quiet",
             "--out", str(tmp_path / "gap")]  # fmt: skip
    words += [part for name, number in TINY.items() for part in ("--set", f"{name}={number}")]
    assert regimegym.main(words) == 0
    printed = capsys.readouterr().out
    assert "quick: too few seeds" in printed
    assert "(C2 - A) / (D - A):" in printed
    found = json.loads((tmp_path / "gap" / "regime-gap.json").read_text())
    assert set(found["closed"]) == set(regime_gap.SHARES)
    assert (tmp_path / "gap" / "compare.png").is_file()
    assert len(list((tmp_path / "gap").glob("[A-F]*-[01].json"))) == 14
