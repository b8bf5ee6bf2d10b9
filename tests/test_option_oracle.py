"""The option oracle: no plan of all does better in the environment itself, and it is worth what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from agents import option_oracle
from agents.option_oracle import OptionPlan, plan
from envs import zero_dte_columns as c
from envs.make import game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import EQUITY, MODE_DISABLED, REWARD, Game, Simulation
from envs.zero_dte_config import ZeroDTEConfig
from markets.errors import ConfigError

BARS = "synthetic:spy?seed=3&sessions=30"
WILD = "synthetic:spy?seed=3&sessions=30&annual_volatility=0.6"
T = 5
PLANS = np.array(list(product(range(4), repeat=T)))  # (4^T, T)
Solver = Callable[[Game, int], OptionPlan]


def game(**arguments: Any) -> Game:
    plain = {"bars": BARS, "split": "validation", "contracts": 1, "fill": "market", "initial_equity": 20_000.0}
    return game_of("ZeroDTE", ZeroDTEConfig(**{**plain, **arguments}))


# The last decisions of a session, in which everything happens: purchases, forced exits, bids of 0, settlement.
GAMES = (
    {"bars": WILD, "entry_cut_off": 1.0, "forced_exit": None},
    {"bars": WILD, "entry_cut_off": 2.0, "forced_exit": 2.0, "strike_spacing": 0.25, "contracts": 3},
    {"bars": WILD, "entry_cut_off": 1.0, "forced_exit": 1.0, "strike_offset": 2, "cost_scale": 0.1},
    {"bars": WILD, "entry_cut_off": 3.0, "forced_exit": 0.0, "strike_offset": -3, "fee": 5.0, "cost_scale": 2.0},
)


def walked(market: Game, first: int, plans: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Profit in USD and sum of rewards of plans ``(P, T)`` in the environment, a lane each."""
    lanes, steps = plans.shape
    simulation = Simulation(market, lanes)
    generators = [np.random.default_rng(0)] * lanes
    simulation.reset(generators, None, np.full(lanes, first), np.ones(lanes, bool))
    accounts, rewards = simulation.accounts[0], np.zeros(lanes)
    start = accounts[:, EQUITY].copy()
    for t in range(steps):
        simulation.set_actions(plans[:, t])
        simulation.run(MODE_DISABLED)
        rewards += accounts[:, REWARD]
    return accounts[:, EQUITY] - start, rewards


def ends(market: Game) -> list[int]:
    """Rows with T decisions left, in every session of the split."""
    assert market.starts is not None
    return [int(market.market[start, c.LAST_OF_SESSION]) - T for start in market.starts.tolist()]


def regret(solver: Solver) -> float:
    """Largest profit that the solver's plan leaves to the best of all 4^T plans, over games and sessions."""
    losses = []
    for arguments in GAMES:
        market = game(**arguments)
        for first in ends(market)[:4]:
            best = walked(market, first, PLANS)[0].max()
            losses.append(best - walked(market, first, solver(market, first).actions[None, :])[0][0])
    return float(max(losses))


def test_the_best_of_all_plans_is_the_plan_and_makes_what_it_says() -> None:
    traded = 0
    for arguments in GAMES:
        market = game(**arguments)
        for first in ends(market)[:4]:
            chosen = plan(market, first)
            gains, rewards = walked(market, first, PLANS)
            assert chosen.gain == pytest.approx(gains.max(), abs=1e-7)
            assert chosen.log_growth == pytest.approx(rewards.max(), abs=1e-9)
            traded += chosen.trades
    assert traded > len(GAMES)


def strike_of_the_day(market: Game, first: int) -> OptionPlan:
    """A state without the entry bar: one strike for whatever is held."""
    changed = market.market.copy()
    changed[:, c.CALL_STRIKE] = changed[first, c.CALL_STRIKE]
    changed[:, c.PUT_STRIKE] = changed[first, c.PUT_STRIKE]
    return plan(_on(market, changed), first)


def no_costs(market: Game, first: int) -> OptionPlan:
    changed = market.market.copy()
    changed[:, c.OPEN_FACTOR] = 0.0
    return plan(_on(market, changed), first)


def a_bar_early(market: Game, first: int) -> OptionPlan:
    """Fills at the close of the decision."""
    changed = market.market.copy()
    changed[1:, c.OPEN] = changed[:-1, c.CLOSE]
    changed[:, c.OPEN] = np.where(changed[:, c.OPEN] > 0.0, changed[:, c.OPEN], changed[:, c.CLOSE])
    return plan(_on(market, np.roll(changed, -1, axis=0)), first)


def _on(market: Game, changed: np.ndarray[Any, Any]) -> Game:
    changed[:, c.LAST_OF_SESSION] = market.market[:, c.LAST_OF_SESSION]
    changed[:, [c.LEFT, c.SESSION_BARS]] = market.market[:, [c.LEFT, c.SESSION_BARS]]
    return replace(market, market=changed)


def test_the_plan_leaves_nothing() -> None:
    assert regret(plan) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("mutant", [strike_of_the_day, no_costs, a_bar_early])
def test_brute_force_catches(mutant: Solver) -> None:
    assert regret(mutant) > 1.0  # USD


def test_whole_sessions_replay_to_the_value_and_no_random_policy_beats_it() -> None:
    market = game()
    assert market.starts is not None
    generator = np.random.default_rng(0)
    for first in market.starts[:3].tolist():
        chosen = plan(market, first)
        gain, reward = walked(market, first, chosen.actions[None, :])
        assert gain[0] == pytest.approx(chosen.gain, abs=1e-7)
        assert reward[0] == pytest.approx(chosen.log_growth, abs=1e-9)
        assert 30 < chosen.trades < 200
    first = int(market.starts[0])
    chosen = plan(market, first)
    others = generator.choice(4, (1000, len(chosen.actions)), p=[0.55, 0.15, 0.15, 0.15])
    near = np.repeat(chosen.actions[None, :], 1000, axis=0)  # the plan with a few decisions changed
    places = generator.integers(0, near.shape[1], (1000, 2))
    np.put_along_axis(near, places, generator.integers(0, 4, places.shape), axis=1)
    assert walked(market, first, others)[0].max() < chosen.gain
    assert walked(market, first, near)[0].max() <= chosen.gain + 1e-7


def test_the_plan_of_a_simple_return_is_the_same() -> None:
    market, other = game(), game(reward="simple_return=1")
    assert market.starts is not None
    first = int(market.starts[0])
    chosen = plan(other, first)
    np.testing.assert_array_equal(chosen.actions, plan(market, first).actions)
    assert walked(other, first, chosen.actions[None, :])[1][0] == pytest.approx(chosen.gain / 20_000.0, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fill": "limit"}, "fill='market'"),
        ({"settlement": "physical"}, "settlement='cash_equivalent'"),
        ({"contracts": None}, "contracts=1"),
        ({"contracts": 200, "initial_equity": 1e7}, "offered=100.0"),
        ({"initial_equity": 30.0}, "initial_equity=30 does not pay"),
        ({"contracts": None, "actions": "sized"}, "actions='discrete'"),
    ],
)
def test_a_game_that_it_is_not_exact_for_is_refused(arguments: dict[str, Any], says: str) -> None:
    market = game(**arguments)
    assert market.starts is not None
    with pytest.raises(ConfigError, match=says):
        plan(market, int(market.starts[0]))


def test_other_families_and_rows_are_refused() -> None:
    market = game()
    assert market.starts is not None
    with pytest.raises(ConfigError, match="no row of a whole session"):
        plan(market, len(market.market))
    with pytest.raises(ConfigError, match="last row"):
        plan(market, int(market.starts[0]) + market.episode)
    bars = "synthetic:crypto?seed=3&interval=1h&bars=3000"
    with pytest.raises(ConfigError, match="not of PerpFutures"):
        option_oracle.check(game_of("PerpFutures", PerpFuturesConfig(bars=bars)))


def test_a_fixed_number_of_contracts_is_bought_whole_or_not_at_all() -> None:
    market = game(contracts=4)
    assert market.starts is not None
    simulation = Simulation(market, 2)
    simulation.reset([np.random.default_rng(0)] * 2, None, np.full(2, market.starts[0]), np.ones(2, bool))
    ask = market.market[market.starts[0], c.CALL_STRIKE + 2]
    simulation.accounts[0, 1, c.CASH] = 399.0 * ask  # of four contracts, the last one is not paid for
    simulation.set_actions(np.array([1, 1]))
    simulation.run(MODE_DISABLED)
    assert simulation.accounts[0, :, c.FILL_QUANTITY].tolist() == [4.0, 0.0]
    assert simulation.accounts[0, :, c.ILLEGAL_ACTIONS].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("contracts", [0, 1.5, True, 2_000_000])
def test_contracts_that_are_no_number_of_contracts_are_refused(contracts: Any) -> None:
    with pytest.raises(ConfigError, match="contracts"):
        ZeroDTEConfig(contracts=contracts)
    with pytest.raises(ConfigError, match="actions='discrete'"):
        ZeroDTEConfig(contracts=1, actions="sized")
