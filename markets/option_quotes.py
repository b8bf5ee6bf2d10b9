"""Smile, spread and quotes of same-day options, as compiled scalar functions.

**Smile.** With ``z = ln(K / S) / sd`` and sd the at-the-money deviation, the volatility of a strike is ``f(z)`` times
the at-the-money one on every clock::

    f(z) = max(0.3, 1 + b s(z) + c q(z))

``s(z) = z`` and ``q(z) = z^2`` up to ``|z| = 2``. From there to ``|z| = 4`` their slope falls linearly to 0, and beyond
it the smile is flat. A parabola that is cut off at 4 has a kink there, and a kink that bends down is a butterfly that
costs less than nothing; the bent wing has none. Prices are convex in the strike where Durrleman's condition
``(1 - z f'/f)^2 + f f'' - (sd f f' / 2)^2 >= 0`` holds; :func:`convex_share` says by how much b and c have to be
reduced until it does. Sources: V. Durrleman, "From implied to spot volatilities"; J. Gatheral and A. Jacquier,
"Arbitrage-free SVI volatility surfaces".

**Spread.** Ticks by premium, times a factor of the time of day, times the rise of volatility since the open; bid and
ask lie on the tick grid, around the mid, and a bid of 0 is a real state.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.option_prices import log_ratio, price_by_deviation

SpreadTable = NDArray[np.float64]

KNEE, FLAT = 2.0, 4.0  # in z: the wing bends here, and is flat from there on
LOWEST_FACTOR = 0.3
MORNING, AFTERNOON = 360.0 / 390.0, 120.0 / 390.0  # share of the session's minutes left at 10:00 and at 14:00

CONVEX_UP_TO = 0.25  # deviation for which the smile of a contract is made convex: 400 % at the open
OPENING_MINUTES, EARLY_MINUTES, CLOSING_MINUTES = 5.0, 15.0, 45.0


# --- smile ------------------------------------------------------------------------------------------------------------


@compiled
def smile_bases(z: float) -> tuple[float, float]:
    """``s(z)`` and ``q(z)``: z and its square, bent flat between ``|z| = 2`` and 4."""
    x = abs(z)
    if x <= KNEE:
        return z, z * z
    out = min(x, FLAT) - KNEE
    bent = out - 0.5 * out * out / (FLAT - KNEE)
    return math.copysign(KNEE + bent, z), KNEE * KNEE + 2.0 * KNEE * bent


@compiled
def smile_factor(z: float, slope: float, curvature: float) -> float:
    """Volatility of the strike at z over the at-the-money one: ``max(0.3, 1 + b s(z) + c q(z))``."""
    line, square = smile_bases(z)
    return max(LOWEST_FACTOR, 1.0 + slope * line + curvature * square)


@compiled
def at_the_money_deviation(forecast: float, variance_premium: float) -> float:
    """At-the-money deviation ``sqrt(1 + vrp)`` times the forecast one."""
    return math.sqrt(1.0 + variance_premium) * forecast


@compiled
def smile_deviation(spot: float, strike: float, deviation: float, slope: float, curvature: float) -> float:
    """Deviation of a strike, given the at-the-money one; 0 where that is 0."""
    if not deviation > 0.0:
        return 0.0
    return deviation * smile_factor(log_ratio(strike, spot) / deviation, slope, curvature)


@compiled
def smile_at(minutes_left: float, session_bars: float, morning: float, afternoon: float) -> float:
    """Parameter of the smile by the time of day: linear from its value at 10:00 to that at 14:00, flat outside."""
    share = minutes_left / session_bars
    weight = min(max((share - AFTERNOON) / (MORNING - AFTERNOON), 0.0), 1.0)
    return afternoon + weight * (morning - afternoon)


@compiled
def density_sign(z: float, slope: float, curvature: float, deviation: float) -> float:
    """Durrleman's function of the smile: the implied density at z has its sign, 0 or more means convex prices."""
    line, square = smile_bases(z)
    factor = 1.0 + slope * line + curvature * square
    if factor <= LOWEST_FACTOR or abs(z) >= FLAT:
        return 1.0  # flat here, and the kink at the floor bends up
    x = abs(z)
    tilt = slope + 2.0 * curvature * z
    bend = 2.0 * curvature
    if x > KNEE:
        at_knee = slope + math.copysign(2.0 * curvature * KNEE, z)
        tilt = at_knee * (FLAT - x) / (FLAT - KNEE)
        bend = math.copysign(1.0, -z) * at_knee / (FLAT - KNEE)
    level = 1.0 - z * tilt / factor
    wing = 0.5 * deviation * factor * tilt
    return level * level + factor * bend - wing * wing


@compiled
def is_convex(slope: float, curvature: float, deviation: float) -> bool:
    """True where prices under the smile are convex in the strike at every strike (checked on 321 values of z)."""
    for step in range(-160, 161):
        if density_sign(0.025 * step, slope, curvature, deviation) < 1e-3:
            return False
    return True


@compiled
def convex_share(slope: float, curvature: float, deviation: float) -> float:
    """Largest share of slope and curvature, up to 1, with which no butterfly costs less than nothing.

    A share of 0 is the flat smile, which is convex; found by halving, to 1e-3 and on the safe side.
    """
    if is_convex(slope, curvature, deviation):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = 0.5 * (low + high)
        if is_convex(middle * slope, middle * curvature, deviation):
            low = middle
        else:
            high = middle
    return low


@compiled
def smile_price(right: float, spot: float, strike: float, deviation: float, slope: float, curvature: float) -> float:
    """Model's mid per share (r = q = 0) of a strike, given the at-the-money deviation."""
    return price_by_deviation(right, spot, strike, smile_deviation(spot, strike, deviation, slope, curvature), 0.0, 0.0)


# --- spread and quotes ------------------------------------------------------------------------------------------------


@compiled
def base_spread(premium: float, table: SpreadTable) -> float:
    """Spread in ticks by premium: linear between the rows (premium, ticks), in proportion beyond the last one."""
    last = table.shape[0] - 1
    if premium >= table[last, 0]:
        return table[last, 1] * premium / table[last, 0]
    if premium <= table[0, 0]:
        return table[0, 1]
    k = 1
    while premium > table[k, 0]:
        k += 1
    weight = (premium - table[k - 1, 0]) / (table[k, 0] - table[k - 1, 0])
    return table[k - 1, 1] + weight * (table[k, 1] - table[k - 1, 1])


@compiled
def time_factor(minutes_left: float, session_bars: float, opening: float, early: float, closing: float) -> float:
    """Factor of the spread: ``opening`` for 5 minutes, ``early`` until the 15th, 1, then up to ``closing``.

    The last rise is linear over the 45 minutes before the close of this session, early or not.
    """
    elapsed = session_bars - minutes_left
    if elapsed < OPENING_MINUTES:
        return opening
    if elapsed < EARLY_MINUTES:
        return early
    if minutes_left >= CLOSING_MINUTES:
        return 1.0
    return 1.0 + (closing - 1.0) * (1.0 - max(minutes_left, 0.0) / CLOSING_MINUTES)


@compiled
def spread_in_ticks(
    premium: float, factor_of_time: float, volatility: float, volatility_at_open: float, table: SpreadTable
) -> float:
    """Whole ticks, at least 1: ``round(base x factor(time) x max(1, volatility / volatility at the open))``.

    Both volatilities on the same clock.
    """
    rise = max(1.0, volatility / volatility_at_open) if volatility_at_open > 0.0 else 1.0
    return max(1.0, float(math.floor(base_spread(premium, table) * factor_of_time * rise + 0.5)))


@compiled
def quotes_around(mid: float, spread_ticks: float, tick: float) -> tuple[float, float]:
    """Bid and ask on the tick grid around ``mid``, ``bid <= mid <= ask``; the bid is 0 where it would be below.

    ``spread_ticks`` is a whole number of at least 1. Above 0 the quotes lie exactly that far apart.
    """
    per_unit = 1.0 / tick
    low = float(math.floor(mid * per_unit - 0.5 * spread_ticks + 0.5 + 1e-9))
    high = max(low + spread_ticks, 1.0)
    return max(low, 0.0) / per_unit, high / per_unit
