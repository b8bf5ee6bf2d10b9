"""A learner finds what a market's past says about its future, and nothing once time has been shuffled.

The market has momentum that pays for its costs many times over. Shuffled, the very same bars come in another order:
whatever PPO then earns on bars it was not trained on would be a leak, or luck that costs do not pay for. Each split is
shuffled on its own and freed of its drift, so that only timing could earn anything.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from registered import HOUR, IDS, session_times

from agents.answers import answer
from agents.learnability import REWARD_SCALE, score
from agents.sb3 import build_model
from agents.training import resolve
from agents.vec_env import NativeVecEnv
from envs.make import game_of
from envs.zero_dte_config import ZeroDTEConfig
from markets.bars import Bars
from markets.session_calendar import MINUTE, minute_shape
from markets.sources.memory import register_bars

SEED = 111
ROWS, SESSIONS = 12_000, 60
EDGES = {  # of the splits
    "PerpFutures": (0, 7_200, 9_600, ROWS),
    "SpotCrypto": (0, 7_200, 9_600, ROWS),  # of one coin
    "ZeroDTE": (0, 36 * 390, 48 * 390, SESSIONS * 390),
}
STEPS = {"PerpFutures": 100_000, "SpotCrypto": 100_000, "ZeroDTE": 200_000}
LEARNED = {"PerpFutures": 1.0, "SpotCrypto": 1.0, "ZeroDTE": 1.0}  # log growth of who has found the momentum
MORE: dict[str, dict[str, Any]] = {  # who may only buy learns to stay in cash, and one that never trades proves nothing
    "SpotCrypto": {"allow_short": True, "rebalance_band": 0.0}
}
CASES = [*((name, "") for name in IDS), ("PerpFutures-v0", "garch")]  # an id, and the signals it observes
SEEDS = (0, 1, 2)
ORDERS = 10  # in which the bars of the validation split are played, so that one lucky order decides nothing
Floats = np.ndarray[Any, Any]


def momentum(seed: int, rows: int) -> Floats:
    """Log returns, wicks and volume per bar ``(T, 4)``: a return is 0.6 times the one before and a shock of 0.6 %."""
    random = np.random.default_rng([SEED, seed])
    returns = random.normal(0.0, 0.006, rows)
    for row in range(1, rows):
        returns[row] += 0.6 * returns[row - 1]
    wicks = np.abs(random.normal(0.0, 0.002, (rows, 2)))
    return np.column_stack([returns, wicks, random.lognormal(12.0, 0.5, rows)])


def market(family: str, seed: int, order: int | None) -> Bars:
    """Bars of :func:`momentum` in their order, or shuffled in each split; ``order`` moves the last two splits only."""
    bars = momentum(seed, EDGES[family][-1])
    for number, (first, stop) in enumerate(pairwise(EDGES[family])):
        if order is not None:
            generator = np.random.default_rng([SEED, seed, number, order if number else 0])
            bars[first:stop] = generator.permutation(bars[first:stop])
        bars[first:stop, 0] -= np.log(np.exp(bars[first:stop, 0]).mean())  # no constant exposure earns anything
    if family == "ZeroDTE":
        return sessions(bars)
    close = 50_000.0 * np.exp(np.cumsum(bars[:, 0]))
    opened = np.concatenate([[50_000.0], close[:-1]])
    return Bars(
        time=np.datetime64("2024-01-01", "ns") + np.arange(ROWS) * HOUR, interval=HOUR, symbols=("COIN",),
        open=opened[:, None], high=(np.maximum(opened, close) * np.exp(bars[:, 1]))[:, None],
        low=(np.minimum(opened, close) * np.exp(-bars[:, 2]))[:, None], close=close[:, None], volume=bars[:, 3:],
    )  # fmt: skip


def sessions(bars: Floats) -> Bars:
    """Minutes of sessions a tenth as large, by the shape of the day; options cost what returns in no order imply."""
    bars = bars * [0.1, 0.1, 0.1, 1.0] * np.tile(minute_shape(390), SESSIONS)[:, None] ** [1, 1, 1, 0]
    close = 500.0 * np.exp(np.cumsum(bars[:, 0]))
    opened = np.concatenate([[500.0], close[:-1]])
    year = float(np.sqrt(np.mean(bars[:, 0] ** 2) * 390 * 252))  # on the trading clock
    index = 100.0 * year * np.sqrt(525_600 / 98_280) / ZeroDTEConfig.vix_ratio
    return Bars(
        time=session_times(len(bars)), interval=MINUTE, symbols=("SPY",), market="spy", open=opened[:, None],
        high=(np.maximum(opened, close) * np.exp(bars[:, 1]))[:, None],
        low=(np.minimum(opened, close) * np.exp(-bars[:, 2]))[:, None], close=close[:, None], volume=bars[:, 3:],
        previous_vix=np.full((len(bars), 1), index),
    )  # fmt: skip


def learned(name: str, seed: int, shuffled: bool, signals: str = "") -> list[float]:
    """Train PPO, then play the validation split after costs: its log growth, in several orders where shuffled."""
    torch.set_num_threads(1)
    kind = name.split("-")[0]
    known = answer(kind)
    bars = register_bars("shuffled", market(kind, seed, 0 if shuffled else None))
    arguments = {**known.arguments, **known.hidden, **MORE.get(kind, {}), "bars": bars, "signals": signals}
    vector: Any = gym.make_vec(
        name, num_envs=256, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", info="none", **arguments
    )
    env = NativeVecEnv(vector, REWARD_SCALE)
    model = build_model("ppo", env, seed, "cpu", None, known.settings)
    model.learn(STEPS[kind])
    model.policy.set_training_mode(False)
    family, training = resolve(name, arguments)
    growths = []
    for order in range(ORDERS if shuffled else 1):
        register_bars("shuffled", market(kind, seed, order if shuffled else None))
        game = game_of(family, replace(training, split="validation"))
        played = score(lambda seen: model.policy.predict(seen, deterministic=True)[0], game, revealed=False)
        assert played.costs.sum() > 0.0, "an agent that never trades proves nothing"
        growths.append(played.log_growth)
    return growths


def mean_growth(name: str, shuffled: bool, seeds: tuple[int, ...] = SEEDS, signals: str = "") -> float:
    """Mean log growth over training seeds, each on a market of its own, and over orders."""
    growths = np.array([learned(name, seed, shuffled, signals) for seed in seeds])
    print(growths.mean(axis=1), "+-", growths.std() / np.sqrt(growths.size))
    return float(growths.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "signals"), CASES)
def test_an_agent_trained_on_shuffled_time_earns_nothing_on_bars_it_has_not_seen(name: str, signals: str) -> None:
    """E17."""
    print(f"seeds {SEEDS}")
    assert mean_growth(name, shuffled=True, signals=signals) <= 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "signals"), CASES)
def test_mutant_time_that_is_not_shuffled_is_learned(name: str, signals: str) -> None:
    """Twin of E17. The same training on the same bars in their order."""
    assert mean_growth(name, shuffled=False, seeds=SEEDS[:1], signals=signals) > LEARNED[name.split("-")[0]]
