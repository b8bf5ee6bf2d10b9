"""Lookahead in what has a row per bar: features, encoders, labels, normalisers, and the actions of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.counterfactual import changed, changed_rows
from agents.leak_search import TRIALS, search
from agents.leaks import Floats, Leaks, Record, named
from markets import features
from markets.bars import Bars
from markets.errors import ConfigError
from markets.table import CausalTable

POLICY_ROWS = 256  # observations that a policy is walked over


def check_table(
    function: Callable[[Bars], Any],
    bars: Bars,
    *,
    subject: str = "table",
    names: Sequence[str] | None = None,
    train_rows: int = 0,
    trials: int = TRIALS,
    seed: int = 0,
) -> Leaks:
    """Look for the future in ``function(bars) -> (T, D)`` array, data frame or :class:`CausalTable`.

    Args:
        function: a feature, an encoder, labels: anything with one row per bar.
        bars: the market.
        subject: what reports call it.
        names: a name per column, where the result has none.
        train_rows: bars that something was fitted on, which stay as they are; a ``CausalTable`` says so itself.
        trials: random places at which the future begins.
        seed: of places and noise.

    Raises:
        ConfigError: not one row per bar, or not deterministic.
    """
    made = function(bars)
    if isinstance(made, CausalTable) and made.train_end is not None:
        train_rows = max(train_rows, bars.rows_closed_by(made.train_end))

    def rebuild(k: int, how: str) -> Record:
        other = changed(bars, k, how, seed)
        return _record(function(other), len(other), subject, names)

    def base() -> Record:
        return _record(function(bars), len(bars), subject, names)

    return search(subject, rebuild, base, train_rows, trials, seed, missing=True)


def check_normaliser(
    function: Callable[[Floats], Any],
    values: Floats,
    *,
    subject: str = "normalise",
    names: Sequence[str] | None = None,
    train_rows: int = 0,
    trials: int = TRIALS,
    seed: int = 0,
) -> Leaks:
    """Look for the future in ``function((T, D) array) -> (T, D) array``; see :func:`check_table`."""
    values = np.array(values, np.float64)

    def rebuild(k: int, how: str) -> Record:
        other = changed_rows(values, k, how, seed)
        return _record(function(other), len(other), subject, names)

    def base() -> Record:
        return _record(function(values.copy()), len(values), subject, names)

    return search(subject, rebuild, base, train_rows, trials, seed, missing=True)


def _record(made: Any, count: int, subject: str, names: Sequence[str] | None) -> Record:
    """Read a table of ``count`` rows, whatever it comes as."""
    first = made.valid_from if isinstance(made, CausalTable) else 0
    if isinstance(made, CausalTable):
        names = made.names
    elif names is None and hasattr(made, "columns"):
        names = [str(name) for name in made.columns]
    try:
        values = np.array(made.values if isinstance(made, CausalTable) else made, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{subject} returns {type(made).__name__}, not numbers: {error}") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != count:
        raise ConfigError(f"{subject} returns shape {values.shape} for {count} rows; one row per bar is needed")
    return Record(values[first:], np.arange(first, count), named(names, values.shape[1]))


def check_policy(
    make: Callable[[Bars], Any],
    bars: Bars,
    *,
    observe: Callable[[Bars], Floats] | None = None,
    subject: str = "policy",
    train_rows: int = 0,
    trials: int = TRIALS,
    seed: int = 0,
) -> Leaks:
    """Look for the future in the actions of ``make(bars)``, over histories that share their past.

    ``predict(history (T, D))`` answers with an action per row, or with the action of the last row; then it is asked
    for every row in turn. A pair (actions, state) is read as its first part.

    Args:
        make: builds the policy; one that knows no bars is returned as it is.
        bars: the market.
        observe: the history that is shown, ``(T, D)`` for T bars; the market features without.
        subject: what reports call it.
        train_rows: bars that something was fitted on, which stay as they are.
        trials: random places at which the future begins.
        seed: of places and noise.
    """
    watch = observe or features.raw
    start = 0 if observe else features.warm_up(bars.interval)

    def decide(content: Bars) -> Record:
        history = np.ascontiguousarray(watch(content)[start:], np.float32)
        first, answers = _answers(make(content), history, max(len(bars) - start - POLICY_ROWS, 0))
        names = ("action",) if answers.shape[1] == 1 else tuple(f"action[{i}]" for i in range(answers.shape[1]))
        return Record(answers, np.arange(len(answers)) + start + first, names)

    def rebuild(k: int, how: str) -> Record:
        return decide(changed(bars, k, how, seed))

    return search(subject, rebuild, lambda: decide(bars), train_rows, trials, seed, missing=True)


def _answers(policy: Any, history: NDArray[np.float32], first: int) -> tuple[int, Floats]:
    """Ask for every row at once, or from row ``first`` on one by one; returns the first row and the actions."""

    def ask(part: NDArray[np.float32]) -> Floats:
        answer = policy.predict(part.copy())
        return np.asarray(answer[0] if isinstance(answer, tuple) else answer, np.float64)

    whole = ask(history)
    if whole.ndim and len(whole) == len(history):
        return 0, whole.reshape(len(history), -1).copy()
    rows = range(min(first, len(history) - 1), len(history))
    return rows[0], np.array([ask(history[: row + 1]).ravel() for row in rows])
