"""Belief filter: a Markov chain over K regimes with a density for the next return, trained by exact likelihood.

Input r_t is the log return in percent. In regime k, with everything known before bar t::

    v_k,t  = exp(w_k) + sum_j c_kj E_j,t-1          E_j: running mean of r^2, half-lives 2, 6, 20 bars
    l_k,t  = m_k exp(w_k / 2) + tanh(phi_k) r_{t-1}
    r_t    ~ l + sqrt(v) z,                          z Student t(nu_k) of unit variance
    P_kk   = 1 - sigmoid(a_k) / floor,               off-diagonal: softmax times the rest

    b_t    ~ (b_{t-1} P) * p(r_t | k),               normalised: what is served, and O(1) a bar

``b`` is a causal table of odds, ``P^D`` is the Koopman matrix of its forecast D bars ahead. Weights c are positive
(softplus) or, with ``bank_cap``, a share of that total: on real bars an uncapped bank explains volatility by itself and
the regimes lose their meaning. Regimes are ordered by volatility. :mod:`encoders.neural_belief` is the same filter with
a small network in the place of the closed form of v and l.

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

import numpy as np
from numpy.typing import NDArray

from encoders.odds import Belief, OddsFilter, check, log_normal, seen, unseen
from markets.compiled import compiled
from markets.errors import ConfigError, unknown

Floats = NDArray[np.float64]

HALF_LIVES = {"student": (2.0, 6.0, 20.0), "neural": (1.0, 3.0, 8.0, 20.0)}  # of each emission; nothing slower in the
# network's, or it explains the regime by itself and the chain loses its meaning
EMISSIONS = tuple(HALF_LIVES)


@dataclass(frozen=True, kw_only=True)
class BeliefConfig:
    """Structure of a belief filter.

    Attributes:
        regimes: K. half_lives: of the running means of r^2, bars; None for those of the emission, ``HALF_LIVES``.
        dwell_floor: shortest mean spell, bars: what counts as a regime.
        bank_cap: total weight of the running means, None for free weights; of the emission ``student`` only.
        emission: what gives a regime's variance and location: ``student``, the closed form of :mod:`encoders.belief`,
            or ``neural``, the network of :mod:`encoders.neural_belief`. Shocks are Student t in both.
    """

    regimes: int = 6
    half_lives: tuple[float, ...] | None = None
    dwell_floor: float = 64.0
    bank_cap: float | None = None
    emission: str = "student"

    def __post_init__(self) -> None:
        if not isinstance(self.regimes, int) or isinstance(self.regimes, bool) or not 2 <= self.regimes <= 32:
            raise ConfigError(f"regimes={self.regimes!r} must be a whole number from 2 to 32")
        if self.emission not in EMISSIONS:
            raise unknown("emission", self.emission, EMISSIONS)
        if not self.memory or not all(0.0 < value < math.inf for value in self.memory):
            raise ConfigError(f"half_lives={self.half_lives!r} must be positive numbers of bars")
        if not 1.0 <= self.dwell_floor < math.inf:
            raise ConfigError(f"dwell_floor={self.dwell_floor!r} must be a number of bars of at least 1")
        if self.bank_cap is not None and not 0.0 <= self.bank_cap < 1.0:
            raise ConfigError(f"bank_cap={self.bank_cap!r} must lie in 0 .. 1, or be None")
        if self.bank_cap is not None and self.emission != "student":
            raise ConfigError(
                f"bank_cap={self.bank_cap!r} is of emission='student': emission={self.emission!r} has no weights to cap"
            )

    @property
    def memory(self) -> tuple[float, ...]:
        """Half-lives of the running means, bars."""
        return HALF_LIVES[self.emission] if self.half_lives is None else self.half_lives


@dataclass(frozen=True, eq=False)
class BeliefParameters(Belief):
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

    def __post_init__(self) -> None:
        count, means = len(self.base), len(self.decay)
        named = dict.fromkeys(("base", "location", "autoregression", "dof"), (count,))
        check(self, {**named, "decay": (means,), "bank": (count, means), "transition": (count, count)})

    @property
    def volatility(self) -> Floats:
        """Stationary standard deviation of a bar's return in each regime, percent: ``(K,)``."""
        share = np.minimum(self.bank.sum(axis=1), 0.99)
        return np.sqrt(self.base / (1.0 - share))

    @property
    def drift(self) -> Floats:
        """Location of each regime in deviations of its base: ``(K,)`` m."""
        return np.asarray(self.location / np.sqrt(self.base))

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

    def filter(self) -> BeliefFilter:
        """Return what serves these numbers."""
        return BeliefFilter(self)


class BeliefFilter(OddsFilter):
    """Serves a filter of the emission ``student``."""

    def __init__(self, parameters: BeliefParameters) -> None:
        self.parameters: BeliefParameters = parameters
        p = parameters
        # one row a regime: log constant, base, location, autoregression, dof, bank
        self._rows = np.column_stack([log_normal(p.dof), p.base, p.location, p.autoregression, p.dof, p.bank])
        self._chain = np.ascontiguousarray(p.transition)
        self._decay = np.ascontiguousarray(p.decay)

    def begin(self) -> Floats:
        """Return the state before the first return: odds ``(K,)``, running means ``(J,)``, last return."""
        p = self.parameters
        return np.concatenate([p.stationary, np.full(len(p.decay), p.variance), [0.0]])

    def take(self, state: Floats, value: float) -> float:
        """Take one return into ``state`` and return its log density."""
        return _step(value, self._rows, self._chain, self._decay, state, np.empty(len(self._chain)))

    def _fill(self, returns: Floats, out: Floats) -> None:
        _filter(returns, self._rows, self._chain, self._decay, self.begin(), np.empty(len(self._chain)), out)


@compiled
def _step(value: float, rows: Floats, chain: Floats, decay: Floats, state: Floats, work: Floats) -> float:
    """Update the state by one return; returns its log density. The odds stand first in ``state``.

    A return that is not finite was not seen: the odds move on by the chain alone, and its log density counts as 0.
    """
    count, bank = rows.shape[0], decay.shape[0]
    if not math.isfinite(value):
        unseen(state, chain, work)
        return 0.0
    before = state[count + bank]
    for k in range(count):
        variance = rows[k, 1]
        for j in range(bank):
            variance += rows[k, 5 + j] * state[count + j]
        nu = rows[k, 4]
        surprise = value - rows[k, 2] - rows[k, 3] * before
        tail = math.log1p(surprise * surprise / (variance * (nu - 2.0)))
        work[k] = rows[k, 0] - 0.5 * math.log(variance) - 0.5 * (nu + 1.0) * tail
    density = seen(state, chain, work)
    for j in range(bank):
        state[count + j] = decay[j] * state[count + j] + (1.0 - decay[j]) * value * value
    state[count + bank] = value
    return density


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
