"""Rendering: price, position and equity of the last bars, as an RGB image or in a window (extra ``viz``)."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import require

BARS = 256  # drawn and kept; older ones are forgotten, so that a long episode costs no more
SIZE = (9.6, 6.4)  # inches
DPI = 100
PANELS = ("mark price", "position", "equity")

_log = logging.getLogger(__name__)


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

    def paint(self, figure: Any) -> None:
        """Draw what is kept into a matplotlib figure, in place of what it showed."""
        figure.clear()
        times = np.array([point[0] for point in self._points])
        axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        for axis, place, label in zip(axes, (1, 2, 3), PANELS, strict=True):
            axis.plot(times, [point[place] for point in self._points], linewidth=1.2, drawstyle="steps-post")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        figure.autofmt_xdate()

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
        self.paint(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Window:
    """A matplotlib window that follows a trace; where no display is found, it says so once and draws unseen."""

    def __init__(self, title: str, fps: float) -> None:
        self._title = title
        self._pause = 1.0 / fps  # seconds that a frame stays
        self._figure: Any = None
        self._shown = False

    def show(self, trace: Trace) -> None:
        """Draw the trace and let the window answer for the length of a frame.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        require("matplotlib", "viz")
        from matplotlib import pyplot as plt

        if self._figure is None or not plt.fignum_exists(self._figure.number):  # the user may have closed it
            self._figure = plt.figure(figsize=SIZE, dpi=DPI, layout="constrained")  # a number of its own
            if self._figure.canvas.manager is not None:
                self._figure.canvas.manager.set_window_title(self._title)
            self._shown = self._figure.canvas.required_interactive_framework is not None
            if not self._shown:
                _log.warning(
                    "render_mode='human' finds no display (matplotlib backend %s): frames are drawn, not shown; "
                    "render_mode='rgb_array' returns them",
                    plt.get_backend(),
                )
        trace.paint(self._figure)
        self._figure.canvas.draw()
        if self._shown:
            plt.pause(self._pause)

    def close(self) -> None:
        """Close the window if it is open."""
        if self._figure is not None:
            from matplotlib import pyplot as plt

            plt.close(self._figure)
            self._figure = None
