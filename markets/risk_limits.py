"""Risk limits that stand between a policy and its orders: the same object in an environment and in a live account.

Nothing here knows an environment. Whoever trades shows the state of N accounts at the close of a bar
(:class:`AccountState`) to :meth:`RiskManager.check`, once a decision, and gets back what is allowed
(:class:`Allowed`)::

    manager = RiskManager(RiskLimits(maximum_exposure=1.0, stop_loss=0.05, daily_loss=0.02))
    allowed = manager.check(AccountState(time=now, equity=10_000.0, quantity=0.1, price=60_000.0, entry_price=61_000.0))
    exposure, limit = allowed.clip_exposure(wanted)        # (1,) each

What is guaranteed is about **decisions**. A target beyond the position limit is never sent, no position is opened after
the daily loss or the cut-off of the decay, and a stop is sent at the close of the first bar at which it is reached; a
market order fills at the open of the next one. What the market does is not bounded: prices move between a decision and
its fill, a gap can lose more than a stop or the day's limit in one bar, a position that was within its limit can grow
beyond it, and a limit order that closes may take several bars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Codes = NDArray[np.int64]

NO_LIMIT, POSITION, STOP_LOSS, THETA_CUT_OFF, DAILY_LOSS = range(5)
LIMITS = ("", "position", "stop_loss", "theta_cut_off", "daily_loss")  # names of the codes
CLOSE_TO = 1e-12  # relative: a limit that is met to rounding is met
DAY = np.timedelta64(1, "D")


@dataclass(frozen=True, kw_only=True)
class RiskLimits:
    """Limits of an account; None is none.

    Attributes:
        maximum_exposure: largest target value of a position (of an option its premium at the ask), in units of equity.
        maximum_quantity: largest target quantity, in contracts or coins.
        stop_loss: close a position once its price is this share of the entry price against it. It stays in force until
            the position is flat, also where the price comes back.
        last_entry_minutes: an option is bought only with at least so many minutes to the close, and an order to buy one
            is withdrawn after that.
        maximum_decay: an option is bought only while its time decay per minute is at most this share of its premium (at
            the money 1 / (2 minutes left), more out of it).
        daily_loss: once equity is this share below that of the day's opening, be flat for the rest of the UTC day.

    Raises:
        ConfigError: a value out of range; the message names it.
    """

    maximum_exposure: float | None = None
    maximum_quantity: float | None = None
    stop_loss: float | None = None
    last_entry_minutes: float | None = None
    maximum_decay: float | None = None
    daily_loss: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value, highest = getattr(self, item.name), _HIGHEST.get(item.name, math.inf)
            if value is None:
                continue
            good = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
            lowest_fits = good and (value > 0.0 or (value == 0.0 and item.name in _MAY_BE_ZERO))
            if not (lowest_fits and value <= highest):
                least = "from" if item.name in _MAY_BE_ZERO else "above"
                most = f" to {highest:g}" if math.isfinite(highest) else ""
                raise ConfigError(f"{item.name}={value!r} must be None or a number {least} 0{most}")

    @property
    def of_options(self) -> tuple[str, ...]:
        """Names of the limits set here that only a contract with an expiry has."""
        return tuple(name for name in ("last_entry_minutes", "maximum_decay") if getattr(self, name) is not None)


_HIGHEST = {"stop_loss": 1.0, "daily_loss": 1.0}
_MAY_BE_ZERO = frozenset({"maximum_exposure", "maximum_quantity", "last_entry_minutes"})


@dataclass(frozen=True, kw_only=True, eq=False)
class AccountState:
    """N accounts at the close of a bar; numbers are read as ``(N,)``, or one for all.

    Attributes:
        time: datetime64, UTC, when this became known.
        equity: with what is open at its mark.
        quantity: held, signed. price, entry_price: its mark, and what was paid on average (anything when flat).
        unit: value of a quantity of 1 at a price of 1, such as 100 shares a contract.
        minutes_left: to the close of the session; infinite where the contract has no expiry.
    """

    time: Any
    equity: Any
    quantity: Any
    price: Any
    entry_price: Any
    unit: float = 1.0
    minutes_left: Any = math.inf


@dataclass(frozen=True, eq=False)
class Allowed:
    """What N accounts may do now.

    Attributes:
        limits: what it rests on.
        close: ``(N,)`` which have to be flat. limit: ``(N,)`` code of the limit that says so (``LIMITS``).
        largest: ``(N,)`` largest value of a position, in units of equity (a largest quantity at the present price).
        equity, minutes_left: ``(N,)``, as shown.
    """

    limits: RiskLimits
    close: Flags
    limit: Codes
    largest: Floats
    equity: Floats
    minutes_left: Floats

    def clip_exposure(self, wanted: Any) -> tuple[Floats, Codes]:
        """Return the exposures ``(N,)`` nearest to those wanted (signed, value / equity), and which limit changed them.

        What is not a number stays as it is where no position has to be closed.
        """
        target = np.asarray(wanted, np.float64) + np.zeros(len(self.close))
        out = np.where(self.close, 0.0, np.clip(target, -self.largest, self.largest))
        code = np.where(self.close, self.limit, POSITION)
        changed = (out != target) & ~(np.isnan(out) & np.isnan(target))
        return out, np.where(changed, code, NO_LIMIT)

    def purchase(self, quantity: Any, value: Any, decay: Any = 0.0) -> Codes:
        """Say which purchases may be sent: ``(N, ...)`` codes, 0 where it may, else of the limit that forbids it.

        Args:
            quantity: ``(N, ...)`` to buy. value: what it costs at the opposite quote, in money. decay: of the contract,
                share of its premium per minute.
        """
        quantity, value = np.broadcast_arrays(np.asarray(quantity, np.float64), np.asarray(value, np.float64))
        shape = (-1,) + (1,) * (quantity.ndim - 1)
        limits, code = self.limits, np.zeros(quantity.shape, np.int64)
        equity = np.maximum(self.equity, 0.0).reshape(shape)
        if limits.maximum_exposure is not None:
            code[value > limits.maximum_exposure * equity * (1.0 + CLOSE_TO)] = POSITION
        if limits.maximum_quantity is not None:
            code[quantity > limits.maximum_quantity * (1.0 + CLOSE_TO)] = POSITION
        late = self.too_late(np.asarray(decay, np.float64), shape)
        code = np.where(late, THETA_CUT_OFF, code)
        return np.where(self.close.reshape(shape), self.limit.reshape(shape), code)

    def too_late(self, decay: Floats, shape: tuple[int, ...] = (-1,)) -> Flags:
        """Say where no option may be bought any more, given the decay of the contract per minute and premium."""
        limits, late = self.limits, np.zeros(self.minutes_left.shape, bool).reshape(shape)
        if limits.last_entry_minutes is not None:
            late = late | (self.minutes_left < limits.last_entry_minutes).reshape(shape)
        if limits.maximum_decay is not None:
            late = late | (decay > limits.maximum_decay * (1.0 + CLOSE_TO))
        return late


class RiskManager:
    """Keeps the limits of N accounts over time: what the day began with, and what has been reached.

    Args:
        limits: of every account. accounts: N.
    """

    def __init__(self, limits: RiskLimits, accounts: int = 1) -> None:
        if not isinstance(limits, RiskLimits):
            raise ConfigError(f"limits must be RiskLimits, not {type(limits).__name__}")
        self.limits = limits
        self._day = np.full(accounts, np.datetime64("NaT"), "datetime64[D]")
        self._opening = np.full(accounts, np.nan)
        self._previous = np.full(accounts, np.nan)
        self.halted = np.zeros(accounts, bool)
        self.stopping = np.zeros(accounts, bool)

    def begin(self, chosen: Flags | None = None) -> None:
        """Forget the past of the ``chosen (N,)`` accounts (all where None): a new account, a new episode."""
        rows = slice(None) if chosen is None else chosen
        self._day[rows] = np.datetime64("NaT")
        self._opening[rows] = self._previous[rows] = np.nan
        self.halted[rows] = self.stopping[rows] = False

    def check(self, account: AccountState) -> Allowed:
        """Take note of the accounts' state and return what they may do now; the same state again changes nothing.

        The day's opening equity is that of 00:00 UTC, or the last one before it where nothing is known at 00:00; of an
        account that began within the day its first.
        """
        none = np.zeros(len(self.halted))
        equity, quantity, price, entry, left = (
            np.asarray(getattr(account, name), np.float64) + none
            for name in ("equity", "quantity", "price", "entry_price", "minutes_left")
        )
        self._roll(np.broadcast_to(np.asarray(account.time, "datetime64[ns]"), none.shape), equity)
        limits, held = self.limits, quantity != 0.0
        if limits.daily_loss is not None:
            self.halted |= self._opening - equity >= limits.daily_loss * self._opening * (1.0 - CLOSE_TO)
        self.stopping &= held
        if limits.stop_loss is not None:
            against = np.sign(quantity) * (entry - price)
            self.stopping |= held & (against >= limits.stop_loss * entry * (1.0 - CLOSE_TO))
        largest = np.full(none.shape, np.inf if limits.maximum_exposure is None else limits.maximum_exposure)
        if limits.maximum_quantity is not None:
            worth = limits.maximum_quantity * price * account.unit
            largest = np.minimum(largest, np.where(equity > 0.0, worth / np.where(equity > 0.0, equity, 1.0), 0.0))
        code = np.where(self.halted, DAILY_LOSS, np.where(self.stopping, STOP_LOSS, NO_LIMIT))
        return Allowed(limits, self.halted | self.stopping, code, largest, equity, left)

    def _roll(self, time: NDArray[np.datetime64], equity: Floats) -> None:
        """Begin a new day where there is one."""
        day = time.astype("datetime64[D]")
        new = ~(day == self._day)
        first = np.where((time == day) | np.isnan(self._previous), equity, self._previous)
        self._opening[new] = first[new]
        self.halted &= ~new
        self._day, self._previous = day, equity
