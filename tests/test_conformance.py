"""Every registered environment keeps Gymnasium's contract, and what that contract leaves open.

Each check is a function that takes a way to make an environment, so that its twin can hand it a broken one. Tests are
driven by ``envs.ids()``: a new id is picked up without an edit here.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as check_by_gymnasium
from registered import family
from stable_baselines3.common.env_checker import check_env as check_by_sb3

import envs
from markets.errors import ActionError, ConfigError, RegimeGymError, UnknownNameError

pytestmark = pytest.mark.conformance

Make = Callable[[], gym.Env[Any, Any]]
Step = tuple[bytes, float, bool, bool, str]

IDS = envs.ids()
SEED = 20
ALLOWED_WARNING = "is different from the unwrapped version"  # check_env says so of every env that gym.make returns


def arguments(name: str) -> dict[str, Any]:
    """A market that is quick to prepare, for a registered id."""
    return dict(family(name).arguments)


def maker(name: str, **more: Any) -> Make:
    return lambda: gym.make(name, **arguments(name), **more)


def warnings_of(check: Callable[[Any], None], env: Any) -> list[str]:
    """Run a checker and return every warning but the one that Gymnasium gives for any wrapped environment."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env)
    return [str(item.message) for item in caught if ALLOWED_WARNING not in str(item.message)]


def low_high(env: Any) -> tuple[Any, Any]:
    """The two extreme actions of an environment."""
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.zeros_like(space.nvec), space.nvec - 1
    return space.low.copy(), space.high.copy()


def state(env: Any) -> bytes:
    """Everything the accounts of an environment hold, bit for bit."""
    return env.unwrapped.simulation.accounts.tobytes()


def draw_actions(env: Any, count: int, seed: int = SEED) -> list[Any]:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def play(env: Any, actions: list[Any], without: tuple[str, ...] = ()) -> list[Step]:
    """Step through ``actions`` until they or the episode end; what came back, comparable bit for bit."""
    steps = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        info = {key: value for key, value in info.items() if key not in without}
        steps.append((obs.tobytes(), reward, terminated, truncated, repr(info)))
        if terminated or truncated:
            break
    return steps


class Mutant(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper through which a planted fault reaches a check; ``unwrapped`` is still the environment."""


# ---- the two public checkers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_check_env_finds_nothing_to_warn_about(name: str) -> None:
    """E01."""
    assert warnings_of(check_by_gymnasium, maker(name)()) == []


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_check_env_finds_nothing_to_warn_about(name: str) -> None:
    """E01."""
    assert warnings_of(check_by_sb3, maker(name)()) == []


@pytest.mark.parametrize("name", IDS)
def test_both_checkers_are_silent_about_the_env_without_the_wrappers_of_make(name: str) -> None:
    """E01. Every warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_by_gymnasium(maker(name)().unwrapped)
        check_by_sb3(maker(name)().unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_an_env_made_again_from_its_json_spec_passes_both_checkers_and_plays_the_same(name: str) -> None:
    first = maker(name)()
    assert first.spec is not None
    again = gym.make(EnvSpec.from_json(first.spec.to_json()))
    assert again.spec == first.spec
    assert warnings_of(check_by_gymnasium, again) == []
    assert warnings_of(check_by_sb3, again) == []
    actions = draw_actions(first, 50)
    first.reset(seed=SEED)
    again.reset(seed=SEED)
    assert play(first, actions) == play(again, actions)


@pytest.mark.parametrize("name", IDS)
def test_mutant_an_observation_of_another_dtype_fails_both_checkers(name: str) -> None:
    """Twin of E01."""

    class Wide(Mutant):
        def reset(self, **options: Any) -> Any:
            obs, info = self.env.reset(**options)
            return obs.astype(np.float64) * 1.5, info

    for check in (check_by_gymnasium, check_by_sb3):
        with pytest.raises(AssertionError):
            assert warnings_of(check, Wide(maker(name)())) == []


# ---- spaces and names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_make_and_make_vec_have_the_same_spaces_names_and_metadata(name: str) -> None:
    single, vector = maker(name)(), gym.make_vec(name, num_envs=3, **arguments(name))
    assert vector.num_envs == 3
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    assert vector.observation_space.shape == (3, *single.observation_space.shape)
    assert vector.observation_names == single.get_wrapper_attr("observation_names")
    assert single.metadata["render_modes"] == vector.metadata["render_modes"]


@pytest.mark.parametrize("name", IDS)
def test_observation_names_are_distinct_and_as_many_as_columns(name: str) -> None:
    env = maker(name)()
    names = env.get_wrapper_attr("observation_names")
    assert len(names) == len(set(names)) == env.observation_space.shape[0]
    assert all(isinstance(item, str) and item for item in names)


@pytest.mark.parametrize("name", IDS)
def test_the_observation_space_is_a_flat_float32_box_with_finite_bounds(name: str) -> None:
    space = maker(name)().observation_space
    assert isinstance(space, gym.spaces.Box)
    assert space.dtype == np.float32
    assert len(space.shape) == 1
    assert np.isfinite(space.low).all()
    assert np.isfinite(space.high).all()
    assert (space.low < space.high).all()


# ---- observations -----------------------------------------------------------------------------------------------


def check_observations(make: Make, episodes: int = 3) -> None:
    """Random and extreme actions: finite float32 inside the space, contiguous; finite float rewards, plain bools."""
    env = make()
    low, high = low_high(env)
    space = env.observation_space

    def check(obs: Any) -> None:
        assert obs.dtype == np.float32
        assert obs.flags.c_contiguous
        assert np.isfinite(obs).all()
        assert space.contains(obs)

    print(f"seed {SEED}")
    for episode in range(episodes):
        for style in ("random", "low", "high", "alternating"):
            obs, _ = env.reset(seed=SEED + episode)
            check(obs)
            randoms = draw_actions(env, 600, SEED + episode)
            for count in range(600):
                action = {
                    "random": randoms[count], "low": low, "high": high, "alternating": (low, high)[count % 2]
                }[style]  # fmt: skip
                obs, reward, terminated, truncated, _ = env.step(action)
                check(obs)
                assert type(reward) is float
                assert np.isfinite(reward)
                assert type(terminated) is bool
                assert type(truncated) is bool
                if terminated or truncated:
                    break


@pytest.mark.parametrize("name", IDS)
def test_observations_are_finite_float32_inside_the_space_whatever_is_done(name: str) -> None:
    """E03."""
    check_observations(maker(name))


@pytest.mark.parametrize("fault", ["nan", "inf", "outside", "float64", "strided"])
def test_mutant_a_bad_observation_is_found(fault: str) -> None:
    """Twin of E03."""

    class Bad(Mutant):
        def step(self, action: Any) -> Any:
            obs, *rest = self.env.step(action)
            if fault == "float64":
                obs = obs.astype(np.float64)
            elif fault == "strided":
                obs = np.repeat(obs, 2)[::2]
            else:
                obs[0] = {"nan": np.nan, "inf": np.inf, "outside": self.observation_space.high[0] * 1.01}[fault]
            return obs, *rest

    with pytest.raises(AssertionError):
        check_observations(lambda: Bad(maker(IDS[0], disable_env_checker=True)()), 1)


def check_own_arrays(make: Make) -> None:
    """Overwriting what was returned changes nothing that comes later."""
    kept, spoilt = make(), make()
    actions = draw_actions(kept, 30)
    kept.reset(seed=SEED)
    obs, info = spoilt.reset(seed=SEED)
    obs[:] = 0.5
    info.clear()
    before = state(spoilt)
    for action in actions:
        want = kept.step(action)
        got = spoilt.step(action)
        assert want[0].tobytes() == got[0].tobytes()
        assert want[1:] == got[1:]
        assert not np.shares_memory(want[0], kept.unwrapped.simulation.obs)  # type: ignore[attr-defined]
        got[0][:] = 0.5
        got[4].clear()
        got[4]["equity"] = -1.0
    assert before != state(spoilt)


@pytest.mark.parametrize("name", IDS)
def test_changing_a_returned_observation_or_info_does_not_change_the_env(name: str) -> None:
    """E04."""
    check_own_arrays(maker(name))


def test_mutant_an_env_that_hands_out_its_buffer_is_found() -> None:
    """Twin of E04."""

    class Aliased(Mutant):
        def step(self, action: Any) -> Any:
            _, *rest = self.env.step(action)
            return self.unwrapped.simulation.obs[0, 0], *rest  # type: ignore[attr-defined]

    with pytest.raises(AssertionError):
        check_own_arrays(lambda: Aliased(maker(IDS[0])()))


# ---- seeds, order of calls, memory ------------------------------------------------------------------------------


def check_seeds(make: Make) -> None:
    """reset(seed=a), reset(), reset(seed=a): the third equals the first, the second differs."""
    env = make()
    actions = draw_actions(env, 40)

    def episode(seed: int | None) -> tuple[bytes, list[Step]]:
        obs, _ = env.reset(seed=seed)
        return obs.tobytes(), play(env, actions)

    first, second, third, fourth = episode(SEED), episode(None), episode(SEED), episode(None)
    assert first == third
    assert second == fourth
    assert first != second
    assert episode(SEED + 1) != first
    other = make()
    obs, _ = other.reset(seed=SEED)
    assert (obs.tobytes(), play(other, actions)) == first


@pytest.mark.parametrize("name", IDS)
def test_the_same_seed_gives_the_same_episode_and_no_seed_goes_on_drawing(name: str) -> None:
    """E11."""
    check_seeds(maker(name))


@pytest.mark.parametrize("fault", ["ignores the seed", "always the same"])
def test_mutant_an_env_that_mishandles_seeds_is_found(fault: str) -> None:
    """Twin of E11."""

    class Careless(Mutant):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self.env.reset(seed=5 if fault == "always the same" else None, options=options)

    with pytest.raises(AssertionError):
        check_seeds(lambda: Careless(maker(IDS[0])()))


def check_order_of_calls(make: Make) -> None:
    """Stepping before the first reset or after the end is a clear error; a reset mends it."""
    env = make()
    action = draw_actions(env, 1)[0]
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=SEED)
    idle = 100_000
    while idle:
        idle -= 1
        if any(env.step(action)[2:4]):
            break
    assert idle, "the episode never ended"
    before = state(env)
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="reset"):
            env.step(action)
    assert state(env) == before
    env.reset()
    env.step(action)
    env.close()
    env.close()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", IDS)
def test_step_before_reset_and_after_the_end_raises_and_close_may_be_called_twice(name: str, checked: bool) -> None:
    """E05, E09."""
    check_order_of_calls(maker(name, disable_env_checker=not checked))
    check_order_of_calls(lambda: maker(name, disable_env_checker=not checked)().unwrapped)


def test_mutant_an_env_that_steps_on_after_its_end_is_found() -> None:
    """Twin of E05."""

    class Endless(Mutant):
        begun = False

        def reset(self, **options: Any) -> Any:
            self.begun = True
            return self.env.reset(**options)

        def step(self, action: Any) -> Any:
            if self.begun:
                self.unwrapped._ended = False  # type: ignore[attr-defined]
            return self.env.step(action)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_order_of_calls(lambda: Endless(maker(IDS[0], episode_bars=5)().unwrapped))


def check_resets(make: Make, count: int = 1000) -> None:
    """Many resets in mid-episode leave no trace in the account and take no memory."""
    env, fresh = make(), make()
    actions = draw_actions(env, 5)
    obs, _ = fresh.reset(seed=SEED)
    first, begin = obs.tobytes(), state(fresh)
    env.reset(seed=SEED)
    play(env, actions)
    tracemalloc.start()
    try:
        used = 0
        for turn in range(count):
            env.reset(seed=SEED + turn)
            play(env, actions)
            if turn == 20:  # what is made once has been made
                used = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - used
    finally:
        tracemalloc.stop()
    obs, _ = env.reset(seed=SEED)
    assert obs.tobytes() == first
    assert state(env) == begin
    assert grown < 1 << 20, f"{grown} bytes more after {count} resets"


@pytest.mark.parametrize("name", IDS)
def test_a_thousand_resets_in_mid_episode_leak_neither_state_nor_memory(name: str) -> None:
    """E06."""
    check_resets(maker(name))


@pytest.mark.parametrize("fault", ["state", "memory"])
def test_mutant_a_reset_that_leaks_is_found(fault: str) -> None:
    """Twin of E06."""

    class Leaky(Mutant):
        kept: list[Any] = []

        def reset(self, **options: Any) -> Any:
            result = self.env.reset(**options)
            if fault == "memory":
                self.kept.append(np.ones(4096))
            else:
                self.unwrapped.simulation.accounts[0, 0, -1] = len(self.kept) + 1e-9  # type: ignore[attr-defined]
                self.kept.append(0)
            return result

    with pytest.raises(AssertionError):
        check_resets(lambda: Leaky(maker(IDS[0])()), 200)


# ---- copies -----------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}


def check_copies(make: Make, copy_of: Callable[[Any], Any]) -> None:
    """A copy of a running env goes on as the original does, and neither moves the other."""
    env = make()
    actions = draw_actions(env, 120)
    env.reset(seed=SEED)
    play(env, actions[:20])
    twin = copy_of(env)
    before = state(twin)
    want = play(env, actions[20:60])
    assert state(twin) == before
    assert play(twin, actions[20:60]) == want
    assert env.reset()[0].tobytes() == twin.reset()[0].tobytes()
    assert play(twin, actions) == play(env, actions)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", IDS)
def test_a_copy_of_a_running_env_goes_on_bit_for_bit(name: str, how: str) -> None:
    """E07."""
    check_copies(maker(name), COPIES[how])


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", IDS)
def test_a_copy_of_a_running_vector_env_goes_on_bit_for_bit(name: str, how: str) -> None:
    """E07."""
    env = gym.make_vec(name, num_envs=3, **arguments(name))
    env.action_space.seed(SEED)
    env.reset(seed=SEED)
    for _ in range(10):
        env.step(env.action_space.sample())
    twin = COPIES[how](env)
    for _ in range(600):  # across the ends of episodes, so that the generators are compared too
        action = env.action_space.sample()
        one, two = env.step(action), twin.step(action)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one[:4], two[:4], strict=True))


def test_mutant_a_copy_whose_actions_go_nowhere_is_found() -> None:
    """Twin of E07."""

    def detached(env: Any) -> Any:
        twin = copy.deepcopy(env)
        twin.unwrapped._action = memoryview(np.array(twin.unwrapped._action))  # what a copied view would be
        return twin

    with pytest.raises(AssertionError):
        check_copies(maker(IDS[0]), detached)


def test_mutant_a_copy_that_shares_its_accounts_is_found() -> None:
    """Twin of E07."""
    with pytest.raises(AssertionError):
        check_copies(maker(IDS[0]), copy.copy)


# ---- actions ----------------------------------------------------------------------------------------------------


def check_bad_actions(make: Make) -> None:
    """Not finite, of another shape, or no number: a typed error, and nothing has moved."""
    env = make()
    env.reset(seed=SEED)
    good = np.asarray(draw_actions(env, 1)[0], dtype=np.float64).reshape(-1)
    play(env, draw_actions(env, 10))
    bad: list[Any] = [np.full_like(good, value) for value in (np.nan, np.inf, -np.inf)]
    bad += [[float("nan")] * good.size, np.zeros(good.size + 1), np.zeros(0), np.zeros((2, good.size, 2))]
    bad += ["long", ["long"] * good.size, None, {"action": 1.0}, object()]
    for action in bad:
        before = state(env)
        with pytest.raises(ActionError):
            env.step(action)
        assert state(env) == before, f"{action!r} moved the account"
    env.step(draw_actions(env, 1)[0])


@pytest.mark.parametrize("name", IDS)
def test_an_action_that_is_no_finite_number_is_refused_and_changes_nothing(name: str) -> None:
    """E50, E52."""
    check_bad_actions(maker(name, disable_env_checker=True))
    check_bad_actions(lambda: maker(name)().unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_text_is_no_action_even_where_it_spells_a_number(name: str) -> None:
    """E52."""
    env = maker(name)().unwrapped
    env.reset(seed=SEED)
    size = int(np.prod(env.action_space.shape or (1,)))
    for action in ("0.5", b"0.5", ["0.5"] * size):
        with pytest.raises(ActionError):
            env.step(action)


def test_mutant_a_nan_that_clipping_lets_through_is_found() -> None:
    """Twin of E50."""

    class Clipped(Mutant):
        def step(self, action: Any) -> Any:
            try:
                return self.env.step(np.nan_to_num(np.clip(np.asarray(action, float), -1, 1)))
            except (TypeError, ValueError) as error:
                raise ActionError("no action") from error

    with pytest.raises(pytest.fail.Exception):
        check_bad_actions(lambda: Clipped(maker(IDS[0], disable_env_checker=True)()))


def box_ids() -> list[str]:
    return [name for name in IDS if isinstance(maker(name)().action_space, gym.spaces.Box)]


@pytest.mark.parametrize("name", box_ids())
def test_equivalent_forms_of_an_action_do_the_same(name: str) -> None:
    """E52."""
    env = maker(name, disable_env_checker=True)()
    size = env.action_space.shape[0]
    value = 0.25  # exact in float32
    forms: list[Any] = [
        np.full(size, value, np.float32), np.full(size, value), [value] * size, (value,) * size,
        np.repeat(np.full(size, value), 2)[::2],
    ]  # fmt: skip
    if size == 1:
        forms += [value, np.float32(value), np.array(value)]
    read_only = np.full(size, value, np.float32)
    read_only.flags.writeable = False
    results = []
    for form in [*forms, read_only]:
        env.reset(seed=SEED)
        results.append(play(env, [form] * 3))
    assert all(result == results[0] for result in results)


def requested(env: Any) -> tuple[str, ...]:
    """What info says of the action as it was asked for, one entry or one a coin."""
    return tuple(key for key in env.unwrapped.simulation.game.columns if key.endswith("requested_action"))


@pytest.mark.parametrize("name", box_ids())
def test_an_action_outside_its_bounds_counts_as_the_bound_and_whole_numbers_as_numbers(name: str) -> None:
    """E51."""
    env = maker(name, disable_env_checker=True)()
    results = []
    for action in (env.action_space.high, env.action_space.high * (1 + 1e-9), env.action_space.high * 10.0):
        env.reset(seed=SEED)
        results.append(play(env, [action.astype(np.float64)] * 3, requested(env)))
    env.reset(seed=SEED)
    results.append(play(env, [env.action_space.high.astype(int)] * 3, requested(env)))
    assert all(result == results[0] for result in results)


# ---- names that do not exist ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_a_misspelt_name_raises_a_typed_error_with_the_nearest_valid_one(name: str) -> None:
    cases = {"inf": "info", "rewards": "reward", "spilt": "split", **family(name).misspelt}
    for wrong, right in cases.items():
        with pytest.raises(UnknownNameError, match=f"{wrong}.*Did you mean '{right}'"):
            gym.make(name, **{**arguments(name), wrong: 1})
        with pytest.raises(UnknownNameError, match=f"{wrong}.*Did you mean '{right}'"):
            gym.make_vec(name, num_envs=2, **{**arguments(name), wrong: 1})


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("split", "trian", "'train'"), ("split", "Test", "'test'"), ("reward", "log_retrun", "'log_return'"),
        ("reward", "log_return=1,drawdwon=0.5", "'drawdown'"), ("info", "ful", "'full'"),
        ("bars", "synthtic:crypto", "'synthetic'"), ("bars", "synthetic:crypto?sed=1", "'seed'"),
    ],
)  # fmt: skip
def test_a_misspelt_value_raises_a_typed_error_with_the_nearest_valid_one(
    name: str, field: str, value: str, hint: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean {hint}"):
        gym.make(name, **{**arguments(name), field: value})


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", ""), ("reward", "log_return=much"), ("reward", "log_return=nan"), ("reward", "costs=1,costs=2"),
        ("episode_bars", -1), ("episode_bars", 10**9), ("bars", "nowhere"), ("train_end", "2020-02-01"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_raises_a_typed_error(name: str, field: str, value: Any) -> None:
    with pytest.raises(RegimeGymError, match=r"\S"):
        gym.make(name, **{**arguments(name), field: value})


@pytest.mark.parametrize("name", IDS)
def test_an_unknown_reset_option_raises_and_names_the_nearest_valid_one(name: str) -> None:
    for env in (maker(name)(), gym.make_vec(name, num_envs=2, **arguments(name))):
        env.reset(seed=SEED)
        with pytest.raises(UnknownNameError, match=r"strat.*Did you mean 'start'"):
            env.reset(options={"strat": "2020-01-01"})
        for start in ("not a date", "1999-01-01", "2999-01-01"):
            with pytest.raises(ConfigError, match=r"start|date"):
                env.reset(options={"start": start})


@pytest.mark.parametrize("name", IDS)
def test_a_refused_reset_leaves_the_running_episode_as_it_was(name: str) -> None:
    env, twin = maker(name)(), maker(name)()
    actions = draw_actions(env, 20)
    for one in (env, twin):
        one.reset(seed=SEED)
    with pytest.raises(ConfigError):
        env.reset(seed=SEED + 1, options={"start": "2999-01-01"})
    assert play(env, actions) == play(twin, actions)
    assert env.reset()[0].tobytes() == twin.reset()[0].tobytes()


# ---- other ways in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["envs", "regimegym"])
@pytest.mark.parametrize("name", IDS)
def test_an_id_can_be_made_through_its_module_in_a_fresh_process(
    name: str, module: str, run_python: Callable[..., str]
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"there is no module {module} yet")
    out = run_python(
        "import gymnasium as gym, sys\n"
        f"env = gym.make('{module}:{name}', **{arguments(name)!r})\n"
        "env.reset(seed=1)\n"
        "print(env.step(env.action_space.sample())[1], 'torch' in sys.modules)",
        REGIMEGYM_DATA="",
    )
    assert out.split()[1] == "False", "making an environment must not load torch"


@pytest.mark.parametrize("name", IDS)
def test_the_default_market_needs_no_file_and_no_network(name: str, run_python: Callable[..., str]) -> None:
    """E02."""
    out = run_python(
        "import socket, gymnasium as gym\n"
        "def refuse(*_): raise RuntimeError('no network here')\n"
        "socket.socket.connect = refuse\n"
        f"env = gym.make('envs:{name}')\n"
        "obs, info = env.reset(seed=1)\n"
        "print(len(obs), env.step(env.action_space.sample())[1])",
        REGIMEGYM_DATA="",
    )
    assert int(out.split()[0]) > 0


def test_registering_twice_changes_nothing() -> None:
    before = dict(gym.registry)
    envs.register()
    assert gym.registry == before


@pytest.mark.parametrize("name", IDS)
def test_info_none_is_an_empty_dict_and_info_is_never_reused(name: str) -> None:
    quiet, full = maker(name, info="none")(), maker(name)()
    actions = draw_actions(full, 20)
    assert quiet.reset(seed=SEED)[1] == {}
    infos = [full.reset(seed=SEED)[1]]
    for action in actions:
        silent, said = quiet.step(action), full.step(action)
        assert silent[0].tobytes() == said[0].tobytes()
        assert silent[1:4] == said[1:4]
        assert silent[4] == {}
        infos.append(said[4])
    assert len({id(info) for info in infos}) == len(infos)
    assert len({id(info["reward_terms"]) for info in infos}) == len(infos)
    assert infos[0]["time"] < infos[-1]["time"]


@pytest.mark.parametrize("name", IDS)
def test_reward_terms_add_up_to_the_reward(name: str) -> None:
    env = maker(name, reward="log_return=1,drawdown=0.5,costs=0.25")()
    env.reset(seed=SEED)
    for action in draw_actions(env, 100):
        _, reward, terminated, truncated, info = env.step(action)
        assert set(info["reward_terms"]) == {"log_return", "drawdown", "costs"}
        assert reward == pytest.approx(sum(info["reward_terms"].values()), rel=1e-12, abs=1e-15)
        if terminated or truncated:
            break
