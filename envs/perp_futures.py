"""PerpFutures: the environment card, and how a configuration and its market become a game of this family."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np

from envs import perp_columns as columns
from envs import perp_kernel as kernel
from envs.encoding import encode
from envs.leverage import RegimeAwareLeverageController
from envs.perp_config import PerpFuturesConfig
from envs.perp_market import bars_of, features_of, market_matrix
from envs.perp_risk import PerpRisk
from envs.rewards import parse_reward
from envs.signals import observe
from envs.simulation import COST_SCALE, LEVERAGE, Game
from envs.splits import split_rows
from envs.trading_env import TradingEnv, TradingVectorEnv
from markets import features
from markets.bars import Bars
from markets.contracts import PerpetualContract, contract_for
from markets.errors import DataError, InSampleError
from markets.windows import Floats

TRAINING_EPISODE = 512  # bars


class PerpFuturesEnv(TradingEnv):
    """One linear USDT-margined perpetual: trade its exposure, one decision a bar.

    ## Action space
    ``Box(-1, 1, (1,), float32)``: target exposure in units of the leverage L, +1 is long L times equity, -1 short, 0
    flat. The order for the difference is sent when it is at least ``rebalance_band`` of equity (0 always closes), sized
    at the last mark, and fills at the **open of the next bar**.

    ## Observation space
    Flat float32 ``Box`` with finite bounds: 32 market features known at the close of bar t (:mod:`markets.features`,
    scaled on the training range only), then 9 account columns. ``env.get_wrapper_attr("observation_names")`` names
    them; ``regimegym envs --columns`` prints formula, unit, bounds and look-back of each. ``signals`` append their
    columns (``garch_direction``).

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
    ``leverage`` is the L of the next action; with ``leverage_control`` the smaller of ``requested_leverage`` and what
    the margin tiers allow, beside ``leverage_cut`` (:data:`envs.leverage.CUTS`) and ``leverage_fallbacks``;
    ``requested_action`` and ``action``, the one applied (clipped to the space); ``bad_actions``, how many of the
    episode were held because they were not finite (``on_bad_action="hold"``); ``reward_terms``; ``in_sample`` (the
    episode began in the fitted range); ``label`` (true regime of a synthetic bar, never in the observation).

    ## Arguments
    See :class:`envs.perp_config.PerpFuturesConfig`, and :class:`envs.trading_env.TradingEnv` for those of every family.

    ## Version history
    * v0: first version.
    """


class PerpFuturesVectorEnv(TradingVectorEnv):
    """N lanes of :class:`PerpFuturesEnv` over the same market, in one compiled call."""


class PerpFutures:
    """The family: what :mod:`envs.make` needs to build its environments."""

    config = PerpFuturesConfig
    scaler = features.FeatureScaler
    env = PerpFuturesEnv
    vector_env = PerpFuturesVectorEnv
    risk = PerpRisk
    asked_leverage = columns.ASKED_LEVERAGE  # column of the market matrix that a controller fills in

    @staticmethod
    def action_space(config: PerpFuturesConfig | None = None) -> gym.Space[Any]:
        """Target exposure in units of the leverage."""
        return gym.spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    @staticmethod
    def columns() -> list[tuple[str, str, str, str, str, str]]:
        """Describe every observation column: name, formula, unit, how it is served, bounds, look-back in bars."""
        market = [
            (f.name, f.formula, f.unit, "scaled" if f.scaled else "as is", f"{f.low:g} .. {f.high:g}", str(f.look_back))
            for f in features.FEATURES
        ]
        bounds = zip(columns.ACCOUNT_LOW, columns.ACCOUNT_HIGH, strict=True)
        account = [
            (name, formula, "account", "as is", f"{low:g} .. {high:g}", "-")
            for name, formula, (low, high) in zip(columns.ACCOUNT_NAMES, columns.ACCOUNT_FORMULAS, bounds, strict=True)
        ]
        return [*market, *account]

    @staticmethod
    def game(config: PerpFuturesConfig) -> Game:
        """Prepare market, features, contract and names for a configuration."""
        return _game(config)


def _game(config: PerpFuturesConfig) -> Game:
    bars = bars_of(config)
    scaler, table = features_of(config, bars)
    encoded = encode(config.encoded, bars, config.encoder, config.odds) if config.encoded else None
    signals = observe(config.signals, bars, split_rows(bars, "train", config.train_end, config.validation_end)[1])
    market, warm = market_matrix(bars)
    control = None
    if config.leverage_control:
        assert encoded is not None
        controller = RegimeAwareLeverageController.parse(config.leverage_control, config.leverage)
        control = controller.control(encoded)
        market[:, columns.ASKED_LEVERAGE] = control.requested
    first, stop = split_rows(bars, config.split, config.train_end, config.validation_end)
    tables = (table, *(part.table for part in (encoded, signals, control) if part is not None))
    warm = max(warm, *(one.valid_from for one in tables if one is not None))
    first, last = max(first, warm), stop - 1
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
    fitted |= {} if signals is None else signals.fitted
    for what, end in fitted.items():
        if evaluating and bars.close_time[first] <= end and not config.allow_in_sample:
            raise InSampleError(
                f"split {config.split!r} begins at {str(bars.close_time[first])[:16]}, not later than the fitted range "
                f"of the {what}, which ends at {str(end)[:16]}: choose split dates after it, or fit on earlier bars; "
                "allow_in_sample=True evaluates in-sample, and says so"
            )
    episode = length or last - first
    contract = _contract(config, bars)
    return Game(
        kernel=kernel.step,
        bars=bars,
        market=market,
        table=table.values,
        contract=_contract_vector(config, contract, episode, last),
        columns=columns.COLUMNS,
        action_columns=slice(columns.ACTION, columns.ACTION + 1),
        info=columns.INFO,
        state=columns.STATE,
        lively=columns.LIVELY,
        show_lively=columns.show_lively,
        flags=frozenset({"liquidated"}),
        terms={name: columns.TERM_COLUMNS[name] for name in parse_reward(config.reward)},
        names=(*table.names, *columns.ACCOUNT_NAMES),
        low=np.concatenate([table.low, np.array(columns.ACCOUNT_LOW, np.float32)]),
        high=np.concatenate([table.high, np.array(columns.ACCOUNT_HIGH, np.float32)]),
        first=first,
        last=last,
        episode=episode,
        random_start=random_start,
        fitted_until=max(fitted.values()),
        defaults={LEVERAGE: config.leverage, COST_SCALE: config.cost_scale},
        recipe=("PerpFutures", config),
        ledger=columns.LEDGER,
        encoded=encoded,
        signals=signals,
        control=control,
        randomised_costs=0.0 if evaluating else float(config.randomise_costs),
        details={
            "contract": contract,
            "scaler": scaler,
            "mark": "mark" if bars.mark_open is not None else "last",
            "encoder": None if encoded is None else {"name": encoded.name, "sha256": encoded.sha256},
            "signals": None if signals is None else signals.models,
            "leverage_control": None if control is None else control.specification,
        },
    )


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
        columns.LOT: contract.lot_step, columns.TICK: contract.tick_size,
        columns.MINIMUM_QUANTITY: contract.minimum_quantity, columns.MAXIMUM_QUANTITY: contract.maximum_quantity,
        columns.MINIMUM_NOTIONAL: contract.minimum_notional, columns.TAKER_FEE: contract.taker_fee,
        columns.CLEARANCE_FEE: contract.clearance_fee, columns.BAND: contract.price_band,
        columns.SPREAD: contract.half_spread, columns.IMPACT: contract.impact_coefficient,
        columns.PARTICIPATION: contract.participation, columns.START_EQUITY: config.initial_equity,
        columns.GIVEN_LEVERAGE: config.contract_leverage or 0.0, columns.REBALANCE: config.rebalance_band,
        columns.RUIN: config.ruin,
        columns.DRAWDOWN_LIMIT: math.inf if config.maximum_drawdown is None else config.maximum_drawdown,
        columns.GO_ON: float(config.continue_after_liquidation), columns.EPISODE: episode, columns.LAST_ROW: last,
        columns.SHARPE_RATE: config.sharpe_rate, columns.LOG_START: math.log(config.initial_equity),
        columns.CROSS: float(config.margin_mode == "cross"), columns.TIERED: float(config.liquidation == "tiered"),
        **{column: weights.get(name, 0.0) for name, column in columns.WEIGHTS.items()},
    }  # fmt: skip
    head = [values[place] for place in range(columns.TIERS)]
    return np.concatenate([np.array(head, np.float64), contract.tier_table.ravel()])
