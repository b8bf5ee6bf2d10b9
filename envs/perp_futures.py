"""PerpFutures: the environment card, the configuration, and how a market becomes a game of this family."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs import perp_kernel as kernel
from envs.encoding import encode
from envs.rewards import parse_reward
from envs.simulation import COST_SCALE, LEVERAGE, Game
from envs.splits import SPLITS, split_rows
from envs.trading_env import TradingEnv, TradingVectorEnv
from markets import features, sources
from markets.bars import Bars
from markets.contracts import PerpetualContract, contract_for
from markets.errors import ConfigError, DataError, InSampleError, unknown
from markets.table import CausalTable
from markets.windows import Floats, window_mean

DEFAULT_BARS = "synthetic:crypto?seed=0&interval=1h&bars=40000"
DAY = np.timedelta64(1, "D")
TRAINING_EPISODE = 512  # bars
MARGIN_MODES = ("isolated", "cross")
LIQUIDATIONS = ("full", "tiered")


@dataclass(frozen=True, kw_only=True)
class PerpFuturesConfig:
    """Arguments of ``gym.make("PerpFutures-v0", ...)``; names and numbers only.

    Attributes:
        bars: source specification (or a ``Bars`` where the env is built without ``gym.make``).
        split: ``train``, ``validation`` or ``test``.
        train_end, validation_end: dates that end the splits (a date includes its day); fractions .6/.2/.2 without.
        scaler: a JSON file with a fitted feature scaler; fitted on the training range without.
        allow_in_sample: let a validation or test episode begin inside the range a scaler was fitted on.
        episode_bars: longest episode; 512 in training, the whole split in evaluation. 0 means the whole split.
        random_start: begin anywhere in the split (training) or at its first row (evaluation).
        initial_equity: USDT. ``leverage``: L, exposure bound in units of equity.
        contract_leverage: leverage of posted margin; min(L, tier maximum) without. Below L it bounds the exposure too:
            an order is cut to what the wallet covers.
        margin_mode: ``isolated`` (the posted margin can be lost) or ``cross`` (the whole wallet backs the position).
        liquidation: ``full``, or ``tiered``: reduce to a lower margin tier where that makes the rest compliant. The
            clearance fee is charged on what is sold; at its default of 1.25 % a tier is seldom enough.
        rebalance_band: smallest change of notional that sends an order, in units of equity.
        ruin: equity below this share of the start ends the episode. ``maximum_drawdown``: so does this drawdown.
        continue_after_liquidation: go on with what is left instead of ending the episode.
        reward: terms with weights, see :mod:`envs.rewards`; ``sharpe_rate``: eta of the differential Sharpe ratio.
        cost_scale: multiplies fee, spread and impact (not funding).
        randomise_costs: r; each training episode draws its own factor on ``cost_scale`` from 1 / (1 + r) to 1 + r,
            log-uniform, from the lane's generator. Validation and test are always at ``cost_scale``.
        taker_fee, half_spread, impact_coefficient, participation, lot_step, tick_size, minimum_notional,
        maximum_quantity, clearance_fee: replace the contract's own value.
        symbol: chooses the contract; the symbol of the bars without.
        encoded: kind of encoder whose columns are appended (``jepa``); none without.
        encoder: folder of its weights, made by ``regimegym pretrain``, or the name of shipped ones.
        odds: whose regime odds it serves: ``belief``, ``softmax`` or ``kmeans``.
    """

    bars: str | Bars = DEFAULT_BARS
    split: str = "train"
    train_end: str | None = None
    validation_end: str | None = None
    scaler: str | features.FeatureScaler | None = None
    allow_in_sample: bool = False
    episode_bars: int | None = None
    random_start: bool | None = None
    initial_equity: float = 10_000.0
    leverage: float = 3.0
    contract_leverage: float | None = None
    margin_mode: str = "isolated"
    liquidation: str = "full"
    rebalance_band: float = 0.05
    ruin: float = 0.01
    maximum_drawdown: float | None = None
    continue_after_liquidation: bool = False
    reward: str = "log_return"
    sharpe_rate: float = 0.01
    cost_scale: float = 1.0
    randomise_costs: float = 0.0
    taker_fee: float | None = None
    half_spread: float | None = None
    impact_coefficient: float | None = None
    participation: float | None = None
    lot_step: float | None = None
    tick_size: float | None = None
    minimum_notional: float | None = None
    maximum_quantity: float | None = None
    clearance_fee: float | None = None
    symbol: str | None = None
    encoded: str = ""
    encoder: str | None = None
    odds: str = "belief"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.margin_mode not in MARGIN_MODES:
            raise unknown("margin_mode", self.margin_mode, MARGIN_MODES)
        if self.liquidation not in LIQUIDATIONS:
            raise unknown("liquidation", self.liquidation, LIQUIDATIONS)
        for name, low, high in (
            ("initial_equity", 1e-6, 1e15), ("leverage", 1.0, 125.0), ("contract_leverage", 1.0, 125.0),
            ("rebalance_band", 0.0, 10.0), ("ruin", 1e-6, 0.999), ("maximum_drawdown", 1e-6, 1.0),
            ("cost_scale", 0.0, 1e3), ("randomise_costs", 0.0, 100.0), ("sharpe_rate", 1e-9, 1.0),
            ("taker_fee", 0.0, 1.0), ("half_spread", 0.0, 0.5),
            ("impact_coefficient", 0.0, 1e3), ("participation", 1e-9, 1.0), ("lot_step", 0.0, 1e12),
            ("tick_size", 0.0, 1e12), ("minimum_notional", 0.0, 1e12), ("maximum_quantity", 1e-12, 1e300),
            ("clearance_fee", 0.0, 1.0),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), low, high)
        for name, kinds in (
            ("bars", (str, Bars)), ("train_end", str), ("validation_end", str), ("symbol", str),
            ("encoded", str), ("encoder", str), ("odds", str),
            ("scaler", (str, features.FeatureScaler)),
        ):  # fmt: skip
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kinds):
                hint = "; register bars of your own with regimegym.register_bars" if name == "bars" else ""
                raise ConfigError(f"{name} must be text, not {type(getattr(self, name)).__name__}{hint}")
        for name in ("allow_in_sample", "continue_after_liquidation"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False")
        bars = self.episode_bars
        if bars is not None and (isinstance(bars, bool) or not isinstance(bars, int | np.integer) or bars < 0):
            raise ConfigError(
                f"episode_bars={self.episode_bars!r} must be a whole number of at least 0 (0: whole split)"
            )
        if not isinstance(self.reward, str):
            raise ConfigError(f"reward={self.reward!r} must be text, such as 'log_return=1,drawdown=0.5'")
        parse_reward(self.reward)
        if not self.encoded and (self.encoder is not None or self.odds != "belief"):
            name = "encoder" if self.encoder is not None else "odds"
            raise ConfigError(f"{name}={getattr(self, name)!r} needs an encoder: pass encoded='jepa' as well")


class PerpFuturesEnv(TradingEnv):
    """One linear USDT-margined perpetual: trade its exposure, one decision a bar.

    ## Action space
    ``Box(-1, 1, (1,), float32)``: target exposure in units of the leverage L, +1 is long L times equity, -1 short, 0
    flat. The order for the difference is sent when it is at least ``rebalance_band`` of equity (0 always closes), sized
    at the last mark, and fills at the **open of the next bar**.

    ## Observation space
    Flat float32 ``Box`` with finite bounds: 32 market features known at the close of bar t (:mod:`markets.features`,
    scaled on the training range only), then 9 account columns. ``env.get_wrapper_attr("observation_names")`` names
    them; ``regimegym envs --columns`` prints formula, unit, bounds and look-back of each.

    ## Rewards
    ``ln(V' / V)`` of equity at mark by default; ``reward="log_return=1,drawdown=0.5"`` weighs named terms
    (:mod:`envs.rewards`). The weighted terms are in ``info["reward_terms"]`` and add up to the reward.

    ## Market mechanics
    Isolated margin: each fill posts the margin of the whole position anew from the wallet, notional / min(L, tier
    maximum) plus what is already lost; an opening order is cut to what the wallet covers. With
    ``margin_mode="cross"`` the whole wallet backs the position. Order of events in a bar: funding stamps at its open on
    the carried position; gap check of the carried position at mark open; the order fills at the open plus half spread
    and square-root impact, at most 10 % of the bar's volume, whole lots, minimum notional, within 5 % of mark; check of
    the new position against the bar's adverse **mark** extreme; later funding stamps with that check repeated; equity
    at mark close. A liquidation closes at the liquidation price, or at the open when the bar gapped through it, and
    pays the clearance fee from what is left of the margin; the insurance fund covers the rest, so that equity is never
    negative. ``liquidation="tiered"`` only reduces the position where that is enough. Stamps inside a gap of missing
    bars are charged at the last mark.

    ## Starting state
    ``initial_equity`` (10,000 USDT) and no position. Training episodes have 512 bars and begin at random in the split;
    validation and test run through their whole split. ``randomise_costs`` draws a training episode's costs.
    ``reset(options={"start": time})`` begins at that bar.

    ## Episode end
    Terminated: liquidation (unless ``continue_after_liquidation``), equity below ``ruin`` of the start, or beyond
    ``maximum_drawdown``. Truncated: episode length or end of the split. ``info["ended_by"]`` says which.

    ## Info
    ``time``: when the observation became known (close of bar t, UTC, numpy datetime64). ``equity, wallet, position,
    entry_price, mark, margin, liquidation_price, margin_ratio``; itemised for the step: ``market_pnl, fee, spread_cost,
    impact_cost, funding, clearance, cover`` with change of equity = market_pnl - fee - spread_cost - impact_cost -
    funding - clearance + cover; ``fill_quantity, fill_price, order_quantity, order_code`` (:data:`markets.perpetual.
    ORDER_STATUS`), ``liquidated, liquidated_quantity, liquidated_at``; ``leverage, contract_leverage, cost_scale``;
    ``requested_action`` and ``action``, the one applied (clipped to the space); ``bad_actions``, how many of the
    episode were held because they were not finite (``on_bad_action="hold"``); ``reward_terms``; ``in_sample`` (the
    episode began in the fitted range); ``label`` (true regime of a synthetic bar, never in the observation).

    ## Arguments
    See :class:`PerpFuturesConfig`, and :class:`envs.trading_env.TradingEnv` for those of every family.

    ## Version history
    * v0: first version.
    """


class PerpFuturesVectorEnv(TradingVectorEnv):
    """N lanes of :class:`PerpFuturesEnv` over the same market, in one compiled call."""


class PerpFutures:
    """The family: what :mod:`envs.make` needs to build its environments."""

    config = PerpFuturesConfig
    env = PerpFuturesEnv
    vector_env = PerpFuturesVectorEnv

    @staticmethod
    def action_space() -> gym.Space[Any]:
        """Target exposure in units of the leverage."""
        return gym.spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    @staticmethod
    def columns() -> list[tuple[str, str, str, str, str, str]]:
        """Describe every observation column: name, formula, unit, how it is served, bounds, look-back in bars."""
        market = [
            (f.name, f.formula, f.unit, "scaled" if f.scaled else "as is", f"{f.low:g} .. {f.high:g}", str(f.look_back))
            for f in features.FEATURES
        ]
        bounds = zip(kernel.ACCOUNT_LOW, kernel.ACCOUNT_HIGH, strict=True)
        account = [
            (name, formula, "account", "as is", f"{low:g} .. {high:g}", "-")
            for name, formula, (low, high) in zip(kernel.ACCOUNT_NAMES, kernel.ACCOUNT_FORMULAS, bounds, strict=True)
        ]
        return [*market, *account]

    @staticmethod
    def game(config: PerpFuturesConfig) -> Game:
        """Prepare market, features, contract and names for a configuration."""
        return _game(config)


def _game(config: PerpFuturesConfig) -> Game:
    bars = _bars(config)
    scaler, table = _features(config, bars)
    encoded = encode(config.encoded, bars, config.encoder, config.odds) if config.encoded else None
    market, warm = _market(bars)
    first, stop = split_rows(bars, config.split, config.train_end, config.validation_end)
    first, last = max(first, warm, table.valid_from, 0 if encoded is None else encoded.table.valid_from), stop - 1
    evaluating = config.split != "train"
    length = config.episode_bars if config.episode_bars is not None else (0 if evaluating else TRAINING_EPISODE)
    if last - first < max(length, 1):
        raise DataError(
            f"split {config.split!r} has {max(last - first, 0)} bars to trade after {first - 1} rows of warm-up and "
            f"earlier splits; {max(length, 1)} are needed: pass more bars, other split dates or a smaller episode_bars"
        )
    random_start = config.random_start if config.random_start is not None else not evaluating
    fitted = {"feature scaler": scaler.train_end}
    if encoded is not None and encoded.table.train_end is not None:
        fitted[f"encoder {encoded.name!r}"] = encoded.table.train_end
    for what, end in fitted.items():
        if evaluating and bars.close_time[first] <= end and not config.allow_in_sample:
            raise InSampleError(
                f"split {config.split!r} begins at {bars.close_time[first]}, not later than the fitted range of the "
                f"{what}, which ends at {end}; pass allow_in_sample=True to evaluate in-sample"
            )
    episode = length or last - first
    contract = _contract(config, bars)
    return Game(
        kernel=kernel.step,
        bars=bars,
        market=market,
        table=table.values,
        contract=_contract_vector(config, contract, episode, last),
        columns=kernel.COLUMNS,
        action_columns=slice(kernel.ACTION, kernel.ACTION + 1),
        info=kernel.INFO,
        state=kernel.STATE,
        lively=kernel.LIVELY,
        show_lively=kernel.show_lively,
        flags=frozenset({"liquidated"}),
        terms={name: kernel.TERM_COLUMNS[name] for name in parse_reward(config.reward)},
        names=(*table.names, *kernel.ACCOUNT_NAMES),
        low=np.concatenate([table.low, np.array(kernel.ACCOUNT_LOW, np.float32)]),
        high=np.concatenate([table.high, np.array(kernel.ACCOUNT_HIGH, np.float32)]),
        first=first,
        last=last,
        episode=episode,
        random_start=random_start,
        fitted_until=max(fitted.values()),
        defaults={LEVERAGE: config.leverage, COST_SCALE: config.cost_scale},
        recipe=("PerpFutures", config),
        encoded=encoded,
        randomised_costs=0.0 if evaluating else float(config.randomise_costs),
        details={
            "contract": contract,
            "scaler": scaler,
            "mark": "mark" if bars.mark_open is not None else "last",
            "encoder": None if encoded is None else {"name": encoded.name, "sha256": encoded.sha256},
        },
    )


def _bars(config: PerpFuturesConfig) -> Bars:
    bars = config.bars if isinstance(config.bars, Bars) else sources.load(config.bars)
    if len(bars.symbols) != 1:
        raise ConfigError(f"PerpFutures trades one symbol; the bars hold {', '.join(bars.symbols)}")
    return bars


_cache: dict[tuple[str, ...], Any] = {}  # scalers and tables of the last few markets, shared by splits and lanes
CACHED = 8


def _features(config: PerpFuturesConfig, bars: Bars) -> tuple[features.FeatureScaler, CausalTable]:
    """Return the scaler and the served table; the raw features, four times as large, are not kept."""
    scaler = _given_scaler(config)
    values: list[Floats] = []

    def raw() -> Floats:
        if not values:
            values.append(features.raw(bars))
        return values[0]

    if scaler is None:
        _, stop = split_rows(bars, "train", config.train_end, config.validation_end)
        scaler = _kept((bars.hash, str(stop)), lambda: features.FeatureScaler.fit(bars, raw(), stop))
    fitted = scaler
    return fitted, _kept((bars.hash, fitted.hash), lambda: features.table(bars, fitted, raw()))


def _kept(key: tuple[str, ...], make: Callable[[], Any]) -> Any:
    if key not in _cache:
        value = make()
        while len(_cache) >= CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = value
    return _cache[key]


def _given_scaler(config: PerpFuturesConfig) -> features.FeatureScaler | None:
    if config.scaler is None or isinstance(config.scaler, features.FeatureScaler):
        return config.scaler
    try:
        return features.FeatureScaler.from_json(json.loads(Path(config.scaler).read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scaler={config.scaler!r} cannot be read: {error}") from error


def _market(bars: Bars) -> tuple[Floats, int]:
    """Build the ``(T, M)`` matrix the kernel reads, and the first row whose trailing day is complete."""
    per_day = float(DAY / bars.interval)
    window = max(round(per_day), 24)  # one day, but enough bars for a volatility
    returns = np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.close[:1, 0]))
    with np.errstate(invalid="ignore"):
        volatility = np.sqrt(window_mean(returns * returns, window) * per_day)
        volume = window_mean(bars.volume[:, 0], window) * per_day
    marks = [bars.columns.get("mark_" + name, bars.columns[name])[:, 0] for name in ("open", "high", "low", "close")]
    columns = [bars.open[:, 0], bars.volume[:, 0], *marks, volatility, volume, *_funding(bars)]
    return np.ascontiguousarray(np.stack(columns, axis=1)), window


def _funding(bars: Bars) -> list[Floats]:
    """Rates per bar: in the gap before it, at its open, and each later stamp inside it in a column of its own."""
    count = len(bars)
    known = bars.funding_time >= bars.time[0]
    times, rates = bars.funding_time[known], bars.funding_rate[known, 0] if known.any() else np.zeros(0)
    row = np.searchsorted(bars.time, times, side="right") - 1  # last bar that opens at or before the stamp
    in_gap, at_open = np.zeros(count), np.zeros(count)
    opened = times == bars.time[row]
    np.add.at(at_open, row[opened], rates[opened])
    late = ~opened & (times >= bars.close_time[row]) & (row + 1 < count)
    np.add.at(in_gap, row[late] + 1, rates[late])
    inside = np.flatnonzero(~opened & ~late & (times < bars.close_time[row]))
    later: list[Floats] = []
    place = np.zeros(count, int)
    for event in inside:
        bar = row[event]
        if place[bar] == len(later):
            later.append(np.zeros(count))
        later[place[bar]][bar] = rates[event]
        place[bar] += 1
    return [in_gap, at_open, *later]


def _contract(config: PerpFuturesConfig, bars: Bars) -> PerpetualContract:
    contract = contract_for(config.symbol or bars.symbols[0], float(bars.open[0, 0]))
    names = {item.name for item in fields(PerpetualContract)} & {item.name for item in fields(config)} - {"symbol"}
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if "lot_step" in given:  # orders cannot be smaller than a lot, whatever the venue's own minimum was
        given["minimum_quantity"] = given["lot_step"]
    return replace(contract, **given)


def _contract_vector(config: PerpFuturesConfig, contract: PerpetualContract, episode: int, last: int) -> Floats:
    weights = parse_reward(config.reward)
    values = {
        kernel.LOT: contract.lot_step, kernel.TICK: contract.tick_size,
        kernel.MINIMUM_QUANTITY: contract.minimum_quantity, kernel.MAXIMUM_QUANTITY: contract.maximum_quantity,
        kernel.MINIMUM_NOTIONAL: contract.minimum_notional, kernel.TAKER_FEE: contract.taker_fee,
        kernel.CLEARANCE_FEE: contract.clearance_fee, kernel.BAND: contract.price_band,
        kernel.SPREAD: contract.half_spread, kernel.IMPACT: contract.impact_coefficient,
        kernel.PARTICIPATION: contract.participation, kernel.START_EQUITY: config.initial_equity,
        kernel.GIVEN_LEVERAGE: config.contract_leverage or 0.0, kernel.REBALANCE: config.rebalance_band,
        kernel.RUIN: config.ruin,
        kernel.DRAWDOWN_LIMIT: math.inf if config.maximum_drawdown is None else config.maximum_drawdown,
        kernel.GO_ON: float(config.continue_after_liquidation), kernel.EPISODE: episode, kernel.LAST_ROW: last,
        kernel.SHARPE_RATE: config.sharpe_rate, kernel.LOG_START: math.log(config.initial_equity),
        kernel.CROSS: float(config.margin_mode == "cross"), kernel.TIERED: float(config.liquidation == "tiered"),
        **{column: weights.get(name, 0.0) for name, column in kernel.WEIGHTS.items()},
    }  # fmt: skip
    head = [values[place] for place in range(kernel.TIERS)]
    return np.concatenate([np.array(head, np.float64), contract.tier_table.ravel()])


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not low <= value <= high
    ):
        raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
