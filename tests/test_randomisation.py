"""Domain randomisation: costs drawn per training episode, and synthetic markets whose parameters the seed draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import regimegym  # noqa: F401 - registers the ids
from agents.baselines import baseline
from agents.evaluation import walk
from envs.make import build, game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Simulation
from markets import synthetic
from markets.errors import ConfigError
from markets.synthetic import WORLD, CryptoParameters

SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
COSTS: dict[str, Any] = {"bars": SMALL, "episode_bars": 32, "randomise_costs": 0.5, "cost_scale": 2.0}


# ---- costs ------------------------------------------------------------------------------------------------------


def scales(env: Any, episodes: int = 40, seed: int = 3) -> list[float]:
    """Return the cost scale of each episode; the first reset is seeded."""
    return [env.reset(seed=seed if episode == 0 else None)[1]["cost_scale"] for episode in range(episodes)]


def test_each_training_episode_draws_its_costs_within_the_range_and_seeds_repeat_them() -> None:
    drawn = scales(build("PerpFutures", **COSTS), 300)
    assert len(set(drawn)) == 300
    assert 2.0 / 1.5 <= min(drawn) < 1.4
    assert 2.9 < max(drawn) <= 2.0 * 1.5
    assert abs(np.mean(np.log(np.array(drawn) / 2.0))) < 3 * math.log(1.5) / math.sqrt(3 * 300)
    assert scales(build("PerpFutures", **COSTS), 20) == drawn[:20]
    assert scales(build("PerpFutures", **COSTS), 20, seed=4) != drawn[:20]


def test_costs_charged_are_the_costs_drawn() -> None:
    env = build("PerpFutures", **{**COSTS, "impact_coefficient": 0.0})
    for seed in range(5):
        _, info = env.reset(seed=seed)
        _, _, _, _, after = env.step([0.5])
        rate = env.simulation.game.details["contract"].taker_fee
        charged = after["fee"] / (abs(after["fill_quantity"]) * after["fill_price"])
        assert charged == pytest.approx(rate * info["cost_scale"], rel=1e-12)
        assert after["cost_scale"] == info["cost_scale"]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_lane_draws_what_the_single_env_draws(mode: str) -> None:
    lanes, steps = 3, 100
    vector = gym.make_vec("PerpFutures-v0", lanes, "vector_entry_point", autoreset_mode=mode, **COSTS)
    _, info = vector.reset(seed=7)
    seen = [[value] for value in info["cost_scale"]]
    for _ in range(steps):
        _, _, _, _, info = vector.step(np.full((lanes, 1), 0.5, np.float32))
        for lane, value in enumerate(info["cost_scale"]):
            if value != seen[lane][-1]:
                seen[lane].append(value)
    for lane in range(lanes):
        assert len(seen[lane]) >= 3
        assert scales(build("PerpFutures", **COSTS), len(seen[lane]), seed=7 + lane) == seen[lane]


def test_a_given_start_does_not_let_lane_and_single_env_drift_apart() -> None:
    single = build("PerpFutures", **COSTS)
    vector: Any = gym.make_vec("PerpFutures-v0", 1, "vector_entry_point", **COSTS)
    start = single.simulation.game.bars.time[1000]
    one = [single.reset(seed=2)[1], single.reset(options={"start": start})[1], single.reset()[1]]
    two = [vector.reset(seed=2)[1], vector.reset(options={"start": start})[1], vector.reset()[1]]
    for left, right in zip(one, two, strict=True):
        assert left["cost_scale"] == right["cost_scale"][0]
        assert left["time"] == right["time"][0]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_splits_are_at_the_given_costs(split: str) -> None:
    env = build("PerpFutures", **{**COSTS, "split": split})
    assert set(scales(env, 5)) == {2.0}


def test_a_walk_over_the_training_split_is_at_the_costs_that_are_asked_for() -> None:
    config = PerpFuturesConfig(**{**COSTS, "episode_bars": 0})
    walked = walk(baseline("random"), game_of("PerpFutures", config), (0.0, 1.0))
    assert walked.items["fee"][0] == 0.0
    plain = walk(
        baseline("random"),
        game_of("PerpFutures", PerpFuturesConfig(**{**COSTS, "episode_bars": 0, "randomise_costs": 0.0})),
        (0.0, 1.0),
    )
    assert walked.items["fee"][1] == plain.items["fee"][1] > 0.0


def test_without_randomisation_no_number_is_drawn_for_costs() -> None:
    game = game_of("PerpFutures", PerpFuturesConfig(bars=SMALL))
    generator, plain = np.random.default_rng(1), np.random.default_rng(1)
    simulation = Simulation(game, 1)
    simulation.reset([generator], None, None, np.ones(1, bool))
    plain.integers(game.first, game.last - game.episode + 1)
    assert generator.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "half", True])
def test_an_impossible_range_of_costs_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="randomise_costs"):
        PerpFuturesConfig(randomise_costs=value)  # type: ignore[arg-type]


# ---- markets ----------------------------------------------------------------------------------------------------


DAYS = 30.0
PARAMETERS = CryptoParameters(randomise=1.0, randomise_days=DAYS)


def worlds(seed: int, bars: int = 24 * 360) -> np.ndarray[Any, Any]:
    """Realised hourly volatility of each epoch of a randomised market."""
    market = synthetic.crypto(seed, "1h", bars, PARAMETERS)
    returns = np.diff(np.log(market.close[:, 0]), prepend=np.log(market.open[0, 0]))
    return np.std(returns.reshape(-1, int(24 * DAYS)), axis=1)


def plain_worlds(seed: int, bars: int = 24 * 360) -> np.ndarray[Any, Any]:
    market = synthetic.crypto(seed, "1h", bars)
    returns = np.diff(np.log(market.close[:, 0]), prepend=np.log(market.open[0, 0]))
    return np.std(returns.reshape(-1, int(24 * DAYS)), axis=1)


def test_the_seed_draws_markets_of_different_volatility_within_one_series() -> None:
    spread = [float(np.std(np.log(worlds(seed)))) for seed in range(4)]
    plain = [float(np.std(np.log(plain_worlds(seed)))) for seed in range(4)]
    assert np.mean(spread) > 1.3 * np.mean(plain), (spread, plain)


def test_a_market_that_is_not_randomised_is_what_it_was() -> None:
    one = synthetic.crypto(3, "1h", 500)
    two = synthetic.crypto(3, "1h", 500, CryptoParameters(randomise=0.0, randomise_days=1.0))
    assert one.close.tobytes() == two.close.tobytes()
    assert one.funding_rate.tobytes() == two.funding_rate.tobytes()


@pytest.mark.parametrize("bars", [100, 24 * 45])
def test_a_shorter_randomised_market_is_a_prefix_of_a_longer_one(bars: int) -> None:
    long = synthetic.crypto(5, "1h", 24 * 90, PARAMETERS)
    short = synthetic.crypto(5, "1h", bars, PARAMETERS)
    for name, column in short.columns.items():
        assert column.tobytes() == np.ascontiguousarray(long.columns[name][:bars]).tobytes(), name
    events = len(short.funding_time)
    assert short.funding_rate.tobytes() == long.funding_rate[:events].tobytes()


def test_intervals_of_one_seed_are_the_same_randomised_market() -> None:
    fine = synthetic.crypto(5, "5m", 12 * 24 * 40, PARAMETERS)
    coarse = synthetic.crypto(5, "1h", 24 * 40, PARAMETERS)
    assert fine.close[11::12].tobytes() == coarse.close.tobytes()


def test_every_factor_reaches_the_market() -> None:
    """Each factor alone changes the arrays that it should; a factor that nothing reads would be found here."""
    base = synthetic.crypto_arrays(6, "1h", 24 * 60, CryptoParameters())
    reach: dict[str, tuple[str, ...]] = {
        "volatility": ("close", "volume"), "drift": ("close",), "jumps": ("close",), "spells": ("labels",),
        "volume": ("volume",), "premium": ("funding_rate",),
    }  # fmt: skip
    assert set(reach) == set(WORLD)
    for factor, names in reach.items():
        changed = with_factor(factor)
        for name in names:
            assert not np.array_equal(base[name], changed[name]), f"{factor} does not reach {name}"
    assert np.allclose(with_factor("volume")["volume"], 2.0 * base["volume"])


def with_factor(name: str) -> dict[str, Any]:
    """Generate the default market with one factor of 2 over its whole length."""
    original: Callable[..., Any] = synthetic._world

    def doubled(rng: Any, steps: int, base: int, p: CryptoParameters) -> dict[str, Any]:
        return {**original(rng, steps, base, p), name: np.full(steps, 2.0)}

    synthetic._world = doubled
    try:
        return synthetic.crypto_arrays(6, "1h", 24 * 60, CryptoParameters())
    finally:
        synthetic._world = original


def test_a_randomised_market_without_drift_stays_a_martingale() -> None:
    """Mean gross return over 120 days of 40 seeds, in standard errors; the price would drift if a factor leaked."""
    parameters = CryptoParameters(randomise=1.0, randomise_days=10.0, drift_scale=0.0)
    gross = [
        float(synthetic.crypto(seed, "1h", 24 * 120, parameters).close[-1, 0]) / parameters.start_price
        for seed in range(40)
    ]
    error = np.std(gross) / math.sqrt(len(gross))
    assert abs(np.mean(gross) - 1.0) < 3.0 * error, (np.mean(gross), error)


def test_the_source_takes_and_records_the_parameter() -> None:
    env = build("PerpFutures", bars=SMALL + "&randomise=0.5&randomise_days=20")
    assert "randomise=0.5" in env.simulation.game.bars.source
    with pytest.raises(ConfigError, match=r"randomise=11\.0 must be at most 10"):
        build("PerpFutures", bars=SMALL + "&randomise=11")
