"""Comparison of arms: every arm trained with every seed on one market, each difference paired by seed.

``{seed}`` in the bars' specification becomes the seed: each seed then is a market of its own, and the intervals are
over markets as well as over trainings. Without it they are about this one market, and say nothing of another.

Every run is a file of the folder, written when it ends; a folder that was left at any moment goes on from there. What a
run is stands in it, and a folder of other runs is refused. Trainings are written into the trial registry, and so is
each reading of a test split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents import arms, paired_seeds
from agents.ablation import ALGORITHMS
from agents.arms import Arm, Recipe, Revealed
from agents.sb3 import algorithm, check_device, check_settings, net_settings
from agents.trial_registry import record_touch, record_trial
from envs.splits import SPLITS
from markets.errors import ConfigError, unknown
from markets.storage import replace_file

FIGURES = ("steps", "episodes", "bars", "score", "sd", "ruined", "costs")  # of a run, beside its identity


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        arms: at least two, with names of their own; differences are from the first one.
        recipe: of every training. bars: specification with ``{seed}`` for the seed; None takes the environment's own.
        seeds: trainings of each arm, at least 2, numbered from ``first_seed`` on.
        out: folder of the runs. threads: of torch.
        revealed: columns that a study appends to every arm's environment.
    """

    arms: tuple[Arm, ...]
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    bars: str | None = None
    seeds: int = 5
    first_seed: int = 0
    threads: int = 1
    revealed: Revealed | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len({name.lower() for name in names}) < len(names):
            raise ConfigError(f"arms {names} must be at least two, with names that differ in more than case")
        for name, value, least in (
            ("seeds", self.seeds, 2), ("first_seed", self.first_seed, 0), ("threads", self.threads, 1),
            ("steps", self.recipe.steps, 1), ("lanes", self.recipe.lanes, 0),
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if self.recipe.split not in SPLITS:
            raise unknown("split", self.recipe.split, SPLITS)
        if self.recipe.algo not in ALGORITHMS:
            raise unknown("algo of a comparison", self.recipe.algo, ALGORITHMS)
        check_settings(self.recipe.algo, self.recipe.settings)
        check_device(self.recipe.device)

    def bars_of(self, seed: int) -> str | None:
        """Return the bars of a seed."""
        return None if self.bars is None else self.bars.replace("{seed}", str(seed))

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def total_steps(self) -> int:
        """Steps of all trainings, as asked."""
        return self.recipe.steps * self.seeds * sum(arm.plays is None for arm in self.arms)


def check(comparison: Comparison) -> None:
    """Raise what is wrong with arms and bars, before a folder is made or anything trained."""
    for arm in comparison.arms:
        arms.check(arm, comparison.recipe, comparison.bars_of(comparison.first_seed), comparison.revealed)


def run(
    comparison: Comparison,
    progress: Callable[[str], None] = lambda text: None,
    told: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train and score what is missing, seed by seed; return runs, aggregates and differences.

    Args:
        progress: is told each run as it ends. told: steps that were done, of ``total_steps``.

    Raises:
        ConfigError: the folder holds runs of another comparison.
    """
    torch.set_num_threads(comparison.threads)
    # A folder of another comparison is refused before hours of training. Seed by seed: arms share their market.
    kept = {(seed, arm.name): _kept(comparison, arm, seed) for seed in comparison.all_seeds for arm in comparison.arms}
    rows: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in comparison.arms}
    for seed in comparison.all_seeds:
        touched = False
        for arm in comparison.arms:
            row = kept[seed, arm.name]
            new = row is None
            if row is None:
                if comparison.recipe.split == "test" and not touched:
                    _touch(comparison, seed)
                    touched = True
                row = _made(comparison, arm, seed, told)
            elif arm.plays is None:
                told(comparison.recipe.steps)
            rows[arm.name].append(row)
            word = "" if new else " (kept)"
            progress(f"{arm.name}, seed {seed}: {row['score']:+.4f} an episode, costs {row['costs']:.4f}{word}")
    result = summary(comparison, rows)
    replace_file(comparison.out / "compare.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def summary(comparison: Comparison, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what the runs say: IQM of every arm, and of its differences from the first one."""
    recipe, base = comparison.recipe, comparison.arms[0].name
    scores = {name: [row["score"] for row in runs] for name, runs in rows.items()}
    return {
        "bars": comparison.bars, "split": recipe.split, "algo": recipe.algo, "settings": recipe.settings,
        "steps": recipe.steps, "seeds": list(comparison.all_seeds), "base": base,
        "columns": {name: runs[0]["identity"]["columns"] for name, runs in rows.items()},
        "runs": {name: [_without(row) for row in runs] for name, runs in rows.items()},
        "arms": {name: paired_seeds.aggregate(values) for name, values in scores.items()},
        "differences": {
            name: paired_seeds.difference(values, scores[base]) for name, values in scores.items() if name != base
        },
    }  # fmt: skip


def between(result: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    """Return the difference of two arms of a result, paired by seed."""
    return paired_seeds.difference(scores_of(result, first), scores_of(result, second))


def scores_of(result: dict[str, Any], name: str) -> Sequence[float]:
    """Return an arm's score of each seed."""
    return [row["score"] for row in result["runs"][name]]


def _without(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("identity", "growth")}


def _made(comparison: Comparison, arm: Arm, seed: int, told: Callable[[int], None]) -> dict[str, Any]:
    recipe, bars = comparison.recipe, comparison.bars_of(seed)
    found = arms.identity(arm, recipe, bars, seed, comparison.revealed)
    if arm.plays is None:
        row = algorithm(recipe.algo)
        record_trial({
            **found, "settings": {**row.settings, **recipe.settings}, "lanes": recipe.lanes or row.lanes,
            "policy": net_settings(recipe.algo, recipe.settings),
            "arguments": {**arm.arguments, **({"sees": list(arm.sees)} if arm.sees else {})},
        })  # fmt: skip
    left = recipe.steps if arm.plays is None else 0

    def within(steps: int) -> None:  # whole rollouts go beyond what was asked, the bar of all runs does not
        nonlocal left
        told(min(steps, left))
        left -= min(steps, left)

    done = {"identity": found, "seed": seed, **arms.play(arm, recipe, bars, seed, comparison.revealed, within)}
    replace_file(_file(comparison, arm, seed), (json.dumps(done, indent=1, allow_nan=False) + "\n").encode())
    return done


def _touch(comparison: Comparison, seed: int) -> None:
    """Write down that a test split is read; before it is, so that a killed run has read it as well."""
    game = arms.game_for(comparison.arms[0], comparison.bars_of(seed), "test", comparison.revealed)
    record_touch(game, [f"compare {arm.name}" for arm in comparison.arms])


def _file(comparison: Comparison, arm: Arm, seed: int) -> Path:
    return comparison.out / f"{arm.name}-{seed}.json"


def _kept(comparison: Comparison, arm: Arm, seed: int) -> dict[str, Any] | None:
    """Return a finished run of the folder, None where there is none.

    Raises:
        ConfigError: a file that is no run, or a run of something else.
    """
    path = _file(comparison, arm, seed)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        found = dict(row["identity"])
        wrong = [name for name in FIGURES if type(row[name]) not in (int, float) or not math.isfinite(row[name])]
        if wrong:
            raise ValueError(f"{wrong[0]}={row[wrong[0]]!r} is not a number")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no run of a comparison: {error!r}; remove it, or choose another folder"
        ) from error
    wanted = arms.identity(arm, comparison.recipe, comparison.bars_of(seed), seed, comparison.revealed)
    wanted = json.loads(json.dumps(wanted))
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ConfigError(
                f"{path} is a run with {name}={found.get(name)!r}, not {wanted[name]!r}: choose another folder"
            )
    return dict(row)
