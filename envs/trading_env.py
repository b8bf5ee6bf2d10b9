"""TradingEnv (one account) and TradingVectorEnv (N lanes), family-agnostic, over the same compiled step."""

from __future__ import annotations

import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.account_info import AccountInfo, view
from envs.rendering import Trace, Window
from envs.simulation import (
    END_CODE,
    END_NAMES,
    MODE_DISABLED,
    MODE_NEXT_STEP,
    MODE_SAME_STEP,
    OUTCOME,
    QUIET,
    REWARD,
    ROW,
    RUNNING,
    START,
    TERMINATED,
    TRUNCATED,
    Game,
    Simulation,
    as_numbers,
    check_choices,
)
from markets.errors import ActionError, ConfigError, unknown

_log = logging.getLogger(__name__)

RESET_OPTIONS = ("start", "reset_mask")
INFO_LEVELS = ("full", "none")
BAD_ACTIONS = ("raise", "hold")
_ONE = (1,)  # shape of the most frequent action
_WHOLE = frozenset({int, np.int64})  # types of the most frequent choice


def _check_options(options: dict[str, Any] | None, valid: tuple[str, ...]) -> dict[str, Any]:
    for key in options or {}:
        if key not in valid:
            raise unknown("reset option", key, valid)
    return options or {}


class TradingEnv(gym.Env[NDArray[np.float32], Any]):
    """One account over one market, through the compiled step of its family.

    ``obs_t`` knows bars 0..t; the action fills at the open of bar t+1; the reward is the change of equity to the close
    of t+1. ``reset(options={"start": time})`` begins at the first bar that opens at or after ``time``.

    Args:
        info: ``full``, or ``none``: an empty dictionary a step, about twice as fast.
        render_mode: ``rgb_array``, ``human`` (a window) or None.
        on_bad_action: ``raise`` an :class:`ActionError` for a number that is not finite, or ``hold``: keep the
            position, send no order, and count it in ``info["bad_actions"]``. Numbers beyond the space are clipped.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 8}

    def __init__(
        self,
        game: Game,
        action_space: gym.Space[Any],
        info: str = "full",
        render_mode: str | None = None,
        on_bad_action: str = "raise",
    ) -> None:
        if info not in INFO_LEVELS:
            raise unknown("info level", info, INFO_LEVELS)
        if on_bad_action not in BAD_ACTIONS:
            raise unknown("on_bad_action", on_bad_action, BAD_ACTIONS)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown("render_mode", render_mode, self.metadata["render_modes"])
        self.observation_space = gym.spaces.Box(game.low, game.high, dtype=np.float32)
        self.action_space = action_space
        self.render_mode = render_mode
        self._trace = Trace() if render_mode else None
        self._window: Window | None = None
        self.simulation = Simulation(game, 1)
        self._full = info == "full"
        self._hold_bad = on_bad_action == "hold"
        self._ended = True
        self._link()

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return self.simulation.game.names

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode: ``(D,)`` observation and info; see the class for ``options``.

        Raises:
            UnknownNameError: unknown option.
            ConfigError: a start outside the split.
        """
        options = _check_options(options, RESET_OPTIONS[:1])
        start = options.get("start")
        rows = None if start is None else np.array([self.simulation.row_of(start)])
        super().reset(seed=seed)
        self.simulation.reset([self.np_random], None, rows, np.array([seed is not None]))
        self._ended = False
        if self._trace is not None:
            self._trace.begin()
            self._record()
        return self._observation.copy(), self._infos.begin(int(self._account[ROW])) if self._full else {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Trade one bar; see :meth:`gymnasium.Env.step`.

        Raises:
            ActionError: not finite, or of another shape; nothing was changed.
            gymnasium.error.ResetNeeded: the episode has ended, or none was begun.
        """
        if self._ended:
            raise ResetNeeded("the episode has ended: call reset() before step()")
        self._set_action(action)
        self._kernel(*self._arguments)
        row, outcome, reward, quiet = self._result.tolist()
        self._ended = ended = outcome != RUNNING
        if self._trace is not None:
            self._record()
        info: dict[str, Any] = {}
        if self._full:
            info = self._infos.quiet(int(row), ended) if quiet else self._infos.full(int(row), ended)
        return self._observation.copy(), reward, outcome == TERMINATED, outcome == TRUNCATED, info

    def play(self, game: Game) -> None:
        """Go on in another preparation of the same game, with the same columns; it holds from the next step on."""
        self.simulation.game = game
        self._link()

    def render(self) -> NDArray[np.uint8] | None:
        """Draw price, position and equity of the last bars.

        Returns:
            ``(H, W, 3)`` uint8 where the mode is ``rgb_array``. In mode ``human`` reset and step draw by themselves, in
            a window, and the answer is None, as it is without a render mode.

        Raises:
            MissingExtraError: matplotlib (extra ``viz``) is not installed.
        """
        if self._trace is None:
            return None
        if self.render_mode == "rgb_array":
            return self._trace.draw()
        if self._window is None:
            self._window = Window(type(self).__name__, self.metadata["render_fps"])
        self._window.show(self._trace)
        return None

    def close(self) -> None:
        """Close the window if there is one; may be called twice."""
        if self._window is not None:
            self._window.close()

    def _record(self) -> None:
        assert self._trace is not None
        names = self.simulation.game.columns
        price, position, equity = (float(self._account[names.index(name)]) for name in ("mark", "position", "equity"))
        self._trace.add(self.simulation.game.bars.close_time[int(self._account[ROW])], price, position, equity)
        if self.render_mode == "human":
            self.render()

    def _set_action(self, action: Any) -> None:
        if self._one and type(action) is np.ndarray and action.shape == _ONE:  # what a policy sends, every bar
            number = action.item()
            if type(number) is float and math.isfinite(number):
                self._action[0] = number
                return
        if self._shape and type(action) is np.ndarray and action.shape == self._shape and action.dtype.char in "fd":
            numbers = action.tolist()
            if all(map(math.isfinite, numbers)):
                for place, number in enumerate(numbers):
                    self._action[place] = number
                return
        if self._one_choice and type(action) in _WHOLE and 0 <= action < self._one_choice:
            self._action[0] = float(action)
            return
        value = as_numbers(action)
        if value.size != len(self._action) or value.ndim > 1:
            raise ActionError(f"action has shape {value.shape}, expected {self.action_space.shape}")
        if not np.isfinite(value).all():
            if not self._hold_bad:
                raise ActionError(f"action is {action!r}; actions are finite numbers")
            value = np.where(np.isfinite(value), value, np.nan)
        if self._choices:
            check_choices(value.reshape(-1), self._choices)
        np.asarray(self._action)[:] = value

    def _link(self) -> None:
        """Bind what ``step`` needs; done again after a copy, since copied views would write to nowhere."""
        game = self.simulation.game
        simulation = self.simulation
        self._kernel = game.kernel
        self._arguments = (game.market, game.table, game.contract, simulation.accounts, simulation.obs, MODE_DISABLED)
        self._observation = simulation.obs[0, 0]
        self._account = simulation.accounts[0, 0]
        self._action = view(self._account[game.action_columns])
        self._one = len(self._action) == 1 and not game.choices
        self._choices = game.choices
        self._shape = (len(self._action),) if not game.choices and len(self._action) > 1 else ()
        self._one_choice = game.choices[0] if len(game.choices) == 1 else 0
        self._result = view(self._account[ROW : QUIET + 1])
        self._infos = AccountInfo(game, self._account)

    def __getstate__(self) -> dict[str, Any]:
        linked = (
            "_kernel",
            "_arguments",
            "_observation",
            "_account",
            "_action",
            "_one",
            "_shape",
            "_choices",
            "_one_choice",
            "_result",
            "_infos",
        )
        kept = {key: value for key, value in self.__dict__.items() if key not in linked}
        return {**kept, "_window": None}  # a copy opens one of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._link()


class TradingVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], Any, NDArray[Any]]):
    """N accounts over one market in one compiled call; lane i seeded with ``seed + i`` equals the single env.

    Infos hold one array ``(N,)`` per key. Returned arrays are fresh copies.
    """

    def __init__(
        self,
        game: Game,
        action_space: gym.Space[Any],
        num_envs: int,
        info: str = "full",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        on_bad_action: str = "raise",
    ) -> None:
        if info not in INFO_LEVELS:
            raise unknown("info level", info, INFO_LEVELS)
        if on_bad_action not in BAD_ACTIONS:
            raise unknown("on_bad_action", on_bad_action, BAD_ACTIONS)
        try:
            mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            raise unknown("autoreset_mode", autoreset_mode, [m.value for m in AutoresetMode]) from error
        self.metadata = {**TradingEnv.metadata, "autoreset_mode": mode}
        self.simulation = Simulation(game, num_envs)
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = gym.spaces.Box(game.low, game.high, dtype=np.float32)
        self.single_action_space = action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(action_space, num_envs)
        self._full = info == "full"
        self._hold_bad = on_bad_action == "hold"
        self._started = False
        self._generators: list[np.random.Generator] = []
        self._mode = {AutoresetMode.NEXT_STEP: MODE_NEXT_STEP, AutoresetMode.SAME_STEP: MODE_SAME_STEP}.get(
            mode, MODE_DISABLED
        )

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per column of the observation."""
        return self.simulation.game.names

    def play(self, game: Game) -> None:
        """Go on in another preparation of the same game, with the same columns; it holds from the next step on."""
        self.simulation.game = game

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes: ``(N, D)`` observations and info arrays.

        Args:
            seed: one seed (lane i gets ``seed + i``), a list of N, or None to go on with the lanes' generators.
            options: ``start``: one time or N of them; ``reset_mask``: ``(N,)`` bool, the lanes to reset.
        """
        options = _check_options(options, RESET_OPTIONS)
        mask = self._mask(options.get("reset_mask"))
        starts = self._starts(options.get("start"))
        fresh = self._seed(seed, mask)
        self.simulation.reset(self._generators, mask, starts, fresh)
        if self._mode != MODE_DISABLED:
            self.simulation.draw_starts(self._generators)
        self._started = True
        return self.simulation.obs[0].copy(), self._info()

    def step(
        self, actions: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Trade one bar in every lane; lanes that ended are handled as ``metadata["autoreset_mode"]`` says."""
        simulation = self.simulation
        if not self._started:
            raise ResetNeeded("no episode was begun: call reset() before step()")
        if self._mode == MODE_DISABLED and simulation.accounts[0, :, OUTCOME].any():
            lane = int(simulation.accounts[0, :, OUTCOME].argmax())
            raise ResetNeeded(f"the episode of lane {lane} has ended: reset it with options={{'reset_mask': ...}}")
        simulation.set_actions(actions, self._hold_bad)
        ended = simulation.run(self._mode)
        if ended and self._mode != MODE_DISABLED:
            simulation.draw_starts(self._generators)
        live = simulation.accounts[0]
        outcome = live[:, OUTCOME]
        info = self._info()
        if ended and self._mode == MODE_SAME_STEP:
            self._add_final(info, outcome != RUNNING)
        return simulation.obs[0].copy(), live[:, REWARD].copy(), outcome == TERMINATED, outcome == TRUNCATED, info

    def _info(self, rows: int = 0) -> dict[str, Any]:
        if not self._full:
            return {}
        game = self.simulation.game
        values = self.simulation.accounts[rows].copy()  # one copy; the arrays handed out are its columns
        info: dict[str, Any] = {game.columns[column]: values[:, column] for column in game.info}
        for key in game.flags:
            info[key] = info[key] != 0.0
        bars = values[:, ROW].astype(np.int64)
        info["time"] = game.bars.close_time[bars]
        info["in_sample"] = game.bars.close_time[values[:, START].astype(np.int64)] <= game.fitted_until
        info["reward_terms"] = {name: values[:, column] for name, column in game.terms.items()}
        if game.bars.labels is not None:
            info["label"] = game.bars.labels[bars]
        return info

    def _add_final(self, info: dict[str, Any], ended: NDArray[np.bool_]) -> None:
        """Add the last observation and info of the lanes that ended, in Gymnasium's layout."""
        final = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(ended):
            final[lane] = self.simulation.obs[1, lane].copy()
        info["final_obs"], info["_final_obs"] = final, ended.copy()
        if self._full:
            last = self._info(rows=1)
            codes = self.simulation.accounts[1, :, END_CODE].astype(np.int64)
            last["ended_by"] = np.where(ended, END_NAMES[codes], "")
            info["final_info"], info["_final_info"] = last, ended.copy()

    def _seed(self, seed: int | list[int | None] | None, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Seed lanes and return which ones were; lanes without a seed keep (or get) their own generator."""
        seeds: list[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + lane for lane in range(self.num_envs)]
        else:
            seeds = [None if value is None else int(value) for value in seed]
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed has {len(seeds)} values for {self.num_envs} lanes")
        fresh = np.array([value is not None for value in seeds])
        if mask is not None:
            fresh &= mask
        if not self._generators:
            self._generators = [seeding.np_random(value)[0] for value in seeds]
        else:
            for lane in np.flatnonzero(fresh):
                self._generators[lane] = seeding.np_random(seeds[lane])[0]
        return fresh

    def _mask(self, mask: Any) -> NDArray[np.bool_] | None:
        if mask is None:
            return None
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ConfigError(
                f"reset_mask is {mask.dtype} {mask.shape}; expected ({self.num_envs},) bool with a True in it"
            )
        if not self._started:
            raise ResetNeeded("the first reset must begin every lane: call it without reset_mask")
        return mask

    def _starts(self, start: Any) -> NDArray[np.int64] | None:
        if start is None:
            return None
        times = [start] * self.num_envs if np.ndim(start) == 0 else list(start)
        if len(times) != self.num_envs:
            raise ConfigError(f"start has {len(times)} times for {self.num_envs} lanes")
        known = {time: self.simulation.row_of(time) for time in set(times)}
        return np.array([known[time] for time in times])
