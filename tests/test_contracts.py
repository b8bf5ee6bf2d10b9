"""Margin tiers as published, and contracts for known and unknown symbols."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from markets.contracts import (
    ALT_TIERS,
    BTC_TIERS,
    CONTRACTS,
    ETH_TIERS,
    PerpetualContract,
    Tier,
    check_tiers,
    contract_for,
)
from markets.errors import ConfigError
from markets.perpetual import maintenance_margin, maximum_leverage

SEED = 11

PUBLISHED_BTC = (
    (50e3, 125, 0.004, 0), (600e3, 100, 0.005, 50), (3e6, 75, 0.0065, 950), (12e6, 50, 0.01, 11_450),
    (70e6, 25, 0.02, 131_450), (100e6, 20, 0.025, 481_450), (230e6, 10, 0.05, 2_981_450), (480e6, 5, 0.10, 14_481_450),
    (600e6, 4, 0.125, 26_481_450), (800e6, 3, 0.15, 41_481_450), (1200e6, 2, 0.25, 121_481_450),
    (1800e6, 1, 0.50, 421_481_450),
)  # fmt: skip
PUBLISHED_ETH = (
    *PUBLISHED_BTC[:4], (50e6, 25, 0.02, 131_450), (65e6, 20, 0.025, 381_450), (150e6, 10, 0.05, 2_006_450),
)  # fmt: skip
PUBLISHED_ALT = ((20e3, 100, 0.005, 0), (100e3, 75, 0.0065, 30), (800e3, 50, 0.01, 380), (4e6, 25, 0.02, 8_380))

TABLES = {"BTC": (BTC_TIERS, PUBLISHED_BTC), "ETH": (ETH_TIERS, PUBLISHED_ETH), "SOL": (ALT_TIERS, PUBLISHED_ALT)}


@pytest.mark.parametrize("name", TABLES)
def test_tier_tables_equal_the_published_figures(name: str) -> None:
    tiers, published = TABLES[name]
    assert np.array(tiers) == pytest.approx(np.array(published, float), rel=1e-12, abs=1e-6)


def largest_jump(tiers: tuple[Tier, ...]) -> float:
    """Largest jump of maintenance margin at a tier's end, as a share of the margin there."""
    table = np.array(tiers, float)
    jumps = [
        abs(maintenance_margin(cap, table) - maintenance_margin(np.nextafter(cap, np.inf), table))
        / maintenance_margin(cap, table)
        for cap in table[:-1, 0]
    ]
    return float(max(jumps))


@pytest.mark.parametrize("name", TABLES)
def test_maintenance_margin_is_continuous_across_tiers(name: str) -> None:
    assert largest_jump(TABLES[name][0]) <= 1e-9


@pytest.mark.parametrize("place", range(1, len(BTC_TIERS)))
def test_a_wrong_amount_makes_a_jump_and_is_rejected(place: int) -> None:
    broken = list(BTC_TIERS)
    broken[place] = (*broken[place][:3], broken[place][3] + 1.0)
    assert largest_jump(tuple(broken)) > 1e-9
    with pytest.raises(ConfigError, match=f"margin tier {place + 1}"):
        check_tiers(tuple(broken))
    with pytest.raises(ConfigError, match="amount"):
        replace(CONTRACTS["BTCUSDT"], tiers=tuple(broken))


@pytest.mark.parametrize(
    "row",
    [(40e3, 100, 0.005, 50.0), (600e3, 126, 0.005, 50.0), (600e3, 100, 0.004, 0.0)],
    ids=["cap", "leverage", "rate"],
)
def test_tiers_out_of_order_are_rejected(row: Tier) -> None:
    with pytest.raises(ConfigError, match="margin tier 2"):
        check_tiers((BTC_TIERS[0], row))


def test_the_tier_array_is_what_the_compiled_rules_read() -> None:
    table = CONTRACTS["BTCUSDT"].tier_table
    assert table.shape == (12, 4)
    assert table.dtype == np.float64
    assert table.flags.c_contiguous
    assert maximum_leverage(50_000.0, table) == 125.0
    assert maximum_leverage(50_000.01, table) == 100.0
    assert maximum_leverage(1_800_000_001.0, table) == 0.0


def test_default_contract_has_the_published_parameters() -> None:
    contract = CONTRACTS["BTCUSDT"]
    assert (contract.tick_size, contract.lot_step, contract.minimum_quantity) == (0.1, 0.001, 0.001)
    assert (contract.maximum_quantity, contract.minimum_notional, contract.price_band) == (120.0, 100.0, 0.05)
    assert (contract.maker_fee, contract.taker_fee, contract.clearance_fee) == (0.0002, 0.0005, 0.0125)
    assert contract.funding_interval_hours == 8.0
    assert contract.funding_cap == pytest.approx(0.75 * contract.tiers[0][2], rel=1e-12)


@pytest.mark.parametrize(
    "name", ["tick_size", "lot_step", "taker_fee", "clearance_fee", "half_spread", "minimum_notional"]
)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_contract_with_an_impossible_number_is_rejected_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*BTCUSDT"):
        replace(CONTRACTS["BTCUSDT"], **{name: value})


def test_a_maker_rebate_is_possible_and_a_fee_above_one_is_not() -> None:
    """E62."""
    assert replace(CONTRACTS["BTCUSDT"], maker_fee=-0.0001).maker_fee == -0.0001
    with pytest.raises(ConfigError, match="fraction"):
        replace(CONTRACTS["BTCUSDT"], taker_fee=5.0)


@pytest.mark.parametrize(
    ("spelling", "symbol"),
    [
        ("BTCUSDT", "BTCUSDT"), ("btcusdt", "BTCUSDT"), ("BTC/USDT", "BTCUSDT"), ("BTC-USDT", "BTCUSDT"),
        ("BTC/USDT:USDT", "BTCUSDT"), ("eth/usdt:usdt", "ETHUSDT"), ("SOL-USDT", "SOLUSDT"),
    ],
)  # fmt: skip
def test_known_symbols_are_found_in_several_spellings(spelling: str, symbol: str) -> None:
    assert contract_for(spelling, 1.0) is CONTRACTS[symbol]


def insane(contract: PerpetualContract, price: float) -> list[str]:
    """What about a contract makes no sense at a price."""
    wrong = {
        "tick": not 0.9e-6 <= contract.tick_size / price <= 1.1e-5,
        "tick is a power of ten": abs(math.log10(contract.tick_size) - round(math.log10(contract.tick_size))) > 1e-9,
        "lot value": not 5.0 * (1 - 1e-9) <= contract.lot_step * price <= 50.0 * (1 + 1e-9),
        "lot is a power of ten": abs(math.log10(contract.lot_step) - round(math.log10(contract.lot_step))) > 1e-9,
        "minimum": contract.minimum_quantity != contract.lot_step,
        "maximum": contract.maximum_quantity * price < 1e6,
        "notional": contract.minimum_notional != 5.0,
        "tiers": contract.tiers != ALT_TIERS,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def test_unknown_symbols_get_a_contract_that_fits_their_price() -> None:
    rng = np.random.default_rng(SEED)
    print(f"seed {SEED}")
    prices = [10.0**power for power in range(-6, 6)] + np.exp(rng.uniform(np.log(1e-6), np.log(1e5), 500)).tolist()
    for price in prices:
        contract = contract_for("DOGEUSDT", price)
        assert contract.symbol == "DOGEUSDT"
        assert insane(contract, price) == [], f"price {price}: {contract}"


def test_the_fit_check_catches_a_contract_of_another_price() -> None:
    assert {"tick", "lot value"} <= set(insane(contract_for("DOGEUSDT", 0.1), 60_000.0))
    assert insane(CONTRACTS["BTCUSDT"], 1e-6) != []
