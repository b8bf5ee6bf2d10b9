"""The grid of option mids: what it says, from when on it is known, and that nothing later reaches back."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from envs import zero_dte_columns as c
from envs.make import build
from envs.zero_dte import ZeroDTE
from envs.zero_dte_config import ZeroDTEConfig
from markets import option_grid, sources
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.option_clocks import remaining_share
from markets.option_quotes import smile_price

SPY = "synthetic:spy?seed=3&sessions=6&start=2024-11-27"  # 2024-11-29 closes early
KNOWN = 5  # bar 5 closes at 09:36
DATA = os.environ.get("REGIMEGYM_DATA")
GRID = Path(DATA or "") / "spxw_0dte_mid_grid.parquet"


def volatility_of(day: int) -> float:
    return 0.09 + 0.01 * day


def grid_of(bars: Bars, without: tuple[int, ...] = (), slope: float = 0.0) -> pd.DataFrame:
    """Mids of 11 strikes at 09:35 and 10:00, priced as of 09:36 and 10:01 on the variance clock, in index points."""
    rows = []
    starts = np.flatnonzero(np.diff(bars.time, prepend=bars.time[:1] - bars.interval * 600) > bars.interval)
    for day, first in enumerate(starts.tolist()):
        count = int(np.append(starts, len(bars))[day + 1] - first)
        for minute in (KNOWN, 30):
            if minute == KNOWN and day in without:
                continue
            spot = 10.025 * bars.close[first + minute, 0]
            share = remaining_share(count)[minute + 1]
            deviation = volatility_of(day) * math.sqrt(count / 98280 * share)
            for strike in 5.0 * np.round(spot / 5.0) + 5.0 * np.arange(-5, 6):
                for side, right in ((1.0, "C"), (-1.0, "P")):
                    mid = smile_price(side, spot, strike, deviation * (1.0 + 0.1 * (minute == 30)), slope, 0.0)
                    rows.append((bars.time[first + minute], strike, right, mid))
    return pd.DataFrame(rows, columns=["timestamp", "strike", "right", "mid"])


def with_grid(bars: Bars, table: pd.DataFrame) -> Bars:
    return replace(bars, atm_volatility=option_grid.column(table, bars.time))


def bisected(rows: pd.DataFrame) -> tuple[float, float]:
    """Forward and deviation of flat-smile mids, with none of the project's pricing code."""
    wide = rows.pivot_table(index="strike", columns="right", values="mid")
    forward = float((wide.index + wide["C"] - wide["P"]).median())
    strike = float(wide.index[np.abs(wide.index - forward).argmin()])
    price = float(wide.loc[strike, "C"])

    def call(sd: float) -> float:
        d1 = math.log(forward / strike) / sd + sd / 2
        distribution = [0.5 * (1 + math.erf(d / math.sqrt(2))) for d in (d1, d1 - sd)]
        return forward * distribution[0] - strike * distribution[1]

    low, high = 1e-6, 1.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if call(middle) < price else (low, middle)
    return forward, low


def test_the_value_at_0936_is_that_of_an_independent_bisection() -> None:
    bars = sources.load(SPY)
    table = grid_of(bars)
    values = option_grid.column(table, bars.time)[:, 0]
    assert np.isnan(values[:KNOWN]).all()
    first = table[table["timestamp"] == bars.time[KNOWN]]
    _, deviation = bisected(first)
    assert values[KNOWN] == pytest.approx(deviation / math.sqrt(390 / 98280 * remaining_share(390)[6]), rel=1e-7)
    assert values[KNOWN] == pytest.approx(volatility_of(0), rel=1e-7)
    assert (values[KNOWN:390] == values[KNOWN]).all()
    early = 390  # the second session has 210 bars
    assert np.isnan(values[early : early + KNOWN]).all()
    assert values[early + 209] == pytest.approx(volatility_of(1), rel=1e-7)
    smiled = option_grid.column(grid_of(bars, slope=-0.05), bars.time)[:, 0]
    assert smiled[KNOWN] == pytest.approx(volatility_of(0), rel=5e-3), "between two strikes the smile is a line"


def of_its_label(table: pd.DataFrame, times: Any) -> Any:
    """The mutant: a row known at the minute that it is labelled with."""
    out = option_grid.column(table, times)
    out[:-1] = out[1:]
    return out


def of_any_later_row(table: pd.DataFrame, times: Any) -> Any:
    """The mutant: a session's mids of 10:00 reach back."""
    out = option_grid.column(table, times)
    return out + 1e-3 * table["mid"].iloc[-1:].sum()


@pytest.mark.parametrize(
    ("lookup", "caught"), [(option_grid.column, False), (of_its_label, True), (of_any_later_row, True)]
)
def test_what_the_grid_says_later_changes_nothing_earlier(lookup: Callable[..., Any], caught: bool) -> None:
    bars = sources.load(SPY)
    table = grid_of(bars)
    before = lookup(table, bars.time)
    leaked = False
    for cut in (bars.time[KNOWN], bars.time[30], bars.time[390 + KNOWN]):  # rows labelled from here on are changed
        later = table["timestamp"].to_numpy() >= cut
        other = table.assign(mid=np.where(later, 1.7 * table["mid"], table["mid"]))
        known = bars.time + bars.interval < cut + bars.interval
        after = lookup(other, bars.time)
        leaked |= before[known].tobytes() != after[known].tobytes()
        leaked |= before[known].tobytes() != lookup(table[~later], bars.time)[known].tobytes()
    changed = option_grid.column(table.assign(mid=1.7 * table["mid"]), bars.time)
    assert changed[KNOWN] != option_grid.column(table, bars.time)[KNOWN], "the change matters where it is known"
    assert leaked == caught


def test_the_env_uses_the_index_before_0936_and_the_grid_from_there_on(caplog: pytest.LogCaptureFixture) -> None:
    bars = sources.load(SPY)
    with caplog.at_level(logging.WARNING):
        own = with_grid(bars, grid_of(bars, without=(2,)))
        game = ZeroDTE.game(ZeroDTEConfig(bars=own, iv="grid"))
    assert "1 of 6 sessions have no usable 09:35 mids" in caplog.text
    assert "1 of 3 sessions of split 'train' have no atm_volatility" in caplog.text
    assert game.details["volatility_from"] == {"grid": 2, "vix": 1}
    plain = ZeroDTE.game(ZeroDTEConfig(bars=bars))
    both = slice(0, KNOWN)
    assert game.market[both].tobytes() == plain.market[both].tobytes()
    row = game.market[KNOWN]
    assert row[c.OPEN_DEVIATION] == plain.market[KNOWN, c.OPEN_DEVIATION], "an order fills at what 09:35 knew"
    share = remaining_share(390)
    assert row[c.DEVIATION] == pytest.approx(volatility_of(0) * math.sqrt(390 / 98280 * share[6]), rel=1e-7)
    assert game.market[6, c.OPEN_DEVIATION] == row[c.DEVIATION]
    third = slice(600, 990)
    assert game.market[third].tobytes() == plain.market[third].tobytes(), "a session without a grid"
    premium = ZeroDTE.game(ZeroDTEConfig(bars=own, iv="grid", variance_premium=0.2))
    assert premium.market[KNOWN, c.DEVIATION] == row[c.DEVIATION], "a market's own volatility has no premium added"
    assert premium.market[0, c.DEVIATION] > game.market[0, c.DEVIATION]


def test_later_bars_of_the_column_change_nothing_earlier_in_the_env() -> None:
    bars = with_grid(sources.load(SPY), grid_of(sources.load(SPY)))
    assert bars.atm_volatility is not None
    for cut in (KNOWN, KNOWN + 1, 100, 390 + KNOWN):
        column = bars.atm_volatility.copy()
        column[cut:] *= 1.5
        walks = []
        for market in (bars, replace(bars, atm_volatility=column)):
            env = build("ZeroDTE", bars=market, iv="grid", random_start=False, fill="market")
            rows = [env.reset(seed=1)[0]]
            rows += [env.step(1 if step == 1 else 0)[0] for step in range(cut - 1)] if cut < 390 else []
            walks.append(np.array(rows).tobytes())
        assert walks[0] == walks[1]


def test_the_column_is_cut_hashed_and_streamed_like_any_other_and_read_from_a_file(tmp_path: Path) -> None:
    bars = sources.load(SPY)
    grid = grid_of(bars)
    frame = pd.DataFrame({name: bars.columns[name][:, 0] for name in ("open", "high", "low", "close", "volume")})
    frame.insert(0, "timestamp", bars.time)
    frame["previous_vix"] = bars.previous_vix[:, 0]  # type: ignore[index]
    frame.to_csv(tmp_path / "spy.csv", index=False)
    grid.to_csv(tmp_path / "grid.csv", index=False)
    read = sources.load(f"csv:{tmp_path}/spy.csv?market=spy&grid={tmp_path}/grid.csv")
    assert read.atm_volatility is not None
    np.testing.assert_allclose(read.atm_volatility, option_grid.column(grid, bars.time), rtol=1e-12)
    assert read.hash != replace(read, atm_volatility=read.atm_volatility * 1.01).hash
    assert np.isnan(read.one(2).atm_volatility).all()  # type: ignore[arg-type]
    assert np.isfinite(read.between(KNOWN, 30).atm_volatility).all()  # type: ignore[arg-type]
    frame.assign(atm_volatility=read.atm_volatility[:, 0]).to_csv(tmp_path / "with.csv", index=False)
    again = sources.load(f"csv:{tmp_path}/with.csv?market=spy").atm_volatility
    np.testing.assert_allclose(again, read.atm_volatility)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"mid": "price"}), "grid: column 'mid' is missing"),
        (lambda t: t.assign(right="X"), "grid: column 'right', row 0: 'X' is neither C nor P"),
        (lambda t: pd.concat([t, t.iloc[3:4]], ignore_index=True), "grid: row .* repeats time, strike and right"),
        (lambda t: t.assign(strike="x"), "column 'strike', row 0"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    bars = sources.load(SPY)
    with pytest.raises(DataError, match=message):
        option_grid.column(change(grid_of(bars)), bars.time)


def test_rows_inside_a_minute_are_never_read_as_its_own() -> None:
    bars = sources.load(SPY)
    table = grid_of(bars)
    wanted = option_grid.column(table, bars.time)
    first = table["timestamp"] == bars.time[KNOWN]
    inside = [
        table[first].assign(timestamp=table["timestamp"] + pd.Timedelta(seconds=after), mid=1.5 * table["mid"])
        for after in (12, 24)
    ]
    mixed = pd.concat([table, *inside], ignore_index=True)
    assert option_grid.column(mixed, bars.time).tobytes() == wanted.tobytes()
    moved = pd.concat([table[~first], inside[0]], ignore_index=True)
    row = int((~first).sum())
    with pytest.raises(DataError, match=rf"row {row}: .*:35:12 UTC lies inside the minute 09:35, of which there is no"):
        option_grid.column(moved, bars.time)
    elsewhere = pd.concat([table, table[-22:].assign(timestamp=table["timestamp"] + pd.Timedelta(seconds=30))])
    assert option_grid.column(elsewhere, bars.time).tobytes() == wanted.tobytes(), "a minute that nothing is read from"


def test_rows_before_the_calendar_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    bars = sources.load(SPY)
    table = grid_of(bars)
    old = table.head(22).assign(timestamp=pd.Timestamp("2012-12-31T14:35"))
    both = pd.concat([table, old], ignore_index=True)
    with caplog.at_level(logging.WARNING):
        found = option_grid.column(both, bars.time)
    assert found.tobytes() == option_grid.column(table, bars.time).tobytes()
    assert f"grid: 22 of {len(both)} rows, from row {len(table)} on (2012-12-31 14:35:00)" in caplog.text
    assert np.isnan(option_grid.column(table[:0], bars.time)).all()
    assert np.isnan(option_grid.column(old, bars.time)).all()


def test_typed_errors() -> None:
    with pytest.raises(DataError, match=r"atm_volatility.*grid="):
        build("ZeroDTE", bars=SPY, iv="grid")
    bars = sources.load(SPY)
    for bad in (0.0, -0.1, np.inf):
        with pytest.raises(DataError, match="column 'atm_volatility', row 0"):
            replace(bars, atm_volatility=np.full(bars.open.shape, bad))
    frame = pd.DataFrame({name: [1.0, 1.0] for name in ("open", "high", "low", "close", "volume")})
    frame.index = pd.DatetimeIndex(["2024-06-27T14:00", "2024-06-27T14:05"])
    with pytest.raises(ConfigError, match="grid= is for markets with sessions"):
        Bars.from_frame(frame, grid=grid_of(bars))
    with pytest.raises(ConfigError, match="grid= is for bars of 1m"):
        Bars.from_frame(frame, market="spy", grid=grid_of(bars))


def test_a_snapshot_that_says_nothing_is_left_out() -> None:
    bars = sources.load(SPY)
    table = grid_of(bars)
    puts = table[table["right"] == "P"]
    assert np.isnan(option_grid.column(puts, bars.time)).all(), "no parity without calls"
    far = table[table["strike"] > 10.3 * bars.close[0, 0]]
    assert np.isnan(option_grid.column(far, bars.time)[:390]).all(), "the forward lies outside the strikes"


@pytest.mark.skipif(not (DATA and GRID.exists()), reason="REGIMEGYM_DATA names no folder with SPXW mids")
def test_the_real_grid_gives_the_measured_volatilities() -> None:
    pytest.importorskip("pyarrow")
    days, values = option_grid.day_volatilities(pd.read_parquet(GRID))
    shares = np.array([remaining_share(390)[6]])
    calendar = values * np.sqrt(390 / 98280 * shares) / np.sqrt(384 / 525600)
    print(len(days), np.quantile(calendar, [0.05, 0.5, 0.95]).round(3).tolist())
    assert len(days) > 400
    assert np.median(calendar) == pytest.approx(0.203, abs=0.01)
    bars = sources.load("parquet:spy_1m.parquet?market=spy&symbol=SPY&grid=spxw_0dte_mid_grid.parquet")
    assert bars.atm_volatility is not None
    print("bars without", np.isnan(bars.atm_volatility).mean())
    assert np.isnan(bars.atm_volatility).mean() < 0.03
