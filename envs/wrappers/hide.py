"""HideObservations and its vector twin: named observation columns are served as a constant, so that nothing is in them.

Widths, names, bounds and spaces stay what they were; a hidden column is 0, or the nearest number within its bounds. It
is the outermost wrapper of an environment: columns that an encoder appends are hidden as well. ``info``, rewards and
``action_masks`` are untouched; note that masks tell something of the clock by themselves.

Made by ``gym.make(id, hide="hours_to_close,session_sin")``; the names are part of the configuration, so that an agent
that was trained without some columns is evaluated without them.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.simulation import Game, Simulation


class HideObservations(gym.Wrapper[Any, Any, Any, Any]):
    """Serve the hidden columns of a single environment as constants."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._link()

    def _link(self) -> None:
        simulation: Simulation = self.env.unwrapped.simulation  # type: ignore[attr-defined]
        self._places, self._values = _hidden(simulation.game)

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The specification of the environment: its entry point makes this wrapper as well."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        observation[self._places] = self._values  # a fresh array: who calls it owns it
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Trade one bar."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation[self._places] = self._values
        return observation, reward, terminated, truncated, info

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_places", "_values")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._link()


class HideObservationsVector(gym.vector.VectorWrapper):
    """Serve the hidden columns as constants in every lane, the last observations of ended episodes included."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        if hasattr(env, "action_masks"):  # of the families that have them, as from the environment itself
            self.action_masks = env.action_masks
        self._places, self._values = _hidden(self.simulation.game)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return self.env.observation_names  # type: ignore[attr-defined]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        observations[:, self._places] = self._values
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Trade one bar in every lane."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            for lane in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][lane][self._places] = self._values
        observations[:, self._places] = self._values
        return observations, rewards, terminated, truncated, infos


def _hidden(game: Game) -> tuple[Any, Any]:
    assert game.hidden is not None
    return game.hidden
