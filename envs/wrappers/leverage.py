"""ScaleLeverage and its vector twin: L of each step follows the regimes, as a controller decides.

Action, exposure and posted margin are measured in L_t instead of L. It is decided at the close of bar t and holds for
the order that fills at the next open, so that ``info["leverage"]`` is that of the action to come, as the regimes in the
same info are. The compiled step applies it: the controller's table stands in the market matrix, and each account gets
what the margin tiers allow of it at its equity.

``info`` says ``requested_leverage`` beside the applied ``leverage``, why it is lower than its regime's
(``leverage_cut``, a name of :data:`envs.leverage.CUTS`) and in how many bars of the episode so far the odds could not
be read (``leverage_fallbacks``), each of which got the minimum.

``gym.make("PerpFutures-JEPA-RegimeLeverage-v0")`` makes it, and observes L_t / maximum as the column
``requested_leverage``. By hand, ``ScaleLeverage(gym.make("PerpFutures-JEPA-v0"),
RegimeAwareLeverageController(multipliers=(1.5, 1.0, 0.5)))`` leaves the observation's columns as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.leverage import LeverageControl, RegimeAwareLeverageController
from envs.simulation import ROW, START, Game, Simulation
from markets.errors import ConfigError

__all__ = ["RegimeAwareLeverageController", "ScaleLeverage", "ScaleLeverageVector"]


class ScaleLeverage(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Scale the leverage of one account by the regimes.

    Args:
        env: of a family with leverage and with an encoder.
        controller: who decides; None where the environment was made with ``leverage_control``.

    Raises:
        ConfigError: the family has no leverage, the environment no encoder, or nobody decides.
    """

    def __init__(self, env: gym.Env[Any, Any], controller: RegimeAwareLeverageController | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, controller=controller)
        super().__init__(env)
        _check_free(env.unwrapped, controller)
        self._controller = controller
        self._link()

    def _link(self) -> None:
        self._simulation: Simulation = self.env.unwrapped.simulation  # type: ignore[attr-defined]
        self._control = _attach(self.env.unwrapped, self._controller)

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The specification of the environment, whose entry point makes this wrapper as well unless it came by hand."""
        return self.env.spec if self._controller is None else super().spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._say(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Trade one bar."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._say(info)
        return observation, reward, terminated, truncated, info

    def _say(self, info: dict[str, Any]) -> None:
        if info:
            account = self._simulation.accounts[0, 0]
            told = self._control.facts(int(account[ROW]), int(account[START]))
            info.update({name: value.item() if hasattr(value, "item") else value for name, value in told.items()})

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_simulation", "_control")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._link()


class ScaleLeverageVector(gym.vector.VectorWrapper):
    """Scale the leverage of every lane by the regimes of its bar; lane by lane equal to :class:`ScaleLeverage`."""

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], controller: RegimeAwareLeverageController | None = None
    ) -> None:
        super().__init__(env)
        if hasattr(env, "action_masks"):  # of the families that have them, as from the environment itself
            self.action_masks = env.action_masks
        _check_free(env.unwrapped, controller)
        self._controller = controller
        self._link()

    def _link(self) -> None:
        self.simulation: Simulation = self.env.unwrapped.simulation  # type: ignore[attr-defined]
        self._control = _attach(self.env.unwrapped, self._controller)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return self.env.observation_names  # type: ignore[attr-defined]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        self._say(infos, self.simulation.accounts[0])
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Trade one bar in every lane."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._say(infos, self.simulation.accounts[0])
        if "final_info" in infos:
            self._say(infos["final_info"], self.simulation.accounts[1])
        return observations, rewards, terminated, truncated, infos

    def _say(self, infos: dict[str, Any], accounts: NDArray[np.float64]) -> None:
        if "equity" in infos:
            infos.update(self._control.facts(accounts[:, ROW].astype(np.int64), accounts[:, START].astype(np.int64)))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("simulation", "_control")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._link()


def _check_free(env: Any, controller: RegimeAwareLeverageController | None) -> None:
    if controller is not None and env.simulation.game.control is not None:
        raise ConfigError("the leverage of this environment is controlled already: leave one of the two out")


def _attach(env: Any, controller: RegimeAwareLeverageController | None) -> LeverageControl:
    """Return the control of an environment; put the controller's table into its market where one is given."""
    game = env.simulation.game
    if controller is not None:
        game = controlled(game, controller)
        env.play(game)
    elif game.control is None:
        raise ConfigError("nobody decides the leverage: pass a controller, or make the id with leverage_control")
    control: LeverageControl = game.control
    return control


def controlled(game: Game, controller: RegimeAwareLeverageController) -> Game:
    """Return a game whose leverage follows a controller, and which observes what it did before.

    Raises:
        ConfigError: the family has no leverage, or the game no encoder.
    """
    from envs.make import family_of

    name = game.recipe[0]
    column = getattr(family_of(name), "asked_leverage", None)
    if column is None:
        raise ConfigError(f"family {name} has no leverage to scale")
    if game.encoded is None:
        raise ConfigError("a controller reads an encoder's regime odds: make PerpFutures-JEPA-v0, or encoded='jepa'")
    control = replace(controller.control(game.encoded), table=None)
    market = game.market.copy()
    market[:, column] = control.requested
    return replace(game, market=market, control=control)
