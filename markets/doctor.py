"""Data doctor: finds the defects of a raw candle table before it becomes bars, and repairs some of them if asked.

``diagnose`` reads a table with the column matching of :mod:`markets.frames` and returns findings; it changes nothing.
A finding is an *error* where :class:`~markets.bars.Bars` would refuse the table, else a *warning*. ``repair`` sorts,
drops and un-swaps; it never makes up a price: gaps stay gaps, and of two rows that contradict each other it keeps both.

Every defect is reported once: values are judged on rows in time order, without repeated stamps, and a row that one
detector has explained (swapped columns, late marks) is left alone by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from markets.funding_detectors import FUNDING_DETECTORS, read_events
from markets.raw_table import Finding, Table, read
from markets.repair import repair
from markets.time_detectors import TIME_DETECTORS
from markets.value_detectors import VALUE_DETECTORS

__all__ = ["DETECTORS", "FUNDING_DETECTORS", "Finding", "diagnose", "repair", "treat"]

ROUNDS = 4  # repairs after which what is still found is left to its owner
DETECTORS: dict[str, Callable[[Table], Iterator[Finding]]] = {**TIME_DETECTORS, **VALUE_DETECTORS}


def diagnose(
    frame: pd.DataFrame,
    interval: str | None = None,
    now: Any = None,
    *,
    stamp: str = "open",
    funding: pd.DataFrame | None = None,
    market: str = "crypto",
) -> list[Finding]:
    """List the defects of a raw candle table, errors first; the table is not changed.

    Args:
        frame: rows of candles, with a time column or index; see ``Bars.from_frame``.
        interval: bar length; the most frequent step where absent.
        now: the time at which the table was written, default the present: later bars are unfinished.
        stamp: ``"open"`` or ``"close"``, what the time of a row is.
        funding: table of funding events to look at as well.
        market: kind of market; ``spy`` has sessions, so that nights are no gaps and unfinished sessions are found.

    Raises:
        DataError: there is no time column to judge by, or two columns have one name.
    """
    table = read(frame, interval, now, stamp=stamp, market=market)
    found = [finding for detector in DETECTORS.values() for finding in detector(table)]
    if funding is not None:
        found += [
            finding for detector in FUNDING_DETECTORS.values() for finding in detector(read_events(funding, table))
        ]
    return sorted(found, key=lambda finding: finding.severity)


def treat(
    frame: pd.DataFrame,
    interval: str | None = None,
    now: Any = None,
    *,
    outside: Sequence[Finding] = (),
    **more: Any,
) -> tuple[pd.DataFrame, list[str], list[Finding]]:
    """Diagnose and repair until nothing repairable is left (one defect may hide another).

    Args:
        frame, interval, now, more: see :func:`diagnose`.
        outside: findings that the table itself does not show, such as those of its file; repaired in the first round.

    Returns:
        The repaired copy, what was done, and the findings that remain.
    """
    done: list[str] = []
    findings = [*outside, *diagnose(frame, interval, now, **more)]
    for _ in range(ROUNDS):
        if not any(finding.repairable for finding in findings):
            break
        frame, sentences = repair(frame, findings)
        done += sentences
        findings = diagnose(frame, interval, now, **more)
    return frame, done, findings
