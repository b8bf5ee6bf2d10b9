"""What the single env does around its step: info of quiet bars, bad actions that are held, rendering."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from registered import family, make

import envs
from envs.account_info import AccountInfo
from envs.make import build
from envs.perp_futures import PerpFutures, PerpFuturesConfig, PerpFuturesEnv
from envs.simulation import ROW
from envs.trading_env import TradingEnv
from markets.errors import ActionError, UnknownNameError

SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
WILD = SMALL + "&annual_volatility=2.5"
IDS = pytest.mark.parametrize("name", envs.ids())
Kernel = Callable[..., int]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Compare two infos entry by entry; NaN equals NaN, the type counts."""
    if list(one) != list(two):
        return False
    for left, right in zip(one.values(), two.values(), strict=True):
        equal = left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))
        if type(left) is not type(right) or not equal:
            return False
    return True


def quiet_differences(kernel: Kernel | None = None, steps: int = 3_000, **settings: Any) -> tuple[int, int]:
    """Step with a policy that holds, trades and sends nonsense; count quiet steps, and infos that are not the account.

    The info of every step is compared with one built from all columns of the account.
    """
    game = PerpFutures.game(PerpFuturesConfig(**settings))
    env = PerpFuturesEnv(replace(game, kernel=kernel or game.kernel), PerpFutures.action_space(), on_bad_action="hold")
    env.reset(seed=1)
    generator = np.random.default_rng(1)
    quiet = wrong = 0
    action = 0.3
    for step in range(steps):
        draw = generator.random()
        action = math.nan if step % 97 == 0 else float(generator.uniform(-1, 1)) if draw < 0.1 else action
        _, _, terminated, truncated, info = env.step(np.array([action], np.float32))
        quiet += int(env._result.tolist()[-1])
        full = AccountInfo(game, env._account).full(int(env._account[ROW]), terminated or truncated)
        wrong += not same(info, full)
        if terminated or truncated:
            env.reset()
    return quiet, wrong


@pytest.mark.parametrize(
    "settings",
    [
        {"bars": SMALL},
        {"bars": WILD, "leverage": 20.0, "continue_after_liquidation": True},
        {"bars": WILD, "leverage": 20.0, "margin_mode": "cross", "liquidation": "tiered", "randomise_costs": 0.5},
        {"bars": SMALL, "reward": "log_return=1,drawdown=0.5,costs=0.1"},
    ],
    ids=["default", "wild", "cross", "terms"],
)
def test_info_of_a_quiet_bar_is_the_account_in_full(settings: dict[str, Any]) -> None:
    quiet, wrong = quiet_differences(**settings)
    assert quiet > 100, "no quiet bars: the test has no power"
    assert wrong == 0


def test_mutant_funding_that_does_not_break_the_quiet_is_found() -> None:
    from test_perp_env import mutant

    kernel = mutant(("    a[QUIET] = 0.0\n    a[WALLET] -= payment", "    a[WALLET] -= payment"))
    assert quiet_differences(kernel, 1_000, bars=SMALL)[1] > 0


# ---- bad actions ------------------------------------------------------------------------------------------------


BAD = [math.nan, math.inf, -math.inf]


@IDS
@pytest.mark.parametrize("value", BAD)
def test_a_bad_action_is_refused_and_changes_nothing(name: str, value: float) -> None:
    env: Any = make(name)
    env.reset(seed=0)
    env.step(family(name).trade)
    before = env.unwrapped.simulation.accounts.tobytes()
    with pytest.raises(ActionError, match="finite"):
        env.step(np.full(np.shape(family(name).trade), value, np.float32))
    assert env.unwrapped.simulation.accounts.tobytes() == before


def told(info: dict[str, Any], what: str) -> list[float]:
    """An entry of info, or one a coin; the position of a portfolio is its quantities."""
    if "traded" not in info:
        return [info[what]]
    ending = "_quantity" if what == "position" else f"_{what}"
    coins = [key.removesuffix("_price") for key in info if key.endswith("_price") and "_fill_" not in key]
    return [info[coin + ending] for coin in coins if coin + ending in info]


@IDS
@pytest.mark.parametrize("value", BAD)
def test_a_held_bad_action_keeps_the_position_sends_no_order_and_is_counted(name: str, value: float) -> None:
    """E50."""
    env: Any = make(name, on_bad_action="hold", **({} if "fill" not in family(name).volatile else {"fill": "market"}))
    env.reset(seed=0)
    good = family(name).trade
    bad = np.full(np.shape(good), value, np.float32)
    _, _, _, _, before = env.step(good)
    assert before["position"] != 0.0
    held, sent, applied = told(before, "position"), ("order_quantity", "fill_quantity"), told(before, "action")
    for count in (1.0, 2.0, 3.0):
        obs, reward, _, _, info = env.step(bad)
        assert told(info, "position") == held
        assert [told(info, key) for key in sent] == [[0.0] * len(told(info, key)) for key in sent]
        assert info["fee"] == 0.0
        assert info["bad_actions"] == count
        assert told(info, "action") in (applied, np.ravel(family(name).idle).tolist())
        assert math.isfinite(reward)
        assert env.observation_space.contains(obs)
        assert np.isfinite(obs).all()
    _, _, _, _, info = env.step(good)
    assert info["bad_actions"] == 3.0
    assert env.reset()[1]["bad_actions"] == 0.0


def test_a_held_bad_action_of_one_lane_leaves_the_others_alone() -> None:
    settings = {"bars": SMALL, "on_bad_action": "hold"}
    vector: Any = gym.make_vec("PerpFutures-v0", 3, "vector_entry_point", **settings)
    clean: Any = gym.make_vec("PerpFutures-v0", 3, "vector_entry_point", **settings)
    vector.reset(seed=1)
    clean.reset(seed=1)
    actions = np.array([[0.5], [-0.5], [0.9]], np.float32)
    for _ in range(3):
        vector.step(actions)
        clean.step(actions)
    bad = actions.copy()
    bad[1] = math.nan
    _, _, _, _, info = vector.step(bad)
    _, _, _, _, other = clean.step(actions)
    assert info["bad_actions"].tolist() == [0.0, 1.0, 0.0]
    for key in ("equity", "position", "fee"):
        assert info[key][[0, 2]].tolist() == other[key][[0, 2]].tolist()
    strict: Any = gym.make_vec("PerpFutures-v0", 3, "vector_entry_point", bars=SMALL)
    strict.reset(seed=1)
    with pytest.raises(ActionError, match=r"action\[1, 0\] is nan"):
        strict.step(bad)


def test_mutant_a_nan_that_is_only_clipped_reaches_the_account() -> None:
    """Twin of E50. ``np.clip`` and ``min(max())`` keep a NaN: without the check the books are lost."""
    from test_perp_env import mutant

    kernel = mutant(("if not math.isfinite(a[ACTION]):", "if False:"))
    game = PerpFutures.game(PerpFuturesConfig(bars=SMALL))
    env = PerpFuturesEnv(replace(game, kernel=kernel), PerpFutures.action_space(), on_bad_action="hold")
    env.reset(seed=0)
    env.step([0.5])
    _, _, _, _, info = env.step([math.nan])
    assert not (math.isfinite(info["equity"]) and math.isfinite(info["action"]))


@pytest.mark.parametrize(("asked", "applied"), [(1.0 + 1e-9, 1.0), (10.0, 1.0), (-10.0, -1.0)])
def test_an_action_beyond_the_space_is_clipped_like_the_bound_and_reported(asked: float, applied: float) -> None:
    """E51."""
    env, bound = (build("PerpFutures", bars=SMALL) for _ in range(2))
    env.reset(seed=0)
    bound.reset(seed=0)
    one = env.step(np.array([asked], np.float64))
    two = bound.step(np.array([applied], np.float64))
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1] == two[1]
    assert one[4]["requested_action"] == asked
    assert one[4]["action"] == applied == two[4]["requested_action"]


def test_an_unknown_way_with_bad_actions_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hold'"):
        build("PerpFutures", bars=SMALL, on_bad_action="holt")


# ---- rendering --------------------------------------------------------------------------------------------------


@IDS
def test_a_frame_is_an_image_that_changes_from_bar_to_bar(name: str) -> None:
    pytest.importorskip("matplotlib")
    env: Any = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    one = env.render()
    assert one.dtype == np.uint8
    assert one.ndim == 3
    assert one.shape[2] == 3
    assert one.std() > 0
    env.step(env.action_space.sample())
    assert not np.array_equal(one, env.render())


@IDS
def test_human_mode_draws_at_every_step_and_says_once_that_no_window_can_open(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "pause", lambda seconds: pytest.fail("nobody can see it: no time to wait"))
    plt.switch_backend("agg")
    drawn = count_draws(monkeypatch)
    env: Any = gym.make(name, render_mode="human")
    with caplog.at_level(logging.WARNING, "envs.rendering"):
        env.reset(seed=0)
        for _ in range(3):
            env.step(env.action_space.sample())
    assert drawn() == 4
    assert sum("no display" in record.getMessage() for record in caplog.records) == 1
    assert env.render() is None
    before = plt.get_fignums()
    assert before
    env.close()
    env.close()
    assert len(plt.get_fignums()) == len(before) - 1


def count_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    calls: list[int] = []
    original = FigureCanvasAgg.draw

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "draw", counted)
    return lambda: len(calls)


def test_human_mode_waits_for_a_frame_where_a_window_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canvas that belongs to a window system is shown for 1 / fps seconds a step."""
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    waited: list[float] = []
    plt.switch_backend("agg")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "qt", raising=False)
    monkeypatch.setattr(plt, "pause", waited.append)
    env = build("PerpFutures", bars=SMALL, render_mode="human")
    env.reset(seed=0)
    env.step([0.5])
    env.close()
    assert waited == [1.0 / TradingEnv.metadata["render_fps"]] * 2


def test_a_copy_of_a_rendering_env_goes_on_and_opens_a_window_of_its_own() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    env = build("PerpFutures", bars=SMALL, render_mode="human")
    env.reset(seed=0)
    env.step([0.5])
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        one, two = env.simulation.accounts.tobytes(), twin.simulation.accounts.tobytes()
        assert one == two
        twin.step([0.5])
        assert twin.simulation.accounts.tobytes() != one
        assert env.simulation.accounts.tobytes() == one
        twin.close()
    env.close()
