"""Lane i of the vector env is the single env seeded with ``seed + i``, bit for bit, in every autoreset mode.

The comparison runs over fees, flips, funding, liquidations and both kinds of episode end; what it met is counted, so
that it cannot pass on a quiet market.
"""

from __future__ import annotations

import copy
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from registered import family

import envs
from envs.make import build, build_vector
from markets import sources
from markets.errors import ActionError, ConfigError, UnknownNameError

SEED = 31
CALM = "synthetic:crypto?seed=1&interval=1h&bars=4000"
SMALL = CALM + "&annual_volatility=2.5"  # liquidations within an episode
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
SETTINGS = {
    "bars": SMALL,
    "episode_bars": 60,
    "maximum_drawdown": 0.5,
    "reward": "log_return=1,costs=0.1,funding=1,drawdown=0.2",
}

Info = dict[str, Any]
Row = tuple[bytes, float, bool, bool, Info, bytes | None, Info | None]


def draw_actions(lanes: int, steps: int, leverage: float) -> np.ndarray[Any, Any]:
    """Targets ``(steps, lanes, 1)`` held for some bars, so that positions live long enough to be liquidated."""
    print(f"seed {SEED}")
    random = np.random.default_rng([SEED, lanes, int(leverage)])
    actions = np.zeros((steps, lanes, 1), np.float32)
    held = np.zeros((lanes, 1), np.float32)
    for step in range(steps):
        fresh = random.random((lanes, 1)) < 0.15
        held = np.where(fresh, random.choice([-1.0, 1.0, 0.0, 0.5, -0.3], (lanes, 1)), held)
        actions[step] = held
    return actions


def bits(value: Any) -> Any:
    """Make a value comparable bit for bit, whether it came alone or out of an array."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (float, np.floating)):
        return struct.pack("<d", value)
    return value.item() if isinstance(value, (np.bool_, np.integer)) else value


def lane_info(info: Info, lane: int) -> Info:
    """One lane of info arrays, without the keys of final observations."""
    skipped = ("final_obs", "final_info")
    return {
        key: lane_info(value, lane) if isinstance(value, dict) else value[lane]
        for key, value in info.items()
        if not key.startswith("_") and key not in skipped
    }


def single_lane(
    env: Any, seed: int, actions: np.ndarray[Any, Any], mode: AutoresetMode
) -> tuple[tuple[bytes, Info], list[Row]]:
    """Play one env as a lane of a vector env in ``mode`` would be played."""
    obs, info = env.reset(seed=seed)
    first, rows, ended = (obs.tobytes(), info), [], False
    for action in actions:
        if ended and mode == AutoresetMode.NEXT_STEP:
            obs, info = env.reset()
            ended = False
            rows.append((obs.tobytes(), 0.0, False, False, info, None, None))
            continue
        if ended:  # DISABLED: reset_mask before the step
            env.reset()
        obs, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        final_obs = final_info = None
        if ended and mode == AutoresetMode.SAME_STEP:
            final_obs, final_info = obs.tobytes(), info
            obs, info = env.reset()
            ended = False
        rows.append((obs.tobytes(), reward, terminated, truncated, info, final_obs, final_info))
    return first, rows


def play_vector(
    env: Any, actions: np.ndarray[Any, Any], mode: AutoresetMode
) -> tuple[tuple[Any, Info], list[tuple[Any, ...]]]:
    """Play a vector env; in DISABLED mode ended lanes are reset with a mask before the next step."""
    first = env.reset(seed=SEED)
    steps, ended = [], np.zeros(env.num_envs, bool)
    for action in actions:
        if mode == AutoresetMode.DISABLED and ended.any():
            env.reset(options={"reset_mask": ended})
        steps.append(env.step(action))
        ended = steps[-1][2] | steps[-1][3]
    return first, steps


def check_lanes(env: Any, actions: np.ndarray[Any, Any], mode: AutoresetMode, **settings: Any) -> Counter[str]:
    """Compare every lane with its single env; returns what was met on the way."""
    met: Counter[str] = Counter()
    first, steps = play_vector(env, actions, mode)
    single = build("PerpFutures", **settings)
    for lane in range(env.num_envs):
        begin, rows = single_lane(single, SEED + lane, actions[:, lane], mode)
        assert first[0][lane].tobytes() == begin[0], f"lane {lane}: first observation"
        assert bits(lane_info(first[1], lane)) == bits(begin[1]), f"lane {lane}: first info"
        previous = 0.0
        for count, (row, step) in enumerate(zip(rows, steps, strict=True)):
            place = f"lane {lane}, step {count}"
            obs, rewards, terminated, truncated, infos = step
            want_obs, want_reward, want_terminated, want_truncated, want_info, final_obs, final_info = row
            assert obs[lane].tobytes() == want_obs, f"{place}: observation"
            assert bits(rewards[lane]) == bits(want_reward), f"{place}: reward"
            assert (bool(terminated[lane]), bool(truncated[lane])) == (want_terminated, want_truncated), (
                f"{place}: flags"
            )
            got = bits(lane_info(infos, lane))
            assert got == {key: value for key, value in bits(want_info).items() if key != "ended_by"}, f"{place}: info"
            if final_obs is None:
                given = infos.get("final_obs", [None] * env.num_envs)[lane]
                assert given is None, place
            else:
                assert (infos["_final_obs"][lane], infos["_final_info"][lane]) == (True, True), place
                assert infos["final_obs"][lane].tobytes() == final_obs, f"{place}: final observation"
                assert bits(lane_info(infos["final_info"], lane)) == bits(final_info), f"{place}: final info"
            last = final_info or want_info
            met["fees"] += last["fee"] != 0.0
            met["flips"] += previous * last["position"] < 0.0
            met["funding"] += last["funding"] != 0.0
            met["liquidations"] += last["liquidated"]
            met["terminated"] += want_terminated
            met["truncated"] += want_truncated
            previous = last["position"]
    return met


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("leverage", [1.0, 10.0, 50.0])
@pytest.mark.parametrize("lanes", [1, 3, 8, 64])
def test_every_lane_equals_the_single_env_bit_for_bit(lanes: int, leverage: float, mode: AutoresetMode) -> None:
    """E08."""
    settings = {**SETTINGS, "bars": CALM if leverage == 50.0 else SMALL, "leverage": leverage}
    settings |= {"maximum_drawdown": 0.15 if leverage == 1.0 else 0.9}
    steps = 1200 if lanes == 1 else 400
    env = build_vector("PerpFutures", lanes, autoreset_mode=mode, **settings)
    met = check_lanes(env, draw_actions(lanes, steps, leverage), mode, **settings)
    print(dict(met))
    for event in ("fees", "flips", "funding", "terminated", "truncated"):
        assert met[event] > 0, f"{event} were never met"
    assert met["liquidations"] > 0 or leverage == 1.0


class Tampered(gym.vector.VectorWrapper):
    """A vector env with one planted fault."""

    def __init__(self, env: Any, fault: str) -> None:
        super().__init__(env)
        self.fault = fault
        self.ended = np.zeros(env.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self.fault == "shared seed":
            seed = [seed] * self.num_envs if seed is not None else None
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        if self.fault == "swapped actions":
            actions = actions[::-1]
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if self.fault == "reward on reset" and self.ended.any():
            rewards[self.ended] = 1e-300
        if self.fault == "truncation told as termination":
            terminated, truncated = terminated | truncated, np.zeros_like(truncated)
        if self.fault == "reset observation as final" and "final_obs" in infos:
            for lane in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][lane] = obs[lane].copy()
        if self.fault == "final info of the new episode" and "final_info" in infos:
            infos["final_info"] = {**infos["final_info"], "equity": infos["equity"]}
        if self.fault == "last bit of the reward":
            rewards = np.nextafter(rewards, 1.0)
        self.ended = terminated | truncated
        return obs, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("fault", "mode"),
    [
        ("shared seed", MODES[0]), ("swapped actions", MODES[2]), ("reward on reset", MODES[0]),
        ("truncation told as termination", MODES[1]), ("reset observation as final", MODES[1]),
        ("final info of the new episode", MODES[1]), ("last bit of the reward", MODES[0]),
    ],
)  # fmt: skip
def test_mutant_a_lane_that_differs_is_found(fault: str, mode: AutoresetMode) -> None:
    """Twin of E08."""
    settings = {**SETTINGS, "leverage": 10.0}
    actions = draw_actions(3, 200, 10.0)
    plain = build_vector("PerpFutures", 3, autoreset_mode=mode, **settings)
    assert check_lanes(Tampered(plain, "none"), actions, mode, **settings)["truncated"] > 0
    with pytest.raises(AssertionError):
        check_lanes(Tampered(plain, fault), actions, mode, **settings)


# ---- Gymnasium's own vector env ---------------------------------------------------------------------------------


def assert_same_info(ours: Info, theirs: Info, place: str) -> None:
    """Compare the keys that both give: SyncVectorEnv adds a mask ``_key`` for each."""
    for key, value in ours.items():
        if key.startswith("_"):
            assert np.array_equal(value, theirs[key]), f"{place}: {key}"
        elif key == "final_obs":
            for mine, other in zip(value, theirs[key], strict=True):
                assert (mine is None and other is None) or mine.tobytes() == other.tobytes(), f"{place}: {key}"
        elif key == "final_info":
            rows = ours["_final_info"]
            for name, column in value.items():
                if isinstance(column, dict):
                    for term, numbers in column.items():
                        assert np.array_equal(numbers[rows], theirs[key][name][term][rows]), f"{place}: {key}, {term}"
                else:
                    assert np.array_equal(column[rows], theirs[key][name][rows].astype(column.dtype)), (
                        f"{place}: {key}, {name}"
                    )
        elif isinstance(value, dict):
            assert_same_info(value, theirs[key], place)
        else:
            assert np.array_equal(value, theirs[key].astype(value.dtype)), f"{place}: {key}"


@pytest.mark.conformance
@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", envs.ids())
def test_the_native_vector_env_equals_gymnasiums_of_single_envs(name: str, mode: AutoresetMode) -> None:
    """E08."""
    settings = {**family(name).arguments, **family(name).volatile, "reward": "log_return=1,costs=0.1,drawdown=0.2"}
    native = gym.make_vec(name, num_envs=4, autoreset_mode=mode, **settings)
    theirs = gym.vector.SyncVectorEnv([lambda: gym.make(name, **settings)] * 4, autoreset_mode=mode)
    assert native.observation_space == theirs.observation_space
    assert native.action_space == theirs.action_space
    assert native.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    one, two = native.reset(seed=SEED), theirs.reset(seed=SEED)
    assert one[0].tobytes() == two[0].tobytes()
    assert one[0].dtype == two[0].dtype
    assert_same_info(one[1], two[1], "reset")
    ends = 0
    theirs.action_space.seed(SEED)
    for count in range(300):
        if count % 4 == 0:
            action = theirs.action_space.sample()
        one, two = native.step(action), theirs.step(action)
        for mine, other in zip(one[:4], two[:4], strict=True):
            assert (mine.dtype, mine.tobytes()) == (other.dtype, other.tobytes()), f"step {count}"
        assert_same_info(one[4], two[4], f"step {count}")
        ends += int((one[2] | one[3]).sum())
    assert ends >= 4


@pytest.mark.conformance
@pytest.mark.parametrize("name", envs.ids())
def test_make_vec_takes_the_autoreset_mode_as_member_or_text(name: str) -> None:
    settings = dict(family(name).arguments)
    assert gym.make_vec(name, num_envs=2, **settings).metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    for mode in MODES:
        for given in (mode, mode.value):
            env = gym.make_vec(name, num_envs=2, autoreset_mode=given, **settings)
            assert env.metadata["autoreset_mode"] == mode
    with pytest.raises(UnknownNameError, match="Did you mean 'SameStep'"):
        gym.make_vec(name, num_envs=2, autoreset_mode="SamStep", **settings)
    for wrong in (0, -1, 2.5):
        with pytest.raises(ConfigError):
            build_vector(name.split("-")[0], wrong, **settings)  # type: ignore[arg-type]


# ---- arrays, options, masks, errors -----------------------------------------------------------------------------


def check_fresh_arrays(env: Any, lanes: int) -> None:
    """What one call returned stays as it was while later calls run, and may be overwritten without an effect."""
    actions = draw_actions(lanes, 150, 10.0)
    twin = build_vector("PerpFutures", lanes, autoreset_mode=env.metadata["autoreset_mode"], **SETTINGS)

    def arrays(result: Any) -> list[Any]:
        found: list[Any] = []
        for item in result:
            if isinstance(item, dict):
                found += arrays(item.values())
            elif isinstance(item, np.ndarray):
                found += [row for row in item if row is not None] if item.dtype == object else [item]
        return found

    results = [env.reset(seed=SEED)]
    twin.reset(seed=SEED)
    kept = [copy.deepcopy(arrays(results[0]))]
    for action in actions:
        results.append(env.step(action))
        kept.append(copy.deepcopy(arrays(results[-1])))
        spoilt = twin.step(action)
        assert spoilt[0].tobytes() == results[-1][0].tobytes()
        assert spoilt[1].tobytes() == results[-1][1].tobytes()
        for array in arrays(spoilt):
            if isinstance(array, np.ndarray):  # the others are the names of what ended an episode
                array[...] = np.zeros((), array.dtype)
    for result, copies in zip(results, kept, strict=True):
        for array, copied in zip(arrays(result), copies, strict=True):
            assert np.array_equal(array, copied)


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
def test_returned_arrays_are_fresh(mode: AutoresetMode) -> None:
    check_fresh_arrays(build_vector("PerpFutures", 4, autoreset_mode=mode, **SETTINGS), 4)


def test_mutant_a_reused_buffer_is_found() -> None:
    class Reusing(gym.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            _, *rest = self.env.step(actions)
            return self.env.unwrapped.simulation.obs[0], *rest  # type: ignore[attr-defined]

    with pytest.raises(AssertionError):
        check_fresh_arrays(Reusing(build_vector("PerpFutures", 4, **SETTINGS)), 4)


def test_infos_are_arrays_of_one_value_a_lane() -> None:
    env = build_vector("PerpFutures", 5, **SETTINGS)
    env.reset(seed=SEED)
    _, rewards, terminated, truncated, info = env.step(np.ones((5, 1)))
    single = build("PerpFutures", **SETTINGS)
    single.reset(seed=SEED)
    assert set(info) == set(single.step([1.0])[4])
    for key, value in info.items():
        for array in value.values() if isinstance(value, dict) else [value]:
            assert isinstance(array, np.ndarray), key
            assert array.shape == (5,), key
    assert info["liquidated"].dtype == info["in_sample"].dtype == terminated.dtype == truncated.dtype == np.bool_
    assert np.issubdtype(info["time"].dtype, np.datetime64)
    assert rewards.dtype == np.float64
    quiet = build_vector("PerpFutures", 5, info="none", **SETTINGS)
    assert quiet.reset(seed=SEED)[1] == {} == quiet.step(np.ones((5, 1)))[4]


def test_each_lane_can_be_given_its_own_start() -> None:
    times = sources.load(SMALL).time[[300, 700, 1100]]
    env = build_vector("PerpFutures", 3, **SETTINGS)
    single = build("PerpFutures", **SETTINGS)
    obs, info = env.reset(seed=SEED, options={"start": times})
    for lane, time in enumerate(times):
        want, _ = single.reset(seed=SEED + lane, options={"start": time})
        assert obs[lane].tobytes() == want.tobytes()
    assert (info["time"] == times + np.timedelta64(1, "h")).all()
    obs, _ = env.reset(options={"start": str(times[1])})
    assert len({row.tobytes() for row in obs}) == 1
    for wrong in (times[:2], "2999-01-01", ["2020-02-01", "nonsense", "2020-02-01"]):
        with pytest.raises(ConfigError):
            env.reset(options={"start": wrong})


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_given_start_uses_up_no_random_number_in_any_lane(mode: AutoresetMode) -> None:
    time = sources.load(SMALL).time[500]
    env, single = build_vector("PerpFutures", 3, autoreset_mode=mode, **SETTINGS), build("PerpFutures", **SETTINGS)
    calls: list[dict[str, Any]] = [
        {"seed": SEED}, {"options": {"start": time}}, {}, {"seed": SEED, "options": {"start": time}}, {}, {}
    ]  # fmt: skip
    got = [env.reset(**call)[0] for call in calls]
    for lane in range(3):
        for call, obs in zip(calls, got, strict=True):
            want, _ = single.reset(**{**call, **({"seed": call["seed"] + lane} if "seed" in call else {})})
            assert obs[lane].tobytes() == want.tobytes(), f"lane {lane}, {call}"


def test_a_masked_reset_moves_only_the_lanes_of_the_mask() -> None:
    env = build_vector("PerpFutures", 4, autoreset_mode=AutoresetMode.DISABLED, **SETTINGS)
    env.reset(seed=SEED)
    for _ in range(5):
        obs, *_ = env.step(np.full((4, 1), 0.5))
    mask = np.array([True, False, False, True])
    before = env.simulation.accounts[0].copy()
    after, info = env.reset(options={"reset_mask": mask})
    assert after[~mask].tobytes() == obs[~mask].tobytes()
    assert (info["position"] == 0.0).tolist() == mask.tolist()
    kept = [column for column, name in enumerate(env.simulation.game.columns) if name != "reset"]
    assert env.simulation.accounts[0][~mask][:, kept].tobytes() == before[~mask][:, kept].tobytes()
    for wrong in (np.zeros(4, bool), np.ones(3, bool), np.ones(4), [1, 0, 0, 1]):
        with pytest.raises(ConfigError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong})


def test_stepping_before_a_reset_or_past_an_end_without_autoreset_raises() -> None:
    """E05, E09."""
    env = build_vector("PerpFutures", 3, autoreset_mode=AutoresetMode.DISABLED, **SETTINGS)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((3, 1)))
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    env.reset(seed=SEED)
    for _ in range(60):
        env.step(np.zeros((3, 1)))
    before = env.simulation.accounts.tobytes()
    with pytest.raises(ResetNeeded, match="lane 0"):
        env.step(np.zeros((3, 1)))
    assert env.simulation.accounts.tobytes() == before
    env.close()
    env.close()


def test_a_bad_action_names_its_lane_and_moves_no_lane() -> None:
    """E50, E52."""
    env = build_vector("PerpFutures", 3, **SETTINGS)
    env.reset(seed=SEED)
    bad: list[Any] = [
        [[0.0], [np.nan], [0.0]],
        [[0.0], [np.inf], [0.0]],
        np.zeros((2, 1)),
        np.zeros((3, 2)),
        "long",
        None,
        [["a"], ["b"], ["c"]],
    ]
    for number, action in enumerate(bad):
        before = env.simulation.accounts.tobytes()
        with pytest.raises(ActionError, match=r"\[1, 0\]" if number < 2 else "action"):
            env.step(action)
        assert env.simulation.accounts.tobytes() == before


def test_seeds_can_be_given_one_by_one() -> None:
    env, single = build_vector("PerpFutures", 3, **SETTINGS), build("PerpFutures", **SETTINGS)
    obs, _ = env.reset(seed=[7, 99, 7])
    assert obs[0].tobytes() == obs[2].tobytes() == single.reset(seed=7)[0].tobytes()
    assert obs[1].tobytes() == single.reset(seed=99)[0].tobytes()
    with pytest.raises(ConfigError, match="2 values for 3 lanes"):
        env.reset(seed=[1, 2])


SPECIALISATIONS = """
import numpy as np
from envs import perp_kernel
from envs.make import build, build_vector
settings = {settings!r}
def read_only(array):
    array.flags.writeable = False
    return array
single = build("PerpFutures", **settings)
for turn, action in enumerate([
    np.array([0.5], np.float32), np.array([0.5]), [0.5], 0.5, np.float32(0.5), np.array(0.5), 1, True,
    read_only(np.array([0.5], np.float32)), np.repeat(np.array([0.5, 0.1]), 2)[::4],
]):
    single.reset(seed=turn)
    single.step(action)
import copy, pickle
pickle.loads(pickle.dumps(single)).step([0.1])
copy.deepcopy(single).step([0.1])
for mode in ("NextStep", "SameStep", "Disabled"):
    for lanes in (1, 3):
        env = build_vector("PerpFutures", lanes, autoreset_mode=mode, **settings)
        for action in [
            np.ones((lanes, 1), np.float32), np.ones((lanes, 1)), [[0.5]] * lanes, np.ones(lanes),
            np.ones((lanes, 1), int), read_only(np.ones((lanes, 1))), np.asfortranarray(np.ones((lanes, 1))),
        ]:
            start = env.simulation.game.bars.time[300]
            env.reset(seed=read_only(np.arange(lanes)).tolist(), options={{"start": start}})
            env.step(action)
            env.reset(options={{"reset_mask": np.ones(lanes, bool)}})
        pickle.loads(pickle.dumps(env)).step(action)
print(len(perp_kernel.step.signatures))
"""


def test_the_kernel_is_compiled_once_whatever_form_the_inputs_have(run_python: Callable[..., str]) -> None:
    assert run_python(SPECIALISATIONS.format(settings=SETTINGS), NUMBA_DISABLE_JIT="0").split() == ["1"]


def test_mutant_a_read_only_market_compiles_a_second_kernel(run_python: Callable[..., str]) -> None:
    code = SPECIALISATIONS.format(settings=SETTINGS).replace(
        "print(len", "single.simulation.game.market.flags.writeable = False\nsingle.reset(seed=1)\nprint(len"
    )
    assert run_python(code, NUMBA_DISABLE_JIT="0").split() == ["2"]
