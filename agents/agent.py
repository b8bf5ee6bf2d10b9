"""The predict protocol: everything that acts answers ``predict(observation, state, episode_start, deterministic)``.

An agent declares ``reads``, the observation names it uses, and selects them by name: ``bind`` an agent to the names of
an environment and it finds its columns wherever they stand. Agents trained on different ids can so vote together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, unknown

Observation = NDArray[np.float32]


class Agent:
    """Base of all agents.

    Attributes:
        name: shown in reports.
        reads: observation names it uses.
    """

    name: str = "agent"
    reads: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._columns: NDArray[np.intp] | None = None
        self._width = 0

    def bind(self, observation_names: Sequence[str]) -> Agent:
        """Find the columns of ``reads`` among an environment's observation names, and return self.

        Raises:
            UnknownNameError: a name it reads is not there.
        """
        names = list(observation_names)
        for name in self.reads:
            if name not in names:
                raise unknown(f"observation name that {self.name!r} reads", name, names)
        self._columns = np.array([names.index(name) for name in self.reads], dtype=np.intp)
        self._width = len(names)
        return self

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.float32], Any]:
        """Choose actions for ``(D,)`` or ``(B, D)`` observations; returns actions ``(A,)`` or ``(B, A)`` and state.

        Raises:
            ConfigError: not bound, or an observation of another width than it was bound to.
        """
        if self._columns is None:
            raise ConfigError(f"agent {self.name!r} is not bound: call bind(env.get_wrapper_attr('observation_names'))")
        observation = np.asarray(observation, dtype=np.float32)
        if observation.ndim not in (1, 2) or observation.shape[-1] != self._width:
            raise ConfigError(
                f"observation has shape {observation.shape}; {self.name!r} is bound to {self._width} columns"
            )
        batch = np.take(np.atleast_2d(observation), self._columns, axis=1)  # in rows: the bits that training saw
        actions, state = self.act(batch, state, episode_start, deterministic)
        return (actions[0] if observation.ndim == 1 else actions), state

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Choose ``(B, A)`` actions from ``(B, len(reads))`` columns; agents implement this."""
        raise TypeError(f"{type(self).__name__} does not implement act")
