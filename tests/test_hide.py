"""Hidden columns: constants that tell nothing, everywhere an agent looks, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from agents import artefact, fit
from agents.agent import Agent
from agents.evaluation import walk
from agents.recipe import TrainingConfig
from agents.training import train
from agents.vec_env import NativeVecEnv
from envs.make import build, build_vector, game_of
from envs.simulation import Game
from envs.wrappers.hide import HideObservations, HideObservationsVector
from envs.zero_dte_config import ZeroDTEConfig
from markets.errors import ArtefactError, ConfigError, UnknownNameError
from tests.registered import IDS, family, make

SEED = 5
CHOSEN = {
    "PerpFutures": ("return_1", "liquidation_distance"),
    "ZeroDTE": ("hours_to_close", "exit_time"),
    "SpotCrypto": ("ETH_return_1", "SOL_weight"),
}
SESSIONS = family("ZeroDTE-v0").arguments["bars"]
CLOCK = "hours_to_close,session_sin,session_cos,entry_time,exit_time"


def chosen(name: str) -> list[str]:
    family_name = name.split("-")[0]
    names = list(CHOSEN[family_name])
    coin = "ETH_" if family_name == "SpotCrypto" else ""
    return [*names, f"{coin}jepa_00", f"{coin}regime_1"] if "JEPA" in name else names


def lanes(name: str, **more: Any) -> Any:
    settings = {**family(name).arguments, **family(name).volatile, **more}
    return gym.make_vec(
        name, num_envs=3, vectorization_mode="vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP.value,
        **settings,
    )  # fmt: skip


def leaking(env: Any, hidden: list[str], steps: int = 60) -> bool:
    """True where a column that should be hidden takes two values, or another one is not what it was."""
    plain = make(env.spec.id.split("/")[-1])
    names = env.get_wrapper_attr("observation_names")
    places = [names.index(name) for name in hidden]
    others = np.setdiff1d(np.arange(len(names)), places)
    seen, was = env.reset(seed=SEED)[0], plain.reset(seed=SEED)[0]
    first = seen[places].copy()
    env.action_space.seed(SEED)
    for _ in range(steps):
        if (seen[places] != first).any() or seen[others].tobytes() != was[others].tobytes():
            return True
        action = env.action_space.sample()
        (seen, reward, *_), (was, wanted, *_) = env.step(action), plain.step(action)
        assert reward == wanted
    return False


@pytest.mark.parametrize("name", IDS)
def test_hidden_columns_are_constant_and_the_others_are_what_they_were(name: str) -> None:
    hidden = chosen(name)
    env = make(name, hide=", ".join(hidden))
    plain = make(name)
    assert env.observation_space == plain.observation_space
    assert env.get_wrapper_attr("observation_names") == plain.get_wrapper_attr("observation_names")
    assert not leaking(env, hidden)
    assert leaking(plain, hidden)
    assert not leaking(copy.deepcopy(env), hidden)
    assert not leaking(pickle.loads(pickle.dumps(env)), hidden)


@pytest.mark.parametrize("name", IDS)
def test_lanes_equal_single_envs_and_last_observations_hide_as_well(name: str) -> None:
    hidden = ",".join(chosen(name))
    vector, single = lanes(name, hide=hidden), make(name, **family(name).volatile, hide=hidden)
    places = [vector.observation_names.index(column) for column in hidden.split(",")]
    seen, alone = vector.reset(seed=SEED)[0], single.reset(seed=SEED)[0]
    assert (seen[:, places] == seen[0, places]).all()
    assert seen[0].tobytes() == alone.tobytes()
    ended = 0
    vector.action_space.seed(SEED)
    for _ in range(300):
        seen, *_, infos = vector.step(vector.action_space.sample())
        assert (seen[:, places] == alone[places]).all()
        for lane in np.flatnonzero(infos.get("_final_obs", np.zeros(0))):
            assert (infos["final_obs"][lane][places] == alone[places]).all()
            ended += 1
    assert ended > 0


def test_a_hidden_column_whose_bounds_leave_no_0_shows_the_nearest_number() -> None:
    game = game_of("ZeroDTE", ZeroDTEConfig(bars=SESSIONS, hide="premium"))
    place = game.names.index("premium")
    low, high = game.low.copy(), game.high.copy()
    low[place] = 0.25
    assert replace(game, low=low).hidden == ([place], [0.25])
    low[place], high[place] = -2.0, -1.0
    assert replace(game, low=low, high=high).hidden == ([place], [-1.0])


def test_masks_and_infos_pass_through() -> None:
    env, vector = build("ZeroDTE", bars=SESSIONS, hide=CLOCK), build_vector("ZeroDTE", 2, bars=SESSIONS, hide=CLOCK)
    _, info = env.reset(seed=SEED)
    vector.reset(seed=SEED)
    assert isinstance(env, HideObservations)
    assert isinstance(vector, HideObservationsVector)
    assert env.get_wrapper_attr("action_masks")().tolist() == [True, True, True, False]
    assert env.unwrapped.action_masks().shape == (4,)  # type: ignore[attr-defined]
    assert info["minutes_left"] == 389.0
    bridge = NativeVecEnv(build_vector("ZeroDTE", 2, bars=SESSIONS, hide=CLOCK, autoreset_mode="SameStep"))
    bridge.reset()
    assert np.stack(bridge.env_method("action_masks")).shape == (2, 4)


def test_nothing_is_wrapped_where_nothing_is_hidden() -> None:
    env = build("ZeroDTE", bars=SESSIONS)
    assert env is env.unwrapped
    vector = build_vector("ZeroDTE", 2, bars=SESSIONS)
    assert vector is vector.unwrapped
    assert game_of("ZeroDTE", ZeroDTEConfig(bars=SESSIONS)).hidden is None


@pytest.mark.parametrize(
    ("hide", "error", "says"),
    [
        ("hours_to_clos", UnknownNameError, "Did you mean 'hours_to_close'"),
        ("jepa_00", UnknownNameError, "unknown observation column to hide 'jepa_00'"),
        ("theta,theta", ConfigError, "names 'theta' twice"),
        ("theta,", ConfigError, "has an empty name"),
        (3, ConfigError, "hide must be text"),
    ],
)
def test_what_cannot_be_hidden_is_named(hide: Any, error: type[Exception], says: str) -> None:
    for maker in (lambda: build("ZeroDTE", bars=SESSIONS, hide=hide), lambda: lanes("ZeroDTE-v0", hide=hide)):
        with pytest.raises(error, match=says):
            maker()


class Clock(Agent):
    """Writes down what it is shown of the clock, and holds."""

    reads = ("hours_to_close", "close")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray[Any, Any]] = []

    def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        self.seen.append(columns.copy())
        return np.zeros(len(columns)), None


def shown(game: Game) -> np.ndarray[Any, Any]:
    agent = Clock()
    walk(agent, game)
    return np.concatenate(agent.seen)


def test_an_evaluation_hides_what_the_configuration_hides() -> None:
    config = ZeroDTEConfig(bars=SESSIONS, split="validation")
    plain, hiding = shown(game_of("ZeroDTE", config)), shown(game_of("ZeroDTE", replace(config, hide=CLOCK)))
    assert np.unique(hiding[:, 0]).tolist() == [0.0]
    assert len(np.unique(plain[:, 0])) > 300
    np.testing.assert_array_equal(hiding[:, 1], plain[:, 1])


def test_an_agent_that_was_trained_without_a_column_does_not_fit_where_it_is_shown() -> None:
    plain, hiding, other = (
        fit.requirements(game_of("ZeroDTE", ZeroDTEConfig(bars=SESSIONS, hide=hide)))
        for hide in ("", "theta,gamma", "gamma,theta")
    )
    assert hiding == other == {**plain, "hide": "gamma,theta"}
    assert "hide" not in plain


def test_a_saved_agent_refuses_an_environment_that_shows_what_was_hidden_from_it(tmp_path: Path) -> None:
    bars = str(family("PerpFutures-v0").arguments["bars"])
    arguments = {"bars": bars, "hide": "return_1,exposure"}
    settings = {"n_steps": 4, "batch_size": 32, "n_epochs": 1, "net_arch": [4]}
    plan = TrainingConfig(
        env="PerpFutures-v0", algo="ppo", steps=64, seed=0, out=tmp_path, lanes=8, arguments=arguments,
        settings=settings, evaluations=1, device="cpu", quiet=True,
    )  # fmt: skip
    agent = artefact.load(train(plan))
    assert agent.manifest["arguments"] == arguments
    agent.check(build("PerpFutures", **arguments))
    agent.check(build("PerpFutures", bars=bars, hide="exposure, return_1"))
    for shown in ({}, {"hide": "return_1"}, {"hide": "return_1,exposure,basis"}):
        with pytest.raises(ArtefactError, match=r"argument\.hide: expected"):
            agent.check(build("PerpFutures", bars=bars, **shown))
