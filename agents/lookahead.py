"""Lookahead detector: replace the future, replay the past, compare bit for bit.

Everything from bar ``k`` on is replaced (noise, ten times as much, reversed) or cut off, the same actions are replayed,
and what was known before ``k`` must stay: rows of a table, observations, and rewards up to the step that ends on bar
``k - 1``. What is fitted on a training range is held fixed by changing nothing inside that range. ``k`` moves to find
the first offending row and the reach. One more check knows what replacing cannot see: an order that is filled at the
close it was decided on earns the gap to the next open, which no honest order does.

A clean result means that nothing was found at the places that were tried; a leak at a single row in the middle of a
long history needs more trials. Where only the *length* of the data differs (a cut), differences of a few units in the
last place are rounding of matrix products and no leak.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import envs
from agents.counterfactual import changed, changed_rows, gapped
from agents.leak_search import TRIALS
from agents.leaks import Leak, Leaks
from agents.lookahead_envs import STEPS, check_env
from agents.lookahead_tables import check_normaliser, check_policy, check_table
from agents.lookahead_vectors import LANE_STEPS, check_vector_env
from envs.make import family_of
from envs.splits import FRACTIONS
from markets import features
from markets.bars import Bars
from markets.errors import ConfigError, RegimeGymError, unknown
from markets.sources.memory import register_bars

__all__ = [
    "DEFAULT_BARS",
    "LANE_STEPS",
    "STEPS",
    "TRIALS",
    "Leak",
    "Leaks",
    "changed",
    "changed_rows",
    "check_env",
    "check_id",
    "check_id_lanes",
    "check_module",
    "check_normaliser",
    "check_policy",
    "check_table",
    "check_vector_env",
    "gapped",
    "load_module",
]

DEFAULT_BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
BARS_OF_FAMILY = {  # where the default is no market of the family
    "ZeroDTE": "synthetic:spy?seed=1&sessions=12",
    "SpotCrypto": "synthetic:basket?seed=1&interval=1h&bars=3000",
}
OF_SESSIONS = ("ZeroDTE",)  # families whose episodes are whole sessions
LANES, LANES_APART, LANE_EPISODE = 4, 7, 40  # native lanes, the bars between their starts and of their episodes


def check_id(env_id: str, bars: Bars, arguments: Mapping[str, Any] | None = None, **settings: Any) -> Leaks:
    """Look for the future in a registered environment: its test split, with dates and fitted statistics held fixed.

    Args:
        env_id: what ``gym.make`` takes.
        bars: the market.
        arguments: of the environment.
        settings: of :func:`check_env`.
    """
    given, train_rows = _given(env_id, bars, arguments)

    def make(content: Bars) -> Any:
        return gym.make(env_id, bars=register_bars("lookahead", content), **given)

    sessions = _plays_sessions(env_id)
    return check_env(make, bars, subject=env_id, train_rows=train_rows, whole_sessions=sessions, **settings)


def bars_for(env_id: str | None) -> str:
    """Return the specification of the market that an id is tried on where none is named."""
    family = gym.registry[env_id].kwargs.get("family", "") if env_id in gym.registry else ""
    return BARS_OF_FAMILY.get(family, DEFAULT_BARS)


def check_id_lanes(
    env_id: str, bars: Bars, arguments: Mapping[str, Any] | None = None, **settings: Any
) -> Leaks | None:
    """Look for the future in the native lanes of one of our ids; None for an environment of somebody else.

    The lanes begin at the first bars of the test split, a few bars apart, and play short episodes one after the other
    (unless the arguments say otherwise; where an episode is a session, at the first sessions), so that what they show
    at the end of an episode and after it is compared.

    Args:
        env_id: what ``gym.make_vec`` takes.
        bars: the market.
        arguments: of the environment.
        settings: of :func:`check_vector_env`.
    """
    given, train_rows = _given(env_id, bars, arguments)
    if env_id.rpartition(":")[2] not in envs.ids():
        return None
    fields = family_of(gym.spec(env_id.rpartition(":")[2]).kwargs["family"]).config.__dataclass_fields__
    given = {"random_start": True, **({"episode_bars": LANE_EPISODE} if "episode_bars" in fields else {}), **given}

    def make(content: Bars) -> Any:
        return gym.make_vec(
            env_id, num_envs=LANES, vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.SAME_STEP.value, bars=register_bars("lookahead", content), **given,
        )  # fmt: skip

    game = make(bars).unwrapped.simulation.game
    starts = [game.first + LANES_APART * lane for lane in range(LANES)]
    if game.starts is not None:  # sessions
        starts = [int(game.starts[lane % len(game.starts)]) for lane in range(LANES)]
    options = {"start": [game.bars.time[start] for start in starts]}
    subject = f"{env_id}, {LANES} lanes"
    return check_vector_env(
        make, bars, subject=subject, options=options, train_rows=train_rows, whole_sessions=game.starts is not None,
        **settings,
    )  # fmt: skip


def _plays_sessions(env_id: str) -> bool:
    """Tell whether an id is ours and of a family whose episodes are whole sessions."""
    name = env_id.rpartition(":")[2]
    return name in envs.ids() and gym.registry[name].kwargs["family"] in OF_SESSIONS


def _given(env_id: str, bars: Bars, arguments: Mapping[str, Any] | None) -> tuple[dict[str, Any], int]:
    """Return the arguments of an environment with split dates held fixed, and how many bars it is fitted on."""
    if ":" not in env_id and env_id not in gym.registry:
        raise unknown("environment", env_id, envs.ids())
    if "bars" in (arguments or {}):
        raise ConfigError("bars= is not an argument here: the detector passes its own (--bars on the command line)")
    given = {"split": "test", **(arguments or {})}
    if "train_end" not in given and "validation_end" not in given:
        ends = [bars.close_time[int(fraction * len(bars)) - 1] for fraction in FRACTIONS]
        given |= {"train_end": str(ends[0]), "validation_end": str(ends[1])}
    return given, bars.rows_closed_by(given["train_end"]) if given.get("train_end") is not None else 0


SUBJECTS = ("table", "make_env", "make_vector_env", "normalise", "make_policy", "policy")


def load_module(path: Path) -> ModuleType:
    """Run a Python file and return it as a module.

    Raises:
        ConfigError: not a Python file, or it fails.
    """
    name = f"lookahead_subject_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"module {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ConfigError(f"module {str(path)!r} fails: {error!r}") from error
    return module


def check_module(
    path: Path, bars: Bars, *, first_row: int | None = None, trials: int = TRIALS, seed: int = 0
) -> list[Leaks]:
    """Test what a file defines: any of ``SUBJECTS``.

    ``NAMES`` (column names), ``TRAIN_ROWS`` or ``TRAIN_END`` (what was fitted on) and ``FIRST_ROW`` (bar of the first
    observation) in the file say what the detector cannot know. A policy is ``policy``, or a class with ``predict``.

    Raises:
        ConfigError: none of these is defined.
    """
    module = load_module(path)
    names: Sequence[str] | None = getattr(module, "NAMES", None)
    end = getattr(module, "TRAIN_END", None)
    fitted = int(getattr(module, "TRAIN_ROWS", 0)) if end is None else bars.rows_closed_by(end)
    common: dict[str, Any] = {"train_rows": fitted, "trials": trials, "seed": seed}
    try:
        found = list(_check_parts(module, path.name, bars, first_row, names, common))
    except RegimeGymError:
        raise
    except Exception as error:
        raise ConfigError(f"module {str(path)!r} fails on the bars as they are: {error!r}") from error
    if not found:
        raise ConfigError(f"module {str(path)!r} defines none of {', '.join(SUBJECTS)}, nor a class with predict")
    return found


def _check_parts(
    module: ModuleType,
    file: str,
    bars: Bars,
    first_row: int | None,
    names: Sequence[str] | None,
    common: dict[str, Any],
) -> Iterator[Leaks]:
    if hasattr(module, "table"):
        yield check_table(module.table, bars, subject=f"{file}:table", names=names, **common)
    if hasattr(module, "make_env"):
        row = getattr(module, "FIRST_ROW", first_row)
        yield check_env(module.make_env, bars, subject=f"{file}:make_env", first_row=row, **common)
    if hasattr(module, "make_vector_env"):
        yield check_vector_env(module.make_vector_env, bars, subject=f"{file}:make_vector_env", **common)
    if hasattr(module, "normalise"):
        rows = features.raw(bars)[features.warm_up(bars.interval) :]
        called = names or features.NAMES
        yield check_normaliser(module.normalise, rows, subject=f"{file}:normalise", names=called, **common)
    policy = _policy(module)
    if policy is not None:
        yield check_policy(policy[1], bars, subject=f"{file}:{policy[0]}", **common)


def _policy(module: ModuleType) -> tuple[str, Callable[[Bars], Any]] | None:
    """Return name and maker of the policy that a module defines."""
    if hasattr(module, "make_policy"):
        return "make_policy", module.make_policy
    if hasattr(module, "policy"):
        return "policy", lambda bars: module.policy
    for name, item in vars(module).items():
        if isinstance(item, type) and item.__module__ == module.__name__ and hasattr(item, "predict"):
            return name, lambda bars, item=item: item()
    return None
