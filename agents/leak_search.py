"""The search for a leak: another future from bar k on, for one k after the other, until the first row that knows it.

``k`` moves to find the first offending row and the reach. A clean result means that nothing was found at the places
that were tried; a leak at a single row in the middle of a long history needs more trials.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from agents import leaks
from agents.counterfactual import MISSING, WAYS
from agents.leaks import Leak, Leaks, Record
from markets.errors import ConfigError

Rebuild = Callable[[int, str], Record]

TRIALS = 20  # random places at which the future begins
SEARCH = 32  # places that the search for the first row and the reach may add, per column
TERMINATED, TRUNCATED = 1.0, 2.0  # what the column "ended" says

_log = logging.getLogger(__name__)


class Probe:
    """Replays with another future for any ``k``, each place once.

    Args:
        kept: which columns of a replay the reference has.
        limit: of places.
        missing: replace the future by NaN as well, as long as the subject takes it.
    """

    def __init__(
        self,
        subject: str,
        rebuild: Rebuild,
        reference: Record,
        kept: NDArray[np.bool_],
        limit: int,
        missing: bool,
    ) -> None:
        self.subject = subject
        self.rebuild = rebuild
        self.reference = reference
        self.kept = kept
        self.limit = limit
        self.missing = missing
        self.found: dict[int, tuple[NDArray[np.int64], list[str]]] = {}
        self.trials = 0
        self.skipped = 0
        self.refusal = ""  # what the subject said to the first future it would not play

    def at(self, k: int) -> NDArray[np.int64]:
        """Return per column the first row (place in the record) that changed; their number where none did."""
        if k not in self.found:
            self.found[k] = self._try(k)
        return self.found[k][0]

    def _try(self, k: int) -> tuple[NDArray[np.int64], list[str]]:
        width, total = len(self.reference.names), len(self.reference.rows)
        first, ways = np.full(width, total), [""] * width
        for how in (*WAYS, MISSING) if self.missing else WAYS:
            if how == "cut" and k < self.reference.begun + 2:
                continue  # too short to be played
            other = self._replay(k, how)
            if other is None or not leaks.known(self.reference.rows, k):
                self.skipped += how != MISSING  # what cannot hold NaN has not failed
                continue
            places = self._compare(other, k, how)
            self.trials += 1
            for column in np.flatnonzero(places < first):
                first[column], ways[column] = places[column], how
        return first, ways

    def _replay(self, k: int, how: str) -> Record | None:
        if how == MISSING:
            return self._replay_missing(k)
        try:
            other = self.rebuild(k, how)
        except (ValueError, IndexError, ArithmeticError) as error:
            self.refusal = self.refusal or f"{how} from bar {k} on: {error}"
            _log.debug("%s: not played with %s from bar %d on: %s", self.subject, how, k, error)
            return None
        alike = self._alike(other)
        if alike is None:
            _log.warning("%s: with %s from bar %d on it has other columns or begins elsewhere", self.subject, how, k)
        return alike

    def _replay_missing(self, k: int) -> Record | None:
        """Replay with NaN from ``k`` on; a subject that refuses it once is not asked again."""
        try:
            with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
                other = self.rebuild(k, MISSING)
        except Exception as error:  # it need not take NaN, whatever it says to it
            _log.debug("%s: takes no NaN: %s", self.subject, error)
            other = None
        other = None if other is None else self._alike(other)
        self.missing = other is not None
        return other

    def _alike(self, other: Record) -> Record | None:
        """Return what can be compared of another replay; None where it has other columns or begins elsewhere."""
        if len(other.names) != len(self.kept) or other.rows[0] != self.reference.rows[0]:
            return None
        other = other.only(self.kept)
        return other if other.names == self.reference.names else None

    def _compare(self, other: Record, k: int, how: str) -> NDArray[np.int64]:
        """Return per column the first line before bar ``k`` that changed."""
        reference = self.reference
        count = min(leaks.known(reference.rows, k), len(other.rows))
        one, two = (np.ascontiguousarray(record.values[:count]) for record in (reference, other))
        changes = leaks.differs(one, two)
        if how == "cut":
            changes &= ~self._data_ended(one, two)
            if changes.any():
                changes &= ~leaks.rounding(one, two)
        return np.where(changes.any(axis=0), changes.argmax(axis=0), len(reference.rows))

    def _data_ended(self, one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say what may differ because the data ends, which is no secret: the end itself, and what info adds to it."""
        told = np.zeros(one.shape, bool)
        names = self.reference.names
        if "ended" in names:
            column = names.index("ended")
            running = (0.0, TRUNCATED)
            lines = np.isin(one[:, column], running) & np.isin(two[:, column], running)
            lines &= (one[:, column] == TRUNCATED) | (two[:, column] == TRUNCATED)
            told[lines] = [name == "ended" or name.startswith("info[") for name in names]
        return told

    def leak(self, column: int) -> Leak:
        """Move ``k`` to find the first row of a column that leaks, and how far it sees."""
        total, rows = len(self.reference.rows), self.reference.rows
        earliest = self._hits(column, total - 1)[0]
        self._search(column, total - 1, max((k for k in self.found if k < earliest), default=earliest - 1), earliest)
        step = min(int(first[column]) for first, _ in self.found.values())
        k = self._hits(column, step)[0]
        latest = self._hits(column, step)[-1]
        self._search(column, step, min((place for place in self.found if place > latest), default=latest + 1), latest)
        reach = max(
            place - self.reference.bar(int(self.found[place][0][column])) for place in self._hits(column, total - 1)
        )
        how = f"changed by {self.found[k][1][column]} from bar {k} on"
        if 4 * reach >= 3 * (rows[-1] - rows[0]):
            reach, how = int(rows[-1] - rows[step]), how + "; it knows the whole series"
        return leak_at(self.reference, step, self.subject, self.reference.names[column], reach, how)

    def _hits(self, column: int, last: int) -> list[int]:
        """Return where a change reached the column at or before the place ``last``."""
        return sorted(k for k, (first, _) in self.found.items() if first[column] <= last)

    def _search(self, column: int, last: int, clean: int, hit: int) -> None:
        """Halve the way between a ``k`` that does not reach the column (up to place ``last``) and one that does."""
        while abs(hit - clean) > 1 and len(self.found) < self.limit:
            middle = (clean + hit) // 2
            clean, hit = (clean, middle) if self.at(middle)[column] <= last else (middle, hit)


def leak_at(record: Record, line: int, subject: str, column: str, ahead: int, how: str) -> Leak:
    """Report a leak at a line of a record: its step, its bar and its lane."""
    step = line if record.steps is None else int(record.steps[line])
    lane = None if record.lanes is None else int(record.lanes[line])
    return Leak(subject, column, step, ahead, how, record.bar(line), lane)


def search(
    subject: str,
    rebuild: Rebuild,
    base: Callable[[], Record],
    low: int,
    trials: int,
    seed: int,
    *,
    missing: bool = False,
    more: Iterable[int] = (),
) -> Leaks:
    """Compare replays at ``trials`` random places, at the first ones and at the last; ``low`` is the earliest.

    Args:
        subject: what reports call it.
        rebuild: ``(k, how)`` -> what a replay shows with another future from bar ``k`` on.
        base: what a replay of the bars as they are shows.
        low, trials, seed: earliest place, number of random ones, and their seed.
        missing: replace the future by NaN as well.
        more: further places, where something special happens.

    Raises:
        ConfigError: two replays of the same bars differ (entries of info that do are left out and named).
    """
    if trials < 1:
        raise ConfigError(f"trials={trials} must be at least 1")
    reference, kept = _steady(subject, base(), base())
    unsteady = len(kept) - int(kept.sum())
    places = _places(max(low, int(reference.rows[0]) + 1), int(reference.rows[-1]), trials, seed, more)
    probe = Probe(subject, rebuild, reference, kept, len(places) + SEARCH * len(reference.names), missing)
    for k in places:
        probe.at(k)
    if not probe.trials:
        raise ConfigError(
            f"{subject}: none of {probe.skipped} replays could be played: {probe.refusal or 'they begin elsewhere'}"
        )
    total = len(reference.rows)
    leaking = [c for c in range(len(reference.names)) if any(first[c] < total for first, _ in probe.found.values())]
    found = [probe.leak(column) for column in leaking]
    result = Leaks(found, subject, total, len(reference.names), probe.trials, probe.skipped)
    result.refusal = probe.refusal
    result.told = sum(name.startswith("info[") for name in reference.names)
    result.ends = sum(name in ("reward", "ended") for name in reference.names)
    if unsteady:
        result.unsteady = tuple(name for name, keep in zip(base().names, kept, strict=True) if not keep)
    return result


def _steady(subject: str, one: Record, two: Record) -> tuple[Record, NDArray[np.bool_]]:
    """Return what two equal replays share, and which columns those are."""
    same = one.values.shape == two.values.shape
    different = np.ones(len(one.names), bool)
    if same:
        different = np.asarray(leaks.differs(one.values, two.values).any(axis=0))
    informing = np.array([name.startswith("info[") for name in one.names])
    if not same or (different & ~informing).any():
        wrong = int((different & ~informing).argmax())
        raise ConfigError(
            f"{subject}: two replays of the same bars differ (column {one.names[wrong]!r}); make it "
            "deterministic, with a seed, before looking for the future in it"
        )
    return one.only(~different), ~different


def _places(low: int, high: int, trials: int, seed: int, more: Iterable[int]) -> list[int]:
    if high < low:
        raise ConfigError(
            f"nothing to change: the first bar that may change (after what is fitted) is {low}, the last one played is "
            f"{high}; play a later split, or fit on less"
        )
    spread = np.random.default_rng(seed).integers(low, high + 1, trials).tolist()
    early = [low + 2**power - 1 for power in range(12) if low + 2**power - 1 <= high]
    return sorted({*spread, *early, *(k for k in more if low <= k <= high), high})
