"""An agent knows the environment it was trained on, and refuses another one with a difference that can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import agents
import envs  # noqa: F401 - registers the ids
import regimegym
from agents import artefact, fit
from agents.artefact import PolicyAgent
from agents.recipe import TrainingConfig
from agents.training import train
from envs.make import build, build_vector, game_of
from envs.perp_futures import PerpFuturesConfig
from markets import storage
from markets.errors import ArtefactError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
OTHER_BARS = "synthetic:crypto?seed=2&interval=1h&bars=3000"
ID = "PerpFutures-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent")
    settings = {"n_steps": 8, "batch_size": 32, "n_epochs": 1}
    train(
        TrainingConfig(
            env=ID, algo="ppo", steps=64, seed=5, out=path, lanes=4, quiet=True, evaluations=0,
            arguments={"bars": BARS, "leverage": 2.0}, settings=settings, device="cpu",
        )
    )  # fmt: skip
    return path


@pytest.fixture
def agent(folder: Path) -> PolicyAgent:
    return agents.load(folder)


def refusal(agent: PolicyAgent, env: Any) -> str:
    with pytest.raises(ArtefactError) as caught:
        agent.check(env)
    return str(caught.value)


class Renamed(gym.ObservationWrapper[Any, Any, Any]):
    """Columns under other names, in another order, with another bound, or narrower numbers."""

    def __init__(self, env: gym.Env[Any, Any], change: Callable[[list[str], Any, Any], Any]) -> None:
        super().__init__(env)
        names = list(env.get_wrapper_attr("observation_names"))
        self.observation_names, self.observation_space = change(names, env.observation_space, np)

    def observation(self, observation: Any) -> Any:
        return observation


def made(**arguments: Any) -> gym.Env[Any, Any]:
    return gym.make(ID, **{"bars": BARS, "leverage": 2.0, **arguments})


# What fits


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_agent_accepts_its_own_environment_in_every_form_and_split(agent: PolicyAgent, split: str) -> None:
    arguments = {**agent.manifest["arguments"], "split": split}
    agent.check(gym.make(ID, **arguments))
    agent.check(gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **arguments))
    agent.check(build("PerpFutures", **arguments))
    agent.check(build_vector("PerpFutures", num_envs=2, **arguments))
    agent.check(game_of("PerpFutures", PerpFuturesConfig(**arguments)))


@pytest.mark.parametrize(
    "arguments",
    [{"cost_scale": 5.0}, {"episode_bars": 24}, {"random_start": False}, {"initial_equity": 500.0}],
    ids=str,
)
def test_what_does_not_change_the_meaning_of_a_number_is_accepted(
    agent: PolicyAgent, arguments: dict[str, Any]
) -> None:
    agent.check(made(**arguments))


def test_more_columns_in_another_order_are_accepted_since_an_agent_reads_by_name(agent: PolicyAgent) -> None:
    def change(names: list[str], space: Any, _: Any) -> Any:
        low, high = np.append(space.low[::-1], -1.0), np.append(space.high[::-1], 1.0)
        return (*names[::-1], "more"), gym.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    agent.check(Renamed(made(), change))


def test_other_bars_are_accepted_with_the_agents_own_scaler(agent: PolicyAgent) -> None:
    env = build("PerpFutures", bars=OTHER_BARS, leverage=2.0, split="test", scaler=agent.scaler)
    agent.check(env)


# What does not


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"leverage": 5.0}, "argument.leverage: expected 2.0, found 5.0"),
        ({"contract_leverage": 2.0}, "argument.contract_leverage: expected None, found 2.0"),
        ({"bars": OTHER_BARS}, "scaler: expected '"),
        ({"train_end": "2020-02-15", "validation_end": "2020-03-15"}, "scaler: expected '"),
    ],
    ids=["leverage", "contract leverage", "scaler of other bars", "scaler of another range"],
)
def test_an_argument_that_changes_the_meaning_of_a_number_is_refused_and_named(
    agent: PolicyAgent, arguments: dict[str, Any], line: str
) -> None:
    """C09."""
    text = refusal(agent, made(**arguments))
    assert line in text
    assert text.count("\n") == 1, "nothing else differs"


def rename(names: list[str], space: Any, _: Any) -> Any:
    return ("other", *names[1:]), space


def widen(names: list[str], space: Any, _: Any) -> Any:
    return tuple(names), gym.spaces.Box(space.low * 2.0, space.high)


def double(names: list[str], space: Any, _: Any) -> Any:
    return tuple(names), gym.spaces.Box(space.low.astype(float), space.high.astype(float), dtype=np.float64)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (rename, ": expected [-5.0, 5.0], found nothing"),
        (widen, ": expected [-5.0, 5.0], found [-10.0, 5.0]"),
        (double, "observation dtype: expected 'float32', found 'float64'"),
    ],
    ids=["missing column", "other bounds", "other number type"],
)
def test_columns_that_differ_are_named_one_by_one(agent: PolicyAgent, change: Any, line: str) -> None:
    """C09."""
    text = refusal(agent, Renamed(made(), change))
    assert line in text
    assert (f"observation.{agent.reads[0]}" in text) == (change is not double)


def test_another_action_space_is_refused_and_named(agent: PolicyAgent) -> None:
    """C09."""
    env = gym.wrappers.RescaleAction(made(), np.float32(0.0), np.float32(1.0))
    assert "action.low: expected [-1.0], found [0.0]" in refusal(agent, env)


def test_a_foreign_environment_is_refused_with_everything_it_lacks(agent: PolicyAgent) -> None:
    text = refusal(agent, gym.make("Pendulum-v1"))
    for line in ("observation.", "action.low: expected [-1.0], found [-2.0]", "scaler: expected", "argument: expected"):
        assert line in text


def test_an_agent_with_an_encoder_is_refused_by_an_environment_without_one(folder: Path, tmp_path: Path) -> None:
    manifest, members = storage.read(folder / "agent.zip", [artefact.POLICY, artefact.SCALER])
    manifest["encoder"] = {"name": "jepa-crypto-1h", "sha256": "0" * 64}
    storage.write(tmp_path / "agent.zip", manifest, members)
    assert "encoder: expected {'name': 'jepa-crypto-1h'" in refusal(agents.load(tmp_path), made())


def test_the_encoder_of_a_game_is_noted_with_its_hash() -> None:
    from dataclasses import replace

    game = game_of("PerpFutures", PerpFuturesConfig(bars=BARS))
    assert fit.encoder(game) is None
    encoded = replace(game, details={**game.details, "encoder": {"name": "jepa", "sha256": "a1"}})
    assert fit.encoder(encoded) == {"name": "jepa", "sha256": "a1"}


def test_a_check_that_compares_nothing_is_caught(agent: PolicyAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C09. The environment is described by what the agent expects."""
    expected = fit.expectation(agent.manifest, agent.scaler)
    monkeypatch.setattr(fit, "description", lambda *_: expected)
    with pytest.raises(pytest.fail.Exception):
        refusal(agent, made(leverage=5.0))


OTHER_PROCESS = """
import agents, gymnasium as gym, regimegym
agent = agents.load({folder!r})
agent.check(gym.make("PerpFutures-v0", **agent.manifest["arguments"]))
try:
    agent.check(gym.make("PerpFutures-v0", **{{**agent.manifest["arguments"], "leverage": 7.0}}))
except regimegym.RegimeGymError as error:
    print(error)
"""


def test_another_process_accepts_and_refuses_the_same(folder: Path, run_python: Callable[..., str]) -> None:
    printed = run_python(OTHER_PROCESS.format(folder=str(folder)))
    assert "argument.leverage: expected 2.0, found 7.0" in printed


def test_evaluate_refuses_another_leverage_than_the_agents(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C09."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path))
    words = ["evaluate", str(folder), "--split", "validation", "--out", str(tmp_path), "--quiet"]
    assert regimegym.main([*words, "--env-arg", "leverage=5"]) == 2
    said = capsys.readouterr()
    assert "argument.leverage: expected 2.0, found 5" in said.err
    assert said.out == ""
    assert regimegym.main([*words, "--env-arg", "cost_scale=2"]) == 0


def check_refused_without_normaliser(folder: Path, tmp_path: Path, how: str) -> None:
    """Save the agent again without its scaler in ``tmp_path``, and expect that it is not loaded."""
    manifest, members = storage.read(folder / "agent.zip", [artefact.POLICY, artefact.SCALER])
    if how == "without the member":
        del members[artefact.SCALER]
    else:
        members[artefact.SCALER] = json.dumps({"names": [], "mean": [], "deviation": [], "train_end": ""}).encode()
    storage.write(tmp_path / "agent.zip", manifest, members)
    with pytest.raises(ArtefactError, match=r"scaler\.json"):
        agents.load(tmp_path)


NORMALISERS = ["without the member", "without its numbers"]


@pytest.mark.parametrize("how", NORMALISERS)
def test_an_agent_without_its_normaliser_is_refused_and_not_evaluated_unscaled(
    folder: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """C15."""
    check_refused_without_normaliser(folder, tmp_path, how)
    assert regimegym.main(["evaluate", str(tmp_path), "--split", "validation", "--quiet"]) == 2
    assert "scaler.json" in capsys.readouterr().err
    assert not (tmp_path / "evaluation-validation.json").exists()


@pytest.mark.parametrize("how", NORMALISERS)
def test_a_load_that_goes_on_unscaled_without_a_normaliser_is_caught(
    folder: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of C15. What is missing is taken for mean 0 and deviation 1."""
    whole = agents.load(folder).scaler.to_json()
    unscaled = {**whole, "mean": [0.0] * len(whole["mean"]), "deviation": [1.0] * len(whole["mean"])}
    honest = storage.read

    def read(path: Path, names: list[str], *_: Any) -> Any:
        manifest, members = honest(path, [artefact.POLICY], [artefact.SCALER])
        if not json.loads(members.get(artefact.SCALER, b"{}")).get("mean"):
            members[artefact.SCALER] = json.dumps(unscaled).encode()
        return manifest, members

    real = storage.read(folder / "agent.zip", [artefact.POLICY, artefact.SCALER])
    monkeypatch.setattr(storage, "read", read)
    assert storage.read(folder / "agent.zip", []) == real, "a whole agent is read as it is"
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_refused_without_normaliser(folder, tmp_path, how)
