"""Prices, sensitivities, implied volatility and clocks of same-day options: worked examples, properties, oracles.

Worked examples ``O-xx`` carry ten digits, asserted to 5e-10 relative. Every property has a twin with a planted fault.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from markets.errors import ConfigError
from markets.option_clocks import (
    calendar_from_trading_volatility,
    deviation_on_calendar_clock,
    deviation_on_trading_clock,
    deviation_on_variance_clock,
    minutes_left_at_close,
    remaining_share,
    trading_from_calendar_volatility,
    trading_from_variance_volatility,
    variance_from_trading_volatility,
    volatility_on_calendar_clock,
    volatility_on_trading_clock,
    volatility_on_variance_clock,
)
from markets.option_prices import (
    CALL,
    LARGEST_DEVIATION,
    PUT,
    greeks_by_deviation,
    greeks_on_trading_clock,
    greeks_on_variance_clock,
    implied_deviation,
    implied_volatility_on_calendar_clock,
    implied_volatility_on_trading_clock,
    implied_volatility_on_variance_clock,
    intrinsic,
    observed_greeks_by_deviation,
    price_and_observed_greeks,
    price_by_deviation,
    price_on_trading_clock,
    price_on_variance_clock,
)

SEED = 77
DIGITS = 5e-10  # relative, of the worked examples

EXAMPLES = {  # right, S, K, minutes, r, q, sigma: price, delta, gamma, vega, theta a minute
    "O-01": (CALL, 600, 600, 390, 0, 0, 0.12, 1.8094277971, 0.5015078565, 0.087957876845, 15.078493173,
             -0.0023197681805),
    "O-02": (PUT, 600, 600, 390, 0, 0, 0.12, 1.8094277971, -0.4984921435, 0.087957876845, 15.078493173,
             -0.0023197681805),
    "O-03": (CALL, 600, 602, 120, 0, 0, 0.12, 0.30634778655, 0.21431715915, 0.11592369535, 6.1146564579,
             -0.003057328229),
    "O-04": (PUT, 600, 598, 120, 0, 0, 0.14, 0.43121065907, -0.24668164256, 0.10749566364, 6.6151177623,
             -0.0038588186947),
    "O-05": (CALL, 600, 600, 60, 0, 0, 0.12, 0.70971740259, 0.50059143117, 0.22425082056, 5.9143073555,
             -0.0059143073555),
    "O-06": (CALL, 600, 600, 15, 0, 0, 0.12, 0.35485879879, 0.50029571567, 0.44850201077, 2.9571561149,
             -0.01182862446),
    "O-07": (CALL, 600, 600, 1, 0, 0, 0.12, 0.091624155695, 0.50007635346, 1.7370412638, 0.76353462147,
             -0.045812077288),
    "O-08": (CALL, 600.5, 600, 5, 0, 0, 0.15, 0.58015756384, 0.78203920926, 0.45840160262, 1.2614448451,
             -0.018921672677),
    "O-09": (PUT, 600, 605, 30, 0, 0, 0.18, 5.0024493543, -0.99582129296, 0.0065290099496, 0.12914525175,
             -0.00038743575525),
    "O-10": (CALL, 600, 600, 390, 0.045, 0.012, 0.12, 1.8487759116, 0.50839405084, 0.087934734228, 15.074525868,
             -0.0024207350266),
    "O-11": (PUT, 600, 600, 390, 0.045, 0.012, 0.12, 1.7702133685, -0.49155833125, 0.087934734228, 15.074525868,
             -0.0022193153903),
    "O-12": (CALL, 600, 610, 60, 0, 0, 0.20, 0.00032055112588, 0.00041526200796, 0.00050462853626, 0.022181474121,
             -0.000036969123536),
}  # fmt: skip


def near(value: float) -> Any:
    return pytest.approx(value, rel=DIGITS, abs=0.0)


# --- worked examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_prices_and_sensitivities_of_the_worked_examples(name: str) -> None:
    """E20. O-01 to O-12."""
    right, spot, strike, minutes, rate, dividends, volatility, price, *greeks = map(float, EXAMPLES[name])
    assert price_on_trading_clock(right, spot, strike, minutes, volatility, rate, dividends) == near(price)
    assert greeks_on_trading_clock(right, spot, strike, minutes, volatility, rate, dividends) == near(tuple(greeks))
    found = implied_volatility_on_trading_clock(right, spot, strike, minutes, price, rate, dividends)
    assert found == pytest.approx(volatility, abs=1e-6)


def test_the_calendar_clock_gives_the_wrong_price_of_the_examples() -> None:
    """Twin of E20."""
    wrong = price_by_deviation(CALL, 600.0, 600.0, deviation_on_calendar_clock(0.12, 390.0))
    assert wrong != pytest.approx(EXAMPLES["O-01"][7], rel=0.1)


def test_carry_on_the_trading_clock_adds_the_drift_that_does_not_exist() -> None:
    assert EXAMPLES["O-10"][7] - EXAMPLES["O-01"][7] == pytest.approx(0.039, abs=5e-4)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_clocks_convert_the_volatility_of_the_same_price() -> None:
    for minutes in (1.0, 30.0, 209.0, 390.0):
        deviation = deviation_on_trading_clock(0.12, minutes)
        calendar = volatility_on_calendar_clock(deviation, minutes)
        assert calendar / 0.12 == pytest.approx(2.3125711553, rel=1e-10)
        assert calendar == pytest.approx(0.277509, abs=5e-7)
        assert volatility_on_trading_clock(deviation_on_calendar_clock(calendar, minutes), minutes) == near(0.12)
        price = price_by_deviation(PUT, 600.0, 601.0, deviation)
        assert implied_volatility_on_calendar_clock(PUT, 600.0, 601.0, minutes, price) == near(calendar)


def test_a_converted_volatility_gives_the_same_price() -> None:
    assert calendar_from_trading_volatility(0.12) == pytest.approx(0.277509, abs=5e-7)
    assert trading_from_calendar_volatility(calendar_from_trading_volatility(0.12)) == near(0.12)
    for bars in (390, 210):
        share = float(remaining_share(bars)[bars - 30])
        day = variance_from_trading_volatility(0.12, 30.0, share, bars)
        assert price_on_variance_clock(PUT, 600.0, 599.0, share, bars, day) == near(
            price_on_trading_clock(PUT, 600.0, 599.0, 30.0, 0.12)
        )
        assert trading_from_variance_volatility(day, 30.0, share, bars) == near(0.12)
        assert variance_from_trading_volatility(0.12, 0.0, 0.0, bars) == 0.0


def test_the_variance_clock_keeps_the_published_shares() -> None:
    shares = remaining_share(390)
    published = {0: 1, 5: 0.9652, 30: 0.8319, 60: 0.7238, 120: 0.5722, 195: 0.4186, 300: 0.2153, 360: 0.0902,
                 375: 0.0508, 385: 0.0188}  # fmt: skip
    for minute, share in published.items():
        assert shares[minute] == pytest.approx(share, abs=5e-5), minute


@pytest.mark.parametrize("bars", [390, 210])
def test_the_variance_clock_runs_from_the_open_to_the_close_of_its_session(bars: int) -> None:
    shares = remaining_share(bars)
    assert shares.shape == (bars + 1,)
    assert (shares[0], shares[-1]) == (1.0, 0.0)
    assert (np.diff(shares) < 0.0).all()
    assert not shares.flags.writeable
    assert deviation_on_variance_clock(0.12, 1.0, bars) == near(deviation_on_trading_clock(0.12, bars))
    assert minutes_left_at_close(0.0, bars) == bars - 1
    assert minutes_left_at_close(bars - 1.0, bars) == 0.0
    share = float(shares[bars - 30])  # thirty minutes left
    assert volatility_on_variance_clock(deviation_on_variance_clock(0.12, share, bars), share, bars) == near(0.12)
    price = price_on_variance_clock(CALL, 600.0, 601.0, share, bars, 0.12)
    assert implied_volatility_on_variance_clock(CALL, 600.0, 601.0, share, bars, price) == near(0.12)
    assert price != pytest.approx(price_on_trading_clock(CALL, 600.0, 601.0, 30.0, 0.12), rel=1e-3)


@pytest.mark.parametrize("bars", [0, 1, 390.5, True])
def test_a_session_without_minutes_is_rejected(bars: Any) -> None:
    with pytest.raises(ConfigError, match=r"session_bars=.*390"):
        remaining_share(bars)


# --- properties -------------------------------------------------------------------------------------------------------

Price = Callable[..., float]


def options(count: int, seed: int = SEED) -> Iterator[tuple[float, float, float]]:
    """Random spot, strike and deviation: near the money, far, and at both ends of the deviation."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(count):
        spot = float(np.exp(rng.uniform(0.0, 9.0)))
        deviation = float(np.exp(rng.uniform(np.log(1e-5), np.log(0.5))))
        yield spot, spot * math.exp(deviation * float(rng.normal(0.0, 2.0))), deviation


def broken_properties(price: Price) -> set[str]:
    """Which of parity, bounds and monotonicity random prices break; rounding is a few units of the last place of S."""
    broken = set()
    for spot, strike, sd in options(3_000):
        call, put = price(CALL, spot, strike, sd), price(PUT, spot, strike, sd)
        last = 4e-15 * max(spot, strike)
        if abs(call - put - (spot - strike)) > last:
            broken.add("parity")
        if not (max(0.0, spot - strike) <= call <= spot and max(0.0, strike - spot) <= put <= strike):
            broken.add("bounds")
        if price(CALL, spot, strike, 1.01 * sd) < call - last or price(PUT, spot, strike, 1.01 * sd) < put - last:
            broken.add("rises with sd")
        if price(CALL, spot, strike * 1.0001, sd) > call + last or price(PUT, spot, strike * 1.0001, sd) < put - last:
            broken.add("monotone in K")
    return broken


def test_parity_bounds_and_monotonicity() -> None:
    """E31. Before the close."""
    assert broken_properties(price_by_deviation) == set()


def halved_time_value(right: float, spot: float, strike: float, sd: float) -> float:
    inner = intrinsic(right, spot, strike)
    return inner + (price_by_deviation(right, spot, strike, sd) - inner) * (1.0 if right > 0.0 else 0.5)


def without_upper_deviation(right: float, spot: float, strike: float, sd: float) -> float:
    return price_by_deviation(right, spot, strike, 0.1 / (1.0 + sd))


def dearer_than_the_share(right: float, spot: float, strike: float, sd: float) -> float:
    return price_by_deviation(right, spot, strike, sd) + 2.0 * max(spot, strike)


@pytest.mark.parametrize(
    ("price", "caught"),
    [(halved_time_value, "parity"), (without_upper_deviation, "rises with sd"), (dearer_than_the_share, "bounds")],
)
def test_a_price_that_is_wrong_breaks_a_property(price: Price, caught: str) -> None:
    """Twin of E31."""
    assert caught in broken_properties(price)


def test_the_price_rises_with_time_on_the_trading_clock() -> None:
    for strike in (595.0, 600.0, 604.0):
        for right in (CALL, PUT):
            prices = [price_on_trading_clock(right, 600.0, strike, minutes, 0.15) for minutes in range(391)]
            assert prices[0] == intrinsic(right, 600.0, strike)
            assert all(later >= sooner for sooner, later in itertools.pairwise(prices))


def worst_greek(greeks: Callable[..., tuple[float, ...]]) -> float:
    """Largest error of delta, gamma, vega and theta against differences of prices, in units of their scale."""
    worst = 0.0
    for right, spot, strike, minutes, rate, dividends, volatility, *_ in EXAMPLES.values():
        market = (right, float(spot), float(strike), float(minutes), volatility, float(rate), float(dividends))

        def price(ds: float = 0.0, dm: float = 0.0, dv: float = 0.0, at: tuple[float, ...] = market) -> float:
            return price_on_trading_clock(at[0], at[1] + ds, at[2], at[3] + dm, at[4] + dv, at[5], at[6])

        delta, gamma, vega, theta = greeks(*market)
        step, minute = 1e-3 * spot * volatility * math.sqrt(minutes / 98_280), 1e-4 * minutes
        found = (
            (price(step) - price(-step)) / (2.0 * step),
            (price(step) - 2.0 * price() + price(-step)) / step**2,
            (price(dv=1e-5) - price(dv=-1e-5)) / 2e-5,
            (price(dm=-minute) - price(dm=minute)) / (2.0 * minute),
        )
        given = (delta, gamma, vega, theta)
        worst = max(worst, *(abs(f - g) / max(abs(g), 1e-6) for f, g in zip(found, given, strict=True)))
    return worst


def test_sensitivities_are_the_differences_of_prices() -> None:
    assert worst_greek(greeks_on_trading_clock) < 1e-4


@pytest.mark.parametrize("place", range(4))
def test_a_sensitivity_that_is_off_is_caught(place: int) -> None:
    def off(*market: float) -> tuple[float, ...]:
        return tuple(g * (1.001 if k == place else 1.0) for k, g in enumerate(greeks_on_trading_clock(*market)))

    assert worst_greek(off) > 1e-4


@pytest.mark.parametrize("bars", [390, 210])
def test_sensitivities_on_the_variance_clock(bars: int) -> None:
    shares = remaining_share(bars).tolist()
    for elapsed in (0, 17, bars - 60, bars - 2):
        left, after = shares[elapsed], shares[elapsed + 1]
        delta, gamma, vega, theta = greeks_on_variance_clock(PUT, 600.0, 599.0, left, after, bars, 0.12)
        price = price_on_variance_clock(PUT, 600.0, 599.0, left, bars, 0.12)
        assert (delta, gamma) == greeks_by_deviation(PUT, 600.0, 599.0, deviation_on_variance_clock(0.12, left, bars))[
            :2
        ]
        higher = price_on_variance_clock(PUT, 600.0, 599.0, left, bars, 0.12 + 1e-6)
        assert vega == pytest.approx((higher - price) / 1e-6, rel=1e-3)
        part = 1e-4  # of the coming minute's variance
        sooner = price_on_variance_clock(PUT, 600.0, 599.0, left - part * (left - after), bars, 0.12)
        assert theta == pytest.approx((sooner - price) / part, rel=1e-2)


def test_theta_at_the_money_grows_toward_the_close_on_the_trading_clock() -> None:
    thetas = [greeks_on_trading_clock(CALL, 600.0, 600.0, minutes, 0.12)[3] for minutes in range(390, 0, -1)]
    assert all(later < sooner < 0.0 for sooner, later in itertools.pairwise(thetas))
    price = price_on_trading_clock(CALL, 600.0, 600.0, 5.0, 0.12)
    assert price == pytest.approx(0.398942 * 600.0 * 0.12 * math.sqrt(5.0 / 98_280), rel=1e-5)
    assert thetas[-5] == pytest.approx(-price / 10.0, rel=1e-4)


# --- edges ------------------------------------------------------------------------------------------------------------

EDGES = (5e-324, 1e-300, 1e-8, 1.0, 600.0, 600.0000001, 1e8, 1e300)


def test_no_price_is_a_nan_and_no_observation_leaves_its_bounds() -> None:
    for spot in EDGES:
        for strike in EDGES:
            for sd in (-1.0, 0.0, 1e-320, 1e-12, 1e-3, 1.0, 50.0, 1e6):
                for right in (CALL, PUT):
                    price = price_by_deviation(right, spot, strike, sd)
                    assert intrinsic(right, spot, strike) <= price <= (spot if right > 0.0 else strike)
                    assert not any(math.isnan(value) for value in greeks_by_deviation(right, spot, strike, sd))
                    assert 0.0 <= implied_deviation(right, spot, strike, price) <= LARGEST_DEVIATION
                    premium, delta, gamma, theta = observed_greeks_by_deviation(right, spot, strike, sd)
                    assert 0.0 <= premium <= 1.0
                    assert 0.0 <= right * delta <= 1.0
                    assert 0.0 <= gamma <= 0.4
                    assert -20.0 <= theta <= 0.0
                    assert price_and_observed_greeks(right, spot, strike, sd) == (price, delta, gamma, theta)


def test_price_and_sensitivities_in_one_go_are_those_of_two_to_the_last_bit() -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(2_000):
        right, spot = float(rng.choice([CALL, PUT])), float(rng.uniform(100.0, 700.0))
        sd = float(np.exp(rng.uniform(-9.0, 0.0)))
        strike = spot * math.exp(sd * rng.normal())
        wanted = observed_greeks_by_deviation(right, spot, strike, sd)
        found = price_and_observed_greeks(right, spot, strike, sd)
        assert found == (price_by_deviation(right, spot, strike, sd), *wanted[1:])


@pytest.mark.parametrize("minutes", [0.0, -1.0])
@pytest.mark.parametrize("right", [CALL, PUT])
def test_at_the_close_a_price_is_intrinsic_and_the_rest_is_over(right: float, minutes: float) -> None:
    """E31. At the close."""
    for strike, inside in ((599.0, right > 0.0), (601.0, right < 0.0)):
        assert price_on_trading_clock(right, 600.0, strike, minutes, 0.12) == (1.0 if inside else 0.0)
        assert greeks_on_trading_clock(right, 600.0, strike, minutes, 0.12) == (right * inside, 0.0, 0.0, 0.0)
    assert greeks_on_trading_clock(right, 600.0, 600.0, minutes, 0.12) == (0.5 * right, 0.0, 0.0, 0.0)
    assert greeks_on_variance_clock(right, 600.0, 600.0, 0.0, 0.0, 390.0, 0.12) == (0.5 * right, 0.0, 0.0, 0.0)
    assert implied_volatility_on_trading_clock(right, 600.0, 600.0, minutes, 1.0) == 0.0
    assert implied_volatility_on_calendar_clock(right, 600.0, 600.0, minutes, 1.0) == 0.0
    assert implied_volatility_on_variance_clock(right, 600.0, 600.0, minutes, 390.0, 1.0) == 0.0


def test_observed_sensitivities_of_the_worked_examples() -> None:
    for name, share in (("O-05", -0.5), ("O-12", -6.9)):
        right, spot, strike, minutes, _, _, volatility, price, delta, gamma, _, theta = map(float, EXAMPLES[name])
        sd = deviation_on_trading_clock(volatility, minutes)
        found = observed_greeks_by_deviation(right, spot, strike, sd)
        assert found == pytest.approx((price / spot, delta, gamma * spot * sd, theta * minutes / price), rel=1e-9)
        assert found[3] == pytest.approx(share, abs=0.03)


# --- implied volatility -----------------------------------------------------------------------------------------------

Solver = Callable[..., float]


def largest_volatility_error(solver: Solver) -> float:
    """Largest error of the volatility where vega exceeds 1e-4, over random options of both rights and any time."""
    rng = np.random.default_rng(SEED)
    worst, counted = 0.0, 0
    for _ in range(4_000):
        right, minutes = float(rng.choice([CALL, PUT])), float(rng.integers(1, 391))
        spot, volatility = 600.0, float(np.exp(rng.uniform(np.log(0.01), np.log(3.0))))
        sd = deviation_on_trading_clock(volatility, minutes)
        strike = spot * math.exp(sd * float(rng.uniform(-6.0, 6.0)))
        if greeks_on_trading_clock(right, spot, strike, minutes, volatility)[2] > 1e-4:
            price = price_on_trading_clock(right, spot, strike, minutes, volatility)
            worst = max(worst, abs(solver(right, spot, strike, minutes, price) - volatility))
            counted += 1
    assert counted > 2_000
    return worst


def test_implied_volatility_recovers_the_volatility() -> None:
    assert largest_volatility_error(implied_volatility_on_trading_clock) < 1e-6


def two_newton_steps(right: float, spot: float, strike: float, minutes: float, price: float) -> float:
    volatility = 0.2
    for _ in range(2):
        vega = greeks_on_trading_clock(right, spot, strike, minutes, volatility)[2]
        off = price_on_trading_clock(right, spot, strike, minutes, volatility) - price
        volatility = min(max(volatility - off / max(vega, 1e-12), 1e-3), 5.0)
    return volatility


def test_a_solver_that_stops_early_is_caught() -> None:
    assert largest_volatility_error(two_newton_steps) > 1e-6


def test_implied_volatility_of_impossible_prices() -> None:
    assert implied_deviation(CALL, 600.0, 590.0, 10.0) == 0.0
    assert implied_deviation(CALL, 600.0, 590.0, 9.0) == 0.0
    assert implied_deviation(CALL, 600.0, 590.0, -1.0) == 0.0
    assert implied_deviation(CALL, 600.0, 590.0, math.nan) == 0.0
    assert implied_deviation(CALL, 600.0, 590.0, 600.0) == LARGEST_DEVIATION
    assert implied_deviation(PUT, 600.0, 590.0, 700.0) == LARGEST_DEVIATION


# --- oracles ----------------------------------------------------------------------------------------------------------


def oracle_cases() -> list[tuple[float, ...]]:
    rng = np.random.default_rng(SEED)
    cases = [tuple(map(float, row[:7])) for row in EXAMPLES.values()]
    for _ in range(200):
        minutes, volatility = float(rng.integers(1, 391)), float(rng.uniform(0.05, 1.0))
        sd = deviation_on_trading_clock(volatility, minutes)
        strike = 600.0 * math.exp(sd * float(rng.uniform(-3.0, 3.0)))
        carry = (0.045, 0.012) if rng.random() < 0.5 else (0.0, 0.0)
        cases.append((float(rng.choice([CALL, PUT])), 600.0, strike, minutes, *carry, volatility))
    return cases


def differences(oracle: Callable[..., tuple[float, ...]], shift: float = 0.0) -> float:
    """Largest difference of price, delta, gamma, vega, theta; of those above 1, relative."""
    worst = 0.0
    for right, spot, strike, minutes, rate, dividends, volatility in oracle_cases():
        market = (right, spot, strike, minutes, volatility + shift, rate, dividends)
        ours = (price_on_trading_clock(*market), *greeks_on_trading_clock(*market))
        theirs = oracle(right, spot, strike, minutes / 98_280.0, rate, dividends, volatility)
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, abs(a - b) / max(1.0, abs(b)))
    return worst


def by_vollib(
    right: float, spot: float, strike: float, years: float, r: float, q: float, v: float
) -> tuple[float, ...]:
    """vollib states vega per 0.01 and theta per calendar day."""
    from vollib.black_scholes_merton import black_scholes_merton
    from vollib.black_scholes_merton.greeks import analytical

    flag = "c" if right > 0.0 else "p"
    market = (flag, spot, strike, years, r, v, q)
    return (
        black_scholes_merton(*market), analytical.delta(*market), analytical.gamma(*market),
        100.0 * analytical.vega(*market), 365.0 * analytical.theta(*market) / 98_280.0,
    )  # fmt: skip


def by_quantlib(
    right: float, spot: float, strike: float, years: float, r: float, q: float, v: float
) -> tuple[float, ...]:
    import QuantLib as ql  # noqa: N813

    payoff = ql.PlainVanillaPayoff(ql.Option.Call if right > 0.0 else ql.Option.Put, strike)
    forward = spot * math.exp((r - q) * years)
    found = ql.BlackCalculator(payoff, forward, v * math.sqrt(years), math.exp(-r * years))
    return (
        found.value(), found.delta(spot), found.gamma(spot), found.vega(years), found.theta(spot, years) / 98_280.0,
    )  # fmt: skip


@pytest.mark.parametrize(("library", "oracle"), [("vollib", by_vollib), ("QuantLib", by_quantlib)])
def test_an_independent_library_agrees(library: str, oracle: Callable[..., tuple[float, ...]]) -> None:
    pytest.importorskip(library, reason=f"{library} is an oracle of the extra 'dev' and not installed")
    assert differences(oracle) < 1e-9
    assert differences(oracle, shift=1e-7) > 1e-9  # the twin: a volatility that is off in the seventh digit
