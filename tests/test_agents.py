"""The predict protocol, and what each baseline does to an account."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from agents.agent import Agent, Observation
from agents.baselines import (
    BASELINES,
    UNLEVERED,
    AlwaysShort,
    BuyAndHold,
    Idle,
    Random,
    VolatilityTargetedLong,
    baseline,
)
from agents.evaluation import Walk, walk
from envs.make import build, game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Game
from markets.bars import Bars
from markets.errors import ConfigError, UnknownNameError
from markets.sources import load as load_bars

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
SEED = 11
NAMES = ("a", "exposure", "b", "log_volatility_168", "c")


def game(**arguments: Any) -> Game:
    return game_of("PerpFutures", PerpFuturesConfig(**{"bars": BARS, "split": "test", **arguments}))


def observations(count: int, width: int = len(NAMES)) -> Observation:
    return np.random.default_rng(SEED).uniform(-1.0, 1.0, (count, width)).astype(np.float32)


class Reader(Agent):
    """Answers with the columns it reads, so that a wrong column shows."""

    name = "reader"
    reads = ("log_volatility_168", "exposure")

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> Any:
        return columns.copy(), (state or 0) + 1


class PositionReader(Reader):
    """The planted fault: remembers places instead of names."""

    def bind(self, observation_names: Sequence[str]) -> Agent:
        super().bind(observation_names)
        self._columns = np.array([3, 1], dtype=np.intp)
        return self


class Twitchy(Idle):
    """Almost idle: one small order in two hundred bars."""

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> Any:
        count = (state or 0) + 1
        return np.full((len(columns), 1), 0.2 if count == 200 else 0.0, np.float32), count


# The predict protocol


@pytest.mark.parametrize("name", BASELINES)
def test_a_single_observation_gets_one_action_and_a_batch_one_each(name: str) -> None:
    agent = baseline(name).bind(NAMES)
    space = gym.spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
    single, state = agent.predict(observations(1)[0], state="kept")
    assert single.shape == (1,)
    assert single.dtype == np.float32
    assert single in space
    assert state == "kept"
    batch, _ = agent.predict(observations(7), None, np.ones(7, bool), deterministic=False)
    assert batch.shape == (7, 1)
    assert batch.dtype == np.float32
    assert all(row in space for row in batch)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "random"])
def test_a_batch_is_answered_like_its_observations_one_by_one(name: str) -> None:
    agent = baseline(name).bind(NAMES)
    batch, _ = agent.predict(observations(9))
    assert np.array_equal(batch, [agent.predict(row)[0] for row in observations(9)])


def test_the_predict_signature_is_that_of_stable_baselines3() -> None:
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.base_class import BaseAlgorithm

    theirs = inspect.signature(BaseAlgorithm.predict).parameters
    ours = inspect.signature(Agent.predict).parameters
    assert list(ours)[:-1] == list(theirs)
    assert list(ours) == list(inspect.signature(MaskablePPO.predict).parameters)
    assert ours["action_masks"].default is None
    assert ours["state"].default is None
    assert ours["episode_start"].default is None


def test_state_goes_in_and_comes_out() -> None:
    agent = Reader().bind(NAMES)
    state = None
    for expected in (1, 2, 3):
        _, state = agent.predict(observations(1)[0], state)
        assert state == expected


@pytest.mark.parametrize(
    "shape", [(len(NAMES) - 1,), (len(NAMES) + 1,), (4, len(NAMES) - 1), (0,), (2, 3, len(NAMES)), ()], ids=str
)
def test_an_observation_of_another_width_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    agent = BuyAndHold().bind(NAMES)
    with pytest.raises(ConfigError, match="5 columns") as caught:
        agent.predict(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value)
    assert "buy-and-hold" in str(caught.value)


@pytest.mark.parametrize("name", BASELINES)
def test_an_unbound_agent_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match="not bound") as caught:
        baseline(name).predict(observations(1)[0])
    assert name in str(caught.value)


def test_a_name_that_is_not_there_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'exposures'") as caught:
        BuyAndHold().bind(("open", "exposures", "close"))
    assert "'exposure'" in str(caught.value)
    assert "buy-and-hold" in str(caught.value)


def test_an_agent_without_an_act_method_is_an_error_that_names_its_class() -> None:
    class Unfinished(Agent):
        pass

    with pytest.raises(TypeError, match="Unfinished"):
        Unfinished().bind(NAMES).predict(observations(1)[0])


# Columns are found by name


def check_column_order_does_not_matter(make: Callable[[], Agent]) -> None:
    generator = np.random.default_rng(SEED)
    data = observations(20)
    expected, _ = make().bind(NAMES).predict(data)
    for _ in range(20):
        order = generator.permutation(len(NAMES))
        got, _ = make().bind([NAMES[place] for place in order]).predict(data[:, order])
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("make", [Reader, BuyAndHold, VolatilityTargetedLong, AlwaysShort, Idle])
def test_columns_are_found_by_name_wherever_they_stand(make: Callable[[], Agent]) -> None:
    check_column_order_does_not_matter(make)


def test_an_agent_that_remembers_places_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_column_order_does_not_matter(PositionReader)


def test_columns_arrive_in_the_order_that_the_agent_reads_them() -> None:
    row = np.arange(len(NAMES), dtype=np.float32)
    assert Reader().bind(NAMES).predict(row)[0].tolist() == [3.0, 1.0]


def test_an_agent_can_be_bound_anew() -> None:
    agent = Reader().bind(NAMES)
    agent.bind(("exposure", "log_volatility_168"))
    assert agent.predict(np.array([5.0, 6.0], np.float32))[0].tolist() == [6.0, 5.0]


def test_predict_leaves_the_observation_as_it_was() -> None:
    for name in BASELINES:
        data = observations(5)
        baseline(name).bind(NAMES).predict(data)
        assert np.array_equal(data, observations(5))


# Baselines in the environment


def played(agent: Agent, steps: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """Step the single environment under an agent; every info of the episode, the one of reset first."""
    env = build("PerpFutures", **{"bars": BARS, "split": "test", **arguments})
    observation, info = env.reset(seed=SEED)
    agent.bind(env.observation_names)
    infos, state, over = [info], None, False
    while not over and (steps is None or len(infos) <= steps):
        action, state = agent.predict(observation, state)
        observation, _, terminated, truncated, info = env.step(action)
        infos.append(info)
        over = terminated or truncated
    return infos


def check_idle(agent: Agent) -> None:
    infos = played(agent)
    assert len(infos) > 500
    assert {info["equity"] for info in infos} == {10_000.0}
    assert all(info["fill_quantity"] == 0.0 and info["fee"] == 0.0 for info in infos)


def test_idle_keeps_its_equity_to_the_last_bit() -> None:
    check_idle(Idle())


def test_an_agent_that_trades_once_in_two_hundred_bars_is_not_idle() -> None:
    with pytest.raises(AssertionError):
        check_idle(Twitchy())


def orders(infos: list[dict[str, Any]]) -> int:
    return sum(info["order_quantity"] != 0.0 for info in infos)


def check_one_order(agent: Agent) -> None:
    infos = played(agent, leverage=1.0)
    assert infos[1]["fill_quantity"] != 0.0
    assert orders(infos) == 1
    assert len({info["position"] for info in infos[1:]}) == 1
    assert abs(infos[1]["position"]) * infos[1]["mark"] == pytest.approx(infos[1]["equity"], rel=0.01)


def test_buy_and_hold_buys_everything_at_once_and_never_trades_again() -> None:
    check_one_order(BuyAndHold())


def test_an_agent_that_rebalances_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_one_order(AlwaysShort())


@pytest.mark.parametrize("rate", [1e-3, -1e-3], ids=["paid", "received"])
def test_buy_and_hold_never_trades_again_when_funding_moves_its_exposure(rate: float) -> None:
    bars = load_bars(BARS)
    costly = replace(bars, funding_rate=np.full_like(bars.funding_rate, rate), source="funding")
    infos = played(BuyAndHold(), bars=costly, **UNLEVERED["buy-and-hold"])  # as reports walk it
    assert abs(sum(info["funding"] for info in infos)) > 500.0, "funding is too small to matter: the test is empty"
    assert orders(infos) == 1
    assert infos[-1]["ended_by"] == "end of the split"


def falling(share: float, rate: float = 0.0) -> Bars:
    """The synthetic market, with one bar late in the test split through which the price loses ``share`` for good."""
    bars = load_bars(BARS)
    bars = replace(bars, funding_rate=np.full_like(bars.funding_rate, rate))
    row = 2700
    columns = {name: np.array(getattr(bars, name)) for name in ("open", "high", "low", "close", "volume")}
    for name in ("open", "high", "low", "close"):
        columns[name][row + 1 :] *= 1.0 - share
        columns[name][row + 1 :] = np.minimum(columns[name][row + 1 :], columns["close"][row])
    columns["close"][row] *= 1.0 - share
    columns["low"][row] = np.minimum(columns["low"][row], columns["close"][row])
    empty = {"mark_open": None, "mark_high": None, "mark_low": None, "mark_close": None}
    return replace(bars, **columns, **empty, source="falling")


def check_survives(share: float, **arguments: Any) -> None:
    walked = walk(BuyAndHold(), game(bars=falling(share), **arguments))
    curve = walked.equity[:, 0]
    worst = float((curve[1:] / curve[:-1]).min())
    assert worst == pytest.approx(1.0 - share, abs=0.02)
    assert walked.items["liquidations"][0] == 0
    assert walked.ended_by == ("",)
    assert walked.exposure[-1, 0] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("share", [1.0 / 3.0, 0.5, 0.8])
def test_unlevered_buy_and_hold_survives_a_fall_and_keeps_the_position(share: float) -> None:
    check_survives(share, leverage=1.0)


def test_unlevered_buy_and_hold_survives_a_fall_after_which_funding_is_paid() -> None:
    walked = walk(BuyAndHold(), game(bars=falling(0.55, rate=2e-3), leverage=1.0))
    assert walked.items["funding"][0] > 500.0
    assert walked.items["liquidations"][0] == 0
    assert walked.ended_by == ("",)


def test_the_same_fall_liquidates_a_levered_account() -> None:
    with pytest.raises(AssertionError):
        check_survives(1.0 / 3.0, leverage=3.0)


def test_always_short_is_short_by_its_whole_equity_within_the_band() -> None:
    walked = walk(AlwaysShort(), game(leverage=1.0))
    assert np.all(np.abs(walked.exposure[1:, 0] + 1.0) < 0.12)
    assert walked.items["market_pnl"][0] != 0.0


def test_always_short_earns_what_buy_and_hold_loses_but_for_costs_and_compounding() -> None:
    plain = game(leverage=1.0, cost_scale=0.0)
    short, long = (walk(agent, plain) for agent in (AlwaysShort(), BuyAndHold()))
    moves = [np.diff(np.log(one.equity[:, 0])) for one in (short, long)]
    assert np.corrcoef(moves)[0, 1] < -0.99


def annual_volatility(bars: Bars, row: int, periods: float) -> float:
    """Root mean square of the last 168 log returns, a year: an independent account of the feature."""
    returns = np.diff(np.log(bars.close[row - 168 : row + 1, 0]))
    return math.sqrt(float(np.mean(returns**2)) * periods)


def check_volatility_target(target: float, periods: float) -> None:
    agent = VolatilityTargetedLong(target)
    env = build("PerpFutures", bars=BARS, split="test", leverage=1.0)
    observation, _ = env.reset(seed=SEED)
    agent.bind(env.observation_names)
    bars, cut = load_bars(BARS), 0
    for _ in range(300):
        sigma = annual_volatility(bars, int(env.simulation.rows[0]), periods)
        action, _ = agent.predict(observation)
        assert action[0] == pytest.approx(min(target / sigma, 1.0), rel=1e-4)
        cut += action[0] < 1.0
        observation = env.step(action)[0]
    assert cut > 0, "the target never bound: the test is empty"


@pytest.mark.parametrize("target", [0.05, 0.3])
def test_the_volatility_target_is_the_target_over_annual_volatility_and_at_most_one(target: float) -> None:
    periods = load_bars(BARS).periods_per_year
    check_volatility_target(target, periods)


def test_the_default_volatility_target_is_forty_percent_a_year() -> None:
    wild, calm = (np.log(np.full(5, sigma, np.float32)) for sigma in (0.8, 0.3))
    agent = VolatilityTargetedLong().bind(NAMES)
    assert agent.predict(wild)[0] == pytest.approx([0.5], rel=1e-5)
    assert agent.predict(calm)[0].tolist() == [1.0]


def test_a_volatility_target_annualised_by_trading_days_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_volatility_target(0.05, 252.0)


def test_random_draws_are_reproducible_by_seed_and_differ_between_seeds() -> None:
    def drawn(seed: int) -> NDArray[np.float32]:
        agent = Random(seed).bind(NAMES)
        return np.array([agent.predict(observations(1)[0])[0] for _ in range(500)])

    assert np.array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))
    assert drawn(3).min() < -0.95
    assert drawn(3).max() > 0.95
    assert abs(drawn(3).mean()) < 0.1


def test_random_gives_every_lane_the_same_order() -> None:
    action, _ = Random(SEED).bind(NAMES).predict(observations(6))
    assert len(set(action.ravel().tolist())) == 1


def test_random_leaves_global_generators_alone() -> None:
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    Random().bind(NAMES).predict(observations(1)[0])
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


def test_random_trading_loses_money_to_costs() -> None:
    walked: Walk = walk(Random(), game(), (0.0, 1.0))
    assert walked.equity[-1, 1] < walked.equity[-1, 0]
    assert walked.equity[-1, 1] < 0.7 * walked.equity[0, 1]


# The table of baselines


def test_every_baseline_is_found_by_the_name_it_shows() -> None:
    assert len(BASELINES) >= 5
    for name in BASELINES:
        assert baseline(name).name == name
    assert set(UNLEVERED) < set(BASELINES)


def test_each_call_makes_a_fresh_baseline() -> None:
    first, second = baseline("random").bind(NAMES), baseline("random").bind(NAMES)
    assert first is not second
    assert np.array_equal(first.predict(observations(1)[0])[0], second.predict(observations(1)[0])[0])


def test_an_unknown_baseline_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown baseline 'buy-and-hodl'\. Did you mean 'buy-and-hold'"):
        baseline("buy-and-hodl")


# Observations that are none


@pytest.mark.parametrize("given", [{"a": 1.0}, "text", [[1.0], [1.0, 2.0]], [None, "x"]], ids=repr)
def test_an_observation_that_is_no_table_of_numbers_is_a_typed_error(given: Any) -> None:
    with pytest.raises(ConfigError, match="observation"):
        Reader().bind(NAMES).predict(given)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named_by_its_column_where_the_agent_reads_it(value: float) -> None:
    agent, batch = Reader().bind(NAMES), observations(3)
    batch[:, NAMES.index("a")] = value
    agent.predict(batch)  # a column that it does not read
    batch[1, NAMES.index("exposure")] = value
    with pytest.raises(ConfigError, match=r"'exposure' \(row 1 of 3\)"):
        agent.predict(batch)


@pytest.mark.parametrize("path", [None, 3, b"runs"])
def test_what_is_no_path_is_a_typed_error_and_not_an_agent(path: Any) -> None:
    import agents

    with pytest.raises(ConfigError, match="path="):
        agents.load(path)
