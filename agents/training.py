"""Training: native lanes, an SB3 algorithm, a checkpoint chosen on the validation split, one safe file at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy

import envs
from agents import artefact, metrics
from agents.agent import Agent
from agents.callbacks import AccountTags, Progress, ValidationChoice
from agents.evaluation import walk
from agents.sb3 import POLICY, algorithm, build_model
from agents.vec_env import NativeVecEnv
from envs.make import family_of, game_of
from markets.errors import ConfigError, unknown

REWARD_SCALE = 100.0  # log returns per bar are of the order of 0.01
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What ``regimegym train`` is told.

    Attributes:
        env: registered id. ``arguments``: its arguments, ``bars`` and split dates among them.
        algo: row of :data:`agents.sb3.ALGORITHMS`; ``settings`` replace its hyperparameters.
        steps: environment steps over all lanes. ``lanes``: 0 takes the algorithm's own.
        evaluations: how often the validation split is scored; 0 keeps the last weights.
        threads: of torch. ``device``: ``auto``, ``cpu``, ``cuda``, ...
    """

    env: str
    algo: str
    steps: int
    seed: int
    out: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    lanes: int = 0
    evaluations: int = 10
    device: str = "auto"
    threads: int = 1
    quiet: bool = False

    def __post_init__(self) -> None:
        algorithm(self.algo)
        for name, least in (("steps", 1), ("seed", 0), ("lanes", 0), ("evaluations", 0), ("threads", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
                raise ConfigError(f"{name}={value!r} must be a whole number from {least} to {2**32 - 1}")


class _Candidate(Agent):
    """The policy in training, as an agent that reads every column."""

    def __init__(self, policy: ActorCriticPolicy, names: tuple[str, ...]) -> None:
        super().__init__()
        self.policy, self.reads = policy, names

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        """Return the policy's actions."""
        return self.policy.predict(columns, state, episode_start, deterministic)


def train(config: TrainingConfig) -> Path:
    """Train, keep the weights that score best on validation, and return the path of the saved agent.

    Ctrl-C stops training and saves what is best so far; it is raised again after that.
    """
    torch.set_num_threads(config.threads)
    family, arguments = resolve(config.env, config.arguments)
    lanes = config.lanes or algorithm(config.algo).lanes
    vector = gym.make_vec(
        config.env,
        num_envs=lanes,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP.value,
        info="none",
        **{**config.arguments, "split": "train"},
    )
    env = NativeVecEnv(vector, REWARD_SCALE)
    model = build_model(config.algo, env, config.seed, config.device, str(config.out / "tensorboard"), config.settings)
    started = time.perf_counter()

    def keep() -> None:  # a killed run leaves the best agent so far
        _save(config, family, arguments, model, choice, time.perf_counter() - started)

    every = max(config.steps // max(config.evaluations, 1), 1)
    choice = ValidationChoice(_validation(family, arguments), every, keep)
    callbacks: list[BaseCallback] = [AccountTags(), Progress(config.steps, not config.quiet)]
    if config.evaluations:
        callbacks.append(choice)
    interrupted: KeyboardInterrupt | None = None
    _log.info(
        "training %s on %s, seed %d, %d lanes, %d steps, %s",
        config.algo,
        config.env,
        config.seed,
        lanes,
        config.steps,
        model.device,
    )
    try:
        model.learn(config.steps, callback=CallbackList(callbacks), log_interval=1, tb_log_name=config.algo)
    except KeyboardInterrupt as error:
        interrupted = error
        _log.warning("interrupted after %d steps: saving what is there", model.num_timesteps)
    if config.evaluations and interrupted is None:
        choice.check()  # the weights of the last update have not been scored yet
    seconds = time.perf_counter() - started
    path = _save(config, family, arguments, model, choice, seconds)
    env.close()
    if choice.best_state is not None:
        _log.info("chosen on validation: the weights after %d steps, Sharpe %.2f", choice.best_steps, choice.best_score)
    _log.info("saved %s after %.0f s (%.0f steps/s)", path, seconds, model.num_timesteps / seconds)
    if interrupted is not None:
        raise interrupted
    return path


def resolve(env: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    """Return the family of an id and its configuration for the training split.

    Raises:
        UnknownNameError: unknown id or argument.
    """
    module, _, name = env.rpartition(":")
    if name not in envs.ids() or module not in ("", "envs", "regimegym"):
        raise unknown("env", env, envs.ids())
    family = gym.spec(name).kwargs["family"]
    kind = family_of(family)
    if arguments.get("split", "train") != "train":
        raise ConfigError(f"split={arguments['split']!r}: training uses the split 'train'; choose dates with train_end")
    valid = tuple(kind.config.__dataclass_fields__)
    for key in arguments:
        if key not in valid:
            raise unknown(f"argument of {name}", key, valid)
    return family, kind.config(**{**arguments, "split": "train"})


def _validation(family: str, config: Any) -> Callable[[ActorCriticPolicy], dict[str, float]]:
    """Score = annual Sharpe ratio of the deterministic policy over the whole validation split."""
    game = game_of(family, replace(config, split="validation", episode_bars=None, random_start=None))

    def evaluate(policy: ActorCriticPolicy) -> dict[str, float]:
        policy.set_training_mode(False)
        curve = walk(_Candidate(policy, game.names), game).equity[:, 0]
        periods = game.bars.periods_per_year
        return {
            "score": metrics.sharpe(curve, periods),
            "total_return": metrics.total_return(curve),
            "max_drawdown": metrics.max_drawdown(curve),
        }

    return evaluate


def _save(
    config: TrainingConfig, family: str, arguments: Any, model: Any, choice: ValidationChoice, seconds: float
) -> Path:
    if choice.best_state is not None:
        model.policy.load_state_dict(choice.best_state)
    game = game_of(family, arguments)
    chosen = {"steps": choice.best_steps, "sharpe": choice.best_score} if choice.best_state is not None else None
    manifest = {
        "name": config.algo,
        "algo": config.algo,
        "policy": {key: config.settings.get(key, default) for key, default in POLICY.items()},
        "env": config.env.split(":")[-1],
        "family": family,
        "arguments": config.arguments,
        "observation_names": game.names,
        "seed": config.seed,
        "steps": int(model.num_timesteps),
        "lanes": config.lanes or algorithm(config.algo).lanes,
        "settings": {**algorithm(config.algo).settings, **config.settings},
        "reward_scale": REWARD_SCALE,
        "bars": {"source": game.bars.source, "hash": game.bars.hash},
        "training_range": [str(game.bars.close_time[game.first]), str(game.bars.close_time[game.last])],
        "chosen_on_validation": chosen,
        "validation_history": [
            {key: value if math.isfinite(value) else None for key, value in row.items()} for row in choice.history
        ],
        "seconds": round(seconds, 1),
        "device": str(model.device),
        "threads": config.threads,
    }
    return artefact.save(config.out, model.policy, game.details["scaler"], manifest)


def describe(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as plain values, for logs."""
    return {**asdict(config), "out": str(config.out)}
