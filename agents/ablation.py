"""Ablation: what named observation columns are worth, by training with and without them on the same seeds.

Two arms, ``shown`` and ``hidden`` (:mod:`envs.wrappers.hide`: the columns are constants, spaces and networks stay what
they are). Every seed trains both from the same initial weights, on the same market and the same episodes, and scores
the last weights on the validation split, episode by episode: no weights are chosen on what is scored. With n seeds and
differences ``d = shown - hidden`` of the mean log growth of an episode::

    mean d  +-  t(0.975, n - 1) sd(d) / sqrt(n)

``{seed}`` in the bars' specification becomes the seed: the interval is then over markets as well as over trainings.
Hiding a column does not hide what others tell of it; :func:`remains` says by how much the rest goes along with it.

Source of the closed form of Student's t: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3-4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from agents import fit
from agents.learnability import RevealNextReturnVector, score
from agents.recipe import REWARD_SCALE, resolve, whole_split
from agents.sb3 import algorithm, build_model, check_settings
from agents.vec_env import NativeVecEnv
from envs.make import game_of
from envs.simulation import MODE_NEXT_STEP, Game, Simulation
from markets.errors import ConfigError, unknown
from markets.storage import replace_file

ARMS = ("shown", "hidden")
ALGORITHMS = ("ppo", "a2c")  # policies that act on an observation alone
FIGURES = ("steps", "episodes", "mean", "sd", "costs")  # of a run, beside its identity
LEVEL = 0.95
NOTABLE = 0.3  # rank correlation from which a column is said to go along with a hidden one
LANES = 64  # that look at the columns


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What ``regimegym ablate`` is told.

    Attributes:
        env: registered id. arguments: of it, ``bars`` among them, in which ``{seed}`` stands for the seed.
        hide: names of the columns, with commas between them.
        seeds: trainings of each arm, at least 2. steps: environment steps of each.
        algo: one of ``ALGORITHMS``; ``settings`` replace its hyperparameters.
        revealed: show the return of the next bar as well (:class:`agents.learnability.RevealNextReturn`): what are
            the columns worth to who has something to trade on?
        out: folder of the runs; finished ones in it are not trained again.
    """

    env: str
    hide: str
    out: Path
    seeds: int = 5
    steps: int = 500_000
    algo: str = "ppo"
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    revealed: bool = False

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise unknown("algo of an ablation", self.algo, ALGORITHMS)
        check_settings(self.algo, self.settings)
        for name, least in (("seeds", 2), ("steps", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if not self.hide:
            raise ConfigError("hide='' names no column: an ablation needs at least one")
        if "hide" in self.arguments:
            raise ConfigError(f"hide={self.arguments['hide']!r} is given twice: for the ablation and for the env")


def run(config: AblationConfig, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train what is missing, and return runs, differences and their interval; ``progress`` is told each run.

    Raises:
        ConfigError: the folder holds a run of another ablation.
    """
    torch.set_num_threads(1)
    family, probe = check(config)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in range(config.seeds):
        for arm in ARMS:
            row = _kept(config, seed, arm)
            if row is None:
                row = train(config, seed, arm)
                replace_file(_file(config, seed, arm), (json.dumps(row, indent=1) + "\n").encode())
            runs[arm].append(row)
            said = f"{row['mean']:+.3e} an episode over {row['episodes']}, costs {row['costs']:.3e}"
            progress(f"{arm}, seed {seed}: {said}")
    differences = [one["mean"] - other["mean"] for one, other in zip(*runs.values(), strict=True)]
    result = {
        "env": config.env, "hide": config.hide, "runs": runs, "means": {arm: _mean(runs[arm]) for arm in ARMS},
        "difference": paired(differences), "remains": remains(game_of(family, replace(probe, hide="")), probe.hide),
    }  # fmt: skip
    replace_file(config.out / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def check(config: AblationConfig) -> tuple[str, Any]:
    """Return family and configuration of the hidden arm: what is wrong with names and bars is raised here."""
    family, probe = resolve(config.env, _arguments(config, 0, "hidden"))
    game_of(family, probe)
    return str(family), probe


def train(config: AblationConfig, seed: int, arm: str) -> dict[str, Any]:
    """Train one arm with one seed, and score its last weights on the validation split."""
    arguments = _arguments(config, seed, arm)
    family, training = resolve(config.env, arguments)
    vector: Any = gym.make_vec(
        config.env, num_envs=algorithm(config.algo).lanes, vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP.value, info="none", **{**arguments, "split": "train"},
    )  # fmt: skip
    env = NativeVecEnv(RevealNextReturnVector(vector) if config.revealed else vector, REWARD_SCALE)
    model = build_model(config.algo, env, seed, "cpu", None, config.settings)
    model.learn(config.steps)
    env.close()
    model.policy.set_training_mode(False)
    game = game_of(family, whole_split(training, "validation"))
    found = score(lambda seen: model.policy.predict(seen, deterministic=True)[0], game, config.revealed)
    growth = found.returns.sum(axis=1)
    return {
        "identity": _identity(config, seed, arm), "steps": int(model.num_timesteps), "episodes": len(growth),
        "mean": float(growth.mean()), "sd": float(growth.std()), "costs": float(found.costs.mean()),
    }  # fmt: skip


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Return the mean of n paired differences and its 95 % t-interval."""
    values = np.array(differences)
    reach = student_t(LEVEL, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return {"values": values.tolist(), "mean": mean, "interval": [mean - reach, mean + reach], "level": LEVEL}


def student_t(level: float, degrees: int) -> float:
    """Return t with ``P(|T| <= t) = level`` for a whole number of degrees of freedom of at least 1."""

    def within(angle: float) -> float:  # t = tan(angle) sqrt(degrees)
        cosine, term, total = math.cos(angle), 1.0, 0.0
        first = 2 if degrees % 2 == 0 else 3
        if degrees > 1:
            term = total = 1.0 if degrees % 2 == 0 else cosine
            for k in range(first, degrees, 2):
                term *= (k - 1) / k * cosine * cosine
                total += term
        value = math.sin(angle) * total
        return value if degrees % 2 == 0 else 2.0 / math.pi * (angle + value)

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def remains(game: Game, hide: str, calls: int = 400) -> dict[str, list[Any]]:
    """Say which shown columns go along with a hidden one: name -> hidden column and rank correlation, largest first.

    The correlation is Spearman's; equal values share the mean of their ranks.

    Measured on the observations of a random policy on training episodes; correlations of absolute value below 0.3 are
    left out. A column can tell a hidden one in ways that no rank correlation sees.
    """
    simulation = Simulation(game, LANES)
    generators = [np.random.default_rng(seed) for seed in range(LANES)]
    draw = np.random.default_rng(0)
    simulation.reset(generators, None, None, np.ones(LANES, bool))
    simulation.draw_starts(generators)
    seen = []
    shape = simulation.accounts[0, :, game.action_columns].shape
    for _ in range(calls):
        numbers = draw.uniform(-1.0, 1.0, shape)
        for column, count in enumerate(game.choices):
            numbers[:, column] = draw.integers(0, count, LANES)
        simulation.set_actions(numbers)
        if simulation.run(MODE_NEXT_STEP):
            simulation.draw_starts(generators)
        seen.append(simulation.seen().copy())
    ranks = average_ranks(np.concatenate(seen))
    hidden = [game.all_names.index(name.strip()) for name in hide.split(",")]
    varied = np.ptp(np.concatenate(seen), axis=0) > 0.0
    found: dict[str, list[Any]] = {}
    for place, name in enumerate(game.all_names):
        if place in hidden or not varied[place]:
            continue
        known = [(float(np.corrcoef(ranks[:, place], ranks[:, k])[0, 1]), k) for k in hidden if varied[k]]
        best = max(known, key=lambda pair: abs(pair[0]), default=(0.0, 0))
        if abs(best[0]) >= NOTABLE:
            found[name] = [game.all_names[best[1]], round(best[0], 3)]
    return dict(sorted(found.items(), key=lambda item: -abs(item[1][1])))


def average_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the ranks of each column ``(N, K)`` from 1, equal values with the mean of theirs: Spearman's with ties."""
    ranks = np.empty(values.shape)
    for place, column in enumerate(values.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks[:, place] = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    return ranks


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return paired([row["mean"] for row in rows])


def _arguments(config: AblationConfig, seed: int, arm: str) -> dict[str, Any]:
    arguments = dict(config.arguments)
    if isinstance(arguments.get("bars"), str):
        arguments["bars"] = arguments["bars"].replace("{seed}", str(seed))
    return {**arguments, **({"hide": config.hide} if arm == "hidden" else {})}


def _identity(config: AblationConfig, seed: int, arm: str) -> dict[str, Any]:
    """Return what makes a run this run, as JSON will read it back."""
    game = game_of(*resolve(config.env, _arguments(config, seed, arm)))
    content = {
        "env": config.env, "algo": config.algo, "settings": config.settings, "steps": config.steps, "seed": seed,
        "arguments": _arguments(config, seed, arm), "revealed": config.revealed,
        "bars": game.bars.hash, "scaler": game.details["scaler"].hash, "encoder": fit.encoder(game),
    }  # fmt: skip
    if fit.signals(game):
        content["signals"] = fit.signals(game)
    return dict(json.loads(json.dumps(content)))


def _file(config: AblationConfig, seed: int, arm: str) -> Path:
    return config.out / f"{arm}-{seed}.json"


def _kept(config: AblationConfig, seed: int, arm: str) -> dict[str, Any] | None:
    """Return a finished run of the folder, None where there is none."""
    path = _file(config, seed, arm)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        identity = dict(row["identity"])
        wrong = [name for name in FIGURES if type(row[name]) not in (int, float) or not math.isfinite(row[name])]
        if wrong:
            raise ValueError(f"{wrong[0]}={row[wrong[0]]!r} is not a number")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no run of an ablation: {error!r}; remove it, or choose another folder") from error
    wanted = _identity(config, seed, arm)
    different = [name for name in wanted if identity.get(name) != wanted[name]]
    if different:
        name = different[0]
        raise ConfigError(
            f"{path} is a run with {name}={identity.get(name)!r}, not {wanted[name]!r}: choose another folder"
        )
    return dict(row)
