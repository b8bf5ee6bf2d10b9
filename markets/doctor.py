"""Data doctor: finds the defects of a raw candle table before it becomes bars, and repairs some of them if asked.

``diagnose`` reads a table with the column matching of :mod:`markets.frames` and returns findings; it changes nothing.
A finding is an *error* where :class:`~markets.bars.Bars` would refuse the table, else a *warning*. ``repair`` sorts,
drops and un-swaps; it never makes up a price: gaps stay gaps, and of two rows that contradict each other it keeps both.

Every defect is reported once: values are judged on rows in time order, without repeated stamps, and a row that one
detector has explained (swapped columns, late marks) is left alone by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import MARKS, PRICES, Floats, Times, as_interval, as_time
from markets.errors import DataError, unknown
from markets.frames import RATE_NAMES, STAMPS, TIME_NAMES, column_names, read_times

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

FROZEN = 3  # bars in a row that repeat each other before a feed counts as frozen
JUMP = 0.5  # a wick is a move by more than this fraction that is undone within one bar
WINDOW = 24  # bars on either side whose median volumes are compared
DEAR = 50.0  # price from which a switch of base and quote volume stands out from what volume does by itself
EVIDENCE = 5  # rows that must agree before two columns count as swapped
ROUNDS = 4  # repairs after which what is still found is left to its owner
WILD = 0.5  # log range of a bar from which a volume may be sitting in a price column
QUOTE_NAMES = ("quote_volume", "quotevolume", "quote_asset_volume", "volume_quote", "turnover")
FUNDING_TIMES = ("fundingtime", "funding_time", *TIME_NAMES)
ZONE = r"[T ]\d{2}:?\d{2}.*?(Z|[+-]\d{2}(?::?\d{2})?)$"
UNSWAPPABLE = tuple((first, second) for first in ("high", "low") for second in ("open", "close"))


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
    """

    frame: pd.DataFrame
    names: dict[str, Any]
    stamps: Times
    row: Rows
    values: dict[str, Floats]
    interval: np.timedelta64
    now: np.datetime64
    stamp: str

    @property
    def time(self) -> Times:
        """``(T,)`` strictly increasing times."""
        return self.stamps[self.row]

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
    def swaps(self) -> dict[tuple[str, str], Mask]:
        """Pairs of columns -> in which of the T rows they are swapped."""
        found: dict[tuple[str, str], Mask] = {}
        if "" in self.prefixes and "volume" in self.values:
            found = _swapped_with_volume(self)
        for prefix in self.prefixes:
            if prefix or not found:
                found |= _swapped_in_candle(self, prefix) or _swapped_by_continuity(self, prefix)
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
        return _consistent(self.candle(prefix)) & ~self.explained

    def place(self, index: int) -> str:
        """Name one of the T rows by file row and time."""
        return f"row {self.row[index]} ({_text(self.time[index])})"

    def found(self, kind: str, column: str, wrong: Mask, detail: str, **more: Any) -> list[Finding]:
        """Report rows that a mask over the T rows marks; nothing where it marks none."""
        if not wrong.any():
            return []
        first = self.place(int(wrong.argmax()))
        text = f"{detail}; the first is {first}" if wrong.sum() > 1 else f"{detail}: {first}"
        more.setdefault("severity", "error")
        return [Finding(kind, column, int(self.row[wrong][0]), int(wrong.sum()), text, **more)]


def read(frame: pd.DataFrame, interval: str | None = None, now: Any = None, *, stamp: str = "open") -> Table:
    """Read a raw frame leniently: what is no time becomes NaT, what is no number NaN.

    Raises:
        DataError: no time column, or two columns of one name.
    """
    if stamp not in STAMPS:
        raise unknown("stamp", stamp, STAMPS)
    names = column_names(frame)
    stamps = _lenient_times(_time_column(frame, names, TIME_NAMES)[1])
    valid = np.flatnonzero(~np.isnat(stamps))
    order = valid[np.argsort(stamps[valid], kind="stable")]
    row = order[np.concatenate([[True], np.diff(stamps[order]) > np.timedelta64(0)])] if len(order) else order
    present = [name for name in (*PRICES, "volume", *MARKS, *QUOTE_NAMES) if name in names]
    values = {name: _numbers(frame[names[name]])[row] for name in present}
    length = as_interval(interval) if interval else _most_frequent(np.diff(stamps[row]))
    moment = as_time(pd.Timestamp.now("UTC") if now is None else now, "now")
    return Table(frame, names, stamps, row, values, length, moment, stamp)


def diagnose(
    frame: pd.DataFrame,
    interval: str | None = None,
    now: Any = None,
    *,
    stamp: str = "open",
    funding: pd.DataFrame | None = None,
) -> list[Finding]:
    """List the defects of a raw candle table, errors first; the table is not changed.

    Args:
        frame: rows of candles, with a time column or index; see ``Bars.from_frame``.
        interval: bar length; the most frequent step where absent.
        now: the time at which the table was written, default the present: later bars are unfinished.
        stamp: ``"open"`` or ``"close"``, what the time of a row is.
        funding: table of funding events to look at as well.

    Raises:
        DataError: there is no time column to judge by, or two columns have one name.
    """
    table = read(frame, interval, now, stamp=stamp)
    found = [finding for detector in DETECTORS.values() for finding in detector(table)]
    if funding is not None:
        found += [finding for detector in FUNDING_DETECTORS.values() for finding in detector(_events(funding, table))]
    return sorted(found, key=lambda finding: finding.severity)


def repair(frame: pd.DataFrame, findings: Sequence[Finding]) -> tuple[pd.DataFrame, list[str]]:
    """Return a repaired copy and what was done, a sentence a repair; findings that are not repairable are left alone.

    Prices are moved between columns or dropped with their row, never made up.
    """
    table = read(frame, now="2200-01-01")
    fixed, done, drop = frame.copy(), [], np.zeros(len(frame), bool)
    wanted = [finding for finding in findings if finding.repairable]
    for finding in wanted:
        if finding.kind in ("swapped_columns", "switched_volume"):
            done.append(_unswap(fixed, table, finding))
    for kind, (sentence, rows) in DROPS.items():
        for finding in [finding for finding in wanted if finding.kind == kind][:1]:
            gone = rows(table, finding) & ~drop
            drop |= gone
            done.append(f"dropped {gone.sum()} {sentence}")
    kept = np.flatnonzero(~drop)
    if any(finding.kind == "disorder" for finding in wanted):
        order = np.argsort(table.stamps[kept], kind="stable")
        done.append(f"sorted by time: {(order != np.arange(len(order))).sum()} rows moved")
        kept = kept[order]
    fixed = _as_numbers(fixed.iloc[kept], table)
    return (fixed if isinstance(frame.index, pd.DatetimeIndex) else fixed.reset_index(drop=True)), done


def treat(
    frame: pd.DataFrame, interval: str | None = None, now: Any = None, **more: Any
) -> tuple[pd.DataFrame, list[str], list[Finding]]:
    """Diagnose and repair until nothing repairable is left (one defect may hide another).

    Returns:
        The repaired copy, what was done, and the findings that remain.
    """
    done: list[str] = []
    findings = diagnose(frame, interval, now, **more)
    for _ in range(ROUNDS):
        if not any(finding.repairable for finding in findings):
            break
        frame, sentences = repair(frame, findings)
        done += sentences
        findings = diagnose(frame, interval, now, **more)
    return frame, done, findings


# --- detectors of time ------------------------------------------------------------------------------------------------


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
    name, column = _time_column(table.frame, table.names, TIME_NAMES)
    wrong = np.flatnonzero(np.isnat(table.stamps))
    if len(wrong):
        text = f"{len(wrong)} rows without a readable time; the first is row {wrong[0]} ({column.iloc[wrong[0]]!r})"
        yield Finding("unreadable_time", name, int(wrong[0]), len(wrong), text, "error", True)


def _zones(table: Table) -> Iterator[Finding]:
    name, column = _time_column(table.frame, table.names, TIME_NAMES)
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
            "disorder", "time", int(back[0]), len(back), f"{text} ({_text(table.stamps[back[0]])})", "error", True
        )


def _duplicates(table: Table) -> Iterator[Finding]:
    same, differing = _repeats(table)
    for kind, rows, text in (
        ("duplicate", same, "repeat an earlier row in every column"),
        ("conflict", differing, "have the time of an earlier row and other values: only you can tell which is right"),
    ):
        if rows.any():
            first = int(rows.argmax())
            where = f"{rows.sum()} rows {text}; the first is row {first} ({_text(table.stamps[first])})"
            yield Finding(kind, "time", first, int(rows.sum()), where, "error", kind == "duplicate")


def _off_grid(table: Table) -> Iterator[Finding]:
    if table.interval > np.timedelta64(0) and len(table.row) > 1:
        minutes = table.interval / np.timedelta64(60, "s")
        wrong = _phase(table) != _most_common(_phase(table))
        yield from table.found("off_grid", "time", wrong, f"off the {minutes:g}-minute grid of the other rows")


def _gaps(table: Table) -> Iterator[Finding]:
    missing = _missing_before(table)
    if missing.any():
        widest, first = int(missing.argmax()), int((missing > 0).argmax())
        text = f"{missing.sum()} bars are missing in {(missing > 0).sum()} gaps; the largest is {missing[widest]} bars"
        text += f" before {table.place(widest)}"
        yield Finding("gap", "time", int(table.row[first]), int(missing.sum()), text, "warning")


def _unfinished(table: Table) -> Iterator[Finding]:
    wrong = table.time + (table.interval if table.stamp == "open" else np.timedelta64(0)) > table.now
    text = f"bars close after {_text(table.now)}: not finished"
    yield from table.found("unfinished", "time", wrong, text, severity="warning", repairable=True)


# --- detectors of values ----------------------------------------------------------------------------------------------


def _late_marks(table: Table) -> Iterator[Finding]:
    begin = table.marks_begin
    if begin == len(table.row) and begin:
        text = "no row has all four mark prices: drop the columns"
        yield Finding("late_marks", "mark_open", int(table.row[0]), begin, text, "error")
    elif begin:
        text = f"{begin} rows before mark prices begin at {_text(table.time[begin])} (or pass start=that time)"
        yield Finding("late_marks", "mark_open", int(table.row[0]), begin, text, "error", True)


def _not_finite(table: Table) -> Iterator[Finding]:
    for name in _read_by_bars(table):
        wrong = ~np.isfinite(table.values[name])
        if name in MARKS:
            wrong[: table.marks_begin] = False
        kinds = np.isinf(table.values[name][wrong]).sum()
        detail = f"{kinds} infinite, {wrong.sum() - kinds} NaN, empty or no number"
        yield from table.found("not_finite", name, wrong, detail, repairable=True)


def _not_positive(table: Table) -> Iterator[Finding]:
    for name in _read_by_bars(table):
        value = table.values[name]
        price = name != "volume"
        wrong = ((value <= 0) if price else (value < 0)) & np.isfinite(value) & ~table.explained
        kind, text = ("not_positive", "a price of 0 or less") if price else ("negative_volume", "volume below 0")
        yield from table.found(kind, name, wrong, text)


def _inconsistent(table: Table) -> Iterator[Finding]:
    for prefix in table.prefixes:
        candle = table.candle(prefix)
        judged = _readable(candle) & ~table.explained
        opened, high, low, close = candle
        for name, wrong, text in (
            ("high", high < np.maximum(opened, close), "lies below open or close"),
            ("low", low > np.minimum(opened, close), "lies above open or close"),
        ):
            yield from table.found("inconsistent", prefix + name, wrong & judged, f"{prefix}{name} {text}")


def _swapped_columns(table: Table) -> Iterator[Finding]:
    for pair, rows in table.swaps.items():
        prefix = "mark_" if pair[0].startswith("mark_") else ""
        refused = (~_consistent(table.candle(prefix)) & rows).any()
        text = f"{rows.sum()} rows fit together once {pair[0]} and {pair[1]} change places"
        severity = "error" if refused else "warning"
        yield from table.found("swapped_columns", "/".join(pair), rows, text, severity=severity, repairable=True)


def _switched_volume(table: Table) -> Iterator[Finding]:
    if "" not in table.prefixes or "volume" not in table.values:
        return
    quote = _quote(table)
    rows = _switched_by_price(table) if quote is None else _switched_with(table, quote)
    text = "volume looks like quote currency: about price times that of the other rows"
    column = "volume" if quote is None else f"volume/{quote}"
    yield from table.found(
        "switched_volume", column, rows, text, severity="warning", repairable=quote is not None
    )  # fmt: skip


def _frozen(table: Table) -> Iterator[Finding]:
    rows = _frozen_rows(table)
    runs = int((np.diff(rows.astype(int), prepend=0) == 1).sum())
    text = f"frozen feed: {rows.sum()} bars in {runs} runs of {FROZEN} or more repeat the bar before"
    yield from table.found("frozen", "close", rows, text, severity="warning")


def _zero_volume(table: Table) -> Iterator[Finding]:
    if "volume" not in table.values:
        return
    empty, frozen = (table.values["volume"] == 0) & ~table.explained, _frozen_rows(table)
    text = "every bar has volume 0" if empty.all() else "bars without volume"
    if (empty & frozen).any():
        text += f" beside {(empty & frozen).sum()} in frozen runs"
    rows = empty & ~frozen
    yield from table.found("zero_volume", "volume", rows, text, severity="warning")


def _wicks(table: Table) -> Iterator[Finding]:
    if "" not in table.prefixes:
        return
    index = np.flatnonzero(table.sound())
    opened, high, low, close = table.candle()[:, index]
    before, after = np.concatenate([opened[:1], close[:-1]]), np.concatenate([close[1:], close[-1:]])
    for name, wrong in (
        ("high", high > (1 + JUMP) * np.maximum(before, after)),
        ("low", low < (1 - JUMP) * np.minimum(before, after)),
    ):
        rows = np.zeros(len(table.row), bool)
        rows[index[wrong]] = True
        text = f"a move of more than {JUMP:.0%} that is undone by the next close"
        yield from table.found("wick", name, rows, text, severity="warning")


DETECTORS: dict[str, Callable[[Table], Iterator[Finding]]] = {
    "too_few_rows": _too_few_rows,
    "missing_column": _missing_columns,
    "unreadable_time": _unreadable_times,
    "zones": _zones,
    "disorder": _disorder,
    "duplicates": _duplicates,
    "off_grid": _off_grid,
    "gaps": _gaps,
    "unfinished": _unfinished,
    "late_marks": _late_marks,
    "not_finite": _not_finite,
    "not_positive": _not_positive,
    "inconsistent": _inconsistent,
    "swapped_columns": _swapped_columns,
    "switched_volume": _switched_volume,
    "frozen": _frozen,
    "zero_volume": _zero_volume,
    "wicks": _wicks,
}


# --- detectors of funding ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Events:
    """Funding events of the time that the bars cover; ``row`` is their place in the funding file."""

    row: Rows
    time: Times
    rate: Floats
    begin: np.datetime64
    end: np.datetime64


def _events(funding: pd.DataFrame, table: Table) -> _Events:
    names = column_names(funding)
    column = next((names[name] for name in RATE_NAMES if name in names), None)
    if column is None:
        raise DataError(f"funding: no column {RATE_NAMES[0]!r}; the columns are {', '.join(map(str, names))}")
    stamps = _lenient_times(_time_column(funding, names, FUNDING_TIMES)[1])
    stamps = stamps.astype("datetime64[m]").astype("datetime64[ns]")  # venues stamp them a few milliseconds late
    lead = np.timedelta64(0) if table.stamp == "open" else table.interval
    begin, end = (table.time[0] - lead, table.time[-1] - lead + table.interval) if len(table.row) else (table.now,) * 2
    row = np.flatnonzero(np.isnat(stamps) | ((stamps >= begin) & (stamps < end)))
    return _Events(row, stamps[row], _numbers(funding[column])[row], begin, end)


def _funding_values(events: _Events) -> Iterator[Finding]:
    for name, wrong, text in (
        ("timestamp", np.isnat(events.time), "rows without a readable time"),
        ("funding_rate", ~(np.abs(events.rate) < 1), "rates are no fraction below 1"),
    ):
        if wrong.any():
            row = int(events.row[wrong.argmax()])
            yield Finding(
                "funding_value", name, row, int(wrong.sum()), f"{wrong.sum()} {text}; the first is row {row}", "error"
            )


def _funding_order(events: _Events) -> Iterator[Finding]:
    valid = ~np.isnat(events.time)
    row, time = events.row[valid], events.time[valid]
    wrong = np.diff(time) <= np.timedelta64(0)
    if wrong.any():
        first = int(row[1:][wrong][0])
        text = f"{wrong.sum()} events are not later than the one before; the first is row {first}"
        yield Finding("funding_order", "timestamp", first, int(wrong.sum()), text, "error")


def _funding_gaps(events: _Events) -> Iterator[Finding]:
    time, first = np.unique(events.time[~np.isnat(events.time)], return_index=True)
    row = events.row[~np.isnat(events.time)][first]
    if len(time) < 3:
        text = f"{len(time)} funding events from {_text(events.begin)} to {_text(events.end)}"
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
        text += f"{missing[1:-1].sum()} between; the first near {_text(time[place])}"
        yield Finding("funding_gap", "timestamp", int(row[place]), int(missing.sum()), text, "warning")


FUNDING_DETECTORS: dict[str, Callable[[_Events], Iterator[Finding]]] = {
    "funding_value": _funding_values,
    "funding_order": _funding_order,
    "funding_gap": _funding_gaps,
}


# --- what repair drops: kind -> sentence, and which of the N rows of the file -----------------------------------------


def _rows_not_finite(table: Table, finding: Finding) -> Mask:
    """Rows that a not_finite finding counts, in any column; those before the marks begin are another finding."""
    drop = np.zeros(len(table.frame), bool)
    for name in _read_by_bars(table):
        wrong = ~np.isfinite(_numbers(table.frame[table.names[name]]))
        if name in MARKS:
            wrong[table.row[: table.marks_begin]] = False
        drop |= wrong
    return drop


def _rows_before_marks(table: Table, finding: Finding) -> Mask:
    return table.stamps < table.time[table.marks_begin]


def _rows_unfinished(table: Table, finding: Finding) -> Mask:
    return table.stamps >= np.sort(table.time)[-finding.count]


DROPS: dict[str, tuple[str, Callable[[Table, Finding], Mask]]] = {
    "unreadable_time": ("rows without a readable time", lambda table, finding: np.isnat(table.stamps)),
    "duplicate": ("identical duplicates", lambda table, finding: _repeats(table)[0]),
    "late_marks": ("rows before mark prices begin", _rows_before_marks),
    "not_finite": ("rows with a value that is NaN, infinite or no number (each leaves a gap)", _rows_not_finite),
    "unfinished": ("unfinished bars", _rows_unfinished),
}


def _unswap(fixed: pd.DataFrame, table: Table, finding: Finding) -> str:
    """Exchange two columns in the rows of a finding, in place."""
    first, second = finding.column.split("/")
    if finding.kind == "swapped_columns":
        rows = table.swaps[first, second]
    else:
        rows = _switched_with(table, second)
    mask = np.zeros(len(fixed), bool)
    mask[table.row[rows]] = True
    one, other = table.names[first], table.names[second]
    fixed[one], fixed[other] = fixed[one].where(~mask, fixed[other]), fixed[other].where(~mask, fixed[one])
    return f"exchanged {first} and {second} in {mask.sum()} rows"


def _as_numbers(fixed: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Store columns as numbers whose last text has gone with its row."""
    fixed = fixed.copy()
    for name in table.values:
        column = table.names[name]
        numbers = pd.to_numeric(fixed[column], errors="coerce")
        if not pd.api.types.is_numeric_dtype(fixed[column]) and numbers.notna().all():
            fixed[column] = numbers
    return fixed


# --- reading ----------------------------------------------------------------------------------------------------------


def _time_column(frame: pd.DataFrame, names: dict[str, Any], candidates: tuple[str, ...]) -> tuple[str, pd.Series]:
    found = next((name for name in candidates if name in names), None)
    if found is not None:
        return found, frame[names[found]]
    if isinstance(frame.index, pd.DatetimeIndex):
        return "index", frame.index.to_series()
    raise DataError(
        f"no time column: expected a DatetimeIndex or one of {', '.join(candidates)}; the columns are "
        f"{', '.join(map(str, frame.columns))}. Use rename=old:timestamp to name one"
    )


def _lenient_times(column: pd.Series) -> Times:
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


def _numbers(column: pd.Series) -> Floats:
    return np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


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


def _most_frequent(steps: NDArray[np.timedelta64]) -> np.timedelta64:
    return np.timedelta64(_most_common(steps), "ns") if len(steps) else np.timedelta64(0, "ns")


def _most_common(values: NDArray[Any]) -> Any:
    found, counts = np.unique(values, return_counts=True)
    return found[counts.argmax()]


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, "m"))


# --- judging ----------------------------------------------------------------------------------------------------------


def _read_by_bars(table: Table) -> list[str]:
    return [name for name in (*PRICES, "volume", *MARKS) if name in table.values]


def _repeats(table: Table) -> tuple[Mask, Mask]:
    """Which of the N rows repeat an earlier row whole, and which only its time."""
    name, _ = _time_column(table.frame, table.names, TIME_NAMES)
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
    length = table.interval.astype(np.int64)
    offset = table.time.astype(np.int64) - int(_most_common(_phase(table)))
    slots = (offset + length // 2) // length
    return np.maximum(np.diff(slots, prepend=slots[0] - 1) - 1, 0)


def _readable(candle: Floats) -> Mask:
    good: Mask = np.logical_and.reduce(np.isfinite(candle) & (candle > 0))
    return good


def _consistent(candle: Floats) -> Mask:
    """Rows of finite positive prices with low <= open, close <= high."""
    opened, high, low, close = candle
    fits: Mask = (high >= np.maximum(opened, close)) & (low <= np.minimum(opened, close))
    return fits & _readable(candle)


def _exchanged(candle: Floats, first: str, second: str) -> Floats:
    a, b = PRICES.index(first), PRICES.index(second)
    copy = candle.copy()
    copy[[a, b]] = candle[[b, a]]
    return copy


def _swapped_in_candle(table: Table, prefix: str) -> dict[tuple[str, str], Mask]:
    """Rows that contradict themselves and no longer do so once two prices change places.

    A high below the low is proof in a single row. Any other pair needs several rows that lie together.
    """
    candle = table.candle(prefix)
    bad = _readable(candle) & ~_consistent(candle)
    if not bad.any():
        return {}
    turned = bad & (candle[1] < candle[2]) & _consistent(_exchanged(candle, "high", "low"))
    found = {("high", "low"): turned} if turned.any() else {}
    span = slice(int(bad.argmax()), len(bad) - int(bad[::-1].argmax()))
    for first, second in UNSWAPPABLE:
        mended = bad & ~turned & _consistent(_exchanged(candle, first, second))
        if mended.sum() >= max(EVIDENCE, 0.95 * bad.sum()) and bad[span].mean() > 0.5:
            found = {(first, second): mended}
    return {(prefix + first, prefix + second): rows for (first, second), rows in found.items()}


def _swapped_by_continuity(table: Table, prefix: str) -> dict[tuple[str, str], Mask]:
    """Open and close exchanged in the whole table: a bar closes where the one *before* it opens."""
    candle = table.candle(prefix)
    good = _consistent(candle)
    pairs = good[1:] & good[:-1] & (np.diff(table.time) == table.interval)
    if pairs.sum() < 4 * EVIDENCE:
        return {}
    opened, close = (np.log(candle[place], where=good, out=np.zeros(len(good))) for place in (0, 3))
    usual, turned = np.abs(opened[1:] - close[:-1])[pairs], np.abs(close[1:] - opened[:-1])[pairs]
    if np.median(turned) < 0.25 * np.median(usual):
        return {(prefix + "open", prefix + "close"): good}
    return {}


def _swapped_with_volume(table: Table) -> dict[tuple[str, str], Mask]:
    """Rows whose wild range becomes a calm one once the volume and one price change places."""
    candle, volume = table.candle(), table.values["volume"]
    wild = np.isfinite(candle).all(axis=0) & (volume > 0) & (_range(candle) > WILD)
    for place, name in enumerate(PRICES):
        other = candle.copy()
        other[place] = volume
        calm = wild & _consistent(other) & (_range(other) < 0.1 * _range(candle))
        if calm.sum() < EVIDENCE:
            continue
        span = slice(int(calm.argmax()), len(calm) - int(calm[::-1].argmax()))
        if calm[span].mean() > 0.8:
            rows = np.zeros(len(calm), bool)
            rows[span] = _consistent(other)[span]
            return {(name, "volume"): rows}
    return {}


def _range(candle: Floats) -> Floats:
    """Log range of each bar, infinite where a price is not positive."""
    least, most = candle.min(axis=0), candle.max(axis=0)
    good = np.isfinite(most) & (least > 0)
    return np.log(np.divide(most, least, where=good, out=np.full(len(good), np.inf)))


def _quote(table: Table) -> str | None:
    return next((name for name in QUOTE_NAMES if name in table.values), None)


def _switched_with(table: Table, quote: str) -> Mask:
    """Rows in which volume over quote volume is the price, and not one over it."""
    volume, other, close = table.values["volume"], table.values[quote], table.values["close"]
    good = (volume > 0) & (other > 0) & table.sound() & (close > np.e) & np.isfinite(volume) & np.isfinite(other)
    ratio = np.log(np.divide(volume, other, where=good, out=np.ones(len(good))))
    level = np.log(close, where=good, out=np.full(len(good), np.inf))
    return good & (np.abs(ratio - level) < 0.25)


def _switched_by_price(table: Table) -> Mask:
    """Rows between two sharp steps of the median volume by about the price; parts of under 12 bars are not seen."""
    volume, close, good = table.values["volume"], table.values["close"], table.sound()
    size = pd.Series(np.log(volume, where=(volume > 0) & good, out=np.full(len(good), np.nan)))
    level = np.log(close, where=good, out=np.full(len(good), np.nan))
    before = np.array(size.rolling(WINDOW, min_periods=WINDOW // 2).median().shift(1))
    after = np.array(size[::-1].rolling(WINDOW, min_periods=WINDOW // 2).median()[::-1])
    step, sudden = after - before, np.array(size.diff())
    near = (np.abs(np.abs(step) - level) < 1) & (level > np.log(DEAR)) & (np.sign(step) * sudden > level / 2)
    rows, last, quote = np.zeros(len(good), bool), 0, False
    for index in np.flatnonzero(near):
        quote = bool(step[index] < 0)  # what ends here was quote volume where the step goes down
        rows[last:index] = quote
        last, quote = int(index), not quote
    rows[last:] = quote
    return rows


def _frozen_rows(table: Table) -> Mask:
    """Rows in runs of at least ``FROZEN`` bars that repeat each other in price and volume."""
    still = np.zeros(len(table.row), bool)
    if "" not in table.prefixes or "volume" not in table.values or len(still) < FROZEN:
        return still
    values = np.vstack([table.candle(), table.values["volume"]])
    same = (values[:, 1:] == values[:, :-1]).all(axis=0) & ~table.explained[1:] & ~table.explained[:-1]
    whole = np.logical_and.reduce(np.lib.stride_tricks.sliding_window_view(same, FROZEN - 1), axis=1)
    for shift in range(FROZEN):
        still[shift : shift + len(whole)] |= whole
    return still
