"""Baselines: the rungs that every score is read against. Exposures are in units of equity, 1x means unlevered.

An action is a share of the environment's leverage L, so a baseline is told L to trade at 1x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation
from markets.errors import unknown


class Idle(Agent):
    """Never trades."""

    name = "idle"

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> tuple[NDArray[np.float32], Any]:
        """Return exposure 0."""
        return np.zeros((len(columns), 1), np.float32), state


class Random(Agent):
    """Draws a fresh target, uniform over the action space, every bar: what costs alone do to an account."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = np.random.default_rng(seed)

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> tuple[NDArray[np.float32], Any]:
        """Return a uniform target (one draw for the whole batch, so that lanes see the same orders)."""
        target = self._generator.uniform(-1.0, 1.0)
        return np.full((len(columns), 1), target, np.float32), state


class BuyAndHold(Agent):
    """Buys 1x once and holds the quantity: asks for the exposure it has, which sends no further order."""

    name = "buy-and-hold"
    reads = ("exposure",)

    def __init__(self, leverage: float) -> None:
        super().__init__()
        self._unit = 1.0 / leverage

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> tuple[NDArray[np.float32], Any]:
        """Return the present exposure, or 1x where there is none."""
        held = columns[:, :1]
        return np.where(held == 0.0, np.float32(self._unit), held).astype(np.float32), state


class AlwaysShort(Agent):
    """Keeps a short of 1x equity, rebalanced as the band allows."""

    name = "always-short"

    def __init__(self, leverage: float) -> None:
        super().__init__()
        self._unit = 1.0 / leverage

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> tuple[NDArray[np.float32], Any]:
        """Return -1x."""
        return np.full((len(columns), 1), -self._unit, np.float32), state


class VolatilityTargetedLong(Agent):
    """Long with exposure ``min(target / sigma, L)``, sigma the annual volatility of the last 168 bars."""

    name = "volatility-targeted long"
    reads = ("log_volatility_168",)

    def __init__(self, leverage: float, target: float = 0.4) -> None:
        super().__init__()
        self._leverage = leverage
        self._target = target  # annual volatility of the account

    def act(self, columns: Observation, state: Any, episode_start: Any, deterministic: bool) -> tuple[NDArray[np.float32], Any]:
        """Return the exposure that aims at the target volatility."""
        exposure = self._target * np.exp(-columns[:, :1])
        return np.minimum(exposure / self._leverage, 1.0).astype(np.float32), state


BASELINES = ("idle", "random", "buy-and-hold", "always-short", "volatility-targeted long")


def baseline(name: str, leverage: float, seed: int = 0) -> Agent:
    """Make the baseline ``name`` for an environment of the given leverage.

    Raises:
        UnknownNameError: no such baseline.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    if name == "idle":
        return Idle()
    if name == "random":
        return Random(seed)
    kinds = {"buy-and-hold": BuyAndHold, "always-short": AlwaysShort, "volatility-targeted long": VolatilityTargetedLong}
    return kinds[name](leverage)
