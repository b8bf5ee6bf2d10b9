"""Columns of the PerpFutures family: of the market matrix, of an account row, and of the contract vector.

Everything a step reads and writes stands in flat arrays, whose places are named here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from envs.simulation import COST_SCALE, HEAD, LEVERAGE, Ledger

# Columns of the market matrix, one row per bar. Later funding stamps of a bar follow, one column each (0: none).
# ASKED_LEVERAGE is that of a decision at the close of the bar, before the tiers; 0 leaves the account's as it is.
OPEN, VOLUME, MARK_OPEN, MARK_HIGH, MARK_LOW, MARK_CLOSE = range(6)
DAILY_VOLATILITY, DAILY_VOLUME, ASKED_LEVERAGE, FUNDING_IN_GAP, FUNDING_AT_OPEN, FUNDING_INSIDE = range(6, 12)

# Columns of an account row, after the ones every family has: what info shows of the account, the items of one step,
# the weighted reward terms, and what only the step itself needs. The state begins with what every bar changes; the rest
# of it, and every item (0 then), stays as it is in a quiet step, in which nothing was ordered, charged or liquidated.
_STATE = (
    "mark", "margin_ratio", "market_pnl", "action", "requested_action",
    "wallet", "position", "entry_price", "margin", "liquidation_price", "contract_leverage", "bad_actions",
)  # fmt: skip
_ITEMS = (
    "order_quantity", "fill_quantity", "fill_price", "fee", "spread_cost", "impact_cost", "funding", "realised",
    "liquidated", "liquidated_quantity", "liquidated_at", "clearance", "cover", "order_code",
)  # fmt: skip
_TERMS = ("log_return", "simple_return", "differential_sharpe", "drawdown", "costs", "funding_term")
_HIDDEN = ("peak", "mean", "square", "held", "log_equity")
COLUMNS = (*HEAD, *_STATE, *_ITEMS, *_TERMS, *_HIDDEN)
MARK = len(HEAD)
(
    MARGIN_RATIO, MARKET_PNL, APPLIED, ACTION,
    WALLET, POSITION, ENTRY, MARGIN, LIQUIDATION, CONTRACT_LEVERAGE, BAD_ACTIONS,
    ORDER_QUANTITY, FILL_QUANTITY, FILL_PRICE, FEE, SPREAD_COST, IMPACT_COST, FUNDING, REALISED,
    LIQUIDATED, LIQUIDATED_QUANTITY, LIQUIDATED_AT, CLEARANCE, COVER, ORDER_CODE,
    LOG_RETURN, SIMPLE_RETURN, SHARPE, DRAWDOWN, COSTS, FUNDING_TERM,
    PEAK, MEAN, SQUARE, HELD, LOG_EQUITY,
) = range(MARK + 1, len(COLUMNS))  # fmt: skip
INFO = range(COST_SCALE, ORDER_CODE + 1)
STATE = range(LEVERAGE, BAD_ACTIONS + 1)
LIVELY = range(LEVERAGE, ACTION + 1)
TERM_COLUMNS = {
    "log_return": LOG_RETURN, "simple_return": SIMPLE_RETURN, "differential_sharpe": SHARPE, "drawdown": DRAWDOWN,
    "costs": COSTS, "funding": FUNDING_TERM,
}  # fmt: skip

# Positions in the contract vector; the tier table follows, four numbers a row.
(
    LOT, TICK, MINIMUM_QUANTITY, MAXIMUM_QUANTITY, MINIMUM_NOTIONAL, TAKER_FEE, CLEARANCE_FEE, BAND, SPREAD,
    IMPACT, PARTICIPATION, START_EQUITY, GIVEN_LEVERAGE, REBALANCE, RUIN, DRAWDOWN_LIMIT, GO_ON, EPISODE, LAST_ROW,
    SHARPE_RATE, LOG_START, CROSS, TIERED, W_LOG, W_SIMPLE, W_SHARPE, W_DRAWDOWN, W_COSTS, W_FUNDING, TIERS,
) = range(30)  # fmt: skip
WEIGHTS = dict(zip(TERM_COLUMNS, range(W_LOG, TIERS), strict=True))

LEDGER = Ledger(
    position=POSITION, price=MARK, fill_quantity=FILL_QUANTITY, fill_price=FILL_PRICE, unit=1.0, peak=PEAK,
    start=START_EQUITY, costs=(FEE, SPREAD_COST, IMPACT_COST, CLEARANCE),
    items={
        "fee": FEE, "spread_cost": SPREAD_COST, "impact_cost": IMPACT_COST, "funding": FUNDING,
        "clearance": CLEARANCE, "cover": COVER, "market_pnl": MARKET_PNL, "liquidations": LIQUIDATED,
    },
)  # fmt: skip

ACCOUNT_NAMES = (
    "exposure", "unrealised", "margin_ratio", "liquidation_distance", "log_equity", "drawdown", "previous_action",
    "free_margin", "holding_time",
)  # fmt: skip
ACCOUNT_LOW = (-1.0, -2.0, 0.0, 0.0, -5.0, 0.0, -1.0, 0.0, 0.0)
ACCOUNT_HIGH = (1.0, 2.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0)
ACCOUNT_FORMULAS = (
    "q mark / (equity L)", "q (mark - E) / equity", "maintenance margin / margin balance at mark, 0 when flat",
    "distance of mark to the liquidation price / mark, 1 when flat", "ln(equity / start equity)",
    "1 - equity / highest equity", "action applied at the last step", "(wallet - margin) / equity",
    "bars since the position was opened or flipped / 168",
)  # fmt: skip
HOLDING_SCALE = 1.0 / 168.0  # per bar


def show_lively(info: dict[str, Any], values: list[float]) -> None:
    """Write the columns of ``LIVELY`` into a single env's info."""
    (
        info["leverage"], info["equity"], info["mark"], info["margin_ratio"], info["market_pnl"], info["action"],
        info["requested_action"],
    ) = values  # fmt: skip
