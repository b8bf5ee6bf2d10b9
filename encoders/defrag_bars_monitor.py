"""Watching bars with a deployed defragmentation encoder of bars: are those after its training range still like it?

Bars up to ``until`` calibrate, those after it are watched, block by block without overlap. Both are read through the
encoder's scales, which were fitted on its own training range; the reference of what is usual is that of these bars up
to ``until``, so that one symbol is compared with its own past and not with others'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_market import DefragEncoder
from encoders.defrag_monitor import Calibration, DriftMonitor, Reading
from encoders.defrag_novelty import Novelty
from encoders.encoder import is_generated
from markets.bars import Bars, as_time
from markets.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Watched:
    """What was found.

    Attributes:
        monitor: after the last block. readings: a block each. closes: ``(n,)`` close of each block's last bar.
        until: end of the calibration. left: bars after the last whole block.
    """

    monitor: DriftMonitor
    readings: list[Reading]
    closes: NDArray[np.datetime64]
    until: np.datetime64
    left: int


def watch_bars(
    encoder: DefragEncoder, bars: Bars, until: str | None = None, false_alarm: float = 0.05, horizon: int = 200
) -> Watched:
    """Calibrate on bars that closed by ``until`` and watch those after it.

    Args:
        until: a date or time; the end of the encoder's training range where None.

    Raises:
        ConfigError: generated bars without ``until``: the dates of a training range mean nothing there.
        DataError: too few bars before ``until``, or no whole block after it.
    """
    if until is None and is_generated(bars.market, bars.source):
        raise ConfigError("generated bars have dates of their own: say by until (--until DATE) where watching begins")
    end = as_time(encoder.provenance.train_end if until is None else until, "until")
    length, warm = encoder.settings.block_len, encoder.settings.settled
    _, moments = encoder.dense.embed(encoder.numbers.scaler.of_bars(bars))
    cut = int(np.searchsorted(bars.close_time, end, side="right"))
    known = np.arange(cut - 1, warm - 1, -length)[::-1]  # whole blocks up to the cut, the last one ends there
    later = np.arange(cut - 1 + length, len(bars), length)
    if not len(later):
        raise DataError(f"{len(bars) - cut} bars after {str(end)[:16]} hold no block of {length} to watch")
    if not len(known):
        raise DataError(f"{cut} bars up to {str(end)[:16]} are too few to calibrate on: {warm + length} hold one block")
    calibration = Calibration.fit(moments[known], false_alarm, horizon)
    usual, monitor = Novelty.fit(moments[known]), DriftMonitor(calibration)
    readings = [monitor.update(usual.confidence(moments[row])) for row in later.tolist()]
    return Watched(monitor, readings, bars.close_time[later], end, len(bars) - 1 - int(later[-1]))
