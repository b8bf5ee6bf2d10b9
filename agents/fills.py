"""The one leak that replaying cannot see: an order that is filled at the close it was decided on.

Such an order earns the gap between that close and the next open, which no honest order does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

GAP = 0.02  # jump of the price
FUTURES = ((GAP, 0.0), (-GAP, 0.0), (0.0, GAP), (0.0, -GAP), (0.0, 0.0))  # gap before the bar, move inside it
MOST_CHOICES = 8  # that are all compared
HOW = "the action earns the gap between the close that it has seen and the next open"

Spot = TypeVar("Spot")
Pay = Callable[[Spot, float, float, Any], float]


def extremes(space: gym.Space[Any]) -> tuple[Any, ...] | None:
    """Return actions of which two want different positions, None where the space does not tell.

    Every one of a few choices (the others of a ``MultiDiscrete`` at their largest), or the two ends of a box.
    """
    if isinstance(space, gym.spaces.Discrete) and space.n <= MOST_CHOICES:
        return tuple(range(int(space.start), int(space.start + space.n)))
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec[0] <= MOST_CHOICES:
        rest = space.start[1:] + space.nvec[1:] - 1
        first = range(int(space.start[0]), int(space.start[0] + space.nvec[0]))
        return tuple(np.array([choice, *rest], dtype=space.dtype) for choice in first)
    if isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return space.low, space.high
    return None


def early_fill(pay: Pay[Spot], actions: tuple[Any, ...], spots: Sequence[Spot]) -> Spot | None:
    """Return the first spot at which an action earns the gap before the open at which it may fill.

    Args:
        pay: ``(spot, gap, move, action)`` -> reward of the step that ends at the spot, where the price jumps by ``gap``
            before the bar and moves by ``move`` inside it; NaN where it was not reached.
        actions: of which two want different positions; every pair is compared.
        spots: steps of a replay.
    """
    for spot in spots:
        paid = np.array([[pay(spot, gap, move, action) for gap, move in FUTURES] for action in actions])
        for one, two in combinations(paid, 2):
            up, down, risen, fallen, nothing = two - one  # how much more the step pays for one than for the other
            jump, move = abs(up - down), abs(risen - fallen)
            if jump > 0.5 * move > 0.0 and jump > 0.25 * abs(nothing):  # beyond what costs can do
                return spot
    return None
