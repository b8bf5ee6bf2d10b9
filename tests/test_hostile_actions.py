"""Hostile actions and settings: refused with a reason and an unchanged account, or accounted for to the cent."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from registered import IDS, make
from test_perp_env import (
    CODES,
    FEE_ONLY,
    FREE,
    Kernel,
    bar,
    check_step,
    continuous,
    environment,
    flat,
    mutant,
    play,
    script,
)

from envs.perp_futures import PerpFuturesConfig
from envs.rewards import FLOOR, TERMS
from markets.errors import ActionError, ConfigError

SEED = 81

# ---- forms of an action -----------------------------------------------------------------------------------------


def forms(space: gym.Space[Any]) -> list[tuple[Any, Any]]:
    """Odd forms of an action, each with the plain one that it must equal, or None where it must be refused."""
    if isinstance(space, gym.spaces.Discrete):
        last = int(space.start + space.n - 1)
        good = [(np.int8(last), last), (np.array(last), last), (np.array([last]), last)]
        return [*good, *((wrong, None) for wrong in (last + 1, int(space.start) - 1, 0.5, math.nan, "0", [last, last]))]
    assert isinstance(space, gym.spaces.Box)
    plain = space.high.astype(np.float64)
    kinds = [np.dtype(kind) for kind in "bhilqBHILQefdg"]
    good = [(plain.astype(kind), plain) for kind in kinds]
    good += [(plain > 0.0, plain * 0.0 + 1.0), (plain.tolist(), plain), (plain * 10.0, plain)]
    good += [(plain * (1.0 + 1e-9), plain), (plain.astype(">f8"), plain)]
    if plain.size == 1:
        one = plain[0]
        good += [(float(one), plain), (int(one), plain), (True, plain), (np.bool_(True), plain), (np.array(one), plain)]
    bad: list[Any] = [plain.astype(kind) for kind in (complex, "M8[s]", "m8[s]", "U9", "S9")]
    bad += [[[1.0], [1.0, 2.0]], [10**400] * plain.size, {0: 1.0}, {1.0}, iter(plain), math, np.zeros(0), b"\x00" * 8]
    bad += [np.full_like(plain, value) for value in (math.nan, math.inf, -math.inf)]
    return [*good, *((wrong, None) for wrong in bad)]


def outcome(env: Any, action: Any) -> Any:
    """What three steps with an action give bit for bit, or None where it is refused and nothing has moved."""
    env.reset(seed=SEED)
    before = env.unwrapped.simulation.accounts.tobytes()
    steps = []
    for _ in range(3):
        try:
            obs, *rest = env.step(action)
        except ActionError:
            assert env.unwrapped.simulation.accounts.tobytes() == before
            return None
        for key in [key for key in rest[-1] if key.endswith("requested_action")]:
            rest[-1].pop(key)  # says in which form it came
        steps.append((obs.tobytes(), repr(rest)))
    return steps


@pytest.mark.parametrize("name", IDS)
def test_every_form_of_an_action_equals_its_plain_one_or_is_refused(name: str) -> None:
    """E50, E51, E52. Every numeric dtype, scalars, bools, other byte orders; no other kind of object."""
    env = make(name, disable_env_checker=True)
    kernel: Any = env.unwrapped.simulation.game.kernel  # type: ignore[attr-defined]
    env.reset(seed=SEED)
    compiled = len(getattr(kernel, "signatures", ()))
    for form, plain in forms(env.action_space):
        got = outcome(env, form)
        assert got == (None if plain is None else outcome(env, plain)), f"{form!r} ({type(form).__name__})"
    assert len(getattr(kernel, "signatures", ())) == compiled, "a form of an action compiled a kernel of its own"


def test_mutant_an_action_that_is_read_as_something_else_is_found() -> None:
    """Twin of E50, E51 and E52."""

    class Rounds(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return self.env.step(np.rint(np.nan_to_num(np.asarray(action, dtype=np.float64)) * 0.1))

    env = Rounds(make(IDS[0], disable_env_checker=True))
    assert outcome(env, np.array([math.nan])) is not None
    assert outcome(env, np.array([10.0])) != outcome(env, np.array([1.0]))


# ---- the end of an account --------------------------------------------------------------------------------------

CRASH = bar(44_000.0, 46_000.0, 43_000.0, 45_500.0)


def test_a_step_after_a_liquidation_is_a_clear_error() -> None:
    """E05. The same for an account that was terminated as for one that was truncated."""
    env = make("PerpFutures-v0", bars="synthetic:crypto?seed=1&interval=1h&bars=4000&annual_volatility=2.5",
               leverage=125.0, contract_leverage=20.0)  # fmt: skip
    for seed in range(20):
        env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            *_, terminated, truncated, info = env.step([1.0])
        if terminated:
            break
    assert info["ended_by"] in ("liquidation", "ruin")
    before = env.unwrapped.simulation.accounts.tobytes()  # type: ignore[attr-defined]
    with pytest.raises(ResetNeeded):
        env.step([1.0])
    assert env.unwrapped.simulation.accounts.tobytes() == before  # type: ignore[attr-defined]


def wiped_out(reward: str, kernel: Kernel | None = None) -> dict[str, Any]:
    """Stake the whole wallet and gap through bankruptcy: equity is exactly 0."""
    settings = {"leverage": 2.0, "initial_equity": 10_000.0, **FREE}
    rows = [flat(50_000.0), bar(20_000.0, 20_000.0, 20_000.0, 20_000.0)]
    return play(script(rows), (1.0, 1.0), kernel, reward=reward, **settings)[2]


@pytest.mark.parametrize("reward", TERMS)
def test_the_reward_of_losing_everything_is_finite(reward: str) -> None:
    """E63. Equity 0, drawdown 100 %: the logarithm is floored at a millionth of the start."""
    end = wiped_out(reward)
    assert end["equity"] == 0.0
    assert end["terminated"]
    assert math.isfinite(end["reward"])
    want = {"log_return": math.log(FLOOR), "simple_return": -1.0, "drawdown": -1.0, "costs": 0.0, "funding": 0.0}
    if reward in want:
        assert end["reward"] == pytest.approx(want[reward], rel=1e-12, abs=1e-12)


def test_mutant_a_logarithm_without_a_floor_is_found() -> None:
    """Twin of E63."""
    step = mutant()
    step.__globals__["log_equity"] = lambda equity, start: float(np.log(np.float64(equity)))  # type: ignore[attr-defined]
    with np.errstate(divide="ignore"), pytest.raises(AssertionError):
        wiped_out("log_return", step)


# ---- orders that are refused ------------------------------------------------------------------------------------

UNMOVED = (
    "wallet", "position", "entry_price", "margin", "liquidation_price", "mark", "margin_ratio", "contract_leverage",
    "equity", "fee", "spread_cost", "impact_cost", "funding", "realised", "market_pnl", "fill_quantity", "reward",
)  # fmt: skip
PARTLY = {"leverage": 10.0, "contract_leverage": 125.0, "rebalance_band": 0.0, **FEE_ONLY}
REFUSED: dict[str, tuple[float, float, dict[str, Any], list[dict[str, Any]]]] = {
    # reason: exposure held, exposure asked for, settings, bars
    "rejected: leverage above the tier maximum of the resulting notional": (
        0.3, 1.0, PARTLY, [flat(50_000.0), bar(50_000.0, 50_100.0, 49_900.0, 50_050.0)],
    ),
    "rejected: nothing traded in the bar": (
        0.3, 0.6, {"leverage": 10.0, **FEE_ONLY}, [flat(50_000.0), flat(50_000.0, 0.0)],
    ),
    "rejected: outside the price band around mark": (
        0.3, 0.6, {"leverage": 10.0, **FEE_ONLY},
        [flat(50_000.0), bar(53_000.0, 53_000.0, 50_000.0, 50_000.0, mark=(50_000.0,) * 4)],
    ),
    "rejected: below the minimum notional": (
        0.3, 0.3002, {"leverage": 10.0, "rebalance_band": 0.0, "minimum_notional": 500.0, "lot_step": 0.0001, **FREE},
        [flat(50_000.0), flat(50_000.0)],
    ),
    "rejected: below the minimum quantity": (
        0.3, 0.30004, {"leverage": 10.0, "rebalance_band": 0.0, **FREE}, [flat(50_000.0), flat(50_000.0)],
    ),
}  # fmt: skip


def moved_by_a_refusal(reason: str, kernel: Kernel | None = None) -> list[str]:
    """What differs between sending an order that is refused and asking for the very exposure that is held."""
    held, wanted, settings, rows = REFUSED[reason]
    refused = play(script(rows), (held, wanted), kernel, **settings)[2]
    assert refused["order_code"] == CODES[reason], refused["order_code"]
    opened = play(script(rows), (held,), kernel, **settings)[1]
    assert opened["position"] > 0.0
    same = opened["position"] * opened["mark"] / (settings["leverage"] * opened["equity"])
    quiet = play(script(rows), (held, same), kernel, **{**settings, "rebalance_band": 1e-3})[2]
    assert quiet["order_code"] == CODES["none"]
    return [name for name in UNMOVED if refused[name] != quiet[name]]


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_order_says_why_and_leaves_an_open_position_as_if_none_had_been_sent(reason: str) -> None:
    """E54, E55. Wallet, margin, liquidation price, fees, reward: bit for bit."""
    assert moved_by_a_refusal(reason) == []


def test_mutant_a_refused_order_that_is_charged_a_fee_is_found() -> None:
    """Twin of E54 and E55."""
    booked = "        a[ORDER_CODE] = code\n"
    fault = mutant((booked, booked + "        a[WALLET] -= 0.01\n        a[FEE] += 0.01\n"))
    assert "fee" in moved_by_a_refusal("rejected: leverage above the tier maximum of the resulting notional", fault)


# ---- fees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fee", [-1e-9, -0.0001, 1.0 + 1e-9, 5.0, math.nan, math.inf, "0.1", True])
def test_a_fee_that_is_no_share_is_refused_by_name(fee: Any) -> None:
    """E62. Takers get no rebate here; a fee above 100 % is a mistake of units."""
    with pytest.raises(ConfigError, match="taker_fee"):
        PerpFuturesConfig(taker_fee=fee)


def fees_of(fee: float, kernel: Kernel | None = None) -> list[dict[str, Any]]:
    """Open and close half of what the account can carry."""
    return play(script([flat(50_000.0)] * 3), (0.2, 0.0), kernel, **{**FREE, "taker_fee": fee, "leverage": 1.0})


def check_fee(fee: float, kernel: Kernel | None = None) -> None:
    infos = fees_of(fee, kernel)
    paid = 0.0
    for before, info in pairwise(infos):
        wanted = fee * abs(info["fill_quantity"]) * 50_000.0
        assert info["fee"] == pytest.approx(wanted, rel=1e-12)
        assert info["equity"] >= 0.0
        paid += wanted - info["cover"]
        check_step(before, info)
    assert infos[1]["fill_quantity"] > 0.0
    assert infos[-1]["equity"] == pytest.approx(10_000.0 - paid, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("fee", [0.0, 0.0005, 0.5, 1.0])
def test_a_fee_from_nothing_to_everything_is_charged_as_it_is(fee: float) -> None:
    """E62. At 100 % an account that trades is ruined and owes nothing."""
    check_fee(fee)


def test_mutant_a_fee_of_the_wrong_sign_is_found() -> None:
    """Twin of E62."""
    with pytest.raises(AssertionError):
        check_fee(0.5, mutant(("a[WALLET] += realised - paid", "a[WALLET] += realised + paid")))


# ---- turning over -----------------------------------------------------------------------------------------------


def drag_of_flips(leverage: float, kernel: Kernel | None = None, steps: int = 10_000) -> float:
    """Flip the whole account every bar at a constant price; largest error of equity against the fills alone, in starts.

    A fill of dQ at price p costs ``|dQ| p_0 h`` of half spread and ``|dQ| p f`` of fee, ``p = p_0 (1 +- h)``.
    """
    price, fee, half = 50_000.0, 0.0005, 0.00005
    bars = continuous(np.full(steps + 8_000, price))
    env = environment(
        bars, kernel, leverage=leverage, episode_bars=steps, ruin=1e-6, lot_step=0.0, minimum_notional=0.0,
        tick_size=0.0, continue_after_liquidation=True, split="test", train_end=str(bars.close_time[300]),
        validation_end=str(bars.close_time[400]),
    )  # fmt: skip
    _, info = env.reset(seed=SEED)
    wanted, worst = info["equity"], 0.0
    for count in range(steps):
        *_, terminated, truncated, info = env.step([1.0 if count % 2 else -1.0])
        size, side = abs(info["fill_quantity"]), math.copysign(1.0, info["fill_quantity"])
        wanted -= size * price * half + size * price * (1.0 + side * half) * fee
        assert info["equity"] >= 0.0
        assert not info["liquidated"]
        worst = max(worst, abs(info["equity"] - wanted) / 10_000.0)
        if terminated or truncated:
            break
    assert info["equity"] < 100.0, "that many flips cost almost everything"
    return worst


@pytest.mark.parametrize("leverage", [1.0, 3.0, 10.0])
def test_ten_thousand_flips_cost_exactly_their_fees_and_half_spreads(leverage: float) -> None:
    """E53."""
    assert drag_of_flips(leverage) <= 1e-9


@pytest.mark.parametrize(
    "change",
    [
        ("a[WALLET] += realised - paid", "a[WALLET] += realised - 0.999 * paid"),
        ("paid = fee(change,", "paid = fee(after,"),
    ],
    ids=["a smaller fee", "a fee on what is held"],
)  # fmt: skip
def test_mutant_flips_at_another_fee_are_found(change: tuple[str, str]) -> None:
    """Twin of E53."""
    with pytest.raises(AssertionError):
        assert drag_of_flips(1.0, mutant(change), 7_000) <= 1e-9
