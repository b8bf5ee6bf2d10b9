"""The best that anyone who knew the whole session could have done with same-day options: an exact dynamic programme.

Orders take the opposite quote (``fill="market"``), every purchase is for a fixed number of contracts, and prices,
volatilities and spreads of the session are known. Then gain and loss of a trade depend on nothing but the bars of its
two decisions: a purchase that is decided at the close of bar e is of e's own strike ``K_e`` and right w, fills at the
opening of e+1, and is marked, sold and settled at that strike. So the state is flat, or (w, e): **the entry bar is part
of the state**. With n contracts of size 100, fee f, ask and bid of an opening, ``F`` flat and ``H`` held at a close::

    F(t)       = max{ F(t+1),  H(w, t; t+1) - n (100 ask_(t+1)(w, K_t) + f) }        the second where the order is legal
    H(w, e; t) = max{ H(w, e; t+1),  F(t+1) + n (100 bid_(t+1)(w, K_e) - f) }        where a sale is legal and filled
    F(M-1) = 0,   H(w, e; M-1) = n 100 max(0, w (S - K_e))                           the session's close

From the forced exit on the broker sells wherever there is a bid. Quotes, checks and settlement are the environment's
own compiled functions; the programme is exact, not an approximation on a grid. It maximises the session's profit and
loss in USD. The sums over a session of the reward terms ``log_return`` and ``simple_return`` are ``ln(V / V_0)`` and
``V / V_0 - 1`` of the final equity V, both rising in V: the plan is the best one for either of them, but not for terms
that depend on the path (``differential_sharpe``, ``drawdown``, ``costs``).

T rows of a session take T^2 quotes of either right. Source: R. Bellman, "Dynamic Programming" (1957).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs import zero_dte_columns as c
from envs.simulation import COST_SCALE, Game
from envs.zero_dte_kernel import CLOSE_POSITION, contract_quote
from markets.compiled import compiled
from markets.errors import ConfigError
from markets.option_prices import CALL, PUT
from markets.options import (
    ORDER_OK,
    buying_cost,
    cash_settlement,
    check_order,
    is_forced_out,
    sale_proceeds,
    whole_contracts,
)

Floats = NDArray[np.float64]
Actions = NDArray[np.int64]

RICH = 1e15  # cash with which no order fails for want of money: the plan's own cash is checked when it is walked


@dataclass(frozen=True, eq=False)
class OptionPlan:
    """The best of all plans from a flat account at the close of row ``first`` to the session's close.

    Attributes:
        actions: ``(T,)`` one of the four actions at the close of each row but the session's last.
        gain: profit and loss in USD. log_growth: ``ln(1 + gain / start equity)``, the sum of ``log_return``.
        trades: purchases that it makes. first: row at whose close the first action is decided.
    """

    actions: Actions
    gain: float
    log_growth: float
    trades: int
    first: int


def plan(game: Game, first: int) -> OptionPlan:
    """Solve one session of a ZeroDTE game, from the close of row ``first`` of it on.

    Raises:
        ConfigError: another family, a row outside every whole session, or arguments for which the programme is not
            exact; the message names the argument and what it has to be.
    """
    check(game)
    if not 0 <= first < len(game.market) or not game.market[first, c.SESSION_BARS] > 0.0:
        raise ConfigError(f"first={first} is no row of a whole session")
    last = int(game.market[first, c.LAST_OF_SESSION])
    if first == last:
        raise ConfigError(f"first={first} is the last row of its session: nothing is decided there")
    cash = float(game.contract[c.START_EQUITY])
    work, given = _Work.of(last - first), (game.market[first : last + 1], game.contract, _cost_scale(game))
    gain = _solve(*given, work.held, work.paid, work.buys, work.sells)
    trades, payable = _walk(*given, cash, work.paid, work.buys, work.sells, work.actions)
    if not payable:
        raise ConfigError(
            f"initial_equity={cash:g} does not pay for every purchase of the best plan, so that it would not be the "
            "best one: choose a larger one"
        )
    return OptionPlan(work.actions, gain, math.log1p(gain / cash), trades, first)


def _cost_scale(game: Game) -> float:
    return float(game.defaults[COST_SCALE])


def check(game: Game) -> None:
    """Raise unless the programme is exact for a game."""
    family, config = game.recipe
    if family != "ZeroDTE":
        raise ConfigError(f"the option oracle knows the rules of ZeroDTE, not of {family}")
    for name, wanted in (("fill", "market"), ("settlement", "cash_equivalent"), ("actions", "discrete")):
        if getattr(config, name) != wanted:
            raise ConfigError(f"the option oracle needs {name}={wanted!r}, not {getattr(config, name)!r}")
    if config.contracts is None:
        raise ConfigError("the option oracle needs a fixed quantity: make the game with contracts=1")
    if config.offered < config.contracts:
        raise ConfigError(
            f"offered={config.offered!r} fills a part of contracts={config.contracts!r} a minute; the option oracle "
            f"needs at least {config.contracts!r}"
        )


@dataclass(frozen=True, eq=False)
class _Work:
    """Arrays of a programme over T decisions: compiled functions allocate none.

    Attributes:
        held: ``(2, T)`` H of the next close, by right and entry bar. paid: ``(2, T)`` what a purchase costs.
        buys: ``(T,)`` best action when flat. sells: ``(2, T, T)`` by right, entry bar and bar of the decision.
        actions: ``(T,)`` of the plan.
    """

    held: Floats
    paid: Floats
    buys: Actions
    sells: NDArray[np.bool_]
    actions: Actions

    @classmethod
    def of(cls, count: int) -> _Work:
        """Return room for ``count`` decisions."""
        sells = np.zeros((2, count, count), np.bool_)
        zeros = np.zeros(count, np.int64)
        return cls(np.zeros((2, count)), np.zeros((2, count)), zeros, sells, zeros.copy())


@compiled
def _right(k: int) -> float:
    return CALL if k == 0 else PUT


@compiled
def _place(k: int) -> int:
    """Column of the own strike of a bar; the ask is two further."""
    return c.CALL_STRIKE if k == 0 else c.PUT_STRIKE


@compiled
def _solve(
    market: Floats, contract: Floats, cost_scale: float, held: Floats, paid: Floats, buys: Actions,
    sells: NDArray[np.bool_],
) -> float:  # fmt: skip
    """Solve rows ``(T + 1, M)`` up to a session's last; returns F of the first, and fills in the choices."""
    last = market.shape[0] - 1
    size, quantity = contract[c.MULTIPLIER], contract[c.CONTRACTS]
    fee, cut_off, leave = contract[c.CONTRACT_FEE] * cost_scale, contract[c.ENTRY_CUT_OFF], contract[c.FORCED_EXIT]
    flat = 0.0  # F(t+1)
    for k in range(2):
        for e in range(last):
            held[k, e] = cash_settlement(_right(k), market[last, c.CLOSE], market[e, _place(k)], quantity, size)
    for t in range(last - 1, -1, -1):
        left = market[t, c.LEFT]
        forced = is_forced_out(left, leave)
        best = flat
        for k in range(2):
            right, strike, asked = _right(k), market[t, _place(k)], market[t, _place(k) + 2]
            if check_order(quantity, asked, 0.0, RICH, left, cut_off, leave, size, fee) == ORDER_OK:
                _, _, ask = _opening(right, strike, market[t + 1], contract)
                paid[k, t] = buying_cost(quantity, ask, size, fee)
                if held[k, t] - paid[k, t] > best:
                    best, buys[t] = held[k, t] - paid[k, t], k + 1
            for e in range(t):
                strike = market[e, _place(k)]
                if not forced:
                    _, bid, _ = _closing(right, strike, market[t], contract)
                    if check_order(-quantity, bid, quantity, RICH, left, cut_off, leave, size, fee) != ORDER_OK:
                        continue
                _, bid, _ = _opening(right, strike, market[t + 1], contract)
                if not bid > 0.0:
                    continue
                value = flat + sale_proceeds(quantity, bid, size, fee)
                if forced or value > held[k, e]:
                    held[k, e] = value
                    sells[k, e, t] = True
        flat = best
    return flat


@compiled
def _walk(
    market: Floats, contract: Floats, cost_scale: float, cash: float, paid: Floats, buys: Actions,
    sells: NDArray[np.bool_], actions: Actions,
) -> tuple[int, bool]:  # fmt: skip
    """Follow the choices from flat: purchases, and whether the cash pays for each when it is sent and when it fills."""
    size, quantity, fee = contract[c.MULTIPLIER], contract[c.CONTRACTS], contract[c.CONTRACT_FEE] * cost_scale
    entry, k, trades, payable = -1, 0, 0, True
    for t in range(market.shape[0] - 1):
        if entry < 0 and buys[t] > 0:
            actions[t], entry, k = buys[t], t, buys[t] - 1
            if quantity > whole_contracts(cash, 1.0, market[t, _place(k) + 2], size, fee) or paid[k, t] > cash:
                payable = False
            cash -= paid[k, t]
            trades += 1
        elif entry >= 0 and sells[k, entry, t]:
            if not is_forced_out(market[t, c.LEFT], contract[c.FORCED_EXIT]):
                actions[t] = CLOSE_POSITION
            _, bid, _ = _opening(_right(k), market[entry, _place(k)], market[t + 1], contract)
            cash += sale_proceeds(quantity, bid, size, fee)
            entry = -1
    return trades, payable


@compiled
def _opening(right: float, strike: float, m: Floats, contract: Floats) -> tuple[float, float, float]:
    """Mid, bid and ask at the opening of a row, where orders fill."""
    return contract_quote(
        right, strike, m[c.OPEN], m[c.OPEN_DEVIATION], m[c.OPEN_SLOPE], m[c.OPEN_CURVATURE], m[c.OPEN_FACTOR], contract
    )


@compiled
def _closing(right: float, strike: float, m: Floats, contract: Floats) -> tuple[float, float, float]:
    """Mid, bid and ask at the close of a row, where orders are checked."""
    return contract_quote(right, strike, m[c.CLOSE], m[c.DEVIATION], m[c.SLOPE], m[c.CURVATURE], m[c.FACTOR], contract)
