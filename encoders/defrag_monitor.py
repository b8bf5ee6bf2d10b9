"""Watching a deployed defragmentation encoder: is the stream still like its training range, or is a refit due?

Every block of a live stream has a confidence p, the conformal p-value of :mod:`encoders.defrag_novelty`. On a stream
like the training range it is spread evenly over (0, 1], so that ``-ln p`` has mean 1; on an unlike one it is near 0.
The monitor adds up the excess (CUSUM, Page 1954)::

    S_0 = 0,   S_t = max(0, S_{t-1} - ln p_t - mean - ALLOWANCE),   refit is due from the first S_t > threshold on

The threshold is the ``1 - false_alarm`` quantile of ``max S_t`` over ``horizon`` blocks of a stream that does not
drift. Such a stream is not a row of independent, exactly uniform numbers, for two reasons that are both simulated:
blocks of one regime lie together, so confidences are autocorrelated; and a finite training range makes all of them a
little too high or too low. How much is measured on held-out parts of the training range: it is cut into five
contiguous parts, and each is told by the other four, two blocks at its edges left out. The ranks of those held-out
confidences, as normal scores, have n values, a variance inflation ``tau`` (flat-top estimate of Politis and White 2004,
at least 1) and so ``n / tau`` effective ones. The simulated stream is ``p = Phi(a_t + d)`` with an AR(1) process a of
unit variance and the same inflation, ``rho = (tau - 1) / (tau + 1)``, and one shift d a stream, a Student's t with half
as many degrees of freedom as effective values, times ``sqrt(tau / n)``. Where the held-out parts are unlike each other,
``mean`` is their mean score instead of 1.

On simulated streams of three regimes the share of flags stayed near the nominal rate or below it with 30 effective
blocks and more; with some 25 it reached two to three times that rate, and a calibration warns. Seen is what the
confidence sees: mean, deviation and lag-1 autocorrelation of each feature. How features move together is not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.defrag_blocks import checked
from encoders.defrag_novelty import APART, REFERENCE, Novelty
from markets.errors import ArtefactError, ConfigError, DataError

if TYPE_CHECKING:
    from encoders.defrag import ChronosDefragEngine

Floats = NDArray[np.float64]

ALLOWANCE = 1.0  # excess that every block is forgiven: half of the shift that is found soonest, for Page's test
FOLDS = 5
SURE = 30.0  # effective blocks below which the false-alarm rate is not kept
LEAST = 20  # training blocks without which nothing can be said about their dependence
DRAWS, BEYOND = 2000, 20  # simulated streams at least, and those above the threshold

_log = logging.getLogger(__name__)

_NORMAL = NormalDist()
_GRID = np.linspace(-8.0, 8.0, 3201)
_CDF = np.array([_NORMAL.cdf(x) for x in _GRID])


@dataclass(frozen=True)
class Calibration:
    """What a stream that does not drift does, measured on the training range.

    Attributes:
        mean: of ``-ln p`` on held-out parts, at least 1. inflation: tau of the module. blocks: n of the training range.
        threshold: of the statistic. false_alarm: probability of a flag within the first ``horizon`` blocks.
    """

    mean: float
    inflation: float
    blocks: int
    threshold: float
    false_alarm: float
    horizon: int

    @property
    def effective(self) -> float:
        """Training blocks in units of independent ones."""
        return self.blocks / self.inflation

    @classmethod
    def fit(cls, moments: ArrayLike, false_alarm: float = 0.05, horizon: int = 200, seed: int = 0) -> Calibration:
        """Calibrate on ``(N, M)`` standardised moments of the training blocks, all of them, in order of time.

        Raises:
            ConfigError: ``false_alarm`` outside 0.001 .. 0.5, ``horizon`` outside 1 .. 10,000.
            DataError: fewer than 20 blocks.
        """
        if not 1e-3 <= false_alarm <= 0.5:
            raise ConfigError(f"false_alarm={false_alarm!r} must lie from 0.001 to 0.5")
        if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= 10_000:
            raise ConfigError(f"horizon={horizon!r} must be a whole number of blocks from 1 to 10,000")
        rows = checked(moments, (None, None), "moments")
        if len(rows) < LEAST:
            raise DataError(
                f"{len(rows)} training blocks cannot say what a stream without drift does: at least {LEAST} are needed"
            )
        generator = np.random.default_rng(seed)
        held_out = _held_out(rows)
        tau = _inflation(_normal_scores(held_out, generator))
        kept = min(len(rows), REFERENCE)
        draws = max(DRAWS, math.ceil(BEYOND / false_alarm))
        peaks = _peaks(tau, len(rows) / tau, kept, horizon, draws, generator)
        mean = max(1.0, float(-np.log(held_out).mean()))
        if len(rows) / tau < SURE:
            _log.warning(
                "%d training blocks are worth %.0f independent ones: with less than %.0f false alarms are "
                "more frequent than the rate asked for", len(rows), len(rows) / tau, SURE,
            )  # fmt: skip
        return cls(mean, tau, len(rows), float(np.quantile(peaks, 1.0 - false_alarm)), float(false_alarm), horizon)


def calibration_of(
    engine: ChronosDefragEngine, training: ArrayLike | None = None, false_alarm: float = 0.05, horizon: int = 200
) -> Calibration:
    """Calibrate on what a fitted engine remembers of its training range, or on the range itself.

    Args:
        training: ``(T, F)`` raw ticks that the engine was fitted on; needed where the range had more than 1,024 blocks,
            of which an engine keeps a sample that has lost how neighbours depend on each other.

    Raises:
        NotFittedError: an engine without a fit. ConfigError: ``training`` is needed; as :meth:`Calibration.fit`.
        DataError: as there, and a ``training`` that is not of the fit.
    """
    fitted, config = engine.fitted, engine.config
    if training is None:
        if fitted.log.blocks > len(fitted.novelty.points):
            raise ConfigError(
                f"the engine keeps {len(fitted.novelty.points):,} of its {fitted.log.blocks:,} training blocks, a "
                "sample that says nothing of their dependence: pass the training ticks as well (training=, --training)"
            )
        return Calibration.fit(fitted.novelty.points, false_alarm, horizon)
    ticks = checked(training, (None, config.input_dim), "training")
    count = len(ticks) // config.block_len
    if count != fitted.log.blocks:
        raise DataError(f"training has {count:,} whole blocks, the engine was fitted on {fitted.log.blocks:,}")
    scaled = fitted.scaler.apply(ticks[: count * config.block_len], "training")
    moments = fitted.encoder.moments(scaled.reshape(count, config.block_len, -1))
    return Calibration.fit(moments, false_alarm, horizon)


@dataclass(frozen=True)
class Reading:
    """What the monitor says after a block.

    Attributes:
        block: its number, from 0. confidence: of the block. statistic: S_t. refit: whether a refit is due, which stays
            so until a monitor of the refitted encoder takes over.
    """

    block: int
    confidence: float
    statistic: float
    refit: bool


class DriftMonitor:
    """Sequential test over the confidences of a stream, one block after the other; its state is three numbers."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.blocks, self.statistic = 0, 0.0
        self.flagged: int | None = None

    @property
    def refit(self) -> bool:
        """Whether a refit is due."""
        return self.flagged is not None

    def update(self, confidence: float) -> Reading:
        """Take the confidence of the next block.

        Raises:
            DataError: not a number above 0 and at most 1; the monitor is as before.
        """
        if not isinstance(confidence, float | np.floating) or not 0.0 < confidence <= 1.0:
            raise DataError(f"confidence={confidence!r} of block {self.blocks} must be a number above 0 and at most 1")
        excess = -math.log(confidence) - self.calibration.mean - ALLOWANCE
        self.statistic = max(0.0, self.statistic + excess)
        if self.flagged is None and self.statistic > self.calibration.threshold:
            self.flagged = self.blocks
        reading = Reading(self.blocks, float(confidence), self.statistic, self.refit)
        self.blocks += 1
        return reading

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` reads: JSON values."""
        return {
            "blocks": self.blocks, "statistic": self.statistic, "flagged": self.flagged,
            "calibration": asdict(self.calibration),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; a refused one leaves the monitor as it was.

        Raises:
            ArtefactError: incomplete, impossible numbers, or of a monitor that was calibrated otherwise.
        """
        try:
            blocks, statistic, flagged = state["blocks"], state["statistic"], state["flagged"]
            calibration = Calibration(**state["calibration"])
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"state of a drift monitor: {error}") from error
        if not _alike(calibration, self.calibration):
            raise ArtefactError(
                f"the state is of a monitor with {calibration}, this one has {self.calibration}: one monitor "
                "watches one fit with one false-alarm rate"
            )
        whole = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 0
        number = isinstance(statistic, int | float) and 0.0 <= statistic < math.inf
        known = flagged is None or (isinstance(flagged, int) and whole and 0 <= flagged < blocks)
        if not (whole and number and known):
            raise ArtefactError(f"state of a drift monitor: blocks={blocks!r}, {statistic=!r}, {flagged=!r}")
        self.blocks, self.statistic, self.flagged = blocks, float(statistic), flagged


def watch(
    engine: ChronosDefragEngine, monitor: DriftMonitor, ticks: ArrayLike, first_tick: int | None = None
) -> Iterator[Reading]:
    """Read whole blocks of ``(T, F)`` raw ticks one after the other; ticks after the last whole block are left.

    Args:
        first_tick: number of the first row; None where it follows the training range.

    Raises:
        DataError: a block with a number that is not finite or absurd, after the readings of all blocks before it; the
            monitor then stands before that block. InSampleError: a block that ends inside the training range.
    """
    length, features = engine.config.block_len, engine.config.input_dim
    first = engine.fitted.train_end + 1 if first_tick is None else first_tick
    try:
        rows = np.asarray(ticks, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"ticks cannot be read as numbers: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != features:
        raise DataError(f"ticks have shape {rows.shape}, expected (any, {features})")
    for start in range(0, len(rows) - length + 1, length):
        last = first + start + length - 1
        try:
            confidence = engine.confidence(rows[start : start + length], last)
        except DataError as error:
            raise DataError(f"block {monitor.blocks}, ticks {first + start} to {last}: {error}") from error
        yield monitor.update(confidence)


def _alike(first: Calibration, second: Calibration) -> bool:
    """Compare calibrations; sums of another machine may differ in the last digits."""
    pairs = zip(asdict(first).values(), asdict(second).values(), strict=True)
    try:
        return all(math.isclose(one, other, rel_tol=1e-6) for one, other in pairs)
    except TypeError:
        return False


def _held_out(moments: NDArray[np.float32]) -> Floats:
    """Return the confidence of each block ``(N,)`` by the parts that it is not in."""
    edges = np.linspace(0, len(moments), FOLDS + 1).astype(np.int64)
    found = []
    for first, stop in pairwise(edges):
        others = Novelty.fit(np.concatenate([moments[: max(first - APART, 0)], moments[stop + APART :]]))
        found += [others.confidence(row) for row in moments[first:stop]]
    return np.array(found)


def _normal_scores(confidences: Floats, generator: np.random.Generator) -> Floats:
    """Return normal scores of the ranks; equal confidences, of which there are few levels, are put in random order."""
    order = np.lexsort((generator.random(len(confidences)), confidences))
    scores = np.empty(len(order))
    scores[order] = [_NORMAL.inv_cdf((rank + 0.5) / len(order)) for rank in range(len(order))]
    return scores


def _inflation(scores: Floats) -> float:
    """Return ``1 + 2 sum_k w_k r_k`` with a flat-top window at twice the first lag after which none stands out."""
    count = len(scores)
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    lags = min(math.ceil(math.sqrt(count)) + run, count - 1)
    apart = scores - scores.mean()
    r = np.array([apart[k:] @ apart[: count - k] for k in range(1, lags + 1)]) / (apart @ apart)
    small = np.abs(r) < 2.0 * math.sqrt(math.log10(count) / count)
    quiet = (k for k in range(lags - run + 1) if small[k : k + run].all())
    last = min(2 * max(next(quiet, lags), 1), lags)
    weights = np.minimum(1.0, 2.0 * (1.0 - np.arange(1, last + 1) / last))
    return max(1.0, 1.0 + 2.0 * float(weights @ r[:last]))


def _peaks(
    tau: float, effective: float, levels: int, horizon: int, draws: int, generator: np.random.Generator
) -> Floats:
    """Return the highest statistic of each simulated stream without drift, ``(draws,)``."""
    rho = (tau - 1.0) / (tau + 1.0)
    effective = max(effective, 3.0)
    shift = generator.standard_t(max(effective / 2.0, 3.0), draws) / math.sqrt(effective)
    a, statistic, peak = generator.standard_normal(draws), np.zeros(draws), np.zeros(draws)
    for _ in range(horizon):
        p = np.ceil(np.interp(a + shift, _GRID, _CDF) * (levels + 1)) / (levels + 1)
        statistic = np.maximum(0.0, statistic - np.log(p) - 1.0 - ALLOWANCE)
        peak = np.maximum(peak, statistic)
        a = rho * a + math.sqrt(1.0 - rho**2) * generator.standard_normal(draws)
    return peak
