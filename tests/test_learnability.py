"""The learnability instrument: what it reveals is the next bar, what it scores is right, and its verdicts can fail."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401  (registers the ids)
from agents import option_oracle, oracle
from agents.answers import ANSWERS, answer
from agents.learnability import (
    UNSAFE,
    LearnabilityConfig,
    RevealNextReturn,
    RevealNextReturnVector,
    episode_starts,
    judge_hidden,
    judge_revealed,
    learn,
    next_returns,
    oracle_growth,
    score,
)
from agents.vec_env import NativeVecEnv
from envs.make import build, game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Game
from envs.zero_dte import TradingAction
from envs.zero_dte_config import ZeroDTEConfig
from markets.errors import ConfigError
from scripts import learnability as script

BARS = "synthetic:crypto?seed=1&interval=1h&bars=4000"
ARGUMENTS = ANSWERS["PerpFutures"].arguments
SCALE = ANSWERS["PerpFutures"].scale
SEED = 7
LANES = 3
STEPS = 40


def game(**arguments: Any) -> Game:
    return game_of("PerpFutures", PerpFuturesConfig(**{"bars": BARS, "split": "validation", **ARGUMENTS, **arguments}))


def lanes(mode: AutoresetMode, episode_bars: int = 16) -> RevealNextReturnVector:
    vector: Any = gym.make_vec(
        "PerpFutures-v0", num_envs=LANES, vectorization_mode="vector_entry_point", autoreset_mode=mode.value, bars=BARS,
        episode_bars=episode_bars,
    )  # fmt: skip
    return RevealNextReturnVector(vector)


def test_the_column_is_the_return_of_the_bar_that_the_order_fills_in() -> None:
    env = RevealNextReturn(build("PerpFutures", bars=BARS))
    bars = env.unwrapped.simulation.game.bars  # type: ignore[attr-defined]
    assert env.observation_names[-1] == UNSAFE
    observation, _ = env.reset(seed=SEED)
    for _ in range(STEPS):
        row = int(env.unwrapped.simulation.rows[0])  # type: ignore[attr-defined]
        closed = bars.columns["mark_close"][row + 1, 0]
        wanted = np.clip((closed / bars.open[row + 1, 0] - 1.0) / SCALE, -5.0, 5.0)
        assert observation[-1] == pytest.approx(wanted, abs=1e-6)
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(np.zeros(1, np.float32))


def test_a_position_earns_what_the_column_said() -> None:
    env = RevealNextReturn(build("PerpFutures", bars=BARS, cost_scale=0.0, **{**ARGUMENTS, "leverage": 1.0}))
    observation, _ = env.reset(seed=SEED)
    said, made = observation[-1] * SCALE, env.step(np.ones(1, np.float32))[1]
    assert np.expm1(made) == pytest.approx(said, rel=0.02)  # whole lots


def test_lanes_equal_single_environments_and_final_observations_are_as_wide() -> None:
    vector = lanes(AutoresetMode.SAME_STEP)
    singles = [RevealNextReturn(build("PerpFutures", bars=BARS, episode_bars=16)) for _ in range(LANES)]
    assert vector.observation_names == singles[0].observation_names
    assert vector.single_observation_space == singles[0].observation_space
    seen, _ = vector.reset(seed=SEED)
    alone = [env.reset(seed=SEED + lane)[0] for lane, env in enumerate(singles)]
    actions, ended = np.random.default_rng(SEED), 0
    for _ in range(STEPS):
        np.testing.assert_array_equal(seen, np.stack(alone))
        chosen = actions.uniform(-1.0, 1.0, (LANES, 1)).astype(np.float32)
        seen, _, terminated, truncated, infos = vector.step(chosen)
        for lane, env in enumerate(singles):
            alone[lane], _, over, cut, _ = env.step(chosen[lane])
            assert (over or cut) == (terminated | truncated)[lane]
            if over or cut:
                np.testing.assert_array_equal(infos["final_obs"][lane], alone[lane])
                alone[lane], ended = env.reset()[0], ended + 1
    assert ended >= LANES


def test_the_bridge_hands_the_learner_a_last_observation_of_full_width() -> None:
    bridge = NativeVecEnv(lanes(AutoresetMode.SAME_STEP))
    bridge.seed(SEED)
    width = bridge.reset().shape[1]
    for _ in range(16):
        bridge.step_async(np.zeros((LANES, 1), np.float32))
        _, _, done, infos = bridge.step_wait()
    assert done.all()
    column = next_returns(bridge.simulation.game)
    for lane, info in enumerate(infos):
        assert info["terminal_observation"].shape == (width,)
        assert info["terminal_observation"][-1] == column[bridge.simulation.final_rows[lane]]


def test_scores_of_known_policies_stand_where_they_should() -> None:
    market = game()
    assert len(episode_starts(market)) == 3
    best = oracle_growth(market)
    plans = np.stack([oracle.plan(market, start, start + 256).targets for start in episode_starts(market)], axis=1)
    targets = iter(plans)
    replay = score(lambda seen: next(targets)[:, None], market, revealed=False)
    idle = score(lambda seen: np.zeros((len(seen), 1)), market, revealed=False)
    greedy = score(lambda seen: np.sign(seen[:, -1:]), market, revealed=True)
    blind = np.random.default_rng(SEED)
    random = score(lambda seen: blind.uniform(-1.0, 1.0, (len(seen), 1)), market, revealed=False)
    assert 0.97 * best.sum() < replay.log_growth <= best.sum()
    assert idle.log_growth == 0.0
    assert idle.costs.sum() == 0.0
    assert replay.log_growth > greedy.log_growth > 0.5 * best.sum()  # it turns over for returns below the cost
    assert random.log_growth < 0.05 * best.sum()  # of three sessions: luck may carry it above 0
    assert random.costs.sum() > 0.0


SPY = "synthetic:spy?seed=1&sessions=15"


def option_game(**arguments: Any) -> Game:
    given = {"bars": SPY, "split": "validation", **ANSWERS["ZeroDTE"].arguments, **arguments}
    return game_of("ZeroDTE", ZeroDTEConfig(**given))


def test_the_column_of_options_is_the_return_of_the_minute_that_the_order_fills_in() -> None:
    env = RevealNextReturn(build("ZeroDTE", bars=SPY))
    bars = env.unwrapped.simulation.game.bars  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=SEED)
    for _ in range(STEPS):
        row = int(env.unwrapped.simulation.rows[0])  # type: ignore[attr-defined]
        wanted = np.clip((bars.close[row + 1, 0] / bars.open[row + 1, 0] - 1.0) / ANSWERS["ZeroDTE"].scale, -5.0, 5.0)
        assert observation[-1] == pytest.approx(wanted, abs=1e-5)
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(0)
    assert env.get_wrapper_attr("action_masks")().shape == (4,)


def test_scores_of_known_option_policies_stand_where_they_should() -> None:
    market = option_game()
    assert market.starts is not None
    np.testing.assert_array_equal(episode_starts(market), market.starts)
    best = oracle_growth(market)
    plans = [option_oracle.plan(market, first).actions for first in market.starts.tolist()]
    replay_of = iter(np.stack(plans, axis=1))
    replay = score(lambda seen: next(replay_of), market, revealed=False)
    np.testing.assert_allclose(replay.returns.sum(axis=1), best, atol=1e-9)
    side = market.names.index("right")

    def greedy(seen: Any) -> Any:
        move, held = seen[:, -1], seen[:, side]
        bought = np.where(move > 0.3, TradingAction.BUY_CALL, np.where(move < -0.3, TradingAction.BUY_PUT, 0))
        return np.where(held == 0.0, bought, np.where(held * move < 0.0, TradingAction.CLOSE_POSITION, 0))

    idle = score(lambda seen: np.zeros(len(seen)), market, revealed=False)
    blind = np.random.default_rng(SEED)
    random = score(lambda seen: blind.integers(0, 4, len(seen)), market, revealed=False)
    assert best.sum() > score(greedy, market, revealed=True).log_growth > 0.5 * best.sum()
    assert idle.log_growth == 0.0 == idle.costs.sum()
    assert random.log_growth < 0.05 * best.sum()  # of three sessions: luck may carry it above 0
    assert random.costs.sum() > 0.0


def test_a_little_training_on_options_earns_where_the_answer_is_revealed() -> None:
    config = LearnabilityConfig(env="ZeroDTE-v0", steps=60_000, seeds=2, sessions=15, checks=1)
    row = learn(config, 0, True)
    assert row["share"] > 0.3
    assert row["market"].startswith("synthetic:spy?seed=0&sessions=15")


def test_a_family_without_an_oracle_is_named() -> None:
    with pytest.raises(ConfigError, match="no oracle for Chess, only for PerpFutures and ZeroDTE and SpotCrypto"):
        answer("Chess")


def test_validation_bars_are_not_those_of_training() -> None:
    training, scored = game(split="train"), game()
    assert episode_starts(scored)[0] > training.last
    assert episode_starts(scored)[-1] + scored.episode <= scored.last


def test_verdicts_hold_and_fail_where_they_should() -> None:
    assert judge_revealed([{"share": 0.7}, {"share": 0.95}, {"share": 0.9}], 0.8)["holds"]
    assert not judge_revealed([{"share": 0.7}, {"share": 0.75}], 0.8)["holds"]
    run = {"log_growth": 0.1, "variance": 0.02, "costs": 0.2}
    assert judge_hidden([run, run])["standard_error"] == pytest.approx(0.1)
    assert judge_hidden([run, run])["holds"]
    assert not judge_hidden([run] * 20)["holds"]


def test_bad_settings_are_named() -> None:
    for changes in ({"seeds": 1}, {"steps": 0}, {"bars": 10}, {"sessions": 9}, {"share": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            LearnabilityConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PerpFutures-v0", "ZeroDTE-v0"])
def test_the_answer_is_learned_when_revealed_and_nothing_is_otherwise(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    status = script.run(parser.parse_args(["--env", name, "--quick", "--json", "--out", str(tmp_path)]))
    result = json.loads(capsys.readouterr().out)
    assert status == 0, result
    assert result == json.loads((tmp_path / "learnability.json").read_text())
    assert not judge_hidden(result["revealed"]["runs"])["holds"]  # a leak would not pass for luck
    assert not judge_revealed(result["hidden"]["runs"], 0.1)["holds"]
    script.show(result)
    assert "DOES NOT HOLD" not in capsys.readouterr().out
