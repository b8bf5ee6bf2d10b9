"""The compiled step of the SpotCrypto family: order of events in a bar, bookkeeping, observation.

Every rule it applies is a scalar function of :mod:`markets.spot`; this file only says when each applies and keeps the
books. Order of events in bar t+1: interest over a gap before it on what is borrowed, the rebalancing decided at t at
its open, interest over the bar on what is borrowed after it, equity at the close. Layout: :mod:`envs.simulation`, and A
coins in blocks: :mod:`envs.spot_columns`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs import spot_columns as c
from envs.rewards import FLOOR, differential_sharpe, drawdown_increase, log_equity
from envs.simulation import (
    COST_SCALE,
    END,
    END_CODE,
    ENDED_DATA,
    ENDED_DRAWDOWN,
    ENDED_LENGTH,
    ENDED_RUIN,
    EQUITY,
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
from markets.perpetual import half_spread
from markets.spot import (
    ORDER_FILLED,
    ORDER_PARTIAL,
    REJECT_COST,
    REJECT_FUNDS,
    REJECT_NO_VOLUME,
    REJECT_NOTIONAL,
    borrow_interest,
    impact_slope,
    largest_share,
    remaining_share,
    weight_scale,
    whole_lots,
)

Floats = NDArray[np.float64]


@compiled
def reset_account(a: Floats, market: Floats, contract: Floats) -> None:
    """Give the account row ``a`` a fresh episode at the row that was drawn for it."""
    row, count = int(a[NEXT_START]), int(contract[c.ASSETS])
    for column in range(c.MARK, a.shape[0]):
        a[column] = 0.0
    a[NEXT_START] = -1.0
    if a[NEXT_COST_SCALE] >= 0.0:
        a[COST_SCALE] = a[NEXT_COST_SCALE]
        a[NEXT_COST_SCALE] = -1.0
    a[ROW] = a[START] = row
    a[END] = min(row + contract[c.EPISODE], contract[c.LAST_ROW])
    a[RESET] = 0.0
    a[OUTCOME] = 0.0
    a[END_CODE] = 0.0
    a[REWARD] = 0.0
    a[QUIET] = 0.0
    a[EQUITY] = a[c.CASH] = a[c.PEAK] = contract[c.START_EQUITY]
    a[c.LOG_EQUITY] = contract[c.LOG_START]
    for i in range(count):
        a[c.BLOCKS + c.PRICE * count + i] = market[row, c.CLOSE * count + i]
    a[c.MARK] = a[c.BLOCKS + c.PRICE * count]


@compiled
def read_action(a: Floats, contract: Floats) -> bool:
    """Turn the action into target weights; False holds: a number of it is not finite, which is counted."""
    count, gross = int(contract[c.ASSETS]), 0.0
    asked, applied = c.BLOCKS + c.REQUESTED * count, c.BLOCKS + c.APPLIED * count
    for i in range(count):
        if not math.isfinite(a[asked + i]):
            a[c.BAD_ACTIONS] += 1.0
            return False
    for i in range(count):
        weight = min(max(a[asked + i], -1.0), 1.0)
        if weight < 0.0 and contract[c.SHORT] == 0.0:
            weight = 0.0
        a[applied + i] = weight
        gross += abs(weight)
    scale = weight_scale(gross, contract[c.GROSS_LIMIT])
    if scale != 1.0:
        for i in range(count):
            a[applied + i] *= scale
    return True


@compiled
def borrowed(a: Floats, market: Floats, row: int, block: int, contract: Floats) -> float:
    """What is borrowed, at the prices of ``block``: coins that are sold short, and cash below zero."""
    count = int(contract[c.ASSETS])
    value = max(0.0, -a[c.CASH])
    for i in range(count):
        value += max(0.0, -a[c.BLOCKS + c.QUANTITY * count + i]) * market[row, block * count + i]
    return value


@compiled
def charge_interest(a: Floats, value: float, years: float, contract: Floats) -> None:
    """Pay the interest of a period from cash."""
    interest = borrow_interest(value, contract[c.BORROW_RATE], years)
    a[c.CASH] -= interest
    a[c.BORROW] += interest


@compiled
def plan_orders(a: Floats, market: Floats, row: int, equity: float, contract: Floats) -> bool:
    """Work out which coins are traded at the open after ``row``, and how much of each at most; False for none.

    A coin is left as it is inside the rebalance band (target 0 always sells what there is), below the minimum notional,
    without volume, or where its costs are beyond the bound.
    """
    count, any_order = int(contract[c.ASSETS]), False
    scale = a[COST_SCALE]
    for i in range(count):
        quantity, target = a[c.BLOCKS + c.QUANTITY * count + i], a[c.BLOCKS + c.APPLIED * count + i]
        opened = market[row + 1, c.OPEN * count + i]
        drifted = quantity * opened / equity
        largest, order = 0.0, abs(target - drifted)
        if (order >= contract[c.REBALANCE] or target == 0.0) and order > 0.0:
            coin = c.COINS + i * c.COIN_WIDTH
            spread = half_spread(opened, contract[coin + c.TICK], contract[coin + c.SPREAD])
            rate = (contract[c.TAKER_FEE] + spread) * scale
            slope = impact_slope(
                equity, market[row, c.DAILY_VOLATILITY * count + i], market[row, c.DAILY_VALUE * count + i],
                contract[c.IMPACT] * scale,
            )  # fmt: skip
            offered = market[row + 1, c.OFFERED * count + i] / equity
            largest = largest_share(rate, slope, offered)
            a[c.BLOCKS + c.RATE * count + i] = rate
            a[c.BLOCKS + c.SLOPE * count + i] = slope
            code = 0
            if order * equity < contract[c.MINIMUM_NOTIONAL]:
                code, largest = REJECT_NOTIONAL, 0.0
            elif largest <= 0.0:
                code = REJECT_NO_VOLUME if offered <= 0.0 else REJECT_COST
            a[c.BLOCKS + c.ORDER_CODE * count + i] = code
            any_order = any_order or largest > 0.0
        a[c.BLOCKS + c.TARGET * count + i] = target
        a[c.BLOCKS + c.DRIFTED * count + i] = drifted
        a[c.BLOCKS + c.LARGEST * count + i] = largest
    return any_order


@compiled
def rebalance(a: Floats, market: Floats, row: int, contract: Floats) -> None:
    """Send the orders for the target weights to the open after ``row``: first what reduces a position, then the rest.

    What adds to gross exposure is cut where it would bring it above its limit (1 without shorts, so that cash is never
    borrowed): when a sale was cut by the volume, what it should have paid for is not bought.
    """
    count = int(contract[c.ASSETS])
    equity = a[c.CASH]
    for i in range(count):
        equity += a[c.BLOCKS + c.QUANTITY * count + i] * market[row + 1, c.OPEN * count + i]
    if equity <= 0.0 or not plan_orders(a, market, row, equity, contract):
        return
    blocks = a[c.BLOCKS + c.TARGET * count : c.BLOCKS + (c.LARGEST + 1) * count].reshape((5, count))
    mu = remaining_share(blocks[0], blocks[1], blocks[2], blocks[3], blocks[4])
    left, gross, growth, price_of_growth = equity, 0.0, 0.0, 0.0
    for i in range(count):
        quantity, opened = a[c.BLOCKS + c.QUANTITY * count + i], market[row + 1, c.OPEN * count + i]
        lot = contract[c.COINS + i * c.COIN_WIDTH + c.LOT]
        blocks[0, i], change = 0.0, blocks[0, i] * mu - blocks[1, i]  # of the target only what adds is kept
        reduced = 0.0
        if blocks[4, i] > 0.0:
            order = min(abs(change), blocks[4, i])
            share = blocks[2, i] + blocks[3, i] * math.sqrt(order)  # one-way cost, of the value
            size, side = order * equity / opened, (1.0 if change > 0.0 else -1.0)
            if quantity * change < 0.0:
                reduced = abs(quantity) if size >= abs(quantity) * (1.0 - 1e-12) else whole_lots(size, lot)
                beyond = reduced == abs(quantity) and size > abs(quantity) * (1.0 + 1e-12)  # else it is closed exactly
                size = size - abs(quantity) if beyond else 0.0
            added = whole_lots(size, lot)
            if (reduced + added) * opened < contract[c.MINIMUM_NOTIONAL]:
                reduced = added = 0.0
                a[c.BLOCKS + c.ORDER_CODE * count + i] = REJECT_NOTIONAL
            left -= reduced * opened * share
            growth += added * opened
            price_of_growth += added * opened * share
            blocks[0, i] = side * added
        gross += abs(abs(quantity) - reduced) * opened
        blocks[1, i] = reduced
    limit = contract[c.GROSS_LIMIT]
    room = limit * left - gross
    need = growth + limit * price_of_growth
    factor = 1.0 if need <= room else max(room, 0.0) / need
    for i in range(count):
        if blocks[4, i] > 0.0:
            fill(a, market, row, i, blocks[1, i], blocks[0, i], factor, equity, mu, contract)


@compiled
def fill(
    a: Floats, market: Floats, row: int, i: int, reduced: float, added: float, factor: float, equity: float, mu: float,
    contract: Floats,
) -> None:  # fmt: skip
    """Book the order of coin ``i``: what it reduces, and ``factor`` of what it adds (signed)."""
    count = int(contract[c.ASSETS])
    quantity, opened = a[c.BLOCKS + c.QUANTITY * count + i], market[row + 1, c.OPEN * count + i]
    lot = contract[c.COINS + i * c.COIN_WIDTH + c.LOT]
    rate, slope = a[c.BLOCKS + c.RATE * count + i], a[c.BLOCKS + c.SLOPE * count + i]
    if factor < 1.0 and added != 0.0:
        size = whole_lots(abs(added) * factor, lot)
        if (reduced + size) * opened < contract[c.MINIMUM_NOTIONAL]:
            size = 0.0 if reduced == 0.0 else size
        added = math.copysign(size, added)
    after = quantity + added - math.copysign(reduced, quantity)
    if reduced == abs(quantity) and added == 0.0:
        after = 0.0
    elif lot > 0.0:  # quantities are whole lots: keep the sum of many fills on the grid
        after = math.floor(after / lot + 0.5) * lot
    change = after - quantity
    if change == 0.0:
        if a[c.BLOCKS + c.ORDER_CODE * count + i] == 0.0:
            a[c.BLOCKS + c.ORDER_CODE * count + i] = REJECT_FUNDS
        return
    value = abs(change) * opened
    scale = a[COST_SCALE]
    paid = value * contract[c.TAKER_FEE] * scale
    spread = value * (rate - contract[c.TAKER_FEE] * scale)
    push = slope * math.sqrt(value / equity)
    a[c.CASH] -= change * opened + paid + spread + value * push
    a[c.FEE] += paid
    a[c.SPREAD_COST] += spread
    a[c.IMPACT_COST] += value * push
    a[c.TRADED] += value
    a[c.BLOCKS + c.QUANTITY * count + i] = after
    a[c.BLOCKS + c.FILL_QUANTITY * count + i] = change
    a[c.BLOCKS + c.FILL_PRICE * count + i] = opened * (1.0 + math.copysign(spread / value + push, change))
    wanted = abs(a[c.BLOCKS + c.APPLIED * count + i] * mu * equity - quantity * opened)
    whole = value >= wanted - 1.5 * lot * opened - 1e-9 * wanted
    a[c.BLOCKS + c.ORDER_CODE * count + i] = ORDER_FILLED if whole else ORDER_PARTIAL


@compiled
def advance(a: Floats, market: Floats, contract: Floats) -> None:
    """Take one account from the close of its bar to the close of the next."""
    row, count = int(a[ROW]), int(contract[c.ASSETS])
    before, peak = a[EQUITY], a[c.PEAK]
    short = contract[c.SHORT] != 0.0
    for column in range(c.MARKET_PNL, c.BLOCKS):
        a[column] = 0.0
    for column in range(c.BLOCKS + c.PNL * count, c.BLOCKS + c.TARGET * count):
        a[column] = 0.0
    if short:
        gap = market[row + 1, c.MARKET_BLOCKS * count]
        if gap > 0.0:
            charge_interest(a, borrowed(a, market, row, c.CLOSE, contract), gap, contract)
    for i in range(count):
        held = a[c.BLOCKS + c.QUANTITY * count + i]
        change = market[row + 1, c.OPEN * count + i] - market[row, c.CLOSE * count + i]
        a[c.BLOCKS + c.PNL * count + i] = held * change
    if read_action(a, contract):
        rebalance(a, market, row, contract)
    if short:
        charge_interest(a, borrowed(a, market, row + 1, c.OPEN, contract), contract[c.YEARS], contract)
    a[ROW] = row + 1
    mark_to_close(a, market, row + 1, contract)
    a[c.PEAK] = max(peak, a[EQUITY])
    _reward(a, before, peak, contract)
    _end(a, contract)


@compiled
def mark_to_close(a: Floats, market: Floats, row: int, contract: Floats) -> None:
    """Value the account at the close; one that owes more than it has is closed there, and the lender bears the rest."""
    count = int(contract[c.ASSETS])
    value, gross, total = 0.0, 0.0, 0.0
    for i in range(count):
        held, closed = a[c.BLOCKS + c.QUANTITY * count + i], market[row, c.CLOSE * count + i]
        pnl = a[c.BLOCKS + c.PNL * count + i] + held * (closed - market[row, c.OPEN * count + i])
        a[c.BLOCKS + c.PNL * count + i] = pnl
        a[c.BLOCKS + c.PRICE * count + i] = closed
        total += pnl
        value += held * closed
        gross += abs(held) * closed
    equity = a[c.CASH] + value
    if equity < 0.0:
        a[c.COVER] = -equity
        a[c.CASH] = equity = value = gross = 0.0
        for i in range(count):
            a[c.BLOCKS + c.QUANTITY * count + i] = 0.0
    safe = max(equity, FLOOR * contract[c.START_EQUITY])
    for i in range(count):
        worth = a[c.BLOCKS + c.QUANTITY * count + i] * a[c.BLOCKS + c.PRICE * count + i]
        a[c.BLOCKS + c.WEIGHT * count + i] = worth / safe
    a[c.MARKET_PNL] = total
    a[c.MARK] = a[c.BLOCKS + c.PRICE * count]
    a[c.POSITION] = value
    a[c.GROSS] = gross / safe
    a[EQUITY] = equity


@compiled
def _reward(a: Floats, equity: float, peak: float, contract: Floats) -> None:
    """Fill in the active reward terms, weighted, and their sum."""
    start, before = contract[c.START_EQUITY], a[c.LOG_EQUITY]
    safe = max(equity, FLOOR * start)
    a[c.LOG_EQUITY] = log_equity(a[EQUITY], start)
    if contract[c.W_LOG] != 0.0:
        a[c.LOG_RETURN] = contract[c.W_LOG] * (a[c.LOG_EQUITY] - before)
    if contract[c.W_SIMPLE] != 0.0:
        a[c.SIMPLE_RETURN] = contract[c.W_SIMPLE] * (a[EQUITY] - equity) / start
    if contract[c.W_SHARPE] != 0.0:
        change = a[EQUITY] / safe - 1.0
        value, a[c.MEAN], a[c.SQUARE] = differential_sharpe(change, a[c.MEAN], a[c.SQUARE], contract[c.SHARPE_RATE])
        a[c.SHARPE] = contract[c.W_SHARPE] * value
    if contract[c.W_DRAWDOWN] != 0.0:
        a[c.DRAWDOWN] = -contract[c.W_DRAWDOWN] * drawdown_increase(equity, peak, a[EQUITY], a[c.PEAK])
    if contract[c.W_COSTS] != 0.0:
        paid = a[c.FEE] + a[c.SPREAD_COST] + a[c.IMPACT_COST] + a[c.BORROW]
        a[c.COSTS] = -contract[c.W_COSTS] * paid / safe
    a[REWARD] = a[c.LOG_RETURN] + a[c.SIMPLE_RETURN] + a[c.SHARPE] + a[c.DRAWDOWN] + a[c.COSTS]


@compiled
def _end(a: Floats, contract: Floats) -> None:
    """Decide whether the episode ended, and why; what ends the account comes before what ends the data."""
    code = 0
    if a[EQUITY] < contract[c.RUIN] * contract[c.START_EQUITY]:
        code = ENDED_RUIN
    elif a[EQUITY] < (1.0 - contract[c.DRAWDOWN_LIMIT]) * a[c.PEAK]:
        code = ENDED_DRAWDOWN
    elif a[ROW] >= contract[c.LAST_ROW]:
        code = ENDED_DATA
    elif a[ROW] >= a[END]:
        code = ENDED_LENGTH
    a[END_CODE] = code
    a[OUTCOME] = 0 if code == 0 else (TRUNCATED if code >= ENDED_LENGTH else TERMINATED)


@compiled
def observe(a: Floats, table: NDArray[np.float32], contract: Floats, out: NDArray[np.float32]) -> None:
    """Write the observation of an account: the market's row, then the account's columns, clipped to their bounds."""
    row, count = int(a[ROW]), int(contract[c.ASSETS])
    width = table.shape[1]
    for column in range(width):
        out[column] = table[row, column]
    for i in range(count):
        out[width + i] = min(max(a[c.BLOCKS + c.WEIGHT * count + i], -2.0), 2.0)
        out[width + count + i] = a[c.BLOCKS + c.APPLIED * count + i]
    rest, equity = width + 2 * count, a[EQUITY]
    safe = max(equity, FLOOR * contract[c.START_EQUITY])
    out[rest] = min(max(a[c.CASH] / safe, -2.0), 4.0)
    out[rest + 1] = min(a[c.GROSS], 3.0)
    out[rest + 2] = min(max(a[c.LOG_EQUITY] - contract[c.LOG_START], -5.0), 5.0)
    out[rest + 3] = min(max(1.0 - equity / a[c.PEAK], 0.0), 1.0) if equity < a[c.PEAK] else 0.0


@compiled
def step(
    market: Floats, table: NDArray[np.float32], contract: Floats, accounts: Floats, obs: NDArray[np.float32], mode: int
) -> int:
    """Advance or reset every lane as ``mode`` says; returns how many episodes ended in this call."""
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
            advance(a, market, contract)
            if a[OUTCOME] != 0.0:
                ended += 1
                if mode == MODE_SAME_STEP:
                    observe(a, table, contract, obs[1, lane])
                    for column in range(a.shape[0]):
                        accounts[1, lane, column] = a[column]
                    reset_account(a, market, contract)
                    a[OUTCOME], a[REWARD] = accounts[1, lane, OUTCOME], accounts[1, lane, REWARD]
        observe(a, table, contract, obs[0, lane])
    return ended
