"""Rules of the spot contract: worked examples S-01 to S-03, and what the fixed point of a rebalancing keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from markets.errors import ConfigError
from markets.perpetual import impact
from markets.spot import (
    CONTRACTS,
    COST_BOUND,
    SpotContract,
    borrow_interest,
    impact_slope,
    largest_share,
    remaining_share,
    spot_contract,
    weight_scale,
    whole_lots,
)

HOUR = 1.0 / 8760.0  # of a year
EVERY = np.full(2, math.inf)
S01 = (np.array([0.3, 0.6]), np.array([0.5 * 1.05, 0.3 * 0.98]) / 1.019)  # targets, drifted weights


def share(targets: np.ndarray, drifted: np.ndarray, cost: float, largest: np.ndarray = EVERY) -> float:
    return remaining_share(targets, drifted, np.full(2, cost), np.zeros(2), largest)


def test_s01_the_fixed_point_of_a_rebalancing() -> None:
    targets, drifted = S01
    assert drifted == pytest.approx([0.5152109912, 0.2885181551], abs=5e-11)
    mu = share(targets, drifted, 0.001)
    assert mu == pytest.approx(0.9994734651243489, rel=1e-15)
    assert 10_000.0 * 1.019 * mu == pytest.approx(10184.634609617116, rel=1e-14)
    once = 1.0 - 0.001 * np.abs(targets - drifted).sum()
    assert once == pytest.approx(0.9994733071638862, rel=1e-15)
    assert abs(mu - once) > 1e-7, "the one-shot approximation differs in the seventh digit"


@pytest.mark.parametrize(("order", "basis_points"), [(0.1e6, 1.7678), (1e6, 5.5902), (10e6, 17.6777)])
def test_s02_the_square_root_impact_of_an_order(order: float, basis_points: float) -> None:
    assert 1e4 * impact(order, 0.025, 2e9, 1.0) == pytest.approx(basis_points, abs=5e-5)
    equity = 7e6  # the same, with the order as a share of the equity
    slope = impact_slope(equity, 0.025, 2e9, 1.0)
    assert slope * math.sqrt(order / equity) == pytest.approx(impact(order, 0.025, 2e9, 1.0), rel=1e-14)


def test_s03_the_interest_of_an_hour() -> None:
    assert borrow_interest(10_000.0, 0.08, HOUR) == pytest.approx(0.0913242009, abs=5e-11)


def test_rebalancing_to_the_drifted_weights_costs_exactly_nothing() -> None:
    _, drifted = S01
    assert share(drifted, drifted, 0.001) == 1.0
    assert share(S01[0], drifted, 0.001, np.zeros(2)) == 1.0, "nothing is traded where nothing may be"


def test_the_fixed_point_solves_its_equation_for_any_weights_and_costs_below_the_bound() -> None:
    random = np.random.default_rng(7)
    for _ in range(500):
        drifted, targets = random.uniform(-0.75, 0.75, (2, 2))
        rates, slopes = random.uniform(0.0, 0.05, 2), random.uniform(0.0, 0.02, 2)
        largest = random.uniform(0.0, 1.0, 2)
        mu = remaining_share(targets, drifted, rates, slopes, largest)
        orders = np.minimum(np.abs(targets * mu - drifted), largest)
        assert mu == pytest.approx(1.0 - (orders * (rates + slopes * np.sqrt(orders))).sum(), abs=1e-12)
        assert 0.0 < mu <= 1.0


def test_mutant_a_single_round_does_not_solve_it() -> None:
    targets, drifted = S01
    once = 1.0 - 0.05 * np.abs(targets - drifted).sum()
    assert abs(once - (1.0 - 0.05 * np.abs(targets * once - drifted).sum())) > 1e-4


def test_an_order_is_as_large_as_its_cost_bound_and_the_volume_allow() -> None:
    size = largest_share(0.001, 0.05, 10.0)
    assert 0.001 + 0.05 * math.sqrt(size) == pytest.approx(COST_BOUND, rel=1e-12)
    assert largest_share(0.001, 0.05, 0.25) == 0.25
    assert largest_share(0.001, 0.0, 0.25) == 0.25
    assert largest_share(0.2, 0.05, 10.0) == 0.0, "fee and spread alone cost more"
    assert impact_slope(1e6, 0.025, 0.0, 1.0) == 0.0


def test_weights_are_scaled_down_to_the_limit_and_never_up() -> None:
    assert weight_scale(0.4, 1.0) == weight_scale(1.0, 1.0) == 1.0
    assert weight_scale(3.0, 1.5) == 0.5


def test_quantities_are_whole_lots_rounded_toward_zero() -> None:
    assert whole_lots(0.12345678, 1e-5) == pytest.approx(0.12345, abs=1e-15)
    assert whole_lots(0.3, 0.1) == pytest.approx(0.3)  # 2.9999999999999996 lots in floats
    assert whole_lots(0.12345678, 0.0) == 0.12345678


def test_known_coins_have_their_contract_and_others_one_that_fits_their_price() -> None:
    bitcoin = spot_contract("BTC/USDT", 60_000.0)
    assert (bitcoin.lot_step, bitcoin.tick_size, bitcoin.half_spread) == (1e-5, 0.01, 5e-5)
    assert (bitcoin.taker_fee, bitcoin.minimum_notional, bitcoin.impact_coefficient) == (0.001, 5.0, 1.0)
    assert [contract.half_spread for contract in CONTRACTS.values()] == sorted(
        contract.half_spread for contract in CONTRACTS.values()
    )
    other = spot_contract("NEWUSDT", 0.02)
    assert 0.5 <= other.lot_step * 0.02 <= 5.0
    assert other.tick_size == pytest.approx(1e-7)
    with pytest.raises(ConfigError, match=r"half_spread=-1.0 of X"):
        SpotContract("X", 0.01, 0.1, -1.0)
