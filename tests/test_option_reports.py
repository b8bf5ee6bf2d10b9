"""Ledger of trades, statistics by session, intervals over sessions, cost scales and refusals of an option report."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from agents import daily, metrics, report, trades
from agents.agent import Agent
from agents.baselines import AtOpen, Idle, RandomLegal
from agents.evaluation import COST_SCALES, Walk, evaluate, score, scored_curve, walk
from agents.option_samples import model_in_sample
from agents.trades import FORCED, SETTLED, SOLD, OptionTrades
from envs import zero_dte_columns as c
from envs.make import game_of
from envs.simulation import Game
from envs.zero_dte_config import ZeroDTEConfig
from markets import sources
from markets.errors import ConfigError

BARS = "synthetic:spy?seed=3&sessions=30"  # 6 of them in each of validation and test
HALF = "synthetic:spy?seed=3&sessions=15&early_close=only"  # 3 of 210 minutes
CENT = 0.005
SEED = 13


@pytest.fixture(autouse=True)
def own_touch_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's log of test readings stays out of reach."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))


def game(**arguments: Any) -> Game:
    return game_of("ZeroDTE", ZeroDTEConfig(**{"bars": BARS, "split": "validation", **arguments}))


class LastMinute(Agent):
    """Buys a call with one minute left, which is bought and settled in the same step."""

    name = "last minute"
    reads = ("hours_to_close",)

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        return np.where(columns[:, :1] < 1.5 / 390.0, 1.0, 0.0).astype(np.float32), state


def often() -> Agent:
    player = RandomLegal(SEED)
    player.share = 0.4
    return player


# --- the ledger -------------------------------------------------------------------------------------------------------


def check_ledger(walked: Walk) -> None:
    """The cash of the trades is the change of equity, in total and session by session, and so are their items."""
    days, base = walked.days, walked.scales.index(1.0)
    assert days is not None
    assert days.trades, "nothing was traded: the test is empty"
    assert math.fsum(trade.pnl for trade in days.trades) == pytest.approx(days.pnl[:, base].sum(), abs=CENT)
    for place, date in enumerate(days.date):
        of_day = [trade for trade in days.trades if trade.session == str(date)]
        assert math.fsum(trade.pnl for trade in of_day) == pytest.approx(days.pnl[place, base], abs=CENT), date
    for trade in days.trades:
        items = trade.market_pnl - trade.fee - trade.spread_cost - trade.lapse
        assert trade.pnl == pytest.approx(items, abs=CENT)
        priced = 100.0 * trade.contracts * (trade.exit_price - trade.entry_price) - trade.fee
        assert trade.pnl == pytest.approx(priced, abs=CENT)
        assert trade.contracts == int(trade.contracts) > 0
        assert trade.opened <= trade.closed
        assert trade.exit in (SOLD, FORCED, SETTLED)
    for name in ("fee", "spread_cost", "market_pnl", "lapse"):
        booked = math.fsum(getattr(trade, name) for trade in days.trades)
        assert booked == pytest.approx(walked.items[name][base], abs=CENT), name


GAMES: dict[str, dict[str, Any]] = {
    "limit orders": {},
    "market orders": {"fill": "market"},
    "few offered": {"fill": "market", "offered": 3.0},
    "held to the close, cash": {"forced_exit": None, "settlement": "cash_equivalent"},
    "held to the close, shares": {
        "forced_exit": None, "settlement": "physical", "risk": 0.005, "initial_equity": 1_000_000.0,
    },
    "sized": {"actions": "sized"},
    "other costs": {"cost_scale": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("make", [often, lambda: AtOpen(1, "call"), lambda: AtOpen(2, "put")], ids=["often", "C", "P"])
def test_the_ledger_adds_up_to_the_change_of_equity_to_the_cent(make: Callable[[], Agent], name: str) -> None:
    check_ledger(walk(make(), game(**GAMES[name])))


def test_every_way_out_is_met_and_told_apart() -> None:
    held = GAMES["held to the close, cash"]
    walks = [walk(often(), game()), walk(AtOpen(1, "call"), game()), walk(AtOpen(1, "call"), game(**held))]
    ways = [{trade.exit for trade in (walked.days or _none()).trades} for walked in walks]
    assert ways[0] >= {SOLD}
    assert ways[1] >= {FORCED}
    assert ways[2] == {SETTLED}


def _none() -> Any:
    raise AssertionError("no sessions")


def test_a_call_bought_and_settled_in_one_step_is_in_the_ledger_with_its_strike() -> None:
    market = game(fill="market", forced_exit=None, settlement="cash_equivalent", entry_cut_off=0.0)
    walked = walk(LastMinute(), market)
    check_ledger(walked)
    assert walked.days is not None
    assert len(walked.days.trades) == 6
    for trade in walked.days.trades:
        row = market.bars.row_at(np.datetime64(trade.opened))
        assert (trade.right, trade.strike) == ("call", market.market[row - 1, c.CALL_STRIKE])
        assert trade.minutes == 0
        assert trade.exit == SETTLED


FAULTS: dict[str, Callable[[Any, Any], None]] = {
    "a fee that is forgotten": lambda book, account: account.__setitem__(c.FEE, 0.0),
    "a price a cent off": lambda book, account: account.__setitem__(c.FILL_PRICE, account[c.FILL_PRICE] + 0.01),
    "a settlement that is lost": lambda book, account: account.__setitem__(c.SETTLEMENT, 0.0),
    "a contract too many": lambda book, account: account.__setitem__(c.FILL_QUANTITY, 1.01 * account[c.FILL_QUANTITY]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_ledger_with_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = OptionTrades.step

    def step(self: OptionTrades, account: Any) -> None:
        spoilt = account.copy()
        FAULTS[fault](self, spoilt)
        honest(self, spoilt)

    monkeypatch.setattr(OptionTrades, "step", step)
    with pytest.raises(AssertionError):
        check_ledger(walk(AtOpen(1, "call"), game(forced_exit=None, settlement="cash_equivalent")))


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_scores_are_of_sessions_and_falls_of_minutes() -> None:
    walked = walk(often(), game(), COST_SCALES)
    row, days = score(walked, 98_280.0), walked.days
    assert days is not None
    pnl = days.pnl[:, 1]
    returns = pnl / 100_000.0
    assert row["total_return"] == pytest.approx(np.prod(1.0 + returns) - 1.0, rel=1e-12)
    assert row["total_return"] == pytest.approx(walked.equity[-1, 1] / walked.equity[0, 1] - 1.0, rel=1e-9)
    assert row["sharpe"] == pytest.approx(returns.mean() / returns.std(ddof=1) * math.sqrt(252.0))
    assert row["mean_session_pnl"] == pytest.approx(pnl.mean())
    assert row["total_pnl"] == pytest.approx(pnl.sum())
    assert row["years"] == pytest.approx(6 / 252)
    assert (row["sessions"], row["decisions"], row["illegal_actions"]) == (6, 6 * 389, 0.0)
    assert row["max_drawdown"] == metrics.max_drawdown(walked.equity[:, 1]) > metrics.max_drawdown(days.curve(1))
    assert row["trades"] == len(days.trades)
    assert row["trades_won"] == np.mean([trade.pnl > 0.0 for trade in days.trades])
    curve, periods = scored_curve(walked, 1, 98_280.0)
    assert (len(curve), periods) == (7, 252.0)
    json.dumps(row, allow_nan=False)


def test_intervals_hold_the_score_and_resample_sessions_only() -> None:
    """Minutes shuffled within a session change no interval but that of the drawdown."""
    walked = walk(AtOpen(1, "call"), game(), COST_SCALES)
    row = score(walked, 98_280.0)
    for name in ("total_return", "sharpe", "max_drawdown", "mean_session_pnl"):
        low, high = row[f"{name}_interval"]
        assert low < high, name
        assert low <= row[name] <= high, name
    mixed = walked.equity.copy()
    for first in (walked.days or _none()).first:
        mixed[first + 1 : first + 389] = mixed[first + 1 : first + 389][::-1]
    other = score(replace(walked, equity=mixed), 98_280.0)
    for name in ("total_return", "sharpe", "mean_session_pnl"):
        assert other[f"{name}_interval"] == row[f"{name}_interval"]
    assert other["max_drawdown_interval"] != row["max_drawdown_interval"]


def lost_in(days: Any, equity: Any, place: int) -> tuple[Any, Any]:
    """The same walk, with a session that loses everything by its last minute."""
    pnl = days.pnl.copy()
    pnl[place] = -days.start
    parts = [part / part[0] for part in np.split(equity[:, 0], days.first[1:])]
    parts[place] = parts[place] * np.linspace(1.0, 0.0, len(parts[place]))
    chained, curve = 1.0, []
    for part in parts:
        curve.append(chained * part)
        chained = max(chained * part[-1], metrics.RUIN)
    return replace(days, pnl=pnl), np.repeat(days.start * np.concatenate(curve)[:, None], 2, axis=1)


def test_a_total_loss_has_finite_intervals_of_the_returns_that_are_scored() -> None:
    walked = walk(often(), game(fill="market"), (0.0, 1.0))
    assert walked.days is not None
    days, equity = lost_in(walked.days, walked.equity, 2)
    row = score(replace(walked, days=days, equity=equity), 525_600.0)
    assert row["total_return"] == pytest.approx(metrics.RUIN - 1.0)
    assert row["total_return_at_cost_scale"]["1"] == row["total_return"]
    assert row["max_drawdown"] == pytest.approx(1.0, abs=2e-6)
    for name in ("total_return", "sharpe", "max_drawdown", "mean_session_pnl"):
        low, high = row[f"{name}_interval"]
        assert np.isfinite([low, high]).all(), name
        assert low <= row[name] <= high, name
    scored = metrics.simple_returns(days.curve(0))
    assert scored[3:].tolist() == [0.0] * (len(scored) - 3), "nothing is left to earn on"
    once = np.arange(len(scored))[None]
    assert daily._drawdowns(days.first, equity[:, 0], once)[0] == pytest.approx(row["max_drawdown"])
    falls = [one["max_drawdown"] for one in daily.rows_of("a", days, equity[:, 0], 0)]
    assert falls[2] == pytest.approx(1.0, abs=2e-6)
    parts = np.split(walked.equity[:, 0], days.first[1:])
    assert falls[3:] == pytest.approx([metrics.max_drawdown(part) for part in parts[3:]])
    assert max(falls[3:]) > 0.0, "the sessions after it have falls of their own"


@pytest.mark.parametrize(
    ("start", "source", "arguments", "says"),
    [
        ("2025-05-01", "frame", {}, "default smile and vix_ratio were fitted on sessions of 2023-11 to 2025-06"),
        ("2025-05-01", "frame", {"smile": "-0.05,-0.04,0.03,0.05"}, "default vix_ratio was fitted"),
        ("2025-05-01", "frame", {"vix_ratio": 1.2}, "default smile was fitted"),
        ("2025-05-01", "frame", {"smile": "-0.05,-0.04,0.03,0.05", "vix_ratio": 1.2}, ""),
        ("2025-05-01", "", {}, ""),
        ("2025-07-01", "frame", {}, ""),
        ("2023-09-01", "frame", {}, ""),
    ],
)
def test_a_report_says_that_the_model_was_fitted_on_its_split(
    start: str, source: str, arguments: dict[str, Any], says: str
) -> None:
    bars = sources.load(f"synthetic:spy?seed=3&sessions=15&start={start}")
    real = replace(bars, source=source) if source else bars
    found = model_in_sample(game(bars=real, **arguments))
    assert bool(found) == bool(says)
    if start == "2025-05-01" and not (arguments.get("vix_ratio") and source):
        config = ZeroDTEConfig(bars=real, split="validation", **arguments)
        notes = report.notes(evaluate({}, "ZeroDTE", config))
        assert [note for note in notes if "IN SAMPLE" in note] == [note for note in notes if says and says in note]
        assert len([note for note in notes if "IN SAMPLE" in note]) == len(found[:1])


class FarCalls(Agent):
    """Puts everything on calls far out of the money whenever it may."""

    name = "far calls"

    def predict(
        self, obs: Any, state: Any = None, start: Any = None, deterministic: bool = True, action_masks: Any = None
    ) -> tuple[Any, Any]:
        return np.where(action_masks[:, 1], 1.0, 0.0)[:, None], state


def test_an_account_that_loses_everything_is_reported() -> None:
    result = evaluate({"far": FarCalls()}, "ZeroDTE", ZeroDTEConfig(
        bars=BARS, split="validation", risk=1.0, fill="market", forced_exit=None, entry_cut_off=0.0, strike_offset=6,
        initial_equity=100.0, fee=0.0,
    ))  # fmt: skip
    walked, row = result["walks"]["far"], result["rows"]["far"]
    assert walked.days.returns(walked.scales.index(1.0)).min() < metrics.RUIN - 1.0, "a total loss happened"
    assert np.isfinite([bound for name in row if name.endswith("_interval") for bound in row[name]]).all()
    for lane in range(len(walked.scales)):
        assert daily.rows_of("far", walked.days, walked.equity[:, lane], lane)


def test_a_resampled_drawdown_is_that_of_the_sessions_put_one_after_the_other() -> None:
    walked = walk(often(), game())
    days, equity = walked.days, walked.equity[:, 0]
    assert days is not None
    orders = np.stack([np.arange(6), *np.random.default_rng(SEED).integers(0, 6, (20, 6))])
    found = daily._drawdowns(days.first, equity, orders)
    assert found[0] == pytest.approx(metrics.max_drawdown(equity))
    parts = [part / part[0] for part in np.split(equity, days.first[1:])]
    for order, deepest in zip(orders, found, strict=True):
        joined, level = [1.0], 1.0
        for place in order:
            joined.extend(level * parts[place][1:])
            level *= parts[place][-1]
        assert deepest == pytest.approx(metrics.max_drawdown(joined))
    assert len(np.unique(found)) > 5


def test_one_session_has_scores_and_no_interval() -> None:
    market = game()
    assert market.starts is not None
    assert market.lengths is not None
    alone = replace(market, starts=market.starts[:1], lengths=market.lengths[:1])
    row = score(walk(AtOpen(1, "call"), alone, COST_SCALES), 98_280.0)
    assert row["total_return_interval"] is None is row["mean_session_pnl_interval"]
    assert row["total_return"] != 0.0 == row["sharpe"]
    assert report.table({"call": row})[0][0] == "call"
    json.dumps(row, allow_nan=False)


def test_an_idle_account_scores_zero() -> None:
    row = score(walk(Idle(), game(), COST_SCALES), 98_280.0)
    for name in ("total_return", "sharpe", "max_drawdown", "mean_session_pnl", "trades", "fee", "illegal_actions"):
        assert row[name] == 0.0, name
    assert row["mean_session_pnl_interval"] == [0.0, 0.0]


@pytest.mark.parametrize("own", [1.0, 2.0])
def test_each_lane_equals_a_single_walk_at_its_cost_scale(own: float) -> None:
    together = walk(often(), game(cost_scale=own), COST_SCALES)
    assert together.days is not None
    for lane, scale in enumerate(COST_SCALES):
        alone = walk(often(), game(cost_scale=own * scale))
        assert alone.days is not None
        assert np.array_equal(together.equity[:, lane], alone.equity[:, 0])
        assert np.array_equal(together.days.pnl[:, lane], alone.days.pnl[:, 0])
        for name, totals in together.items.items():
            assert totals[lane] == alone.items[name][0], name


def test_costs_of_the_scales_are_fee_and_spread() -> None:
    """A scale that reached the account alone would leave the spread as it is."""
    walked = walk(AtOpen(1, "call"), game(fill="market"), COST_SCALES)
    assert walked.items["fee"][0] == 0.0
    per_fee = walked.items["spread_cost"] / walked.turnover
    assert np.all(np.diff(per_fee) > 0.0)
    assert per_fee[3] > 2.0 * per_fee[1]


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_ledger_that_reconciles_with_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "report"
    words = [
        "train", "--env", "ZeroDTE-v0", "--algo", "maskable_ppo", "--bars", HALF, "--steps", "512", "--lanes", "8",
        "--set", "n_steps=64", "--evaluations", "0", "--out", str(run), "--device", "cpu", "--quiet",
        "--env-arg", "actions=sized",
    ]  # fmt: skip
    assert regimegym.main(words) == 0
    words = ["evaluate", str(run), "--split", "validation", "--quiet", "--out", str(out)]
    assert regimegym.main(words) == 0
    assert "illegal" in capsys.readouterr().out
    content = json.loads((out / "evaluation-validation.json").read_text(encoding="utf-8"))
    names = ["idle", "random legal", "call at open", "put at open", "maskable_ppo seed 0"]
    assert list(content["table"]) == names
    assert all(row["illegal_actions"] == 0.0 for row in content["table"].values())
    read = {
        what: list(csv.DictReader((out / file).read_text(encoding="utf-8").splitlines()))
        for what, file in content["ledger"].items()
    }
    assert set(read["trades"][0]) == set(trades.COLUMNS)
    for name in names:
        row = content["table"][name]
        sold = [float(line["pnl"]) for line in read["trades"] if line["agent"] == name]
        of_days = [float(line["pnl"]) for line in read["sessions"] if line["agent"] == name]
        assert len(of_days) == 3
        assert len(sold) == row["trades"]
        assert sum(sold) == pytest.approx(row["total_pnl"], abs=CENT * (len(sold) + 1))
        assert sum(of_days) == pytest.approx(row["total_pnl"], abs=CENT * 4)
        counted = sum(int(line["trades"]) for line in read["sessions"] if line["agent"] == name)
        assert counted == len(sold)
    text = (out / "evaluation-validation.md").read_text()
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {len(report.SESSION_COLUMNS) + 1}
    assert "3 sessions, each from the same start equity" in text


def test_a_report_of_perpetuals_has_no_ledger_and_its_own_columns(tmp_path: Path) -> None:
    from envs.perp_futures import PerpFuturesConfig

    config = PerpFuturesConfig(bars="synthetic:crypto?seed=1&interval=1h&bars=2600", split="validation")
    found = evaluate({}, "PerpFutures", config)
    assert found["sessions"] is None
    assert report.write_ledger(found, tmp_path, "name") == {}
    assert list(tmp_path.glob("*.csv")) == []
    assert report.columns(found["rows"]) == report.COLUMNS
    assert not any("illegal_actions" in row for row in found["rows"].values())


def test_a_report_refuses_fills_that_nobody_gets() -> None:
    config = ZeroDTEConfig(bars=HALF, split="test", fill="mid_optimistic")
    with pytest.raises(ConfigError, match="fill='mid_optimistic'") as caught:
        evaluate({"idle again": Idle()}, "ZeroDTE", config)
    assert "'limit' or 'market'" in str(caught.value)
    evaluate({}, "ZeroDTE", replace(config, fill="market", split="validation"))


def test_an_agent_trained_on_such_fills_is_told_so_and_evaluated_on_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = [
        "train", "--env", "ZeroDTE-v0", "--algo", "ppo", "--bars", HALF, "--steps", "128", "--lanes", "8",
        "--set", "n_steps=16", "--evaluations", "0", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet",
        "--env-arg", "fill=mid_optimistic",
    ]  # fmt: skip
    assert regimegym.main(words) == 0
    assert "fills are optimistic" in caplog.text
    capsys.readouterr()
    words = ["evaluate", str(tmp_path / "run"), "--split", "validation", "--quiet"]
    assert regimegym.main(words) == 2
    said = capsys.readouterr().err
    assert "mid_optimistic" in said
    assert "--env-arg fill=limit" in said
    assert regimegym.main([*words, "--env-arg", "fill=limit"]) == 0
