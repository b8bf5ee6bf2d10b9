"""Saved agents: one file, ``agent.zip``, with a JSON manifest, the policy as safetensors and the feature scaler.

Nothing is unpickled: the policy class comes from a closed table and its weights are plain tensors. The file is written
under a temporary name and moved into place, so that a kill leaves the old agent or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.agent import Agent, Observation
from agents.sb3 import algorithm, policy_arguments
from markets.errors import ArtefactError
from markets.features import FeatureScaler

FILE = "agent.zip"
FORMAT = 1
MEMBERS = ("manifest.json", "policy.safetensors", "scaler.json")
LARGEST = 256 * 2**20  # bytes of one member
LIBRARIES = ("regimegym", "gymnasium", "stable-baselines3", "torch", "numpy", "pandas", "numba")


class PolicyAgent(Agent):
    """A trained SB3 policy that selects its observation columns by name; what :func:`load` returns.

    Attributes:
        manifest: how it was trained (id, arguments, seed, steps, versions).
        scaler: the feature scaler it was trained with.
    """

    def __init__(self, policy: ActorCriticPolicy, manifest: Mapping[str, Any], scaler: FeatureScaler) -> None:
        super().__init__()
        self.policy = policy
        self.manifest = manifest
        self.scaler = scaler
        self.name = str(manifest["name"])
        self.reads = tuple(manifest["observation"]["names"])
        self.bind(self.reads)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the policy's actions, clipped to the action space."""
        actions, state = self.policy.predict(columns, state, episode_start, deterministic)
        return np.asarray(actions, dtype=np.float32), state


def save(directory: str | Path, policy: ActorCriticPolicy, scaler: FeatureScaler, manifest: dict[str, Any]) -> Path:
    """Write ``directory/agent.zip`` and return its path.

    Args:
        manifest: what the caller knows: name, algo, policy settings, env id and arguments, observation names and so on;
            spaces, versions and hashes are added here.
    """
    members = {
        "policy.safetensors": save_tensors({k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()}),
        "scaler.json": json.dumps(scaler.to_json(), indent=1).encode(),
    }
    content = {
        **manifest,
        "format": FORMAT,
        "observation": {
            "names": list(manifest["observation_names"]),
            "low": policy.observation_space.low.tolist(),  # type: ignore[attr-defined]
            "high": policy.observation_space.high.tolist(),  # type: ignore[attr-defined]
        },
        "action": {
            "low": policy.action_space.low.tolist(),  # type: ignore[attr-defined]
            "high": policy.action_space.high.tolist(),  # type: ignore[attr-defined]
        },
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }
    content.pop("observation_names")
    members = {"manifest.json": json.dumps(content, indent=1, allow_nan=False).encode(), **members}
    path = Path(directory) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{FILE}.*.tmp"):
        if not _is_alive(leftover.name.split(".")[-2]):  # of a process that was killed while it saved
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path, device: str = "cpu") -> PolicyAgent:
    """Load the agent in ``path`` (the file or its directory); ``load(path).predict(obs)`` acts.

    Raises:
        ArtefactError: a member is missing, altered, of another format or does not fit; the member is named.
    """
    file = Path(path) if Path(path).suffix == ".zip" else Path(path) / FILE
    members = _read(file)
    with _naming(file, "manifest.json"):
        manifest = json.loads(members["manifest.json"])
        _check_manifest(manifest)
    for name in MEMBERS[1:]:
        if hashlib.sha256(members[name]).hexdigest() != manifest["sha256"][name]:
            raise ArtefactError(f"{file}: {name} was altered or is incomplete (its hash differs from the manifest's)")
    with _naming(file, "scaler.json"):
        scaler = FeatureScaler.from_json(json.loads(members["scaler.json"]))
    with _naming(file, "manifest.json"):
        policy = _empty_policy(manifest)
    with _naming(file, "policy.safetensors"):
        _fill(policy, load_tensors(members["policy.safetensors"]))
    policy.to(device)
    policy.set_training_mode(False)
    return PolicyAgent(policy, manifest, scaler)


@contextmanager
def _naming(file: Path, member: str) -> Iterator[None]:
    """Turn what goes wrong inside into an error that names the file and its member."""
    try:
        yield
    except KeyError as error:
        raise ArtefactError(f"{file}: {member} lacks {error}") from error
    except (TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"{file}: {member}: {error}") from error


def _read(file: Path) -> dict[str, bytes]:
    """Read the known members by name, with size limits; nothing is extracted to disk."""
    if not file.is_file():
        raise ArtefactError(f"{file}: no agent there; train one with: regimegym train --out {file.parent}")
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
            for name in MEMBERS:
                if name not in sizes:
                    raise ArtefactError(f"{file}: {name} is missing")
                if sizes[name] > LARGEST:
                    raise ArtefactError(f"{file}: {name} claims {sizes[name]} bytes, more than {LARGEST}")
            return {name: archive.read(name) for name in MEMBERS}
    except ArtefactError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise ArtefactError(f"{file} is not a complete agent: {error}") from error


def _check_manifest(manifest: Any) -> None:
    """Raise unless the manifest has every field of its kind, and the hash of every member."""
    if not isinstance(manifest, dict):
        raise ArtefactError(f"is a {type(manifest).__name__}, not an object")
    if manifest["format"] != FORMAT:
        raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
    kinds = {"name": str, "algo": str, "policy": dict, "settings": dict, "observation": dict, "action": dict,
             "sha256": dict, "env": str, "arguments": dict, "seed": int}  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind):
            raise ArtefactError(f"{key} is {manifest[key]!r}, expected {kind.__name__}")
    for name in MEMBERS[1:]:
        if name not in manifest["sha256"]:
            raise ArtefactError(f"sha256 lacks the hash of {name}")
    observation = manifest["observation"]
    if len(observation["names"]) != len(observation["low"]):
        raise ArtefactError(f"{len(observation['names'])} observation names for {len(observation['low'])} columns")


def _empty_policy(manifest: Mapping[str, Any]) -> ActorCriticPolicy:
    """Build the policy of the manifest's table row, spaces and settings, with weights still to be filled."""
    row = algorithm(manifest["algo"])
    spaces = [
        gym.spaces.Box(np.array(part["low"], np.float32), np.array(part["high"], np.float32), dtype=np.float32)
        for part in (manifest["observation"], manifest["action"])
    ]
    # State-dependent noise has weights of its own.
    noise: dict[str, Any] = {"use_sde": bool(manifest["settings"].get("use_sde", False))}
    return row.policy(spaces[0], spaces[1], _no_schedule, **noise, **policy_arguments(manifest["policy"]))


def _fill(policy: ActorCriticPolicy, tensors: dict[str, torch.Tensor]) -> None:
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


def _is_alive(pid: str) -> bool:
    """True while the process that owns a temporary file may still be writing it."""
    if not pid.isdecimal() or os.name != "posix":
        return os.name != "posix"
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _no_schedule(_: float) -> float:
    return 0.0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
