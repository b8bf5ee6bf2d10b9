"""The one leak that replaying cannot see: an order that is filled at the close it was decided on.

Such an order earns the gap between that close and the next open, which no honest order does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

GAP = 0.02  # jump of the price
HOW = "the action earns the gap between the close that it has seen and the next open"

Spot = TypeVar("Spot")
Pay = Callable[[Spot, float, float, Any], float]


def extremes(space: gym.Space[Any]) -> tuple[Any, Any] | None:
    """Return two actions that want different positions, None where the space does not tell."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return space.low, space.high
    return None


def early_fill(pay: Pay[Spot], actions: tuple[Any, Any], spots: Sequence[Spot]) -> Spot | None:
    """Return the first spot at which an action earns the gap before the open at which it may fill.

    Args:
        pay: ``(spot, gap, move, action)`` -> reward of the step that ends at the spot, where the price jumps by ``gap``
            before the bar and moves by ``move`` inside it; NaN where it was not reached.
        actions: two that want different positions.
        spots: steps of a replay.
    """

    def effect(spot: Spot, gap: float, move: float) -> float:
        """Return how much more the step pays for one extreme than for the other."""
        return pay(spot, gap, move, actions[1]) - pay(spot, gap, move, actions[0])

    for spot in spots:
        jump = abs(effect(spot, GAP, 0.0) - effect(spot, -GAP, 0.0))
        move = abs(effect(spot, 0.0, GAP) - effect(spot, 0.0, -GAP))
        if jump > 0.5 * move > 0.0 and jump > 0.25 * abs(effect(spot, 0.0, 0.0)):  # beyond what costs can do
            return spot
    return None
