"""Rows of the tables for the defragmentation encoder and the controls beside it.

The controls matter more here than elsewhere: moments of the block, each times its persistence, say most of what the
encoder says, and nothing in them is learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_market import DefragEncoder
from encoders.defrag_past import points_of
from encoders.defrag_pretrain import DefragPretrain, fit
from encoders.table_fits import Told
from encoders.table_rows import Model, Row
from markets.bars import Bars

Floats = NDArray[np.float64]


class DefragRows:
    """Rows whose fits share one encoder a seed.

    Args:
        series: training bars. plan: settings; its seed is replaced by that of the row. data: identifies the bars.
        odds: whether the regimes' odds have a row of their own.
    """

    def __init__(
        self, series: Sequence[Bars], plan: DefragPretrain, data: Mapping[str, Any], told: Told | None = None
    ) -> None:
        self.series, self.plan, self.told = list(series), replace(plan, validation=0.0), told
        own = {name: value for name, value in asdict(self.plan).items() if name not in ("seed", "command", "about")}
        settings = {**data, "defrag": own}
        self._made: tuple[int, int, DefragEncoder, float] | None = None
        self.rows = [
            Row("defrag-odds", "defrag: regime odds", self._odds, settings),
            Row("defrag", "defrag: all columns but the odds", self._columns(lambda name: True), settings),
            Row("defrag-learned", "defrag: learned columns alone", self._columns(_is_learned), settings),
            Row("defrag-moments", "defrag: weighted moments, nothing learned", self._points, settings, False),
            Row(
                "defrag-untrained", "defrag: learned columns, untrained", self._columns(_is_learned, epochs=0), settings
            ),
        ]  # fmt: skip

    def encoder(self, seed: int, epochs: int | None = None) -> tuple[DefragEncoder, float]:
        """Return the encoder of a seed and the CPU seconds of its fit; ``epochs=0`` leaves it untrained."""
        count = self.plan.config.epochs if epochs is None else epochs
        if self._made is None or self._made[:2] != (seed, count):
            began = time.process_time()
            plan = replace(self.plan, seed=seed, block={**self.plan.block, "epochs": count})
            made, _ = fit(self.series, plan, self.told)
            self._made = seed, count, made, time.process_time() - began
        return self._made[2:]

    def _odds(self, seed: int) -> Model:
        made, spent = self.encoder(seed)
        return Model(lambda bars: made.odds(bars), odds=True, cpu_seconds=spent)

    def _columns(self, chosen: Callable[[str], bool], epochs: int | None = None) -> Callable[[int], Model]:
        def fitted(seed: int) -> Model:
            made, spent = self.encoder(seed, epochs)
            names = made.names[: len(made.names) - made.regimes]
            places = [place for place, name in enumerate(names) if chosen(name)]
            return Model(
                lambda bars: made.encode(bars)[:, places].astype(np.float64),
                cpu_seconds=math.nan if epochs == 0 else spent,
            )

        return fitted

    def _points(self, seed: int) -> Model:
        made, _ = self.encoder(seed)
        return Model(lambda bars: points_of(made.past(bars).moments, made.numbers.moments), whiten=False)


def _is_learned(name: str) -> bool:
    return name.startswith("defrag_")
