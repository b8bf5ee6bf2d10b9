"""Risk limits: each at its boundary, over many random days, lane by lane, with money untouched; mutants are caught."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

import envs
from envs import perp_columns as pc
from envs.make import build, build_vector
from envs.simulation import EQUITY
from envs.wrappers import limit_risk
from envs.wrappers.limit_risk import LimitRisk, LimitRiskVector
from envs.zero_dte import TradingAction
from markets.errors import ActionError, ConfigError
from markets.risk_limits import AccountState, RiskLimits, RiskManager

assert envs.ids()
PERP = "synthetic:crypto?seed=3&interval=1h&bars=3000&annual_volatility=1.5"
DAYS = "synthetic:spy?seed=3&sessions=24&early_close=only"  # 210 bars each
HOLD, CALL, PUT, CLOSE = (int(action) for action in TradingAction)
SEED = 17
NOON = np.datetime64("2024-06-03T12:00", "ns")
HOUR = np.timedelta64(1, "h")


def state(
    time: Any = NOON, equity: float = 10_000.0, quantity: float = 0.0, price: float = 100.0, **more: Any
) -> AccountState:
    return AccountState(time=time, equity=equity, quantity=quantity, price=price, **{"entry_price": 100.0, **more})


def allowed(limits: dict[str, Any], *states: AccountState) -> Any:
    manager = RiskManager(RiskLimits(**limits))
    for one in states:
        answer = manager.check(one)
    return answer


# --- the rules, without any environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "limit"),
    [(1.99, 1.99, 0), (2.0, 2.0, 0), (2.01, 2.0, 1), (-1.99, -1.99, 0), (-2.0, -2.0, 0), (-2.01, -2.0, 1)],
)
def test_the_position_limit_clips_a_target(wanted: float, given: float, limit: int) -> None:
    exposure, code = allowed({"maximum_exposure": 2.0}, state()).clip_exposure(wanted)
    assert (exposure[0], code[0]) == (given, limit)
    exposure, code = allowed({"maximum_quantity": 200.0}, state()).clip_exposure(wanted)  # 200 x 100 / 10,000
    assert (exposure[0], code[0]) == (pytest.approx(given), limit)


@pytest.mark.parametrize(
    ("quantity", "value", "limit"), [(9, 450.0, 0), (10, 500.0, 0), (11, 450.0, 1), (10, 500.01, 1)]
)
def test_the_position_limit_of_a_purchase(quantity: int, value: float, limit: int) -> None:
    answer = allowed({"maximum_exposure": 0.05, "maximum_quantity": 10}, state())
    assert answer.purchase(np.array([quantity]), np.array([value]))[0] == limit


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(("move", "closes"), [(-0.0499, False), (-0.05, True), (-0.0501, True), (0.2, False)])
def test_the_loss_stop(side: float, move: float, closes: bool) -> None:
    answer = allowed({"stop_loss": 0.05}, state(quantity=2.0 * side, price=100.0 * (1 + side * move)))
    assert answer.close[0] == closes
    exposure, code = answer.clip_exposure(0.7 * side)
    assert (exposure[0], code[0]) == ((0.0, 2) if closes else (0.7 * side, 0))


def test_a_stop_stays_in_force_until_the_position_is_flat() -> None:
    hit, back, flat = state(quantity=1.0, price=94.0), state(quantity=1.0, price=99.0), state()
    assert allowed({"stop_loss": 0.05}, hit, back).close[0]
    assert not allowed({"stop_loss": 0.05}, hit, flat).close[0]
    assert not allowed({"stop_loss": 0.05}, hit, flat, back).close[0]


@pytest.mark.parametrize(("left", "limit"), [(61, 0), (60, 0), (59, 3)])
def test_the_last_entry(left: float, limit: int) -> None:
    answer = allowed({"last_entry_minutes": 60.0}, state(minutes_left=left))
    assert answer.purchase(np.array([1]), np.array([10.0]))[0] == limit


@pytest.mark.parametrize(("decay", "limit"), [(0.0099, 0), (0.01, 0), (0.0101, 3)])
def test_the_largest_decay(decay: float, limit: int) -> None:
    answer = allowed({"maximum_decay": 0.01}, state(minutes_left=100.0))
    assert answer.purchase(np.array([1]), np.array([10.0]), np.array([decay]))[0] == limit


@pytest.mark.parametrize(("equity", "closes"), [(9_801.0, False), (9_800.0, True), (9_799.0, True)])
def test_the_daily_loss_counts_from_the_days_opening(equity: float, closes: bool) -> None:
    midnight = np.datetime64("2024-06-03", "ns")
    answer = allowed({"daily_loss": 0.02}, state(midnight), state(NOON, equity))
    assert answer.close[0] == closes
    assert answer.clip_exposure(0.5)[1][0] == (4 if closes else 0)
    assert answer.purchase(np.array([1]), np.array([1.0]))[0] == (4 if closes else 0)


def test_the_daily_loss_ends_with_the_day_and_a_day_opens_at_what_was_known_at_midnight() -> None:
    limits = {"daily_loss": 0.02}
    start, evening = np.datetime64("2024-06-03", "ns"), np.datetime64("2024-06-03T23:00", "ns")
    lost, recovered = state(NOON, 9_700.0), state(NOON + HOUR, 10_500.0)
    assert allowed(limits, state(start), lost, recovered).close[0], "for the rest of the day"
    assert not allowed(limits, state(start), lost, state(start + 24 * HOUR, 9_700.0)).close[0]
    after = state(start + 25 * HOUR, 9_700.0)  # nothing is known at 00:00: the last equity before it counts
    assert allowed(limits, state(evening, 10_000.0), after).close[0]
    assert not allowed(limits, state(evening, 10_000.0), state(start + 24 * HOUR, 9_700.0), after).close[0]


def test_the_same_state_twice_changes_nothing_and_begin_forgets() -> None:
    manager = RiskManager(RiskLimits(daily_loss=0.02, stop_loss=0.05), 2)
    both = AccountState(
        time=NOON, equity=np.array([10_000.0, 9_000.0]), quantity=np.ones(2), price=90.0, entry_price=100.0
    )
    first = manager.check(both)
    again = manager.check(both)
    assert (first.close == again.close).all()
    manager.begin(np.array([True, False]))
    assert manager.stopping.tolist() == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"maximum_exposure": -1.0}, {"stop_loss": 0.0}, {"stop_loss": 1.1}, {"daily_loss": math.nan},
        {"maximum_quantity": True}, {"last_entry_minutes": "30"}, {"maximum_decay": 0.0},
    ],
)  # fmt: skip
def test_a_wrong_limit_names_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RiskLimits(**wrong)


# --- around environments ----------------------------------------------------------------------------------------------

PERP_LIMITS = RiskLimits(maximum_exposure=1.5, stop_loss=0.02, daily_loss=0.03)
OPTION_LIMITS = RiskLimits(
    maximum_exposure=0.015, maximum_quantity=12, stop_loss=0.4, last_entry_minutes=75.0, maximum_decay=0.008,
    daily_loss=0.01,
)  # fmt: skip


def perp_vector(lanes: int, **more: Any) -> Any:
    return build_vector("PerpFutures", num_envs=lanes, **{"bars": PERP, "leverage": 3.0, "ruin": 1e-6, **more})


def option_vector(lanes: int, **more: Any) -> Any:
    return build_vector("ZeroDTE", num_envs=lanes, **{"bars": DAYS, "actions": "sized", "risk": 0.03, **more})


def test_a_limit_is_named_and_what_was_asked_is_told() -> None:
    env = LimitRisk(build("PerpFutures", bars=PERP, leverage=3.0), RiskLimits(maximum_exposure=1.5))
    env.reset(seed=1)
    info = env.step(np.array([0.5], np.float32))[4]
    assert (info["limit"], info["action"], info["requested_action"]) == ("", 0.5, 0.5)
    info = env.step(np.array([-0.9], np.float32))[4]
    assert (info["limit"], info["action"], info["requested_action"]) == ("position", -0.5, np.float32(-0.9))
    assert abs(info["position"] * info["mark"]) / info["equity"] < 1.6
    with pytest.raises(ActionError):
        env.step(np.array([np.nan]))
    with pytest.raises(ActionError):
        env.step(np.zeros(3))
    with pytest.raises(AttributeError):
        env.action_masks()


def test_limits_that_a_family_cannot_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="last_entry_minutes is of contracts with an expiry"):
        LimitRisk(build("PerpFutures", bars=PERP), RiskLimits(last_entry_minutes=30.0))
    daily = "synthetic:crypto?seed=3&interval=1d&bars=3000"
    with pytest.raises(ConfigError, match="daily_loss needs bars shorter than a day"):
        LimitRisk(build("PerpFutures", bars=daily), RiskLimits(daily_loss=0.1))
    with pytest.raises(ConfigError, match="limits must be RiskLimits"):
        LimitRisk(build("PerpFutures", bars=PERP), {"stop_loss": 0.1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["PerpFutures-v0", "ZeroDTE-v0"])
def test_it_wraps_what_gym_makes_and_copies_go_their_own_way(name: str) -> None:
    bars, limits = (PERP, PERP_LIMITS) if name.startswith("Perp") else (DAYS, OPTION_LIMITS)
    env = LimitRisk(gym.make(name, bars=bars), limits)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(30):
        action = env.action_space.sample()
        twin = copy.deepcopy(env)
        first, second = env.step(action), twin.step(action)
        assert first[0].tobytes() == second[0].tobytes()
        assert first[4]["limit"] == second[4]["limit"]
    lanes = LimitRiskVector(gym.make_vec(name, num_envs=2, bars=bars), limits)
    lanes.reset(seed=0)
    assert lanes.step(lanes.action_space.sample())[4]["limit"].shape == (2,)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("family", ["PerpFutures", "ZeroDTE"])
def test_every_lane_equals_the_single_env(family: str, mode: AutoresetMode) -> None:
    make, limits = (perp_vector, PERP_LIMITS) if family == "PerpFutures" else (option_vector, OPTION_LIMITS)
    settings: dict[str, Any] = {"bars": PERP, "leverage": 3.0, "ruin": 1e-6, "episode_bars": 60}
    if family == "ZeroDTE":
        settings = {"bars": DAYS, "actions": "sized", "risk": 0.03, "offered": 3.0}
    lanes = LimitRiskVector(make(3, autoreset_mode=mode, **settings), limits)
    singles = [LimitRisk(build(family, **settings), limits) for _ in range(3)]
    seen, infos = lanes.reset(seed=5)
    for lane, env in enumerate(singles):
        assert env.reset(seed=5 + lane)[0].tobytes() == seen[lane].tobytes()
    random, over, met = np.random.default_rng(SEED), np.zeros(3, bool), set()
    for _ in range(500):
        if family == "ZeroDTE":
            np.testing.assert_array_equal(
                lanes.action_masks()[~over],
                [e.action_masks() for e, o in zip(singles, over, strict=True) if not o] or np.empty((0, 8), bool),
            )
        actions = random.uniform(-1, 1, (3, 1)) if family == "PerpFutures" else random.integers(0, 4, (3, 2))
        seen, rewards, terminated, truncated, infos = lanes.step(actions)
        for lane, env in enumerate(singles):
            if over[lane] and mode == AutoresetMode.NEXT_STEP:
                assert env.reset()[0].tobytes() == seen[lane].tobytes()
                assert infos["limit"][lane] == ""
                continue
            obs, reward, done, cut, info = env.step(actions[lane])
            assert (reward, done, cut) == (rewards[lane], terminated[lane], truncated[lane])
            ended = (done or cut) and mode == AutoresetMode.SAME_STEP
            told = infos["final_info"] if ended else infos
            assert (infos["final_obs"][lane] if ended else seen[lane]).tobytes() == obs.tobytes()
            for key in ("limit", "requested_action", "action", "equity"):
                assert told[key][lane] == info[key]
            met.add(info["limit"])
            if ended:
                assert env.reset()[0].tobytes() == seen[lane].tobytes()
        over = terminated | truncated
    assert {"position", "stop_loss", "daily_loss"} <= met
    assert family == "PerpFutures" or "theta_cut_off" in met


# --- ten thousand random days -----------------------------------------------------------------------------------------


def closing(info: dict[str, Any], done: Any) -> dict[str, Any]:
    """What the step itself said: of lanes that a SAME_STEP call reset, their last info."""
    if not done.any():
        return info
    last = info["final_info"]
    return {
        key: np.where(done, last[key], value) for key, value in info.items() if key in last and key != "reward_terms"
    }


def breaches_of_options(env: Any, limits: RiskLimits, days: int) -> tuple[set[str], dict[str, int]]:
    """Play random days and check every decision against the limits, from infos alone."""
    lanes = env.num_envs
    random = np.random.default_rng(SEED)
    _, now = env.reset(seed=SEED)
    wrong: set[str] = set()
    met = dict.fromkeys((*limit_risk.LIMITS, "bought", "days"), 0)
    halted, opening = np.zeros(lanes, bool), now["equity"].copy()
    stop, most, share, loss, last = (
        float(getattr(limits, name) or 0.0)
        for name in ("stop_loss", "maximum_quantity", "maximum_exposure", "daily_loss", "last_entry_minutes")
    )
    while met["days"] < days:
        halted |= opening - now["equity"] >= loss * opening - 1e-9
        held, left, equity, working = now["position"], now["minutes_left"], now["equity"], now["order_side"]
        stopped = (held > 0) & (now["entry_price"] - now["premium"] >= stop * now["entry_price"] - 1e-12)
        may_close = (working >= 0) & (left > 15)
        masks = env.action_masks()
        trades = random.random(lanes) < 0.5
        legal = np.where(masks[:, :4], random.random((lanes, 4)), -1.0).argmax(axis=1)
        actions = np.where(trades, np.where(random.random(lanes) < 0.5, legal, random.integers(0, 4, lanes)), HOLD)
        _, _, done, _, info = env.step(np.stack([actions, random.integers(0, 4, lanes)], axis=1))
        at = {
            k: np.where(done, info["final_info"][k], info[k]) if done.any() else info[k]
            for k in now
            if k in info and isinstance(info[k], np.ndarray)
        }
        bought, buying = at["fill_quantity"] > 0, np.isin(at["action"], (CALL, PUT)) & (at["order_code"] == 0)
        for name, bad in (
            ("opened after the cut-off", buying & (left < last)),
            ("filled after the cut-off", bought & (left < last)),
            ("opened after the daily loss", (buying | bought) & halted),
            ("too many contracts", at["position"] > most),
            ("held on after a stop", stopped & may_close & (at["action"] != CLOSE)),
            ("held on after the daily loss", halted & (held > 0) & may_close & (at["action"] != CLOSE)),
            ("too dear", buying & (100 * at["fill_quantity"] * at["fill_price"] > share * equity + 1e-6)),
            ("illegal by its own doing", (at["limit"] != "") & (at["order_code"] != 0)),
        ):  # fmt: skip
            if bad.any():
                wrong.add(name)
        for limit in limit_risk.LIMITS:
            met[limit] += int((at["limit"] == limit).sum())
        met["bought"] += int(bought.sum())
        met["days"] += int(done.sum())
        halted &= ~done
        opening = np.where(done, info["equity"], opening)
        now = info
    return wrong, met


class Deaf(limit_risk.LimitRiskVector):
    """The mutant: it looks and says, and sends what was asked."""

    def __init__(self, env: Any, limits: RiskLimits) -> None:
        super().__init__(env, limits)
        rules = self._limited.rules

        class Passes(rules):  # type: ignore[valid-type,misc]
            @staticmethod
            def apply(simulation: Any, allowed: Any, actions: Any) -> Any:
                return actions, rules.apply(simulation, allowed, actions)[1]

        self._limited.rules = Passes


def test_no_limit_is_breached_in_ten_thousand_random_sessions() -> None:
    print(f"seed {SEED}")
    env = LimitRiskVector(option_vector(2_500, autoreset_mode="SameStep"), OPTION_LIMITS)
    wrong, met = breaches_of_options(env, OPTION_LIMITS, 10_000)
    print(met)
    assert wrong == set()
    assert met["days"] >= 10_000
    assert min(met.values()) > 500


def test_a_wrapper_that_does_not_act_is_caught() -> None:
    env = Deaf(option_vector(400, autoreset_mode="SameStep"), OPTION_LIMITS)
    wrong, _ = breaches_of_options(env, OPTION_LIMITS, 400)
    assert wrong >= {
        "opened after the cut-off", "filled after the cut-off", "opened after the daily loss", "too many contracts",
        "held on after a stop", "held on after the daily loss", "too dear",
    }  # fmt: skip


def breaches_of_perpetuals(env: Any, limits: RiskLimits, bars: int) -> tuple[set[str], dict[str, int]]:
    lanes = env.num_envs
    random = np.random.default_rng(SEED)
    _, now = env.reset(seed=SEED)
    wrong: set[str] = set()
    met = dict.fromkeys(limit_risk.LIMITS, 0)
    day, opening, halted = now["time"].astype("M8[D]"), now["equity"].copy(), np.zeros(lanes, bool)
    stop, most, loss = (float(getattr(limits, n) or 0.0) for n in ("stop_loss", "maximum_exposure", "daily_loss"))
    for _ in range(bars):
        halted |= opening - now["equity"] >= loss * opening - 1e-9
        side = np.sign(now["position"])
        lost = side * (now["entry_price"] - now["mark"]) >= stop * now["entry_price"] - 1e-9
        _, _, _, _, info = env.step(random.uniform(-1, 1, (lanes, 1)))
        live = info["end_code"] == 0  # its account goes on
        for name, bad in (
            ("beyond the position limit", np.abs(info["action"]) * 3.0 > most * (1 + 1e-9)),
            ("held on after a stop", (side != 0) & lost & (info["action"] != 0.0)),
            ("traded after the daily loss", halted & (info["action"] != 0.0)),
            ("not flat after the daily loss", halted & (info["order_quantity"] == 0.0) & (info["position"] != 0.0)),
        ):
            if (bad & live).any():
                wrong.add(name)
        for limit in limit_risk.LIMITS:
            met[limit] += int((info["limit"] == limit).sum())
        new = info["time"].astype("M8[D]") != day
        day = info["time"].astype("M8[D]")
        opening, halted = np.where(new, info["equity"], opening), halted & ~new
        now = info
    return wrong, met


@pytest.mark.parametrize("kind", [LimitRiskVector, Deaf])
def test_no_limit_is_breached_in_ten_thousand_random_days_of_a_perpetual(kind: type[LimitRiskVector]) -> None:
    print(f"seed {SEED}")
    lanes = 1_000 if kind is LimitRiskVector else 50
    env = kind(perp_vector(lanes, episode_bars=300, continue_after_liquidation=True), PERP_LIMITS)
    wrong, met = breaches_of_perpetuals(env, PERP_LIMITS, 240)
    print(met)
    if kind is Deaf:
        assert wrong >= {"beyond the position limit", "held on after a stop", "traded after the daily loss"}
    else:
        assert wrong == set()
        assert all(met[limit] > 500 for limit in ("", "position", "stop_loss", "daily_loss"))


def test_masks_leave_out_what_limits_forbid_and_what_they_leave_is_applied_as_it_is() -> None:
    env = LimitRiskVector(option_vector(300, autoreset_mode="SameStep"), OPTION_LIMITS)
    env.reset(seed=SEED)
    random, narrow = np.random.default_rng(SEED), 0
    for _ in range(420):
        masks = env.action_masks()
        assert masks[:, :4].any(axis=1).all()
        assert masks[:, 4:].any(axis=1).all()
        drawn = [
            np.where(part, random.random(part.shape), -1.0).argmax(axis=1) for part in (masks[:, :4], masks[:, 4:])
        ]
        before = env.unwrapped.action_masks()
        narrow += int((before & ~masks).any(axis=1).sum())
        info = env.step(np.stack(drawn, axis=1))[4]
        assert (info["limit"] == "").all()
        assert (info["illegal_actions"] == 0).all()
    assert narrow > 1_000


def test_money_is_what_the_same_actions_make_of_it_without_limits() -> None:
    """The limits change actions and nothing else: replaying what was applied gives the same account, bit for bit."""
    for make, limits in ((perp_vector, PERP_LIMITS), (option_vector, OPTION_LIMITS)):
        limited, plain = LimitRiskVector(make(20), limits), make(20)
        limited.reset(seed=2)
        plain.reset(seed=2)
        random = np.random.default_rng(SEED)
        for _ in range(200):
            perp = make is perp_vector
            actions = random.uniform(-1, 1, (20, 1)) if perp else random.integers(0, 4, (20, 2))
            sent, _, _ = limited._limited.apply(limited.simulation, actions)
            limited.step(actions)
            plain.step(sent)
            assert limited.simulation.accounts.tobytes() == plain.simulation.accounts.tobytes()
            live = plain.simulation.accounts[0]
            if perp:
                value = live[:, pc.WALLET] + live[:, pc.POSITION] * (live[:, pc.MARK] - live[:, pc.ENTRY])
                np.testing.assert_allclose(value, live[:, EQUITY], rtol=1e-9)


def test_masks_before_the_first_episode_say_what_is_missing() -> None:
    with pytest.raises(ResetNeeded, match="reset"):
        LimitRisk(build("ZeroDTE", bars=DAYS), RiskLimits(daily_loss=0.01)).action_masks()
