"""Judging candles: which rows hold together, and which columns seem to have changed places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from markets.bars import PRICES, Floats, Times

Mask = NDArray[np.bool_]
Swaps = dict[tuple[str, str], Mask]

EVIDENCE = 5  # rows that must agree before two columns count as swapped
WILD = 0.5  # log range of a bar from which a volume may be sitting in a price column
UNSWAPPABLE = tuple((first, second) for first in ("high", "low") for second in ("open", "close"))


def readable(candle: Floats) -> Mask:
    """Rows of finite positive prices; a candle is ``(4, T)`` open, high, low, close."""
    good: Mask = np.logical_and.reduce(np.isfinite(candle) & (candle > 0))
    return good


def consistent(candle: Floats) -> Mask:
    """Rows of finite positive prices with low <= open, close <= high."""
    opened, high, low, close = candle
    fits: Mask = (high >= np.maximum(opened, close)) & (low <= np.minimum(opened, close))
    return fits & readable(candle)


def swapped_in_candle(candle: Floats) -> Swaps:
    """Rows that contradict themselves and no longer do so once two prices change places.

    A high below the low is proof in a single row. Any other pair needs several rows that lie together.
    """
    bad = readable(candle) & ~consistent(candle)
    if not bad.any():
        return {}
    turned = bad & (candle[1] < candle[2]) & consistent(_exchanged(candle, "high", "low"))
    found: Swaps = {("high", "low"): turned} if turned.any() else {}
    span = slice(int(bad.argmax()), len(bad) - int(bad[::-1].argmax()))
    for first, second in UNSWAPPABLE:
        mended = bad & ~turned & consistent(_exchanged(candle, first, second))
        if mended.sum() >= max(EVIDENCE, 0.95 * bad.sum()) and bad[span].mean() > 0.5:
            found = {(first, second): mended}
    return found


def swapped_by_continuity(candle: Floats, time: Times, interval: np.timedelta64) -> Swaps:
    """Open and close exchanged in the whole table: a bar closes where the one *before* it opens."""
    good = consistent(candle)
    pairs = good[1:] & good[:-1] & (np.diff(time) == interval)
    if pairs.sum() < 4 * EVIDENCE:
        return {}
    opened, close = (np.log(candle[place], where=good, out=np.zeros(len(good))) for place in (0, 3))
    usual, turned = np.abs(opened[1:] - close[:-1])[pairs], np.abs(close[1:] - opened[:-1])[pairs]
    if np.median(turned) < 0.25 * np.median(usual):
        return {("open", "close"): good}
    return {}


def swapped_with_volume(candle: Floats, volume: Floats) -> Swaps:
    """Rows whose wild range becomes a calm one once the volume and one price change places."""
    wild = np.isfinite(candle).all(axis=0) & (volume > 0) & (_range(candle) > WILD)
    for place, name in enumerate(PRICES):
        other = candle.copy()
        other[place] = volume
        calm = wild & consistent(other) & (_range(other) < 0.1 * _range(candle))
        if calm.sum() < EVIDENCE:
            continue
        span = slice(int(calm.argmax()), len(calm) - int(calm[::-1].argmax()))
        if calm[span].mean() > 0.8:
            rows = np.zeros(len(calm), bool)
            rows[span] = consistent(other)[span]
            return {(name, "volume"): rows}
    return {}


def _exchanged(candle: Floats, first: str, second: str) -> Floats:
    a, b = PRICES.index(first), PRICES.index(second)
    copy = candle.copy()
    copy[[a, b]] = candle[[b, a]]
    return copy


def _range(candle: Floats) -> Floats:
    """Log range of each bar, infinite where a price is not positive."""
    least, most = candle.min(axis=0), candle.max(axis=0)
    good = np.isfinite(most) & (least > 0)
    return np.log(np.divide(most, least, where=good, out=np.full(len(good), np.inf)))
