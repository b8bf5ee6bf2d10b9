"""The search for a leak: another future from bar k on, for one k after the other, until the first row that knows it.

``k`` moves to find the first offending row and the reach. A clean result means that nothing was found at the places
that were tried; a leak at a single row in the middle of a long history needs more trials.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agents import leaks
from agents.counterfactual import WAYS
from agents.leaks import Leak, Leaks, Record
from markets.errors import ConfigError

Rebuild = Callable[[int, str], Record]

TRIALS = 20  # random places at which the future begins
SEARCH = 32  # places that the search for the first row and the reach may add, per column
TERMINATED, TRUNCATED = 1.0, 2.0  # what the column "ended" says

_log = logging.getLogger(__name__)


class Probe:
    """Replays with another future for any ``k``, each place once."""

    def __init__(self, subject: str, rebuild: Rebuild, reference: Record, limit: int) -> None:
        self.subject = subject
        self.rebuild = rebuild
        self.reference = reference
        self.limit = limit  # of places
        self.found: dict[int, tuple[NDArray[np.int64], list[str]]] = {}
        self.trials = 0
        self.skipped = 0

    def at(self, k: int) -> NDArray[np.int64]:
        """Return per column the first row (place in the record) that changed; their number where none did."""
        if k not in self.found:
            self.found[k] = self._try(k)
        return self.found[k][0]

    def _try(self, k: int) -> tuple[NDArray[np.int64], list[str]]:
        width, total = len(self.reference.names), len(self.reference.rows)
        first, ways = np.full(width, total), [""] * width
        for how in WAYS:
            if how == "cut" and k < self.reference.rows[0] + 2:
                continue  # too short to be played
            places = self._compare(k, how)
            if places is None:
                self.skipped += 1
                continue
            self.trials += 1
            for column in np.flatnonzero(places < first):
                first[column], ways[column] = places[column], how
        return first, ways

    def _compare(self, k: int, how: str) -> NDArray[np.int64] | None:
        reference = self.reference
        try:
            other = self.rebuild(k, how)
        except (ValueError, IndexError, ArithmeticError) as error:
            level = logging.DEBUG if self.skipped else logging.WARNING  # the first one tells; the number is reported
            _log.log(level, "%s: not played with %s from bar %d on: %s", self.subject, how, k, error)
            return None
        if other.names != reference.names or other.rows[0] != reference.rows[0]:
            _log.warning("%s: with %s from bar %d on it has other columns or begins elsewhere", self.subject, how, k)
            return None
        count = min(leaks.known(reference.rows, k), len(other.rows))
        one, two = (np.ascontiguousarray(record.values[:count]) for record in (reference, other))
        if how == "cut" and "ended" in reference.names:  # data that ends is no secret
            column = reference.names.index("ended")
            one[one[:, column] == TRUNCATED, column] = 0.0
            two[two[:, column] == TRUNCATED, column] = 0.0
        changes = leaks.differs(one, two)
        if how == "cut" and changes.any():
            changes &= ~leaks.rounding(one, two)
        return np.where(changes.any(axis=0), changes.argmax(axis=0), len(reference.rows)) if count else None

    def leak(self, column: int) -> Leak:
        """Move ``k`` to find the first row of a column that leaks, and how far it sees."""
        total, rows = len(self.reference.rows), self.reference.rows
        earliest = self._hits(column, total - 1)[0]
        self._search(column, total - 1, max((k for k in self.found if k < earliest), default=earliest - 1), earliest)
        step = min(int(first[column]) for first, _ in self.found.values())
        k = self._hits(column, step)[0]
        latest = self._hits(column, step)[-1]
        self._search(column, step, min((place for place in self.found if place > latest), default=latest + 1), latest)
        reach = max(place - int(rows[self.found[place][0][column]]) for place in self._hits(column, total - 1))
        how = f"changed by {self.found[k][1][column]} from bar {k} on"
        if 4 * reach >= 3 * (rows[-1] - rows[0]):
            reach, how = int(rows[-1] - rows[step]), how + "; it knows the whole series"
        return Leak(self.subject, self.reference.names[column], step, reach, how, int(rows[step]))

    def _hits(self, column: int, last: int) -> list[int]:
        """Return where a change reached the column at or before the place ``last``."""
        return sorted(k for k, (first, _) in self.found.items() if first[column] <= last)

    def _search(self, column: int, last: int, clean: int, hit: int) -> None:
        """Halve the way between a ``k`` that does not reach the column (up to place ``last``) and one that does."""
        while abs(hit - clean) > 1 and len(self.found) < self.limit:
            middle = (clean + hit) // 2
            clean, hit = (clean, middle) if self.at(middle)[column] <= last else (middle, hit)


def search(subject: str, rebuild: Rebuild, base: Callable[[], Record], low: int, trials: int, seed: int) -> Leaks:
    """Compare replays at ``trials`` random places, at the first ones and at the last; ``low`` is the earliest."""
    if trials < 1:
        raise ConfigError(f"trials={trials} must be at least 1")
    reference = base()
    again = base()
    same = again.values.shape == reference.values.shape
    if not same or leaks.differs(reference.values, again.values).any():
        wrong = leaks.differs(reference.values, again.values).any(axis=0).argmax() if same else 0
        raise ConfigError(
            f"{subject}: two replays of the same bars differ (column {reference.names[wrong]!r}); make it "
            "deterministic, with a seed, before looking for the future in it"
        )
    places = _places(max(low, int(reference.rows[0]) + 1), int(reference.rows[-1]), trials, seed)
    probe = Probe(subject, rebuild, reference, len(places) + SEARCH * len(reference.names))
    for k in places:
        probe.at(k)
    if not probe.trials:
        raise ConfigError(f"{subject}: none of {probe.skipped} replays could be played; the log says why")
    total = len(reference.rows)
    leaking = [c for c in range(len(reference.names)) if any(first[c] < total for first, _ in probe.found.values())]
    found = [probe.leak(column) for column in leaking]
    return Leaks(found, subject, total, len(reference.names), probe.trials, probe.skipped)


def _places(low: int, high: int, trials: int, seed: int) -> list[int]:
    if high < low:
        raise ConfigError(
            f"nothing to change: the first bar that may change (after what is fitted) is {low}, the last one played is "
            f"{high}; play a later split, or fit on less"
        )
    spread = np.random.default_rng(seed).integers(low, high + 1, trials).tolist()
    early = [low + 2**power - 1 for power in range(12) if low + 2**power - 1 <= high]
    return sorted({*spread, *early, high})
