"""A thousand configurations drawn from the schema of each family's dataclass, 220 steps each: nothing breaks.

The schema is asked, not copied: which numbers a field accepts is found by trying, which words it accepts is read from
the error that names them. A field that cannot be drawn so needs a row in ``OWN``; without one the test says its name.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from registered import BASKET, EARLY, IDS, SESSIONS, basket_market, family, perpetual_market
from test_hostile_data import check_items
from test_perp_env import mutant

from envs import perp_columns, perp_kernel, zero_dte_columns
from envs.make import family_of
from markets import sources
from markets.bars import MARKS, PRICES, Bars
from markets.errors import RegimeGymError, UnknownNameError
from markets.sources.memory import register_bars

SEED = 121
ROWS = 4_000  # the train split outlasts the warm-up of an encoder
CONFIGS, STEPS = 1_000, 220  # over the end of a short session
CONTROL = "regime?max_leverage=100&multipliers=40,20,1&patience_bars=1&minimum_confidence=0&novelty_limit=25"
GRID = (0.0, *(10.0**power for power in range(-12, 16)), 0.5, 0.999, 2.0, 3.0, 5.0, 20.0, 50.0, 125.0)
Draw = Callable[[np.random.Generator], Any]
Generator = np.random.Generator


# ---- markets ----------------------------------------------------------------------------------------------------


def broken_market() -> Bars:
    """Jumps of up to 90 %, gaps in time, bars without volume, marks that lag, funding of up to 1 %."""
    random = np.random.default_rng(SEED)
    bars = perpetual_market(ROWS)
    keep = random.random(len(bars)) > 0.02
    jumps = np.where(random.random(len(bars)) < 0.02, random.uniform(np.log(0.1), np.log(1.9), len(bars)), 0.0)
    level = np.exp(np.cumsum(jumps - jumps.mean()))[:, None]
    columns = {name: getattr(bars, name) * level for name in (*PRICES, *MARKS)}
    columns["volume"] = bars.volume * (random.random(bars.volume.shape) > 0.1)
    columns = {name: column[keep] for name, column in columns.items()}
    assert bars.labels is not None
    rates = random.uniform(-0.01, 0.01, bars.funding_rate.shape)
    return replace(bars, time=bars.time[keep], labels=bars.labels[keep], funding_rate=rates, **columns)  # type: ignore[arg-type]


@cache
def market_names() -> tuple[str, ...]:
    wild = sources.load("synthetic:crypto?seed=3&interval=1h&bars=4000&annual_volatility=2.5")
    plain = replace(wild, mark_open=None, mark_high=None, mark_low=None, mark_close=None)
    markets: dict[str, Bars] = {
        "calm": perpetual_market(ROWS),
        "wild": wild,
        "last only": plain,
        "broken": broken_market(),
    }
    return tuple(register_bars(f"random-configs-{name}", bars) for name, bars in markets.items())


@cache
def session_market_names() -> tuple[str, ...]:
    """Sessions of 390 and of 210 minutes; moves of up to 10 % a minute, an index of 5 to 150; penny prices."""
    calm, short = sources.load(SESSIONS), sources.load(EARLY)
    random = np.random.default_rng(SEED)
    level = np.exp(np.cumsum(random.normal(0.0, 0.03, len(short)) * (random.random(len(short)) < 0.1)))[:, None]
    days = np.repeat(random.uniform(5.0, 150.0, len(short) // 210), 210)[:, None]
    wild = {name: short.columns[name] * level for name in (*PRICES, "bid", "ask")}
    broken = replace(short, **wild, previous_vix=days)  # type: ignore[arg-type]
    cheap = replace(short, **{name: short.columns[name] * 1e-3 for name in (*PRICES, "bid", "ask")})
    markets = {"calm": calm, "short": short, "broken": broken, "cheap": cheap}
    return tuple(register_bars(f"random-sessions-{name}", bars) for name, bars in markets.items())


@cache
def basket_names() -> tuple[str, ...]:
    """Three coins; two, wild; jumps of up to 90 %, gaps in time and bars without volume; one coin at penny prices."""
    calm, random = basket_market(ROWS), np.random.default_rng(SEED)
    keep = random.random(len(calm)) > 0.02
    jumps = np.where(
        random.random(calm.open.shape) < 0.02, random.uniform(np.log(0.1), np.log(1.9), calm.open.shape), 0
    )
    level = np.exp(np.cumsum(jumps - jumps.mean(axis=0), axis=0))
    columns: dict[str, Any] = {name: (calm.columns[name] * level)[keep] for name in PRICES}
    columns["volume"] = (calm.volume * (random.random(calm.volume.shape) > 0.1))[keep]
    assert calm.labels is not None
    broken = replace(calm, time=calm.time[keep], labels=calm.labels[keep], **columns)
    penny = replace(calm.asset(2), **{name: calm.asset(2).columns[name] * 1e-4 for name in PRICES})  # type: ignore[arg-type]
    wild = sources.load(BASKET + "&assets=2&annual_volatility=2.5")
    markets = {"calm": calm, "wild": wild, "broken": broken, "penny": penny}
    return tuple(register_bars(f"random-baskets-{name}", bars) for name, bars in markets.items())


# ---- drawing from a schema --------------------------------------------------------------------------------------


def reward_text(terms: Iterable[str]) -> Draw:
    """Draw a reward of some of these terms."""
    every = list(terms)

    def draw(random: Generator) -> str:
        names = random.choice(every, int(random.integers(1, len(every) + 1)), replace=False)
        return ",".join(f"{name}={random.choice([1.0, 0.1, 10.0, -1.0, 0.0])}" for name in names)

    return draw


OWN: dict[str, Draw] = {  # fields whose values the schema cannot tell
    "symbol": lambda random: random.choice([None, "BTCUSDT", "SOLUSDT", "NEWCOIN"]),
    "episode_bars": lambda random: random.choice([None, 0, 1, 2, 50, 400]),
    "scaler": lambda random: None,
    "encoded": lambda random: str(random.choice(["", "jepa"])),
    "encoder": lambda random: None,
    "signals": lambda random: str(random.choice(["", "sentiment"])),  # fitted ones: test_observed_signals
    "odds": lambda random: "belief",  # another one needs an encoder: test_jepa
    "train_end": lambda random: None,
    "validation_end": lambda random: None,
    "hide": lambda random: str(random.choice(["", "log_equity", "holding_time,exposure"])),
    "leverage_control": lambda random: str(random.choice(["", "", "", "regime", CONTROL])),
    "contracts": lambda random: random.choice([None, 1, 5, 1000]),
}


def accepted(config: Any, name: str, value: Any) -> bool:
    try:
        config(**{name: value})
    except RegimeGymError:
        return False
    return True


def number(default: float | None, allowed: list[float], whole: bool) -> Draw:
    """Anywhere in the range, at its ends, or within a factor of ten of the default."""
    as_is: Callable[[float], float] = round if whole else float
    low, high = min(allowed), max(allowed)
    smallest = min(value for value in allowed if value > 0.0)

    def draw(random: Generator) -> float:
        how = random.random()
        if how < 0.1:
            return float(random.choice([low, high]))
        if how < 0.5 and default:
            return as_is(float(np.clip(default * 10.0 ** random.uniform(-1.0, 1.0), low, high)))
        return as_is(float(np.clip(10.0 ** random.uniform(math.log10(smallest), math.log10(high)), low, high)))

    return draw


def word(choices: list[str]) -> Draw:
    return lambda random: str(random.choice(choices))


OF_FAMILY: dict[str, dict[str, Draw]] = {  # fields that mean something else in every family
    "PerpFuturesConfig": {
        "bars": lambda random: str(random.choice(market_names())),
        "reward": reward_text(perp_columns.TERM_COLUMNS),
    },
    "ZeroDTEConfig": {
        "bars": lambda random: str(random.choice(session_market_names())),
        "reward": reward_text(zero_dte_columns.TERM_COLUMNS),
        "iv": lambda random: "vix",  # a grid needs its column: test_zero_dte
        "smile": lambda random: random.choice([None, "0,0,0,0", "-0.0461,-0.0404,0.0317,0.0496"]),
        "strike_offset": lambda random: int(random.integers(-5, 6)),
        "forced_exit": lambda random: random.choice([None, 0.0, 1.0, 15.0, 30.0]),
    },
    "SpotCryptoConfig": {
        "bars": lambda random: str(random.choice(basket_names())),
        "reward": reward_text(("profit", "simple_return", "sharpe", "drawdown", "costs")),
        "hide": lambda random: str(random.choice(["", "log_equity", "cash_weight,weekend"])),
    },
}


@cache
def schema(config: Any) -> dict[str, Draw]:
    """How to draw every field of a configuration dataclass."""
    draws: dict[str, Draw] = {}
    own = {**OWN, **OF_FAMILY[config.__name__]}
    kinds = typing.get_type_hints(config)
    for item in fields(config):
        options = set(typing.get_args(kinds[item.name])) or {kinds[item.name]}
        if item.name in own:
            draws[item.name] = own[item.name]
        elif bool in options:
            draws[item.name] = lambda random: bool(random.random() < 0.5)
        elif float in options or int in options:
            allowed = [value for value in GRID if accepted(config, item.name, value)]
            assert len(allowed) > 1, f"{item.name} accepts none of the usual numbers: give it a row in OWN"
            whole = not any(accepted(config, item.name, value + 0.5) for value in allowed[:-1])
            draws[item.name] = number(item.default if isinstance(item.default, float) else None, allowed, whole)
        else:
            try:
                config(**{item.name: "no such word"})
                raise LookupError(f"{item.name} takes any text: give it a row in OWN")
            except UnknownNameError as error:
                draws[item.name] = word(re.findall(r"Valid: (.*)", str(error))[0].split(", "))
    return draws


def draw_config(config: Any, random: Generator) -> dict[str, Any]:
    """About a third of the fields drawn, the others as they are by default; the market always drawn."""
    return {
        name: draw(random) for name, draw in schema(config).items() if name == "bars" or random.random() < 1.0 / 3.0
    }


# ---- playing ----------------------------------------------------------------------------------------------------


def check_config(name: str, config: dict[str, Any], seed: int, met: dict[str, int]) -> None:
    """Construct, play, and check every step; a refusal must be one of our errors."""
    try:
        env = gym.make(name, disable_env_checker=True, **config)
    except RegimeGymError:
        met["refused"] += 1
        return
    random = np.random.default_rng(seed)
    obs, before = env.reset(seed=seed)
    for _ in range(STEPS):
        assert env.observation_space.contains(obs)
        assert np.isfinite(obs).all()
        obs, reward, terminated, truncated, info = env.step(draw_action(env.action_space, random))
        assert math.isfinite(reward)
        terms = info["reward_terms"].values()
        assert abs(reward - sum(terms)) <= 1e-12 + 1e-9 * max(map(abs, terms))
        assert all(math.isfinite(value) for value in info.values() if type(value) is float)
        assert info["equity"] >= 0.0
        if "fill_quantity" in info:
            (check_items if "liquidated" in info else check_option_items)(before, info)
            met["fills"] += info["fill_quantity"] != 0.0
            met["liquidations"] += info.get("liquidated", 0)
            reduced = config.get("liquidation") == "tiered"  # a lower tier may carry a part of the position
            assert reduced or not (info.get("liquidated") and info["position"] != 0.0)
        elif "traded" in info:
            check_portfolio_items(before, info)
            met["fills"] += info["traded"] != 0.0
        assert ("ended_by" in info) == (terminated or truncated)
        assert not (terminated and truncated)
        before = info
        if terminated or truncated:
            met["ends"] += 1
            obs, before = env.reset()


def draw_action(space: gym.Space[Any], random: Generator) -> Any:
    """The ends of a box, its middle or anything between; any choice, mostly the one that does nothing."""
    if isinstance(space, gym.spaces.Box):
        low, high = space.low, space.high
        return random.choice([low, high, random.uniform(low, high), 0.0 * low])
    sizes = space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else np.array([space.n])  # type: ignore[attr-defined]
    action = random.integers(sizes) * (random.random() < 0.3)
    return action if isinstance(space, gym.spaces.MultiDiscrete) else int(action[0])


def check_option_items(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The items of an option account add up to its change of equity."""
    items = after["market_pnl"] - after["fee"] - after["spread_cost"] - after["lapse"]
    scale = max(before["equity"], after["equity"], 100.0 * after["position"] * after["premium"], 1.0)
    assert abs(after["equity"] - before["equity"] - items) <= 1e-9 * scale


def check_portfolio_items(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The items of a portfolio add up to its change of equity, and its cash and coins to its equity."""
    paid = after["fee"] + after["spread_cost"] + after["impact_cost"] + after["borrow"]
    items = after["market_pnl"] - paid + after["cover"]
    scale = max(before["equity"], after["equity"], abs(after["market_pnl"]), 1.0)
    assert abs(after["equity"] - before["equity"] - items) <= 1e-9 * scale
    assert abs(after["equity"] - after["cash"] - after["position"]) <= 1e-9 * scale


def check_configs(name: str, count: int, seed: int = SEED) -> dict[str, int]:
    config = family_of(gym.spec(name).kwargs["family"]).config
    met = dict.fromkeys(("refused", "fills", "liquidations", "ends"), 0)
    for number_of in range(count):
        drawn = draw_config(config, np.random.default_rng([seed, number_of]))
        if drawn.get("leverage_control", gym.spec(name).kwargs.get("leverage_control")):
            drawn["encoded"] = "jepa"  # whose regimes it follows
        try:
            check_config(name, drawn, number_of, met)
        except Exception as error:  # say which one it was
            error.add_note(f"seed [{seed}, {number_of}]: {drawn}")
            raise
    return met


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_a_thousand_random_configurations_are_refused_or_played_and_keep_every_invariant(name: str) -> None:
    """E64."""
    print(f"seed {SEED}")
    met = check_configs(name, CONFIGS)
    print(met)
    assert met["refused"] < CONFIGS // 8
    assert met["fills"] > 1_000
    assert met["ends"] > (1_000 if family(name).ends == "truncated" else 100)  # sessions outlast the steps, or nearly


@pytest.mark.parametrize("name", IDS)
def test_fifty_random_configurations_keep_every_invariant(name: str) -> None:
    """E64. A sample of the thousand."""
    assert check_configs(name, 50)["fills"] > 100


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize(
    "change",
    [
        ("a[WALLET] += realised - paid", "a[WALLET] += realised + paid"),
        ("a[WALLET] -= payment", "a[WALLET] += payment"),
        ("realised - clearance + cover", "realised + cover"),
        (
            "        liquidate(a, opened, contract, tiers)\n",
            "        liquidate(a, opened, contract, tiers)\n        a[POSITION] = 1e-9\n        break\n",
        ),
        ("a[FILL_QUANTITY], a[FILL_PRICE] = change, price", "a[FILL_QUANTITY], a[FILL_PRICE] = change, math.inf"),
    ],
    ids=["fee sign", "funding sign", "clearance fee", "a liquidated position that stays", "a number not finite"],
)
def test_mutant_a_fault_anywhere_is_found_by_the_random_configurations(
    change: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E64."""
    monkeypatch.setattr(perp_kernel, "step", mutant(change))
    with pytest.raises(AssertionError):
        check_configs("PerpFutures-v0", 200)
