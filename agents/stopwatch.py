"""Stopwatch: CPU time of loops that take turns, and what the benchmark prints: rows of ratios, facts with bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Loop = Callable[[], int]  # makes some steps and returns how many

ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """One comparison: median CPU nanoseconds per environment step of both sides, bound and goal of the ratio."""

    name: str
    stream: str
    nanoseconds: float
    reference: float
    bound: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """Reference time over our time."""
        return self.reference / self.nanoseconds

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with ratio, rate and whether the bound holds."""
        holds = None if self.bound is None else self.ratio >= self.bound
        return {**asdict(self), "ratio": self.ratio, "steps_per_second": 1e9 / self.nanoseconds, "holds": holds}


@dataclass(frozen=True)
class Fact:
    """One figure and the most that it may be; without a bound it is information."""

    name: str
    value: float
    bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values and whether the bound holds."""
        return {**asdict(self), "holds": None if self.bound is None else self.value <= self.bound}


class Stopwatch:
    """Measures loops in turn, so that what slows the machine down slows all of them.

    Attributes:
        rounds: of which the median is taken; one more, the first, is thrown away.
        total: CPU seconds of the process in all loops so far. ``alone``: those of the calling thread.
    """

    def __init__(self, rounds: int = ROUNDS) -> None:
        self.rounds = rounds
        self.total = self.alone = 0.0

    def medians(self, loops: Sequence[Loop], before: Sequence[Callable[[], object] | None] = ()) -> list[float]:
        """Return the median CPU nanoseconds per step of each loop; ``before`` it, untimed, comes its preparation."""
        times = np.zeros((self.rounds + 1, len(loops)))
        for line in times:
            for place, loop in enumerate(loops):
                prepare = before[place] if before else None
                if prepare is not None:
                    prepare()
                alone, began = time.thread_time(), time.process_time()
                steps = loop()
                spent = time.process_time() - began
                self.alone += time.thread_time() - alone
                self.total += spent
                line[place] = spent / steps * 1e9
        return [float(value) for value in np.median(times[1:], axis=0)]

    def other_threads(self) -> Fact:
        """Return the share of CPU time that other threads took: one thread is what the figures speak of."""
        return Fact("CPU time of other threads, share", max(self.total - self.alone, 0.0) / self.total, 0.02)
