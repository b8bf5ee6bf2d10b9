"""The leverage study: does a control by regime help a policy that holds as much without it?

Seed by seed a policy is trained at a fixed leverage, and walked with it and behind a control at equal mean absolute
exposure on validation (:mod:`agents.leverage_walks`, :mod:`agents.leverage_calibration`). Where ``{seed}`` stands in
the bars each seed is a market of its own, and intervals over seeds are over markets and trainings. Where all seeds
share a market there is a second interval, over time (:mod:`agents.paired_walks`), and neither says what the other does.

Every seed is two files of the folder, written when it ends; the same command goes on from there. Trainings are written
into the trial registry, and so is each reading of a test split.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents import arms, leverage_calibration, leverage_walks, paired_seeds, paired_walks
from agents.arms import Arm, Recipe
from agents.leverage_calibration import HELD
from agents.leverage_walks import ARMS, Played, arm_of, play
from agents.sb3 import algorithm, check_device, check_settings, net_settings
from agents.trial_registry import record_touch, record_trial
from envs.leverage import RegimeAwareLeverageController
from envs.splits import SPLITS
from markets.errors import ConfigError, unknown
from markets.storage import replace_file

BARS, SEEDS, STEPS = "synthetic:crypto?seed={seed}&bars=40000", 10, 300_000
QUICK: dict[str, Any] = {"bars": "synthetic:crypto?seed={seed}&bars=9000", "seeds": 2, "steps": 16_384}
# Independent noise in every bar pays costs in every bar, and teaches a policy to hold nothing.
SETTINGS: dict[str, Any] = {"use_sde": True, "log_std_init": -1.0}
OWN = ("base_leverage", "max_leverage", "multipliers")  # of the controller: the study sets or calibrates them
PAIRS = (("control", "fixed"), ("control", "hindsight"))
WEEK = 7.0 / 365.0  # of a year; mean length of a block of the interval over time
CONSTANTS = {
    "leverage": leverage_walks.LEVERAGE, "max_leverage": leverage_walks.MOST, "prior": leverage_calibration.PRIOR,
    "clip": [leverage_calibration.LOWEST, leverage_calibration.HIGHEST], "tolerance": leverage_calibration.TOLERANCE,
    "unseen_volatility": leverage_walks.UNSEEN_VOLATILITY, "unseen_bars": leverage_walks.UNSEEN_BARS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is studied.

    Attributes:
        out: folder of the runs. bars: specification, ``{seed}`` stands for the seed.
        arguments: of the environment, such as ``train_end``; they replace those of the study.
        steps, seeds, first_seed: of the trainings. settings: hyperparameters, which replace those of the study.
        control: settings of the controller beside multipliers and base leverage, which are calibrated.
        split: the one that is reported; with ``validation`` the test split is not read. device, threads: of torch.
    """

    out: Path
    bars: str = BARS
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS
    seeds: int = SEEDS
    first_seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)
    split: str = "validation"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seeds", self.seeds, 2), ("first_seed", self.first_seed, 0), ("threads", self.threads, 1),
            ("steps", self.steps, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if self.split not in SPLITS[1:]:
            raise unknown("split of the leverage study", self.split, SPLITS[1:])
        for name in ("leverage", "leverage_control", "contract_leverage"):
            if name in self.arguments:
                raise ConfigError(f"{name} is what the leverage study compares, and no argument of it")
        for name in OWN:
            if name in self.control:
                raise ConfigError(f"{name} of the control is the study's own")
        valid = [one.name for one in fields(RegimeAwareLeverageController) if one.name not in OWN]
        for name in self.control:
            if name not in valid:
                raise unknown("setting of the leverage control", name, valid)
        RegimeAwareLeverageController(**self.control)
        check_settings(self.recipe.algo, self.recipe.settings)
        check_device(self.device)

    @property
    def recipe(self) -> Recipe:
        """Of every training."""
        settings = {**SETTINGS, **self.settings}
        return Recipe(settings=settings, steps=self.steps, device=self.device, split=self.split)

    @property
    def arm(self) -> Arm:
        """What is trained."""
        return arm_of(self.arguments)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def one_market(self) -> bool:
        """Whether all seeds share a market."""
        return "{seed}" not in self.bars

    def bars_of(self, seed: int) -> str:
        """Return the bars of a seed."""
        return self.bars.replace("{seed}", str(seed))


def check(study: Study) -> None:
    """Raise what is wrong with bars and arguments, before a folder is made or anything trained."""
    bars = study.bars_of(study.first_seed)
    arms.check(study.arm, study.recipe, bars)
    leverage_calibration.calibrated(arms.game_for(study.arm, bars, "validation"))


def run(
    study: Study, progress: Callable[[str], None] = lambda text: None, told: Callable[[int], None] = lambda steps: None
) -> dict[str, Any]:
    """Play what is missing, seed by seed; return runs, arms and differences.

    Args:
        progress: is told each seed as it ends. told: steps of training that were done.

    Raises:
        ConfigError: the folder holds runs of another study.
    """
    torch.set_num_threads(study.threads)
    kept = {seed: _kept(study, seed) for seed in study.all_seeds}  # a folder of another study is refused first
    played = {}
    for seed, found in kept.items():
        if found is None:
            played[seed], word = _made(study, seed, told), ""
        else:
            told(study.steps)
            played[seed], word = found, " (kept)"
        progress(f"seed {seed}: {_line(played[seed].rows)}{word}")
    result = summary(study, played)
    replace_file(study.out / "leverage.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def curves(study: Study) -> dict[str, NDArray[np.float64]]:
    """Return simple returns ``(N, T)`` of the kept runs, by ``PLAYER ARM RANGE``."""
    played = [found for seed in study.all_seeds if (found := _kept(study, seed)) is not None]
    return {name: np.stack([one.gains[name] for one in played]) for name in played[0].gains}


def summary(study: Study, played: dict[int, Played]) -> dict[str, Any]:
    """Return what the runs say, by range and player: each arm, and paired differences."""
    found: dict[str, Any] = {}
    for player, part in _first(played).rows["players"].items():
        for where in part["ranges"]:
            found.setdefault(where, {})[player] = _compared(study, played, player, where)
    return {
        "bars": study.bars, "one_market": study.one_market, "split": study.split, "seeds": list(played),
        "steps": study.steps, "settings": study.recipe.settings, "arguments": study.arm.arguments,
        "control": study.control, **CONSTANTS, "ranges": found,
        "runs": {seed: {"identity": one.rows["identity"], **_of(one)} for seed, one in played.items()},
    }  # fmt: skip


def _of(played: Played) -> dict[str, Any]:
    return {name: value for name, value in played.rows.items() if name != "identity"}


def _compared(study: Study, played: dict[int, Played], player: str, where: str) -> dict[str, Any]:
    rows = [one.rows["players"][player]["ranges"][where] for one in played.values()]
    names = [name for name in rows[0]["fixed"] if name != "bars"]
    values = {arm: {name: [row[arm][name] for row in rows] for name in names} for arm in ARMS}
    bars = int(rows[0]["fixed"]["bars"])
    result: dict[str, Any] = {
        "bars": bars,
        "matched": sum(one.rows["players"][player]["match"]["matched"] for one in played.values()),
        "idle": sum(one.rows["players"][player]["match"]["wanted"] < HELD for one in played.values()),
        "arms": {arm: {name: paired_seeds.aggregate(values[arm][name]) for name in names} for arm in ARMS},
        "differences": {
            f"{a} - {b}": {name: paired_seeds.difference(values[a][name], values[b][name]) for name in names}
            for a, b in PAIRS
        },
    }  # fmt: skip
    if study.one_market:
        gains = {arm: np.stack([one.gains[f"{player} {arm} {where}"] for one in played.values()]) for arm in ARMS}
        year = _first(played).rows["identity"]["periods_per_year"]
        block = max(1.0, min(year * WEEK, bars / 2.0))
        result["over_time"] = {
            f"{a} - {b}": {
                name: paired_walks.difference(gains[a], gains[b], name, block) for name in paired_walks.STATISTICS
            }
            for a, b in PAIRS
        }
    return result


def _first(played: dict[int, Played]) -> Played:
    return next(iter(played.values()))


def _line(rows: dict[str, Any]) -> str:
    part = rows["players"]["ppo"]
    match = part["match"]
    words = [f"exposure {match['wanted']:.3f} and {match['reached']:.3f} on validation"]
    for where, ways in part["ranges"].items():
        falls = ", ".join(f"{way} {ways[way]['max_drawdown']:.3f}" for way in ARMS)
        words.append(f"drawdown on {where}: {falls}")
    return "; ".join(words)


def _identity(study: Study, seed: int) -> dict[str, Any]:
    found = arms.identity(study.arm, study.recipe, study.bars_of(seed), seed)
    game = arms.game_for(study.arm, study.bars_of(seed), "train")
    more = {"control": study.control, "periods_per_year": game.bars.periods_per_year, **CONSTANTS}
    plain: dict[str, Any] = json.loads(json.dumps({**found, **more}))
    return plain


def _made(study: Study, seed: int, told: Callable[[int], None]) -> Played:
    recipe, arm, bars = study.recipe, study.arm, study.bars_of(seed)
    found = _identity(study, seed)
    row = algorithm(recipe.algo)
    record_trial({
        **found, "settings": {**row.settings, **recipe.settings}, "lanes": row.lanes,
        "policy": net_settings(recipe.algo, recipe.settings), "arguments": {**arm.arguments, "sees": list(arm.sees)},
    })  # fmt: skip
    if study.split == "test":  # before it is read, so that a killed run has read it as well
        record_touch(arms.game_for(arm, bars, "test"), ["compare leverage"])
    left = study.steps

    def within(steps: int) -> None:  # whole rollouts go beyond what was asked, the bar of all runs does not
        nonlocal left
        told(min(steps, left))
        left -= min(steps, left)

    made = play(arm, recipe, bars, seed, study.control, within)
    rows = {"identity": found, "seed": seed, **made.rows}
    content = io.BytesIO()
    np.savez_compressed(content, **made.gains)  # type: ignore[arg-type]
    replace_file(_file(study, seed, "npz"), content.getvalue())
    replace_file(_file(study, seed, "json"), (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode())
    return Played(rows, made.gains)


def _file(study: Study, seed: int, kind: str) -> Path:
    return study.out / f"seed-{seed}.{kind}"


def _kept(study: Study, seed: int) -> Played | None:
    """Return a finished run of the folder, None where there is none.

    Raises:
        ConfigError: a file that is no run, or a run of something else.
    """
    path = _file(study, seed, "json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        with np.load(_file(study, seed, "npz"), allow_pickle=False) as held:
            gains = {name: held[name] for name in held.files}
        found = dict(rows["identity"])
        for part in rows["players"].values():
            for ways in part["ranges"].values():
                if any(not math.isfinite(number) for scores in ways.values() for number in scores.values()):
                    raise ValueError("a score is not a finite number")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no run of a leverage study: {error!r}; choose another folder") from error
    wanted = _identity(study, seed)
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ConfigError(
                f"{path} is a run with {name}={found.get(name)!r}, not {wanted[name]!r}: choose another folder"
            )
    return Played(rows, gains)
