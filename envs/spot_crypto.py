"""SpotCrypto: the environment card, and how a configuration and its market become a game of this family."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from envs import spot_columns as columns
from envs import spot_kernel as kernel
from envs.encoding import encode
from envs.rewards import parse_reward
from envs.signals import observe
from envs.simulation import COST_SCALE, LEVERAGE, Game
from envs.splits import split_rows
from envs.spot_config import SpotCryptoConfig
from envs.spot_market import bars_of, features_of, market_matrix
from envs.spot_risk import SpotRisk
from envs.trading_env import TradingEnv, TradingVectorEnv
from markets import spot_features
from markets.bars import YEAR, Bars
from markets.errors import DataError, InSampleError
from markets.spot import SpotContract, spot_contract
from markets.symbols import base_assets
from markets.windows import Floats

TRAINING_EPISODE = 512  # bars
ASSETS = ("BTC", "ETH", "SOL")  # of the default market


class SpotCryptoEnv(TradingEnv):
    """A portfolio of A coins and cash: one target weight a coin, one decision a bar.

    ## Action space
    ``Box(-1, 1, (A,), float32)``: the target weight of each coin, cash is the rest. Negative counts as 0, the vector is
    scaled down when its sum exceeds 1, all zeros is all cash. With ``allow_short`` negative weights sell short, and the
    vector is scaled down when the sum of absolute weights exceeds ``gross_limit`` (1.5). An order is sent where the
    weight at the open differs by at least ``rebalance_band`` (0.05) from its target (a target of 0 always sells), and
    fills at the **open of the next bar**, sized at that price.

    ## Observation space
    Flat float32 ``Box`` with finite bounds: 15 market features a coin and the clock, known at the close of bar t
    (:mod:`markets.spot_features`, scaled on the training range only), then weight and last target of each coin, cash,
    gross exposure, log equity, drawdown. ``env.get_wrapper_attr("observation_names")`` names them (``BTC_weight``); an
    encoder appends its columns for every coin (``ETH_jepa_00``, ``ETH_regime_0``), and ``signals`` theirs
    (``ETH_garch_direction``).

    ## Rewards
    ``ln(V' / V)`` of equity at the close by default (``profit``, net of all costs);
    ``reward="profit=1,sharpe=0.1,costs=0.5,drawdown=0.5"`` weighs named terms (:data:`envs.spot_columns.REWARDS`). The
    weighted terms are in ``info["reward_terms"]`` and add up to the reward.

    ## Market mechanics
    Order of events in a bar: interest on what is borrowed, over a gap of missing bars before it; the rebalancing at its
    open; interest over the bar; equity at its close. The equity that is left after a rebalancing is the fixed point of
    :mod:`markets.spot`, so that weights after it are the targets exactly, costs paid. An order costs fee, half spread
    and square-root impact of its value; it takes at most 10 % of the bar's volume and as much as costs at most 10 %,
    whole lots, and is skipped below the minimum notional. What adds to gross exposure is cut to what there is: cash is
    never borrowed without ``allow_short``. Short sales bring cash that earns nothing and pay 8 % per year on the value
    borrowed at the start of each period, each bar anew: it accumulates. Cash below zero is borrowed as well. There is
    no margin call inside a bar; an account that owes more than it has at a close is closed there, and the lender bears
    the rest (``cover``). No order fills inside a gap; bars that any coin lacks are no bars of the market.

    ## Starting state
    ``initial_equity`` (10,000 USDT) in cash. Training episodes have 512 bars and begin at random in the split;
    validation and test run through their whole split. ``randomise_costs`` draws a training episode's costs.
    ``reset(options={"start": time})`` begins at that bar.

    ## Episode end
    Terminated: equity below ``ruin`` of the start, or beyond ``maximum_drawdown``. Truncated: episode length or end of
    the split. ``info["ended_by"]`` says which.

    ## Info
    ``equity, cash``; ``position``: value of the coins, signed; ``mark``: price of the first coin; ``gross_exposure``;
    itemised for the step: change of equity = market_pnl - fee - spread_cost - impact_cost - borrow + cover; ``traded``
    (value); by coin ``BTC_requested_action, BTC_action`` (the target weight that was applied), ``BTC_price, BTC_weight,
    BTC_quantity, BTC_pnl`` (they add up to ``market_pnl``), ``BTC_fill_quantity, BTC_fill_price, BTC_order_code``
    (:data:`markets.spot.ORDER_STATUS`); ``bad_actions``: how many of the episode were held because a number was not
    finite (``on_bad_action="hold"``); ``cost_scale, reward_terms, time, in_sample, label`` as in every family.

    ## Arguments
    See :class:`envs.spot_config.SpotCryptoConfig`, and :class:`envs.trading_env.TradingEnv` for those of every family.

    ## Version history
    * v0: first version.
    """


class SpotCryptoVectorEnv(TradingVectorEnv):
    """N lanes of :class:`SpotCryptoEnv` over the same market, in one compiled call."""


class SpotCrypto:
    """The family: what :mod:`envs.make` needs to build its environments."""

    config = SpotCryptoConfig
    scaler = spot_features.SpotScaler
    env = SpotCryptoEnv
    vector_env = SpotCryptoVectorEnv
    risk = SpotRisk

    @staticmethod
    def action_space(config: SpotCryptoConfig) -> gym.Space[Any]:
        """Target weight of each coin of the bars."""
        return gym.spaces.Box(-1.0, 1.0, (len(bars_of(config).symbols),), dtype=np.float32)

    @staticmethod
    def columns() -> list[tuple[str, str, str, str, str, str]]:
        """Describe every observation column: name, formula, unit, how it is served, bounds, look-back in bars."""
        market = [
            (f.name, f.formula, f.unit, "scaled" if f.scaled else "as is", f"{f.low:g} .. {f.high:g}", str(f.look_back))
            for f in spot_features.features_of(ASSETS)
        ]
        account = [
            (name, formula, "account", "as is", f"{low:g} .. {high:g}", "-")
            for name, formula, low, high in columns.account_observation(ASSETS)
        ]
        return [*market, *account]

    @staticmethod
    def game(config: SpotCryptoConfig) -> Game:
        """Prepare market, features, contracts and names for a configuration."""
        return _game(config)


def _game(config: SpotCryptoConfig) -> Game:
    bars = bars_of(config)
    assets = base_assets(bars.symbols)
    scaler, table = features_of(config, bars)
    encoded = encode(config.encoded, bars, config.encoder, config.odds) if config.encoded else None
    signals = observe(config.signals, bars, split_rows(bars, "train", config.train_end, config.validation_end)[1])
    market, warm = market_matrix(bars, config.participation)
    first, stop = split_rows(bars, config.split, config.train_end, config.validation_end)
    warm = max(warm, table.valid_from, *(part.table.valid_from for part in (encoded, signals) if part is not None))
    first, last = max(first, warm), stop - 1
    evaluating = config.split != "train"
    length = config.episode_bars if config.episode_bars is not None else (0 if evaluating else TRAINING_EPISODE)
    if last - first < max(length, 1):
        raise DataError(
            f"split {config.split!r} has {max(last - first, 0)} bars to trade after {first - 1} rows of warm-up and "
            f"earlier splits; {max(length, 1)} are needed: pass more bars, other split dates or a smaller episode_bars"
        )
    fitted = {"feature scaler": scaler.train_end}
    if encoded is not None and encoded.table.train_end is not None:
        fitted[f"encoder {encoded.name!r}"] = encoded.table.train_end
    fitted |= {} if signals is None else signals.fitted
    for what, end in fitted.items():
        if evaluating and bars.close_time[first] <= end and not config.allow_in_sample:
            raise InSampleError(
                f"split {config.split!r} begins at {str(bars.close_time[first])[:16]}, not later than the fitted range "
                f"of the {what}, which ends at {str(end)[:16]}: choose split dates after it, or fit on earlier bars; "
                "allow_in_sample=True evaluates in-sample, and says so"
            )
    episode = length or last - first
    contracts = _contracts(config, bars)
    account = columns.account_observation(assets)
    names = columns.account_columns(assets)
    state = columns.state_columns(len(assets))
    asked = columns.BLOCKS + columns.REQUESTED * len(assets)
    return Game(
        kernel=kernel.step,
        bars=bars,
        market=market,
        table=table.values,
        contract=_contract_vector(config, bars, contracts, episode, last),
        columns=names,
        action_columns=slice(asked, asked + len(assets)),
        info=columns.shown_columns(len(assets)),
        state=state,
        lively=state,
        show_lively=columns.shower(names[state.start : state.stop]),
        flags=frozenset(),
        terms={name: columns.TERM_COLUMNS[name] for name in parse_reward(config.reward, columns.REWARDS)},
        names=(*table.names, *(name for name, *_ in account)),
        low=np.concatenate([table.low, np.array([low for *_, low, _ in account], np.float32)]),
        high=np.concatenate([table.high, np.array([high for *_, high in account], np.float32)]),
        first=first,
        last=last,
        episode=episode,
        random_start=config.random_start if config.random_start is not None else not evaluating,
        fitted_until=max(fitted.values()),
        defaults={LEVERAGE: config.exposure_limit, COST_SCALE: config.cost_scale},
        recipe=("SpotCrypto", config),
        ledger=columns.LEDGER,
        encoded=encoded,
        signals=signals,
        randomised_costs=0.0 if evaluating else float(config.randomise_costs),
        details={
            "contracts": contracts,
            "scaler": scaler,
            "encoder": None if encoded is None else {"name": encoded.name, "sha256": encoded.sha256},
            "signals": None if signals is None else signals.models,
        },
    )


def _contracts(config: SpotCryptoConfig, bars: Bars) -> tuple[SpotContract, ...]:
    """Return the contract of each coin, with what the configuration replaces."""
    found = (spot_contract(symbol, float(bars.open[0, place])) for place, symbol in enumerate(bars.symbols))
    return tuple(
        SpotContract(
            contract.symbol,
            contract.tick_size if config.tick_size is None else config.tick_size,
            contract.lot_step if config.lot_step is None else config.lot_step,
            contract.half_spread if config.half_spread is None else config.half_spread,
            config.minimum_notional, config.taker_fee, config.impact_coefficient, config.participation,
        )
        for contract in found
    )  # fmt: skip


def _contract_vector(
    config: SpotCryptoConfig, bars: Bars, contracts: tuple[SpotContract, ...], episode: int, last: int
) -> Floats:
    weights = parse_reward(config.reward, columns.REWARDS)
    values = {
        columns.ASSETS: len(contracts), columns.START_EQUITY: config.initial_equity,
        columns.LOG_START: math.log(config.initial_equity), columns.SHORT: float(config.allow_short),
        columns.GROSS_LIMIT: config.exposure_limit, columns.BORROW_RATE: config.borrow_rate,
        columns.YEARS: float(bars.interval / YEAR), columns.TAKER_FEE: config.taker_fee,
        columns.IMPACT: config.impact_coefficient, columns.MINIMUM_NOTIONAL: config.minimum_notional,
        columns.REBALANCE: config.rebalance_band, columns.RUIN: config.ruin,
        columns.DRAWDOWN_LIMIT: math.inf if config.maximum_drawdown is None else config.maximum_drawdown,
        columns.EPISODE: episode, columns.LAST_ROW: last, columns.SHARPE_RATE: config.sharpe_rate,
        **dict.fromkeys(columns.WEIGHTS.values(), 0.0),
        **{columns.WEIGHTS[columns.TERM_COLUMNS[name]]: weight for name, weight in weights.items()},
    }  # fmt: skip
    head = [values[place] for place in range(columns.COINS)]
    coins = [(contract.lot_step, contract.tick_size, contract.half_spread) for contract in contracts]
    return np.concatenate([np.array(head, np.float64), np.array(coins, np.float64).ravel()])
