"""The best that anyone who knew every future bar could have done with coins and cash: a dynamic programme over what is
held.

Costs in proportion to the value traded make the growth of an account linear in its weights, so that a best path holds
one thing at a time. States are cash (0) and each of A coins, all of the equity in it. Decision t is taken at the close
``M`` of bar t and fills at the open ``O`` of bar t+1, which closes at ``M'``. Going from i to j multiplies equity by::

    G(i, j) = (O_i / M_i) mu(i, j) (M'_j / O_j),     mu(i, j) = (1 - c_i) / (1 + c_j) for i != j, else 1

with ``c`` fee and half spread of a coin at that open, 0 of cash, whose prices are 1: the fixed point of
:mod:`markets.spot` solved by hand. Backward induction of ``ln G``, ``J_T = 0``; the value of a plan is exact but for
whole lots. Short sales are not among the states.

Source: R. Bellman, "Dynamic Programming" (1957); the costs are those of :mod:`envs.spot_kernel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs import spot_columns as columns
from envs.simulation import COST_SCALE, Game
from markets.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpotPlan:
    """An optimal path.

    Attributes:
        weights: ``(T, A)`` targets, 1 for the coin that is held, all 0 in cash.
        log_growth: ``ln(V_T / V_0)`` of walking it from cash. first: row at whose close the first target is decided.
    """

    weights: Floats
    log_growth: float
    first: int


def plan(game: Game, first: int | None = None, last: int | None = None) -> SpotPlan:
    """Solve the decisions at the closes of rows ``first`` .. ``last - 1`` of a game, its whole split where not given.

    Raises:
        ConfigError: another family, rows outside the market, short selling, or an impact that a proportional cost
            cannot stand for.
    """
    if game.recipe[0] != "SpotCrypto":
        raise ConfigError(f"this oracle knows the rules of SpotCrypto, not of {game.recipe[0]}")
    start, stop = game.first if first is None else first, game.last if last is None else last
    if not 0 <= start < stop < len(game.market):
        raise ConfigError(f"rows {start} .. {stop} must rise within 0 .. {len(game.market) - 1}")
    for name, column in (("impact_coefficient", columns.IMPACT), ("allow_short", columns.SHORT)):
        if game.contract[column] != 0.0:
            raise ConfigError(f"the oracle needs long positions at proportional costs: make the game with {name}=0")
    before, trade, after = _logs(game, start, stop)
    count, states = trade.shape[0], trade.shape[1]
    value, choice = np.zeros(states), np.zeros((count, states), np.intp)
    for t in range(count - 1, -1, -1):
        scores = trade[t] + (after[t] + value)[None, :]
        choice[t] = scores.argmax(axis=1)
        value = before[t] + scores.max(axis=1)
    weights, state = np.zeros((count, states - 1)), 0
    for t in range(count):
        state = int(choice[t, state])
        if state:
            weights[t, state - 1] = 1.0
    return SpotPlan(weights, float(value[0]), start)


def _logs(game: Game, start: int, stop: int) -> tuple[Floats, Floats, Floats]:
    """Logarithms of what a bar does to each state: before its open ``(T, S)``, of each change of state ``(T, S, S)``,
    and after its open ``(T, S)``."""
    coins = int(game.contract[columns.ASSETS])
    block = np.arange(coins)
    mark = game.market[start:stop][:, columns.CLOSE * coins + block]
    opened = game.market[start + 1 : stop + 1][:, columns.OPEN * coins + block]
    closed = game.market[start + 1 : stop + 1][:, columns.CLOSE * coins + block]
    terms = game.contract[columns.COINS :].reshape(coins, columns.COIN_WIDTH)
    spread = np.maximum(0.5 * terms[:, columns.TICK] / opened, terms[:, columns.SPREAD])
    costs = np.zeros((len(mark), coins + 1))
    costs[:, 1:] = (spread + game.contract[columns.TAKER_FEE]) * game.defaults[COST_SCALE]
    trade = np.log1p(-costs)[:, :, None] - np.log1p(costs)[:, None, :]
    same = np.arange(coins + 1)
    trade[:, same, same] = 0.0
    cash = np.zeros((len(mark), 1))
    return np.hstack([cash, np.log(opened / mark)]), trade, np.hstack([cash, np.log(closed / opened)])
