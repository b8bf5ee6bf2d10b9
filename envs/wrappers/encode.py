"""EncodeObservation and its vector twin: append an encoder's and signals' row of the present bar to the observation.

The columns are those of the environment, then the embedding (``jepa_00`` ..), standardised and clipped, then the odds
of the regimes (``regime_0`` .., ordered by volatility), then what signals say (``garch_direction`` ..). ``info`` says
the most likely regime and its probability by asset: ``BTC_regime``, ``BTC_regime_confidence``. A step looks up one row;
no network runs.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.simulation import ROW, Simulation
from markets.compiled import compiled
from markets.table import CausalTable

Observations = NDArray[np.float32]


def wider(space: gym.Space[Any], table: CausalTable) -> gym.spaces.Box:
    """Return a box with the columns of ``table`` behind those of ``space``."""
    assert isinstance(space, gym.spaces.Box)
    return gym.spaces.Box(
        np.concatenate([space.low, table.low]), np.concatenate([space.high, table.high]), dtype=np.float32
    )


class EncodeObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Append the columns of encoder and signals to each observation of a single environment."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._link()
        self.observation_space = wider(env.observation_space, self._table)

    def _link(self) -> None:
        simulation: Simulation = self.env.unwrapped.simulation  # type: ignore[attr-defined]
        encoded, table = simulation.game.encoded, simulation.game.appended
        assert table is not None
        self._simulation = simulation
        self._table = table
        self._values = table.values
        self._facts = () if encoded is None else tuple(encoded.facts.items())
        self._own = simulation.obs.shape[2]
        self._width = self._own + self._values.shape[1]

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The specification of the environment: its entry point makes this wrapper as well."""
        return self.env.spec

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return (*self.env.get_wrapper_attr("observation_names"), *self._table.names)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._append(observation, info), info

    def step(self, action: Any) -> tuple[Observations, Any, bool, bool, dict[str, Any]]:
        """Trade one bar."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._append(observation, info), reward, terminated, truncated, info

    def _append(self, observation: Observations, info: dict[str, Any]) -> Observations:
        row = int(self._simulation.accounts.item(ROW))
        out = np.empty(self._width, np.float32)
        out[: self._own] = observation
        out[self._own :] = self._values[row]
        if info:
            for key, values in self._facts:
                info[key] = values.item(row)
        return out

    def __getstate__(self) -> dict[str, Any]:
        linked = ("_simulation", "_table", "_values", "_facts", "_own", "_width")
        return {key: value for key, value in self.__dict__.items() if key not in linked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._link()


class EncodeObservationVector(gym.vector.VectorWrapper):
    """Append the columns of encoder and signals in every lane, the last observations of ended episodes included."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        if hasattr(env, "action_masks"):  # of the families that have them, as from the environment itself
            self.action_masks = env.action_masks
        encoded, table = self.simulation.game.encoded, self.simulation.game.appended
        assert table is not None
        self._table = table
        self._facts = {} if encoded is None else encoded.facts
        self.single_observation_space = wider(env.single_observation_space, table)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, env.num_envs)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return (*self.env.observation_names, *self._table.names)  # type: ignore[attr-defined]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._append(observations, self.simulation.rows, infos), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Trade one bar in every lane."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            rows, values = self.simulation.final_rows, self._table.values
            for lane in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][lane] = np.concatenate([infos["final_obs"][lane], values[rows[lane]]])
            if "final_info" in infos:
                self._say(infos["final_info"], rows)
        return self._append(observations, self.simulation.rows, infos), rewards, terminated, truncated, infos

    def _append(self, observations: Observations, rows: NDArray[np.int64], infos: dict[str, Any]) -> Observations:
        if "equity" in infos:
            self._say(infos, rows)
        return append_rows(observations, self._table, rows)

    def _say(self, infos: dict[str, Any], rows: NDArray[np.int64]) -> None:
        for key, values in self._facts.items():
            infos[key] = values[rows]


def append_rows(observations: Observations, table: CausalTable, rows: NDArray[np.int64]) -> Observations:
    """Append ``table[rows]`` to ``(N, D)`` observations: ``(N, D + E)``, fresh."""
    values = table.values
    own = observations.shape[1]
    out = np.empty((len(observations), own + values.shape[1]), np.float32)
    out[:, :own] = observations
    _gather(values, rows, own, out)
    return out


@compiled
def _gather(values: Observations, rows: NDArray[np.int64], first: int, out: Observations) -> None:
    """Write ``values[rows]`` to the columns of ``out`` from ``first`` on, without an array between."""
    for lane in range(rows.shape[0]):
        row = rows[lane]
        for column in range(values.shape[1]):
            out[lane, first + column] = values[row, column]
