"""PerpFutures step by step: books that reconcile, and hand-computed numbers for every event of a bar.

Scenarios are functions of the kernel they play on. Each runs on the compiled one, and on mutants: the kernel's own
source with one piece of text replaced, interpreted. A mutant must make its scenario fail.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import perp_columns, perp_kernel
from envs.perp_futures import PerpFutures, PerpFuturesConfig, PerpFuturesEnv
from markets import sources
from markets.bars import MARKS, PRICES, Bars
from markets.contracts import CONTRACTS
from markets.features import WARM_UP
from markets.perpetual import ORDER_STATUS

Kernel = Callable[..., int]
Infos = list[dict[str, Any]]

SEED = 11
SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
WILD = SMALL + "&annual_volatility=2.5"  # liquidations at every leverage
REAL = "parquet:perp_btcusdt_1h.parquet?funding=perp_btcusdt_funding_8h.parquet&symbol=BTCUSDT&start=2020-01-01"
HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
BEFORE = WARM_UP + 31  # flat bars before a script begins
TRAIN, VALIDATION = WARM_UP + 11, WARM_UP + 21  # rows that end the first two splits; the script lies in the third
FREE = {"taker_fee": 0.0, "half_spread": 0.0, "tick_size": 0.0, "impact_coefficient": 0.0}
FEE_ONLY = {"half_spread": 0.0, "tick_size": 0.0, "impact_coefficient": 0.0}
NO_FRICTION = {**FREE, "lot_step": 0.0, "minimum_notional": 0.0, "participation": 1.0}
CODES = {text: code for code, text in ORDER_STATUS.items()}


# ---- scripted markets -------------------------------------------------------------------------------------------


def bar(
    opened: float, high: float, low: float, close: float, volume: float = 1e6,
    mark: tuple[float, float, float, float] | None = None, skip: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One candle; ``mark`` differs from last where given; ``skip`` bars are missing before it."""
    return {
        "prices": (opened, high, low, close),
        "volume": volume,
        "mark": mark or (opened, high, low, close),
        "skip": skip,
    }


def flat(price: float, volume: float = 1e6, skip: int = 0) -> dict[str, Any]:
    return bar(price, price, price, price, volume, skip=skip)


def script(
    rows: Sequence[dict[str, Any]],
    funding: Sequence[tuple[float, float]] = (),
    interval: np.timedelta64 = HOUR,
    after: int = 3,
) -> Bars:
    """Flat bars for the warm-up, then ``rows``, then a few flat ones.

    Args:
        funding: stamps as (bars after the opening of the first scripted bar, rate); 0.5 is half-way through it.
    """
    first, last = rows[0]["prices"][0], rows[-1]["prices"][3]
    every = [flat(first)] * BEFORE + list(rows) + [flat(last)] * after
    steps = np.cumsum([row["skip"] + 1 for row in every])
    time = np.datetime64("2024-01-01", "ns") + (steps - steps[0]) * interval
    columns = {name: np.array([row["prices"][i] for row in every])[:, None] for i, name in enumerate(PRICES)}
    columns |= {name: np.array([row["mark"][i] for row in every])[:, None] for i, name in enumerate(MARKS)}
    begin = time[BEFORE - 1] + interval
    stamps = [
        begin + np.timedelta64(round(place * float(interval / np.timedelta64(1, "ns"))), "ns") for place, _ in funding
    ]
    return Bars(
        time=time, interval=interval, symbols=("BTCUSDT",), volume=np.array([row["volume"] for row in every])[:, None],
        funding_time=np.array(stamps, "datetime64[ns]"),
        funding_rate=np.array([rate for _, rate in funding]).reshape(-1, 1),
        **columns,
    )  # fmt: skip


def environment(bars: Bars | str, kernel: Kernel | None = None, **settings: Any) -> PerpFuturesEnv:
    """Build the env, with another kernel where one is given."""
    game = PerpFutures.game(PerpFuturesConfig(bars=bars, **settings))
    return PerpFuturesEnv(replace(game, kernel=kernel or game.kernel), PerpFutures.action_space())


def play(bars: Bars, actions: Sequence[float], kernel: Kernel | None = None, **settings: Any) -> Infos:
    """Take ``actions`` from the last flat bar on; the infos, each step's with its reward and flags."""
    env = environment(
        bars,
        kernel,
        split="test",
        train_end=str(bars.close_time[TRAIN]),
        validation_end=str(bars.close_time[VALIDATION]),
        **settings,
    )
    _, info = env.reset(seed=SEED, options={"start": bars.time[BEFORE - 1]})
    infos = [info]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step([action])
        assert env.observation_space.contains(obs)
        assert math.isfinite(reward)
        infos.append({**info, "reward": reward, "terminated": terminated, "truncated": truncated})
        check_step(infos[-2], info)
        if terminated or truncated:
            break
    return infos


def mutant(*changes: tuple[str, str]) -> Kernel:
    """Return the step of the kernel's source with pieces of text replaced; interpreted, not compiled."""
    source = Path(perp_kernel.__file__).read_text()
    for old, new in (("from markets.compiled import compiled", "compiled = lambda function: function"), *changes):
        if old not in source:  # no AssertionError: that is what a mutant is expected to raise
            raise LookupError(f"the text that a mutant replaces is gone: {old!r}")
        source = source.replace(old, new)
    module = types.ModuleType("mutant_kernel")
    exec(compile(source, "mutant_kernel", "exec"), module.__dict__)
    step: Kernel = module.step
    return step


# ---- books ------------------------------------------------------------------------------------------------------


def check_step(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The items of a step add up to its change of equity."""
    change = (
        after["market_pnl"] - after["fee"] - after["spread_cost"] - after["impact_cost"] - after["funding"]
        - after["clearance"] + after["cover"]
    )  # fmt: skip
    scale = max(abs(before["equity"]), abs(after["equity"]), abs(after["position"]) * after["mark"], 1.0)
    assert abs(after["equity"] - before["equity"] - change) <= 1e-9 * scale, "the items do not add up"
    assert after["equity"] >= -1e-9 * scale, "negative equity"


class Ledger:
    """Keeps the account a second time, from fills, fees, funding and liquidations in ``info`` and nothing else."""

    def __init__(self, start: float) -> None:
        self.wallet, self.quantity, self.entry = start, 0.0, 0.0

    def fill(self, change: float, price: float) -> None:
        closing = min(abs(change), abs(self.quantity)) if self.quantity * change < 0 else 0.0
        self.wallet += math.copysign(closing, self.quantity) * (price - self.entry)
        after = self.quantity + change
        if closing == 0.0 and change != 0.0:
            self.entry = (self.quantity * self.entry + change * price) / after
        elif abs(change) > closing:
            self.entry = price
        self.quantity = 0.0 if abs(after) < 1e-12 else after

    def book(self, info: dict[str, Any]) -> None:
        self.wallet -= info["funding"]
        self.fill(info["fill_quantity"], info["fill_price"])
        self.wallet -= info["fee"]
        if info["liquidated"]:
            self.fill(info["liquidated_quantity"], info["liquidated_at"])
            self.wallet += info["cover"] - info["clearance"]

    def check(self, info: dict[str, Any]) -> None:
        scale = max(10_000.0, abs(self.quantity) * info["mark"])
        equity = self.wallet + self.quantity * (info["mark"] - self.entry)
        assert abs(self.wallet - info["wallet"]) <= 1e-9 * scale, "wallet"
        assert abs(self.quantity - info["position"]) <= 1e-9 * max(1.0, abs(self.quantity)), "position"
        assert abs(equity - info["equity"]) <= 1e-9 * scale, "equity"


def check_books(bars: str | Bars, steps: int = 10_000, kernel: Kernel | None = None, **settings: Any) -> dict[str, int]:
    """Play random targets, some held for a while; reconcile every step; return how often each event was met."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    env = environment(bars, kernel, **settings)
    _, before = env.reset(seed=SEED)
    ledger = Ledger(before["equity"])
    met = dict.fromkeys(("fills", "flips", "funding", "liquidations", "covers", "partial", "ends"), 0)
    action = 0.0
    for _ in range(steps):
        if random.random() < 0.3:
            action = float(random.choice([random.uniform(-1.2, 1.2), 0.0, 1.0, -1.0, random.uniform(-0.1, 0.1)]))
        obs, reward, terminated, truncated, info = env.step([action])
        assert math.isfinite(reward)
        assert env.observation_space.contains(obs)
        assert reward == pytest.approx(sum(info["reward_terms"].values()), rel=1e-12, abs=1e-15)
        check_step(before, info)
        ledger.book(info)
        ledger.check(info)
        met["fills"] += info["fill_quantity"] != 0
        met["flips"] += before["position"] * info["position"] < 0
        met["funding"] += info["funding"] != 0
        met["liquidations"] += info["liquidated"]
        met["covers"] += info["cover"] > 0
        met["partial"] += info["order_code"] == CODES["partially filled"]
        before = info
        if terminated or truncated:
            met["ends"] += 1
            _, before = env.reset()
            ledger = Ledger(before["equity"])
    return met


@pytest.mark.parametrize("go_on", [False, True])
@pytest.mark.parametrize("leverage", [3.0, 20.0, 100.0])
def test_every_step_reconciles_and_info_alone_recomputes_the_account_on_a_synthetic_market(
    leverage: float, go_on: bool
) -> None:
    """E21, E32."""
    met = check_books(
        WILD, leverage=leverage, continue_after_liquidation=go_on, reward="log_return=1,costs=0.1,funding=2"
    )
    print(met)
    assert min(met[event] for event in ("fills", "flips", "funding", "ends")) > 10
    assert met["liquidations"] > 5 or leverage == 3.0


@pytest.mark.skipif(not os.environ.get("REGIMEGYM_DATA"), reason="REGIMEGYM_DATA names no folder with real bars")
@pytest.mark.parametrize("go_on", [False, True])
@pytest.mark.parametrize("leverage", [3.0, 20.0, 100.0])
def test_every_step_reconciles_and_info_alone_recomputes_the_account_on_real_bars(leverage: float, go_on: bool) -> None:
    """E21, E32."""
    met = check_books(REAL, leverage=leverage, continue_after_liquidation=go_on)
    print(met)
    assert min(met[event] for event in ("fills", "flips", "funding", "ends")) > 10
    assert met["liquidations"] > 5 or leverage == 3.0


@pytest.mark.parametrize(
    "change",
    [
        ("a[WALLET] += realised - paid", "a[WALLET] += realised + paid"),
        ("a[WALLET] -= payment", "a[WALLET] += payment"),
        ("a[FUNDING] += payment", "a[FUNDING] = 0.0"),
        ("realised - clearance + cover", "realised + cover"),
        ("a[LIQUIDATED_AT] = price", "a[LIQUIDATED_AT] = opened"),
        ("a[FILL_QUANTITY] * (a[MARK] - reference)", "a[FILL_QUANTITY] * (a[MARK] - opened)"),
        ("a[IMPACT_COST] = abs(change) * opened * push", "a[IMPACT_COST] = 0.0"),
        ("_, a[ENTRY], realised = apply_fill(before, a[ENTRY], change, price)", "a[ENTRY], realised = price, 0.0"),
    ],
)
def test_mutant_a_booking_fault_breaks_the_books(change: tuple[str, str]) -> None:
    """Twin of E21 and E32."""
    with pytest.raises(AssertionError):
        check_books(WILD, 3_000, mutant(change), leverage=20.0, continue_after_liquidation=True)


def test_the_interpreted_kernel_without_a_fault_keeps_its_books() -> None:
    assert check_books(SMALL, 1_000, mutant(), leverage=20.0) == check_books(SMALL, 1_000, leverage=20.0)


def check_cover(kernel: Kernel | None = None, steps: int = 5_000, leverage: float = 10.0) -> None:
    """Trade a little whenever liquidation is near: the insurance fund pays only where mark opened beyond that price."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    env = environment(WILD, kernel, leverage=leverage, continue_after_liquidation=True, rebalance_band=0.0)
    market = env.simulation.game.market
    _, before = env.reset(seed=SEED)
    action = 0.0
    for count in range(steps):
        exposure = before["position"] * before["mark"] / (leverage * before["equity"])
        near = abs(before["mark"] / before["liquidation_price"] - 1.0) < 0.3 / leverage if exposure else False
        if near:
            action = float(np.clip(exposure * random.choice([0.7, 0.9, 1.1]), -1.0, 1.0))
        elif random.random() < 0.05:
            action = float(random.uniform(-1, 1))
        elif exposure:
            action = exposure
        _, _, terminated, truncated, info = env.step([action])
        if info["cover"] > 1e-9 and info["funding"] == 0.0:
            assert before["position"] != 0.0, f"step {count}: cover without a carried position"
            beyond = market[int(env.simulation.rows[0]), perp_columns.MARK_OPEN] - before["liquidation_price"]
            assert math.copysign(1.0, before["position"]) * beyond <= 0.0, (
                f"step {count}: cover {info['cover']} without a gap"
            )
        before = info
        if terminated or truncated:
            _, before = env.reset()


@pytest.mark.parametrize("leverage", [3.0, 10.0, 50.0])
def test_the_insurance_fund_pays_for_gaps_only_whatever_is_traded_near_liquidation(leverage: float) -> None:
    check_cover(leverage=leverage)


def test_mutant_a_margin_smaller_than_the_loss_is_paid_for_by_the_insurance_fund() -> None:
    with pytest.raises(AssertionError, match="without a gap"):
        check_cover(mutant(("a[MARGIN] = min(", "a[MARGIN] = 0.3 * min(")))


# ---- scenarios with numbers by hand -----------------------------------------------------------------------------


def fully_exposed(
    kernel: Kernel | None, last: dict[str, Any], actions: Sequence[float] = (0.5, 0.5), **more: Any
) -> Infos:
    """Long 1 BTC at 50,000 with 10x (margin 5,000, opening fee 25), then the bar ``last``."""
    funding = more.pop("funding", ())
    return play(script([flat(50_000.0), last], funding), actions, kernel, **{**FEE_ONLY, "leverage": 10.0, **more})


def p01_opens_with_the_margin_and_liquidation_price_of_the_table(kernel: Kernel | None = None) -> None:
    """E20. P-01 and P-02 in the environment."""
    opened = fully_exposed(kernel, flat(50_000.0))[1]
    assert opened["position"] == 1.0
    assert opened["fill_price"] == 50_000.0
    assert opened["fee"] == 25.0
    assert opened["margin"] == 5_000.0
    assert opened["wallet"] == 9_975.0
    assert opened["contract_leverage"] == 10.0
    assert opened["liquidation_price"] == pytest.approx(45180.7228915663, rel=1e-12)
    assert opened["margin_ratio"] == pytest.approx(200.0 / 5_000.0, rel=1e-12)
    short = fully_exposed(kernel, flat(50_000.0), (-0.5,))[1]
    assert short["position"] == -1.0
    assert short["liquidation_price"] == pytest.approx(54776.1194029851, rel=1e-12)


def p14_liquidation_takes_the_margin_and_no_more(kernel: Kernel | None = None) -> None:
    """E20, E56. P-14."""
    end = fully_exposed(kernel, bar(50_000.0, 50_000.0, 45_000.0, 46_000.0))[-1]
    assert end["liquidated"]
    assert end["terminated"]
    assert not end["truncated"]
    assert end["ended_by"] == "liquidation"
    assert end["liquidated_at"] == pytest.approx(45180.7228915663, rel=1e-12)
    assert end["realised"] == pytest.approx(-4819.2771084337, rel=1e-10)
    assert end["clearance"] == pytest.approx(180.7228915663, rel=1e-9)
    assert end["cover"] == 0.0
    assert end["wallet"] == end["equity"] == pytest.approx(4_975.0, abs=1e-8)
    assert end["position"] == end["margin"] == end["entry_price"] == end["liquidation_price"] == 0.0


def p15_a_gap_through_bankruptcy_is_covered(kernel: Kernel | None = None) -> None:
    """E20, E56. P-15."""
    end = fully_exposed(kernel, bar(44_000.0, 46_000.0, 43_000.0, 45_500.0))[-1]
    assert end["liquidated_at"] == 44_000.0
    assert end["realised"] == -6_000.0
    assert end["cover"] == pytest.approx(1_000.0, abs=1e-8)
    assert end["clearance"] == 0.0
    assert end["wallet"] == pytest.approx(4_975.0, abs=1e-8)


def p16_so_is_a_gap_over_a_short(kernel: Kernel | None = None) -> None:
    """E20, E56. P-16."""
    rows = [flat(40_000.0), bar(43_000.0, 43_500.0, 42_000.0, 42_000.0)]
    infos = play(script(rows), (-0.4, -0.4), kernel, leverage=20.0, **FEE_ONLY)
    assert infos[1]["position"] == -2.0
    assert infos[1]["margin"] == pytest.approx(4_000.0)
    assert infos[1]["liquidation_price"] == pytest.approx(41815.9203980100, rel=1e-12)
    end = infos[-1]
    assert end["liquidated_at"] == 43_000.0
    assert end["realised"] == pytest.approx(-6_000.0)
    assert end["cover"] == pytest.approx(2_000.0, abs=1e-8)
    assert end["wallet"] == pytest.approx(10_000.0 - 40.0 - 4_000.0, abs=1e-8)


def leverage_125_dies_in_a_bar_of_half_a_percent(kernel: Kernel | None = None) -> None:
    """E56."""
    infos = play(
        script([flat(50_000.0), bar(50_000.0, 50_000.0, 49_750.0, 50_000.0)]),
        (0.04, 0.04),
        kernel,
        leverage=125.0,
        **FEE_ONLY,
    )
    assert infos[1]["position"] == 1.0
    assert infos[1]["margin"] == 400.0
    assert infos[1]["liquidation_price"] == pytest.approx(49799.1967871486, rel=1e-12)
    end = infos[-1]
    assert end["liquidated"]
    assert end["terminated"]
    assert end["wallet"] == pytest.approx(10_000.0 - 25.0 - 400.0, abs=1e-8)


def a_liquidation_at_the_open_cancels_the_waiting_order(kernel: Kernel | None = None) -> None:
    """E57."""
    end = fully_exposed(
        kernel, bar(44_000.0, 46_000.0, 43_000.0, 45_500.0), (0.5, -0.5), continue_after_liquidation=True
    )[2]
    assert end["liquidated_at"] == 44_000.0
    assert end["liquidated_quantity"] == -1.0
    assert end["fill_quantity"] == end["fee"] == end["position"] == 0.0
    assert not end["terminated"]


def a_position_closed_at_the_open_is_not_exposed_to_the_bar(kernel: Kernel | None = None) -> None:
    end = fully_exposed(kernel, bar(50_000.0, 50_000.0, 30_000.0, 30_000.0), (0.5, 0.0))[2]
    assert not end["liquidated"]
    assert end["position"] == 0.0
    assert end["equity"] == pytest.approx(10_000.0 - 25.0 - 25.0, abs=1e-8)


def a_position_opened_at_the_open_is_exposed_to_the_bar(kernel: Kernel | None = None) -> None:
    infos = play(script([bar(50_000.0, 50_000.0, 45_000.0, 49_000.0)]), (0.5,), kernel, leverage=10.0, **FEE_ONLY)
    assert infos[1]["liquidated"]
    assert infos[1]["fill_quantity"] == 1.0
    assert infos[1]["liquidated_quantity"] == -1.0
    assert infos[1]["liquidated_at"] == pytest.approx(45180.7228915663, rel=1e-12)
    assert infos[1]["equity"] == pytest.approx(4_975.0, abs=1e-8)


def a_wick_that_mark_does_not_follow_does_not_liquidate(kernel: Kernel | None = None) -> None:
    wick = bar(50_000.0, 50_000.0, 30_000.0, 49_950.0, mark=(50_000.0, 50_000.0, 49_900.0, 49_960.0))
    end = fully_exposed(kernel, wick)[2]
    assert not end["liquidated"]
    assert not end["terminated"]
    assert end["equity"] == pytest.approx(9_975.0 - 40.0, abs=1e-8), "equity is taken at mark"


def funding_at_the_open_is_for_the_carried_position(kernel: Kernel | None = None) -> None:
    """E57."""
    rows, rate = [flat(50_000.0)] * 3, 0.0001
    opened, held, closed = play(
        script(rows, [(0.0, rate), (1.0, rate), (2.0, -3 * rate)]), (0.5, 0.5, 0.0), kernel, leverage=10.0, **FEE_ONLY
    )[1:]
    assert opened["funding"] == 0.0, "opened at the stamp: pays nothing"
    assert held["funding"] == pytest.approx(5.0, rel=1e-12)
    assert held["margin"] == pytest.approx(4_995.0, rel=1e-12), "charged to the position's margin first"
    assert held["liquidation_price"] == pytest.approx((50_000.0 - 4_995.0) / 0.996, rel=1e-12)
    assert closed["funding"] == pytest.approx(-15.0, rel=1e-12), "closed at the stamp: still carried into it"
    assert closed["wallet"] == pytest.approx(10_000.0 - 25.0 - 5.0 + 15.0 - 25.0, rel=1e-12)


def funding_order_and_later_funding_of_one_bar_come_in_that_order(kernel: Kernel | None = None) -> None:
    """E57."""
    end = fully_exposed(
        kernel, flat(50_000.0), (0.5, -0.5), funding=[(1.0, 0.0001), (1.5, 0.0002)], rebalance_band=0.0
    )[2]
    after = end["position"]
    assert after == pytest.approx(-0.997)  # wanted: -0.5 x 10 x 9,975 / 50,000 - 1 = -1.9975, in lots -1.997
    assert end["funding"] == pytest.approx(50_000.0 * (1.0 * 0.0001 + after * 0.0002), rel=1e-12)


def funding_inside_a_bar_is_taken_at_the_last_known_mark(kernel: Kernel | None = None) -> None:
    end = fully_exposed(kernel, bar(50_000.0, 52_000.0, 49_500.0, 51_000.0), funding=[(1.5, 0.001)])[2]
    assert end["funding"] == pytest.approx(50.0, rel=1e-12)
    assert end["equity"] == pytest.approx(9_975.0 - 50.0 + 1_000.0, rel=1e-12)


def funding_at_the_open_alone_makes_a_position_liquidatable(kernel: Kernel | None = None) -> None:
    """E57, E58."""
    fall = bar(45_300.0, 45_400.0, 45_300.0, 45_400.0)
    assert not fully_exposed(kernel, fall)[2]["liquidated"]
    end = fully_exposed(kernel, fall, (0.5, -0.5), funding=[(1.0, 0.01)])[2]
    assert end["liquidated"]
    assert end["fill_quantity"] == 0.0, "the waiting order is cancelled"
    assert end["funding"] == pytest.approx(453.0, rel=1e-12)
    assert end["liquidated_at"] == 45_300.0  # the liquidation price rose to 45,635.54, above the open
    assert end["realised"] == pytest.approx(-4_700.0)
    assert end["cover"] == pytest.approx(153.0, abs=1e-8)
    assert end["wallet"] == pytest.approx(4_975.0, abs=1e-8)


def funding_inside_a_bar_alone_makes_a_position_liquidatable(kernel: Kernel | None = None) -> None:
    """E58."""
    dip = bar(50_000.0, 50_000.0, 45_300.0, 49_000.0)
    assert not fully_exposed(kernel, dip)[2]["liquidated"]
    end = fully_exposed(kernel, dip, funding=[(1.5, 0.01)])[2]
    assert end["liquidated"]
    assert end["funding"] == pytest.approx(500.0, rel=1e-12)
    assert end["liquidated_at"] == pytest.approx(45_500.0 / 0.996, rel=1e-12)
    assert end["clearance"] == pytest.approx(4_500.0 + 45_500.0 / 0.996 - 50_000.0, rel=1e-9)
    assert end["wallet"] == pytest.approx(4_975.0, abs=1e-8)


def a_daily_bar_is_charged_all_three_stamps(kernel: Kernel | None = None) -> None:
    rows = [flat(50_000.0), bar(50_000.0, 51_000.0, 49_000.0, 50_500.0)]
    stamps = [(1.0, 0.0001), (1.0 + 1 / 3, 0.0002), (1.0 + 2 / 3, 0.0004)]
    end = play(script(rows, stamps, DAY), (0.5, 0.5), kernel, leverage=10.0, **FEE_ONLY)[2]
    assert end["funding"] == pytest.approx(5.0 + 10.0 + 20.0, rel=1e-12)
    late = play(script(rows, stamps, DAY), (0.0, 0.5), kernel, leverage=10.0, **FEE_ONLY)[2]
    assert late["funding"] == pytest.approx(10.0 + 20.0, rel=1e-12), "opened at midnight: the later two"


def stamps_in_a_gap_of_missing_bars_are_charged_at_the_last_mark(kernel: Kernel | None = None) -> None:
    """E42."""
    rows = [flat(50_000.0), flat(51_000.0, skip=10)]
    stamps = [(3.0, 0.0001), (6.5, 0.0002), (11.0, 0.001)]
    end = play(script(rows, stamps), (0.5, 0.0), kernel, leverage=10.0, **FEE_ONLY)[2]
    assert end["funding"] == pytest.approx(50_000.0 * 0.0003 + 51_000.0 * 0.001, rel=1e-12)
    assert end["fill_price"] == 51_000.0, "an order waits for the market to reopen"
    assert end["time"] - play(script(rows), (0.5,), leverage=10.0)[1]["time"] == 11 * HOUR
    none = play(script(rows, stamps), (0.0, 0.5), kernel, leverage=10.0, **FEE_ONLY)[2]
    assert none["funding"] == 0.0
    assert none["position"] != 0.0


def p2_a_short_of_one_btc_earns_126_in_a_week_at_one_basis_point(kernel: Kernel | None = None) -> None:
    rows = [flat(60_000.0)] * 170
    infos = play(
        script(rows, [(float(hour), 0.0001) for hour in range(0, 169, 8)]),
        [-0.6] * 169,
        kernel,
        leverage=10.0,
        rebalance_band=0.5,
        **FREE,
    )
    assert infos[1]["position"] == -1.0
    assert sum(info["funding"] for info in infos[1:]) == pytest.approx(-126.0, rel=1e-12)
    assert infos[-1]["equity"] == pytest.approx(10_126.0, rel=1e-12)


def participation_limits_a_fill_and_the_rest_comes_with_the_next_bars(kernel: Kernel | None = None) -> None:
    rows = [flat(50_000.0, 10.0), flat(50_000.0, 5.0), flat(50_000.0, 1e6)]
    infos = play(script(rows), [1.0] * 3, kernel, leverage=10.0, **FREE)
    assert [info["position"] for info in infos[1:]] == [1.0, 1.5, 2.0]
    assert [info["order_quantity"] for info in infos[1:]] == [2.0, 1.0, 0.5]
    assert [info["order_code"] for info in infos[1:]] == [CODES["partially filled"]] * 2 + [CODES["filled"]]


def a_bar_without_volume_fills_nothing(kernel: Kernel | None = None) -> None:
    """E44."""
    rows = [flat(50_000.0, 0.0), flat(50_000.0), flat(50_000.0, 0.0)]
    infos = play(script(rows), [0.5, 0.5, 0.0], kernel, leverage=10.0, **FEE_ONLY)
    assert [info["position"] for info in infos[1:]] == [0.0, 1.0, 1.0]
    assert infos[1]["order_code"] == infos[3]["order_code"] == CODES["rejected: nothing traded in the bar"]
    assert infos[1]["wallet"] == 10_000.0
    assert infos[1]["reward"] == 0.0


def the_rebalance_band_holds_back_small_changes_and_zero_always_closes(kernel: Kernel | None = None) -> None:
    rows = [flat(50_000.0)] * 4
    infos = play(script(rows), [0.020, 0.024, 0.026, 0.0], kernel, leverage=10.0, **FREE)
    assert [info["position"] for info in infos[1:]] == pytest.approx([0.04, 0.04, 0.052, 0.0])
    rows = [flat(50_000.0), flat(41_000.0), flat(41_000.0)]
    for zero in (0.0, -0.0):  # a position worth 492 of an equity of 9,892, less than the band
        infos = play(script(rows), [0.006, 0.006, zero], kernel, leverage=10.0, contract_leverage=2.0, **FREE)
        assert [info["position"] for info in infos[1:]] == pytest.approx([0.012, 0.012, 0.0])


def dust_trades_nothing_costs_nothing_and_drifts_nowhere(kernel: Kernel | None = None) -> None:
    """E54."""
    rows = [flat(50_000.0)] * 6
    for side in (1.0, -1.0):
        wanted = [
            side * action for action in (0.5, 0.5003, 0.4998, 0.5009, 0.5)
        ]  # 1 BTC, then less than a lot or than 100 USDT
        infos = play(script(rows), wanted, kernel, leverage=10.0, rebalance_band=0.0, **FREE)
        assert [info["position"] for info in infos[1:]] == [side] * 5
        assert infos[-1]["equity"] == infos[-1]["wallet"] == 10_000.0
        assert {info["fill_quantity"] for info in infos[2:]} == {0.0}
    small = play(script(rows), [0.0009, 0.0, -0.0009, 0.0], kernel, leverage=10.0, rebalance_band=0.0, **FEE_ONLY)
    assert [info["order_code"] for info in small[1:]] == [CODES["rejected: below the minimum notional"], 0.0] * 2
    assert small[-1]["wallet"] == 10_000.0


def leverage_above_the_tier_maximum_is_rejected_and_changes_nothing(kernel: Kernel | None = None) -> None:
    """E55."""
    settings = {"leverage": 10.0, "contract_leverage": 125.0, **FEE_ONLY}
    infos = play(script([flat(50_000.0)] * 3), [1.0, 0.4, 0.4], kernel, **settings)
    assert infos[1]["order_code"] == CODES["rejected: leverage above the tier maximum of the resulting notional"]
    assert infos[1]["position"] == infos[1]["margin"] == infos[1]["fee"] == 0.0
    assert infos[1]["wallet"] == 10_000.0
    assert infos[2]["position"] == 0.8, "tier 1 allows it"
    assert infos[2]["contract_leverage"] == 125.0


def a_notional_above_the_last_tier_is_never_held(kernel: Kernel | None = None) -> None:
    """E55."""
    rows = [flat(50_000.0, 1e12)] * 3
    settings = {"initial_equity": 1e10, "maximum_quantity": 1e9, "leverage": 3.0, **FREE}
    infos = play(script(rows), [1.0, 1.0, -1.0], kernel, **settings)
    cap = CONTRACTS["BTCUSDT"].tiers[-1][0]
    assert infos[1]["position"] * 50_000.0 == pytest.approx(cap, rel=1e-6)
    assert infos[1]["position"] * 50_000.0 <= cap
    assert infos[1]["contract_leverage"] == 1.0
    assert infos[2]["position"] == infos[1]["position"]
    assert infos[3]["position"] == pytest.approx(-infos[1]["position"])


def an_order_at_an_unchanged_price_never_earns_money_from_the_insurance_fund(kernel: Kernel | None = None) -> None:
    fall = bar(50_000.0, 50_000.0, 33_800.0, 33_800.0)  # the liquidation price of 3x is 33,467
    for action in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, -0.5):
        infos = play(
            script([flat(50_000.0), fall, flat(33_800.0)]),
            [0.5, 0.5, action],
            kernel,
            leverage=3.0,
            rebalance_band=0.0,
            **FREE,
        )
        before, end = infos[2:]
        assert before["equity"] == pytest.approx(5_140.0)
        assert end["cover"] == 0.0, f"action {action}: the fund paid {end['cover']}"
        assert end["equity"] <= before["equity"] + 1e-9


def ruin_ends_the_account(kernel: Kernel | None = None) -> None:
    fall = bar(50_000.0, 50_000.0, 45_000.0, 46_000.0)
    end = fully_exposed(kernel, fall, continue_after_liquidation=True, ruin=0.6)[-1]
    assert end["terminated"]
    assert end["ended_by"] == "ruin"
    assert not fully_exposed(kernel, fall, continue_after_liquidation=True, ruin=0.4)[-1]["terminated"]


def a_drawdown_limit_ends_the_account(kernel: Kernel | None = None) -> None:
    rows = [flat(50_000.0), bar(50_000.0, 52_000.0, 50_000.0, 52_000.0), bar(52_000.0, 52_000.0, 49_600.0, 49_600.0)]
    infos = play(script(rows), [0.5] * 3, kernel, leverage=10.0, maximum_drawdown=0.199, rebalance_band=6.0, **FREE)
    assert infos[-1]["position"] == 0.0, "the band is so wide that no order is sent"
    infos = play(script(rows), [0.5] * 3, kernel, leverage=10.0, maximum_drawdown=0.199, rebalance_band=1.0, **FREE)
    assert infos[3]["equity"] == pytest.approx(9_600.0)  # 12,000 at its highest: down by a fifth
    assert infos[3]["terminated"]
    assert infos[3]["ended_by"] == "drawdown limit"
    infos = play(script(rows), [0.5] * 3, kernel, leverage=10.0, maximum_drawdown=0.201, rebalance_band=1.0, **FREE)
    assert not infos[3]["terminated"]


def the_end_of_the_data_truncates(kernel: Kernel | None = None) -> None:
    infos = play(script([flat(50_000.0)] * 3, after=0), [0.1] * 9, kernel)
    assert len(infos) == 4
    assert infos[-1]["truncated"]
    assert not infos[-1]["terminated"]
    assert infos[-1]["ended_by"] == "end of the split"


def time_is_the_close_of_the_bar_and_the_fill_the_open_of_the_next(kernel: Kernel | None = None) -> None:
    bars = script([bar(50_000.0, 50_500.0, 50_000.0, 50_400.0), bar(50_300.0, 50_900.0, 50_300.0, 50_800.0)])
    infos = play(bars, [0.1, 0.3], kernel, **FREE)
    for count, info in enumerate(infos):
        assert isinstance(info["time"], np.datetime64)
        assert info["time"] == bars.time[BEFORE - 1 + count] + HOUR
        assert info["mark"] == bars.mark_close[BEFORE - 1 + count, 0]  # type: ignore[index]
    assert [info["fill_price"] for info in infos[1:]] == [50_000.0, 50_300.0]


def costs_are_scaled_and_funding_is_not(kernel: Kernel | None = None) -> None:
    bars = sources.load(SMALL)
    start, ones = bars.time[1000], None
    for scale in (1.0, 2.0, 0.0):
        env = environment(bars, kernel, cost_scale=scale)
        env.reset(seed=SEED, options={"start": start})
        infos = [env.step([0.2])[4] for _ in range(9)]
        first, stamp = infos[0], next(i for i in range(1, 9) if infos[i]["funding"] != 0.0)
        if ones is None:
            ones = infos
        assert first["fill_quantity"] == ones[0]["fill_quantity"]
        assert first["fee"] == pytest.approx(0.0005 * scale * first["fill_quantity"] * first["fill_price"], rel=1e-12)
        assert first["impact_cost"] == pytest.approx(scale * ones[0]["impact_cost"], rel=1e-12)
        assert first["spread_cost"] == pytest.approx(scale * ones[0]["spread_cost"], rel=1e-12)
        assert ones[0]["impact_cost"] > 0.0
        assert ones[0]["spread_cost"] > 0.0
        assert infos[stamp]["funding"] == ones[stamp]["funding"] != 0.0
        assert infos[stamp]["position"] == ones[stamp]["position"]


def a_round_trip_at_an_unchanged_price_costs_two_fees_and_two_half_spreads(kernel: Kernel | None = None) -> None:
    """E26."""
    end = play(script([flat(50_000.0)] * 2), [0.5, 0.0], kernel, leverage=10.0, impact_coefficient=0.0)[2]
    half = 50_000.0 * 0.00005
    fees = 0.0005 * (50_000.0 + half) + 0.0005 * (50_000.0 - half)
    assert end["position"] == 0.0
    assert end["equity"] == pytest.approx(10_000.0 - 2 * half - fees, rel=1e-12)


SCENARIOS: tuple[Callable[..., None], ...] = (
    p01_opens_with_the_margin_and_liquidation_price_of_the_table,
    p14_liquidation_takes_the_margin_and_no_more,
    p15_a_gap_through_bankruptcy_is_covered,
    p16_so_is_a_gap_over_a_short,
    leverage_125_dies_in_a_bar_of_half_a_percent,
    a_liquidation_at_the_open_cancels_the_waiting_order,
    a_position_closed_at_the_open_is_not_exposed_to_the_bar,
    a_position_opened_at_the_open_is_exposed_to_the_bar,
    a_wick_that_mark_does_not_follow_does_not_liquidate,
    funding_at_the_open_is_for_the_carried_position,
    funding_order_and_later_funding_of_one_bar_come_in_that_order,
    funding_inside_a_bar_is_taken_at_the_last_known_mark,
    funding_at_the_open_alone_makes_a_position_liquidatable,
    funding_inside_a_bar_alone_makes_a_position_liquidatable,
    a_daily_bar_is_charged_all_three_stamps,
    stamps_in_a_gap_of_missing_bars_are_charged_at_the_last_mark,
    p2_a_short_of_one_btc_earns_126_in_a_week_at_one_basis_point,
    participation_limits_a_fill_and_the_rest_comes_with_the_next_bars,
    a_bar_without_volume_fills_nothing,
    the_rebalance_band_holds_back_small_changes_and_zero_always_closes,
    dust_trades_nothing_costs_nothing_and_drifts_nowhere,
    leverage_above_the_tier_maximum_is_rejected_and_changes_nothing,
    a_notional_above_the_last_tier_is_never_held,
    an_order_at_an_unchanged_price_never_earns_money_from_the_insurance_fund,
    ruin_ends_the_account,
    a_drawdown_limit_ends_the_account,
    the_end_of_the_data_truncates,
    time_is_the_close_of_the_bar_and_the_fill_the_open_of_the_next,
    costs_are_scaled_and_funding_is_not,
    a_round_trip_at_an_unchanged_price_costs_two_fees_and_two_half_spreads,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario_has_the_numbers_computed_by_hand(scenario: Callable[..., None]) -> None:
    scenario()


@pytest.mark.parametrize(
    ("scenario", "change"),
    [
        (
            p01_opens_with_the_margin_and_liquidation_price_of_the_table,
            ("posted_margin(after, a[ENTRY], price, leverage)", "posted_margin(after, a[ENTRY], price, 20.0)"),
        ),
        (p14_liquidation_takes_the_margin_and_no_more, ("realised - clearance + cover", "realised + cover")),
        (
            p15_a_gap_through_bankruptcy_is_covered,
            ("a[LIQUIDATION], opened, contract", "a[LIQUIDATION], a[LIQUIDATION], contract"),
        ),
        (p15_a_gap_through_bankruptcy_is_covered, ("realised - clearance + cover", "realised - clearance")),
        (
            p16_so_is_a_gap_over_a_short,
            ("a[LIQUIDATION], opened, contract", "a[LIQUIDATION], a[LIQUIDATION], contract"),
        ),
        (
            leverage_125_dies_in_a_bar_of_half_a_percent,
            ("adverse = market[row + 1, MARK_LOW]", "adverse = market[row + 1, MARK_CLOSE]"),
        ),
        (
            a_liquidation_at_the_open_cancels_the_waiting_order,
            ("if a[LIQUIDATED] == 0.0:  # a", "if True:  # a"),
        ),
        (
            a_position_closed_at_the_open_is_not_exposed_to_the_bar,
            (
                "liquidate_while_breached(a, opened, opened",
                "liquidate_while_breached(a, market[row + 1, MARK_LOW], opened",
            ),
        ),
        (
            a_position_opened_at_the_open_is_exposed_to_the_bar,
            (
                "        liquidate_while_breached(a, adverse",
                "        if carried != 0.0: liquidate_while_breached(a, adverse",
            ),
        ),
        (
            a_wick_that_mark_does_not_follow_does_not_liquidate,
            ("market[row + 1, MARK_LOW]", "(1e4 if market[row + 1, MARK_LOW] < 5e4 else 5e4)"),
        ),
        (funding_at_the_open_is_for_the_carried_position, ("a[WALLET] -= payment", "a[WALLET] += payment")),
        (funding_at_the_open_is_for_the_carried_position, ("a[MARGIN] -= payment", "pass")),
        (
            funding_order_and_later_funding_of_one_bar_come_in_that_order,
            ("range(FUNDING_INSIDE,", "range(FUNDING_INSIDE + 1,"),
        ),
        (
            funding_inside_a_bar_is_taken_at_the_last_known_mark,
            ("market[row + 1, stamp], opened", "market[row + 1, stamp], market[row + 1, MARK_CLOSE]"),
        ),
        (funding_at_the_open_alone_makes_a_position_liquidatable, ("a[MARGIN] -= payment", "pass")),
        (
            funding_inside_a_bar_alone_makes_a_position_liquidatable,
            ("            liquidate_while_breached(a, adverse", "            pass; (a, adverse"),
        ),
        (a_daily_bar_is_charged_all_three_stamps, ("range(FUNDING_INSIDE,", "range(FUNDING_INSIDE + 1,")),
        (
            stamps_in_a_gap_of_missing_bars_are_charged_at_the_last_mark,
            ("FUNDING_IN_GAP], mark", "FUNDING_IN_GAP], opened"),
        ),
        (
            p2_a_short_of_one_btc_earns_126_in_a_week_at_one_basis_point,
            ("a[WALLET] -= payment", "a[WALLET] += payment"),
        ),
        (participation_limits_a_fill_and_the_rest_comes_with_the_next_bars, ("contract[PARTICIPATION]", "1.0")),
        (a_bar_without_volume_fills_nothing, ("market[row + 1, VOLUME]", "market[row, VOLUME]")),
        (the_rebalance_band_holds_back_small_changes_and_zero_always_closes, ("if action == 0.0:", "if False:")),
        (
            the_rebalance_band_holds_back_small_changes_and_zero_always_closes,
            ("contract[REBALANCE] * a[EQUITY]", "0.0"),
        ),
        (leverage_above_the_tier_maximum_is_rejected_and_changes_nothing, ("    if code > 0:", "    if code > 6:")),
        (ruin_ends_the_account, ("contract[RUIN] * contract[START_EQUITY]", "0.0")),
        (a_drawdown_limit_ends_the_account, ("a[PEAK] = max(peak, a[EQUITY])", "a[PEAK] = peak")),
        (the_end_of_the_data_truncates, ("code >= ENDED_LENGTH", "code > ENDED_DATA")),
        (
            time_is_the_close_of_the_bar_and_the_fill_the_open_of_the_next,
            ("market[row + 1, OPEN], market", "market[row, MARK_CLOSE], market"),
        ),
        (costs_are_scaled_and_funding_is_not, ("contract[TAKER_FEE] * scale", "contract[TAKER_FEE]")),
        (costs_are_scaled_and_funding_is_not, ("contract[IMPACT] * scale", "contract[IMPACT]")),
        (
            costs_are_scaled_and_funding_is_not,
            ("(a[POSITION], mark, rate)", "(a[POSITION], mark, rate * a[COST_SCALE])"),
        ),
        (
            a_round_trip_at_an_unchanged_price_costs_two_fees_and_two_half_spreads,
            ("side, spread, push)", "1.0, spread, push)"),
        ),
    ],
    ids=lambda value: value.__name__[:40] if callable(value) else value[1],
)
def test_mutant_a_fault_in_the_kernel_fails_its_scenario(
    scenario: Callable[..., None], change: tuple[str, str]
) -> None:
    """Twin of E20, E26, E42, E44, E55, E56, E57 and E58."""
    scenario(mutant())
    with pytest.raises(AssertionError):
        scenario(mutant(change))


# ---- properties -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward", ["log_return", "simple_return", "differential_sharpe", "log_return=1,drawdown=1,costs=1,funding=1"]
)
def test_an_account_that_never_trades_stays_exactly_as_it_is(reward: str) -> None:
    """E23."""
    env = environment(SMALL, reward=reward)
    env.reset(seed=SEED)
    done = False
    while not done:
        _, value, terminated, truncated, info = env.step([0.0])
        assert value == 0.0
        assert info["equity"] == info["wallet"] == 10_000.0
        done = terminated or truncated
    assert truncated
    assert info["ended_by"] == "episode length"


def test_mutant_an_idle_account_that_pays_something_is_found() -> None:
    """Twin of E23."""
    env = environment(SMALL, mutant(("a[ROW] = row + 1", "a[ROW] = row + 1\n    a[WALLET] -= 1e-9")))
    env.reset(seed=SEED)
    info = env.step([0.0])[4]
    assert not info["equity"] == info["wallet"] == 10_000.0


def continuous(closes: np.ndarray[Any, Any], volume: float = 1e9) -> Bars:
    """Bars that open where the one before closed, without marks and funding."""
    opened = np.concatenate([closes[:1], closes[:-1]])
    return Bars(
        time=np.datetime64("2024-01-01", "ns") + np.arange(len(closes)) * HOUR, interval=HOUR, symbols=("BTCUSDT",),
        open=opened[:, None], high=np.maximum(opened, closes)[:, None], low=np.minimum(opened, closes)[:, None],
        close=closes[:, None], volume=np.full((len(closes), 1), volume),
    )  # fmt: skip


def buy_and_hold_error(kernel: Kernel | None = None) -> float:
    """Largest relative difference of equity from the price ratio over an episode at leverage 1 without costs."""
    closes = sources.load(SMALL).close[:, 0]
    env = environment(continuous(closes), kernel, leverage=1.0, episode_bars=1000, **NO_FRICTION)
    _, info = env.reset(seed=SEED)
    start, worst = info["mark"], 0.0
    for _ in range(1000):
        _, _, terminated, truncated, info = env.step([1.0])
        worst = max(worst, abs(info["equity"] / 10_000.0 / (info["mark"] / start) - 1.0))
    assert truncated
    assert not terminated
    return worst


def test_buy_and_hold_without_costs_equals_the_price_ratio() -> None:
    """E24."""
    assert buy_and_hold_error() <= 1e-12


def test_mutant_a_fill_one_bar_late_is_not_the_price_ratio() -> None:
    """Twin of E24."""
    assert buy_and_hold_error(mutant(("market[row + 1, OPEN], market", "market[row + 1, MARK_CLOSE], market"))) > 1e-6


def equities_of_quantities(kernel: Kernel | None = None, **settings: Any) -> tuple[np.ndarray[Any, Any], int]:
    """Trade the same quantities whatever the account is worth; equity after each step and the number of fills."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    env = environment(
        SMALL, kernel, leverage=20.0, rebalance_band=0.0, minimum_notional=0.0, episode_bars=400, ruin=1e-6, **settings
    )
    _, info = env.reset(seed=SEED, options={"start": sources.load(SMALL).time[600]})
    equities, fills, lots = [], 0, 0
    for _ in range(400):
        if random.random() < 0.2:
            lots = int(random.integers(-300, 301))
        change = lots * 0.001 - info["position"]
        quantity = lots * 0.001 + math.copysign(0.0003, change) if abs(change) > 1e-9 else info["position"]
        quantity = quantity if lots else 0.0
        info = env.step([quantity * info["mark"] / (20.0 * info["equity"])])[4]
        assert info["position"] == pytest.approx(lots * 0.001, abs=1e-9)
        equities.append(info["equity"])
        fills += info["fill_quantity"] != 0.0
    return np.array(equities), fills


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("taker_fee", (0.0, 0.0002, 0.0005, 0.002)), ("half_spread", (0.0, 0.0001, 0.001)),
        ("impact_coefficient", (0.0, 0.5, 2.0)), ("cost_scale", (0.0, 1.0, 3.0)),
    ],
)  # fmt: skip
def test_higher_costs_never_leave_more_equity_for_the_same_trades(name: str, values: tuple[float, ...]) -> None:
    """E25."""
    runs = [equities_of_quantities(**{name: value}) for value in values]
    for (cheap, fills), (dear, _) in pairwise(runs):
        assert fills > 20
        assert (cheap >= dear).all()
        assert cheap[-1] > dear[-1]


def test_mutant_a_fee_of_the_wrong_sign_leaves_more_equity() -> None:
    """Twin of E25."""
    fault = mutant(("a[WALLET] += realised - paid", "a[WALLET] += realised + paid"))
    cheap, dear = (equities_of_quantities(fault, taker_fee=fee)[0] for fee in (0.0, 0.0005))
    assert not (cheap >= dear).all()


def telescoped(reward: str, kernel: Kernel | None = None) -> tuple[float, float, float]:
    """Sum of rewards of an episode, and its first and last equity."""
    random = np.random.default_rng(SEED)
    env = environment(SMALL, kernel, reward=reward, leverage=5.0)
    _, info = env.reset(seed=SEED)
    total, first, done = 0.0, info["equity"], False
    while not done:
        _, value, terminated, truncated, info = env.step([random.uniform(-1, 1)])
        total, done = total + value, terminated or truncated
    return total, first, info["equity"]


def test_rewards_of_an_episode_telescope_to_its_return() -> None:
    """E27."""
    total, first, last = telescoped("log_return")
    assert total == pytest.approx(math.log(last / first), rel=1e-9)
    total, first, last = telescoped("simple_return")
    assert total == pytest.approx(last / first - 1.0, rel=1e-9)
    both = telescoped("log_return=2,simple_return=3")[0]
    assert both == pytest.approx(2 * math.log(last / first) + 3 * (last / first - 1.0), rel=1e-9)


def test_mutant_a_return_of_the_wrong_base_does_not_telescope() -> None:
    """Twin of E27."""
    fault = mutant(("(a[LOG_EQUITY] - before)", "(a[LOG_EQUITY] - contract[LOG_START])"))
    total, first, last = telescoped("log_return", fault)
    assert total != pytest.approx(math.log(last / first), rel=1e-9)


def bars_until_liquidation(
    bars: Bars, start: int, side: float, contract_leverage: float, kernel: Kernel | None = None
) -> float:
    """Open twice the equity at ``start`` and hold it; after how many bars it is liquidated."""
    env = environment(
        bars, kernel, leverage=125.0, contract_leverage=contract_leverage, episode_bars=0, ruin=1e-6, **FREE
    )
    _, info = env.reset(seed=SEED, options={"start": bars.time[start]})
    action = side * 2.0 / 125.0
    for count in range(1, 1500):
        _, _, terminated, truncated, info = env.step([action])
        if info["liquidated"]:
            return count
        if terminated or truncated or info["equity"] < 50.0:
            break
        action = info["position"] * info["mark"] / (125.0 * info["equity"])
    return math.inf


def check_leverage_is_monotone(kernel: Kernel | None = None, starts: int = 6) -> None:
    print(f"seed {SEED}")
    bars = sources.load(SMALL)
    finite = 0
    for start in np.random.default_rng(SEED).integers(WARM_UP + 10, 900, starts):
        for side in (1.0, -1.0):
            lives = [
                bars_until_liquidation(bars, int(start), side, leverage, kernel)
                for leverage in (2.0, 3.0, 5.0, 10.0, 25.0, 50.0, 100.0, 125.0)
            ]
            assert all(low >= high for low, high in pairwise(lives)), lives
            finite += sum(math.isfinite(life) for life in lives)
    assert finite > 5 * starts


def test_a_higher_leverage_is_never_liquidated_later() -> None:
    """E30."""
    check_leverage_is_monotone()


@pytest.mark.slow
def test_mutant_a_margin_that_grows_with_leverage_lives_longer() -> None:
    """Twin of E30."""
    with pytest.raises(AssertionError):
        check_leverage_is_monotone(
            mutant(
                (
                    "posted_margin(after, a[ENTRY], price, leverage)",
                    "posted_margin(after, a[ENTRY], price, 250.0 / leverage)",
                )
            ),
            2,
        )


@pytest.mark.parametrize("reward", ["log_return", "differential_sharpe", "log_return=1,drawdown=1,costs=1"])
def test_a_constant_price_leaves_every_number_finite_and_costs_the_only_change(reward: str) -> None:
    """E45."""
    closes = np.full(1200, 50_000.0)
    env = environment(continuous(closes), reward=reward)
    obs, before = env.reset(seed=SEED)
    random = np.random.default_rng(SEED)
    for count in range(500):
        obs, value, _, _, info = env.step([random.uniform(-1, 1) if count > 50 else 0.0])
        assert np.isfinite(obs).all()
        assert env.observation_space.contains(obs)
        assert math.isfinite(value)
        assert value == 0.0 or count > 50
        assert info["market_pnl"] == pytest.approx(0.0, abs=1e-9)
        assert info["impact_cost"] == 0.0
        check_step(before, info)
        before = info


def test_a_file_without_volume_trades_nothing_and_stays_finite() -> None:
    """E44."""
    env = environment(continuous(sources.load(SMALL).close[:, 0], volume=0.0))
    env.reset(seed=SEED)
    for _ in range(300):
        obs, value, _, _, info = env.step([1.0])
        assert np.isfinite(obs).all()
        assert env.observation_space.contains(obs)
        assert value == 0.0
        assert info["position"] == 0.0
        assert info["equity"] == 10_000.0


@pytest.mark.parametrize("go_on", [False, True])
@pytest.mark.parametrize("leverage", [1.0, 3.0, 20.0, 125.0])
def test_jumps_of_ninety_percent_never_make_equity_negative_nor_rewards_infinite(leverage: float, go_on: bool) -> None:
    """E48."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    jumps = np.zeros(900)
    jumps[400:440] = np.where(random.random(40) < 0.5, np.log(1.9), np.log(0.1))  # forty in a row
    jumps[450:480] = np.where(np.arange(30) % 2, np.log(10.0), np.log(0.1))
    jumps[500:] = random.normal(0.0, 0.3, 400)
    closes = 50_000.0 * np.exp(np.cumsum(jumps) - 0.0)
    closes = np.clip(closes, 1e-6, 1e9)
    opened = np.concatenate([closes[:1], closes[:-1] * np.exp(random.choice([0.0, 0.0, -1.0, 1.0], 899))])
    bars = Bars(
        time=np.datetime64("2024-01-01", "ns") + np.arange(900) * HOUR,
        interval=HOUR,
        symbols=("BTCUSDT",),
        open=opened[:, None],
        high=np.maximum(opened, closes)[:, None],
        low=np.minimum(opened, closes)[:, None],
        close=closes[:, None],
        volume=np.full((900, 1), 1e9),
    )
    env = environment(
        bars,
        split="test",
        train_end=str(bars.close_time[300]),
        validation_end=str(bars.close_time[350]),
        leverage=leverage,
        continue_after_liquidation=go_on,
        ruin=1e-6,
        lot_step=0.0,
        minimum_notional=0.0,
        tick_size=0.0,
    )
    liquidations = 0
    for episode in range(20):
        _, before = env.reset(seed=episode, options={"start": bars.time[int(random.integers(360, 500))]})
        ledger = Ledger(before["equity"])
        done = False
        while not done:
            obs, value, terminated, truncated, info = env.step([random.choice([-1.0, 1.0, random.uniform(-1, 1)])])
            assert info["equity"] >= 0.0
            assert info["wallet"] >= -1e-9
            assert math.isfinite(value)
            assert env.observation_space.contains(obs)
            check_step(before, info)
            ledger.book(info)
            ledger.check(info)
            liquidations += info["liquidated"]
            before, done = info, terminated or truncated
    assert liquidations >= 10 or leverage == 1.0


def test_flipping_ten_thousand_times_costs_what_was_charged_and_no_more() -> None:
    """E53."""
    env = environment(continuous(np.full(18_000, 50_000.0)), leverage=1.0, episode_bars=10_000, ruin=1e-6)
    _, before = env.reset(seed=SEED)
    first, paid = before["equity"], 0.0
    for count in range(10_000):
        _, value, terminated, truncated, info = env.step([1.0 if count % 2 else -1.0])
        check_step(before, info)
        assert info["equity"] > 0.0
        assert math.isfinite(value)
        assert info["fee"] == pytest.approx(0.0005 * abs(info["fill_quantity"]) * info["fill_price"], rel=1e-12)
        assert info["spread_cost"] == pytest.approx(0.00005 * abs(info["fill_quantity"]) * 50_000.0, rel=1e-12)
        paid += info["fee"] + info["spread_cost"]
        before = info
    assert truncated
    assert not terminated
    assert info["equity"] == pytest.approx(first - paid, rel=1e-9)
    assert info["equity"] < 110.0  # what one lot of each side can still trade


def test_an_episode_begins_at_the_first_bar_that_opens_at_or_after_the_start() -> None:
    bars = sources.load(SMALL)
    env = environment(bars)
    for start, row in (
        (bars.time[700], 700),
        (str(bars.time[700]), 700),
        (bars.time[699] + np.timedelta64(1, "m"), 700),
    ):
        _, info = env.reset(options={"start": start})
        assert info["time"] == bars.close_time[row]
        assert info["mark"] == bars.mark_close[row, 0]  # type: ignore[index]
        assert info["label"] == bars.labels[row]  # type: ignore[index]


def test_stamps_before_the_first_bar_are_charged_to_nobody() -> None:
    bars = script([flat(50_000.0)] * 3, after=0)
    early = replace(
        bars, funding_time=np.array(["2023-12-31T16:00"], "datetime64[ns]"), funding_rate=np.array([[0.01]])
    )
    assert [info["funding"] for info in play(early, [0.5] * 3, leverage=10.0)[1:]] == [0.0, 0.0, 0.0]


def test_the_same_account_is_worth_the_same_in_any_currency_unit() -> None:
    """E28."""

    def returns(scale: float) -> np.ndarray[Any, Any]:
        env = environment(SMALL, initial_equity=10_000.0 * scale, leverage=2.0, **{**NO_FRICTION, "participation": 1.0})
        env.reset(seed=SEED)
        random = np.random.default_rng(SEED)
        return np.array([env.step([random.uniform(-1, 1)])[1] for _ in range(200)])

    np.testing.assert_allclose(returns(1.0), returns(1e-3), rtol=1e-9, atol=1e-13)


def refused_flips(kernel: Kernel | None = None, leverage: float = 3.0) -> int:
    """Flip the whole account every bar and count the orders that were refused for want of margin."""
    env = environment(SMALL, kernel, leverage=leverage, episode_bars=300, random_start=False, ruin=0.001)
    env.reset(seed=SEED)
    codes = []
    for step in range(300):
        _, _, terminated, truncated, info = env.step([1.0 if step % 2 else -1.0])
        codes.append(info["order_code"])
        if terminated or truncated:
            break
    assert len(codes) > 100
    return codes.count(7.0)


@pytest.mark.parametrize("leverage", [1.0, 3.0, 10.0])
def test_a_full_flip_is_cut_to_what_the_wallet_covers_and_never_refused(leverage: float) -> None:
    assert refused_flips(leverage=leverage) == 0


def test_mutant_a_flip_that_closes_at_the_open_is_refused_again_and_again() -> None:
    assert refused_flips(mutant(("worst, valued, a[WALLET]", "worst, worst, a[WALLET]"))) > 10


def turned(side: float, leverage: float, kernel: Kernel | None = None) -> bool:
    """From one full side to the other with default costs, at twenty starts: does the next bar hold the other side?"""
    env = environment(SMALL, kernel, leverage=leverage)
    for seed in range(20):
        env.reset(seed=seed)
        _, _, terminated, _, _ = env.step([side])
        if terminated:  # liquidated in its first bar
            continue
        info = env.step([-side])[4]
        if not info["liquidated"] and info["position"] * side >= 0.0:
            return False
    return True


@pytest.mark.parametrize("leverage", [1.0, 3.0, 10.0, 20.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_opposite_full_action_turns_the_position_in_the_next_bar(side: float, leverage: float) -> None:
    assert turned(side, leverage)


def test_mutant_a_long_that_cannot_turn_is_found() -> None:
    assert not turned(1.0, 3.0, mutant(("worst, valued, a[WALLET]", "worst, worst, a[WALLET]")))


def poorest(kernel: Kernel | None = None) -> float:
    """Trade with ruinous fees, check the books every bar, and return the lowest equity."""
    env = environment(SMALL, kernel, leverage=20.0, taker_fee=0.5, continue_after_liquidation=True, ruin=1e-6)
    random, lowest = np.random.default_rng(SEED), math.inf
    for episode in range(40):
        _, before = env.reset(seed=episode)
        for action in (*random.uniform(-1, 1, 6), 0.0, 0.0):
            _, _, terminated, truncated, info = env.step([action])
            paid = sum(info[name] for name in ("fee", "spread_cost", "impact_cost", "funding", "clearance"))
            change = info["market_pnl"] - paid + info["cover"]
            scale = max(before["equity"], abs(info["market_pnl"]), paid, 1.0)
            assert abs(info["equity"] - before["equity"] - change) <= 1e-9 * scale
            lowest = min(lowest, info["equity"])
            before = info
            if terminated or truncated:
                break
    return lowest


def test_ruinous_fees_never_leave_a_debt_and_the_fund_pays_what_is_missing() -> None:
    """E62."""
    assert poorest() >= 0.0


def test_mutant_a_debt_that_nobody_pays_is_found() -> None:
    """Twin of E62."""
    assert poorest(mutant(("elif a[WALLET] < 0.0:", "elif a[WALLET] < -1e300:"))) < 0.0
