"""Belief filter: a Markov chain over K regimes with a density for the next return, trained by exact likelihood.

Input r_t is the log return in percent. In regime k, with everything known before bar t::

    v_k,t  = exp(w_k) + sum_j c_kj E_j,t-1          E_j: running mean of r^2, half-lives 2, 6, 20 bars
    l_k,t  = m_k exp(w_k / 2) + tanh(phi_k) r_{t-1}
    r_t    ~ l + sqrt(v) z,                          z Student t(nu_k) of unit variance
    P_kk   = 1 - sigmoid(a_k) / floor,               off-diagonal: softmax times the rest

    b_t    ~ (b_{t-1} P) * p(r_t | k),               normalised: what is served, and O(1) a bar

``b`` is a causal table of odds, ``P^D`` is the Koopman matrix of its forecast D bars ahead. Weights c are positive
(softplus) or, with ``bank_cap``, a share of that total: on real bars an uncapped bank explains volatility by itself and
the regimes lose their meaning. Regimes are ordered by volatility.

Training is generalised expectation-maximisation: one exact forward-backward pass, one Adam step on the expected
log-likelihood, again and again; then moves, which take the regime that matters least and rebirth it where the bars are
most extreme, and are kept only where the training likelihood rises. Smoothing sees the future inside the training range
only; what is served is the forward filter.

Sources: J. Hamilton (1989), "A New Approach to the Economic Analysis of Nonstationary Time Series"; L. Baum et al.
(1970) for the recursions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]

LOG_2 = math.log(2.0)
SMALLEST_DENSITY = -700.0  # of a log density relative to the best regime's: exp of it is still a number


@dataclass(frozen=True, kw_only=True)
class BeliefConfig:
    """Structure of a belief filter.

    Attributes:
        regimes: K. half_lives: of the running means of r^2, bars.
        dwell_floor: shortest mean spell, bars: what counts as a regime.
        bank_cap: total weight of the running means, None for free weights.
    """

    regimes: int = 6
    half_lives: tuple[float, ...] = (2.0, 6.0, 20.0)
    dwell_floor: float = 64.0
    bank_cap: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.regimes, int) or isinstance(self.regimes, bool) or not 2 <= self.regimes <= 32:
            raise ConfigError(f"regimes={self.regimes!r} must be a whole number from 2 to 32")
        if not self.half_lives or not all(0.0 < value < math.inf for value in self.half_lives):
            raise ConfigError(f"half_lives={self.half_lives!r} must be positive numbers of bars")
        if not 1.0 <= self.dwell_floor < math.inf:
            raise ConfigError(f"dwell_floor={self.dwell_floor!r} must be a number of bars of at least 1")
        if self.bank_cap is not None and not 0.0 <= self.bank_cap < 1.0:
            raise ConfigError(f"bank_cap={self.bank_cap!r} must lie in 0 .. 1, or be None")


@dataclass(frozen=True, eq=False)
class BeliefParameters:
    """Fitted numbers of a filter, in natural units; arrays by regime.

    Attributes:
        base: ``(K,)`` exp(w). location: ``(K,)`` m exp(w / 2). autoregression: ``(K,)`` tanh(phi). dof: ``(K,)`` nu.
        bank: ``(K, J)`` c. decay: ``(J,)`` of the running means. transition: ``(K, K)`` P.
        variance: mean square of the training returns, where the running means begin.
    """

    base: Floats
    location: Floats
    autoregression: Floats
    dof: Floats
    bank: Floats
    decay: Floats
    transition: Floats
    variance: float

    def __len__(self) -> int:
        return len(self.base)

    @property
    def stationary(self) -> Floats:
        """Long-run share of time in each regime: ``(K,)``, what the belief is before the first bar."""
        count = len(self)
        equations = np.vstack([self.transition.T - np.eye(count), np.ones(count)])
        shares = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
        return np.clip(shares, 1e-9, None) / np.clip(shares, 1e-9, None).sum()

    @property
    def volatility(self) -> Floats:
        """Stationary standard deviation of a bar's return in each regime, percent: ``(K,)``."""
        share = np.minimum(self.bank.sum(axis=1), 0.99)
        return np.sqrt(self.base / (1.0 - share))

    def ordered(self) -> BeliefParameters:
        """Return the same filter with its regimes sorted by volatility."""
        order = np.argsort(self.volatility, kind="stable")
        return BeliefParameters(
            self.base[order], self.location[order], self.autoregression[order], self.dof[order], self.bank[order],
            self.decay, self.transition[np.ix_(order, order)], self.variance,
        )  # fmt: skip

    def arrays(self) -> dict[str, Floats]:
        """Return every number as an array by name, for a weights file."""
        return {
            "base": self.base, "location": self.location, "autoregression": self.autoregression, "dof": self.dof,
            "bank": self.bank, "decay": self.decay, "transition": self.transition,
            "variance": np.array([self.variance]),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: dict[str, Floats]) -> BeliefParameters:
        """Read what :meth:`arrays` gave; raises ``KeyError`` for a missing name."""
        named = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
        return cls(**{**named, "variance": float(named["variance"][0])})  # type: ignore[arg-type]


class BeliefFilter:
    """Serves the odds of a fitted filter, all at once or bar by bar with the same numbers."""

    def __init__(self, parameters: BeliefParameters) -> None:
        self.parameters = parameters
        p = parameters
        count = len(p)
        normal = [math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log((nu - 2) * math.pi) for nu in p.dof]
        # one row a regime: log constant, base, location, autoregression, dof, bank
        self._rows = np.column_stack([normal, p.base, p.location, p.autoregression, p.dof, p.bank])
        self._chain = np.ascontiguousarray(p.transition)
        self._decay = np.ascontiguousarray(p.decay)
        self._count = count

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
        out = np.empty((len(returns), self._count))
        _filter(returns, self._rows, self._chain, self._decay, self.begin(), np.empty(self._count), out)
        return out

    def begin(self) -> Floats:
        """Return the state before the first return: odds ``(K,)``, running means ``(J,)``, last return."""
        p = self.parameters
        return np.concatenate([p.stationary, np.full(len(p.decay), p.variance), [0.0]])

    def update(self, state: Floats, value: float) -> Floats:
        """Take one return (percent) into ``state``, in place, and return the odds ``(K,)``, a view of it.

        Raises:
            DataError: not a finite number; the state is as it was.
        """
        if not math.isfinite(value):
            raise DataError(f"return {value!r} is not a finite number")
        _step(value, self._rows, self._chain, self._decay, state, np.empty(self._count))
        return state[: self._count]

    def forecast(self, odds: Floats, bars: int) -> Floats:
        """Return the odds ``bars`` ahead, ``b P^D``: ``(..., K)`` to ``(..., K)``."""
        return np.asarray(odds @ np.linalg.matrix_power(self.parameters.transition, bars))


@compiled
def _step(value: float, rows: Floats, chain: Floats, decay: Floats, state: Floats, work: Floats) -> float:
    """Update the state by one return; returns its log density. The odds stand first in ``state``.

    A return that is not finite was not seen: the odds move on by the chain alone, and its log density counts as 0.
    """
    count, bank = rows.shape[0], decay.shape[0]
    if not math.isfinite(value):
        for k in range(count):
            work[k] = 0.0
            for j in range(count):
                work[k] += state[j] * chain[j, k]
        for k in range(count):
            state[k] = work[k]
        return 0.0
    before = state[count + bank]
    best = -math.inf
    for k in range(count):
        variance = rows[k, 1]
        for j in range(bank):
            variance += rows[k, 5 + j] * state[count + j]
        nu = rows[k, 4]
        surprise = value - rows[k, 2] - rows[k, 3] * before
        tail = math.log1p(surprise * surprise / (variance * (nu - 2.0)))
        work[k] = rows[k, 0] - 0.5 * math.log(variance) - 0.5 * (nu + 1.0) * tail
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
    for j in range(bank):
        state[count + j] = decay[j] * state[count + j] + (1.0 - decay[j]) * value * value
    state[count + bank] = value
    return best + math.log(total)


@compiled
def _filter(
    returns: Floats, rows: Floats, chain: Floats, decay: Floats, state: Floats, work: Floats, out: Floats
) -> None:
    for t in range(returns.shape[0]):
        _step(returns[t], rows, chain, decay, state, work)
        for k in range(out.shape[1]):
            out[t, k] = state[k]


def running_means(returns: Floats, decay: Floats, variance: float) -> Floats:
    """Return E_j before each bar: ``(T, J)``, row t knows returns 0..t-1 and begins at ``variance``."""
    out = np.empty((len(returns), len(decay)))
    _running_means(np.ascontiguousarray(returns), decay, variance, out)
    return out


@compiled
def _running_means(returns: Floats, decay: Floats, variance: float, out: Floats) -> None:
    for j in range(decay.shape[0]):
        value = variance
        for t in range(returns.shape[0]):
            out[t, j] = value
            value = decay[j] * value + (1.0 - decay[j]) * returns[t] * returns[t]


def log_likelihood(parameters: BeliefParameters, returns: Floats) -> float:
    """Mean log density of the next return, per bar: higher is better, on any range."""
    served = BeliefFilter(parameters)
    state, work = served.begin(), np.empty(len(parameters))
    total = 0.0
    for value in np.asarray(returns, np.float64).tolist():
        total += _step(value, served._rows, served._chain, served._decay, state, work)
    return total / len(returns)


def describe(parameters: BeliefParameters) -> list[dict[str, Any]]:
    """Return a row per regime for cards: volatility, drift in deviations, mean spell, share of time."""
    spells = 1.0 / (1.0 - np.diag(parameters.transition))
    return [
        {
            "regime": k,
            "volatility": float(parameters.volatility[k]),
            "drift": float(parameters.location[k] / math.sqrt(parameters.base[k])),
            "dof": float(parameters.dof[k]),
            "mean_spell_bars": float(spells[k]),
            "share": float(parameters.stationary[k]),
        }
        for k in range(len(parameters))
    ]
