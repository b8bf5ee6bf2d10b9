"""The live face of the defragmentation encoder: one closed bar in, the row of its table out.

What a bar costs does not grow with the history: the block, the embeddings of the last three blocks of bars, the rows
that the series remembers of its own last blocks with their outcomes so far, and the filter's odds are all that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.channels import ChannelStream
from encoders.defrag_market import nanoseconds, remembered
from encoders.defrag_numbers import CLIP, LONG, width_of
from encoders.defrag_past import filter_step, joined
from encoders.defrag_recall import OUTCOMES, Kept, Own, recall
from encoders.encoder import Arrays
from encoders.volatility_probes import SMALLEST
from markets.bars import Bars
from markets.errors import ArtefactError, DataError

if TYPE_CHECKING:
    from encoders.defrag_market import DefragEncoder

Array = NDArray[np.float32]


class DefragStream:
    """One closed bar in, its row out; equal to the table within rounding."""

    def __init__(self, encoder: DefragEncoder) -> None:
        self._encoder = encoder
        settings, numbers = encoder.settings, encoder.numbers
        self._channels = ChannelStream(numbers.scaler)
        self._dense = encoder.dense.stream()
        learned = numbers.weights.head_weight.shape[0]
        moments = len(numbers.moments.mean)
        self._back = np.zeros(((LONG - 1) * settings.block_len + 1, learned + moments), np.float32)
        self._filter = np.full(encoder.regimes, 1.0 / encoder.regimes)
        self._seen = 0
        self._kept: Kept | None = None  # in the order in which the bars of this stream may see it
        self._z = np.zeros((0, width_of(numbers, settings)), np.float32)
        self._ends = np.zeros(0, np.int64)
        self._sums = np.zeros((0, OUTCOMES))  # of the returns after each own block, and of their squares

    def update(self, bar: Bars) -> Array | None:
        """Take the last row of ``bar`` as one closed bar; None until the warm-up is over.

        Raises:
            DataError: a price that is not finite and positive, a volume that is not finite or below 0; the state is as
                it was.
        """
        close, volume = float(bar.close[-1, 0]), float(bar.volume[-1, 0])
        if not (math.isfinite(close) and close > 0.0):
            raise DataError(f"close {close!r} is not a finite and positive price")
        if not (math.isfinite(volume) and volume >= 0.0):
            raise DataError(f"volume {volume!r} is not a finite number of at least 0")
        encoder = self._encoder
        settings, numbers = encoder.settings, encoder.numbers
        learned, moments = self._dense.update(self._channels.take(bar))
        now, self._seen = self._seen, self._seen + 1
        self._follow(now, self._channels.last_return)
        self._back[:-1] = self._back[1:]
        self._back[-1] = np.concatenate([learned, moments])
        longer = self._back[:: settings.block_len].astype(np.float64).sum(axis=0) / LONG
        width = len(learned)
        both = np.concatenate([moments, longer[width:].astype(np.float32)])[None]
        deep = np.concatenate([learned, longer[:width].astype(np.float32)])[None]
        evidence = encoder.evidence_of(both)
        filter_step(evidence[0], numbers.chain, settings.evidence, self._filter, np.empty(encoder.regimes))
        z = joined(learned[None], moments[None], numbers.moments, settings)
        row = None
        if now >= encoder.warm_up:
            recalled = self._recalled(bar, z, moments)
            odds = self._filter[None] if settings.voice == "belief" else evidence
            row = np.concatenate(
                [
                    encoder.served(both, deep @ numbers.components.T),
                    np.clip(recalled, -CLIP, CLIP),
                    np.clip(odds, 0.0, 1.0),
                ],
                axis=1,
            )[0].astype(np.float32)
        if remembered(bar, settings.block_len)[-1]:
            self._z = np.concatenate([self._z, z])
            self._ends = np.append(self._ends, now)
            self._sums = np.concatenate([self._sums, np.zeros((1, OUTCOMES))])
        return row

    @property
    def belief(self) -> NDArray[np.float64]:
        """Odds of the filter after the last bar, ``(K,)``; before any, even."""
        return self._filter.copy()

    def _follow(self, now: int, move: float) -> None:
        """Add a return to the outcomes that still run, and forget blocks that lie too far back."""
        settings = self._encoder.settings
        running = self._ends > now - settings.horizon - 1
        self._sums[running] += (move, move * move)
        near = self._ends > now - max(settings.own_blocks * settings.block_len, settings.horizon + 1)
        self._z, self._ends, self._sums = self._z[near], self._ends[near], self._sums[near]

    def _recalled(self, bar: Bars, z: Array, moments: Array) -> NDArray[np.float64]:
        encoder = self._encoder
        settings, scaler = encoder.settings, encoder.numbers.scaler
        if self._kept is None:
            self._kept = encoder.kept(bar)
        horizon = settings.horizon
        outcomes = np.column_stack(
            [
                self._sums[:, 0] / (scaler.deviation * math.sqrt(horizon)),
                (0.5 * np.log(np.maximum(self._sums[:, 1] / horizon, SMALLEST)) - scaler.level) / scaler.spread,
            ]
        )
        # the present is bar 0 of a history of one, its own blocks lie before it
        own = Own(self._z, outcomes, self._ends - (self._seen - 1), horizon, settings.own_blocks * settings.block_len)
        found = recall(z, nanoseconds(bar.close_time[-1:]), self._kept, own, settings.neighbours)
        return np.column_stack([found[:, :3], encoder.numbers.novelty.familiarity(moments[None])])

    def state_dict(self) -> Arrays:
        """Return what has to be kept to go on."""
        dense = {f"dense.{name}": value for name, value in self._dense.state().items()}
        return {
            **dense, "channels": self._channels.state(), "back": self._back.copy(), "filter": self._filter.copy(),
            "seen": np.array([self._seen]), "own.rows": self._z.copy(), "own.ends": self._ends.copy(),
            "own.sums": self._sums.copy(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` gave; a refused state leaves the stream as it was.

        Raises:
            ArtefactError: incomplete, of another encoder, or with numbers that cannot be.
        """
        for name, mine in self.state_dict().items():
            if name not in state:
                raise ArtefactError(f"state of a defrag stream lacks {name!r}: is it of another encoder?")
            given = np.asarray(state[name])
            shape = (len(state["own.ends"]), *mine.shape[1:]) if name.startswith("own.") else mine.shape
            if given.shape != shape or given.dtype != mine.dtype or not np.isfinite(given).all():
                raise ArtefactError(
                    f"state of a defrag stream: {name} is {given.dtype} {given.shape}, expected finite {mine.dtype} "
                    f"{shape}: is it of another encoder?"
                )
        self._dense.restore({k.removeprefix("dense."): v for k, v in state.items() if k.startswith("dense.")})
        self._channels.restore(state["channels"])
        self._back[...], self._filter[...] = state["back"], state["filter"]
        self._seen = int(state["seen"][0])
        self._z, self._ends = state["own.rows"].copy(), state["own.ends"].copy()
        self._sums = state["own.sums"].copy()
