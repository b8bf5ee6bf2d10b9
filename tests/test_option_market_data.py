"""The option model against real SPXW quotes: mids by time of day and moneyness, spreads by premium and time of day.

Needs REGIMEGYM_DATA, a folder with ``spxw_0dte_mid_grid.parquet`` and ``spxw_0dte_quotes_12s.parquet``. The figures are
printed (``pytest -s``); what is asserted is loose. A tenth of an index point is a cent of SPY.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from markets.option_clocks import (
    deviation_on_trading_clock,
    deviation_on_variance_clock,
    remaining_share,
    volatility_on_trading_clock,
    volatility_on_variance_clock,
)
from markets.option_contract import SameDayOption
from markets.option_prices import CALL, PUT, implied_deviation
from markets.option_quotes import base_spread, smile_at, smile_price, time_factor
from markets.session_calendar import place_in_session, session_bars

DATA = os.environ.get("REGIMEGYM_DATA")
GRID, QUOTES = (Path(DATA or "") / f"spxw_0dte_{name}.parquet" for name in ("mid_grid", "quotes_12s"))
needs_data = pytest.mark.skipif(
    not (DATA and GRID.exists() and QUOTES.exists()), reason="REGIMEGYM_DATA names no folder with SPXW mids and quotes"
)
SPY = SameDayOption()
Z_EDGES = (-4.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 4.0)


def snapshots() -> pd.DataFrame:
    """Out-of-the-money mids in points, with minutes left when they were known and the snapshot's own deviation."""
    grid = pd.read_parquet(GRID)
    grid = grid[(grid["forward_parity"] - grid["underlying"]).abs() < 3.0]
    known = grid["timestamp"].dt.tz_convert(None).to_numpy()
    days, bars, lengths = place_in_session(known)  # values of the minute that begins at the label
    grid = grid.assign(day=days, bars=lengths.astype(float), left=(lengths - 1 - bars).astype(float))
    grid["side"] = np.where(grid["right"] == "C", CALL, PUT)
    out = grid["side"] * (grid["strike"] - grid["forward_parity"]) >= 0.0
    grid = grid[out & (grid["mid"] > 0.0) & (bars >= 0)].copy()
    grid["gap"] = (grid["strike"] - grid["forward_parity"]).abs()
    nearest = grid.loc[grid.groupby("timestamp")["gap"].idxmin()]
    columns = ("side", "forward_parity", "strike", "mid", "timestamp")
    rows = zip(*(nearest[name] for name in columns), strict=True)
    own = {time: implied_deviation(side, spot, strike, mid) for side, spot, strike, mid, time in rows}
    grid["sd"] = grid["timestamp"].map(own)
    return grid[grid["sd"] > 0.0]


def carried(grid: pd.DataFrame, clock: str) -> pd.Series:
    """Deviation of each row when the volatility of the day's first snapshot (09:35) is carried on a clock."""
    first = grid[grid["left"] == grid["bars"] - 6.0].groupby("day")[["sd", "left", "bars"]].first()
    shares = {bars: remaining_share(bars).tolist() for bars in (390, 210)}
    found = {}
    for day, left, bars in grid[["day", "left", "bars"]].drop_duplicates().itertuples(index=False):
        if day not in first.index:
            continue
        start = first.loc[day]
        if clock == "trading":
            sd = deviation_on_trading_clock(volatility_on_trading_clock(start["sd"], start["left"]), left)
        else:
            share, now = shares[int(bars)][int(bars - start["left"])], shares[int(bars)][int(bars - left)]
            sd = deviation_on_variance_clock(volatility_on_variance_clock(start["sd"], share, bars), now, bars)
        found[day, left] = sd
    return pd.Series([found.get(key, np.nan) for key in zip(grid["day"], grid["left"], strict=True)], index=grid.index)


def modelled(grid: pd.DataFrame, deviations: pd.Series, flat: bool = False) -> np.ndarray:
    """Model's mid of each row, under the default smile or under a flat one."""
    slopes, curvatures = SPY.convex_smile
    columns = ("side", "forward_parity", "strike", "left", "bars")
    prices = []
    for row in zip(*(grid[name] for name in columns), deviations, strict=True):
        side, spot, strike, left, bars, sd = row
        slope, curvature = (0.0 if flat else smile_at(left, bars, *pair) for pair in (slopes, curvatures))
        prices.append(smile_price(side, spot, strike, sd, slope, curvature))
    return np.array(prices)


def table_of(grid: pd.DataFrame, error: pd.Series, title: str) -> pd.DataFrame:
    z = np.log(grid["strike"] / grid["forward_parity"]) / grid["sd"]
    clock = grid["timestamp"].dt.tz_convert("America/New_York").dt.strftime("%H:%M")
    frame = pd.DataFrame({"at": clock, "z": pd.cut(z, Z_EDGES), "error": error.abs()})
    table = frame.pivot_table(index="at", columns="z", values="error", aggfunc="median", observed=True)
    table["all"] = frame.groupby("at")["error"].median()
    print(f"\n{title}: median absolute error, index points\n{table.round(2).to_string()}")
    return table


@needs_data
def test_modelled_mids_against_the_grid() -> None:
    grid = snapshots()
    assert len(grid) > 40_000
    own = pd.Series(modelled(grid, grid["sd"]), index=grid.index) - grid["mid"]
    flat = pd.Series(modelled(grid, grid["sd"], flat=True), index=grid.index) - grid["mid"]
    smiled = table_of(grid, own, "smile, with the snapshot's own at-the-money deviation")
    without = table_of(grid, flat, "no smile, the same deviation")
    errors = {}
    for clock in ("variance", "trading"):
        kept = carried(grid, clock)
        rows = grid[kept.notna() & (grid["left"] < grid["bars"] - 6.0)]
        kept = kept[rows.index]
        errors[clock] = pd.Series(modelled(rows, kept), index=rows.index) - rows["mid"]
        table_of(rows, errors[clock], f"volatility of 09:35 carried on the {clock} clock")
        ratio = (kept / rows["sd"]).groupby(rows["left"]).median()
        print(f"median deviation over the market's, by minutes left:\n{ratio.round(3).to_dict()}")
    medians = {clock: float(error.abs().median()) for clock, error in errors.items()}
    print(f"median absolute error: smile {own.abs().median():.3f}, none {flat.abs().median():.3f}, carried {medians}")
    assert own.abs().median() < 0.3  # three cents of SPY
    assert own.abs().median() < flat.abs().median()
    assert smiled["all"].max() < without["all"].max()
    assert medians["variance"] < medians["trading"]  # the clock earns its name


@needs_data
def test_modelled_spreads_against_the_quotes() -> None:
    quotes = pd.read_parquet(QUOTES)
    quotes = quotes[quotes["strike"] > 3_000.0]
    _, bars, lengths = place_in_session(quotes["timestamp"].dt.tz_convert(None).to_numpy())
    quotes = quotes.assign(elapsed=bars, bars=lengths, premium=(quotes["bid"] + quotes["ask"]) / 20.0)
    quotes = quotes[(quotes["elapsed"] >= 0) & (quotes["premium"] > 0.0)].iloc[::5]  # one a minute
    measured = 10.0 * (quotes["ask"] - quotes["bid"])  # cents of SPY
    table = SPY.spread_rows
    ticks = [
        base_spread(premium, table)
        * time_factor(float(bars - elapsed), float(bars), SPY.spread_opening, SPY.spread_early, SPY.spread_closing)
        for premium, elapsed, bars in zip(quotes["premium"], quotes["elapsed"], quotes["bars"], strict=True)
    ]
    model = np.maximum(1.0, np.floor(np.array(ticks) + 0.5))
    frame = pd.DataFrame({
        "premium": pd.cut(quotes["premium"], (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)),
        "minute": pd.cut(quotes["elapsed"], (-1, 4, 14, 120, 344, 374, 389)),
        "measured": measured, "model": model,
    })  # fmt: skip
    for place in ("premium", "minute"):
        groups = frame.groupby(place, observed=True)
        shown = pd.concat(
            [groups["measured"].median(), groups["model"].median(), groups["measured"].mean(), groups["model"].mean(),
             groups.size()], axis=1, keys=["median", "model median", "mean", "model mean", "n"],
        )  # fmt: skip
        print(f"\nspread in cents of SPY by {place}\n{shown.round(2).to_string()}")
        dear = shown[shown["median"] >= 1.0]
        assert (dear["model median"] / dear["median"]).between(0.4, 2.5).all()
        assert (shown["model mean"] / shown["mean"]).between(0.4, 2.5).all()


@needs_data
def test_the_calendar_agrees_with_the_sessions_of_the_grid() -> None:
    """Every session of the grid is one by rule, none is missing, and half days alone end at 13:00."""
    grid = pd.read_parquet(GRID, columns=["timestamp"])
    days, bars, _ = place_in_session(grid["timestamp"].dt.tz_convert(None).drop_duplicates().to_numpy())
    unique = np.unique(days).tolist()
    ruled = [day for n in range((unique[-1] - unique[0]).days + 1) if session_bars(day := unique[0] + dt.timedelta(n))]
    assert ruled == unique
    halves = [day for day in ruled if session_bars(day) == 210]
    assert days[bars < 0].tolist() == halves  # 13:00 is the close there, and nothing else lies outside
