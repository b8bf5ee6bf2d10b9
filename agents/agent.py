"""The predict protocol: everything that acts answers ``predict(observation, state, episode_start, deterministic)``.

Where an environment says which of its actions are legal, its masks go in as a last argument, ``action_masks``, under
the name and in the layout of sb3-contrib: ``env.get_wrapper_attr("action_masks")()``.

An agent declares ``reads``, the observation names it uses, and selects them by name: ``bind`` an agent to the names of
an environment and it finds its columns wherever they stand. Agents trained on different ids can so vote together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.signals.model import Signal as Signal  # what a vote says of one asset
from markets.errors import ConfigError, unknown

if TYPE_CHECKING:
    from agents.market_view import MarketView

Observation = NDArray[np.float32]
Votes = tuple[NDArray[np.float64], NDArray[np.float64], Any]  # direction (B, A), confidence (B, A), state
THRESHOLD = 0.3  # of an action's size, beyond which it is a vote: 0.3 itself is none


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

    def watch(self, view: MarketView) -> Agent:
        """Take note of the market an environment stands on, and return self; most agents see all they need anyway."""
        return self

    def vote(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Votes:
        """Say what the agent thinks of ``(B, D)`` observations: direction and confidence ``(B, A)`` each, and state.

        An action ``a`` in [-1, 1] beyond the threshold votes with ``sign(a)`` and strength ``|a|``; within it, none.
        """
        actions, state = self.predict(observation, state, episode_start, deterministic)
        strength = np.minimum(np.abs(np.atleast_2d(np.asarray(actions, np.float64))), 1.0)
        votes = ~(strength <= THRESHOLD)  # NaN stays one, for whoever checks
        direction = np.where(votes, np.sign(np.atleast_2d(actions)), 0.0)
        return direction, np.where(votes, strength, 0.0), state

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[NDArray[Any], Any]:  # fmt: skip
        """Choose actions for ``(D,)`` or ``(B, D)`` observations; returns actions ``(A,)`` or ``(B, A)`` and state.

        A policy over a list of choices answers as its action space does: whole numbers, without the A of ``Discrete``.

        Args:
            action_masks: ``(W,)`` or ``(B, W)``, true where a choice is legal; W of all numbers of an action, the first
                number's first. Agents that know of no masks take no notice of them.

        Raises:
            ConfigError: masks of another shape, or without one legal choice.
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
        if action_masks is None:
            actions, state = self.act(batch, state, episode_start, deterministic)
        else:
            masks = _as_masks(action_masks, len(batch))
            actions, state = self.act_masked(batch, masks, state, episode_start, deterministic)
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
    ) -> tuple[NDArray[Any], Any]:
        """Choose ``(B, A)`` actions from ``(B, len(reads))`` columns; agents implement this."""
        raise TypeError(f"{type(self).__name__} does not implement act")

    def act_masked(
        self, columns: Observation, masks: NDArray[np.bool_], state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Choose as ``act`` does, knowing which choices are legal, ``(B, W)``; what agents that know of none answer."""
        return self.act(columns, state, episode_start, deterministic)


def _as_masks(action_masks: Any, lanes: int) -> NDArray[np.bool_]:
    masks = np.atleast_2d(np.asarray(action_masks))
    if masks.dtype.kind not in "biuf" or masks.ndim != 2 or len(masks) != lanes or not masks.any(axis=1).all():
        raise ConfigError(
            f"action_masks are {masks.dtype} of shape {np.shape(action_masks)} for {lanes} observation(s); expected a "
            f"row of truth values for each, with a legal choice in it"
        )
    return masks != 0
