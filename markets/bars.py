"""Bars: immutable OHLCV candles of A assets on a UTC time index, with mark prices and funding events.

A bar is stamped with the time at which it **opens** and is known only once it has closed, at ``close_time``.
Everything is checked at construction; an error names the column and the row. Gaps (whole missing bars) are legal
and counted: no order fills inside one, and funding stamps that fall into one are still charged.

Shapes: T bars, A assets, E funding events. Prices in the quote currency, volume in base units, rates as fractions.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.errors import ConfigError, DataError
from markets.session_calendar import MINUTE, MINUTES, SESSION_MARKETS, SESSIONS_PER_YEAR, missing_before

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]

_UNITS = {"m": "min", "d": "D", "w": "W"}  # how pandas spells what venues write
PRICES = ("open", "high", "low", "close")
MARKS = ("mark_open", "mark_high", "mark_low", "mark_close")
QUOTES = ("bid", "ask")
SIZES = ("bid_size", "ask_size")
LATE = ("atm_volatility",)  # a column of which a session's first bars may know nothing yet: NaN there
EXTRAS = (*QUOTES, *SIZES, "previous_vix", *LATE)  # optional columns, read from files by these names
YEAR = np.timedelta64(365 * 24 * 3600, "s")  # markets that never close


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars:
    """Candles of A assets, validated and read-only.

    Attributes:
        time: ``(T,)`` datetime64[ns], when each bar opens (UTC), strictly increasing.
        interval: length of one bar.
        symbols: A names.
        open, high, low, close, volume: ``(T, A)`` float64.
        mark_open, mark_high, mark_low, mark_close: ``(T, A)`` exchange mark prices, all four or none.
        bid, ask: ``(T, A)`` the quote at each bar's close, both or none. bid_size, ask_size: its sizes, both or none.
        previous_vix: ``(T, A)`` a volatility index's close before the bar's session, annual percent on the calendar
            clock: known at the session's opening. What holds for a session stands on each of its bars, so that it is
            cut, hashed and handed to a stream as any other column.
        atm_volatility: ``(T, A)`` at-the-money implied volatility of the session as known at each bar's close, annual
            fraction on the variance clock (:mod:`markets.option_clocks`); NaN where none is known yet.
        funding_time, funding_rate: ``(E,)`` stamps and ``(E, A)`` rates; a positive rate is paid by longs.
        labels, label_names: true regime of each bar where the market is synthetic, for reports only.
        market: which kind of market this is (``crypto``, ``synthetic``, ``spy``); weights are chosen by it.
        source: where the bars came from, as a source specification.

    Raises:
        DataError: naming column, row and time of the first value that violates the schema.
    """

    time: Times
    interval: np.timedelta64
    symbols: tuple[str, ...]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    mark_open: Floats | None = None
    mark_high: Floats | None = None
    mark_low: Floats | None = None
    mark_close: Floats | None = None
    bid: Floats | None = None
    ask: Floats | None = None
    bid_size: Floats | None = None
    ask_size: Floats | None = None
    previous_vix: Floats | None = None
    atm_volatility: Floats | None = None
    funding_time: Times = field(default_factory=lambda: np.empty(0, "datetime64[ns]"))
    funding_rate: Floats = field(default_factory=lambda: np.empty((0, 1)))
    labels: NDArray[np.int8] | None = None
    label_names: tuple[str, ...] = ()
    market: str = "crypto"
    source: str = "frame"
    checked: bool = True

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, item.name, _frozen(value))
        if self.checked:
            _check(self)

    @classmethod
    def unchecked(cls, **values: Any) -> Bars:
        """Build bars without validation, to show in a test that hostile *future* values cannot reach the past."""
        return cls(**values, checked=False)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        symbol: str = "",
        interval: str | None = None,
        stamp: str = "open",
        funding: pd.DataFrame | None = None,
        start: str | None = None,
        end: str | None = None,
        market: str = "crypto",
        source: str = "frame",
        vix: pd.DataFrame | None = None,
        grid: pd.DataFrame | None = None,
    ) -> Bars:
        """Read one asset from a DataFrame with ``open, high, low, close, volume`` and a time column or index.

        Column names are matched without regard to case; the time is a ``DatetimeIndex`` or a column named
        ``timestamp``, ``time``, ``date``, ``datetime`` or ``open_time``. Times without a zone are read as UTC.
        ``mark_open`` .. ``mark_close`` are used where present, and of a market with sessions also ``bid`` and ``ask``,
        ``bid_size`` and ``ask_size``, ``previous_vix``, ``atm_volatility``. ``start`` and ``end`` cut first.

        Args:
            frame: one row per bar, oldest first.
            symbol: name of the asset; known perpetuals get their own contract.
            interval: bar length such as ``"1h"``; inferred from the most frequent step where absent.
            stamp: ``"open"`` where the time is the bar's opening, ``"close"`` where it is its end.
            funding: columns ``timestamp`` and ``funding_rate`` (fraction per stamp).
            start, end: first opening and last closing time to keep; a date alone includes its whole day.
            market: ``spy`` has sessions: bars outside the regular ones are left out and counted, nights are no gaps.
            vix: daily ``date`` and ``close`` of a volatility index, for ``previous_vix`` where a market has sessions.
            grid: same-day option mids (``timestamp, strike, right, mid``), for ``atm_volatility`` of minute bars; see
                :mod:`markets.option_grid`.

        Raises:
            DataError: naming the column and the row.
        """
        from markets.frames import bars_from_frame

        return bars_from_frame(
            cls, frame, symbol=symbol, interval=interval, stamp=stamp, funding=funding,
            start=start, end=end, market=market, source=source, vix=vix, grid=grid,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.time)

    def __repr__(self) -> str:
        names = ",".join(self.symbols)
        first, last = (np.datetime_as_string(time, "m") for time in (self.time[0], self.close_time[-1]))
        return f"Bars({names}, {len(self)} x {pd.Timedelta(self.interval)}, {first} to {last}, {self.source})"

    @cached_property
    def close_time(self) -> Times:
        """When each bar became known: ``(T,)`` datetime64[ns]."""
        return self.time + self.interval

    @cached_property
    def periods_per_year(self) -> float:
        """Bars in a year: 365 days of a market that never closes, 252 sessions of 390 minutes of one that does."""
        if self.market in SESSION_MARKETS:
            session_length = MINUTES * MINUTE
            return float(SESSIONS_PER_YEAR * (session_length / min(self.interval, session_length)))
        return float(YEAR / self.interval)

    @cached_property
    def gaps(self) -> int:
        """How many bars are missing between the first and the last; where a market has sessions, within those."""
        if self.market in SESSION_MARKETS:
            return int(missing_before(self.time, self.interval).sum())
        return int((self.time[-1] - self.time[0]) // self.interval) + 1 - len(self)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content (not of the name): equal bars have equal hashes."""
        digest = hashlib.sha256(f"{self.interval}{self.symbols}{self.market}".encode())
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                digest.update(item.name.encode())
                digest.update(np.ascontiguousarray(value).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def columns(self) -> Mapping[str, Floats]:
        """The ``(T, A)`` arrays that are present, by name."""
        named = {name: getattr(self, name) for name in (*PRICES, "volume", *MARKS, *EXTRAS)}
        return {name: value for name, value in named.items() if value is not None}

    def row_at(self, time: Any) -> int:
        """Return the first row that opens at or after ``time``; ``len(self)`` when there is none."""
        return int(np.searchsorted(self.time, as_time(time, "time")))

    def rows_closed_by(self, time: Any, name: str = "time") -> int:
        """Return how many bars have closed by ``time``; a date alone counts to the end of that day.

        Args:
            name: of the argument that holds the time, for errors.
        """
        return int(np.searchsorted(self.close_time, as_bound(time, name), side="right"))

    def between(self, start: int, stop: int) -> Bars:
        """Return rows ``start..stop-1`` and the funding events from the first opening to the last close."""
        stop = min(stop, len(self))
        if not 0 <= start < stop:
            raise DataError(f"rows {start}..{stop} are empty: there are {len(self)} bars")
        kept: dict[str, Any] = {"time": self.time[start:stop]}
        kept |= {name: value[start:stop] for name, value in self.columns.items()}
        if self.labels is not None:
            kept["labels"] = self.labels[start:stop]
        events = (self.funding_time >= self.time[start]) & (self.funding_time < self.close_time[stop - 1])
        return replace(self, **kept, funding_time=self.funding_time[events], funding_rate=self.funding_rate[events])

    def asset(self, place: int) -> Bars:
        """Return the bars of one of the A assets alone."""
        if not 0 <= place < len(self.symbols):
            raise DataError(f"asset {place} does not exist: there are {len(self.symbols)}")
        kept: dict[str, Any] = {name: value[:, place : place + 1] for name, value in self.columns.items()}
        if len(self.funding_time):
            kept["funding_rate"] = self.funding_rate[:, place : place + 1]
        return replace(self, symbols=(self.symbols[place],), **kept)

    def one(self, row: int) -> Bars:
        """Return the bar of ``row`` alone, as a live feed hands it over when it has closed, for streams.

        With it come the funding events since the close of the bar before. Two bars are the least that is checked, so
        one alone is not: these came out of bars that were.
        """
        if not 0 <= row < len(self):
            raise DataError(f"row {row} does not exist: there are {len(self)} bars")
        since = self.close_time[row - 1] if row else self.time[0]
        events = slice(*np.searchsorted(self.funding_time, [since, self.close_time[row]]).tolist())
        kept: dict[str, Any] = {name: value[row : row + 1] for name, value in self.columns.items()}
        return Bars.unchecked(
            time=self.time[row : row + 1], interval=self.interval, symbols=self.symbols,
            funding_time=self.funding_time[events], funding_rate=self.funding_rate[events],
            labels=None if self.labels is None else self.labels[row : row + 1], label_names=self.label_names,
            market=self.market, source=self.source, **kept,
        )  # fmt: skip


def as_time(value: Any, name: str) -> np.datetime64:
    """Read a date or a time (string, datetime, numpy; a zone is converted to UTC) as datetime64[ns]."""
    try:
        stamp = pd.Timestamp(value)
        if pd.isna(stamp):
            raise ValueError("not a time")
        stamp = stamp.as_unit("ns")  # raises beyond the years 1677 to 2262, where nanoseconds would wrap around
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{name}={value!r} is not a date or a time; write it as 2024-06-30 or 2024-06-30T12:00"
        ) from error
    if stamp.tzinfo is not None:
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    return stamp.to_datetime64().astype("datetime64[ns]")


def as_bound(value: Any, name: str) -> np.datetime64:
    """Read an end: a date without a time of day means the end of that day."""
    time = as_time(value, name)
    text = isinstance(value, str) and ":" not in value and "T" not in value.upper()
    day = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    return time + np.timedelta64(1, "D") if text or day else time


def as_interval(value: str | np.timedelta64 | pd.Timedelta, name: str = "interval") -> np.timedelta64:
    """Read a bar length such as ``"1m"``, ``"15m"``, ``"1h"``, ``"1d"``.

    Raises:
        ConfigError: not a positive length.
    """
    try:
        text = value.strip().lower() if isinstance(value, str) else value
        if isinstance(text, str) and text[-1:] in _UNITS:
            text = text[:-1] + _UNITS[text[-1]]
        length = pd.Timedelta(text)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}={value!r} is not a length of time; write it as 1m, 15m, 1h or 1d") from error
    if not length > pd.Timedelta(0):
        raise ConfigError(f"{name}={value!r} must be positive")
    return length.to_timedelta64().astype("timedelta64[ns]")


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Own a C-contiguous read-only copy, so that neither the caller nor an env can change what was validated."""
    kept = np.array(array, order="C", copy=True)
    kept.flags.writeable = False
    return kept


def _check(bars: Bars) -> None:
    count = len(bars.time)
    if count < 2:
        raise DataError(f"{count} bars: at least 2 are needed")
    _check_time(bars)
    shape = (count, len(bars.symbols))
    for name, value in bars.columns.items():
        if value.shape != shape or value.dtype != np.float64:
            raise DataError(f"column {name!r} is {value.dtype} {value.shape}, expected float64 {shape}")
        _first(bars, name, np.isinf(value) if name in LATE else ~np.isfinite(value), "is not finite")
        if name in ("volume", *SIZES):
            _first(bars, name, value < 0, "is negative")
        else:
            _first(bars, name, value <= 0, "is not positive")
    if sum(name in bars.columns for name in MARKS) not in (0, 4):
        raise DataError(f"mark prices need all of {', '.join(MARKS)}")
    for pair in (QUOTES, SIZES):
        if sum(name in bars.columns for name in pair) == 1:
            raise DataError(f"a quote needs both of {', '.join(pair)}")
    if bars.bid is not None and bars.ask is not None:
        _first(bars, "bid", bars.bid > bars.ask, "lies above the ask")
    for prefix in ("", "mark_") if "mark_open" in bars.columns else ("",):
        opened, high, low, close = (bars.columns[prefix + name] for name in PRICES)
        _first(bars, prefix + "high", high < np.maximum(opened, close), "lies below open or close")
        _first(bars, prefix + "low", low > np.minimum(opened, close), "lies above open or close")
    _check_funding(bars)
    if bars.labels is not None and len(bars.labels) != count:
        raise DataError(f"column 'labels' has {len(bars.labels)} rows, expected {count}")


def _check_time(bars: Bars) -> None:
    if np.isnat(bars.time).any():
        raise DataError(f"column 'time', row {int(np.isnat(bars.time).argmax())}: not a time")
    steps = np.diff(bars.time)
    for wrong, text in (
        (steps < np.timedelta64(0), "is earlier than the row before: sort the rows by time"),
        (steps == np.timedelta64(0), "repeats the row before: drop the duplicate"),
        (
            steps % bars.interval != np.timedelta64(0),
            f"is off the {bars.interval / np.timedelta64(60, 's'):g}-minute grid of the row before",
        ),
    ):
        if wrong.any():
            row = int(wrong.argmax()) + 1
            raise DataError(f"column 'time', row {row} ({bars.time[row]}): {text}")


def _check_funding(bars: Bars) -> None:
    times, rates = bars.funding_time, bars.funding_rate
    if rates.shape[0] != len(times) or (len(times) and rates.shape[1] != len(bars.symbols)):
        raise DataError(f"column 'funding_rate' is {rates.shape}, expected {(len(times), len(bars.symbols))}")
    wrong = ~np.isfinite(rates).all(axis=1) | (np.abs(rates) >= 1).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"column 'funding_rate', row {row} ({times[row]}): {rates[row]} is not a fraction below 1")
    wrong = np.diff(times) <= np.timedelta64(0)
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise DataError(f"column 'funding_time', row {row} ({times[row]}): not later than the row before")


def _first(bars: Bars, name: str, wrong: NDArray[np.bool_], text: str) -> None:
    """Raise for the first offending value and say from where on the column would be clean."""
    if not wrong.any():
        return
    rows = np.flatnonzero(wrong.any(axis=1))
    row, asset = int(rows[0]), int(wrong[rows[0]].argmax())
    message = f"column {name!r}, row {row} ({bars.time[row]}): {bars.columns[name][row, asset]} {text}"
    if len(bars.symbols) > 1:
        message += f" ({bars.symbols[asset]})"
    if rows[-1] == len(rows) - 1 and len(rows) < len(bars):  # the column begins late: the mend is one argument
        message += (
            f"; it begins at {bars.time[len(rows)]}: pass start={np.datetime_as_string(bars.time[len(rows)], 'm')}"
        )
    elif len(rows) > 1:
        message += f" ({len(rows)} such rows)"
    raise DataError(message)
