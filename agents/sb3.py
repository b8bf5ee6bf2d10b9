"""Builders for Stable-Baselines3 algorithms, with defaults tuned for many native lanes on a CPU.

SB3's own defaults expect a few lanes and long rollouts. With hundreds of lanes short rollouts and large minibatches
keep the processor busy: PPO collects 256 lanes x 64 bars where the usual 2,048 bars of 8 lanes are as many, with
minibatches of 4,096 and 4 epochs instead of 64 and 10; learning rate 3e-4, discount 0.99 and the rest are as usual.
Hyperparameters that the user names replace these, one by one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.hyperparameters import RANGES, check_ranges
from markets.errors import ConfigError, unknown

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU, "silu": torch.nn.SiLU}
# Bars carry little signal and much noise: a larger net learns the training range by heart (in-sample growth of several
# hundredfold, losses on validation), so the default is small.
GAUSSIAN = {"net_arch": [16, 16], "activation_fn": "tanh", "log_std_init": -0.7}
LARGEST_REPLAY = 2 * 2**30  # bytes
# What training sets itself, or what no word on a command line can say.
OURS = (
    "self", "policy", "env", "seed", "verbose", "device", "policy_kwargs", "tensorboard_log", "_init_setup_model",
    "action_noise", "replay_buffer_class", "replay_buffer_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class Algorithm:
    """One row of ``ALGORITHMS``: class, policy class, lanes, hyperparameters and the policy's own arguments."""

    kind: type[BaseAlgorithm]
    policy: type[BasePolicy]
    lanes: int
    settings: dict[str, Any]
    net: dict[str, Any]

    @property
    def replays(self) -> bool:
        """True for an off-policy algorithm, which learns from a buffer of past steps."""
        return issubclass(self.kind, OffPolicyAlgorithm)

    @property
    def masked(self) -> bool:
        """True for an algorithm that chooses from the legal actions only, and so needs to be told which are."""
        return issubclass(self.kind, MaskablePPO)


ALGORITHMS = {
    "ppo": Algorithm(
        PPO, ActorCriticPolicy, 256,
        {"n_steps": 64, "batch_size": 4096, "n_epochs": 4, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95,
         "clip_range": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5},
        GAUSSIAN,
    ),
    "a2c": Algorithm(
        A2C, ActorCriticPolicy, 256,
        {"n_steps": 16, "learning_rate": 7e-4, "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0, "vf_coef": 0.5,
         "max_grad_norm": 0.5, "use_rms_prop": True, "normalize_advantage": True},
        GAUSSIAN,
    ),
    # Sequences are cut where episodes end and padded to the longest: rollouts as long as PPO's, fewer lanes.
    "recurrent_ppo": Algorithm(
        RecurrentPPO, RecurrentActorCriticPolicy, 64,
        {"n_steps": 64, "batch_size": 1024, "n_epochs": 4, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95,
         "clip_range": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5},
        {**GAUSSIAN, "net_arch": [16], "lstm_hidden_size": 32, "n_lstm_layers": 1, "shared_lstm": False,
         "enable_critic_lstm": True},
    ),
    # PPO over a list of choices. A choice is soon never tried again, hence the bonus for entropy: holding earns 0, and
    # most early trades lose their costs.
    "maskable_ppo": Algorithm(
        MaskablePPO, MaskableActorCriticPolicy, 256,
        {"n_steps": 64, "batch_size": 4096, "n_epochs": 4, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95,
         "clip_range": 0.2, "ent_coef": 0.005, "vf_coef": 0.5, "max_grad_norm": 0.5},
        {"net_arch": [16, 16], "activation_fn": "tanh"},
    ),
    # 16 bars in 64 lanes fill the buffer with 1,024 steps before 16 updates: SB3's one update a bar would spend all the
    # time in the networks. 100,000 steps of 41 columns are 35 MB, which a checkpoint can carry.
    "tqc": Algorithm(
        TQC, TQCPolicy, 64,
        {"train_freq": 16, "gradient_steps": 16, "batch_size": 256, "buffer_size": 100_000, "learning_starts": 10_000,
         "learning_rate": 3e-4, "gamma": 0.99, "tau": 0.005, "top_quantiles_to_drop_per_net": 2, "ent_coef": "auto"},
        {"net_arch": [64, 64], "activation_fn": "relu", "n_quantiles": 25, "n_critics": 2},
    ),
}  # fmt: skip


def algorithm(name: str) -> Algorithm:
    """Return a row of ``ALGORITHMS``.

    Raises:
        UnknownNameError: no such algorithm.
    """
    if name not in ALGORITHMS:
        raise unknown("algo", name, ALGORITHMS)
    return ALGORITHMS[name]


def build_model(
    name: str,
    env: VecEnv,
    seed: int,
    device: str = "auto",
    log_dir: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Build a model of algorithm ``name`` on a vector environment.

    Args:
        settings: hyperparameters that replace the defaults; those in the row's ``net`` go to the policy.

    Raises:
        UnknownNameError: a hyperparameter that the algorithm does not have.
        ConfigError: a value it cannot take, or a device that is not there.
    """
    row = algorithm(name)
    check_device(device)
    check_settings(name, settings or {})
    check_actions(name, env.action_space, env.has_attr("action_masks"))
    given = dict(settings or {})
    net = {key: given.pop(key, default) for key, default in row.net.items()}
    chosen = {**row.settings, **given}
    if row.replays:
        _check_replay(chosen["buffer_size"], env)
    elif "batch_size" in chosen and "batch_size" not in given:  # few lanes fill no default minibatch
        chosen["batch_size"] = min(chosen["batch_size"], chosen["n_steps"] * env.num_envs)
    try:
        return row.kind(
            row.policy, env, seed=seed, device=device, tensorboard_log=log_dir, verbose=0,
            policy_kwargs=policy_arguments(name, net), **chosen,
        )  # fmt: skip
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with settings={settings!r}: {error}") from error


def check_actions(name: str, space: gym.Space[Any], masks: bool) -> None:
    """Check that an algorithm can act in an environment.

    Args:
        masks: whether the environment says which actions are legal.

    Raises:
        ConfigError: it cannot; the message names those that can.
    """
    why = _why_not(name, space, masks)
    if why:
        valid = [other for other in ALGORITHMS if not _why_not(other, space, masks)]
        raise ConfigError(f"algo={name!r} {why}; use one of: {', '.join(valid) or 'none'}")


def _why_not(name: str, space: gym.Space[Any], masks: bool) -> str:
    row = algorithm(name)
    if row.replays and not isinstance(space, gym.spaces.Box):
        return f"needs actions that are real numbers, and this environment's are {space}"
    if row.masked and not masks:
        return f"needs an environment with action_masks(), and this one (actions {space}) has none"
    return ""


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check names and values of hyperparameters and policy arguments, as far as that needs no environment.

    Raises:
        UnknownNameError: a hyperparameter that the algorithm does not have.
        ConfigError: a value it cannot take.
    """
    row, valid = algorithm(name), hyperparameters(name)
    given = {key: value for key, value in settings.items() if key not in row.net}
    defaults = {key: row.settings.get(key, default) for key, default in valid.items()}
    for key, value in given.items():
        if key not in valid:
            raise unknown(f"hyperparameter of {name}", key, [*valid, *row.net])
        if key not in RANGES and _is_number(defaults[key]) and not _is_number(value):
            raise ConfigError(f"hyperparameter {key}={value!r} of {name} must be a number, as {defaults[key]!r} is")
    check_ranges(name, given, defaults)
    policy_arguments(name, net_settings(name, dict(settings)))


def hyperparameters(name: str) -> dict[str, Any]:
    """Return the hyperparameters of an algorithm that a user can set, with SB3's own defaults."""
    parameters = inspect.signature(algorithm(name).kind.__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in OURS}


def net_settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's own arguments as plain values: the row's defaults with those of ``settings``."""
    return {key: settings.get(key, default) for key, default in algorithm(name).net.items()}


def check_device(device: str) -> None:
    """Raise ``ConfigError`` unless torch can compute on ``device``; SB3 itself would fall back to the CPU unsaid."""
    if device == "auto":
        return
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device={device!r} is not on this machine: {str(error).splitlines()[0]}") from error


def policy_arguments(name: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Turn names and numbers into the constructor arguments of the policy of algorithm ``name``.

    Raises:
        UnknownNameError: unknown argument or activation.
        ConfigError: a value of another kind than the default's.
    """
    row = algorithm(name)
    for key in plain:
        if key not in row.net:
            raise unknown(f"policy argument of {name}", key, row.net)
    if plain["activation_fn"] not in ACTIVATIONS:
        raise unknown("activation_fn", plain["activation_fn"], ACTIVATIONS)
    layers = plain["net_arch"]
    for sizes in layers.values() if isinstance(layers, dict) else [layers]:
        if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
            raise ConfigError(f"net_arch={layers!r} must be a list of layer sizes, such as [64, 64]")
    for key, default in row.net.items():
        value = plain[key]
        if type(default) is float and not _is_number(value):
            raise ConfigError(f"{key}={value!r} must be a number")
        if type(default) is int and not (type(value) is int and value > 0):
            raise ConfigError(f"{key}={value!r} must be a whole number of at least 1")
        if type(default) is bool and type(value) is not bool:
            raise ConfigError(f"{key}={value!r} must be True or False")
    return {**plain, "activation_fn": ACTIVATIONS[plain["activation_fn"]]}


def _check_replay(size: Any, env: VecEnv) -> None:
    """Refuse a replay buffer that no machine of ours can hold, before the system is asked for the memory."""
    numbers = 2 * math.prod(env.observation_space.shape or ()) + math.prod(env.action_space.shape or ()) + 3
    if not 1 <= size <= LARGEST_REPLAY / (4 * numbers):
        raise ConfigError(
            f"buffer_size={size!r} must be from 1 to {int(LARGEST_REPLAY / (4 * numbers)):,}: "
            f"a step takes {4 * numbers} bytes, and the buffer may take {LARGEST_REPLAY / 2**30:g} GiB"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
