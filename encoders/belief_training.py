"""Training of the belief filter: exact forward-backward, one Adam step at a time, then likelihood-accepted moves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.belief import BeliefConfig, BeliefParameters, log_likelihood, running_means
from markets.compiled import compiled
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Progress = Callable[[int, int, float], None]  # iteration, of how many, log-likelihood per bar

_log = logging.getLogger(__name__)

FIRST_SPELL = 200.0  # bars
EXTREME_SHARE = 0.03  # of the training bars that a reborn regime begins on
EXTREME_WINDOW = 64  # bars, centred: training only
START_HALF_LIFE = 32.0
JITTER = 0.08
ACCEPT = 2e-5  # rise of the log-likelihood per bar that keeps a move
PRIOR = 0.5  # counts added to every transition


@dataclass(frozen=True, kw_only=True)
class BeliefTraining:
    """Schedule: ``iterations`` at ``rate``, then ``moves`` of ``refit`` iterations, then ``last`` at ``last_rate``."""

    iterations: int = 100
    rate: float = 0.05
    moves: int = 4
    refit: int = 60
    refit_rate: float = 0.03
    last: int = 60
    last_rate: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("moves", 0), ("refit", 0), ("last", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        for name in ("rate", "refit_rate", "last_rate"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name}={value!r} must be a positive number")


class _Data:
    """Training returns of S series, end to end, with what the emission reads."""

    def __init__(self, series: Sequence[Floats], config: BeliefConfig) -> None:
        parts = [np.ascontiguousarray(one, np.float64) for one in series]
        for number, one in enumerate(parts):
            if one.ndim != 1 or not len(one):
                raise DataError(f"series {number} has shape {one.shape}, expected (T,) with at least one return")
            if not np.isfinite(one).all():
                raise DataError(f"series {number}, row {int(np.argmin(np.isfinite(one)))} is not a finite number")
        self.returns = np.concatenate([np.empty(0), *parts])
        if len(self.returns) < 50 * config.regimes:
            raise DataError(f"{len(self.returns)} returns cannot tell {config.regimes} regimes apart")
        self.variance = float(np.mean(self.returns**2))
        if not self.variance > 0.0:
            raise DataError("the returns do not move: there is no volatility to tell regimes by")
        self.decay = 0.5 ** (1.0 / np.array(config.half_lives))
        self.starts = np.cumsum([0] + [len(one) for one in parts])[:-1].astype(np.int64)
        self.bank = np.concatenate([running_means(one, self.decay, self.variance) for one in parts])
        before = np.concatenate([[0.0], self.returns[:-1]])
        before[self.starts] = 0.0
        self.before = before
        self.tensors = tuple(torch.from_numpy(array) for array in (self.returns, self.bank, self.before))


class _Model:
    """Free parameters as tensors, and the densities and chain they stand for."""

    names = ("w", "c", "m", "phi", "nu", "a", "off")

    def __init__(self, config: BeliefConfig, values: dict[str, Floats]) -> None:
        self.config = config
        self.values = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()
        }

    def copy(self) -> dict[str, Floats]:
        """Return the present numbers."""
        return {name: value.detach().numpy().copy() for name, value in self.values.items()}

    def weights(self) -> Tensor:
        """Weights of the running means: ``(K, J)``."""
        c = self.values["c"]
        cap = self.config.bank_cap
        return torch.nn.functional.softplus(c) if cap is None else cap * torch.softmax(c, dim=1)

    def log_density(self, data: _Data) -> Tensor:
        """``log p(r_t | k)``: ``(T, K)``."""
        returns, bank, before = data.tensors
        v = self.values
        variance = torch.exp(v["w"]) + bank @ self.weights().T
        nu = 2.1 + torch.nn.functional.softplus(v["nu"])
        location = v["m"] * torch.exp(0.5 * v["w"]) + torch.tanh(v["phi"]) * before[:, None]
        surprise = returns[:, None] - location
        normal = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log((nu - 2) * math.pi)
        tail = torch.log1p(surprise * surprise / (variance * (nu - 2)))
        return normal - 0.5 * torch.log(variance) - 0.5 * (nu + 1) * tail

    def log_chain(self) -> Tensor:
        """``log P``: ``(K, K)``."""
        leave = torch.sigmoid(self.values["a"]) / self.config.dwell_floor
        count = len(leave)
        eye = torch.eye(count, dtype=torch.bool)
        off = torch.log_softmax(self.values["off"].masked_fill(eye, -math.inf), dim=1)
        off = torch.where(eye, torch.zeros_like(off), off)  # a gradient of -inf would be NaN
        return torch.where(eye, torch.log1p(-leave)[:, None].expand(count, count), off + torch.log(leave)[:, None])

    def parameters(self, data: _Data) -> BeliefParameters:
        """Return the filter in natural units."""
        with torch.no_grad():
            v = self.values
            base = torch.exp(v["w"])
            return BeliefParameters(
                base.numpy(), (v["m"] * torch.sqrt(base)).numpy(), torch.tanh(v["phi"]).numpy(),
                (2.1 + torch.nn.functional.softplus(v["nu"])).numpy(), self.weights().numpy(), data.decay,
                torch.exp(self.log_chain()).numpy(), data.variance,
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Smoothed:
    """What forward-backward finds: ``posterior (T, K)``, ``predictive (T, K)``, expected moves ``(K, K)``."""

    posterior: Floats
    predictive: Floats
    moves: Floats
    log_likelihood: float


def smooth(log_density: Floats, chain: Floats, starts: NDArray[np.int64]) -> Smoothed:
    """Run forward-backward over S series that begin at ``starts``; ``log_density (T, K)``, ``chain (K, K)``."""
    bars, count = log_density.shape
    posterior, predictive, moves = np.empty((bars, count)), np.empty((bars, count)), np.zeros((count, count))
    work = np.empty((3, count))
    scale = np.empty(bars)
    ends = np.append(starts[1:], bars).astype(np.int64)
    peak = log_density.max(axis=1)
    density = np.exp(np.maximum(log_density - peak[:, None], -700.0))
    _forward_backward(density, np.ascontiguousarray(chain), starts, ends, predictive, posterior, moves, scale, work)
    return Smoothed(posterior, predictive, moves, float((np.log(scale) + peak).sum()) / bars)


@compiled
def _forward_backward(
    density: Floats, chain: Floats, starts: NDArray[np.int64], ends: NDArray[np.int64], predictive: Floats,
    posterior: Floats, moves: Floats, scale: Floats, work: Floats,
) -> None:  # fmt: skip
    """Scaled recursions; ``posterior`` holds the filtered odds on the way forward and the smoothed ones after."""
    count = chain.shape[0]
    for series in range(starts.shape[0]):
        first, stop = starts[series], ends[series]
        for t in range(first, stop):
            total = 0.0
            for k in range(count):
                odds = 1.0 / count
                if t > first:
                    odds = 0.0
                    for j in range(count):
                        odds += posterior[t - 1, j] * chain[j, k]
                predictive[t, k] = odds
                posterior[t, k] = odds * density[t, k]
                total += posterior[t, k]
            scale[t] = total
            for k in range(count):
                posterior[t, k] /= total
        for k in range(count):
            work[0, k] = 1.0  # beta of the bar after
        for t in range(stop - 2, first - 1, -1):
            for k in range(count):
                work[1, k] = work[0, k] * density[t + 1, k] / scale[t + 1]
            for j in range(count):
                work[2, j] = 0.0
                for k in range(count):
                    passed = chain[j, k] * work[1, k]
                    work[2, j] += passed
                    moves[j, k] += posterior[t, j] * passed
            for j in range(count):
                work[0, j] = work[2, j]
                posterior[t, j] *= work[2, j]


def fit_belief(
    series: Sequence[Floats],
    config: BeliefConfig | None = None,
    training: BeliefTraining | None = None,
    progress: Progress | None = None,
) -> tuple[BeliefParameters, Smoothed]:
    """Fit a filter to S series of percent log returns, ``(T_s,)`` each.

    Returns:
        the filter, regimes ordered by volatility, and the smoothed posterior of the training bars in that order.

    Raises:
        DataError: returns that are not finite, do not move, or are too few.
    """
    config, training = config or BeliefConfig(), training or BeliefTraining()
    data = _Data(series, config)
    model = _Model(config, _start(data, config, np.random.default_rng(training.seed)))
    total = training.iterations + training.moves * training.refit + training.last
    done = 0

    def told(value: float) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, value)

    best = _ascend(model, data, training.iterations, training.rate, told)
    for move in range(training.moves):
        kept = model.copy()
        moved = _Model(config, _reborn(model, data, move))
        value = _ascend(moved, data, training.refit, training.refit_rate, told)
        accepted = value > best + ACCEPT
        _log.debug("move %d: %.6f -> %.6f, %s", move, best, value, "kept" if accepted else "undone")
        model, best = (moved, value) if accepted else (_Model(config, kept), best)
    if training.last:
        _ascend(model, data, training.last, training.last_rate, told)
    found = _expect(model, data)
    parameters = model.parameters(data)
    order = np.argsort(parameters.volatility, kind="stable")
    ordered = Smoothed(
        found.posterior[:, order], found.predictive[:, order], found.moves[np.ix_(order, order)], found.log_likelihood
    )
    return parameters.ordered(), ordered


def choose_regimes(
    train: Sequence[Floats],
    judged: Sequence[Floats],
    config: BeliefConfig,
    choices: Sequence[int] = (3, 4, 5, 6, 7, 8),
    seed: int = 0,
) -> tuple[int, dict[int, float]]:
    """Choose K by the likelihood of validation returns, from short fits without moves.

    Returns:
        K, and the mean log density a bar of each choice.
    """
    short = BeliefTraining(iterations=60, moves=0, last=0, seed=seed)
    scores: dict[int, float] = {}
    for count in choices:
        found, _ = fit_belief(train, replace(config, regimes=count), short)
        scores[count] = float(
            np.average([log_likelihood(found, one) for one in judged], weights=[len(o) for o in judged])
        )
    return max(scores, key=lambda count: scores[count]), scores


def _expect(model: _Model, data: _Data) -> Smoothed:
    with torch.no_grad():
        return smooth(model.log_density(data).numpy(), torch.exp(model.log_chain()).numpy(), data.starts)


def _ascend(model: _Model, data: _Data, iterations: int, rate: float, told: Callable[[float], None]) -> float:
    """Take one Adam step on the expected log-likelihood after each exact pass; returns the likelihood reached."""
    tensors = [model.values[name] for name in model.names]
    optimiser = torch.optim.Adam(tensors, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=max(iterations, 2))
    for _ in range(iterations):
        log_density, log_chain = model.log_density(data), model.log_chain()
        found = smooth(log_density.detach().numpy(), torch.exp(log_chain.detach()).numpy(), data.starts)
        expected = (torch.from_numpy(found.posterior) * log_density).sum()
        expected = expected + (torch.from_numpy(found.moves + PRIOR) * log_chain).sum()
        optimiser.zero_grad()
        (-expected / len(data.returns)).backward()
        optimiser.step()
        schedule.step()
        told(found.log_likelihood)
    return _expect(model, data).log_likelihood


def _start(data: _Data, config: BeliefConfig, rng: np.random.Generator) -> dict[str, Floats]:
    """Begin with bars sorted into K classes by a slow running volatility, its edges jittered by the seed."""
    count = config.regimes
    decay = np.array([0.5 ** (1.0 / START_HALF_LIFE)])
    apart = np.split(data.returns, data.starts[1:])
    slow = np.concatenate([running_means(one, decay, data.variance)[:, 0] for one in apart])
    slow = 0.5 * np.log(slow + 1e-12)
    edges = np.quantile(slow, np.arange(1, count) / count) + JITTER * rng.standard_normal(count - 1)
    state = np.searchsorted(np.sort(edges), slow)
    w, m = np.empty(count), np.empty(count)
    for k in range(count):
        here = data.returns[state == k]
        w[k], m[k] = _moments(here if len(here) > 10 else data.returns)
    leave = min(config.dwell_floor / FIRST_SPELL, 0.9)
    return {
        "w": w, "m": m, "c": np.full((count, len(config.half_lives)), -3.0), "phi": np.zeros(count),
        "nu": np.full(count, math.log(math.expm1(3.8 - 2.1))), "a": np.full(count, math.log(leave / (1.0 - leave))),
        "off": np.zeros((count, count)),
    }  # fmt: skip


def _moments(returns: Floats) -> tuple[float, float]:
    """Return w and m of a regime from its bars: log of 0.7 times the variance, mean in deviations."""
    variance = max(float(np.var(returns)), 1e-12)
    return math.log(0.7 * variance), float(np.mean(returns)) / math.sqrt(variance)


def _reborn(model: _Model, data: _Data, move: int) -> dict[str, Floats]:
    """Take the regime that matters least (the second least from the third move on) to where bars are most extreme."""
    found = _expect(model, data)
    with torch.no_grad():
        density = torch.exp(torch.clamp(model.log_density(data), min=-700.0)).numpy()
    joint = found.predictive * density
    whole = joint.sum(axis=1)[:, None]
    without = np.maximum((whole - joint) / (1.0 - found.predictive + 1e-12), 1e-300)
    costs = np.mean(np.log(whole / without), axis=0)  # fall of the one-step log-likelihood without each regime
    victim = int(np.argsort(costs)[0 if move < 2 else 1])
    bars = data.returns[_extreme(data, move)]
    values = model.copy()
    others = [k for k in range(len(values["w"])) if k != victim]
    for name in ("c", "phi", "nu", "a"):
        values[name][victim] = values[name][others].mean(axis=0)
    values["off"][victim] = values["off"][others].mean(axis=0)
    values["off"][:, victim] = values["off"][:, others].mean(axis=1)
    values["w"][victim], values["m"][victim] = _moments(bars)
    return values


def _extreme(data: _Data, move: int) -> NDArray[np.bool_]:
    """Bars most extreme in a centred window: high variance, low drift, high drift, low variance, in turn."""
    window = np.ones(EXTREME_WINDOW) / EXTREME_WINDOW
    mean = np.convolve(data.returns, window, mode="same")
    square = np.convolve(data.returns**2, window, mode="same")
    spread = np.maximum(square - mean**2, 1e-12)
    score = (np.log(spread), -mean / np.sqrt(spread), mean / np.sqrt(spread), -np.log(spread))[move % 4]
    return np.asarray(score >= np.quantile(score, 1.0 - EXTREME_SHARE))
