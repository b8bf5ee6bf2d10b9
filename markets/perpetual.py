"""Contract rules of linear USDT-margined perpetual futures, as compiled scalar functions.

State of a position: signed quantity ``q`` (base units), average entry price ``E``, posted isolated margin; the wallet
``W`` holds everything realised, the margin included. Equity is ``W + q (mark - E)``. All money is float64 in the quote
currency, rates are fractions. ``tiers`` is a ``(K, 4)`` float64 array with the columns *notional up to*, *maximum
leverage*, *maintenance rate*, *maintenance amount*; its amounts make maintenance margin continuous in the notional.

The same functions serve the environments, tests and a paper venue, one call at a time or inside a compiled loop.
Sources: exchange documentation ("How to Calculate Liquidation Price of USDⓈ-M Futures Contracts", "Futures Liquidation
Protocols", "What Are Mark Price and Price Index", "Introduction to Funding Rates", notional and leverage brackets) and
"A million metaorder analysis of market impact on the Bitcoin" (square-root impact).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled

Tiers = NDArray[np.float64]

NOTIONAL_CAP, MAXIMUM_LEVERAGE, MAINTENANCE_RATE, MAINTENANCE_AMOUNT = range(4)

# Outcomes of an order, in the order in which they are checked. Positive codes change nothing at all.
ORDER_NONE, ORDER_FILLED, ORDER_PARTIAL = 0, -1, -2
REJECT_NOT_FINITE, REJECT_QUANTITY_LOW, REJECT_QUANTITY_HIGH, REJECT_NOTIONAL_LOW = 1, 2, 3, 4
REJECT_PRICE_BAND, REJECT_TIER_LEVERAGE, REJECT_MARGIN, REJECT_NO_VOLUME = 5, 6, 7, 8
ORDER_STATUS = {
    ORDER_NONE: "none",
    ORDER_FILLED: "filled",
    ORDER_PARTIAL: "partially filled",
    REJECT_NOT_FINITE: "rejected: not a finite number",
    REJECT_QUANTITY_LOW: "rejected: below the minimum quantity",
    REJECT_QUANTITY_HIGH: "rejected: above the maximum order quantity",
    REJECT_NOTIONAL_LOW: "rejected: below the minimum notional",
    REJECT_PRICE_BAND: "rejected: outside the price band around mark",
    REJECT_TIER_LEVERAGE: "rejected: leverage above the tier maximum of the resulting notional",
    REJECT_MARGIN: "rejected: free margin does not cover initial margin and fee",
    REJECT_NO_VOLUME: "rejected: nothing traded in the bar",
}


# --- margin tiers -----------------------------------------------------------------------------------------------------


@compiled
def tier_of(notional: float, tiers: Tiers) -> int:
    """Return the index of the tier that contains ``notional``; the last one beyond the table's end."""
    last = tiers.shape[0] - 1
    for k in range(last):
        if notional <= tiers[k, 0]:
            return k
    return last


@compiled
def maintenance_margin(notional: float, tiers: Tiers) -> float:
    """Maintenance margin ``N rate_k - amount_k`` of the tier that contains the notional N."""
    k = tier_of(notional, tiers)
    return notional * tiers[k, 2] - tiers[k, 3]


@compiled
def maximum_leverage(notional: float, tiers: Tiers) -> float:
    """Highest leverage allowed at ``notional``; 0 beyond the last tier."""
    k = tier_of(notional, tiers)
    return tiers[k, 1] if notional <= tiers[k, 0] else 0.0


@compiled
def bounded_leverage(asked: float, equity: float, tiers: Tiers) -> float:
    """Return ``asked``, or the most that the tiers allow a position of that many times ``equity``; at least 1.

    In tier k that is the smaller of its maximum and ``cap_k / equity``; the best tier counts. Beyond the table 1 stays.
    """
    most = 1.0
    for k in range(tiers.shape[0]):
        bound = tiers[k, 1]
        if bound * equity > tiers[k, 0]:
            bound = tiers[k, 0] / equity * (1.0 - 1e-12)  # rounding must not lift the notional into the next tier
        most = max(most, bound)
    return max(1.0, min(asked, most))


# --- fills and accounting ---------------------------------------------------------------------------------------------


@compiled
def apply_fill(quantity: float, entry: float, change: float, price: float) -> tuple[float, float, float]:
    """Fill ``change`` (signed) at ``price``: returns new quantity, new average entry, realised PnL.

    Increases average the entry, decreases realise ``s c (p - E)``, a flip closes all and opens the rest at ``p``.
    """
    after = quantity + change
    if quantity == 0.0 or (quantity > 0.0) == (change > 0.0):
        if after == 0.0:
            return 0.0, 0.0, 0.0
        return after, (quantity * entry + change * price) / after, 0.0
    if (after > 0.0) == (quantity > 0.0) and after != 0.0:
        return after, entry, -change * (price - entry)
    realised = quantity * (price - entry)
    return after, (price if after != 0.0 else 0.0), realised


@compiled
def fee(quantity: float, price: float, rate: float) -> float:
    """Fee ``|dQ| p rate`` of a fill."""
    return abs(quantity) * price * rate


@compiled
def funding_payment(quantity: float, mark: float, rate: float) -> float:
    """Funding ``q mark F`` that leaves the wallet at a stamp (negative: received); longs pay when F > 0."""
    return quantity * mark * rate


# --- funding rate and mark price --------------------------------------------------------------------------------------


@compiled
def premium_index(impact_bid: float, impact_ask: float, index: float) -> float:
    """Premium ``(max(0, bid - index) - max(0, index - ask)) / index`` from depth-weighted impact prices."""
    return (max(0.0, impact_bid - index) - max(0.0, index - impact_ask)) / index


def average_premium(samples: NDArray[np.float64]) -> float:
    """Average of the premium samples ``(n,)`` of an interval, oldest first, with weights 1, 2, .. n."""
    weights = np.arange(1.0, len(samples) + 1.0)
    return float(np.dot(weights, samples) / weights.sum())


@compiled
def funding_rate(premium: float, interval_hours: float, interest: float, clamp: float, cap: float) -> float:
    """Funding rate ``clamp((P + clamp(I - P, -c, +c)) / (8/N), -cap, +cap)`` of an interval of N hours."""
    rate = (premium + min(max(interest - premium, -clamp), clamp)) / (8.0 / interval_hours)
    return min(max(rate, -cap), cap)


@compiled
def mark_price(index: float, last_rate: float, hours_to_funding: float, basis_average: float, last: float) -> float:
    """Median of ``index (1 + F h / 8)``, ``index + average basis`` and the last price."""
    first = index * (1.0 + last_rate * hours_to_funding / 8.0)
    second = index + basis_average
    return max(min(first, second), min(max(first, second), last))


# --- liquidation ------------------------------------------------------------------------------------------------------


@compiled
def liquidation_price(quantity: float, entry: float, margin: float, tiers: Tiers, fee_rate: float) -> float:
    """Mark price at which margin balance equals maintenance margin; 0 for a position that cannot be liquidated.

    ``LP = (WB + amount - q E) / (Q (rate - s))``, evaluated for each tier; the answer is the one whose own notional
    ``Q LP`` lies in its tier (unique: maintenance margin is continuous with slope below one). ``fee_rate`` 0 is the
    default convention, the taker fee gives the fee-inclusive variant. A short always has a price.
    """
    if quantity == 0.0:
        return 0.0
    side = 1.0 if quantity > 0.0 else -1.0
    size = abs(quantity)
    price = 0.0
    for k in range(tiers.shape[0]):
        rate = tiers[k, 2] + fee_rate
        price = (margin + tiers[k, 3] - quantity * entry) / (size * (rate - side))
        if size * price <= tiers[k, 0]:  # the tiers below gave a price above their own caps
            break  # beyond the table the last tier goes on
    return price if price > 0.0 else 0.0


@compiled
def bankruptcy_price(quantity: float, entry: float, margin: float, fee_rate: float) -> float:
    """Price at which the margin is exactly used up: ``(q E - WB) / (Q (s - f))``."""
    side = 1.0 if quantity > 0.0 else -1.0
    return (quantity * entry - margin) / (abs(quantity) * (side - fee_rate))


@compiled
def is_breached(quantity: float, liquidation: float, mark: float) -> bool:
    """True when the mark price has reached the liquidation price of the position."""
    return mark <= liquidation if quantity > 0.0 else mark >= liquidation


@compiled
def execution_price(quantity: float, liquidation: float, opened: float) -> float:
    """Price at which a liquidation executes: its liquidation price, or the bar's mark open when that lies beyond it."""
    return min(liquidation, opened) if quantity > 0.0 else max(liquidation, opened)


@compiled
def settle_liquidation(
    quantity: float, entry: float, margin: float, liquidation: float, opened: float, clearance_rate: float
) -> tuple[float, float, float, float]:
    """Close a position at its liquidation price, or at the bar's mark open when the bar gapped through it.

    Returns:
        execution price X, realised PnL, clearance fee taken, cover paid by the insurance fund. The trader loses at
        most the margin: ``realised - clearance + cover >= -margin``.
    """
    price = execution_price(quantity, liquidation, opened)
    realised = quantity * (price - entry)
    rest = margin + realised
    clearance = min(clearance_rate * abs(quantity) * price, max(0.0, rest))
    return price, realised, clearance, max(0.0, -rest)


@compiled
def kept_in_tiered_liquidation(
    quantity: float, entry: float, margin: float, price: float, tiers: Tiers, lot: float, fee_rate: float
) -> float:
    """What a tiered liquidation at ``price`` leaves open (signed); 0 when the whole position has to go.

    The position is reduced to the cap of the highest lower tier, in whole lots, that makes it compliant: what is left
    of the margin after the loss and the fee on the part that is sold exceeds the maintenance margin of the rest.
    Source: "Binance Futures Liquidation Protocols".
    """
    side = 1.0 if quantity > 0.0 else -1.0
    size = abs(quantity)
    equity = margin + quantity * (price - entry)
    for k in range(tier_of(size * price, tiers) - 1, -1, -1):
        kept = round_quantity(tiers[k, 0] / price, lot)
        if 0.0 < kept < size and equity - fee(size - kept, price, fee_rate) > maintenance_margin(kept * price, tiers):
            return side * kept
    return 0.0


# --- execution cost ---------------------------------------------------------------------------------------------------


@compiled
def half_spread(price: float, tick: float, rate: float) -> float:
    """Half of the quoted spread as a fraction: ``max(tick / 2, rate price) / price``."""
    return max(0.5 * tick / price, rate)


@compiled
def impact(quantity: float, daily_volatility: float, daily_volume: float, coefficient: float) -> float:
    """Square-root impact ``Y sigma_d sqrt(dQ / V_d)`` as a fraction of the price; 0 without a volume."""
    if daily_volume <= 0.0:
        return 0.0
    return coefficient * daily_volatility * math.sqrt(abs(quantity) / daily_volume)


@compiled
def fill_price(opened: float, side: float, spread: float, impact_fraction: float) -> float:
    """Price of a market order: ``open (1 + side (half spread + impact))``."""
    return opened * (1.0 + side * (spread + impact_fraction))


@compiled
def fillable_quantity(
    wanted: float,
    volume: float,
    participation: float,
    opened: float,
    mark: float,
    bound: float,
    spread: float,
    daily_volatility: float,
    daily_volume: float,
    coefficient: float,
) -> float:
    """How much of an order of size ``wanted`` (signed) a bar fills; the rest is cancelled.

    Limits: ``participation`` of the bar's volume, and the market-order bound: the price may not lie further than
    ``bound`` from mark, which caps the impact, and fills nothing when the open itself lies beyond it.
    """
    side = 1.0 if wanted > 0.0 else -1.0
    size = min(abs(wanted), participation * volume)
    room = side * (mark * (1.0 + side * bound) / opened - 1.0) - spread  # what impact may still add
    if room < 0.0:
        return 0.0
    slope = coefficient * daily_volatility
    if slope > 0.0 and daily_volume > 0.0:
        size = min(size, daily_volume * (room / slope) ** 2)
    return side * size


@compiled
def posted_margin(quantity: float, entry: float, price: float, leverage: float) -> float:
    """Margin that a fill at ``price`` posts for the whole position: ``Q p / L + max(0, -q (p - E))``.

    The second part covers what is already lost: a margin of notional / L alone could be smaller than the loss, and the
    insurance fund would pay for a position that nobody moved.
    """
    return abs(quantity) * price / leverage + max(0.0, -quantity * (price - entry))


# --- order checks -----------------------------------------------------------------------------------------------------


@compiled
def round_quantity(quantity: float, step: float) -> float:
    """Round a quantity toward zero to whole lots (compared in lots, not floats); a step of 0 rounds nothing."""
    if step <= 0.0:
        return quantity
    lots = math.floor(abs(quantity) / step + 1e-9)
    return math.copysign(lots * step, quantity) if lots > 0.0 else 0.0


@compiled
def round_price(price: float, side: float, tick: float) -> float:
    """Round a limit price to the tick, never better for the account than asked: buys down, sells up."""
    if side > 0.0:
        return math.floor(price / tick + 1e-9) * tick
    return math.ceil(price / tick - 1e-9) * tick


@compiled
def is_reducing(quantity: float, change: float) -> bool:
    """True when the order only makes the position smaller (or closes it)."""
    return quantity * change < 0.0 and abs(change) <= abs(quantity) * (1.0 + 1e-12)


@compiled
def check_order(
    quantity: float,
    entry: float,
    change: float,
    price: float,
    mark: float,
    wallet: float,
    leverage: float,
    tiers: Tiers,
    fee_rate: float,
    smallest: float,
    largest: float,
    least_notional: float,
    band: float,
    cross: bool = False,
) -> int:
    """Return 0 when an order may fill, or the code of the first check that fails.

    Order of checks: finite numbers, quantity limits, minimum notional (reduce-only orders are exempt), price band
    around mark, tier leverage limit for the resulting notional, free margin for initial margin plus fee. The quantity
    and price are expected rounded. ``wallet`` is the whole balance, since the margin of the whole position is posted
    anew; a reducing order needs no margin. In ``cross`` margin an unrealised profit counts like the wallet.
    """
    if not (math.isfinite(change) and math.isfinite(price) and math.isfinite(mark) and math.isfinite(wallet)):
        return REJECT_NOT_FINITE
    if not 0.0 < leverage < math.inf:
        return REJECT_NOT_FINITE
    if abs(change) < smallest * (1.0 - 1e-9) or change == 0.0:
        return REJECT_QUANTITY_LOW
    if abs(change) > largest * (1.0 + 1e-9):
        return REJECT_QUANTITY_HIGH
    reducing = is_reducing(quantity, change)
    if not reducing and abs(change) * price < least_notional:
        return REJECT_NOTIONAL_LOW
    if abs(price - mark) > band * mark:
        return REJECT_PRICE_BAND
    if reducing:
        return 0
    after, average, realised = apply_fill(quantity, entry, change, price)
    notional = abs(after) * price
    if leverage > maximum_leverage(notional, tiers):
        return REJECT_TIER_LEVERAGE
    needed = posted_margin(after, average, price, leverage) + fee(change, price, fee_rate)
    profit = max(after * (price - average), 0.0) if cross else 0.0
    if needed > (wallet + realised + profit) * (1.0 + 1e-12):
        return REJECT_MARGIN
    return 0


@compiled
def affordable_quantity(
    quantity: float,
    entry: float,
    change: float,
    price: float,
    closing_price: float,
    wallet: float,
    leverage: float,
    tiers: Tiers,
    fee_rate: float,
    cross: bool = False,
) -> float:
    """Largest part of an opening ``change`` whose margin and fee the wallet covers (signed, 0 when nothing is).

    The margin of the resulting notional N at price p is ``N / min(leverage, tier maximum)`` plus what the position has
    lost, so the answer is sought from the highest tier down. Flips first realise the old position, at
    ``closing_price``; a caller who does not know the price yet passes the worst of each. In ``cross`` margin an
    unrealised profit counts like the wallet, at ``closing_price`` too.
    """
    side = 1.0 if change > 0.0 else -1.0
    opposite = quantity * side < 0.0
    held = 0.0 if opposite else abs(quantity)  # what stays open beside the new part
    closing = abs(quantity) if opposite else 0.0
    if opposite:
        cash = wallet + quantity * (closing_price - entry) - closing * max(price, closing_price) * fee_rate
    else:
        cash = wallet + (quantity * (closing_price - entry) if cross else min(quantity * (price - entry), 0.0))
    wanted = abs(change) - closing
    for k in range(tiers.shape[0] - 1, -1, -1):
        top = min(leverage, tiers[k, 1])
        # (held + x) p / top + x p f <= cash
        part = (cash - held * price / top) / (price * (1.0 / top + fee_rate))
        part = min(part, tiers[k, 0] / price * (1.0 - 1e-15) - held, wanted)  # a cap met exactly stays inside
        floor = tiers[k - 1, 0] if k > 0 else 0.0
        if part > 0.0 and (held + part) * price > floor:
            return side * (closing + part)
    return side * closing
