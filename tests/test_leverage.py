"""Leverage that follows the regimes: what a controller asks for, what an account gets, and that neither exceeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from registered import SMALL, make
from test_hostile_data import check_items
from test_perp_env import mutant

from envs import perp_kernel
from envs.leverage import CUTS
from envs.make import build, build_vector, game_of
from envs.perp_config import PerpFuturesConfig
from envs.wrappers.leverage import RegimeAwareLeverageController, ScaleLeverage
from markets.contracts import contract_for
from markets.errors import ConfigError, UnknownNameError
from markets.perpetual import bounded_leverage, maximum_leverage

ID = "PerpFutures-JEPA-RegimeLeverage-v0"
SEED = 73
WILD = SMALL + "&annual_volatility=2.5"
BOLD = "regime?max_leverage=100&multipliers=40,20,10,1&patience_bars=1&minimum_confidence=0&novelty_limit=25"
TIERS = contract_for("BTCUSDT", 50_000.0).tier_table
Floats = np.ndarray[Any, Any]


def constant(leverage: float) -> RegimeAwareLeverageController:
    """Asks for the same leverage in every bar."""
    return RegimeAwareLeverageController(
        base_leverage=leverage, max_leverage=125.0, multipliers=(1.0, 1.0, 1.0, 1.0), minimum_confidence=0.0,
        transition_odds=1.0, novelty_limit=25.0,
    )  # fmt: skip


# ---- what a controller asks for ---------------------------------------------------------------------------------


def test_leverage_is_base_times_multiplier_within_its_bounds() -> None:
    """K27. The source's own numbers."""
    plain = RegimeAwareLeverageController(10.0, 100.0, {0: 1.5, 1: 0.8, 2: 20.0}, confidence_scaling=False)
    for odds, leverage in (([0.8, 0.1, 0.1], 15.0), ([0.1, 0.8, 0.1], 8.0), ([0.0, 0.0, 1.0], 100.0)):
        assert plain.compute_optimal_leverage(odds) == leverage
    assert plain.compute_optimal_leverage([0.36, 0.32, 0.32]) == 15.0
    assert plain.compute_optimal_leverage(np.eye(3)).tolist() == [15.0, 8.0, 100.0]
    assert RegimeAwareLeverageController(1.0, multipliers=(0.1, 1.0)).compute_optimal_leverage([1.0, 0.0]) == 1.0


def test_confidence_weighs_the_multipliers_by_their_odds_and_doubt_is_cut() -> None:
    """K27, B12."""
    scaled = RegimeAwareLeverageController(2.0, 5.0, (1.5, 1.0, 0.5))
    assert scaled.compute_optimal_leverage([0.5, 0.25, 0.25]) == pytest.approx(2.0 * (0.75 + 0.25 + 0.125))
    assert scaled.compute_optimal_leverage([1.0, 0.0, 0.0]) == 3.0
    careful = replace(scaled, minimum_confidence=0.6)
    assert careful.compute_optimal_leverage([0.5, 0.25, 0.25]) == 1.0
    assert careful.compute_optimal_leverage([0.6, 0.4, 0.0]) == pytest.approx(2.0 * 1.3)


UNREADABLE = (
    [np.nan, 0.5, 0.5], [0.0, 0.0, 0.0], [np.inf, 0.0, 0.0], [-0.5, 0.75, 0.75], [0.9, 0.9, 0.9], [0.2, 0.1, 0.1],
    [0.1, 0.1, 0.8],  # a regime without a multiplier
)  # fmt: skip


class Hopeful(RegimeAwareLeverageController):
    """The mutant: what it cannot read it takes for equal odds."""

    def _by_regime(self, odds: Floats) -> Any:
        bad = ~np.isfinite(odds).all(axis=1) | (odds.sum(axis=1) == 0.0)
        return super()._by_regime(np.where(bad[:, None], 1.0 / odds.shape[1], odds))


def unreadable_faults(kind: type[RegimeAwareLeverageController]) -> set[int]:
    """Which unreadable odds got more than the minimum, or were not told as unknown."""
    wrong: set[int] = set()
    for scaling in (True, False):
        controller = kind(10.0, 100.0, {0: 3.0, 1: 2.0}, confidence_scaling=scaling)
        table = np.array([*UNREADABLE, [0.9, 0.1, 0.0]])
        leverage, cut = replace(controller, patience_bars=1).decide(table, np.zeros(8), np.ones(8))
        assert leverage[-1] > 20.0
        assert cut[-1] == 0
        wrong |= set(np.flatnonzero((leverage[:-1] != 1.0) | (cut[:-1] != CUTS.index("unknown"))).tolist())
        wrong |= {k for k, odds in enumerate(UNREADABLE) if controller.compute_optimal_leverage(odds) != 1.0}
    return wrong


def test_odds_that_cannot_be_read_get_the_minimum() -> None:
    """E73."""
    assert unreadable_faults(RegimeAwareLeverageController) == set()


def test_a_controller_that_hopes_for_the_best_is_caught() -> None:
    """Twin of E73."""
    assert unreadable_faults(Hopeful) >= {0, 1, 2}


def test_unreadable_bars_are_counted_episode_by_episode() -> None:
    """E73."""
    game = game_of("PerpFutures", PerpFuturesConfig(bars=SMALL, encoded="jepa"))
    encoded = game.encoded
    assert encoded is not None
    values = encoded.table.values.copy()
    lost = game.first + np.array([3, 4, 10])
    values[lost, -encoded.regimes :] = [[np.nan] * 4, [0.0] * 4, [np.nan, 1.0, 0.0, 0.0]]
    broken = replace(encoded, table=replace(encoded.table, values=values, checked=False))
    env = build("PerpFutures", bars=SMALL, encoded="jepa", random_start=False)
    env.unwrapped.play(replace(env.unwrapped.simulation.game, encoded=broken))
    scaled = ScaleLeverage(env, RegimeAwareLeverageController(4.0, patience_bars=1))
    _, info = scaled.reset()
    seen = [info] + [scaled.step(np.ones(1, np.float32))[4] for _ in range(12)]
    assert [info["leverage_fallbacks"] for info in seen] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]
    assert [seen[k]["leverage"] for k in (3, 4, 10)] == [1.0, 1.0, 1.0]
    assert {seen[k]["leverage_cut"] for k in (3, 4, 10)} == {"unknown"}


def test_a_change_of_regime_halves_and_bars_unlike_the_training_range_get_the_minimum() -> None:
    """K28, B12."""
    controller = RegimeAwareLeverageController(4.0, multipliers=(1.0, 1.0), patience_bars=1)
    change, novelty = [0.0, 0.49, 0.5, 1.0, np.nan, 0.0, 0.0, 1.0], [1.0, 6.0, 1.0, 1.0, 1.0, 6.1, np.nan, 9.0]
    leverage, cut = controller.decide(np.full((8, 2), 0.5), change, novelty)
    assert leverage.tolist() == [4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    told = ["", "", "transition", "transition", "transition", "novelty", "novelty", "novelty"]
    assert [CUTS[code] for code in cut] == told
    assert [controller.should_reduce_exposure(odds) for odds in (0.49, 0.5, np.nan)] == [False, True, True]


def test_leverage_falls_at_once_and_rises_when_every_bar_allowed_it() -> None:
    controller = RegimeAwareLeverageController(4.0, multipliers=(1.0, 1.0), patience_bars=3)
    change = np.array([0, 0, 1, 0, 0, 0, 0])
    leverage, cut = controller.decide(np.full((7, 2), 0.5), change, np.ones(7))
    assert leverage.tolist() == [4.0, 4.0, 2.0, 2.0, 2.0, 4.0, 4.0]
    assert [CUTS[code] for code in cut] == ["", "", "transition", "patience", "patience", "", ""]


def test_what_is_asked_for_lies_between_one_and_the_maximum_whatever_the_inputs() -> None:
    """E74."""
    random = np.random.default_rng(SEED)
    for _ in range(300):
        odds = random.dirichlet(np.full(4, 0.3), 20)
        odds[random.random(20) < 0.2] = random.choice([np.nan, 0.0, -1.0, 7.0, np.inf])
        highest = random.uniform(1.0, 125.0)
        controller = RegimeAwareLeverageController(
            random.uniform(1.0, 125.0), highest, tuple(random.uniform(0.0, 125.0, 4)), bool(random.random() < 0.5),
            transition_factor=random.random(), patience_bars=int(random.integers(1, 30)),
        )  # fmt: skip
        leverage, _ = controller.decide(odds, random.random(20), random.exponential(6.0, 20))
        assert (leverage >= 1.0).all()
        assert (leverage <= highest).all()


def test_settings_survive_as_text_and_what_cannot_be_read_is_named() -> None:
    for controller in (
        RegimeAwareLeverageController(7.0), RegimeAwareLeverageController(7.0, 99.5, (1.25, 0.1), False),
        RegimeAwareLeverageController(7.0, multipliers={0: 1.0, 3: 0.5}, transition_bars=24, patience_bars=1),
    ):  # fmt: skip
        text = controller.specification
        again = RegimeAwareLeverageController.parse(text, 7.0)
        assert again.specification == text
        odds = np.random.default_rng(SEED).dirichlet(np.ones(4), 50)
        np.testing.assert_array_equal(again.compute_optimal_leverage(odds), controller.compute_optimal_leverage(odds))
    for given, error, says in (
        ({"leverage_control": "regimes"}, UnknownNameError, "Did you mean 'regime'"),
        ({"leverage_control": "regime?max_levrage=5"}, UnknownNameError, "Did you mean 'max_leverage'"),
        ({"leverage_control": "regime?max_leverage=x"}, ConfigError, "max_leverage='x' cannot be read"),
        ({"leverage_control": "regime?max_leverage=500"}, ConfigError, "from 1 to 125"),
        ({"leverage_control": "regime?patience_bars=0"}, ConfigError, "patience_bars=0 must be a whole number"),
        ({"leverage_control": "regime?multipliers=1,1,1,1,1"}, ConfigError, "regime 4"),
        ({"leverage_control": "regime?novelty_limit=2&novelty_limit=3"}, ConfigError, "twice"),
        ({"leverage_control": "regime?multipliers=nan"}, ConfigError, r"multipliers\[0\]=nan must be"),
        ({"encoded": ""}, ConfigError, "needs an encoder"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            make(ID, **given)


# ---- what an account gets ---------------------------------------------------------------------------------------


def tier_faults(bound: Callable[..., float]) -> int:
    """Count answers outside [1, what was asked], above the tier of their notional, or lower than they need be."""
    random, wrong = np.random.default_rng(SEED), 0
    for asked, equity in zip(random.uniform(1.0, 125.0, 3_000), 10.0 ** random.uniform(-3.0, 10.0, 3_000), strict=True):
        leverage = bound(asked, equity, TIERS)
        more = leverage * (1.0 + 1e-9)
        wrong += not 1.0 <= leverage <= asked
        wrong += leverage > max(1.0, maximum_leverage(leverage * equity, TIERS))
        wrong += leverage < asked and more <= max(1.0, max(maximum_leverage(more * equity, TIERS), 0.0))
    return wrong


def test_an_account_gets_the_most_that_its_margin_tiers_allow() -> None:
    """K29, E74."""
    assert tier_faults(bounded_leverage) == 0
    assert bounded_leverage(5.0, 0.0, TIERS) == 5.0
    assert tier_faults(lambda asked, equity, tiers: asked) > 100
    assert tier_faults(lambda asked, equity, tiers: min(asked, max(1.0, maximum_leverage(equity, tiers)))) > 100


CAP = {"bars": SMALL, "leverage": 10.0, "leverage_control": BOLD, "continue_after_liquidation": True, "ruin": 1e-6}


def cap_faults(before: dict[str, Any], after: dict[str, Any], highest: float) -> int:
    """Steps in which more leverage was served, posted or filled than asked for, configured or allowed by a tier."""
    served, asked = np.atleast_1d(after["leverage"], after["requested_leverage"])
    equity, posted = np.atleast_1d(after["equity"], after["contract_leverage"])
    notional = np.abs(np.atleast_1d(after["position"]) * np.atleast_1d(after["fill_price"]))
    filled = np.atleast_1d(after["fill_quantity"]) != 0.0
    tier = np.array([max(1.0, maximum_leverage(value, TIERS)) for value in notional])
    account = np.array([max(1.0, maximum_leverage(a * b, TIERS)) for a, b in zip(served, equity, strict=True)])
    lots = np.atleast_1d(before["leverage"]) * np.atleast_1d(before["equity"]) / np.atleast_1d(before["mark"])
    beyond = np.abs(np.atleast_1d(after["position"])) > lots * (1.0 + 1e-9) + 0.001  # a lot
    grown = filled & (np.atleast_1d(after["fill_quantity"]) * np.atleast_1d(after["position"]) > 0.0)
    wrong = (served < 1.0) | (served > asked) | (asked > highest) | (served > account)
    return int((wrong | (filled & (posted > tier)) | (grown & beyond)).sum())


@pytest.mark.parametrize("equity", [1e4, 3e6, 2e8])
def test_no_cap_is_exceeded_and_money_reconciles_in_ten_thousand_random_steps(equity: float) -> None:
    """C6, K29, E74. 10,000 steps of one account, over three sizes of it, and 12,500 of native lanes."""
    random = np.random.default_rng(SEED)
    env = make(ID, **CAP, symbol="BTCUSDT", initial_equity=equity)
    _, before = env.reset(seed=SEED)
    seen = set()
    for _ in range(3_400):
        *_, terminated, truncated, info = env.step(random.uniform(-1.0, 1.0, 1).astype(np.float32))
        assert cap_faults(before, info, 100.0) == 0
        check_items(before, info)
        seen.add((info["leverage"] < info["requested_leverage"], info["leverage_cut"]))
        before = info if not terminated and not truncated else env.reset()[1]
    assert (equity > 1e4) in {below for below, _ in seen}  # the tiers had something to do
    vector: Any = build_vector("PerpFutures", 50, **CAP, encoded="jepa", symbol="BTCUSDT", initial_equity=equity)
    _, old = vector.reset(seed=SEED)
    for _ in range(84):
        *_, infos = vector.step(random.uniform(-1.0, 1.0, (50, 1)))
        assert cap_faults(old, infos, 100.0) == 0
        old = infos


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize(
    ("equity", "changes"),
    [
        (3e6, [("bounded_leverage(asked, a[EQUITY], tiers)", "asked")]),
        (1e4, [("bounded_leverage(asked, a[EQUITY], tiers)", "1.01 * asked")]),
        (1e4, [("bounded_leverage(asked, a[EQUITY], tiers)", "asked - 1.0")]),
        (
            3e6,
            [("max(1.0, min(limit, maximum_leverage(abs(after) * price, tiers)))", "125.0"), ("if code > 0:", "if 0:")],
        ),
        (1e4, [("action * a[LEVERAGE]", "2.0 * action * a[LEVERAGE]"), ("limit = a[LEVERAGE] if", "limit = 125.0 if")]),
    ],
    ids=["no tiers", "more than asked", "less than 1", "posted above the tier", "exposure above the leverage"],
)
def test_mutant_a_cap_that_is_not_kept_is_found(
    equity: float, changes: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E74. C6 and K29 too. Where two rules keep a cap, both are broken."""
    monkeypatch.setattr(perp_kernel, "step", mutant(*changes))
    random, wrong = np.random.default_rng(SEED), 0
    env = make(ID, **CAP, symbol="BTCUSDT", initial_equity=equity)
    _, before = env.reset(seed=SEED)
    for _ in range(300):
        *_, terminated, truncated, info = env.step(random.uniform(-1.0, 1.0, 1).astype(np.float32))
        wrong += cap_faults(before, info, 100.0)
        before = info if not terminated and not truncated else env.reset()[1]
    assert wrong > 0


def liquidated_at(leverage: float, targets: Floats, start: int) -> tuple[float, list[float]]:
    """When an account that aims at ``targets`` times its equity is liquidated, and what it held until then."""
    env = ScaleLeverage(
        build("PerpFutures", bars=WILD, encoded="jepa", episode_bars=len(targets), impact_coefficient=0.0),
        constant(leverage),
    )
    game = env.unwrapped.simulation.game  # type: ignore[attr-defined]
    env.reset(seed=0, options={"start": game.bars.time[start]})
    held: list[float] = []
    for step, target in enumerate(targets):
        *_, info = env.step([target / leverage])
        if info["liquidated"]:
            return step, held
        held.append(info["position"])
    return np.inf, held


def later_faults(count: int) -> tuple[int, int]:
    """Pairs in which the higher leverage was liquidated later, and those in which any of the two was."""
    random = np.random.default_rng(SEED)
    game = game_of("PerpFutures", PerpFuturesConfig(bars=WILD, encoded="jepa"))
    wrong = ended = 0
    for _ in range(count):
        low, high = np.sort(random.uniform(2.0, 60.0, 2))
        sides = np.repeat(random.choice([-1.0, 1.0], 4), 20)
        targets = sides * random.uniform(0.2, 0.8, 80) * low
        start = int(random.integers(game.first, game.last - 80))
        (first, held), (second, other) = (liquidated_at(leverage, targets, start) for leverage in (high, low))
        steps = min(len(held), len(other))
        if held[:steps] == other[:steps]:  # the same positions on the same path
            wrong += first > second
            ended += np.isfinite(min(first, second))
    return wrong, ended


def test_higher_leverage_is_never_liquidated_later_on_the_same_path_with_the_same_positions() -> None:
    """E30."""
    wrong, ended = later_faults(60)
    print(f"seed {SEED}: {ended} pairs in which an account was liquidated")
    assert wrong == 0
    assert ended > 20


@pytest.mark.usefixtures("fresh_games")
def test_mutant_margin_that_grows_with_leverage_is_liquidated_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E30."""
    change = ("limit = a[LEVERAGE] if", "limit = 120.0 / a[LEVERAGE] if")
    monkeypatch.setattr(perp_kernel, "step", mutant(change))
    assert later_faults(12)[0] > 0
