"""Changes of regime: bars at which an embedding, or the odds of regimes, move further than they usually do.

The distance between the rows of successive bars is compared with a quantile of such distances. ``causal`` (the
default) takes the quantile of the distances *before* that bar and may be used by a trader; ``offline`` takes that of
the whole history, as the source document does, and so knows the future: for reports only. Where a belief filter and its
chain are at hand, :mod:`encoders.change_odds` says the same as a probability, without a threshold to choose.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.encoder import Encoder
from markets.bars import Bars
from markets.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from encoders.koopman_jepa import CryptoKoopmanJEPA

Floats = NDArray[np.float64]

MODES = ("causal", "offline")
READS = ("embedding", "odds")
PERCENTILE = 95.0
MEMORY, WARM = 2000, 200  # distances the running quantile remembers at most, and needs before it judges


@dataclass(frozen=True, eq=False)
class RegimeChanges:
    """What was found in T bars.

    Attributes:
        points: bars whose distance is above the threshold. flags: the same, ``(T,)``.
        distance, threshold: ``(T,)``, NaN where there is none yet.
        regime: ``(T,)`` dominant regime, -1 where there is none; all -1 for a table that came without a model.
    """

    points: NDArray[np.int64]
    flags: NDArray[np.bool_]
    distance: Floats
    threshold: Floats
    regime: NDArray[np.int64]


class RunningQuantile:
    """Quantile of the last ``memory`` values, linear between neighbours; NaN before ``warm`` of them."""

    def __init__(self, percentile: float = PERCENTILE, memory: int = MEMORY, warm: int = WARM) -> None:
        self._share, self._memory, self._warm = percentile / 100.0, memory, warm
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def value(self) -> float:
        """Return the quantile of what was added so far."""
        count = len(self._sorted)
        if count < self._warm:
            return math.nan
        place = self._share * (count - 1)
        low = int(place)
        upper = self._sorted[min(low + 1, count - 1)]
        return self._sorted[low] + (place - low) * (upper - self._sorted[low])

    def add(self, value: float) -> None:
        """Take a value; the oldest leaves."""
        self._order.append(value)
        bisect.insort(self._sorted, value)
        if len(self._order) > self._memory:
            del self._sorted[bisect.bisect_left(self._sorted, self._order.popleft())]


def detect_regime_changes(
    price_history: Any,
    model_or_embedding: CryptoKoopmanJEPA | Encoder | NDArray[Any],
    window: int = 100,
    *,
    mode: str = "causal",
    read: str = "embedding",
    lag: int = 1,
    percentile: float = PERCENTILE,
    memory: int = MEMORY,
    warm: int = WARM,
) -> RegimeChanges:
    """Return where the embedding of a price history ``(T,)`` jumps.

    Args:
        price_history: closes; with an :class:`~encoders.encoder.Encoder` the ``Bars`` that it embeds.
        model_or_embedding: a Koopman model that embeds windows of ``window`` bars (one with ``pooling="mix"``, or with
            W equal to ``window``); any encoder of this package, whose rows count from its own warm-up on; or a table
            ``(T, D)``, a row a bar (an embedding, or odds), whose first ``window - 1`` rows are not used.
        mode: ``causal`` or ``offline``. read: ``embedding``, or the ``odds`` of the regimes, of a model.
        lag: bars between the two rows compared. 1 is the source's; windows of neighbouring bars are nearly the
            same, so that a change shows better over a lag of about half a window.
        percentile: of the distances, above which a bar is a change.
        memory, warm: distances that the causal quantile remembers, and needs before it flags anything.

    Raises:
        DataError: fewer bars than are needed, closes where an encoder wants ``Bars``, a table of another length or with
            a number that is not finite.
        ConfigError, UnknownNameError: a setting outside its range, a window the model cannot read, another mode.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if read not in READS:
        raise unknown("read", read, READS)
    if not 0.0 < percentile < 100.0:
        raise ConfigError(f"percentile={percentile!r} must be between 0 and 100")
    for name, value in (("window", window), ("lag", lag), ("memory", memory), ("warm", warm)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
    if warm > memory:
        raise ConfigError(f"warm={warm!r} must be at most memory={memory!r}")
    bars = len(price_history)
    if bars < window + lag:
        raise DataError(f"{bars} prices, and {window + lag} are needed to compare two windows of {window}")
    rows, regime = _rows(price_history, model_or_embedding, window, read)
    if len(rows) <= lag:
        raise DataError(f"{bars} bars leave {len(rows)} rows after the warm-up, and {lag + 1} are needed at lag {lag}")
    distance = np.full(bars, np.nan)
    distance[bars - len(rows) + lag :] = np.linalg.norm(rows[lag:] - rows[:-lag], axis=1)
    threshold = _thresholds(distance, mode, percentile, memory, warm)
    flags = np.greater(distance, threshold, where=~np.isnan(distance + threshold), out=np.zeros(bars, bool))
    return RegimeChanges(np.flatnonzero(flags), flags, distance, threshold, regime)


def onsets(changes: RegimeChanges) -> NDArray[np.int64]:
    """Return the first bar of each run of flagged bars."""
    first = changes.flags & ~np.concatenate([[False], changes.flags[:-1]])
    return np.flatnonzero(first)


def change_scores(found: NDArray[Any], true: NDArray[Any], within: int) -> dict[str, float]:
    """Return ``precision``, ``recall`` and ``f1`` of change points against known ones.

    A point counts as right within ``within`` bars *after* a true change (none can be known before it), one for each
    change; further points there are false alarms.
    """
    hits = len(_matches(found, true, within))
    precision, recall = hits / max(len(found), 1), hits / max(len(true), 1)
    both = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2.0 * precision * recall / both if both > 0.0 else 0.0}


def delays(found: NDArray[Any], true: NDArray[Any], within: int) -> NDArray[np.int64]:
    """Return the bars from each change found to the point that :func:`change_scores` counts; misses are absent."""
    return np.array([point - change for change, point in _matches(found, true, within)], np.int64)


def _matches(found: NDArray[Any], true: NDArray[Any], within: int) -> list[tuple[int, int]]:
    """Pair each true change with the first free point at most ``within`` bars after it."""
    free = [int(value) for value in np.sort(found)]
    pairs = []
    for change in np.sort(true):
        place = bisect.bisect_left(free, int(change))
        if place < len(free) and free[place] <= change + within:
            pairs.append((int(change), free.pop(place)))
    return pairs


def _rows(prices: Any, given: Any, window: int, read: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return the rows of the last bars, as many as there are after the warm-up, and the regime of each of T bars."""
    regime = np.full(len(prices), -1, np.int64)
    if isinstance(given, Encoder):
        if not isinstance(prices, Bars):
            raise DataError(f"an encoder embeds Bars, and the price history is a {type(prices).__name__}")
        if not given.regimes and read == "odds":
            raise ConfigError("read='odds': this encoder serves no odds of regimes")
        first = min(max(window - 1, given.warm_up), len(prices))
        table = given.table(prices).values[first:].astype(np.float64)
        embedding, odds = np.split(table, [table.shape[1] - given.regimes], axis=1)
        if given.regimes:
            regime[first:] = odds.argmax(axis=1)
        return (odds if read == "odds" else embedding), regime
    prices = prices.close[:, 0] if isinstance(prices, Bars) else prices
    if hasattr(given, "encode_rows"):
        reads = given.config.context_window
        if given.config.pooling == "flatten" and window != reads:
            raise ConfigError(f"window={window}: this model reads exactly {reads} bars (pooling='flatten')")
        embedding, odds = given.encode_rows(prices, window=window)
        regime[window - 1 :] = odds.argmax(1)
        return np.asarray(odds if read == "odds" else embedding, np.float64), regime
    if read == "odds":
        raise ConfigError("read='odds' goes with a model: a table of odds is compared as it is, without read")
    table = np.asarray(given, np.float64)
    if table.ndim != 2 or len(table) != len(prices):
        raise DataError(f"embedding of shape {table.shape} for {len(prices)} prices, expected a row a bar")
    rows = table[window - 1 :]
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(f"embedding: row {window - 1 + int(np.argmin(finite))} is not finite")
    return rows, regime


def _thresholds(distance: Floats, mode: str, percentile: float, memory: int, warm: int) -> Floats:
    if mode == "offline":
        known = distance[~np.isnan(distance)]
        return np.where(np.isnan(distance), np.nan, np.percentile(known, percentile))
    quantile, out = RunningQuantile(percentile, memory, warm), np.full(len(distance), np.nan)
    for t in np.flatnonzero(~np.isnan(distance)):
        out[t] = quantile.value()
        quantile.add(float(distance[t]))
    return out
