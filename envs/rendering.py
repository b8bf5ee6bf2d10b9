"""Rendering: price, position and equity of the last bars as an RGB image (extra ``viz``)."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import require

BARS = 256  # drawn and kept; older ones are forgotten, so that a long episode costs no more
SIZE = (9.6, 6.4)  # inches
DPI = 100


class Trace:
    """The last bars of an episode: time, price, position, equity."""

    def __init__(self) -> None:
        self._points: deque[tuple[Any, float, float, float]] = deque(maxlen=BARS)

    def begin(self) -> None:
        """Forget the episode before."""
        self._points.clear()

    def add(self, time: np.datetime64, price: float, position: float, equity: float) -> None:
        """Keep one bar."""
        self._points.append((time, price, position, equity))

    def draw(self) -> NDArray[np.uint8]:
        """Draw what is kept: ``(H, W, 3)`` uint8.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        require("matplotlib", "viz")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        times = np.array([point[0] for point in self._points])
        axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        for axis, place, label in zip(axes, (1, 2, 3), ("mark price", "position", "equity"), strict=True):
            axis.plot(times, [point[place] for point in self._points], linewidth=1.2, drawstyle="steps-post")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        figure.autofmt_xdate()
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
