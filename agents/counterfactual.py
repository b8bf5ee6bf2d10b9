"""Counterfactual markets: the same past, another future. What the lookahead detector plays instead of the real bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from markets.bars import PRICES, Bars
from markets.sessions import sessions_of

Floats = NDArray[np.float64]

WAYS = ("noise", "x10", "reversed", "cut")  # how bars from k on are replaced
MISSING = "nan"  # one more, for what takes it: nothing is known from k on


def changed(bars: Bars, k: int, how: str, seed: int = 0) -> Bars:
    """Return bars whose rows from ``k`` on (and funding stamps from the opening of ``k``) are replaced or cut off.

    Missing ones are not checked bars, which would refuse them.
    """
    if how == "cut":
        return bars.between(0, k)
    if how == MISSING:
        holes = {name: value.copy() for name, value in bars.columns.items()}
        for value in holes.values():
            value[k:] = np.nan
        return replace(bars, **holes, checked=False)  # type: ignore[arg-type]
    columns = {name: value.copy() for name, value in bars.columns.items()}
    for number, value in enumerate(columns.values()):
        value[k:] = _replaced(value[k:], how, np.random.default_rng([seed, k, number]))
    for prefix in ("", "mark_"):
        if prefix + "open" in columns:  # stays a candle
            opened, high, low, close = (columns[prefix + name][k:] for name in PRICES)
            high[:] = np.maximum(np.maximum(opened, close), high)
            low[:] = np.minimum(np.minimum(opened, close), low)
    if "bid" in columns:  # stays a quote
        bid, ask = columns["bid"][k:], columns["ask"][k:]
        bid[:], ask[:] = np.minimum(bid, ask), np.maximum(bid, ask)
    rates, later = bars.funding_rate.copy(), bars.funding_time >= bars.time[k]
    rates[later] = np.clip(_replaced(rates[later], how, np.random.default_rng([seed, k])), -0.5, 0.5)
    labels = None if bars.labels is None else np.concatenate([bars.labels[:k], bars.labels[k:][::-1]])
    return replace(bars, **columns, funding_rate=rates, labels=labels)  # type: ignore[arg-type]


def cut_behind_session(bars: Bars, k: int) -> int:
    """Return the first row behind the session of bar ``k``, ``k`` where it has none."""
    found = sessions_of(bars)
    place = int(found.place[min(k, len(bars) - 1)])
    return k if place < 0 else int(found.first[place] + found.rows[place])


def changed_rows(values: Floats, k: int, how: str, seed: int = 0) -> Floats:
    """Return a copy of ``(T, D)`` numbers whose rows from ``k`` on are replaced or cut off."""
    if how == "cut":
        return values[:k].copy()
    result = values.copy()
    generator = np.random.default_rng([seed, k])
    result[k:] = _replaced(values[k:], how, generator)
    if how == "noise":
        result[k:] += generator.normal(0.0, 1.0, result[k:].shape)
    return result


def _replaced(future: Floats, how: str, generator: np.random.Generator) -> Floats:
    if how == "noise":
        return future * np.exp(generator.normal(0.0, 1.0, future.shape))
    if how == MISSING:
        return np.full_like(future, np.nan)
    return future * 10.0 if how == "x10" else future[::-1]


def gapped(bars: Bars, k: int, gap: float, move: float) -> Bars:
    """Return bars that jump by ``gap`` before bar ``k`` opens, move by ``move`` inside it and then stand still."""
    columns = {name: value.copy() for name, value in bars.columns.items()}
    for prefix in ("", "mark_"):
        if prefix + "open" not in columns:
            continue
        opened = columns["close"][k - 1] * (1.0 + gap)
        closed = opened * (1.0 + move)
        for name in PRICES:
            columns[prefix + name][k:] = closed
        columns[prefix + "open"][k] = opened
        columns[prefix + "high"][k], columns[prefix + "low"][k] = np.maximum(opened, closed), np.minimum(opened, closed)
    rates = bars.funding_rate.copy()
    rates[bars.funding_time >= bars.time[k]] = 0.0
    return replace(bars, **columns, funding_rate=rates)  # type: ignore[arg-type]
