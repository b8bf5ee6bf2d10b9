"""Repairs of a raw candle table: sort, drop, un-swap; a price is moved or dropped with its row, never made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from markets.bars import MARKS
from markets.candles import Mask
from markets.raw_table import Finding, Table, lenient_numbers, read, read_by_bars
from markets.time_detectors import repeats
from markets.volumes import switched_with


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


def _rows_not_finite(table: Table, finding: Finding) -> Mask:
    """Rows that a not_finite finding counts, in any column; those before the marks begin are another finding."""
    drop = np.zeros(len(table.frame), bool)
    for name in read_by_bars(table):
        wrong = ~np.isfinite(lenient_numbers(table.frame[table.names[name]]))
        if name in MARKS:
            wrong[table.row[: table.marks_begin]] = False
        drop |= wrong
    return drop


def _rows_before_marks(table: Table, finding: Finding) -> Mask:
    return table.stamps < table.time[table.marks_begin]


def _rows_unfinished(table: Table, finding: Finding) -> Mask:
    return table.stamps >= np.sort(table.time)[-finding.count]


def _row_cut(table: Table, finding: Finding) -> Mask:
    return np.arange(len(table.frame)) == finding.first_row


# kind -> sentence, and which of the N rows of the file are dropped
DROPS: dict[str, tuple[str, Callable[[Table, Finding], Mask]]] = {
    "unreadable_time": ("rows without a readable time", lambda table, finding: np.isnat(table.stamps)),
    "duplicate": ("identical duplicates", lambda table, finding: repeats(table)[0]),
    "late_marks": ("rows before mark prices begin", _rows_before_marks),
    "not_finite": ("rows with a value that is NaN, infinite or no number (each leaves a gap)", _rows_not_finite),
    "unfinished": ("unfinished bars", _rows_unfinished),
    "cut_line": ("rows that end in the middle of a number", _row_cut),
}


def _unswap(fixed: pd.DataFrame, table: Table, finding: Finding) -> str:
    """Exchange two columns in the rows of a finding, in place."""
    first, second = finding.column.split("/")
    if finding.kind == "swapped_columns":
        rows = table.swaps[first, second]
    else:
        rows = switched_with(table, second)
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
