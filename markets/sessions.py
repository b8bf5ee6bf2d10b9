"""Which rows of minute bars belong to which session, where in it they stand, and whether the session is whole.

An episode of a market with a closing bell is one session. A session counts where all of its minutes are there; one that
is not whole is left out and counted, never filled: no minute is made up.

At the close of bar m of a session with M bars, M - 1 - m minutes are left. Shapes: T bars, S sessions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import Bars, Floats, Times
from markets.errors import ConfigError, DataError
from markets.session_calendar import DAY, MINUTE, SESSION_MARKETS, Calendar, locate, sessions_between

Integers = NDArray[np.int64]

MAX_STALE = np.timedelta64(6, "D")  # age of a previous close: a long weekend has 4 days
NAMED = 5  # sessions that a message names
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sessions:
    """S sessions of T bars, in order of time.

    Attributes:
        calendar: day, opening and number of minutes M of each.
        first: ``(S,)`` row of the first bar that is there. rows: ``(S,)`` how many are there.
        place: ``(T,)`` session of each row, -1 where it has none.
        minute: ``(T,)`` m, number of the bar within its session from 0 on, -1 where it has none.
    """

    calendar: Calendar
    first: Integers
    rows: Integers
    place: Integers
    minute: Integers

    def __len__(self) -> int:
        return len(self.first)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """``(S,)`` which sessions have every minute."""
        return self.rows == self.calendar.minutes

    @cached_property
    def minutes(self) -> Integers:
        """``(T,)`` M of each row's session, 0 where it has none."""
        return (
            np.where(self.place >= 0, self.calendar.minutes[self.place], 0) if len(self) else np.zeros_like(self.place)
        )

    @cached_property
    def minutes_left(self) -> Integers:
        """``(T,)`` minutes from the close of each bar to the close of its session, -1 where it has none."""
        return np.where(self.place >= 0, self.minutes - 1 - self.minute, -1)

    @property
    def outside(self) -> int:
        """How many rows have no session."""
        return int((self.place < 0).sum())

    @cached_property
    def absent(self) -> NDArray[np.datetime64]:
        """Days between the first and the last that have a session of which no bar is there."""
        if not len(self):
            return self.calendar.day
        days = sessions_between(self.calendar.day[0], self.calendar.day[-1]).day
        return days[~np.isin(days, self.calendar.day)]

    def whole(self, what: str = "bars") -> Sessions:
        """Return the complete sessions only, and tell in a warning how many were dropped; their rows have none then."""
        keep = self.complete
        if not keep.all():
            _log.warning("%s", describe(self, what))
        number = np.where(keep, np.cumsum(keep) - 1, -1)
        place = np.where(self.place >= 0, number[self.place], -1) if len(self) else self.place
        minute = np.where(place >= 0, self.minute, -1)
        return Sessions(self.calendar.take(keep), self.first[keep], self.rows[keep], place, minute)


def sessions_of(bars: Bars) -> Sessions:
    """Find the sessions of one-minute bars; unfinished ones are among them, see :meth:`Sessions.whole`.

    Raises:
        ConfigError: not bars of one minute, or of a market that has no sessions.
        DataError: a bar does not open on a whole minute of its session.
    """
    if bars.market not in SESSION_MARKETS:
        raise ConfigError(
            f"bars of market {bars.market!r} have no sessions; those of {', '.join(SESSION_MARKETS)} have: for bars of "
            f"yours, add market={SESSION_MARKETS[0]} to the source"
        )
    if bars.interval != MINUTE:
        raise ConfigError(f"sessions are read from bars of 1m, these have interval={pd.Timedelta(bars.interval)}")
    return sessions_at(bars.time)


def sessions_at(time: Times) -> Sessions:
    """Find the sessions of one-minute bars that open at ``time (T,)``, which rises."""
    calendar, at = locate(time)
    inside = np.flatnonzero(at >= 0)
    since = time[inside] - calendar.open[at[inside]]
    off = since % MINUTE != np.timedelta64(0)
    if off.any():
        row = int(inside[off.argmax()])
        raise DataError(f"column 'time', row {row} ({time[row]}): not on a whole minute of the session")
    there, begin, rows = np.unique(at[inside], return_index=True, return_counts=True)
    place, minute = np.full(len(time), -1), np.full(len(time), -1)
    place[inside] = np.searchsorted(there, at[inside])
    minute[inside] = since // MINUTE
    return Sessions(calendar.take(there), inside[begin], rows.astype(np.int64), place, minute)


def describe(found: Sessions, what: str) -> str:
    """Say in numbers what is whole, unfinished and absent."""
    short = np.flatnonzero(~found.complete)
    text = f"{what}: {len(found)} sessions, {len(found) - len(short)} whole"
    if len(short):
        days, rows, minutes = found.calendar.day[short], found.rows[short], found.calendar.minutes[short]
        named = ", ".join(f"{day} {n}/{m}" for day, n, m in zip(days[:NAMED], rows, minutes, strict=False))
        more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
        text += f"; {len(short)} unfinished, {int((minutes - rows).sum())} minutes missing: {named}{more}"
        text += "; an unfinished session is dropped, not filled"
    if len(found.absent):
        text += f"; {len(found.absent)} sessions between have no bar, the first on {found.absent[0]}"
    return text


def tell(time: Times, interval: np.timedelta64, what: str) -> None:
    """Say once, at loading, which sessions are not whole; nights and weekends are nothing to tell."""
    if interval == MINUTE and len(time) and (np.diff(time) > np.timedelta64(0)).all():
        found = sessions_at(time)
        if not found.complete.all() or len(found.absent):
            _log.warning("%s", describe(found, what))


def in_session(time: Times, interval: np.timedelta64) -> NDArray[np.bool_]:
    """``(T,)`` which bars open inside a regular session; bars of a day or longer are taken as they are."""
    return np.ones(len(time), bool) if interval >= DAY else locate(time)[1] >= 0


def previous_closes(time: Times, day: NDArray[Any], close: Floats) -> Floats:
    """``(T,)`` last daily close before the day of each bar's session; a bar never sees the close of its own day.

    Args:
        time: ``(T,)`` openings of bars inside sessions. day: ``(D,)`` dates in New York, rising. close: ``(D,)``.

    Raises:
        DataError: no close within six days before a session; names the day.
    """
    calendar, place = locate(time)
    session = calendar.day[place]
    row = np.searchsorted(day, session, side="left") - 1
    missing = (row < 0) | (session - day[row] > MAX_STALE)
    if missing.any():
        where = session[missing.argmax()]
        raise DataError(
            f"column 'previous_vix': no close in the {MAX_STALE.astype(int)} days before {where}; "
            f"the table runs from {day[0]} to {day[-1]}"
        )
    return close[row]
