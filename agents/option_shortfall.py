"""What trading a same-day option costs: limit orders pegged to the mid against market orders, on the same decisions.

A decision is a session, a right, a minute to buy at and a later one to sell at, all drawn before anything is played. It
is played twice by the game of :class:`envs.zero_dte.ZeroDTEEnv`, with ``fill="limit"`` and with ``fill="market"``;
nothing else differs. Costs are in USD per contract (100 shares), positive where they are paid::

    cost            side (fill - model's mid at the decision) + fee     implementation shortfall, with what the mid did
    at the fill     side (fill - model's mid at the fill's opening) + fee
    selection       -side (mid at the close of the filling minute - mid at its opening)
    missed          side (mid when the order was given up - mid at the decision), of purchases that were not filled

A sale is tried again until the position is flat; from the forced exit on the broker sells, which is in no figure but
``forced``. Source: A. Perold (1988), "The implementation shortfall: paper versus reality".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.recipe import resolve
from agents.session_intervals import mean, ratio, session_interval
from envs import zero_dte_columns as columns
from envs.make import game_of
from envs.simulation import MODE_NEXT_STEP, Game, Simulation
from envs.zero_dte import TradingAction
from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ConfigError
from markets.option_prices import CALL, PUT
from markets.option_quotes import smile_price
from markets.sessions import sessions_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ENV = "ZeroDTE-v0"
FILLS = ("limit", "market")
LEAST_HOLDING = 10  # minutes between the decision to buy and the one to sell
SIDES = {"buy": 1.0, "sell": -1.0}


def shortfall(
    bars: str | Bars, seeds: Sequence[int] = (0,), settings: Mapping[str, Any] | None = None, draws: int = 1000
) -> dict[str, Any]:
    """Play random decisions with both kinds of orders and sum up what they cost.

    Args:
        bars: market of whole sessions; every one of them is played. seeds: of the decisions, one a session and seed.
        settings: more of the environment's arguments, without ``fill`` and ``actions``. draws: bootstrap resamples.

    Returns:
        ``rows``: of each fill mode and side, every figure value, low and high (95 %, over sessions); ``saved``: cost of
        the market order minus that of the limit order where both were filled; ``first_minute``: share of limit
        purchases that filled in their first minute by whether the quote at the decision was an even number of ticks
        wide, so that a tick lies at its mid, or an odd one.

    Raises:
        UnknownNameError: a setting that the environment does not have. ConfigError: a setting that the study makes, or
        an entry cut-off that leaves no minute to buy in.
    """
    given = dict(settings or {})
    for name, reason in (("fill", "what is compared here"), ("actions", "'discrete' here: a decision has no size")):
        if name in given:
            raise ConfigError(f"{name}={given[name]!r}: {name} is {reason}: leave it out")
    games = {fill: game_of(*resolve(ENV, {**given, "bars": bars, "fill": fill})) for fill in FILLS}
    plans = [plan(games["limit"], seed) for seed in seeds]
    orders = {
        fill: _joined([_orders(game, one, seed) for seed, one in zip(seeds, plans, strict=True)])
        for fill, game in games.items()
    }
    rows = [
        {"fill": fill, "side": side, **_row({k: v for k, v in part.items() if k.startswith(side)}, side, draws)}
        for fill, part in orders.items()
        for side in SIDES
    ]
    limit, market = orders["limit"], orders["market"]
    saved = {}
    for side in SIDES:
        both = (limit[f"{side} filled"] > 0) & (market[f"{side} filled"] > 0)
        saved[side] = session_interval((market[f"{side} cost"] - limit[f"{side} cost"])[both], mean, draws)
    return {
        "bars": games["limit"].bars.source, "sessions": len(plans[0]["row"]), "seeds": list(seeds), "rows": rows,
        "saved": saved, "first_minute": _first_minute(limit, draws),
    }  # fmt: skip


def plan(game: Game, seed: int) -> dict[str, NDArray[Any]]:
    """Draw a decision for each whole session: first row, right, and bar numbers of the entry and of the exit."""
    found = sessions_of(game.bars)
    first, bars = found.first[found.complete], found.rows[found.complete]
    generator = np.random.default_rng([seed, len(first)])
    last = bars - 1 - int(game.contract[columns.ENTRY_CUT_OFF])
    if not len(first):
        raise ConfigError(f"{game.bars.source!r} has no whole session")
    if last.min() <= LEAST_HOLDING:
        raise ConfigError(
            f"entry_cut_off={game.contract[columns.ENTRY_CUT_OFF]:g} leaves no minute to buy in and {LEAST_HOLDING} to "
            f"hold: at most {bars.min() - 2 - LEAST_HOLDING}, since the shortest session has {bars.min()} minutes"
        )
    enter = np.floor(generator.random(len(first)) * (last - LEAST_HOLDING)).astype(np.int64)
    latest = bars - 2 - int(max(game.contract[columns.FORCED_EXIT], 0.0))
    leave = enter + LEAST_HOLDING
    leave += np.floor(generator.random(len(first)) * np.maximum(latest - leave, 1)).astype(np.int64)
    right = np.where(generator.random(len(first)) < 0.5, CALL, PUT)
    return {"row": first, "bars": bars, "enter": enter, "leave": leave, "right": right}


def _orders(game: Game, decisions: dict[str, NDArray[Any]], seed: int) -> dict[str, Floats]:
    """Play one decision in each session; ``(S,)`` sums of its purchase and of its sale."""
    count = len(decisions["row"])
    generators = [np.random.default_rng([seed, lane]) for lane in range(count)]  # of the fills: equal in both modes
    simulation = Simulation(game, count)
    simulation.reset(generators, None, decisions["row"], np.zeros(count, bool))
    live = simulation.accounts[0]
    fee = game.contract[columns.CONTRACT_FEE]
    names = ("ordered", "filled", "paid", "at fill", "selection", "first", "ticks")
    out = {f"{side} {name}": np.zeros(count) for side in SIDES for name in names}
    out["buy missed"], out["buy forced"], out["sell forced"] = (np.zeros(count) for _ in range(3))
    place = np.where(decisions["right"] > 0.0, columns.CALL_STRIKE, columns.PUT_STRIKE)
    enter_row, leave_row = decisions["row"] + decisions["enter"], decisions["row"] + decisions["leave"]
    strike = game.market[enter_row, place]
    mids = {"buy": mids_at(game, enter_row, decisions["right"], strike, True)}
    mids["sell"] = mids_at(game, leave_row, decisions["right"], strike, True)
    quote = game.market[enter_row, place + 2] - game.market[enter_row, place + 1]
    out["buy ticks"] = np.round(quote / game.contract[columns.TICK])
    buy = np.where(decisions["right"] > 0.0, TradingAction.BUY_CALL, TradingAction.BUY_PUT)
    for minute in range(int(decisions["bars"].max()) - 1):
        running = minute < decisions["bars"] - 1
        entering = minute == decisions["enter"]
        wants_out = (minute >= decisions["leave"]) & (live[:, columns.MAY_CLOSE] != 0.0)
        action = np.where(entering, buy, np.where(wants_out, TradingAction.CLOSE_POSITION, TradingAction.HOLD))
        rows = decisions["row"] + np.minimum(minute, decisions["bars"] - 2)
        gave_up = (live[:, columns.SIDE] > 0.0) & running
        held = live[:, columns.POSITION].copy()
        simulation.set_actions(np.where(running, action, TradingAction.HOLD)[:, None])
        if simulation.run(MODE_NEXT_STEP):  # a session that is over begins another one, which nothing reads
            simulation.draw_starts(generators)
        change, price = live[:, columns.FILL_QUANTITY].copy(), live[:, columns.FILL_PRICE].copy()
        change[~running] = 0.0
        forced = live[:, columns.FORCED] != 0.0
        opening = mids_at(game, rows + 1, decisions["right"], strike, False)
        closing = mids_at(game, rows + 1, decisions["right"], strike, True)
        for side, sign in SIDES.items():
            filled = np.where((sign * change > 0.0) & ~forced, np.abs(change), 0.0)
            out[f"{side} filled"] += filled
            out[f"{side} paid"] += filled * (100.0 * sign * (price - mids[side]) + fee)
            out[f"{side} at fill"] += filled * (100.0 * sign * (price - opening) + fee)
            out[f"{side} selection"] -= filled * 100.0 * sign * (closing - opening)
            out[f"{side} forced"] += np.where((sign * change > 0.0) & forced & running, np.abs(change), 0.0)
        working = np.where(live[:, columns.SIDE] > 0.0, live[:, columns.WORKING_QUANTITY], 0.0)
        out["buy ordered"][entering] = (np.maximum(change, 0.0) + working)[entering]
        out["buy first"][entering] = np.maximum(change, 0.0)[entering]
        at_exit = minute == decisions["leave"]
        out["sell ordered"][at_exit] = held[at_exit]
        ended = (gave_up | entering) & running & (live[:, columns.SIDE] <= 0.0) & (out["buy filled"] == 0.0)
        out["buy missed"][ended] = 100.0 * (closing - mids["buy"])[ended]
    out["buy unfilled"] = ((out["buy ordered"] > 0.0) & (out["buy filled"] == 0.0)).astype(np.float64)
    for side in SIDES:
        some = out[f"{side} filled"] > 0.0
        out[f"{side} cost"] = np.where(some, out[f"{side} paid"] / np.where(some, out[f"{side} filled"], 1.0), 0.0)
    return out


def mids_at(game: Game, rows: Integers, right: Floats, strike: Floats, at_close: bool) -> Floats:
    """Model's mids ``(N,)`` of some contracts at the opening or the close of bars."""
    out = np.empty(len(rows))
    first = columns.CLOSE if at_close else columns.OPEN
    _mids(game.market, rows, right, strike, first, out)
    return out


@compiled
def _mids(market: Floats, rows: Integers, right: Floats, strike: Floats, first: int, out: Floats) -> None:
    for i in range(rows.shape[0]):
        m = market[rows[i]]  # price, deviation, slope and curvature stand side by side
        out[i] = smile_price(right[i], m[first], strike[i], m[first + 1], m[first + 2], m[first + 3])


def _joined(parts: list[dict[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _row(sums: dict[str, Floats], side: str, draws: int) -> dict[str, Any]:
    """Sum up one side: figures per contract, as ratios of sums over sessions."""

    def of(name: str, over: str) -> tuple[float, float, float]:
        pair = np.stack([sums[f"{side} {name}"], sums[f"{side} {over}"]], axis=1)
        return session_interval(pair, ratio, draws)

    result: dict[str, Any] = {
        "orders": int((sums[f"{side} ordered"] > 0.0).sum()), "fill rate": of("filled", "ordered"),
        "cost": of("paid", "filled"), "at the fill": of("at fill", "filled"), "selection": of("selection", "filled"),
        "forced contracts": float(sums[f"{side} forced"].sum()),
    }  # fmt: skip
    if side == "buy" and sums["buy unfilled"].any():
        result["missed"] = of("missed", "unfilled")
    return result


def _first_minute(limit: dict[str, Floats], draws: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, rest in (("even", 0.0), ("odd", 1.0)):
        chosen = (limit["buy ordered"] > 0.0) & (limit["buy ticks"] % 2.0 == rest)
        if chosen.sum() > 1:
            pair = np.stack([limit["buy first"], limit["buy ordered"]], axis=1)[chosen]
            result[name] = {"orders": int(chosen.sum()), "filled": session_interval(pair, ratio, draws)}
    return result
