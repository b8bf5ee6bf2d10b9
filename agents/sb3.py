"""Builders for Stable-Baselines3 algorithms, with defaults tuned for many native lanes on a CPU.

SB3's own defaults expect a few lanes and long rollouts. With hundreds of lanes short rollouts and large minibatches
keep the processor busy; hyperparameters that the user names replace these, one by one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from markets.errors import ConfigError, unknown

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU, "silu": torch.nn.SiLU}
# Bars carry little signal and much noise: a larger net learns the training range by heart (in-sample growth of several
# hundredfold, losses on validation), so the default is small.
POLICY = {"net_arch": [16, 16], "activation_fn": "tanh", "log_std_init": -0.7}


@dataclass(frozen=True)
class Algorithm:
    """One row of ``ALGORITHMS``: class, policy class and defaults."""

    kind: type[OnPolicyAlgorithm]
    policy: type[ActorCriticPolicy]
    lanes: int
    settings: dict[str, Any]


ALGORITHMS = {
    "ppo": Algorithm(
        PPO, ActorCriticPolicy, 256,
        {"n_steps": 64, "batch_size": 4096, "n_epochs": 4, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95,
         "clip_range": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5},
    ),
    "a2c": Algorithm(
        A2C, ActorCriticPolicy, 256,
        {"n_steps": 16, "learning_rate": 7e-4, "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0, "vf_coef": 0.5,
         "max_grad_norm": 0.5, "use_rms_prop": True, "normalize_advantage": True},
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
) -> OnPolicyAlgorithm:
    """Build a model of algorithm ``name`` on a vector environment.

    Args:
        settings: hyperparameters that replace the defaults; ``net_arch``, ``activation_fn`` and ``log_std_init`` go to
            the policy.

    Raises:
        UnknownNameError: a hyperparameter that the algorithm does not have.
        ConfigError: a value it cannot take, or a device that is not there.
    """
    row = algorithm(name)
    given = dict(settings or {})
    check_device(device)
    policy_kwargs = {key: given.pop(key, default) for key, default in POLICY.items()}
    valid = hyperparameters(name)
    for key, value in given.items():
        if key not in valid:
            raise unknown(f"hyperparameter of {name}", key, [*valid, *POLICY])
        default = row.settings.get(key, valid[key])
        if _is_number(default) and not _is_number(value):
            raise ConfigError(f"hyperparameter {key}={value!r} of {name} must be a number, as {default!r} is")
    chosen = {**row.settings, **given}
    if "batch_size" in chosen and "batch_size" not in given:  # few lanes fill no default minibatch
        chosen["batch_size"] = min(chosen["batch_size"], chosen["n_steps"] * env.num_envs)
    try:
        model: OnPolicyAlgorithm = row.kind(
            row.policy, env, seed=seed, device=device, tensorboard_log=log_dir, verbose=0,
            policy_kwargs=policy_arguments(policy_kwargs), **chosen,
        )  # fmt: skip
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with settings={settings!r}: {error}") from error
    return model


def hyperparameters(name: str) -> dict[str, Any]:
    """Return the hyperparameters of an algorithm that a user can set, with SB3's own defaults."""
    ours = (
        "self",
        "policy",
        "env",
        "seed",
        "verbose",
        "device",
        "policy_kwargs",
        "tensorboard_log",
        "_init_setup_model",
    )
    parameters = inspect.signature(algorithm(name).kind.__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in ours}


def check_device(device: str) -> None:
    """Raise ``ConfigError`` unless torch can compute on ``device``; SB3 itself would fall back to the CPU unsaid."""
    if device == "auto":
        return
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device={device!r} is not on this machine: {str(error).splitlines()[0]}") from error


def policy_arguments(plain: dict[str, Any]) -> dict[str, Any]:
    """Turn names and numbers into the policy's constructor arguments.

    Raises:
        UnknownNameError: unknown activation.
        ConfigError: layers that are not whole numbers, or a deviation that is no number.
    """
    if plain["activation_fn"] not in ACTIVATIONS:
        raise unknown("activation_fn", plain["activation_fn"], ACTIVATIONS)
    layers = plain["net_arch"]
    for sizes in layers.values() if isinstance(layers, dict) else [layers]:
        if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
            raise ConfigError(f"net_arch={layers!r} must be a list of layer sizes, such as [64, 64]")
    if not _is_number(plain["log_std_init"]):
        raise ConfigError(f"log_std_init={plain['log_std_init']!r} must be a number")
    return {**plain, "activation_fn": ACTIVATIONS[plain["activation_fn"]]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
