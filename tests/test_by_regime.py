"""The report by regime adds up to the walk; deflated ratios and overfitting of a table; faults are caught."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import artefact, regime_picture, report
from agents.agent import Agent
from agents.baselines import BuyAndHold, Idle, Random
from agents.by_regime import by_regime, mean_interval, regimes_of, statistics
from agents.deflated_sharpe import probabilistic_sharpe
from agents.evaluation import COST_SCALES, Steps, Walk, walk
from agents.overfitting import probability_of_overfitting
from agents.recipe import resolve
from agents.significance import deflate, overfitting
from agents.trial_registry import Trials, record_trial
from envs.make import build, game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Game
from markets.errors import ConfigError, MissingExtraError
from markets.sources import load
from markets.sources.memory import register_bars

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
HOURS = 8760.0
SEED = 5


def game(**arguments: Any) -> Game:
    return game_of("PerpFutures", PerpFuturesConfig(**{"bars": BARS, "split": "test", **arguments}))


def steps_of(walked: Walk) -> Steps:
    assert walked.steps is not None
    return walked.steps


# Step by step


@pytest.mark.parametrize("make", [Random, BuyAndHold, Idle])
def test_steps_add_up_to_the_walk(make: Callable[[], Agent]) -> None:
    walked = walk(make(), game(), COST_SCALES)
    steps, lane = steps_of(walked), 1
    assert np.prod(1.0 + steps.gain) == pytest.approx(walked.equity[-1, lane] / walked.equity[0, lane], rel=1e-9)
    assert steps.turnover.sum() == pytest.approx(walked.turnover[lane], rel=1e-12)
    for name, total in walked.items.items():
        assert steps.items[name].sum() == pytest.approx(total[lane], rel=1e-9, abs=1e-9), name
    costs = sum(walked.items[name][lane] for name in ("fee", "spread_cost", "impact_cost", "clearance"))
    assert steps.costs.sum() == pytest.approx(costs, rel=1e-9, abs=1e-9)
    assert np.array_equal(steps.equity, walked.equity[:-1, lane])
    assert np.array_equal(steps.exposure, walked.exposure[1:, lane])


def test_a_step_s_row_is_the_bar_whose_label_info_shows_after_it() -> None:
    market = game()
    steps = steps_of(walk(Idle(), market))
    env = build("PerpFutures", bars=BARS, split="test")
    env.reset(seed=0)
    assert market.bars.labels is not None
    for row in steps.row[:50]:
        info = env.step(np.zeros(1, np.float32))[4]
        assert info["time"] == market.bars.close_time[row]
        assert info["label"] == market.bars.labels[row]


def test_steps_of_sessions_are_those_of_the_sessions() -> None:
    config = resolve("ZeroDTE-v0", {"bars": "synthetic:spy?seed=3&sessions=12&start=2020-01-02"})[1]
    market = game_of("ZeroDTE", replace(config, split="validation"))
    walked = walk(Idle(), market)
    assert market.starts is not None
    assert market.lengths is not None
    assert len(steps_of(walked).row) == market.lengths.sum()
    found = by_regime({"idle": walked}, market)["rows"]["idle"]
    assert sum(row["steps"] for row in found.values()) == market.lengths.sum()
    assert "funding" not in next(iter(found.values()))


# By regime


def check_adds_up(found: dict[str, dict[str, float]], walked: Walk) -> None:
    lane, rows = walked.scales.index(1.0), list(found.values())
    assert sum(row["steps"] for row in rows) == len(walked.equity) - 1
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    growth = math.log(walked.equity[-1, lane] / walked.equity[0, lane])
    assert sum(row["log_growth"] for row in rows) == pytest.approx(growth, abs=1e-9)
    assert sum(row["funding"] for row in rows) == pytest.approx(walked.items["funding"][lane], abs=1e-6)
    assert sum(row["costs"] for row in rows) == pytest.approx(steps_of(walked).costs.sum(), abs=1e-6)
    turnover = sum(row["turnover_per_year"] * row["steps"] for row in rows) / HOURS
    assert turnover == pytest.approx(walked.turnover[lane], rel=2e-3)
    exposure = sum(row["mean_exposure"] * row["steps"] for row in rows)
    assert exposure == pytest.approx(walked.exposure[1:, lane].sum(), abs=1e-6)


@pytest.mark.parametrize("make", [Random, BuyAndHold, Idle])
def test_regimes_add_up_to_the_walk(make: Callable[[], Agent]) -> None:
    walked = walk(make(), game(), COST_SCALES)
    found = by_regime({"agent": walked}, game())
    assert found["source"] == "true"
    assert len(found["rows"]["agent"]) > 1
    check_adds_up(found["rows"]["agent"], walked)
    json.dumps(found, allow_nan=False)


def test_a_step_that_no_regime_counts_is_caught() -> None:
    walked, market = walk(Random(), game(), COST_SCALES), game()
    steps = steps_of(walked)
    regime = regimes_of(market)[0][steps.row].copy()
    names = market.bars.label_names
    check_adds_up(statistics(steps, regime, names, HOURS), walked)
    regime[17] = len(names)
    with pytest.raises(AssertionError):
        check_adds_up(statistics(steps, regime, names, HOURS), walked)


def made_steps(gain: list[float], costs: list[float]) -> Steps:
    count = len(gain)
    return Steps(
        row=np.arange(count), gain=np.array(gain), exposure=np.ones(count), turnover=np.full(count, 0.5),
        items={"funding": np.full(count, 2.0)}, costs=np.array(costs), equity=np.full(count, 100.0),
    )  # fmt: skip


def test_every_score_of_a_small_walk_is_what_one_computes_by_hand() -> None:
    steps = made_steps([0.1, -0.1, 0.0, 0.2, -0.5, 0.1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = statistics(steps, np.array([0, 1, 1, 0, 1, 1]), ("calm", "wild", "never"), 10.0, window=1)
    assert list(found) == ["calm", "wild"]
    calm, wild = found["calm"], found["wild"]
    assert (calm["steps"], calm["entries"], wild["steps"], wild["entries"]) == (2, 1, 4, 2)
    assert calm["total_return"] == pytest.approx(1.1 * 1.2 - 1.0)
    assert wild["log_growth"] == pytest.approx(math.log(0.9 * 0.5 * 1.1))
    assert wild["max_drawdown"] == pytest.approx(1.0 - 0.9 * 0.5)
    assert wild["mean_return"] == pytest.approx(-0.125)
    assert wild["deviation"] == pytest.approx(np.std([-0.1, 0.0, -0.5, 0.1], ddof=1))
    assert (calm["costs"], wild["costs"], wild["funding"]) == (5.0, 16.0, 8.0)
    assert calm["transition_cost"] == pytest.approx(0.04)  # the first step of the walk is no change into a regime
    assert wild["transition_cost"] == pytest.approx((0.02 + 0.05) / 2)
    assert wild["transition_share"] == pytest.approx(7.0 / 16.0)
    assert wild["turnover_per_year"] == pytest.approx(5.0)
    assert statistics(steps, np.zeros(6, int), ("one",), 10.0)["one"]["transition_cost"] == 0.0


def test_a_regime_that_an_encoder_tells_is_the_one_it_held_before_the_step() -> None:
    given = {"bars": register_bars("unlabelled", replace(load(BARS), labels=None, label_names=()))}
    family, config = resolve("PerpFutures-JEPA-v0", given)
    market = game_of(family, replace(config, split="test", episode_bars=None))
    regime, names, source = regimes_of(market)
    assert market.encoded is not None
    told = next(value for key, value in market.encoded.facts.items() if key.endswith("_regime"))
    assert source == f"encoder {market.encoded.name}"
    assert np.array_equal(regime[1:], told[:-1])
    walked = walk(Random(), market, (1.0,))
    found = by_regime({"random": walked}, market)
    check_adds_up(found["rows"]["random"], walked)
    assert set(found["rows"]["random"]) <= set(names)
    assert "held" not in "".join(report.regime_notes(found))
    assert market.encoded.name in "".join(report.regime_notes(found))


def test_without_labels_and_encoder_a_report_by_regime_says_what_it_needs() -> None:
    bars = register_bars("unlabelled", replace(load(BARS), labels=None, label_names=()))
    with pytest.raises(ConfigError, match="PerpFutures-JEPA-v0"):
        regimes_of(game(bars=bars))


def test_the_interval_of_a_regime_s_mean_covers_it_and_forgets_the_other_regimes() -> None:
    hits = {"own": 0, "others": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        here = np.repeat(rng.random(120) < 0.3, 20)  # visits of 20 steps and more
        gain = np.where(here, 2e-3, -1e-3) + np.where(here, 0.02, 0.005) * rng.standard_normal(2400)
        low, high = mean_interval(gain, here, 168.0) or (0.0, 0.0)
        assert low < gain[here].mean() < high
        hits["own"] += low <= 2e-3 <= high
        everywhere = mean_interval(gain, np.ones(2400, bool), 168.0) or (0.0, 0.0)  # a twin that forgets to look where
        hits["others"] += everywhere[0] <= 2e-3 <= everywhere[1]
    assert hits["own"] >= 35
    assert hits["others"] < 10
    assert mean_interval(np.zeros(300), np.arange(300) < 60, 20.0) == [0.0, 0.0]
    assert mean_interval(gain, np.arange(2400) < 5, 20.0) is None


@pytest.mark.parametrize(("id", "whose"), [("SpotCrypto-v0", "common market of the 3 coins"), ("PerpFutures-v0", "")])
def test_a_portfolio_says_whose_regime_it_is_and_what_it_borrows(id: str, whose: str) -> None:
    basket = {"bars": "synthetic:basket?seed=1&interval=1h&bars=1200", "allow_short": True}
    family, config = resolve(id, basket if whose else {"bars": BARS})
    market = game_of(family, replace(config, split="test", episode_bars=None))
    found = by_regime({"random": walk(Random(), market)}, market)
    owed, absent = ("borrow", "funding") if whose else ("funding", "borrow")
    assert whose in found["asset"]
    assert bool(found["asset"]) == bool(whose)
    assert whose in report.regime_notes(found)[0]
    assert all(owed in row and absent not in row for row in found["rows"]["random"].values())
    assert owed in report.regime_columns(found)
    assert absent not in report.regime_columns(found)


def test_an_encoder_s_regime_of_a_portfolio_is_that_of_its_first_coin() -> None:
    basket = load("synthetic:basket?seed=1&interval=1h&bars=3000")
    given = {"bars": register_bars("coins", replace(basket, labels=None, label_names=()))}
    family, config = resolve("SpotCrypto-JEPA-v0", given)
    market = game_of(family, replace(config, split="test", episode_bars=None))
    found = by_regime({"random": walk(Random(), market)}, market)
    assert found["asset"] == "BTC, the first of 3 coins"
    assert market.encoded is not None
    assert np.array_equal(regimes_of(market)[0][1:], market.encoded.facts["BTC_regime"][:-1])


# The picture


def drawn(evaluation: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Every text that is seen in the picture, without blanks, and its panels with agents."""
    from matplotlib.text import Text

    made = regime_picture.figure(evaluation)
    made.canvas.draw()
    panels = [axes for axes in made.subfigs[1].axes if axes.lines]
    return ["".join(text.get_text().split()) for text in made.findobj(Text) if text.get_visible()], panels


def evaluation_of(names: list[str]) -> dict[str, Any]:
    makers = {"idle": Idle, "random": Random, **dict.fromkeys(names, BuyAndHold)}
    found = by_regime({name: walk(make(), game()) for name, make in makers.items()}, game())
    return {
        "by_regime": found, "baselines": ["idle", "random"], "split": "test", "first": "2020-01-01 00:00",
        "last": "2020-03-01 00:00",
    }  # fmt: skip


LONG = [f"recurrent_ppo on PerpFutures-JEPA-RegimeLeverage-v0 seed {seed}" for seed in range(8)]


def check_shows_everything(evaluation: dict[str, Any]) -> None:
    texts, panels = drawn(evaluation)
    rows = evaluation["by_regime"]["rows"]
    regimes = rows["idle"]
    for name in rows:
        assert texts.count(name.replace(" ", "")) == len(regimes), name  # once a row of panels
    for regime, row in regimes.items():
        heading = f"{regime}:{row['steps']:,}steps"
        assert sum(text.startswith(heading) for text in texts) == 1, regime
    figures = ["".join(panel.title.split()) for panel in regime_picture.PANELS if "borrow" not in panel.title]
    assert all(figure in texts for figure in figures)
    assert len(panels) == len(regimes) * len(figures)
    means = panels[:: len(figures)]
    for axes, regime in zip(means, regimes, strict=True):
        points = [line for line in axes.lines if line.get_marker() == "o"]
        shown = [float(line.get_xdata()[0]) for line in points]
        assert shown == pytest.approx([1e4 * rows[name][regime]["mean_return"] for name in reversed(rows)])
        assert len(axes.lines) == 2 * len(points) + 1  # each with its interval, and the line at 0


@pytest.mark.parametrize("names", [["ppo seed 0"], LONG])
def test_the_picture_shows_every_agent_and_regime(names: list[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    evaluation = evaluation_of(names)
    check_shows_everything(evaluation)
    lost = {"idle": evaluation["by_regime"]["rows"]["idle"]}  # a picture that leaves agents out is caught
    honest = regime_picture.figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            regime_picture, "figure",
            lambda given: honest({**given, "by_regime": {**given["by_regime"], "rows": lost}}),
        )  # fmt: skip
        with pytest.raises(AssertionError):
            check_shows_everything(evaluation)


def test_names_of_the_picture_do_not_overlap_and_headings_stay_inside() -> None:
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    made = regime_picture.figure(evaluation_of(LONG))
    made.canvas.draw()
    axes = next(one for one in made.subfigs[1].axes if one.lines)
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(low.y1 <= high.y0 + 1.0 for low, high in itertools.pairwise(boxes))
    for one in made.subfigs[1].axes:
        for heading in one.texts:
            assert heading.get_window_extent().x1 < made.bbox.x1


def test_without_matplotlib_the_picture_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*regimegym\[viz\]"):
        regime_picture.draw({}, tmp_path / "picture.png")


# What a table is worth


def walks() -> dict[str, Walk]:
    return {name: walk(make(), game(), COST_SCALES) for name, make in (("a", Random), ("b", BuyAndHold), ("c", Idle))}


def test_a_deflated_ratio_is_a_probability_that_falls_with_the_trials() -> None:
    walked = walks()
    few, many = (deflate(walked, list(walked), Trials(count, count, 0.02, count), HOURS) for count in (1, 50))
    assert few["rows"]["c"] is None, "an idle account has no Sharpe ratio to deflate"
    assert 0.0 <= many["rows"]["b"] < few["rows"]["b"] <= 1.0
    gains = steps_of(walked["b"]).gain
    z = (gains - gains.mean()) / gains.std()
    sharpe = gains.mean() / gains.std(ddof=1)
    assert few["rows"]["b"] == pytest.approx(
        probabilistic_sharpe(sharpe, len(gains), float((z**3).mean()), float((z**4).mean()))
    )
    assert few["chance_sharpe"] == 0.0 < many["chance_sharpe"]
    # Two ratios that happen to be alike are no sign that luck is small; forty are.
    alike, known = (deflate(walked, ["b"], Trials(40, 40, 1e-6, scored), HOURS) for scored in (2, 40))
    assert alike["rows"]["b"] < 0.5 * known["rows"]["b"]
    assert alike["chance_sharpe"] > 1.0 > 0.01 > known["chance_sharpe"]
    unknown = deflate(walked, ["b"], Trials(3, 3, None, 1), HOURS)
    assert unknown["chance_sharpe"] == pytest.approx(0.846 * math.sqrt(HOURS / len(gains)), rel=0.02)


@pytest.mark.parametrize(
    ("runs", "scored", "words"),
    [
        (1, 1, "one is above 0, since one trial leaves nothing to choose from"),
        (9, 1, "what the best of 9 shows by luck with the spread of ratios without skill"),
        (45, 40, "need 5.0 years for the best not to show a ratio of 1; this split has 0.1"),
    ],
)
def test_the_report_says_what_was_tried(runs: int, scored: int, words: str) -> None:
    walked = walks()
    trials = deflate(walked, ["b"], Trials(3, runs, 0.01 if scored > 1 else None, scored), HOURS)
    facts = {"split": "validation", "source": "s", "first": "2022", "last": "2023", "periods_per_year": HOURS}
    text = "\n".join(report.notes({**facts, "trials": trials, "overfitting": None}))
    assert f"3 configuration(s), {runs} run(s)" in text
    assert words in text
    assert "PBO" not in text


def test_overfitting_of_a_table_is_that_of_its_returns() -> None:
    walked = walks()
    found = overfitting(walked, list(walked), HOURS)
    assert found is not None
    gains = np.stack([steps_of(one).gain for one in walked.values()], axis=1)
    assert (found["strategies"], found["blocks"], found["ways"]) == (3, 16, 12_870)
    assert found["probability"] == pytest.approx(probability_of_overfitting(gains).probability)
    assert overfitting(walked, ["a"], HOURS) is None


def test_the_command_line_reports_by_regime_and_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import regimegym

    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    for seed in ("0", "1"):
        words = ["--env", "PerpFutures-v0", "--algo", "a2c", "--bars", BARS, "--steps", "256", "--lanes", "16"]
        more = ["--evaluations", "1", "--seed", seed, "--out", str(tmp_path / seed), "--quiet", "--device", "cpu"]
        assert regimegym.main(["train", *words, *more]) == 0
    capsys.readouterr()
    folders = [str(tmp_path / seed) for seed in ("0", "1")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        words = ["evaluate", *folders, "--by-regime", "--split", "validation", "--out", str(tmp_path), "--quiet"]
        assert regimegym.main(words) == 0
        assert "regimegym[viz]" in caplog.text
        assert (tmp_path / "evaluation-validation.md").exists()
        assert not list(tmp_path.glob("*.png"))
    capsys.readouterr()
    assert regimegym.main(["evaluate", *folders, "--by-regime", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trials"]["configurations"], found["trials"]["runs"], found["trials"]["scored"]) == (1, 2, 2)
    assert found["overfitting"]["strategies"] == 2
    assert found["flags"] == []
    steps = found["table"]["idle"]["bars"]
    for rows in found["by_regime"]["rows"].values():
        assert sum(row["steps"] for row in rows.values()) == steps
    assert (tmp_path / "0" / "evaluation-test-by-regime.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "0" / "evaluation-test.md").read_text(encoding="utf-8")
    for words in ("| agent | regime | steps |", "1 configuration(s), 2 run(s)", "PBO", "Transition cost"):
        assert words in text
    assert "READ BEFORE" not in text
    assert "what the best of 2 shows by luck with the spread of 2 validation Sharpe ratios" in text
    assert regimegym.main(["evaluate", folders[0], "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("**READ BEFORE**: this test range was read 1 time(s)")
    assert "READ BEFORE" in (tmp_path / "0" / "evaluation-test.md").read_text(encoding="utf-8")

    # A run that is in no table counts too, and so makes every deflated ratio smaller.
    loser = artefact.load(tmp_path / "0").manifest
    record_trial({**loser, "seed": 7, "bars": loser["bars"]["hash"]}, -3.0, HOURS)
    capsys.readouterr()
    words = ["evaluate", *folders, "--json", "--quiet", "--choose", "--out", str(tmp_path)]
    assert regimegym.main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["trials"]["configurations"], again["trials"]["runs"], again["trials"]["scored"]) == (1, 3, 3)
    assert again["trials"]["minimum_years"] > found["trials"]["minimum_years"] > 0.0
    for name in ("a2c seed 0", "a2c seed 1"):
        assert again["table"][name]["deflated_sharpe"] < found["table"][name]["deflated_sharpe"]
    told = (tmp_path / "evaluation-test.md").read_text(encoding="utf-8")
    check_statistics_are_told(told)
    for left_out in ("DSR", "PBO", "years for the best", "(IQM)", "Best by validation"):
        with pytest.raises(AssertionError):
            check_statistics_are_told(told.replace(left_out, ""))

    # Chosen on validation only, also where the table is of the test split; idle is among the candidates.
    assert found["selection"] is None
    chosen = again["selection"]
    assert set(chosen["candidates"]) == {"idle", "a2c seed 0", "a2c seed 1"}
    assert chosen["seen_by"] == ["a2c seed 0", "a2c seed 1"]
    assert chosen["last"] < again["first"]
    assert regimegym.main([*words[:4], "--quiet", "--split", "validation", "--out", str(tmp_path)]) == 0
    validation = json.loads(capsys.readouterr().out)
    assert validation["selection"] == chosen
    for name, row in chosen["candidates"].items():
        assert row["sharpe"] == pytest.approx(validation["table"][name]["sharpe"], abs=1e-9)
        assert again["table"][name]["sharpe"] != row["sharpe"] or name == "idle"


def check_statistics_are_told(text: str) -> None:
    """B3 and B15: what a reader of a table over several agents has to find beside it."""
    for words in (
        "| DSR |", "2 runs (IQM)", "PBO 0.", "3 run(s)", "years for the best not to show a ratio of 1", "[",
        "**Best by validation**", "stationary bootstrap", "were chosen on validation before",
    ):  # fmt: skip
        assert words in text, words
