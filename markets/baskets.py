"""Several symbols as one set of bars, on the times that all of them have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from markets.bars import Bars
from markets.errors import DataError

_log = logging.getLogger(__name__)


def join_symbols(parts: Sequence[Bars], source: str) -> Bars:
    """Put one-symbol bars side by side: ``(T, A)``. A time that any of them lacks is dropped, counted and said.

    Of the columns those are kept that every part has. Funding is left out: it has stamps of its own.

    Raises:
        DataError: other intervals or markets, a symbol twice, or fewer than two common times.
    """
    symbols = [symbol for part in parts for symbol in part.symbols]
    for symbol in symbols:
        if symbols.count(symbol) > 1:
            raise DataError(f"symbol {symbol!r} is there twice: give each its own, with symbols=BTCUSDT,ETHUSDT")
    first = parts[0]
    for part in parts[1:]:
        if part.interval != first.interval or part.market != first.market:
            raise DataError(
                f"{part.symbols[0]} has bars of {pd.Timedelta(part.interval)} of market {part.market!r}, "
                f"{first.symbols[0]} of {pd.Timedelta(first.interval)} of {first.market!r}"
            )
    times = reduce(np.intersect1d, [part.time for part in parts])
    if len(times) < 2:
        raise DataError(f"{', '.join(symbols)} have {len(times)} times in common; at least 2 are needed")
    _tell(parts, times, source)
    rows = [np.searchsorted(part.time, times) for part in parts]
    names = [name for name in first.columns if all(name in part.columns for part in parts)]
    columns: dict[str, Any] = {
        name: np.concatenate([part.columns[name][kept] for part, kept in zip(parts, rows, strict=True)], axis=1)
        for name in names
    }
    return Bars(
        time=times, interval=first.interval, symbols=tuple(symbols), market=first.market, source=source, **columns
    )  # fmt: skip


def _tell(parts: Sequence[Bars], times: np.ndarray[tuple[int], np.dtype[np.datetime64]], source: str) -> None:
    """Say how many times within the common range are dropped, and how many lie outside it."""
    start, end = max(part.time[0] for part in parts), min(part.time[-1] for part in parts)
    inside = [part.time[(part.time >= start) & (part.time <= end)] for part in parts]
    known = reduce(np.union1d, inside)
    dropped = len(known) - len(times)
    lacking = ", ".join(
        f"{part.symbols[0]} lacks {len(known) - len(own)}" for part, own in zip(parts, inside, strict=True)
    )
    outside = max(len(part.time) - len(own) for part, own in zip(parts, inside, strict=True))
    if dropped or outside:
        _log.warning(
            "%s: %d of %d bars that some symbol lacks are dropped (%s), and up to %d bars of a symbol before %s or "
            "after %s; positions are carried over gaps",
            source, dropped, len(known), lacking, outside, start.astype("datetime64[m]"), end.astype("datetime64[m]"),
        )  # fmt: skip
