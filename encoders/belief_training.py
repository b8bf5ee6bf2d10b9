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

from encoders.belief import EMISSIONS, BeliefConfig
from encoders.belief_models import BeliefData, BeliefModel, model_of, moments
from encoders.odds import Belief, log_likelihood
from markets.compiled import compiled
from markets.errors import ConfigError, unknown

Floats = NDArray[np.float64]
Progress = Callable[[int, int, float], None]  # iteration, of how many, log-likelihood per bar

_log = logging.getLogger(__name__)

EXTREME_SHARE = 0.03  # of the training bars that a reborn regime begins on
EXTREME_WINDOW = 64  # bars, centred: training only
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

    @classmethod
    def of(cls, emission: str, seed: int = 0) -> BeliefTraining:
        """Return the schedule of an emission: a network takes smaller steps at first and more of them at the end.

        Raises:
            UnknownNameError: no such emission.
        """
        if emission not in EMISSIONS:
            raise unknown("emission", emission, EMISSIONS)
        return cls(rate=0.03, last=100, seed=seed) if emission == "neural" else cls(seed=seed)


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
    density = np.ascontiguousarray(np.exp(np.maximum(log_density - peak[:, None], -700.0)))
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
) -> tuple[Belief, Smoothed]:
    """Fit a filter to S series of percent log returns, ``(T_s,)`` each.

    Args:
        series: returns. config: structure. progress: told after each iteration.
        training: schedule, None for that of the emission.

    Returns:
        the filter, regimes ordered by volatility, and the smoothed posterior of the training bars in that order.

    Raises:
        DataError: returns that are not finite, do not move, or are too few.
    """
    config = config or BeliefConfig()
    training = training or BeliefTraining.of(config.emission)
    model = model_of(config, BeliefData(series, config), np.random.default_rng(training.seed))
    total = training.iterations + training.moves * training.refit + training.last
    done = 0

    def told(value: float) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, value)

    best = _ascend(model, training.iterations, training.rate, told)
    for move in range(training.moves):
        kept = model.numbers()
        moved = model.with_values(_reborn(model, move))
        value = _ascend(moved, training.refit, training.refit_rate, told)
        accepted = value > best + ACCEPT
        _log.debug("move %d: %.6f -> %.6f, %s", move, best, value, "kept" if accepted else "undone")
        model, best = (moved, value) if accepted else (model.with_values(kept), best)
    if training.last:
        _ascend(model, training.last, training.last_rate, told)
    found = _expect(model)
    parameters = model.parameters(found.posterior)
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
    short = replace(BeliefTraining.of(config.emission, seed), iterations=60, moves=0, last=0)
    scores: dict[int, float] = {}
    for count in choices:
        found, _ = fit_belief(train, replace(config, regimes=count), short)
        scores[count] = float(
            np.average([log_likelihood(found, one) for one in judged], weights=[len(o) for o in judged])
        )
    return max(scores, key=lambda count: scores[count]), scores


def _expect(model: BeliefModel) -> Smoothed:
    with torch.no_grad():
        return expectation(model)[0]


def expectation(model: BeliefModel) -> tuple[Smoothed, Tensor]:
    """Run one exact pass; returns what it found and the expected log-likelihood of bars and moves, to be raised.

    Its gradient is that of the marginal log-likelihood plus ``PRIOR`` times the sum of log P (Fisher's identity).
    """
    log_density, log_chain = model.log_density(), model.log_chain()
    found = smooth(log_density.detach().numpy(), torch.exp(log_chain.detach()).numpy(), model.data.starts)
    expected = (torch.from_numpy(found.posterior) * log_density).sum()
    return found, expected + (torch.from_numpy(found.moves + PRIOR) * log_chain).sum()


def _ascend(model: BeliefModel, iterations: int, rate: float, told: Callable[[float], None]) -> float:
    """Take one Adam step on the expected log-likelihood after each exact pass; returns the likelihood reached."""
    optimiser = torch.optim.Adam(list(model.values.values()), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=max(iterations, 2))
    for _ in range(iterations):
        found, expected = expectation(model)
        optimiser.zero_grad()
        (-expected / len(model.data.returns)).backward()
        optimiser.step()
        schedule.step()
        told(found.log_likelihood)
    return _expect(model).log_likelihood


def _reborn(model: BeliefModel, move: int) -> dict[str, Floats]:
    """Take the regime that matters least (the second least from the third move on) to where bars are most extreme."""
    found = _expect(model)
    with torch.no_grad():
        density = torch.exp(torch.clamp(model.log_density(), min=-700.0)).numpy()
    joint = found.predictive * density
    whole = joint.sum(axis=1)[:, None]
    without = np.maximum((whole - joint) / (1.0 - found.predictive + 1e-12), 1e-300)
    costs = np.mean(np.log(whole / without), axis=0)  # fall of the one-step log-likelihood without each regime
    victim = int(np.argsort(costs)[0 if move < 2 else 1])
    returns = model.data.returns
    bars = returns[_extreme(returns, move)]
    values = model.numbers()
    others = [k for k in range(len(values["w"])) if k != victim]
    for name in model.by_regime:
        values[name][victim] = values[name][others].mean(axis=0)
    values["off"][victim] = values["off"][others].mean(axis=0)
    values["off"][:, victim] = values["off"][:, others].mean(axis=1)
    values["w"][victim], values["m"][victim] = moments(bars)
    return values


def _extreme(returns: Floats, move: int) -> NDArray[np.bool_]:
    """Bars most extreme in a centred window: high variance, low drift, high drift, low variance, in turn."""
    window = np.ones(EXTREME_WINDOW) / EXTREME_WINDOW
    mean = np.convolve(returns, window, mode="same")
    square = np.convolve(returns**2, window, mode="same")
    spread = np.maximum(square - mean**2, 1e-12)
    score = (np.log(spread), -mean / np.sqrt(spread), mean / np.sqrt(spread), -np.log(spread))[move % 4]
    return np.asarray(score >= np.quantile(score, 1.0 - EXTREME_SHARE))
