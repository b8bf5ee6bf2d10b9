"""One seed of the leverage study: a market, a policy that is trained on it, and the three ways in which it is walked.

::

    fixed      leverage L in every bar, as in training
    control    behind a controller with multipliers of the validation bars, its base leverage such that the policy's
               mean absolute exposure on validation is that of ``fixed``
    hindsight  fixed again, at the leverage (1 or more) whose exposure on the *reported* bars is that of ``control``.
               Nobody can know it beforehand: it tells what holding less would have done without knowing when

The policy sees columns that mean the same at any leverage: returns, volatility, odds of the regimes, exposure as a
share of L, its last action. Beside it an untrained one is walked, always long, with mean exposure of about 1, so that
what is seen of the control alone does not hang on a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import arms, metrics
from agents.agent import Agent, Observation
from agents.arms import Arm, Recipe
from agents.evaluation import walk
from agents.leverage_calibration import HELD, Match, calibrated, matched
from agents.unseen_regime import is_crypto, with_unseen_regime
from encoders.encoder import seed_of
from envs.leverage import CUTS, RegimeAwareLeverageController
from envs.simulation import LEVERAGE as LEVERAGE_COLUMN
from envs.simulation import Game
from envs.wrappers.leverage import controlled
from markets.sources.memory import register_bars

ENV = "PerpFutures-JEPA-v0"
LEVERAGE, MOST = 2.0, 6.0  # of ``fixed``, and the most that a controller may ask for
ARGUMENTS: dict[str, Any] = {"leverage": LEVERAGE, "rebalance_band": 0.25, "continue_after_liquidation": True}
# Neither the embedding nor all features: with them policies learned 24,000 bars by heart (validation, seeds 100, 101).
SEES = (
    "return_1", "return_24", "return_168", "log_volatility_168", "exposure", "previous_action", "regime_*",
)  # fmt: skip
ARMS = ("fixed", "control", "hindsight")
UNSEEN_VOLATILITY, UNSEEN_BARS = 3.0, 720  # per square root of a year, six times what was seen; a month of hours
FLOOR = 0.01  # share of the start below which a logarithm says no more


@dataclass(frozen=True)
class Played:
    """What one seed gave.

    Attributes:
        rows: plain values for a file. gains: name -> ``(T,)`` simple returns a bar, of ``PLAYER ARM RANGE``.
    """

    rows: dict[str, Any]
    gains: dict[str, NDArray[np.float64]]


class Policy(Agent):
    """A trained network as an agent that reads the columns it was trained with, in their order."""

    name = "ppo"

    def __init__(self, network: Any, reads: Sequence[str]) -> None:
        super().__init__()
        self._network, self.reads = network, tuple(reads)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return the network's mean action."""
        return self._network.predict(columns, deterministic=True)[0], state


class Long(Agent):
    """Asks for the same share of the leverage in every bar: long, with exposure 1 at the leverage of ``fixed``."""

    name = "long"

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the share."""
        return np.full((len(columns), 1), 1.0 / LEVERAGE, np.float32), state


def arm_of(arguments: dict[str, Any]) -> Arm:
    """Return the one arm that is trained; ``arguments`` replace those of ``ARGUMENTS``."""
    return Arm(name="ppo", env=ENV, arguments={**ARGUMENTS, **arguments}, sees=SEES)


def play(
    arm: Arm, recipe: Recipe, bars: str | None, seed: int, settings: dict[str, Any],
    told: Callable[[int], None] = lambda steps: None,
) -> Played:  # fmt: skip
    """Train with a seed, calibrate and match on validation, walk the ranges that are reported.

    Args:
        recipe: ``split`` is the one that is reported; a test split brings the unseen regime with it where bars are of
            ``synthetic:crypto``. settings: of the controller, such as ``patience_bars``.
    """
    model = arms.trained(arm, recipe, bars, seed, None, told)
    names = arms.game_for(arm, bars, "train").all_names
    return walked(arm, recipe.split, bars, seed, (Policy(model.policy, names), Long()), settings)


def walked(
    arm: Arm, split: str, bars: str | None, seed: int, players: Sequence[Agent], settings: dict[str, Any]
) -> Played:  # fmt: skip
    """Do what :func:`play` does, with policies that are there."""
    validation = arms.game_for(arm, bars, "validation")
    shape = calibrated(validation)
    rows: dict[str, Any] = {"calibration": shape.as_dict(), "players": {}}
    gains: dict[str, NDArray[np.float64]] = {}

    def controller(base: float) -> RegimeAwareLeverageController:
        given = {"multipliers": shape.multipliers, "max_leverage": MOST, **settings}
        return RegimeAwareLeverageController(base_leverage=base, **given)

    ranges = reported(arm, split, bars, seed, validation)
    for agent in players:
        match = base_of(agent, validation, controller)
        found: dict[str, Any] = {"match": match.as_dict(), "ranges": {}}
        for name, game in ranges.items():
            scores, series = three_ways(agent, game, controller(match.base_leverage))
            found["ranges"][name] = scores
            gains |= {f"{agent.name} {way} {name}": gain for way, gain in series.items()}
        rows["players"][agent.name] = found
    return Played(rows, gains)


def base_of(agent: Agent, game: Game, controller: Callable[[float], RegimeAwareLeverageController]) -> Match:
    """Return the base leverage that gives a policy the exposure that it has at a fixed leverage, on a game's split."""

    def exposure(base: float) -> float:
        return _exposure(agent, controlled(game, controller(base)))

    return matched(exposure, _exposure(agent, game), game.recipe[1].leverage, MOST)


def _exposure(agent: Agent, game: Game) -> float:
    return float(np.abs(walk(agent, game).exposure[:, 0]).mean())


def three_ways(
    agent: Agent, game: Game, controller: RegimeAwareLeverageController
) -> tuple[dict[str, dict[str, float]], dict[str, NDArray[np.float64]]]:
    """Walk a policy through a game's split in the three ways; scores, and returns ``(T,)``, by way."""
    leverage = game.recipe[1].leverage
    fixed, control = scored(agent, game), scored(agent, controlled(game, controller))
    held, wanted = (part[0]["mean_absolute_exposure"] for part in (fixed, control))
    start = leverage if held < HELD else min(max(leverage * wanted / held, 1.0), MOST)
    known = matched(lambda one: _exposure(agent, at_leverage(game, one)), wanted, start, MOST)
    found = {"fixed": fixed, "control": control, "hindsight": scored(agent, at_leverage(game, known.base_leverage))}
    return {way: part[0] for way, part in found.items()}, {way: part[1] for way, part in found.items()}


def at_leverage(game: Game, leverage: float) -> Game:
    """Return a game at another fixed leverage, at least 1, whose observations, scaler and tables stay what they are."""
    return replace(game, defaults={**game.defaults, LEVERAGE_COLUMN: leverage})


def scored(agent: Agent, game: Game) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Walk a policy through a game's split; scores and returns of a bar ``(T,)``."""
    found = walk(agent, game)
    steps, curve, exposure = found.steps, found.equity[:, 0], np.abs(found.exposure[:, 0])
    assert steps is not None
    years = len(steps.gain) / game.bars.periods_per_year
    final = max(float(curve[-1] / curve[0]), FLOOR)
    control = game.control
    rows = slice(game.first, game.first + len(steps.gain))
    asked = np.full(1, game.defaults[LEVERAGE_COLUMN]) if control is None else control.requested[rows]
    return {
        "max_drawdown": metrics.max_drawdown(curve),
        "log_growth": math.log(final),
        "total_return": metrics.total_return(curve),
        "sharpe": metrics.sharpe(curve, game.bars.periods_per_year),
        "worst_day": worst_day(steps.gain),
        "liquidations": float(found.items["liquidations"][0]),
        "mean_absolute_exposure": float(exposure.mean()),
        "turnover_per_year": float(found.turnover[0] / years),
        "costs_per_year": float((steps.costs / np.maximum(steps.equity, 1e-9)).sum() / years),
        "mean_leverage": float(asked.mean()),
        **{f"cut_{name}": 0.0 if control is None else float((control.cut[rows] == place).mean())
           for place, name in enumerate(CUTS) if name},
        "ruined": float(found.ended_by[0] != "" or curve[-1] < FLOOR * curve[0]),
        "bars": float(len(steps.gain)),
    }, steps.gain  # fmt: skip


def worst_day(gains: NDArray[np.float64], bars: int = 24) -> float:
    """Return the worst simple return over ``bars`` bars in a row."""
    growth = np.concatenate([[0.0], np.cumsum(np.log1p(np.maximum(gains, metrics.RUIN - 1.0)))])
    bars = min(bars, len(gains))
    return float(np.expm1((growth[bars:] - growth[:-bars]).min()))


def reported(arm: Arm, split: str, bars: str | None, seed: int, validation: Game) -> dict[str, Game]:
    """Return the games that are reported, by name: the split, and behind validation a regime that nobody has seen."""
    games = {split: arms.game_for(arm, bars, split)}
    source = validation.bars
    if split != "test" or not is_crypto(source.source) or seed_of(source) is None:
        return games
    train = arms.game_for(arm, bars, "train")
    wild = with_unseen_regime(source, validation.last + 1, UNSEEN_BARS, UNSEEN_VOLATILITY)
    ends = {"train_end": str(source.close_time[train.last]), "validation_end": str(source.close_time[validation.last])}
    name = register_bars(f"leverage-study-{seed}", wild)
    game = arms.game_for(replace(arm, arguments={**arm.arguments, **ends}), name, "test")
    assert game.details["scaler"].hash == validation.details["scaler"].hash  # the range it is fitted on is the same
    return {**games, "unseen": game}
