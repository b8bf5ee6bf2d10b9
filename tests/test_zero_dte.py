"""ZeroDTE: money, cut-offs, masks, lanes, causality, settlement, splits; every invariant with a planted fault."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import envs.make
from agents.baselines import AtOpen
from agents.evaluation import evaluate, steps_of, walk
from agents.vec_env import NativeVecEnv
from envs import zero_dte_columns as c
from envs.make import build, build_vector
from envs.simulation import QUIET, START, Game
from envs.zero_dte import TradingAction, ZeroDTE, ZeroDTEEnv, ZeroDTEVectorEnv
from envs.zero_dte_config import ZeroDTEConfig
from envs.zero_dte_kernel import contract_quote
from markets import sources
from markets.bars import Bars
from markets.errors import ActionError, ConfigError, DataError, InSampleError, UnknownNameError
from markets.option_fills import FILLED, minute_uniform
from markets.options import REJECT_CUT_OFF, REJECT_FLAT, REJECT_HELD, REJECT_QUANTITY, REJECT_WORKING
from markets.sources.memory import register_bars

SMALL = "synthetic:spy?seed=3&sessions=30"
EARLY = "synthetic:spy?seed=3&sessions=6&early_close=only"
HOLD, CALL, PUT, CLOSE = (int(action) for action in TradingAction)
SEED = 11
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.make.FAMILIES, "ZeroDTE", "envs.zero_dte:ZeroDTE")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "TestZeroDTE-v0"
    gym.register(name, "envs.make:build", vector_entry_point="envs.make:build_vector", kwargs={"family": "ZeroDTE"})
    yield name
    del gym.registry[name]


def env_on(**settings: Any) -> Any:
    return build("ZeroDTE", **{"bars": SMALL, **settings})


def until(env: Any, minutes_left: float, action: int = HOLD) -> tuple[Any, dict[str, Any]]:
    """Take one action, then hold until that many minutes are left."""
    obs, _, _, _, info = env.step(action)
    while info["minutes_left"] > minutes_left:
        obs, _, _, _, info = env.step(HOLD)
    assert info["minutes_left"] == minutes_left
    return obs, info


# --- money ------------------------------------------------------------------------------------------------------------


def audit(game: Game, sessions: int, lanes: int = 100, trade: float = 0.3) -> Counter[str]:
    """Play random sessions and keep a ledger of fills, fees and settlements beside the account's own."""
    env = ZeroDTEVectorEnv(game, gym.spaces.Discrete(4), lanes, autoreset_mode=AutoresetMode.SAME_STEP)
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    _, info = env.reset(seed=SEED)
    met: Counter[str] = Counter()
    cash = equity = info["equity"].copy()
    ended = 0
    while ended < sessions:
        masks = env.action_masks()
        drawn = np.where(masks, random.random(masks.shape), -1.0).argmax(axis=1)
        actions = np.where(random.random(lanes) < trade, drawn, HOLD)
        actions[(actions == CLOSE) & (random.random(lanes) < 0.97)] = HOLD  # so that some are held to the end
        _, _, terminated, truncated, now = env.step(actions)
        assert not truncated.any()
        done = terminated
        at = {
            key: np.where(done, now["final_info"][key], now[key]) if done.any() else now[key]
            for key in game.columns[game.info.start : game.info.stop]
        }
        fee = np.where(at["fill_price"] > 0.0, 0.06 * np.abs(at["fill_quantity"]), 0.0)
        cash = cash - 100.0 * at["fill_quantity"] * at["fill_price"] - fee + at["settlement"]
        value = cash + 100.0 * at["position"] * at["premium"] + at["shares"] * at["mark"]
        items = at["market_pnl"] - at["fee"] - at["spread_cost"] - at["lapse"]
        np.testing.assert_allclose(at["cash"], cash, rtol=0, atol=1e-6, err_msg="cash")
        np.testing.assert_allclose(at["equity"], value, rtol=0, atol=1e-6, err_msg="value")
        np.testing.assert_allclose(at["equity"] - equity, items, rtol=0, atol=1e-6, err_msg="items")
        assert (at["cash"] >= 0.0).all()
        assert (at["illegal_actions"] == 0.0).all()
        assert (at["position"][done] == 0.0).all(), "survived"
        assert (at["order_side"][done] == 0.0).all(), "survived"
        met["bought"] += int((at["fill_quantity"] > 0).sum())
        met["sold"] += int((at["fill_quantity"] < 0).sum())
        met["forced"] += int((at["forced"] != 0).sum())
        met["settled"] += int((at["settled_quantity"] > 0).sum())
        met["fees"] += int((fee > 0).sum())
        ended += int(done.sum())
        cash, equity = np.where(done, now["cash"], cash), now["equity"].copy()
    return met


@pytest.mark.parametrize(
    "more", [{}, {"forced_exit": None}, {"forced_exit": None, "settlement": "physical", "risk": 0.003}]
)
def test_money_reconciles_in_every_step_and_no_position_survives(more: dict[str, Any]) -> None:
    met = audit(ZeroDTE.game(ZeroDTEConfig(bars=SMALL, **more)), 300)
    assert met["bought"] > 300
    assert met["sold"] > 100
    assert (met["forced"] > 30) == (more.get("settlement") == "physical" or not more), met
    assert met["settled"] > (30 if "forced_exit" in more else 0), met  # by default what nobody bid for
    assert more or met["settled"] < met["forced"] / 10, met


def test_money_reconciles_over_ten_thousand_random_sessions() -> None:
    met = audit(ZeroDTE.game(ZeroDTEConfig(bars=EARLY)), 10_000, lanes=1_000)
    assert min(met["bought"], met["sold"]) > 10_000


def planted(game: Game, fault: Callable[[np.ndarray[Any, Any]], None]) -> Game:
    def kernel(market: Any, table: Any, contract: Any, accounts: Any, obs: Any, mode: int) -> int:
        ended = game.kernel(market, table, contract, accounts, obs, mode)
        fault(accounts)
        return int(ended)

    return replace(game, kernel=kernel)


def forget_fee(accounts: np.ndarray[Any, Any]) -> None:
    accounts[0, :, c.CASH] += accounts[0, :, c.FEE]


def shift_a_cent(accounts: np.ndarray[Any, Any]) -> None:
    accounts[0, :, c.SPREAD_COST] += 0.01 * (accounts[0, :, c.FILL_QUANTITY] != 0.0)


def keep_a_contract(accounts: np.ndarray[Any, Any]) -> None:
    accounts[1, accounts[1, :, c.MINUTES_LEFT] == 0.0, c.POSITION] = 1.0


@pytest.mark.parametrize("fault", [forget_fee, shift_a_cent, keep_a_contract])
def test_the_audit_finds_a_planted_fault(fault: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError, match=r"cash|items|value|survived"):
        audit(planted(ZeroDTE.game(ZeroDTEConfig(bars=SMALL)), fault), 5)


# --- worked examples --------------------------------------------------------------------------------------------------


def flat_bars(prices: dict[int, tuple[float, float]], sessions: int = 5) -> Bars:
    """Sessions at 600.00, but for bars of the first one: number -> open, close."""
    bars = sources.load(f"synthetic:spy?seed=3&sessions={sessions}")
    opened, close = np.full(bars.open.shape, 600.0), np.full(bars.open.shape, 600.0)
    for row, (first, last) in prices.items():
        opened[row], close[row] = first, last
    return replace(
        bars, open=opened, close=close, high=np.maximum(opened, close), low=np.minimum(opened, close),
        previous_vix=np.full(bars.open.shape, 100.0 * 0.12 / 1.29 * np.sqrt(525600 / 98280)),
        bid=close - 0.01, ask=close + 0.01,
    )  # fmt: skip


def spot_of(game: Game, row: int, side: int, price: float) -> float:
    """Underlying's price at the opening of ``row`` at which the 600 call is bid (1) or asked (2) at ``price``."""
    m = game.market[row]
    for cents in range(59000, 61000):
        quote = contract_quote(
            1.0, 600.0, cents / 100, m[c.OPEN_DEVIATION], m[c.OPEN_SLOPE], m[c.OPEN_CURVATURE], m[c.OPEN_FACTOR],
            game.contract,
        )  # fmt: skip
        if abs(quote[side] - price) < 1e-9:
            return cents / 100
    raise AssertionError(f"no price quotes {price}")


def test_o_21_two_calls_bought_at_182_and_sold_at_240_through_the_env() -> None:
    quiet = ZeroDTE.game(ZeroDTEConfig(bars=flat_bars({}), fill="market"))
    low, high = spot_of(quiet, 100, 2, 1.82), spot_of(quiet, 150, 1, 2.40)
    bars = flat_bars({100: (low, 600.0), 150: (high, 600.0)})
    ask = quiet.market[99, c.CALL_ASK]
    env = build("ZeroDTE", bars=bars, fill="market", risk=2.5 * 100 * ask / 100_000, random_start=False)
    env.reset(seed=0)
    until(env, 390 - 1 - 99)
    info = env.step(CALL)[4]
    assert (info["position"], info["strike"], info["fill_price"]) == (2.0, 600.0, pytest.approx(1.82))
    assert info["cash"] == pytest.approx(100_000 - 364.12, abs=1e-9)
    until(env, 390 - 1 - 149)
    info = env.step(CLOSE)[4]
    assert info["fill_price"] == pytest.approx(2.40)
    assert info["position"] == 0.0
    assert info["cash"] == pytest.approx(100_000 + 115.76, abs=1e-9) == info["equity"]


@pytest.mark.parametrize(("close", "payoff"), [(600.01, 1.0), (600.0, 0.0)])
@pytest.mark.parametrize("settlement", ["cash_equivalent", "physical"])
def test_o_20_a_call_a_cent_in_the_money_pays_a_dollar(close: float, payoff: float, settlement: str) -> None:
    bars = flat_bars({389: (600.0, close)})
    env = build(
        "ZeroDTE", bars=bars, fill="market", forced_exit=None, settlement=settlement, random_start=False, risk=0.003
    )
    env.reset(seed=0)
    info = env.step(CALL)[4]
    count, cash = info["position"], info["cash"]
    assert count == 1.0
    info = until(env, 0.0)[1]
    assert info["settled_quantity"] == count
    assert info["position"] == 0.0
    assert info["equity"] - cash == pytest.approx(payoff * count, abs=1e-6)
    if settlement == "physical" and payoff:
        assert info["shares"] == 100.0
        assert info["settlement"] == -60_000.0


def test_who_cannot_pay_for_the_shares_is_closed_before() -> None:
    bars = flat_bars({})
    env = build("ZeroDTE", bars=bars, fill="market", forced_exit=None, settlement="physical", random_start=False)
    env.reset(seed=0)
    assert env.step(CALL)[4]["position"] > 1.0
    assert until(env, 15.0)[1]["position"] > 1.0
    info = env.step(HOLD)[4]
    assert info["position"] == 0.0
    assert info["forced"]


def test_premium_is_the_price_on_the_variance_clock() -> None:
    from markets.option_clocks import remaining_share
    from markets.option_prices import price_on_variance_clock

    env = build("ZeroDTE", bars=flat_bars({}), fill="market", random_start=False)
    env.reset(seed=0)
    info = env.step(CALL)[4]
    assert info["premium"] == pytest.approx(
        price_on_variance_clock(1.0, 600.0, 600.0, remaining_share(390)[2], 390.0, 0.12), rel=1e-9
    )


# --- cut-offs and masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [CALL, PUT])
def test_theta_at_the_money_accelerates_until_the_close(right: int) -> None:
    """S19. Held where the price stands still: what a minute takes grows from the first hour on."""
    env = env_on(bars=flat_bars({}), fill="market", forced_exit=None)
    env.reset(seed=SEED)
    _, _, _, _, info = env.step(right)
    assert info["position"] > 0.0
    shown, over = [], False
    while not over:
        _, _, over, _, info = env.step(HOLD)
        shown.append(info["theta_minute"])
    taken = np.array(shown[60:-1])
    assert (np.diff(taken) < 0.0).all()
    assert taken[-1] < 5.0 * taken[0] < 0.0


@pytest.mark.parametrize(("source", "bars"), [(SMALL, 390), (EARLY, 210)])
def test_cut_offs_count_back_from_the_close_of_that_session(source: str, bars: int) -> None:
    env = env_on(bars=source, fill="market")
    _, info = env.reset(seed=2)
    assert info["minutes_left"] == bars - 1
    info = until(env, 30.0)[1]
    assert info["entry_minutes_left"] == 0.0
    assert env.action_masks().tolist() == [True, True, True, False]
    assert copy.deepcopy(env).step(CALL)[4]["fill_quantity"] > 0.0
    until(env, 29.0)
    assert env.action_masks().tolist() == [True, False, False, False]
    info = env.step(CALL)[4]
    assert (info["order_code"], info["action"], info["order_side"]) == (REJECT_CUT_OFF, HOLD, 0.0)

    for seed in range(2, 30):
        env.reset(seed=seed)
        env.step(PUT)
        info = until(env, 15.0)[1]
        if info["bid"] > 0.0:  # else nobody buys it
            break
    assert info["position"] > 0.0
    assert not info["forced"]
    assert info["exit_minutes_left"] == 0.0
    assert not env.action_masks()[CLOSE]
    info = env.step(HOLD)[4]
    assert info["forced"]
    assert info["position"] == 0.0
    assert info["minutes_left"] == 14.0
    assert until(env, 0.0)[1]["ended_by"] == "session close"


@pytest.mark.parametrize("patient", [True, False])
def test_an_order_sent_at_the_cut_off_works_to_its_end_and_is_not_pegged_again(patient: bool) -> None:
    """An accepted order may fill after 15:30; a new price is a new order. The twin's cut-off lies later: it pegs."""
    env = env_on(fill_rate=0.0, entry_cut_off=30.0 if patient else 20.0, order_life=3.0, order_repegs=1.0)
    met = 0
    for seed in range(20):
        env.reset(seed=seed)
        until(env, 30.0)
        infos = [env.step(CALL)[4], *(env.step(HOLD)[4] for _ in range(5))]
        if not any(info["fill_quantity"] for info in infos):  # none crossed the quote, in which it fills at any rate
            met += 1
            working = 2 if patient else 5
            assert [info["order_side"] for info in infos] == [1.0] * working + [0.0] * (6 - working)
    assert met


def test_a_limit_order_still_working_at_the_forced_exit_is_withdrawn() -> None:
    env = env_on(fill_rate=0.0, entry_cut_off=16.0, order_life=30.0)
    env.reset(seed=1)
    until(env, 16.0)
    info = env.step(CALL)[4]
    assert info["order_side"] == 1.0
    assert env.step(HOLD)[4]["order_side"] == 0.0


def test_every_action_outside_the_mask_changes_nothing_and_is_counted() -> None:
    random = np.random.default_rng(SEED)
    env = env_on(order_life=2.0)
    env.reset(seed=SEED)
    met: set[float] = set()
    for _ in range(1_200):
        masks = env.action_masks()
        for action in np.flatnonzero(~masks).tolist():
            if random.random() < 0.3:
                other, idle = copy.deepcopy(env), copy.deepcopy(env)
                refused, held = other.step(action), idle.step(HOLD)
                assert refused[4]["illegal_actions"] == held[4]["illegal_actions"] + 1 == 1
                assert refused[0].tobytes() == held[0].tobytes()
                assert refused[1] == held[1]
                met.add(refused[4]["order_code"])
        legal = np.flatnonzero(masks)
        step = env.step(int(random.choice(legal)) if random.random() < 0.2 else HOLD)
        assert step[4]["illegal_actions"] == 0.0
        if step[2]:
            env.reset()
    assert met >= {REJECT_CUT_OFF, REJECT_FLAT, REJECT_HELD, REJECT_WORKING}


def test_a_budget_of_less_than_one_contract_masks_purchases() -> None:
    env = env_on(initial_equity=1_000.0)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False, False, False]
    assert env.step(CALL)[4]["order_code"] == REJECT_QUANTITY


def test_sizes_buy_their_share_of_the_budget_and_their_mask_keeps_every_pair_legal() -> None:
    env = env_on(actions="sized", fill="market")
    counts = []
    for size in range(4):
        env.reset(seed=4)
        info = env.step([CALL, size])[4]
        counts.append(info["position"])
    ask = env.simulation.game.market[int(env._account[START]), c.CALL_ASK]
    assert counts == [np.floor(0.02 * share * 100_000 / (100 * ask)) for share in (0.25, 0.5, 0.75, 1.0)]

    poor = env_on(actions="sized", initial_equity=12_000.0, fill="market")
    poor.reset(seed=4)
    assert poor.action_masks().shape == (8,)
    narrow, random = 0, np.random.default_rng(0)
    for _ in range(2_000):
        masks = poor.action_masks()
        narrow += 0 < masks[4:].sum() < 4
        pair = [int(random.choice(np.flatnonzero(part))) for part in (masks[:4], masks[4:])]
        step = poor.step(pair if random.random() < 0.2 else [HOLD, 3])
        assert step[4]["illegal_actions"] == 0.0
        if step[2]:
            poor.reset()
    assert narrow > 50


@pytest.mark.parametrize("bad", [4, -1, 1.5, np.array([1, 1]), "1", None])
def test_what_is_no_action_raises_and_changes_nothing(bad: Any) -> None:
    env = env_on()
    env.reset(seed=0)
    before = env.simulation.accounts.copy()
    with pytest.raises(ActionError):
        env.step(bad)
    assert (env.simulation.accounts == before).all()
    lanes = build_vector("ZeroDTE", num_envs=2, bars=SMALL)
    lanes.reset(seed=0)
    with pytest.raises(ActionError):
        lanes.step([0, bad])


def test_not_a_number_is_held_and_counted_where_asked() -> None:
    env = env_on(on_bad_action="hold")
    env.reset(seed=0)
    info = env.step(np.nan)[4]
    assert (info["bad_actions"], info["illegal_actions"], info["action"]) == (1.0, 0.0, HOLD)
    with pytest.raises(ActionError, match="from 0 to 3"):
        env.step(7)


def test_masks_reach_through_gym_make_the_vector_env_and_the_bridge(made: str) -> None:
    single = gym.make(made, bars=SMALL)
    single.reset(seed=5)
    masks = single.get_wrapper_attr("action_masks")
    lanes = gym.make_vec(made, num_envs=3, bars=SMALL, autoreset_mode=AutoresetMode.SAME_STEP)
    bridge = NativeVecEnv(lanes)
    bridge.seed(5)
    bridge.reset()
    single.step(CALL)
    bridge.step(np.array([CALL, HOLD, PUT]))
    own = bridge.env_method("action_masks")
    assert [row.shape for row in own] == [(4,)] * 3
    np.testing.assert_array_equal(own[0], masks())
    assert own[0].tolist() != own[1].tolist(), "every lane has its own"
    assert bridge.get_attr("action_masks")


# --- fills ------------------------------------------------------------------------------------------------------------


def test_fills_are_never_better_than_the_limit_and_a_rested_order_fills_at_its_own() -> None:
    env = env_on(order_life=3.0, offered=4.0)
    random = np.random.default_rng(1)
    _, info = env.reset(seed=1)
    rested = at_once = 0
    for _ in range(4_000):
        masks = env.action_masks()
        last = info
        action = int(random.choice(np.flatnonzero(masks))) if random.random() < 0.3 else HOLD
        obs, _, done, _, info = env.step(action)
        assert env.observation_space.contains(obs)
        if info["fill_quantity"] and not info["forced"]:
            if last["order_side"] and info["action"] == HOLD:
                side = last["order_side"]
                assert side * info["fill_price"] <= side * last["order_limit"] + 1e-9
                if last["order_age"] > 0.0:
                    rested += 1
                    assert info["fill_price"] == last["order_limit"]
            else:
                at_once += info["fill_code"] == FILLED
        if done:
            _, info = env.reset()
    assert rested > 50
    assert at_once > 15


@pytest.mark.parametrize(("selection", "selected"), [(2.0, True), (0.0, False)])
def test_who_fills_a_purchase_knows_more(selection: float, selected: bool) -> None:
    """The option's mid falls in the minute of a passive purchase on average; without selection it is a martingale."""
    lanes = build_vector(
        "ZeroDTE", num_envs=200, bars=SMALL, selection=selection, order_repegs=0.0, autoreset_mode="SameStep"
    )
    lanes.reset(seed=SEED)
    random, moves = np.random.default_rng(SEED), []
    for _ in range(800):
        masks, trades = lanes.action_masks(), random.random(200) < 0.05
        actions = np.where(masks[:, CALL] & trades, random.integers(CALL, PUT + 1, 200), HOLD)
        info = lanes.step(np.where(masks[:, CLOSE] & trades, CLOSE, actions))[4]
        bought = info["fill_quantity"] > 0.0
        moves += (info["market_pnl"][bought] / info["fill_quantity"][bought] / 100.0).tolist()
    mean, error = np.mean(moves), np.std(moves) / np.sqrt(len(moves))
    print(f"seed {SEED}: {len(moves)} purchases, mean move {mean:.4f} +- {error:.4f} USD a share")
    assert len(moves) > 1_000
    assert mean < -5.0 * error if selected else abs(mean) < 4.0 * error


def test_the_minutes_numbers_are_uniform_independent_and_those_of_plain_python() -> None:
    values = np.array([[minute_uniform(float(seed), float(m)) for m in range(390)] for seed in range(300)])
    assert ((values >= 0.0) & (values < 1.0)).all()
    counts = np.histogram(values, 50, (0.0, 1.0))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 95.0  # 49 degrees of freedom: p = 1e-4
    for other in (values[:, 1:], values[1:]):
        same = values[: len(other), : other.shape[1]]
        assert abs(np.corrcoef(same.ravel(), other.ravel())[0, 1]) < 4.0 / np.sqrt(other.size)
    plain = getattr(minute_uniform, "py_func", minute_uniform)
    assert plain(4294967295.0, 389.0) == minute_uniform(4294967295.0, 389.0)


def test_the_seed_of_the_fills_comes_from_the_lanes_generator() -> None:
    def fills(seed: int) -> list[float]:
        env = env_on()
        env.reset(seed=seed, options={"start": "2020-01-06"})
        return [env.step(CALL if not k % 20 else CLOSE)[4]["fill_quantity"] for k in range(200)]

    assert fills(1) == fills(1) != fills(2)


# --- lanes, copies ----------------------------------------------------------------------------------------------------


def bits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return np.asarray(value, np.float64).tobytes() if isinstance(value, float | np.floating) else value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "more", [{}, {"actions": "sized"}, {"split": "validation", "allow_in_sample": True, "forced_exit": None}]
)
def test_lane_i_is_the_single_env_seeded_with_seed_plus_i(mode: AutoresetMode, more: dict[str, Any]) -> None:
    settings = {"bars": EARLY, "reward": "log_return=1,costs=0.1,drawdown=0.5", **more}
    lanes = build_vector("ZeroDTE", num_envs=3, autoreset_mode=mode, **settings)
    random = np.random.default_rng(SEED)
    shape = (520, 3, 2) if more.get("actions") else (520, 3)
    actions = np.where(random.random(shape) < 0.3, random.integers(0, 4, shape), 0)
    first, _ = lanes.reset(seed=SEED)
    singles = [build("ZeroDTE", **settings) for _ in range(3)]
    for lane, single in enumerate(singles):
        assert single.reset(seed=SEED + lane)[0].tobytes() == first[lane].tobytes()
    ended = np.zeros(3, bool)
    sessions = 0
    for action in actions:
        if mode == AutoresetMode.DISABLED and ended.any():
            lanes.reset(options={"reset_mask": ended})
        obs, rewards, terminated, truncated, info = lanes.step(action)
        masks = lanes.action_masks()
        for lane, single in enumerate(singles):
            if ended[lane] and mode != AutoresetMode.SAME_STEP:
                own, facts = single.reset()
                if mode == AutoresetMode.NEXT_STEP:
                    assert own.tobytes() == obs[lane].tobytes()
                    assert rewards[lane] == 0.0
                    continue
            own, reward, over, _, facts = single.step(action[lane])
            assert (reward, over) == (rewards[lane], terminated[lane])
            if over and mode == AutoresetMode.SAME_STEP:
                assert own.tobytes() == info["final_obs"][lane].tobytes()
                assert facts["equity"] == info["final_info"]["equity"][lane]
                own, facts = single.reset()
            assert own.tobytes() == obs[lane].tobytes()
            assert (single.action_masks() == masks[lane]).all()
            for key in ("equity", "cash", "fill_price", "order_code", "minutes_left", "time"):
                assert bits(facts[key]) == bits(info[key][lane]), key
        ended = terminated | truncated
        sessions += int(ended.sum())
    assert sessions >= 6


def test_quiet_infos_are_the_full_ones() -> None:
    env = env_on()
    env.reset(seed=3)
    random, quiet = np.random.default_rng(3), 0
    for _ in range(900):
        action = int(random.integers(4)) if random.random() < 0.1 else HOLD
        _, _, done, _, info = env.step(action)
        quiet += bool(env._account[QUIET])
        shown = {name: env._account[k] for k, name in enumerate(env.simulation.game.columns) if k in c.INFO}
        for name, value in shown.items():
            assert info[name] == value, name
        if done:
            env.reset()
    assert quiet > 100


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_as_the_original(how: Callable[[Any], Any]) -> None:
    env = env_on()
    env.reset(seed=1)
    env.step(CALL)
    other = how(env)
    for action in (HOLD, HOLD, CLOSE, HOLD, PUT, HOLD):
        mine, others = env.step(action), other.step(action)
        assert mine[0].tobytes() == others[0].tobytes()
        assert bits(mine[4]) == bits(others[4])


# --- no look ahead ----------------------------------------------------------------------------------------------------


def disturbed(bars: Bars, row: int) -> Bars:
    """The same bars up to ``row``, noise from there on; a session's index was known before its opening."""
    random = np.random.default_rng(7)
    factor = np.ones(bars.close.shape)
    factor[row:] = np.exp(random.normal(0.0, 0.05, (len(bars) - row, 1)))
    changed = {name: getattr(bars, name) * factor for name in ("open", "high", "low", "close", "volume", "bid_size")}
    changed["high"] = np.maximum.reduce([changed[name] for name in ("open", "high", "low", "close")])
    changed["low"] = np.minimum.reduce([changed[name] for name in ("open", "high", "low", "close")])
    changed["bid"], changed["ask"] = changed["close"] - 0.01, changed["close"] + 0.01
    return replace(bars, **changed)


def same_past(game: Game, other: Game, row: int) -> None:
    """Everything that a decision at a row before ``row`` reads is the same."""
    np.testing.assert_array_equal(game.table[:row], other.table[:row])
    np.testing.assert_array_equal(game.market[:row], other.market[:row])


def test_noise_from_a_bar_on_changes_nothing_before_it() -> None:
    bars = sources.load(SMALL)
    scaler = ZeroDTE.game(ZeroDTEConfig(bars=bars)).details["scaler"]
    settings = {"scaler": scaler, "split": "test", "allow_in_sample": True}
    game = ZeroDTE.game(ZeroDTEConfig(bars=bars, **settings))
    for row in (game.first + 1, game.first + 137, game.first + 390, game.first + 700):
        noisy = ZeroDTE.game(ZeroDTEConfig(bars=disturbed(bars, row), **settings))
        same_past(game, noisy, row)
        assert not np.array_equal(game.market[row], noisy.market[row])
        plays = []
        for each in (game, noisy):
            env = ZeroDTEEnv(each, gym.spaces.Discrete(4))
            env.reset(seed=0)
            random, seen = np.random.default_rng(5), []
            for _ in range(min(row - game.first - 1, 388)):
                action = int(random.integers(4)) if random.random() < 0.2 else HOLD
                obs, reward, *_, info = env.step(action)
                seen.append((obs.tobytes(), reward, env.action_masks().tobytes(), info["fill_price"]))
            plays.append(seen)
        assert plays[0] == plays[1]


def test_a_quote_of_the_next_bar_is_found() -> None:
    bars = sources.load(SMALL)
    scaler = ZeroDTE.game(ZeroDTEConfig(bars=bars)).details["scaler"]
    games = []
    for each in (bars, disturbed(bars, 500)):
        game = ZeroDTE.game(ZeroDTEConfig(bars=each, scaler=scaler))
        market = game.market.copy()
        market[:-1, c.CALL_ASK] = game.market[1:, c.CALL_ASK]
        games.append(replace(game, market=market))
    with pytest.raises(AssertionError):
        same_past(*games, 500)


# --- splits, arguments ------------------------------------------------------------------------------------------------


def test_splits_hold_whole_sessions_in_order_and_evaluation_plays_them_one_after_the_other() -> None:
    days = []
    for split in ("train", "validation", "test"):
        env = env_on(split=split, random_start=False)
        starts = env.simulation.game.starts
        seen = []
        _, info = env.reset(seed=0)
        for _ in range(len(starts)):
            seen.append(info["time"])
            _, info = env.reset()
        assert info["time"] == seen[0], "the first again after the last"
        days.append([time.astype("datetime64[D]") for time in seen])
    assert [len(part) for part in days] == [18, 6, 6]
    together = [day for part in days for day in part]
    assert together == sorted(set(together))


def test_splits_by_date_and_their_errors() -> None:
    env = env_on(train_end="2020-01-15", validation_end="2020-01-24", split="validation")
    _, info = env.reset(seed=0)
    assert info["time"].astype("datetime64[D]") == np.datetime64("2020-01-16")
    assert not info["in_sample"]
    with pytest.raises(ConfigError, match="validation_end is missing"):
        env_on(train_end="2020-01-15")
    with pytest.raises(InSampleError):
        env_on(split="validation", scaler=ZeroDTE.game(ZeroDTEConfig(bars=SMALL, train_end="2020-02-05",
               validation_end="2020-02-10")).details["scaler"])  # fmt: skip


def test_unfinished_sessions_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    bars = sources.load(SMALL)
    holed = bars.between(100, 390 * 10 + 50)
    game = ZeroDTE.game(ZeroDTEConfig(bars=holed))
    assert game.details["unfinished_sessions"] == 2
    assert "unfinished" in caplog.text
    assert game.starts is not None
    assert game.starts[0] == 290
    with pytest.raises(DataError, match="no whole session"):
        ZeroDTE.game(ZeroDTEConfig(bars=bars.between(100, 300)))


def test_a_start_begins_the_first_session_at_or_after_it() -> None:
    env = env_on()
    _, info = env.reset(seed=0, options={"start": "2020-01-11"})  # a Saturday
    assert str(info["time"])[:16] == "2020-01-13T14:31"
    with pytest.raises(ConfigError, match="outside the split"):
        env.reset(options={"start": "2024-01-01"})


def test_sessions_are_drawn_at_random_in_training() -> None:
    env = env_on()
    env.reset(seed=0)
    drawn = {env.reset()[1]["time"] for _ in range(60)}
    assert len(drawn) > 12


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"actions": "size"}, UnknownNameError, "sized"),
        ({"iv": "gird"}, UnknownNameError, "vix"),
        ({"fill": "mid"}, UnknownNameError, "mid_optimistic"),
        ({"reward": "funding"}, UnknownNameError, "reward term of ZeroDTE 'funding'"),
        ({"risk": 2.0}, ConfigError, "risk=2.0"),
        ({"forced_exit": 40.0}, ConfigError, "entry_cut_off"),
        ({"strike_offset": 0.5}, ConfigError, "strike_offset"),
        ({"leverage": 3.0}, UnknownNameError, "argument of ZeroDTE"),
        ({"bars": "synthetic:crypto?seed=1&interval=1h&bars=4000"}, ConfigError, "have no sessions"),
    ],
)
def test_wrong_arguments_name_themselves(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        env_on(**arguments)


def test_a_fixed_number_of_contracts_is_paid_for_whole_or_not_bought() -> None:
    """Where the price rose since the order was sent, and the cash pays for a part only."""
    met: Counter[float] = Counter()
    settings = {"bars": SMALL + "&annual_volatility=1.0", "offered": 1e9, "order_repegs": 5.0}
    for fill in ("limit", "market"):
        env = env_on(**settings, contracts=100, initial_equity=40_000.0, fill=fill)
        env.reset(seed=SEED)
        random = np.random.default_rng(SEED)
        for _ in range(20_000):
            legal = np.flatnonzero(env.action_masks())
            _, _, over, _, info = env.step(int(random.choice(legal)))
            met[info["fill_quantity"]] += 1
            if over:
                env.reset()
    assert {size for size in met if size > 0.0} == {100.0}
    assert met[100.0] > 20


@pytest.mark.parametrize("wrong", ["no", 2, 0.5])
def test_a_random_start_is_a_yes_or_a_no(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="random_start"):
        env_on(random_start=wrong)


def test_a_smile_of_ones_own_moves_what_is_out_of_the_money() -> None:
    flat, steep = (
        env_on(smile=smile, strike_offset=3, contracts=1, fill="market") for smile in ("0,0,0,0", "-0.1,-0.1,0,0")
    )
    prices = []
    for env in (flat, steep):
        env.reset(seed=SEED)
        prices.append(
            [env.simulation.game.market[env.simulation.rows[0], column] for column in (c.CALL_ASK, c.PUT_ASK)]
        )
    assert prices[1][0] < prices[0][0]
    assert prices[1][1] > prices[0][1]
    for wrong in ("0,0,0", "a,b,c,d", "0,0,0,9"):
        with pytest.raises(ConfigError, match="smile"):
            env_on(smile=wrong)


def test_bars_without_an_index_say_so() -> None:
    with pytest.raises(DataError, match="previous_vix"):
        env_on(bars=replace(sources.load(SMALL), previous_vix=None))


def test_a_strike_offset_is_out_of_the_money_on_both_sides() -> None:
    game = ZeroDTE.game(ZeroDTEConfig(bars=SMALL, strike_offset=2))
    plain = ZeroDTE.game(ZeroDTEConfig(bars=SMALL))
    inside = plain.market[:, c.SESSION_BARS] > 0
    assert (game.market[inside, c.CALL_STRIKE] == plain.market[inside, c.CALL_STRIKE] + 2).all()
    assert (game.market[inside, c.PUT_STRIKE] == plain.market[inside, c.PUT_STRIKE] - 2).all()


def test_one_specialisation_of_the_step_serves_every_path() -> None:
    register_bars("zero-dte-test", sources.load(SMALL))
    for env in (env_on(), build_vector("ZeroDTE", num_envs=2, bars="memory:zero-dte-test", actions="sized")):
        env.reset(seed=0)
        env.step(env.action_space.sample())
    signatures = getattr(env.simulation.game.kernel, "signatures", [1])
    assert len(signatures) == 1


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_walk_chains_the_sessions_of_a_split_and_equals_stepping_the_env() -> None:
    config = ZeroDTEConfig(bars=SMALL, split="validation")
    game = envs.make.game_of("ZeroDTE", config)
    walked = walk(AtOpen(CALL, "call"), game, (1.0, 2.0))
    env, agent = env_on(split="validation"), AtOpen(CALL, "call").bind(game.all_names)
    obs, info = env.reset(seed=0)
    growth, fees, rows = 1.0, 0.0, 0
    for session in range(6):
        while True:
            rows += 1
            obs, _, done, _, info = env.step(agent.predict(obs)[0])
            fees += info["fee"]
            if done:
                break
        rows += 1
        growth *= info["equity"] / 100_000.0
        if session < 5:
            obs, info = env.reset()
    assert rows == len(walked.equity) == len(walked.time) == 6 * 390
    assert steps_of(game) == 6 * 389
    assert walked.items["fee"].shape == (2,)
    assert walked.items["fee"][1] > walked.items["fee"][0] > 0.0
    assert walked.items["fee"][0] == pytest.approx(fees)
    assert walked.equity[-1, 0] / walked.equity[0, 0] == pytest.approx(growth, rel=1e-12) != 1.0
    assert walked.ended_by == ("", "")


def test_a_report_of_a_split_holds_the_families_baselines() -> None:
    found = evaluate({}, "ZeroDTE", ZeroDTEConfig(bars=SMALL, split="validation"))
    assert list(found["rows"]) == ["idle", "random legal", "call at open", "put at open"]
    assert found["rows"]["idle"]["total_return"] == 0.0 == found["rows"]["idle"]["fee"]
    for name in ("random legal", "call at open", "put at open"):
        row = found["rows"][name]
        assert row["fee"] > 0.0
        assert row["total_return_at_cost_scale"]["5"] < row["total_return_at_cost_scale"]["0"]


def test_maskable_ppo_learns_through_the_bridge_and_takes_no_illegal_action(made: str) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from stable_baselines3.common.logger import Logger

    from agents.callbacks import AccountTags

    lanes: Any = gym.make_vec(made, num_envs=4, bars=SMALL, autoreset_mode=AutoresetMode.SAME_STEP)
    model = contrib.MaskablePPO("MlpPolicy", NativeVecEnv(lanes), n_steps=128, batch_size=128, n_epochs=1, seed=0)
    said: dict[str, float] = {}
    model.set_logger(Logger(None, []))
    keep = model.logger.record
    model.logger.record = lambda key, value, *args, **more: (said.update({key: value}), keep(key, value))  # type: ignore[method-assign]
    model.learn(1_024, callback=AccountTags())
    shares = [said[f"action/share_{action.name.lower()}"] for action in TradingAction]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.0
    assert "account/funding" not in said
    assert said["action/illegal"] == 0.0
    assert said["account/turnover"] > 0.0
    assert (lanes.unwrapped.simulation.accounts[:, :, c.ILLEGAL_ACTIONS] == 0.0).all()
    env = gym.make(made, bars=SMALL)
    obs, info = env.reset(seed=0)
    for _ in range(600):
        action, _ = model.predict(obs, action_masks=env.get_wrapper_attr("action_masks")(), deterministic=False)
        obs, _, done, _, info = env.step(action)
        assert info["illegal_actions"] == 0.0
        if done:
            obs, info = env.reset()
