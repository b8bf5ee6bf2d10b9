"""Fills of limit orders that are pegged to the mid, minute by minute, as compiled scalar functions.

A passive order at the distance delta from the mid, with the half-spread h, meets ``A exp(-kappa delta / h)`` opposite
orders a minute ("High-frequency trading in a limit order book"), so it fills within dt with ``1 - exp(-intensity dt)``.
Who fills it knows more: the probability is multiplied by ``exp(-2 side z1)``, capped, where z1 is the minute's
standardised move of the option's mid; conditional on a passive buy the next mid is lower on average. An order at or
through the opposite quote fills at once, at that quote. A fill takes at most the contracts that a minute offers; the
rest goes on working until the order's life ends, and is then pegged again or cancelled.

The functions draw nothing: the caller passes the minute's uniform number. ``side`` is +1 for a buy and -1 for a sell,
prices are per share on the tick grid, quantities whole contracts.
"""

from __future__ import annotations

import math

from markets.compiled import compiled

# How an order fills. The last one fills every order at the mid, which nobody can do: reports of results refuse it.
FILL_LIMIT, FILL_MARKET, FILL_MID_OPTIMISTIC = 0, 1, 2
FILL_MODES = {"limit": FILL_LIMIT, "market": FILL_MARKET, "mid_optimistic": FILL_MID_OPTIMISTIC}
OPTIMISTIC_FILLS = frozenset({"mid_optimistic"})

# What a minute made of an order.
WORKING, FILLED, PARTLY_FILLED, REPEGGED, CANCELLED = 0, 1, 2, 3, 4
WORK_STATUS = {
    WORKING: "working",
    FILLED: "filled",
    PARTLY_FILLED: "partly filled, the rest is working",
    REPEGGED: "pegged again to the mid",
    CANCELLED: "life ended, the rest is cancelled",
}


@compiled
def minute_uniform(seed: float, minute: float) -> float:
    """Number in [0, 1) of a session's minute: the same for the same seed, a whole number below 2^32.

    A session draws one seed; its minutes' numbers are hashes of seed and minute, so that an account keeps one number
    and not 390. A 32-bit integer hash in arithmetic that never leaves 63 bits, the same bits compiled or not.
    Source: C. Wellons and others, "Prospecting for hash functions", constants 0x21f0aaad and 0x735a2d97.
    """
    return _hash(_hash(int(seed)) + 0x1E3779B1 * (int(minute) + 1)) / 4294967296.0


@compiled
def _hash(value: int) -> int:
    value &= 0xFFFFFFFF
    value ^= value >> 16
    value = (value * 0x21F0AAAD) & 0xFFFFFFFF
    value ^= value >> 15
    value = (value * 0x735A2D97) & 0xFFFFFFFF
    value ^= value >> 15
    return value


@compiled
def peg(side: float, bid: float, ask: float, tick: float) -> float:
    """Limit price at the mid of a quote, rounded to the tick toward the own side: buys down (to one tick), sells up.

    No series has half ticks, so a quote of an odd number of ticks has no mid to rest at. Where it is one tick wide the
    order rests at the own side of the quote and fills as one there does, 0.237 a minute and not 0.593: the price of a
    tick that is a large share of a cheap option, and no mistake of the intensity.
    """
    per_unit = 1.0 / tick
    mid = 0.5 * (bid + ask) * per_unit
    if side > 0.0:
        return max(float(math.floor(mid + 1e-9)), 1.0) / per_unit
    return math.ceil(mid - 1e-9) / per_unit


@compiled
def fill_intensity(distance: float, half_spread: float, rate: float, decay: float) -> float:
    """Opposite orders a minute, ``A exp(-kappa delta / h)``, at ``distance`` from the mid toward the own side."""
    return rate * math.exp(min(-decay * distance / half_spread, 700.0))


@compiled
def fill_probability(intensity: float, minutes: float) -> float:
    """Probability ``1 - exp(-intensity dt)`` that an order fills within some minutes."""
    return 1.0 - math.exp(-max(intensity * minutes, 0.0))


@compiled
def selection_factor(side: float, move: float, strength: float, lowest: float, highest: float) -> float:
    """Factor of the fill probability by what the mid does: ``exp(-strength side z1)`` within its caps."""
    exponent = min(max(-strength * side * move, -700.0), 700.0)
    return min(max(math.exp(exponent), lowest), highest)


@compiled
def is_crossing(side: float, limit: float, bid: float, ask: float) -> bool:
    """True when a limit reaches the opposite quote; nobody buys at a bid of 0."""
    if side > 0.0:
        return limit >= ask - 1e-9
    return bid > 0.0 and limit <= bid + 1e-9


@compiled
def limit_fill_probability(
    side: float,
    limit: float,
    bid: float,
    ask: float,
    move: float,
    minutes: float,
    rate: float,
    decay: float,
    strength: float,
    lowest: float,
    highest: float,
) -> float:
    """Probability that a limit order fills within ``minutes``: 1 for a crossing one, selection included otherwise."""
    if is_crossing(side, limit, bid, ask):
        return 1.0
    half = max(0.5 * (ask - bid), 1e-9)  # a locked quote: nothing passive fills
    distance = side * (0.5 * (bid + ask) - limit)
    plain = fill_probability(fill_intensity(distance, half, rate, decay), minutes)
    return min(plain * selection_factor(side, move, strength, lowest, highest), 1.0)


@compiled
def work_limit_order(
    side: float,
    remaining: float,
    limit: float,
    age: float,
    repegs: float,
    bid: float,
    ask: float,
    move: float,
    uniform: float,
    offered: float,
    life: float,
    tick: float,
    rate: float,
    decay: float,
    strength: float,
    lowest: float,
    highest: float,
) -> tuple[int, float, float, float, float, float, float]:
    """Work a limit order for one minute.

    Args:
        side, remaining, limit, age, repegs: the order: contracts to do, its price, whole minutes it has worked since
            it was pegged, how often it may still be pegged again.
        bid, ask: quote of the minute.
        move: standardised move of the option's mid in the minute.
        uniform: the minute's number in [0, 1); below the probability the order fills.
        offered: contracts that the minute fills at most.
        life: minutes after which an order is pegged again, or cancelled when ``repegs`` is used up.
        tick, rate, decay, strength, lowest, highest: of the contract.

    Returns:
        status (``WORK_STATUS``), contracts filled, their price (0 without a fill), and the order as it goes on:
        remaining (0 when it is over), limit, age, repegs. Filled and remaining add up to what there was unless the
        rest is cancelled.
    """
    filled, price = 0.0, 0.0
    probability = limit_fill_probability(side, limit, bid, ask, move, 1.0, rate, decay, strength, lowest, highest)
    if uniform < probability:
        filled = min(remaining, float(math.floor(offered)))
        price = limit
        if is_crossing(side, limit, bid, ask):
            price = ask if side > 0.0 else bid
    if filled >= remaining:
        return FILLED, filled, price, 0.0, limit, 0.0, repegs
    remaining -= filled
    age += 1.0
    if filled <= 0.0:
        price = 0.0
    if age < life:
        return (PARTLY_FILLED if filled > 0.0 else WORKING), filled, price, remaining, limit, age, repegs
    if repegs > 0.0:
        return REPEGGED, filled, price, remaining, peg(side, bid, ask, tick), 0.0, repegs - 1.0
    return CANCELLED, filled, price, 0.0, limit, 0.0, 0.0


@compiled
def take_quote(side: float, remaining: float, bid: float, ask: float, offered: float) -> tuple[float, float]:
    """Contracts and price of an order at the opposite quote; the rest is cancelled, and nothing sells at a bid of 0."""
    price = ask if side > 0.0 else bid
    if not price > 0.0:
        return 0.0, 0.0
    return min(remaining, float(math.floor(offered))), price


@compiled
def take_mid(remaining: float, bid: float, ask: float) -> tuple[float, float]:
    """Contracts and price of an order under ``mid_optimistic``: all of it, at the mid. An upper bound, not a result."""
    return remaining, 0.5 * (bid + ask)
