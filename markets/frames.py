"""Reading a pandas table as bars: column names, time stamps, cuts, and errors that name column and row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import LATE, MARKS, PRICES, QUOTES, SIZES, as_bound, as_interval, as_time
from markets.errors import ConfigError, DataError, unknown
from markets.session_calendar import MINUTE, SESSION_MARKETS

if TYPE_CHECKING:
    from markets.bars import Bars, Floats, Times

TIME_NAMES = ("timestamp", "time", "date", "datetime", "open_time", "opentime")
RATE_NAMES = ("funding_rate", "fundingrate", "rate")
STAMPS = ("open", "close")
_log = logging.getLogger(__name__)
SECOND, MILLISECOND = np.timedelta64(1, "s"), np.timedelta64(1, "ms")


def bars_from_frame(
    cls: type[Bars],
    frame: pd.DataFrame,
    *,
    symbol: str,
    interval: str | None,
    stamp: str,
    funding: pd.DataFrame | None,
    start: str | None,
    end: str | None,
    market: str,
    source: str,
    vix: pd.DataFrame | None = None,
    grid: pd.DataFrame | None = None,
) -> Bars:
    """Build :class:`~markets.bars.Bars` from one asset's table; see ``Bars.from_frame``."""
    if not isinstance(frame, pd.DataFrame):
        raise ConfigError(
            f"from_frame takes a DataFrame, not {type(frame).__name__}; files are read by load_bars('csv:..')"
        )
    if stamp not in STAMPS:
        raise unknown("stamp", stamp, STAMPS)
    if len(frame) < 2:
        raise DataError(f"{len(frame)} rows: at least 2 bars are needed")
    names = column_names(frame)
    times = _times(frame, names, TIME_NAMES)
    if (
        times - times.astype("datetime64[s]") == SECOND - MILLISECOND
    ).mean() > 0.5:  # venues write 00:59:59.999 for the end of an hour
        if stamp != "close":
            raise DataError(f"column 'time', row 0 ({times[0]}): ends in .999, a closing time: pass stamp=close")
        times = times + MILLISECOND
    usual = _most_frequent_step(times)
    length = as_interval(interval) if interval else usual
    if length < usual:
        raise ConfigError(f"interval={interval!r} is shorter than the usual step between rows, {pd.Timedelta(usual)}")
    if stamp == "close":
        times = times - length
    keep = _kept(times, length, start, end)
    sessions = market in SESSION_MARKETS
    if sessions:
        keep = _regular(times, length, keep, source or symbol or "ASSET")
    elif vix is not None or grid is not None:
        raise ConfigError(
            f"{'grid' if vix is None else 'vix'}= is for markets with sessions ({', '.join(SESSION_MARKETS)}), "
            f"not for market={market!r}"
        )
    missing = [name for name in (*PRICES, "volume") if name not in names]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing; the columns are {', '.join(map(str, frame.columns))}. "
            "Rename yours, in a file's specification with rename=old:new"
        )
    present = [*PRICES, "volume", *(name for name in MARKS if name in names)]
    if sessions:
        present += [
            name for pair in (QUOTES, SIZES, ("previous_vix",), LATE) if set(pair) <= set(names) for name in pair
        ]
    columns: dict[str, Any] = {name: numbers(frame.loc[keep, names[name]], name)[:, None] for name in present}
    times = times[keep]
    if vix is not None:
        columns["previous_vix"] = _previous_vix(vix, times)
    if grid is not None:
        columns["atm_volatility"] = _atm_volatility(grid, times, length, source or symbol or "ASSET")
    (_tell_sessions if sessions else _tell_gaps)(times, length, source or symbol or "ASSET")
    events, rates = _funding(funding, times, length)
    return cls(
        time=times, interval=length, symbols=(symbol or "ASSET",), **columns,
        funding_time=events, funding_rate=rates, market=market, source=source,
    )  # fmt: skip


def _tell_gaps(times: Times, length: np.timedelta64, what: str) -> None:
    """Say once, at loading, how much is missing: positions are carried over gaps, and a market that closes has many."""
    steps = np.diff(times) / length
    if len(steps) and steps.max() > 1.0 and steps.min() > 0.0:  # what is not in order is refused, not counted
        missing = round(float(steps.sum()) - len(steps))
        _log.warning(
            "%s: %d gaps, %d bars are missing (longest gap %d bars); positions are carried over them. "
            "regimegym data-doctor lists them",
            what, int((steps > 1.0).sum()), missing, round(float(steps.max())) - 1,
        )  # fmt: skip


def _tell_sessions(times: Times, length: np.timedelta64, what: str) -> None:
    from markets.sessions import tell

    tell(times, length, what)


def _regular(times: Times, length: np.timedelta64, keep: NDArray[np.bool_], what: str) -> NDArray[np.bool_]:
    """Keep the bars of regular sessions, and tell how many others there were."""
    from markets.sessions import in_session

    inside = keep & in_session(times, length)
    if inside.sum() < keep.sum():
        _log.warning("%s: %d bars outside the regular sessions are left out", what, int(keep.sum() - inside.sum()))
    if inside.sum() < 2:
        raise DataError(
            f"{int(inside.sum())} of {int(keep.sum())} bars lie in a regular session: at least 2 are needed"
        )
    return inside


def _previous_vix(table: pd.DataFrame, times: Times) -> Floats:
    """Read daily closes and give each bar the last one before its session's day: ``(T, 1)``."""
    from markets.sessions import previous_closes

    names = column_names(table)
    if "close" not in names:
        raise DataError(f"vix: column 'close' is missing; the columns are {', '.join(map(str, table.columns))}")
    if not len(table):
        raise DataError("vix: the table is empty")
    days = _days(table, names)
    wrong = np.diff(days) <= np.timedelta64(0)
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise DataError(f"vix: column 'time', row {row} ({days[row]}): not later than the row before")
    return previous_closes(times, days, numbers(table[names["close"]], "close"))[:, None]


def _days(table: pd.DataFrame, names: dict[str, Any]) -> NDArray[np.datetime64]:
    """Read the day in New York that each row of a daily table is about.

    A midnight is the beginning of that day in its own zone, whichever it is; any other time of day is an instant. To
    take midnight in Berlin for an instant would make it the day before, and show a session its own close.
    """
    times = _times(table, names, TIME_NAMES)
    found = next((name for name in TIME_NAMES if name in names), None)
    column = table.index.to_series() if found is None else table[names[found]]
    wall = times
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        wall = column.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
    elif not pd.api.types.is_numeric_dtype(column) and not _is_time(column):
        bare = column.astype(str).str.replace(r"\s*(Z|[+-]\d\d:?\d\d)$", "", regex=True)
        has_time = column.astype(str).str.contains(":")  # of a bare date the day is no offset
        wall = read_times(bare.where(has_time, column.astype(str)), "time")
    instants = pd.DatetimeIndex(times, tz="UTC").tz_convert("America/New_York").tz_localize(None)
    midnight = wall == wall.astype("datetime64[D]")
    return np.where(midnight, wall.astype("datetime64[D]"), instants.to_numpy().astype("datetime64[D]"))


def _atm_volatility(table: pd.DataFrame, times: Times, length: np.timedelta64, what: str) -> Floats:
    """Read a grid of option mids and give each bar what it says by the bar's close: ``(T, 1)``."""
    from markets.option_grid import column

    if length != MINUTE:
        raise ConfigError(f"grid= is for bars of 1m, these have interval={pd.Timedelta(length)}")
    return column(table, times, what)


def numbers(column: pd.Series, name: str) -> Floats:
    """Read a column as float64; text, dates and complex numbers are an error that names the row."""
    if getattr(column.dtype, "kind", "O") in "mMc" or _is_time(column):
        raise DataError(f"column {name!r}, row 0: {column.iloc[0]!r} is not a number (the column holds {column.dtype})")
    values = pd.to_numeric(column, errors="coerce")
    wrong = (values.isna() & column.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"column {name!r}, row {row}: {column.iloc[row]!r} is not a number")
    return np.array(values, dtype=np.float64)


def _times(frame: pd.DataFrame, names: dict[str, Any], candidates: tuple[str, ...]) -> Times:
    """Find the time column (or a DatetimeIndex) and read it as UTC datetime64[ns]."""
    found = next((name for name in candidates if name in names), None)
    if found is not None:
        return read_times(frame[names[found]], found)
    if isinstance(frame.index, pd.DatetimeIndex):
        return read_times(frame.index.to_series(), "index")
    raise DataError(
        f"no time column: expected a DatetimeIndex or one of {', '.join(candidates)}; the columns are "
        f"{', '.join(map(str, frame.columns))}. Rename yours, in a file's specification with rename=old:timestamp"
    )


def read_times(column: pd.Series, name: str) -> Times:
    """Read times: datetimes, ISO text, or epoch numbers in s, ms, us or ns (told apart by their size)."""
    if pd.api.types.is_numeric_dtype(column):
        wrong = ~(column.abs() < 9e18).to_numpy()  # also true for NaN
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"column {name!r}, row {row}: {column.iloc[row]!r} is not a time")
        size = float(column.abs().max())
        unit = next(unit for limit, unit in ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (np.inf, "ns")) if size < limit)
        stamps = pd.to_datetime(column, unit=unit, utc=True)  # type: ignore[call-overload]
    else:
        stamps = pd.to_datetime(column, utc=True, errors="coerce", format=None if _is_time(column) else "ISO8601")
        wrong = stamps.isna().to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"column {name!r}, row {row}: {column.iloc[row]!r} is not a time (ISO 8601 or an epoch number)"
            )
    try:
        return np.array(stamps.dt.tz_localize(None).dt.as_unit("ns"), dtype="datetime64[ns]")
    except pd.errors.OutOfBoundsDatetime as error:
        raise DataError(f"column {name!r}: {error}") from error


def column_names(frame: pd.DataFrame) -> dict[str, Any]:
    """Map lower-case names to columns.

    Raises:
        DataError: two columns have the same name but for case.
    """
    names: dict[str, Any] = {}
    for column in frame.columns:
        name = str(column).strip().lower().replace(" ", "_")
        if name in names:
            raise DataError(f"column {name!r} is there twice ({names[name]!r} and {column!r}): drop or rename one")
        names[name] = column
    return names


def _is_time(column: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(column)


def _most_frequent_step(times: Times) -> np.timedelta64:
    steps, counts = np.unique(np.diff(times), return_counts=True)
    positive = steps > np.timedelta64(0)
    if not positive.any():
        raise DataError(
            f"column 'time', row 1 ({times[1]}): no row is later than the one before: sort the rows by time"
        )
    return np.timedelta64(steps[positive][counts[positive].argmax()], "ns")


def _kept(times: Times, length: np.timedelta64, start: str | None, end: str | None) -> NDArray[np.bool_]:
    keep = np.ones(len(times), bool)
    if start:
        keep &= times >= as_time(start, "start")
    if end:
        keep &= times + length <= as_bound(end, "end")
    if keep.sum() < 2:
        raise ConfigError(
            f"start={start!r}, end={end!r} leave {int(keep.sum())} bars; the data runs from {times[0]} to {times[-1]}"
        )
    return keep


def _funding(frame: pd.DataFrame | None, times: Times, length: np.timedelta64) -> tuple[Times, Floats]:
    """Read funding events within the bars; venues stamp them a few milliseconds late, so seconds are dropped."""
    if frame is None:
        return np.empty(0, "datetime64[ns]"), np.empty((0, 1))
    names = column_names(frame)
    column = next((names[name] for name in RATE_NAMES if name in names), None)
    if column is None:
        raise DataError(
            f"funding: column 'funding_rate' is missing; the columns are {', '.join(map(str, frame.columns))}"
        )
    stamps = _times(frame, names, ("fundingtime", "funding_time", *TIME_NAMES))
    stamps = stamps.astype("datetime64[m]").astype("datetime64[ns]")
    keep = (stamps >= times.min()) & (stamps < times.max() + length)
    return stamps[keep], numbers(frame.loc[keep, column], "funding_rate")[:, None]
