"""The 11 market features of a session's minute, each known at the close of its bar, from bars of its own session only.

With o, h, l, c, v the bar, O the open of the session's first bar, m its number among the M minutes of the session: the
order is open, high, low, close, volume, return, volume z-score, imbalance, time left, sine and cosine of the session.
Prices are log distances from O, so that no level and no night's gap is in them; the return of the first bar runs from
its own open. Nothing reaches behind the session's opening bell: **no row has to be warmed up** (``valid_from`` 0),
and a session is the same game wherever it stands in the history.

*Scaled* columns are standardised with mean and deviation of whole training sessions and clipped to five deviations, as
in :mod:`markets.features`; the others are served in their own unit. A row outside every session is 0 in its own unit;
rows of an unfinished session hold what was known at them, with the bar number read from the clock.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.errors import DataError
from markets.features import SMALLEST, Feature, FeatureScaler, bounds
from markets.session_calendar import MINUTES
from markets.sessions import Sessions, sessions_of
from markets.table import CausalTable
from markets.windows import Floats, ratio

WINDOW = 30  # bars of the session that the volume is compared with, this one included
MAX_ZSCORE = 5.5  # a z-score over n values that include its own is at most sqrt(n - 1)
WARM_UP = 0  # rows


class _Session:
    """What several features share, of the rows that lie in sessions; N of them."""

    def __init__(self, bars: Bars, found: Sessions) -> None:
        self.rows = np.flatnonzero(found.place >= 0)
        self.open, self.high, self.low, self.close, self.volume = (
            bars.columns[name][self.rows, 0] for name in ("open", "high", "low", "close", "volume")
        )
        self.bars = bars
        self.first = found.first[found.place[self.rows]] - self.rows + np.arange(len(self.rows))  # place of O's bar
        self.since = np.arange(len(self.rows)) - self.first  # bars of the session before this one
        self.left = found.minutes_left[self.rows] / MINUTES
        self.passed = (found.minute[self.rows] + 1) / found.minutes[self.rows]

    def from_open(self, price: Floats) -> Floats:
        return np.asarray(np.log(price / self.open[self.first]))

    def returns(self) -> Floats:
        before = np.concatenate([self.open[:1], self.close[:-1]])
        return np.asarray(np.log(self.close / np.where(self.since == 0, self.open, before)))

    @cached_property
    def count(self) -> Floats:
        """How many bars the window holds: it grows to its length from the opening on."""
        return np.minimum(self.since + 1, WINDOW).astype(np.float64)

    def mean(self, centre: Floats | float = 0.0, power: int = 1) -> Floats:
        """Mean of ``(v - centre)^power`` over the window, oldest first: the same bits in a stream."""
        total = np.zeros(len(self.volume))
        for back in range(WINDOW - 1, -1, -1):
            term = np.roll(self.volume, back) - centre
            total += np.where(self.since >= back, term * term if power == 2 else term, 0.0)
        return total / self.count

    def zscore(self) -> Floats:
        mean = self.mean()
        variance = self.mean(mean, 2)
        variance[variance <= SMALLEST * mean * mean] = 0.0  # a constant window leaves only rounding
        return ratio(self.volume - mean, np.sqrt(variance))

    def imbalance(self) -> Floats:
        if self.bars.bid_size is None or self.bars.ask_size is None:
            return np.zeros(len(self.rows))
        bid, ask = self.bars.bid_size[self.rows, 0], self.bars.ask_size[self.rows, 0]
        return ratio(bid - ask, bid + ask)


FEATURES: tuple[Feature, ...] = (
    Feature("open", "ln(o / O)", "log return", MINUTES, lambda s: s.from_open(s.open)),
    Feature("high", "ln(h / O)", "log return", MINUTES, lambda s: s.from_open(s.high)),
    Feature("low", "ln(l / O)", "log return", MINUTES, lambda s: s.from_open(s.low)),
    Feature("close", "ln(c / O)", "log return", MINUTES, lambda s: s.from_open(s.close)),
    Feature("volume", "v^(1/4)", "shares^(1/4)", 1, lambda s: np.sqrt(np.sqrt(s.volume))),
    Feature("log_return", "ln(c / c before), ln(c / o) in the first bar", "log return", 2, lambda s: s.returns()),
    Feature(
        "volume_zscore", "(v - mean(v, 30)) / sd(v, 30) in the session, 0 where sd is 0", "deviations", WINDOW,
        lambda s: s.zscore(), -MAX_ZSCORE, MAX_ZSCORE, False,
    ),
    Feature(
        "imbalance", "(bid size - ask size) / (bid size + ask size), 0 without sizes", "share", 1,
        lambda s: s.imbalance(), -1, 1, False,
    ),
    Feature("hours_to_close", "hours to the close / 6.5, (M - 1 - m) / 390", "share", 1, lambda s: s.left, 0, 1, False),
    Feature("session_sin", "sin(2 pi (m + 1) / M)", "1", 1, lambda s: np.sin(2 * np.pi * s.passed), -1, 1, False),
    Feature("session_cos", "cos(2 pi (m + 1) / M)", "1", 1, lambda s: np.cos(2 * np.pi * s.passed), -1, 1, False),
)  # fmt: skip
NAMES = tuple(feature.name for feature in FEATURES)


class SessionScaler(FeatureScaler):
    """Scaler of the session's features."""

    features: ClassVar[tuple[Feature, ...]] = FEATURES

    @classmethod
    def fit(cls, bars: Bars, values: Floats, stop: int) -> SessionScaler:
        """Fit on the rows of whole sessions that have closed by the end of row ``stop - 1``.

        Raises:
            DataError: there is no such session.
        """
        found = sessions_of(bars)
        keep = found.complete & (found.first + found.rows <= stop)
        if not keep.any():
            raise DataError(f"too few bars: no whole session ends before row {stop}")
        last = int((found.first + found.rows)[keep].max())
        rows = np.flatnonzero((found.place >= 0) & keep[found.place])
        return cls.of_rows(values[rows], bars.close_time[last - 1])


def raw(bars: Bars) -> Floats:
    """Compute every feature in its own unit: ``(T, 11)`` float64; 0 outside the sessions.

    Raises:
        ConfigError: not one-minute bars of a market that has sessions.
    """
    session = _Session(bars, sessions_of(bars))
    out = np.zeros((len(bars), len(FEATURES)))
    with np.errstate(invalid="ignore", divide="ignore"):  # hostile values behind the checks must not warn
        for column, feature in enumerate(FEATURES):
            out[session.rows, column] = feature.compute(session)
    return out


def table(bars: Bars, scaler: SessionScaler, values: Floats | None = None) -> CausalTable:
    """Serve the features of ``bars`` as a causal table; ``values`` may pass ``raw(bars)`` where it is at hand."""
    low, high = bounds(FEATURES)
    return CausalTable(
        values=np.ascontiguousarray(scaler.apply(raw(bars) if values is None else values)),
        names=NAMES,
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        valid_from=WARM_UP,
        bars_hash=bars.hash,
        train_end=scaler.train_end,
        checked=bars.checked,
    )


class SessionFeatureStream:
    """The live face of :func:`table`: feed bars as they close, get the row that the table would hold.

    Only the bars of the session that is on are kept, at most 390.
    """

    def __init__(self, scaler: SessionScaler) -> None:
        self._scaler = scaler
        self._tail: Bars | None = None

    def update(self, bar: Bars) -> NDArray[np.float32]:
        """Add one closed bar (``Bars`` of one row) and return its ``(11,)`` row."""
        if not len(sessions_of(bar)):  # between two sessions
            return np.asarray(self._scaler.apply(np.zeros((1, len(NAMES))))[0])
        tail = bar if self._tail is None else _append(self._tail, bar)
        begin = int(sessions_of(tail).first[-1])
        self._tail = tail if begin == 0 else _rows_from(tail, begin)
        return np.asarray(self._scaler.apply(raw(self._tail)[-1:])[0])


def _append(tail: Bars, bar: Bars) -> Bars:
    joined: dict[str, Any] = {
        name: np.concatenate([value, bar.columns[name]]) for name, value in tail.columns.items() if name in bar.columns
    }
    return _unchecked(tail, np.concatenate([tail.time, bar.time]), joined)


def _rows_from(bars: Bars, begin: int) -> Bars:
    return _unchecked(bars, bars.time[begin:], {name: value[begin:] for name, value in bars.columns.items()})


def _unchecked(like: Bars, time: Any, columns: dict[str, Any]) -> Bars:
    return Bars.unchecked(
        time=time, interval=like.interval, symbols=like.symbols, market=like.market, source=like.source, **columns
    )
