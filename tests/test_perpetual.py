"""The contract rules of linear perpetual futures: worked examples, accounting identities, margin and order properties.

Worked examples ``P-xx`` are exact figures, asserted to 1e-8 relative. Every invariant has a twin with a planted fault.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs import rewards
from markets import perpetual
from markets.contracts import CONTRACTS
from markets.perpetual import (
    REJECT_MARGIN,
    REJECT_NOT_FINITE,
    REJECT_NOTIONAL_LOW,
    REJECT_PRICE_BAND,
    REJECT_QUANTITY_HIGH,
    REJECT_QUANTITY_LOW,
    REJECT_TIER_LEVERAGE,
    affordable_quantity,
    apply_fill,
    average_premium,
    bankruptcy_price,
    check_order,
    fee,
    fill_price,
    fillable_quantity,
    funding_payment,
    funding_rate,
    half_spread,
    impact,
    is_breached,
    is_reducing,
    liquidation_price,
    maintenance_margin,
    mark_price,
    maximum_leverage,
    premium_index,
    round_price,
    round_quantity,
    settle_liquidation,
    tier_of,
)

Floats = NDArray[np.float64]

SEED = 20240
EXACT = 1e-8  # relative, of the worked examples
BTC = CONTRACTS["BTCUSDT"].tier_table
SOL = CONTRACTS["SOLUSDT"].tier_table
CAP = 0.75 * BTC[0, 2]


def near(value: float) -> Any:
    return pytest.approx(value, rel=EXACT, abs=1e-9)


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


# --- worked examples --------------------------------------------------------------------------------------------------

LIQUIDATIONS = {  # id: quantity, entry, margin, fee rate, tier at the price, price
    "P-01": (1.0, 50_000.0, 5_000.0, 0.0, 1, 45180.7228915663),
    "P-02": (-1.0, 50_000.0, 5_000.0, 0.0, 2, 54776.1194029851),
    "P-03": (0.5, 60_000.0, 1_500.0, 0.0, 1, 57228.9156626506),
    "P-04": (100.0, 60_000.0, 120_000.0, 0.0, 4, 59278.2828282828),
    "P-05": (12.0, 51_000.0, 30_600.0, 0.0, 2, 48689.2797319933),
    "P-06": (1.0, 50_000.0, 5_000.0, 0.0005, 1, 45203.4153691612),
    "P-06s": (-1.0, 50_000.0, 5_000.0, 0.0005, 2, 54748.8811536549),
    "P-18": (-1.0, 50_000.0, 50_000.0, 0.0, 2, 99552.2388059701),
    "P-19": (1.0, 50_000.0, 400.0, 0.0, 1, 49799.1967871486),
}


@pytest.mark.parametrize("name", LIQUIDATIONS)
def test_liquidation_prices_of_the_worked_examples(name: str) -> None:
    """E20. P-01 to P-06, P-06s, P-18 and P-19."""
    quantity, entry, margin, rate, tier, price = LIQUIDATIONS[name]
    found = liquidation_price(quantity, entry, margin, BTC, rate)
    assert found == near(price)
    assert tier_of(abs(quantity) * found, BTC) + 1 == tier


def entry_tier_price(quantity: float, entry: float, margin: float, tiers: Floats, rate: float) -> float:
    """The trap of P-05: the tier of the entry notional instead of the one at the liquidation price."""
    side, size = math.copysign(1.0, quantity), abs(quantity)
    k = tier_of(size * entry, tiers)
    return float((margin + tiers[k, 3] - quantity * entry) / (size * (tiers[k, 2] + rate - side)))


def test_the_entry_tier_gives_the_wrong_price_of_the_trap() -> None:
    """Twin of E20."""
    quantity, entry, margin, rate, _, price = LIQUIDATIONS["P-05"]
    wrong = entry_tier_price(quantity, entry, margin, BTC, rate)
    assert wrong == near(48687.3007884583)
    assert wrong != near(price)


@pytest.mark.parametrize(
    ("quantity", "rate", "price"),
    [(1.0, 0.0, 45_000.0), (1.0, 0.0005, 45022.5112556278), (-1.0, 0.0, 55_000.0), (-1.0, 0.0005, 54972.5137431284)],
)
def test_bankruptcy_prices_of_the_worked_examples(quantity: float, rate: float, price: float) -> None:
    found = bankruptcy_price(quantity, 50_000.0, 5_000.0, rate)
    assert found == near(price)
    assert 5_000.0 + quantity * (found - 50_000.0) - fee(quantity, found, rate) == pytest.approx(0.0, abs=1e-6)


def test_a_fully_funded_long_cannot_be_liquidated() -> None:
    assert liquidation_price(1.0, 50_000.0, 50_000.0, BTC, 0.0) == 0.0
    assert not is_breached(1.0, 0.0, 1e-9)
    assert liquidation_price(0.0, 0.0, 0.0, BTC, 0.0) == 0.0


@pytest.mark.parametrize(
    ("leverage", "long_percent", "short_percent", "clearance_share"),
    [
        (2, 49.799, 49.402, 0.025), (3, 33.066, 32.802, 0.038), (5, 19.679, 19.522, 0.063), (10, 9.639, 9.562, 0.125),
        (20, 4.618, 4.582, 0.25), (50, 1.606, 1.594, 0.625), (75, 0.937, 0.930, 0.938), (100, 0.602, 0.598, 1.25),
        (125, 0.402, 0.398, 1.56),
    ],
)  # fmt: skip
def test_distance_to_liquidation_by_leverage(
    leverage: int, long_percent: float, short_percent: float, clearance_share: float
) -> None:
    entry, size = 50_000.0, 0.01  # 500 USDT: tier 1 throughout
    margin = entry * size / leverage
    below = liquidation_price(size, entry, margin, BTC, 0.0)
    above = liquidation_price(-size, entry, margin, BTC, 0.0)
    assert 100.0 * (entry - below) / entry == pytest.approx(long_percent, abs=0.0005 + 1e-9)
    assert 100.0 * (above - entry) / entry == pytest.approx(short_percent, abs=0.0005 + 1e-9)
    share = CONTRACTS["BTCUSDT"].clearance_fee * entry * size / margin
    assert share == pytest.approx(clearance_share, abs=0.0051)


def test_p07_funding_is_paid_by_longs_when_positive_and_mirrored_for_shorts() -> None:
    """E20. P-07."""
    assert funding_payment(2.0, 60_000.0, 0.0001) == near(12.0)
    assert funding_payment(2.0, 60_000.0, -0.0003) == near(-36.0)
    assert funding_payment(-2.0, 60_000.0, 0.0001) == near(-12.0)
    assert funding_payment(-2.0, 60_000.0, -0.0003) == near(36.0)
    wallet = 100_000.0 - fee(2.0, 60_000.0, 0.0005)
    wallet -= funding_payment(2.0, 60_000.0, 0.0001) + funding_payment(2.0, 60_000.0, -0.0003)
    assert wallet == near(99_964.0)


@pytest.mark.parametrize(
    ("premium", "rate"),
    [
        (0.0, 0.0001), (0.0003, 0.0001), (0.0006, 0.0001), (0.00061, 0.00011), (0.0010, 0.0005), (-0.0004, 0.0001),
        (-0.00041, 0.00009), (-0.0010, -0.0005), (0.0200, 0.003), (-0.0200, -0.003),
    ],
)  # fmt: skip
def test_p08_funding_rates_and_their_halves_at_four_hours(premium: float, rate: float) -> None:
    """E20. P-08."""
    assert funding_rate(premium, 8.0, 0.0001, 0.0005, CAP) == pytest.approx(rate, rel=EXACT, abs=1e-16)
    if abs(premium) < 0.02:
        assert funding_rate(premium, 4.0, 0.0001, 0.0005, CAP) == pytest.approx(rate / 2.0, rel=EXACT, abs=1e-16)
    else:
        assert abs(funding_rate(premium, 4.0, 0.0001, 0.0005, CAP)) == pytest.approx(CAP, rel=EXACT)


def test_later_premium_samples_weigh_more() -> None:
    samples = np.array([0.0002, 0.0004, 0.0006, 0.0008])
    assert average_premium(samples) == near(0.0006)
    assert average_premium(samples[::-1]) == near(0.0004)


def test_premium_index_is_zero_inside_the_impact_spread() -> None:
    assert premium_index(59_990.0, 60_010.0, 60_000.0) == 0.0
    assert premium_index(60_060.0, 60_070.0, 60_000.0) == near(0.001)
    assert premium_index(59_930.0, 59_940.0, 60_000.0) == near(-0.001)


def test_p09_round_trip() -> None:
    """E20. P-09."""
    wallet = 10_000.0
    quantity, entry, realised = apply_fill(0.0, 0.0, 0.1, 60_000.0)
    assert fee(0.1, 60_000.0, 0.0005) == near(3.0)
    wallet += realised - fee(0.1, 60_000.0, 0.0005)
    quantity, entry, realised = apply_fill(quantity, entry, -0.1, 61_000.0)
    assert (quantity, entry) == (0.0, 0.0)
    assert realised == near(100.0)
    assert fee(-0.1, 61_000.0, 0.0002) == near(1.22)
    assert wallet + realised - fee(-0.1, 61_000.0, 0.0002) == near(10_095.78)


def test_p10_flip() -> None:
    """E20. P-10."""
    wallet = 10_000.0
    quantity, entry, _ = apply_fill(0.0, 0.0, 1.0, 60_000.0)
    wallet -= fee(1.0, 60_000.0, 0.0005)
    quantity, entry, realised = apply_fill(quantity, entry, -3.0, 61_000.0)
    wallet += realised - fee(-3.0, 61_000.0, 0.0005)
    assert (quantity, entry, realised) == (-2.0, 61_000.0, 1_000.0)
    assert wallet == near(10_878.50)
    assert wallet + quantity * (60_500.0 - entry) == near(11_878.50)


def test_p11_average_entry_and_partial_close() -> None:
    """E20. P-11."""
    quantity, entry, realised = apply_fill(1.0, 60_000.0, 2.0, 57_000.0)
    assert (quantity, realised) == (3.0, 0.0)
    assert entry == near(58_000.0)
    quantity, entry, realised = apply_fill(quantity, entry, -1.0, 59_000.0)
    assert quantity == 2.0
    assert entry == near(58_000.0)
    assert realised == near(1_000.0)


def liquidated(quantity: float, entry: float, margin: float, opened: float) -> tuple[float, float, float, float, float]:
    price = liquidation_price(quantity, entry, margin, BTC, 0.0)
    return (price, *settle_liquidation(quantity, entry, margin, price, opened, 0.0125))


def test_p14_liquidation_takes_the_whole_margin_and_no_more() -> None:
    """E20. P-14."""
    price, executed, realised, clearance, cover = liquidated(1.0, 50_000.0, 5_000.0, 46_000.0)
    assert executed == price
    assert realised == near(-4819.2771084337)
    rest = 5_000.0 + realised
    assert rest == near(180.7228915663)
    assert rest == near(maintenance_margin(price, BTC))
    assert 0.0125 * price == near(564.7590361446)
    assert clearance == near(180.7228915663)
    assert cover == 0.0
    assert 10_000.0 - 25.0 + realised - clearance + cover == near(4_975.0)


def test_p15_a_gap_through_the_price_is_covered_by_the_insurance_fund() -> None:
    """E20. P-15."""
    _, executed, realised, clearance, cover = liquidated(1.0, 50_000.0, 5_000.0, 44_000.0)
    assert (executed, clearance) == (44_000.0, 0.0)
    assert realised == near(-6_000.0)
    assert cover == near(1_000.0)
    assert 10_000.0 - 25.0 + realised - clearance + cover == near(4_975.0)


def test_p16_gap_for_a_short() -> None:
    """E20. P-16."""
    price, executed, realised, clearance, cover = liquidated(-2.0, 40_000.0, 4_000.0, 43_000.0)
    assert price == near(41815.9203980100)
    assert executed == 43_000.0
    assert realised == near(-6_000.0)
    assert cover == near(2_000.0)
    assert realised - clearance + cover == near(-4_000.0)


def test_p17_mark_is_the_median_that_a_wick_in_last_does_not_move() -> None:
    """E20. P-17."""
    assert mark_price(60_000.0, 0.0001, 4.0, 12.0, 60_020.0) == near(60_012.0)
    assert mark_price(60_000.0, 0.0001, 4.0, 12.0, 55_000.0) == near(60_003.0)
    assert mark_price(60_000.0, 0.0001, 4.0, 12.0, 60_005.0) == near(60_005.0)


def test_p21_path_of_fills_and_funding() -> None:
    """E20. P-21."""
    wallet, quantity, entry = 10_000.0, 0.0, 0.0
    steps = (
        ("fill", 0.2, 50_000.0, 0.0005), ("funding", 50_500.0, 0.0001, 0.0), ("fill", -0.5, 51_000.0, 0.0002),
        ("funding", 50_800.0, 0.0003, 0.0), ("fill", 0.3, 50_000.0, 0.0005),
    )  # fmt: skip
    for kind, first, second, rate in steps:
        if kind == "fill":
            quantity, entry, realised = apply_fill(quantity, entry, first, second)
            wallet += realised - fee(first, second, rate)
        else:
            wallet -= funding_payment(quantity, first, second)
    assert quantity == pytest.approx(0.0, abs=1e-15)
    assert wallet == near(10_485.962)


@pytest.mark.parametrize(
    ("notional", "margin"),
    [(50e3, 200.0), (600e3, 2_950.0), (3e6, 18_550.0), (5e6, 38_550.0), (25e6, 368_550.0)],
)
def test_p22_maintenance_margins(notional: float, margin: float) -> None:
    """E20. P-22."""
    assert maintenance_margin(notional, BTC) == near(margin)


def test_p23_rounding_of_quantities_prices_and_the_minimum_notional() -> None:
    """E20, E54. P-23."""
    assert round_quantity(0.0127, 0.001) == 0.012
    assert round_quantity(-0.0127, 0.001) == -0.012
    assert round_quantity(0.3, 0.1) == near(0.3)  # 0.3 / 0.1 is 2.999..96 in floats and still three lots
    assert round_quantity(0.0009, 0.001) == 0.0
    assert round_quantity(0.0127, 0.0) == 0.0127
    assert round_price(60_000.04, 1.0, 0.1) == near(60_000.0)
    assert round_price(60_000.04, -1.0, 0.1) == near(60_000.1)
    assert round_price(60_000.1, 1.0, 0.1) == near(60_000.1)
    assert round_price(60_000.1, -1.0, 0.1) == near(60_000.1)
    assert order(change=0.001, price=60_000.0) == REJECT_NOTIONAL_LOW
    assert order(change=0.002, price=60_000.0) == 0
    assert order(quantity=1.0, entry=60_000.0, change=-0.001, price=60_000.0) == 0  # reduce-only is exempt


def test_r01_differential_sharpe_ratio() -> None:
    """E20. R-01."""
    mean, square = 0.0005, 0.0001
    for value, ratio, mean_after, square_after in (
        (0.002, 0.17465454502653846, 0.000515, 0.00009904),
        (-0.001, -0.1271295634633954, 0.00049985, 0.0000980596),
        (0.0005, 0.02528594581734432, 0.0004998515, 0.000097081504),
    ):
        found, mean, square = rewards.differential_sharpe(value, mean, square, 0.01)
        assert found == pytest.approx(ratio, rel=EXACT)
        assert mean == pytest.approx(mean_after, rel=EXACT)
        assert square == pytest.approx(square_after, rel=EXACT)
    assert rewards.differential_sharpe(0.01, 0.0, 0.0, 0.01)[0] == 0.0  # start-up: no variance yet


# --- accounting identities --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """The rules a book is kept with; a twin replaces one of them."""

    apply_fill: Callable[..., tuple[float, float, float]] = apply_fill
    fee: Callable[..., float] = fee
    funding_payment: Callable[..., float] = funding_payment
    settle_liquidation: Callable[..., tuple[float, float, float, float]] = settle_liquidation


@dataclass
class Account:
    """A book kept with the rules, beside a cash book that knows no entry price."""

    wallet: float = 1e6
    quantity: float = 0.0
    entry: float = 0.0
    cash: float = 1e6
    realised: float = 0.0
    paid: float = 0.0  # fees, funding and clearance, less cover

    def equity(self, mark: float) -> float:
        return self.wallet + self.quantity * (mark - self.entry)

    def fill(self, rules: Rules, change: float, price: float, rate: float) -> float:
        self.quantity, self.entry, realised = rules.apply_fill(self.quantity, self.entry, change, price)
        charged = rules.fee(change, price, rate)
        self.wallet += realised - charged
        self.realised += realised
        self.paid += abs(change) * price * rate
        self.cash -= change * price + abs(change) * price * rate
        return charged

    def fund(self, rules: Rules, mark: float, rate: float) -> float:
        payment = rules.funding_payment(self.quantity, mark, rate)
        self.wallet -= payment
        self.paid += self.quantity * mark * rate
        self.cash -= self.quantity * mark * rate
        return payment


def random_fill(rng: np.random.Generator, quantity: float, kind: str, price: float) -> float:
    """Signed change: open or add, close in part, close all, flip."""
    size = round(float(rng.uniform(0.001, 3.0)), 3)
    side = math.copysign(1.0, quantity) if quantity else float(rng.choice([-1.0, 1.0]))
    if kind == "part":
        return -quantity * round(float(rng.uniform(0.05, 0.95)), 3)
    if kind == "close":
        return -quantity
    if kind == "flip":
        return -quantity - side * size
    return side * size if abs(quantity) * price < 1e7 else -quantity


def violations_of_the_identities(rules: Rules, fills: int, seed: int) -> list[str]:
    """Keep a book over random fills and funding and return which identities broke first (1e-9 relative, 1e-6 drift)."""
    rng = np.random.default_rng(seed)
    account, mark = Account(), 50_000.0
    start, before, seen = (
        account.wallet,
        account.equity(mark),
        {"flip": 0, "part": 0, "close": 0, "add": 0, "funding": 0},
    )
    for step in range(fills):
        carried, paid = account.quantity, account.paid
        kind = str(rng.choice(["add", "part", "close", "flip"], p=[0.5, 0.25, 0.05, 0.2]))
        price = mark * math.exp(float(rng.normal(0.0, 0.003)))
        change = random_fill(rng, account.quantity, kind, price)
        if change != 0.0:
            account.fill(rules, change, price, float(rng.choice([0.0002, 0.0005, -0.0001])))
            seen[kind] += 1
        if rng.random() < 0.3:
            account.fund(rules, mark, float(rng.normal(0.0, 0.0005)))
            seen["funding"] += 1
        last, mark = mark, mark * math.exp(float(rng.normal(0.0, 0.002)))
        equity = account.equity(mark)
        scale = max(abs(equity), abs(account.quantity) * mark, start)
        expected = carried * (mark - last) + change * (mark - price) - (account.paid - paid)
        for broken, text in (
            (
                abs(account.wallet - (start + account.realised - account.paid)) > 1e-9 * scale,
                "1: wallet is the sum of its items",
            ),
            (abs(equity - before - expected) > 1e-9 * scale, "2: change of equity is market, fill and costs"),
            (abs(equity - (account.cash + account.quantity * mark)) > 1e-9 * scale, "3: state and cash book agree"),
        ):
            if broken:
                return [f"step {step}, identity {text}"]
        before = equity
    drift = abs(account.equity(mark) - (account.cash + account.quantity * mark))
    assert min(seen.values()) > fills // 50, seen
    return [f"final drift {drift}"] if drift > 1e-6 * scale else []


def kept_entry_on_flip(quantity: float, entry: float, change: float, price: float) -> tuple[float, float, float]:
    after, new, realised = apply_fill(quantity, entry, change, price)
    return after, (entry if after * quantity < 0.0 else new), realised


MUTANTS = {
    "fee sign": Rules(fee=lambda q, p, r: -fee(q, p, r)),
    "fee on signed quantity": Rules(fee=lambda q, p, r: q * p * r),
    "funding sign": Rules(funding_payment=lambda q, m, f: -funding_payment(q, m, f)),
    "funding on size": Rules(funding_payment=lambda q, m, f: abs(q) * m * f),
    "entry kept on a flip": Rules(apply_fill=kept_entry_on_flip),
}


def test_accounting_identities_hold_over_ten_thousand_random_fills() -> None:
    """E21. Identities 1 to 3."""
    print(f"seed {SEED}")
    assert violations_of_the_identities(Rules(), 10_000, SEED) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_accounting_identities_catch_a_planted_fault(name: str) -> None:
    """Twin of E21."""
    assert violations_of_the_identities(MUTANTS[name], 10_000, SEED) != []


def pair_total(rules: Rules, seed: int, rate: float = 0.0, funding: float = 0.0) -> float:
    """Largest sum of the gains of a long and its mirrored short over a path, as a share of the notional."""
    rng = np.random.default_rng(seed)
    long, short, mark, worst = Account(), Account(), 50_000.0, 0.0
    for _ in range(500):
        mark *= math.exp(float(rng.normal(0.0, 0.01)))
        change = round(float(rng.normal(0.0, 1.0)), 3)
        long.fill(rules, change, mark, rate)
        short.fill(rules, -change, mark, rate)
        long.fund(rules, mark, funding)
        short.fund(rules, mark, funding)
        total = long.equity(mark) + short.equity(mark) - 2e6
        worst = max(worst, abs(total) / 2e6)
    return worst


def test_a_mirrored_pair_without_costs_sums_to_zero() -> None:
    """E21. Identity 4."""
    print(f"seed {SEED}")
    assert pair_total(Rules(), SEED) <= 1e-12
    assert pair_total(Rules(), SEED, funding=0.0001) <= 1e-12  # what the long pays the short receives


def test_a_mirrored_pair_shows_a_planted_fault() -> None:
    """Twin of E21."""
    assert pair_total(Rules(), SEED, rate=0.0005) > 1e-6  # fees leave the pair
    assert pair_total(MUTANTS["funding on size"], SEED, funding=0.0001) > 1e-6  # both sides pay


def leaked_money(rules: Rules, seed: int) -> float:
    """Trade against a counterparty with fees, funding and liquidations; largest change of the total, relative."""
    rng = np.random.default_rng(seed)
    worst, liquidations, gaps = 0.0, 0, 0
    for _ in range(300):
        trader, other = Account(wallet=10_000.0), Account(wallet=1e6)
        venue, insurance, mark = 0.0, 1e6, 50_000.0
        total = trader.wallet + other.wallet + venue + insurance
        leverage = float(rng.choice([5.0, 10.0, 20.0]))
        change = float(rng.choice([-1.0, 1.0])) * round(0.9 * 10_000.0 * leverage / mark, 3)
        venue += trader.fill(rules, change, mark, 0.0005) + other.fill(rules, -change, mark, 0.0002)
        margin = abs(trader.quantity) * mark / leverage
        for _ in range(100):
            last, mark = mark, mark * math.exp(float(rng.standard_t(3)) * 0.01)
            margin -= trader.fund(rules, last, 0.0003)
            other.fund(rules, last, 0.0003)
            price = liquidation_price(trader.quantity, trader.entry, margin, BTC, 0.0)
            if trader.quantity and is_breached(trader.quantity, price, mark):
                executed, realised, clearance, cover = rules.settle_liquidation(
                    trader.quantity, trader.entry, margin, price, mark, 0.0125
                )
                closed = trader.quantity
                trader.wallet += realised - clearance + cover
                trader.quantity = trader.entry = 0.0
                venue += other.fill(rules, closed, executed, 0.0)
                insurance += clearance - cover
                liquidations, gaps = liquidations + 1, gaps + (cover > 0.0)
                assert trader.wallet >= -1e-9, f"wallet below zero: {trader.wallet}"
            now = trader.equity(mark) + other.equity(mark) + venue + insurance
            worst = max(worst, abs(now - total) / total)
    assert liquidations > 50, liquidations
    assert gaps > 10, gaps
    return worst


def test_trader_counterparty_venue_and_insurance_conserve_money() -> None:
    """E21, E22. Identity 5."""
    print(f"seed {SEED}")
    assert leaked_money(Rules(), SEED) <= 1e-12


def test_conservation_catches_funding_that_nobody_receives_and_a_liquidation_at_another_price() -> None:
    """Twin of E21 and E22."""

    def shifted(*arguments: float) -> tuple[float, float, float, float]:
        price, realised, clearance, cover = settle_liquidation(*arguments)
        return price * 0.999, realised, clearance, cover

    assert leaked_money(MUTANTS["funding on size"], SEED) > 1e-9
    assert leaked_money(Rules(settle_liquidation=shifted), SEED) > 1e-9


def test_the_floor_of_the_wallet_catches_a_gap_that_nobody_covers() -> None:
    def uncovered(*arguments: float) -> tuple[float, float, float, float]:
        return (*settle_liquidation(*arguments)[:3], 0.0)

    with pytest.raises(AssertionError, match="below zero"):
        leaked_money(Rules(settle_liquidation=uncovered), SEED)


# --- liquidation price ------------------------------------------------------------------------------------------------


def random_positions(rng: np.random.Generator, count: int, tiers: Floats) -> list[tuple[float, float, float, float]]:
    """Quantity, entry, margin and leverage over every tier; losses and funding may have drained the margin."""
    positions = []
    for _ in range(count):
        k = int(rng.integers(len(tiers)))
        low = tiers[k - 1, 0] if k else 10.0
        notional = math.exp(float(rng.uniform(math.log(low * 1.0001), math.log(tiers[k, 0]))))
        entry = math.exp(float(rng.uniform(math.log(0.01), math.log(100_000.0))))
        leverage = math.exp(float(rng.uniform(0.0, math.log(tiers[k, 1]))))
        quantity = math.copysign(notional / entry, float(rng.normal()))
        drained = float(rng.choice([1.0, rng.uniform(0.01, 1.0)]))
        positions.append((quantity, entry, drained * notional / leverage, leverage / drained))
    return positions


def off_balance(price_of: Callable[..., float], rng: np.random.Generator, tiers: Floats, count: int = 6_000) -> float:
    """Largest |margin balance - maintenance margin| at the liquidation price, as a share of the entry notional."""
    worst, reached = 0.0, set()
    for quantity, entry, margin, _ in random_positions(rng, count, tiers):
        price = price_of(quantity, entry, margin, tiers, 0.0)
        assert math.isfinite(price)
        if price <= 0.0:
            assert quantity > 0.0
            price = 0.0  # never liquidated: nothing may be owed even at a price of 0
        balance = margin + quantity * (price - entry)
        gap = abs(balance - maintenance_margin(abs(quantity) * price, tiers)) if price else max(0.0, -balance)
        worst = max(worst, gap / (abs(quantity) * entry))
        reached.add((tier_of(abs(quantity) * price, tiers), quantity > 0.0))
    assert len(reached) == 2 * len(tiers), f"tiers and sides reached: {sorted(reached)}"
    return worst


@pytest.mark.parametrize("tiers", [BTC, SOL], ids=["BTC", "SOL"])
def test_margin_balance_equals_maintenance_margin_at_the_liquidation_price(
    tiers: Floats, rng: np.random.Generator
) -> None:
    assert off_balance(liquidation_price, rng, tiers) <= 1e-12


def test_the_balance_check_catches_the_entry_tier_and_a_forgotten_amount(rng: np.random.Generator) -> None:
    def entry_tier(q: float, e: float, m: float, tiers: Floats, rate: float) -> float:
        return max(entry_tier_price(q, e, m, tiers, rate), 0.0)

    def without_amount(q: float, e: float, m: float, tiers: Floats, rate: float) -> float:
        flat = tiers.copy()
        flat[:, 3] = 0.0
        return float(liquidation_price(q, e, m, flat, rate))

    assert off_balance(entry_tier, rng, BTC) > 1e-6
    assert off_balance(without_amount, rng, BTC) > 1e-6


def unprotected(price_of: Callable[..., float], rng: np.random.Generator) -> int:
    """How many positions whose liquidation notional is exactly a tier's cap are said to have no liquidation price."""
    missed = 0
    for cap in BTC[:, 0]:
        for _ in range(400):
            size = int(rng.integers(1, 5_000)) * 0.001
            side = float(rng.choice([-1.0, 1.0]))
            price = cap / size
            entry = round(price * (1.0 + side * float(rng.uniform(0.001, 0.3))), 1)
            margin = maintenance_margin(cap, BTC) - side * size * (price - entry)
            if margin > 0.0 and entry > 0.0:
                missed += price_of(side * size, entry, margin, BTC, 0.0) != pytest.approx(price, rel=1e-9)
    return missed


def test_a_liquidation_price_on_the_edge_of_a_tier_is_found(rng: np.random.Generator) -> None:
    assert unprotected(liquidation_price, rng) == 0


def test_the_edge_check_catches_tiers_with_both_ends_open(rng: np.random.Generator) -> None:
    def strict(quantity: float, entry: float, margin: float, tiers: Floats, rate: float) -> float:
        side, size, lower = math.copysign(1.0, quantity), abs(quantity), 0.0
        for cap, _, maintenance, amount in tiers:
            price = (margin + amount - quantity * entry) / (size * (maintenance + rate - side))
            if lower < size * price < cap:
                return float(price)
            lower = cap
        return 0.0

    assert unprotected(strict, rng) > 0


def unordered(price_of: Callable[..., float], rng: np.random.Generator) -> int:
    """How often more margin brings the price closer, or a higher leverage moves it away."""
    wrong = 0
    for quantity, entry, margin, leverage in random_positions(rng, 3_000, BTC):
        factor = 1.0 + float(rng.uniform(0.001, 1.0))
        price = price_of(quantity, entry, margin, BTC, 0.0)
        richer = price_of(quantity, entry, margin * factor, BTC, 0.0)
        wrong += richer > price if quantity > 0.0 else richer < price
        bold = price_of(quantity, entry, abs(quantity) * entry / (leverage * factor), BTC, 0.0)
        wrong += bold < price if quantity > 0.0 else bold > price
    return wrong


def test_more_margin_never_brings_liquidation_closer_and_leverage_never_moves_it_away(rng: np.random.Generator) -> None:
    assert unordered(liquidation_price, rng) == 0


def test_the_order_check_catches_margin_with_the_wrong_sign(rng: np.random.Generator) -> None:
    assert unordered(lambda q, e, m, tiers, rate: liquidation_price(q, e, -m, tiers, rate), rng) > 0


def test_including_the_fee_never_moves_liquidation_away(rng: np.random.Generator) -> None:
    for quantity, entry, margin, _ in random_positions(rng, 1_000, BTC):
        plain, with_fee = (liquidation_price(quantity, entry, margin, BTC, rate) for rate in (0.0, 0.0005))
        assert with_fee >= plain if quantity > 0.0 else with_fee <= plain


def test_a_trader_never_loses_more_than_the_margin_in_a_liquidation(rng: np.random.Generator) -> None:
    for quantity, entry, margin, _ in random_positions(rng, 2_000, BTC):
        price = liquidation_price(quantity, entry, margin, BTC, 0.0)
        if price <= 0.0:
            continue
        opened = price * (1.0 - math.copysign(float(rng.uniform(-0.2, 0.5)), quantity) * 1.0)
        executed, realised, clearance, cover = settle_liquidation(quantity, entry, margin, price, opened, 0.0125)
        assert realised - clearance + cover >= -margin * (1.0 + 1e-9) - 1e-9
        assert min(clearance, cover) == 0.0
        assert executed == (min(price, opened) if quantity > 0.0 else max(price, opened))


# --- order size -------------------------------------------------------------------------------------------------------


def tightest(leverage: float, notional: float) -> float:
    """Leverage that the venue applies at a notional: what was asked for, cut to the tier's maximum."""
    return min(leverage, maximum_leverage(notional, BTC)) or leverage


@dataclass(frozen=True)
class Buyer:
    """A random account that wants a large opening or flipping order."""

    quantity: float
    entry: float
    change: float
    price: float
    wallet: float
    leverage: float

    def part(self) -> float:
        return float(
            affordable_quantity(
                self.quantity, self.entry, self.change, self.price, self.price, self.wallet, self.leverage, BTC, 0.0005
            )
        )

    def accepts(self, change: float) -> bool:
        notional = abs(self.quantity + change) * self.price
        code = check_order(
            self.quantity, self.entry, change, self.price, self.price, self.wallet, tightest(self.leverage, notional),
            BTC, 0.0005, 0.0, math.inf, 0.0, 0.05,
        )  # fmt: skip
        return bool(code == 0)


def random_buyers(rng: np.random.Generator, count: int) -> list[Buyer]:
    buyers = []
    for _ in range(count):
        price = math.exp(float(rng.uniform(math.log(0.5), math.log(1e5))))
        wallet = math.exp(float(rng.uniform(math.log(100.0), math.log(1e9))))
        leverage = math.exp(float(rng.uniform(0.0, math.log(125.0))))
        side = float(rng.choice([-1.0, 1.0]))
        kind = int(rng.integers(3))  # flat, adding, flipping
        held = 0.0 if kind == 0 else (1 if kind == 1 else -1) * side * float(rng.uniform(0.01, 0.8)) * wallet / price
        entry = price * math.exp(float(rng.normal(0.0, 0.1))) if held else 0.0
        wanted = abs(held) * (kind == 2) + math.exp(float(rng.uniform(-3.0, 4.0))) * wallet / price
        buyers.append(Buyer(held, entry, side * wanted, price, wallet, leverage))
    return buyers


def misjudged(part_of: Callable[[Buyer], float], rng: np.random.Generator) -> dict[str, int]:
    """Count orders that the venue would reject, and orders that could have been a thousandth larger."""
    counts = {"rejected": 0, "too small": 0, "cut": 0, "whole": 0, "flips": 0, "nothing": 0}
    for buyer in random_buyers(rng, 4_000):
        part = part_of(buyer)
        assert abs(part) <= abs(buyer.change) * (1.0 + 1e-12)
        assert part == 0.0 or (part > 0.0) == (buyer.change > 0.0)
        counts["flips"] += (buyer.quantity + part) * buyer.quantity < 0.0
        if part == 0.0:
            counts["nothing"] += 1
            least = math.copysign(1e-6 * buyer.wallet / buyer.price, buyer.change)
            counts["too small"] += buyer.accepts(least) and buyer.quantity * buyer.change >= 0.0
            continue
        counts["rejected"] += not buyer.accepts(part * (1.0 - 1e-12))
        if abs(part) >= abs(buyer.change) * (1.0 - 1e-9):
            counts["whole"] += 1
        else:
            counts["cut"] += 1
            counts["too small"] += buyer.accepts(part * 1.001)
    assert min(counts["cut"], counts["whole"], counts["flips"]) > 100, counts
    return counts


def test_the_affordable_part_passes_the_margin_check_and_a_little_more_does_not(rng: np.random.Generator) -> None:
    counts = misjudged(Buyer.part, rng)
    assert counts["rejected"] == counts["too small"] == 0, counts


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda buyer: replace(buyer, wallet=buyer.wallet * 1.01).part(), "rejected"),
        (lambda buyer: replace(buyer, wallet=buyer.wallet * 0.9).part(), "too small"),
        (lambda buyer: replace(buyer, entry=buyer.price).part(), "rejected"),  # the realised loss of a flip forgotten
    ],
    ids=["wallet too rich", "wallet too poor", "realised forgotten"],
)
def test_the_affordability_check_catches_a_planted_fault(
    fault: Callable[[Buyer], float], kind: str, rng: np.random.Generator
) -> None:
    assert misjudged(fault, rng)[kind] > 10


def overfilled(fill: Callable[..., float], rng: np.random.Generator) -> int:
    """How often a fill breaks the participation, the price bound, its sign or its size."""
    wrong = 0
    for _ in range(4_000):
        mark = math.exp(float(rng.uniform(-3.0, 11.0)))
        opened = mark * math.exp(float(rng.normal(0.0, 0.03)))
        volume, daily = (
            float(rng.choice([0.0, rng.lognormal(3.0, 3.0)])),
            float(rng.choice([0.0, rng.lognormal(6.0, 3.0)])),
        )
        wanted, sigma = float(rng.normal(0.0, 1.0) * rng.lognormal(2.0, 3.0)), float(rng.choice([0.0, 0.03, 0.3]))
        spread = float(rng.choice([0.0, 0.00005, 0.01]))
        filled = fill(wanted, volume, 0.1, opened, mark, 0.05, spread, sigma, daily, 1.0)
        side = math.copysign(1.0, wanted)
        price = fill_price(opened, side, spread, impact(filled, sigma, daily, 1.0))
        wrong += filled * wanted < 0.0 or abs(filled) > abs(wanted) or abs(filled) > 0.1 * volume * (1.0 + 1e-12)
        if filled != 0.0:
            wrong += side * (price - mark * (1.0 + side * 0.05)) > 1e-9 * mark
            if abs(filled) < 0.999 * min(abs(wanted), 0.1 * volume):  # then it was the bound that cut it
                more = fill_price(opened, side, spread, impact(1.001 * filled, sigma, daily, 1.0))
                wrong += side * (more - mark * (1.0 + side * 0.05)) < 0.0
    return wrong


def test_a_fill_respects_volume_and_price_bound_and_is_not_cut_without_need(rng: np.random.Generator) -> None:
    assert overfilled(fillable_quantity, rng) == 0


@pytest.mark.parametrize("fault", ["bound", "volume", "timid"])
def test_the_fill_check_catches_a_planted_fault(fault: str, rng: np.random.Generator) -> None:
    def fill(
        wanted: float, volume: float, share: float, opened: float, mark: float, bound: float, *rest: float
    ) -> float:
        if fault == "bound":
            return float(fillable_quantity(wanted, volume, share, opened, mark, 2.0 * bound, *rest))
        if fault == "volume":
            return float(fillable_quantity(wanted, volume, 2.0 * share, opened, mark, bound, *rest))
        return 0.5 * float(fillable_quantity(wanted, volume, share, opened, mark, bound, *rest))

    assert overfilled(fill, rng) > 0


def test_a_bar_without_volume_fills_nothing_and_an_open_beyond_the_bound_neither() -> None:
    assert fillable_quantity(1.0, 0.0, 0.1, 100.0, 100.0, 0.05, 0.0, 0.03, 50.0, 1.0) == 0.0
    assert fillable_quantity(1.0, 1e6, 0.1, 105.1, 100.0, 0.05, 0.0, 0.03, 50.0, 1.0) == 0.0
    assert fillable_quantity(-1.0, 1e6, 0.1, 105.1, 100.0, 0.05, 0.0, 0.0, 50.0, 1.0) == -1.0


def test_execution_costs_are_half_spread_and_square_root_impact() -> None:
    assert half_spread(60_000.0, 0.1, 0.00005) == 0.00005
    assert half_spread(100.0, 0.1, 0.00005) == near(0.0005)  # half a tick is wider
    assert impact(4.0, 0.02, 100.0, 1.0) == near(0.004)
    assert impact(-16.0, 0.02, 100.0, 1.0) == near(0.008)  # four times the size, twice the impact
    assert impact(4.0, 0.02, 0.0, 1.0) == 0.0
    assert fill_price(100.0, 1.0, 0.0005, 0.004) == near(100.45)
    assert fill_price(100.0, -1.0, 0.0005, 0.004) == near(99.55)


def test_quantities_round_toward_zero_to_whole_lots(rng: np.random.Generator) -> None:
    for _ in range(5_000):
        step = 10.0 ** int(rng.integers(-5, 3))
        lots = int(rng.integers(0, 10_000))
        assert round_quantity(lots * step, step) == lots * step  # whole lots stay
        value = float(rng.normal(0.0, 100.0)) * step
        rounded = round_quantity(value, step)
        assert abs(rounded) <= abs(value) * (1.0 + 1e-9) + 1e-9 * step
        assert abs(value - rounded) < step * (1.0 + 1e-9)
        assert round_quantity(-value, step) == -rounded


def test_limit_prices_never_round_in_the_accounts_favour(rng: np.random.Generator) -> None:
    for _ in range(5_000):
        price, tick = float(rng.uniform(0.1, 1e5)), float(rng.choice([0.01, 0.1, 0.5, 1.0]))
        assert price - tick < round_price(price, 1.0, tick) <= price + 1e-8 * tick
        assert price + tick > round_price(price, -1.0, tick) >= price - 1e-8 * tick


# --- order checks -----------------------------------------------------------------------------------------------------


def order(**changes: float) -> int:
    """Check an order at the BTC contract; a plain one of 0.01 at 60,000 passes."""
    values: dict[str, Any] = {
        "quantity": 0.0, "entry": 0.0, "change": 0.01, "price": 60_000.0, "mark": 60_000.0, "wallet": 10_000.0,
        "leverage": 10.0, "tiers": BTC, "fee_rate": 0.0005, "smallest": 0.001, "largest": 120.0,
        "least_notional": 100.0, "band": 0.05,
    } | changes  # fmt: skip
    return int(check_order(*values.values()))


def test_the_first_failing_check_gives_the_reason() -> None:
    wrong: dict[str, float] = {"change": 0.0005, "price": math.nan, "mark": 80_000.0, "leverage": 126.0, "wallet": -1.0}
    codes = []
    for mend in (
        {},
        {"price": 60_000.0},
        {"change": 0.001},
        {"change": 0.1},
        {"mark": 60_000.0},
        {"leverage": 125.0},
        {"wallet": 1e4},
    ):
        wrong |= mend
        codes.append(order(**wrong))
    assert codes == [
        REJECT_NOT_FINITE, REJECT_QUANTITY_LOW, REJECT_NOTIONAL_LOW, REJECT_PRICE_BAND, REJECT_TIER_LEVERAGE,
        REJECT_MARGIN, 0,
    ]  # fmt: skip
    assert order(**{**wrong, "change": 200.0, "mark": 80_000.0, "wallet": -1.0}) == REJECT_QUANTITY_HIGH


@pytest.mark.parametrize("name", ["change", "price", "mark", "leverage"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_order_with_a_number_that_is_not_finite_is_rejected(name: str, value: float) -> None:
    assert order(**{name: value}) == REJECT_NOT_FINITE


def test_an_order_beyond_the_last_tier_or_above_a_tiers_leverage_is_rejected_with_its_reason() -> None:
    """E55."""
    rich = {"wallet": 1e12, "largest": math.inf, "leverage": 1.0}
    assert order(**rich, change=1_799_999_000.0 / 60_000.0) == 0
    assert order(**rich, change=1_800_001_000.0 / 60_000.0) == REJECT_TIER_LEVERAGE
    assert (
        order(**rich, quantity=29_000.0, entry=60_000.0, change=1_100.0) == REJECT_TIER_LEVERAGE
    )  # the resulting notional
    assert order(**rich, quantity=-31_000.0, entry=60_000.0, change=100.0) == 0  # smaller is always allowed
    for cap, leverage, *_ in BTC:
        inside = {"wallet": 1e12, "largest": math.inf, "change": cap * (1.0 - 1e-9) / 60_000.0}
        assert order(**inside, leverage=leverage) == 0
        assert order(**inside, leverage=leverage + 1.0) == REJECT_TIER_LEVERAGE
    assert "tier maximum" in perpetual.ORDER_STATUS[REJECT_TIER_LEVERAGE]


def test_a_reducing_order_needs_no_margin_and_a_flip_is_not_one() -> None:
    assert is_reducing(1.0, -1.0)
    assert is_reducing(-1.0, 0.4)
    assert not is_reducing(1.0, -1.01)
    assert not is_reducing(1.0, 0.1)
    assert not is_reducing(0.0, 1.0)
    assert order(quantity=1.0, entry=60_000.0, change=-0.5, wallet=0.0) == 0
    assert order(quantity=1.0, entry=60_000.0, change=-1.5, wallet=0.0) == REJECT_MARGIN


def test_every_code_has_a_text() -> None:
    codes = [
        value
        for name, value in vars(perpetual).items()
        if name.startswith(("ORDER_", "REJECT_")) and isinstance(value, int)
    ]
    assert sorted(codes) == sorted(perpetual.ORDER_STATUS)
    assert len(set(perpetual.ORDER_STATUS.values())) == len(codes)


# --- compiled and interpreted -----------------------------------------------------------------------------------------


def draw(name: str, rng: np.random.Generator) -> Any:
    """A random value for an argument of a rule, by its name."""
    if name in ("quantity", "change", "wanted", "value"):
        return float(rng.choice([0.0, 1.0, -1.0, rng.normal() * 10.0 ** rng.integers(-4, 5)]))
    if name == "tiers":
        return BTC if rng.random() < 0.5 else SOL
    if name == "cross":
        return bool(rng.random() < 0.5)
    if name in ("side",):
        return float(rng.choice([-1.0, 1.0]))
    if name in ("equity", "start"):
        return float(rng.choice([0.0, 1e-9, 1.0]) * rng.uniform(1e3, 1e5) + (name == "start"))
    if name in ("leverage", "asked", "hours_to_funding", "interval_hours"):
        return float(rng.uniform(1.0, 125.0))
    if name in ("step", "tick", "smallest", "lot"):
        return 10.0 ** int(rng.integers(-4, 1))
    if name in SMALL:
        return float(rng.normal(0.001, 0.01))
    if name in ("impact_fraction", "spread", "daily_volatility", "participation", "bound", "band", "mean", "square"):
        return float(rng.uniform(0.0, 0.2))
    if name in MONEY:
        return float(np.exp(rng.uniform(-2.0, 14.0)))
    raise KeyError(f"no random values for an argument named {name!r}: add it here")


SMALL = ("rate", "fee_rate", "clearance_rate", "last_rate", "premium", "interest", "clamp", "cap", "coefficient")
MONEY = (
    "notional", "entry", "price", "closing_price", "mark", "index", "impact_bid", "impact_ask", "basis_average", "last",
    "margin",
    "liquidation", "opened", "volume", "daily_volume", "wallet", "largest", "least_notional", "before", "after",
    "start", "peak_before", "peak_after",
)  # fmt: skip
COMPILED = {
    f"{module.__name__}.{name}": value
    for module in (perpetual, rewards)
    for name, value in vars(module).items()
    if hasattr(value, "py_func") and value.__module__ == module.__name__
}


def bits(result: Any) -> list[bytes]:
    """The float64 bits of a result, number by number."""
    return [np.float64(value).tobytes() for value in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") != "0",
    reason="NUMBA_DISABLE_JIT: nothing is compiled, both are the same function",
)
def test_compiled_rules_and_plain_python_agree_bit_for_bit(rng: np.random.Generator) -> None:
    assert len(COMPILED) >= 20
    for name, rule in COMPILED.items():
        arguments = tuple(inspect.signature(rule.py_func).parameters)
        for _ in range(400):
            values = [draw(argument, rng) for argument in arguments]
            if name.endswith("bankruptcy_price"):  # of an open position only
                values[0] = values[0] or 1.0
            assert bits(rule(*values)) == bits(rule.py_func(*values)), f"{name}{tuple(values)}"


def test_the_bit_comparison_sees_the_last_bit() -> None:
    assert bits(1.0) != bits(np.nextafter(1.0, 2.0))
    assert bits((0.0,)) != bits((-0.0,))
