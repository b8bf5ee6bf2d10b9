"""Blocks of ticks: checked, cut without overlap, each with the ticks it covers, and scaled by training statistics.

Letters: T ticks, F features, N blocks, L ticks a block. Ticks are numbered; the number of a block's last tick is its
time stamp, and everything that asks "was this known then?" compares such numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.defrag_config import LEAST_BLOCKS
from markets.errors import ArtefactError, DataError

Array = NDArray[np.float32]

EXTREME = 1e6  # training deviations beyond which a number is an error of the data and not a market
SMALLEST = 1e-8  # of a scale


@dataclass(frozen=True, eq=False)
class Blocks:
    """Chronological blocks.

    Attributes:
        values: ``(N, L, F)``. starts, ends: ``(N,)`` numbers of the first and the last tick of each.
        unused: ticks after the last whole block, which nothing reads.
    """

    values: Array
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    unused: int

    def __len__(self) -> int:
        return len(self.values)


def slice_blocks(features: Array, block_len: int, first_tick: int = 0) -> Blocks:
    """Cut ``(T, F)`` ticks into ``T // block_len`` blocks; no tick is in two, the ragged tail is in none.

    Raises:
        DataError: fewer than four blocks.
    """
    count = len(features) // block_len
    if count < LEAST_BLOCKS:
        raise DataError(
            f"Need at least {LEAST_BLOCKS} blocks, {len(features)} ticks give {count} of {block_len}: "
            f"provide at least {LEAST_BLOCKS * block_len} ticks"
        )
    starts = first_tick + block_len * np.arange(count, dtype=np.int64)
    values = np.ascontiguousarray(features[: count * block_len]).reshape(count, block_len, -1)
    return Blocks(values, starts, starts + block_len - 1, len(features) - count * block_len)


def checked(features: ArrayLike, shape: tuple[int | None, ...], what: str) -> Array:
    """Return ``features`` as float32 of ``shape`` (None: any length), finite.

    Takes whatever numpy can read: arrays, lists, tensors of torch on the CPU.

    Raises:
        DataError: another shape, or a number that is not finite; names the first row and column.
    """
    try:
        values = np.asarray(features, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be read as numbers: {error}") from error
    fits = values.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, values.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise DataError(f"{what} has shape {values.shape}, expected ({wanted})")
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{what} holds {values[place]} at {place}: every number must be finite (fill or drop it first)")
    return values


@dataclass(frozen=True, eq=False)
class BlockScaler:
    """``(x - center) / scale`` by feature, fitted on the training range only.

    Attributes:
        center, scale: ``(F,)`` float32; a feature that never moves in training has scale 1.
    """

    center: Array
    scale: Array

    def __post_init__(self) -> None:
        if self.center.shape != self.scale.shape or self.center.ndim != 1 or not (self.scale > 0.0).all():
            raise ArtefactError("scaler: center and scale must be two rows of one length, scale above 0")

    @classmethod
    def neutral(cls, features: int) -> BlockScaler:
        """Return the scaler that changes nothing."""
        return cls(np.zeros(features, np.float32), np.ones(features, np.float32))

    @classmethod
    def fit(cls, features: Array, kind: str) -> BlockScaler:
        """Fit on ``(T, F)``: mean and deviation, or (``robust``) median and interquartile range / 1.349."""
        wide = features.astype(np.float64)
        if kind == "robust":
            low, center, high = np.quantile(wide, (0.25, 0.5, 0.75), axis=0)
            scale = (high - low) / 1.349  # of a normal distribution: its deviation
        else:
            center, scale = wide.mean(0), wide.std(0)
        still = scale <= SMALLEST * np.maximum(1.0, np.abs(center))
        return cls(center.astype(np.float32), np.where(still, 1.0, scale).astype(np.float32))

    def apply(self, values: Array, what: str = "a window") -> Array:
        """Scale ``(..., F)``.

        Raises:
            DataError: a number further from the training range than ``EXTREME`` deviations.
        """
        scaled: Array = (values - self.center) / self.scale
        if not max(float(scaled.max()), -float(scaled.min())) < EXTREME:
            place = tuple(int(i) for i in np.argwhere(~(np.abs(scaled) < EXTREME))[0])
            raise DataError(
                f"{what} holds {values[place]} at {place}, more than {EXTREME:g} training deviations out: "
                f"an error of the data (clip or repair it first)"
            )
        return scaled

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the numbers by name."""
        return {"scaler.center": self.center, "scaler.scale": self.scale}
