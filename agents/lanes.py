"""Lanes of a walk: the same game at several cost scales, side by side.

Where every cost is charged to the account, one simulation serves all scales, a lane each. Where quotes stand in the
market matrix (``Game.costs_in_market``), another scale is another matrix, and each scale gets a simulation of its own;
the agent still answers for all of them in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.make import game_of
from envs.simulation import COST_SCALE, MODE_DISABLED, Game, Simulation


class Lanes:
    """S accounts over one split, account k at ``scales[k]`` times the game's costs, none drawn at random.

    Attributes:
        accounts: ``(S, K)`` account rows, as they are after the last call.
    """

    def __init__(self, game: Game, scales: Sequence[float]) -> None:
        game = replace(game, randomised_costs=0.0)
        self._count = len(scales)
        if game.costs_in_market:
            self._simulations = [Simulation(_at_scale(game, scale), 1) for scale in scales]
        else:
            simulation = Simulation(game, len(scales))
            simulation.accounts[0, :, COST_SCALE] = np.array(scales) * simulation.accounts[0, :, COST_SCALE]
            self._simulations = [simulation]
        self._generators = [np.random.default_rng(0) for _ in scales]  # of fills: the start is given
        self._read()

    def begin(self, start: int) -> None:
        """Begin an episode on row ``start`` in every lane; all draw the same fills."""
        place = 0
        for simulation in self._simulations:
            lanes = simulation.lanes
            generators = self._generators[place : place + lanes]
            simulation.reset(generators, None, np.full(lanes, start), np.ones(lanes, bool))
            place += lanes
        self._read()

    def seen(self) -> NDArray[np.float32]:
        """Return the present observations, ``(S, D)``; to be read before the next step."""
        return _joined([simulation.seen() for simulation in self._simulations])

    def rows(self) -> NDArray[np.int64]:
        """Return the bar index of each present observation, ``(S,)``."""
        return _joined([simulation.rows for simulation in self._simulations])

    def action_masks(self) -> NDArray[np.bool_] | None:
        """Return which choices are legal, ``(S, W)``; None where every action is."""
        masks = [part for simulation in self._simulations if (part := simulation.action_masks()) is not None]
        return _joined(masks) if masks else None

    def step(self, actions: NDArray[np.float64]) -> None:
        """Trade one bar with actions ``(S, A)``, or ``(S,)`` where an action is one number."""
        parts = [actions] if len(self._simulations) == 1 else np.split(np.asarray(actions), self._count)
        for simulation, part in zip(self._simulations, parts, strict=True):
            simulation.set_actions(part)
            simulation.run(MODE_DISABLED)
        self._read()

    def _read(self) -> None:
        self.accounts = _joined([simulation.accounts[0] for simulation in self._simulations])


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _at_scale(game: Game, scale: float) -> Game:
    """Return the game with the market and the fees of another cost scale."""
    if scale == 1.0:
        return game
    family, config = game.recipe
    other = game_of(family, replace(config, cost_scale=config.cost_scale * scale))
    return replace(game, market=other.market, defaults=other.defaults, recipe=other.recipe)
