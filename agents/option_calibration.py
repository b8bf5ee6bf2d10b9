"""The option model against real same-day quotes: mids by time of day and moneyness, spreads by premium and time of day.

What is measured is what :class:`envs.zero_dte.ZeroDTEEnv` plays: the at-the-money deviation of each bar comes from its
own market matrix, with ``iv="grid"`` and with ``iv="vix"``. A snapshot that is labelled t holds values of the minute
that begins at t and is compared with the close of the bar that opens then. The model prices at the snapshot's parity
forward, in index points, so that what is measured is the volatility and not that index and bars are apart; figures are
given in USD per share of the bars' underlying, by each snapshot's own ratio of forward and close.

Errors are in-sample where the figures that the model rests on were fitted to the same days, and the result says so: the
default smile was fitted to November 2023 .. June 2025, :data:`EARLY_SMILE` to what lies before September 2024, and the
ratio of the index (``vix_ratio``) to the whole sample. ``iv="grid"`` knows each day's own 09:35 snapshot, from 09:36.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envs import zero_dte_columns as columns
from envs.zero_dte import ZeroDTE
from envs.zero_dte_config import ZeroDTEConfig
from markets import option_grid, quote_table
from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ConfigError, DataError
from markets.frames import column_names, numbers, read_times
from markets.option_contract import SameDayOption
from markets.option_prices import CALL, PUT
from markets.option_quotes import base_spread, smile_at, smile_price, spread_in_ticks, time_factor
from markets.session_calendar import place_in_session

Floats = NDArray[np.float64]

EARLY_END = "2024-09-01"  # what the early smile was fitted to lies before it
EARLY_SMILE = {"smile_slope": (-0.0461, -0.0404), "smile_curvature": (0.0317, 0.0496)}
SMILES: dict[str, dict[str, Any]] = {"default": {}, "before-2024-09": EARLY_SMILE}
Z_EDGES = (-4.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 4.0)
PREMIUM_EDGES = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
MINUTE_EDGES = (-1, 4, 14, 120, 344, 374, 389)
FAR = 6e-4  # parity forward and index further apart than 3 points of 5,000: not of one time


def calibrate(
    bars: Bars, grid: pd.DataFrame, quotes: pd.DataFrame | None = None, points: float = 10.025
) -> dict[str, Any]:
    """Measure the model's mids against a grid and, where given, its spreads against two-sided quotes.

    Args:
        bars: one-minute bars with sessions, ``previous_vix`` and ``atm_volatility`` (a source's ``grid=``).
        grid: ``timestamp, strike, right, mid``, and ``underlying`` where there is one: snapshots whose parity forward
            is more than 0.06 % from it are left out and counted; one without a value there is not compared.
        quotes: ``timestamp, strike, bid, ask`` of single contracts (:mod:`markets.quote_table`).
        points: of the index for one USD of the bars.

    Returns:
        ``mids``: rows of iv, smile, days, and the median absolute error, USD per share and in modelled spreads;
        ``by_time``, ``by_moneyness``: the same by label and by bucket of z; ``by_time_and_moneyness``: by both, of the
        default smile; ``spreads``; what was left out.

    Raises:
        DataError: a column holds something else than it should, or nothing usable falls on the bars.
    """
    rows, left_out = snapshots(bars, grid)
    mids: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {"by_time": [], "by_moneyness": []}
    cells: list[dict[str, Any]] = []
    for iv in ("grid", "vix"):
        market = ZeroDTE.game(ZeroDTEConfig(bars=bars, iv=iv)).market
        for smile, given in SMILES.items():  # both, so that what is in sample stands beside what is not
            errors = model_errors(rows, market, replace(SameDayOption(), **given))
            if not len(errors):
                raise DataError("no snapshot of the grid falls on a whole session of the bars")
            early = errors["day"] < np.datetime64(EARLY_END)
            for days, chosen in (("all", early | True), (f"before {EARLY_END}", early), (f"from {EARLY_END}", ~early)):
                if chosen.any():
                    sample = "out of sample" if smile != "default" and days.startswith("from") else "in sample"
                    mids.append(
                        {"iv": iv, "smile": smile, "days": days, "smile is": sample, **_summary(errors[chosen])}
                    )
            if smile == "default":
                cells += [
                    {"iv": iv, "at": at, "z": str(z), **_summary(part)}
                    for (at, z), part in errors.groupby(["at", "z"], observed=True)
                ]
            for name, by in (("by_time", "at"), ("by_moneyness", "z")):
                tables[name] += [
                    {"iv": iv, "smile": smile, by: str(value), **_summary(part)}
                    for value, part in errors.groupby(by, observed=True)
                ]
    result: dict[str, Any] = {"bars": bars.source, "snapshots": len(rows["time"].unique()), **left_out, "mids": mids}
    result |= {**tables, "by_time_and_moneyness": cells}
    if quotes is not None:
        result["spreads"], counts = spreads(quotes, SameDayOption(), points)
        result |= counts
    return result


def snapshots(bars: Bars, grid: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the out-of-the-money mids that fall on bars, with ``row`` of the bar, ``forward`` and ``scale``."""
    table = option_grid.read(grid)
    row = np.searchsorted(bars.time, table["time"].to_numpy())
    there = row < len(bars)
    there[there] = bars.time[row[there]] == table["time"].to_numpy()[there]
    table = table.assign(row=row)[there].reset_index(drop=True)
    if not len(table):
        raise DataError("no snapshot of the grid falls on the bars: they are of other days")
    forwards = {time: option_grid.at_the_money(part)[0] for time, part in table.groupby("time")}
    table["forward"] = table["time"].map(forwards)
    far = set()
    names = column_names(grid)
    if "underlying" in names:
        stamps = read_times(grid[names["timestamp"]], "timestamp")
        index = pd.Series(numbers(grid[names["underlying"]], "underlying"), index=stamps).groupby(level=0).first()
        far = {  # an index of 0 or less is none, and nothing lies near it
            time for time, forward in forwards.items() if abs(forward - index[time]) > FAR * max(index[time], 0.0)
        }
    days, minute, minutes = place_in_session(table["time"].to_numpy())
    table["scale"] = table["forward"] / bars.close[table["row"], 0]
    table = table.assign(day=days, minute=minute, minutes=minutes, side=np.where(table["right"] == "C", CALL, PUT))
    out = table["side"] * (table["strike"] - table["forward"]) >= 0.0
    kept = table[out & ~table["time"].isin(far) & (table["forward"] > 0.0)]
    if not len(kept):
        raise DataError(
            f"grid: none of {len(forwards)} snapshots on the bars is usable: the parity forward of {len(far)} is "
            f"further than {FAR:.2%} from column 'underlying', and the others have no strike with both mids"
        )
    return kept.reset_index(drop=True), {"snapshots_left_out": len(far)}


def model_errors(rows: pd.DataFrame, market: Floats, contract: SameDayOption) -> pd.DataFrame:
    """Return ``at`` (New York label), bucket ``z``, ``day``, ``error`` (USD per share, signed) and ``spreads``."""
    slopes, curvatures = contract.convex_smile
    given = rows[["side", "forward", "strike", "minute", "minutes", "scale", "mid"]].to_numpy(np.float64)
    deviation = market[rows["row"].to_numpy(), columns.DEVIATION]
    smile = np.array([*slopes, *curvatures])
    time = np.array([contract.spread_opening, contract.spread_early, contract.spread_closing])
    out = np.zeros((len(rows), 2))
    _errors(given, deviation, smile, time, contract.spread_rows, contract.tick, out)
    z = np.log(rows["strike"] / rows["forward"]) / np.where(deviation > 0.0, deviation, np.nan)
    label = pd.DatetimeIndex(rows["time"]).tz_localize("UTC").tz_convert("America/New_York").strftime("%H:%M")
    frame = pd.DataFrame({
        "at": label, "z": pd.cut(z, Z_EDGES), "day": rows["day"].to_numpy(), "error": out[:, 0],
        "spreads": np.abs(out[:, 0]) / out[:, 1],
    })  # fmt: skip
    return frame[deviation > 0.0]  # bars of unfinished sessions have none


@compiled
def _errors(
    given: Floats, deviation: Floats, smile: Floats, time: Floats, table: Floats, tick: float, out: Floats
) -> None:
    """Write model's mid minus market's, in USD per share, and the modelled spread of each row."""
    for i in range(given.shape[0]):
        side, forward, strike, minute, minutes, scale, mid = given[i]
        left = minutes - 1.0 - minute
        slope = smile_at(left, minutes, smile[0], smile[1])
        curvature = smile_at(left, minutes, smile[2], smile[3])
        price = smile_price(side, forward, strike, deviation[i], slope, curvature) / scale
        factor = time_factor(left, minutes, time[0], time[1], time[2])
        out[i, 0] = price - mid / scale
        out[i, 1] = tick * spread_in_ticks(price, factor, 1.0, 1.0, table)


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    return {
        "median error": float(part["error"].abs().median()), "bias": float(part["error"].median()),
        "in spreads": float(part["spreads"].median()), "n": len(part),
    }  # fmt: skip


def spreads(
    quotes: pd.DataFrame, contract: SameDayOption, points: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compare the modelled spread with measured ones, in cents of the bars' underlying, one quote a minute.

    Returns:
        Rows by premium and by minute; and ``quotes``, how many were compared, and ``quotes_left_out`` by reason.

    Raises:
        ConfigError: ``points`` is not positive and finite. DataError: see :func:`markets.quote_table.read`.
    """
    if not 0.0 < points < np.inf:
        raise ConfigError(f"points={points!r} must be positive and finite")
    kept, left_out = quote_table.read(quotes)
    minute, minutes = kept["minute"].to_numpy(), kept["minutes"].to_numpy(np.float64)
    premium = (kept["bid"] + kept["ask"]).to_numpy() / 2.0 / points
    table = contract.spread_rows
    ticks = [
        base_spread(p, table)
        * time_factor(m - n, m, contract.spread_opening, contract.spread_early, contract.spread_closing)
        for p, n, m in zip(premium, minute.astype(float), minutes, strict=True)
    ]
    frame = pd.DataFrame({
        "premium, USD": pd.cut(premium, PREMIUM_EDGES), "minute": pd.cut(minute, MINUTE_EDGES),
        "measured": 100.0 / points * (kept["ask"] - kept["bid"]).to_numpy(),
        "model": np.maximum(1.0, np.floor(np.array(ticks) + 0.5)),
    })  # fmt: skip
    rows: list[dict[str, Any]] = []
    for place in ("premium, USD", "minute"):
        for value, part in frame.groupby(place, observed=True):
            measured, model = part["measured"], part["model"]
            rows.append({
                "by": place, "range": str(value), "measured median": float(measured.median()),
                "model median": float(model.median()), "measured mean": float(measured.mean()),
                "model mean": float(model.mean()), "n": len(part),
            })  # fmt: skip
    return rows, {"quotes": len(kept), "quotes_left_out": left_out}
