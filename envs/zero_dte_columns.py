"""Columns of the ZeroDTE family: of the market matrix, of an account row, and of the contract vector.

Everything a step reads and writes stands in flat arrays, whose places are named here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from envs.simulation import COST_SCALE, HEAD, LEVERAGE, Ledger

# Columns of the market matrix, one row per bar. What is known at the bar's opening is only read for fills in that bar.
(
    MINUTE, LEFT, SESSION_BARS, LAST_OF_SESSION,
    OPEN, OPEN_DEVIATION, OPEN_SLOPE, OPEN_CURVATURE, OPEN_FACTOR,
    CLOSE, DEVIATION, SLOPE, CURVATURE, FACTOR,
    CALL_STRIKE, CALL_BID, CALL_ASK, PUT_STRIKE, PUT_BID, PUT_ASK,
    MINUTE_DEVIATION,
) = range(21)  # fmt: skip
MARKET_WIDTH = 21

# Columns of an account row, after the ones every family has: what info shows of the account, the items of one step,
# the weighted reward terms, and what only the step itself needs. The state begins with what every bar changes; the rest
# of it, and every item (0 then), stays as it is in a quiet step, in which nothing was held, ordered or refused.
_STATE = (
    "mark", "minutes_left", "entry_minutes_left", "exit_minutes_left", "requested_action", "action",
    "cash", "position", "right", "strike", "entry_price", "premium", "bid", "ask", "delta", "gamma", "theta",
    "theta_minute", "shares",
    "order_side", "order_quantity", "order_limit", "order_age", "bad_actions", "illegal_actions",
)  # fmt: skip
_ITEMS = (
    "market_pnl", "fee", "spread_cost", "lapse", "fill_quantity", "fill_price", "forced", "settled_quantity",
    "settlement", "fill_code", "order_code",
)  # fmt: skip
_TERMS = ("log_return", "simple_return", "differential_sharpe", "drawdown", "costs")
_HIDDEN = (
    "agent_action", "agent_size", "next_fill_seed", "fill_seed", "repegs", "held", "peak", "mean", "square",
    "log_equity", "may_hold", "may_buy_call", "may_buy_put", "may_close", "may_quarter", "may_half",
    "may_three_quarters", "may_whole",
)  # fmt: skip
COLUMNS = (*HEAD, *_STATE, *_ITEMS, *_TERMS, *_HIDDEN)
MARK = len(HEAD)
(
    MINUTES_LEFT, ENTRY_LEFT, EXIT_LEFT, REQUESTED, APPLIED,
    CASH, POSITION, RIGHT, STRIKE, ENTRY, PREMIUM, BID, ASK, DELTA, GAMMA, THETA, THETA_MINUTE, SHARES,
    SIDE, WORKING_QUANTITY, LIMIT, AGE, BAD_ACTIONS, ILLEGAL_ACTIONS,
    MARKET_PNL, FEE, SPREAD_COST, LAPSE, FILL_QUANTITY, FILL_PRICE, FORCED, SETTLED_QUANTITY, SETTLEMENT,
    FILL_CODE, ORDER_CODE,
    LOG_RETURN, SIMPLE_RETURN, SHARPE, DRAWDOWN, COSTS,
    ACTION, SIZE, NEXT_FILL_SEED, FILL_SEED, REPEGS, HELD, PEAK, MEAN, SQUARE, LOG_EQUITY,
    MAY_HOLD, MAY_BUY_CALL, MAY_BUY_PUT, MAY_CLOSE, MAY_QUARTER, MAY_HALF, MAY_THREE_QUARTERS, MAY_WHOLE,
) = range(MARK + 1, len(COLUMNS))  # fmt: skip
INFO = range(COST_SCALE, ORDER_CODE + 1)
STATE = range(LEVERAGE, ILLEGAL_ACTIONS + 1)
LIVELY = range(LEVERAGE, APPLIED + 1)
TERM_COLUMNS = {
    "log_return": LOG_RETURN, "simple_return": SIMPLE_RETURN, "differential_sharpe": SHARPE, "drawdown": DRAWDOWN,
    "costs": COSTS,
}  # fmt: skip
MASKS = slice(MAY_HOLD, MAY_CLOSE + 1)  # of the four actions; then those of the four sizes
SIZED_MASKS = slice(MAY_HOLD, MAY_WHOLE + 1)

# Positions in the contract vector; the spread table follows, two numbers a row.
(
    MULTIPLIER, TICK, CONTRACT_FEE, ENTRY_CUT_OFF, FORCED_EXIT, PHYSICAL, EXERCISE, FILL_MODE, RATE, DECAY, SELECTION,
    SELECTION_LOWEST, SELECTION_HIGHEST, LIFE, ALLOWED_REPEGS, OFFERED, RISK, CONTRACTS, SIZED, START_EQUITY, LOG_START,
    SHARPE_RATE, W_LOG, W_SIMPLE, W_SHARPE, W_DRAWDOWN, W_COSTS, SPREADS,
) = range(28)  # fmt: skip
WEIGHTS = dict(zip(TERM_COLUMNS, range(W_LOG, SPREADS), strict=True))

LEDGER = Ledger(
    position=POSITION, price=PREMIUM, fill_quantity=FILL_QUANTITY, fill_price=FILL_PRICE, unit=100.0, peak=PEAK,
    start=START_EQUITY, costs=(FEE, SPREAD_COST),
    items={
        "fee": FEE, "spread_cost": SPREAD_COST, "lapse": LAPSE, "market_pnl": MARKET_PNL, "settlement": SETTLEMENT,
        "forced": FORCED,
    },
)  # fmt: skip

# name, formula, low, high
ACCOUNT: tuple[tuple[str, str, float, float], ...] = (
    ("deviation", "100 sd, at-the-money deviation to the close", 0.0, 25.0),
    ("right", "1 call held or ordered, -1 put, 0 neither", -1.0, 1.0),
    ("order_side", "1 a purchase works, -1 a sale, 0 none", -1.0, 1.0),
    ("exposure", "contracts 100 P / equity", 0.0, 1.0),
    ("unrealised", "contracts 100 (P - entry) / equity", -1.0, 5.0),
    ("premium", "P / S", 0.0, 1.0),
    ("delta", "delta of the contract", -1.0, 1.0),
    ("gamma", "gamma S sd", 0.0, 0.4),
    ("theta", "decay to the close at the present speed / P", -20.0, 0.0),
    ("moneyness", "w ln(S / K) / sd, 0 when flat", -4.0, 4.0),
    ("holding_time", "bars held / 390", 0.0, 1.0),
    ("log_equity", "ln(equity / start equity)", -5.0, 5.0),
    ("entry_time", "minutes to the last opening decision / 390", 0.0, 1.0),
    ("exit_time", "minutes to the forced exit, or to the close without / 390", 0.0, 1.0),
)
ACCOUNT_NAMES = tuple(name for name, *_ in ACCOUNT)


def show_lively(info: dict[str, Any], values: list[float]) -> None:
    """Write the columns of ``LIVELY`` into a single env's info."""
    (
        info["leverage"], info["equity"], info["mark"], info["minutes_left"], info["entry_minutes_left"],
        info["exit_minutes_left"], info["requested_action"], info["action"],
    ) = values  # fmt: skip
