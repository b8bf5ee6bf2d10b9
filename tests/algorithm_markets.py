"""Which id and bars an algorithm is tested on: one whose actions it can take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.make import game_of
from envs.perp_futures import PerpFuturesConfig
from envs.simulation import Game
from envs.zero_dte_config import ZeroDTEConfig


class Market(NamedTuple):
    """An id, its family, and arguments for a market that is quick to prepare."""

    env: str
    family: str
    bars: str
    width: int  # of the masks of legal choices, 0 without any

    def game(self) -> Game:
        """Return the prepared training game."""
        kind: Any = ZeroDTEConfig if self.family == "ZeroDTE" else PerpFuturesConfig
        return game_of(self.family, kind(bars=self.bars))

    def masks(self, count: int | None = None) -> dict[str, NDArray[np.bool_]]:
        """Return what a prediction for ``count`` observations, or for one, is told: masks in which all is legal."""
        shape = (self.width,) if count is None else (count, self.width)
        return {"action_masks": np.ones(shape, bool)} if self.width else {}

    def observations(self, count: int, seed: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """Return rows drawn between two shares of the way from the lowest to the highest value of each column."""
        game = self.game()
        unit = np.random.default_rng(seed).uniform(low, high, (count, len(game.names)))
        return np.asarray(game.low + unit * (game.high - game.low), np.float32)


PERPETUAL = Market("PerpFutures-v0", "PerpFutures", "synthetic:crypto?seed=1&interval=1h&bars=3000", 0)
SESSIONS = Market("ZeroDTE-v0", "ZeroDTE", "synthetic:spy?seed=1&sessions=20", 4)


def market(algo: str) -> Market:
    """Return the market of an algorithm."""
    return SESSIONS if algo == "maskable_ppo" else PERPETUAL
