"""The mechanics of SpotCrypto next to those of two well-known trading environments: one table of worked examples.

Each example is a few hourly bars of one coin, 10,000 in cash, target weights, and the equity that the rules of
:mod:`markets.spot` give by hand. Ours must give it to 1e-12. What the peers give stands in the table as well: ``OK``
where they give the same, or the other figure, or why the example cannot be put to them. They are asked in their own
terms (fees, a rate per step, a list of positions), and every decision but that of the gap is made in a bar that stands
still, so that it does not matter at which price of it a peer fills.

Peers, by their source: StocksEnv and ForexEnv of gym-anytrading 2.0.0, TradingEnv of gym-trading-env 0.3.5. Their rows
are skipped where they are not installed; CONTRIBUTING.md says how to.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from registered import HOUR

from envs.make import build
from markets.bars import Bars

VERSIONS = {"gym_anytrading": ("gym-anytrading", "2.0.0"), "gym_trading_env": ("gym-trading-env", "0.3.5")}
START, RATE = 10_000.0, 0.08 / 8760.0  # interest a bar of one hour
HOUR_OF_10_000 = START * RATE  # of a short of 10,000 at 8 % per year: worked example S-03
SAME = 5e-6  # share of the equity. A peer may take a fee in the coin that is bought: its square, 1e-6, is no other rule
OK = "the same"
ONE_COIN, ALL_IN = "trades one coin", "is all in or all out"


@dataclass(frozen=True)
class Example:
    """Closes of bars 0..n, targets decided at the closes of 0..n-1 (None holds), and the equity at the close of n."""

    name: str
    closes: tuple[float, ...] | tuple[tuple[float, ...], ...]
    targets: tuple[Any, ...]
    equity: float
    peers: dict[str, float | str]
    fee: float = 0.0
    interest: bool = False
    opens: dict[int, float] = field(default_factory=dict)  # elsewhere a bar opens at the close before


def held(target: float, bars: int) -> tuple[float | None, ...]:
    """Sent once, and left alone for the rest of so many bars."""
    return (target, *[None] * (bars - 1))


C, FEE = 0.001, {"fee": 0.001}
DAY, TWO_DAYS, MONTH = 24, 48, 720
EXAMPLES = (
    Example("a coin that is held earns its price ratio", (100.0, 100.0, 105.0), held(1.0, 2), 10_500.0,
            {"StocksEnv": OK, "ForexEnv, right": OK, "TradingEnv": OK}),
    Example("a round trip pays the fee once a trade", (100.0,) * 4, (1.0, 0.0, None),
            START / (1.0 + C) * (1.0 - C), {"StocksEnv": OK, "TradingEnv": OK}, **FEE),
    Example("turning a short into a long pays for twice the equity", (100.0,) * 4, (-1.0, 1.0, None),
            START / (1.0 + C) * (1.0 - C) / (1.0 + C),
            {"StocksEnv": 10_000.0 * 0.999**2, "TradingEnv": OK}, **FEE),  # StocksEnv: bought and sold, never short
    Example("a rebalancing pays for what it trades (S-01 for one coin)", (100.0, 100.0, 105.0, 105.0), (0.5, None, 0.3),
            # bought: mu = 1 - c mu / 2; grown by 0.5 * 5 %; sold from w' to 0.3: mu = 1 - c (w' - 0.3 mu)
            START / (1.0 + 0.5 * C) * 1.025 * (1.0 - C * 0.525 / 1.025) / (1.0 - 0.3 * C),
            {"StocksEnv": ALL_IN, "TradingEnv": OK}, **FEE),
    Example("S-01, two coins", ((100.0, 100.0), (100.0, 100.0), (105.0, 98.0), (105.0, 98.0)),
            ((0.5, 0.3), None, (0.3, 0.6)), 10184.634609617116 / (1.0 + 0.8 * C),  # bought as well: mu = 1 - 0.8 c mu
            {"StocksEnv": ONE_COIN, "TradingEnv": ONE_COIN}, **FEE),
    Example("a short earns what the price loses", (100.0, 100.0, 90.0, 90.0), (-1.0, None, 0.0), 11_000.0,
            # ForexEnv keeps one side of a pair: on the left it counts shorts alone, in units of the coin (times 10 / 9)
            {"StocksEnv": 10_000.0, "ForexEnv, right": 10_000.0, "ForexEnv, left": 100_000.0 / 9.0, "TradingEnv": OK}),
    Example("a short pays interest for an hour (S-03)", (100.0,) * 2, held(-1.0, 1), START - HOUR_OF_10_000,
            {"StocksEnv": 10_000.0, "TradingEnv": OK}, interest=True),
    Example("interest of a short accumulates", (100.0,) * (TWO_DAYS + 1), held(-1.0, TWO_DAYS),
            START - TWO_DAYS * HOUR_OF_10_000,
            {"StocksEnv": 10_000.0, "TradingEnv": START - HOUR_OF_10_000}, interest=True),  # of the last hour alone
    Example("interest is of what the coins are worth, bar by bar", (*(100.0,) * (DAY + 1), *(120.0,) * (DAY + 1)),
            held(-1.0, 2 * DAY + 1), 8_000.0 - HOUR_OF_10_000 * ((DAY + 1) + 1.2 * DAY),
            {"StocksEnv": 10_000.0, "TradingEnv": 8_000.0 - 1.2 * HOUR_OF_10_000}, interest=True),
    Example("interest on borrowed cash is borrowed in turn", (100.0,) * (MONTH + 1), held(1.5, MONTH),
            15_000.0 - 5_000.0 * (1.0 + RATE) ** MONTH,
            {"StocksEnv": ALL_IN, "TradingEnv": START - 0.5 * HOUR_OF_10_000}, interest=True),
    Example("what a short has cost stays paid when it is closed", (100.0,) * (DAY + 3), (*held(-1.0, DAY), 0.0, None),
            START - DAY * HOUR_OF_10_000, {"StocksEnv": 10_000.0, "TradingEnv": START - HOUR_OF_10_000}, interest=True),
    Example("and when it is turned into a long", (100.0,) * (DAY + 3), (*held(-1.0, DAY), 1.0, None),
            START - DAY * HOUR_OF_10_000, {"StocksEnv": 10_000.0, "TradingEnv": 10_000.0}, interest=True),
    Example("an order fills at the next open, not at the close that was seen", (100.0, 110.0, 110.0), held(1.0, 2),
            10_000.0, {"StocksEnv": OK, "TradingEnv": 11_000.0}, opens={1: 110.0}),
)  # fmt: skip


class CannotBeAskedError(Exception):
    """The example cannot be put to this environment."""


# ---- adapters: an example to the equity that an environment gives ------------------------------------------------


def ours(example: Example, **settings: Any) -> float:
    """SpotCrypto-v0 with free choice of weights, without costs that the example does not name."""
    warm, rest = 170, 4
    closes = np.array(example.closes, np.float64).reshape(len(example.closes), -1)
    alike = 2 if 1.5 in example.targets else 1  # a weight ends at 1, so 1.5 is held in two coins of that price
    closes = np.repeat(closes, alike, 1)
    closes = np.concatenate([np.repeat(closes[:1], warm, 0), closes, np.repeat(closes[-1:], rest, 0)])
    opened = np.concatenate([closes[:1], closes[:-1]])
    for bar, price in example.opens.items():
        opened[warm + bar] = price
    time = np.datetime64("2024-01-01", "ns") + np.arange(len(closes)) * HOUR
    bars = Bars(
        time=time, interval=HOUR, symbols=("BTCUSDT", "ETHUSDT")[: closes.shape[1]], open=opened, close=closes,
        high=np.maximum(opened, closes), low=np.minimum(opened, closes), volume=np.full(closes.shape, 1e9),
    )  # fmt: skip
    env = build("SpotCrypto", bars=bars, **{
        "train_end": str(bars.close_time[-3]), "validation_end": str(bars.close_time[-2]), "episode_bars": 0,
        "random_start": False, "on_bad_action": "hold", "allow_short": True, "taker_fee": example.fee,
        "borrow_rate": 0.08 if example.interest else 0.0, "half_spread": 0.0, "tick_size": 0.0,
        "impact_coefficient": 0.0, "lot_step": 0.0, "minimum_notional": 0.0, "rebalance_band": 0.0, **settings,
    })  # fmt: skip
    env.reset(seed=0, options={"start": str(bars.time[warm])})
    info: dict[str, Any] = {}
    for target in example.targets:  # an action that is no number is held: nothing is sent in that bar
        action = np.full(closes.shape[1], np.nan) if target is None else np.repeat(target, alike) / alike
        *_, info = env.step(action)
    return float(info["equity"])


def anytrading(example: Example, kind: str, **more: Any) -> float:
    """gym-anytrading. Its action is a side and its account is told where a position ends or the data do."""
    closes = np.array(example.closes, np.float64)
    if closes.ndim > 1:
        raise CannotBeAskedError(ONE_COIN)
    frame = pd.DataFrame({"Close": [closes[0], *closes]})
    env = getattr(importlib.import_module("gym_anytrading.envs"), kind)(
        df=frame, window_size=1, frame_bound=(1, len(frame)), **more
    )
    assert env.action_space.n == 2
    if kind == "StocksEnv":
        env.trade_fee_bid_percent = env.trade_fee_ask_percent = example.fee
    else:
        assert example.fee == 0.0, "its fee is an amount of the price"
        env.trade_fee = 0.0
    env.reset(seed=0)
    side, truncated, info = 0, False, {}
    for target in example.targets:
        if target not in (None, -1.0, 0.0, 1.0):
            raise CannotBeAskedError(ALL_IN)
        side = side if target is None else int(target > 0.0)
        _, _, _, truncated, info = env.step(side)
    assert truncated, "its account would not be told"
    return START * float(info["total_profit"])


def trading_env(example: Example) -> float:
    """gym-trading-env. Its action is a place in a list of positions; the same position again trades nothing."""
    closes = np.array(example.closes, np.float64)
    if closes.ndim > 1:
        raise CannotBeAskedError(ONE_COIN)
    with warnings.catch_warnings():  # it turns every warning of the process into an error
        kind = importlib.import_module("gym_trading_env.environments").TradingEnv
    opened = np.concatenate([closes[:1], closes[:-1]])
    for bar, price in example.opens.items():
        opened[bar] = price
    high, low = np.maximum(opened, closes), np.minimum(opened, closes)
    frame = pd.DataFrame({"open": opened, "high": high, "low": low, "close": closes, "feature_close": closes},
                         index=pd.date_range("2024-01-01", periods=len(closes), freq="h"))  # fmt: skip
    positions = [-1.0, 0.0, 0.3, 0.5, 1.0, 1.5]
    env = kind(
        df=frame, positions=positions, initial_position=0.0, trading_fees=example.fee, verbose=0,
        borrow_interest_rate=RATE if example.interest else 0.0, portfolio_initial_value=START,
    )  # fmt: skip
    env.reset(seed=0)
    position, info = 0.0, {}
    for target in example.targets:
        position = position if target is None else target
        *_, info = env.step(positions.index(position))
    return float(info["portfolio_valuation"])


PEERS: dict[str, tuple[str, Callable[[Example], float]]] = {
    "StocksEnv": ("gym_anytrading", lambda example: anytrading(example, "StocksEnv")),
    "ForexEnv, left": ("gym_anytrading", lambda example: anytrading(example, "ForexEnv", unit_side="left")),
    "ForexEnv, right": ("gym_anytrading", lambda example: anytrading(example, "ForexEnv", unit_side="right")),
    "TradingEnv": ("gym_trading_env", trading_env),
}


def same(equity: float, example: Example, within: float) -> bool:
    return abs(equity - example.equity) <= within * START


# ---- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_ours_gives_the_worked_figure(example: Example) -> None:
    assert round(HOUR_OF_10_000, 10) == 0.0913242009
    equity = ours(example)
    print(f"ours: {equity:.9f}, worked: {example.equity:.9f}")
    assert same(equity, example, 1e-12)


@pytest.mark.parametrize(
    ("example", "peer"),
    [(example, peer) for example in EXAMPLES for peer in example.peers],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@pytest.mark.filterwarnings("default")  # theirs, not ours
def test_a_peer_gives_what_the_table_says(example: Example, peer: str) -> None:
    module, play = PEERS[peer]
    name, version = VERSIONS[module]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{name} is not installed; the table is of {name}=={version} (see CONTRIBUTING.md)")
    if importlib.metadata.version(name) != version:
        pytest.skip(f"{name} {importlib.metadata.version(name)} is installed; the table is of {name}=={version}")
    expected = example.peers[peer]
    if isinstance(expected, str) and expected != OK:
        with pytest.raises(CannotBeAskedError, match=expected):
            play(example)
        return
    equity = play(example)
    print(f"{peer}: {equity:.6f}, worked: {example.equity:.6f}, apart {equity - example.equity:+.6f}")
    if expected == OK:
        assert same(equity, example, SAME)
    else:
        assert not same(equity, example, SAME), "it gives the worked figure"
        assert equity == pytest.approx(expected, abs=1e-6 * START if module == "gym_anytrading" else 1e-8 * START)


def test_the_two_best_known_peers_are_asked_everything_and_both_fail_somewhere() -> None:
    for peer in ("StocksEnv", "TradingEnv"):
        answers = [example.peers[peer] for example in EXAMPLES]
        assert any(isinstance(answer, float) for answer in answers), peer
        assert OK in answers, peer
    for example in EXAMPLES:
        for peer, answer in example.peers.items():
            assert answer == OK or isinstance(answer, str) or not same(float(answer), example, SAME), peer


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"borrow_rate": 0.0}, "interest of a short accumulates"),
        ({"allow_short": False}, "a short earns what the price loses"),
        ({"taker_fee": 0.0005}, "a round trip pays the fee once a trade"),
    ],
    ids=lambda value: str(value),
)
def test_mutant_a_rule_that_is_left_out_is_found(settings: dict[str, Any], wrong: str) -> None:
    example = next(example for example in EXAMPLES if example.name == wrong)
    assert not same(ours(example, **settings), example, SAME)
