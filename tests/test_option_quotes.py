"""Smile, spread and quotes of same-day options: calibration, convexity, the tick grid. Each property has a twin."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from markets.option_contract import SameDayOption
from markets.option_prices import CALL, PUT, price_by_deviation
from markets.option_quotes import (
    AFTERNOON,
    CONVEX_UP_TO,
    MORNING,
    at_the_money_deviation,
    base_spread,
    convex_share,
    is_convex,
    quotes_around,
    smile_at,
    smile_bases,
    smile_deviation,
    smile_factor,
    smile_price,
    spread_in_ticks,
    time_factor,
)

SEED = 5
SPY = SameDayOption()
TABLE = SPY.spread_rows

# Median implied volatility over the at-the-money one by z, SPXW same-day options 2023-11 to 2025-06.
Z = (-2.5, -1.75, -1.25, -0.75, -0.35, 0.0, 0.35, 0.75, 1.25, 1.75, 2.5)
MEASURED = (
    (1.31, 1.21, 1.14, 1.07, 1.03, 1.0, 0.97, 0.95, 0.95, 0.99, 1.09),  # 10:00
    (1.42, 1.24, 1.14, 1.07, 1.03, 1.0, 0.98, 0.98, 1.00, 1.06, 1.20),  # 14:00
)


# --- smile ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hour", "largest"), [(0, 0.034), (1, 0.020)])
def test_the_default_smile_is_the_least_squares_fit_of_the_measured_one(hour: int, largest: float) -> None:
    bases = np.array([smile_bases(z) for z in Z])
    measured = np.array(MEASURED[hour])
    slope, curvature = np.linalg.lstsq(bases, measured - 1.0, rcond=None)[0]
    assert SPY.smile_slope[hour] == pytest.approx(slope, abs=5e-5)
    assert SPY.smile_curvature[hour] == pytest.approx(curvature, abs=5e-5)
    found = [smile_factor(z, SPY.smile_slope[hour], SPY.smile_curvature[hour]) for z in Z]
    assert np.abs(np.array(found) - measured).max() < largest


def test_the_smile_goes_from_the_morning_to_the_afternoon() -> None:
    for bars in (390.0, 210.0):
        assert smile_at(bars, bars, -0.06, -0.04) == -0.06
        assert smile_at(MORNING * bars, bars, -0.06, -0.04) == pytest.approx(-0.06)
        assert smile_at(0.5 * (MORNING + AFTERNOON) * bars, bars, -0.06, -0.04) == pytest.approx(-0.05)
        assert smile_at(AFTERNOON * bars, bars, -0.06, -0.04) == pytest.approx(-0.04)
        assert smile_at(0.0, bars, -0.06, -0.04) == -0.04


def test_the_shape_of_the_smile() -> None:
    assert smile_factor(0.0, -0.1, 0.04) == 1.0
    assert smile_factor(-1.5, -0.1, 0.04) == pytest.approx(1.0 + 0.15 + 0.09)  # the parabola inside
    assert smile_factor(4.0, -0.1, 0.04) == smile_factor(400.0, -0.1, 0.04)  # flat outside
    assert smile_factor(3.0, -2.0, 0.0) == 0.3  # the floor
    for edge in (-2.0, 2.0, -4.0, 4.0):  # no kink where the wing begins and ends
        left, right = (smile_factor(edge + step, -0.1, 0.04) - smile_factor(edge, -0.1, 0.04) for step in (-1e-6, 1e-6))
        assert right == pytest.approx(-left, abs=1e-11)
    assert smile_deviation(600.0, 610.0, 0.0, -0.1, 0.04) == 0.0
    assert smile_deviation(600.0, 600.0, 0.01, -0.1, 0.04) == 0.01
    assert smile_price(CALL, 600.0, 590.0, 0.0, -0.1, 0.04) == 10.0
    assert at_the_money_deviation(0.01, 0.0) == 0.01
    assert at_the_money_deviation(0.01, 0.21) == pytest.approx(0.011)


Factor = Callable[[float, float, float], float]


def cheapest_butterfly(slope: float, curvature: float, sd: float, factor: Factor = smile_factor) -> float:
    """Lowest price of a butterfly a twentieth of a deviation wide, over strikes and rights, per unit of its width."""
    strikes = np.exp(np.arange(-7.0, 7.0, 0.05) * sd) * 600.0
    lowest = math.inf
    for right in (CALL, PUT):
        prices = np.array(
            [
                price_by_deviation(right, 600.0, k, sd * factor(math.log(k / 600.0) / sd, slope, curvature))
                for k in strikes
            ]
        )
        lowest = min(lowest, float(np.diff(np.diff(prices) / np.diff(strikes)).min()))
    return lowest


def random_smiles() -> list[tuple[float, float, float]]:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    rows = [
        (
            float(rng.normal(0.0, 0.3)),
            float(rng.normal(0.05, 0.15)),
            float(np.exp(rng.uniform(np.log(1e-4), np.log(0.25)))),
        )
        for _ in range(120)
    ]
    return [(-0.1, 0.04, 0.0075), (-0.0564, 0.0339, 0.0075), (-0.0494, 0.0523, 0.003), *rows]


def test_no_butterfly_costs_less_than_nothing_after_the_reduction() -> None:
    reduced = 0
    for slope, curvature, sd in random_smiles():
        share = convex_share(slope, curvature, sd)
        assert 0.0 <= share <= 1.0
        reduced += share < 1.0
        assert cheapest_butterfly(share * slope, share * curvature, sd) > -1e-12, (slope, curvature, sd, share)
    assert 20 < reduced < 110  # both kinds were met


def test_without_the_reduction_butterflies_are_negative() -> None:
    lowest = [cheapest_butterfly(slope, curvature, sd) for slope, curvature, sd in random_smiles()[3:40]]
    assert sum(value < -1e-6 for value in lowest) > 5


def test_a_parabola_that_is_cut_off_has_a_negative_butterfly() -> None:
    def cut_off(z: float, slope: float, curvature: float) -> float:
        z = min(max(z, -4.0), 4.0)
        return max(0.3, 1.0 + slope * z + curvature * z * z)

    assert cheapest_butterfly(-0.1, 0.04, 0.0075, cut_off) < -1e-4
    assert cheapest_butterfly(-0.1, 0.04, 0.0075) > -1e-12


def test_the_default_smile_needs_no_reduction_and_a_steep_one_gets_it() -> None:
    assert SPY.convex_smile == (SPY.smile_slope, SPY.smile_curvature)
    steep = SameDayOption(smile_slope=(-0.5, -0.4), smile_curvature=(0.3, 0.2))
    slopes, curvatures = steep.convex_smile
    share = slopes[0] / -0.5
    assert 0.0 < share < 0.5
    assert (*slopes, *curvatures) == pytest.approx((-0.5 * share, -0.4 * share, 0.3 * share, 0.2 * share))
    for minutes in range(0, 391, 30):
        now = (smile_at(minutes, 390.0, *slopes), smile_at(minutes, 390.0, *curvatures))
        assert is_convex(*now, CONVEX_UP_TO)
        assert cheapest_butterfly(*now, 0.005) > -1e-12
    assert not is_convex(-0.5, 0.3, CONVEX_UP_TO)


# --- spread and quotes ------------------------------------------------------------------------------------------------


def test_the_base_spread_follows_its_table() -> None:
    for premium, ticks in ((0.0, 1.0), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (2.5, 3.5), (7.5, 7.0), (15.0, 19.0),
                           (30.0, 38.0)):  # fmt: skip
        assert base_spread(premium, TABLE) == pytest.approx(ticks), premium
    grid = [base_spread(premium, TABLE) for premium in np.arange(0.0, 40.0, 0.01).tolist()]
    assert all(b >= a for a, b in itertools.pairwise(grid))
    assert max(b - a for a, b in itertools.pairwise(grid)) < 0.02  # no jump


@pytest.mark.parametrize("bars", [390.0, 210.0])
def test_the_factor_of_the_time_of_day_is_relative_to_the_session(bars: float) -> None:
    def at(elapsed: float) -> float:
        return time_factor(bars - elapsed, bars, 2.5, 1.5, 3.0)

    assert [at(m) for m in (0.0, 4.0, 5.0, 14.0, 15.0, bars - 45.0)] == [2.5, 2.5, 1.5, 1.5, 1.0, 1.0]
    assert at(bars - 22.5) == pytest.approx(2.0)
    assert at(bars) == 3.0
    assert at(bars + 1.0) == 3.0


def test_the_spread_is_a_whole_number_of_ticks_and_follows_time_and_volatility() -> None:
    assert spread_in_ticks(0.10, 1.0, 0.12, 0.12, TABLE) == 1.0
    assert spread_in_ticks(1.5, 3.0, 0.12, 0.12, TABLE) == 6.0
    assert spread_in_ticks(1.5, 1.0, 0.24, 0.12, TABLE) == 4.0
    assert spread_in_ticks(1.5, 1.0, 0.06, 0.12, TABLE) == 2.0  # a fall narrows nothing
    assert spread_in_ticks(1.5, 1.0, 0.12, 0.0, TABLE) == 2.0
    assert spread_in_ticks(0.0, 0.1, 0.12, 0.12, TABLE) == 1.0


Quotes = Callable[[float, float, float], tuple[float, float]]


def broken_quotes(quotes: Quotes) -> set[str]:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    broken = set()
    for _ in range(5_000):
        mid, ticks = float(np.exp(rng.uniform(np.log(1e-5), np.log(40.0)))), float(rng.integers(1, 12))
        tick = float(rng.choice([0.01, 0.05]))
        bid, ask = quotes(mid, ticks, tick)
        if not 0.0 <= bid <= mid + 1e-9 or not mid - 1e-9 <= ask or ask < tick:
            broken.add("around the mid")
        if any(abs(price / tick - round(price / tick)) > 1e-9 for price in (bid, ask)):
            broken.add("on the grid")
        if bid > 0.0 and round((ask - bid) / tick, 6) != ticks:
            broken.add("as far apart as the spread")
    return broken


def test_quotes_lie_on_the_grid_around_the_mid() -> None:
    assert broken_quotes(quotes_around) == set()
    assert quotes_around(1.005, 1.0, 0.01) == (1.0, 1.01)
    assert quotes_around(1.0, 2.0, 0.01) == (0.99, 1.01)
    assert quotes_around(0.0, 1.0, 0.01) == (0.0, 0.01)  # a bid of 0 is a real state
    assert quotes_around(0.004, 3.0, 0.01) == (0.0, 0.02)


@pytest.mark.parametrize(
    ("quotes", "caught"),
    [
        (lambda mid, ticks, tick: (mid - 0.5 * ticks * tick, mid + 0.5 * ticks * tick), "on the grid"),
        (lambda mid, ticks, tick: (round(mid / tick) * tick, (round(mid / tick) + ticks) * tick), "around the mid"),
        (lambda mid, ticks, tick: (quotes_around(mid, ticks, tick)[0], quotes_around(mid, ticks + 1, tick)[1]),
         "as far apart as the spread"),
    ],
)  # fmt: skip
def test_quotes_that_are_off_are_caught(quotes: Quotes, caught: str) -> None:
    assert caught in broken_quotes(quotes)
