"""The oracle: no path of targets does better, in its own arithmetic or in the environment, and the agent replays it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from agents import oracle
from agents.evaluation import walk
from agents.oracle import Oracle, Plan, Terms, log_growth, plan, solve, terms
from envs import perp_columns as kernel
from envs.make import game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import EQUITY, MODE_DISABLED, Game, Simulation
from markets.errors import ConfigError

BARS = "synthetic:crypto?seed=3&interval=1h&bars=3000"
PRECISE = {"contract_leverage": 20.0, "lot_step": 1e-9, "rebalance_band": 0.0, "minimum_notional": 0.0}
T = 8
PATHS = np.array(list(product(oracle.TARGETS, repeat=T))).T  # (T, 3^T)
SECOND_ORDER = 1e-6  # what the carried exposure of the induction may cost, per decision
STARTS = (0, 40, 111, 230, 333)  # bars into the split

Solver = Callable[[Terms, float], Plan]


def game(**arguments: Any) -> Game:
    plain = {"bars": BARS, "split": "validation", "leverage": 1.0, "impact_coefficient": 0.0, "episode_bars": 256}
    return game_of("PerpFutures", PerpFuturesConfig(**{**plain, **PRECISE, **arguments}))


def eventful(market: Game, start: int) -> Terms:
    """T decisions whose costs and funding are ten times the usual, so that they decide."""
    first = market.first + start
    items = terms(market, first, first + T, cost_scale=10.0)
    return replace(items, carried=items.carried * 10.0, held=items.held * 10.0)


def walked(market: Game, first: int, targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log growth of each path ``(T, P)`` in the environment, a lane each."""
    lanes = targets.shape[1]
    simulation = Simulation(market, lanes)
    simulation.reset([np.random.default_rng(0)] * lanes, None, np.full(lanes, first), np.ones(lanes, bool))
    start = simulation.accounts[0, :, EQUITY].copy()
    for actions in targets:
        simulation.set_actions(actions[:, None])
        simulation.run(MODE_DISABLED)
    return np.log(simulation.accounts[0, :, EQUITY] / start)


def regret(solver: Solver, leverage: float = 1.0) -> float:
    """Largest log growth that the solver's path leaves to the best of all 3^T paths, over several stretches of bars."""
    market = game()
    losses = []
    for start in STARTS:
        items = eventful(market, start)
        best = log_growth(items, PATHS, leverage).max()
        losses.append(best - log_growth(items, solver(items, leverage).targets, leverage))
    return float(max(losses))


def test_no_path_of_all_beats_the_plan() -> None:
    for leverage in (1.0, 3.0):
        assert 0.0 <= regret(solve, leverage) <= T * SECOND_ORDER * (10.0 * leverage) ** 2


def costs_ignored(items: Terms, leverage: float) -> Plan:
    free = np.zeros(len(items))
    return solve(replace(items, buy=free, sell=free), leverage)


def one_bar_late(items: Terms, leverage: float) -> Plan:
    return solve(replace(items, move=np.roll(items.move, 1), drift=np.roll(items.drift, 1)), leverage)


def one_bar_early(items: Terms, leverage: float) -> Plan:
    return solve(replace(items, move=np.roll(items.move, -1), drift=np.roll(items.drift, -1)), leverage)


@pytest.mark.parametrize("mutant", [costs_ignored, one_bar_late, one_bar_early])
def test_brute_force_catches(mutant: Solver) -> None:
    assert regret(mutant) > 10 * T * SECOND_ORDER * 100.0


def test_no_path_beats_the_plan_in_the_environment_itself() -> None:
    market = game(cost_scale=5.0)
    for start in STARTS:
        first = market.first + start
        chosen = plan(market, first, first + T)
        growths = walked(market, first, PATHS)
        assert growths.max() - walked(market, first, chosen.targets[:, None])[0] <= T * SECOND_ORDER * 25.0
        assert chosen.log_growth == pytest.approx(growths.max(), abs=1e-5)


def test_every_path_is_valued_as_the_environment_walks_it() -> None:
    market = game()
    first = market.first + 40
    np.testing.assert_allclose(
        log_growth(terms(market, first, first + T), PATHS), walked(market, first, PATHS), atol=2e-8
    )


def test_replaying_the_plan_reproduces_its_value_up_to_lots() -> None:
    market = game(leverage=3.0)
    chosen = plan(market, last=market.first + 256)
    equity = walk(Oracle(chosen), market).equity[:, 0]
    assert np.log(equity[-1] / equity[0]) == pytest.approx(chosen.log_growth, rel=1e-6)
    assert chosen.log_growth > 1.5  # three times the exposure of an account that makes 0.7
    assert chosen.value[0, oracle.FLAT] == pytest.approx(chosen.log_growth, rel=1e-3)


def test_default_lots_and_band_cost_the_replay_little() -> None:
    rules = {"contract_leverage": None, "lot_step": None, "rebalance_band": 0.05, "minimum_notional": None}
    market = game(**rules)
    chosen = plan(market, last=market.first + 256)
    equity = walk(Oracle(chosen), market).equity[:, 0]
    assert 0.98 * chosen.log_growth < np.log(equity[-1] / equity[0]) <= chosen.log_growth


def test_higher_costs_never_raise_the_optimum() -> None:
    market = game()
    values = [
        plan(market, last=market.first + 256, cost_scale=scale).log_growth for scale in (0.0, 0.5, 1.0, 2.0, 5.0, 20.0)
    ]
    assert all(more < less for less, more in pairwise(values))
    assert values[-1] >= 0.0  # staying flat is always there


def test_without_costs_and_gaps_the_optimum_is_the_sum_of_the_better_sides() -> None:
    generator = np.random.default_rng(5)
    moves = generator.normal(0.0, 0.01, 500)
    none = np.zeros(500)
    items = Terms(gap=none, move=moves, drift=1.0 + moves, buy=none, sell=none, carried=none, held=none)
    for leverage in (1.0, 3.0):
        assert solve(items, leverage).log_growth == pytest.approx(np.log1p(leverage * np.abs(moves)).sum(), rel=1e-12)


def test_funding_alone_is_earned_from_the_side_that_receives() -> None:
    none = np.zeros(3)
    items = Terms(none, none, none + 1.0, none + 1e-4, none + 1e-4, np.array([0.0, 0.01, 0.0]), none)
    chosen = solve(items)
    assert chosen.targets[0] == -1.0  # short before the stamp
    assert chosen.log_growth == pytest.approx(np.log(1.0 - 1e-4) + np.log(1.0 + 0.01 / 1.0), abs=2e-4)
    assert solve(replace(items, carried=-items.carried)).targets[0] == 1.0


def test_ruin_is_never_chosen_and_stays_finite() -> None:
    none = np.zeros(2)
    items = Terms(none, np.array([0.6, -0.6]), np.array([1.6, 0.4]), none, none, none, none)
    assert np.isfinite(log_growth(items, np.array([-1.0, 1.0]), 3.0))
    assert solve(items, 3.0).targets.tolist() == [1.0, -1.0]


def test_lanes_replay_from_their_own_episode_start() -> None:
    agent = Oracle(Plan(np.array([1.0, -1.0, 0.0, 1.0]), 0.0, np.zeros((5, 3)))).bind(("a",))
    seen, state = np.zeros((2, 1), np.float32), None
    rows = []
    for begun in ([True, True], [False, False], [False, True], [False, False], [False, False]):
        actions, state = agent.predict(seen, state, np.array(begun))
        rows.append(actions[:, 0].tolist())
    assert rows == [[1.0, 1.0], [-1.0, -1.0], [0.0, 1.0], [1.0, -1.0], [0.0, 0.0]]


def test_what_the_oracle_cannot_stand_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="impact_coefficient=0"):
        plan(game(impact_coefficient=1.0))
    market = game()
    with pytest.raises(ConfigError, match="rows"):
        plan(market, 10, 10)
    with pytest.raises(ConfigError, match="PerpFutures"):
        plan(replace(market, recipe=("ZeroDTE", None)))
    assert market.contract[kernel.IMPACT] == 0.0
