"""The walk through a split, the scores made from it, the report, and the log of readings of a test split."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import report
from agents.agent import Agent, Observation
from agents.baselines import BASELINES, UNLEVERED, BuyAndHold, Idle, Random, baseline
from agents.evaluation import COST_SCALES, Walk, evaluate, over_seeds, score, walk
from agents.trial_registry import overlapping_touches, record_touch, touch_log
from envs.make import build, game_of
from envs.perp_columns import LEDGER
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Game
from markets.errors import MissingExtraError, UnknownNameError
from markets.sources import load as load_bars
from markets.sources.memory import register_bars

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
SEED = 19
HOURS = 8760.0
EXACT = 1e-9  # of the start equity
WILD = {"leverage": 50.0, "rebalance_band": 10.0}  # bought once, liquidated soon


def config(**arguments: Any) -> PerpFuturesConfig:
    return PerpFuturesConfig(**{"bars": BARS, "split": "test", **arguments})


def game(**arguments: Any) -> Game:
    return game_of("PerpFutures", config(**arguments))


class Trend(Agent):
    """Trades often and in both directions, from what it sees: the last changes and its own exposure."""

    name = "trend"
    reads = ("exposure", "return_1", "drawdown")

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> Any:
        wish = np.sign(columns[:, 1:2]) * (0.6 - columns[:, 2:3]) + 0.2 * columns[:, :1]
        return np.clip(wish, -1.0, 1.0).astype(np.float32), state


class AllIn(Agent):
    """Asks for the whole exposure, long."""

    name = "all in"

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> Any:
        return np.ones((len(columns), 1), np.float32), state


@pytest.fixture(autouse=True)
def own_touch_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's log of test readings stays out of reach."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REGIMEGYM_CACHE", str(folder))
    return folder


# The walk


def by_hand(agent: Agent, **arguments: Any) -> dict[str, Any]:
    """Step the single Gymnasium environment and keep the books."""
    env = build("PerpFutures", **{"bars": BARS, "split": "test", **arguments})
    observation, info = env.reset(seed=SEED)
    agent.bind(env.observation_names)
    equity, exposure, times = [info["equity"]], [0.0], [info["time"]]
    totals, turnover, state, over = dict.fromkeys(LEDGER.items, 0.0), 0.0, None, False
    while not over:
        action, state = agent.predict(observation, state)
        observation, _, terminated, truncated, info = env.step(action)
        turnover += abs(info["fill_quantity"]) * info["fill_price"] / equity[-1]
        equity.append(info["equity"])
        exposure.append(info["position"] * info["mark"] / info["equity"])
        times.append(info["time"])
        for name in totals:
            totals[name] += info["liquidated" if name == "liquidations" else name]
        over = terminated or truncated
    return {"equity": equity, "exposure": exposure, "time": times, "items": totals, "turnover": turnover, "last": info}


def check_walk_equals_stepping(make: Callable[[], Agent], walked_with: dict[str, Any], stepped: dict[str, Any]) -> None:
    walked = walk(make(), game(**walked_with))
    assert np.array_equal(walked.equity[:, 0], stepped["equity"])
    assert np.allclose(walked.exposure[:, 0], stepped["exposure"], rtol=1e-12, atol=0.0)
    assert np.array_equal(walked.time, np.array(stepped["time"]))
    assert walked.turnover[0] == pytest.approx(stepped["turnover"], rel=1e-12)
    for name, total in stepped["items"].items():
        assert walked.items[name][0] == pytest.approx(total, rel=1e-12, abs=1e-9), name
    assert walked.ended_by == ("",)


@pytest.mark.parametrize("make", [Trend, Random, BuyAndHold, Idle])
def test_a_walk_equals_stepping_the_environment_by_hand(make: Callable[[], Agent]) -> None:
    check_walk_equals_stepping(make, {}, by_hand(make()))


def test_a_walk_at_another_fee_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_walk_equals_stepping(Trend, {"taker_fee": 0.00056}, by_hand(Trend(), taker_fee=0.00055))


def test_a_walk_visits_every_bar_of_the_split_once() -> None:
    market = game()
    walked = walk(Idle(), market)
    assert len(walked.time) == market.last - market.first + 1
    assert np.array_equal(np.diff(walked.time), np.full(len(walked.time) - 1, np.timedelta64(1, "h")))


def test_a_walk_of_a_training_game_begins_at_the_first_row_whatever_its_start_would_be() -> None:
    market = game(split="train")
    assert market.random_start
    first, second = walk(Trend(), market), walk(Trend(), market)
    assert first.time[0] == market.bars.close_time[market.first]
    assert len(first.time) == market.episode + 1
    assert np.array_equal(first.equity, second.equity)


@pytest.mark.parametrize("own", [1.0, 2.0])
def test_each_lane_equals_a_single_run_at_its_cost_scale(own: float) -> None:
    together = walk(Trend(), game(cost_scale=own), COST_SCALES)
    for lane, scale in enumerate(COST_SCALES):
        alone = walk(Trend(), game(cost_scale=own * scale))
        assert np.array_equal(together.equity[:, lane], alone.equity[:, 0])
        assert np.array_equal(together.exposure[:, lane], alone.exposure[:, 0])
        assert together.turnover[lane] == alone.turnover[0]
        for name, totals in together.items.items():
            assert totals[lane] == alone.items[name][0], name
    assert np.all(np.diff(together.equity[-1]) < 0.0)


def test_costs_are_nothing_at_scale_zero_and_funding_is_not_scaled() -> None:
    walked = walk(BuyAndHold(), game(leverage=1.0), COST_SCALES)
    for name in ("fee", "spread_cost", "impact_cost"):
        assert walked.items[name][0] == 0.0
        assert np.all(np.diff(walked.items[name]) > 0.0)
    assert walked.items["funding"] == pytest.approx(np.full(4, walked.items["funding"][0]), rel=0.02)
    assert abs(walked.items["funding"][0]) > 1.0


def check_reconciles(walked: Walk, start: float) -> None:
    items = walked.items
    change = (
        items["market_pnl"] - items["fee"] - items["spread_cost"] - items["impact_cost"] - items["funding"]
        - items["clearance"] + items["cover"]
    )  # fmt: skip
    assert np.abs(walked.equity[-1] - walked.equity[0] - change).max() <= EXACT * start


@pytest.mark.parametrize("leverage", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("make", [Trend, AllIn, *BASELINES.values()])
def test_itemised_totals_add_up_to_the_change_of_equity(make: Callable[[], Agent], leverage: float) -> None:
    check_reconciles(walk(make(), game(leverage=leverage), COST_SCALES), 10_000.0)


@pytest.mark.parametrize("name", ["fee", "spread_cost", "impact_cost", "funding", "clearance"])
def test_a_cost_that_is_booked_a_millionth_too_high_is_caught(name: str) -> None:
    walked = walk(AllIn(), game(**WILD))
    assert walked.items[name][0] != 0.0 or name == "funding"
    wrong = {**walked.items, name: walked.items[name] * (1.0 + 1e-6) + 1e-4}
    with pytest.raises(AssertionError):
        check_reconciles(replace(walked, items=wrong), 10_000.0)


def check_flat_after_the_end(walked: Walk, lane: int, steps: int) -> None:
    assert len(walked.equity) == steps + 1
    end = int(np.flatnonzero(walked.exposure[:, lane])[-1]) + 1  # the bar in which the position was closed
    assert 0 < end < steps
    assert np.all(walked.equity[end:, lane] == walked.equity[end, lane])


def test_after_a_termination_the_rest_is_flat() -> None:
    market = game(**WILD)
    walked = walk(AllIn(), market, COST_SCALES)
    assert walked.ended_by == ("liquidation",) * 4
    stepped = by_hand(AllIn(), **WILD)
    assert stepped["last"]["ended_by"] == "liquidation"
    count = len(stepped["equity"])
    assert np.array_equal(walked.equity[:count, 1], stepped["equity"])
    assert np.all(walked.equity[count:, 1] == stepped["equity"][-1])
    assert walked.items["liquidations"].tolist() == [1.0] * 4
    for lane in range(4):
        check_flat_after_the_end(walked, lane, market.last - market.first)
    for name, total in stepped["items"].items():
        assert walked.items[name][1] == pytest.approx(total, rel=1e-12, abs=1e-9), name


def test_a_lane_that_goes_on_after_its_end_is_caught() -> None:
    market = game(**WILD)
    walked = walk(AllIn(), market)
    wrong = walked.equity.copy()
    wrong[-5] += 1.0
    with pytest.raises(AssertionError):
        check_flat_after_the_end(replace(walked, equity=wrong), 0, market.last - market.first)


def test_a_lane_that_ended_does_not_touch_the_lanes_that_go_on() -> None:
    arguments = {"maximum_drawdown": 0.6}
    together = walk(Random(), game(**arguments), COST_SCALES)
    assert "drawdown limit" in together.ended_by
    assert "" in together.ended_by
    for lane, scale in enumerate(COST_SCALES):
        alone = walk(Random(), game(cost_scale=scale, **arguments))
        assert np.array_equal(together.equity[:, lane], alone.equity[:, 0])
        assert together.ended_by[lane] == alone.ended_by[0]


def test_an_agent_that_reads_what_is_not_there_is_named() -> None:
    class Other(Idle):
        reads = ("exposur",)

    with pytest.raises(UnknownNameError, match="exposure"):
        walk(Other(), game())


# Scores


def test_scores_hold_the_curve_at_cost_scale_one() -> None:
    walked = walk(Trend(), game(), COST_SCALES)
    row = score(walked, HOURS)
    curve = walked.equity[:, 1]
    assert row["total_return"] == pytest.approx(curve[-1] / curve[0] - 1.0, rel=1e-12)
    assert row["max_drawdown"] == pytest.approx((1.0 - curve / np.maximum.accumulate(curve)).max(), rel=1e-12)
    assert row["fee"] == walked.items["fee"][1]
    assert row["turnover_per_year"] == pytest.approx(walked.turnover[1] / ((len(curve) - 1) / HOURS), rel=1e-12)
    assert row["mean_exposure"] == pytest.approx(walked.exposure[:, 1].mean(), rel=1e-12)
    assert row["bars"] == len(curve) - 1
    for lane, scale in enumerate(("0", "1", "2", "5")):
        expected = walked.equity[-1, lane] / walked.equity[0, lane] - 1.0
        assert row["total_return_at_cost_scale"][scale] == pytest.approx(expected, rel=1e-9)
    json.dumps(row, allow_nan=False)


def made_walk(ends: list[float]) -> Walk:
    """A walk whose equity rises or falls evenly to the given ends, one per cost scale."""
    steps = 400
    path = np.linspace(0.0, 1.0, steps + 1)[:, None]
    equity = 10_000.0 * np.array(ends)[None] ** path
    zero = np.zeros(4)
    time = np.datetime64("2024-01-01", "ns") + np.arange(steps + 1) * np.timedelta64(1, "h")
    items = {name: zero for name in LEDGER.items}
    return Walk(time, equity, np.ones_like(equity), items, np.ones(4), ("",) * 4, COST_SCALES)


@pytest.mark.parametrize(
    ("growths", "expected"),
    [
        ([0.2, 0.1, 0.0, -0.3], 2.0), ([0.1, -0.1, -0.3, -0.9], 0.5), ([0.3, 0.2, 0.1, -0.2], 3.0),
        ([-0.1, -0.2, -0.3, -0.6], 0.0), ([0.9, 0.8, 0.7, 0.4], None),
    ],
)  # fmt: skip
def test_the_break_even_scale_is_where_growth_is_used_up(growths: list[float], expected: float | None) -> None:
    row = score(made_walk([math.exp(growth) for growth in growths]), HOURS)
    assert row["break_even_cost_scale"] == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_an_agent_run_at_its_break_even_scale_breaks_even() -> None:
    market = game(leverage=1.0)
    walked = walk(baseline("always-short"), market, COST_SCALES)
    scale = score(walked, HOURS)["break_even_cost_scale"]
    assert scale is not None
    assert 0.0 < scale < 5.0, "this market does not fit the test"
    at_scale = walk(baseline("always-short"), market, (1.0, scale))
    growth = float(np.log(at_scale.equity[-1, 1] / at_scale.equity[0, 1]))
    spread = float(np.log(walked.equity[-1, 0] / walked.equity[-1, 3]))
    assert abs(growth) < 0.25 * spread


def test_intervals_are_reproducible_and_hold_the_score() -> None:
    walked = walk(Trend(), game(), COST_SCALES)
    first, second, other = score(walked, HOURS), score(walked, HOURS), score(walked, HOURS, seed=1)
    assert first == second
    assert first["sharpe_interval"] != other["sharpe_interval"]
    assert first["sharpe"] == other["sharpe"]
    for name in ("total_return", "sharpe", "max_drawdown"):
        low, high = first[f"{name}_interval"]
        assert low < high
    assert first["total_return_interval"][0] < first["total_return"] < first["total_return_interval"][1]


def test_an_idle_account_scores_zero_everywhere() -> None:
    row = score(walk(Idle(), game(), COST_SCALES), HOURS)
    for name in ("total_return", "sharpe", "max_drawdown", "turnover_per_year", "fee", "mean_exposure"):
        assert row[name] == 0.0, name
    assert row["total_return_interval"] == [0.0, 0.0]


def test_a_ruined_account_scores_finite_numbers() -> None:
    row = score(walk(AllIn(), game(**WILD), COST_SCALES), HOURS)
    assert row["ended_by"] == "liquidation"
    json.dumps(row, allow_nan=False)


# Evaluation and report


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIMEGYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = evaluate({"trend": Trend()}, "PerpFutures", config(leverage=10.0))
    return {**found, "table": found["rows"], "baselines": list(BASELINES)}


def check_baselines_are_reported(rows: dict[str, Any], text: str) -> None:
    for name in (*BASELINES, "trend"):
        assert name in rows
        assert f"| {name} |" in text


def test_every_baseline_is_in_every_report(result: dict[str, Any]) -> None:
    check_baselines_are_reported(result["rows"], report.markdown(result, result["rows"]))
    assert set(result["walks"]) == set(result["rows"])


@pytest.mark.parametrize("left_out", BASELINES)
def test_a_report_without_one_baseline_is_caught(result: dict[str, Any], left_out: str) -> None:
    rows = {name: row for name, row in result["rows"].items() if name != left_out}
    with pytest.raises(AssertionError):
        check_baselines_are_reported(rows, report.markdown(result, rows))


def test_unlevered_baselines_are_walked_at_leverage_one_and_the_others_at_the_agents(result: dict[str, Any]) -> None:
    for name in BASELINES:
        plain = walk(baseline(name), game(leverage=1.0 if name in UNLEVERED else 10.0), COST_SCALES)
        assert np.array_equal(result["walks"][name].equity, plain.equity), name
    assert np.abs(result["walks"]["buy-and-hold"].exposure).max() < 1.1


def test_a_report_says_what_it_rests_on(result: dict[str, Any]) -> None:
    market = game()
    assert result["split"] == "test"
    assert result["source"] == BARS
    assert result["periods_per_year"] == pytest.approx(HOURS, rel=1e-3)
    assert result["first"] == str(market.bars.close_time[market.first])
    assert result["last"] == str(market.bars.close_time[market.last])
    text = report.markdown(result, result["rows"])
    for words in (BARS, "`test`", result["first"][:16], "8760 bars a year", "read 1 time(s)", "bootstrap"):
        assert words in text


def test_a_markdown_table_is_well_formed(result: dict[str, Any]) -> None:
    lines = report.markdown(result, result["rows"]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(result["rows"])
    assert {line.count("|") for line in table} == {len(report.COLUMNS) + 1}
    for column in ("return at 0x/2x/5x costs", "break-even", "Sharpe [95 %]"):
        assert column in table[0]


def test_report_cells_show_the_scores(result: dict[str, Any]) -> None:
    cells = {row[0]: dict(zip(report.COLUMNS, row, strict=True)) for row in report.table(result["rows"])}
    row = result["rows"]["trend"]
    assert cells["trend"]["Sharpe [95 %]"].startswith(f"{row['sharpe']:.2f} [")
    assert cells["trend"]["total return [95 %]"].startswith(f"{100 * row['total_return']:.1f} %")
    assert cells["idle"]["break-even"] == "-"
    forever = {**row, "break_even_cost_scale": None}
    assert report.table({"trend": forever})[0][-1] == "> 5x"


def test_the_rows_of_a_report_are_plain_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result["rows"], allow_nan=False)) == result["rows"]


def test_a_plot_is_a_png_file(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    path = report.plot(result, tmp_path / "picture.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


def test_a_plot_of_a_ruined_account_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    found = evaluate({"all in": AllIn()}, "PerpFutures", config(**WILD))
    assert report.plot({**found, "baselines": list(BASELINES)}, tmp_path / "picture.png").exists()


def test_without_matplotlib_a_plot_names_the_extra(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*regimegym\[viz\]"):
        report.plot(result, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


# The log of readings of the test split


def test_each_reading_of_a_test_split_is_counted() -> None:
    assert [record_touch(game(), ["a"]) for _ in range(3)] == [1, 2, 3]


def test_an_evaluation_on_test_is_written_down_and_one_on_validation_is_not(own_touch_log: Path) -> None:
    assert evaluate({}, "PerpFutures", config(split="validation"))["touches"] == 0
    assert not touch_log().exists()
    assert evaluate({}, "PerpFutures", config())["touches"] == 1
    found = evaluate({"trend": Trend()}, "PerpFutures", config())
    assert found["touches"] == 2
    assert touch_log().parent == own_touch_log
    lines = [json.loads(line) for line in touch_log().read_text(encoding="utf-8").splitlines()]
    assert [line["agents"] for line in lines] == [[], ["trend"]]
    assert all(line["source"] == BARS for line in lines)
    assert "read 2 time(s)" in "\n".join(report.notes(found))
    assert "was read 1 time(s)" in report.markdown(found, found["rows"]).splitlines()[0]


def test_a_first_reading_and_one_of_another_split_are_not_flagged() -> None:
    first = evaluate({}, "PerpFutures", config())
    assert report.flags(first) == []
    assert report.markdown(first, first["rows"]).startswith("| agent")
    assert report.flags({**first, "touches": 2, "split": "validation"}) == []
    assert "1 time(s) at other dates" in report.flags({**first, "overlapping_touches": 1})[0]


def test_readings_of_other_bars_and_of_other_rows_are_not_counted() -> None:
    assert record_touch(game(), []) == 1
    assert record_touch(game(bars=BARS.replace("seed=1", "seed=2")), []) == 1
    dates = {"train_end": "2020-03-01", "validation_end": "2020-04-01"}
    assert overlapping_touches(game(**dates)) == 1  # but it is told that they have bars in common
    assert record_touch(game(**dates), []) == 1
    assert record_touch(game(), []) == 2
    assert overlapping_touches(game()) == 1
    assert overlapping_touches(game(bars=BARS.replace("seed=1", "seed=2"))) == 0


def test_the_same_data_under_another_name_are_the_same_split() -> None:
    assert record_touch(game(), []) == 1
    assert record_touch(game(bars=register_bars("renamed", load_bars(BARS))), []) == 2
    assert record_touch(game(bars=register_bars("again", replace(load_bars(BARS), source="elsewhere"))), []) == 3


def test_other_arguments_on_the_same_split_are_the_same_split() -> None:
    assert record_touch(game(), []) == 1
    assert record_touch(game(leverage=7.0, taker_fee=0.0), []) == 2


def test_an_unwritable_place_is_said_and_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("REGIMEGYM_CACHE", str(blocked / "below"))
    with caplog.at_level(logging.WARNING):
        assert record_touch(game(), ["a"]) == 1
    assert str(blocked / "below") in caplog.text
    assert evaluate({}, "PerpFutures", config())["touches"] == 1


def test_a_damaged_log_is_tolerated() -> None:
    record_touch(game(), ["a"])
    with open(touch_log(), "ab") as file:
        file.write(b"\xff\xfe half a li\n")
    assert record_touch(game(), ["a"]) == 2


# Several runs


def rows_of(values: list[float], **more: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "total_return": value, "sharpe": 10.0 * value, "max_drawdown": 0.1, "break_even_cost_scale": 1.0 + value,
            "total_return_interval": [0.0, 1.0], "total_return_at_cost_scale": {"0": value, "5": -value},
            "ended_by": "", "bars": 100, **{name: column[place] for name, column in more.items()},
        }
        for place, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 10.0], 2.5), ([5.0], 5.0), ([1.0, 2.0, 6.0], 3.0), ([9.0, 1.0, 2.0, 3.0, -50.0], 2.0),
        ([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0], 4.5),
    ],
)  # fmt: skip
def test_several_runs_become_their_interquartile_mean(values: list[float], expected: float) -> None:
    merged = over_seeds(rows_of(values))
    assert merged["runs"] == len(values)
    assert merged["total_return"] == pytest.approx(expected)
    assert merged["sharpe"] == pytest.approx(10.0 * expected)
    assert merged["total_return_at_cost_scale"] == {"0": pytest.approx(expected), "5": pytest.approx(-expected)}
    low, high = merged["total_return_interval"]
    assert min(values) <= low <= merged["total_return"] <= high <= max(values)
    assert over_seeds(rows_of(values)) == merged


def test_the_interval_over_runs_is_not_that_of_one_run() -> None:
    assert over_seeds(rows_of([0.1, 0.2, 0.3, 0.4]))["total_return_interval"] != [0.0, 1.0]


def test_the_ends_of_several_runs_are_listed_once_each() -> None:
    merged = over_seeds(rows_of([0.1, 0.2, 0.3, 0.4], ended_by=["ruin", "", "liquidation", "ruin"]))
    assert merged["ended_by"] == "liquidation, ruin"


@pytest.mark.parametrize("scales", [[1.0, None, 2.0, 3.0], [None, 1.0, 2.0, 3.0], [None] * 4], ids=str)
def test_runs_of_which_some_never_stop_earning_have_a_break_even_that_says_so(scales: list[float | None]) -> None:
    merged = over_seeds(rows_of([0.1, 0.2, 0.3, 0.4], break_even_cost_scale=scales, turnover_per_year=[5.0] * 4))
    value = merged.get("break_even_cost_scale")
    if None in scales and any(scales):  # sorted, the largest is cut: the middle half is 2 and 3
        assert value == pytest.approx(2.5)
    else:
        assert value is None


def test_merged_runs_can_be_shown_in_the_report() -> None:
    row = score(walk(Trend(), game(), COST_SCALES), HOURS)
    merged = over_seeds([row] * 4)
    assert merged["sharpe"] == pytest.approx(row["sharpe"])
    assert len(report.table({"trend, 4 runs (IQM)": merged})[0]) == len(report.COLUMNS)


def test_a_split_of_one_bar_is_refused_before_anything_is_walked() -> None:
    from envs.perp_futures import PerpFuturesConfig
    from markets.errors import ConfigError

    with pytest.raises(ConfigError, match="1 bar to trade"):
        evaluate({}, "PerpFutures", PerpFuturesConfig(bars=BARS, split="validation", episode_bars=1))
