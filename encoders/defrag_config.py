"""Settings of the defragmentation encoder: structure, training, memory. Defaults are those of the source document.

Source: the ChronosDefrag document ("Temporal Defragmentation for Quantitative Finance"), whose input width (6), block
length (64), latent width (64) and 30 epochs stand. Where its default was measured to do harm ours differs: positives
are adjacent blocks (not distorted copies of one block) and the decay over the whole registry is 2 % (not 8 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from markets.errors import ArtefactError, ConfigError, unknown

KERNEL = 5  # ticks of a convolution
DILATIONS = (1, 2, 4)  # of the three convolutions
REACH = (KERNEL - 1) * sum(DILATIONS)  # ticks before a position that it sees
LEAST_BLOCKS = 4
LEAST_LEARNED = 4  # latent columns beside the moments
MOMENTS = 3  # per feature: mean, log deviation, lag-1 autocorrelation
POSITIVES = ("adjacent", "augmented")
SCALERS = ("standard", "robust")
CHAINS = ("greedy", "edge")
LATER = frozenset({"interval_level", "hierarchy"})  # settings that the first checkpoints do not have


@dataclass(frozen=True, kw_only=True)
class DefragConfig:
    """Every setting of :class:`encoders.defrag.ChronosDefragEngine`.

    Attributes:
        input_dim: F features a tick. block_len: L ticks a block. latent_dim: D columns of an embedding.
        hidden: channels of the convolutions.
        moments_weight: share of an embedding's squared length that the block's moments have (3 F of the D columns); 0
            leaves them out.
        scaler: ``standard`` (mean, deviation) or ``robust`` (median, interquartile range), of the training range.
        positives: ``adjacent`` (the block ``lag`` blocks later) or ``augmented`` (the block itself with Gaussian
            ``jitter``, in deviations, and a cyclic shift by up to ``max_shift`` ticks).
        temperature: first value of the learned one. entropy_weight, continuity_weight: of the two regularisers.
        epoch_steps: batches that an epoch has at least.
        epochs, predictor_epochs, batch_size, learning_rate, weight_decay, clip: of training; clip bounds the gradient's
            norm.
        registry_capacity: C rows of memory. top_k: neighbours retrieved. decay: what a similarity keeps across as many
            blocks as the registry holds. label_horizon: ticks until a block's outcome is known.
        interval_level: of the interval on alpha, in (0, 1).
        hierarchy: scales, ascending from 1: level m reads a block with the m - 1 before it. A live window then has as
            many blocks as the largest (:mod:`encoders.defrag_hierarchy`).
        chain: how the pseudo-timeline is built, ``greedy`` or ``edge``.
        seed: of the one generator that everything here draws from.
    """

    input_dim: int = 6
    block_len: int = 64
    latent_dim: int = 64
    hidden: int = 32
    moments_weight: float = 0.5
    scaler: str = "standard"
    positives: str = "adjacent"
    lag: int = 1
    jitter: float = 0.1
    max_shift: int = 16
    temperature: float = 0.1
    entropy_weight: float = 0.1
    continuity_weight: float = 0.1
    epochs: int = 30
    predictor_epochs: int = 30
    epoch_steps: int = 6
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    clip: float = 1.0
    registry_capacity: int = 8192
    top_k: int = 16
    decay: float = 0.98
    label_horizon: int = 64
    interval_level: float = 0.95
    hierarchy: tuple[int, ...] = (1,)
    chain: str = "greedy"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("scaler", self.scaler, SCALERS), ("kind of positives", self.positives, POSITIVES),
            ("chain", self.chain, CHAINS),
        ):  # fmt: skip
            if value not in choices:
                raise unknown(name, value, choices)
        for name, least in (
            ("input_dim", 1), ("block_len", REACH + 4), ("latent_dim", 2), ("hidden", 1), ("lag", 1), ("max_shift", 0),
            ("epochs", 0), ("predictor_epochs", 0), ("epoch_steps", 1), ("batch_size", 2), ("registry_capacity", 1),
            ("top_k", 1), ("label_horizon", 0), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        for name in ("temperature", "learning_rate", "clip"):
            self._number(name, above=True)
        for name in ("jitter", "entropy_weight", "continuity_weight", "weight_decay"):
            self._number(name, above=False)
        self._number("moments_weight", above=False)
        if not self.moments_weight < 1.0:
            raise ConfigError(f"moments_weight={self.moments_weight!r} must be below 1: the rest is learned")
        if not (isinstance(self.decay, int | float) and 0.0 < self.decay <= 1.0):
            raise ConfigError(f"decay={self.decay!r} must be a number above 0 and at most 1")
        if not (isinstance(self.interval_level, float) and 0.0 < self.interval_level < 1.0):
            raise ConfigError(f"interval_level={self.interval_level!r} must be a number between 0 and 1")
        levels = tuple(self.hierarchy) if isinstance(self.hierarchy, list | tuple) else ()
        whole = all(isinstance(level, int) and not isinstance(level, bool) for level in levels)
        if not whole or levels[:1] != (1,) or any(b <= a for a, b in pairwise(levels)):
            raise ConfigError(f"hierarchy={self.hierarchy!r} must be whole numbers that ascend from 1, such as (1, 4)")
        object.__setattr__(self, "hierarchy", levels)
        if self.learned_dim < LEAST_LEARNED and self.moment_dim:
            raise ConfigError(
                f"latent_dim={self.latent_dim} leaves {self.learned_dim} columns beside the {self.moment_dim} moments "
                f"of input_dim={self.input_dim}: take at least {self.moment_dim + LEAST_LEARNED}, or moments_weight=0"
            )

    def _number(self, name: str, *, above: bool) -> None:
        value = getattr(self, name)
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < math.inf
        if not good or (above and value == 0.0):
            raise ConfigError(f"{name}={value!r} must be a finite number {'above' if above else 'of at least'} 0")

    @property
    def moment_dim(self) -> int:
        """Columns of moments in an embedding."""
        return MOMENTS * self.input_dim if self.moments_weight > 0.0 else 0

    @property
    def learned_dim(self) -> int:
        """Columns of an embedding that are learned."""
        return self.latent_dim - self.moment_dim

    @property
    def window_len(self) -> int:
        """Ticks of a live window."""
        return self.block_len * self.hierarchy[-1]

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DefragConfig:
        """Read back; a setting that came after the first files has its default, which is what those did.

        Raises:
            ArtefactError: a setting that is unknown, missing or has a value that cannot work.
        """
        missing = sorted(set(cls.__dataclass_fields__) - set(content) - LATER)
        if missing:
            raise ArtefactError(f"settings of the encoder lack {missing[0]!r}")
        try:
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise ArtefactError(f"settings of the encoder: {error}") from error
