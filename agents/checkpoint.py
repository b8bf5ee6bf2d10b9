"""Training checkpoints: from the newest complete one a killed run goes on as if it had not been killed.

``OUT/checkpoints/checkpoint-STEPS.zip`` holds ``manifest.json`` (the run's identity, counters, generator states,
optimiser settings, the choice on validation), ``state.safetensors`` (arrays of :mod:`agents.snapshot`), where there is
one ``best.safetensors`` (the weights chosen so far) and ``replay.safetensors``. Files are written by
:mod:`markets.storage` at the beginning of rollouts; the last two good ones are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from stable_baselines3.common.callbacks import BaseCallback

from agents import snapshot
from agents.callbacks import ValidationChoice
from agents.differences import differences
from agents.generators import Arrays
from agents.snapshot import Snapshot
from agents.vec_env import NativeVecEnv
from markets import storage
from markets.errors import ArtefactError, ConfigError

FOLDER = "checkpoints"
FORMAT = 1
KEPT = 2
LARGEST = 2**30  # bytes of one member
LARGEST_REPLAY = 256 * 2**20  # bytes of a replay buffer that a checkpoint carries
STATE, BEST, REPLAY = "state.safetensors", "best.safetensors", "replay.safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the run's ``identity``, its state, the choice on validation, the steps it was ``planned`` for
    and the seconds it took so far."""

    path: Path
    planned: int
    identity: dict[str, Any]
    state: Snapshot
    choice: dict[str, Any]
    best: Arrays
    seconds: float
    versions: dict[str, Any]


class Checkpoints(BaseCallback):
    """Takes a snapshot at the beginning of every rollout and writes one to the disk at even intervals.

    Args:
        planned: steps after which the run is finished.
        every: steps between files, counted from step 0, so that a resumed run writes at the same steps. The first file
            is written before the first step.
        found: what the run goes on from; its random state is put back when the first rollout begins.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], versions: Mapping[str, Any], planned: int, every: int,
        choice: ValidationChoice, found: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._folder, self._every, self._choice = folder, every, choice
        self._fixed = {"format": FORMAT, "identity": dict(identity), "versions": dict(versions), "planned": planned}
        self._found = found
        self._good = [found.path] if found else []
        self._next = every * (found.state.steps // every + 1) if found else 0
        self._started = time.perf_counter() - (found.seconds if found else 0.0)
        self._latest: Callable[[], Path] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return time.perf_counter() - self._started

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._found is not None:
            with storage.naming(self._found.path, "its random state"):
                snapshot.restore_random(self.model, self._found.state)
            self._found = None
        self.note()
        if self.num_timesteps >= self._next:
            self._next = self._every * (self.num_timesteps // self._every + 1)
            self.write()

    def note(self) -> None:
        """Remember the present state as the one to write."""
        env = self.training_env
        assert isinstance(env, NativeVecEnv)
        state, choice, best = snapshot.take(self.model, env), self._choice.state(), self._choice.best_state
        self._latest = lambda: self._write(state, choice, best)

    def write(self) -> Path | None:
        """Write what was noted last; None where nothing was, or the disk refused: training goes on without."""
        begun = getattr(getattr(self, "model", None), "_last_obs", None) is not None
        if self._latest is None and self._found is None and begun:
            self.note()  # interrupted between the first observation and the first rollout
        if self._latest is None:
            return None
        try:
            return self._latest()
        except OSError as error:
            _log.error("no checkpoint could be written, training goes on: %s", error)
            return None

    def _write(self, state: Snapshot, choice: dict[str, Any], best: dict[str, torch.Tensor] | None) -> Path:
        members = {STATE: save_arrays(state.arrays)}
        if best is not None:
            members[BEST] = save_arrays({name: value.cpu().numpy() for name, value in best.items()})
        size = sum(value.nbytes for value in state.replay.values())
        if 0 < size <= LARGEST_REPLAY:
            members[REPLAY] = save_arrays(state.replay)
        elif size:
            _log.warning(
                "the replay buffer (%.0f MiB) is larger than the %d MiB a checkpoint carries: a resumed run refills it",
                size / 2**20, LARGEST_REPLAY // 2**20,
            )  # fmt: skip
        manifest = {**self._fixed, "seconds": round(self.seconds, 1), "choice": choice, "state": state.plain}
        path = storage.write(self._folder / f"checkpoint-{state.steps:015d}.zip", manifest, members)
        self._good = [*(good for good in self._good if good != path), path][-KEPT:]
        for old in files(self._folder):
            if old not in self._good:
                old.unlink(missing_ok=True)
        return path


def files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    return sorted(folder.glob("checkpoint-*.zip"), reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """Read the newest complete checkpoint of a folder; a damaged one is named in a warning and the one before it read.

    Raises:
        ArtefactError: there are checkpoints, and all are damaged.
    """
    found = files(folder)
    for path in found:
        try:
            return read(path)
        except ArtefactError as error:
            last = error
            _log.warning("damaged checkpoint, trying the one before it: %s", error)
    if found:
        raise ArtefactError(f"no checkpoint in {folder} is complete; the last one tried: {last}")
    return None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ArtefactError: a member is missing, altered or of another format; it is named.
    """
    manifest, members = storage.read(path, [STATE], [BEST, REPLAY], LARGEST)
    with storage.naming(path, storage.MANIFEST):
        if manifest["format"] != FORMAT:
            raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
        for key in ("identity", "versions", "choice", "state"):
            if not isinstance(manifest[key], dict):
                raise ArtefactError(f"{key} is {manifest[key]!r}, expected dict")
        seconds, steps = float(manifest["seconds"]), manifest["state"]["counters"]["num_timesteps"]
        for name, number in (("num_timesteps", steps), ("planned", manifest["planned"])):
            if type(number) is not int or number < 0:
                raise ArtefactError(f"{name} is {number!r}, expected a whole number")
    arrays: dict[str, Arrays] = {STATE: {}, BEST: {}, REPLAY: {}}
    for name, data in members.items():
        with storage.naming(path, name, SafetensorError):
            arrays[name] = load_arrays(data)
    state = Snapshot(arrays[STATE], manifest["state"], arrays[REPLAY])
    return Checkpoint(
        path,
        manifest["planned"],
        manifest["identity"],
        state,
        manifest["choice"],
        arrays[BEST],
        seconds,
        manifest["versions"],
    )


def restore(found: Checkpoint, model: Any, env: NativeVecEnv, choice: ValidationChoice) -> None:
    """Put model, lanes and the choice on validation back where the checkpoint left them.

    Raises:
        ArtefactError: an array or value is missing, or does not fit the model.
    """
    with storage.naming(found.path, "its state"):
        snapshot.restore(model, env, found.state)
        best = snapshot.as_tensors("best", found.best, model.policy.state_dict()) if found.best else None
        choice.restore(found.choice, best)
    place = found.state.plain.get("replay", {})
    if not found.state.replay and (place.get("position") or place.get("full")):
        _log.warning("the checkpoint carries no replay buffer: it is filled anew, and the weights will differ")


def check_same(found: Checkpoint, identity: Mapping[str, Any], versions: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than the one that was begun.

    Raises:
        ConfigError: lists every difference.
    """
    lines = _other_run(found.identity, identity)
    if lines:
        raise ConfigError(
            f"{found.path.parent.parent} holds a run that was started with other arguments; resume it with its own, "
            "or choose another folder:\n  " + "\n  ".join(lines)
        )
    other = differences(found.versions, versions)
    if other:
        _log.warning("other versions than the run was started with, its numbers may differ: %s", "; ".join(other))


def _other_run(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two runs in words of the user's: hashes only where no argument explains them."""
    one, two = dict(begun), dict(now)
    named = [run.get("arguments", {}).get("bars") for run in (begun, now)]
    if named[0] != named[1]:
        one["bars"], two["bars"] = (source or "the default market" for source in named)
        for run in (one, two):
            run["arguments"] = {key: value for key, value in run.get("arguments", {}).items() if key != "bars"}
    elif one.get("bars") != two.get("bars"):
        one["bars"], two["bars"] = f"{named[0] or 'the default market'} as it was then", "other bars under that name"
    if one.get("bars") != two.get("bars") or one.get("arguments") != two.get("arguments"):
        for name in ("scaler", "signals"):  # they are fitted on the bars, within the dates that the arguments give
            one.pop(name, None)
            two.pop(name, None)
    return differences(one, two)


def remove(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, and what killed writers left."""
    for path in files(folder):
        path.unlink()
    if folder.is_dir():
        storage.remove_leftovers(folder)
