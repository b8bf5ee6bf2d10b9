"""SpotCrypto: money, rebalancing, shorts, gaps. Some rules here are those that well-known trading environments miss;
where so, the test says what they do instead."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from registered import BASKET, HOUR, basket_market, make, make_on
from signal_toys import LastReturn

import agents.answers
import agents.baselines
import agents.benchmark
import envs.make
from agents import lookahead
from agents.signals.agent import fit_signal
from envs import spot_columns as c
from envs import spot_kernel
from envs.make import build, game_of
from envs.spot_config import SpotCryptoConfig
from envs.spot_crypto import SpotCrypto, SpotCryptoEnv
from markets import sources, spot_features
from markets.bars import Bars
from markets.baskets import join_symbols
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError
from markets.sources.files import load_parquet
from markets.spot import ORDER_PARTIAL, ORDER_STATUS, REJECT_COST, REJECT_FUNDS, REJECT_NO_VOLUME, REJECT_NOTIONAL
from markets.spot_features import SpotScaler

SEED = 143
WARM = 170
FREE: dict[str, Any] = {"taker_fee": 0.0, "half_spread": 0.0, "tick_size": 0.0, "impact_coefficient": 0.0}
EXACT: dict[str, Any] = {"lot_step": 0.0, "minimum_notional": 0.0, "rebalance_band": 0.0}
COINS = ("BTC", "ETH")


def market(path: Sequence[Sequence[float]], volume: float = 1e9, drop: Sequence[int] = ()) -> Bars:
    """Two coins that stand still for the warm-up, and then close at each row of ``path``; opens are the closes before.

    Rows of ``drop`` (of the whole history) are missing.
    """
    closes = np.concatenate([np.full((WARM, 2), 100.0), np.array(path, np.float64)])
    opened = np.concatenate([closes[:1], closes[:-1]])
    keep = ~np.isin(np.arange(len(closes)), drop)
    time = np.datetime64("2024-01-01", "ns") + np.arange(len(closes)) * HOUR
    return Bars(
        time=time[keep], interval=HOUR, symbols=("BTCUSDT", "ETHUSDT"), open=opened[keep], close=closes[keep],
        high=np.maximum(opened, closes)[keep], low=np.minimum(opened, closes)[keep],
        volume=np.full((int(keep.sum()), 2), volume),
    )  # fmt: skip


def environment(bars: Bars, kernel: Any = None, **settings: Any) -> SpotCryptoEnv:
    """An episode over the rows of ``path``, beginning at the close of the warm-up's last bar."""
    ends = {"train_end": str(bars.close_time[-3]), "validation_end": str(bars.close_time[-2])}
    config = SpotCryptoConfig(bars=bars, **ends, episode_bars=0, random_start=False, **settings)
    game = SpotCrypto.game(config)
    return SpotCryptoEnv(game if kernel is None else replace(game, kernel=kernel), SpotCrypto.action_space(config))


def play(env: Any, actions: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    infos = [env.reset(seed=0)[1]]
    for action in actions:
        _, reward, terminated, truncated, info = env.step(np.array(action, np.float64))
        infos.append({**info, "reward": reward, "terminated": terminated, "truncated": truncated})
    return infos


def path(*rows: Sequence[float], rest: int = 4) -> list[Sequence[float]]:
    """Rows, then the last one again, so that splits after the training range hold bars."""
    return [*rows, *([rows[-1]] * rest)]


def check_items(before: dict[str, Any], after: dict[str, Any]) -> None:
    paid = after["fee"] + after["spread_cost"] + after["impact_cost"] + after["borrow"]
    change = after["market_pnl"] - paid + after["cover"]
    scale = max(before["equity"], after["equity"], abs(after["market_pnl"]))
    assert abs(after["equity"] - before["equity"] - change) <= 1e-9 * scale
    assert abs(after["cash"] + after["position"] - after["equity"]) <= 1e-9 * scale
    pnl = sum(value for key, value in after.items() if key.endswith("_pnl") and key != "market_pnl")
    assert pnl == pytest.approx(after["market_pnl"], rel=1e-9, abs=1e-9 * scale)


def twin(*changes: tuple[str, str]) -> Any:
    """A kernel with a planted fault, as plain Python."""
    source = Path(spot_kernel.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        assert source.count(old) >= 1, f"{old!r} is no longer in the kernel"
        source = source.replace(old, new)
    source = source.replace("from markets.compiled import compiled", "compiled = lambda function: function")
    names: dict[str, Any] = {}
    exec(compile(source, "mutant of spot_kernel.py", "exec"), names)
    return names["step"]


# ---- worked examples --------------------------------------------------------------------------------------------


def test_s01_in_the_environment() -> None:
    """Weights 0.5 and 0.3, prices times 1.05 and 0.98, targets 0.3 and 0.6, 10 bp a trade: the example's equity."""
    bars = market(path((100.0, 100.0), (105.0, 98.0), (105.0, 98.0), (105.0, 98.0)))
    env = environment(bars, **EXACT, **{**FREE, "taker_fee": 0.001})
    kept = play(env, [(0.5, 0.3)])[-1]
    scale = 10_000.0 / kept["equity"]  # buying costs as well; the example begins after it
    assert (kept["BTC_weight"], kept["ETH_weight"]) == pytest.approx((0.5, 0.3), rel=1e-12)
    bad = np.full(2, np.nan)
    env = environment(bars, **EXACT, **{**FREE, "taker_fee": 0.001})
    env._hold_bad = True  # a bar in which nothing is sent
    after = play(env, [(0.5, 0.3), bad, (0.3, 0.6)])
    assert after[2]["equity"] * scale == pytest.approx(10_190.0, rel=1e-12)
    assert after[3]["equity"] * scale == pytest.approx(10184.634609617116, rel=1e-12)
    assert (after[3]["BTC_weight"], after[3]["ETH_weight"]) == pytest.approx((0.3, 0.6), rel=1e-12)


def test_s03_interest_of_a_short_in_the_environment() -> None:
    env = environment(market(path(*[(100.0, 100.0)] * 4)), allow_short=True, **EXACT, **FREE)
    after = play(env, [(-1.0, 0.0)])[-1]
    assert after["borrow"] == pytest.approx(0.0913242009, abs=5e-11)
    assert after["equity"] == pytest.approx(10_000.0 - 0.0913242009, abs=1e-9)
    assert after["cash"] == pytest.approx(20_000.0 - 0.0913242009, abs=1e-9), "proceeds are cash"


# ---- money ------------------------------------------------------------------------------------------------------


def check_books(kernel: Any = None, steps: int = 400) -> None:
    """E22. The items of every step add up to the change of equity; without shorts cash is never borrowed."""
    traded = 0
    for short in (False, True):
        game = game_of(
            "SpotCrypto", SpotCryptoConfig(bars=basket_market(), allow_short=short, episode_bars=0, rebalance_band=0.02)
        )
        space = SpotCrypto.action_space(game.recipe[1])
        env = SpotCryptoEnv(game if kernel is None else replace(game, kernel=kernel), space)
        random = np.random.default_rng(SEED)
        _, before = env.reset(seed=SEED)
        for _ in range(steps):
            _, _, terminated, truncated, after = env.step(random.uniform(-1.0, 1.0, 3))
            check_items(before, after)
            assert short or after["cash"] >= -1e-9 * after["equity"]
            assert short or after["borrow"] == 0.0
            opened = after["position"] != 0.0 and after["gross_exposure"] <= (1.5 if short else 1.0) * 1.2
            assert opened or after["position"] == 0.0
            traded += after["traded"] > 0.0
            before = after
            if terminated or truncated:
                _, before = env.reset()
    assert traded > steps // 2


def test_the_items_of_every_step_add_up_to_the_change_of_equity() -> None:
    check_books()


@pytest.mark.parametrize(
    "change",
    [
        ("a[c.CASH] -= change * opened + paid + spread", "a[c.CASH] -= change * opened + spread"),
        ("a[c.BORROW] += interest", "a[c.BORROW] += 2.0 * interest"),
        ("need = growth + limit * price_of_growth", "need = 0.5 * growth"),
    ],
    ids=["a fee that is told and not paid", "interest told twice", "cash that is borrowed"],
)  # fmt: skip
def test_mutant_a_fault_in_the_books_is_found(change: tuple[str, str]) -> None:
    with pytest.raises(AssertionError):
        check_books(twin(change), 120)


def test_nothing_held_is_exactly_nothing_earned() -> None:
    """E23."""
    env = make("SpotCrypto-v0")
    env.reset(seed=SEED)
    for _ in range(100):
        _, reward, _, _, info = env.step(np.zeros(3, np.float32))
        assert (reward, info["equity"], info["fee"]) == (0.0, 10_000.0, 0.0)


def test_buy_and_hold_is_the_sum_of_weights_times_relatives() -> None:
    """E24. Bought once and left alone: sum w_i c_i / o_i and the cash, to 1e-12."""
    bars = basket_market()
    env = build("SpotCrypto", bars=bars, on_bad_action="hold", **EXACT, **FREE)
    _, info = env.reset(seed=SEED)
    row = env.unwrapped.simulation.rows[0]
    weights = np.array([0.5, 0.2, 0.1])
    env.step(weights)
    hold = np.full(3, np.nan)
    for _ in range(200):
        *_, info = env.step(hold)
    now = env.unwrapped.simulation.rows[0]
    want = 10_000.0 * (0.2 + (weights * bars.close[now] / bars.open[row + 1]).sum())
    assert info["equity"] == pytest.approx(want, rel=1e-12)
    assert info["bad_actions"] == 200.0


def test_a_higher_fee_never_leaves_more() -> None:
    """E25."""
    random = np.random.default_rng(SEED)
    actions = random.uniform(0.0, 0.6, (150, 3))
    ends = []
    for fee in (0.0, 0.001, 0.002):
        env = build("SpotCrypto", bars=BASKET, taker_fee=fee, **EXACT)
        env.reset(seed=SEED)
        ends.append([env.step(action)[4]["equity"] for action in actions])
    assert (np.diff(np.array(ends), axis=0) < 0.0).all()


def test_a_round_trip_at_the_same_price_loses_fee_spread_and_impact_twice() -> None:
    """E26."""
    bars = market(path(*[(100.0, 100.0)] * 5))
    env = environment(bars, **EXACT, tick_size=0.0, half_spread=0.0002, impact_coefficient=0.0)
    infos = play(env, [(0.5, 0.0), (0.0, 0.0)])
    first, second = infos[1], infos[2]
    bought = first["traded"]
    assert bought == pytest.approx(5_000.0 / (1.0 + 0.5 * 0.0012), rel=1e-12)
    assert (first["fee"], first["spread_cost"]) == pytest.approx((0.001 * bought, 0.0002 * bought), rel=1e-12)
    assert second["traded"] == pytest.approx(bought, rel=1e-12)
    assert second["equity"] == pytest.approx(10_000.0 - 2.0 * 0.0012 * bought, rel=1e-12)
    assert (second["BTC_quantity"], second["position"]) == (0.0, 0.0)
    assert first["BTC_fill_price"] == pytest.approx(100.02)
    assert second["BTC_fill_price"] == pytest.approx(99.98)


def test_rewards_telescope_and_their_terms_add_up() -> None:
    """E27, and Q8: profit, sharpe, costs and drawdown with weights."""
    random = np.random.default_rng(SEED)
    env = build("SpotCrypto", bars=BASKET, reward="profit=1,sharpe=0.1,costs=0.5,drawdown=0.5")
    env.reset(seed=SEED)
    totals = dict.fromkeys(("profit", "sharpe", "costs", "drawdown"), 0.0)
    paid, equity, peak = 0.0, 10_000.0, 10_000.0
    fall = 0.0
    for _ in range(200):
        _, reward, _, _, info = env.step(random.uniform(-1.0, 1.0, 3))
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-12)
        for name in totals:
            totals[name] += info["reward_terms"][name]
        paid += (info["fee"] + info["spread_cost"] + info["impact_cost"]) / equity
        higher = max(peak, info["equity"])
        fall += max(0.0, (1.0 - info["equity"] / higher) - (1.0 - equity / peak))
        equity, peak = info["equity"], higher
    assert totals["profit"] == pytest.approx(math.log(equity / 10_000.0), abs=1e-9)
    assert totals["costs"] == pytest.approx(-0.5 * paid, rel=1e-9)
    assert totals["drawdown"] == pytest.approx(-0.5 * fall, rel=1e-9)
    assert totals["sharpe"] != 0.0
    with pytest.raises(ConfigError, match="'profit' and 'log_return' are the same term"):
        SpotCryptoConfig(reward="profit=1,log_return=1")


@pytest.mark.parametrize(
    ("trained", "met", "said"),
    [
        ({}, {"allow_short": True}, "argument.allow_short: expected nothing, found True"),
        ({"allow_short": True}, {}, "argument.allow_short: expected True, found nothing"),
        ({"allow_short": True}, {"allow_short": True, "gross_limit": 2.0}, "argument.gross_limit: expected 1.5"),
        ({}, {"gross_limit": 2.0}, ""),  # without shorts it is 1 whatever is given
        ({}, {"cost_scale": 3.0}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_a_negative_weight_that_was_cash_is_no_short(trained: dict[str, Any], met: dict[str, Any], said: str) -> None:
    """What -1 stands for is part of what an agent was trained on, like a leverage."""
    agent = fit_signal(LastReturn(), "SpotCrypto-v0", {"bars": BASKET, **trained})
    game = game_of("SpotCrypto", SpotCryptoConfig(bars=BASKET, **met))
    if not said:
        agent.check(game)
        return
    with pytest.raises(ArtefactError, match=said):
        agent.check(game)


@pytest.mark.parametrize("name", ["random_start", "allow_short", "allow_in_sample"])
def test_a_word_is_no_truth_value(name: str) -> None:
    """``random_start="no"`` would be taken as true."""
    with pytest.raises(ConfigError, match=f"{name}='no' must be True"):
        SpotCryptoConfig(**{name: "no"})  # type: ignore[arg-type]


def test_a_larger_account_has_the_same_returns_where_its_orders_have_no_impact() -> None:
    """E28."""
    random = np.random.default_rng(SEED)
    actions = random.uniform(-1.0, 1.0, (100, 3))
    curves = []
    for power in (0, 1, -3):
        settings = {**EXACT, "impact_coefficient": 0.0, "allow_short": True, "participation": 1.0}
        env = build("SpotCrypto", bars=BASKET, initial_equity=10_000.0 * 10.0**power, **settings)
        env.reset(seed=SEED)
        curves.append(np.array([env.step(action)[4]["equity"] for action in actions]) / 10.0**power)
    assert np.abs(curves[1] / curves[0] - 1.0).max() < 1e-9
    assert np.abs(curves[2] / curves[0] - 1.0).max() < 1e-9


def test_long_and_short_of_the_same_coin_mirror_each_other() -> None:
    """E29. Linear, no costs: what the long earns the short loses, to the last bar."""
    steps = path((100.0, 100.0), (101.0, 100.0), (99.5, 100.0), (100.5, 100.0), (100.5, 100.0))
    settings = {**EXACT, **FREE, "allow_short": True, "borrow_rate": 0.0}
    hold = (math.nan, math.nan)
    runs = []
    for sign in (1.0, -1.0):
        env = environment(market(steps), **settings)
        env._hold_bad = True
        runs.append([info["equity"] - 10_000.0 for info in play(env, [(sign * 0.5, 0.0), hold, hold, hold])])
    assert runs[0] == pytest.approx([-value for value in runs[1]], abs=1e-9)
    assert runs[0][2] == pytest.approx(50.0)


# ---- what the best-known trading environments get wrong ---------------------------------------------------------


def test_the_price_in_the_observation_is_not_the_price_of_the_fill() -> None:
    """gym-trading-env fills at the close that the agent has just seen; here an order fills at the next open."""
    bars = market(path((100.0, 100.0), (100.0, 100.0), (100.0, 100.0)))
    opened = bars.open.copy()
    opened[WARM] = (110.0, 100.0)  # the market opens 10 % higher than it closed
    gapped = replace(bars, open=opened, high=np.maximum(bars.high, opened))
    after = play(environment(gapped, **EXACT, **FREE), [(0.5, 0.0)])[-1]
    assert after["BTC_fill_price"] == 110.0
    assert after["equity"] == pytest.approx(10_000.0 - 5_000.0 * 10.0 / 110.0)


def test_a_short_earns_what_the_price_loses() -> None:
    """A short of gym-anytrading's StocksEnv is only out of the market: its reward and profit count longs alone."""
    steps = path((100.0, 100.0), (90.0, 100.0), (90.0, 100.0))
    env = environment(market(steps), **EXACT, **FREE, allow_short=True, borrow_rate=0.0)
    env._hold_bad = True
    after = play(env, [(-0.5, 0.0), (math.nan, math.nan)])[-1]
    assert after["equity"] == pytest.approx(10_500.0)
    assert after["BTC_quantity"] == pytest.approx(-50.0)
    long_only = environment(market(steps), **EXACT, **FREE)
    assert play(long_only, [(-0.5, 0.0), (-0.5, 0.0)])[-1]["equity"] == 10_000.0, "negative counts as 0"


def test_the_interest_of_a_short_accumulates() -> None:
    """gym-trading-env sets what is owed to one step's interest on what is borrowed, anew in every step: however long a
    short is held, it costs that. Here every bar is paid, and the sum grows with time."""
    env = environment(market(path(*[(100.0, 100.0)] * 60)), **EXACT, **FREE, allow_short=True)
    env._hold_bad = True
    infos = play(env, [(-0.8, 0.0), *[(math.nan, math.nan)] * 47])
    each = 8_000.0 * 0.08 / 8760.0
    assert [info["borrow"] for info in infos[1:]] == pytest.approx([each] * 48, rel=1e-12)
    assert infos[-1]["equity"] == pytest.approx(10_000.0 - 48 * each, rel=1e-12)


def test_a_rebalancing_pays_for_what_it_trades_and_not_for_what_it_holds() -> None:
    """A fee on the difference alone: no closing of the whole position and opening it again."""
    env = environment(market(path(*[(100.0, 100.0)] * 5)), **EXACT, **{**FREE, "taker_fee": 0.001})
    infos = play(env, [(0.5, 0.3), (0.5, 0.4)])
    grown = infos[2]["ETH_fill_quantity"] * 100.0
    trimmed = infos[2]["BTC_fill_quantity"] * 100.0  # to half of the smaller account
    assert grown == pytest.approx(1_000.0, rel=2e-3)
    assert abs(trimmed) < 1.0
    assert infos[2]["fee"] == pytest.approx(0.001 * (grown + abs(trimmed)), rel=1e-9)


# ---- orders -----------------------------------------------------------------------------------------------------


def test_orders_below_the_minimum_notional_are_skipped_and_the_weight_stays() -> None:
    env = environment(market(path(*[(100.0, 100.0)] * 6)), initial_equity=100.0, rebalance_band=0.0)
    infos = play(env, [(0.5, 0.2), (0.5, 0.24), (0.5, 0.26), (0.5, 0.0)])
    assert infos[2]["ETH_order_code"] == REJECT_NOTIONAL
    assert infos[2]["ETH_quantity"] == infos[1]["ETH_quantity"] > 0.0
    assert infos[3]["ETH_quantity"] > infos[2]["ETH_quantity"], "6 USDT are enough"
    assert infos[4]["ETH_quantity"] == 0.0
    small = environment(market(path(*[(100.0, 100.0)] * 6)), initial_equity=20.0)
    assert play(small, [(0.2, 0.3)])[-1]["BTC_quantity"] == 0.0
    assert ORDER_STATUS[REJECT_NOTIONAL] == "below minimum notional"


def test_a_coin_within_the_band_is_left_alone_and_a_target_of_zero_always_sells() -> None:
    env = environment(market(path(*[(100.0, 100.0)] * 6)), rebalance_band=0.1)
    infos = play(env, [(0.5, 0.2), (0.55, 0.15), (0.45, 0.05), (0.0, 0.06), (0.0, 0.0)])
    bought = infos[1]["BTC_quantity"]
    assert [info["BTC_quantity"] for info in infos[1:]] == [bought, bought, bought, 0.0, 0.0]
    assert infos[2]["fee"] == 0.0
    assert infos[3]["ETH_quantity"] < infos[2]["ETH_quantity"], "15 points of weight are beyond the band"
    assert infos[4]["ETH_quantity"] == infos[3]["ETH_quantity"]
    assert infos[5]["ETH_quantity"] == 0.0, "5 points, but to nothing"


def test_a_sum_of_weights_above_one_is_scaled_down() -> None:
    env = environment(market(path(*[(100.0, 100.0)] * 4)), **EXACT, **FREE)
    after = play(env, [(1.0, 0.5)])[-1]
    assert (after["BTC_action"], after["ETH_action"]) == pytest.approx((2.0 / 3.0, 1.0 / 3.0))
    assert after["cash"] == pytest.approx(0.0, abs=1e-9)
    short = environment(market(path(*[(100.0, 100.0)] * 4)), **EXACT, **FREE, allow_short=True)
    after = play(short, [(1.0, -1.0)])[-1]
    assert (after["BTC_action"], after["ETH_action"], after["gross_exposure"]) == pytest.approx(
        (0.75, -0.75, 1.5), rel=1e-4
    )


def test_a_thin_market_fills_its_share_and_what_a_cut_sale_should_pay_for_is_not_bought() -> None:
    bars = market(path(*[(100.0, 100.0)] * 6), volume=300.0)  # 30,000 a bar, of which 3,000 are offered
    env = environment(bars, **EXACT, **FREE)
    infos = play(env, [(1.0, 0.0), (0.0, 1.0)])
    assert infos[1]["BTC_quantity"] == pytest.approx(30.0)
    assert infos[1]["BTC_order_code"] == ORDER_PARTIAL
    assert infos[2]["BTC_quantity"] == pytest.approx(0.0)
    assert infos[2]["ETH_quantity"] == pytest.approx(30.0)
    rich = environment(bars, **EXACT, **FREE, initial_equity=3_000.0)
    assert play(rich, [(1.0, 0.0)])[-1]["cash"] == pytest.approx(0.0, abs=1e-9)
    thin = replace(bars, volume=np.concatenate([bars.volume[: WARM + 1], 0.01 * bars.volume[WARM + 1 :]]) * [1.0, 1e6])
    infos = play(environment(thin, **EXACT, **FREE, initial_equity=3_000.0), [(1.0, 0.0), (0.0, 1.0)])
    assert infos[2]["BTC_quantity"] == pytest.approx(29.7), "1 % of the volume can be sold"
    assert infos[2]["ETH_quantity"] == pytest.approx(0.3), "and no more than that is bought"
    assert infos[2]["cash"] == pytest.approx(0.0, abs=1e-9)


def test_an_order_without_volume_or_beyond_the_cost_bound_is_refused_with_its_reason() -> None:
    empty = market(path(*[(100.0, 100.0)] * 4), volume=0.0)
    assert play(environment(empty), [(0.5, 0.0)])[-1]["BTC_order_code"] == REJECT_NO_VOLUME
    dear = environment(market(path(*[(100.0, 100.0)] * 4)), taker_fee=0.2)
    after = play(dear, [(0.5, 0.0)])[-1]
    assert (after["BTC_order_code"], after["BTC_quantity"]) == (REJECT_COST, 0.0)
    bars = market(path(*[(100.0, 100.0)] * 5))
    volume = bars.volume.copy()
    volume[WARM + 1 :, 0] = 0.0  # nobody takes the bitcoin any more, so there is nothing to buy with
    infos = play(environment(replace(bars, volume=volume), **FREE), [(1.0, 0.0), (0.0, 1.0)])
    assert (infos[2]["BTC_order_code"], infos[2]["ETH_order_code"]) == (REJECT_NO_VOLUME, REJECT_FUNDS)
    assert infos[2]["ETH_quantity"] == 0.0


def test_impact_is_that_of_the_order_that_was_filled() -> None:
    bars = basket_market()
    env = build("SpotCrypto", bars=bars, **{**EXACT, **FREE, "impact_coefficient": 1.0}, initial_equity=1e6)
    env.reset(seed=SEED)
    row = int(env.unwrapped.simulation.rows[0])
    *_, info = env.step(np.array([0.5, 0.0, 0.0]))
    closes = bars.close[row - 24 : row + 1, 0]
    returns = np.diff(np.log(closes))
    daily = math.sqrt((returns**2).mean() * 24.0)
    value = (bars.volume[row - 23 : row + 1, 0] * closes[1:]).mean() * 24.0
    assert info["impact_cost"] == pytest.approx(info["traded"] * daily * math.sqrt(info["traded"] / value), rel=1e-9)


def check_closed_is_nothing(kernel: Any = None) -> None:
    """Without lots a sale of everything leaves nothing, and no dust on the other side of it."""
    random = np.random.default_rng(SEED)
    config = SpotCryptoConfig(
        bars=basket_market(), episode_bars=0, rebalance_band=0.0, minimum_notional=0.0, lot_step=0.0
    )
    game = game_of("SpotCrypto", config)
    env = SpotCryptoEnv(game if kernel is None else replace(game, kernel=kernel), SpotCrypto.action_space(config))
    env.reset(seed=SEED)
    for _ in range(150):
        *_, info = env.step(random.uniform(0.0, 1.0, 3) * (random.random(3) < 0.5))
        assert min(info["BTC_quantity"], info["ETH_quantity"], info["SOL_quantity"]) >= 0.0


def test_without_lots_what_is_sold_is_gone_and_never_short() -> None:
    check_closed_is_nothing()


def test_mutant_dust_on_the_other_side_is_found() -> None:
    with pytest.raises(AssertionError):
        check_closed_is_nothing(
            twin(("beyond = reduced == abs(quantity) and size >", "beyond = size >="), ("(1.0 + 1e-12)", "1.0"))
        )


# ---- shorts -----------------------------------------------------------------------------------------------------


def test_cash_below_zero_is_borrowed_at_the_same_rate() -> None:
    env = environment(market(path(*[(100.0, 100.0)] * 4)), **EXACT, **FREE, allow_short=True)
    after = play(env, [(0.75, 0.75)])[-1]
    assert after["cash"] < -4_999.0
    assert after["borrow"] == pytest.approx(5_000.0 * 0.08 / 8760.0, rel=1e-9)


def test_an_account_that_owes_more_than_it_has_is_closed_and_the_lender_bears_the_rest() -> None:
    env = environment(market(path((100.0, 100.0), (300.0, 100.0), (300.0, 100.0))), **EXACT, **FREE, allow_short=True)
    infos = play(env, [(-1.0, 0.0), (-1.0, 0.0)])
    last = infos[-1]
    assert (last["equity"], last["BTC_quantity"], last["terminated"], last["ended_by"]) == (0.0, 0.0, True, "ruin")
    assert last["cover"] == pytest.approx(10_000.0, rel=1e-3)
    check_items(infos[-2], last)
    assert math.isfinite(last["reward"])


# ---- gaps -------------------------------------------------------------------------------------------------------


def test_no_fill_inside_a_gap_and_interest_accrues_over_it() -> None:
    """E42. Ten hours are missing: the order waits for the next open, and the short pays for them."""
    steps = path(*[(100.0, 100.0)] * 2, *[(120.0, 100.0)] * 24)
    whole = market(steps)
    gapped = market(steps, drop=range(WARM + 2, WARM + 12))
    assert gapped.gaps == 10
    env = environment(gapped, **EXACT, **FREE, allow_short=True)
    env._hold_bad = True
    hold = (math.nan, math.nan)
    infos = play(env, [(-0.5, 0.0), hold, hold, hold])
    hour = 5_000.0 * 0.08 / 8760.0
    assert infos[1]["borrow"] == infos[2]["borrow"] == pytest.approx(hour, rel=1e-9)
    assert infos[3]["time"] - infos[2]["time"] == 11 * HOUR
    assert infos[3]["borrow"] == pytest.approx(10 * hour + 1.2 * hour, rel=1e-9), "ten at the value before, one after"
    assert infos[4]["borrow"] == pytest.approx(1.2 * hour, rel=1e-9)
    ungapped = environment(whole, **EXACT, **FREE, allow_short=True)
    ungapped._hold_bad = True
    assert play(ungapped, [(-0.5, 0.0), hold, hold])[-1]["borrow"] == pytest.approx(1.0 * hour, rel=1e-9)
    filled = play(environment(gapped, **EXACT, **FREE), [(0.0, 0.0), (0.0, 0.0), (0.5, 0.0)])[-1]
    assert filled["BTC_fill_price"] == 120.0, "the open after the gap"


@pytest.mark.parametrize("missing", [1, 10, 10_000])
def test_a_short_pays_for_every_hour_of_a_gap_and_nothing_fills_in_it(missing: int) -> None:
    """E42. Prices stand still, so each missing hour costs the interest of the hour before; the order fills after it."""
    bars = market(
        path(*[(100.0, 100.0)] * 2, *[(120.0, 100.0)] * (missing + 4)), drop=range(WARM + 2, WARM + 2 + missing)
    )
    assert bars.gaps == missing
    env = environment(bars, **EXACT, **FREE, allow_short=True)
    env._hold_bad = True
    infos = play(env, [(-0.5, 0.0), *[(math.nan, math.nan)] * 3])
    hour = 5_000.0 * 0.08 / 8760.0
    over = next(info for info, before in zip(infos[1:], infos, strict=False) if info["time"] - before["time"] > HOUR)
    assert over["time"] - infos[0]["time"] == (missing + 3) * HOUR
    assert over["borrow"] == pytest.approx((missing + 1.2) * hour, rel=1e-9)
    assert sum(info["BTC_fill_price"] > 0.0 for info in infos[1:]) == 1


@pytest.mark.parametrize("fault", [("if gap > 0.0:", "if False:")], ids=["interest of the gap forgotten"])
def test_mutant_a_gap_without_interest_is_found(fault: tuple[str, str]) -> None:
    bars = market(path(*[(100.0, 100.0)] * 26), drop=range(WARM + 2, WARM + 12))
    owed = []
    for kernel in (None, twin(fault)):
        env = environment(bars, kernel, **EXACT, **FREE, allow_short=True)
        owed.append(sum(info["borrow"] for info in play(env, [(-0.5, 0.0)] * 4)[1:]))
    assert owed[0] > 3.0 * owed[1]


def test_hours_that_a_coin_lacks_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """E42. Three coins, each with holes and a range of its own."""
    bars = basket_market(400)
    parts = [bars.asset(place) for place in range(3)]
    holes = ([], [50, 51, 90], [90, 120])
    cut = []
    for place, (part, missing) in enumerate(zip(parts, holes, strict=True)):
        keep = np.setdiff1d(np.arange(10 * place, 400), missing)
        columns: dict[str, Any] = {name: values[keep] for name, values in part.columns.items()}
        cut.append(replace(part, time=part.time[keep], labels=None, label_names=(), **columns))
    with caplog.at_level(logging.WARNING):
        joined = join_symbols(cut, "three files")
    assert joined.symbols == ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    assert (len(joined), joined.gaps) == (376, 4)
    assert "4 of 380 bars that some symbol lacks are dropped" in caplog.text
    assert "BTCUSDT lacks 0, ETHUSDT lacks 3, SOLUSDT lacks 2" in caplog.text
    rows = np.searchsorted(bars.time, joined.time)
    for name in ("open", "close", "volume"):
        assert (joined.columns[name] == bars.columns[name][rows]).all()
    with pytest.raises(DataError, match="'BTCUSDT' is there twice"):
        join_symbols([cut[0], cut[0]], "twice")
    far = replace(cut[1], time=cut[1].time + np.timedelta64(1000, "D"))
    with pytest.raises(DataError, match="0 times in common"):
        join_symbols([cut[0], far], "apart")


def test_several_files_are_one_basket(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    bars = basket_market(300)
    for place, symbol in enumerate(bars.symbols):
        table = pd.DataFrame(
            {name: bars.columns[name][:, place] for name in ("open", "high", "low", "close", "volume")}
        )
        table["timestamp"] = bars.time
        table.drop(index=[40 + place]).to_csv(tmp_path / f"{symbol}.csv", index=False)
    files = "+".join(str(tmp_path / f"{symbol}.csv") for symbol in bars.symbols)
    loaded = sources.load(f"csv:{files}?symbols=BTCUSDT,ETHUSDT,SOLUSDT&interval=1h")
    assert (loaded.symbols, len(loaded), loaded.gaps) == (bars.symbols, 297, 3)
    text = (tmp_path / "SOLUSDT.csv").read_text()
    (tmp_path / "SOLUSDT.csv").write_text((tmp_path / "ETHUSDT.csv").read_text())
    with pytest.raises(DataError, match="ETHUSDT and SOLUSDT have the same 299 candles"):
        sources.load(f"csv:{files}?symbols=BTCUSDT,ETHUSDT,SOLUSDT&interval=1h")
    (tmp_path / "SOLUSDT.csv").write_text(text.replace(text.splitlines()[-1] + "\n", ""))
    again = sources.load(f"csv:{files}?symbols=BTCUSDT,ETHUSDT,SOLUSDT&interval=1h")
    assert again.hash != loaded.hash, "a file that changed is read again"
    spaced = sources.load(f"csv:{files}?symbols=BTCUSDT, ETHUSDT ,SOLUSDT&interval=1h")
    assert spaced.symbols == bars.symbols, "a space would cost them their contracts"
    assert "its name speaks of" not in caplog.text
    assert sources.load(f"csv:{files}?symbols=ETHUSDT,BTCUSDT,SOLUSDT&interval=1h").symbols[0] == "ETHUSDT"
    assert "BTCUSDT.csv is loaded as ETHUSDT, and its name speaks of BTCUSDT" in caplog.text
    for wrong in ("BTCUSDT,ETHUSDT", "BTCUSDT,ETHUSDT,", "BTCUSDT,,SOLUSDT", ",,"):
        with pytest.raises(ConfigError, match=r"names . symbols for 3 files: name each once"):
            sources.load(f"csv:{files}?symbols={wrong}")
    with pytest.raises(ConfigError, match="symbol='X' is for one file"):
        sources.load(f"csv:{files}?symbols=BTCUSDT,ETHUSDT,SOLUSDT&symbol=X")


# ---- the market and its features --------------------------------------------------------------------------------


def test_the_basket_is_the_common_market_and_coins_that_follow_it() -> None:
    bars, alone = sources.load(BASKET), sources.load(BASKET.replace("basket", "crypto"))
    for name in ("open", "high", "low", "close", "volume"):
        assert (bars.columns[name][:, 0] == alone.columns[name][:, 0]).all()
    returns = np.diff(np.log(bars.close), axis=0)
    correlation = np.corrcoef(returns.T)
    assert 0.75 < correlation[0, 1] < 0.92
    assert 0.6 < correlation[0, 2] < 0.85
    assert 0.45 < correlation[1, 2] < 0.8
    assert (np.diff(returns.std(axis=0)) > 0.0).all()
    one = sources.load(BASKET + "&assets=3&own=0")
    assert np.corrcoef(np.diff(np.log(one.close), axis=0).T).min() > 0.999
    shorter = sources.load(BASKET.replace("4000", "1000"))
    assert (shorter.close == bars.close[:1000]).all(), "fewer bars are a prefix"
    assert (sources.load(bars.source).close == bars.close).all(), "the source names it"
    with pytest.raises(ConfigError, match="assets=9"):
        sources.load(BASKET + "&assets=9")
    with pytest.raises(UnknownNameError, match="annual_volatility"):
        sources.load(BASKET + "&anual_volatility=1")


def test_a_stream_gives_the_rows_of_the_table() -> None:
    bars = basket_market(600)
    scaler = SpotScaler.fit(bars, spot_features.raw(bars), 400)
    table = spot_features.table(bars, scaler)
    stream = spot_features.stream(scaler)
    for row in range(len(bars)):
        seen = stream.update(bars.one(row))
        assert (seen is None) == (row < table.valid_from)
        if seen is not None:
            assert seen.tobytes() == table.values[row].tobytes()


def test_a_scaler_survives_json_and_refuses_other_coins() -> None:
    bars = basket_market(600)
    scaler = SpotScaler.fit(bars, spot_features.raw(bars), 400)
    again = SpotScaler.from_json(scaler.to_json())
    assert (again.hash, again.assets) == (scaler.hash, ("BTC", "ETH", "SOL"))
    with pytest.raises(ConfigError, match="made for BTC, ETH, SOL, and the bars hold BTC"):
        spot_features.table(bars.asset(0), scaler)
    for content in ({}, {"names": 3}, {"names": ["BTC_return_1"]}, {**scaler.to_json(), "mean": [1.0]}):
        with pytest.raises(ConfigError):
            SpotScaler.from_json(content)


def test_every_coin_has_its_own_embedding_and_regime() -> None:
    env = make("SpotCrypto-JEPA-v0")
    _, info = env.reset(seed=SEED)
    names = env.get_wrapper_attr("observation_names")
    odds = [name for name in names if "_regime_" in name]
    assert {name.split("_")[0] for name in odds} == {"BTC", "ETH", "SOL"}
    assert len(names) == len(set(names)) == env.observation_space.shape[0]  # type: ignore[index]
    assert {"BTC_regime", "ETH_regime", "SOL_regime"} <= set(info)
    plain = gym.make(
        "PerpFutures-JEPA-v0", bars=basket_market().asset(0).source.replace("basket", "crypto").replace("&assets=3", "")
    )
    assert plain.get_wrapper_attr("observation_names")[-1] == odds[len(odds) // 3 - 1].removeprefix("BTC_")


def test_one_coin_or_many_and_no_coin_twice() -> None:
    bars = basket_market()
    for count in (1, 2):
        columns: dict[str, Any] = {name: values[:, :count] for name, values in bars.columns.items()}
        env = make_on("SpotCrypto-v0", replace(bars, symbols=bars.symbols[:count], **columns))
        env.reset(seed=SEED)
        assert env.step(np.full(count, 0.5, np.float32))[4]["position"] > 0.0
    with pytest.raises(ConfigError, match="price BTC"):
        make_on("SpotCrypto-v0", replace(bars, symbols=("BTCUSDT", "BTC-USD", "SOLUSDT")))


def test_account_columns_say_what_the_account_holds() -> None:
    env = build("SpotCrypto", bars=BASKET, allow_short=True)
    obs, _ = env.reset(seed=SEED)
    names = list(env.observation_names)
    random = np.random.default_rng(SEED)
    for _ in range(50):
        obs, _, _, _, info = env.step(random.uniform(-1.0, 1.0, 3))
        shown = dict(zip(names, obs.tolist(), strict=True))
        for coin in ("BTC", "ETH", "SOL"):
            weight = info[f"{coin}_quantity"] * info[f"{coin}_price"] / info["equity"]
            assert shown[f"{coin}_weight"] == pytest.approx(weight, abs=1e-6)
            assert shown[f"{coin}_previous_action"] == pytest.approx(info[f"{coin}_action"], abs=1e-7)
        assert shown["cash_weight"] == pytest.approx(info["cash"] / info["equity"], abs=1e-6)
        assert shown["log_equity"] == pytest.approx(math.log(info["equity"] / 10_000.0), abs=1e-6)
    assert c.account_columns(("BTC",))[c.BLOCKS] == "BTC_requested_action"
    assert c.account_columns(("BTC",))[c.LOG_EQUITY] == "log_equity"


def test_parquet_options_of_one_file_are_refused_for_several() -> None:
    with pytest.raises(ConfigError, match="funding='x' is for one file"):
        load_parquet("a.parquet+b.parquet", {"symbols": "A,B", "funding": "x"}, "parquet:a+b")


@pytest.mark.skipif("REGIMEGYM_DATA" not in os.environ, reason="no recorded bars on this machine (REGIMEGYM_DATA)")
def test_recorded_hours_of_three_coins_are_one_basket() -> None:
    files = "+".join(f"spot_{coin}usdt_1h.parquet" for coin in ("btc", "eth", "sol"))
    try:
        bars = sources.load(f"parquet:{files}?symbols=BTCUSDT,ETHUSDT,SOLUSDT&start=2023-01-01&end=2024-12-31")
    except ConfigError as error:
        pytest.skip(str(error))
    assert bars.market == "crypto"
    assert 17_500 < len(bars) <= 731 * 24
    assert len(bars) + bars.gaps == 731 * 24
    env = build("SpotCrypto", bars=bars, split="test", encoded="jepa")
    _, before = env.reset(seed=SEED)
    for _ in range(200):
        *_, info = env.step(np.full(3, 1.0 / 3.0))
        check_items(before, info)
        before = info
    assert {"BTC_regime", "ETH_regime", "SOL_regime"} <= set(info)


def test_the_family_has_a_row_wherever_families_have_one() -> None:
    for table in (agents.baselines.OF_FAMILY, agents.answers.ANSWERS, agents.benchmark.BOUNDS):
        assert set(table) == set(envs.make.FAMILIES)
    assert lookahead.bars_for("SpotCrypto-JEPA-v0").startswith("synthetic:basket")
