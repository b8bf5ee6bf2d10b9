"""Odds of K regimes from returns, whatever gives a regime its density: what a fitted filter is, and how it is served.

Every filter is one recursion, ``b_t ~ (b_{t-1} P) * p(r_t | k, past)``; an emission (the closed form of
:mod:`encoders.belief`, the network of :mod:`encoders.neural_belief`) fills in the densities.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ArtefactError, DataError

Floats = NDArray[np.float64]

SMALLEST_DENSITY = -700.0  # of a log density relative to the best regime's: exp of it is still a number


class Belief(ABC):
    """Fitted numbers of a filter, whatever its emission: what encoders, cards and files need of it.

    Attributes:
        dof: ``(K,)`` nu of the shocks. transition: ``(K, K)`` P.
        variance: mean square of the training returns, where the running means begin.
    """

    dof: Floats
    transition: Floats
    variance: float

    def __len__(self) -> int:
        return len(self.transition)

    @property
    def stationary(self) -> Floats:
        """Long-run share of time in each regime: ``(K,)``, what the belief is before the first bar."""
        count = len(self)
        equations = np.vstack([self.transition.T - np.eye(count), np.ones(count)])
        shares = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
        return np.clip(shares, 1e-9, None) / np.clip(shares, 1e-9, None).sum()

    @property
    @abstractmethod
    def volatility(self) -> Floats:
        """Standard deviation of a bar's return in each regime, percent: ``(K,)``."""

    @property
    @abstractmethod
    def drift(self) -> Floats:
        """Mean of a bar's return in each regime, in its standard deviations: ``(K,)``."""

    @abstractmethod
    def ordered(self) -> Self:
        """Return the same filter with its regimes sorted by volatility."""

    @abstractmethod
    def arrays(self) -> dict[str, Floats]:
        """Return every number as an array by name, for a weights file."""

    @abstractmethod
    def filter(self) -> OddsFilter:
        """Return what serves these numbers."""


def check(belief: Belief, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse numbers that no training gives: a filter would serve odds of them, or read beside its arrays.

    Args:
        shapes: expected shape of each array by name.

    Raises:
        ArtefactError: a shape that does not fit, a chain whose rows are not odds, shocks without a variance, running
            means that do not forget, or a mean square that is not positive.
    """
    for name, expected in shapes.items():
        found = getattr(belief, name).shape
        if found != expected:
            raise ArtefactError(f"{name} has shape {found}, expected {expected}")
    chain, decay, base = belief.transition, getattr(belief, "decay", None), getattr(belief, "base", None)
    if not (np.all(chain >= 0.0) and np.allclose(chain.sum(axis=1), 1.0, rtol=0.0, atol=1e-6)):
        raise ArtefactError(f"transition has rows that sum to {chain.sum(axis=1)}, expected odds that sum to 1")
    for name, value, low, high in (
        ("dof", belief.dof, 2.0, math.inf), ("decay", decay, 0.0, 1.0), ("base", base, 0.0, math.inf),
        ("variance", belief.variance, 0.0, math.inf),
    ):  # fmt: skip
        if value is not None and not np.all((np.asarray(value) > low) & (np.asarray(value) < high)):
            raise ArtefactError(f"{name} is {value}, expected numbers between {low:g} and {high:g}")


class OddsFilter(ABC):
    """Serves the odds of a fitted filter, all at once or bar by bar with the same numbers."""

    parameters: Belief

    def table(self, returns: Floats, missing: bool = False) -> Floats:
        """Return the odds after each return: ``(T,)`` percent log returns to ``(T, K)``, row t knows returns 0..t.

        Args:
            missing: take a return that is not finite as one nobody saw: the odds only move on by the chain.

        Raises:
            DataError: not one return a row, or one that is not finite; the message names its row.
        """
        returns = np.ascontiguousarray(returns, np.float64)
        if returns.ndim != 1:
            raise DataError(f"returns have shape {returns.shape}, expected (T,)")
        if not missing and not np.isfinite(returns).all():
            raise DataError(f"returns: row {int(np.argmin(np.isfinite(returns)))} is not a finite number")
        out = np.empty((len(returns), len(self.parameters)))
        self._fill(returns, out)
        return out

    @abstractmethod
    def begin(self) -> Floats:
        """Return the state before the first return; the odds ``(K,)`` stand first in it."""

    def update(self, state: Floats, value: float) -> Floats:
        """Take one return (percent) into ``state``, in place, and return the odds ``(K,)``, a view of it.

        Raises:
            DataError: not a finite number; the state is as it was.
        """
        if not math.isfinite(value):
            raise DataError(f"return {value!r} is not a finite number")
        self.take(state, value)
        return state[: len(self.parameters)]

    @abstractmethod
    def take(self, state: Floats, value: float) -> float:
        """Take one return into ``state``, in place, and return its log density before it was seen.

        A return that is not finite counts as one nobody saw, with a log density of 0.
        """

    def forecast(self, odds: Floats, bars: int) -> Floats:
        """Return the odds ``bars`` ahead, ``b P^D``: ``(..., K)`` to ``(..., K)``."""
        return np.asarray(odds @ np.linalg.matrix_power(self.parameters.transition, bars))

    @abstractmethod
    def _fill(self, returns: Floats, out: Floats) -> None:
        """Write the odds after each return."""


def log_normal(dof: Floats) -> Floats:
    """Log of the constant of a Student t of unit variance: ``(K,)``."""
    found = [math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log((nu - 2) * math.pi) for nu in dof]
    return np.array(found)


@compiled
def unseen(state: Floats, chain: Floats, work: Floats) -> None:
    """Move the odds, first in ``state``, on by the chain alone."""
    count = chain.shape[0]
    for k in range(count):
        work[k] = 0.0
        for j in range(count):
            work[k] += state[j] * chain[j, k]
    for k in range(count):
        state[k] = work[k]


@compiled
def seen(state: Floats, chain: Floats, work: Floats) -> float:
    """Move the odds on by the chain and weigh them by the log densities in ``work``; returns the mixture's."""
    count = chain.shape[0]
    best = -math.inf
    for k in range(count):
        best = max(best, work[k])
    total = 0.0
    for k in range(count):
        odds = 0.0
        for j in range(count):
            odds += state[j] * chain[j, k]
        work[k] = odds * math.exp(max(work[k] - best, SMALLEST_DENSITY))
        total += work[k]
    for k in range(count):
        state[k] = work[k] / total
    return best + math.log(total)


def log_likelihood(parameters: Belief, returns: Floats) -> float:
    """Mean log density of the next return, per bar: higher is better, on any range."""
    served = parameters.filter()
    state, total = served.begin(), 0.0
    for value in np.asarray(returns, np.float64).tolist():
        total += served.take(state, value)
    return total / len(returns)


def describe(parameters: Belief) -> list[dict[str, Any]]:
    """Return a row per regime for cards: volatility, drift in deviations, mean spell, share of time."""
    spells = 1.0 / (1.0 - np.diag(parameters.transition))
    return [
        {
            "regime": k,
            "volatility": float(parameters.volatility[k]),
            "drift": float(parameters.drift[k]),
            "dof": float(parameters.dof[k]),
            "mean_spell_bars": float(spells[k]),
            "share": float(parameters.stationary[k]),
        }
        for k in range(len(parameters))
    ]
