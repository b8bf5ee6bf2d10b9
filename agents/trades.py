"""Ledger of option trades: what was bought, how it was left, and what it earned, from the cash that moved.

A trade is what happens to one contract from the first fill of its purchase to the step in which nothing is held any
more. Its result is taken from cash alone, ``received - paid - fees`` (a settlement in shares counts at their price);
the account's equity is kept by the environment's step. That the sum of the results is the change of equity is therefore
a check of both, and it is tested to the cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from envs import zero_dte_columns as c
from envs.simulation import ROW, Game
from envs.zero_dte_kernel import BUY_CALL
from markets.windows import Floats

SOLD, FORCED, SETTLED = "sold", "forced exit", "settled"


@dataclass
class Trade:
    """One contract bought and left again.

    Attributes:
        session: date of its session (UTC). opened, closed: times of the first and the last fill (the opening of its
            bar), a settlement at the close of its bar. minutes: bars at whose close it was held.
        right: ``call`` or ``put``. strike: USD. contracts: bought.
        entry_price, exit_price: averages per share, the exit's over fills and settlement.
        exit: how the last of it was left: ``sold``, ``forced exit`` or ``settled``.
        market_pnl: change of the model's mid while held. fee, spread_cost, lapse: costs against it. All in USD.
        pnl: net, ``received - paid - fee``; equals ``market_pnl - fee - spread_cost - lapse``.
    """

    session: str
    opened: str
    closed: str
    right: str
    strike: float
    contracts: float = 0.0
    entry_price: float = 0.0
    exit_price: float = 0.0
    exit: str = ""
    minutes: int = 0
    market_pnl: float = 0.0
    fee: float = 0.0
    spread_cost: float = 0.0
    lapse: float = 0.0
    pnl: float = 0.0


@dataclass
class OptionTrades:
    """Watches one account from step to step and writes down its trades."""

    game: Game
    trades: list[Trade] = field(default_factory=list)
    _open: Trade | None = None
    _right: float = 0.0
    _strike: float = 0.0
    _shares: float = 0.0
    _paid: float = 0.0
    _received: float = 0.0

    def begin(self, account: Floats) -> None:
        """Note the account ``(K,)`` at the beginning of a session."""
        self._open = None
        self._remember(account)

    def step(self, account: Floats) -> None:
        """Note the account ``(K,)`` after a step."""
        filled = account[c.FILL_QUANTITY]
        if self._open is None and filled > 0.0:
            self._open = self._opened(account)
            self.trades.append(self._open)
            self._paid = self._received = 0.0
        if self._open is not None:
            self._book(self._open, account, filled)
        self._remember(account)

    def _opened(self, account: Floats) -> Trade:
        row = int(account[ROW])
        right, strike = account[c.RIGHT] or self._right, account[c.STRIKE] or self._strike
        if right == 0.0:  # ordered, bought and settled within one step: the contract is the one of the bar before
            right = 1.0 if account[c.APPLIED] == BUY_CALL else -1.0
            strike = self.game.market[row - 1, c.CALL_STRIKE if right > 0.0 else c.PUT_STRIKE]
        time = _text(self.game.bars.time[row])
        return Trade(time[:10], time, time, "call" if right > 0.0 else "put", float(strike))

    def _book(self, trade: Trade, account: Floats, filled: float) -> None:
        unit, row = self.game.ledger.unit, int(account[ROW])
        money = unit * abs(filled) * account[c.FILL_PRICE]
        if filled > 0.0:
            trade.contracts += float(filled)
            self._paid += money
        elif filled < 0.0:
            self._received += money
            trade.exit = FORCED if account[c.FORCED] else SOLD
        if filled != 0.0:
            trade.closed = _text(self.game.bars.time[row])
        if account[c.SETTLED_QUANTITY] > 0.0:
            self._received += account[c.SETTLEMENT] + (account[c.SHARES] - self._shares) * account[c.MARK]
            trade.exit, trade.closed = SETTLED, _text(self.game.bars.close_time[row])
        for name in ("market_pnl", "fee", "spread_cost", "lapse"):
            setattr(trade, name, getattr(trade, name) + float(account[self.game.ledger.items[name]]))
        trade.entry_price = float(self._paid / (unit * trade.contracts))
        trade.exit_price = float(self._received / (unit * trade.contracts))
        trade.pnl = float(self._received - self._paid - trade.fee)
        if account[c.POSITION] > 0.0:
            trade.minutes += 1
        else:
            self._open = None

    def _remember(self, account: Floats) -> None:
        self._right, self._strike, self._shares = (float(account[place]) for place in (c.RIGHT, c.STRIKE, c.SHARES))


COLUMNS = ("agent", *(item.name for item in fields(Trade)))
LEDGERS = {"ZeroDTE": OptionTrades}  # family -> what writes down its trades


def rows_of(agent: str, trades: Sequence[Trade]) -> list[dict[str, Any]]:
    """Return an agent's trades as rows of a table; money in cents, prices to a hundredth of one."""
    cents = ("market_pnl", "fee", "spread_cost", "lapse", "pnl")
    rows = []
    for trade in trades:
        row = {"agent": agent, **asdict(trade)}
        row |= {name: round(row[name], 2) for name in cents}
        rows.append(row | {name: round(row[name], 4) for name in ("entry_price", "exit_price")})
    return rows


def summary(trades: Sequence[Trade]) -> dict[str, float]:
    """Return how many trades there were and what they earned: USD, shares between 0 and 1; 0 without a trade."""
    results = np.array([trade.pnl for trade in trades])
    won, lost = results[results > 0.0], results[results < 0.0]
    ends = [trade.exit for trade in trades]
    return {
        "trades": float(len(trades)),
        "trades_won": _mean(results > 0.0),
        "mean_trade_pnl": _mean(results),
        "mean_gain": _mean(won),
        "mean_loss": _mean(lost),
        "mean_minutes_held": _mean(np.array([trade.minutes for trade in trades])),
        **{f"trades_{end.replace(' ', '_')}": float(ends.count(end)) for end in (SOLD, FORCED, SETTLED)},
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, "m"))
