"""The compiled step of the PerpFutures family: account columns, order of events in a bar, bookkeeping, observation.

Every rule it applies is a scalar function of :mod:`markets.perpetual`, so that tests and a paper venue call the same
code; this file only says when each applies and keeps the books. Order of events in bar t+1: funding stamps at its open,
gap check at the open, the order decided at t, check against the adverse mark extreme, later funding stamps (with that
check repeated), equity at the mark close. Layout: :mod:`envs.simulation`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.perp_columns import (
    ACTION,
    APPLIED,
    ASKED_LEVERAGE,
    BAD_ACTIONS,
    BAND,
    CLEARANCE,
    CLEARANCE_FEE,
    CONTRACT_LEVERAGE,
    COSTS,
    COVER,
    CROSS,
    DAILY_VOLATILITY,
    DAILY_VOLUME,
    DRAWDOWN,
    DRAWDOWN_LIMIT,
    ENTRY,
    EPISODE,
    FEE,
    FILL_PRICE,
    FILL_QUANTITY,
    FUNDING,
    FUNDING_AT_OPEN,
    FUNDING_IN_GAP,
    FUNDING_INSIDE,
    FUNDING_TERM,
    GIVEN_LEVERAGE,
    GO_ON,
    HELD,
    HOLDING_SCALE,
    IMPACT,
    IMPACT_COST,
    LAST_ROW,
    LIQUIDATED,
    LIQUIDATED_AT,
    LIQUIDATED_QUANTITY,
    LIQUIDATION,
    LOG_EQUITY,
    LOG_RETURN,
    LOG_START,
    LOT,
    MARGIN,
    MARGIN_RATIO,
    MARK,
    MARK_CLOSE,
    MARK_HIGH,
    MARK_LOW,
    MARK_OPEN,
    MARKET_PNL,
    MAXIMUM_QUANTITY,
    MEAN,
    MINIMUM_NOTIONAL,
    MINIMUM_QUANTITY,
    OPEN,
    ORDER_CODE,
    ORDER_QUANTITY,
    PARTICIPATION,
    PEAK,
    POSITION,
    REALISED,
    REBALANCE,
    RUIN,
    SHARPE,
    SHARPE_RATE,
    SIMPLE_RETURN,
    SPREAD,
    SPREAD_COST,
    SQUARE,
    START_EQUITY,
    TAKER_FEE,
    TICK,
    TIERED,
    TIERS,
    VOLUME,
    W_COSTS,
    W_DRAWDOWN,
    W_FUNDING,
    W_LOG,
    W_SHARPE,
    W_SIMPLE,
    WALLET,
)
from envs.rewards import FLOOR, differential_sharpe, drawdown_increase, log_equity
from envs.simulation import (
    COST_SCALE,
    END,
    END_CODE,
    ENDED_DATA,
    ENDED_DRAWDOWN,
    ENDED_LENGTH,
    ENDED_LIQUIDATION,
    ENDED_RUIN,
    EQUITY,
    LEVERAGE,
    MODE_NEXT_STEP,
    MODE_RESET,
    MODE_SAME_STEP,
    NEXT_COST_SCALE,
    NEXT_START,
    OUTCOME,
    QUIET,
    RESET,
    REWARD,
    ROW,
    START,
    TERMINATED,
    TRUNCATED,
)
from markets.compiled import compiled
from markets.perpetual import (
    ORDER_FILLED,
    ORDER_PARTIAL,
    REJECT_MARGIN,
    REJECT_NO_VOLUME,
    REJECT_PRICE_BAND,
    REJECT_QUANTITY_LOW,
    affordable_quantity,
    apply_fill,
    bounded_leverage,
    check_order,
    execution_price,
    fee,
    fill_price,
    fillable_quantity,
    funding_payment,
    half_spread,
    impact,
    is_breached,
    is_reducing,
    kept_in_tiered_liquidation,
    liquidation_price,
    maintenance_margin,
    maximum_leverage,
    posted_margin,
    round_quantity,
    settle_liquidation,
)

Floats = NDArray[np.float64]


@compiled
def reset_account(a: Floats, market: Floats, contract: Floats) -> None:
    """Give the account row ``a`` a fresh episode at the row that was drawn for it."""
    row = int(a[NEXT_START])
    for column in range(MARK, a.shape[0]):
        a[column] = 0.0
    a[NEXT_START] = -1.0
    if a[NEXT_COST_SCALE] >= 0.0:
        a[COST_SCALE] = a[NEXT_COST_SCALE]
        a[NEXT_COST_SCALE] = -1.0
    a[ROW] = a[START] = row
    a[END] = min(row + contract[EPISODE], contract[LAST_ROW])
    a[RESET] = 0.0
    a[OUTCOME] = 0.0
    a[END_CODE] = 0.0
    a[REWARD] = 0.0
    a[QUIET] = 0.0
    a[EQUITY] = a[WALLET] = a[PEAK] = contract[START_EQUITY]
    a[LOG_EQUITY] = contract[LOG_START]
    a[MARK] = market[row, MARK_CLOSE]


@compiled
def stake(a: Floats, contract: Floats) -> float:
    """What stands behind the position and can be lost with it: its posted margin, or in cross margin the wallet."""
    return a[WALLET] if contract[CROSS] != 0.0 else a[MARGIN]


@compiled
def charge_funding(a: Floats, rate: float, mark: float, contract: Floats, tiers: Floats) -> None:
    """Charge a stamp to the open position, margin first, which moves its liquidation price."""
    if rate == 0.0 or a[POSITION] == 0.0:
        return
    payment = funding_payment(a[POSITION], mark, rate)
    a[QUIET] = 0.0
    a[WALLET] -= payment
    if contract[CROSS] == 0.0:
        a[MARGIN] -= payment
    a[FUNDING] += payment
    a[LIQUIDATION] = liquidation_price(a[POSITION], a[ENTRY], stake(a, contract), tiers, 0.0)


@compiled
def liquidate(a: Floats, opened: float, contract: Floats, tiers: Floats) -> None:
    """Close the position at its liquidation price, or at the bar's mark open if that lies beyond it.

    A tiered liquidation only reduces it where a lower tier makes the rest compliant.
    """
    quantity, margin, kept = a[POSITION], stake(a, contract), 0.0
    price = execution_price(quantity, a[LIQUIDATION], opened)
    if contract[TIERED] != 0.0:
        rate = contract[CLEARANCE_FEE]
        kept = kept_in_tiered_liquidation(quantity, a[ENTRY], margin, price, tiers, contract[LOT], rate)
    closed = quantity - kept
    if kept == 0.0:
        price, realised, clearance, cover = settle_liquidation(
            quantity, a[ENTRY], margin, a[LIQUIDATION], opened, contract[CLEARANCE_FEE]
        )
    else:
        realised, cover = closed * (price - a[ENTRY]), 0.0
        clearance = fee(closed, price, contract[CLEARANCE_FEE])
    a[QUIET] = 0.0
    a[WALLET] += realised - clearance + cover
    if (
        kept == 0.0
    ):  # rounding alone could leave less than nothing; a rest in cross margin may owe what its profit covers
        a[WALLET] = max(a[WALLET], 0.0)
    a[REALISED] += realised
    a[CLEARANCE] += clearance
    a[COVER] += cover
    a[LIQUIDATED] = 1.0
    sold = a[LIQUIDATED_QUANTITY] - closed
    a[LIQUIDATED_AT] = price if sold == -closed else (a[LIQUIDATED_QUANTITY] * a[LIQUIDATED_AT] - closed * price) / sold
    a[LIQUIDATED_QUANTITY] = sold
    a[POSITION] = kept
    if kept == 0.0:
        a[ENTRY] = a[MARGIN] = a[LIQUIDATION] = 0.0
    else:
        a[MARGIN] = a[MARGIN] * kept / quantity if contract[CROSS] != 0.0 else a[MARGIN] + realised - clearance
        a[LIQUIDATION] = liquidation_price(kept, a[ENTRY], stake(a, contract), tiers, 0.0)


@compiled
def liquidate_while_breached(a: Floats, mark: float, opened: float, contract: Floats, tiers: Floats) -> None:
    """Liquidate as long as ``mark`` has reached the liquidation price; each round closes or goes down a tier."""
    while a[POSITION] != 0.0 and is_breached(a[POSITION], a[LIQUIDATION], mark):
        liquidate(a, opened, contract, tiers)


@compiled
def wanted_change(a: Floats, contract: Floats) -> float:
    """Size the order that the action asks for at the last known mark; 0 inside the rebalance band.

    Target notional = action x L x equity. Exactly 0 closes what is open, however small; NaN holds and is counted.
    """
    if not math.isfinite(a[ACTION]):
        a[BAD_ACTIONS] += 1.0
        a[QUIET] = 0.0
        return 0.0
    action = min(max(a[ACTION], -1.0), 1.0)
    a[APPLIED] = action
    if action == 0.0:
        return -a[POSITION]
    change = action * a[LEVERAGE] * a[EQUITY] - a[POSITION] * a[MARK]  # notional
    return change / a[MARK] if abs(change) >= contract[REBALANCE] * a[EQUITY] else 0.0


@compiled
def trade(a: Floats, change: float, market: Floats, row: int, contract: Floats, tiers: Floats) -> None:
    """Send the order that was decided at the close of ``row`` to the open of the next bar."""
    opened, mark = market[row + 1, OPEN], market[row + 1, MARK_OPEN]
    volatility, volume = market[row, DAILY_VOLATILITY], market[row, DAILY_VOLUME]
    scale, quantity, lot = a[COST_SCALE], a[POSITION], contract[LOT]
    side = 1.0 if change > 0.0 else -1.0
    change = side * min(abs(change), contract[MAXIMUM_QUANTITY])  # the rest is sent with the next bars' orders
    wanted = round_quantity(change, lot)
    a[ORDER_QUANTITY] = wanted
    if wanted == 0.0:
        a[ORDER_CODE] = REJECT_QUANTITY_LOW
        return
    spread = half_spread(opened, contract[TICK], contract[SPREAD]) * scale
    coefficient, rate = contract[IMPACT] * scale, contract[TAKER_FEE] * scale
    change = fillable_quantity(
        wanted, market[row + 1, VOLUME], contract[PARTICIPATION], opened, mark, contract[BAND], spread, volatility,
        volume, coefficient,
    )  # fmt: skip
    if change == 0.0:
        a[ORDER_CODE] = REJECT_NO_VOLUME if market[row + 1, VOLUME] == 0.0 else REJECT_PRICE_BAND
        return
    limit = a[LEVERAGE] if contract[GIVEN_LEVERAGE] == 0.0 else contract[GIVEN_LEVERAGE]
    cross = contract[CROSS] != 0.0
    if not is_reducing(quantity, change):
        # A smaller order has less impact, so the price is only bounded: margin is asked at the higher of open and fill,
        # what is closed is sold at the fill of the whole order, and what is kept is valued at the open.
        fill = fill_price(opened, side, spread, impact(change, volatility, volume, coefficient))
        worst = max(opened, fill)
        valued = opened if quantity * change > 0.0 else fill
        change = affordable_quantity(quantity, a[ENTRY], change, worst, valued, a[WALLET], limit, tiers, rate, cross)
        if change == 0.0:
            a[ORDER_CODE] = REJECT_MARGIN
            return
    change = round_quantity(change, lot)
    after = quantity + change
    if lot > 0.0:  # quantities are whole lots: keep the sum of many fills on the grid
        after = math.floor(after / lot + 0.5) * lot
        change = after - quantity
    push = impact(change, volatility, volume, coefficient)
    price = fill_price(opened, side, spread, push)
    if contract[GIVEN_LEVERAGE] == 0.0:
        limit = max(1.0, min(limit, maximum_leverage(abs(after) * price, tiers)))
    code = check_order(
        quantity, a[ENTRY], change, price, mark, a[WALLET], limit, tiers, rate, contract[MINIMUM_QUANTITY],
        contract[MAXIMUM_QUANTITY], contract[MINIMUM_NOTIONAL], contract[BAND] * (1.0 + 1e-9),
        cross,
    )  # fmt: skip
    if code == 0 and not is_reducing(quantity, change):  # a venue refuses what mark would liquidate on the spot
        entered, average, realised = apply_fill(quantity, a[ENTRY], change, price)
        margin = posted_margin(entered, average, price, limit)
        if cross:
            margin = a[WALLET] + realised - fee(change, price, rate)
        if is_breached(entered, liquidation_price(entered, average, margin, tiers, 0.0), mark):
            code = REJECT_MARGIN
    if code > 0:
        a[ORDER_CODE] = code
        return
    _book(a, after, change, price, limit, rate, contract, tiers)
    a[SPREAD_COST] = abs(change) * opened * spread
    a[IMPACT_COST] = abs(change) * opened * push
    a[ORDER_CODE] = ORDER_FILLED if abs(change) >= abs(wanted) - 0.5 * lot else ORDER_PARTIAL


@compiled
def _book(
    a: Floats, after: float, change: float, price: float, leverage: float, rate: float, contract: Floats, tiers: Floats
) -> None:
    """Book a fill and post the margin of the whole position anew, at the fill price."""
    before = a[POSITION]
    reducing = is_reducing(before, change)
    _, a[ENTRY], realised = apply_fill(before, a[ENTRY], change, price)
    paid = fee(change, price, rate)
    a[WALLET] += realised - paid
    a[POSITION] = after
    a[FILL_QUANTITY], a[FILL_PRICE] = change, price
    a[FEE] = paid
    a[REALISED] += realised
    a[CONTRACT_LEVERAGE] = leverage
    margin = posted_margin(after, a[ENTRY], price, leverage)
    a[MARGIN] = min(margin, a[WALLET]) if reducing else margin  # a reduction never asks for more than there is
    a[LIQUIDATION] = liquidation_price(after, a[ENTRY], stake(a, contract), tiers, 0.0)
    if before * after <= 0.0:
        a[HELD] = 0.0


@compiled
def advance(a: Floats, market: Floats, contract: Floats, tiers: Floats) -> None:
    """Take one account from the close of its bar to the close of the next, in the venue's order of events."""
    row = int(a[ROW])
    opened = market[row + 1, MARK_OPEN]
    equity, carried, mark, peak = a[EQUITY], a[POSITION], a[MARK], a[PEAK]
    if a[QUIET] == 0.0:  # else they are 0 already
        for column in range(ORDER_QUANTITY, ORDER_CODE + 1):
            a[column] = 0.0
    a[QUIET] = 1.0
    change = wanted_change(a, contract)
    if carried != 0.0:
        charge_funding(a, market[row + 1, FUNDING_IN_GAP], mark, contract, tiers)  # of missing bars, at the last mark
        charge_funding(a, market[row + 1, FUNDING_AT_OPEN], opened, contract, tiers)
        liquidate_while_breached(a, opened, opened, contract, tiers)
    if change != 0.0:
        a[QUIET] = 0.0
        if a[LIQUIDATED] == 0.0:  # a liquidation at the open cancels the order that was waiting
            trade(a, change, market, row, contract, tiers)
    if a[POSITION] != 0.0:
        adverse = market[row + 1, MARK_LOW] if a[POSITION] > 0.0 else market[row + 1, MARK_HIGH]
        liquidate_while_breached(a, adverse, opened, contract, tiers)
        for stamp in range(FUNDING_INSIDE, market.shape[1]):
            charge_funding(a, market[row + 1, stamp], opened, contract, tiers)
            liquidate_while_breached(a, adverse, opened, contract, tiers)
    elif a[WALLET] < 0.0:  # closing cost more than was left: an account owes nothing, the fund covers it
        a[COVER] -= a[WALLET]
        a[WALLET] = 0.0
    a[ROW] = row + 1
    a[MARK] = market[row + 1, MARK_CLOSE]
    a[EQUITY] = a[WALLET] + a[POSITION] * (a[MARK] - a[ENTRY])
    a[PEAK] = max(peak, a[EQUITY])
    reference = market[row + 1, OPEN]
    a[MARKET_PNL] = (
        carried * (a[MARK] - mark)
        + a[FILL_QUANTITY] * (a[MARK] - reference)
        + a[LIQUIDATED_QUANTITY] * (a[MARK] - a[LIQUIDATED_AT])
    )
    a[HELD] = a[HELD] + 1.0 if a[POSITION] != 0.0 else 0.0
    _margin_ratio(a, contract, tiers)
    _reward(a, equity, peak, contract)
    _end(a, contract)


@compiled
def _margin_ratio(a: Floats, contract: Floats, tiers: Floats) -> None:
    """Maintenance margin over margin balance at mark; a position is liquidated as it reaches 1."""
    a[MARGIN_RATIO] = 0.0
    if a[POSITION] != 0.0:
        balance = stake(a, contract) + a[POSITION] * (a[MARK] - a[ENTRY])
        needed = maintenance_margin(abs(a[POSITION]) * a[MARK], tiers)
        a[MARGIN_RATIO] = needed / balance if balance > needed else 1.0


@compiled
def _reward(a: Floats, equity: float, peak: float, contract: Floats) -> None:
    """Fill in the active reward terms, weighted, and their sum."""
    start = contract[START_EQUITY]
    before = a[LOG_EQUITY]
    a[LOG_EQUITY] = log_equity(a[EQUITY], start)
    if contract[W_LOG] != 0.0:
        a[LOG_RETURN] = contract[W_LOG] * (a[LOG_EQUITY] - before)
    if contract[W_SIMPLE] != 0.0:
        a[SIMPLE_RETURN] = contract[W_SIMPLE] * (a[EQUITY] - equity) / start
    if contract[W_SHARPE] != 0.0:
        change = a[EQUITY] / equity - 1.0
        value, a[MEAN], a[SQUARE] = differential_sharpe(change, a[MEAN], a[SQUARE], contract[SHARPE_RATE])
        a[SHARPE] = contract[W_SHARPE] * value
    if contract[W_DRAWDOWN] != 0.0:
        a[DRAWDOWN] = -contract[W_DRAWDOWN] * drawdown_increase(equity, peak, a[EQUITY], a[PEAK])
    if contract[W_COSTS] != 0.0:
        a[COSTS] = -contract[W_COSTS] * (a[FEE] + a[SPREAD_COST] + a[IMPACT_COST] + a[CLEARANCE]) / equity
    if contract[W_FUNDING] != 0.0:
        a[FUNDING_TERM] = -contract[W_FUNDING] * a[FUNDING] / equity
    a[REWARD] = a[LOG_RETURN] + a[SIMPLE_RETURN] + a[SHARPE] + a[DRAWDOWN] + a[COSTS] + a[FUNDING_TERM]


@compiled
def _end(a: Floats, contract: Floats) -> None:
    """Decide whether the episode ended, and why; what ends the account comes before what ends the data."""
    code = 0
    if a[LIQUIDATED] != 0.0 and a[POSITION] == 0.0 and contract[GO_ON] == 0.0:
        code = ENDED_LIQUIDATION
    elif a[EQUITY] < contract[RUIN] * contract[START_EQUITY]:
        code = ENDED_RUIN
    elif a[EQUITY] < (1.0 - contract[DRAWDOWN_LIMIT]) * a[PEAK]:
        code = ENDED_DRAWDOWN
    elif a[ROW] >= contract[LAST_ROW]:
        code = ENDED_DATA
    elif a[ROW] >= a[END]:
        code = ENDED_LENGTH
    a[END_CODE] = code
    a[OUTCOME] = 0 if code == 0 else (TRUNCATED if code >= ENDED_LENGTH else TERMINATED)


@compiled
def scale_leverage(a: Floats, market: Floats, tiers: Floats) -> None:
    """Set L of the next action where the bar asks for one: at most what the margin tiers allow the whole account."""
    asked = market[int(a[ROW]), ASKED_LEVERAGE]
    if asked > 0.0:
        a[LEVERAGE] = bounded_leverage(asked, a[EQUITY], tiers)


@compiled
def observe(a: Floats, table: NDArray[np.float32], contract: Floats, out: NDArray[np.float32]) -> None:
    """Write the observation of an account: the market's row, then the account's columns, clipped to their bounds."""
    row = int(a[ROW])
    width = table.shape[1]
    for column in range(width):
        out[column] = table[row, column]
    equity, position, mark = a[EQUITY], a[POSITION], a[MARK]
    exposure, unrealised, distance, free = 0.0, 0.0, 1.0, 1.0
    if position != 0.0:
        safe = max(equity, FLOOR * contract[START_EQUITY])
        scale = 1.0 / (safe * a[LEVERAGE])  # one division serves three columns
        exposure = position * mark * scale
        unrealised = position * (mark - a[ENTRY]) * scale * a[LEVERAGE]
        free = (a[WALLET] - a[MARGIN]) * scale * a[LEVERAGE]
        distance = abs(mark - a[LIQUIDATION]) / mark
    out[width] = min(max(exposure, -1.0), 1.0)
    out[width + 1] = min(max(unrealised, -2.0), 2.0)
    out[width + 2] = min(max(a[MARGIN_RATIO], 0.0), 1.0)
    out[width + 3] = min(distance, 1.0)
    out[width + 4] = min(max(a[LOG_EQUITY] - contract[LOG_START], -5.0), 5.0)
    out[width + 5] = min(max(1.0 - equity / a[PEAK], 0.0), 1.0) if equity < a[PEAK] else 0.0
    out[width + 6] = a[APPLIED]
    out[width + 7] = min(max(free, 0.0), 1.0)
    out[width + 8] = min(a[HELD] * HOLDING_SCALE, 1.0)


@compiled
def step(
    market: Floats, table: NDArray[np.float32], contract: Floats, accounts: Floats, obs: NDArray[np.float32], mode: int
) -> int:
    """Advance or reset every lane as ``mode`` says; returns how many episodes ended in this call."""
    tiers = contract[TIERS:].reshape((-1, 4))
    ended = 0
    for lane in range(accounts.shape[1]):
        a = accounts[0, lane]
        if mode == MODE_RESET:
            if a[RESET] == 0.0:
                continue
            reset_account(a, market, contract)
        elif mode == MODE_NEXT_STEP and a[OUTCOME] != 0.0:
            reset_account(a, market, contract)
        else:
            advance(a, market, contract, tiers)
            if a[OUTCOME] != 0.0:
                ended += 1
                if mode == MODE_SAME_STEP:
                    scale_leverage(a, market, tiers)
                    observe(a, table, contract, obs[1, lane])
                    for column in range(a.shape[0]):
                        accounts[1, lane, column] = a[column]
                    reset_account(a, market, contract)
                    a[OUTCOME], a[REWARD] = accounts[1, lane, OUTCOME], accounts[1, lane, REWARD]
        scale_leverage(a, market, tiers)
        observe(a, table, contract, obs[0, lane])
    return ended
