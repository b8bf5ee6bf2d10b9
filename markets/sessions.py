"""Sessions of the US stock market by rule: which days trade, how many minutes, and the session's clock in UTC.

The session's clock is New York time: 09:30 to 16:00 is 390 one-minute bars, 09:30 to 13:00 on an early close 210. Both
clock changes move the open in UTC from 14:30 to 13:30 and back. Holidays and early closes follow the exchange's rules
since 2013, with the days of mourning and storm closures that no rule knows; later decisions of the exchange have to be
added to ``EXTRA_CLOSURES``.
"""

from __future__ import annotations

import datetime as dt
import functools

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.errors import DataError
from markets.option_clocks import EARLY_SESSION, FULL_SESSION

NEW_YORK = "America/New_York"
FIRST_YEAR = 2013  # earlier years closed early on other days
OPEN_MINUTE = 570  # 09:30
EXTRA_CLOSURES = frozenset({dt.date(2018, 12, 5), dt.date(2025, 1, 9)})


def _nth(year: int, month: int, weekday: int, number: int) -> dt.date:
    """Return the ``number``-th ``weekday`` (Monday 0) of a month."""
    first = dt.date(year, month, 1)
    return first + dt.timedelta(days=(weekday - first.weekday()) % 7 + 7 * (number - 1))


def _observed(day: dt.date) -> dt.date:
    """Return the weekday on which a holiday is kept: Friday for a Saturday, Monday for a Sunday."""
    return day + dt.timedelta(days={5: -1, 6: 1}.get(day.weekday(), 0))


def _easter(year: int) -> dt.date:
    """Easter Sunday, Gregorian (anonymous computus)."""
    a, b, c = year % 19, year // 100, year % 100
    d = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    e = (32 + 2 * (b % 4) + 2 * (c // 4) - d - c % 4) % 7
    f = d + e - 7 * ((a + 11 * d + 22 * e) // 451) + 114
    return dt.date(year, f // 31, f % 31 + 1)


@functools.cache
def holidays(year: int) -> frozenset[dt.date]:
    """Weekdays of a year on which the market stays closed.

    Raises:
        DataError: the year is before 2013.
    """
    if year < FIRST_YEAR:
        raise DataError(f"the session calendar begins in {FIRST_YEAR}; {year} is before it")
    last_of_may = dt.date(year, 5, 31)
    days = {
        _nth(year, 1, 0, 3),  # Martin Luther King
        _nth(year, 2, 0, 3),  # Washington
        _easter(year) - dt.timedelta(days=2),  # Good Friday
        last_of_may - dt.timedelta(days=last_of_may.weekday()),  # Memorial Day
        _observed(dt.date(year, 7, 4)),
        _nth(year, 9, 0, 1),  # Labor Day
        _nth(year, 11, 3, 4),  # Thanksgiving
        _observed(dt.date(year, 12, 25)),
    }
    if dt.date(year, 1, 1).weekday() != 5:  # a New Year's Day on a Saturday is not kept
        days.add(_observed(dt.date(year, 1, 1)))
    if year >= 2022:
        days.add(_observed(dt.date(year, 6, 19)))
    return frozenset(days | {day for day in EXTRA_CLOSURES if day.year == year})


@functools.cache
def session_bars(day: dt.date) -> int:
    """Minutes of a day's session: 390, 210 on an early close, 0 when the market is closed.

    Early closes: the day after Thanksgiving, and 3 July and 24 December where they fall on Monday to Thursday.

    Raises:
        DataError: the day is before 2013.
    """
    if day.weekday() >= 5 or day in holidays(day.year):
        return 0
    eve = (day.month, day.day) in ((7, 3), (12, 24)) and day.weekday() <= 3
    return EARLY_SESSION if eve or day == _nth(day.year, 11, 3, 4) + dt.timedelta(days=1) else FULL_SESSION


def session_open(day: dt.date) -> np.datetime64:
    """09:30 New York time of a day as a UTC time (millisecond ``datetime64``)."""
    opened = pd.Timestamp(day.year, day.month, day.day, 9, 30, tz=NEW_YORK).tz_convert("UTC")
    return opened.tz_localize(None).to_datetime64().astype("datetime64[ms]")


def place_in_session(
    opened: NDArray[np.datetime64],
) -> tuple[NDArray[np.datetime64], NDArray[np.int64], NDArray[np.int64]]:
    """Where one-minute bars lie in their sessions.

    Args:
        opened: ``(T,)`` open time of each bar, UTC ``datetime64``.

    Returns:
        New York date ``(T,)`` ``datetime64[D]``, bar number within the session ``(T,)``, -1 outside of it, and the
        session's length ``(T,)``, 0 on a day without one.
    """
    local = pd.DatetimeIndex(np.asarray(opened)).tz_localize("UTC").tz_convert(NEW_YORK)
    days = local.tz_localize(None).to_numpy().astype("datetime64[D]")
    minute = np.asarray(local.hour * 60 + local.minute - OPEN_MINUTE, dtype=np.int64)
    unique, inverse = np.unique(days, return_inverse=True)
    lengths = np.array([session_bars(day) for day in unique.tolist()], dtype=np.int64)
    length = lengths[inverse]
    return days, np.where((minute >= 0) & (minute < length), minute, -1), length
