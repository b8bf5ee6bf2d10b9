"""What the training of a belief filter turns: free parameters of each emission as tensors, and where they begin."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from encoders.belief import BeliefConfig, BeliefParameters, running_means
from encoders.neural_belief import HIDDEN, LAGS, SWING, NeuralBelief, network_inputs
from encoders.odds import Belief
from markets.errors import DataError

Floats = NDArray[np.float64]

FIRST_SPELL = 200.0  # bars
START_HALF_LIFE = 32.0
JITTER = 0.08
FIRST_DOF, LEAST_DOF = 3.8, 2.1


class BeliefData:
    """Training returns of S series, end to end."""

    def __init__(self, series: Sequence[Floats], config: BeliefConfig) -> None:
        self.parts = [np.ascontiguousarray(one, np.float64) for one in series]
        for number, one in enumerate(self.parts):
            if one.ndim != 1 or not len(one):
                raise DataError(f"series {number} has shape {one.shape}, expected (T,) with at least one return")
            if not np.isfinite(one).all():
                raise DataError(f"series {number}, row {int(np.argmin(np.isfinite(one)))} is not a finite number")
        self.returns = np.concatenate([np.empty(0), *self.parts])
        if len(self.returns) < 50 * config.regimes:
            raise DataError(f"{len(self.returns)} returns cannot tell {config.regimes} regimes apart")
        self.variance = float(np.mean(self.returns**2))
        if not self.variance > 0.0:
            raise DataError("the returns do not move: there is no volatility to tell regimes by")
        self.decay = 0.5 ** (1.0 / np.array(config.memory))
        self.starts = np.cumsum([0] + [len(one) for one in self.parts])[:-1].astype(np.int64)
        self.column = torch.from_numpy(self.returns[:, None])


class BeliefModel(ABC):
    """Free parameters as tensors, and the densities and the chain they stand for.

    Attributes:
        values: tensors by name. by_regime: names of those of which a reborn regime takes the mean of the others.
    """

    by_regime: ClassVar[tuple[str, ...]]

    def __init__(self, config: BeliefConfig, data: BeliefData, values: dict[str, Floats]) -> None:
        self.config, self.data, self.values = config, data, _tensors(values)

    def with_values(self, values: dict[str, Floats]) -> BeliefModel:
        """Return the same model with other numbers."""
        other = copy.copy(self)
        other.values = _tensors(values)
        return other

    def numbers(self) -> dict[str, Floats]:
        """Return the present numbers."""
        return {name: value.detach().numpy().copy() for name, value in self.values.items()}

    @abstractmethod
    def log_density(self) -> Tensor:
        """``log p(r_t | k)``: ``(T, K)``."""

    @abstractmethod
    def parameters(self, posterior: Floats) -> Belief:
        """Return the filter in natural units; ``posterior (T, K)`` weighs the training bars of each regime."""

    def dof(self) -> Tensor:
        """Degrees of freedom of each regime's shocks: ``(K,)``."""
        return LEAST_DOF + functional.softplus(self.values["nu"])

    def log_chain(self) -> Tensor:
        """``log P``: ``(K, K)``."""
        leave = torch.sigmoid(self.values["a"]) / self.config.dwell_floor
        count = len(leave)
        eye = torch.eye(count, dtype=torch.bool)
        off = torch.log_softmax(self.values["off"].masked_fill(eye, -math.inf), dim=1)
        off = torch.where(eye, torch.zeros_like(off), off)  # a gradient of -inf would be NaN
        return torch.where(eye, torch.log1p(-leave)[:, None].expand(count, count), off + torch.log(leave)[:, None])

    def _student(self, square: Tensor, log_variance: Tensor) -> Tensor:
        """Log density of a Student t from the squared shock over its variance and the log of that: ``(T, K)``."""
        nu = self.dof()
        normal = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log((nu - 2) * math.pi)
        return normal - 0.5 * log_variance - 0.5 * (nu + 1) * torch.log1p(square / (nu - 2))


class StudentModel(BeliefModel):
    """The closed form of :mod:`encoders.belief`."""

    by_regime = ("c", "phi", "nu", "a")

    def __init__(self, config: BeliefConfig, data: BeliefData, rng: np.random.Generator) -> None:
        values = _start(data, config, rng)
        count = config.regimes
        values |= {"c": np.full((count, len(config.memory)), -3.0), "phi": np.zeros(count)}
        super().__init__(config, data, values)
        bank = np.concatenate([running_means(one, data.decay, data.variance) for one in data.parts])
        before = np.concatenate([[0.0], data.returns[:-1]])
        before[data.starts] = 0.0
        self._bank, self._before = torch.from_numpy(bank), torch.from_numpy(before[:, None])

    def weights(self) -> Tensor:
        """Weights of the running means: ``(K, J)``."""
        c = self.values["c"]
        cap = self.config.bank_cap
        return functional.softplus(c) if cap is None else cap * torch.softmax(c, dim=1)

    def log_density(self) -> Tensor:
        """``log p(r_t | k)``: ``(T, K)``."""
        v = self.values
        variance = torch.exp(v["w"]) + self._bank @ self.weights().T
        location = v["m"] * torch.exp(0.5 * v["w"]) + torch.tanh(v["phi"]) * self._before
        surprise = self.data.column - location
        return self._student(surprise * surprise / variance, torch.log(variance))

    def parameters(self, posterior: Floats) -> BeliefParameters:
        """Return the filter in natural units."""
        with torch.no_grad():
            v = self.values
            base = torch.exp(v["w"])
            return BeliefParameters(
                base.numpy(), (v["m"] * torch.sqrt(base)).numpy(), torch.tanh(v["phi"]).numpy(), self.dof().numpy(),
                self.weights().numpy(), self.data.decay, torch.exp(self.log_chain()).numpy(), self.data.variance,
            )  # fmt: skip


class NeuralModel(BeliefModel):
    """The network of :mod:`encoders.neural_belief`; its outputs begin at 0, so that training begins with regimes."""

    by_regime = ("C", "B", "b", "nu", "a")

    def __init__(self, config: BeliefConfig, data: BeliefData, rng: np.random.Generator) -> None:
        values = _start(data, config, rng)
        count, width = config.regimes, LAGS + len(config.memory)
        bound = width**-0.5
        values |= {
            "A": rng.uniform(-bound, bound, (HIDDEN, width)), "offset": rng.uniform(-bound, bound, HIDDEN),
            "C": np.zeros((count, HIDDEN)), "B": np.zeros((count, HIDDEN)), "b": np.zeros(count),
        }  # fmt: skip
        super().__init__(config, data, values)
        inputs = [network_inputs(one, data.decay, data.variance) for one in data.parts]
        self._inputs = torch.from_numpy(np.ascontiguousarray(np.concatenate(inputs).T))  # by bar along a row: faster

    def _network(self) -> tuple[Tensor, Tensor]:
        """Location in deviations and log variance: ``(T, K)`` each."""
        v, count = self.values, self.config.regimes
        units = torch.tanh(torch.addmm(v["offset"][:, None], v["A"], self._inputs))
        out = torch.addmm(torch.cat([v["m"], v["b"]])[:, None], torch.cat([v["C"], v["B"]]), units)
        return out[:count].T, v["w"] + SWING * torch.tanh(0.5 * out[count:]).T

    def log_density(self) -> Tensor:
        """``log p(r_t | k)``: ``(T, K)``."""
        location, log_variance = self._network()
        shock = self.data.column * torch.exp(-0.5 * log_variance) - location
        return self._student(shock * shock, log_variance)

    def parameters(self, posterior: Floats) -> NeuralBelief:
        """Return the filter in natural units."""
        with torch.no_grad():
            v = {name: value.numpy().copy() for name, value in self.values.items()}
            location, log_variance = (one.numpy() for one in self._network())
            weight = posterior / np.maximum(posterior.sum(axis=0), 1e-300)
            return NeuralBelief(
                base=np.exp(v["w"]), location=v["m"], dof=self.dof().numpy(), location_weight=v["C"],
                scale_weight=v["B"], scale_bias=v["b"], hidden_weight=v["A"], hidden_bias=v["offset"],
                decay=self.data.decay, transition=torch.exp(self.log_chain()).numpy(), variance=self.data.variance,
                typical_volatility=np.sqrt((weight * np.exp(log_variance)).sum(axis=0)),
                typical_drift=(weight * location).sum(axis=0),
            )  # fmt: skip


MODELS: dict[str, type[StudentModel] | type[NeuralModel]] = {"student": StudentModel, "neural": NeuralModel}


def model_of(config: BeliefConfig, data: BeliefData, rng: np.random.Generator) -> BeliefModel:
    """Begin the model of the configuration's emission."""
    return MODELS[config.emission](config, data, rng)


def _tensors(values: dict[str, Floats]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def _start(data: BeliefData, config: BeliefConfig, rng: np.random.Generator) -> dict[str, Floats]:
    """Begin with bars sorted into K classes by a slow running volatility, its edges jittered by the seed."""
    count = config.regimes
    decay = np.array([0.5 ** (1.0 / START_HALF_LIFE)])
    slow = np.concatenate([running_means(one, decay, data.variance)[:, 0] for one in data.parts])
    slow = 0.5 * np.log(slow + 1e-12)
    edges = np.quantile(slow, np.arange(1, count) / count) + JITTER * rng.standard_normal(count - 1)
    state = np.searchsorted(np.sort(edges), slow)
    w, m = np.empty(count), np.empty(count)
    for k in range(count):
        here = data.returns[state == k]
        w[k], m[k] = moments(here if len(here) > 10 else data.returns)
    leave = min(config.dwell_floor / FIRST_SPELL, 0.9)
    return {
        "w": w, "m": m, "nu": np.full(count, math.log(math.expm1(FIRST_DOF - LEAST_DOF))),
        "a": np.full(count, math.log(leave / (1.0 - leave))), "off": np.zeros((count, count)),
    }  # fmt: skip


def moments(returns: Floats) -> tuple[float, float]:
    """Return w and m of a regime from its bars: log of 0.7 times the variance, mean in deviations."""
    variance = max(float(np.var(returns)), 1e-12)
    return math.log(0.7 * variance), float(np.mean(returns)) / math.sqrt(variance)
