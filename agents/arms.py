"""Arms: what is trained beside what, one recipe a name, on one market and the same seeds.

An arm is an environment with its arguments, and the columns that it sees of what the environment serves; the others are
constants (:mod:`envs.wrappers.hide`), so that arms of one environment have the same spaces, the same network and, seed
by seed, the same initial weights. A study can append columns that no environment has (``revealed``).

A training ends with its last weights: nothing is chosen on what is scored. The score of a run is the mean log growth of
an episode over the E whole episodes of a split, each from a flat account::

    score = 1 / E  sum_e max(ln(V_end / V_0), ln(ruin))

``ruin`` is the share of the start below which an episode of the environment ends, 0.01 where it has none. A bar that
takes an account beyond it has no logarithm that means anything, and would decide the score alone; how many episodes
ended there is told beside it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback

from agents import fit
from agents.learnability import score
from agents.recipe import REWARD_SCALE, resolve
from agents.sb3 import algorithm, build_model, check_actions
from agents.vec_env import NativeVecEnv
from envs.make import family_of, game_of, lanes_of
from envs.simulation import Game
from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.table import CausalTable

Revealed = Callable[[Bars, Any], CausalTable]  # (bars, configuration of the environment) -> columns
RUIN = 0.01  # share of the start, of environments that have none of their own
RESERVED = ("bars", "split", "info", "render_mode")  # the same for all arms, or none of theirs


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        name: shown in reports.
        env: registered id. arguments: of it, beside the bars.
        sees: columns that it is shown, ``*`` stands for any text; empty: all that the environment serves.
        plays: makes the policy of an arm that is not trained, from the names of its columns; None trains one.
    """

    name: str
    env: str
    arguments: dict[str, Any] = field(default_factory=dict)
    sees: tuple[str, ...] = ()
    plays: Callable[[Sequence[str]], Any] | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise ConfigError(f"arm {self.name!r}: its name is letters, digits, '-', '_' and '.'")
        for name in RESERVED:
            if name in self.arguments:
                raise ConfigError(f"arm {self.name!r}: {name} is the same for every arm and no argument of one")
        if self.sees and "hide" in self.arguments:
            raise ConfigError(f"arm {self.name!r}: sees and hide both say what is shown; pass one of them")


def parse_arm(text: str, env: str) -> tuple[str, str, dict[str, str]]:
    """Read ``NAME:key=value,...`` as name, id and texts of arguments; ``env=ID`` replaces ``env``.

    A comma separates two arguments only where the name of an argument and ``=`` follow it, so that values may hold
    commas: ``clockless:hide=hour_sin,hour_cos,leverage=2``.

    Raises:
        ConfigError: not of that form, or an argument twice.
        UnknownNameError: an id or an argument that does not exist.
    """
    name, _, rest = text.partition(":")
    found: dict[str, str] = {}
    names = {"env"}.union(*(family_of(family).config.__dataclass_fields__ for family in _families()))
    for word in rest.split(",") if rest else []:
        key, equals, value = word.partition("=")
        if equals and (key in names or not found):
            if key in found:
                raise ConfigError(f"--arm {text!r} gives {key!r} twice")
            found[key] = value
        elif found:
            last = next(reversed(found))
            found[last] += f",{word}"
        else:
            raise ConfigError(f"--arm {text!r} is not NAME:key=value,...")
    chosen = found.pop("env", env)
    family, _ = resolve(chosen, {})
    valid = family_of(family).config.__dataclass_fields__
    for key in found:
        if key not in valid:
            raise unknown(f"argument of {chosen} in --arm {name}", key, [*valid, "env"])
    return name, chosen, found


def _families() -> tuple[str, ...]:
    from envs.make import FAMILIES

    return tuple(FAMILIES)


def game_for(arm: Arm, bars: str | None, split: str, revealed: Revealed | None = None) -> Game:
    """Prepare the game of an arm on a split: with what is revealed, without what the arm does not see.

    Raises:
        UnknownNameError: a column to see that is not served.
    """
    arguments = {**arm.arguments, **({} if bars is None else {"bars": bars})}
    family, config = resolve(arm.env, arguments)
    changes: dict[str, Any] = {"split": split}
    if split != "train" and hasattr(config, "random_start"):
        changes["random_start"] = None
    game = game_of(family, replace(config, **changes))
    if revealed is not None:
        game = replace(game, revealed=revealed(game.bars, config))
    if not arm.sees:
        return game
    shown = set(seen_columns(arm, game.all_names))
    hidden = [name for name in game.all_names if name not in shown]
    return replace(game, recipe=(family, replace(game.recipe[1], hide=",".join(hidden))))


def seen_columns(arm: Arm, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns among ``names`` that an arm is shown.

    Raises:
        UnknownNameError: a pattern that fits none.
    """
    for pattern in arm.sees:
        if not fnmatch.filter(names, pattern):
            raise unknown(f"observation column that arm {arm.name!r} sees", pattern, names)
    hidden = {name.strip() for name in str(arm.arguments.get("hide", "")).split(",")}
    shown = (name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in arm.sees or ("*",)))
    return tuple(name for name in shown if name not in hidden)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every arm is trained, and on what it is scored.

    Attributes:
        algo, settings, steps, lanes: as :class:`agents.recipe.TrainingConfig`; a policy that acts on an observation
            alone (``ppo``, ``a2c``). device: of torch.
        split: the split that is scored.
    """

    algo: str = "ppo"
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 500_000
    lanes: int = 0
    device: str = "cpu"
    split: str = "validation"


def check(arm: Arm, recipe: Recipe, bars: str | None, revealed: Revealed | None = None) -> None:
    """Raise what is wrong with an arm on these bars before anything is trained."""
    game = game_for(arm, bars, "train", revealed)
    check_actions(recipe.algo, family_of(game.recipe[0]).action_space(game.recipe[1]), game.masks is not None)
    game_for(arm, bars, recipe.split, revealed)


def play(
    arm: Arm, recipe: Recipe, bars: str | None, seed: int, revealed: Revealed | None = None,
    told: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:  # fmt: skip
    """Train an arm with a seed and score its last weights; ``told`` is given the steps done as they are done."""
    steps, model = 0, None
    if arm.plays is None:
        model = trained(arm, recipe, bars, seed, revealed, told)
        steps = int(model.num_timesteps)
    game = game_for(arm, bars, recipe.split, revealed)
    policy = arm.plays(game.all_names) if arm.plays is not None else model.policy  # type: ignore[union-attr]
    found = score(lambda seen: policy.predict(seen, deterministic=True)[0], game, False)
    growth, floor = found.returns.sum(axis=1), math.log(getattr(game.recipe[1], "ruin", RUIN))
    ruined = int((growth <= floor).sum())
    growth = np.maximum(growth, floor)
    return {
        "steps": steps, "episodes": len(growth), "bars": found.returns.shape[1], "score": float(growth.mean()),
        "sd": float(growth.std()), "ruined": ruined, "costs": float(found.costs.mean()), "growth": growth.tolist(),
    }  # fmt: skip


def trained(
    arm: Arm, recipe: Recipe, bars: str | None, seed: int, revealed: Revealed | None = None,
    told: Callable[[int], None] = lambda steps: None,
) -> Any:  # fmt: skip
    """Train an arm with a seed and return the model with its last weights; ``told`` is given steps as they are done."""
    game = game_for(arm, bars, "train", revealed)
    lanes = recipe.lanes or algorithm(recipe.algo).lanes
    vector = lanes_of(game, lanes, autoreset_mode=AutoresetMode.SAME_STEP.value, info="none")
    env = NativeVecEnv(vector, REWARD_SCALE)
    model = build_model(recipe.algo, env, seed, recipe.device, None, recipe.settings)
    model.learn(recipe.steps, callback=_Told(told))
    env.close()
    model.policy.set_training_mode(False)
    return model


class _Told(BaseCallback):
    """Passes on how many steps were done since it last did."""

    def __init__(self, told: Callable[[int], None]) -> None:
        super().__init__()
        self._told, self._said = told, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._told(self.num_timesteps - self._said)
        self._said = self.num_timesteps


def identity(arm: Arm, recipe: Recipe, bars: str | None, seed: int, revealed: Revealed | None = None) -> dict[str, Any]:
    """Return what makes a run this run: recipe, columns that are seen, bars, scaler, encoder and signals."""
    game = game_for(arm, bars, "train", revealed)
    content: dict[str, Any] = {
        "arm": arm.name, "env": arm.env.split(":")[-1], "arguments": arm.arguments, "algo": recipe.algo,
        "settings": recipe.settings, "steps": recipe.steps, "lanes": recipe.lanes, "split": recipe.split, "seed": seed,
        "trained": arm.plays is None, "columns": list(seen_columns(arm, game.all_names)), "bars": game.bars.hash,
        "scaler": game.details["scaler"].hash, "encoder": fit.encoder(game),
    }  # fmt: skip
    if fit.signals(game):
        content["signals"] = fit.signals(game)
    return content
