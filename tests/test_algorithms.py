"""Every row of the table of algorithms: hyperparameters, memory, exploration, and the state of a recurrent policy."""

from __future__ import annotations

import inspect
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

import agents
import regimegym
from agents.artefact import PolicyAgent
from agents.evaluation import walk
from agents.hyperparameters import RANGES
from agents.recipe import TrainingConfig
from agents.sb3 import ALGORITHMS, LARGEST_REPLAY, algorithm, build_model, check_settings, hyperparameters
from agents.training import train
from agents.vec_env import NativeVecEnv
from envs.make import build_vector, game_of
from envs.perp_futures import PerpFuturesConfig
from markets.errors import ConfigError, UnknownNameError
from tests.algorithm_markets import PERPETUAL, Market, market

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
SEED = 31
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 16, "batch_size": 64, "n_epochs": 1},
    "a2c": {"n_steps": 16},
    "recurrent_ppo": {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "lstm_hidden_size": 8},
    "maskable_ppo": {"n_steps": 16, "batch_size": 64, "n_epochs": 1},
    "tqc": {"train_freq": 8, "gradient_steps": 1, "batch_size": 32, "learning_starts": 64, "buffer_size": 512},
}


def lanes(count: int = 4, where: Market = PERPETUAL) -> NativeVecEnv:
    vector = build_vector(where.family, num_envs=count, bars=where.bars, info="none", autoreset_mode="SameStep")
    return NativeVecEnv(vector, 100.0)


def trained(folder: Path, algo: str, **changes: Any) -> PolicyAgent:
    config = TrainingConfig(
        env="PerpFutures-v0", algo=algo, steps=512, seed=SEED, out=folder, lanes=4, quiet=True, evaluations=2,
        arguments={"bars": BARS}, settings={**SMALL[algo], **changes}, device="cpu",
    )  # fmt: skip
    train(config)
    return agents.load(folder)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> PolicyAgent:
    """An agent whose answers depend strongly on its memory."""
    agent = trained(tmp_path_factory.mktemp("recurrent"), "recurrent_ppo")
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for value in agent.policy.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return agent


def observations(count: int, algo: str = "ppo") -> NDArray[np.float32]:
    return market(algo).observations(count, SEED, 0.4, 0.6)


# The table


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_is_saved_loaded_and_evaluated_by_the_command_line(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    sets = [word for key, value in SMALL[algo].items() for word in ("--set", f"{key}={value}")]
    where = market(algo)
    words = [
        "train", "--env", where.env, "--algo", algo, "--bars", where.bars, "--steps", "512", "--lanes", "4",
        "--evaluations", "2", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", *sets,
    ]  # fmt: skip
    assert regimegym.main(words) == 0
    agent = agents.load(tmp_path / "run")
    assert agent.manifest["algo"] == algo
    assert len(agent.manifest["validation_history"]) == 2
    action, state = agent.predict(observations(1, algo)[0], **where.masks())
    assert action in agent.policy.action_space
    assert (state is None) == (algo != "recurrent_ppo")
    words = ["evaluate", str(tmp_path / "run"), "--json", "--out", str(tmp_path / "report"), "--quiet"]
    assert regimegym.main(words) == 0
    assert f"{algo} seed 0" in json.loads(capsys.readouterr().out)["table"]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_default_is_a_hyperparameter_and_every_argument_of_the_net_is_one_of_its_policy(algo: str) -> None:
    import inspect

    row = algorithm(algo)
    assert set(row.settings) <= set(hyperparameters(algo))
    assert set(row.net) <= set(inspect.signature(row.policy.__init__).parameters)
    assert not set(row.net) & set(hyperparameters(algo))


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("name", ["learning_rat", "policy_kwargs", "replay_buffer_class", "rollout_buffer_class"])
def test_an_unknown_hyperparameter_is_refused_with_those_that_can_be_set(algo: str, name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        build_model(algo, lanes(where=market(algo)), SEED, "cpu", None, {name: 1})
    for word in ("learning_rate", "net_arch", *algorithm(algo).net):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("algo", "settings", "said"),
    [
        ("tqc", {"log_std_init": -1.0}, "log_std_init"),
        ("tqc", {"n_epochs": 3}, "n_epochs"),
        ("ppo", {"lstm_hidden_size": 8}, "lstm_hidden_size"),
        ("a2c", {"buffer_size": 100}, "buffer_size"),
        ("recurrent_ppo", {"lstm_hidden_size": 0}, "lstm_hidden_size=0"),
        ("recurrent_ppo", {"n_lstm_layers": 1.5}, "n_lstm_layers=1.5"),
        ("recurrent_ppo", {"shared_lstm": "yes"}, "shared_lstm='yes'"),
        ("recurrent_ppo", {"shared_lstm": True}, "recurrent_ppo cannot be built"),
        ("maskable_ppo", {"log_std_init": -1.0}, "log_std_init"),
        ("maskable_ppo", {"use_sde": True}, "use_sde"),
        ("tqc", {"n_quantiles": 0}, "n_quantiles=0"),
        ("tqc", {"buffer_size": 0}, "buffer_size=0"),
        ("tqc", {"train_freq": "episode"}, "train_freq='episode'"),
        ("tqc", {"ent_coef": "high"}, "ent_coef='high'"),
        ("tqc", {"net_arch": {"pi": [8]}}, "tqc cannot be built"),
    ],
    ids=str,
)
def test_a_setting_that_an_algorithm_cannot_take_is_named(algo: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(algo, lanes(where=market(algo)), SEED, "cpu", None, {**SMALL[algo], **settings})
    assert said in str(caught.value)


def test_the_defaults_of_ppo_are_the_usual_ones_but_for_lanes_that_stand_in_for_long_rollouts() -> None:
    """Learning rate, discount, lambda, clipping and coefficients are those of PPO's authors and SB3; 8 lanes of 2,048
    bars became 256 of 64, the same bars a rollout."""
    ppo = algorithm("ppo")
    defaults = {name: value.default for name, value in inspect.signature(PPO.__init__).parameters.items()}
    same = ("learning_rate", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef", "max_grad_norm")
    assert {name: ppo.settings[name] for name in same} == {name: defaults[name] for name in same}
    assert (ppo.settings["learning_rate"], ppo.settings["gamma"], defaults["n_steps"]) == (3e-4, 0.99, 2048)
    assert ppo.settings["n_steps"] * ppo.lanes == 8 * defaults["n_steps"] == 16_384
    assert set(ppo.settings) - set(same) == {"n_steps", "batch_size", "n_epochs"}  # what the lanes change


def test_the_replay_buffer_is_bounded_in_memory() -> None:
    columns = lanes().observation_space.shape[0]  # type: ignore[index]
    most = int(LARGEST_REPLAY / (4 * (2 * columns + 4)))
    with pytest.raises(ConfigError, match=f"1 to {most:,}"):
        build_model("tqc", lanes(), SEED, "cpu", None, {"buffer_size": most + 1})
    model = build_model("tqc", lanes(), SEED, "cpu")
    arrays = [value for value in vars(model.replay_buffer).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in arrays) < 50e6, "the default is small enough for a checkpoint"


def test_tqc_explores_at_random_until_learning_starts_and_then_by_its_policy(tmp_path: Path) -> None:
    model = build_model("tqc", lanes(), SEED, "cpu", None, SMALL["tqc"])
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    model.learn(64, reset_num_timesteps=False)
    assert not all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())


# The state of a recurrent policy


def check_memory(agent: PolicyAgent) -> None:
    data = observations(40)
    kept, state = [], None
    for row in data:
        action, state = agent.predict(row, state, np.array([False]))
        kept.append(action)
    forgotten = [agent.predict(row)[0] for row in data]
    assert np.array_equal(kept[0], forgotten[0])
    assert np.abs(np.array(kept) - np.array(forgotten)).max() > 0.01, "the memory changes no action"


def test_a_recurrent_agent_remembers_what_it_saw(recurrent: PolicyAgent) -> None:
    check_memory(recurrent)


def test_an_agent_that_drops_its_state_is_caught(recurrent: PolicyAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PolicyAgent.act
    monkeypatch.setattr(PolicyAgent, "act", lambda self, columns, state, *more: honest(self, columns, None, *more))
    with pytest.raises(AssertionError):
        check_memory(recurrent)


@pytest.mark.parametrize("start", [np.array([True]), True], ids=["array", "bool"])
def test_an_episode_start_forgets_what_was_before_it(recurrent: PolicyAgent, start: Any) -> None:
    data = observations(10)
    state = None
    for row in data[:9]:
        _, state = recurrent.predict(row, state)
    fresh, _ = recurrent.predict(data[9])
    assert not np.array_equal(recurrent.predict(data[9], state)[0], fresh)
    assert np.array_equal(recurrent.predict(data[9], state, start)[0], fresh)


def test_the_lanes_of_a_batch_remember_each_on_its_own(recurrent: PolicyAgent) -> None:
    data = observations(30).reshape(10, 3, -1)
    together, state = [], None
    starts = np.zeros((10, 3), bool)
    starts[0] = True
    starts[6, 1] = True  # one lane begins anew in the middle
    for step in range(10):
        action, state = recurrent.predict(data[step], state, starts[step])
        together.append(action)
    for lane in range(3):
        alone, state = [], None
        for step in range(10):
            action, state = recurrent.predict(data[step, lane], state, starts[step, lane : lane + 1])
            alone.append(action)
        assert np.array(alone) == pytest.approx(np.array(together)[:, lane], abs=1e-6)


def test_the_walk_through_a_split_carries_the_state_and_begins_it_anew(recurrent: PolicyAgent) -> None:
    game = game_of("PerpFutures", PerpFuturesConfig(bars=BARS, split="validation", rebalance_band=0.0))
    honest, seen = recurrent.act, []

    def act(columns: Any, state: Any, start: Any, deterministic: bool) -> Any:
        actions, after = honest(columns, state, start, deterministic)
        seen.append((columns.copy(), state, np.array(start), actions, after))
        return actions, after

    recurrent.act = act  # type: ignore[method-assign]
    try:
        first = walk(recurrent, game, (0.0, 1.0))
        steps = len(seen)
        second = walk(recurrent, game, (0.0, 1.0))
    finally:
        del recurrent.act  # type: ignore[method-assign]
    assert np.array_equal(first.equity, second.equity), "a walk begins with what the one before it remembered"
    assert seen[0][1] is None
    assert seen[0][2].all()
    assert seen[steps][1] is None
    for before, after in pairwise(seen[:steps]):
        assert after[1] is before[4]
        assert not after[2].any()
    alone, state = [], None
    for columns, *_ in seen[:50]:
        action, state = recurrent.predict(columns[0], state)
        alone.append(action)
    assert np.array(alone) == pytest.approx(np.array([row[3][0] for row in seen[:50]]), abs=1e-6)


def test_a_recurrent_agent_comes_back_from_its_file_with_the_same_memory(tmp_path: Path) -> None:
    settings = {"n_lstm_layers": 2, "enable_critic_lstm": False, "shared_lstm": True, "net_arch": [8]}
    agent = trained(tmp_path, "recurrent_ppo", **settings)
    again = agents.load(tmp_path)
    assert agent.manifest["policy"] == {**algorithm("recurrent_ppo").net, "lstm_hidden_size": 8, **settings}
    one = other = None
    for row in observations(20):
        ours, one = agent.predict(row, one)
        theirs, other = again.predict(row, other)
        assert np.array_equal(ours, theirs)
    assert one is not None
    assert one[0].shape == (2, 1, 8)


# Ranges of hyperparameters


BAD_VALUES = [
    ("ppo", "gamma", 1.5, "from 0 to 1"),
    ("ppo", "gamma", math.nan, "from 0 to 1"),
    ("ppo", "gae_lambda", -0.1, "from 0 to 1"),
    ("ppo", "learning_rate", 0, "above 0"),
    ("ppo", "learning_rate", math.inf, "above 0"),
    ("ppo", "clip_range", 0, "above 0"),
    ("ppo", "max_grad_norm", -1, "at least 0"),
    ("ppo", "ent_coef", "auto", "at least 0"),
    ("ppo", "n_steps", 2.5, "whole number of at least 1"),
    ("ppo", "n_epochs", 0, "whole number of at least 1"),
    ("ppo", "batch_size", True, "whole number of at least 1"),
    ("ppo", "normalize_advantage", 1, "true or false"),
    ("a2c", "vf_coef", -0.5, "at least 0"),
    ("recurrent_ppo", "target_kl", 0, "above 0"),
    ("tqc", "tau", 2, "from 0 to 1"),
    ("tqc", "learning_starts", -1, "whole number of at least 0"),
    ("tqc", "train_freq", 0, "whole number of at least 1"),
    ("tqc", "ent_coef", "auto_x", "auto_0.1"),
]


@pytest.mark.parametrize(("algo", "key", "value", "wanted"), BAD_VALUES, ids=str)
def test_a_hyperparameter_out_of_its_range_is_refused_with_field_value_and_range(
    algo: str, key: str, value: Any, wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(algo, {key: value})
    for words in (f"{key}={value!r}", algo, wanted):
        assert words in str(caught.value)


def test_without_the_table_of_ranges_a_discount_of_one_and_a_half_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of the test above."""
    monkeypatch.setattr("agents.hyperparameters.RANGES", {})
    check_settings("ppo", {"gamma": 1.5})


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_default_and_the_ends_of_the_ranges_are_taken(algo: str) -> None:
    check_settings(algo, algorithm(algo).settings)
    check_settings(algo, hyperparameters(algo) | algorithm(algo).settings)
    check_settings(algo, {"gamma": 1, "learning_rate": 1e-9} | ({"ent_coef": "auto_0.1"} if algo == "tqc" else {}))
    numbers = {key for key, value in hyperparameters(algo).items() if type(value) in (int, float)}
    assert numbers <= set(RANGES), "a number without a range"


@pytest.mark.parametrize("state", [3, "state", (1, 2), (np.zeros((1, 2, 32)), np.zeros((1, 2, 32)))], ids=repr)
def test_a_state_that_a_recurrent_agent_did_not_return_is_refused_with_the_shape_it_needs(
    recurrent: PolicyAgent, state: Any
) -> None:
    row = observations(1)[0]
    with pytest.raises(ConfigError, match=r"state is .* remembers two arrays of shape"):
        recurrent.predict(row, state)
    assert recurrent.predict(row, recurrent.predict(row)[1])[0].shape == (1,)
