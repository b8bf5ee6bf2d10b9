"""Detectors of defects in the prices and volumes of a raw candle table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from markets.bars import MARKS
from markets.candles import consistent, readable
from markets.raw_table import Finding, Table, read_by_bars, written
from markets.volumes import (
    FROZEN,
    frozen_rows,
    quote_column,
    still_bars,
    still_rows,
    switched_by_price,
    switched_with,
)

JUMP = 0.5  # a wick is a move by more than this fraction that is undone within one bar


def _late_marks(table: Table) -> Iterator[Finding]:
    begin = table.marks_begin
    if begin == len(table.row) and begin:
        text = "no row has all four mark prices: drop the columns"
        yield Finding("late_marks", "mark_open", int(table.row[0]), begin, text, "error")
    elif begin:
        text = f"{begin} rows before mark prices begin at {written(table.time[begin])} (or pass start=that time)"
        yield Finding("late_marks", "mark_open", int(table.row[0]), begin, text, "error", True)


def _not_finite(table: Table) -> Iterator[Finding]:
    for name in read_by_bars(table):
        wrong = ~np.isfinite(table.values[name])
        if name in MARKS:
            wrong[: table.marks_begin] = False
        kinds = np.isinf(table.values[name][wrong]).sum()
        detail = f"{kinds} infinite, {wrong.sum() - kinds} NaN, empty or no number"
        yield from table.found("not_finite", name, wrong, detail, repairable=True)


def _not_positive(table: Table) -> Iterator[Finding]:
    for name in read_by_bars(table):
        value = table.values[name]
        price = name != "volume"
        wrong = ((value <= 0) if price else (value < 0)) & np.isfinite(value) & ~table.explained
        kind, text = ("not_positive", "a price of 0 or less") if price else ("negative_volume", "volume below 0")
        yield from table.found(kind, name, wrong, text)


def _inconsistent(table: Table) -> Iterator[Finding]:
    for prefix in table.prefixes:
        candle = table.candle(prefix)
        judged = readable(candle) & ~table.explained
        opened, high, low, close = candle
        for name, wrong, text in (
            ("high", high < np.maximum(opened, close), "lies below open or close"),
            ("low", low > np.minimum(opened, close), "lies above open or close"),
        ):
            yield from table.found("inconsistent", prefix + name, wrong & judged, f"{prefix}{name} {text}")


def _swapped_columns(table: Table) -> Iterator[Finding]:
    for pair, rows in table.swaps.items():
        prefix = "mark_" if pair[0].startswith("mark_") else ""
        refused = (~consistent(table.candle(prefix)) & rows).any()
        text = f"{rows.sum()} rows fit together once {pair[0]} and {pair[1]} change places"
        severity = "error" if refused else "warning"
        yield from table.found("swapped_columns", "/".join(pair), rows, text, severity=severity, repairable=True)


def _switched_volume(table: Table) -> Iterator[Finding]:
    if "" not in table.prefixes or "volume" not in table.values:
        return
    quote = quote_column(table)
    rows = switched_by_price(table) if quote is None else switched_with(table, quote)
    text = "volume looks like quote currency: about price times that of the other rows"
    column = "volume" if quote is None else f"volume/{quote}"
    yield from table.found(
        "switched_volume", column, rows, text, severity="warning", repairable=quote is not None
    )  # fmt: skip


def _frozen(table: Table) -> Iterator[Finding]:
    rows = frozen_rows(table)
    runs = int((np.diff(rows.astype(int), prepend=0) == 1).sum())
    text = f"frozen feed: {rows.sum()} bars in {runs} runs of {FROZEN} or more repeat the bar before"
    yield from table.found("frozen", "close", rows, text, severity="warning")


def _still_prices(table: Table) -> Iterator[Finding]:
    rows = still_rows(table)
    runs = int((np.diff(rows.astype(int), prepend=0) == 1).sum())
    text = f"frozen prices: {rows.sum()} bars in {runs} runs of {still_bars(table.interval)} or more repeat all four "
    text += "prices of the bar before while volume moves"
    yield from table.found("still_prices", "close", rows, text, severity="warning")


def _zero_volume(table: Table) -> Iterator[Finding]:
    if "volume" not in table.values:
        return
    empty, frozen = (table.values["volume"] == 0) & ~table.explained, frozen_rows(table)
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


VALUE_DETECTORS: dict[str, Callable[[Table], Iterator[Finding]]] = {
    "late_marks": _late_marks,
    "not_finite": _not_finite,
    "not_positive": _not_positive,
    "inconsistent": _inconsistent,
    "swapped_columns": _swapped_columns,
    "switched_volume": _switched_volume,
    "frozen": _frozen,
    "still_prices": _still_prices,
    "zero_volume": _zero_volume,
    "wicks": _wicks,
}
