"""The contract of same-day options on one ETF: venue, broker and model parameters, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, unknown
from markets.option_clocks import EARLY_SESSION
from markets.option_fills import FILL_MODES, OPTIMISTIC_FILLS
from markets.option_quotes import CONVEX_UP_TO, convex_share

SETTLEMENTS = ("cash_equivalent", "physical")

SpreadRow = tuple[float, float]  # premium per share, spread in ticks


@dataclass(frozen=True, kw_only=True)
class SameDayOption:
    """Parameters of the same-day options on one ETF; every default is a default of SPY and of one broker.

    **Calibration.** The smile's slope and curvature are the least-squares fit of its shape to the median implied
    volatilities, over the at-the-money one, of SPXW same-day options at 11 values of z in -2.5 .. 2.5, November 2023 to
    June 2025, at 10:00 and at 14:00 (largest residual 0.033 and 0.019); a study that is tested on a part of this sample
    can pass the fit to what lies before September 2024, slope (-0.0461, -0.0404) and curvature (0.0317, 0.0496). The
    spread table holds medians of SPXW quotes of January to March 2025 between the 15th minute and 45 minutes before the
    close, by premium, a tenth of the index figures. The same quotes' means over the table are 0.7 to 2.0 in the first
    five minutes, 0.7 to 2.2 until the 15th (cheap to deep in the money) and 2.2 to 3.6 in the last five: the factors of
    the time of day lie inside. SPXW stands in for SPY: ten times the notional, with ticks worth half a cent to a cent
    of SPY. ``variance_premium`` 0: realised over implied deviation of these sessions is 1.03 to 1.15. Fees: regulatory,
    clearing and sales activity fees per contract and side of March 2025. Intensity and selection of fills, and the
    contracts a minute offers, are modelling choices.

    Attributes:
        symbol: of the underlying.
        multiplier: shares per contract.
        tick: price step of every series.
        strike_spacing: distance of the strikes.
        fee: USD per contract and side.
        entry_cut_off: minutes before the close of the last opening decision.
        forced_exit: minutes before the close at which what is open is closed, or None: held to settlement.
        settlement: ``"cash_equivalent"`` or ``"physical"``.
        exercise_threshold: in the money by this much is exercised.
        smile_slope, smile_curvature: b and c at 10:00 and at 14:00 (:func:`markets.option_quotes.smile_at`).
        variance_premium: the at-the-money variance over the forecast one, minus 1
            (:func:`markets.option_quotes.at_the_money_deviation`).
        spread_table: rows of premium and spread in ticks (cents of SPY), :func:`markets.option_quotes.base_spread`.
        spread_opening, spread_early, spread_closing: factors for the first 5 minutes, until the 15th, at the close.
        fill: ``"limit"``, ``"market"`` or ``"mid_optimistic"``, which no report accepts (``is_optimistic``).
        fill_rate, fill_decay: A per minute and kappa of the fill intensity.
        selection, selection_lowest, selection_highest: strength and caps of adverse selection.
        order_life: minutes until an order is pegged again or cancelled.
        order_repegs: how often it is pegged again.
        offered: contracts that a minute fills at most.

    Raises:
        ConfigError: a value out of range; the message names field and value and the nearest valid choice.
    """

    symbol: str = "SPY"
    multiplier: float = 100.0
    tick: float = 0.01
    strike_spacing: float = 1.0
    fee: float = 0.06
    entry_cut_off: float = 30.0
    forced_exit: float | None = 15.0
    settlement: str = "cash_equivalent"
    exercise_threshold: float = 0.01
    smile_slope: tuple[float, float] = (-0.0564, -0.0494)
    smile_curvature: tuple[float, float] = (0.0339, 0.0523)
    variance_premium: float = 0.0
    spread_table: tuple[SpreadRow, ...] = ((0.5, 1.0), (1.5, 2.0), (3.5, 5.0), (7.5, 7.0), (15.0, 19.0))
    spread_opening: float = 1.5
    spread_early: float = 1.25
    spread_closing: float = 3.0
    fill: str = "limit"
    fill_rate: float = 0.9
    fill_decay: float = 1.2
    selection: float = 2.0
    selection_lowest: float = 0.2
    selection_highest: float = 3.0
    order_life: float = 3.0
    order_repegs: float = 1.0
    offered: float = 100.0

    def __post_init__(self) -> None:
        if self.settlement not in SETTLEMENTS:
            raise unknown("settlement", self.settlement, SETTLEMENTS)
        if self.fill not in FILL_MODES:
            raise unknown("fill", self.fill, FILL_MODES)
        for name, (low, high) in _RANGES.items():
            check_number(name, getattr(self, name), low, high)
        for name in _WHOLE:
            value = getattr(self, name)
            if value != math.floor(value):
                raise ConfigError(f"{name}={value!r} must be a whole number: {math.floor(value + 0.5)}")
        if self.forced_exit is not None:
            check_number("forced_exit", self.forced_exit, 0.0, EARLY_SESSION - 2.0, " or None to hold to settlement")
            if self.forced_exit > self.entry_cut_off:
                raise ConfigError(
                    f"forced_exit={self.forced_exit!r} minutes before the close may not lie before "
                    f"entry_cut_off={self.entry_cut_off!r}, or what is opened is closed at once: at most "
                    f"{self.entry_cut_off!r}"
                )
        if self.selection_lowest > self.selection_highest:
            raise ConfigError(
                f"selection_lowest={self.selection_lowest!r} may be at most "
                f"selection_highest={self.selection_highest!r}"
            )
        for name in ("smile_slope", "smile_curvature"):
            pair = getattr(self, name)
            if len(pair) != 2:
                raise ConfigError(f"{name}={pair!r} needs two numbers: its value at 10:00 and at 14:00")
            for value in pair:
                check_number(name, value, -1.0, 1.0)
        check_spread_table(self.spread_table)

    @property
    def is_optimistic(self) -> bool:
        """True when orders fill as nobody's orders do; a report of results has to refuse this contract."""
        return self.fill in OPTIMISTIC_FILLS

    @property
    def fill_mode(self) -> int:
        """Number of the fill mode for the compiled rules (``FILL_LIMIT`` and its sisters)."""
        return FILL_MODES[self.fill]

    @property
    def forced_exit_minutes(self) -> float:
        """``forced_exit`` for the compiled rules, -1 for none."""
        return -1.0 if self.forced_exit is None else float(self.forced_exit)

    @property
    def spread_rows(self) -> NDArray[np.float64]:
        """Spread table as a ``(K, 2)`` float64 array for the compiled rules."""
        return np.array(self.spread_table, dtype=np.float64)

    @property
    def convex_smile(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Slope and curvature, each at 10:00 and 14:00, reduced until no butterfly costs less than nothing.

        They are reduced by one share for the whole day. It holds for every time of day and at-the-money deviations up
        to 0.25.
        """
        slopes, curvatures = self.smile_slope, self.smile_curvature
        shares = [
            convex_share(
                slopes[1] + w * (slopes[0] - slopes[1]),
                curvatures[1] + w * (curvatures[0] - curvatures[1]),
                CONVEX_UP_TO,
            )
            for w in np.linspace(0.0, 1.0, 25).tolist()
        ]
        share = min(shares)
        return (share * slopes[0], share * slopes[1]), (share * curvatures[0], share * curvatures[1])


_RANGES = {  # field: lowest and highest value
    "multiplier": (1.0, 1e6),
    "tick": (1e-4, 1.0),
    "strike_spacing": (1e-2, 1e3),
    "fee": (0.0, 100.0),
    "entry_cut_off": (0.0, EARLY_SESSION - 2.0),
    "exercise_threshold": (0.0, 10.0),
    "variance_premium": (-0.9, 10.0),
    "spread_opening": (0.1, 100.0),
    "spread_early": (0.1, 100.0),
    "spread_closing": (0.1, 100.0),
    "fill_rate": (0.0, 1e3),
    "fill_decay": (0.0, 1e3),
    "selection": (0.0, 100.0),
    "selection_lowest": (0.0, 1e3),
    "selection_highest": (0.0, 1e3),
    "order_life": (1.0, 390.0),
    "order_repegs": (0.0, 390.0),
    "offered": (1.0, 1e9),
}
_WHOLE = ("order_life", "order_repegs", "entry_cut_off", "offered")


def check_number(name: str, value: object, low: float, high: float, otherwise: str = "") -> None:
    """Raise unless ``value`` is a number from ``low`` to ``high``; the message names the nearest one that is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and low <= value <= high:  # type: ignore[operator]
        return
    if isinstance(value, np.generic):
        otherwise += f" as a plain one, not a {type(value).__module__}.{type(value).__name__}"
    nearest = f"; the nearest is {low if value < low else high:g}" if is_number else ""  # type: ignore[operator]
    raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}{otherwise}{nearest}")


def check_spread_table(table: tuple[SpreadRow, ...]) -> None:
    """Raise unless premiums rise from above 0 and spreads are positive and do not fall."""
    if not table:
        raise ConfigError("spread_table needs at least one row of premium and spread in ticks")
    for k, row in enumerate(table):
        if len(row) != 2 or not all(math.isfinite(value) and value > 0.0 for value in row):
            raise ConfigError(f"spread_table row {k + 1} is {row!r}: premium and ticks must be two positive numbers")
        if k and not (table[k - 1][0] < row[0] and table[k - 1][1] <= row[1]):
            raise ConfigError(
                f"spread_table row {k + 1} is {row!r}: premiums must rise and spreads may not fall from row {k}, "
                f"{table[k - 1]!r}"
            )
