"""Clocks of same-day options: how much time, and how much of the session's variance, is left until the close.

An option sees time only through the *deviation* ``sd = sigma sqrt(T)``, the standard deviation of the log price to the
close. A volatility means something only together with the clock that ``T`` is read on, so the clock is part of every
name here:

- **trading clock**: ``T = minutes left / 98 280`` years (252 sessions of 390 minutes). Volatilities are quoted on it.
- **calendar clock**: ``T = minutes left / 525 600``, what vendors and volatility indices use for same-day options. The
  same price has a volatility larger by ``sqrt(525 600 / 98 280) = 2.3125711553``.
- **variance clock**: the trading clock in which a minute counts by the variance that the day's shape gives it. ``T``
  is the session's length on the trading clock times the share of its variance that is still to come. At the open both
  clocks agree; the at-the-money volatility on this one is close to constant through the day.

:func:`deviation_on_trading_clock` and its sisters go from a volatility to the deviation, ``volatility_on_...`` back;
``..._from_...`` converts a volatility so that the price stays. Day shape: RMS per minute ``0.78 + 0.75 exp(-u / 0.12) +
0.35 exp(-(1 - u) / 0.06)`` at the fraction u of the session, fitted to SPY minutes.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ConfigError
from markets.session_calendar import EARLY_MINUTES as EARLY_SESSION
from markets.session_calendar import MINUTES as FULL_SESSION
from markets.session_calendar import minute_shape

TRADING_MINUTES = 98_280.0  # 252 x 390
CALENDAR_MINUTES = 525_600.0  # 365 x 1 440


@compiled
def minutes_left_at_close(bar: float, session_bars: float) -> float:
    """Minutes to the session's close when its bar number ``bar`` (0, 1, .. M - 1) has closed: ``M - 1 - m``."""
    return session_bars - 1.0 - bar


@compiled
def deviation_on_trading_clock(volatility: float, minutes_left: float) -> float:
    """``sigma sqrt(minutes / 98 280)``; 0 when no time is left or the volatility is not positive."""
    if not (minutes_left > 0.0 and volatility > 0.0):
        return 0.0
    return volatility * math.sqrt(minutes_left / 98280.0)


@compiled
def deviation_on_calendar_clock(volatility: float, minutes_left: float) -> float:
    """``sigma sqrt(minutes / 525 600)``; 0 when no time is left or the volatility is not positive."""
    if not (minutes_left > 0.0 and volatility > 0.0):
        return 0.0
    return volatility * math.sqrt(minutes_left / 525600.0)


@compiled
def deviation_on_variance_clock(volatility: float, share_left: float, session_bars: float) -> float:
    """``sigma sqrt(M / 98 280 x share)`` with the share of the session's variance that is left (0 to 1)."""
    if not (share_left > 0.0 and volatility > 0.0):
        return 0.0
    return volatility * math.sqrt(session_bars / 98280.0 * share_left)


@compiled
def volatility_on_trading_clock(deviation: float, minutes_left: float) -> float:
    """Volatility per square root of a trading year that gives ``deviation``; 0 when no time is left."""
    return deviation / math.sqrt(minutes_left / 98280.0) if minutes_left > 0.0 else 0.0


@compiled
def volatility_on_calendar_clock(deviation: float, minutes_left: float) -> float:
    """Volatility per square root of a calendar year that gives ``deviation``; 0 when no time is left."""
    return deviation / math.sqrt(minutes_left / 525600.0) if minutes_left > 0.0 else 0.0


@compiled
def volatility_on_variance_clock(deviation: float, share_left: float, session_bars: float) -> float:
    """Volatility of the day, per square root of a trading year, that gives ``deviation``; 0 when no share is left."""
    return deviation / math.sqrt(session_bars / 98280.0 * share_left) if share_left > 0.0 else 0.0


@compiled
def trading_from_calendar_volatility(volatility: float) -> float:
    """Trading-clock volatility of the same price: ``sigma / 2.3125711553`` at any number of minutes left."""
    return volatility / math.sqrt(525600.0 / 98280.0)


@compiled
def calendar_from_trading_volatility(volatility: float) -> float:
    """Calendar-clock volatility of the same price: ``sigma x 2.3125711553`` at any number of minutes left."""
    return volatility * math.sqrt(525600.0 / 98280.0)


@compiled
def variance_from_trading_volatility(
    volatility: float, minutes_left: float, share_left: float, session_bars: float
) -> float:
    """Volatility of the day of the same price as a trading-clock one; 0 when no share is left."""
    return volatility_on_variance_clock(deviation_on_trading_clock(volatility, minutes_left), share_left, session_bars)


@compiled
def trading_from_variance_volatility(
    volatility: float, minutes_left: float, share_left: float, session_bars: float
) -> float:
    """Trading-clock volatility of the same price as a volatility of the day; 0 when no time is left."""
    return volatility_on_trading_clock(deviation_on_variance_clock(volatility, share_left, session_bars), minutes_left)


@functools.cache
def remaining_share(session_bars: int = FULL_SESSION) -> NDArray[np.float64]:
    """Share of a session's variance that is left after 0, 1, .. M minutes.

    Args:
        session_bars: M, 390 of a full session or 210 of one that closes early; the shape is stretched to its length.

    Returns:
        ``(M + 1,)`` float64, read-only, from 1 down to 0. The close of bar m is entry m + 1, so that minutes left n
        are entry M - n.

    Raises:
        ConfigError: M is not a whole number of at least 2.
    """
    if isinstance(session_bars, bool) or int(session_bars) != session_bars or session_bars < 2:
        raise ConfigError(
            f"session_bars={session_bars!r} must be a whole number of minutes: {FULL_SESSION} of a full session, "
            f"{EARLY_SESSION} of an early close"
        )
    left = np.concatenate((np.cumsum((minute_shape(session_bars) ** 2)[::-1])[::-1], [0.0]))
    left /= left[0]
    left.flags.writeable = False
    return left
