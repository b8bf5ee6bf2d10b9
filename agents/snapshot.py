"""Snapshot: everything that a training is at the beginning of a rollout, as named arrays and plain values.

Taken there and put back there, a run goes on as if nothing had happened: weights, optimisers and their step counts, the
position in every schedule, the lanes' accounts, observations, drawn starts and generators, the process's generators,
the recurrent state and the exploration noise. The replay buffer of an off-policy algorithm is referred to, not copied:
what is written over after the snapshot is written again, with the same bits, by the run that goes on from it.

Array names begin with what they belong to: ``weights/``, ``optimizer/NAME/INDEX/``, ``variable/``, ``lanes/``,
``last/``, ``lstm/``, ``noise/``, ``random/``, ``replay/``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.generators import Arrays, generator_state, globals_state, restore_generator, restore_globals
from agents.optimizers import optimizer_state, restore_optimizer
from agents.vec_env import NativeVecEnv
from markets.errors import ArtefactError

COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class Snapshot:
    """State of a model and its lanes.

    Attributes:
        arrays: copies. ``plain``: what JSON can hold.
        replay: the replay buffer's arrays, not copied, cut to what was filled; empty without a buffer, or where a file
            could not carry it.
    """

    arrays: Arrays
    plain: dict[str, Any]
    replay: Arrays

    @property
    def steps(self) -> int:
        """Environment steps that lie behind it."""
        return int(self.plain["counters"]["num_timesteps"])


def take(model: Any, env: NativeVecEnv) -> Snapshot:
    """Copy the state of a model that is about to begin a rollout."""
    random_arrays, random_plain = globals_state(model.device)
    lanes, generators = env.state()
    arrays: Arrays = {
        "last/obs": np.array(model._last_obs),
        "last/episode_starts": np.array(model._last_episode_starts),
        **{f"random/{name}": value for name, value in random_arrays.items()},
        **{f"lanes/{name}": value for name, value in lanes.items()},
        **{f"noise/{name}": _copy(value) for name, value in _noise(model).items()},
        **{f"lstm/{name}": _copy(value) for name, value in _recurrent(model).items()},
    }
    modules, variables = _learned(model)
    optimizers = {}
    for name, part in modules.items():
        if isinstance(part, torch.optim.Optimizer):
            tensors, optimizers[name] = optimizer_state(part)
            arrays |= {f"optimizer/{name}/{key}": value for key, value in tensors.items()}
        else:
            arrays |= {f"weights/{key}": _copy(value) for key, value in part.state_dict().items()}
    arrays |= {f"variable/{name}": _copy(value) for name, value in variables.items()}
    plain = {
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "episodes": [{key: as_json(value) for key, value in row.items()} for row in model.ep_info_buffer or ()],
        "pending": _pending(model),
        "optimizers": optimizers,
        "random": random_plain,
        "action_space": generator_state(model.action_space.np_random),
        "generators": generators,
    }
    return Snapshot(arrays, plain, _replay(model, plain))


def restore(model: Any, env: NativeVecEnv, snapshot: Snapshot) -> None:
    """Put a model and its lanes back, all but the random state, which :func:`restore_random` puts back when a rollout
    begins.

    Raises:
        ArtefactError: an array is missing, unknown, of another shape or kind, or a weight is not finite; it is named.
        KeyError, TypeError, ValueError: a plain value is missing or of another kind.
    """
    arrays, plain = snapshot.arrays, snapshot.plain
    modules, variables = _learned(model)
    for name, part in modules.items():
        if isinstance(part, torch.optim.Optimizer):
            restore_optimizer(part, name, _under(arrays, f"optimizer/{name}"), plain["optimizers"][name])
        else:
            part.load_state_dict(as_tensors("weights", _under(arrays, "weights"), part.state_dict()), strict=True)
    for group, present in (("variable", variables), ("lstm", _recurrent(model))):
        for name, value in as_tensors(group, _under(arrays, group), present).items():
            present[name].data.copy_(value)
    env.restore(_under(arrays, "lanes"), plain["generators"])
    last = {"obs": env.simulation.seen(), "episode_starts": np.zeros(env.num_envs, bool)}
    check_arrays("last", _under(arrays, "last"), last)
    model._last_obs, model._last_episode_starts = arrays["last/obs"].copy(), arrays["last/episode_starts"].copy()
    for name in COUNTERS:
        if type(plain["counters"][name]) not in (int, float):
            raise ArtefactError(f"counter {name} is {plain['counters'][name]!r}, not a number")
        setattr(model, name, plain["counters"][name])
    window = int(model._stats_window_size)
    episodes = ({key: from_json(value) for key, value in row.items()} for row in plain["episodes"])
    model.ep_info_buffer, model.ep_success_buffer = deque(episodes, maxlen=window), deque(maxlen=window)
    for key, (value, excluded) in plain["pending"].items():
        model.logger.record(key, float(value), tuple(excluded))
    _restore_replay(model, snapshot)


def restore_random(model: Any, snapshot: Snapshot) -> None:
    """Put generators and exploration noise back, at the moment in a rollout at which they were taken."""
    for name, value in as_tensors("noise", _under(snapshot.arrays, "noise"), _noise(model)).items():
        setattr(_distribution(model), name, value)
    restore_generator(model.action_space.np_random, snapshot.plain["action_space"])
    restore_globals(_under(snapshot.arrays, "random"), snapshot.plain["random"], model.device)


def check_arrays(group: str, given: Arrays, wanted: Mapping[str, NDArray[Any]]) -> None:
    """Raise :class:`ArtefactError` unless ``given`` has ``wanted``'s names, shapes and number types, all finite."""
    for name in sorted(set(wanted) ^ set(given)):
        raise ArtefactError(f"array {group}/{name} is {'missing' if name in wanted else 'unknown here'}")
    for name, value in given.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise ArtefactError(
                f"array {group}/{name} is {value.dtype} {value.shape}, expected {wanted[name].dtype} "
                f"{wanted[name].shape}"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ArtefactError(f"array {group}/{name} holds a number that is not finite")


def as_tensors(group: str, given: Arrays, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors where they fit ``wanted``; see :func:`check_arrays`."""
    check_arrays(group, given, {name: value.detach().cpu().numpy() for name, value in wanted.items()})
    return {name: torch.from_numpy(value.copy()).to(wanted[name].device) for name, value in given.items()}


def _learned(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what Stable-Baselines3 says a model learns: modules and optimisers, and single tensors, by name."""
    modules, variables = model._get_torch_save_params()
    return {name: attrgetter(name)(model) for name in modules}, {name: getattr(model, name) for name in variables}


def _recurrent(model: Any) -> dict[str, torch.Tensor]:
    """Return the hidden and cell states of actor and critic where the policy is recurrent."""
    states = getattr(model, "_last_lstm_states", None)
    if states is None:
        return {}
    return {f"{part}_{place}": state for part in ("pi", "vf") for place, state in enumerate(getattr(states, part))}


def _distribution(model: Any) -> Any:
    return (model.policy if hasattr(model.policy, "action_dist") else model.policy.actor).action_dist


def _noise(model: Any) -> dict[str, torch.Tensor]:
    """Return the matrices of state-dependent exploration, which are drawn just before a rollout begins."""
    if not model.use_sde:
        return {}
    return {name: getattr(_distribution(model), name) for name in ("exploration_mat", "exploration_matrices")}


def _replay(model: Any, plain: dict[str, Any]) -> Arrays:
    """Note where the replay buffer stands, and return its arrays as far as they are filled."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    plain["replay"] = {"position": int(buffer.pos), "full": bool(buffer.full)}
    filled = buffer.buffer_size if buffer.full else buffer.pos
    return {name: getattr(buffer, name)[:filled] for name in REPLAYED}


def _restore_replay(model: Any, snapshot: Snapshot) -> None:
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not snapshot.replay:
        return
    place = snapshot.plain["replay"]
    position, full = int(place["position"]), bool(place["full"])
    filled = buffer.buffer_size if full else position
    if not 0 <= position < buffer.buffer_size:
        raise ArtefactError(f"replay position is {position}, the buffer has {buffer.buffer_size} rows")
    check_arrays("replay", snapshot.replay, {name: getattr(buffer, name)[:filled] for name in REPLAYED})
    for name, value in snapshot.replay.items():
        getattr(buffer, name)[:filled] = value
    buffer.pos, buffer.full = position, full


def _pending(model: Any) -> dict[str, Any]:
    """Return the numbers that were recorded since the last line of the log and belong to the next one."""
    values, excluded = model.logger.name_to_value, model.logger.name_to_excluded
    numbers = {key: as_json(value) for key, value in values.items() if isinstance(value, int | float | np.number)}
    return {key: [value, list(excluded[key])] for key, value in numbers.items() if value is not None}


def as_json(value: Any) -> float | None:
    """Return a number as JSON can hold it: None for one that is not finite."""
    return float(value) if np.isfinite(value) else None


def from_json(value: float | None) -> float:
    """Return what :func:`as_json` was given; every number that is not finite comes back as NaN."""
    return float("nan") if value is None else float(value)


def _under(arrays: Arrays, group: str) -> Arrays:
    """Return the arrays of a group, by what stands after its name."""
    return {name[len(group) + 1 :]: value for name, value in arrays.items() if name.startswith(group + "/")}


def _copy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()
