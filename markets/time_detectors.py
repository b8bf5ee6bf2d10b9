"""Detectors of defects in the rows and times of a raw candle table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import MARKS, PRICES
from markets.candles import Mask
from markets.frames import TIME_NAMES
from markets.raw_table import Finding, Table, most_common, time_column, written
from markets.session_calendar import MINUTE, SESSION_MARKETS, missing_before
from markets.sessions import in_session, sessions_at

ZONE = r"[T ]\d{2}:?\d{2}.*?(Z|[+-]\d{2}(?::?\d{2})?)$"


def _too_few_rows(table: Table) -> Iterator[Finding]:
    if len(table.frame) < 2:
        yield Finding("too_few_rows", "", 0, len(table.frame), f"{len(table.frame)} rows: 2 are needed", "error")


def _missing_columns(table: Table) -> Iterator[Finding]:
    missing = [name for name in (*PRICES, "volume") if name not in table.names]
    if any(name in table.names for name in MARKS):
        missing += [name for name in MARKS if name not in table.names]
    there = ", ".join(map(str, table.frame.columns))
    for name in missing:
        yield Finding("missing_column", name, 0, len(table.frame), f"is missing; the columns are {there}", "error")


def _unreadable_times(table: Table) -> Iterator[Finding]:
    name, column = time_column(table.frame, table.names, TIME_NAMES)
    wrong = np.flatnonzero(np.isnat(table.stamps))
    if len(wrong):
        text = f"{len(wrong)} rows without a readable time; the first is row {wrong[0]} ({column.iloc[wrong[0]]!r})"
        yield Finding("unreadable_time", name, int(wrong[0]), len(wrong), text, "error", True)


def _zones(table: Table) -> Iterator[Finding]:
    name, column = time_column(table.frame, table.names, TIME_NAMES)
    zones = _zones_of(column[~np.isnat(table.stamps)])
    if len(zones) > 1:
        text = ", ".join(f"{count} rows {zone or 'without a zone'}" for zone, count in zones.items())
        yield _about_times(name, "mixed_zones", zones, f"{text}; all are converted to UTC, those without are UTC")
    elif "" in zones:
        yield _about_times(name, "naive_zone", zones, "times without a zone are read as UTC")


def _disorder(table: Table) -> Iterator[Finding]:
    valid = np.flatnonzero(~np.isnat(table.stamps))
    back = valid[1:][np.diff(table.stamps[valid]) < np.timedelta64(0)]
    if len(back):
        text = f"{len(back)} rows are earlier than the row before; the first is row {back[0]}"
        yield Finding(
            "disorder", "time", int(back[0]), len(back), f"{text} ({written(table.stamps[back[0]])})", "error", True
        )


def _duplicates(table: Table) -> Iterator[Finding]:
    same, differing = repeats(table)
    for kind, rows, text in (
        ("duplicate", same, "repeat an earlier row in every column"),
        ("conflict", differing, "have the time of an earlier row and other values: only you can tell which is right"),
    ):
        if rows.any():
            first = int(rows.argmax())
            where = f"{rows.sum()} rows {text}; the first is row {first} ({written(table.stamps[first])})"
            yield Finding(kind, "time", first, int(rows.sum()), where, "error", kind == "duplicate")


def _off_grid(table: Table) -> Iterator[Finding]:
    if table.interval > np.timedelta64(0) and len(table.row) > 1:
        minutes = table.interval / np.timedelta64(60, "s")
        wrong = _phase(table) != most_common(_phase(table))
        yield from table.found("off_grid", "time", wrong, f"off the {minutes:g}-minute grid of the other rows")


def _gaps(table: Table) -> Iterator[Finding]:
    missing = _missing_before(table)
    if missing.any():
        widest, first = int(missing.argmax()), int((missing > 0).argmax())
        text = f"{missing.sum()} bars are missing in {(missing > 0).sum()} gaps; the largest is {missing[widest]} bars"
        text += f" before {table.place(widest)}"
        yield Finding("gap", "time", int(table.row[first]), int(missing.sum()), text, "warning")


def _sessions(table: Table) -> Iterator[Finding]:
    if table.market not in SESSION_MARKETS or table.interval != MINUTE or not len(table.row):
        return
    outside = ~in_session(table.opening, table.interval)
    text = "bars outside the regular sessions: left out when the file is loaded"
    yield from table.found("outside_session", "time", outside, text, severity="warning")
    inside = np.flatnonzero(~outside)
    opening = table.opening[inside]
    found = sessions_at(opening - (opening - opening.astype("datetime64[m]")))  # one off the grid is told as that
    short = np.zeros(len(table.row), bool)
    short[inside[found.first[~found.complete]]] = True
    text = f"unfinished sessions of {len(found)}: dropped where a session is an episode"
    yield from table.found("unfinished_session", "time", short, text, severity="warning")


def _unfinished(table: Table) -> Iterator[Finding]:
    wrong = table.time + (table.interval if table.stamp == "open" else np.timedelta64(0)) > table.now
    text = f"bars close after {written(table.now)}: not finished"
    yield from table.found("unfinished", "time", wrong, text, severity="warning", repairable=True)


TIME_DETECTORS: dict[str, Callable[[Table], Iterator[Finding]]] = {
    "too_few_rows": _too_few_rows,
    "missing_column": _missing_columns,
    "unreadable_time": _unreadable_times,
    "zones": _zones,
    "disorder": _disorder,
    "duplicates": _duplicates,
    "off_grid": _off_grid,
    "gaps": _gaps,
    "sessions": _sessions,
    "unfinished": _unfinished,
}


def repeats(table: Table) -> tuple[Mask, Mask]:
    """Which of the N rows repeat an earlier row whole, and which only its time."""
    name, _ = time_column(table.frame, table.names, TIME_NAMES)
    content = table.frame.drop(columns=table.names[name]) if name in table.names else table.frame
    content = content.reset_index(drop=True)
    content.insert(0, "\0stamp", table.stamps)
    valid = ~np.isnat(table.stamps)
    again = np.array(pd.Series(table.stamps).duplicated()) & valid
    same = np.array(content.duplicated()) & valid
    return same, again & ~same


def _phase(table: Table) -> NDArray[np.int64]:
    return table.time.astype(np.int64) % table.interval.astype(np.int64)


def _missing_before(table: Table) -> NDArray[np.int64]:
    """``(T,)`` whole bars that are missing before each; a bar off the grid counts for the nearest place on it."""
    if len(table.row) < 2 or table.interval <= np.timedelta64(0):
        return np.zeros(len(table.row), np.int64)
    if table.market in SESSION_MARKETS:
        return missing_before(table.opening, table.interval)
    length = table.interval.astype(np.int64)
    offset = table.time.astype(np.int64) - int(most_common(_phase(table)))
    slots = (offset + length // 2) // length
    return np.maximum(np.diff(slots, prepend=slots[0] - 1) - 1, 0)


def _zones_of(column: pd.Series) -> dict[str, int]:
    """Zone -> rows that carry it, ``""`` for none; epoch numbers have no zone to be wrong about."""
    if pd.api.types.is_numeric_dtype(column):
        return {}
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return {str(column.dtype.tz): len(column)}
    if pd.api.types.is_datetime64_any_dtype(column):
        return {"": len(column)}
    text = column.dropna().astype(str)
    zones = text.str.extract(ZONE, expand=False).fillna("").replace(["+00:00", "+0000", "+00"], "Z")
    return {str(zone): int(count) for zone, count in zones.value_counts().items()}


def _about_times(name: str, kind: str, zones: dict[str, int], text: str) -> Finding:
    return Finding(kind, name, 0, min(zones.values()), text, "warning")
