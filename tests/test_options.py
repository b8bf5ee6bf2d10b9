"""Contract rules of same-day options: cut-offs, orders, cash, settlement, the contract and the session calendar."""

from __future__ import annotations

import datetime as dt
import math
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from markets.errors import ConfigError, DataError, UnknownNameError
from markets.option_clocks import minutes_left_at_close
from markets.option_contract import SameDayOption
from markets.option_fills import FILL_LIMIT, FILL_MARKET, FILL_MID_OPTIMISTIC
from markets.option_prices import CALL, PUT, intrinsic
from markets.options import (
    ORDER_OK,
    ORDER_STATUS,
    REJECT_CLOSED,
    REJECT_CUT_OFF,
    REJECT_EXIT,
    REJECT_FLAT,
    REJECT_HELD,
    REJECT_NO_QUOTE,
    REJECT_NOT_FINITE,
    REJECT_PREMIUM,
    REJECT_QUANTITY,
    buying_cost,
    can_settle_physically,
    cash_settlement,
    check_order,
    is_exercised,
    is_forced_out,
    may_open,
    nearest_strike,
    physical_settlement,
    sale_proceeds,
    whole_contracts,
)
from markets.session_calendar import holidays, place_in_session, session_bars, session_open

SEED = 9
SPY = SameDayOption()


# --- cash -------------------------------------------------------------------------------------------------------------


def test_o21_a_round_trip_with_fees() -> None:
    """E20. O-21."""
    cost, proceeds = buying_cost(2.0, 1.82, 100.0, 0.06), sale_proceeds(2.0, 2.40, 100.0, 0.06)
    assert cost == pytest.approx(364.12, rel=1e-12)
    assert proceeds == pytest.approx(479.88, rel=1e-12)
    assert proceeds - cost == pytest.approx(115.76, rel=1e-12)
    assert sale_proceeds(2.0, 0.0, 100.0, 0.06) == 0.0  # given away: nothing is charged for it


def test_the_quantity_is_what_the_share_of_cash_buys() -> None:
    assert whole_contracts(100_000.0, 0.02, 1.81, 100.0, 0.06) == 11.0
    assert whole_contracts(100_000.0, 0.02, 20.0, 100.0, 0.06) == 1.0
    assert whole_contracts(100_000.0, 0.02, 20.01, 100.0, 0.06) == 0.0
    assert whole_contracts(200.0, 1.0, 2.0, 100.0, 0.0) == 1.0
    assert whole_contracts(200.0, 1.0, 2.0, 100.0, 0.06) == 0.0  # the fee is paid too
    assert whole_contracts(-5.0, 1.0, 2.0, 100.0, 0.06) == 0.0
    assert whole_contracts(100.0, 1.0, 0.0, 100.0, 0.06) == 0.0


def test_the_nearest_strike() -> None:
    assert [nearest_strike(spot, 1.0, 0.0) for spot in (600.49, 600.5, 601.0)] == [600.0, 601.0, 601.0]
    assert nearest_strike(600.2, 0.5, 0.0) == 600.0
    assert nearest_strike(600.3, 0.5, -2.0) == 599.5


# --- settlement -------------------------------------------------------------------------------------------------------


def test_o20_a_cent_in_the_money_is_exercised_and_at_the_strike_nothing_is() -> None:
    """E20, E31. O-20."""
    assert is_exercised(CALL, 600.01, 600.0, SPY.exercise_threshold)
    assert cash_settlement(CALL, 600.01, 600.0, 1.0, 100.0) == pytest.approx(1.0, rel=1e-8)
    assert not is_exercised(CALL, 600.0, 600.0, SPY.exercise_threshold)
    assert cash_settlement(CALL, 600.0, 600.0, 1.0, 100.0) == 0.0
    assert physical_settlement(CALL, 600.01, 600.0, 10.0, 100.0, 0.01) == (-600_000.0, 1_000.0)
    assert physical_settlement(CALL, 600.0, 600.0, 10.0, 100.0, 0.01) == (0.0, 0.0)
    assert physical_settlement(PUT, 599.99, 600.0, 2.0, 100.0, 0.01) == (120_000.0, -200.0)
    assert physical_settlement(PUT, 600.01, 600.0, 2.0, 100.0, 0.01) == (0.0, 0.0)


Settle = Callable[[float, float, float, float, float], float]


def broken_settlements(settle: Settle) -> set[str]:
    """What is wrong with a cash settlement (right, close, strike, quantity, multiplier) at random closes."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    broken = set()
    for _ in range(2_000):
        strike, quantity = float(rng.integers(590, 611)), float(rng.integers(1, 20))
        close = float(rng.integers(59_000, 61_001)) / 100.0
        call, put = settle(CALL, close, strike, quantity, 100.0), settle(PUT, close, strike, quantity, 100.0)
        if (call, put) != tuple(quantity * 100.0 * intrinsic(right, close, strike) for right in (CALL, PUT)):
            broken.add("intrinsic value")
        if abs(call - put - quantity * 100.0 * (close - strike)) > 1e-6:
            broken.add("parity")
        if min(call, put) < 0.0:
            broken.add("never negative")
        for right, cash in ((CALL, call), (PUT, put)):
            money, shares = physical_settlement(right, close, strike, quantity, 100.0, 0.01)
            if abs(money + shares * close - cash) > 1e-6:
                broken.add("physical is worth the same")
    return broken


def test_a_settlement_is_intrinsic_value_to_the_cent() -> None:
    """E31."""
    assert broken_settlements(cash_settlement) == set()


@pytest.mark.parametrize(
    ("settle", "caught"),
    [
        (lambda right, close, strike, n, m: n * m * right * (close - strike), "never negative"),
        (lambda right, close, strike, n, m: n * m * max(0.0, close - strike), "parity"),
        (lambda right, close, strike, n, m: n * m * max(0.0, right * (close - strike) - 0.01),
         "physical is worth the same"),
    ],
)  # fmt: skip
def test_a_settlement_that_is_off_is_caught(settle: Settle, caught: str) -> None:
    """Twin of E31."""
    assert {caught, "intrinsic value"} <= broken_settlements(settle)


def test_who_cannot_pay_or_deliver_does_not_settle_physically() -> None:
    assert can_settle_physically(CALL, 600.0, 10.0, 100.0, 600_000.0, 0.0)
    assert not can_settle_physically(CALL, 600.0, 10.0, 100.0, 599_999.0, 0.0)
    assert can_settle_physically(PUT, 600.0, 2.0, 100.0, 0.0, 200.0)
    assert not can_settle_physically(PUT, 600.0, 2.0, 100.0, 1e9, 199.0)


# --- cut-offs and the session's clock ---------------------------------------------------------------------------------

REGULAR, AUTUMN, SPRING = dt.date(2025, 2, 4), dt.date(2024, 11, 4), dt.date(2025, 3, 10)  # two: clocks just changed
EARLY = dt.date(2024, 11, 29)
DAYS = {REGULAR: "14:30", EARLY: "14:30", AUTUMN: "14:30", dt.date(2024, 11, 1): "13:30", SPRING: "13:30",
        dt.date(2025, 3, 7): "14:30", dt.date(2025, 3, 31): "13:30"}  # fmt: skip

# New York time on a full day: may open, may close, forced out.
TABLE = {
    "15:29": (True, True, False), "15:30": (True, True, False), "15:31": (False, True, False),
    "15:44": (False, True, False), "15:45": (False, False, True), "15:59": (False, False, True),
    "16:00": (False, False, True),
}  # fmt: skip

Place = Callable[..., Any]


def outcomes(day: dt.date, clock: str, place: Place, forced_exit: float) -> tuple[bool, bool, bool]:
    """What an account may do at a New York time of a day, at the close of the bar that ends there."""
    hours, minutes = map(int, clock.split(":"))
    opened = np.datetime64(dt.datetime(day.year, day.month, day.day, hours, minutes)) - np.timedelta64(1, "m")
    utc = opened + (session_open(day) - np.datetime64(dt.datetime(day.year, day.month, day.day, 9, 30)))
    _, bar, length = (values[0] for values in place(np.array([utc])))
    left = minutes_left_at_close(float(bar), float(length))
    rules = (left, SPY.entry_cut_off, forced_exit, 100.0, 0.06)
    opening = check_order(1.0, 1.0, 0.0, 1e5, *rules)
    closing = check_order(-1.0, 1.0, 1.0, 1e5, *rules)
    assert (opening == ORDER_OK) <= may_open(left, SPY.entry_cut_off)
    return opening == ORDER_OK, closing == ORDER_OK, is_forced_out(left, forced_exit)


def violations(place: Place) -> list[tuple[dt.date, str]]:
    found = []
    for day in DAYS:
        for clock, expected in TABLE.items():
            shift = 3 if session_bars(day) == 210 else 0
            moved = f"{int(clock[:2]) - shift}{clock[2:]}"
            if outcomes(day, moved, place, SPY.forced_exit_minutes) != expected:
                found.append((day, moved))
    return found


def test_the_cut_offs_hold_on_full_days_early_closes_and_in_both_weeks_of_a_clock_change() -> None:
    """E60."""
    assert violations(place_in_session) == []


def in_winter_time(opened: Any) -> Any:
    """A calendar that takes New York for UTC - 5 all year: off by an hour in summer."""
    days, _, length = place_in_session(opened)
    return days, (opened - days) // np.timedelta64(1, "m") - 870, length


def without_early_closes(opened: Any) -> Any:
    days, bar, length = place_in_session(opened)
    return days, bar, np.where(length == 210, 390, length)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [(in_winter_time, {SPRING, dt.date(2024, 11, 1), dt.date(2025, 3, 31)}), (without_early_closes, {EARLY})],
)
def test_a_calendar_without_the_change_or_the_early_close_is_caught(place: Place, wrong: set[dt.date]) -> None:
    """Twin of E60."""
    assert {day for day, _ in violations(place)} == wrong


def test_without_a_forced_exit_a_position_may_be_closed_until_the_end() -> None:
    """E60. With forced_exit None."""
    none = replace(SPY, forced_exit=None).forced_exit_minutes
    assert outcomes(REGULAR, "15:45", place_in_session, none) == (False, True, False)
    assert outcomes(REGULAR, "15:59", place_in_session, none) == (False, True, False)
    assert outcomes(REGULAR, "16:00", place_in_session, none) == (False, False, False)


def test_the_opening_time_in_utc_follows_the_clock_of_new_york() -> None:
    for day, clock in DAYS.items():
        assert str(np.datetime_as_string(session_open(day), "m")) == f"{day}T{clock}"


# --- order checks -----------------------------------------------------------------------------------------------------


def order(**changes: Any) -> int:
    given = {
        "change": 1.0, "price": 1.5, "held": 0.0, "cash": 1e4, "minutes_left": 200.0, "entry_cut_off": 30.0,
        "forced_exit": 15.0, "multiplier": 100.0, "fee": 0.06,
    } | changes  # fmt: skip
    return check_order(*given.values())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, ORDER_OK), ({"change": -1.0, "held": 2.0}, ORDER_OK), ({"change": -2.0, "held": 2.0}, ORDER_OK),
        ({"change": math.nan}, REJECT_NOT_FINITE), ({"price": math.inf}, REJECT_NOT_FINITE),
        ({"minutes_left": 0.0}, REJECT_CLOSED), ({"change": -1.0, "held": 1.0, "minutes_left": 0.0}, REJECT_CLOSED),
        ({"minutes_left": 29.0}, REJECT_CUT_OFF), ({"minutes_left": 30.0}, ORDER_OK),
        ({"change": -1.0, "held": 1.0, "minutes_left": 15.0}, REJECT_EXIT), ({"held": 1.0}, REJECT_HELD),
        ({"change": -1.0}, REJECT_FLAT), ({"price": 0.0}, REJECT_NO_QUOTE), ({"change": 0.0}, REJECT_QUANTITY),
        ({"change": 1.5}, REJECT_QUANTITY), ({"change": -3.0, "held": 2.0}, REJECT_QUANTITY),
        ({"cash": 150.05}, REJECT_PREMIUM), ({"cash": 150.06}, ORDER_OK),
    ],
)  # fmt: skip
def test_the_first_check_that_fails_gives_the_code(changes: dict[str, float], code: int) -> None:
    assert order(**changes) == code
    assert code in ORDER_STATUS


# --- contract ---------------------------------------------------------------------------------------------------------


def test_the_default_contract() -> None:
    assert (SPY.multiplier, SPY.tick, SPY.strike_spacing, SPY.fee) == (100.0, 0.01, 1.0, 0.06)
    assert (SPY.entry_cut_off, SPY.forced_exit, SPY.settlement, SPY.fill) == (30.0, 15.0, "cash_equivalent", "limit")
    assert (SPY.fill_rate, SPY.fill_decay, SPY.order_life) == (0.9, 1.2, 3.0)
    assert replace(SPY, forced_exit=None).forced_exit_minutes == -1.0
    assert SPY.forced_exit_minutes == 15.0
    rows = SPY.spread_rows
    assert (rows.dtype, rows.flags.c_contiguous, rows.shape) == (np.float64, True, (5, 2))
    with pytest.raises(FrozenInstanceError):
        SPY.fee = 0.0  # type: ignore[misc]


def test_the_optimistic_fill_is_flagged() -> None:
    modes = {name: replace(SPY, fill=name) for name in ("limit", "market", "mid_optimistic")}
    assert [contract.is_optimistic for contract in modes.values()] == [False, False, True]
    numbers = [contract.fill_mode for contract in modes.values()]
    assert numbers == [FILL_LIMIT, FILL_MARKET, FILL_MID_OPTIMISTIC]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fee": -0.1}, r"fee=-0\.1 .*nearest is 0"), ({"fee": math.nan}, "fee=nan"), ({"fee": "0.06"}, "fee='0.06'"),
        ({"tick": 0.0}, r"tick=0\.0 .*0\.0001"), ({"multiplier": True}, "multiplier=True"),
        ({"forced_exit": 500.0}, r"forced_exit=500\.0 .*None.*nearest is 208"),
        ({"forced_exit": 31.0}, r"forced_exit=31\.0 .*at most 30"), ({"entry_cut_off": 10.0}, "forced_exit"),
        ({"entry_cut_off": 30.5}, r"entry_cut_off=30\.5.*31"), ({"order_life": 0.0}, "order_life=.*nearest is 1"),
        ({"smile_slope": (0.1,)}, "smile_slope.*10:00"),
        ({"smile_curvature": (0.1, 3.0)}, "smile_curvature.*nearest is 1"),
        ({"selection_lowest": 4.0}, "selection_lowest=.*selection_highest"), ({"spread_table": ()}, "spread_table"),
        ({"spread_table": ((1.0, 2.0), (0.5, 3.0))}, "row 2"), ({"spread_table": ((1.0, 2.0), (2.0, 1.0))}, "row 2"),
        ({"spread_table": ((0.0, 2.0),)}, "row 1"), ({"variance_premium": -1.0}, r"variance_premium=.*-0\.9"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_rejected_by_name_with_the_nearest_choice(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SPY, **changes)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"settlement 'cash'.*physical"):
        replace(SPY, settlement="cash")
    with pytest.raises(UnknownNameError, match="Did you mean 'mid_optimistic'"):
        replace(SPY, fill="optimistic")


# --- calendar ---------------------------------------------------------------------------------------------------------


def test_holidays_and_early_closes() -> None:
    closed = ("2024-01-01", "2024-01-15", "2024-02-19", "2024-03-29", "2024-05-27", "2024-06-19", "2024-07-04",
              "2024-09-02", "2024-11-28", "2024-12-25")  # fmt: skip
    assert sorted(map(str, holidays(2024))) == sorted(closed)
    early = [day for n in range(366) if session_bars(day := dt.date(2024, 1, 1) + dt.timedelta(days=n)) == 210]
    assert early == [dt.date(2024, 7, 3), EARLY, dt.date(2024, 12, 24)]
    assert session_bars(dt.date(2025, 1, 9)) == 0  # a day of mourning
    assert session_bars(dt.date(2021, 12, 31)) == 390  # a New Year's Day on a Saturday is not kept
    assert session_bars(dt.date(2026, 7, 3)) == 0  # the 4th is a Saturday
    with pytest.raises(DataError, match="2013"):
        session_bars(dt.date(2012, 7, 3))


def test_the_calendar_agrees_with_an_independent_one() -> None:
    calendars = pytest.importorskip("exchange_calendars", reason="an oracle of the extra 'live', not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        schedule = calendars.get_calendar("XNYS", start="2013-01-01", end="2027-11-20").schedule
    minutes = ((schedule.close - schedule.open).dt.total_seconds() / 60.0).astype(int)
    theirs = dict(zip(schedule.index.date, minutes.tolist(), strict=True))
    days = [dt.date(2013, 1, 1) + dt.timedelta(days=n) for n in range(5_436)]
    assert {day: session_bars(day) for day in days if session_bars(day)} == theirs


def test_bars_outside_of_the_session_have_no_place() -> None:
    times = session_open(EARLY) + np.array([-1, 0, 209, 210, 1_440], "timedelta64[m]")
    days, bars, lengths = place_in_session(times)
    assert bars.tolist() == [-1, 0, 209, -1, -1]
    assert lengths.tolist() == [210, 210, 210, 210, 0]
    assert str(days[-1]) == "2024-11-30"


# --- the same bits --------------------------------------------------------------------------------------------------

BITS = """
import hashlib
import numpy as np
from markets import option_clocks, option_fills, option_prices, option_quotes, options
from markets.option_contract import SameDayOption

spy = SameDayOption(smile_slope=(-0.3, -0.2), smile_curvature=(0.15, 0.1))
rows, (slopes, curvatures) = spy.spread_rows, spy.convex_smile
model = (spy.fill_rate, spy.fill_decay, spy.selection, spy.selection_lowest, spy.selection_highest)
shares = option_clocks.remaining_share(390).tolist()
digest = hashlib.sha256(np.float64([*slopes, *curvatures]).tobytes())
rng = np.random.default_rng(3)
for _ in range(400):
    minutes = float(rng.integers(0, 390))
    right = float(rng.choice([-1.0, 1.0]))
    spot, volatility = float(rng.uniform(400, 700)), float(rng.uniform(0.05, 0.9))
    left = shares[390 - int(minutes)]
    sd = option_clocks.deviation_on_variance_clock(volatility, left, 390.0)
    strike = options.nearest_strike(spot, 1.0, float(rng.integers(-9, 10)))
    slope = option_quotes.smile_at(minutes, 390.0, *slopes)
    mid = option_quotes.smile_price(right, spot, strike, sd, slope, curvatures[0])
    factor = option_quotes.time_factor(minutes, 390.0, 1.5, 1.25, 3.0)
    ticks = option_quotes.spread_in_ticks(mid, factor, volatility, 0.2, rows)
    bid, ask = option_quotes.quotes_around(mid, ticks, 0.01)
    limit = option_fills.peg(right, bid, ask, 0.01)
    move, uniform = float(rng.normal()), float(rng.random())
    digest.update(np.float64([
        *option_prices.greeks_on_trading_clock(right, spot, strike, minutes, volatility, 0.04, 0.01),
        *option_prices.greeks_on_variance_clock(right, spot, strike, left, 0.9 * left, 390.0, volatility),
        *option_prices.observed_greeks_by_deviation(right, spot, strike, sd),
        option_prices.implied_volatility_on_trading_clock(right, spot, strike, minutes, mid, 0.04, 0.01),
        mid, ticks, bid, ask, limit,
        option_fills.limit_fill_probability(right, limit, bid, ask, move, 1.0, *model),
        *option_fills.work_limit_order(
            right, 150.0, limit, 1.0, 1.0, bid, ask, move, uniform, 100.0, 3.0, 0.01, *model
        ),
        options.whole_contracts(1e5, 0.02, ask, 100.0, 0.06),
        options.check_order(right, ask, 0.0, 1e4, minutes, 30.0, 15.0, 100.0, 0.06),
        *options.physical_settlement(right, spot, strike, 3.0, 100.0, 0.01),
    ]).tobytes())
print(digest.hexdigest(), len(getattr(options.check_order, "signatures", ())))
"""


def test_compiled_and_interpreted_rules_give_the_same_bits(run_python: Callable[..., str]) -> None:
    machine, plain = (run_python(BITS, NUMBA_DISABLE_JIT=setting).split() for setting in ("0", "1"))
    assert machine[0] == plain[0]
    assert (machine[1], plain[1]) == ("1", "0")  # one specialisation of floats, and none
    changed = run_python(BITS.replace("0.15, 0.1)", "0.15, 0.1000001)"), NUMBA_DISABLE_JIT="1").split()
    assert changed[0] != plain[0]  # the digest sees a change
