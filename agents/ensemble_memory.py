"""EnsembleMemory: what an ensemble remembers between bars, and how it learns from closes that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.ensemble_settings import EnsembleSettings
from agents.ensemble_weights import likeness, skilled
from agents.market_view import MarketView
from agents.selection import best_of
from markets.errors import ConfigError

Floats = NDArray[np.float64]
DAY = np.timedelta64(1, "D")


class EnsembleMemory:
    """What an ensemble remembers between bars, per lane: votes, paper returns, weights, and its members' states."""

    def __init__(self, base: Floats, settings: EnsembleSettings, lanes: int, view: MarketView) -> None:
        self._base, self._settings = base, settings
        bars, members = view.bars, len(base)
        self.assets = len(bars.symbols)
        self._window = max(round(settings.days * float(DAY / bars.interval)), 3)
        self._refresh = max(round(float(DAY / bars.interval)), 1)
        self.states: list[Any] = [None] * members
        self.row = np.full(lanes, -1, np.int64)
        self.asked = np.zeros((lanes, self.assets))
        self.chosen = np.full(lanes, -1, np.int64)
        self.weights = np.tile(base, (lanes, 1))
        self._position = np.zeros((lanes, members, self.assets))
        self._before = np.zeros_like(self._position)
        self._returns = np.zeros((lanes, self._window, members))
        self._seen = np.zeros(lanes, np.int64)
        self._differ = np.zeros((lanes, members, members), bool)
        self._voted = np.zeros((lanes, members), bool)
        self._likeness = np.tile(np.eye(members), (lanes, 1, 1))

    def forget(self, lanes: NDArray[np.bool_]) -> None:
        """Begin anew in some lanes; members see ``episode_start`` themselves."""
        for values, fresh in (
            (self.row, -1), (self.asked, 0.0), (self.chosen, -1), (self.weights, self._base),
            (self._position, 0.0), (self._before, 0.0), (self._returns, 0.0), (self._seen, 0), (self._differ, False),
            (self._voted, False), (self._likeness, np.eye(self._voted.shape[1])),
        ):  # fmt: skip
            values[lanes] = fresh

    def close(self, view: MarketView, direction: Floats, confidence: Floats, alive: NDArray[np.bool_]) -> None:
        """Book what the votes of the bar before earned up to this close, then take note of the present votes."""
        rows = np.asarray(view.rows(), np.int64)
        if len(rows) != len(self.row):
            raise ConfigError(f"{len(self.row)} observations of {len(rows)} lanes that the ensemble watches")
        close = view.bars.close
        moved = (self.row >= 0) & (rows > self.row)
        if moved.any():
            change = close[rows] / close[np.maximum(self.row, 0)] - 1.0
            paid = self._settings.cost * np.abs(self._position - self._before)
            earned = (self._position * change[:, None, :] - paid).mean(axis=2)
            earned = np.where(np.isfinite(earned), earned, 0.0)
            for lane in np.flatnonzero(moved).tolist():
                self._returns[lane, self._seen[lane] % self._window] = earned[lane]
                self._seen[lane] += 1
                if self._seen[lane] % self._refresh == 0:
                    self._learn(lane, view.bars.periods_per_year)
        self.row = rows.copy()
        self._before, self._position = self._position, direction * confidence
        self._note(alive)

    def alike(self) -> Floats:
        """Return the likeness of the members in each lane, ``(B, M, M)``."""
        both = self._voted[:, :, None] & self._voted[:, None, :]
        return np.where(both & ~self._differ, 1.0, self._likeness)

    def _note(self, alive: NDArray[np.bool_]) -> None:
        """Take note of who disagreed; only bars on which both answered count."""
        votes = self._position
        other = (votes[:, :, None, :] != votes[:, None, :, :]).any(axis=3)
        self._differ |= other & alive[:, :, None] & alive[:, None, :]
        self._voted |= (votes != 0.0).any(axis=2)

    def _learn(self, lane: int, periods: float) -> None:
        """Set weights, likeness and choice of a lane by its paper returns up to the present close."""
        past = self._returns[lane, : min(int(self._seen[lane]), self._window)]
        if self._settings.adaptive:
            self.weights[lane] = skilled(self._base, past, periods)
        self._likeness[lane] = likeness(past)
        self.chosen[lane] = best_of(past, self._settings.errors)
