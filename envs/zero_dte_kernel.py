"""The compiled step of the ZeroDTE family: orders, fills, settlement, bookkeeping, masks, observation.

Every rule it applies is a scalar function of :mod:`markets.options` and its sisters; this file only says when each
applies and keeps the books. Order of events in bar t+1: the decision taken at the close of t is checked; the working
order (or the broker's forced sale) meets the quote at the opening of t+1; after the last bar of the session what is
left settles; equity at the model's mid at the close. Layout: :mod:`envs.simulation`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs import zero_dte_columns as c
from envs.rewards import differential_sharpe, drawdown_increase, log_equity
from envs.simulation import (
    COST_SCALE,
    END,
    END_CODE,
    ENDED_SESSION,
    EQUITY,
    MODE_NEXT_STEP,
    MODE_RESET,
    MODE_SAME_STEP,
    NEXT_START,
    OUTCOME,
    QUIET,
    RESET,
    REWARD,
    ROW,
    START,
    TERMINATED,
)
from markets.compiled import compiled
from markets.option_fills import (
    CANCELLED,
    FILL_LIMIT,
    FILL_MARKET,
    FILLED,
    PARTLY_FILLED,
    REPEGGED,
    minute_uniform,
    peg,
    take_mid,
    take_quote,
    work_limit_order,
)
from markets.option_prices import CALL, PUT, log_ratio, price_and_observed_greeks
from markets.option_quotes import quotes_around, smile_deviation, smile_price, spread_in_ticks
from markets.options import (
    ORDER_OK,
    REJECT_HELD,
    REJECT_WORKING,
    buying_cost,
    can_settle_physically,
    cash_settlement,
    check_order,
    is_forced_out,
    may_open,
    physical_settlement,
    sale_fee,
    sale_proceeds,
    whole_contracts,
)

Floats = NDArray[np.float64]

HOLD, BUY_CALL, BUY_PUT, CLOSE_POSITION = 0, 1, 2, 3
SIZES = 4  # steps of the risk budget
PHYSICAL_EXIT = 15.0  # minutes before the close at which who cannot settle physically is closed
SESSION_SCALE = 1.0 / 390.0


@compiled
def contract_quote(
    right: float,
    strike: float,
    spot: float,
    deviation: float,
    slope: float,
    curvature: float,
    factor: float,
    contract: Floats,
) -> tuple[float, float, float]:
    """Model's mid, bid and ask per share of one contract."""
    mid = smile_price(right, spot, strike, deviation, slope, curvature)
    bid, ask = _quote(mid, factor, contract)
    return mid, bid, ask


@compiled
def _quote(mid: float, factor: float, contract: Floats) -> tuple[float, float]:
    """Bid and ask around the model's mid."""
    table = contract[c.SPREADS :].reshape((-1, 2))
    ticks = spread_in_ticks(mid, factor, 1.0, 1.0, table)  # the volatility of a session is the one at its opening
    return quotes_around(mid, ticks, contract[c.TICK])


@compiled
def reset_account(a: Floats, market: Floats, contract: Floats) -> None:
    """Give the account row ``a`` a fresh session at the row that was drawn for it."""
    row = int(a[NEXT_START])
    seed = a[c.NEXT_FILL_SEED]
    for column in range(c.MARK, a.shape[0]):
        a[column] = 0.0
    a[NEXT_START] = a[c.NEXT_FILL_SEED] = -1.0
    a[c.FILL_SEED] = seed
    a[ROW] = a[START] = row
    a[END] = market[row, c.LAST_OF_SESSION]
    a[RESET] = 0.0
    a[OUTCOME] = 0.0
    a[END_CODE] = 0.0
    a[REWARD] = 0.0
    a[QUIET] = 0.0
    a[EQUITY] = a[c.CASH] = a[c.PEAK] = contract[c.START_EQUITY]
    a[c.LOG_EQUITY] = contract[c.LOG_START]
    _look(a, market, contract)
    _set_masks(a, market, contract)


# --- what may be done -------------------------------------------------------------------------------------------------


@compiled
def _exit_minutes(a: Floats, contract: Floats) -> float:
    """Minutes before the close at which the position is closed; -1 for none."""
    if contract[c.FORCED_EXIT] >= 0.0 or contract[c.PHYSICAL] == 0.0 or a[c.POSITION] == 0.0:
        return contract[c.FORCED_EXIT]
    can = can_settle_physically(a[c.RIGHT], a[c.STRIKE], a[c.POSITION], contract[c.MULTIPLIER], a[c.CASH], a[c.SHARES])
    return contract[c.FORCED_EXIT] if can else PHYSICAL_EXIT


@compiled
def purchase(a: Floats, market: Floats, contract: Floats, right: float, share: float) -> tuple[float, float, float]:
    """Contracts of the bar's own strike that a share of the risk budget buys, its order price, and the strike.

    A fixed number of contracts is ordered whole or not at all; what a minute offers may fill it in parts.
    """
    place = c.CALL_STRIKE if right > 0.0 else c.PUT_STRIKE
    row = int(a[ROW])
    strike, bid, ask = market[row, place], market[row, place + 1], market[row, place + 2]
    fixed, fee = contract[c.CONTRACTS], contract[c.CONTRACT_FEE] * a[COST_SCALE]
    if fixed > 0.0:
        payable = whole_contracts(a[c.CASH], 1.0, ask, contract[c.MULTIPLIER], fee)
        quantity = fixed if fixed <= payable else 0.0
    else:
        quantity = whole_contracts(a[c.CASH], contract[c.RISK] * share, ask, contract[c.MULTIPLIER], fee)
    price = peg(1.0, bid, ask, contract[c.TICK]) if contract[c.FILL_MODE] == FILL_LIMIT else ask
    return quantity, price, strike


@compiled
def order_code(a: Floats, market: Floats, contract: Floats, action: int, share: float) -> int:
    """0 where the action may be taken at the close of the account's bar, or the code of why not."""
    left = market[int(a[ROW]), c.LEFT]
    fee = contract[c.CONTRACT_FEE] * a[COST_SCALE]
    out = _exit_minutes(a, contract)
    if action in (BUY_CALL, BUY_PUT):
        if a[c.POSITION] > 0.0:
            return REJECT_HELD
        if a[c.SIDE] != 0.0:
            return REJECT_WORKING
        quantity, price, _ = purchase(a, market, contract, CALL if action == BUY_CALL else PUT, share)
        return check_order(
            quantity, price, 0.0, a[c.CASH], left, contract[c.ENTRY_CUT_OFF], out, contract[c.MULTIPLIER], fee
        )
    if action == CLOSE_POSITION:
        if a[c.SIDE] < 0.0:
            return REJECT_WORKING
        if a[c.SIDE] > 0.0 and a[c.POSITION] == 0.0:
            return ORDER_OK  # cancels a purchase of which nothing has been filled
        price = a[c.BID]
        if contract[c.FILL_MODE] == FILL_LIMIT:
            price = peg(-1.0, a[c.BID], a[c.ASK], contract[c.TICK])
        return check_order(
            -max(a[c.POSITION], 1.0), price, a[c.POSITION], a[c.CASH], left, contract[c.ENTRY_CUT_OFF], out,
            contract[c.MULTIPLIER], fee,
        )  # fmt: skip
    return ORDER_OK


@compiled
def _set_masks(a: Floats, market: Floats, contract: Floats) -> None:
    """Say which actions are legal, and which sizes are for every purchase that is legal at the whole budget."""
    call = order_code(a, market, contract, BUY_CALL, 1.0) == ORDER_OK
    put = order_code(a, market, contract, BUY_PUT, 1.0) == ORDER_OK
    a[c.MAY_HOLD] = 1.0
    a[c.MAY_BUY_CALL], a[c.MAY_BUY_PUT] = 1.0 if call else 0.0, 1.0 if put else 0.0
    a[c.MAY_CLOSE] = 1.0 if order_code(a, market, contract, CLOSE_POSITION, 1.0) == ORDER_OK else 0.0
    if contract[c.SIZED] == 0.0:
        return
    for size in range(SIZES):
        share = (size + 1.0) / SIZES
        fits = not call or order_code(a, market, contract, BUY_CALL, share) == ORDER_OK
        fits = fits and (not put or order_code(a, market, contract, BUY_PUT, share) == ORDER_OK)
        a[c.MAY_QUARTER + size] = 1.0 if fits else 0.0


# --- orders -----------------------------------------------------------------------------------------------------------


@compiled
def _drop_order(a: Floats) -> None:
    a[c.SIDE] = a[c.WORKING_QUANTITY] = a[c.LIMIT] = a[c.AGE] = a[c.REPEGS] = 0.0
    if a[c.POSITION] == 0.0:
        a[c.RIGHT] = a[c.STRIKE] = 0.0


@compiled
def decide(a: Floats, market: Floats, contract: Floats) -> None:
    """Turn the action into an order; what is not legal is not sent, counted, and its reason told."""
    requested = a[c.ACTION]
    size = a[c.SIZE] if contract[c.SIZED] != 0.0 else SIZES - 1.0
    if not (math.isfinite(requested) and math.isfinite(size)):
        a[c.BAD_ACTIONS] += 1.0
        a[QUIET] = 0.0
        requested, size = float(HOLD), 0.0
    share = (size + 1.0) / SIZES
    a[c.REQUESTED] = a[c.APPLIED] = requested
    action = int(requested)
    if action == HOLD:
        return
    a[QUIET] = 0.0
    code = order_code(a, market, contract, action, share)
    if code != ORDER_OK:
        a[c.ORDER_CODE] = code
        a[c.ILLEGAL_ACTIONS] += 1.0
        a[c.APPLIED] = HOLD
    elif action == CLOSE_POSITION:
        _drop_order(a)
        if a[c.POSITION] > 0.0:
            a[c.SIDE], a[c.WORKING_QUANTITY], a[c.REPEGS] = -1.0, a[c.POSITION], contract[c.ALLOWED_REPEGS]
            a[c.LIMIT] = peg(-1.0, a[c.BID], a[c.ASK], contract[c.TICK])
    else:
        right = CALL if action == BUY_CALL else PUT
        a[c.WORKING_QUANTITY], a[c.LIMIT], a[c.STRIKE] = purchase(a, market, contract, right, share)
        a[c.SIDE], a[c.RIGHT], a[c.AGE], a[c.REPEGS] = 1.0, right, 0.0, contract[c.ALLOWED_REPEGS]


@compiled
def _force_out(a: Floats, market: Floats, contract: Floats) -> None:
    """Withdraw what works, and let the broker sell what is held, once the forced exit has come."""
    if not is_forced_out(market[int(a[ROW]), c.LEFT], _exit_minutes(a, contract)):
        return
    if a[c.SIDE] != 0.0:
        a[QUIET] = 0.0
        _drop_order(a)
    if a[c.POSITION] > 0.0:
        a[c.FORCED] = 1.0
        a[c.SIDE], a[c.WORKING_QUANTITY] = -1.0, a[c.POSITION]


@compiled
def _payable(a: Floats, wanted: float, price: float, fee: float, contract: Floats) -> float:
    """Contracts of an order that the cash pays for; of a fixed number all or none."""
    most = whole_contracts(a[c.CASH], 1.0, price, contract[c.MULTIPLIER], fee)
    if contract[c.CONTRACTS] > 0.0 and most < wanted:
        return 0.0
    return min(wanted, most)


@compiled
def _fill(a: Floats, market: Floats, row: int, contract: Floats) -> float:
    """Let the working order meet bar ``row`` and book what is filled; returns the model's mid at the opening."""
    m = market[row]
    right, strike, side = a[c.RIGHT], a[c.STRIKE], a[c.SIDE]
    fee = contract[c.CONTRACT_FEE] * a[COST_SCALE]
    sd = smile_deviation(m[c.OPEN], strike, m[c.OPEN_DEVIATION], m[c.OPEN_SLOPE], m[c.OPEN_CURVATURE])
    mid, delta, _, _ = price_and_observed_greeks(right, m[c.OPEN], strike, sd)
    bid, ask = _quote(mid, m[c.OPEN_FACTOR], contract)
    wanted = a[c.WORKING_QUANTITY]
    filled, price, status = 0.0, 0.0, CANCELLED
    if a[c.FORCED] != 0.0 or contract[c.FILL_MODE] == FILL_MARKET:
        if side > 0.0:
            wanted = _payable(a, wanted, ask, fee, contract)
        filled, price = take_quote(side, wanted, bid, ask, contract[c.OFFERED])
    elif contract[c.FILL_MODE] == FILL_LIMIT:
        close = smile_price(right, m[c.CLOSE], strike, m[c.DEVIATION], m[c.SLOPE], m[c.CURVATURE])
        move = (close - mid) / max(abs(delta) * m[c.OPEN] * m[c.MINUTE_DEVIATION], 0.5 * contract[c.TICK])
        rested = a[c.AGE] > 0.0
        limit = a[c.LIMIT]
        status, filled, price, rest, after, a[c.AGE], a[c.REPEGS] = work_limit_order(
            side, wanted, limit, a[c.AGE], a[c.REPEGS], bid, ask, move, minute_uniform(a[c.FILL_SEED], m[c.MINUTE]),
            contract[c.OFFERED], contract[c.LIFE], contract[c.TICK], contract[c.RATE], contract[c.DECAY],
            contract[c.SELECTION], contract[c.SELECTION_LOWEST], contract[c.SELECTION_HIGHEST],
        )  # fmt: skip
        if status == REPEGGED and side > 0.0 and not may_open(m[c.LEFT], contract[c.ENTRY_CUT_OFF]):
            status, rest = CANCELLED, 0.0  # an order at a new price is a new order, and it would open a position
        if filled > 0.0 and rested:
            price = limit  # who came through it took what rested at its own price, never at a better one
        if status == REPEGGED:
            close_bid, close_ask = _quote(close, m[c.FACTOR], contract)
            after = peg(side, close_bid, close_ask, contract[c.TICK])  # to what is known when it is sent
        a[c.WORKING_QUANTITY], a[c.LIMIT] = rest, after
    else:
        filled, price = take_mid(wanted, bid, ask)
    _book(a, side, filled, price, mid, fee, contract)
    a[c.FILL_CODE] = (
        status
        if contract[c.FILL_MODE] == FILL_LIMIT and a[c.FORCED] == 0.0
        else (FILLED if filled >= wanted and filled > 0.0 else (PARTLY_FILLED if filled > 0.0 else CANCELLED))
    )
    if a[c.FILL_CODE] == FILLED or a[c.FILL_CODE] == CANCELLED or status == CANCELLED:
        _drop_order(a)
    elif side > 0.0 and status == REPEGGED:  # a dearer price, and the same cash
        a[c.WORKING_QUANTITY] = _payable(a, a[c.WORKING_QUANTITY], a[c.LIMIT], fee, contract)
        if a[c.WORKING_QUANTITY] == 0.0:
            _drop_order(a)
    return mid


@compiled
def _book(a: Floats, side: float, filled: float, price: float, mid: float, fee: float, contract: Floats) -> None:
    """Move cash and contracts of a fill, and its itemised costs against the model's mid at the opening."""
    if filled == 0.0:
        return
    size = contract[c.MULTIPLIER]
    held = a[c.POSITION]
    if side > 0.0:
        a[c.CASH] -= buying_cost(filled, price, size, fee)
        a[c.ENTRY] = (held * a[c.ENTRY] + filled * price) / (held + filled)
        a[c.FEE] = filled * fee
    else:
        a[c.CASH] += sale_proceeds(filled, price, size, fee)
        a[c.FEE] = filled * sale_fee(price, size, fee)
    a[c.POSITION] = held + side * filled
    a[c.SPREAD_COST] = side * filled * size * (price - mid)
    a[c.FILL_QUANTITY], a[c.FILL_PRICE] = side * filled, price
    if a[c.POSITION] == 0.0:
        a[c.ENTRY] = a[c.HELD] = 0.0


@compiled
def _settle(a: Floats, spot: float, contract: Floats) -> None:
    """Settle what the session's close finds: cash equivalent, or shares at the strike marked at the close."""
    quantity, size = a[c.POSITION], contract[c.MULTIPLIER]
    marked = cash_settlement(a[c.RIGHT], spot, a[c.STRIKE], quantity, size)
    a[c.SETTLED_QUANTITY] = quantity
    can = can_settle_physically(a[c.RIGHT], a[c.STRIKE], quantity, size, a[c.CASH], a[c.SHARES])
    if contract[c.PHYSICAL] == 0.0 or not can:  # who found no buyer all the way from the forced exit gets the cash
        a[c.SETTLEMENT] = marked
    else:
        a[c.SETTLEMENT], shares = physical_settlement(
            a[c.RIGHT], spot, a[c.STRIKE], quantity, size, contract[c.EXERCISE]
        )
        a[c.SHARES] += shares
        a[c.LAPSE] = marked - (a[c.SETTLEMENT] + shares * spot)
    a[c.CASH] += a[c.SETTLEMENT]
    a[c.POSITION] = a[c.ENTRY] = a[c.HELD] = 0.0


# --- the step ---------------------------------------------------------------------------------------------------------


@compiled
def _look(a: Floats, market: Floats, contract: Floats) -> None:
    """Price the contract that is held or ordered at the close of the account's bar, and read the clock."""
    m = market[int(a[ROW])]
    left = m[c.LEFT]
    a[c.MARK], a[c.MINUTES_LEFT] = m[c.CLOSE], left
    a[c.ENTRY_LEFT] = max(left - contract[c.ENTRY_CUT_OFF], 0.0)
    a[c.EXIT_LEFT] = max(left - max(_exit_minutes(a, contract), 0.0), 0.0)
    if a[c.RIGHT] == 0.0:
        a[c.PREMIUM] = a[c.BID] = a[c.ASK] = a[c.DELTA] = a[c.GAMMA] = a[c.THETA] = a[c.THETA_MINUTE] = 0.0
        return
    sd = smile_deviation(m[c.CLOSE], a[c.STRIKE], m[c.DEVIATION], m[c.SLOPE], m[c.CURVATURE])
    a[c.PREMIUM], a[c.DELTA], a[c.GAMMA], a[c.THETA] = price_and_observed_greeks(
        a[c.RIGHT], m[c.CLOSE], a[c.STRIKE], sd
    )
    a[c.BID], a[c.ASK] = _quote(a[c.PREMIUM], m[c.FACTOR], contract)
    a[c.THETA_MINUTE] = a[c.THETA] * a[c.PREMIUM] / left if left > 0.0 else 0.0


@compiled
def advance(a: Floats, market: Floats, contract: Floats) -> None:
    """Take one account from the close of its bar to the close of the next."""
    row = int(a[ROW]) + 1
    equity, peak, carried, premium = a[EQUITY], a[c.PEAK], a[c.POSITION], a[c.PREMIUM]
    if a[QUIET] == 0.0:  # else they are 0 already
        for column in range(c.MARKET_PNL, c.ORDER_CODE + 1):
            a[column] = 0.0
    a[QUIET] = 1.0
    decide(a, market, contract)
    _force_out(a, market, contract)
    if a[c.RIGHT] != 0.0:
        a[QUIET] = 0.0
    size, mid = contract[c.MULTIPLIER], 0.0
    right, strike = a[c.RIGHT], a[c.STRIKE]
    if a[c.SIDE] != 0.0:
        mid = _fill(a, market, row, contract)
    a[ROW] = row
    closing = market[row]
    if closing[c.LEFT] == 0.0:
        if a[c.POSITION] > 0.0:
            _settle(a, closing[c.CLOSE], contract)
        _drop_order(a)
    if a[c.POSITION] > 0.0:
        a[c.HELD] += 1.0
    _look(a, market, contract)
    worth = 0.0  # of the contract traded or held, at the close
    if right != 0.0 and (carried != 0.0 or a[c.FILL_QUANTITY] != 0.0):
        if a[c.RIGHT] != 0.0:
            worth = a[c.PREMIUM]  # it is still held, or ordered
        else:
            worth = smile_price(
                right, closing[c.CLOSE], strike, closing[c.DEVIATION], closing[c.SLOPE], closing[c.CURVATURE]
            )
        a[c.MARKET_PNL] = size * (carried * (worth - premium) + a[c.FILL_QUANTITY] * (worth - mid))
    a[EQUITY] = a[c.CASH] + a[c.POSITION] * size * worth + a[c.SHARES] * closing[c.CLOSE]
    a[c.PEAK] = max(peak, a[EQUITY])
    _reward(a, equity, peak, contract)
    a[END_CODE], a[OUTCOME] = 0.0, 0.0  # of the episode before, where a SAME_STEP call reset in the same step
    if a[ROW] >= a[END]:
        a[END_CODE], a[OUTCOME] = ENDED_SESSION, TERMINATED
    _set_masks(a, market, contract)


@compiled
def _reward(a: Floats, equity: float, peak: float, contract: Floats) -> None:
    """Fill in the active reward terms, weighted, and their sum."""
    start = contract[c.START_EQUITY]
    before = a[c.LOG_EQUITY]
    a[c.LOG_EQUITY] = log_equity(a[EQUITY], start)
    if contract[c.W_LOG] != 0.0:
        a[c.LOG_RETURN] = contract[c.W_LOG] * (a[c.LOG_EQUITY] - before)
    if contract[c.W_SIMPLE] != 0.0:
        a[c.SIMPLE_RETURN] = contract[c.W_SIMPLE] * (a[EQUITY] - equity) / start
    if contract[c.W_SHARPE] != 0.0:
        change = a[EQUITY] / equity - 1.0
        value, a[c.MEAN], a[c.SQUARE] = differential_sharpe(change, a[c.MEAN], a[c.SQUARE], contract[c.SHARPE_RATE])
        a[c.SHARPE] = contract[c.W_SHARPE] * value
    if contract[c.W_DRAWDOWN] != 0.0:
        a[c.DRAWDOWN] = -contract[c.W_DRAWDOWN] * drawdown_increase(equity, peak, a[EQUITY], a[c.PEAK])
    if contract[c.W_COSTS] != 0.0:
        a[c.COSTS] = -contract[c.W_COSTS] * (a[c.FEE] + a[c.SPREAD_COST]) / equity
    a[REWARD] = a[c.LOG_RETURN] + a[c.SIMPLE_RETURN] + a[c.SHARPE] + a[c.DRAWDOWN] + a[c.COSTS]


@compiled
def observe(a: Floats, market: Floats, table: NDArray[np.float32], contract: Floats, out: NDArray[np.float32]) -> None:
    """Write the observation of an account: the market's row, then the account's columns, clipped to their bounds."""
    row = int(a[ROW])
    w = table.shape[1]
    for column in range(w):
        out[column] = table[row, column]
    deviation = market[row, c.DEVIATION]
    exposure, unrealised, money = 0.0, 0.0, 0.0
    if a[c.POSITION] > 0.0:
        units = a[c.POSITION] * contract[c.MULTIPLIER] / max(a[EQUITY], 1e-6 * contract[c.START_EQUITY])
        exposure, unrealised = units * a[c.PREMIUM], units * (a[c.PREMIUM] - a[c.ENTRY])
    if a[c.RIGHT] != 0.0 and deviation > 0.0:
        money = a[c.RIGHT] * log_ratio(a[c.MARK], a[c.STRIKE]) / deviation
    out[w] = min(100.0 * deviation, 25.0)
    out[w + 1] = a[c.RIGHT]
    out[w + 2] = a[c.SIDE]
    out[w + 3] = min(max(exposure, 0.0), 1.0)
    out[w + 4] = min(max(unrealised, -1.0), 5.0)
    out[w + 5] = min(a[c.PREMIUM] / a[c.MARK], 1.0)
    out[w + 6] = a[c.DELTA]
    out[w + 7] = min(a[c.GAMMA], 0.4)
    out[w + 8] = a[c.THETA]
    out[w + 9] = min(max(money, -4.0), 4.0)
    out[w + 10] = min(a[c.HELD] * SESSION_SCALE, 1.0)
    out[w + 11] = min(max(a[c.LOG_EQUITY] - contract[c.LOG_START], -5.0), 5.0)
    out[w + 12] = a[c.ENTRY_LEFT] * SESSION_SCALE
    out[w + 13] = a[c.EXIT_LEFT] * SESSION_SCALE


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
                    observe(a, market, table, contract, obs[1, lane])
                    for column in range(a.shape[0]):
                        accounts[1, lane, column] = a[column]
                    reset_account(a, market, contract)
                    a[OUTCOME], a[REWARD] = accounts[1, lane, OUTCOME], accounts[1, lane, REWARD]
        observe(a, market, table, contract, obs[0, lane])
    return ended
