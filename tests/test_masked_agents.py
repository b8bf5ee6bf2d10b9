"""Masks of legal actions: who is given them, when, and what an agent does with and without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
import envs  # noqa: F401 - registers the ids
import regimegym
from agents import fit
from agents.agent import Agent
from agents.artefact import PolicyAgent
from agents.baselines import OPTION_BASELINES, Idle, RandomLegal, baselines_of
from agents.evaluation import walk
from agents.recipe import TrainingConfig
from agents.training import train
from agents.vec_env import NativeVecEnv
from envs import zero_dte_columns as c
from envs.make import build, build_vector, game_of
from envs.simulation import Game
from envs.zero_dte_config import ZeroDTEConfig
from markets.errors import ArtefactError, ConfigError

BARS = "synthetic:spy?seed=3&sessions=70"  # 14 of them for validation, 5,446 decisions
SHORT = "synthetic:spy?seed=3&sessions=9&early_close=only"
KINDS = ("discrete", "sized")
SEED = 7


def game(bars: str = BARS, split: str = "validation", **arguments: Any) -> Game:
    return game_of("ZeroDTE", ZeroDTEConfig(bars=bars, split=split, **arguments))


def trained_with(folder: Path, algo: str = "maskable_ppo", bars: str = BARS, **arguments: Any) -> PolicyAgent:
    settings = {"n_steps": 64} if algo == "a2c" else {"n_steps": 64, "batch_size": 256, "n_epochs": 1}
    train(
        TrainingConfig(
            env="ZeroDTE-v0", algo=algo, steps=1_024, seed=SEED, out=folder, lanes=8, quiet=True, evaluations=0,
            arguments={"bars": bars, **arguments}, settings=settings, device="cpu",
        )
    )  # fmt: skip
    return agents.load(folder)


@pytest.fixture(scope="module", params=KINDS)
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PolicyAgent:
    return trained_with(tmp_path_factory.mktemp(request.param), actions=request.param)


def kind_of(agent: PolicyAgent) -> str:
    return str(agent.manifest["arguments"]["actions"])


# --- no illegal action ------------------------------------------------------------------------------------------------


def illegal_of(actions: str, choose: Callable[[Any, Any], Any], steps: int = 5_000) -> int:
    """Play lanes in parallel and count what the environment held."""
    lanes = build_vector("ZeroDTE", num_envs=10, bars=BARS, actions=actions, autoreset_mode=AutoresetMode.SAME_STEP)
    observations, _ = lanes.reset(seed=SEED)
    refused = taken = 0
    for _ in range(steps // 10):
        chosen = choose(observations, lanes.action_masks())
        observations, _, ended, _, info = lanes.step(chosen)
        codes = np.where(ended, info["final_info"]["order_code"], info["order_code"]) if ended.any() else None
        refused += int((info["order_code"] if codes is None else codes).astype(bool).sum())
        taken += int((np.asarray(chosen).reshape(10, -1)[:, 0] != 0).sum())
    assert taken > 100, "it never did anything: the test is empty"
    return refused


def test_an_agent_trained_with_masks_takes_no_illegal_action_in_5000_steps(agent: PolicyAgent) -> None:
    print(f"seed {SEED}")
    game_ = game(actions=kind_of(agent))
    walked = walk(agent, game_)
    assert walked.days is not None
    assert walked.days.steps >= 5_000
    assert walked.days.illegal.sum() == 0.0
    assert len(walked.days.trades) > 5
    sampled = lambda seen, masks: agent.predict(seen, deterministic=False, action_masks=masks)[0]  # noqa: E731
    assert illegal_of(kind_of(agent), sampled) == 0


def test_the_same_policy_without_masks_takes_illegal_actions(agent: PolicyAgent) -> None:
    """Twin."""
    assert illegal_of(kind_of(agent), lambda seen, _: agent.policy.predict(seen, deterministic=False)[0]) > 50


@pytest.mark.parametrize("actions", KINDS)
@pytest.mark.parametrize("name", OPTION_BASELINES)
def test_no_baseline_takes_an_illegal_action(name: str, actions: str) -> None:
    walked = walk(OPTION_BASELINES[name](), game(SHORT, actions=actions, order_repegs=0.0))
    assert walked.days is not None
    assert walked.days.illegal.sum() == 0.0
    assert (len(walked.days.trades) > 0) == (name != "idle")


@pytest.mark.parametrize("actions", KINDS)
def test_random_legal_draws_every_legal_choice_alike_and_no_other(actions: str) -> None:
    width = 4 if actions == "discrete" else 8
    player = RandomLegal()
    player.share = 1.0
    player.bind(())
    masks = np.ones((1, width), bool)
    masks[0, 2] = masks[0, -1] = False
    state, drawn = None, []
    for _ in range(3_000):
        action, state = player.predict(np.zeros((1, 0)), state, action_masks=masks)
        drawn.append(action[0])
    shares = np.bincount(np.array(drawn)[:, 0].astype(int), minlength=4) / 3_000
    legal = masks[0, :4] / masks[0, :4].sum()
    assert shares == pytest.approx(legal, abs=0.04)
    assert np.all(shares[legal == 0.0] == 0.0)
    if actions == "sized":
        assert set(np.array(drawn)[:, 1]) == {0.0, 1.0, 2.0}


def test_random_that_is_not_told_what_is_legal_is_caught() -> None:
    """Twin."""

    class Deaf(RandomLegal):
        def act_masked(self, columns: Any, masks: Any, *more: Any) -> Any:
            return super().act_masked(columns, np.ones_like(masks), *more)

    walked = walk(Deaf(), game(SHORT))
    assert walked.days is not None
    assert walked.days.illegal.sum() > 10.0


def test_two_walks_of_random_legal_are_the_same() -> None:
    player = RandomLegal()
    assert np.array_equal(walk(player, game(SHORT)).equity, walk(player, game(SHORT)).equity)


# --- masks on their way to the learner --------------------------------------------------------------------------------


def replayed(actions: str, delay: int, steps: int = 700) -> None:
    """Step the bridge through auto-resets beside single environments, and compare masks of every lane and step."""
    arguments: dict[str, Any] = {"bars": SHORT, "actions": actions, "initial_equity": 12_000.0, "fill": "market"}
    width = 4 if actions == "discrete" else 8
    bridge = NativeVecEnv(gym.make_vec("ZeroDTE-v0", num_envs=2, autoreset_mode="SameStep", **arguments))
    singles = [gym.make("ZeroDTE-v0", **arguments) for _ in range(2)]
    bridge.seed(SEED)
    bridge.reset()
    for lane, env in enumerate(singles):
        env.reset(seed=SEED + lane)
    random, resets, met = np.random.default_rng(SEED), 0, set()
    kept = [get_action_masks(bridge)]
    for _ in range(steps):
        kept.append(get_action_masks(bridge))
        served = kept[-1 - delay]
        assert served.shape == (2, width)
        assert served.dtype == np.bool_
        for lane, env in enumerate(singles):
            assert served[lane].tobytes() == env.get_wrapper_attr("action_masks")().tobytes()
            met.add(served[lane].tobytes())
        ranks = np.where(kept[-1], random.random((2, width)), -1.0).reshape(2, -1, 4)
        chosen = ranks.argmax(axis=2)
        chosen[:, 0] *= random.random() < 0.3
        observations, _, done, _ = bridge.step(chosen[:, 0] if actions == "discrete" else chosen)
        for lane, env in enumerate(singles):
            observation, *_ = env.step(chosen[lane, 0] if actions == "discrete" else chosen[lane])
            if done[lane]:
                resets += 1
                observation, _ = env.reset()
            assert observations[lane].tobytes() == observation.tobytes()
    assert resets >= 4
    assert len(met) >= 3


@pytest.mark.parametrize("actions", KINDS)
def test_the_masks_of_the_bridge_are_those_of_the_present_observation_also_after_an_auto_reset(actions: str) -> None:
    replayed(actions, delay=0)


def test_masks_of_the_step_before_are_caught() -> None:
    """Twin."""
    with pytest.raises(AssertionError):
        replayed("discrete", delay=1)


def rolled_out(env: Any) -> tuple[Any, list[Any]]:
    """Let MaskablePPO play a rollout and return the environment it saw and the masks it kept."""
    model = MaskablePPO("MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=1, seed=SEED, device="cpu")
    model.learn(256)
    return model.get_env(), model.rollout_buffer.action_masks


@pytest.mark.parametrize("actions", KINDS)
@pytest.mark.parametrize("form", ["single", "monitor", "dummy", "bridge", "monitored bridge"])
def test_sb3_contrib_finds_the_masks_without_a_wrapper_of_its_own(actions: str, form: str) -> None:
    arguments = {"bars": SHORT, "actions": actions}
    if "bridge" in form:
        lanes: Any = gym.make_vec("ZeroDTE-v0", num_envs=1, autoreset_mode="SameStep", **arguments)
        env: Any = NativeVecEnv(lanes)
        env = VecMonitor(env) if form != "bridge" else env
    else:
        make = lambda: Monitor(gym.make("ZeroDTE-v0", **arguments))  # noqa: E731
        env = {"single": lambda: gym.make("ZeroDTE-v0", **arguments), "monitor": make}.get(
            form, lambda: DummyVecEnv([make])
        )()
    assert is_masking_supported(env)
    seen, masks = rolled_out(env)
    width = 4 if actions == "discrete" else 8
    assert get_action_masks(seen).shape == (1, width)
    kept = np.array(masks).reshape(256, width)
    assert 0.0 < kept.mean() < 1.0
    simulation = seen.get_attr("unwrapped")[0].simulation if "bridge" not in form else lanes.unwrapped.simulation
    assert (simulation.accounts[:, :, c.ILLEGAL_ACTIONS] == 0.0).all()


def test_a_market_without_masks_is_not_taken_for_one_with() -> None:
    lanes = gym.make_vec(
        "PerpFutures-v0", num_envs=1, autoreset_mode="SameStep", bars="synthetic:crypto?seed=1&interval=1h&bars=3000"
    )
    assert not is_masking_supported(NativeVecEnv(lanes))


# --- the predict protocol ---------------------------------------------------------------------------------------------


def seen_by(agent: PolicyAgent) -> tuple[Any, Any, Any]:
    env = gym.make("ZeroDTE-v0", bars=BARS, actions=kind_of(agent))
    observation, _ = env.reset(seed=SEED)
    return env, observation, env.get_wrapper_attr("action_masks")()


def test_an_agent_acts_in_the_environment_it_was_trained_in(agent: PolicyAgent) -> None:
    env, observation, masks = seen_by(agent)
    agent.check(env)
    action, _ = agent.predict(observation, action_masks=masks)
    assert action in env.action_space
    env.step(action)
    batch, _ = agent.predict(np.stack([observation] * 3), action_masks=np.stack([masks] * 3))
    assert all(np.array_equal(row, action) for row in batch)
    only = np.zeros_like(masks)
    for choice in range(4):
        only[:] = False
        only[choice] = True
        only[4:] = masks[4:]
        assert np.ravel(agent.predict(observation, action_masks=only)[0])[0] == choice


def test_without_masks_it_says_what_to_pass(agent: PolicyAgent) -> None:
    with pytest.raises(ConfigError, match="acts with them only") as caught:
        agent.predict(seen_by(agent)[1])
    assert "action_masks=env.get_wrapper_attr('action_masks')()" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda masks: masks[:-1],
        lambda masks: np.zeros_like(masks),
        lambda masks: np.stack([masks, masks]),
        lambda masks: np.array(["yes"] * len(masks)),
        lambda masks: masks & (np.arange(len(masks)) >= 4),
        lambda masks: True,
    ],
    ids=["narrow", "nothing legal", "two rows", "text", "no first number", "one truth"],
)
def test_masks_that_do_not_fit_are_refused(agent: PolicyAgent, wrong: Callable[[Any], Any]) -> None:
    _, observation, masks = seen_by(agent)
    with pytest.raises(ConfigError, match="action_masks are"):
        agent.predict(observation, action_masks=wrong(masks))


def test_an_agent_that_knows_of_no_masks_takes_no_notice_of_them() -> None:
    class Constant(Agent):
        def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
            return np.full((len(columns), 1), 3.0, np.float32), state

    player = Constant().bind(("a",))
    assert player.predict(np.zeros(1), action_masks=[True, False, False, False])[0] == 3.0
    assert Idle().bind(("a",)).predict(np.zeros(1), action_masks=np.ones(8))[0].tolist() == [0.0, 0.0]
    with pytest.raises(ConfigError, match="5 columns"):
        Idle().bind(("a",)).predict(np.zeros(1), action_masks=np.ones(5))


@pytest.mark.parametrize(
    ("changed", "named"), [({"actions": "other"}, "action.kind"), ({"risk": 0.05}, "argument.risk")]
)
def test_another_meaning_of_an_action_is_refused(agent: PolicyAgent, changed: dict[str, Any], named: str) -> None:
    other = "sized" if kind_of(agent) == "discrete" else "discrete"
    arguments = {"actions": kind_of(agent), **changed}
    arguments["actions"] = other if arguments["actions"] == "other" else arguments["actions"]
    with pytest.raises(ArtefactError, match=named):
        agent.check(build("ZeroDTE", bars=BARS, scaler=agent.scaler, **arguments))


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([4, 4]), gym.spaces.Box(-1.0, 1.0, (2,))], ids=str
)
def test_spaces_come_back_from_plain_values(space: gym.Space[Any]) -> None:
    assert fit.space(fit.plain_space(space)) == space


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "Discrete", "choices": [4, 4], "start": 0}, {"kind": "Discrete", "choices": [0], "start": 0},
        {"kind": "MultiDiscrete", "choices": [], "start": []}, {"kind": "MultiDiscrete", "choices": [2.5], "start": 0},
        {"kind": "Tuple", "choices": [4], "start": 0}, {"kind": "Discrete", "choices": [4], "start": 1},
        {"kind": "Discrete", "choices": [10**9], "start": 0}, {"kind": "Discrete", "choices": 4, "start": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_list_of_choices_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match="a space"):
        fit.space(plain)


# --- which algorithm acts where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "env", "said"),
    [
        ("tqc", "ZeroDTE-v0", "use one of: ppo, a2c, recurrent_ppo, maskable_ppo"),
        ("maskable_ppo", "PerpFutures-v0", "use one of: ppo, a2c, recurrent_ppo, tqc"),
    ],
)
def test_an_algorithm_that_cannot_act_there_is_refused_before_anything_is_written(
    algo: str, env: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = BARS if env == "ZeroDTE-v0" else "synthetic:crypto?seed=1&interval=1h&bars=3000"
    words = ["train", "--env", env, "--algo", algo, "--bars", bars, "--out", str(tmp_path / "run"), "--quiet"]
    assert regimegym.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=said):
        train(TrainingConfig(env=env, algo=algo, steps=64, seed=0, out=tmp_path / "run", arguments={"bars": bars}))


@pytest.mark.parametrize("actions", KINDS)
@pytest.mark.parametrize("algo", ["ppo", "a2c", "recurrent_ppo"])
def test_algorithms_without_masks_train_too_and_what_they_may_not_do_is_counted(
    algo: str, actions: str, tmp_path: Path
) -> None:
    player = trained_with(tmp_path, algo, SHORT, actions=actions)
    walked = walk(player, game(SHORT, actions=actions))
    assert walked.days is not None
    assert walked.days.illegal.shape == (len(walked.days.pnl), 1)
    (file,) = (tmp_path / "tensorboard").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert all(0.0 < event.value < 1.0 for event in events.Scalars("action/illegal"))
    observation: NDArray[np.float32] = np.zeros(len(player.reads), np.float32)
    assert player.predict(observation)[0] in player.policy.action_space
    told, _ = player.predict(observation, action_masks=np.eye(1, 8 if actions == "sized" else 4, dtype=bool)[0])
    assert np.array_equal(told, player.predict(observation)[0])


def test_the_families_baselines_are_what_the_documents_name() -> None:
    assert list(baselines_of("ZeroDTE")) == ["idle", "random legal", "call at open", "put at open"]
