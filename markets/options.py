"""Contract rules of SPY same-day (0DTE) options: cut-offs, order checks, cash and settlement, as compiled functions.

Long calls and puts only, whole contracts of 100 shares, paid in full. Money is float64 in USD, prices are per share.
Times are minutes left to the close **of the session**, 16:00 or 13:00 New York time, as the decision sees them: with M
bars, the close of bar m has ``M - 1 - m`` minutes left. Defaults are those of a retail API broker for broad-based ETFs
("How To Trade 0DTE Options on Alpaca", "What is option expiration", "Options Regulatory Fee (ORF)").

Beside this file: :mod:`markets.option_contract` (the parameters), :mod:`markets.option_clocks`,
:mod:`markets.option_prices`, :mod:`markets.option_quotes` and :mod:`markets.option_fills`. The same functions serve an
environment's loop, tests and live code.
"""

from __future__ import annotations

import math

from markets.compiled import compiled

# Outcomes of a check, in the order of the checks; 0 may be sent, every other code changes nothing at all.
ORDER_OK = 0
REJECT_NOT_FINITE, REJECT_CLOSED, REJECT_CUT_OFF, REJECT_EXIT, REJECT_HELD = 1, 2, 3, 4, 5
REJECT_FLAT, REJECT_NO_QUOTE, REJECT_QUANTITY, REJECT_PREMIUM = 6, 7, 8, 9
REJECT_WORKING = 10  # of who keeps one working order at a time; a single order is checked without it
ORDER_STATUS = {
    ORDER_OK: "accepted",
    REJECT_NOT_FINITE: "rejected: not a finite number",
    REJECT_CLOSED: "rejected: the session has ended",
    REJECT_CUT_OFF: "rejected: no opening orders this close to expiry",
    REJECT_EXIT: "rejected: expiring positions are being closed",
    REJECT_HELD: "rejected: a position is open",
    REJECT_FLAT: "rejected: nothing to close",
    REJECT_NO_QUOTE: "rejected: nobody quotes the opposite side",
    REJECT_QUANTITY: "rejected: not a whole number of contracts that is held or at least 1",
    REJECT_PREMIUM: "rejected: cash does not cover premium and fee",
    REJECT_WORKING: "rejected: an order is working",
}


# --- cut-offs ---------------------------------------------------------------------------------------------------------


@compiled
def may_open(minutes_left: float, entry_cut_off: float) -> bool:
    """True while an opening order is accepted; the last decision has exactly ``entry_cut_off`` minutes left (15:30)."""
    return minutes_left > 0.0 and minutes_left >= entry_cut_off


@compiled
def is_forced_out(minutes_left: float, forced_exit: float) -> bool:
    """True from ``forced_exit`` minutes before the close on (15:45); never with a negative one, which means none."""
    return forced_exit >= 0.0 and minutes_left <= forced_exit


# --- orders and cash --------------------------------------------------------------------------------------------------


@compiled
def nearest_strike(spot: float, spacing: float, offset: float) -> float:
    """Strike nearest to the price, a half rounded up, and ``offset`` strikes above it."""
    return (math.floor(spot / spacing + 0.5) + offset) * spacing


@compiled
def whole_contracts(cash: float, share: float, ask: float, multiplier: float, fee: float) -> float:
    """Contracts that ``share`` of the cash buys, ``floor(share cash / (100 ask))``, and cash with fees pays for."""
    if not ask > 0.0:
        return 0.0
    wanted = math.floor(share * cash / (multiplier * ask) + 1e-9)
    payable = math.floor(cash / (multiplier * ask + fee) + 1e-9)
    return max(min(float(wanted), float(payable)), 0.0)


@compiled
def buying_cost(quantity: float, price: float, multiplier: float, fee: float) -> float:
    """Cash that leaves with a purchase: premium in full and the fee of each contract."""
    return quantity * (multiplier * price + fee)


@compiled
def sale_proceeds(quantity: float, price: float, multiplier: float, fee: float) -> float:
    """Cash that comes with a sale; what brings less than its fee is abandoned: a sale never costs cash."""
    return quantity * (multiplier * price - sale_fee(price, multiplier, fee))


@compiled
def sale_fee(price: float, multiplier: float, fee: float) -> float:
    """Fee of one contract that is sold: at most what the sale brings, so 0 for what is given away."""
    return min(fee, multiplier * price)


@compiled
def check_order(
    change: float,
    price: float,
    held: float,
    cash: float,
    minutes_left: float,
    entry_cut_off: float,
    forced_exit: float,
    multiplier: float,
    fee: float,
) -> int:
    """Return 0 when an order may be sent, or the code of the first check that fails.

    Args:
        change: contracts, positive to open, negative to close.
        price: the limit, or the opposite quote of a market order.
        held: contracts of the open position, 0 when flat. One contract at a time: no adding to it.
        cash: in USD.
        minutes_left, entry_cut_off, forced_exit: to the session's close; a negative ``forced_exit`` means none.
        multiplier, fee: of the contract.
    """
    if not (math.isfinite(change) and math.isfinite(price) and math.isfinite(held) and math.isfinite(cash)):
        return REJECT_NOT_FINITE
    if not minutes_left > 0.0:
        return REJECT_CLOSED
    if change > 0.0 and not may_open(minutes_left, entry_cut_off):
        return REJECT_CUT_OFF
    if is_forced_out(minutes_left, forced_exit):
        return REJECT_EXIT
    if change > 0.0 and held > 0.0:
        return REJECT_HELD
    if change < 0.0 and not held > 0.0:
        return REJECT_FLAT
    if not price > 0.0:
        return REJECT_NO_QUOTE
    if change == 0.0 or math.floor(change) != change or -change > held:
        return REJECT_QUANTITY
    if change > 0.0 and buying_cost(change, price, multiplier, fee) > cash * (1.0 + 1e-12):
        return REJECT_PREMIUM
    return ORDER_OK


# --- settlement -------------------------------------------------------------------------------------------------------


@compiled
def is_exercised(right: float, close: float, strike: float, threshold: float) -> bool:
    """Exercise by exception: in the money by at least ``threshold`` (0.01) at the close, compared to a millionth."""
    return right * (close - strike) >= threshold - 1e-6


@compiled
def cash_settlement(right: float, close: float, strike: float, quantity: float, multiplier: float) -> float:
    """Cash equivalent of what expires: ``quantity x 100 x max(0, w (close - K))``."""
    return quantity * multiplier * max(0.0, right * (close - strike))


@compiled
def physical_settlement(
    right: float, close: float, strike: float, quantity: float, multiplier: float, threshold: float
) -> tuple[float, float]:
    """Cash and shares that an expiry brings: a call buys shares at the strike, a put delivers them; else (0, 0)."""
    if not is_exercised(right, close, strike, threshold):
        return 0.0, 0.0
    shares = right * quantity * multiplier
    return -shares * strike, shares


@compiled
def can_settle_physically(
    right: float, strike: float, quantity: float, multiplier: float, cash: float, shares: float
) -> bool:
    """True for a call whose shares the cash pays for, and for a put whose shares are there to deliver.

    Who cannot is closed at the forced exit: a position that would expire into an unpaid or a short one is not kept.
    """
    if right > 0.0:
        return strike * quantity * multiplier <= cash * (1.0 + 1e-12)
    return quantity * multiplier <= shares
