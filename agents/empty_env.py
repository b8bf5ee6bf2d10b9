"""What the benchmark compares with: environments that do nothing, behind the same interface as ours."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

EMPTY_ID = "RegimeGymEmpty-v0"


class EmptyEnv(gym.Env[NDArray[np.float32], Any]):
    """The least an environment can do: the spaces of ours, a copy of one observation, an empty info."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, like: str) -> None:
        made = gym.make(like)
        self.observation_space, self.action_space = made.observation_space, made.action_space
        self._observation = made.reset(seed=0)[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the one observation."""
        return self._observation.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the one observation."""
        return self._observation.copy(), 0.0, False, False, {}


class EmptyKernel:
    """A native step that does nothing: what is left of a training run is the learner and the bridge."""

    def __call__(self, *_: Any) -> int:
        """End no episode."""
        return 0


def make_empty(like: str) -> gym.Env[Any, Any]:
    """Return an empty environment with the spaces of the id ``like``, through ``gym.make`` as ours are."""
    if EMPTY_ID not in gym.registry:
        gym.register(EMPTY_ID, entry_point="agents.empty_env:EmptyEnv")
    return gym.make(EMPTY_ID, like=like)
