"""Risk limits of a portfolio of coins: gross exposure and the loss of a day."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from registered import BASKET

from envs.make import build, build_vector
from envs.spot_risk import SpotRisk
from envs.wrappers.limit_risk import LimitRisk, LimitRiskVector
from markets.errors import ConfigError
from markets.risk_limits import RiskLimits

SEED = 157
WILD = BASKET + "&annual_volatility=2.5"
DAY = np.timedelta64(1, "D")


def play(limits: RiskLimits, steps: int = 300, **settings: Any) -> list[dict[str, Any]]:
    env = LimitRisk(build("SpotCrypto", bars=WILD, rebalance_band=0.0, ruin=1e-6, **settings), limits)
    env.reset(seed=SEED)
    random = np.random.default_rng(SEED)
    return [env.step(random.uniform(-1.0, 1.0, 3))[4] for _ in range(steps)]


def targets(info: dict[str, Any]) -> np.ndarray:
    return np.array([info[f"{coin}_action"] for coin in ("BTC", "ETH", "SOL")])


@pytest.mark.parametrize("short", [False, True])
def test_no_target_beyond_the_gross_limit_is_sent_and_its_mix_is_kept(short: bool) -> None:
    infos, changed = play(RiskLimits(maximum_exposure=0.5), allow_short=short), 0
    for info in infos:
        assert np.abs(targets(info)).sum() <= 0.5 + 1e-9
        asked = np.array([info[f"{coin}_requested_action"] for coin in ("BTC", "ETH", "SOL")])
        asked = asked if short else np.maximum(asked, 0.0)
        if info["limit"] == "position":
            changed += 1
            assert np.abs(targets(info)).sum() == pytest.approx(0.5)
            assert targets(info) / 0.5 == pytest.approx(asked / np.abs(asked).sum(), abs=1e-9)
        else:
            assert info["limit"] == ""
            assert targets(info) == pytest.approx(asked, abs=1e-9)
    assert 100 < changed < len(infos)


def check_daily_loss(limits: RiskLimits) -> int:
    opening, day, halted, halts = 10_000.0, None, False, 0
    before: dict[str, Any] | None = None
    for info in play(limits, allow_short=True):
        if before is not None:
            if day is None or before["time"].astype("datetime64[D]") != day:
                day, opening, halted = before["time"].astype("datetime64[D]"), before["equity"], False
            halted = halted or before["equity"] <= opening * (1.0 - 0.03) * (1.0 - 1e-12)
            if halted:
                halts += 1
                assert not targets(info).any(), "flat for the rest of the day"
                assert info["limit"] == "daily_loss"
        before = info
    return halts


def test_after_the_loss_of_a_day_nothing_is_held_until_the_next() -> None:
    assert check_daily_loss(RiskLimits(daily_loss=0.03)) > 5


def test_mutant_a_limit_that_does_not_close_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SpotRisk, "apply", staticmethod(lambda simulation, allowed, actions: (actions, np.zeros(1, int)))
    )
    with pytest.raises(AssertionError):
        check_daily_loss(RiskLimits(daily_loss=0.03))


def test_lanes_equal_single_environments() -> None:
    limits = RiskLimits(maximum_exposure=0.4, daily_loss=0.02)
    settings = {"bars": WILD, "episode_bars": 40, "allow_short": True}
    vector: Any = LimitRiskVector(build_vector("SpotCrypto", 2, autoreset_mode="SameStep", **settings), limits)
    singles = [LimitRisk(build("SpotCrypto", **settings), limits) for _ in range(2)]
    vector.reset(seed=SEED)
    for lane, env in enumerate(singles):
        env.reset(seed=SEED + lane)
    random = np.random.default_rng(SEED)
    for _ in range(120):
        actions = random.uniform(-1.0, 1.0, (2, 3))
        seen, rewards, *_, infos = vector.step(actions)
        for lane, env in enumerate(singles):
            obs, reward, terminated, truncated, info = env.step(actions[lane])
            source = infos
            if terminated or truncated:
                source = infos["final_info"]
                obs = env.reset()[0]
            assert rewards[lane] == reward
            assert seen[lane].tobytes() == obs.tobytes()
            for key in ("limit", "ETH_requested_action", "ETH_action", "equity"):
                assert source[key][lane] == info[key]


def test_a_bad_number_is_held_and_limits_of_one_position_are_refused() -> None:
    env = LimitRisk(build("SpotCrypto", bars=BASKET, on_bad_action="hold"), RiskLimits(maximum_exposure=0.5))
    env.reset(seed=SEED)
    before = env.step(np.array([0.2, 0.2, 0.0]))[4]
    after = env.step(np.array([0.9, np.nan, 0.9]))[4]
    assert (after["BTC_quantity"], after["bad_actions"], after["limit"]) == (before["BTC_quantity"], 1.0, "")
    for limits in (RiskLimits(stop_loss=0.1), RiskLimits(maximum_quantity=1.0)):
        with pytest.raises(ConfigError, match="is of one position, and SpotCrypto holds several"):
            LimitRisk(build("SpotCrypto", bars=BASKET), limits)
    with pytest.raises(ConfigError, match="expiry"):
        LimitRisk(build("SpotCrypto", bars=BASKET), RiskLimits(last_entry_minutes=5.0))
