"""ScaleLeverage around an environment: lanes, copies, other wrappers, agents, what it finds and what it saves."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from registered import SMALL, family, make, perpetual_market
from test_leverage import BOLD, ID, constant

from agents import fit, lookahead, oracle
from agents.lanes import Lanes
from agents.vec_env import NativeVecEnv
from encoders.change_odds import recent_change
from envs import perp_columns as pc
from envs.leverage import CUTS, LeverageControl
from envs.make import build, build_vector, game_of
from envs.perp_config import PerpFuturesConfig
from envs.simulation import EQUITY, LEVERAGE, ROW
from envs.wrappers.leverage import RegimeAwareLeverageController, ScaleLeverage, ScaleLeverageVector
from envs.wrappers.limit_risk import LimitRisk
from markets import sources
from markets.bars import Bars
from markets.errors import ConfigError
from markets.risk_limits import RiskLimits
from markets.sources.memory import register_bars
from markets.synthetic_regimes import posterior, regime_market

SEED = 74
TOLD = ("leverage", "requested_leverage", "leverage_cut", "leverage_fallbacks", "contract_leverage", "equity")
Floats = np.ndarray[Any, Any]


class Leaky(RegimeAwareLeverageController):
    """Looks at the regime of the next bar."""

    def control(self, encoded: Any) -> LeverageControl:
        honest = super().control(encoded)
        return replace(honest, requested=np.append(honest.requested[1:], honest.requested[-1:]))


# ---- lanes ------------------------------------------------------------------------------------------------------


def lane_faults(lanes: Any, singles: list[Any], steps: int) -> tuple[set[str], int]:
    """Play lanes beside as many single environments: what differed in any bit, and how many episodes ended."""
    wrong: set[str] = set()
    ended = 0
    seen, infos = lanes.reset(seed=SEED)
    for lane, env in enumerate(singles):
        own, info = env.reset(seed=SEED + lane)
        wrong |= {key for key in TOLD if info[key] != infos[key][lane]}
        wrong |= {"obs"} if (own != seen[lane]).any() else set()
    random = np.random.default_rng(SEED)
    for _ in range(steps):
        actions = random.uniform(-1.0, 1.0, (len(singles), 1)).astype(np.float32)
        seen, rewards, *_, infos = lanes.step(actions)
        for lane, env in enumerate(singles):
            own, reward, terminated, truncated, info = env.step(actions[lane])
            shown, told = seen[lane], infos
            if terminated or truncated:
                ended += 1
                shown, told = infos["final_obs"][lane], infos["final_info"]
            wrong |= {key for key in TOLD if info[key] != told[key][lane]}
            wrong |= ({"reward"} if reward != rewards[lane] else set()) | ({"obs"} if (own != shown).any() else set())
            if terminated or truncated:
                own, info = env.reset()
                wrong |= {key for key in TOLD if info[key] != infos[key][lane]}
                wrong |= {"obs after"} if (own != seen[lane]).any() else set()
    return wrong, ended


def settings(control: str) -> dict[str, Any]:
    return {**family(ID).volatile, "leverage_control": control}


@pytest.mark.parametrize("control", ["regime", BOLD])
def test_lanes_equal_single_envs_bit_for_bit(control: str) -> None:
    lanes = gym.make_vec(
        ID, num_envs=3, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", **settings(control)
    )
    wrong, ended = lane_faults(lanes, [make(ID, **settings(control)) for _ in range(3)], 300)
    assert wrong == set()
    assert ended > 10


def test_lanes_of_another_controller_are_told_apart() -> None:
    given, other = (
        {"bars": SMALL, "leverage_control": control, "random_start": False}
        for control in ("regime", "regime?patience_bars=11")
    )
    lanes = build_vector("PerpFutures", 2, encoded="jepa", leverage=2.0, autoreset_mode="SameStep", **given)
    wrong, _ = lane_faults(lanes, [make(ID, **other) for _ in range(2)], 100)
    assert wrong >= {"leverage", "requested_leverage", "obs"}


# ---- by hand, copied, wrapped again -----------------------------------------------------------------------------


def walked(env: Any, steps: int = 80) -> list[tuple[Any, ...]]:
    """Play on with seeded actions: what info tells, step by step."""
    random = np.random.default_rng(SEED)
    infos = [env.step(random.uniform(-1.0, 1.0, 1))[4] for _ in range(steps)]
    return [tuple(info[key] for key in TOLD) for info in infos]


def test_a_wrapper_by_hand_does_what_the_argument_does_and_survives_copies() -> None:
    start = {"start": "2020-03-05"}
    by_id = make(ID, bars=SMALL, leverage=3.0)
    by_id.reset(seed=SEED, options=start)
    wanted = walked(by_id)
    by_hand: Any = ScaleLeverage(gym.make("PerpFutures-JEPA-v0", bars=SMALL), RegimeAwareLeverageController(3.0))
    assert by_hand.observation_space.shape[0] == by_id.observation_space.shape[0] - 1  # type: ignore[index]
    by_hand.reset(seed=SEED, options=start)
    copies = [copy.deepcopy(by_hand), pickle.loads(pickle.dumps(by_hand)), pickle.loads(pickle.dumps(by_hand))]
    copies[2]._controller = RegimeAwareLeverageController(4.0)
    copies[2]._link()  # the twin: another controller is told apart
    assert walked(by_hand) == wanted
    assert walked(copies[0]) == wanted
    assert walked(copies[1]) == wanted
    assert walked(copies[2]) != wanted
    vector = build_vector("PerpFutures", 1, bars=SMALL, encoded="jepa")
    lanes = ScaleLeverageVector(vector, RegimeAwareLeverageController(3.0))
    lanes.reset(seed=SEED, options=start)
    for made in (copy.deepcopy(lanes), pickle.loads(pickle.dumps(lanes)), lanes):
        random = np.random.default_rng(SEED)
        told = [made.step(random.uniform(-1.0, 1.0, (1, 1)))[4] for _ in range(80)]
        assert [tuple(info[key][0] for key in TOLD) for info in told] == wanted


def test_a_specification_makes_the_same_environment_again() -> None:
    env = make(ID, leverage_control="regime?multipliers=1.5,1.0,0.5,0.25")
    again = gym.make(env.spec)  # type: ignore[arg-type]
    assert env.spec is not None
    assert gym.envs.registration.EnvSpec.from_json(env.spec.to_json()).kwargs == env.spec.kwargs
    for made in (env, again):
        made.reset(seed=SEED)
    assert walked(env, 20) == walked(again, 20)


def test_what_cannot_be_scaled_is_named() -> None:
    controller = RegimeAwareLeverageController()
    for env, given, says in (
        (build("PerpFutures", bars=SMALL, encoded="jepa"), None, "nobody decides"),
        (build("PerpFutures", bars=SMALL), controller, "reads an encoder's regime odds"),
        (build("ZeroDTE", bars=family("ZeroDTE-v0").arguments["bars"]), controller, "has no leverage to scale"),
        (make(ID), controller, "leave one of the two out"),
        (ScaleLeverage(make("PerpFutures-JEPA-v0"), controller), controller, "leave one of the two out"),
    ):
        with pytest.raises(ConfigError, match=says):
            ScaleLeverage(env, given)


def test_risk_limits_around_it_know_the_leverage_of_the_action_to_come() -> None:
    env = LimitRisk(make(ID, leverage_control=BOLD, continue_after_liquidation=True), RiskLimits(maximum_exposure=0.8))
    _, before = env.reset(seed=SEED)
    clipped = 0
    for _ in range(300):
        *_, terminated, truncated, info = env.step(np.ones(1, np.float32))
        assert info["action"] * before["leverage"] <= 0.8 * (1.0 + 1e-9)
        clipped += info["limit"] == "position"
        before = info if not terminated and not truncated else env.reset()[1]
    assert clipped > 290


def test_the_sb3_bridge_and_reports_play_with_the_same_leverage() -> None:
    """Reports walk the compiled step without the wrappers: accounts are the same to the last bit."""
    control = {"bars": SMALL, "leverage_control": "regime?multipliers=2,1,1,0.5", "random_start": False}
    vector: Any = gym.make_vec(
        ID, num_envs=1, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", info="none", **control
    )
    bridge, single = NativeVecEnv(vector), make(ID, **control)
    game = bridge.simulation.game
    lanes, plain = Lanes(game, [1.0]), Lanes(replace(game, market=without_control(game)), [1.0])
    bridge.reset()
    single.reset()
    for walked_lanes in (lanes, plain):
        walked_lanes.begin(game.first)
    random = np.random.default_rng(SEED)
    for _ in range(60):
        action = random.uniform(-1.0, 1.0, (1, 1))
        seen, *_ = bridge.step(action)
        own, *_ = single.step(action[0])
        for walked_lanes in (lanes, plain):
            walked_lanes.step(action)
        assert seen[0].tobytes() == own.tobytes() == lanes.seen()[0].tobytes()
        assert bridge.simulation.accounts[0, :, ROW:].tobytes() == lanes.accounts[:, ROW:].tobytes()
    assert plain.accounts.tobytes() != lanes.accounts.tobytes()


def without_control(game: Any) -> Floats:
    market: Floats = game.market.copy()
    market[:, pc.ASKED_LEVERAGE] = 0.0
    return market


# ---- no future --------------------------------------------------------------------------------------------------


def leaks(controller: RegimeAwareLeverageController, vector: bool) -> set[str]:
    """Columns in which the instrument finds the future, of an environment that the controller scales."""
    bars = perpetual_market(2_600)
    ends = {"train_end": str(bars.close_time[1_559]), "validation_end": str(bars.close_time[2_079]), "split": "test"}

    def make_one(content: Bars) -> Any:
        given: dict[str, Any] = {"bars": register_bars("leverage-leaks", content), "encoded": "jepa", **ends}
        if not vector:
            return ScaleLeverage(build("PerpFutures", **given), controller)
        given |= {"autoreset_mode": "SameStep", "episode_bars": 40, "random_start": False}
        return ScaleLeverageVector(build_vector("PerpFutures", 2, **given), controller)

    check = lookahead.check_vector_env if vector else lookahead.check_env
    return {leak.column for leak in check(make_one, bars, train_rows=1_560, trials=1, steps=60)}


@pytest.mark.parametrize("vector", [False, True])
def test_the_instrument_finds_a_controller_that_sees_the_next_bar_and_no_other(vector: bool) -> None:
    """E13."""
    assert leaks(RegimeAwareLeverageController(patience_bars=1), vector) == set()
    assert any("leverage" in column for column in leaks(Leaky(patience_bars=1), vector))


def test_the_id_is_clean_in_its_lanes() -> None:
    """E13. Single environments: test_information."""
    found = lookahead.check_id_lanes(ID, perpetual_market(2_600), trials=1, steps=60)
    assert found is not None
    assert list(found) == []


# ---- transitions ------------------------------------------------------------------------------------------------


def alarms(controller: RegimeAwareLeverageController, within: int) -> tuple[float, float, float]:
    """Share of switches of ``synthetic:regimes`` found within so many bars, share of other bars that are flagged, and
    share of alarms that no switch came before; odds are the exact ones of the generator."""
    found, away, alarmed, false = [], [], 0, 0
    for seed in (3, 4, 5):
        bars = sources.load(f"synthetic:regimes?seed={seed}&bars=20000&regimes=3&level=vol")
        market = regime_market("vol", 3)
        odds = posterior(100.0 * np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.open[0, 0])), market)
        flags = controller.should_reduce_exposure(recent_change(odds, market.transition))
        assert bars.labels is not None
        switches = np.flatnonzero(np.diff(bars.labels)) + 1
        found += [flags[k : k + within].any() for k in switches if k + within < len(flags)]
        near = np.zeros(len(flags), bool)
        for k in switches:
            near[k : k + 120] = True  # the window of the change, and what it takes to find it
        away.append(flags[~near].mean())
        begun = np.flatnonzero(flags[1:] & ~flags[:-1]) + 1
        alarmed, false = alarmed + len(begun), false + int((~near[begun]).sum())
    return float(np.mean(found)), float(np.mean(away)), false / max(alarmed, 1)


def test_a_switch_of_regime_reduces_exposure_within_a_day_with_few_false_alarms() -> None:
    """K28."""
    found, away, false = alarms(RegimeAwareLeverageController(), 24)
    print(
        f"switches found within 24 bars {found:.2f}, other bars flagged {away:.3f}, alarms that are false {false:.2f}"
    )
    assert found > 0.9
    assert away < 0.02
    assert false < 0.5


def test_mutant_a_controller_that_never_or_always_reduces_is_told_apart() -> None:
    """Twin of K28."""
    never, _, _ = alarms(RegimeAwareLeverageController(transition_odds=1.0), 24)
    _, always, _ = alarms(RegimeAwareLeverageController(transition_odds=0.0), 24)
    assert never == 0.0
    assert always == 1.0


# ---- what others read of it -------------------------------------------------------------------------------------


def test_an_agent_of_one_controller_does_not_fit_another() -> None:
    plain, regime, other = (
        fit.requirements(
            game_of("PerpFutures", PerpFuturesConfig(bars=SMALL, encoded="jepa", leverage_control=control))
        )
        for control in ("", "regime", "regime?max_leverage=4")
    )
    assert regime == {**plain, "leverage_control": "regime"}
    assert other == {**plain, "leverage_control": "regime?max_leverage=4.0"}


def test_the_oracle_plans_with_the_leverage_of_each_bar() -> None:
    """With one leverage in every bar it is the plan of that leverage; with the regimes' it earns what the env says."""
    free = {"bars": SMALL, "encoded": "jepa", "impact_coefficient": 0.0, "taker_fee": 0.01, "half_spread": 0.0}
    game = game_of("PerpFutures", PerpFuturesConfig(**free, leverage=2.0))
    env = ScaleLeverage(build("PerpFutures", **free), constant(2.0))
    scaled = env.unwrapped.simulation.game  # type: ignore[attr-defined]
    first, last = game.first + 100, game.first + 400
    one, two = oracle.plan(game, first, last), oracle.plan(scaled, first, last)
    assert one.log_growth == pytest.approx(two.log_growth, rel=1e-6)  # odds are float32
    np.testing.assert_array_equal(one.targets, two.targets)
    settings: dict[str, Any] = {**free, "leverage_control": "regime", "rebalance_band": 0.0, "lot_step": 1e-9}
    settings |= {"contract_leverage": 50.0, "minimum_notional": 0.0}  # no order is cut
    settings |= {"contract_leverage": 50.0}  # posted margin cuts no order
    env = build("PerpFutures", **settings)
    game = env.unwrapped.simulation.game
    plan = oracle.plan(game, first, last)
    env.reset(options={"start": game.bars.time[first]})
    equity = [env.step([target])[4]["equity"] for target in plan.targets][-1]
    assert np.log(equity / 10_000.0) == pytest.approx(plan.log_growth, rel=1e-3)
    assert oracle.solve(oracle.terms(game, first, last), 2.0).log_growth != plan.log_growth


def test_accounts_of_an_environment_without_control_keep_their_leverage() -> None:
    lanes = build_vector("PerpFutures", 2, bars=SMALL, encoded="jepa", leverage=7.0)
    lanes.reset(seed=SEED)
    lanes.step(np.ones((2, 1)))
    assert lanes.unwrapped.simulation.accounts[0, :, LEVERAGE].tolist() == [7.0, 7.0]
    assert (lanes.unwrapped.simulation.game.market[:, pc.ASKED_LEVERAGE] == 0.0).all()


# ---- what it is for ---------------------------------------------------------------------------------------------


def drawdown(seed: int, control: str, volatility: float) -> tuple[float, float]:
    """Largest drawdown of who is always long for 300 bars, and the share of bars that were cut for novelty."""
    bars = f"synthetic:crypto?seed={seed}&interval=1h&bars=2400&annual_volatility={volatility}"
    env = build(
        "PerpFutures", bars=bars, encoded="jepa", leverage=2.0, leverage_control=control, episode_bars=300,
        continue_after_liquidation=True, ruin=1e-6, random_start=False, info="none", train_end="2020-04-07",
        validation_end="2020-04-08",
    )  # fmt: skip
    env.reset()
    simulation, equities, cuts = env.unwrapped.simulation, [1e4], []
    for _ in range(300):
        cuts.append(simulation.game.control.cut[simulation.rows[0]] == CUTS.index("novelty"))
        env.step(np.ones(1, np.float32))
        equities.append(simulation.accounts[0, 0, EQUITY])
    path = np.array(equities)
    return float((1.0 - path / np.maximum.accumulate(path)).max()), float(np.mean(cuts))


def saved(limit: float, volatility: float) -> tuple[float, float, float, float]:
    """Mean drawdown that the cut on novelty alone saves over 12 markets, its 95 % interval, and the share of cuts."""
    alone = "regime?multipliers=1,1,1,1&minimum_confidence=0&transition_odds=1&novelty_limit="
    pairs = [
        (drawdown(seed, alone + "25", volatility), drawdown(seed, f"{alone}{limit}", volatility))
        for seed in range(50, 62)
    ]
    less = np.array([without - cut for (without, _), (cut, _) in pairs])
    wide = 2.201 * less.std(ddof=1) / np.sqrt(len(less))  # Student t of 11 degrees of freedom
    return (
        float(less.mean()),
        float(less.mean() - wide),
        float(less.mean() + wide),
        float(np.mean([c for _, (_, c) in pairs])),
    )


def test_on_a_market_that_the_encoder_has_not_seen_the_cut_lowers_the_drawdown() -> None:
    """B12. Volatility of 300 % a year against the 52 % that it was trained on; the seen market is hardly cut."""
    less, low, high, share = saved(6.0, 3.0)
    print(f"largest drawdown lower by {less:.3f} [{low:.3f}, {high:.3f}], {share:.0%} of bars cut")
    assert low > 0.0
    assert saved(6.0, 0.52)[3] < 0.05
