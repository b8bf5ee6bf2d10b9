"""Fills of option orders: intensity, adverse selection, the life of a pegged limit order. Each property has a twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from markets.option_contract import SameDayOption
from markets.option_fills import (
    CANCELLED,
    FILLED,
    PARTLY_FILLED,
    REPEGGED,
    WORKING,
    fill_intensity,
    fill_probability,
    is_crossing,
    limit_fill_probability,
    peg,
    selection_factor,
    take_mid,
    take_quote,
    work_limit_order,
)
from markets.options import buying_cost, sale_proceeds

SEED = 31
SPY = SameDayOption()
MODEL = (SPY.fill_rate, SPY.fill_decay, SPY.selection, SPY.selection_lowest, SPY.selection_highest)
BUY, SELL = 1.0, -1.0


def test_fill_probabilities_of_the_worked_example() -> None:
    """E20. O-22."""
    for distance, probability in ((0.0, 0.5934303403), (0.5, 0.3897767911), (1.0, 0.2374405381)):
        intensity = fill_intensity(distance * 0.02, 0.02, SPY.fill_rate, SPY.fill_decay)
        assert fill_probability(intensity, 1.0) == pytest.approx(probability, abs=5e-11)


# --- properties of the probability ------------------------------------------------------------------------------------

Probability = Callable[..., float]


def broken_properties(probability: Probability) -> set[str]:
    """Which properties of a fill probability (side, limit, bid, ask, move, minutes) random quotes break."""
    rng = np.random.default_rng(SEED)
    broken = set()
    for _ in range(1_000):
        side = float(rng.choice([BUY, SELL]))
        bid = float(rng.integers(1, 400)) / 100.0
        ask = bid + float(rng.integers(2, 20)) / 100.0
        move, mid = float(rng.normal()), 0.5 * (bid + ask)
        near, far = (mid - side * share * (ask - bid) for share in sorted(rng.uniform(0.0, 2.0, 2).tolist()))
        values = [probability(side, limit, bid, ask, move, 1.0) for limit in (near, far)]
        if not all(0.0 <= value <= 1.0 for value in values):
            broken.add("a probability")
        if values[1] > values[0]:
            broken.add("falls with distance")
        if probability(side, far, bid, ask, move, 2.0) < values[1]:
            broken.add("rises with time")
        opposite = ask if side > 0.0 else bid
        if any(probability(side, opposite + side * cents, bid, ask, move, 1.0) != 1.0 for cents in (0.0, 0.03)):
            broken.add("a crossing order fills")
        against, along = (probability(side, far, bid, ask, -side * z, 1.0) for z in (1.0, -1.0))
        if not against > along:
            broken.add("adverse selection")
    return broken


def plain(*order: float) -> float:
    return limit_fill_probability(*order, *MODEL)


def test_the_fill_probability_falls_with_distance_rises_with_time_and_is_one_when_crossing() -> None:
    print(f"seed {SEED}")
    assert broken_properties(plain) == set()


def no_selection(side: float, limit: float, bid: float, ask: float, move: float, minutes: float) -> float:
    return limit_fill_probability(side, limit, bid, ask, 0.0, minutes, *MODEL)


def no_clock(side: float, limit: float, bid: float, ask: float, move: float, minutes: float) -> float:
    return limit_fill_probability(side, limit, bid, ask, move, 1.0 / minutes, *MODEL)


def no_crossing(side: float, limit: float, bid: float, ask: float, move: float, minutes: float) -> float:
    return min(plain(side, limit, bid, ask, move, minutes), 0.99)


def nearer_is_worse(side: float, limit: float, bid: float, ask: float, move: float, minutes: float) -> float:
    return plain(side, bid + ask - limit, bid, ask, move, minutes)


@pytest.mark.parametrize(
    ("probability", "caught"),
    [
        (no_selection, "adverse selection"), (no_clock, "rises with time"), (no_crossing, "a crossing order fills"),
        (nearer_is_worse, "falls with distance"),
    ],
)  # fmt: skip
def test_a_probability_that_is_off_is_caught(probability: Probability, caught: str) -> None:
    assert caught in broken_properties(probability)


def mean_move_after_fills(probability: Probability, side: float) -> tuple[float, float]:
    """Mean standardised move of the minutes in which an order at the mid filled, and its standard error."""
    rng = np.random.default_rng(SEED)
    moves, uniforms = rng.normal(size=20_000).tolist(), rng.random(20_000).tolist()
    filled = [z for z, u in zip(moves, uniforms, strict=True) if u < probability(side, 1.0, 0.98, 1.02, z, 1.0)]
    return float(np.mean(filled)), float(np.std(filled) / math.sqrt(len(filled)))


@pytest.mark.parametrize("side", [BUY, SELL])
def test_who_is_filled_passively_sees_the_mid_move_against_him(side: float) -> None:
    print(f"seed {SEED}")
    mean, error = mean_move_after_fills(plain, side)
    assert side * mean < -10.0 * error
    mean, error = mean_move_after_fills(no_selection, side)
    assert abs(mean) < 4.0 * error


def test_selection_is_capped() -> None:
    caps = (2.0, 0.2, 3.0)
    assert selection_factor(BUY, 0.0, *caps) == 1.0
    assert selection_factor(BUY, 0.25, *caps) == pytest.approx(math.exp(-0.5))
    assert (selection_factor(BUY, 50.0, *caps), selection_factor(BUY, -1e300, *caps)) == (0.2, 3.0)
    assert (selection_factor(SELL, 50.0, *caps), selection_factor(SELL, -1e300, *caps)) == (3.0, 0.2)


# --- the peg ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bid", "ask", "buy", "sell"),
    [(1.00, 1.02, 1.01, 1.01), (1.00, 1.01, 1.00, 1.01), (0.57, 0.60, 0.58, 0.59), (0.0, 0.01, 0.01, 0.01)],
)
def test_the_peg_rounds_toward_the_own_side(bid: float, ask: float, buy: float, sell: float) -> None:
    assert (peg(BUY, bid, ask, 0.01), peg(SELL, bid, ask, 0.01)) == (buy, sell)


def test_a_locked_quote_fills_what_crosses_and_nothing_else() -> None:
    assert plain(BUY, 1.0, 1.0, 1.0, 0.0, 1.0) == 1.0
    assert plain(BUY, 0.99, 1.0, 1.0, 0.0, 1.0) == 0.0


def test_nobody_buys_at_a_bid_of_zero() -> None:
    assert not is_crossing(SELL, 0.0, 0.0, 0.01)
    assert take_quote(SELL, 3.0, 0.0, 0.01, 100.0) == (0.0, 0.0)
    assert take_quote(BUY, 3.0, 0.0, 0.01, 100.0) == (3.0, 0.01)


def test_market_orders_pay_the_opposite_quote_up_to_what_is_offered() -> None:
    assert take_quote(BUY, 3.0, 1.0, 1.02, 100.0) == (3.0, 1.02)
    assert take_quote(SELL, 3.0, 1.0, 1.02, 100.0) == (3.0, 1.0)
    assert take_quote(BUY, 300.0, 1.0, 1.02, 100.0) == (100.0, 1.02)
    assert take_mid(300.0, 1.0, 1.02) == (300.0, 1.01)


# --- the life of an order ---------------------------------------------------------------------------------------------


def minute(order: tuple[float, ...], uniform: float, **changes: Any) -> tuple[int, float, float, tuple[float, ...]]:
    """Work an order (side, remaining, limit, age, repegs) a minute: status, filled, price, the order after it."""
    given = {"bid": 1.0, "ask": 1.04, "move": 0.0, "offered": SPY.offered, "rules": work_limit_order} | changes
    status, filled, price, *rest = given["rules"](
        *order, given["bid"], given["ask"], given["move"], uniform, given["offered"], SPY.order_life, SPY.tick, *MODEL
    )
    return status, filled, price, (order[0], *rest)


def test_an_order_that_never_fills_is_pegged_again_and_then_expires() -> None:
    """E61. It never fills."""
    order: tuple[float, ...] = (BUY, 5.0, 1.02, 0.0, 1.0)
    seen = []
    for k in range(6):
        status, filled, price, order = minute(order, 0.999, bid=1.0 + 0.1 * k, ask=1.04 + 0.1 * k)
        seen.append(status)
        assert (filled, price) == (0.0, 0.0)
    assert seen == [WORKING, WORKING, REPEGGED, WORKING, WORKING, CANCELLED]
    assert order[1] == 0.0
    _, _, _, order = minute((BUY, 5.0, 1.02, 2.0, 1.0), 0.999, bid=1.2, ask=1.24)
    assert order == (BUY, 5.0, 1.22, 0.0, 0.0)  # at the mid of the quote that was current


def test_an_order_fills_partially_and_its_rest_expires() -> None:
    """E61. It fills partially, and the rest expires."""
    status, filled, price, order = minute((BUY, 250.0, 1.02, 0.0, 0.0), 0.0)
    assert (status, filled, price, order[1]) == (PARTLY_FILLED, 100.0, 1.02, 150.0)
    status, filled, price, order = minute(order, 0.999)
    assert (status, filled, order[1]) == (WORKING, 0.0, 150.0)
    status, filled, price, order = minute(order, 0.0)
    assert (status, filled, price, order[1]) == (CANCELLED, 100.0, 1.02, 0.0)


@pytest.mark.parametrize(("side", "limit", "price"), [(BUY, 1.04, 1.04), (BUY, 2.0, 1.04), (SELL, 1.0, 1.0)])
def test_a_crossing_order_fills_at_once_at_the_opposite_quote(side: float, limit: float, price: float) -> None:
    assert minute((side, 5.0, limit, 0.0, 0.0), 0.999999) == (FILLED, 5.0, price, (side, 0.0, limit, 0.0, 0.0))


def test_the_uniform_number_decides() -> None:
    probability = plain(BUY, 1.02, 1.0, 1.04, 0.0, 1.0)
    assert minute((BUY, 5.0, 1.02, 0.0, 0.0), probability - 1e-12)[0] == FILLED
    assert minute((BUY, 5.0, 1.02, 0.0, 0.0), probability)[0] == WORKING


def ghosts(rules: Callable[..., tuple[float, ...]], orders: int) -> list[str]:
    """Keep two books over random buys and sales: contracts and cash that do not agree, to the contract and the cent."""
    rng = np.random.default_rng(SEED)
    cash, held, tally, shares, wrong = 100_000.0, 0.0, 0, 0, []
    ended = set()
    for number in range(orders):
        side = BUY if held == 0.0 else SELL
        asked = float(rng.integers(1, 180)) if side > 0.0 else held
        order: tuple[float, ...] = (side, asked, 1.02, 0.0, float(rng.integers(0, 2)))
        total = 0.0
        for _ in range(7):  # a life, and one more after the order was pegged again, is 6
            if order[1] == 0.0:
                break
            bid = float(rng.integers(90, 110)) / 100.0
            status, filled, price, order = minute(
                order, float(rng.random()), bid=bid, ask=bid + 0.04, move=float(rng.normal()), rules=rules
            )
            ended.add(status)
            total += filled
            cash += (
                sale_proceeds(filled, price, 100.0, 0.06) if side < 0.0 else -buying_cost(filled, price, 100.0, 0.06)
            )
            tally -= round(side * 10_000.0 * price) * round(filled) + 6 * round(filled)  # in cents
            held += side * filled
            shares += round(side * filled)
        if not 0.0 <= total <= asked or order[1] != 0.0:
            wrong.append(f"order {number}: {total} of {asked} contracts, {order[1]} left")
        if held < 0.0 or held != shares or abs(100.0 * (cash - 100_000.0) - tally) > 0.01:
            return [*wrong, f"order {number}: books differ, {held} and {shares}, {cash} and {tally}"]
    assert wrong or ended == {WORKING, FILLED, PARTLY_FILLED, REPEGGED, CANCELLED}
    return wrong


def test_no_contract_and_no_cent_appears_or_vanishes() -> None:
    """E61. Over many orders."""
    print(f"seed {SEED}")
    assert ghosts(work_limit_order, 2_000) == []


def fills_more_than_is_left(side: float, remaining: float, *rest: float) -> tuple[float, ...]:
    status, filled, price, *order = work_limit_order(side, remaining, *rest)
    return (status, filled + (1.0 if filled > 0.0 else 0.0), price, *order)


def never_ends(side: float, remaining: float, *rest: float) -> tuple[float, ...]:
    status, filled, price, left, *order = work_limit_order(side, remaining, *rest)
    return (status, filled, price, remaining - filled if status == CANCELLED else left, *order)


@pytest.mark.parametrize("rules", [fills_more_than_is_left, never_ends])
def test_ghost_contracts_are_found(rules: Callable[..., tuple[float, ...]]) -> None:
    """Twin of E61."""
    assert ghosts(rules, 300) != []
