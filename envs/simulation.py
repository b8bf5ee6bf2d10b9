"""Simulation: N accounts over one market; reset, step (one compiled call), observe. Knows no family.

A family describes its game once (:class:`Game`: tables, parameters, names, compiled kernel); many environments and all
lanes share it. The simulation owns what changes: account rows, observations and the episode starts that each lane's
generator has already drawn.

Account rows are ``(2, N, K)`` float64: ``[0]`` is live, ``[1]`` holds the last row of lanes that a SAME_STEP call
reset. Observations are ``(2, N, D)`` float32 in the same way. Row numbers and codes are exact as floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.encoding import Encoded
from envs.leverage import LeverageControl
from envs.signals import Observed
from markets.bars import Bars, as_time
from markets.errors import ActionError, ArtefactError, ConfigError, unknown
from markets.table import CausalTable, join

# The columns that every family's account rows begin with. ROW to QUIET are read together after a step. What
# info shows stands together too: it begins with COST_SCALE, and from LEVERAGE on with what every bar may change.
HEAD = (
    "end", "next_start", "next_cost_scale", "reset", "start", "row", "outcome", "reward", "quiet", "cost_scale",
    "end_code", "leverage", "equity",
)  # fmt: skip
(
    END, NEXT_START, NEXT_COST_SCALE, RESET, START, ROW, OUTCOME, REWARD, QUIET, COST_SCALE, END_CODE, LEVERAGE, EQUITY,
) = range(len(HEAD))  # fmt: skip

# How a call of the kernel treats the lanes.
MODE_RESET, MODE_NEXT_STEP, MODE_SAME_STEP, MODE_DISABLED = range(4)

RUNNING, TERMINATED, TRUNCATED = range(3)  # outcome of a step
END_CODES = ("", "liquidation", "ruin", "drawdown limit", "episode length", "end of the split", "session close")
ENDED_LIQUIDATION, ENDED_RUIN, ENDED_DRAWDOWN, ENDED_LENGTH, ENDED_DATA, ENDED_SESSION = range(1, 7)
END_NAMES = np.array(END_CODES, dtype=object)


@dataclass(frozen=True)
class Ledger:
    """Where a family's account rows say what is held, traded and paid: all that reports need to know of it.

    Attributes:
        position, price: columns of the quantity held and of the price at which it is marked; price is None where the
            first one holds the value itself, of a portfolio.
        fill_quantity, fill_price: columns of a step's fill, likewise. unit: what one of a quantity is worth at a price
            of 1.
        peak: column of the highest equity. start: place of the start equity in the contract vector.
        costs: columns of a step's costs. items: what reports add up -> column of a step.
    """

    position: int
    price: int | None
    fill_quantity: int
    fill_price: int | None
    unit: float
    peak: int
    start: int
    costs: tuple[int, ...]
    items: dict[str, int]

    def held(self, accounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the positions of account rows ``(N, K)`` are worth, signed: ``(N,)``."""
        return np.asarray(accounts[:, self.position] * _at(accounts, self.price) * self.unit)

    def traded(self, accounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what was paid or received in the fills of a step: ``(N,)``."""
        return np.asarray(np.abs(accounts[:, self.fill_quantity]) * _at(accounts, self.fill_price) * self.unit)


def _at(accounts: NDArray[np.float64], price: int | None) -> Any:
    return 1.0 if price is None else accounts[:, price]


@dataclass(frozen=True, eq=False)
class Game:
    """What a family's rules, one market and one configuration fix; shared by every lane and never written to.

    Attributes:
        kernel: ``(market (T, M), table (T, F), contract (P,), accounts (2, N, K), obs (2, N, D), mode) -> ended``.
        columns: names of the K account columns, beginning with ``HEAD``.
        action_columns: where the host puts an action's numbers.
        info: the account columns that info shows, one contiguous range; ``flags`` are those that are truth values.
        state: the part of ``info`` that says how the account stands; the rest are items of one step. ``lively`` is its
            beginning, all that may change in a step that the kernel marks as quiet (every item is 0 then), and
            ``show_lively(info, values)`` writes it, in half the time that a loop over names takes.
        terms: reward term -> account column.
        first, last: first and last row of the split that an observation may stand on.
        episode: longest episode in bars; ``random_start`` draws where it begins.
        starts: rows that an episode may begin on, rising, where it cannot be any row: drawn from with
            ``random_start``, else one after the other, the first again after the last. None where any row may.
            ``lengths``: steps of each such episode.
        seeded: account column that takes a new seed below 2^32 for each episode, drawn from the lane's generator;
            None where a step needs no random numbers.
        choices: how many values each number of an action has, where it chooses from a list; none for real numbers.
            ``choice_names``: of the values of the first one.
        masks: account columns that say which choices are legal, the values of the first number first; None where every
            action is.
        costs_in_market: quotes stand in the market matrix, at the configuration's cost scale: an account's own scale
            reaches the fees only, and another scale needs another matrix.
        randomised_costs: r; each episode's cost scale is drawn from 1 / (1 + r) to 1 + r times its own; 0 draws none.
        fitted_until: close of the last bar that anything served was fitted on; ``info["in_sample"]`` compares with it.
        recipe: family and configuration it was made from, enough to make it again.
        ledger: where an account row says what is held, traded and paid.
        names, low, high: of the columns that the kernel writes. encoded: what an encoder appends to them. signals:
            what signals append behind that. revealed: what a study shows behind both, such as true regimes; no
            environment that is made by its id has it. control: what leverage each bar is decided with, where it is not
            the same for all; its column stands last.
    """

    kernel: Callable[..., int]
    bars: Bars
    market: NDArray[np.float64]
    table: NDArray[np.float32]
    contract: NDArray[np.float64]
    columns: tuple[str, ...]
    action_columns: slice
    info: range
    state: range
    lively: range
    show_lively: Callable[[dict[str, Any], list[float]], None]
    flags: frozenset[str]
    terms: dict[str, int]
    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    first: int
    last: int
    episode: int
    random_start: bool
    fitted_until: np.datetime64
    defaults: dict[int, float]
    recipe: tuple[str, Any]
    ledger: Ledger
    randomised_costs: float = 0.0
    encoded: Encoded | None = None
    signals: Observed | None = None
    revealed: CausalTable | None = None
    control: LeverageControl | None = None
    starts: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    seeded: int | None = None
    choices: tuple[int, ...] = ()
    choice_names: tuple[str, ...] = ()
    masks: slice | None = None
    costs_in_market: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def appended(self) -> CausalTable | None:
        """Rows behind the columns of the kernel: the encoder's, the signals', what is revealed, the leverage; None
        without any."""
        observed = tuple(part.table for part in (self.encoded, self.signals) if part is not None)
        control = None if self.control is None else self.control.table
        tables = (*observed, *(table for table in (self.revealed, control) if table is not None))
        return join(tables) if tables else None

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of every column that an agent sees."""
        return self.names if self.appended is None else (*self.names, *self.appended.names)

    @property
    def all_bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Low and high of every column that an agent sees."""
        table = self.appended
        if table is None:
            return self.low, self.high
        return np.concatenate([self.low, table.low]), np.concatenate([self.high, table.high])

    @cached_property
    def hidden(self) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Places ``(H,)`` of the columns that the configuration hides, and what they show ``(H,)``; None without.

        Raises:
            UnknownNameError: a name that no column has, with the nearest one.
            ConfigError: no name between commas, or one given twice.
        """
        given = str(getattr(self.recipe[1], "hide", None) or "")
        if not given:
            return None
        names = [name.strip() for name in given.split(",")]
        for name in names:
            if not name or names.count(name) > 1:
                what = f"names {name!r} twice" if name else "has an empty name"
                raise ConfigError(f"hide={given!r} {what}: it is names of columns with commas between them")
            if name not in self.all_names:
                raise unknown("observation column to hide", name, self.all_names)
        places = np.array(sorted(self.all_names.index(name) for name in names))
        low, high = self.all_bounds
        return places, np.clip(np.zeros(len(places), np.float32), low[places], high[places])


def as_numbers(action: Any) -> NDArray[np.float64]:
    """Read an action as float64; text that spells a number is not one.

    Raises:
        ActionError: not an array of numbers.
    """
    if np.ma.isMaskedArray(action):
        raise ActionError(f"action {action!r} is masked: actions are plain numbers")
    try:
        values = np.asarray(action)
    except ValueError as error:
        raise ActionError(f"action {action!r} is not an array of numbers") from error
    if values.dtype.kind == "O" and all(isinstance(value, int | float | np.number) for value in values.flat):
        try:
            values = values.astype(np.float64)
        except OverflowError as error:
            raise ActionError(f"action {action!r} holds a number too large for float64") from error
    if values.dtype.kind not in "fiub":
        raise ActionError(f"action {action!r} is not an array of numbers")
    return values.astype(np.float64, copy=False)


def check_choices(values: NDArray[np.float64], choices: tuple[int, ...]) -> None:
    """Raise unless each column of ``(..., A)`` actions holds whole numbers of its list, or NaN ("hold").

    Raises:
        ActionError: names the number and the valid ones.
    """
    if not choices:
        return
    known = np.isnan(values) | ((values >= 0) & (values < np.array(choices)) & (values == np.floor(values)))
    if not known.all():
        place = tuple(int(i) for i in np.argwhere(~known)[0])
        count = choices[place[-1]]
        raise ActionError(f"action{list(place)} is {values[place]:g}; it is a whole number from 0 to {count - 1}")


class Simulation:
    """N accounts that play one game, each with its own random generator for its episode starts."""

    def __init__(self, game: Game, lanes: int) -> None:
        if not isinstance(lanes, int) or lanes < 1:
            raise ConfigError(f"num_envs={lanes!r} must be a whole number of at least 1")
        self.game = game
        self.lanes = lanes
        self.accounts = np.zeros((2, lanes, len(game.columns)))
        self.obs = np.zeros((2, lanes, len(game.names)), dtype=np.float32)
        live = self.accounts[0]
        live[:, NEXT_START] = live[:, NEXT_COST_SCALE] = -1.0
        if game.starts is not None:
            live[:, START] = -1.0
        for column, value in game.defaults.items():
            live[:, column] = value

    @property
    def rows(self) -> NDArray[np.int64]:
        """Bar index of each observation just returned, ``(N,)``."""
        return self.accounts[0, :, ROW].astype(np.int64)

    @property
    def final_rows(self) -> NDArray[np.int64]:
        """Bar index of the last observation of lanes that the last SAME_STEP call ended, ``(N,)``."""
        return self.accounts[1, :, ROW].astype(np.int64)

    def reset(
        self, generators: Sequence[np.random.Generator], mask: NDArray[np.bool_] | None, starts: Any, fresh: Any
    ) -> None:
        """Begin new episodes in the lanes of ``mask`` (all where None).

        Args:
            generators: one per lane, for starts that are not given.
            starts: ``(N,)`` first rows or None; a given start uses up no random number (where more is drawn with
                a start, such as costs, the start that would have been drawn with it).
            fresh: ``(N,)`` True where the lane was seeded anew, which forgets the start drawn in advance.
        """
        live = self.accounts[0]
        chosen = np.ones(self.lanes, bool) if mask is None else mask
        live[:, RESET] = chosen
        live[fresh, NEXT_START] = -1.0
        if self.game.starts is not None:
            live[fresh, START] = -1.0
        more_drawn = self.game.randomised_costs > 0.0 or self.game.seeded is not None
        if starts is None or more_drawn:
            self.draw_starts(generators, chosen)
        kept = live[:, NEXT_START].copy()
        if starts is not None:
            live[chosen, NEXT_START] = starts[chosen]
        self.run(MODE_RESET)
        if starts is not None and not more_drawn:
            live[chosen, NEXT_START] = kept[chosen]

    def draw_starts(self, generators: Sequence[np.random.Generator], chosen: NDArray[np.bool_] | None = None) -> None:
        """Draw the next episode's first row (and cost scale) for lanes that have none, from their own generators."""
        game = self.game
        live = self.accounts[0]
        column = live[:, NEXT_START]
        wanted = column < 0.0 if chosen is None else (column < 0.0) & chosen
        width = math.log1p(game.randomised_costs)
        if not game.random_start:
            column[wanted] = game.first if game.starts is None else self._following(live[wanted, START])
            if width == 0.0 and game.seeded is None:
                return
        for lane in np.flatnonzero(wanted).tolist():
            if game.random_start and game.starts is None:
                column[lane] = generators[lane].integers(game.first, game.last - game.episode + 1)
            elif game.random_start and game.starts is not None:
                column[lane] = game.starts[generators[lane].integers(len(game.starts))]
            if game.seeded is not None:
                live[lane, game.seeded] = generators[lane].integers(2**32)
            if width > 0.0:
                factor = math.exp(generators[lane].uniform(-width, width))
                live[lane, NEXT_COST_SCALE] = game.defaults[COST_SCALE] * factor

    def _following(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the start after each of ``rows``, the first one after the last."""
        starts = self.game.starts
        assert starts is not None
        return starts[np.searchsorted(starts, rows, side="right") % len(starts)]

    def row_of(self, start: Any) -> int:
        """Return the row on which an episode that begins at time ``start`` stands first.

        Raises:
            ConfigError: outside the rows that the split can serve; the message names them.
        """
        game = self.game
        row = game.bars.row_at(start)
        if game.starts is not None:
            place = int(np.searchsorted(game.starts, row))
            day = game.bars.time[game.first].astype("datetime64[D]")  # whoever names a day means its session
            if as_time(start, "start") < day or place == len(game.starts):
                raise ConfigError(
                    f"start={start!r} is outside the split: episodes can begin from {game.bars.time[game.first]} "
                    f"to {game.bars.time[game.starts[-1]]}"
                )
            return int(game.starts[place])
        if not game.first <= row < game.last:
            raise ConfigError(
                f"start={start!r} is outside the split: episodes can begin from {game.bars.time[game.first]} "
                f"to {game.bars.time[game.last - 1]}"
            )
        return row

    def set_actions(self, actions: Any, hold_bad: bool = False) -> None:
        """Copy ``(N, A)`` actions into the account rows.

        Args:
            hold_bad: pass numbers that are not finite on as NaN, which the kernel takes as "hold" and counts.

        Raises:
            ActionError: wrong shape, or a number that is not finite; nothing was changed.
        """
        target = self.accounts[0, :, self.game.action_columns]
        values = as_numbers(actions)
        if values.shape != target.shape and values.size == target.size:
            values = values.reshape(target.shape)
        if values.shape != target.shape:
            raise ActionError(f"action has shape {values.shape}, expected {target.shape}")
        if not np.isfinite(values).all():
            if hold_bad:
                values = np.where(np.isfinite(values), values, np.nan)
                check_choices(values, self.game.choices)
                target[...] = values
                return
            lane, number = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ActionError(f"action[{lane}, {number}] is {values[lane, number]}; actions are finite numbers")
        check_choices(values, self.game.choices)
        target[...] = values

    def seen(self) -> NDArray[np.float32]:
        """Return the present observations as an agent sees them: ``(N, D)``, with the encoder's and the signals'
        columns, and constants where some are hidden; not a copy where there is none of it."""
        appended, hidden = self.game.appended, self.game.hidden
        out = self.obs[0]
        if appended is not None:
            out = np.concatenate([out, appended.values[self.rows]], axis=1)
        if hidden is not None:
            out = out.copy() if appended is None else out
            out[:, hidden[0]] = hidden[1]
        return out

    def action_masks(self) -> NDArray[np.bool_] | None:
        """Return which choices are legal now, ``(N, sum(choices))`` as a fresh array; None where every action is."""
        return None if self.game.masks is None else np.asarray(self.accounts[0, :, self.game.masks] != 0.0)

    def run(self, mode: int) -> int:
        """Make one compiled call over all lanes and return how many episodes it ended."""
        game = self.game
        return int(game.kernel(game.market, game.table, game.contract, self.accounts, self.obs, mode))

    def _market(self) -> dict[str, str]:
        """Hashes of what a pickled simulation looks up again, and must find unchanged."""
        encoded, signals = self.game.encoded, self.game.signals
        return {
            "bars": self.game.bars.hash,
            "encoder's weights": "" if encoded is None else encoded.sha256,
            "signals' fits": "" if signals is None else signals.models.hash,
            "revealed columns": "" if self.game.revealed is None else ",".join(self.game.revealed.names),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {
            "recipe": self.game.recipe, "lanes": self.lanes, "accounts": self.accounts, "obs": self.obs,
            "market": self._market(),
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        from envs.make import game_of

        self.game = game_of(*state["recipe"])
        for what, sha256 in state["market"].items():
            if self._market()[what] != sha256:
                raise ArtefactError(f"the {what} of this environment are not those it was pickled with: make it anew")
        self.lanes = state["lanes"]
        self.accounts = np.array(state["accounts"])
        self.obs = np.array(state["obs"])
