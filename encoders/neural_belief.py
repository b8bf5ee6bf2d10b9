"""Belief filter with a neural emission: a small network gives each regime's variance and location of the next return.

The chain, the Student t and the recursion are those of :mod:`encoders.belief`; the closed form of v and l is not. With
r in percent, s^2 the mean square of the training returns, and everything known before bar t::

    x_t    = asinh(r_{t-i} / s), i = 1..5;   log(E_j,t-1 / s^2 + 1e-3) / 2, half-lives 1, 3, 8, 20 bars
    h_t    = tanh(A x_t + a)                                        8 units, shared by the regimes
    log v  = w_k + 3 tanh((B_k h_t + b_k) / 2)
    r_t    ~ sqrt(v) (m_k + C_k h_t) + sqrt(v) z,                   z Student t(nu_k) of unit variance

Variance stays within exp(+-3) of its regime's, whatever the returns. There is no closed form of a regime's volatility:
it is the root of v averaged over the training bars, weighted by the smoothed odds, and so is the drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from encoders.belief import BeliefParameters, running_means
from encoders.odds import Belief, OddsFilter, check, log_normal, seen, unseen
from markets.compiled import compiled

Floats = NDArray[np.float64]

LAGS = 5  # returns that the network reads one by one
HIDDEN = 8  # more raise the training likelihood and lower that of other series
SWING = 3.0  # largest log of a regime's variance over its base
FLOOR = 1e-3  # of a running mean over s^2, under the logarithm


@dataclass(frozen=True, eq=False)
class NeuralBelief(Belief):
    """Fitted numbers of a filter with a neural emission; I inputs, H units, K regimes.

    Attributes:
        base: ``(K,)`` exp(w). location: ``(K,)`` m. dof: ``(K,)`` nu.
        location_weight, scale_weight: ``(K, H)`` C and B. scale_bias: ``(K,)`` b.
        hidden_weight: ``(H, I)`` A. hidden_bias: ``(H,)`` a. decay: ``(J,)`` of the running means, the last J inputs.
        transition: ``(K, K)`` P. variance: s^2, where the running means begin.
        typical_volatility: ``(K,)`` percent. typical_drift: ``(K,)`` deviations. Both of the training bars.
    """

    base: Floats
    location: Floats
    dof: Floats
    location_weight: Floats
    scale_weight: Floats
    scale_bias: Floats
    hidden_weight: Floats
    hidden_bias: Floats
    decay: Floats
    transition: Floats
    variance: float
    typical_volatility: Floats
    typical_drift: Floats

    def __post_init__(self) -> None:
        count, units, bank = len(self.base), len(self.hidden_bias), len(self.decay)
        shapes = {
            "location_weight": (count, units), "scale_weight": (count, units),
            "hidden_weight": (units, LAGS + bank), "hidden_bias": (units,), "decay": (bank,),
            "transition": (count, count),
        }  # fmt: skip
        named = {field.name: shapes.get(field.name, (count,)) for field in fields(self) if field.name != "variance"}
        check(self, named)

    @property
    def volatility(self) -> Floats:
        """Root of the mean variance of each regime's training bars, percent: ``(K,)``."""
        return self.typical_volatility

    @property
    def drift(self) -> Floats:
        """Mean location of each regime's training bars, in deviations: ``(K,)``."""
        return self.typical_drift

    def ordered(self) -> NeuralBelief:
        """Return the same filter with its regimes sorted by volatility."""
        order = np.argsort(self.volatility, kind="stable")
        moved = {
            name: getattr(self, name)[order]
            for name in (
                "base", "location", "dof", "location_weight", "scale_weight", "scale_bias", "typical_volatility",
                "typical_drift",
            )
        }  # fmt: skip
        return replace(self, **moved, transition=self.transition[np.ix_(order, order)])

    def arrays(self) -> dict[str, Floats]:
        """Return every number as an array by name, for a weights file."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**named, "variance": np.array([self.variance])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> NeuralBelief:
        """Read what :meth:`arrays` gave.

        Raises:
            KeyError: a missing name. ArtefactError: shapes that do not fit.
        """
        names = [field.name for field in fields(cls)]
        named = {name: np.ascontiguousarray(arrays[name], np.float64) for name in names}
        return cls(**{**named, "variance": float(named["variance"][0])})  # type: ignore[arg-type]

    def filter(self) -> NeuralFilter:
        """Return what serves these numbers."""
        return NeuralFilter(self)


def belief_of(arrays: Mapping[str, Floats]) -> Belief:
    """Read the arrays of a filter, of whichever emission they are."""
    if "hidden_weight" in arrays:
        return NeuralBelief.from_arrays(arrays)
    return BeliefParameters.from_arrays(dict(arrays))


class NeuralFilter(OddsFilter):
    """Serves a filter of the emission ``neural``."""

    def __init__(self, parameters: NeuralBelief) -> None:
        self.parameters: NeuralBelief = parameters
        p = parameters
        # rows of log constants, w, dof; layers: a row of biases, then a row an input, so that sums run side by side
        self._rows = np.stack([log_normal(p.dof), np.log(p.base), p.dof])
        self._hidden = np.vstack([p.hidden_bias, p.hidden_weight.T])
        self._output = np.hstack(
            [np.vstack([p.location, p.location_weight.T]), np.vstack([p.scale_bias, p.scale_weight.T])]
        )
        self._chain = np.ascontiguousarray(p.transition)
        self._decay = np.ascontiguousarray(p.decay)
        self._scale = math.sqrt(p.variance)

    def begin(self) -> Floats:
        """Return the state before the first return: odds ``(K,)``, running means ``(J,)``, asinh of 5 returns."""
        p = self.parameters
        return np.concatenate([p.stationary, np.full(len(p.decay), p.variance), np.zeros(LAGS)])

    def take(self, state: Floats, value: float) -> float:
        """Take one return into ``state`` and return its log density."""
        return _step(
            value, self._rows, self._hidden, self._output, self._chain, self._decay, self._scale, state, self._work()
        )

    def _fill(self, returns: Floats, out: Floats) -> None:
        _filter(
            returns, self._rows, self._hidden, self._output, self._chain, self._decay, self._scale, self.begin(),
            self._work(), out,
        )  # fmt: skip

    def _work(self) -> Floats:
        return np.empty(self._output.shape[1] + len(self._chain) + self._hidden.shape[1])


@compiled
def _step(
    value: float, rows: Floats, hidden: Floats, output: Floats, chain: Floats, decay: Floats, scale: float,
    state: Floats, work: Floats,
) -> float:  # fmt: skip
    """Update the state by one return; returns its log density. The odds stand first in ``state``.

    A return that is not finite was not seen: the odds move on by the chain alone, and its log density counts as 0.
    ``work`` holds log densities ``(K,)``, the network's outputs ``(2 K,)`` and its units ``(H,)``.
    """
    count, bank, units = rows.shape[1], decay.shape[0], hidden.shape[1]
    if not math.isfinite(value):
        unseen(state, chain, work)
        return 0.0
    out, unit, lags = count, 3 * count, count + bank  # where outputs, units and past returns begin
    for h in range(units):
        work[unit + h] = hidden[0, h]
    for i in range(LAGS):
        for h in range(units):
            work[unit + h] += hidden[1 + i, h] * state[lags + i]
    for j in range(bank):
        size = 0.5 * math.log(state[count + j] / (scale * scale) + FLOOR)
        for h in range(units):
            work[unit + h] += hidden[1 + LAGS + j, h] * size
    for c in range(2 * count):
        work[out + c] = output[0, c]
    for h in range(units):
        active = math.tanh(work[unit + h])
        for c in range(2 * count):
            work[out + c] += output[1 + h, c] * active
    for k in range(count):
        half = 0.5 * (rows[1, k] + SWING * math.tanh(0.5 * work[out + count + k]))  # log of the deviation
        nu = rows[2, k]
        z = value * math.exp(-half) - work[out + k]
        work[k] = rows[0, k] - half - 0.5 * (nu + 1.0) * math.log1p(z * z / (nu - 2.0))
    density = seen(state, chain, work)
    for j in range(bank):
        state[count + j] = decay[j] * state[count + j] + (1.0 - decay[j]) * value * value
    for i in range(LAGS - 1, 0, -1):
        state[lags + i] = state[lags + i - 1]
    state[lags] = math.asinh(value / scale)
    return density


@compiled
def _filter(
    returns: Floats, rows: Floats, hidden: Floats, output: Floats, chain: Floats, decay: Floats, scale: float,
    state: Floats, work: Floats, out: Floats,
) -> None:  # fmt: skip
    for t in range(returns.shape[0]):
        _step(returns[t], rows, hidden, output, chain, decay, scale, state, work)
        for k in range(out.shape[1]):
            out[t, k] = state[k]


def network_inputs(returns: Floats, decay: Floats, variance: float) -> Floats:
    """Return what the network reads before each bar of one series: ``(T, 5 + J)``, row t knows returns 0..t-1."""
    sized = np.arcsinh(returns / math.sqrt(variance))
    out = np.zeros((len(returns), LAGS + len(decay)))
    for i in range(1, LAGS + 1):
        out[i:, i - 1] = sized[: max(len(returns) - i, 0)]
    out[:, LAGS:] = 0.5 * np.log(running_means(returns, decay, variance) / variance + FLOOR)
    return out
