"""ZeroDTE: the environment card, and how a configuration and its market become a game of this family."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs import zero_dte_columns as columns
from envs import zero_dte_kernel as kernel
from envs.encoding import encode
from envs.rewards import parse_reward
from envs.signals import observe
from envs.simulation import COST_SCALE, LEVERAGE, Game
from envs.splits import split_sessions
from envs.trading_env import TradingEnv, TradingVectorEnv
from envs.zero_dte_config import ZeroDTEConfig
from envs.zero_dte_market import bars_of, count_volatilities, features_of, market_matrix
from envs.zero_dte_risk import ZeroDTERisk
from markets import session_features
from markets.errors import DataError, InSampleError
from markets.sessions import sessions_of
from markets.windows import Floats


class TradingAction(IntEnum):
    """What an action's first number means."""

    HOLD = kernel.HOLD
    BUY_CALL = kernel.BUY_CALL
    BUY_PUT = kernel.BUY_PUT
    CLOSE_POSITION = kernel.CLOSE_POSITION


class ZeroDTEEnv(TradingEnv):
    """Same-day options on one ETF: buy a call or a put, close it; one decision a minute, one session an episode.

    ## Action space
    ``Discrete(4)`` of :class:`TradingAction`: HOLD, BUY_CALL, BUY_PUT, CLOSE_POSITION. ``actions="sized"``:
    ``MultiDiscrete([4, 4])``, whose second number is the share of the risk budget of a purchase, 25, 50, 75 or 100 %.
    A purchase takes the strike nearest to the last price (``strike_offset`` strikes further out of the money), and
    ``floor(2 % of cash / (100 ask))`` contracts (``contracts``: a fixed number). The order is a limit pegged to the mid
    of the quote at the close of bar t; it works from the **open of bar t+1** on, for ``order_life`` minutes, and is
    then pegged again ``order_repegs`` times. One contract, one order at a time: HOLD lets it work, CLOSE_POSITION
    withdraws a purchase and sells what of it has been filled.

    ``action_masks()`` says which actions are legal; sb3-contrib's MaskablePPO finds it through ``gym.make``,
    ``Monitor`` and ``DummyVecEnv``, and agents take the masks as ``predict(..., action_masks=...)``. One that is not
    legal is held, counted in ``info["illegal_actions"]``, and ``info["order_code"]`` says why
    (:data:`markets.options.ORDER_STATUS`).

    ## Observation space
    Flat float32 ``Box`` with finite bounds: the 11 features of a session's minute (:mod:`markets.session_features`,
    scaled on the training sessions only), then 14 account columns: deviation to the close, contract, order, bounded
    greeks, result, times. ``env.get_wrapper_attr("observation_names")`` names them.

    ## Rewards
    ``ln(V' / V)`` of equity with the option at the model's mid by default; see :mod:`envs.rewards`.

    ## Market mechanics
    The implied volatility of a session is the index's close before it x 1.29 / 100, on the calendar clock, converted to
    the variance clock, with a fixed smile; ``iv="grid"`` takes the one of the session's own option mids from the bar on
    at whose close it is known. Quotes lie around the model's mid on the cent grid. An order that was sent
    for bar t+1 meets the quote at its opening: at or through the opposite side it fills there at once, else with a
    probability that falls with the distance and is selected against by the minute's move; an order that has rested
    fills at its own limit. ``fill="market"`` takes the opposite quote. No opening order is accepted later than 30
    minutes before the close of **that session**: one that was sent by then works on to the end of its life and is not
    pegged again; from 15 minutes before it on the broker sells what is held at the bid,
    at most ``offered`` contracts a minute. What nobody buys, and with ``forced_exit=None`` whatever is held, settles at
    the close: its payoff in cash, or with ``settlement="physical"`` shares for calls that the cash pays for; who cannot
    is closed 15 minutes before.

    ## Starting state
    100,000 USD at the close of a session's first bar. Training draws a session at random; validation and test play
    theirs one after the other. ``reset(options={"start": time})`` begins the first session that opens at or after it.
    The seed of the session's fills is drawn from the lane's generator at the reset.

    ## Episode end
    Terminated at the session's close, in the step that settles.

    ## Info
    ``mark`` (of the underlying), ``minutes_left``, ``entry_minutes_left`` and ``exit_minutes_left`` to the cut-offs;
    ``cash, position`` (contracts), ``right`` (1 call, -1 put), ``strike, entry_price, premium`` (model's mid),
    ``bid, ask, delta``, ``gamma`` and ``theta`` in their bounded forms, ``theta_minute`` (USD per share and trading
    minute), ``shares``; ``order_side, order_quantity,
    order_limit, order_age``; itemised for the step: change of equity = ``market_pnl - fee - spread_cost - lapse``
    (``lapse``: value below the exercise threshold that expires); ``fill_quantity, fill_price, fill_code``
    (:data:`markets.option_fills.WORK_STATUS`), ``forced``, ``settled_quantity``, ``settlement``; ``requested_action``
    and ``action``, the one applied; ``bad_actions``, ``illegal_actions`` of the episode; ``reward_terms``, ``time``,
    ``in_sample``, ``label`` as in every family.

    ## Arguments
    See :class:`envs.zero_dte_config.ZeroDTEConfig`, and :class:`envs.trading_env.TradingEnv` for those of every family.

    ## Version history
    * v0: first version.
    """

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now: ``(4,)`` bool, ``(8,)`` with sizes, actions first."""
        masks = self.simulation.action_masks()
        assert masks is not None
        return masks[0]


class ZeroDTEVectorEnv(TradingVectorEnv):
    """N lanes of :class:`ZeroDTEEnv` over the same market, in one compiled call."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, in every lane: ``(N, 4)`` bool, ``(N, 8)`` with sizes."""
        masks = self.simulation.action_masks()
        assert masks is not None
        return masks


class ZeroDTE:
    """The family: what :mod:`envs.make` needs to build its environments."""

    config = ZeroDTEConfig
    scaler = session_features.SessionScaler
    env = ZeroDTEEnv
    vector_env = ZeroDTEVectorEnv
    risk = ZeroDTERisk

    @staticmethod
    def action_space(config: ZeroDTEConfig) -> gym.Space[Any]:
        """Four actions, or four actions and four sizes."""
        count = len(TradingAction)
        return gym.spaces.Discrete(count) if config.actions == "discrete" else _sized()

    @staticmethod
    def columns() -> list[tuple[str, str, str, str, str, str]]:
        """Describe every observation column: name, formula, unit, how it is served, bounds, look-back in bars."""
        market = [
            (f.name, f.formula, f.unit, "scaled" if f.scaled else "as is", f"{f.low:g} .. {f.high:g}", str(f.look_back))
            for f in session_features.FEATURES
        ]
        account = [
            (name, formula, "account", "as is", f"{low:g} .. {high:g}", "-")
            for name, formula, low, high in columns.ACCOUNT
        ]
        return [*market, *account]

    @staticmethod
    def game(config: ZeroDTEConfig) -> Game:
        """Prepare market, features, contract and names for a configuration."""
        return _game(config)


def _sized() -> gym.Space[Any]:
    return gym.spaces.MultiDiscrete([len(TradingAction), kernel.SIZES])


def _game(config: ZeroDTEConfig) -> Game:
    bars = bars_of(config)
    every = sessions_of(bars)
    found = every.whole(bars.source)
    if not len(found):
        raise DataError(f"{bars.source} has no whole session to play; {len(every)} are unfinished")
    training = split_sessions(bars, found, "train", config.train_end, config.validation_end)
    train_stop = int((found.first + found.rows)[training[-1]])
    scaler, table = features_of(config, bars, train_stop)
    encoded = encode(config.encoded, bars, config.encoder, config.odds) if config.encoded else None
    signals = observe(config.signals, bars, train_stop, sessions=True)
    chosen = split_sessions(bars, found, config.split, config.train_end, config.validation_end)
    warm = max(table.valid_from, *(part.table.valid_from for part in (encoded, signals) if part is not None), 0)
    chosen = chosen[found.first[chosen] >= warm]
    if not len(chosen):
        raise DataError(f"split {config.split!r} has no session after {warm} rows of warm-up: pass more bars")
    starts = found.first[chosen]
    ends = starts + found.rows[chosen] - 1
    evaluating = config.split != "train"
    fitted = {"feature scaler": scaler.train_end}
    if encoded is not None and encoded.table.train_end is not None:
        fitted[f"encoder {encoded.name!r}"] = encoded.table.train_end
    fitted |= {} if signals is None else signals.fitted
    for what, end in fitted.items():
        if evaluating and bars.close_time[starts[0]] <= end and not config.allow_in_sample:
            raise InSampleError(
                f"split {config.split!r} begins at {bars.close_time[starts[0]]}, not later than the fitted range of "
                f"the {what}, which ends at {end}; pass allow_in_sample=True to evaluate in-sample"
            )
    contract = _contract_vector(config)
    sized = config.actions == "sized"
    return Game(
        kernel=kernel.step,
        bars=bars,
        market=market_matrix(config, bars, found, contract),
        table=table.values,
        contract=contract,
        columns=columns.COLUMNS,
        action_columns=slice(columns.ACTION, columns.ACTION + (2 if sized else 1)),
        info=columns.INFO,
        state=columns.STATE,
        lively=columns.LIVELY,
        show_lively=columns.show_lively,
        flags=frozenset({"forced"}),
        terms={name: columns.TERM_COLUMNS[name] for name in parse_reward(config.reward)},
        names=(*table.names, *columns.ACCOUNT_NAMES),
        low=np.concatenate([table.low, np.array([low for *_, low, _ in columns.ACCOUNT], np.float32)]),
        high=np.concatenate([table.high, np.array([high for *_, high in columns.ACCOUNT], np.float32)]),
        first=int(starts[0]),
        last=int(ends[-1]),
        episode=int(found.rows[chosen].max()) - 1,
        random_start=config.random_start if config.random_start is not None else not evaluating,
        fitted_until=max(fitted.values()),
        defaults={LEVERAGE: 1.0, COST_SCALE: config.cost_scale, columns.NEXT_FILL_SEED: -1.0},
        recipe=("ZeroDTE", config),
        ledger=columns.LEDGER,
        encoded=encoded,
        signals=signals,
        starts=starts,
        lengths=ends - starts,
        seeded=columns.NEXT_FILL_SEED,
        choices=(len(TradingAction), kernel.SIZES) if sized else (len(TradingAction),),
        choice_names=tuple(action.name.lower() for action in TradingAction),
        costs_in_market=True,
        masks=columns.SIZED_MASKS if sized else columns.MASKS,
        details={
            "contract": config.contract,
            "scaler": scaler,
            "sessions": len(chosen),
            "unfinished_sessions": len(every) - len(found),
            "volatility_from": count_volatilities(config, bars, found, chosen),
            "optimistic": config.contract.is_optimistic,
            "encoder": None if encoded is None else {"name": encoded.name, "sha256": encoded.sha256},
            "signals": None if signals is None else signals.models,
        },
    )


def _contract_vector(config: ZeroDTEConfig) -> Floats:
    contract, weights = config.contract, parse_reward(config.reward)
    values = {
        columns.MULTIPLIER: contract.multiplier, columns.TICK: contract.tick, columns.CONTRACT_FEE: contract.fee,
        columns.ENTRY_CUT_OFF: contract.entry_cut_off, columns.FORCED_EXIT: contract.forced_exit_minutes,
        columns.PHYSICAL: float(contract.settlement == "physical"), columns.EXERCISE: contract.exercise_threshold,
        columns.FILL_MODE: contract.fill_mode, columns.RATE: contract.fill_rate, columns.DECAY: contract.fill_decay,
        columns.SELECTION: contract.selection, columns.SELECTION_LOWEST: contract.selection_lowest,
        columns.SELECTION_HIGHEST: contract.selection_highest, columns.LIFE: contract.order_life,
        columns.ALLOWED_REPEGS: contract.order_repegs, columns.OFFERED: contract.offered, columns.RISK: config.risk,
        columns.CONTRACTS: float(config.contracts or 0),
        columns.SIZED: float(config.actions == "sized"), columns.START_EQUITY: config.initial_equity,
        columns.LOG_START: math.log(config.initial_equity), columns.SHARPE_RATE: config.sharpe_rate,
        **{column: weights.get(name, 0.0) for name, column in columns.WEIGHTS.items()},
    }  # fmt: skip
    head = [values[place] for place in range(columns.SPREADS)]
    return np.concatenate([np.array(head, np.float64), contract.spread_rows.ravel()])
