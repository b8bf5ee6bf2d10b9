"""The regular session of US equities: on which days, from when to when, in UTC.

A session runs from 09:30 to 16:00 New York time (390 one-minute bars), on early-close days to 13:00 (210). Its opening
is 13:30 UTC in summer and 14:30 UTC in winter; the difference is the zone's, read with :mod:`zoneinfo`.

The days are those of the exchange's published rules (New York Stock Exchange, "Holidays & Trading Hours"; Rule 7.2),
which are rules and no table, so that no year ends the calendar. ``SPECIAL`` names the days that no rule foretells.
Right from 2013 on, when the early close moved to the day before Independence Day; a day that the exchange will close
for a reason of its own is a session here until it is entered, and reads as one without bars.

Letters: S sessions, T bars.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.errors import DataError, MissingExtraError

Days = NDArray[np.datetime64]
Times = NDArray[np.datetime64]
Integers = NDArray[np.int64]

SESSION_MARKETS = ("spy",)  # kinds of market that have sessions; every other one never closes
ZONE = "America/New_York"
OPENS = datetime.time(9, 30)
MINUTES, EARLY_MINUTES = 390, 210
SESSIONS_PER_YEAR = 252
YEAR_MINUTES = SESSIONS_PER_YEAR * MINUTES  # 98,280 trading minutes
FIRST_YEAR, LAST_YEAR = 2013, 2261  # nanoseconds since 1970 end in April 2262
SPECIAL = frozenset({datetime.date(2018, 12, 5), datetime.date(2025, 1, 9)})  # days of mourning
MONDAY, THURSDAY, FRIDAY, SATURDAY, SUNDAY = 0, 3, 4, 5, 6
MINUTE, DAY, WEEK = np.timedelta64(1, "m"), np.timedelta64(1, "D"), np.timedelta64(7, "D")  # a week has a session


@dataclass(frozen=True, eq=False)
class Calendar:
    """S consecutive sessions.

    Attributes:
        day: ``(S,)`` datetime64[D], the date in New York.
        open: ``(S,)`` datetime64[ns], UTC.
        minutes: ``(S,)`` M, the one-minute bars of each: 390 or 210.
    """

    day: Days
    open: Times
    minutes: Integers

    def __len__(self) -> int:
        return len(self.day)

    @property
    def close(self) -> Times:
        """``(S,)`` datetime64[ns], UTC."""
        return self.open + self.minutes * MINUTE

    @property
    def early(self) -> NDArray[np.bool_]:
        """``(S,)`` which sessions close early."""
        return self.minutes < MINUTES

    def take(self, rows: NDArray[Any] | slice) -> Calendar:
        """Return some of the sessions."""
        return Calendar(self.day[rows], self.open[rows], self.minutes[rows])


def sessions_between(first: Any, last: Any) -> Calendar:
    """Return the sessions of the New York dates ``first`` to ``last``, both included.

    Raises:
        DataError: before 2013, where the rules were others, or after 2261, which no time in nanoseconds reaches.
    """
    begin, end = np.datetime64(first, "D"), np.datetime64(last, "D")
    years = range(_year(begin), _year(end) + 1)
    if years and years[0] < FIRST_YEAR:
        raise DataError(f"the session calendar begins in {FIRST_YEAR}; {begin} lies before it")
    if years and years[-1] > LAST_YEAR:
        raise DataError(f"the session calendar ends in {LAST_YEAR}; {end} lies after it")
    if not years:
        return Calendar(np.empty(0, "datetime64[D]"), np.empty(0, "datetime64[ns]"), np.empty(0, np.int64))
    parts = [_sessions_of_year(year) for year in years]
    whole = Calendar(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("day", "open", "minutes")))
    return whole.take((whole.day >= begin) & (whole.day <= end))


def sessions_from(start: Any, count: int, early: str = "keep") -> Calendar:
    """Return the next ``count`` sessions from the New York date ``start`` on.

    Args:
        early: early-close days are kept in their place (``keep``), left out (``skip``), or all there is (``only``).

    Raises:
        DataError: the calendar has fewer of them.
    """
    begin = np.datetime64(start, "D")
    years = 2 + (count if early == "only" else count // (SESSIONS_PER_YEAR - 4))  # one early close a year is the least
    last = max(_year(begin), min(_year(begin) + years, LAST_YEAR))
    found = sessions_between(begin, np.datetime64(f"{last}-12-31", "D"))
    if early != "keep":
        found = found.take(found.early if early == "only" else ~found.early)
    if len(found) < count:
        raise DataError(f"the session calendar ends in {LAST_YEAR}: {len(found)} of {count} sessions from {begin} on")
    return found.take(slice(0, count))


def locate(time: Times) -> tuple[Calendar, Integers]:
    """Find the session of each of T times: the calendar around them, and ``(T,)`` places in it, -1 outside any."""
    first = time.min()
    if _year(first) >= FIRST_YEAR:
        first = max(first - WEEK, np.datetime64(f"{FIRST_YEAR}-01-01"))
    calendar = sessions_between(first, time.max() + WEEK)
    place = np.searchsorted(calendar.open, time, side="right") - 1
    inside = place >= 0
    inside[inside] = time[inside] < calendar.close[place[inside]]
    return calendar, np.where(inside, place, -1)


def missing_before(time: Times, interval: np.timedelta64) -> Integers:
    """``(T,)`` bars of regular sessions that are missing between each row and the one before; nights are no gaps.

    The clock that counts them runs in sessions only. A row outside all sessions neither closes a gap nor opens one.
    Bars of a day or longer count whole days that have a session.
    """
    calendar, place = locate(time)
    out = np.zeros(len(time), np.int64)
    if interval >= DAY:
        day = np.searchsorted(calendar.day, time.astype("datetime64[D]"))
        out[1:] = np.maximum(np.diff(day) - 1, 0)
        return out
    bars = -(-(calendar.minutes * MINUTE) // interval)
    before = np.concatenate([[0], np.cumsum(bars)])
    inside = np.flatnonzero(place >= 0)
    if len(inside):
        at = place[inside]
        slot = before[at] + (time[inside] - calendar.open[at]) // interval
        out[inside[1:]] = np.maximum(np.diff(slot) - 1, 0)
    return out


def day_shape(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Volatility per minute over the session, relative, before it is normalised; u is the share that has passed.

    ``s(u) = 0.78 + 0.75 exp(-u / 0.12) + 0.35 exp(-(1 - u) / 0.06)``
    """
    return np.asarray(0.78 + 0.75 * np.exp(-u / 0.12) + 0.35 * np.exp(-(1.0 - u) / 0.06))


def minute_shape(minutes: int = MINUTES) -> NDArray[np.float64]:
    """``(M,)`` relative volatility of each minute of a session, mean square 1."""
    shape = day_shape((np.arange(minutes) + 0.5) / minutes)
    return np.asarray(shape / np.sqrt(np.mean(shape**2)))


def session_bars(day: datetime.date) -> int:
    """M, one-minute bars of a day's session: 390, 210 on an early close, 0 where there is none."""
    found = sessions_between(day, day)
    return int(found.minutes[0]) if len(found) else 0


def session_open(day: datetime.date) -> np.datetime64:
    """09:30 in New York on any day, as UTC."""
    return _in_utc(day)


def place_in_session(time: Times) -> tuple[Days, Integers, Integers]:
    """Find where times lie that are no bars of a history, such as those of quotes; see :func:`locate` for bars.

    Args:
        time: ``(T,)`` UTC.

    Returns:
        New York date ``(T,)``, number of the minute within its session ``(T,)``, -1 outside of it, and the minutes M of
        that date's session ``(T,)``, 0 where it has none.
    """
    stamps = np.asarray(time, "datetime64[ns]")
    calendar, place = locate(stamps)
    local = pd.DatetimeIndex(stamps).tz_localize("UTC").tz_convert(_zone()).tz_localize(None)
    days = local.to_numpy().astype("datetime64[D]")
    minute = np.where(place >= 0, (stamps - calendar.open[place]) // MINUTE, -1)
    row = np.minimum(np.searchsorted(calendar.day, days), len(calendar) - 1)
    return days, minute, np.where(calendar.day[row] == days, calendar.minutes[row], 0)


def holidays(year: int) -> frozenset[datetime.date]:
    """Return the weekdays of a year on which there is no session."""
    first, independence, christmas = (datetime.date(year, *day) for day in ((1, 1), (7, 4), (12, 25)))
    days = {
        first + datetime.timedelta(1) if first.weekday() == SUNDAY else first,  # on a Saturday it is not made up for
        _nth(year, 1, MONDAY, 3),
        _nth(year, 2, MONDAY, 3),
        _easter(year) - datetime.timedelta(2),
        _nth(year, 5, MONDAY, -1),
        _observed(independence),
        _nth(year, 9, MONDAY, 1),
        _nth(year, 11, THURSDAY, 4),
        _observed(christmas),
    }
    if year >= 2022:
        days.add(_observed(datetime.date(year, 6, 19)))
    return frozenset(days | {day for day in SPECIAL if day.year == year})


def early_closes(year: int) -> frozenset[datetime.date]:
    """Return the sessions of a year that close at 13:00: before Independence Day, after Thanksgiving, Christmas Eve."""
    days = {
        datetime.date(year, 7, 3),
        _nth(year, 11, THURSDAY, 4) + datetime.timedelta(1),
        datetime.date(year, 12, 24),
    }
    return frozenset(day for day in days if day.weekday() < SATURDAY and day not in holidays(year))


@cache
def _sessions_of_year(year: int) -> Calendar:
    closed = np.array(sorted(holidays(year)), "datetime64[D]")
    days = np.arange(np.datetime64(f"{year}-01-01", "D"), np.datetime64(f"{year + 1}-01-01", "D"))
    days = days[np.is_busday(days, holidays=closed)]
    early = np.isin(days, np.array(sorted(early_closes(year)), "datetime64[D]"))
    opens = [_in_utc(day) for day in days.tolist()]
    return Calendar(days, np.array(opens, "datetime64[ns]"), np.where(early, EARLY_MINUTES, MINUTES).astype(np.int64))


def _in_utc(day: datetime.date) -> np.datetime64:
    opens = datetime.datetime.combine(day, OPENS, _zone()).astimezone(datetime.UTC)
    return np.datetime64(opens.replace(tzinfo=None), "ns")


@cache
def _zone() -> ZoneInfo:
    try:
        return ZoneInfo(ZONE)
    except ZoneInfoNotFoundError as error:
        raise MissingExtraError(f"this system has no time zones ({ZONE}): pip install tzdata") from error


def _year(day: np.datetime64) -> int:
    return int(day.astype("datetime64[Y]").astype(np.int64)) + 1970


def _observed(day: datetime.date) -> datetime.date:
    """A holiday on a Saturday is kept on Friday, one on a Sunday on Monday."""
    return day + datetime.timedelta({SATURDAY: -1, SUNDAY: 1}.get(day.weekday(), 0))


def _nth(year: int, month: int, weekday: int, number: int) -> datetime.date:
    """Return the ``number``-th such weekday of a month; -1 is the last."""
    if number < 0:
        after = datetime.date(year + month // 12, month % 12 + 1, 1)
        return after - datetime.timedelta((after.weekday() - weekday - 1) % 7 + 1)
    first = datetime.date(year, month, 1)
    return first + datetime.timedelta((weekday - first.weekday()) % 7 + 7 * (number - 1))


def _easter(year: int) -> datetime.date:
    """Return Easter Sunday of the Gregorian calendar (J. Meeus, "Astronomical Algorithms", chapter 8)."""
    a, b, c = year % 19, year // 100, year % 100
    d, e = divmod(b, 4)
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return datetime.date(year, month, day + 1)
