"""At-the-money volatility of each session from a grid of same-day option mids, as a causal column of the bars.

A grid has one row a snapshot, strike and right: ``timestamp`` (UTC), ``strike``, ``right`` (C or P) and ``mid``, in
points of any index that moves with the underlying: a volatility knows no scale. A row that is labelled 09:35 New York
holds values of the minute that **begins** then, so it is known at 09:36, at the close of the session's bar 5. Labels
are whole minutes: what rows stamped inside a minute (09:35:30) hold may be later than its end, so they are never read
as that minute's, and a session that has no others there is refused.

The forward is the median of ``K + C - P`` over the strikes that have both mids (put-call parity, r = 0). The implied
deviation there is read from the put at the strike below it and the call at the strike above it, linear in the strike
between them. With the session's share of variance that is left at 09:36 it becomes the **volatility of the day on the
variance clock** (:mod:`markets.option_clocks`), per square root of a trading year: one number, the same at any later
minute of the session, that needs no time of day beside it.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.errors import DataError
from markets.option_clocks import remaining_share, volatility_on_variance_clock
from markets.option_prices import CALL, PUT, implied_deviation
from markets.session_calendar import FIRST_YEAR, MINUTE, locate, place_in_session

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]

LABEL = "09:35"  # New York; the snapshot whose values count
LABEL_MINUTE = 5  # of the session; its close is 09:36
NEEDED = ("timestamp", "strike", "right", "mid")
RIGHTS = ("C", "P")
CALENDAR_BEGINS = np.datetime64(f"{FIRST_YEAR}-01-01", "ns")
_log = logging.getLogger(__name__)


def column(table: pd.DataFrame, times: Times, what: str = "bars") -> Floats:
    """Return what each bar knows at its close: ``(T, 1)`` volatilities of the day, NaN where none is known yet.

    Args:
        table: the grid. times: ``(T,)`` openings of one-minute bars inside sessions.
        what: name of the bars, for the message that says how many sessions have no value.

    Raises:
        DataError: a column of the grid is missing or holds something else.
    """
    days, volatilities = day_volatilities(table)
    calendar, place = locate(times)
    session = calendar.day[place]
    row = np.searchsorted(days, session)
    found = row < len(days)
    found[found] = days[row[found]] == session[found]
    known_at = calendar.open[place] + (LABEL_MINUTE + 1) * MINUTE
    known = found & (times + MINUTE >= known_at)
    out = np.full(len(times), np.nan)
    out[known] = volatilities[row[known]]
    sessions, without = len(np.unique(session)), len(np.unique(session[~found]))
    if without:
        _log.warning("%s: %d of %d sessions have no usable %s mids in the grid", what, without, sessions, LABEL)
    return out[:, None]


def day_volatilities(table: pd.DataFrame) -> tuple[NDArray[np.datetime64], Floats]:
    """Return the New York days with a usable snapshot ``(G,)``, rising, and their volatilities ``(G,)``.

    A snapshot is usable where mids on both sides of its forward give a positive deviation; others are left out.

    Raises:
        DataError: a session has rows inside the label's minute and none at its beginning.
    """
    grid = read(table)
    if not len(grid):
        return np.empty(0, "datetime64[D]"), np.empty(0)
    day, minute, minutes = place_in_session(grid["time"].to_numpy())
    grid = grid.assign(day=day, bars=minutes)[minute == LABEL_MINUTE]
    whole = (grid["time"] == grid["time"].dt.floor("min")).to_numpy()
    astray = ~grid["day"].isin(grid["day"][whole]).to_numpy()
    if astray.any():
        row = int(grid.index[astray.argmax()])
        raise DataError(
            f"grid: column 'timestamp', row {row}: {grid['time'][row]} UTC lies inside the minute {LABEL}, of which "
            f"there is no row: stamp snapshots with the whole minute whose values they hold, known when it is over"
        )
    grid = grid[whole]
    days, values = [], []
    for (date, bars), rows in grid.groupby(["day", "bars"]):
        _, deviation = at_the_money(rows)
        if deviation > 0.0:
            share = remaining_share(int(bars))[LABEL_MINUTE + 1]
            days.append(np.datetime64(date, "D"))
            values.append(volatility_on_variance_clock(deviation, float(share), float(bars)))
    return np.array(days, "datetime64[D]"), np.array(values, np.float64)


def at_the_money(rows: pd.DataFrame) -> tuple[float, float]:
    """Return forward and implied deviation at it of one snapshot (``strike, right, mid``); (nan, 0) where it has none.

    Outside the strikes that have both mids nothing is guessed.
    """
    sides = {right: rows[rows["right"] == right].set_index("strike")["mid"].sort_index() for right in RIGHTS}
    both = sides["C"].index.intersection(sides["P"].index)
    if not len(both):
        return np.nan, 0.0
    strikes = both.to_numpy(np.float64)
    forward = float(np.median(strikes + (sides["C"][both] - sides["P"][both]).to_numpy()))
    below, above = strikes[strikes <= forward], strikes[strikes > forward]
    if not len(below) or not len(above):
        return forward, 0.0
    low, high = float(below[-1]), float(above[0])
    put = implied_deviation(PUT, forward, low, float(sides["P"][low]), 0.0, 0.0)
    call = implied_deviation(CALL, forward, high, float(sides["C"][high]), 0.0, 0.0)
    if not (put > 0.0 and call > 0.0):
        return forward, 0.0
    weight = (forward - low) / (high - low)
    return forward, put + weight * (call - put)


def read(table: pd.DataFrame) -> pd.DataFrame:
    """Check a grid and return ``time`` (UTC, without a zone), ``strike``, ``right`` and ``mid`` of its positive mids.

    The index holds the rows' places in ``table``. Rows from before the session calendar begins are left out and told.

    Raises:
        DataError: naming the column, and the row where one is at fault.
    """
    from markets.frames import column_names, numbers, read_times

    names: dict[str, Any] = column_names(table)
    for name in NEEDED:
        if name not in names:
            raise DataError(f"grid: column {name!r} is missing; the columns are {', '.join(map(str, table.columns))}")
    if not len(table):
        return pd.DataFrame({
            "time": np.empty(0, "datetime64[ns]"), "strike": np.empty(0), "right": np.empty(0, object),
            "mid": np.empty(0),
        })  # fmt: skip
    right = table[names["right"]].astype(str).str.upper()
    wrong = ~right.isin(RIGHTS).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"grid: column 'right', row {row}: {right.iloc[row]!r} is neither C nor P")
    frame = pd.DataFrame({
        "time": read_times(table[names["timestamp"]], "timestamp"), "strike": numbers(table[names["strike"]], "strike"),
        "right": right.to_numpy(), "mid": numbers(table[names["mid"]], "mid"),
    })  # fmt: skip
    early = (frame["time"] < CALENDAR_BEGINS).to_numpy()
    if early.any():
        _log.warning(
            "grid: %d of %d rows, from row %d on (%s), lie before the session calendar begins (%d) and are left out",
            early.sum(), len(frame), early.argmax(), frame["time"][int(early.argmax())], FIRST_YEAR,
        )  # fmt: skip
    frame = frame[~early & np.isfinite(frame["strike"]) & (frame["strike"] > 0.0) & (frame["mid"] > 0.0)]
    twice = frame.duplicated(["time", "strike", "right"]).to_numpy()
    if twice.any():
        row = int(frame.index[twice.argmax()])
        raise DataError(f"grid: row {row} repeats time, strike and right of a row before: drop the duplicate")
    return frame
