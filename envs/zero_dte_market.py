"""How session bars become what the ZeroDTE step reads: features, and the market matrix with quotes of own strikes.

Every column is causal: known at the close of its bar, but for the five columns of the opening, which are known there
and which only the fills of that bar read.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs import zero_dte_columns as columns
from envs.zero_dte_config import ZeroDTEConfig
from envs.zero_dte_kernel import contract_quote
from markets import session_features, sources
from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ConfigError, DataError
from markets.option_clocks import deviation_on_variance_clock, remaining_share, trading_from_calendar_volatility
from markets.option_contract import SameDayOption
from markets.option_prices import CALL, PUT
from markets.option_quotes import at_the_money_deviation, smile_at, time_factor
from markets.options import nearest_strike
from markets.sessions import Sessions
from markets.table import CausalTable
from markets.windows import Floats

_log = logging.getLogger(__name__)


def bars_of(config: ZeroDTEConfig) -> Bars:
    """Return the bars of a configuration.

    Raises:
        ConfigError: they hold several symbols.
    """
    bars = config.bars if isinstance(config.bars, Bars) else sources.load(config.bars)
    if len(bars.symbols) != 1:
        raise ConfigError(f"ZeroDTE trades options on one symbol; the bars hold {', '.join(bars.symbols)}")
    return bars


def features_of(
    config: ZeroDTEConfig, bars: Bars, train_stop: int
) -> tuple[session_features.SessionScaler, CausalTable]:
    """Return the scaler, fitted on the sessions before row ``train_stop`` unless given, and the served table."""
    values = session_features.raw(bars)
    scaler = _given_scaler(config) or session_features.SessionScaler.fit(bars, values, train_stop)
    return scaler, session_features.table(bars, scaler, values)


def _given_scaler(config: ZeroDTEConfig) -> session_features.SessionScaler | None:
    if config.scaler is None or isinstance(config.scaler, session_features.SessionScaler):
        return config.scaler
    try:
        return session_features.SessionScaler.from_json(json.loads(Path(config.scaler).read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scaler={config.scaler!r} cannot be read: {error}") from error


def market_matrix(config: ZeroDTEConfig, bars: Bars, found: Sessions, contract_vector: Floats) -> NDArray[np.float64]:
    """Build the ``(T, M)`` matrix the kernel reads; rows outside whole sessions are 0.

    Raises:
        DataError: the bars have no ``previous_vix``, or no ``atm_volatility`` where ``iv="grid"`` asks for one.
    """
    if bars.previous_vix is None:
        raise DataError(
            "column 'previous_vix' is missing: iv='vix' needs the previous close of a volatility index; "
            "give the source a table of it (vix=...)"
        )
    if config.iv == "grid" and bars.atm_volatility is None:
        raise DataError(
            "column 'atm_volatility' is missing: iv='grid' needs a session's option mids; give the source a table of "
            "them (grid=...), or pass iv='vix'"
        )
    contract: SameDayOption = config.contract
    known = np.array(bars.atm_volatility[:, 0]) if config.iv == "grid" and bars.atm_volatility is not None else None
    volatility = np.array(bars.previous_vix[:, 0]) * config.vix_ratio / 100.0  # on the calendar clock
    out = np.zeros((len(bars), columns.MARKET_WIDTH))
    out[:, columns.OPEN], out[:, columns.CLOSE] = bars.open[:, 0], bars.close[:, 0]
    slopes, curvatures = contract.convex_smile
    parameters = np.array([
        contract.variance_premium, *slopes, *curvatures, contract.spread_opening, contract.spread_early,
        contract.spread_closing, contract.strike_spacing, float(config.strike_offset), config.cost_scale,
    ])  # fmt: skip
    for first, rows in zip(found.first.tolist(), found.rows.tolist(), strict=True):
        own = np.full(rows, np.nan) if known is None else known[first : first + rows]
        _fill_session(
            out[first : first + rows], volatility[first], own, remaining_share(rows), parameters, contract_vector
        )
        out[first : first + rows, columns.LAST_OF_SESSION] = first + rows - 1
    return out


def count_volatilities(config: ZeroDTEConfig, bars: Bars, found: Sessions, chosen: NDArray[np.int64]) -> dict[str, int]:
    """Say how many of the ``chosen`` sessions take their volatility from where, and warn of those that fall back."""
    count = 0
    if config.iv == "grid" and bars.atm_volatility is not None:
        ends = (found.first + found.rows)[chosen]
        spans = zip(found.first[chosen].tolist(), ends.tolist(), strict=True)
        count = sum(bool(np.isfinite(bars.atm_volatility[first:end, 0]).any()) for first, end in spans)
        if count < len(chosen):
            _log.warning(
                "%s: %d of %d sessions of split %r have no atm_volatility and are priced with iv='vix'",
                bars.source, len(chosen) - count, len(chosen), config.split,
            )  # fmt: skip
    return {"grid": count, "vix": len(chosen) - count}


@compiled
def _fill_session(
    market: Floats, calendar_volatility: float, known: Floats, share: Floats, p: Floats, contract: Floats
) -> None:
    """Fill the rows of one session: one volatility is known before its opening, and from some bar on a better one.

    ``known (M,)``: what each bar knows at its close, on the variance clock, NaN for nothing new. A bar's opening knows
    what the close before it did.
    """
    bars = float(market.shape[0])
    volatility = trading_from_calendar_volatility(calendar_volatility)  # at the open that of the variance clock as well
    premium = p[0]
    for m in range(market.shape[0]):
        row = market[m]
        left = bars - 1.0 - m
        row[columns.MINUTE], row[columns.LEFT], row[columns.SESSION_BARS] = m, left, bars
        row[columns.OPEN_DEVIATION] = at_the_money_deviation(
            deviation_on_variance_clock(volatility, share[m], bars), premium
        )
        row[columns.MINUTE_DEVIATION] = row[columns.OPEN_DEVIATION] * math.sqrt(1.0 - share[m + 1] / share[m])
        if math.isfinite(known[m]):
            volatility, premium = known[m], 0.0  # it is the market's own, no forecast
        row[columns.DEVIATION] = at_the_money_deviation(
            deviation_on_variance_clock(volatility, share[m + 1], bars), premium
        )
        row[columns.OPEN_SLOPE], row[columns.SLOPE] = (
            smile_at(left + 1.0, bars, p[1], p[2]),
            smile_at(left, bars, p[1], p[2]),
        )
        row[columns.OPEN_CURVATURE] = smile_at(left + 1.0, bars, p[3], p[4])
        row[columns.CURVATURE] = smile_at(left, bars, p[3], p[4])
        row[columns.OPEN_FACTOR] = p[10] * time_factor(left + 1.0, bars, p[5], p[6], p[7])
        row[columns.FACTOR] = p[10] * time_factor(left, bars, p[5], p[6], p[7])
        spot = row[columns.CLOSE]
        for right in (CALL, PUT):
            strike = max(nearest_strike(spot, p[8], right * p[9]), p[8])
            _, bid, ask = contract_quote(
                right, strike, spot, row[columns.DEVIATION], row[columns.SLOPE], row[columns.CURVATURE],
                row[columns.FACTOR], contract,
            )  # fmt: skip
            place = columns.CALL_STRIKE if right > 0.0 else columns.PUT_STRIKE
            row[place], row[place + 1], row[place + 2] = strike, bid, ask
