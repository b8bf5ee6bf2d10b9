"""Contract rules of a spot portfolio as compiled scalar functions, and the frozen contract of a coin.

Every order is a market order for the difference to a target weight. With V the equity at the prices of the fill, w' the
drifted weights and w* the targets, what is left of V after all fills is the fixed point

    mu = 1 - sum_i c_i |w*_i mu - w'_i|,    c_i = fee + half spread + impact_i,    impact = Y sigma_d sqrt(d / V_d)

with d the value of the order, sigma_d the trailing daily volatility and V_d the trailing daily volume in quote
currency. c_i is taken of the order's value at the reference price (the open): fee, half spread and impact add up, so
that a fee is not also charged on the spread, 1e-7 of the value. Source of the fixed point: Jiang, Xu and Liang (2017),
"A Deep Reinforcement Learning Framework for the Financial Portfolio Management Problem", section 2.3; of the impact:
the square-root law (Almgren et al. 2005, "Direct Estimation of Equity Market Impact").
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ConfigError

Floats = NDArray[np.float64]

ROUNDS = 60  # of the fixed point; with costs below COST_BOUND 20 reach 1e-12
COST_BOUND = 0.1  # largest one-way cost of an order, share of its value
ORDER_STATUS = ("", "filled", "partial", "below minimum notional", "no volume", "too expensive", "no funds")
ORDER_NONE, ORDER_FILLED, ORDER_PARTIAL, REJECT_NOTIONAL, REJECT_NO_VOLUME, REJECT_COST, REJECT_FUNDS = range(7)

_told: set[str] = set()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpotContract:
    """Trading rules of one coin.

    Attributes:
        symbol: name. tick_size: price step. lot_step: quantity step.
        half_spread: share of the price, at least half a tick.
        minimum_notional: orders below it are skipped, quote currency.
        taker_fee: of each fill, share of its value. impact_coefficient: Y.
        participation: largest share of a bar's volume that an order takes.

    Raises:
        ConfigError: a number that is negative or not finite.
    """

    symbol: str
    tick_size: float
    lot_step: float
    half_spread: float
    minimum_notional: float = 5.0
    taker_fee: float = 0.001
    impact_coefficient: float = 1.0
    participation: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "symbol" and not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"{item.name}={value!r} of {self.symbol} must be a finite number of at least 0")


CONTRACTS = {
    "BTCUSDT": SpotContract("BTCUSDT", 0.01, 1e-5, 0.00005),
    "ETHUSDT": SpotContract("ETHUSDT", 0.01, 1e-4, 0.0001),
    "SOLUSDT": SpotContract("SOLUSDT", 0.01, 1e-3, 0.0003),
}
SMALL_COIN_SPREAD = 0.0004


def spot_contract(symbol: str, price: float) -> SpotContract:
    """Return the contract of a known coin, or one scaled to ``price`` (the first bar's open, so it is causal).

    An unknown coin gets a tick of about 1e-5 of its price, a lot worth 0.5 to 5 units of quote currency and the spread
    of a smaller coin.
    """
    known = CONTRACTS.get(symbol.upper().replace("-", "").replace("/", "").split(":")[0])
    if known is not None:
        return known
    if symbol not in _told:
        _told.add(symbol)
        _log.info(
            "symbol %r has no spot contract of its own (known: %s): tick and lot are scaled to its price; give "
            "lot_step, tick_size, half_spread or minimum_notional to choose",
            symbol, ", ".join(CONTRACTS),
        )  # fmt: skip
    return SpotContract(
        symbol, 10.0 ** (math.floor(math.log10(price)) - 5), 10.0 ** math.floor(math.log10(5.0 / price)),
        SMALL_COIN_SPREAD,
    )  # fmt: skip


# --- rules ------------------------------------------------------------------------------------------------------------


@compiled
def weight_scale(gross: float, limit: float) -> float:
    """Factor on all weights that brings gross exposure ``sum |w_i|`` down to ``limit``; 1 where it is within."""
    return limit / gross if gross > limit else 1.0


@compiled
def impact_slope(equity: float, daily_volatility: float, daily_value: float, coefficient: float) -> float:
    """Impact of an order of the size of the equity: ``Y sigma_d sqrt(V / V_d)``; 0 without a volume.

    That of an order worth the share x of the equity is ``slope sqrt(x)``.
    """
    if daily_value <= 0.0:
        return 0.0
    return coefficient * daily_volatility * math.sqrt(equity / daily_value)


@compiled
def largest_share(rate: float, slope: float, offered: float) -> float:
    """Largest order as a share of the equity: at most ``offered``, and so that its one-way cost is at most 10 %.

    ``rate`` is fee and half spread; 0 where they alone cost more.
    """
    room = COST_BOUND - rate
    if room < 0.0:
        return 0.0
    if slope <= 0.0:
        return offered
    return min(offered, (room / slope) * (room / slope))


@compiled
def remaining_share(targets: Floats, drifted: Floats, rates: Floats, slopes: Floats, largest: Floats) -> float:
    """The fixed point mu of a rebalancing of A coins from ``drifted`` to ``targets`` weights, iterated from 1.

    Args:
        targets, drifted: ``(A,)`` weights w* and w'. rates: ``(A,)`` fee and half spread.
        slopes: ``(A,)`` of the impact, see :func:`impact_slope`.
        largest: ``(A,)`` largest order as a share of the equity; 0 leaves a coin as it is.
    """
    mu = 1.0
    for _ in range(ROUNDS):
        cost = 0.0
        for i in range(targets.shape[0]):
            order = min(abs(targets[i] * mu - drifted[i]), largest[i])
            cost += order * (rates[i] + slopes[i] * math.sqrt(order))
        better = 1.0 - cost
        if abs(better - mu) < 1e-16:
            return better
        mu = better
    return mu


@compiled
def whole_lots(quantity: float, step: float) -> float:
    """Round a quantity of at least 0 toward zero to the lot step (0: as it is), compared in whole lots."""
    return math.floor(quantity / step + 1e-9) * step if step > 0.0 else quantity


@compiled
def borrow_interest(value: float, rate_per_year: float, years: float) -> float:
    """Simple interest on a borrowed value over one period; it is paid from cash at once, so that it accumulates."""
    return value * rate_per_year * years
