"""Detectors of defects in a table of funding events, of the time that the bars cover."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from markets.bars import Floats, Times
from markets.errors import DataError
from markets.frames import RATE_NAMES, TIME_NAMES, column_names
from markets.raw_table import Finding, Rows, Table, lenient_numbers, lenient_times, time_column, written

FUNDING_TIMES = ("fundingtime", "funding_time", *TIME_NAMES)


@dataclass(frozen=True, eq=False)
class Events:
    """Funding events of the time that the bars cover; ``row`` is their place in the funding file."""

    row: Rows
    time: Times
    rate: Floats
    begin: np.datetime64
    end: np.datetime64


def read_events(funding: pd.DataFrame, table: Table) -> Events:
    """Read funding events leniently.

    Raises:
        DataError: no column of times or of rates.
    """
    names = column_names(funding)
    column = next((names[name] for name in RATE_NAMES if name in names), None)
    if column is None:
        raise DataError(f"funding: no column {RATE_NAMES[0]!r}; the columns are {', '.join(map(str, names))}")
    stamps = lenient_times(time_column(funding, names, FUNDING_TIMES)[1])
    stamps = stamps.astype("datetime64[m]").astype("datetime64[ns]")  # venues stamp them a few milliseconds late
    lead = np.timedelta64(0) if table.stamp == "open" else table.interval
    begin, end = (table.time[0] - lead, table.time[-1] - lead + table.interval) if len(table.row) else (table.now,) * 2
    row = np.flatnonzero(np.isnat(stamps) | ((stamps >= begin) & (stamps < end)))
    return Events(row, stamps[row], lenient_numbers(funding[column])[row], begin, end)


def _funding_values(events: Events) -> Iterator[Finding]:
    for name, wrong, text in (
        ("timestamp", np.isnat(events.time), "rows without a readable time"),
        ("funding_rate", ~(np.abs(events.rate) < 1), "rates are no fraction below 1"),
    ):
        if wrong.any():
            row = int(events.row[wrong.argmax()])
            yield Finding(
                "funding_value", name, row, int(wrong.sum()), f"{wrong.sum()} {text}; the first is row {row}", "error"
            )


def _funding_order(events: Events) -> Iterator[Finding]:
    valid = ~np.isnat(events.time)
    row, time = events.row[valid], events.time[valid]
    wrong = np.diff(time) <= np.timedelta64(0)
    if wrong.any():
        first = int(row[1:][wrong][0])
        text = f"{wrong.sum()} events are not later than the one before; the first is row {first}"
        yield Finding("funding_order", "timestamp", first, int(wrong.sum()), text, "error")


def _funding_gaps(events: Events) -> Iterator[Finding]:
    time, first = np.unique(events.time[~np.isnat(events.time)], return_index=True)
    row = events.row[~np.isnat(events.time)][first]
    if len(time) < 3:
        text = f"{len(time)} funding events from {written(events.begin)} to {written(events.end)}"
        yield Finding("funding_gap", "timestamp", 0, 0, text, "warning")
        return
    steps = np.diff(time).astype(np.float64)
    usual = np.array(pd.Series(steps).rolling(11, min_periods=1, center=True).median())  # venues change 8 h to 4 h
    missing = np.rint(steps / usual).astype(int) - 1
    head = int((time[0] - events.begin).astype(np.float64) // usual[0])
    tail = int(((events.end - time[-1]).astype(np.float64) - 1) // usual[-1])
    missing = np.concatenate([[head], np.maximum(missing, 0), [tail]])
    if missing.any():
        place = min(int((missing > 0).argmax()), len(time) - 1)
        text = f"{missing.sum()} events are missing: {head} before the first, {tail} after the last, "
        text += f"{missing[1:-1].sum()} between; the first near {written(time[place])}"
        yield Finding("funding_gap", "timestamp", int(row[place]), int(missing.sum()), text, "warning")


FUNDING_DETECTORS: dict[str, Callable[[Events], Iterator[Finding]]] = {
    "funding_value": _funding_values,
    "funding_order": _funding_order,
    "funding_gap": _funding_gaps,
}
