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
            ConfigError: not bound, or an observation that is no table of numbers of the width it was bound to, or
                with one that is not finite in a column it reads; the column is named.
        """
        if self._columns is None:
            raise ConfigError(f"agent {self.name!r} is not bound: call bind(env.get_wrapper_attr('observation_names'))")
        observation = self._numbers(observation)
        if observation.ndim not in (1, 2) or observation.shape[-1] != self._width:
            raise ConfigError(
                f"observation has shape {observation.shape}; {self.name!r} is bound to {self._width} columns"
            )
        batch = np.take(np.atleast_2d(observation), self._columns, axis=1)  # in rows: the bits that training saw
        self._check_finite(batch)
        actions, state = self.act(batch, state, episode_start, deterministic)
        return (actions[0] if observation.ndim == 1 else actions), state

    def _numbers(self, observation: Any) -> Observation:
        try:
            return np.asarray(observation, dtype=np.float32)
        except (TypeError, ValueError) as error:
            kind = type(observation).__name__
            raise ConfigError(
                f"observation is a {kind} that is no array of numbers; {self.name!r} needs ({self._width},) or "
                f"(B, {self._width}): {error}"
            ) from error

    def _check_finite(self, batch: Observation) -> None:
        if not np.isfinite(batch).all():
            lane, place = np.argwhere(~np.isfinite(batch))[0]
            raise ConfigError(
                f"observation holds {batch[lane, place]} in column {self.reads[place]!r} (row {lane} of {len(batch)}); "
                f"{self.name!r} acts on finite numbers only"
            )

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Choose ``(B, A)`` actions from ``(B, len(reads))`` columns; agents implement this."""
        raise TypeError(f"{type(self).__name__} does not implement act")
