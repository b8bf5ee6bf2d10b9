"""Liquidations against the bugs that trading environments are known for, each as a named test with a mutant.

Booked at the liquidation price although the bar gapped through it; checked one bar late; missing in a replay; different
in scalar and vector environments; caused by a wick that mark did not follow; wrong where a bar switches the position.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_perp_env import (
    FEE_ONLY,
    FREE,
    WILD,
    Infos,
    Kernel,
    bar,
    environment,
    flat,
    mutant,
    play,
    script,
)

from envs.perp_futures import PerpFutures, PerpFuturesConfig, PerpFuturesVectorEnv
from markets import perpetual

SEED = 61
LEVERAGE = 10.0
HELD = {"bars": WILD, "leverage": LEVERAGE, "rebalance_band": 5.0, "cost_scale": 0.2}  # orders are few, ends are many
ENDURING = {**HELD, "continue_after_liquidation": True, "ruin": 1e-6}
Event = tuple[str, float, float, float, float]  # time, quantity, price, clearance fee, cover


def at_ten(
    rows: Sequence[dict[str, Any]], actions: Sequence[float], kernel: Kernel | None = None, **more: Any
) -> Infos:
    return play(script(rows, more.pop("funding", ())), actions, kernel, **{**FEE_ONLY, "leverage": LEVERAGE, **more})


# ---- booked at a price nobody could trade at --------------------------------------------------------------------


def worst_booking(kernel: Kernel | None = None) -> float:
    """Largest distance, as a share, between where a liquidation is booked and the worse of its price and the open."""
    worst = 0.0
    for opened in (44_000.0, 45_100.0, 45_180.0, 45_181.0, 46_000.0, 30_000.0):
        last = bar(opened, max(opened, 45_500.0), min(opened, 40_000.0), 45_000.0)
        before, end = at_ten([flat(50_000.0), last], (0.5, 0.5), kernel)[1:]
        assert end["liquidated"]
        worst = max(worst, abs(end["liquidated_at"] / min(before["liquidation_price"], opened) - 1.0))
        mirrored = 100_000.0 - opened
        last = bar(mirrored, max(mirrored, 60_000.0), min(mirrored, 54_500.0), 55_000.0)
        before, end = at_ten([flat(50_000.0), last], (-0.5, -0.5), kernel)[1:]
        assert end["liquidated"]
        worst = max(worst, abs(end["liquidated_at"] / max(before["liquidation_price"], mirrored) - 1.0))
    return worst


def test_a_liquidation_is_booked_at_the_open_where_the_bar_gapped_through_its_price() -> None:
    """E56. Never at the liquidation price that the gap jumped over, and never better than the open."""
    assert worst_booking() <= 1e-12


def test_mutant_a_gap_that_is_booked_at_the_liquidation_price_is_found() -> None:
    """Twin of E56."""
    assert (
        worst_booking(mutant(("a[LIQUIDATION], opened, contract", "a[LIQUIDATION], a[LIQUIDATION], contract"))) > 0.01
    )


def test_the_tier_of_the_liquidation_price_decides_and_not_that_of_the_entry() -> None:
    """E20, E56. P-05: long 12 at 51,000 with 20x enters in tier 3 and is liquidated in tier 2."""
    assert trap() == pytest.approx(48689.2797319933, rel=1e-10)


def trap(kernel: Kernel | None = None) -> float:
    settings = {"leverage": 20.0, "initial_equity": 40_000.0, "participation": 1.0, **FREE}
    info = play(script([flat(51_000.0)] * 2), (12.0 * 51_000.0 / 800_000.0,), kernel, **settings)[1]
    assert info["position"] == pytest.approx(12.0, abs=1e-9)
    return float(info["liquidation_price"])


def entry_tier_price(quantity: float, entry: float, margin: float, tiers: Any, rate: float) -> float:
    """Planted fault: the tier of the entry notional."""
    if quantity == 0.0:
        return 0.0
    k = perpetual.tier_of(abs(quantity) * entry, tiers)
    side = 1.0 if quantity > 0.0 else -1.0
    price = (margin + tiers[k, 3] - quantity * entry) / (abs(quantity) * (tiers[k, 2] + rate - side))
    return max(float(price), 0.0)


def test_mutant_an_entry_tier_liquidation_price_is_found() -> None:
    """Twin of E20 and E56."""
    step = mutant()
    step.__globals__["liquidation_price"] = entry_tier_price  # type: ignore[attr-defined]
    assert trap(step) == pytest.approx(48687.3007884583, rel=1e-10)


# ---- checked one bar late ---------------------------------------------------------------------------------------


def lives_of(kernel: Kernel | None = None) -> list[int]:
    """In which bar after the fill each of several falls is liquidated."""
    lives = []
    for calm in (0, 1, 5):
        rows = [flat(50_000.0)] * (calm + 1) + [bar(50_000.0, 50_000.0, 45_000.0, 49_000.0), flat(49_000.0)]
        infos = at_ten(rows, [0.5] * (calm + 3), kernel)
        lives.append(next((count for count, info in enumerate(infos) if info.get("liquidated")), -1) - 1 - calm)
    return lives


def test_a_liquidation_happens_in_the_bar_that_reaches_its_price_and_not_in_the_next() -> None:
    assert lives_of() == [1, 1, 1]


@pytest.mark.parametrize("late", ["market[row, MARK_LOW]", "market[row + 1, MARK_CLOSE]"])
def test_mutant_a_check_that_is_one_bar_late_or_only_at_the_close_is_found(late: str) -> None:
    assert lives_of(mutant(("market[row + 1, MARK_LOW]", late))) != [1, 1, 1]


# ---- missing in a replay ----------------------------------------------------------------------------------------


def record(env: Any, actions: Sequence[float] | None = None, steps: int = 6_000) -> tuple[list[float], list[Event]]:
    """Play random targets, or recorded ones; return the actions and every liquidation."""
    random, action = np.random.default_rng(SEED), 0.0
    done: list[float] = []
    events: list[Event] = []
    env.reset(seed=SEED)
    for count in range(steps):
        if actions is not None:
            action = actions[count]
        elif random.random() < 0.1:
            action = float(random.choice([-1.0, 1.0, random.uniform(-1.0, 1.0)]))
        *_, terminated, truncated, info = env.step([action])
        done.append(action)
        if info["liquidated"]:
            numbers = (info[name] for name in ("liquidated_quantity", "liquidated_at", "clearance", "cover"))
            events.append((str(info["time"]), *numbers))  # type: ignore[arg-type]
        if terminated or truncated:
            env.reset()
    return done, events


def test_recorded_actions_played_again_give_the_same_liquidations() -> None:
    """E07, E10. In a new env, and in a copied and a pickled one."""
    print(f"seed {SEED}")
    env = environment(**HELD)
    actions, events = record(env)
    assert len(events) > 30
    for again in (environment(**HELD), copy.deepcopy(env), pickle.loads(pickle.dumps(env)), env):
        assert record(again, actions) == (actions, events)


def test_mutant_a_replay_that_forgets_a_liquidation_is_found() -> None:
    """Twin of E07 and E10."""
    check = "        liquidate_while_breached(a, adverse"
    forgets = mutant((check, check.replace("liq", "if row % 3 != 0: liq", 1)))
    actions, events = record(environment(**HELD), steps=1_500)
    assert record(environment(kernel=mutant(), **HELD), actions, 1_500)[1] == events
    assert record(environment(kernel=forgets, **HELD), actions, 1_500)[1] != events


# ---- scalar and vector ------------------------------------------------------------------------------------------


def lane_events(
    kernel: Kernel | None, lanes: int = 16, steps: int = 500
) -> tuple[list[list[Event]], list[list[Event]]]:
    """Liquidations of every lane of a vector env, and of single envs that are given the same actions."""
    random = np.random.default_rng(SEED)
    config = PerpFuturesConfig(**ENDURING)
    game = PerpFutures.game(config)
    vector = PerpFuturesVectorEnv(replace(game, kernel=kernel or game.kernel), PerpFutures.action_space(), lanes)
    actions = np.repeat(random.choice([-1.0, 1.0, 0.5], (steps // 10, lanes, 1)), 10, axis=0)

    def event(info: dict[str, Any], lane: Any) -> Event:
        numbers = (float(info[name][lane]) for name in ("liquidated_quantity", "liquidated_at", "clearance", "cover"))
        return (str(info["time"][lane]), *numbers)  # type: ignore[return-value]

    found: list[list[Event]] = [[] for _ in range(lanes)]
    vector.reset(seed=SEED)
    for action in actions:
        info = vector.step(action)[4]
        for lane in np.flatnonzero(info["liquidated"]):
            found[lane].append(event(info, lane))
    wanted: list[list[Event]] = []
    for lane in range(lanes):
        env = environment(**ENDURING)
        env.reset(seed=SEED + lane)
        events, ended = [], False
        for action in actions[:, lane]:
            if ended:
                env.reset()
                ended = False
                continue
            *_, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            if info["liquidated"]:
                events.append(event({key: [value] for key, value in info.items()}, 0))
        wanted.append(events)
    return found, wanted


def test_scalar_and_vector_liquidate_alike_at_leverage_ten() -> None:
    """E08. Every liquidation of every lane: when, how much, at which price, with which fee and cover."""
    print(f"seed {SEED}")
    found, wanted = lane_events(None)
    assert sum(map(len, wanted)) > 50
    assert found == wanted


def test_mutant_a_vector_env_that_liquidates_only_its_first_lane_is_found() -> None:
    """Twin of E08."""
    call = "            advance(a, market, contract, tiers)\n"
    fault = mutant(
        (call, call + "            if lane > 0 and a[LIQUIDATED] != 0.0:\n                a[LIQUIDATED] = 0.0\n")
    )
    found, wanted = lane_events(mutant(), 4, 300)
    assert found == wanted
    assert any(found[1:])
    assert lane_events(fault, 4, 300)[0] != wanted


# ---- a wick that mark does not follow ---------------------------------------------------------------------------


def wicked(kernel: Kernel | None = None, steps: int = 2_000) -> int:
    """Liquidations of a market whose last price falls and rises by half in every bar while mark stands still."""
    bars = script([flat(50_000.0)] * 60)
    bars = replace(bars, high=bars.high * 1.5, low=bars.low * 0.5)
    count = 0
    for side in (1.0, -1.0):
        infos = play(bars, [side * 0.9] * 60, kernel, leverage=LEVERAGE, **FREE)
        count += sum(info["liquidated"] for info in infos[1:])
    return count


def test_a_wick_in_last_price_that_mark_does_not_follow_liquidates_nobody() -> None:
    assert wicked() == 0


def test_mutant_a_check_against_the_low_of_last_is_found() -> None:
    fault = mutant(("market[row + 1, MARK_LOW]", "0.5 * market[row + 1, OPEN]"))
    assert wicked(fault) > 0


# ---- a bar that switches the position ---------------------------------------------------------------------------


def switched(kernel: Kernel | None = None) -> list[tuple[bool, float, float]]:
    """Switch sides at the open of a bar with a wick: was it liquidated, what is held, what was liquidated."""
    results = []
    for low, high, side in (
        (30_000.0, 50_000.0, 1.0),  # deadly for the long that was closed at the open, harmless for the short
        (50_000.0, 80_000.0, 1.0),  # deadly for the short that was opened there
        (50_000.0, 80_000.0, -1.0),
        (30_000.0, 50_000.0, -1.0),
    ):
        rows = [flat(50_000.0), bar(50_000.0, high, low, 50_000.0)]
        end = at_ten(rows, (side * 0.5, -side * 0.4), kernel, **FREE)[2]
        results.append((end["liquidated"], round(end["position"], 9), round(end["liquidated_quantity"], 9)))
    return results


SWITCHED = [(False, -0.8, 0.0), (True, 0.0, 0.8), (False, 0.8, 0.0), (True, 0.0, -0.8)]


def test_a_bar_that_switches_the_position_is_survived_or_not_by_the_new_side_alone() -> None:
    """E57. The old side left at the open and is not exposed to the bar; the new one is, from its own price."""
    assert switched() == SWITCHED


@pytest.mark.parametrize(
    "change",
    [
        ("liquidate_while_breached(a, opened, opened", "liquidate_while_breached(a, market[row + 1, MARK_LOW], opened"),
        ("market[row + 1, MARK_LOW] if a[POSITION] > 0.0", "market[row + 1, MARK_LOW] if carried > 0.0"),
    ],
    ids=["the old side is exposed to the bar", "the extreme of the old side"],
)  # fmt: skip
def test_mutant_a_switch_that_is_checked_for_the_wrong_side_is_found(change: tuple[str, str]) -> None:
    """Twin of E57."""
    assert switched(mutant(change)) != SWITCHED


def one_bar_of_everything(kernel: Kernel | None = None) -> dict[str, Any]:
    """Long 1 at 50,000; then a stamp at the open, a switch there, a deadly high, and a stamp after it, in one bar."""
    rows = [flat(50_000.0), bar(50_000.0, 56_000.0, 50_000.0, 50_000.0)]
    return at_ten(rows, (0.5, -0.4), kernel, funding=[(1.0, 0.001), (1.5, 0.01)], **FREE)[2]


def test_stamp_switch_liquidation_and_later_stamp_of_one_bar_come_in_the_venues_order() -> None:
    """E57. By hand: the long pays 50, the order was sized before that, the short of 0.8 has a margin of 4,000."""
    end = one_bar_of_everything()
    assert end["funding"] == pytest.approx(50.0, rel=1e-12), "the carried long pays, the liquidated short no more"
    assert end["fill_quantity"] == pytest.approx(-1.8, rel=1e-12)
    assert end["fill_price"] == 50_000.0
    assert end["liquidated_quantity"] == pytest.approx(0.8, rel=1e-12)
    assert end["liquidated_at"] == pytest.approx(44_000.0 / (0.8 * 1.004), rel=1e-12)
    assert end["equity"] == pytest.approx(10_000.0 - 50.0 - 4_000.0, rel=1e-12)
    assert end["position"] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        ("charge_funding(a, market[row + 1, FUNDING_AT_OPEN], opened, contract, tiers)", "pass"),
        ("charge_funding(a, market[row + 1, stamp], opened, contract, tiers)",
         "charge_funding(a, market[row + 1, stamp], opened, contract, tiers); a[FUNDING] += 1.0"),
        ("if a[LIQUIDATED] == 0.0:  # a", "if False:  # a"),
        ("liquidate_while_breached(a, adverse", "liquidate_while_breached(a, opened"),
    ],
    ids=["no stamp at the open", "a stamp for nobody", "no switch", "a bar without its high"],
)  # fmt: skip
def test_mutant_another_order_of_events_is_found(change: tuple[str, str]) -> None:
    """Twin of E57."""
    try:
        end = one_bar_of_everything(mutant(change))
    except AssertionError:  # the books of the step are checked on the way
        return
    got = (end["funding"], end["fill_quantity"], end["liquidated_quantity"])
    assert got != pytest.approx((50.0, -1.8, 0.8), rel=1e-9)
