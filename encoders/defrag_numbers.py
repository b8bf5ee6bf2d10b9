"""What the defragmentation encoder of bars is made of: its settings and its fitted numbers, as a file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.channels import MEMORY, ChannelScaler
from encoders.defrag_blocks import BlockScaler
from encoders.defrag_config import REACH
from encoders.defrag_encoder import EncoderWeights, MomentScale
from encoders.defrag_novelty import Novelty
from encoders.defrag_recall import Kept
from encoders.encoder import Arrays
from encoders.regimes import KMeansHead
from markets.errors import ArtefactError, unknown

Floats = NDArray[np.float64]

CLIP = 5.0  # deviations of the training range
LONG = 4  # blocks of the longer past
STATISTICS = ("mean", "deviation", "memory")  # of a channel in a block
VOICES = ("belief", "kmeans")
LEAST_BLOCK = REACH + 4  # ticks, of the block encoder as well
LARGEST = 2**20  # of a whole number: what a file may ask for and no memory could hold is refused
KEPT_AS = {
    "memory.rows": "float16",
    "memory.outcomes": "float64",
    "memory.visible_from": "int64",
    "memory.real": "uint8",
    "components": "float64",
    "scale.mean": "float64",
    "scale.deviation": "float64",
    "head.centres": "float64",
    "head.width": "float64",
    "chain": "float64",
}  # kind of each tensor of a file; float32 of all others


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is not a fitted number.

    Attributes:
        block_len: L, bars. moments_weight: their share of an embedding's squared length.
        neighbours: k of a recall. horizon: H, bars of an outcome. own_blocks: how many blocks back a series remembers
            itself. evidence: share of a bar's odds that counts as news. memory: bars after which the filter has
            forgotten where it began. voice: whose odds are served, ``belief`` (filtered) or ``kmeans`` (as they are).
    """

    block_len: int = 64
    moments_weight: float = 0.5
    neighbours: int = 16
    horizon: int = 64
    own_blocks: int = 8
    evidence: float = 0.5
    memory: int = 0
    voice: str = "belief"

    def __post_init__(self) -> None:
        if self.voice not in VOICES:
            raise unknown("voice of a defrag encoder", self.voice, VOICES)
        for name, least in (
            ("block_len", LEAST_BLOCK), ("neighbours", 2), ("horizon", 1), ("own_blocks", 0), ("memory", 0)
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
                raise ArtefactError(f"{name}={value!r} must be a whole number from {least} to {LARGEST:,}")
        for name, value, fits, said in (
            ("moments_weight", self.moments_weight, lambda x: 0.0 <= x < 1.0, "of at least 0 and below 1"),
            ("evidence", self.evidence, lambda x: 0.0 < x <= 1.0, "above 0 and at most 1"),
        ):
            if not isinstance(value, int | float) or isinstance(value, bool) or not fits(value):
                raise ArtefactError(f"{name}={value!r} must be a number {said}")

    @property
    def settled(self) -> int:
        """Bars after which a row no longer depends on where the history began, but for the filter and own memory."""
        return MEMORY + LONG * self.block_len

    @property
    def warm_up(self) -> int:
        """Bars before the first row that is served."""
        own = MEMORY + (self.own_blocks + 1) * self.block_len
        return max(own, self.settled + self.memory) + 1  # the first bar has no return


@dataclass(frozen=True, eq=False)
class Scale:
    """``(x - mean) / deviation`` of ``(T, n)`` columns, clipped to five deviations."""

    mean: Floats
    deviation: Floats

    def __post_init__(self) -> None:
        if self.mean.shape != self.deviation.shape or not (self.deviation > 0.0).all():
            raise ArtefactError("mean and deviation of served columns must be of one length, deviations above 0")

    @classmethod
    def fit(cls, columns: Floats) -> Scale:
        """Fit on training rows."""
        return cls(columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-9))

    def apply(self, columns: Any) -> Floats:
        """Standardise and clip."""
        return np.clip((np.asarray(columns, np.float64) - self.mean) / self.deviation, -CLIP, CLIP)


@dataclass(frozen=True, eq=False)
class Numbers:
    """The fitted numbers of an encoder.

    Attributes:
        scaler: of channels. blocks: of ticks. weights, moments: of the block encoder. novelty: reference of training.
        components: ``(P, 2 D')`` principal directions of the learned embedding of block and longer past.
        scale: of the ``6 F + P`` columns before the recalled ones. kept: memory. head: centres of the regimes.
        chain: ``(K, K)`` P.
    """

    scaler: ChannelScaler
    blocks: BlockScaler
    weights: EncoderWeights
    moments: MomentScale
    novelty: Novelty
    components: Floats
    scale: Scale
    kept: Kept
    head: KMeansHead
    chain: Floats

    def __post_init__(self) -> None:
        features, learned = len(self.scaler.names), self.weights.head_weight.shape[0]
        moments = len(STATISTICS) * features
        regimes = len(self.chain)
        for name, value, shape in (
            ("blocks.center", self.blocks.center, (features,)), ("moments.mean", self.moments.mean, (moments,)),
            ("first kernel's features", np.empty(self.weights.a_weight.shape[1]), (features,)),
            ("components", self.components, (len(self.components), 2 * learned)),
            ("scale.mean", self.scale.mean, (2 * moments + len(self.components),)),
            ("head.centres", self.head.centres, (regimes, 2 * moments)), ("chain", self.chain, (regimes, regimes)),
            ("novelty.points", self.novelty.points, (len(self.novelty.points), moments)),
        ):  # fmt: skip
            if value.shape != shape:
                raise ArtefactError(f"{name} has shape {value.shape}, expected {shape}")
        if not ((self.chain >= 0.0).all() and np.allclose(self.chain.sum(axis=1), 1.0)):
            raise ArtefactError("chain: a row is not odds")

    def arrays(self) -> Arrays:
        """Return every number by name; those of the scaler are plain values of the configuration."""
        return {
            **self.blocks.arrays(),
            **{f"encoder.{name}": value for name, value in self.weights.arrays().items()},
            "moments.mean": self.moments.mean, "moments.deviation": self.moments.deviation,
            "moments.persistence": self.moments.persistence, **self.novelty.arrays(), "components": self.components,
            "scale.mean": self.scale.mean, "scale.deviation": self.scale.deviation, **self.kept.arrays(),
            "head.centres": self.head.centres, "head.width": np.array([self.head.width]), "chain": self.chain,
        }  # fmt: skip

    @classmethod
    def read(cls, scaler: ChannelScaler, arrays: Arrays) -> Numbers:
        """Read back what :meth:`arrays` gave; raises ``KeyError`` where one is missing."""
        for name, value in arrays.items():
            if value.dtype != KEPT_AS.get(name, "float32"):
                raise ArtefactError(f"tensor {name!r} is {value.dtype}, expected {KEPT_AS.get(name, 'float32')}")
        if arrays["head.width"].shape != (1,):
            raise ArtefactError(f"tensor 'head.width' has shape {arrays['head.width'].shape}, expected (1,)")
        weights = {name[8:]: value for name, value in arrays.items() if name.startswith("encoder.")}
        return cls(
            scaler, BlockScaler(arrays["scaler.center"], arrays["scaler.scale"]), EncoderWeights(**weights),
            MomentScale(arrays["moments.mean"], arrays["moments.deviation"], arrays["moments.persistence"]),
            Novelty(arrays["novelty.points"], arrays["novelty.distances"]), arrays["components"],
            Scale(arrays["scale.mean"], arrays["scale.deviation"]),
            Kept(
                arrays["memory.rows"].astype(np.float32), arrays["memory.outcomes"], arrays["memory.visible_from"],
                arrays["memory.real"].astype(bool),
            ),
            KMeansHead(arrays["head.centres"], float(arrays["head.width"][0])), arrays["chain"],
        )  # fmt: skip


def width_of(numbers: Numbers, settings: Settings) -> int:
    """Return D, the length of a row that memory is asked with: without moments where they weigh nothing."""
    return numbers.weights.head_weight.shape[0] + (len(numbers.moments.mean) if settings.moments_weight else 0)
