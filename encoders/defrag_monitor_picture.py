"""Picture of a drift monitor: the statistic against its threshold, and the confidences below (extra ``viz``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from encoders.defrag_monitor import Reading
from markets.errors import require


def draw(streams: Mapping[str, Sequence[Reading]], threshold: float, path: Path, title: str) -> Path:
    """Draw the readings of each stream, by name, into a PNG and return its path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for place, (name, readings) in enumerate(streams.items()):
        blocks = [reading.block for reading in readings]
        colour = f"C{place}"
        upper.plot(blocks, [reading.statistic for reading in readings], color=colour, label=name)
        lower.plot(blocks, [reading.confidence for reading in readings], ".", markersize=3.5, color=colour)
        first = next((reading for reading in readings if reading.refit), None)
        if first is not None:
            upper.axvline(first.block, color=colour, linestyle=":", label=f"{name}: refit due from block {first.block}")
    upper.axhline(threshold, color="black", linestyle="--", linewidth=1.0, label=f"threshold {threshold:.1f}")
    peak = max((reading.statistic for readings in streams.values() for reading in readings), default=0.0)
    if peak > 10.0 * threshold:  # linear to the threshold, so that what happens below it stays to be seen
        upper.set_yscale("symlog", linthresh=threshold)
    upper.set_ylim(bottom=0.0)
    upper.set(ylabel="statistic (CUSUM)", title=title)
    upper.legend(fontsize=8, loc="upper left")
    lower.set(ylabel="confidence", xlabel="block", yscale="log")
    lower.set_yticks(10.0 ** np.arange(-3, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path
