"""Invariants of money over whole episodes: conservation, idling, round trips, telescoping, scale and symmetry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from registered import IDS, family, make
from test_perp_env import (
    FREE,
    NO_FRICTION,
    SMALL,
    WILD,
    Kernel,
    continuous,
    environment,
    mutant,
)

from envs import rewards
from markets import sources
from markets.bars import Bars
from markets.features import WARM_UP
from markets.perpetual import apply_fill

SEED = 91
Floats = np.ndarray[Any, Any]

FEE_SIGN = ("a[WALLET] += realised - paid", "a[WALLET] += realised + paid")
FUNDING_SIGN = ("a[WALLET] -= payment", "a[WALLET] += payment")

# ---- conservation -----------------------------------------------------------------------------------------------


def created_money(kernel: Kernel | None = None, steps: int = 3_000, leverage: float = 10.0) -> tuple[float, int, int]:
    """Largest change of trader + mirror + venue + insurance, as a share; how many liquidations and covers were met.

    The mirror takes the other side of every fill, stamp and liquidation of the trader; the venue gets the fees, the
    insurance fund the clearance fees, and pays the cover. Spread and impact are in the price the mirror trades at.
    """
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    env = environment(
        WILD, kernel, leverage=leverage, rebalance_band=min(2.0, 0.5 * leverage), continue_after_liquidation=True
    )
    worst, liquidations, stamps, action = 0.0, 0, 0, 0.0
    _, info = env.reset(seed=SEED)
    mirror, held, entry, venue, insurance = 0.0, 0.0, 0.0, 0.0, 0.0
    start = info["equity"]
    for _ in range(steps):
        if random.random() < 0.1:
            action = float(random.choice([-1.0, 1.0, 0.0, random.uniform(-1.0, 1.0)]))
        _, _, terminated, truncated, info = env.step([action])
        mirror += info["funding"]
        for change, price in (
            (-info["fill_quantity"], info["fill_price"]),
            (-info["liquidated_quantity"], info["liquidated_at"]),
        ):
            held, entry, realised = apply_fill(held, entry, change, price) if change else (held, entry, 0.0)
            mirror += realised
        venue += info["fee"]
        insurance += info["clearance"] - info["cover"]
        total = info["equity"] + mirror + held * (info["mark"] - entry) + venue + insurance
        scale = max(start, abs(held) * info["mark"])
        worst = max(worst, abs(total - start) / scale)
        liquidations, stamps = liquidations + info["liquidated"], stamps + (info["funding"] != 0.0)
        if terminated or truncated:
            _, info = env.reset()
            mirror, held, entry, venue, insurance, action = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    return worst, liquidations, stamps


@pytest.mark.parametrize("leverage", [1.0, 10.0, 50.0])
def test_trader_mirror_venue_and_insurance_fund_together_keep_what_there_was(leverage: float) -> None:
    """E22, E32. After every step, over fills, flips, stamps and liquidations."""
    worst, liquidations, stamps = created_money(leverage=leverage)
    assert worst <= 1e-9
    assert liquidations > 3 or leverage == 1.0
    assert stamps > 50


@pytest.mark.parametrize(
    "change",
    [
        FEE_SIGN, FUNDING_SIGN, ("realised - clearance + cover", "realised + cover"),
        ("a[LIQUIDATED_AT] = price", "a[LIQUIDATED_AT] = opened"),
    ],
    ids=["fee sign", "funding sign", "clearance fee", "price of a liquidation"],
)  # fmt: skip
def test_mutant_money_that_comes_from_nowhere_is_found(change: tuple[str, str]) -> None:
    """Twin of E22 and E32."""
    assert created_money(mutant(change), 1_500)[0] > 1e-6


# ---- doing nothing ----------------------------------------------------------------------------------------------


def check_idle(env: Any, name: str) -> None:
    _, first = env.reset(seed=SEED)
    over = False
    while not over:
        _, reward, terminated, truncated, info = env.step(family(name).idle)
        assert reward == 0.0
        assert info["equity"] == first["equity"]
        over = terminated or truncated
    assert (truncated, terminated) == (family(name).ends == "truncated", family(name).ends == "terminated")


@pytest.mark.parametrize("name", IDS)
def test_an_account_without_a_position_keeps_its_equity_exactly_and_earns_exactly_nothing(name: str) -> None:
    """E23."""
    check_idle(make(name), name)


def test_mutant_an_idle_account_that_drifts_in_the_last_digit_is_found() -> None:
    """Twin of E23."""
    fault = mutant(("    a[ROW] = row + 1\n", "    a[ROW] = row + 1\n    a[WALLET] = math.nextafter(a[WALLET], 0.0)\n"))
    with pytest.raises(AssertionError):
        check_idle(environment(SMALL, fault), IDS[0])


# ---- a round trip -----------------------------------------------------------------------------------------------


def round_trip(side: float, kernel: Kernel | None = None, **settings: float) -> tuple[float, float]:
    """Loss of opening and closing at an unchanged price, and what section 1.9 says it is."""
    bars = sources.load(SMALL).between(0, 1_000)
    row = 500
    columns = {name: value.copy() for name, value in bars.columns.items()}
    price = float(bars.open[row + 1, 0])
    for name, value in columns.items():
        if name != "volume":
            value[row + 1 : row + 4] = price  # two bars that stand still after a day that moved
    bars = replace(bars, **columns, funding_time=bars.funding_time[:0], funding_rate=bars.funding_rate[:0])
    env = environment(bars, kernel, leverage=3.0, tick_size=0.0, episode_bars=10, **settings)
    env.reset(seed=SEED, options={"start": bars.time[row]})
    opened = env.step([side * 0.9])[4]
    closed = env.step([0.0])[4]
    quantity = abs(opened["fill_quantity"])
    assert closed["position"] == 0.0
    assert quantity > 0.0
    returns = np.diff(np.log(bars.close[:, 0]))

    def pushed(last: int) -> float:
        """Y sigma_d sqrt(dQ / V_d) with the trailing day of 24 hourly bars that ends with row ``last``."""
        volatility = math.sqrt(np.mean(returns[last - 24 : last] ** 2) * 24.0)
        volume = float(bars.volume[last - 23 : last + 1, 0].sum())
        return settings.get("impact_coefficient", 1.0) * volatility * math.sqrt(quantity / volume)

    spread, fee = settings.get("half_spread", 0.00005), settings.get("taker_fee", 0.0005)
    first, second = pushed(row), pushed(row + 1)
    bought, sold = price * (1.0 + side * (spread + first)), price * (1.0 - side * (spread + second))
    wanted = quantity * (price * (2.0 * spread + first + second) + fee * (bought + sold))
    return 10_000.0 - closed["equity"], wanted


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("settings", [{}, {"impact_coefficient": 3.0}, {"half_spread": 0.001}, {"taker_fee": 0.0}])
def test_a_round_trip_costs_two_fees_two_half_spreads_and_the_impact_of_both_orders(
    side: float, settings: dict[str, float]
) -> None:
    """E26. By hand from the trailing day's returns and volumes."""
    lost, wanted = round_trip(side, **settings)
    assert lost == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [FEE_SIGN, ("side, spread, push)", "side, spread, 0.0)"), ("side, spread, push)", "side, 0.5 * spread, push)")],
    ids=["fee sign", "no impact", "half of the half spread"],
)
def test_mutant_a_cheaper_round_trip_is_found(change: tuple[str, str]) -> None:
    """Twin of E26."""
    lost, wanted = round_trip(1.0, mutant(change))
    assert lost != pytest.approx(wanted, rel=1e-6)


# ---- drawdown ---------------------------------------------------------------------------------------------------


def drawdown_gaps(kernel: Kernel | None = None) -> tuple[float, float]:
    """How far the rewards of the term are from the rises of drawdown, and its signed changes from the last drawdown."""
    random = np.random.default_rng(SEED)
    env = environment(SMALL, kernel, reward="drawdown", leverage=5.0, cost_scale=0.3)
    _, info = env.reset(seed=SEED)
    equity, peak = info["equity"], info["equity"]
    earned, rises, signed, over = 0.0, 0.0, 0.0, False
    while not over:
        _, reward, terminated, truncated, info = env.step([random.uniform(-1.0, 1.0)])
        after, top = info["equity"], max(peak, info["equity"])
        up = rewards.drawdown_increase(equity, peak, after, top)
        signed += up - rewards.drawdown_increase(after, top, equity, peak)
        rises, earned = rises + up, earned + reward
        equity, peak, over = after, top, terminated or truncated
    assert rises > 0.1
    return abs(earned + rises), abs(signed - (1.0 - equity / peak))


def test_signed_changes_of_drawdown_add_up_to_the_last_one_and_the_penalty_to_its_rises() -> None:
    """E27."""
    penalty, telescoped = drawdown_gaps()
    assert penalty <= 1e-9
    assert telescoped <= 1e-9


def test_mutant_a_drawdown_from_another_peak_is_found() -> None:
    """Twin of E27."""
    fault = mutant(("a[PEAK] = max(peak, a[EQUITY])", "a[PEAK] = peak"))
    assert drawdown_gaps(fault)[0] > 1e-6


# ---- scale ------------------------------------------------------------------------------------------------------


def returns_at(power: int, kernel: Kernel | None = None, **settings: Any) -> Floats:
    """Rewards of random targets with 10^k times the capital in a market of 10^k times the volume, costs included."""
    bars = sources.load(SMALL)
    bars = replace(bars, volume=bars.volume * 10.0**power)
    free = {"lot_step": 0.0, "minimum_notional": 0.0, "maximum_quantity": 1e300, "rebalance_band": 0.01}
    env = environment(bars, kernel, initial_equity=10.0 ** (4 + power), leverage=2.0, **{**free, **settings})
    env.reset(seed=SEED, options={"start": bars.time[400]})
    random = np.random.default_rng(SEED)
    return np.array([env.step([random.uniform(-1.0, 1.0)])[1] for _ in range(200)])


@pytest.mark.parametrize("power", [-6, -3, -1, 1, 3])
def test_ten_to_the_k_times_the_money_makes_the_same_returns(power: int) -> None:
    """E28. Fee, spread, impact and funding included; without lots and smallest notionals."""
    np.testing.assert_allclose(returns_at(power), returns_at(0), rtol=1e-9, atol=1e-12)


def test_mutant_a_minimum_notional_spoils_the_scale() -> None:
    """Twin of E28."""
    assert not np.allclose(returns_at(-3, minimum_notional=100.0), returns_at(0, minimum_notional=100.0))


# ---- symmetry ---------------------------------------------------------------------------------------------------


def mirrored(steps: Floats) -> tuple[Bars, Bars]:
    """Two markets whose log prices are mirror images."""
    return tuple(continuous(50_000.0 * np.exp(sign * np.cumsum(steps))) for sign in (1.0, -1.0))  # type: ignore[return-value]


def asymmetry(size: float, kernel: Kernel | None = None) -> float:
    """Largest difference of PnL per step of a long on a path and a short on its mirror image, in units of equity."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    markets = mirrored(size * random.standard_normal(1_500))
    actions = random.uniform(-1.0, 1.0, 300)
    gains = []
    for side, bars in zip((1.0, -1.0), markets, strict=True):
        env = environment(bars, kernel, leverage=5.0, rebalance_band=0.0, **{**NO_FRICTION, "taker_fee": 0.0})
        env.reset(seed=SEED, options={"start": bars.time[WARM_UP + 10]})
        infos = [env.step([side * action])[4] for action in actions]
        gains.append(np.array([info["market_pnl"] for info in infos]) / 10_000.0)
    assert np.abs(gains[0]).max() > size
    return float(np.abs(gains[0] - gains[1]).max())


def test_a_short_on_the_mirrored_path_earns_what_the_long_earns() -> None:
    """E29. Up to the second order of a step: a tenth of the step leaves a hundredth of the difference."""
    small, large = asymmetry(1e-5), asymmetry(1e-4)
    assert large < 100.0 * 1e-4**2 * 5.0
    assert small < large / 50.0


@pytest.mark.parametrize(
    "change",
    [
        ("return change / a[MARK] if", "return (change / a[MARK] if change > 0.0 else 0.99 * change / a[MARK]) if"),
        ("carried * (a[MARK] - mark)", "max(carried, 0.99 * carried) * (a[MARK] - mark)"),
    ],
    ids=["smaller shorts", "shorts that earn less"],
)
def test_mutant_a_short_that_is_treated_otherwise_is_found(change: tuple[str, str]) -> None:
    """Twin of E29."""
    assert asymmetry(1e-5, mutant(change)) > 100.0 * 1e-5**2 * 5.0


def test_funding_of_a_long_and_of_a_short_cancel_to_the_last_bit() -> None:
    """E29, E22. The same market, the same stamps, opposite sides."""
    paid: list[list[float]] = []
    for side in (1.0, -1.0):
        env = environment(SMALL, leverage=1.0, rebalance_band=0.4, **FREE)
        env.reset(seed=SEED, options={"start": sources.load(SMALL).time[500]})
        first = env.step([side * 0.5])[4]
        infos = [env.step([side * 0.5])[4] for _ in range(100)]
        assert {info["position"] for info in infos} == {first["position"]}
        paid.append([info["funding"] / info["position"] for info in infos])
    assert paid[0] == paid[1]
    assert sum(value != 0.0 for value in paid[0]) > 8
