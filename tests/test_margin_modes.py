"""Cross margin and tiered liquidation: worked examples P-12, P-13, P-20, the books, and what a planted fault does."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from test_perp_env import (
    FEE_ONLY,
    FREE,
    SMALL,
    WILD,
    Infos,
    bar,
    check_books,
    environment,
    flat,
    mutant,
    play,
    script,
)

import regimegym  # noqa: F401 - registers the ids
from envs.make import build
from markets.contracts import BTC_TIERS
from markets.errors import UnknownNameError
from markets.perpetual import kept_in_tiered_liquidation, liquidation_price, maintenance_margin

BTC = np.array(BTC_TIERS, dtype=np.float64)
CROSS = {"margin_mode": "cross"}
TIERED = {"liquidation": "tiered"}
LOT = 0.001


# ---- cross margin -----------------------------------------------------------------------------------------------


def one_btc(last: dict[str, Any], action: float = 0.6, kernel: Any = None, **more: Any) -> Infos:
    """Long 1 BTC at 60,000 from a wallet of 10,000 (fee 30), then the bar ``last``."""
    settings = {**FEE_ONLY, "leverage": 10.0, **CROSS, **more}
    return play(script([flat(60_000.0), last]), (action, action), kernel, **settings)


def test_the_whole_wallet_backs_a_cross_position_as_in_p12() -> None:
    """E20. P-12."""
    opened = one_btc(flat(60_000.0))[1]
    assert opened["position"] == 1.0
    assert opened["wallet"] == 9_970.0
    assert opened["margin"] == 6_000.0, "the initial margin that the order asked for"
    assert opened["liquidation_price"] == pytest.approx(50231.1557788945, rel=1e-12)
    assert opened["margin_ratio"] == pytest.approx(maintenance_margin(60_000.0, BTC) / 9_970.0, rel=1e-12)
    isolated = one_btc(flat(60_000.0), margin_mode="isolated")[1]
    assert isolated["liquidation_price"] > opened["liquidation_price"]


def test_the_cross_formula_counts_other_positions_as_in_p13() -> None:
    """E20. P-13."""
    stake = 9_955.0 - 124.0 - 1_000.0  # wallet - maintenance margin + unrealised profit of the others
    assert liquidation_price(1.0, 60_000.0, stake, BTC, 0.0) == pytest.approx(51375.8793969849, rel=1e-12)


def test_a_cross_liquidation_takes_the_wallet_and_no_more() -> None:
    end = one_btc(bar(60_000.0, 60_000.0, 50_000.0, 55_000.0))[-1]
    assert end["liquidated"]
    assert end["ended_by"] == "liquidation"
    assert end["liquidated_at"] == pytest.approx(50231.1557788945, rel=1e-12)
    left = 9_970.0 + end["realised"]  # the maintenance margin, all of it asked for by the clearance fee
    assert end["clearance"] == pytest.approx(left, rel=1e-9)
    assert end["cover"] == 0.0
    assert end["wallet"] == end["equity"] == pytest.approx(0.0, abs=1e-9)


def test_the_fund_covers_a_gap_beyond_the_wallet() -> None:
    end = one_btc(bar(45_000.0, 46_000.0, 44_000.0, 45_500.0))[-1]
    assert end["liquidated_at"] == 45_000.0
    assert end["cover"] == pytest.approx(15_000.0 - 9_970.0, rel=1e-12)
    assert end["wallet"] == end["equity"] == 0.0


def test_a_wick_that_takes_an_isolated_margin_leaves_a_cross_position_open() -> None:
    wick = bar(60_000.0, 60_000.0, 53_000.0, 59_000.0)
    assert one_btc(wick, margin_mode="isolated")[-1]["liquidated"]
    assert not one_btc(wick)[-1]["liquidated"]


def test_mutant_a_cross_position_with_its_posted_margin_alone_is_found() -> None:
    """Twin of E20."""
    kernel = mutant(("return a[WALLET] if contract[CROSS] != 0.0 else a[MARGIN]", "return a[MARGIN]"))
    wrong = one_btc(flat(60_000.0), kernel=kernel)[1]
    assert wrong["liquidation_price"] != pytest.approx(50231.1557788945, rel=1e-6)


def test_an_unrealised_profit_carries_new_orders_in_cross_margin_only() -> None:
    """At 2x: 0.32 BTC at 60,000 (wallet 9,990); at 90,000 the equity of 19,600 carries 39,000, the wallet 19,980."""
    rows = [flat(60_000.0), flat(90_000.0), flat(90_000.0)]
    actions = (0.96, 0.96, 0.96)
    cross = play(script(rows), actions, leverage=2.0, **{**FREE, **CROSS})[-1]
    isolated = play(script(rows), actions, leverage=2.0, **FREE)[-1]
    assert cross["position"] * 90_000.0 == pytest.approx(0.96 * 2.0 * cross["equity"], rel=0.01)
    assert isolated["position"] == pytest.approx(0.32, abs=1e-12), "its wallet does not carry what it holds already"
    assert cross["position"] > 0.4


def test_funding_moves_a_cross_liquidation_price_through_the_wallet() -> None:
    settings = {**FEE_ONLY, "leverage": 10.0, **CROSS}
    bars = script([flat(60_000.0), flat(60_000.0)], [(1.0, 0.003)])
    infos = play(bars, (0.6, 0.6), None, **settings)
    assert infos[-1]["funding"] == pytest.approx(180.0)
    expected = liquidation_price(1.0, 60_000.0, 9_970.0 - 180.0, BTC, 0.0)
    assert infos[-1]["liquidation_price"] == pytest.approx(expected, rel=1e-12)
    assert infos[-1]["margin"] == 6_000.0


# ---- tiered liquidation -----------------------------------------------------------------------------------------


P20_PRICE = 57929.0387518873


def test_a_tier_is_enough_at_the_taker_fee_and_not_at_the_clearance_fee_as_in_p20() -> None:
    """E20. P-20."""
    price = liquidation_price(20.0, 60_000.0, 48_000.0, BTC, 0.0)
    assert price == pytest.approx(P20_PRICE, rel=1e-12)
    assert kept_in_tiered_liquidation(20.0, 60_000.0, 48_000.0, price, BTC, LOT, 0.0005) == pytest.approx(10.357)
    assert kept_in_tiered_liquidation(20.0, 60_000.0, 48_000.0, price, BTC, LOT, 0.0125) == 0.0


def twenty_btc(last: dict[str, Any], side: float = 1.0, kernel: Any = None, **more: Any) -> Infos:
    """Hold 20 BTC at 60,000, 25x (margin 48,000), from a wallet of 100,000; then the bar ``last``."""
    settings = {
        **FREE, **TIERED, "initial_equity": 100_000.0, "leverage": 25.0, "clearance_fee": 0.0005,
        "participation": 1.0, **more,
    }  # fmt: skip
    return play(script([flat(60_000.0), last]), (side * 0.48, side * 0.48), kernel, **settings)


def p20(kernel: Any = None) -> None:
    end = twenty_btc(bar(60_000.0, 60_000.0, P20_PRICE - 1.0, 59_000.0), kernel=kernel)[-1]
    assert end["liquidated"]
    assert not end["terminated"]
    assert end["position"] == pytest.approx(10.357, abs=1e-9)
    assert end["liquidated_quantity"] == pytest.approx(-9.643, abs=1e-9)
    assert end["realised"] == pytest.approx(-19970.2793155511, rel=1e-10)
    assert end["clearance"] == pytest.approx(9.643 * P20_PRICE * 0.0005, rel=1e-10)
    assert end["margin"] == pytest.approx(48_000.0 - 19970.2793155511 - end["clearance"], rel=1e-10)
    equity = end["margin"] + 10.357 * (P20_PRICE - 60_000.0)  # at the price of the liquidation
    assert equity == pytest.approx(6301.4701774031, rel=1e-10)
    assert maintenance_margin(10.357 * P20_PRICE, BTC) == pytest.approx(2949.8552717665, rel=1e-9)
    assert end["liquidation_price"] == pytest.approx(
        liquidation_price(10.357, 60_000.0, end["margin"], BTC, 0.0), rel=1e-12
    )
    assert end["liquidation_price"] < P20_PRICE


def test_a_tiered_liquidation_leaves_what_a_lower_tier_carries_as_in_p20() -> None:
    """E20, E56. P-20 through the env."""
    p20()


@pytest.mark.parametrize(
    "change",
    [
        ("a[LIQUIDATED] != 0.0 and a[POSITION] == 0.0", "a[LIQUIDATED] != 0.0"),  # a reduction ends the episode
        ("else a[MARGIN] + realised - clearance", "else a[MARGIN]"),  # the loss is not taken from the margin
        ("closed = quantity - kept", "closed = quantity"),  # what is kept is sold too
        ("if contract[TIERED] != 0.0:", "if False:"),
    ],
)
def test_mutant_a_fault_in_the_tiered_liquidation_fails_p20(change: tuple[str, str]) -> None:
    """Twin of E20 and E56."""
    kernel = mutant(change)
    with pytest.raises(AssertionError):
        p20(kernel)


def test_the_clearance_fee_of_the_default_leaves_nothing_to_keep() -> None:
    end = twenty_btc(bar(60_000.0, 60_000.0, P20_PRICE - 1.0, 59_000.0), clearance_fee=0.0125)[-1]
    assert end["position"] == 0.0
    assert end["terminated"]
    assert end["wallet"] == pytest.approx(100_000.0 - 48_000.0, abs=1e-6)


def test_a_bar_that_falls_on_liquidates_the_rest_and_the_average_price_keeps_the_books() -> None:
    reduced = twenty_btc(bar(60_000.0, 60_000.0, P20_PRICE - 1.0, 59_000.0))[-1]
    end = twenty_btc(bar(60_000.0, 60_000.0, 50_000.0, 55_000.0))[-1]
    assert end["position"] == 0.0
    assert end["terminated"]
    assert end["liquidated_quantity"] == pytest.approx(-20.0)
    rest = reduced["liquidation_price"]  # the second tier is not left again: the rest goes as a whole
    if kept_in_tiered_liquidation(10.357, 60_000.0, reduced["margin"], rest, BTC, LOT, 0.0005) == 0.0:
        average = (9.643 * P20_PRICE + 10.357 * rest) / 20.0
        assert end["liquidated_at"] == pytest.approx(average, rel=1e-10)
    assert rest < P20_PRICE
    assert end["wallet"] >= 100_000.0 - 48_000.0 - 1e-6


def test_a_gap_through_the_price_reduces_at_the_open() -> None:
    opened = P20_PRICE - 10.0
    end = twenty_btc(bar(opened, 60_000.0, opened - 1.0, 59_000.0))[-1]
    assert end["liquidated_at"] == opened
    kept = kept_in_tiered_liquidation(20.0, 60_000.0, 48_000.0, opened, BTC, LOT, 0.0005)
    assert end["position"] == pytest.approx(kept, abs=1e-9)
    assert 0.0 < kept < 20.0


def test_a_tiered_short_mirrors_a_long() -> None:
    price = liquidation_price(-20.0, 60_000.0, 48_000.0, BTC, 0.0)
    end = twenty_btc(bar(60_000.0, price + 1.0, 60_000.0, 60_500.0), side=-1.0)[-1]
    kept = kept_in_tiered_liquidation(-20.0, 60_000.0, 48_000.0, price, BTC, LOT, 0.0005)
    assert -20.0 < kept < 0.0
    assert end["position"] == pytest.approx(kept, abs=1e-9)
    assert end["liquidation_price"] > price


def test_what_is_kept_is_compliant_and_less_than_it_was() -> None:
    """1,000 random positions at their liquidation price."""
    generator = np.random.default_rng(3)
    reduced = 0
    for _ in range(1_000):
        entry = math.exp(generator.uniform(2.0, 11.0))
        notional = math.exp(generator.uniform(10.0, 20.0))
        quantity = float(generator.choice([-1.0, 1.0])) * notional / entry
        margin = notional / generator.uniform(1.0, 100.0)
        price = liquidation_price(quantity, entry, margin, BTC, 0.0)
        if price <= 0.0:
            continue
        kept = kept_in_tiered_liquidation(quantity, entry, margin, price, BTC, LOT, 0.0005)
        assert abs(kept) < abs(quantity)
        assert kept == 0.0 or (kept > 0.0) == (quantity > 0.0)
        if kept != 0.0:
            reduced += 1
            closed = quantity - kept
            rest = margin + closed * (price - entry) - abs(closed) * price * 0.0005
            assert rest + kept * (price - entry) > maintenance_margin(abs(kept) * price, BTC)
    assert reduced > 100, f"only {reduced} of 1,000 were reduced: the test has no power"


# ---- both -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leverage", [3.0, 20.0, 100.0])
@pytest.mark.parametrize("mode", [CROSS, TIERED, {**CROSS, **TIERED}], ids=["cross", "tiered", "cross and tiered"])
def test_every_step_reconciles_in_every_margin_mode(mode: dict[str, Any], leverage: float) -> None:
    """E21, E32. A wild market and a capital that reaches several tiers; check_books recomputes all from info."""
    counts = check_books(
        WILD + "&start_price=20000", 4_000, leverage=leverage, initial_equity=2e6, clearance_fee=0.0005,
        continue_after_liquidation=True, **mode,
    )  # fmt: skip
    if leverage >= 20.0:
        assert counts["liquidations"] > 0


def test_higher_leverage_is_never_liquidated_later_in_cross_margin() -> None:
    """E30. More leverage posts less margin, but in cross margin the wallet decides: the price is the same."""
    prices = [one_btc(flat(60_000.0), action=6.0 / leverage, leverage=leverage)[1] for leverage in (10.0, 20.0, 50.0)]
    assert len({info["liquidation_price"] for info in prices}) == 1


@pytest.mark.parametrize("arguments", [CROSS, TIERED, {**CROSS, **TIERED}], ids=str)
def test_a_lane_equals_the_single_env_in_every_margin_mode(arguments: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "bars": WILD, "leverage": 50.0, "episode_bars": 64, "clearance_fee": 0.0005, "initial_equity": 1e5, **arguments,
    }  # fmt: skip
    lanes = 3
    vector = gym.make_vec("PerpFutures-v0", lanes, "vector_entry_point", autoreset_mode="SameStep", **settings)
    vector.reset(seed=5)
    singles = [build("PerpFutures", **settings) for _ in range(lanes)]
    for lane, env in enumerate(singles):
        env.reset(seed=5 + lane)
    generator = np.random.default_rng(5)
    liquidated = 0
    for step in range(300):
        if step % 16 == 0:  # held for a while, or nothing would come near its liquidation price
            actions = generator.choice([-1.0, 0.5, 1.0], (lanes, 1)).astype(np.float32)
        observations, rewards, terminated, _, info = vector.step(actions)
        liquidated += int(np.sum(info["liquidated"] | terminated))
        for lane, env in enumerate(singles):
            obs, reward, died, stopped, _ = env.step(actions[lane])
            if died or stopped:
                obs, _ = env.reset()
            assert reward == rewards[lane]
            assert obs.tobytes() == observations[lane].tobytes()
    assert liquidated > 0


@pytest.mark.parametrize(("name", "value"), [("margin_mode", "crossed"), ("liquidation", "tier")])
def test_an_unknown_mode_names_the_nearest(name: str, value: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        environment(SMALL, **{name: value})
