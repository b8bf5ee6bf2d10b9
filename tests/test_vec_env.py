"""The bridge from native lanes to Stable-Baselines3, and plain Stable-Baselines3 on the registered ids."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

import regimegym
from agents.vec_env import NativeVecEnv
from markets.errors import ActionError, ConfigError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
ID = "PerpFutures-v0"
LANES = 4
SEED = 13
PLAIN = {"n_steps": 32, "seed": SEED, "device": "cpu"}


def native(mode: AutoresetMode = AutoresetMode.SAME_STEP, lanes: int = LANES, **arguments: Any) -> Any:
    assert ID in regimegym.envs.ids()
    return gym.make_vec(
        ID,
        num_envs=lanes,
        vectorization_mode="vector_entry_point",
        autoreset_mode=mode.value,
        **{"bars": BARS, "episode_bars": 24, **arguments},
    )


def bridge(kind: type[NativeVecEnv] = NativeVecEnv, scale: float = 1.0, lanes: int = LANES, **arguments: Any) -> Any:
    return kind(native(lanes=lanes, info="none", **arguments), scale)


def actions(steps: int, lanes: int = LANES) -> NDArray[np.float32]:
    return np.random.default_rng(SEED).uniform(-1.0, 1.0, (steps, lanes, 1)).astype(np.float32)


class ForgetsTheLastObservation(NativeVecEnv):
    """Planted fault: hands out the first observation of the next episode as the last of this one."""

    def _final(self, lane: int, observation: Any) -> dict[str, Any]:
        return {**super()._final(lane, observation), "terminal_observation": self.simulation.obs[0, lane].copy()}


class AlwaysTruncated(NativeVecEnv):
    """Planted fault: calls a liquidation a time limit, so that its loss would be bootstrapped away."""

    def _final(self, lane: int, observation: Any) -> dict[str, Any]:
        return {**super()._final(lane, observation), "TimeLimit.truncated": True}


class ForgetsToStartAnew(NativeVecEnv):
    """Planted fault: the statistics of an episode go on in the next one."""

    def step_wait(self) -> Any:
        returns, lengths = self._returns.copy(), self._lengths.copy()
        observations, rewards, done, infos = super().step_wait()
        self._returns[done] = returns[done]
        self._lengths[done] = lengths[done]
        return observations, rewards, done, infos


# Against the native vector environment


def check_matches_the_native_lanes(kind: type[NativeVecEnv], **arguments: Any) -> None:
    ours, theirs = bridge(kind, scale=100.0, **arguments), native(**arguments)
    ours.seed(SEED)
    assert np.array_equal(ours.reset(), theirs.reset(seed=SEED)[0])
    ended = 0
    for action in actions(80):
        observations, rewards, done, infos = ours.step(action)
        expected, gains, terminated, truncated, info = theirs.step(action)
        assert np.array_equal(observations, expected)
        assert np.array_equal(rewards, (gains * 100.0).astype(np.float32))
        assert np.array_equal(done, terminated | truncated)
        for lane in range(LANES):
            if not done[lane]:
                assert infos[lane] == {}
                continue
            ended += 1
            assert np.array_equal(infos[lane]["terminal_observation"], info["final_obs"][lane])
            assert infos[lane]["TimeLimit.truncated"] == truncated[lane]
            assert infos[lane]["equity"] == info["final_info"]["equity"][lane]
    assert ended >= LANES


@pytest.mark.parametrize("leverage", [3.0, 50.0])
def test_the_bridge_gives_what_the_native_lanes_give(leverage: float) -> None:
    check_matches_the_native_lanes(NativeVecEnv, leverage=leverage)


@pytest.mark.parametrize("kind", [ForgetsTheLastObservation, AlwaysTruncated])
def test_a_bridge_with_a_planted_fault_is_caught(kind: type[NativeVecEnv]) -> None:
    with pytest.raises(AssertionError):
        check_matches_the_native_lanes(kind, leverage=50.0)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rewards_are_scaled_and_are_float32(scale: float) -> None:
    plain, scaled = bridge(), bridge(scale=scale)
    for env in (plain, scaled):
        env.seed(SEED)
        env.reset()
    for action in actions(30):
        expected, got = plain.step(action)[1], scaled.step(action)[1]
        assert got.dtype == np.float32
        assert got == pytest.approx(expected * scale, rel=1e-6)
        assert np.any(got != 0.0)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_lanes_that_do_not_reset_in_the_same_step_are_refused(mode: AutoresetMode) -> None:
    with pytest.raises(ConfigError, match=r"autoreset_mode=.*must be SAME_STEP"):
        NativeVecEnv(native(mode))


# Stable-Baselines3's conventions


def test_it_is_a_vec_env_with_the_spaces_of_a_single_lane() -> None:
    env = bridge()
    assert isinstance(env, VecEnv)
    assert env.num_envs == LANES
    single = gym.make(ID, bars=BARS)
    assert env.observation_space == single.observation_space
    assert env.action_space == single.action_space


def ends(env: Any, steps: int, action: float = 0.0) -> list[dict[str, Any]]:
    """The infos of every episode that ended while all lanes asked for one exposure."""
    env.seed(SEED)
    env.reset()
    infos = []
    for _ in range(steps):
        _, _, done, all_infos = env.step(np.full((LANES, 1), action, np.float32))
        infos += [all_infos[lane] for lane in np.flatnonzero(done)]
    return infos


def test_an_episode_cut_by_its_length_is_truncated() -> None:
    infos = ends(bridge(), 72)
    assert len(infos) == 3 * LANES
    assert all(info["TimeLimit.truncated"] is True for info in infos)


def check_liquidations_are_not_truncated(kind: type[NativeVecEnv]) -> None:
    infos = ends(bridge(kind, leverage=50.0, contract_leverage=50.0, episode_bars=512), 600, action=0.02)
    assert len(infos) >= LANES
    for info in infos:
        assert info["end_code"] == 1
        assert info["equity"] < 10_000.0
        assert info["TimeLimit.truncated"] is False


def test_a_liquidation_is_an_end_and_not_a_truncation() -> None:
    check_liquidations_are_not_truncated(NativeVecEnv)


def test_a_liquidation_that_passes_for_a_time_limit_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_liquidations_are_not_truncated(AlwaysTruncated)


def check_episode_statistics(kind: type[NativeVecEnv]) -> None:
    env = bridge(kind, scale=100.0)
    env.seed(SEED)
    env.reset()
    sums, lengths, seen = np.zeros(LANES), np.zeros(LANES, int), 0
    for action in actions(100):
        _, rewards, done, infos = env.step(action)
        sums += rewards / 100.0
        lengths += 1
        for lane in np.flatnonzero(done):
            episode = infos[lane]["episode"]
            assert episode["r"] == pytest.approx(sums[lane], abs=1e-6)
            assert episode["r"] == pytest.approx(math.log(infos[lane]["equity"] / 10_000.0), abs=1e-9)
            assert episode["l"] == lengths[lane] == 24
            sums[lane], lengths[lane], seen = 0.0, 0, seen + 1
    assert seen == 4 * LANES


def test_episode_statistics_are_the_unscaled_return_and_the_length_of_each_episode() -> None:
    check_episode_statistics(NativeVecEnv)


def test_statistics_that_run_on_into_the_next_episode_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_episode_statistics(ForgetsToStartAnew)


def test_a_reset_in_the_middle_of_an_episode_begins_new_statistics() -> None:
    env = bridge()
    env.seed(SEED)
    env.reset()
    for action in actions(10):
        env.step(action)
    env.reset()
    infos = [env.step(action)[3] for action in actions(24)]
    assert all(info["episode"]["l"] == 24 for info in infos[-1])


def test_lane_i_seeded_with_a_seed_equals_the_single_env_seeded_with_seed_plus_i() -> None:
    env = bridge()
    assert env.seed(SEED) == [SEED + lane for lane in range(LANES)]
    first = env.reset()
    starts = env.simulation.rows
    for lane in range(LANES):
        single = gym.make(ID, bars=BARS, episode_bars=24)
        assert np.array_equal(first[lane], single.reset(seed=SEED + lane)[0])
    assert len(set(starts.tolist())) > 1


def test_a_seed_is_used_by_one_reset_only() -> None:
    env = bridge()
    env.seed(SEED)
    first, second = env.reset(), env.reset()
    assert not np.array_equal(first, second)
    env.seed(SEED)
    assert np.array_equal(env.reset(), first)


def test_what_was_returned_is_not_written_to_by_later_steps() -> None:
    env = bridge()
    env.seed(SEED)
    kept = [env.reset()]
    copies = [kept[0].copy()]
    infos: list[dict[str, Any]] = []
    for action in actions(60):
        observations, rewards, done, step_infos = env.step(action)
        kept += [observations, rewards, done]
        copies += [observations.copy(), rewards.copy(), done.copy()]
        infos += [info for info in step_infos if info]
    finals = [info["terminal_observation"].copy() for info in infos]
    for action in actions(60):
        env.step(action)
    assert all(np.array_equal(one, other) for one, other in zip(kept, copies, strict=True))
    assert all(np.array_equal(info["terminal_observation"], final) for info, final in zip(infos, finals, strict=True))


def test_every_lane_has_an_info_of_its_own() -> None:
    env = bridge()
    env.reset()
    infos = env.step(actions(1)[0])[3]
    assert len({id(info) for info in infos}) == LANES


def test_attributes_are_read_per_lane() -> None:
    env = bridge()
    names = env.get_attr("observation_names")
    assert len(names) == LANES
    assert names[0] == gym.make(ID, bars=BARS).get_wrapper_attr("observation_names")
    assert len(env.get_attr("observation_names", 2)) == 1
    assert len(env.get_attr("observation_names", [0, 3])) == 2
    assert env.get_attr("render_mode") == [None] * LANES
    with pytest.raises(AttributeError, match="observation_nams"):
        env.get_attr("observation_nams")


def test_an_attribute_that_is_set_is_read_back() -> None:
    env = bridge()
    env.set_attr("note", 5)
    assert env.get_attr("note", [1, 2]) == [5, 5]


def test_a_method_is_called_once_and_answers_for_each_lane() -> None:
    env = bridge()
    calls: list[int] = []
    env.set_attr("count", lambda step, twice=False: calls.append(step) or (step * 2 if twice else step))
    assert env.env_method("count", 21, twice=True) == [42] * LANES
    assert env.env_method("count", 7, indices=[0, 1]) == [7, 7]
    assert calls == [21, 7]


def test_no_lane_is_wrapped() -> None:
    assert bridge().env_is_wrapped(Monitor) == [False] * LANES
    assert bridge().env_is_wrapped(Monitor, indices=1) == [False]


def test_it_can_be_closed_twice() -> None:
    env = bridge()
    env.close()
    env.close()


@pytest.mark.parametrize("bad", [np.full((LANES, 1), np.nan), np.zeros((LANES + 1, 1)), np.full((LANES, 1), np.inf)])
def test_a_bad_action_is_refused_and_changes_nothing(bad: NDArray[Any]) -> None:
    env = bridge()
    env.reset()
    before = env.simulation.accounts.tobytes()
    with pytest.raises(ActionError, match="action"):
        env.step(bad)
    assert env.simulation.accounts.tobytes() == before


# Learning


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_stable_baselines3_learns_on_the_bridge(kind: type[PPO] | type[A2C]) -> None:
    env = bridge(scale=100.0)
    more = {"batch_size": 128} if kind is PPO else {}
    model = kind("MlpPolicy", env, **PLAIN, **more)
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(2_000)
    assert model.num_timesteps >= 2_000
    assert len(model.ep_info_buffer) > 10
    assert all(bool(value.isfinite().all()) for value in model.policy.parameters())
    assert any(not bool((one == two).all()) for one, two in zip(before, model.policy.parameters(), strict=True))


def test_stable_baselines3_wrappers_go_around_the_bridge() -> None:
    env = VecNormalize(VecMonitor(bridge()), norm_obs=True)
    env.seed(SEED)
    env.reset()
    infos = [info for action in actions(30) for info in env.step(action)[3] if info]
    assert len(infos) == LANES
    assert all(info["episode"]["l"] == 24 for info in infos)
    assert all(info["terminal_observation"].shape == env.observation_space.shape for info in infos)


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_plain_stable_baselines3_learns_on_the_registered_id(kind: type[PPO] | type[A2C]) -> None:
    env = make_vec_env("regimegym:PerpFutures-v0", n_envs=2, seed=SEED, env_kwargs={"bars": BARS, "episode_bars": 64})
    more = {"batch_size": 64} if kind is PPO else {}
    model = kind("MlpPolicy", env, **PLAIN, **more)
    model.learn(512)
    assert model.num_timesteps >= 512
    assert {episode["l"] for episode in model.ep_info_buffer} == {64}
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (2, 1)
    env.close()
