"""The best that anyone who knew every future bar could have done: a dynamic programme over target exposures.

Letters: T decisions, S = 3 targets ``a`` in {-1, 0, 1} times leverage L. Decision t is taken at the close of bar t, at
mark ``M`` and equity V; it fills at the open ``O`` of bar t+1, whose mark closes at ``M'``. With ``x`` the exposure
carried into the decision (notional / V), one bar multiplies equity by::

    G(x, a) = 1 + x (O - M) / M  +  a L (M' - O) / M  -  |a L - x| c  -  x f  -  a L g
    c       = O / M (h + (1 + h) k) for a buy, O / M (h + (1 - h) k) for a sale      h half spread, k taker fee
    x'      = a L (M' / M) / G(x, a)                                                    exposure carried on

``f`` is the funding of the stamps that the carried position pays (before the fill), ``g`` of later ones in the bar.
Backward induction of log utility, ``J_T = 0``::

    J_t(s) = max_a  ln G(x_t(s), a) + J_{t+1}(a),        x_t(s) = s L m / (1 + s L (m - 1)),  m = M_t / M_{t-1}

``x_t(s)`` leaves the cost of the fill before out of the carried exposure: an error of the second order in costs, 1e-6
a trade at 5 bp. :func:`log_growth` carries the true exposure, so that the value of a plan is exact. What the
environment does beside: whole lots, minimum notional, the rebalance band (0 here: every drift is traded back), a
purchase cut to what the wallet covers, impact, participation, margin and liquidation.

Source: R. Bellman, "Dynamic Programming" (1957); the costs are those of :mod:`envs.perp_kernel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation
from envs import perp_columns as columns
from envs.simulation import Game
from markets.errors import ConfigError

Floats = NDArray[np.float64]

TARGETS = np.array([-1.0, 0.0, 1.0])
FLAT = 1  # place of the target 0
RUIN = 1e-12  # growth below which a bar counts as ruin: its logarithm stays finite


@dataclass(frozen=True, eq=False)
class Terms:
    """What G is made of, ``(T,)`` each, in units of equity per unit of exposure at the mark of the decision.

    Attributes:
        gap: ``(O - M) / M``; ``move``: ``(M' - O) / M``; ``drift``: ``M' / M``.
        buy, sell: proportional cost of a fill in either direction.
        carried, held: funding on the position before and after the fill.
    """

    gap: Floats
    move: Floats
    drift: Floats
    buy: Floats
    sell: Floats
    carried: Floats
    held: Floats

    def __len__(self) -> int:
        return len(self.gap)


@dataclass(frozen=True, eq=False)
class Plan:
    """An optimal path.

    Attributes:
        targets: ``(T,)`` in {-1, 0, 1}, the actions of the path from a flat account.
        log_growth: ``ln(V_T / V_0)`` of walking it; ``value``: ``(T + 1, 3)`` J of the dynamic programme.
        first: row of the bar at whose close the first target is decided.
    """

    targets: Floats
    log_growth: float
    value: Floats
    first: int = 0


def terms(game: Game, first: int, last: int, cost_scale: float = 1.0) -> Terms:
    """Read T = ``last - first`` decisions, at the closes of rows ``first`` .. ``last - 1``, from a PerpFutures game.

    Raises:
        ConfigError: another family, rows outside the market, or an impact that a proportional cost cannot stand for.
    """
    if game.recipe[0] != "PerpFutures":
        raise ConfigError(f"the oracle knows the rules of PerpFutures, not of {game.recipe[0]}")
    if not 0 <= first < last < len(game.market):
        raise ConfigError(f"rows {first} .. {last} must rise within 0 .. {len(game.market) - 1}")
    if game.contract[columns.IMPACT] * cost_scale != 0.0:
        raise ConfigError("the oracle needs proportional costs: make the game with impact_coefficient=0")
    now, after = game.market[first:last], game.market[first + 1 : last + 1]
    mark, opened, marked = now[:, columns.MARK_CLOSE], after[:, columns.OPEN], after[:, columns.MARK_OPEN]
    closed = after[:, columns.MARK_CLOSE]
    tick, rate = game.contract[columns.TICK], game.contract[columns.SPREAD]
    spread = np.maximum(0.5 * tick / opened, rate) * cost_scale
    fee = game.contract[columns.TAKER_FEE] * cost_scale
    marked = marked / mark
    return Terms(
        gap=(opened - mark) / mark,
        move=(closed - opened) / mark,
        drift=closed / mark,
        buy=opened / mark * (spread + (1.0 + spread) * fee),
        sell=opened / mark * (spread + (1.0 - spread) * fee),
        carried=after[:, columns.FUNDING_IN_GAP] + marked * after[:, columns.FUNDING_AT_OPEN],
        held=marked * after[:, columns.FUNDING_INSIDE :].sum(axis=1),
    )


def growth(items: Terms, t: Any, carried: Any, target: Any) -> Any:
    """G of the module's formula: equity at the close of bar t+1 over equity at the close of bar t.

    Args:
        t: decision (whole number or slice). ``carried``, ``target``: exposures x and ``a L``; all broadcast.
    """
    change = target - carried
    cost = np.where(change > 0.0, items.buy[t], items.sell[t]) * np.abs(change)
    funding = carried * items.carried[t] + target * items.held[t]
    return 1.0 + carried * items.gap[t] + target * items.move[t] - cost - funding


def log_growth(items: Terms, targets: Any, leverage: Any = 1.0) -> Any:
    """``ln(V_T / V_0)`` of walking ``targets (T,)`` or ``(T, P)`` paths from flat, the true exposure carried along.

    ``leverage`` is a number, or one a decision ``(T,)``.
    """
    exposures = (np.asarray(targets, dtype=np.float64).T * leverage).T
    total = carried = np.zeros(exposures.shape[1:])
    for t, target in enumerate(exposures):
        factor = np.maximum(growth(items, t, carried, target), RUIN)
        total = total + np.log(factor)
        carried = target * items.drift[t] / factor
    return total


def solve(items: Terms, leverage: Any = 1.0, first: int = 0) -> Plan:
    """Find the best path of T targets from a flat account by backward induction over T x 3 states.

    ``leverage`` is a number, or one a decision ``(T,)``: L where the bar decides it (margin tiers are left out).
    """
    count = len(items)
    exposures = TARGETS * np.broadcast_to(leverage, count)[:, None]  # (T, S)
    held = np.concatenate([exposures[:1], exposures[:-1]])  # of the state that a decision begins in
    value = np.zeros((count + 1, len(TARGETS)))
    choice = np.zeros((count, len(TARGETS)), dtype=np.intp)
    drift = np.concatenate([[1.0], items.drift[:-1]])  # of the bar before each decision
    equity = np.maximum(1.0 + held * (drift[:, None] - 1.0), RUIN)
    carried = held * drift[:, None] / equity  # (T, S)
    for t in range(count - 1, -1, -1):
        scores = np.log(np.maximum(growth(items, t, carried[t][:, None], exposures[t][None, :]), RUIN)) + value[t + 1]
        choice[t] = scores.argmax(axis=1)
        value[t] = scores.max(axis=1)
    path = np.empty(count, dtype=np.intp)
    state = FLAT
    for t in range(count):
        state = path[t] = choice[t, state]
    targets = TARGETS[path]
    return Plan(targets, float(log_growth(items, targets, leverage)), value, first)


def plan(game: Game, first: int | None = None, last: int | None = None, cost_scale: float = 1.0) -> Plan:
    """Solve rows ``first`` .. ``last`` of a game, its whole split where not given, at the game's own leverage.

    That is one number, or where leverage is controlled one a bar.
    """
    start = game.first if first is None else first
    stop = game.last if last is None else last
    leverage = float(game.defaults[columns.LEVERAGE]) if game.control is None else game.control.requested[start:stop]
    return solve(terms(game, start, stop, cost_scale * game.defaults[columns.COST_SCALE]), leverage, start)


class Oracle(Agent):
    """Replays a plan, one target a bar from the first bar of the episode; flat after its end.

    It does not look where it is: begin its episodes at the close of row ``plan.first``. The state counts bars.
    """

    name = "oracle"

    def __init__(self, chosen: Plan) -> None:
        super().__init__()
        self._targets = np.concatenate([chosen.targets, [0.0]]).astype(np.float32)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the plan's next target for every lane."""
        count = np.zeros(len(columns), dtype=np.int64) if state is None else np.asarray(state)
        if episode_start is not None:
            count = np.where(np.asarray(episode_start), 0, count)
        targets = self._targets[np.minimum(count, len(self._targets) - 1)]
        return targets[:, None], count + 1
