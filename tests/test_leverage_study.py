"""The leverage study: what calibration may see, equal exposure, a planted benefit and a null, an unseen regime, runs
that are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from agents import arms, leverage_study, leverage_walks, metrics, paired_walks
from agents.agent import Agent
from agents.leverage_calibration import HIGHEST, LOWEST, PRIOR, TOLERANCE, calibrated, matched, of_returns
from agents.leverage_study import Study
from agents.leverage_walks import Long, arm_of, base_of, reported, three_ways, walked
from agents.trial_registry import touch_log, trials_on
from agents.unseen_regime import with_unseen_regime
from envs.leverage import RegimeAwareLeverageController
from envs.simulation import Game
from markets.errors import ConfigError, UnknownNameError
from markets.sources import load
from markets.sources.memory import register_bars
from markets.table import CausalTable

SPEC = "synthetic:crypto?seed={seed}&interval=1h&bars=3600"
BARS = SPEC.format(seed=74)
TINY = {"n_steps": 16, "batch_size": 512, "n_epochs": 1, "net_arch": [4]}
NULL = {
    "multipliers": (1.0,) * 4, "confidence_scaling": False, "minimum_confidence": 0.0, "transition_odds": 1.0,
    "novelty_limit": 25.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(leverage_walks, "UNSEEN_BARS", 120)


def game_for(split: str, bars: str = BARS) -> Game:
    return arms.game_for(arm_of({}), bars, split)


# ---- calibration --------------------------------------------------------------------------------------------------


def test_multipliers_are_inverse_deviations_shrunk_and_one_on_average() -> None:
    random = np.random.default_rng(74)
    regime = np.repeat([0, 1, 2], [6_000, 3_990, 10])
    returns = random.normal(size=10_000) * np.array([0.004, 0.012, 0.03])[regime]
    found = of_returns(returns, regime, 4)
    whole, counts = returns.var(), np.array([6_000, 3_990, 10, 0])
    own = [returns[regime == k].var() for k in range(3)] + [0.0]
    shape = np.array(
        [np.sqrt(whole / ((n * v + PRIOR * whole) / (n + PRIOR))) for n, v in zip(counts, own, strict=True)]
    )
    shape *= 10_000 / (counts * shape).sum()
    np.testing.assert_allclose(found.multipliers, np.clip(shape, LOWEST, HIGHEST))
    assert found.counts == (6_000, 3_990, 10, 0)
    assert found.multipliers[0] > 1.0 > found.multipliers[1]
    assert found.multipliers[2] > 0.5 * found.multipliers[3]  # ten wild bars are not believed
    for wrong, says in ((np.zeros(5), "without any spread"), (np.zeros((5, 2)), "two series")):
        with pytest.raises(ConfigError, match=says):
            of_returns(wrong, np.zeros(5, int), 2)


def of_all_bars(game: Game) -> Any:
    """The mutant: calibrates on what comes after the split as well."""
    return calibrated(replace(game, last=len(game.bars) - 1))


@pytest.mark.parametrize(("calibrate", "same"), [(calibrated, True), (of_all_bars, False)])
def test_calibration_sees_no_bar_after_validation(calibrate: Any, same: bool) -> None:
    """The twin, which peeks at the test, is caught."""
    game, bars = game_for("validation"), load(BARS)
    other = with_unseen_regime(bars, game.last + 1, len(bars) - game.last - 1, 3.0)
    changed = game_for("validation", register_bars("leverage-study-other", other))
    assert (changed.first, changed.last) == (game.first, game.last) == (2_160, 2_879)
    assert (calibrate(game).multipliers == calibrate(changed).multipliers) is same


# ---- equal exposure -----------------------------------------------------------------------------------------------


def gap_on_validation(rescaled: bool) -> float:
    """Relative difference of the mean absolute exposures on validation."""
    game = game_for("validation")
    shape = calibrated(game).multipliers

    def controller(base: float) -> RegimeAwareLeverageController:
        return RegimeAwareLeverageController(base, leverage_walks.MOST, shape)

    base = base_of(Long(), game, controller).base_leverage if rescaled else leverage_walks.LEVERAGE
    scores, _ = three_ways(Long(), game, controller(base))
    held = {way: row["mean_absolute_exposure"] for way, row in scores.items()}
    assert abs(held["hindsight"] / held["control"] - 1.0) <= TOLERANCE
    return abs(held["control"] / held["fixed"] - 1.0)


def test_both_hold_as_much_on_validation() -> None:
    assert gap_on_validation(True) <= TOLERANCE


def test_mutant_without_rescaling_they_do_not() -> None:
    assert gap_on_validation(False) > 2.0 * TOLERANCE


def test_a_base_leverage_is_found_where_there_is_one() -> None:
    tried: list[float] = []

    def clipped(base: float) -> float:
        tried.append(base)
        return 0.2 + 0.1 * min(max(base, 2.5), 5.0)  # flat at both ends, as clipped leverages are

    for wanted in (0.5, 0.55, 0.69):
        found = matched(clipped, wanted, 2.0, 6.0)
        assert found.matched
        assert clipped(found.base_leverage) == pytest.approx(wanted, rel=TOLERANCE)
    assert len(tried) < 30
    beyond = matched(clipped, 0.9, 2.0, 6.0)
    assert (beyond.matched, beyond.why) == (False, "no base leverage reaches it")
    assert beyond.reached == pytest.approx(0.7)
    idle = matched(lambda base: 0.0, 0.0, 2.0, 6.0)
    assert (idle.matched, idle.base_leverage, idle.why) == (False, 2.0, "nothing is held that could be matched")


# ---- a null and a planted benefit ---------------------------------------------------------------------------------


class Swinging(Agent):
    """Long and short by turns, so that orders are sent."""

    name = "swinging"
    reads = ("return_24",)

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        return np.sign(columns).astype(np.float32), state


def test_multipliers_of_one_and_no_cuts_change_nothing_at_all() -> None:
    played = walked(arm_of({}), "test", BARS, 74, (Swinging(),), NULL)
    part = played.rows["players"]["swinging"]
    assert part["match"]["base_leverage"] == leverage_walks.LEVERAGE
    for where in ("test", "unseen"):
        assert part["ranges"][where]["control"] == part["ranges"][where]["fixed"]
        assert played.gains[f"swinging control {where}"].any()
        same = played.gains[f"swinging control {where}"] == played.gains[f"swinging fixed {where}"]
        assert same.all()
    halved = {**NULL, "multipliers": (1.0, 1.0, 1.0, 0.5)}  # the twin: one multiplier is another
    other = walked(arm_of({}), "test", BARS, 74, (Swinging(),), halved)
    assert (other.gains["swinging control test"] != other.gains["swinging fixed test"]).any()


def planted(split: str, told: bool) -> Game:
    """A market that only falls in its wild regime, ten times as fast as it rises; odds that tell of it, or nothing."""
    bars = load(BARS)
    random = np.random.default_rng(74)
    wild = (np.arange(len(bars)) // 50) % 4 == 3
    returns = np.where(wild, random.normal(-0.005, 0.012, len(bars)), random.normal(0.0005, 0.002, len(bars)))
    path = 10_000.0 * np.exp(np.cumsum(returns))[:, None]
    before = np.concatenate([[[10_000.0]], path[:-1]])
    prices = {"open": before, "high": np.maximum(before, path), "low": np.minimum(before, path), "close": path}
    marks = {f"mark_{name}": value for name, value in prices.items()}
    game = game_for(split, register_bars("leverage-study-planted", replace(bars, **prices, **marks)))
    assert game.encoded is not None
    values = game.encoded.table.values.copy()
    values[:, -4:] = np.eye(4)[np.where(wild, 3, 0) if told else np.zeros(len(bars), int)]
    values[:, :-4] = 1.0  # nothing is novel
    table: CausalTable = replace(game.encoded.table, values=values, checked=False)
    change = np.zeros(len(bars))
    return replace(game, encoded=replace(game.encoded, table=table, change=lambda _: change))


def saved(told: bool) -> dict[str, float]:
    """What the control saves of the drawdown of who is always long, on test, from fixed and from hindsight."""
    validation = planted("validation", told)
    shape = calibrated(validation).multipliers

    def controller(base: float) -> RegimeAwareLeverageController:
        return RegimeAwareLeverageController(base, leverage_walks.MOST, shape, patience_bars=1)

    match = base_of(Long(), validation, controller)
    assert match.matched
    scores, _ = three_ways(Long(), planted("test", told), controller(match.base_leverage))
    return {way: scores[way]["max_drawdown"] - scores["control"]["max_drawdown"] for way in ("fixed", "hindsight")}


def test_where_regimes_tell_of_falls_the_control_cuts_the_drawdown_at_equal_exposure() -> None:
    found = saved(told=True)
    print(f"drawdown saved {found}")
    assert min(found.values()) > 0.05


def test_twin_odds_that_tell_nothing_save_nothing() -> None:
    found = saved(told=False)
    assert max(abs(value) for value in found.values()) < 0.01


# ---- a regime that nobody has seen --------------------------------------------------------------------------------


def test_before_the_unseen_regime_everything_is_as_it_was() -> None:
    validation = game_for("validation")
    games = reported(arm_of({}), "test", BARS, 74, validation)
    assert list(games) == ["test", "unseen"]
    wild, bars, row = games["unseen"], validation.bars, validation.last + 1
    assert (wild.first, len(wild.bars)) == (row, row + 120)
    for name, column in bars.columns.items():
        np.testing.assert_array_equal(wild.bars.columns[name][:row], column[:row])
    np.testing.assert_array_equal(wild.table[:row], validation.table[:row])
    assert wild.encoded is not None
    assert validation.encoded is not None
    np.testing.assert_array_equal(wild.encoded.table.values[:row], validation.encoded.table.values[:row])
    deviation = [float(np.diff(np.log(one)).std()) for one in (bars.close[:row, 0], wild.bars.close[row:, 0])]
    assert deviation[1] > 3.0 * deviation[0]
    assert wild.bars.label_names[int(wild.bars.labels[row])] == "unseen"  # type: ignore[index]
    assert np.abs(np.log(wild.bars.open[row] / bars.close[row - 1])) < 1e-9
    assert list(reported(arm_of({}), "validation", BARS, 74, validation)) == ["validation"]
    with pytest.raises(ConfigError, match="only those of synthetic:crypto"):
        with_unseen_regime(replace(bars, source="frame"), row, 100, 3.0)


# ---- intervals over time ------------------------------------------------------------------------------------------


def test_walks_are_drawn_at_the_same_bars_for_both() -> None:
    random = np.random.default_rng(74)
    market = random.normal(0.0, 0.01, (1, 2_000))
    first = market + random.normal(0.0, 1e-4, (5, 2_000))
    second = market + random.normal(0.0, 1e-4, (5, 2_000)) - 1e-5
    for name in ("max_drawdown", "log_growth"):
        paired = paired_walks.difference(first, second, name, 50.0, 300)
        apart = paired_walks.difference(first, np.roll(second, 1_000, axis=1), name, 50.0, 300)  # the mutant
        assert np.ptp(apart["interval"]) > 5.0 * np.ptp(paired["interval"])
        same = paired_walks.difference(first, first, name, 50.0, 100)
        assert (same["iqm"], same["interval"]) == (0.0, [0.0, 0.0])
    curve = np.concatenate([[1.0], np.cumprod(1.0 + first[0])])
    assert paired_walks.max_drawdown(np.log1p(first[0])) == pytest.approx(metrics.max_drawdown(curve))
    with pytest.raises(UnknownNameError):
        paired_walks.difference(first, second, "sharp", 50.0)
    with pytest.raises(ConfigError, match="not over the same seeds"):
        paired_walks.difference(first, second[:, :-1], "log_growth", 50.0)


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_the_command_runs_keeps_its_runs_and_writes_down_what_it_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []
    held: dict[int, Any] = {}
    play = leverage_study.play

    def once(arm: Any, recipe: Any, bars: Any, seed: int, *more: Any) -> Any:
        played.append(seed)
        held[seed] = held[seed] if seed in held else play(arm, recipe, bars, seed, *more)
        return held[seed]

    monkeypatch.setattr(leverage_study, "play", once)
    out = tmp_path / "out"
    words = ["compare", "--plan", "leverage", "--bars", SPEC, "--seeds", "2", "--steps", "4096", "--quiet", "--out",
             str(out), "--split", "test"]  # fmt: skip
    words += [part for name, number in TINY.items() for part in ("--set", f"{name}={number}")]
    assert regimegym.main(words) == 0
    printed = capsys.readouterr().out
    assert "## long, unseen, 119 bars" in printed
    assert printed == (out / "leverage.md").read_text()
    assert (out / "leverage.png").read_bytes()[:4] == b"\x89PNG"
    assert len(touch_log().read_text().splitlines()) == 2
    assert trials_on([load(SPEC.format(seed=1)).hash]).runs == 1
    first = json.loads((out / "leverage.json").read_text())
    assert first["ranges"]["test"]["long"]["matched"] == 2
    (out / "seed-1.json").unlink()
    assert regimegym.main([*words, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert played == [0, 1, 1]
    assert again == {**first, "quick": False}
    for more, said in (
        (["--steps", "8192"], "choose another folder"), (["--env-arg", "leverage=3"], "is what the leverage study"),
        (["--arm", "x"], "--arm is not of --plan leverage"), (["--control", "max_leverage=3"], "study's own"),
        (["--split", "train"], "split of the leverage study"), (["--seeds", "1"], "at least 2"),
    ):  # fmt: skip
        assert regimegym.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert played == [0, 1, 1]


def test_seeds_of_one_market_get_an_interval_over_time_as_well(tmp_path: Path) -> None:
    part = walked(arm_of({}), "validation", BARS, 74, (Long(),), {})
    rows = {**part.rows, "identity": {"periods_per_year": 8760.0}}
    played = {seed: replace(part, rows=rows) for seed in (0, 1)}
    shared = leverage_study.summary(Study(out=tmp_path, bars=BARS, seeds=2), played)
    found = shared["ranges"]["validation"]["long"]
    assert shared["one_market"]
    assert found["over_time"]["control - fixed"]["log_growth"]["mean_block"] == pytest.approx(168.0)
    assert np.ptp(found["differences"]["control - fixed"]["log_growth"]["interval"]) < 1e-12
    assert np.ptp(found["over_time"]["control - fixed"]["log_growth"]["interval"]) > 0.0
    own = leverage_study.summary(Study(out=tmp_path, bars=SPEC, seeds=2), played)
    assert "over_time" not in own["ranges"]["validation"]["long"]


@pytest.mark.parametrize("name", ["nothing", "patience_bar", "multipliers", "base_leverage"])
def test_settings_that_the_control_does_not_have_are_named_before_anything_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the pen was a traceback."""
    words = ["compare", "--plan", "leverage", "--out", str(tmp_path / "a"), "--quiet", "--control", f"{name}=1"]
    assert regimegym.main(words) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
