"""What an encoder reads of a bar: a few stationary numbers, scaled once on the training range.

==============  ===================================================================================================
``return``      ``asinh(r / s)``, r the log return in percent, s its training deviation
``volatility``  ``(v - mean) / deviation`` of ``v = log sqrt(E)``, E the running mean of r^2 with half-life 10 bars
``volume``      ``log(V / U)``, U the running mean of the volume with half-life 24 bars; 0 where nothing traded yet
==============  ===================================================================================================

Where a market has sessions (:mod:`markets.sessions`) a return is divided by what the calendar says of its minute, the
shape of :func:`markets.session_calendar.minute_shape`, and the first of a session runs from its own open: what is left
is the volatility of the day and of the hour, not that of the bell and the night.

All are clipped to +-8. Levels of price are never read (they are not stationary), and no statistic belongs to a window:
standardising each window would hide the very volatility that regimes differ in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ConfigError, DataError, unknown
from markets.session_calendar import SESSION_MARKETS, locate, minute_shape
from markets.sessions import sessions_of

Floats = NDArray[np.float64]

CHANNELS = ("return", "volatility", "volume")
LIMIT = 8.0
VOLATILITY_HALF_LIFE, VOLUME_HALF_LIFE = 10.0, 24.0  # bars
MEMORY = int(24 * VOLUME_HALF_LIFE)  # bars after which a running mean has forgotten where it began: 2^-24 of it is left
SMALLEST = 1e-12


def percent_returns(close: Floats) -> Floats:
    """Log returns in percent, ``(T,)``; 0 for the first bar, which has none."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a price that no check let through gives NaN here
        logs = np.log(close)
        return np.asarray(100.0 * np.diff(logs, prepend=logs[:1]))


def bar_returns(bars: Bars) -> Floats:
    """Percent log returns of the first symbol, by the calendar's shape where a market has sessions: ``(T,)``."""
    returns = percent_returns(bars.close[:, 0])
    if bars.market not in SESSION_MARKETS or not len(bars):
        return returns
    found = sessions_of(bars)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = 100.0 * (np.log(bars.close[found.first, 0]) - np.log(bars.open[found.first, 0]))
    returns[found.first] = own
    return np.where(found.place >= 0, returns / _shapes(found.minutes, found.minute), 0.0)


def _shapes(minutes: NDArray[np.int64], minute: NDArray[np.int64]) -> Floats:
    """Relative volatility of each bar's minute, 1 outside the sessions."""
    out = np.ones(len(minute))
    for length in np.unique(minutes[minute >= 0]).tolist():
        rows = (minutes == length) & (minute >= 0)
        out[rows] = minute_shape(length)[minute[rows]]
    return out


@dataclass(frozen=True)
class ChannelScaler:
    """Scales fitted on the training range.

    Attributes:
        names: channels in their order. deviation: of the returns, percent. variance: their mean square.
        level, spread: mean and deviation of the log running volatility.
    """

    names: tuple[str, ...]
    deviation: float
    variance: float
    level: float
    spread: float

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in CHANNELS:
                raise unknown("channel", name, CHANNELS)
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"channels={self.names!r}: one is given twice")
        for name in ("deviation", "variance", "spread"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value!r} of the channel scaler must be a positive number")
        if not math.isfinite(self.level):
            raise ConfigError(f"level={self.level!r} of the channel scaler must be a number")

    @classmethod
    def fit(cls, series: Sequence[Floats], names: Sequence[str] = CHANNELS[:2]) -> ChannelScaler:
        """Fit on S training series of percent log returns.

        Raises:
            DataError: returns that do not move or are not finite.
        """
        every = np.concatenate([np.asarray(one, np.float64) for one in series])
        if not np.isfinite(every).all() or not every.std() > 0.0:
            raise DataError("the training returns do not move, or are not finite: nothing can be scaled by them")
        variance = float(np.mean(every**2))
        logs = np.concatenate([_log_volatility(np.asarray(one, np.float64), variance) for one in series])
        return cls(tuple(names), float(every.std()), variance, float(logs.mean()), max(float(logs.std()), SMALLEST))

    def channels(self, returns: Floats, volume: Floats | None = None) -> NDArray[np.float32]:
        """Return ``(T, C)`` float32 channels of percent returns ``(T,)`` and, where one reads it, volume ``(T,)``.

        Raises:
            ConfigError: the volume channel without a volume.
        """
        returns = np.ascontiguousarray(returns, np.float64)
        columns = []
        for name in self.names:
            if name == "return":
                columns.append(np.arcsinh(returns / self.deviation))
            elif name == "volatility":
                columns.append((_log_volatility(returns, self.variance) - self.level) / self.spread)
            elif volume is None:
                raise ConfigError("this encoder reads the channel 'volume', and none was given")
            else:
                columns.append(_relative_volume(np.ascontiguousarray(volume, np.float64)))
        return np.clip(np.stack(columns, axis=1), -LIMIT, LIMIT).astype(np.float32)

    def of_bars(self, bars: Bars) -> NDArray[np.float32]:
        """Return the channels of the first symbol of ``bars``: ``(T, C)``."""
        return self.channels(bar_returns(bars), bars.volume[:, 0])


class ChannelStream:
    """The live face of a scaler: one bar in, ``(C,)`` float32 out, O(1)."""

    def __init__(self, scaler: ChannelScaler) -> None:
        self._scaler = scaler
        self._close = 0.0  # of the bar before; 0: none yet
        self._square, self._volume = scaler.variance, -1.0  # running means; -1: nothing traded yet
        self._session = -1.0  # opening of the last bar's session, minutes of the epoch; -1: none
        self._open, self._shape = 0, np.empty(0)  # of the session that is on, from the calendar
        self.last_return = 0.0  # percent

    def take(self, bar: Bars) -> NDArray[np.float32]:
        """Take the last row of ``bar`` as a closed bar, with the calendar where its market has sessions.

        Raises:
            DataError: a session's first bar without a finite and positive open; the state is as it was.
        """
        close, volume = float(bar.close[-1, 0]), float(bar.volume[-1, 0])
        if bar.market not in SESSION_MARKETS:
            return self.update(close, volume)
        now = int(bar.time[-1].astype("datetime64[m]").astype(np.int64))
        if not 0 <= now - self._open < len(self._shape):  # the calendar is asked once a session
            calendar, place = locate(bar.time[-1:])
            if place[0] < 0:  # between two sessions nothing moves
                return self._add(close, volume, 0.0)
            self._open = int(calendar.open[place[0]].astype("datetime64[m]").astype(np.int64))
            self._shape = minute_shape(int(calendar.minutes[place[0]]))
        before = self._close if self._session == self._open else float(bar.open[-1, 0])
        if not (math.isfinite(before) and before > 0.0):  # of its first bar; before anything is changed
            raise DataError(f"open {before!r} of a session's first bar is not a finite and positive price")
        self._session = float(self._open)
        move = 100.0 * (math.log(close) - math.log(before))
        return self._add(close, volume, move / float(self._shape[now - self._open]))

    def update(self, close: float, volume: float) -> NDArray[np.float32]:
        """Take close and volume of a closed bar of a market without sessions."""
        return self._add(close, volume, 100.0 * (math.log(close) - math.log(self._close)) if self._close > 0.0 else 0.0)

    def _add(self, close: float, volume: float, value: float) -> NDArray[np.float32]:
        self._close, self.last_return = close, value
        scaler, row = self._scaler, []
        keep = _keep(VOLATILITY_HALF_LIFE)
        self._square = keep * self._square + (1.0 - keep) * value * value
        for name in scaler.names:
            if name == "return":
                row.append(math.asinh(value / scaler.deviation))
            elif name == "volatility":
                row.append((0.5 * math.log(self._square + SMALLEST) - scaler.level) / scaler.spread)
            else:
                relative, self._volume = _volume_step(volume, self._volume, _keep(VOLUME_HALF_LIFE))
                row.append(relative)
        return np.clip(np.array(row), -LIMIT, LIMIT).astype(np.float32)

    def state(self) -> Floats:
        """Return what has to be kept to go on: five numbers."""
        return np.array([self._close, self._square, self._volume, self.last_return, self._session])

    def restore(self, state: Floats) -> None:
        """Go on from what :meth:`state` gave."""
        self._close, self._square, self._volume, self.last_return, self._session = (float(value) for value in state)


def _keep(half_life: float) -> float:
    return float(0.5 ** (1.0 / half_life))


def _log_volatility(returns: Floats, variance: float) -> Floats:
    out = np.empty(len(returns))
    _running_log(np.ascontiguousarray(returns), _keep(VOLATILITY_HALF_LIFE), variance, SMALLEST, out)
    return out


def _relative_volume(volume: Floats) -> Floats:
    out = np.empty(len(volume))
    _relative(volume, _keep(VOLUME_HALF_LIFE), out)
    return out


@compiled
def _running_log(returns: Floats, keep: float, start: float, smallest: float, out: Floats) -> None:
    value = start
    for t in range(returns.shape[0]):
        value = keep * value + (1.0 - keep) * returns[t] * returns[t]
        out[t] = 0.5 * math.log(value + smallest)


@compiled
def _volume_step(volume: float, mean: float, keep: float) -> tuple[float, float]:
    """Return log(V / U) and the new running mean; the mean begins at the first volume above 0."""
    if not volume > 0.0:
        return (0.0, mean) if mean < 0.0 else (-8.0, keep * mean)
    mean = volume if mean < 0.0 else keep * mean + (1.0 - keep) * volume
    return math.log(volume / mean), mean


@compiled
def _relative(volume: Floats, keep: float, out: Floats) -> None:
    mean = -1.0
    for t in range(volume.shape[0]):
        out[t], mean = _volume_step(volume[t], mean, keep)
