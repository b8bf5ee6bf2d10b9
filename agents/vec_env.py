"""The native vector environment as a Stable-Baselines3 ``VecEnv``: one compiled call a step, no worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.generators import generator_state, restore_generator
from envs.simulation import END_CODE, EQUITY, OUTCOME, TRUNCATED
from envs.trading_env import TradingVectorEnv
from markets.errors import ArtefactError, ConfigError

PER_LANE = ("action_masks",)  # methods that answer with an array of one row a lane


class NativeVecEnv(VecEnv):
    """Bridge with SB3's conventions: ``terminal_observation``, ``TimeLimit.truncated`` and episode statistics in infos.

    Args:
        env: native vector environment in SAME_STEP mode.
        reward_scale: multiplies the rewards the learner sees (log returns per bar are of the order of 0.01).

    Raises:
        ConfigError: another autoreset mode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], reward_scale: float = 1.0) -> None:
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ConfigError(f"autoreset_mode={env.metadata.get('autoreset_mode')!r} must be SAME_STEP for SB3")
        self.env = env
        self.reward_scale = reward_scale
        unwrapped = env.unwrapped
        assert isinstance(unwrapped, TradingVectorEnv)
        self._native = unwrapped
        self.simulation = unwrapped.simulation
        self._actions: NDArray[Any] = np.zeros(0)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Begin every lane anew, with the seeds that ``seed`` set."""
        seeds = list(self._seeds)
        observations, _ = self.env.reset(seed=None if all(seed is None for seed in seeds) else seeds)  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observations

    def state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """Copy what the lanes are: account rows (drawn starts among them), observations, episode sums; and the state
        of each lane's generator."""
        arrays = {"returns": self._returns.copy(), "lengths": self._lengths.copy()}
        held = self.simulation.__getstate__()
        arrays |= {name: value.copy() for name, value in held.items() if isinstance(value, np.ndarray)}
        return arrays, [generator_state(generator) for generator in self._native._generators]

    def restore(self, arrays: dict[str, NDArray[Any]], generators: Sequence[dict[str, Any]]) -> None:
        """Put the lanes back where :meth:`state` found them.

        Raises:
            ArtefactError: an array is missing, unknown or of another shape, or there are not as many generators.
        """
        self.env.reset(seed=0)  # makes what is then overwritten
        self._reset_seeds()
        present, _ = self.state()
        for name in sorted(set(present) ^ set(arrays)):
            raise ArtefactError(f"array lanes/{name} is {'missing' if name in present else 'unknown here'}")
        for name, value in arrays.items():
            if value.shape != present[name].shape or value.dtype != present[name].dtype:
                raise ArtefactError(
                    f"array lanes/{name} is {value.dtype} {value.shape}, expected {present[name].dtype} "
                    f"{present[name].shape}"
                )
        if len(generators) != self.num_envs:
            raise ArtefactError(f"{len(generators)} generators for {self.num_envs} lanes")
        for generator, state in zip(self._native._generators, generators, strict=True):
            restore_generator(generator, state)
        own = {"returns": self._returns, "lengths": self._lengths}
        for name, value in arrays.items():
            (own[name] if name in own else getattr(self.simulation, name))[...] = value

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step every lane; infos are empty except where an episode ended."""
        observations, rewards, terminated, truncated, facts = self.env.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(done).tolist():
            infos[lane] = self._final(lane, facts["final_obs"][lane])
            self._returns[lane], self._lengths[lane] = 0.0, 0
        return observations, (rewards * self.reward_scale).astype(np.float32), done, infos

    def _final(self, lane: int, observation: NDArray[np.float32]) -> dict[str, Any]:
        last = self.simulation.accounts[1, lane]
        return {
            "terminal_observation": observation,
            "TimeLimit.truncated": bool(self.simulation.accounts[0, lane, OUTCOME] == TRUNCATED),
            "episode": {"r": float(self._returns[lane]), "l": int(self._lengths[lane]), "t": 0.0},
            "equity": float(last[EQUITY]),
            "end_code": int(last[END_CODE]),
        }

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, once per lane."""
        return [getattr(self._holder(attr_name), attr_name) for _ in self._lanes(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment that all lanes share."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the environment, once, and return the answer per lane; of masks each lane gets its own."""
        answer = getattr(self._holder(method_name), method_name)(*method_args, **method_kwargs)
        return [answer[lane] if method_name in PER_LANE else answer for lane in self._lanes(indices)]

    def _holder(self, name: str) -> Any:
        """Return the outermost environment that has ``name``: Gymnasium's vector wrappers forward nothing."""
        return self.env if hasattr(self.env, name) else self._native

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """No lane is a single wrapped environment."""
        return [False for _ in self._lanes(indices)]

    def _lanes(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else list(indices)
