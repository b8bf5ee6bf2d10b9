"""Baselines: the rungs that every score is read against.

``buy-and-hold``, ``always-short`` and ``volatility-targeted long`` are unlevered: reports walk them with leverage 1, so
that the whole notional is posted as margin and a third of the price does not liquidate them. ``random`` and ``idle``
play the agent's own game.

Those of options act within the masks where they are given some, one row of four values for each number of an action;
without any they answer for actions of one number, and what is not legal is held by the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation
from agents.spot_baselines import EqualWeightsDaily, HoldCoins, coins_of
from markets.errors import ConfigError, unknown

CHOICES = 4  # of an option's action, and of its size
EARLY = float(np.cos(2.0 * np.pi / 13.0))  # cosine of the session after its first thirteenth, 30 of 390 minutes


class Idle(Agent):
    """Never trades."""

    name = "idle"

    def bind(self, observation_names: Sequence[str]) -> Agent:
        """Take note of how many numbers an action has: one, or one a coin."""
        self._numbers_asked = max(len(coins_of(observation_names)), 1)
        return super().bind(observation_names)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return exposure 0."""
        return np.zeros((len(columns), self._numbers_asked), np.float32), state

    def act_masked(
        self, columns: Observation, masks: NDArray[np.bool_], state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return choice 0 for every number of an action: hold."""
        return np.zeros((len(columns), _rows(masks).shape[1]), np.float32), state


class Random(Agent):
    """Draws a fresh target, uniform over the action space, every bar: what costs alone do to an account."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = np.random.default_rng(seed)

    def bind(self, observation_names: Sequence[str]) -> Agent:
        """Take note of how many numbers an action has: one, or one a coin."""
        self._numbers_asked = max(len(coins_of(observation_names)), 1)
        return super().bind(observation_names)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return a uniform target (one draw for the whole batch, so that lanes see the same orders)."""
        target = self._generator.uniform(-1.0, 1.0, self._numbers_asked)
        return np.broadcast_to(target.astype(np.float32), (len(columns), self._numbers_asked)).copy(), state


class BuyAndHold(Agent):
    """Buys the whole exposure once and holds: asks for the exposure it has, which sends no further order.

    Funding moves an unlevered exposure beyond 1, which no action can ask for; a band that is wide enough
    (``UNLEVERED``) keeps that from becoming an order.
    """

    name = "buy-and-hold"
    reads = ("exposure",)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the present exposure, or the whole one where there is none."""
        held = columns[:, :1]
        return np.where(held == 0.0, np.float32(1.0), held).astype(np.float32), state


class AlwaysShort(Agent):
    """Keeps the whole exposure short, rebalanced as the band allows."""

    name = "always-short"

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the whole exposure, short."""
        return np.full((len(columns), 1), -1.0, np.float32), state


class VolatilityTargetedLong(Agent):
    """Long with exposure ``min(target / sigma, 1)``, sigma the annual volatility of the last 168 bars."""

    name = "volatility-targeted long"
    reads = ("log_volatility_168",)

    def __init__(self, target: float = 0.4) -> None:
        super().__init__()
        self._target = target  # annual volatility of the account

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the exposure that aims at the target volatility."""
        return np.minimum(self._target * np.exp(-columns[:, :1]), 1.0).astype(np.float32), state


BASELINES = {
    "idle": Idle,
    "random": Random,
    "buy-and-hold": BuyAndHold,
    "always-short": AlwaysShort,
    "volatility-targeted long": VolatilityTargetedLong,
}
# How reports walk them where that differs from the agent's own game. Buy-and-hold must not rebalance when funding moves
# its exposure, so its band is as wide as the account: only the first order is large enough.
UNLEVERED: dict[str, dict[str, float]] = {
    "buy-and-hold": {"leverage": 1.0, "rebalance_band": 0.99},
    "always-short": {"leverage": 1.0},
    "volatility-targeted long": {"leverage": 1.0},
}


class AtOpen(Agent):
    """Buys the option at the money in the first half hour of a session and holds it to the forced exit.

    Reads where the session stands from its sine and cosine: before a thirteenth of it has passed. Where actions have a
    size, it is the largest that is legal.
    """

    reads = ("right", "session_sin", "session_cos")

    def __init__(self, choice: int, name: str) -> None:
        super().__init__()
        self._choice, self.name = choice, name

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the purchase while nothing is held or ordered early in the session, else 0 (hold)."""
        early = (columns[:, 1] > 0.0) & (columns[:, 2] > EARLY)
        return np.where((columns[:, :1] == 0.0) & early[:, None], self._choice, 0).astype(np.float32), state

    def act_masked(
        self, columns: Observation, masks: NDArray[np.bool_], state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return the purchase where it is legal, at the largest legal size."""
        wanted, state = self.act(columns, state, episode_start, deterministic)
        rows = _rows(masks)
        out = np.where(rows, np.arange(CHOICES), 0).max(axis=2).astype(np.float32)
        out[:, 0] = np.where(rows[:, 0, self._choice], wanted[:, 0], 0.0)
        return out, state


class RandomLegal(Agent):
    """Draws from the legal choices, each as likely, in a tenth of the bars, and holds in the others.

    One draw of ranks serves the whole batch, so that lanes in the same situation see the same orders. The generator is
    the state: every walk begins with the same one. Without masks it holds, which is always legal.
    """

    name = "random legal"
    share = 0.1  # of the bars

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return 0 (hold)."""
        return np.zeros((len(columns), 1), np.float32), state

    def act_masked(
        self, columns: Observation, masks: NDArray[np.bool_], state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return a legal choice for every number of an action."""
        generator = np.random.default_rng(self._seed) if state is None else state
        rows = _rows(masks)
        ranks = generator.random(rows.shape[1:])
        chosen = np.where(rows, ranks, -1.0).argmax(axis=2)
        if generator.random() >= self.share:
            chosen[:, 0] = 0
        return chosen.astype(np.float32), generator


def _rows(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return masks ``(B, W)`` as ``(B, A, 4)``: every number of an option's action has four values."""
    if masks.shape[1] % CHOICES:
        raise ConfigError(f"action_masks have {masks.shape[1]} columns; these baselines choose from {CHOICES} values")
    return masks.reshape(len(masks), -1, CHOICES)


OPTION_BASELINES: dict[str, Callable[[], Agent]] = {
    "idle": Idle,
    "random legal": RandomLegal,
    "call at open": lambda: AtOpen(1, "call at open"),
    "put at open": lambda: AtOpen(2, "put at open"),
}
PORTFOLIO_BASELINES: dict[str, Callable[[], Agent]] = {
    "idle": Idle,
    "random": Random,
    "equal weights, held": HoldCoins,
    "equal weights, daily": EqualWeightsDaily,
}
CHANGED: dict[str, dict[str, dict[str, float | str | None]]] = {
    "PerpFutures": {
        name: {"contract_leverage": None, "leverage_control": "", **changes} for name, changes in UNLEVERED.items()
    },
    "SpotCrypto": {"equal weights, daily": {"rebalance_band": 0.005}},
}
OF_FAMILY: dict[str, Mapping[str, Callable[[], Agent]]] = {
    "PerpFutures": BASELINES,
    "ZeroDTE": OPTION_BASELINES,
    "SpotCrypto": PORTFOLIO_BASELINES,
}


def baselines_of(family: str, observation_names: Sequence[str] = ()) -> Mapping[str, Callable[[], Agent]]:
    """Return the baselines of a family, by name; of a portfolio also each coin, where its observation names are given.

    Raises:
        UnknownNameError: a family without any.
    """
    if family not in OF_FAMILY:
        raise unknown("family with baselines", family, OF_FAMILY)
    coins = coins_of(observation_names)
    held: dict[str, Callable[[], Agent]] = {f"{coin}, held": partial(HoldCoins, coin) for coin in coins}
    return {**OF_FAMILY[family], **(held if len(coins) > 1 else {})}


def unlevered_of(family: str) -> dict[str, dict[str, float | str | None]]:
    """Return which baselines of a family reports walk with other arguments, and with which."""
    return CHANGED.get(family, {})


def baseline(name: str) -> Agent:
    """Make the baseline ``name``.

    Raises:
        UnknownNameError: no such baseline.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    agent: Agent = BASELINES[name]()
    return agent
