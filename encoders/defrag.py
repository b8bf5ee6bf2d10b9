"""Temporal defragmentation: the encoder with memory, from ticks to a live answer.

``fit`` cuts the training range into blocks, trains the encoder, orders the blocks by likeness (pseudo-timeline),
trains the predictor on that order and fills the registry. ``predict_live`` embeds a window, retrieves the past blocks
most like it that may be seen at that tick, and answers with what followed them. After the ChronosDefrag document,
whose system this is; where the document's form does not work, the difference stands in the module that holds it.
Serving needs no torch.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.defrag_alpha import alpha_interval, weighted_outcome
from encoders.defrag_blocks import BlockScaler, checked, slice_blocks
from encoders.defrag_chain import timeline_entropy
from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import EncoderWeights, MomentScale, RegimeEncoder
from encoders.defrag_hierarchy import BlockHierarchy
from encoders.defrag_novelty import Novelty
from encoders.defrag_predictor import TemporalPredictor
from encoders.defrag_router import Neighbours, VectorDefragRouter
from markets.errors import DataError, InSampleError, NotFittedError

if TYPE_CHECKING:
    from encoders.defrag_training import Told

Array = NDArray[np.float32]

COLLAPSED = 1.5  # effective dimensions of the learned part below which it has collapsed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LivePrediction:
    """One answer.

    Attributes:
        alpha_prediction: similarity-weighted mean of the neighbours' realised outcomes, in the outcomes' unit; nan
            where no neighbour has one (``alpha_count`` is 0): it is absent then, not estimated.
        alpha_count, alpha_standard_error: neighbours with an outcome, and the mean's standard error (nan below two).
        alpha_interval: ends of alpha's interval at ``interval_level`` (nan below two): :mod:`encoders.defrag_alpha`.
        regime_confidence: share of training blocks at least as far from the others as this window, in (0, 1].
        system_latency_ms: wall time of the call.
        embedding, context, continuation: ``(D,)`` of the window, of its neighbourhood, and the foretold next block's.
        neighbours: what was retrieved.
    """

    alpha_prediction: np.float64
    alpha_count: int
    alpha_standard_error: np.float64
    alpha_interval: tuple[float, float]
    regime_confidence: float
    system_latency_ms: float
    embedding: Array
    context: Array
    continuation: Array
    neighbours: Neighbours


@dataclass(frozen=True)
class FitLog:
    """What a fit did.

    Attributes:
        blocks, unused_ticks: of the training range. encoder, predictor: mean losses by epoch.
        temperature: the learned one. persistence: the predictor's loss of "the next is as this one".
        timeline_entropy: how far the pseudo-timeline leaves the order of time, 0 to 1.
        effective_dimension: ``exp`` of the learned part's Gram entropy; ``collapsed`` where it is below 1.5.
        encoder_gradient, predictor_gradient: largest norm of a training step, before and after clipping.
    """

    blocks: int
    unused_ticks: int
    encoder: tuple[dict[str, float], ...]
    predictor: tuple[float, ...]
    temperature: float
    persistence: float
    timeline_entropy: float
    effective_dimension: float
    collapsed: bool
    encoder_gradient: tuple[float, float] = (0.0, 0.0)
    predictor_gradient: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that a fit decides, beside the registry.

    Attributes:
        train_end: number of the last tick of the training range, the live boundary.
    """

    scaler: BlockScaler
    hierarchy: BlockHierarchy
    predictor: TemporalPredictor
    novelty: Novelty
    train_end: int
    feature_names: tuple[str, ...]
    log: FitLog = field(repr=False)

    @property
    def encoder(self) -> RegimeEncoder:
        """The encoder of single blocks, level 1."""
        return self.hierarchy.encoders[0]


class ChronosDefragEngine:
    """Encoder, memory and predictor of one stream of ticks.

    Args:
        config: settings; the defaults of :class:`DefragConfig` where None.
    """

    def __init__(self, config: DefragConfig | None = None) -> None:
        self.config = DefragConfig() if config is None else config
        self.router = VectorDefragRouter(self.config)
        self._fitted: Fitted | None = None
        weights = EncoderWeights.initial(self.config, np.random.default_rng(self.config.seed))
        scale = MomentScale.neutral(self.config.input_dim)
        self._untrained = RegimeEncoder(weights, scale, self.config.moments_weight)

    @property
    def is_fitted(self) -> bool:
        """Whether there has been a fit or a checkpoint."""
        return self._fitted is not None

    @property
    def fitted(self) -> Fitted:
        """What the fit decided.

        Raises:
            NotFittedError: there was none.
        """
        if self._fitted is None:
            raise NotFittedError("Engine must be fit() before predict_live(): call fit(...) or load_checkpoint(...)")
        return self._fitted

    @property
    def encoder(self) -> RegimeEncoder:
        """The trained encoder; before a fit the one that training begins from."""
        return self._untrained if self._fitted is None else self._fitted.encoder

    def fit(
        self,
        features: ArrayLike,
        outcomes: ArrayLike | None = None,
        *,
        feature_names: Sequence[str] | None = None,
        first_tick: int = 0,
        told: Told | None = None,
    ) -> FitLog:
        """Fit on chronological ``(T, F)`` features; a second fit begins anew. Nothing is trained on outcomes.

        Args:
            outcomes: ``(T,)``: what followed tick t, known ``label_horizon`` ticks later; nan where it is not known. A
                block's outcome is that of its last tick.
            feature_names: of the F columns, for the checkpoint. first_tick: number of the first row.
            told: called after every epoch of the encoder.

        Raises:
            DataError: shape, numbers that are not finite, fewer than four blocks, training that diverges.
        """
        from encoders.defrag_predictor_training import train_predictor
        from encoders.defrag_training import train_encoder

        config = self.config
        raw = checked(features, (None, config.input_dim), "features")
        names = _names(feature_names, config.input_dim)
        known = _outcomes(outcomes, len(raw))
        blocks = slice_blocks(raw, config.block_len, first_tick)
        used = len(blocks) * config.block_len
        scaler = BlockScaler.fit(raw[:used], config.scaler)
        ticks = scaler.apply(raw[:used], "features")
        generator = np.random.default_rng(config.seed)
        start = EncoderWeights.initial(config, generator)
        trained = train_encoder(ticks, config, start, generator, told)
        values = ticks.reshape(blocks.values.shape)
        hierarchy = BlockHierarchy.fit(config.hierarchy, trained.weights, config.moments_weight, values)
        z, moments = hierarchy.embed_blocks(values)
        order = self.router.build_pseudo_timeline(z)
        foretold = train_predictor(z, order, config, generator)
        dimension = effective_dimension(z[:, config.moment_dim :])  # of the learned columns
        log = FitLog(
            len(blocks), blocks.unused, trained.history, foretold.history, trained.temperature, foretold.persistence,
            timeline_entropy(order), dimension, dimension < COLLAPSED, trained.gradient, foretold.gradient,
        )  # fmt: skip
        if log.collapsed:
            _log.warning(
                "the learned part has collapsed to %.2f effective dimensions: raise entropy_weight, lower temperature, "
                "or give it more blocks", dimension,
            )  # fmt: skip
        self.router = VectorDefragRouter(config)
        self.router.add(z, blocks.ends, known[:used][config.block_len - 1 :: config.block_len])
        self._fitted = Fitted(
            scaler,
            hierarchy,
            TemporalPredictor(foretold.weights),
            Novelty.fit(moments),
            first_tick + len(raw) - 1,
            names,
            log,
        )
        return log

    def predict_live(self, window: ArrayLike, time: int | None = None) -> LivePrediction:
        """Answer for one ``(L, F)`` window whose last tick has the number ``time``.

        Of several scales the window has ``window_len`` ticks, earlier blocks first; they may be of the training range.
        Without ``time`` the window is the block that follows the training range and whatever was remembered since.
        Rows of the registry count only where their block's end plus ``label_horizon`` is not after ``time``.

        Raises:
            NotFittedError: before a fit. DataError: shape, numbers that are not finite or absurd.
            InSampleError: ``time`` is not after the training range.
        """
        began = clock.perf_counter()
        fitted = self.fitted
        tick = self._live_tick(fitted, time)
        z, moments = self._embed_window(fitted, window)
        found = self.router.query(z, tick)
        context = self.router.reconstruct_context(found)
        onward = fitted.predictor.infer(np.concatenate([self.router.registry[found.rows[::-1]], z[None]]))
        alpha, count, error = weighted_outcome(found)
        interval = alpha_interval(alpha, count, error, self.config.interval_level)
        confidence = fitted.novelty.confidence(moments)
        latency = 1e3 * (clock.perf_counter() - began)
        return LivePrediction(alpha, count, error, interval, confidence, latency, z, context, onward, found)

    def confidence(self, block: ArrayLike, time: int | None = None) -> float:
        """Return how like the training range one ``(L, F)`` block is: ``regime_confidence``, which reads no other.

        Raises:
            As :meth:`predict_live`.
        """
        fitted = self.fitted
        self._live_tick(fitted, time)
        values = checked(block, (self.config.block_len, self.config.input_dim), "window")
        return fitted.novelty.confidence(fitted.encoder.moments(fitted.scaler.apply(values, "window")[None])[0])

    def remember(self, window: ArrayLike, time: int, outcome: float | None = None) -> None:
        """Add a window to the registry: visible, with its outcome, ``label_horizon`` ticks after ``time``.

        Raises:
            As :meth:`predict_live`; DataError too where ``time`` is before the newest row or the outcome is infinite.
        """
        fitted = self.fitted
        tick = self._live_tick(fitted, time)
        z, _ = self._embed_window(fitted, window)
        known = _outcomes(None if outcome is None else [outcome], 1)
        self.router.add(z[None], np.array([tick]), known)

    def _live_tick(self, fitted: Fitted, time: int | None) -> int:
        if time is None:
            newest = int(self.router.ends[: self.router.size].max()) if self.router.size else fitted.train_end
            return max(newest, fitted.train_end) + self.config.block_len
        if isinstance(time, bool) or not isinstance(time, int | np.integer):
            raise DataError(f"time={time!r} must be the whole number of the window's last tick")
        if time <= fitted.train_end:
            raise InSampleError(
                f"time={time} is not after the training range, which ends at tick {fitted.train_end}: an answer there "
                f"would know the window's own future"
            )
        return int(time)

    def _embed_window(self, fitted: Fitted, window: ArrayLike) -> tuple[Array, Array]:
        values = checked(window, (self.config.window_len, self.config.input_dim), "window")
        return fitted.hierarchy.embed_window(fitted.scaler.apply(values, "window"))

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint (one zip: JSON and safetensors) and return its path.

        Raises:
            NotFittedError: before a fit. OSError: the file could not be written; what stood there is untouched.
        """
        from encoders.defrag_checkpoint import write_checkpoint

        return write_checkpoint(Path(path), self.config, self.fitted, self.router)

    def load_checkpoint(self, path: str | Path) -> ChronosDefragEngine:
        """Take over a checkpoint and return self; the registry's size, ``top_k``, ``decay`` and schedules stay ours.

        A smaller registry keeps the newest rows.

        Raises:
            ArtefactError: incomplete, altered, or of another structure than this engine's configuration.
        """
        from encoders.defrag_checkpoint import read_checkpoint

        checkpoint = read_checkpoint(Path(path))
        checkpoint.check_structure(self.config)
        router = VectorDefragRouter(self.config)
        router.restore(checkpoint.registry)
        self.router, self._fitted = router, checkpoint.fitted
        return self

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> ChronosDefragEngine:
        """Return an engine with the configuration of a checkpoint.

        Raises:
            ArtefactError: as :meth:`load_checkpoint`.
        """
        from encoders.defrag_checkpoint import read_checkpoint

        return cls(read_checkpoint(Path(path)).config).load_checkpoint(path)


def _names(given: Sequence[str] | None, features: int) -> tuple[str, ...]:
    names = tuple(f"feature_{i:02d}" for i in range(features)) if given is None else tuple(given)
    if len(names) != features or len(set(names)) != features or not all(isinstance(name, str) for name in names):
        raise DataError(f"feature_names={names!r} must be {features} different names")
    return names


def _outcomes(given: ArrayLike | None, ticks: int) -> NDArray[np.float64]:
    if given is None:
        return np.full(ticks, np.nan)
    try:
        outcomes = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"outcomes cannot be read as numbers: {error}") from error
    if outcomes.shape != (ticks,):
        raise DataError(f"outcomes have shape {outcomes.shape}, expected ({ticks},)")
    if np.isinf(outcomes).any():
        raise DataError(f"outcomes hold an infinite number at {int(np.argwhere(np.isinf(outcomes))[0, 0])}")
    return outcomes


def effective_dimension(z: Array) -> float:
    """``1 / mean_ij cos_ij^2``: 1 where all rows lie on one line, D where they fill the space."""
    rows = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    second = rows.T.astype(np.float64) @ rows / len(rows)
    return float(1.0 / max(float(np.square(second).sum()), 1e-12))
