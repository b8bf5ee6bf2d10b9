"""LimitRisk and its vector twin: risk limits between a policy and an environment of any family.

The rules are :mod:`markets.risk_limits`, the object that a live trader holds as well; a family says what its accounts
show and how an action is replaced (``envs.perp_risk``, ``envs.zero_dte_risk``, ``envs.spot_risk``). An action within
the limits is passed on as it is; another one is clipped or replaced before the environment sees it.

``info["requested_action"]`` is what the policy asked for, ``info["action"]`` what was applied (of a portfolio by coin,
``BTC_requested_action`` and ``BTC_action``), and ``info["limit"]`` the name of the limit that changed it (``""``: none;
:data:`markets.risk_limits.LIMITS`). ``action_masks()`` leaves out what the limits forbid. What is guaranteed, and what
is not, is said in :mod:`markets.risk_limits`; here in particular: an order is sized at the close of its bar and fills
at the open of the next one (that of a portfolio is sized there), and a purchase of options that is pegged again may
cost more than it would have at first.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.simulation import OUTCOME, RUNNING, Simulation, as_numbers, check_choices
from markets.errors import ActionError, ConfigError
from markets.risk_limits import DAY, LIMITS, RiskLimits, RiskManager

NAMES = np.array(LIMITS, dtype=object)


class _Limited:
    """What the single wrapper and the vector one share."""

    def __init__(self, simulation: Simulation, limits: RiskLimits) -> None:
        from envs.make import family_of

        name = simulation.game.recipe[0]
        family = family_of(name)
        if not hasattr(family, "risk"):
            raise ConfigError(f"family {name} has no risk limits: give it a class of them, named risk")
        self.rules = family.risk
        self.manager = RiskManager(limits, simulation.lanes)
        if limits.of_options and not self.rules.options:
            raise ConfigError(f"{limits.of_options[0]} is of contracts with an expiry; {name} has none: leave it out")
        for limit in getattr(self.rules, "unsupported", ()):
            if getattr(limits, limit) is not None:
                raise ConfigError(f"{limit} is of one position, and {name} holds several: leave it out")
        asked = simulation.game.columns[simulation.game.action_columns]
        told = tuple(key for key in asked if key.endswith("requested_action"))
        self.told = told or ("requested_action",)  # keys of info for what was asked, one or one a coin
        if limits.daily_loss is not None and simulation.game.bars.interval >= DAY:
            raise ConfigError("daily_loss needs bars shorter than a day: within one bar nothing is decided")

    def look(self, simulation: Simulation, fresh: NDArray[np.bool_] | None) -> None:
        """Take note of where the lanes stand; those of ``fresh`` have begun an episode (all where None)."""
        if fresh is None or fresh.any():
            self.manager.begin(fresh)
        self.allowed = self.manager.check(self.rules.account(simulation))

    def apply(self, simulation: Simulation, action: Any) -> tuple[Any, NDArray[np.float64], NDArray[np.int64]]:
        """Return actions to send ``(N, A)``, what was asked as far as info tells it ``(N, K)``, and the codes of the
        limits that acted ``(N,)``.

        Raises:
            ActionError: it has not the shape of an action, or is none of the list.
        """
        game = simulation.game
        shape = (simulation.lanes, game.action_columns.stop - game.action_columns.start)
        values = as_numbers(action)
        if values.size != shape[0] * shape[1]:
            raise ActionError(f"action has shape {values.shape}, expected {shape}")
        values = values.reshape(shape)
        check_choices(np.where(np.isfinite(values), values, np.nan), game.choices)
        applied, codes = self.rules.apply(simulation, self.allowed, values)
        return applied, values[:, : len(self.told)], codes

    def masks(self, simulation: Simulation) -> Any:
        """Return which actions are legal and within the limits, ``(N, A)``; None where actions are numbers.

        Raises:
            gymnasium.error.ResetNeeded: no episode was begun.
        """
        if not hasattr(self, "allowed"):
            raise ResetNeeded("no episode was begun: call reset() before action_masks()")
        return self.rules.masks(simulation, self.allowed)


class LimitRisk(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Keep one account within its limits.

    Args:
        env: of any family, with whatever wrappers.
        limits: what to keep to.

    Raises:
        ConfigError: a limit that the family cannot have.
    """

    def __init__(self, env: gym.Env[Any, Any], limits: RiskLimits) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, limits=limits)
        super().__init__(env)
        self._limited = _Limited(self._simulation, limits)

    @property
    def _simulation(self) -> Simulation:
        simulation: Simulation = self.env.unwrapped.simulation  # type: ignore[attr-defined]
        return simulation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and a day of the account with it."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._limited.look(self._simulation, None)
        if info:
            info["limit"] = ""
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Trade one bar with what the limits leave of the action."""
        if not hasattr(self._limited, "allowed"):
            return self.env.step(action)  # no episode was begun: the environment says so
        simulation = self._simulation
        applied, asked, codes = self._limited.apply(simulation, action)
        sent = applied[0] if codes[0] and not simulation.game.choices else action
        if codes[0] and simulation.game.choices:
            sent = applied[0].astype(np.int64) if applied.shape[1] > 1 else int(applied[0, 0])
        observation, reward, terminated, truncated, info = self.env.step(sent)
        self._limited.look(simulation, np.zeros(1, bool))
        if info:
            if codes[0]:
                info.update(zip(self._limited.told, asked[0].tolist(), strict=True))
            info["limit"] = LIMITS[codes[0]]
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> Any:
        """Return which actions are legal and within the limits: ``(A,)`` bool.

        Raises:
            AttributeError: the family's actions are no list.
        """
        masks = self._limited.masks(self._simulation)
        if masks is None:
            raise AttributeError("actions of this family are numbers: there are no masks")
        return masks[0]


class LimitRiskVector(gym.vector.VectorWrapper):
    """Keep the account of every lane within the same limits; lane by lane equal to :class:`LimitRisk`."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], limits: RiskLimits) -> None:
        super().__init__(env)
        self.simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        self._limited = _Limited(self.simulation, limits)
        self._mode = env.metadata["autoreset_mode"]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        self._limited.look(self.simulation, None if mask is None else np.asarray(mask))
        if infos:
            infos["limit"] = np.full(self.num_envs, "", object)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Trade one bar in every lane with what the limits leave of its action."""
        if not hasattr(self._limited, "allowed"):
            return self.env.step(actions)
        outcome = self.simulation.accounts[0, :, OUTCOME]
        over = outcome != RUNNING
        applied, asked, codes = self._limited.apply(self.simulation, actions)
        result = self.env.step(applied)
        ended = outcome != RUNNING
        infos = result[4]
        begun = over if self._mode == AutoresetMode.NEXT_STEP else ended & (self._mode == AutoresetMode.SAME_STEP)
        self._limited.look(self.simulation, begun)
        if infos:
            self._say(infos, asked, np.where(begun, 0, codes))
            if "final_info" in infos:
                self._say(infos["final_info"], asked, np.where(ended, codes, 0))
        return result

    def _say(self, infos: dict[str, Any], asked: NDArray[np.float64], codes: NDArray[np.int64]) -> None:
        for key, values in zip(self._limited.told, asked.T, strict=True):
            infos[key] = np.where(codes != 0, values, infos[key])
        infos["limit"] = NAMES[codes]

    def action_masks(self) -> Any:
        """Return which actions are legal and within the limits, in every lane: ``(N, A)`` bool.

        Raises:
            AttributeError: the family's actions are no list.
        """
        masks = self._limited.masks(self.simulation)
        if masks is None:
            raise AttributeError("actions of this family are numbers: there are no masks")
        return masks
