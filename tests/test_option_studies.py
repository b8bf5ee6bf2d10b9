"""The option studies: each figure against a market whose answer is known, and against one that is wrong on purpose."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import regimegym
from agents import option_shortfall
from agents.option_calibration import calibrate, snapshots, spreads
from agents.option_fairness import STRADDLE, fairness, markets_of, row
from agents.option_shortfall import plan, shortfall
from agents.session_intervals import deviation, mean, ratio, session_interval
from envs import zero_dte_columns as c
from envs.make import game_of
from envs.zero_dte import ZeroDTE
from envs.zero_dte_config import ZeroDTEConfig
from markets import option_grid, sources
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.option_contract import SameDayOption
from markets.option_quotes import smile_at, smile_price, spread_in_ticks, time_factor

SEED = 23
DATA, REAL_GRID = os.environ.get("REGIMEGYM_DATA"), "spxw_0dte_mid_grid.parquet"
MARKET = "synthetic:spy?seed=3&sessions=12&start=2024-08-22"  # some sessions before and some after September begins


def quoted(bars: Bars, late: int = 0) -> pd.DataFrame:
    """A grid that the model itself quotes from twice the index's volatility, at 09:35, 11:00 and 14:00."""
    game = ZeroDTE.game(ZeroDTEConfig(bars=bars, vix_ratio=2.58))
    slopes, curvatures = SameDayOption().convex_smile
    rows = []
    for row_ in np.flatnonzero(np.isin(game.market[:, c.MINUTE], (5, 90, 270)) & (game.market[:, c.SESSION_BARS] > 0)):
        m = game.market[row_ + late]
        spot, left, count = 10.025 * m[c.CLOSE], m[c.LEFT], m[c.SESSION_BARS]
        slope, curvature = smile_at(left, count, *slopes), smile_at(left, count, *curvatures)
        for strike in 5.0 * np.round(spot / 5.0) + 5.0 * np.arange(-8, 9):
            for side, right in ((1.0, "C"), (-1.0, "P")):
                mid = smile_price(side, spot, strike, m[c.DEVIATION], slope, curvature)
                rows.append((bars.time[row_], strike, right, mid, spot))
    return pd.DataFrame(rows, columns=["timestamp", "strike", "right", "mid", "underlying"])


def with_grid(bars: Bars, grid: pd.DataFrame) -> Bars:
    return replace(bars, atm_volatility=option_grid.column(grid, bars.time))


def errors_of(result: dict[str, Any], iv: str, smile: str = "default", days: str = "all") -> float:
    rows = [r for r in result["mids"] if (r["iv"], r["smile"], r["days"]) == (iv, smile, days)]
    return float(rows[0]["median error"])


def test_calibration_finds_no_error_in_what_the_model_quotes_and_finds_a_wrong_level_and_minute() -> None:
    bars = sources.load(MARKET)
    grid = quoted(bars)
    result = calibrate(with_grid(bars, grid), grid)
    assert errors_of(result, "grid") < 0.003  # between two strikes the smile is read as a line
    assert errors_of(result, "grid", "before-2024-09") > errors_of(result, "grid")
    assert errors_of(result, "vix") > 0.2, "half the volatility"
    late = quoted(bars, late=60)
    assert errors_of(calibrate(with_grid(bars, late), late), "grid") > 3.0 * errors_of(result, "grid"), (
        "of an hour later"
    )
    said = {(r["smile"], r["days"]): r["smile is"] for r in result["mids"]}
    assert said[("default", "from 2024-09-01")] == "in sample"
    assert said[("before-2024-09", "from 2024-09-01")] == "out of sample"
    assert said[("before-2024-09", "before 2024-09-01")] == "in sample"
    assert {r["at"] for r in result["by_time"]} == {"09:35", "11:00", "14:00"}
    assert (
        sum(r["n"] for r in result["by_time"] if (r["iv"], r["smile"]) == ("grid", "default")) == result["mids"][0]["n"]
    )


@pytest.mark.skipif(not (DATA and (Path(DATA) / REAL_GRID).exists()), reason="REGIMEGYM_DATA has no SPXW mids")
def test_a_session_s_own_mids_price_real_sessions_better_than_the_index() -> None:
    pytest.importorskip("pyarrow")
    source = f"parquet:spy_1m.parquet?market=spy&vix=vix_daily.parquet&grid={REAL_GRID}&start=2024-08-20&end=2024-09-13"
    result = calibrate(sources.load(source), pd.read_parquet(Path(DATA or "") / REAL_GRID))
    found = {iv: errors_of(result, iv, "before-2024-09", "from 2024-09-01") for iv in ("grid", "vix")}
    print(found)
    assert found["grid"] < 0.08
    assert found["grid"] < 0.7 * found["vix"]


def test_a_snapshot_of_another_time_than_its_index_is_left_out() -> None:
    bars = sources.load(MARKET)
    grid = quoted(bars)
    apart = grid["timestamp"] == grid["timestamp"].iloc[0]
    moved = grid.assign(underlying=np.where(apart, 1.001 * grid["underlying"], grid["underlying"]))
    results = [calibrate(with_grid(bars, grid), table) for table in (grid, moved)]
    assert [result["snapshots_left_out"] for result in results] == [0, 1]
    assert results[1]["snapshots"] == results[0]["snapshots"] - 1
    with pytest.raises(DataError, match="no snapshot of the grid falls on the bars"):
        calibrate(with_grid(bars, grid), grid.assign(timestamp=grid["timestamp"] + pd.Timedelta(weeks=52)))


def test_modelled_spreads_equal_quotes_that_the_model_made() -> None:
    spy, rows = SameDayOption(), []
    start = pd.Timestamp("2025-02-03T14:30", tz="UTC")
    for minute in range(390):
        for strike, premium in ((6000.0, 0.3), (5990.0, 3.0), (5900.0, 12.0)):
            factor = time_factor(389.0 - minute + 1.0, 390.0, spy.spread_opening, spy.spread_early, spy.spread_closing)
            ticks = spread_in_ticks(premium, factor, 1.0, 1.0, spy.spread_rows)
            half = 10.025 * 0.005 * ticks
            rows.append(
                (start + pd.Timedelta(minutes=minute), strike, "C", 10.025 * premium - half, 10.025 * premium + half)
            )
    quotes = pd.DataFrame(rows, columns=["timestamp", "strike", "right", "bid", "ask"])
    for found in spreads(quotes, spy, 10.025)[0]:
        assert found["measured mean"] == pytest.approx(found["model mean"], rel=1e-6)
    doubled = quotes.assign(ask=quotes["ask"] + (quotes["ask"] - quotes["bid"]))
    assert any(found["measured mean"] > 1.5 * found["model mean"] for found in spreads(doubled, spy, 10.025)[0])
    with pytest.raises(DataError, match="quotes: column 'ask' is missing"):
        spreads(quotes.drop(columns="ask"), spy, 10.025)


def some_quotes() -> pd.DataFrame:
    start = pd.Timestamp("2025-02-03T14:30", tz="UTC")
    rows = [
        (start + pd.Timedelta(seconds=12 * k), strike, right, 9.0, 9.5, 6000.0)
        for k in range(10)
        for strike, right in ((6000.0, "C"), (6000.0, "P"), (5950.0, "P"))
    ]
    return pd.DataFrame(rows, columns=["timestamp", "strike", "right", "bid", "ask", "forward_parity"])


def test_quotes_of_any_writing_are_read_alike_and_what_is_left_out_is_counted() -> None:
    spy, quotes = SameDayOption(), some_quotes()
    wanted, counts = spreads(quotes, spy, 10.025)
    assert counts["quotes"] == 6
    assert {reason: n for reason, n in counts["quotes_left_out"].items() if n} == {"later in their minute": 24}
    epoch = quotes["timestamp"].dt.tz_localize(None).astype("datetime64[ms]").astype("int64")
    for same in (
        quotes.rename(columns=str.upper), quotes.assign(timestamp=epoch),
        quotes.assign(right=quotes["right"].str.lower()),
        quotes.assign(timestamp=quotes["timestamp"].dt.tz_localize(None)), quotes.astype({"right": "category"}),
        quotes.assign(bid=quotes["bid"].astype(str)),
    ):  # fmt: skip
        assert spreads(same, spy, 10.025) == (wanted, counts)
    worse = pd.concat([
        quotes.head(2).assign(bid=10.0), quotes.head(3).assign(ask=np.nan), quotes.head(1).assign(bid=-1.0),
        quotes.head(5).assign(timestamp=quotes["timestamp"] - pd.Timedelta(hours=1)),
        quotes.head(6).assign(timestamp=pd.Timestamp("2010-02-03T15:00", tz="UTC")),
        quotes.head(7).assign(bid=0.0, ask=0.0), quotes.head(8).assign(forward_parity=np.nan),
        quotes.head(1).assign(strike=600.0), quotes,
    ], ignore_index=True)  # fmt: skip
    found, counted = spreads(worse, spy, 10.025)
    assert found == wanted, "a bad quote does not stand in the way of the minute's first good one"
    assert counted["quotes_left_out"] == {
        "outside the sessions": 11, "without a number": 4, "crossed": 2, "at a price of 0": 7,
        "far from the parity forward": 9, "later in their minute": 24,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q[:0], "quotes: the table has no rows"),
        (lambda q: q.assign(timestamp=q["timestamp"] + pd.Timedelta(hours=9)), "30 rows is usable: 30 outside the ses"),
        (lambda q: q.assign(forward_parity=np.nan), "30 rows is usable: 30 far from the parity forward"),
        (lambda q: q.assign(bid=q["ask"] + 1.0), "30 rows is usable: 30 crossed"),
        (lambda q: q.assign(bid=["x", *q["bid"][1:]]), "column 'bid', row 0: 'x' is not a number"),
        (lambda q: q.assign(timestamp=q["timestamp"].where(q.index != 3)), "column 'timestamp', row 3: NaT is not a"),
        (lambda q: q.assign(BID=1.0), "column 'bid' is there twice"),
    ],
)
def test_quotes_that_say_nothing_are_refused(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        spreads(change(some_quotes()), SameDayOption(), 10.025)
    for points in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="points="):
            spreads(some_quotes(), SameDayOption(), points)


def test_a_grid_of_any_writing_gives_the_same_snapshots_and_a_useless_one_is_refused() -> None:
    bars = sources.load(MARKET)
    grid = quoted(bars)
    wanted, left_out = snapshots(bars, grid)
    epoch = grid["timestamp"].astype("datetime64[ms]").astype("int64")
    for same in (
        grid.rename(columns=str.upper), grid.assign(timestamp=epoch), grid.assign(underlying=np.nan),
        grid.assign(underlying=grid["underlying"].astype(str)),
    ):  # fmt: skip
        found, said = snapshots(bars, same)
        pd.testing.assert_frame_equal(found, wanted)
        assert said == left_out
    stamp, text = grid["timestamp"].where(grid.index != 3), grid["underlying"].astype(str) + "x"
    for bad, message in (
        (grid.assign(underlying=0.0), r"none of 36 snapshots on the bars is usable: the parity forward of 36 is"),
        (grid.assign(underlying=-1.0), "the parity forward of 36"),
        (grid.assign(underlying=text), "column 'underlying', row 0: .*x' is not a number"),
        (grid.assign(timestamp=stamp), "column 'timestamp', row 3"),
        (grid[grid["right"] == "C"], "the others have no strike with both mids"),
        (grid[:0], "no snapshot of the grid falls on the bars"),
    ):
        with pytest.raises(DataError, match=message):
            snapshots(bars, bad)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_over_sessions_is_that_of_the_central_limit() -> None:
    values = np.random.default_rng(SEED).normal(2.0, 3.0, 4_000)
    value, low, high = session_interval(values, mean)
    assert value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(4_000), rel=0.1)
    value, low, high = session_interval(values, deviation)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(8_000), rel=0.1)
    pair = np.stack([3.0 * np.abs(values), np.abs(values)], axis=1)
    assert session_interval(pair, ratio) == pytest.approx((3.0, 3.0, 3.0))
    with pytest.raises(ConfigError, match="1 sessions have no interval"):
        session_interval(values[:1], mean)


# --- fairness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio_of_index", "holds"), [(1.29, True), (1.6, False), (1.0, False)])
def test_straddles_on_generated_sessions_are_fair_at_the_index_and_nowhere_else(
    ratio_of_index: float, holds: bool
) -> None:
    result = fairness(markets_of(600, [1, 2]), settings={"vix_ratio": ratio_of_index}, draws=200)
    pooled = result["rows"][-1]
    print({name: pooled[name] for name in ("payoff / price", "realised / implied", "buyer loses", "seller loses")})
    assert result["holds"] == holds
    assert pooled["market"] == "all"
    assert pooled["sessions"] == 1_200


def test_buyer_and_seller_together_lose_spread_and_fees_to_the_cent() -> None:
    random = np.random.default_rng(SEED)
    sessions = random.uniform(1.0, 3.0, (500, len(STRADDLE)))
    found = row(sessions, 0.0012, draws=50)
    both = found["buyer loses"][0] + found["seller loses"][0]
    assert both == pytest.approx(2.0 * found["spread and fees"], rel=1e-9)
    assert found["payoff / price"][0] == pytest.approx((sessions[:, 0] / sessions[:, 1]).mean())
    with pytest.raises(ConfigError, match="minute=400 must be from 0 to 388"):
        fairness(["synthetic:spy?seed=1&sessions=6"], [400])


# --- fills ------------------------------------------------------------------------------------------------------------

FILLS = "synthetic:spy?seed=5&sessions=300"


def figures(result: dict[str, Any], fill: str, side: str) -> dict[str, Any]:
    return next(row_ for row_ in result["rows"] if (row_["fill"], row_["side"]) == (fill, side))


def test_a_market_order_pays_half_the_spread_and_the_fee_and_is_not_selected() -> None:
    result = shortfall(FILLS, [0], {"entry_cut_off": 60.0}, draws=300)
    bought = figures(result, "market", "buy")
    game = game_of("ZeroDTE", ZeroDTEConfig(bars=FILLS, fill="market", entry_cut_off=60.0))
    chosen = plan(game, 0)
    place = np.where(chosen["right"] > 0, c.CALL_STRIKE, c.PUT_STRIKE)
    rows = chosen["row"] + chosen["enter"]
    spread = 100.0 * (game.market[rows, place + 2] - game.market[rows, place + 1])
    assert bought["fill rate"] == (1.0, 1.0, 1.0)
    assert bought["at the fill"][0] == pytest.approx(0.5 * spread.mean() + 0.06, rel=0.15)
    assert bought["selection"][1] < 0.0 < bought["selection"][2]
    free = shortfall(FILLS, [0], {"entry_cut_off": 60.0, "cost_scale": 0.0}, draws=50)
    assert figures(free, "market", "buy")["at the fill"][0] < 0.9 * bought["at the fill"][0]


def test_limit_orders_are_selected_unless_nobody_knows_more_and_fill_by_the_worked_example() -> None:
    known = shortfall(FILLS, [0, 1], draws=100)
    blind = shortfall(FILLS, [0, 1], {"selection": 0.0}, draws=100)
    assert figures(known, "limit", "buy")["selection"][1] > 0.5
    assert figures(blind, "limit", "buy")["selection"][0] < 0.4 * figures(known, "limit", "buy")["selection"][0]
    assert blind["first_minute"]["even"]["filled"][1] < 0.75
    assert blind["first_minute"]["even"]["filled"][2] > 0.5934
    assert blind["first_minute"]["odd"]["filled"][2] < blind["first_minute"]["even"]["filled"][1]
    assert known["saved"]["buy"][2] < 0.0, "the default fills pick limit orders off by more than half a spread"


def test_both_kinds_of_orders_are_played_on_the_same_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = option_shortfall._orders

    def noted(game: Any, decisions: Any, seed: int) -> Any:
        seen.append((game.contract[c.FILL_MODE], {name: value.tobytes() for name, value in decisions.items()}))
        return real(game, decisions, seed)

    monkeypatch.setattr(option_shortfall, "_orders", noted)
    shortfall("synthetic:spy?seed=5&sessions=30", [4], draws=20)
    (first, one), (second, two) = seen
    assert first != second
    assert one == two
    with pytest.raises(ConfigError, match="fill is what is compared"):
        shortfall("synthetic:spy?seed=5&sessions=30", [4], {"fill": "limit"})
    with pytest.raises(ConfigError, match="entry_cut_off=208 leaves no minute to buy in"):
        shortfall("synthetic:spy?seed=5&sessions=30&early_close=only", [4], {"entry_cut_off": 208.0})


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_writes_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    bars = sources.load(MARKET)
    frame = pd.DataFrame(
        {name: bars.columns[name][:, 0] for name in ("open", "high", "low", "close", "volume", "previous_vix")}
    )
    frame.insert(0, "timestamp", bars.time)
    frame.to_csv(tmp_path / "spy.csv", index=False)
    quoted(bars).to_csv(tmp_path / "grid.csv", index=False)
    out = ["--out", str(tmp_path / "out"), "--png"]
    calls = {
        "calibration": ["--bars", f"csv:{tmp_path}/spy.csv?market=spy", "--grid", f"{tmp_path}/grid.csv"],
        "fairness": ["--sessions", "60", "--seeds", "1..2"],
        "fills": ["--sessions", "40", "--seeds", "0..0", "--env-arg", "risk=0.01"],
    }
    for study, flags in calls.items():
        assert regimegym.main(["option-study", study, *flags, *out]) in (0, 1)
        printed = capsys.readouterr().out
        assert printed == (tmp_path / "out" / f"{study}.txt").read_text()
        assert json.loads((tmp_path / "out" / f"{study}.json").read_text())
        assert (tmp_path / "out" / f"{study}.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["calibration"], "calibration needs --bars SPEC and --grid FILE"),
        (["fairness", "--grid", "x"], "--grid is of calibration, not of fairness"),
        (["fills", "--seeds", "3..1"], "ends before it begins"),
        (["fills", "--bars", "synthetic:spy?sessions=9", "--sessions", "9"], "--sessions is of generated bars"),
        (["fairness", "--minutes", "x"], "--minutes: 'x' is not a whole number"),
        (["fairness", "--png"], "--png needs --out"),
        (["fairness", "--env-arg", "nonsense=3"], "unknown argument of ZeroDTE-v0 'nonsense'"),
        (["fairness", "--env-arg", "minutes=3"], "unknown argument of ZeroDTE-v0 'minutes'"),
        (["fills", "--env-arg", "draws=5"], "unknown argument of ZeroDTE-v0 'draws'"),
        (["fairness", "--env-arg", "bars=x"], "--env-arg bars='x': fairness is of the generated markets"),
        (["fills", "--env-arg", "bars=x"], "--env-arg bars='x': give the bars of fills with --bars"),
        (["fills", "--env-arg", "actions=sized"], "actions is 'discrete' here"),
        (["fairness", "--sessions", "0"], "--sessions 0 must be from 1 to 50,000"),
        (["fills", "--sessions", "0"], "--sessions 0 must be from 1 to 50,000"),
        (["calibration", "--sessions", "0"], "--sessions is of fairness and fills, not of calibration"),
        (["fairness", "--sessions", "1e15"], "must be from 1 to 50,000"),
        (["calibration", "--bars", "x", "--grid", "y", "--points", "0"], "--points 0 is of --quotes FILE"),
        (["fills", "--seeds", "1..99999999999"], "'1..99999999999' are 99,999,999,999 numbers: at most 1,000"),
        (["fairness", "--seeds", "9" * 5000], "of at most 15 digits"),
        (["fairness", "--sessions", "4", "--seeds", "1", "--minutes", "389"], "minute=389 must be from 0 to 388"),
        (["calibration", "--bars", "synthetic:spy?sessions=9", "--grid", "nowhere.csv"], "no file 'nowhere.csv'"),
    ],
)
def test_the_verb_says_what_is_wrong(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert regimegym.main(["option-study", *flags]) == 2
    assert message in capsys.readouterr().err
