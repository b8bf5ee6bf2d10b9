"""Baselines of a portfolio of coins: held or rebalanced, equal weights or one coin, each with as many numbers an action
as there are coins.

A coin that is to be left alone is asked for at the weight it has, which the band keeps from becoming an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation

WEIGHT, CASH = "_weight", "cash_weight"


def coins_of(observation_names: Sequence[str]) -> tuple[str, ...]:
    """Return the coins whose weights an observation shows, in the order of an action's numbers."""
    return tuple(
        name.removesuffix(WEIGHT) for name in observation_names if name.endswith(WEIGHT) and name != CASH
    )  # fmt: skip


class _Portfolio(Agent):
    """Reads the weights of all coins, then ``more`` columns."""

    more: tuple[str, ...] = ()

    def bind(self, observation_names: Sequence[str]) -> Agent:
        """Find the weights of the coins there are."""
        self.coins = coins_of(observation_names)
        self.reads = (*(coin + WEIGHT for coin in self.coins), *self.more)
        return super().bind(observation_names)


class HoldCoins(_Portfolio):
    """Buys one coin, or all with equal weights, once and holds: sells nothing, buys nothing more.

    Args:
        coin: which; None for all.
    """

    def __init__(self, coin: str | None = None) -> None:
        super().__init__()
        self._coin = coin
        self.name = "equal weights, held" if coin is None else f"{coin}, held"

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the weights there are, or those to buy where there are none."""
        target = [1.0 / len(self.coins) if self._coin is None else float(coin == self._coin) for coin in self.coins]
        empty = np.abs(columns).sum(axis=1, keepdims=True) == 0.0
        return np.where(empty, np.array(target, np.float32), columns).astype(np.float32), state


class EqualWeightsDaily(_Portfolio):
    """Equal weights, restored at the close of the last bar of each UTC day."""

    name = "equal weights, daily"
    more = ("hour_sin", "hour_cos")

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return equal weights at midnight and where nothing is held, else the weights there are."""
        weights = columns[:, : len(self.coins)]
        midnight = (columns[:, -1:] > 0.999) & (np.abs(columns[:, -2:-1]) < 1e-3)
        empty = np.abs(weights).sum(axis=1, keepdims=True) == 0.0
        return np.where(midnight | empty, np.float32(1.0 / len(self.coins)), weights).astype(np.float32), state
