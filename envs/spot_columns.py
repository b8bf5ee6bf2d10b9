"""Columns of the SpotCrypto family: of the market matrix, of an account row, and of the contract vector.

Everything a step reads and writes stands in flat arrays, whose places are named here and nowhere else. Their length
depends on the number A of coins: what each coin has stands in blocks of A columns. In an account row the blocks follow
the columns that info shows; what every account has beside them is counted from the end of the row (negative numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from envs.simulation import COST_SCALE, HEAD, LEVERAGE, Ledger

# Blocks of the market matrix, one row per bar; the last column is the time between the close before and the open.
OPEN, CLOSE, OFFERED, DAILY_VOLATILITY, DAILY_VALUE = range(5)
MARKET_BLOCKS = 5

# Columns of an account row. Every step is told in full (none is quiet): prices move in each.
_FIXED = (
    "mark", "position", "cash", "gross_exposure", "bad_actions",
    "market_pnl", "fee", "spread_cost", "impact_cost", "borrow", "cover", "traded",
)  # fmt: skip
_TERMS = ("log_return", "simple_return", "differential_sharpe", "drawdown", "costs")
_HIDDEN = ("peak", "mean", "square", "log_equity")
MARK = len(HEAD)
(
    POSITION, CASH, GROSS, BAD_ACTIONS,
    MARKET_PNL, FEE, SPREAD_COST, IMPACT_COST, BORROW, COVER, TRADED,
) = range(MARK + 1, MARK + len(_FIXED))  # fmt: skip
BLOCKS = MARK + len(_FIXED)
(
    LOG_RETURN, SIMPLE_RETURN, SHARPE, DRAWDOWN, COSTS, PEAK, MEAN, SQUARE, LOG_EQUITY,
) = range(-len(_TERMS) - len(_HIDDEN), 0)  # fmt: skip

# Blocks of an account row: A columns each, named after the coins, such as BTC_weight. The first ones are shown.
_SHOWN = (
    "requested_action", "action", "price", "weight", "quantity", "pnl", "fill_quantity", "fill_price", "order_code",
)  # fmt: skip
_SCRATCH = ("target", "drifted", "rate", "slope", "largest")  # of a rebalancing that is worked out
(
    REQUESTED, APPLIED, PRICE, WEIGHT, QUANTITY, PNL, FILL_QUANTITY, FILL_PRICE, ORDER_CODE,
    TARGET, DRIFTED, RATE, SLOPE, LARGEST,
) = range(len(_SHOWN) + len(_SCRATCH))  # fmt: skip

TERM_COLUMNS = {
    "profit": LOG_RETURN, "log_return": LOG_RETURN, "simple_return": SIMPLE_RETURN, "sharpe": SHARPE,
    "differential_sharpe": SHARPE, "drawdown": DRAWDOWN, "costs": COSTS,
}  # fmt: skip
REWARDS = {
    "profit": "ln(V' / V), equity floored at 1e-6 of the start",
    "log_return": "the same, under the name that every family has",
    "simple_return": "(V' - V) / V_0",
    "sharpe": "differential Sharpe ratio of V' / V - 1 (Moody and Saffell 2001)",
    "differential_sharpe": "the same, under the name that every family has",
    "drawdown": "-max(0, dd' - dd), dd = 1 - V / max V",
    "costs": "-(fee + spread + impact + borrow) / V",
}

# Positions in the contract vector; then, coin by coin, lot, tick and half spread.
(
    ASSETS, START_EQUITY, LOG_START, SHORT, GROSS_LIMIT, BORROW_RATE, YEARS, TAKER_FEE, IMPACT, MINIMUM_NOTIONAL,
    REBALANCE, RUIN, DRAWDOWN_LIMIT, EPISODE, LAST_ROW, SHARPE_RATE, W_LOG, W_SIMPLE, W_SHARPE, W_DRAWDOWN, W_COSTS,
    COINS,
) = range(22)  # fmt: skip
LOT, TICK, SPREAD = range(3)
COIN_WIDTH = 3
WEIGHTS = {LOG_RETURN: W_LOG, SIMPLE_RETURN: W_SIMPLE, SHARPE: W_SHARPE, DRAWDOWN: W_DRAWDOWN, COSTS: W_COSTS}

LEDGER = Ledger(
    position=POSITION, price=None, fill_quantity=TRADED, fill_price=None, unit=1.0, peak=PEAK, start=START_EQUITY,
    costs=(FEE, SPREAD_COST, IMPACT_COST, BORROW),
    items={
        "fee": FEE, "spread_cost": SPREAD_COST, "impact_cost": IMPACT_COST, "borrow": BORROW, "cover": COVER,
        "market_pnl": MARKET_PNL,
    },
)  # fmt: skip

# Account columns of the observation: first one a coin, name and formula; then those of the whole account.
OF_COIN: tuple[tuple[str, str, float, float], ...] = (
    ("weight", "q c / equity", -2.0, 2.0),
    ("previous_action", "target weight that was applied at the last step", -1.0, 1.0),
)
OF_ACCOUNT: tuple[tuple[str, str, float, float], ...] = (
    ("cash_weight", "cash / equity", -2.0, 4.0),
    ("gross_exposure", "sum |q c| / equity", 0.0, 3.0),
    ("log_equity", "ln(equity / start equity)", -5.0, 5.0),
    ("drawdown", "1 - equity / highest equity", 0.0, 1.0),
)


def account_columns(assets: Sequence[str]) -> tuple[str, ...]:
    """Names of the K columns of an account row."""
    shown = [f"{asset}_{what}" for what in _SHOWN for asset in assets]
    scratch = [f"{asset}_{what}" for what in _SCRATCH for asset in assets]
    return (*HEAD, *_FIXED, *shown, *scratch, *_TERMS, *_HIDDEN)


def shown_columns(count: int) -> range:
    """Columns that info shows, for ``count`` coins; each of them is written in every step."""
    return range(COST_SCALE, BLOCKS + len(_SHOWN) * count)


def state_columns(count: int) -> range:
    """The shown columns from the leverage on."""
    return range(LEVERAGE, BLOCKS + len(_SHOWN) * count)


def account_observation(assets: Sequence[str]) -> list[tuple[str, str, float, float]]:
    """Name, formula, low and high of the account columns of an observation."""
    coins = [(f"{asset}_{name}", formula, low, high) for name, formula, low, high in OF_COIN for asset in assets]
    return [*coins, *OF_ACCOUNT]


def shower(names: Sequence[str]) -> Callable[[dict[str, Any], list[float]], None]:
    """Return what writes the state columns ``names`` into an info."""

    def show(info: dict[str, Any], values: list[float]) -> None:
        info.update(zip(names, values, strict=True))

    return show
