"""Learnability: an environment can be learned when the answer is revealed, and cannot when there is nothing to learn.

Two claims, each over several training seeds, always scored on bars that were not trained on:

(a) PPO that sees the return of the next bar (:class:`RevealNextReturn`, unsafe by name) reaches a share of the log
    growth of the oracle (:mod:`agents.oracle`, :mod:`agents.option_oracle`), which knows every bar: observation,
    action, reward and learner fit together.
(b) PPO that sees what everyone sees, on markets without drift and funding, is not above idle: nothing leaks. There
    equity is a martingale less costs, so that expected log growth is below 0 whatever the policy does.

What each family reveals and plays is in :mod:`agents.answers`. Scores: the validation split is cut into E episodes (of
``EPISODE`` bars, or the sessions as they are), each from a flat account; the share of (a) is
``sum_e ln(V_T / V_0) / sum_e oracle_e``, summed up over seeds by the interquartile mean. The test of (b)::

    mean <= 2 s,    s^2 = sum over seeds and bars of (r - mean r)^2 / seeds^2      r log return of equity per bar

where bars count as uncorrelated (they are, in a martingale) and every seed has a market of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from agents import oracle
from agents.answers import BOUND, answer
from agents.bootstrap import interquartile_mean
from agents.sb3 import build_model
from agents.training import resolve
from agents.vec_env import NativeVecEnv
from envs.make import game_of
from envs.simulation import EQUITY, MODE_DISABLED, OUTCOME, Game, Simulation
from markets.errors import ConfigError

Floats = NDArray[np.float64]
Observations = NDArray[np.float32]
Policy = Callable[[Observations], Any]  # (E, D) observations -> (E, 1) actions

UNSAFE = "unsafe_next_return"
REWARD_SCALE = 100.0  # as in training: log returns per bar are of the order of 0.01
LEVELS = 2.0  # standard errors that (b) may be above idle


@dataclass(frozen=True, kw_only=True)
class LearnabilityConfig:
    """What ``regimegym learnability`` is told.

    Attributes:
        env: registered id.
        steps: environment steps of each training. ``seeds``: trainings of (a) and of (b), at least 2.
        bars, sessions: size of each synthetic market, in hourly bars or in sessions of minutes, as the family has it;
            the first 60 % are trained on and 20 % scored.
        share: of the oracle's log growth that (a) must reach. ``checks``: scores along each training of (a).
    """

    env: str = "PerpFutures-v0"
    steps: int = 3_000_000
    seeds: int = 5
    bars: int = 40_000
    sessions: int = 200
    share: float = 0.8
    checks: int = 10

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seeds", 2), ("bars", 3000), ("sessions", 10), ("checks", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share={self.share!r} must be above 0 and at most 1")


@dataclass(frozen=True)
class Score:
    """What a policy did in E episodes of at most T bars.

    Attributes:
        returns: ``(E, T)`` log returns of equity per bar, 0 after an episode ended early.
        costs: ``(E,)`` fees, spread and what else the family's ledger counts as a cost, each bar's in units of the
            equity before it.
    """

    returns: Floats
    costs: Floats

    @property
    def log_growth(self) -> float:
        """Sum over all episodes and bars."""
        return float(self.returns.sum())


def next_returns(game: Game) -> NDArray[np.float32]:
    """What the unsafe column shows at each row, ``(T,)``: see :meth:`agents.answers.Answer.returns`."""
    return answer(game.recipe[0]).returns(game)


def reveal(observations: Observations, rows: NDArray[np.int64], column: NDArray[np.float32]) -> Observations:
    """Append ``column[rows]`` to ``(N, D)`` observations: ``(N, D + 1)``."""
    return np.concatenate([observations, column[rows][:, None]], axis=1)


def _wider(space: gym.Space[Any]) -> gym.spaces.Box:
    assert isinstance(space, gym.spaces.Box)
    low, high = np.append(space.low, -BOUND), np.append(space.high, BOUND)
    return gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


class RevealNextReturn(gym.Wrapper[Any, Any, Any, Any]):
    """UNSAFE: append the return of the next bar, which nobody knows, as the column ``unsafe_next_return``."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        self._column = next_returns(self._simulation.game)
        self.observation_space = _wider(env.observation_space)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return (*self.env.get_wrapper_attr("observation_names"), UNSAFE)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._reveal(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Trade one bar."""
        observation, *rest = self.env.step(action)
        return (self._reveal(observation), *rest)  # type: ignore[return-value]

    def _reveal(self, observation: Any) -> Observations:
        return reveal(observation[None], self._simulation.rows, self._column)[0]


class RevealNextReturnVector(gym.vector.VectorWrapper):
    """UNSAFE: :class:`RevealNextReturn` for native lanes, ``final_obs`` included."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        self.column = next_returns(self.simulation.game)
        self.single_observation_space = _wider(env.single_observation_space)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, env.num_envs)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return (*self.env.observation_names, UNSAFE)  # type: ignore[attr-defined]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return reveal(observations, self.simulation.rows, self.column), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Trade one bar in every lane."""
        observations, *rest, infos = self.env.step(actions)
        if "final_obs" in infos:
            rows = self.simulation.final_rows
            for lane in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][lane] = np.append(infos["final_obs"][lane], self.column[rows[lane]])
        return (reveal(observations, self.simulation.rows, self.column), *rest, infos)


def score(policy: Policy, game: Game, revealed: bool) -> Score:
    """Play all whole episodes of a split side by side, one lane each, from a flat account."""
    starts = episode_starts(game)
    simulation = Simulation(game, len(starts))
    simulation.reset([np.random.default_rng(0)] * len(starts), None, starts, np.ones(len(starts), bool))
    accounts, column = simulation.accounts[0], next_returns(game)
    returns, costs = np.zeros((len(starts), game.episode)), np.zeros(len(starts))
    alive = np.ones(len(starts), bool)
    for step in range(game.episode):
        before = np.maximum(accounts[:, EQUITY], oracle.RUIN)  # of an account that is gone: no warning, and no matter
        seen = simulation.seen()
        simulation.set_actions(policy(reveal(seen, simulation.rows, column) if revealed else seen))
        simulation.run(MODE_DISABLED)
        after = np.maximum(accounts[:, EQUITY], oracle.RUIN)
        returns[:, step] = np.where(alive, np.log(after / before), 0.0)
        paid = accounts[:, game.ledger.costs].sum(axis=1)
        costs += np.where(alive, paid / before, 0.0)
        alive &= accounts[:, OUTCOME] == 0.0
        if not alive.any():
            break
    return Score(returns, costs)


def episode_starts(game: Game) -> NDArray[np.int64]:
    """First rows of the E whole episodes that a split holds, one after the other: ``(E,)``."""
    if game.starts is not None:
        return game.starts
    return np.arange(game.first, game.last - game.episode + 1, game.episode)


def oracle_growth(game: Game) -> Floats:
    """Log growth of the oracle in each of the E episodes: ``(E,)``."""
    best = answer(game.recipe[0]).oracle
    return np.array([best(game, start) for start in episode_starts(game).tolist()])


def learn(config: LearnabilityConfig, seed: int, revealed: bool) -> dict[str, Any]:
    """Train once and score along the way: seconds, share of the oracle, log growth and costs at the end."""
    torch.set_num_threads(1)
    known = answer(family_name(config.env))
    size = getattr(config, known.size)
    arguments = {**known.arguments, **({} if revealed else known.hidden), "bars": known.market(seed, size, revealed)}
    family, training = resolve(config.env, arguments)
    game = game_of(family, replace(training, split="validation"))
    if len(episode_starts(game)) < 2:
        raise ConfigError(f"{known.size}={size}: the validation split holds less than 2 episodes")
    best = float(oracle_growth(game).sum())
    model, env = _model(config, arguments, seed, revealed)
    curve, seconds = [], 0.0
    checks = config.checks if revealed else 1
    for chunk in range(1, checks + 1):
        wanted = config.steps * chunk // checks - model.num_timesteps
        started = time.perf_counter()
        if wanted > 0:
            model.learn(wanted, reset_num_timesteps=model.num_timesteps == 0)
        seconds += time.perf_counter() - started
        model.policy.set_training_mode(False)
        last = score(lambda seen: model.policy.predict(seen, deterministic=True)[0], game, revealed)
        curve.append({"steps": model.num_timesteps, "seconds": seconds, "share": last.log_growth / best})
    env.close()
    reached = next((row for row in curve if row["share"] >= config.share), None)
    return {
        "seed": seed,
        "market": arguments["bars"],
        "steps": int(model.num_timesteps),
        "seconds": seconds,
        "episodes": len(last.costs),
        "oracle": best,
        "log_growth": last.log_growth,
        "costs": float(last.costs.sum()),
        "variance": float(((last.returns - last.returns.mean()) ** 2).sum()),
        "share": last.log_growth / best,
        "reached": reached,
        "curve": curve,
    }


def family_name(env: str) -> str:
    """Return the family of a registered id."""
    return str(resolve(env, {})[0])


def _model(
    config: LearnabilityConfig, arguments: dict[str, Any], seed: int, revealed: bool
) -> tuple[Any, NativeVecEnv]:
    vector: Any = gym.make_vec(
        config.env,
        num_envs=256,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP.value,
        info="none",
        **{**arguments, "split": "train"},
    )
    env = NativeVecEnv(RevealNextReturnVector(vector) if revealed else vector, REWARD_SCALE)
    return build_model("ppo", env, seed, "cpu", None, answer(family_name(config.env)).settings), env


def judge_revealed(runs: Sequence[dict[str, Any]], share: float) -> dict[str, Any]:
    """Claim (a): the interquartile mean of the shares of the oracle's log growth is at least ``share``."""
    reached = interquartile_mean([run["share"] for run in runs])
    return {"interquartile_mean": reached, "needed": share, "holds": bool(reached >= share)}


def judge_hidden(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Claim (b): mean log growth over seeds is at most two standard errors above 0, what idle makes."""
    mean = float(np.mean([run["log_growth"] for run in runs]))
    error = float(np.sqrt(sum(run["variance"] for run in runs))) / len(runs)
    costs = float(np.mean([run["costs"] for run in runs]))
    return {"mean": mean, "standard_error": error, "costs": costs, "holds": bool(mean <= LEVELS * error)}


def run(config: LearnabilityConfig, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Make every training of both claims and judge them; ``progress`` is told each as it ends."""
    known = answer(family_name(config.env))
    results: dict[str, Any] = {
        "env": config.env, "settings": known.settings, "arguments": known.arguments,
        "arguments where nothing is to be learned": known.hidden,
    }  # fmt: skip
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for revealed, claim in ((True, "a"), (False, "b")):
        for seed in range(config.seeds):
            row = learn(config, seed, revealed)
            runs[revealed].append(row)
            progress(
                f"({claim}) seed {seed}: log growth {row['log_growth']:.3f}, oracle {row['oracle']:.3f}, "
                f"costs {row['costs']:.3f}, {row['steps']:,} steps in {row['seconds']:.0f} s"
            )
    results["revealed"] = {**judge_revealed(runs[True], config.share), "runs": runs[True]}
    results["hidden"] = {**judge_hidden(runs[False]), "runs": runs[False]}
    results["holds"] = results["revealed"]["holds"] and results["hidden"]["holds"]
    return results
