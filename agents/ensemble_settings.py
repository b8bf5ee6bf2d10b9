"""EnsembleSettings: how the votes of an ensemble become orders, and the size of an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import THRESHOLD
from agents.ensemble_weights import DAYS
from markets.errors import ConfigError, unknown

Floats = NDArray[np.float64]
COMBINE = ("vote", "select")
UNSURE = ("keep", "flat")


@dataclass(frozen=True)
class EnsembleSettings:
    """How votes become orders.

    Attributes:
        combine: ``vote`` or ``select``. adaptive: whether recent skill changes weights.
        threshold: |direction| that must be exceeded. floor: least confidence. full: confidence of the largest size.
        max_size: largest exposure asked for. unsure: what HOLD does, ``keep`` or ``flat``.
        days: length of the window of recent returns. cost: of a change of a paper position, as a fraction.
        errors: of ``select``, how many standard errors the mean must lie above 0.
        high: confidence from which on a BUY or SELL counts as a high-confidence signal.
        timeout: seconds a member may take; 0 waits. A clock makes runs differ: for live use.
    """

    combine: str = "vote"
    adaptive: bool = True
    threshold: float = THRESHOLD
    floor: float = 0.1
    full: float = 0.5
    max_size: float = 1.0
    unsure: str = "keep"
    days: float = DAYS
    cost: float = 0.0005
    errors: float = 1.0
    high: float = 0.5
    timeout: float = 0.0

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise unknown("combine", self.combine, COMBINE)
        if self.unsure not in UNSURE:
            raise unknown("unsure", self.unsure, UNSURE)
        if not isinstance(self.adaptive, bool):
            raise ConfigError(f"adaptive={self.adaptive!r} must be True or False")
        for name, low, high in (
            ("threshold", 0.0, 1.0), ("floor", 0.0, 1.0), ("full", 1e-6, 1.0), ("max_size", 0.0, 1.0),
            ("days", 0.01, 3650.0), ("cost", 0.0, 1.0), ("errors", 0.0, 100.0), ("high", 0.0, 1.0),
            ("timeout", 0.0, 3600.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name}={value!r} must be a number from {low} to {high}")


def position_size(confidence: Floats, settings: EnsembleSettings) -> Floats:
    """Return the size for each confidence: rising with it, and never above ``max_size``."""
    return np.asarray(settings.max_size * np.minimum(confidence / settings.full, 1.0))


def settings_of(values: Mapping[str, Any]) -> EnsembleSettings:
    """Read settings by name.

    Raises:
        UnknownNameError: no such setting.
    """
    valid = tuple(EnsembleSettings.__dataclass_fields__)
    for name in values:
        if name not in valid:
            raise unknown("setting of the ensemble", name, valid)
    return EnsembleSettings(**values)


def plain(settings: EnsembleSettings) -> dict[str, Any]:
    """Return settings as plain values."""
    return asdict(settings)
