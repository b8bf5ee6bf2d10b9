"""Training: native lanes, an SB3 algorithm, a checkpoint chosen on the validation split, one safe file at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy

import envs
from agents import artefact, checkpoint, fit, metrics
from agents.agent import Agent
from agents.callbacks import AccountTags, Progress, RolloutLines, ValidationChoice
from agents.checkpoint import Checkpoint, Checkpoints, check_same
from agents.evaluation import walk
from agents.event_file import tensorboard_logger
from agents.provenance import commit, versions
from agents.sb3 import algorithm, build_model, net_settings
from agents.vec_env import NativeVecEnv
from envs.make import family_of, game_of
from envs.simulation import Game
from markets.errors import ConfigError, unknown

CHECKPOINT_EVERY = 100_000  # steps
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
        checkpoint_every: steps between training checkpoints; 0 takes 100,000.
        resume: go on from the newest checkpoint in ``out``; from the beginning where there is none yet.
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
    checkpoint_every: int = 0
    resume: bool = False
    device: str = "auto"
    threads: int = 1
    quiet: bool = False

    def __post_init__(self) -> None:
        algorithm(self.algo)
        for name, least in (
            ("steps", 1), ("seed", 0), ("lanes", 0), ("evaluations", 0), ("threads", 1), ("checkpoint_every", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
                raise ConfigError(f"{name}={value!r} must be a whole number from {least} to {2**32 - 1}")


class _Candidate(Agent):
    """The policy in training, as an agent that reads every column."""

    def __init__(self, policy: BasePolicy, names: tuple[str, ...]) -> None:
        super().__init__()
        self.policy, self.reads = policy, names

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        """Return the policy's actions."""
        return self.policy.predict(columns, state, episode_start, deterministic)


def train(config: TrainingConfig) -> Path:
    """Train, keep the weights that score best on validation, and return the path of the saved agent.

    A snapshot is written at even intervals and at the end; with ``resume`` the run goes on from the newest. Ctrl-C
    stops training, writes the state at the beginning of the present rollout and saves what is best so far; it is raised
    again after that. A second one stops the saving too, which leaves the files of before.

    Raises:
        ConfigError: arguments that cannot work, or that differ from those of the run to resume.
        ArtefactError: no checkpoint of the run to resume is complete.
    """
    torch.set_num_threads(config.threads)
    family, arguments = resolve(config.env, config.arguments)
    game = game_of(family, arguments)
    identity, folder = _identity(config, game), config.out / checkpoint.FOLDER
    found = _found(config, identity, folder)
    env = _lanes(config)
    model = build_model(config.algo, env, config.seed, config.device, None, config.settings)
    if found is None:
        checkpoint.remove(folder)  # of a run that this one replaces
    done = found.state.steps if found else None
    model.set_logger(tensorboard_logger(config.out / "tensorboard", config.algo, done))

    def keep() -> None:  # a killed run leaves the best agent so far
        try:
            _save(config, game, model, choice, checkpoints.seconds)
        except OSError as error:
            _log.error("the best agent so far could not be saved, training goes on: %s", error)

    choice = ValidationChoice(_validation(family, arguments), max(config.steps // max(config.evaluations, 1), 1), keep)
    every = config.checkpoint_every or CHECKPOINT_EVERY
    checkpoints = Checkpoints(folder, identity, versions(), every, choice, found)
    if found is not None:
        checkpoint.restore(found, model, env, choice)
        _log.info("resumed from %s", found.path)
    _log.info(
        "training %s on %s, seed %d, %d lanes, %d steps, %s",
        config.algo, config.env, config.seed, env.num_envs, config.steps, model.device,
    )  # fmt: skip
    interrupted = _learn(config, model, choice, checkpoints)
    if interrupted is not None and model._last_obs is None:
        raise interrupted  # nothing was begun, so there is nothing to save
    path = _save(config, game, model, choice, checkpoints.seconds)
    env.close()
    if choice.best_state is not None:
        _log.info("chosen on validation: the weights after %d steps, Sharpe %.2f", choice.best_steps, choice.best_score)
    speed = (model.num_timesteps - (done or 0)) / max(checkpoints.seconds - (found.seconds if found else 0.0), 1e-9)
    _log.info("saved %s after %.0f s (%.0f steps/s)", path, checkpoints.seconds, speed)
    if interrupted is not None:
        raise interrupted
    return path


def _learn(
    config: TrainingConfig, model: Any, choice: ValidationChoice, checkpoints: Checkpoints
) -> KeyboardInterrupt | None:
    """Train to the end or to an interruption, which is returned, and write the last checkpoint."""
    callbacks: list[BaseCallback] = [AccountTags(), Progress(config.steps, not config.quiet)]
    if algorithm(config.algo).replays:
        callbacks.append(RolloutLines())
    if config.evaluations:
        callbacks.append(choice)
    callbacks.append(checkpoints)  # after the choice: what is written down holds its verdict
    resumed = model._last_obs is not None
    if model.num_timesteps >= config.steps:
        _log.info("%d steps are done already, nothing is left to train", model.num_timesteps)
        return None
    try:
        model.learn(
            config.steps - model.num_timesteps, callback=CallbackList(callbacks), reset_num_timesteps=not resumed,
            log_interval=None if algorithm(config.algo).replays else 1,
        )  # fmt: skip
        if config.evaluations:
            choice.check()  # the weights of the last update have not been scored yet
        checkpoints.note()
        checkpoints.write()
    except KeyboardInterrupt as interrupted:
        _log.warning("interrupted after %d steps: saving what is there", model.num_timesteps)
        checkpoints.write()
        return interrupted
    return None


def _lanes(config: TrainingConfig) -> NativeVecEnv:
    vector = gym.make_vec(
        config.env,
        num_envs=config.lanes or algorithm(config.algo).lanes,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP.value,
        info="none",
        **{**config.arguments, "split": "train"},
    )
    return NativeVecEnv(vector, REWARD_SCALE)


def _identity(config: TrainingConfig, game: Game) -> dict[str, Any]:
    """Return what makes a run this run; one that is resumed must have the same."""
    row = algorithm(config.algo)
    identity = {
        "env": config.env.split(":")[-1],
        "algo": config.algo,
        "seed": config.seed,
        "arguments": config.arguments,
        "settings": {**row.settings, **config.settings},
        "policy": net_settings(config.algo, config.settings),
        "lanes": config.lanes or row.lanes,
        "evaluations": config.evaluations,
        "bars": game.bars.hash,
        "scaler": game.details["scaler"].hash,
    }
    try:
        return dict(json.loads(json.dumps(identity)))  # as it will be read back
    except TypeError as error:
        raise ConfigError(f"arguments and settings must be names and numbers that JSON can hold: {error}") from error


def _found(config: TrainingConfig, identity: dict[str, Any], folder: Path) -> Checkpoint | None:
    """Return the checkpoint to go on from: None without ``resume``, and where a run was killed before its first one."""
    if not config.resume:
        return None
    found = checkpoint.newest(folder)
    if found is None:
        _log.info("there is no checkpoint in %s yet: starting from the beginning", folder)
        return None
    check_same(found, identity, versions())
    if found.state.steps > config.steps:
        raise ConfigError(f"steps={config.steps}: the run in {config.out} has {found.state.steps} steps already")
    return found


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


def _validation(family: str, config: Any) -> Callable[[BasePolicy], dict[str, float]]:
    """Score = annual Sharpe ratio of the deterministic policy over the whole validation split."""
    game = game_of(family, _whole(config, "validation"))

    def evaluate(policy: BasePolicy) -> dict[str, float]:
        policy.set_training_mode(False)
        curve = walk(_Candidate(policy, game.names), game).equity[:, 0]
        periods = game.bars.periods_per_year
        return {
            "score": metrics.sharpe(curve, periods),
            "total_return": metrics.total_return(curve),
            "max_drawdown": metrics.max_drawdown(curve),
        }

    return evaluate


def _save(config: TrainingConfig, game: Game, model: Any, choice: ValidationChoice, seconds: float) -> Path:
    """Write the agent with the weights chosen so far, or the present ones where none were."""
    chosen = {"steps": choice.best_steps, "sharpe": choice.best_score} if choice.best_state is not None else None
    row = algorithm(config.algo)
    manifest = {
        "name": config.algo,
        "algo": config.algo,
        "policy": net_settings(config.algo, config.settings),
        "env": config.env.split(":")[-1],
        "family": game.recipe[0],
        "arguments": config.arguments,
        "requires": fit.requirements(game),
        "encoder": fit.encoder(game),
        "observation_names": game.names,
        "seed": config.seed,
        "steps": int(model.num_timesteps),
        "lanes": config.lanes or row.lanes,
        "settings": {**row.settings, **config.settings},
        "reward_scale": REWARD_SCALE,
        "bars": {"source": game.bars.source, "hash": game.bars.hash},
        "splits": _splits(game),
        "chosen_on_validation": chosen,
        "validation_history": choice.state()["history"],
        "seconds": round(seconds, 1),
        "device": str(model.device),
        "threads": config.threads,
        "git": commit(),
    }
    return artefact.save(config.out, model.policy, game.details["scaler"], manifest, choice.best_state)


def _splits(game: Game) -> dict[str, list[str]]:
    """Return the times of the first and the last observation of each split the training looked at."""
    family, config = game.recipe
    other = game_of(family, _whole(config, "validation"))
    return {
        name: [str(part.bars.close_time[part.first]), str(part.bars.close_time[part.last])]
        for name, part in (("train", game), ("validation", other))
    }


def _whole(config: Any, split: str) -> Any:
    return replace(config, split=split, episode_bars=None, random_start=None)


def describe(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as plain values, for logs."""
    return {**asdict(config), "out": str(config.out)}
