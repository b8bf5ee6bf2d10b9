"""Training: native lanes, an SB3 algorithm, a checkpoint chosen on the validation split, one safe file at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy

from agents import artefact, checkpoint, metrics
from agents.agent import Agent
from agents.callbacks import AccountTags, Progress, RolloutLines, ValidationChoice
from agents.checkpoint import Checkpoint, Checkpoints, check_same
from agents.evaluation import scored_curve, walk
from agents.event_file import tensorboard_logger
from agents.provenance import versions
from agents.recipe import (
    REWARD_SCALE,
    TrainingConfig,
    describe,
    identity,
    located,
    manifest,
    resolve,
    whole_rollouts,
    whole_split,
)
from agents.sb3 import algorithm, build_model, check_actions
from agents.selection import trades
from agents.trial_registry import record_trial
from agents.vec_env import NativeVecEnv
from envs.make import family_of, game_of
from envs.simulation import Game
from markets import storage
from markets.errors import ConfigError
from markets.session_calendar import SESSIONS_PER_YEAR

LOCK = "training.lock"
REPLACED = "agent.previous.zip"  # what --overwrite leaves of the agent that stood in its folder
_log = logging.getLogger(__name__)


class _Candidate(Agent):
    """The policy in training, as an agent that reads every column."""

    def __init__(self, policy: BasePolicy, names: tuple[str, ...]) -> None:
        super().__init__()
        self.policy, self.reads = policy, names

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        """Return the policy's actions."""
        return self.policy.predict(columns, state, episode_start, deterministic)

    def act_masked(self, columns: Any, masks: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        """Return the policy's actions, legal ones where it was made to take masks."""
        if not isinstance(self.policy, MaskableActorCriticPolicy):
            return self.act(columns, state, episode_start, deterministic)
        return self.policy.predict(columns, state, episode_start, deterministic, action_masks=masks)


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
    config = replace(config, arguments=located(config.arguments))
    family, arguments = resolve(config.env, config.arguments)
    game = game_of(family, arguments)
    check_actions(config.algo, family_of(family).action_space(arguments), game.masks is not None)
    if game.details.get("optimistic"):
        _log.warning("fills are optimistic (fill=%r): no report of results accepts them", arguments.fill)
    run = identity(config, game)
    found = _found(config, run, config.out / checkpoint.FOLDER)
    env = _lanes(config)
    model = build_model(config.algo, env, config.seed, config.device, None, config.settings)
    with storage.locked(config.out / LOCK, "another training is writing there"):
        return _train(config, family, arguments, game, run, env, model, found)


def _train(
    config: TrainingConfig,
    family: str,
    arguments: Any,
    game: Game,
    run: dict[str, Any],
    env: NativeVecEnv,
    model: Any,
    found: Any,
) -> Path:
    """Train in a folder that is ours alone."""
    folder = config.out / checkpoint.FOLDER
    if found is None:
        checkpoint.remove(folder)  # of a run that this one replaces
        if (config.out / artefact.FILE).exists():  # its agent is no agent of this run, but nothing is lost
            (config.out / artefact.FILE).replace(config.out / REPLACED)
    done = found.state.steps if found else None
    model.set_logger(tensorboard_logger(config.out / "tensorboard", config.algo, done))

    def keep() -> None:  # a killed run leaves the best agent so far
        try:
            _save(config, game, model, choice, checkpoints.seconds)
        except OSError as error:
            _log.error("the best agent so far could not be saved, training goes on: %s", error)

    choice = ValidationChoice(_validation(family, arguments), max(config.steps // max(config.evaluations, 1), 1), keep)
    every = describe(config)["checkpoint_every"]
    checkpoints = Checkpoints(folder, run, versions(), config.steps, every, choice, found)
    if found is not None:
        checkpoint.restore(found, model, env, choice)
        _log.info("resumed from %s", found.path)
    _log.info(
        "training %s on %s, seed %d, %d lanes, %d steps, %s",
        config.algo, config.env, config.seed, env.num_envs, config.steps, model.device,
    )  # fmt: skip
    last, why = whole_rollouts(config, done or 0)
    if last > config.steps > (done or 0):
        _log.info("%s steps asked, %s trained: %s", f"{config.steps:,}", f"{last:,}", why)
    record_trial(run)  # a killed run was tried as well
    interrupted = _learn(config, model, choice, checkpoints)
    if interrupted is not None and model._last_obs is None:
        raise interrupted  # nothing was begun, so there is nothing to save
    path = _save(config, game, model, choice, checkpoints.seconds)
    env.close()
    record_trial(run, choice.best_score, SESSIONS_PER_YEAR if game.starts is not None else game.bars.periods_per_year)
    if choice.best_state is not None:
        _log.info("chosen on validation: the weights after %d steps, Sharpe %.2f", choice.best_steps, choice.best_score)
        if choice.best_score == 0.0:
            _log.warning("these weights hardly trade on validation: whatever traded there lost%s", _way_out(model))
    speed = (model.num_timesteps - (done or 0)) / max(checkpoints.seconds - (found.seconds if found else 0.0), 1e-9)
    _log.info("saved %s after %.0f s (%.0f steps/s)", path, checkpoints.seconds, speed)
    if interrupted is not None:
        raise interrupted
    return path


def _way_out(model: Any) -> str:
    """Return what to try where a policy of numbers learned to stay out: its noise pays costs in every bar."""
    if getattr(model, "use_sde", None) is not False or not isinstance(model.action_space, Box):
        return ""
    return "; exploration that holds what it tries pays fewer costs: --set use_sde=true"


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


def _found(config: TrainingConfig, run: dict[str, Any], folder: Path) -> Checkpoint | None:
    """Return the checkpoint to go on from: None without ``resume``, and where a run was killed before its first one."""
    if not config.resume:
        return None
    found = checkpoint.newest(folder)
    if found is None:
        _log.warning("there is no checkpoint in %s yet: starting from the beginning", folder)
        return None
    check_same(found, run, versions())
    if config.steps < found.state.steps and config.steps != found.planned:  # the last rollout goes beyond the plan
        raise ConfigError(f"steps={config.steps}: the run in {config.out} has {found.state.steps} steps already")
    return found


def _validation(family: str, config: Any) -> Callable[[BasePolicy], dict[str, float]]:
    """Score = annual Sharpe ratio of the deterministic policy over the whole validation split, of whole sessions where
    episodes are sessions; at most 0 where it hardly traded.

    The classes of :mod:`agents.selection` in one number: what earns is above 0, what is flat scores 0, what loses is
    below. So weights that do nothing are kept where all others lost, and only there, and one lucky bar is no skill.
    """
    game = game_of(family, whole_split(config, "validation"))

    def evaluate(policy: BasePolicy) -> dict[str, float]:
        policy.set_training_mode(False)
        walked = walk(_Candidate(policy, game.all_names), game)
        curve, periods = scored_curve(walked, 0, game.bars.periods_per_year)
        sharpe = metrics.sharpe(curve, periods)
        return {
            "score": sharpe if trades(metrics.simple_returns(curve)) else min(sharpe, 0.0),
            "total_return": metrics.total_return(curve),
            "max_drawdown": metrics.max_drawdown(walked.equity[:, 0]),
        }

    return evaluate


def _save(config: TrainingConfig, game: Game, model: Any, choice: ValidationChoice, seconds: float) -> Path:
    """Write the agent with the weights chosen so far, or the present ones where none were."""
    chosen = {"steps": choice.best_steps, "sharpe": choice.best_score} if choice.best_state is not None else None
    content = {
        **manifest(config, game),
        "steps": int(model.num_timesteps),
        "chosen_on_validation": chosen,
        "validation_history": choice.state()["history"],
        "seconds": round(seconds, 1),
        "device": str(model.device),
    }
    observed = None if game.signals is None else game.signals.models
    return artefact.save(config.out, model.policy, game.details["scaler"], content, choice.best_state, observed)
