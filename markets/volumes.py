"""Judging volumes: feeds that stand still, and volumes in quote currency."""

from __future__ import annotations

import numpy as np
import pandas as pd

from markets.bars import Floats
from markets.candles import Mask
from markets.raw_table import QUOTE_NAMES, Table

FROZEN = 3  # bars in a row that repeat each other before a feed counts as frozen
WINDOW = 24  # bars on either side whose median volumes are compared
STILL = 5  # bars in a row that repeat all four prices, whatever their volume, before a feed counts as frozen ...
STILL_TIME = np.timedelta64(20, "m")  # ... and the time they cover: thin minutes repeat a price up to 5 times in a row
DEAR = 50.0  # price from which a switch of base and quote volume stands out from what volume does by itself


def quote_column(table: Table) -> str | None:
    """Name the column of quote volumes, where there is one."""
    return next((name for name in QUOTE_NAMES if name in table.values), None)


def switched_with(table: Table, quote: str) -> Mask:
    """Rows in which volume over quote volume is the price, and not one over it."""
    volume, other, close = table.values["volume"], table.values[quote], table.values["close"]
    good = (volume > 0) & (other > 0) & table.sound() & (close > np.e) & np.isfinite(volume) & np.isfinite(other)
    ratio = np.log(np.divide(volume, other, where=good, out=np.ones(len(good))))
    level = np.log(close, where=good, out=np.full(len(good), np.inf))
    return good & (np.abs(ratio - level) < 0.25)


def switched_by_price(table: Table) -> Mask:
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


def frozen_rows(table: Table) -> Mask:
    """Rows in runs of at least ``FROZEN`` bars that repeat each other in price and volume."""
    still = np.zeros(len(table.row), bool)
    if "" not in table.prefixes or "volume" not in table.values or len(still) < FROZEN:
        return still
    return _runs(table, np.vstack([table.candle(), table.values["volume"]]), FROZEN)


def still_bars(interval: np.timedelta64) -> int:
    """Return how many bars of a length must repeat all four prices before their feed counts as frozen."""
    return max(STILL, int(np.ceil(STILL_TIME / interval))) if interval > np.timedelta64(0) else STILL


def still_rows(table: Table) -> Mask:
    """Rows in runs of at least :func:`still_bars` that repeat each other in all four prices, and are not frozen rows.

    Volume moves there: a feed that lost its prices and not its trade counter, or prices that somebody filled in.
    """
    if "" not in table.prefixes:
        return np.zeros(len(table.row), bool)
    return _runs(table, table.candle(), still_bars(table.interval)) & ~frozen_rows(table)


def _runs(table: Table, values: Floats, least: int) -> Mask:
    """Rows in runs of at least ``least`` of the T columns of ``values`` that equal each other."""
    still = np.zeros(len(table.row), bool)
    if len(still) < least:
        return still
    same = (values[:, 1:] == values[:, :-1]).all(axis=0) & ~table.explained[1:] & ~table.explained[:-1]
    whole = np.logical_and.reduce(np.lib.stride_tricks.sliding_window_view(same, least - 1), axis=1)
    for shift in range(least):
        still[shift : shift + len(whole)] |= whole
    return still
