"""A raw candle table as the data doctor reads it, leniently, and the findings that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import MARKS, PRICES, Floats, Times, as_interval, as_time
from markets.candles import Mask, Swaps, consistent, swapped_by_continuity, swapped_in_candle, swapped_with_volume
from markets.errors import DataError, unknown
from markets.frames import STAMPS, TIME_NAMES, column_names, read_times

Rows = NDArray[np.int64]

QUOTE_NAMES = ("quote_volume", "quotevolume", "quote_asset_volume", "volume_quote", "turnover")


@dataclass(frozen=True)
class Finding:
    """One defect: what, in which column, from which row of the file (0 is the first) on, and how often."""

    kind: str
    column: str
    first_row: int
    count: int
    detail: str
    severity: Literal["error", "warning"]
    repairable: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """A raw table as the detectors see it.

    Attributes:
        frame: the table as given, N rows.
        names: lower-case name -> column of the frame.
        stamps: ``(N,)`` times in file order, NaT where unreadable.
        row: ``(T,)`` positions in the file, in order of time, the first row of each stamp only.
        values: name -> ``(T,)`` float64, NaN where there is no number.
        interval: length of a bar; 0 where the table does not tell.
        now: bars that close later are unfinished.
        stamp: whether a time is a bar's opening or its close.
        market: kind of market; one with sessions has no gaps at night.
    """

    frame: pd.DataFrame
    names: dict[str, Any]
    stamps: Times
    row: Rows
    values: dict[str, Floats]
    interval: np.timedelta64
    now: np.datetime64
    stamp: str
    market: str = "crypto"

    @property
    def time(self) -> Times:
        """``(T,)`` strictly increasing times."""
        return self.stamps[self.row]

    @property
    def opening(self) -> Times:
        """``(T,)`` when each bar opens."""
        return self.time if self.stamp == "open" else self.time - self.interval

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Which candles are complete: trades (no prefix) and marks."""
        return tuple(prefix for prefix in ("", "mark_") if all(prefix + name in self.values for name in PRICES))

    def candle(self, prefix: str = "") -> Floats:
        """``(4, T)`` open, high, low, close."""
        return np.array([self.values[prefix + name] for name in PRICES])

    @cached_property
    def marks_begin(self) -> int:
        """First of the T rows that has all four mark prices; T where none has, 0 where there are no marks."""
        if "mark_" not in self.prefixes:
            return 0
        whole: Mask = np.logical_and.reduce(np.isfinite(self.candle("mark_")))
        return int(whole.argmax()) if whole.any() else len(whole)

    @cached_property
    def swaps(self) -> Swaps:
        """Pairs of columns -> in which of the T rows they are swapped."""
        found: Swaps = {}
        if "" in self.prefixes and "volume" in self.values:
            found = swapped_with_volume(self.candle(), self.values["volume"])
        for prefix in self.prefixes:
            if prefix or not found:
                candle = self.candle(prefix)
                pairs = swapped_in_candle(candle) or swapped_by_continuity(candle, self.time, self.interval)
                found |= {(prefix + first, prefix + second): rows for (first, second), rows in pairs.items()}
        return found

    @cached_property
    def explained(self) -> Mask:
        """Rows whose prices are in each other's columns: no other detector judges them."""
        rows = np.zeros(len(self.row), bool)
        for swapped in self.swaps.values():
            rows |= swapped
        return rows

    def sound(self, prefix: str = "") -> Mask:
        """Rows of positive, finite, consistent prices in their own columns."""
        return consistent(self.candle(prefix)) & ~self.explained

    def place(self, index: int) -> str:
        """Name one of the T rows by file row and time."""
        return f"row {self.row[index]} ({written(self.time[index])})"

    def found(self, kind: str, column: str, wrong: Mask, detail: str, **more: Any) -> list[Finding]:
        """Report rows that a mask over the T rows marks; nothing where it marks none."""
        if not wrong.any():
            return []
        first = self.place(int(wrong.argmax()))
        text = f"{detail}; the first is {first}" if wrong.sum() > 1 else f"{detail}: {first}"
        more.setdefault("severity", "error")
        return [Finding(kind, column, int(self.row[wrong][0]), int(wrong.sum()), text, **more)]


def read(
    frame: pd.DataFrame, interval: str | None = None, now: Any = None, *, stamp: str = "open", market: str = "crypto"
) -> Table:
    """Read a raw frame leniently: what is no time becomes NaT, what is no number NaN.

    Raises:
        DataError: no time column, or two columns of one name.
    """
    if stamp not in STAMPS:
        raise unknown("stamp", stamp, STAMPS)
    names = column_names(frame)
    stamps = lenient_times(time_column(frame, names, TIME_NAMES)[1])
    valid = np.flatnonzero(~np.isnat(stamps))
    order = valid[np.argsort(stamps[valid], kind="stable")]
    row = order[np.concatenate([[True], np.diff(stamps[order]) > np.timedelta64(0)])] if len(order) else order
    present = [name for name in (*PRICES, "volume", *MARKS, *QUOTE_NAMES) if name in names]
    values = {name: lenient_numbers(frame[names[name]])[row] for name in present}
    length = as_interval(interval) if interval else _most_frequent(np.diff(stamps[row]))
    moment = as_time(pd.Timestamp.now("UTC") if now is None else now, "now")
    return Table(frame, names, stamps, row, values, length, moment, stamp, market)


def time_column(frame: pd.DataFrame, names: dict[str, Any], candidates: tuple[str, ...]) -> tuple[str, pd.Series]:
    """Return name and content of the first candidate that is there, or of a DatetimeIndex.

    Raises:
        DataError: there is neither.
    """
    found = next((name for name in candidates if name in names), None)
    if found is not None:
        return found, frame[names[found]]
    if isinstance(frame.index, pd.DatetimeIndex):
        return "index", frame.index.to_series()
    raise DataError(
        f"no time column: expected a DatetimeIndex or one of {', '.join(candidates)}; the columns are "
        f"{', '.join(map(str, frame.columns))}. Use rename=old:timestamp to name one"
    )


def lenient_times(column: pd.Series) -> Times:
    """Read times as ``read_times`` does; what it would refuse becomes NaT."""
    times = np.full(len(column), np.datetime64("NaT", "ns"))
    if pd.api.types.is_numeric_dtype(column):
        good = (column.abs() < 9e18).to_numpy()
    else:
        text = None if pd.api.types.is_datetime64_any_dtype(column) else "ISO8601"
        good = pd.to_datetime(column, utc=True, errors="coerce", format=text).notna().to_numpy()
    if good.any():
        times[good] = read_times(column[good], str(column.name))
    return times


def lenient_numbers(column: pd.Series) -> Floats:
    """Read numbers; what is none becomes NaN."""
    return np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def _most_frequent(steps: NDArray[np.timedelta64]) -> np.timedelta64:
    return np.timedelta64(most_common(steps), "ns") if len(steps) else np.timedelta64(0, "ns")


def most_common(values: NDArray[Any]) -> Any:
    """Return the value that occurs most often, the smallest of several."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts.argmax()]


def written(time: np.datetime64) -> str:
    """Write a time to the minute."""
    return str(np.datetime_as_string(time, "m"))


def read_by_bars(table: Table) -> list[str]:
    """Name the columns of numbers that :class:`~markets.bars.Bars` reads."""
    return [name for name in (*PRICES, "volume", *MARKS) if name in table.values]
