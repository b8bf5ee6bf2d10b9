"""Perpetual contracts: venue parameters and margin tiers per symbol, as configuration."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError

_log = logging.getLogger(__name__)
_told: set[str] = set()  # symbols whose missing contract was said

Tier = tuple[float, float, float, float]  # notional up to, maximum leverage, maintenance rate, maintenance amount


@dataclass(frozen=True)
class PerpetualContract:
    """Parameters of one linear perpetual; prices and notionals in the quote currency, quantities in base units.

    Raises:
        ConfigError: a value out of range, or tiers whose maintenance margin is not continuous.
    """

    symbol: str
    tick_size: float
    lot_step: float
    minimum_quantity: float
    maximum_quantity: float  # of one market order
    minimum_notional: float
    tiers: tuple[Tier, ...]
    maker_fee: float = 0.0002
    taker_fee: float = 0.0005
    clearance_fee: float = 0.0125  # of liquidated notional
    price_band: float = 0.05  # limit prices and market orders, from mark
    half_spread: float = 0.00005
    impact_coefficient: float = 1.0
    participation: float = 0.10  # of a bar's volume
    funding_interval_hours: float = 8.0
    funding_interest: float = 0.0001
    funding_clamp: float = 0.0005
    funding_cap: float = 0.003

    def __post_init__(self) -> None:
        for name in ("tick_size", "lot_step", "minimum_quantity", "minimum_notional", "maker_fee", "taker_fee",
                     "clearance_fee", "half_spread", "impact_coefficient"):  # fmt: skip
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0) and not (name == "maker_fee" and -0.01 <= value < 0):
                raise ConfigError(f"{name}={value!r} of {self.symbol} must be a number of at least 0")
        for name in ("maker_fee", "taker_fee", "clearance_fee", "half_spread", "participation", "price_band"):
            if getattr(self, name) > 1.0:
                raise ConfigError(f"{name}={getattr(self, name)!r} of {self.symbol} is a fraction, at most 1")
        for name in ("maximum_quantity", "participation", "price_band"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}={getattr(self, name)!r} of {self.symbol} must be positive")
        check_tiers(self.tiers)

    @property
    def tier_table(self) -> NDArray[np.float64]:
        """Tiers as a ``(K, 4)`` float64 array for the compiled rules."""
        return np.array(self.tiers, dtype=np.float64)


def check_tiers(tiers: tuple[Tier, ...]) -> None:
    """Raise unless caps rise, leverage falls and ``amount_{k+1} = amount_k + cap_k (rate_{k+1} - rate_k)``."""
    if not tiers or tiers[0][3] != 0.0:
        raise ConfigError("margin tiers need at least one row, and the amount of the first is 0")
    for k, (low, high) in enumerate(itertools.pairwise(tiers)):
        if not (low[0] < high[0] and low[1] >= high[1] and low[2] < high[2]):
            raise ConfigError(
                f"margin tier {k + 2} must have a higher cap and rate and no higher leverage than tier {k + 1}"
            )
        amount = low[3] + low[0] * (high[2] - low[2])
        if not math.isclose(amount, high[3], rel_tol=1e-9, abs_tol=1e-6):
            raise ConfigError(f"margin tier {k + 2}: amount {high[3]} must be {amount} for a continuous margin")


def _tiers(*rows: tuple[float, float, float], amount: float = 0.0) -> tuple[Tier, ...]:
    """Fill in the amounts that make maintenance margin continuous."""
    table: list[Tier] = []
    for cap, leverage, rate in rows:
        if table:
            amount = round(amount + table[-1][0] * (rate - table[-1][2]), 6)
        table.append((cap, leverage, rate, amount))
    return tuple(table)


_MAJOR = ((50e3, 125, 0.004), (600e3, 100, 0.005), (3e6, 75, 0.0065), (12e6, 50, 0.01))
BTC_TIERS = _tiers(
    *_MAJOR, (70e6, 25, 0.02), (100e6, 20, 0.025), (230e6, 10, 0.05), (480e6, 5, 0.10), (600e6, 4, 0.125),
    (800e6, 3, 0.15), (1200e6, 2, 0.25), (1800e6, 1, 0.50),
)  # fmt: skip
ETH_TIERS = _tiers(*_MAJOR, (50e6, 25, 0.02), (65e6, 20, 0.025), (150e6, 10, 0.05))
ALT_TIERS = _tiers((20e3, 100, 0.005), (100e3, 75, 0.0065), (800e3, 50, 0.01), (4e6, 25, 0.02))

CONTRACTS = {
    "BTCUSDT": PerpetualContract("BTCUSDT", 0.10, 0.001, 0.001, 120.0, 100.0, BTC_TIERS),
    "ETHUSDT": PerpetualContract("ETHUSDT", 0.01, 0.001, 0.001, 2_000.0, 20.0, ETH_TIERS),
    "SOLUSDT": PerpetualContract("SOLUSDT", 0.01, 0.01, 0.01, 50_000.0, 5.0, ALT_TIERS),
}


def contract_for(symbol: str, price: float) -> PerpetualContract:
    """Return the contract of a known symbol, or one scaled to ``price`` (the first bar's open, so it is causal).

    An unknown symbol gets a tick of about 1e-5 of the price, a lot worth 5 to 50 units of quote currency, a minimum
    notional of 5 and the tier table of a smaller coin.
    """
    known = CONTRACTS.get(symbol.upper().replace("-", "").replace("/", "").split(":")[0])
    if known is not None:
        return known
    if symbol not in _told:
        _told.add(symbol)
        _log.info(
            "symbol %r has no contract of its own (known: %s): tick, lot and minimum are scaled to its price, margin "
            "tiers are a smaller coin's; give lot_step, tick_size, minimum_notional or another symbol to choose",
            symbol, ", ".join(CONTRACTS),
        )  # fmt: skip
    tick = 10.0 ** (math.floor(math.log10(price)) - 5)
    lot = 10.0 ** math.floor(math.log10(50.0 / price))
    return PerpetualContract(symbol, tick, lot, lot, max(lot, 5e6 / price), 5.0, ALT_TIERS)
