"""Recipe: what a training is told, what makes a run this run and no other, and what its agent's file says of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym

import envs
from agents import fit
from agents.provenance import commit
from agents.sb3 import algorithm, check_device, check_settings, net_settings
from encoders.signals import SIGNALS
from encoders.signals.fitted import names_of
from envs.make import family_of, game_of
from envs.simulation import Game
from markets.errors import ConfigError, unknown

CHECKPOINT_EVERY = 100_000  # steps
REWARD_SCALE = 100.0  # log returns per bar are of the order of 0.01


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
        check_settings(self.algo, self.settings)
        for name, least in (
            ("steps", 1), ("seed", 0), ("lanes", 0), ("evaluations", 0), ("threads", 1), ("checkpoint_every", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
                raise ConfigError(f"{name}={value!r} must be a whole number from {least} to {2**32 - 1}")
        check_device(self.device)


def describe(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as plain values, for logs, with what its zeros stand for."""
    return {
        **asdict(config),
        "out": str(config.out),
        "lanes": config.lanes or algorithm(config.algo).lanes,
        "checkpoint_every": config.checkpoint_every or CHECKPOINT_EVERY,
    }


def whole_rollouts(config: TrainingConfig, done: int = 0) -> tuple[int, str]:
    """Return the steps after which a training that stands at ``done`` ends, and in words what it rounds up to.

    Every lane plays a whole rollout before the algorithm learns from it or looks at the number of steps.
    """
    row, lanes = algorithm(config.algo), int(describe(config)["lanes"])
    bars = int({**row.settings, **config.settings}["train_freq" if row.replays else "n_steps"])
    rounds = -(-max(config.steps - done, 0) // (bars * lanes))
    return done + rounds * bars * lanes, f"whole rollouts of {lanes} lanes x {bars}"


def resolve(env: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    """Return the family of an id and its configuration for the training split.

    Raises:
        UnknownNameError: unknown id or argument.
    """
    module, _, name = env.rpartition(":")
    if name not in envs.ids() or module not in ("", "envs", "regimegym"):
        raise unknown("env", env, envs.ids())
    given = dict(gym.spec(name).kwargs)
    family = given.pop("family")
    kind = family_of(family)
    if arguments.get("split", "train") != "train":
        raise ConfigError(f"split={arguments['split']!r}: training uses the split 'train'; choose dates with train_end")
    valid = tuple(kind.config.__dataclass_fields__)
    for key in arguments:
        if key not in valid:
            raise unknown(f"argument of {name}", key, valid)
    return family, kind.config(**{**given, **arguments, "split": "train"})


def located(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the folders of encoder and signals as absolute paths: an agent may be loaded from
    anywhere."""
    found = dict(arguments)
    encoder, signals = arguments.get("encoder"), arguments.get("signals")
    if isinstance(encoder, str) and Path(encoder).exists():
        found["encoder"] = str(Path(encoder).resolve())
    if isinstance(signals, str) and signals:
        found["signals"] = ",".join(
            name if name in SIGNALS or not Path(name).exists() else str(Path(name).resolve())
            for name in names_of(signals)
        )
    return found


def identity(config: TrainingConfig, game: Game) -> dict[str, Any]:
    """Return what makes a run this run; one that is resumed must have the same."""
    row = algorithm(config.algo)
    content = {
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
    if fit.signals(game):
        content["signals"] = fit.signals(game)
    try:
        return dict(json.loads(json.dumps(content)))  # as it will be read back
    except TypeError as error:
        raise ConfigError(f"arguments and settings must be names and numbers that JSON can hold: {error}") from error


def manifest(config: TrainingConfig, game: Game) -> dict[str, Any]:
    """Return what an agent's file says of how it was trained, as far as that is known beforehand."""
    row = algorithm(config.algo)
    return {
        "name": config.algo,
        "algo": config.algo,
        "policy": net_settings(config.algo, config.settings),
        "env": config.env.split(":")[-1],
        "family": game.recipe[0],
        "arguments": config.arguments,
        "requires": fit.requirements(game),
        "encoder": fit.encoder(game),
        "observation_names": game.all_names,
        "seed": config.seed,
        "lanes": config.lanes or row.lanes,
        "settings": {**row.settings, **config.settings},
        "reward_scale": REWARD_SCALE,
        "bars": {"source": game.bars.source, "hash": game.bars.hash},
        "splits": _splits(game),
        "threads": config.threads,
        "git": commit(),
    }


def _splits(game: Game) -> dict[str, list[str]]:
    """Return the times of the first and the last observation of each split the training looked at."""
    family, config = game.recipe
    other = game_of(family, whole_split(config, "validation"))
    return {
        name: [str(part.bars.close_time[part.first]), str(part.bars.close_time[part.last])]
        for name, part in (("train", game), ("validation", other))
    }


def whole_split(config: Any, split: str) -> Any:
    """Return the configuration with which a split is walked from its first row to its last."""
    free = {name: None for name in ("episode_bars", "random_start") if hasattr(config, name)}  # of a family's own
    return replace(config, split=split, **free)
