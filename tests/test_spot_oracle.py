"""The oracle of SpotCrypto: no path does better, and walking its plan earns what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from registered import BASKET, basket_market

from agents import spot_oracle
from agents.answers import answer
from agents.baselines import PORTFOLIO_BASELINES, baselines_of
from agents.evaluation import walk
from agents.spot_baselines import coins_of
from envs.make import game_of
from envs.perp_config import PerpFuturesConfig
from envs.simulation import EQUITY, MODE_DISABLED, Game, Simulation
from envs.spot_config import SpotCryptoConfig
from markets.errors import ConfigError

SEED = 151
PLAIN: dict[str, Any] = {
    "impact_coefficient": 0.0, "lot_step": 0.0, "minimum_notional": 0.0, "participation": 1.0,
    "initial_equity": 1_000.0,
    "rebalance_band": 0.5,
}  # fmt: skip


def game(**settings: Any) -> Game:
    return game_of("SpotCrypto", SpotCryptoConfig(bars=basket_market(), episode_bars=0, **{**PLAIN, **settings}))


def growth(market: Game, first: int, weights: np.ndarray) -> float:
    """Log growth of the environment's own account over targets ``(T, A)``."""
    simulation = Simulation(market, 1)
    simulation.reset([np.random.default_rng(0)], None, np.array([first]), np.ones(1, bool))
    start = simulation.accounts[0, 0, EQUITY]
    for target in weights:
        simulation.set_actions(target[None])
        simulation.run(MODE_DISABLED)
    return float(np.log(simulation.accounts[0, 0, EQUITY] / start))


def test_walking_the_plan_earns_its_log_growth() -> None:
    market = game()
    found = spot_oracle.plan(market, market.first, market.first + 300)
    assert len(np.unique(found.weights.argmax(axis=1))) == 3, "every coin has its time"
    assert growth(market, market.first, found.weights) == pytest.approx(found.log_growth, abs=1e-9)
    assert found.log_growth > 0.5


def check_best(plan: Any, rows: int) -> None:
    """No path of coins and cash does better, over a few bars in many places."""
    market = game(taker_fee=0.002)
    states = np.vstack([np.zeros(3), np.eye(3)])
    for place in range(12):
        first = market.first + 50 * place
        found = plan(market, first, first + rows)
        best = max(growth(market, first, np.array(path)) for path in itertools.product(states, repeat=rows))
        assert found.log_growth == pytest.approx(best, abs=1e-9)


def test_no_path_does_better() -> None:
    check_best(spot_oracle.plan, 3)


def test_mutant_a_plan_that_forgets_the_cost_of_selling_is_found() -> None:
    def free(market: Game, first: int, last: int) -> spot_oracle.SpotPlan:
        contract = market.contract.copy()
        contract[spot_oracle.columns.TAKER_FEE] = 0.0
        return spot_oracle.plan(replace(market, contract=contract), first, last)

    with pytest.raises(AssertionError):
        check_best(free, 3)


def test_what_the_oracle_cannot_stand_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="impact_coefficient=0"):
        spot_oracle.plan(game(impact_coefficient=1.0))
    with pytest.raises(ConfigError, match="allow_short=0"):
        spot_oracle.plan(game(allow_short=True))
    with pytest.raises(ConfigError, match=r"rows 3 \.\. 2"):
        spot_oracle.plan(game(), 3, 2)
    with pytest.raises(ConfigError, match="not of PerpFutures"):
        spot_oracle.plan(game_of("PerpFutures", PerpFuturesConfig(bars="synthetic:crypto?seed=1&bars=2000")))


def test_the_revealed_return_runs_from_the_open_of_the_fill_to_its_close() -> None:
    known = answer("SpotCrypto")
    market = game_of("SpotCrypto", SpotCryptoConfig(bars=BASKET + "&assets=1", **known.arguments))
    shown, bars = known.returns(market), market.bars
    for row in (500, 1_000, 3_998):
        wanted = (bars.close[row + 1, 0] / bars.open[row + 1, 0] - 1.0) / known.scale
        assert shown[row] == pytest.approx(np.clip(wanted, -5.0, 5.0), abs=1e-6)
    assert known.oracle(market, market.first) > 0.0


# ---- baselines ------------------------------------------------------------------------------------------------------


def test_the_baselines_of_a_portfolio_hold_what_their_names_say() -> None:
    market = game_of("SpotCrypto", SpotCryptoConfig(bars=basket_market(), split="test"))
    names = market.all_names
    assert coins_of(names) == ("BTC", "ETH", "SOL")
    found = baselines_of("SpotCrypto", names)
    assert list(found) == [*PORTFOLIO_BASELINES, "BTC, held", "ETH, held", "SOL, held"]
    walks = {name: walk(kind(), market, (0.0, 1.0)) for name, kind in found.items()}
    steps = market.last - market.first
    relatives = market.bars.close[market.last] / market.bars.open[market.first + 1]
    for place, coin in enumerate(("BTC", "ETH", "SOL")):
        held = walks[f"{coin}, held"]
        assert held.equity[-1, 0] == pytest.approx(10_000.0 * relatives[place], rel=5e-4)  # half a tick, whole lots
        assert held.turnover[1] == pytest.approx(1.0, abs=0.01), "bought once"
    assert walks["equal weights, held"].equity[-1, 0] == pytest.approx(10_000.0 * relatives.mean(), rel=5e-4)
    assert walks["idle"].equity[:, 1].tolist() == [10_000.0] * (steps + 1)
    assert walks["random"].turnover[1] > 50.0


def test_equal_weights_are_restored_at_midnight_and_only_then() -> None:
    config = SpotCryptoConfig(bars=basket_market(), split="test", rebalance_band=0.005)
    market = game_of("SpotCrypto", config)
    agent = PORTFOLIO_BASELINES["equal weights, daily"]().bind(market.all_names)
    simulation = Simulation(market, 1)
    simulation.reset([np.random.default_rng(0)], None, np.array([market.first]), np.ones(1, bool))
    hours, traded = [], market.columns.index("traded")
    for _ in range(market.last - market.first):
        closed = market.bars.close_time[simulation.rows[0]]
        actions, _ = agent.predict(simulation.seen())
        simulation.set_actions(actions)
        simulation.run(MODE_DISABLED)
        if simulation.accounts[0, 0, traded] > 0.0:
            hours.append(int((closed - closed.astype("datetime64[D]")) / np.timedelta64(1, "h")))
    assert len(hours) > 8
    assert set(hours[1:]) == {0}
