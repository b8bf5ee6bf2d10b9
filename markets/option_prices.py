"""Prices, sensitivities and implied volatility of European options, as compiled scalar functions without a NaN.

Black-Scholes-Merton with ``w = +1`` for a call and ``-1`` for a put, in terms of the deviation ``sd = sigma sqrt(T)``
(:mod:`markets.option_clocks`) and of the carry over the remaining time, ``rate_time = r T`` and ``yield_time = q T``::

    d1 = (ln(S / K) + rT - qT) / sd + sd / 2,   d2 = d1 - sd
    price = w (S e^-qT N(w d1) - K e^-rT N(w d2))

A price is computed as its intrinsic value plus the out-of-the-money option, so it never lies below intrinsic and
put-call parity holds to rounding. Same-day options are priced with r = q = 0, where American equals European.
Functions of a deviation know no clock; what takes a volatility has its clock in its name.
"""

from __future__ import annotations

import math

from markets.compiled import compiled
from markets.option_clocks import deviation_on_trading_clock, deviation_on_variance_clock

CALL, PUT = 1.0, -1.0

ROOT_TWO = 1.4142135623730951
ROOT_TWO_PI = 2.5066282746310002
TINY = 1e-300
SMALLEST_DEVIATION = 1e-12  # no option is told apart from its intrinsic value below this
LARGEST_DEVIATION = 40.0  # a call costs the share to the last digit
LOWEST_THETA_SHARE = -20.0


@compiled
def normal_distribution(x: float) -> float:
    """Standard normal distribution function, with full relative accuracy in the lower tail."""
    return 0.5 * math.erfc(-x / ROOT_TWO)


@compiled
def normal_density(x: float) -> float:
    """Standard normal density."""
    return math.exp(-0.5 * x * x) / ROOT_TWO_PI


@compiled
def log_ratio(over: float, under: float) -> float:
    """``ln(over / under)`` of positive numbers, also where the ratio leaves the range of floats."""
    ratio = over / under
    if 1e-300 < ratio < 1e300:
        return math.log(ratio)
    return math.log(over) - math.log(under)


@compiled
def intrinsic(right: float, spot: float, strike: float) -> float:
    """Value at the close: ``max(0, w (S - K))``."""
    return max(0.0, right * (spot - strike))


@compiled
def price_by_deviation(
    right: float, spot: float, strike: float, deviation: float, rate_time: float = 0.0, yield_time: float = 0.0
) -> float:
    """Price per share; intrinsic when the deviation is 0 or less."""
    share = spot * math.exp(-yield_time)
    money = strike * math.exp(-rate_time)
    inner = max(0.0, right * (share - money))
    if not deviation > 0.0:
        return inner
    sd = max(deviation, SMALLEST_DEVIATION)
    d1 = log_ratio(share, money) / sd + 0.5 * sd
    side = 1.0 if share < money else -1.0  # of the option that is out of the money
    outer = side * (share * normal_distribution(side * d1) - money * normal_distribution(side * (d1 - sd)))
    return min(inner + max(outer, 0.0), share if right > 0.0 else money)


@compiled
def greeks_by_deviation(
    right: float, spot: float, strike: float, deviation: float, rate_time: float = 0.0, yield_time: float = 0.0
) -> tuple[float, float, float]:
    """Delta, gamma and ``dP / dsd`` (vega is that times ``sqrt(T)``).

    At a deviation of 0 or less delta is the slope of the intrinsic value, a half exactly at the strike, and the others
    are 0.
    """
    share = spot * math.exp(-yield_time)
    money = strike * math.exp(-rate_time)
    if not deviation > 0.0:
        if share == money:
            return 0.5 * right, 0.0, 0.0
        return (right if right * (share - money) > 0.0 else 0.0), 0.0, 0.0
    sd = max(deviation, SMALLEST_DEVIATION)
    d1 = log_ratio(share, money) / sd + 0.5 * sd
    density = normal_density(d1)
    carry = math.exp(-yield_time)
    delta = right * carry * normal_distribution(right * d1)
    return delta, carry * density / max(spot * sd, TINY), share * density


# --- on a clock -------------------------------------------------------------------------------------------------------


@compiled
def price_on_trading_clock(
    right: float,
    spot: float,
    strike: float,
    minutes_left: float,
    volatility: float,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> float:
    """Price per share at ``minutes_left`` trading minutes; volatility, rate and yield per trading year."""
    years = max(minutes_left, 0.0) / 98280.0
    deviation = deviation_on_trading_clock(volatility, minutes_left)
    return price_by_deviation(right, spot, strike, deviation, rate * years, dividend_yield * years)


@compiled
def greeks_on_trading_clock(
    right: float,
    spot: float,
    strike: float,
    minutes_left: float,
    volatility: float,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> tuple[float, float, float, float]:
    """Delta, gamma, vega per 1.00 of trading-clock volatility, theta per trading minute."""
    years = max(minutes_left, 0.0) / 98280.0
    deviation = deviation_on_trading_clock(volatility, minutes_left)
    growth, payout = rate * years, dividend_yield * years
    delta, gamma, slope = greeks_by_deviation(right, spot, strike, deviation, growth, payout)
    if not deviation > 0.0:
        return delta, gamma, 0.0, 0.0
    sd = max(deviation, SMALLEST_DEVIATION)
    share, money = spot * math.exp(-payout), strike * math.exp(-growth)
    d2 = log_ratio(share, money) / sd - 0.5 * sd
    decay = -slope * deviation / (2.0 * minutes_left)
    financing = right * rate * money * normal_distribution(right * d2) - dividend_yield * spot * delta
    return delta, gamma, slope * math.sqrt(years), decay - financing / 98280.0


@compiled
def price_on_variance_clock(
    right: float, spot: float, strike: float, share_left: float, session_bars: float, volatility: float
) -> float:
    """Price per share with ``share_left`` of the session's variance to come; volatility of the day, r = q = 0."""
    deviation = deviation_on_variance_clock(volatility, share_left, session_bars)
    return price_by_deviation(right, spot, strike, deviation, 0.0, 0.0)


@compiled
def greeks_on_variance_clock(
    right: float,
    spot: float,
    strike: float,
    share_left: float,
    share_after: float,
    session_bars: float,
    volatility: float,
) -> tuple[float, float, float, float]:
    """Delta, gamma, vega per 1.00 of the day's volatility, theta per minute; r = q = 0.

    Theta is the decay at the speed of the coming minute, which ends with ``share_after`` of the variance left.
    """
    deviation = deviation_on_variance_clock(volatility, share_left, session_bars)
    delta, gamma, slope = greeks_by_deviation(right, spot, strike, deviation, 0.0, 0.0)
    if not deviation > 0.0:
        return delta, gamma, 0.0, 0.0
    theta = -slope * deviation * (share_left - share_after) / (2.0 * share_left)
    return delta, gamma, slope * deviation / volatility, theta


@compiled
def observed_greeks_by_deviation(
    right: float, spot: float, strike: float, deviation: float
) -> tuple[float, float, float, float]:
    """What observations may hold: ``P / S`` in [0, 1], delta, ``gamma S sd`` in [0, 0.4], ``theta T / P`` in [-20, 0].

    The last one is the decay over the remaining time as a share of the premium, at the present speed: the same number
    on the trading and on the variance clock, -0.5 at the money and lower out of it. r = q = 0.
    """
    premium = price_by_deviation(right, spot, strike, deviation, 0.0, 0.0)
    delta, _, slope = greeks_by_deviation(right, spot, strike, deviation, 0.0, 0.0)
    if not deviation > 0.0:
        return min(premium / spot, 1.0), delta, 0.0, 0.0
    decay = -0.5 * slope * deviation
    share = max(decay / premium, LOWEST_THETA_SHARE) if premium > TINY else LOWEST_THETA_SHARE
    return min(premium / spot, 1.0), delta, slope / spot, share


@compiled
def price_and_observed_greeks(
    right: float, spot: float, strike: float, deviation: float
) -> tuple[float, float, float, float]:
    """Price per share, and delta, gamma and theta of :func:`observed_greeks_by_deviation`: its numbers, in one go.

    What both need is computed once: a logarithm, and two or three values of the distribution function.
    """
    if not deviation > 0.0:
        _, delta, gamma, theta = observed_greeks_by_deviation(right, spot, strike, deviation)
        return intrinsic(right, spot, strike), delta, gamma, theta
    sd = max(deviation, SMALLEST_DEVIATION)
    d1 = log_ratio(spot, strike) / sd + 0.5 * sd
    side = 1.0 if spot < strike else -1.0
    first = normal_distribution(side * d1)
    outer = side * (spot * first - strike * normal_distribution(side * (d1 - sd)))
    price = min(intrinsic(right, spot, strike) + max(outer, 0.0), spot if right > 0.0 else strike)
    slope = spot * normal_density(d1)
    delta = right * (first if side == right else normal_distribution(right * d1))
    decay = -0.5 * slope * deviation
    share = max(decay / price, LOWEST_THETA_SHARE) if price > TINY else LOWEST_THETA_SHARE
    return price, delta, slope / spot, share


# --- implied volatility -----------------------------------------------------------------------------------------------


@compiled
def implied_deviation(
    right: float, spot: float, strike: float, price: float, rate_time: float = 0.0, yield_time: float = 0.0
) -> float:
    """Deviation at which the option costs ``price``: 0 for a price at or below intrinsic, 40 at the upper bound.

    Newton's method on the logarithm of the out-of-the-money price, which is concave in the deviation, inside a bracket
    that is halved whenever a step would leave it.
    """
    share = spot * math.exp(-yield_time)
    money = strike * math.exp(-rate_time)
    target = price - max(0.0, right * (share - money))
    if not target > 0.0:
        return 0.0
    if target >= min(share, money):
        return LARGEST_DEVIATION
    outer = 1.0 if share < money else -1.0
    low, high = 0.0, LARGEST_DEVIATION
    sd = max(min(math.sqrt(2.0 * abs(log_ratio(share, money))), 10.0), 2.5 * target / max(share, money))
    for _ in range(200):
        value = price_by_deviation(outer, spot, strike, sd, rate_time, yield_time)
        if value > target:
            high = min(high, sd)
        else:
            low = max(low, sd)
        _, _, slope = greeks_by_deviation(outer, spot, strike, sd, rate_time, yield_time)
        following = 0.5 * (low + high)
        if value > TINY and slope > TINY:
            newton = sd - math.log(value / target) * value / slope
            if low < newton < high:
                following = newton
        if abs(following - sd) <= 1e-15 * sd or high - low <= 1e-15 * high:
            return following
        sd = following
    return sd


@compiled
def implied_volatility_on_trading_clock(
    right: float,
    spot: float,
    strike: float,
    minutes_left: float,
    price: float,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
) -> float:
    """Trading-clock volatility of a price; 0 when no time is left or the price is at or below intrinsic."""
    if not minutes_left > 0.0:
        return 0.0
    years = minutes_left / 98280.0
    deviation = implied_deviation(right, spot, strike, price, rate * years, dividend_yield * years)
    return deviation / math.sqrt(years)


@compiled
def implied_volatility_on_calendar_clock(
    right: float, spot: float, strike: float, minutes_left: float, price: float
) -> float:
    """Calendar-clock volatility of a price at r = q = 0; 0 when no time is left or the price is at most intrinsic."""
    if not minutes_left > 0.0:
        return 0.0
    return implied_deviation(right, spot, strike, price, 0.0, 0.0) / math.sqrt(minutes_left / 525600.0)


@compiled
def implied_volatility_on_variance_clock(
    right: float, spot: float, strike: float, share_left: float, session_bars: float, price: float
) -> float:
    """Volatility of the day of a price at r = q = 0; 0 when no variance is left or the price is at most intrinsic."""
    if not share_left > 0.0:
        return 0.0
    return implied_deviation(right, spot, strike, price, 0.0, 0.0) / math.sqrt(session_bars / 98280.0 * share_left)
