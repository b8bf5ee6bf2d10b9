"""Saved agents: one file, ``agent.zip``, with a JSON manifest, the policy as safetensors and the feature scaler.

Nothing is unpickled: the policy class comes from a closed table and its weights are plain tensors. How the file is
written and read is in :mod:`markets.storage`. An agent knows the environment it was trained on and refuses another one.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stable_baselines3.common.policies import BasePolicy

from agents import fit
from agents.agent import Agent, Observation
from agents.differences import differences
from agents.provenance import versions
from agents.sb3 import algorithm, policy_arguments
from encoders.signals import files as signal_files
from encoders.signals.fitted import MOST, SignalSet
from envs.make import family_of
from envs.simulation import Game
from markets import storage
from markets.errors import ArtefactError, ConfigError
from markets.features import FeatureScaler

FILE = "agent.zip"
FORMAT = 2
OTHER_FILES = {"signal.zip": "agents.signals.agent", "ensemble.zip": "agents.ensemble_artefact"}
POLICY, SCALER = "policy.safetensors", "scaler.json"
KINDS = {
    "name": str, "algo": str, "policy": dict, "settings": dict, "observation": dict, "action": dict, "requires": dict,
    "env": str, "arguments": dict, "seed": int, "versions": dict,
}  # fmt: skip
_log = logging.getLogger(__name__)


class PolicyAgent(Agent):
    """A trained SB3 policy that selects its observation columns by name; what :func:`load` returns.

    Attributes:
        manifest: how it was trained (id, arguments, seed, steps, versions).
        scaler: the feature scaler it was trained with. observed: the fitted signals it was trained with, None without.
    """

    def __init__(
        self, policy: BasePolicy, manifest: Mapping[str, Any], scaler: FeatureScaler, observed: SignalSet | None = None
    ) -> None:
        super().__init__()
        self.observed = observed
        self.policy = policy
        self.manifest = manifest
        self.scaler = scaler
        self.name = str(manifest["name"])
        self.reads = tuple(manifest["observation"]["names"])
        self._masked = algorithm(manifest["algo"]).masked
        self.bind(self.reads)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return the policy's actions within the action space, and a recurrent policy's next state.

        ``state`` None begins anew; so does each lane whose ``episode_start`` is true.

        Raises:
            ConfigError: a recurrent policy is given a state that it did not return for as many lanes; or a policy that
                was trained with masks is given none: it never learned what not to choose.
        """
        if self._masked:
            raise ConfigError(
                f"{self.name!r} was trained with action masks and acts with them only: pass "
                "action_masks=env.get_wrapper_attr('action_masks')(), or those of the vector env"
            )
        self._check_state(state, len(columns))
        actions, state = self.policy.predict(columns, state, episode_start, deterministic)
        return self._typed(actions), state

    def act_masked(
        self, columns: Observation, masks: NDArray[np.bool_], state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return legal actions; a policy that was trained without masks answers as it does without.

        Raises:
            ConfigError: masks of another width than the action space has choices, or a number without a legal one.
        """
        if not self._masked:
            return self.act(columns, state, episode_start, deterministic)
        choices = self.manifest["action"]["choices"]
        ends = np.cumsum(choices)
        if masks.shape[1] != ends[-1] or not all(part.any(axis=1).all() for part in np.split(masks, ends[:-1], axis=1)):
            raise ConfigError(
                f"action_masks are of shape {masks.shape}; {self.name!r} needs {int(ends[-1])} columns, with a legal "
                f"choice among the values of each number: {choices}"
            )
        policy: Any = self.policy  # of the masked kind, whose predict takes one argument more
        actions, state = policy.predict(columns, state, episode_start, deterministic, action_masks=masks)
        return self._typed(actions), state

    def _typed(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return choices as whole numbers, as their spaces want them, and targets as float32."""
        return np.asarray(actions, dtype=np.int64 if "choices" in self.manifest["action"] else np.float32)

    def _check_state(self, state: Any, lanes: int) -> None:
        shape = getattr(self.policy, "lstm_hidden_state_shape", None)
        if state is None or shape is None:
            return
        wanted = (shape[0], lanes, shape[2])
        parts = state if isinstance(state, tuple) else ()
        if [np.shape(part) for part in parts] != [wanted, wanted]:
            given = f"shapes {[np.shape(part) for part in parts]}" if parts else f"{type(state).__name__} {state!r:.60}"
            raise ConfigError(
                f"state is {given}; {self.name!r} remembers two arrays of shape {wanted}: pass what its last predict "
                "returned, or None to begin anew"
            )

    def check(
        self, env: Game | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any], beside_encoder: bool = False
    ) -> None:
        """Raise unless the policy means in ``env`` what it meant in training; columns may be more, and reordered.

        Compared: name, bounds and number type of each column it reads, the action space, the family, the leverage
        arguments, the feature scaler, the encoder and the signals.

        Args:
            beside_encoder: whether a policy that was trained without an encoder, or without signals, may act where
                there are some.

        Raises:
            ArtefactError: lists every item that differs, with what is expected and what is found.
        """
        found = fit.description(env, self.reads)
        if beside_encoder and self.manifest["encoder"] is None:
            found["encoder"] = None
        if beside_encoder and self.observed is None:
            found["signals"] = {}
        lines = differences(fit.expectation(self.manifest, self.scaler), found)
        if lines:
            lines = fit.told(lines, self.manifest)
            raise ArtefactError(
                f"agent {self.name!r} was trained on another environment than the one given:\n  " + "\n  ".join(lines)
            )


def save(
    directory: str | Path, policy: BasePolicy, scaler: FeatureScaler, manifest: dict[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None, observed: SignalSet | None = None,
) -> Path:  # fmt: skip
    """Write ``directory/agent.zip`` and return its path.

    Args:
        manifest: what the caller knows: name, algo, policy settings, env id and arguments, observation names and so on;
            spaces, versions and hashes are added here.
        weights: other weights than the policy's present ones.
        observed: the fitted signals whose columns the policy saw.
    """
    tensors = policy.state_dict() if weights is None else weights
    members = {
        POLICY: save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()}),
        SCALER: json.dumps(scaler.to_json(), indent=1).encode(),
    }
    content = {key: value for key, value in manifest.items() if key not in ("observation_names", "sha256")}
    content |= {
        "format": FORMAT,
        "observation": {"names": list(manifest["observation_names"]), **fit.plain_space(policy.observation_space)},
        "action": fit.plain_space(policy.action_space),
        "versions": versions(),
    }
    if observed is not None:
        content["signals"], parts = signal_files.told(observed.models)
        members |= parts
    return storage.write(Path(directory) / FILE, content, members)


def load(path: str | Path, device: str = "cpu") -> Any:
    """Load the agent in ``path`` (the file or its directory); ``load(path).predict(obs)`` acts.

    A trained policy, a signal (``signal.zip``) or an ensemble (``ensemble.zip``), told apart by the file's name.

    One that was trained with masks of legal actions acts with them only: ``predict(obs, action_masks=masks)``.

    Other versions of the libraries than it was trained with are said in a warning.

    Raises:
        ArtefactError: a member is missing, altered, of another format or does not fit; the member is named.
        ConfigError: ``path`` is no path.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"path={path!r} must be the name of an agent's folder or of its {FILE}")
    place = Path(path)
    for name, module in OTHER_FILES.items():
        file = place if place.name == name else place / name
        if file.is_file() and not (place / FILE).is_file():
            return importlib.import_module(module).load(file)
    return load_policy(place, device)


def load_policy(path: Path, device: str = "cpu") -> PolicyAgent:
    """Load a trained policy from ``path``; see :func:`load`."""
    file = path if path.suffix == ".zip" else path / FILE
    if not file.is_file():
        raise ArtefactError(f"{path}: no {FILE} there; {_instead(path)}")
    manifest, members = storage.read(file, [POLICY, SCALER], signal_files.places(MOST))
    with storage.naming(file, storage.MANIFEST):
        _check_manifest(manifest)
        signals = signal_files.retold(manifest["signals"], members) if "signals" in manifest else []
        observed = SignalSet(signals) if signals else None
    with storage.naming(file, SCALER):
        scaler = _scaler_kind(manifest).from_json(json.loads(members[SCALER]))
    with storage.naming(file, storage.MANIFEST):
        policy = _empty_policy(manifest)
    with storage.naming(file, POLICY, SafetensorError):
        _fill(policy, load_tensors(members[POLICY]))
    policy.to(device)
    policy.set_training_mode(False)
    other = differences(manifest["versions"], versions())
    if other:
        _log.warning("%s was saved with other versions, its actions may differ: %s", file, "; ".join(other))
    return PolicyAgent(policy, manifest, scaler, observed)


def _instead(path: Path) -> str:
    """Say what to do where there is no agent."""
    if path.is_file():
        return f"it is a file, and an agent is a folder that regimegym train wrote, or its {FILE}"
    if path.is_dir() and any((path / "checkpoints").glob("checkpoint-*.zip")):
        return "its training has not saved one yet: go on with regimegym train ... --resume"
    return f"train one with: regimegym train --out {path.parent if path.suffix == '.zip' else path} ..."


def _scaler_kind(manifest: Mapping[str, Any]) -> type[FeatureScaler]:
    """Return the kind of scaler that the family of a manifest uses."""
    kind: type[FeatureScaler] = family_of(manifest["requires"]["family"]).scaler
    return kind


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raise unless the manifest has every field of its kind."""
    if manifest["format"] != FORMAT:
        raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
    for key, kind in KINDS.items():
        if not isinstance(manifest[key], kind):
            raise ArtefactError(f"{key} is {manifest[key]!r}, expected {kind.__name__}")
    encoder = manifest["encoder"]
    if encoder is not None and not {"name", "sha256"} <= set(encoder):
        raise ArtefactError(f"encoder is {encoder!r}, expected null, or name and sha256")
    observation = manifest["observation"]
    if len(observation["names"]) != len(observation["low"]):
        raise ArtefactError(f"{len(observation['names'])} observation names for {len(observation['low'])} columns")


def _empty_policy(manifest: Mapping[str, Any]) -> BasePolicy:
    """Build the policy of the manifest's table row, spaces and settings, with weights still to be filled."""
    row = algorithm(manifest["algo"])
    spaces = [fit.space(manifest[part]) for part in ("observation", "action")]
    # State-dependent noise has weights of its own.
    noise: dict[str, Any] = {"use_sde": True} if manifest["settings"].get("use_sde", False) else {}
    arguments = policy_arguments(manifest["algo"], manifest["policy"])
    return row.policy(spaces[0], spaces[1], _no_schedule, **noise, **arguments)


def _fill(policy: BasePolicy, tensors: dict[str, torch.Tensor]) -> None:
    """Load weights strictly: the same names, shapes and number types, every number finite."""
    wanted = policy.state_dict()
    for name in sorted(set(wanted) ^ set(tensors)):
        raise ArtefactError(f"tensor {name!r} is {'missing' if name in wanted else 'unknown to this policy'}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise ArtefactError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"expected {wanted[name].dtype} {tuple(wanted[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ArtefactError(f"tensor {name!r} holds a number that is not finite")
    policy.load_state_dict(tensors, strict=True)


def _no_schedule(_: float) -> float:
    return 0.0
