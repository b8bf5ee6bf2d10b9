"""Lookahead detector: replace the future, replay the past, compare bit for bit.

Everything from bar ``k`` on is replaced (noise, ten times as much, reversed) or cut off, the same actions are replayed,
and what was known before ``k`` must stay: rows of a table, observations, and rewards up to the step that ends on bar
``k - 1``. What is fitted on a training range is held fixed by changing nothing inside that range. ``k`` moves to find
the first offending row and the reach. One more check knows what replacing cannot see: an order that is filled at the
close it was decided on earns the gap to the next open, which no honest order does.

A clean result means that nothing was found at the places that were tried; a leak at a single row in the middle of a
long history needs more trials. Where only the *length* of the data differs (a cut), differences of a few units in the
last place are rounding of matrix products and no leak.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import envs
from envs.splits import FRACTIONS
from markets import features
from markets.bars import PRICES, Bars
from markets.errors import ConfigError, RegimeGymError, unknown
from markets.sources.memory import register_bars
from markets.table import CausalTable

Floats = NDArray[np.float64]
Make = Callable[[Bars], Any]
Rebuild = Callable[[int, str], "Record"]

WAYS = ("noise", "x10", "reversed", "cut")  # how bars from k on are replaced
DEFAULT_BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
TRIALS = 20
STEPS = 1_000  # longest replay of an environment
POLICY_ROWS = 256  # observations that a policy is walked over
SEARCH = 32  # places that the search for the first row and the reach may add, per column
HELD = 0.6  # how often an action is held for another bar
GAP = 0.02  # jump of the price in the check of fills
FILL_TRIALS = 5
ULPS = 64  # rounding that the length of a matrix product may cause

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leak:
    """One column that knows the future.

    Attributes:
        subject: what was tested.
        column: name of the observation or table column, or ``reward``, ``fill``, ``ended``, ``action``.
        step: first offending row, counted from the first one served; of an environment, reset is 0, then step 1, 2..
        bars_ahead: how far it sees, as far as the trials show.
        how: what was changed, and what that did.
        row: the bar on which that step stands.
    """

    subject: str
    column: str
    step: int
    bars_ahead: int
    how: str
    row: int

    def __str__(self) -> str:
        bars = "1 bar" if self.bars_ahead == 1 else f"{self.bars_ahead} bars"
        return f"{self.subject}: {self.column!r}, step {self.step} (bar {self.row}), looks {bars} ahead: {self.how}"


class Leaks(list[Leak]):
    """The leaks of one subject, with what was tried: ``trials`` replays of ``rows`` rows and ``columns`` columns."""

    def __init__(self, leaks: Iterable[Leak], subject: str, rows: int, columns: int, trials: int, skipped: int) -> None:
        super().__init__(leaks)
        self.subject = subject
        self.rows = rows
        self.columns = columns
        self.trials = trials
        self.skipped = skipped

    def __str__(self) -> str:
        tried = f"{self.columns} columns, {self.trials} trials over {self.rows} rows"
        if self.skipped:
            tried += f" ({self.skipped} more could not be played)"
        if not self:
            return f"{self.subject}: nothing found in {tried}"
        return "\n".join([f"{self.subject}: LEAKS in {len(self)} of {tried}", *(f"  {leak}" for leak in self)])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        facts = {name: getattr(self, name) for name in ("subject", "rows", "columns", "trials", "skipped")}
        return {**facts, "clean": not self, "leaks": [asdict(leak) for leak in self]}


@dataclass(frozen=True, eq=False)
class Record:
    """What one replay showed: ``values (R, D)``, the bar of each row ``(R,)`` and a name per column."""

    values: Floats
    rows: NDArray[np.int64]
    names: tuple[str, ...]


# ---- replacing the future ---------------------------------------------------------------------------------------


def changed(bars: Bars, k: int, how: str, seed: int = 0) -> Bars:
    """Return bars whose rows from ``k`` on (and funding stamps from the opening of ``k``) are replaced or cut off."""
    if how == "cut":
        return bars.between(0, k)
    columns = {name: value.copy() for name, value in bars.columns.items()}
    for number, value in enumerate(columns.values()):
        value[k:] = _replaced(value[k:], how, np.random.default_rng([seed, k, number]))
    for prefix in ("", "mark_"):
        if prefix + "open" in columns:  # stays a candle
            opened, high, low, close = (columns[prefix + name][k:] for name in PRICES)
            high[:] = np.maximum(np.maximum(opened, close), high)
            low[:] = np.minimum(np.minimum(opened, close), low)
    rates, later = bars.funding_rate.copy(), bars.funding_time >= bars.time[k]
    rates[later] = np.clip(_replaced(rates[later], how, np.random.default_rng([seed, k])), -0.5, 0.5)
    labels = None if bars.labels is None else np.concatenate([bars.labels[:k], bars.labels[k:][::-1]])
    return replace(bars, **columns, funding_rate=rates, labels=labels)  # type: ignore[arg-type]


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


# ---- comparing --------------------------------------------------------------------------------------------------


def differs(one: Floats, two: Floats) -> NDArray[np.bool_]:
    """Say where two arrays are not the same bits; NaN equals NaN."""
    different = one.view(np.int64) != two.view(np.int64)
    return np.asarray(different & ~(np.isnan(one) & np.isnan(two)))


def known(rows: NDArray[np.int64], k: int) -> int:
    """Return how many leading rows stand on bars before ``k``."""
    return int(np.searchsorted(rows, k))


def _rounding(one: Floats, two: Floats) -> NDArray[np.bool_]:
    """Say where two arrays differ by no more than another length of a matrix product explains."""
    scale = np.nanmax(np.abs(one), axis=0, initial=0.0, where=np.isfinite(one))
    single = bool((one.astype(np.float32) == one)[np.isfinite(one)].all()) if np.all(scale < 1e38) else False
    unit = float(np.finfo(np.float32 if single else np.float64).eps)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(one - two) <= ULPS * unit * scale)


class _Probe:
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
        count = min(known(reference.rows, k), len(other.rows))
        one, two = (np.ascontiguousarray(record.values[:count]) for record in (reference, other))
        if how == "cut" and "ended" in reference.names:  # data that ends is no secret
            column = reference.names.index("ended")
            one[one[:, column] == TRUNCATED, column] = 0.0
            two[two[:, column] == TRUNCATED, column] = 0.0
        changes = differs(one, two)
        if how == "cut" and changes.any():
            changes &= ~_rounding(one, two)
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


def _search(subject: str, rebuild: Rebuild, base: Callable[[], Record], low: int, trials: int, seed: int) -> Leaks:
    """Compare replays at ``trials`` random places, at the first ones and at the last; ``low`` is the earliest."""
    if trials < 1:
        raise ConfigError(f"trials={trials} must be at least 1")
    reference = base()
    again = base()
    same = again.values.shape == reference.values.shape
    if not same or differs(reference.values, again.values).any():
        wrong = differs(reference.values, again.values).any(axis=0).argmax() if same else 0
        raise ConfigError(
            f"{subject}: two replays of the same bars differ (column {reference.names[wrong]!r}); make it "
            "deterministic, with a seed, before looking for the future in it"
        )
    places = _places(max(low, int(reference.rows[0]) + 1), int(reference.rows[-1]), trials, seed)
    probe = _Probe(subject, rebuild, reference, len(places) + SEARCH * len(reference.names))
    for k in places:
        probe.at(k)
    if not probe.trials:
        raise ConfigError(f"{subject}: none of {probe.skipped} replays could be played; the log says why")
    total = len(reference.rows)
    leaking = [c for c in range(len(reference.names)) if any(first[c] < total for first, _ in probe.found.values())]
    leaks = [probe.leak(column) for column in leaking]
    return Leaks(leaks, subject, total, len(reference.names), probe.trials, probe.skipped)


def _places(low: int, high: int, trials: int, seed: int) -> list[int]:
    if high < low:
        raise ConfigError(
            f"nothing to change: the first bar that may change (after what is fitted) is {low}, the last one played is "
            f"{high}; play a later split, or fit on less"
        )
    spread = np.random.default_rng(seed).integers(low, high + 1, trials).tolist()
    early = [low + 2**power - 1 for power in range(12) if low + 2**power - 1 <= high]
    return sorted({*spread, *early, high})


# ---- tables and normalisers -------------------------------------------------------------------------------------


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

    return _search(
        subject, rebuild, lambda: _record(function(bars), len(bars), subject, names), train_rows, trials, seed
    )


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

    return _search(
        subject,
        rebuild,
        lambda: _record(function(values.copy()), len(values), subject, names),
        train_rows,
        trials,
        seed,
    )


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
    return Record(values[first:], np.arange(first, count), _named(names, values.shape[1]))


def _named(names: Sequence[str] | None, width: int) -> tuple[str, ...]:
    given = tuple(names or ())
    return tuple(given[place] if place < len(given) else f"column {place}" for place in range(width))


# ---- environments -----------------------------------------------------------------------------------------------

TERMINATED, TRUNCATED = 1.0, 2.0  # what the column "ended" says


def check_env(
    make: Make,
    bars: Bars,
    *,
    subject: str = "env",
    first_row: int | None = None,
    train_rows: int = 0,
    steps: int = STEPS,
    trials: int = TRIALS,
    seed: int = 0,
) -> Leaks:
    """Look for the future in the observations, rewards and fills of the environments that ``make(bars)`` builds.

    Args:
        make: builds an environment, with its wrappers; keep split dates and fitted statistics the same in each.
        bars: the market.
        subject: what reports call it.
        first_row: bar on which the first observation stands; where None, infos say so by ``row`` or ``time`` (close).
        train_rows: bars that something was fitted on, which stay as they are.
        steps: longest replay.
        trials: random places at which the future begins.
        seed: of reset, actions, places and noise.

    Raises:
        ConfigError: the bar of the first observation is unknown, or two equal replays differ.
    """
    actions = _actions(make(bars), steps, seed)

    def base() -> Record:
        return _play(make(bars), bars, actions, seed, first_row)

    def rebuild(k: int, how: str) -> Record:
        return _play(make(changed(bars, k, how, seed)), bars, actions, seed, first_row)

    leaks = _search(subject, rebuild, base, train_rows, trials, seed)
    fill = _early_fill(make, bars, actions, base(), _Walk(subject, first_row, train_rows, seed))
    if fill is not None:
        leaks.append(fill)
    return leaks


@dataclass(frozen=True)
class _Walk:
    """How an environment is walked."""

    subject: str
    first_row: int | None
    train_rows: int
    seed: int


def _actions(env: gym.Env[Any, Any], steps: int, seed: int) -> list[Any]:
    """Draw actions, each held for a while."""
    generator = np.random.default_rng(seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample()]
    while len(actions) < steps:
        actions.append(actions[-1] if generator.random() < HELD else env.action_space.sample())
    env.close()
    return actions


def _play(env: gym.Env[Any, Any], bars: Bars, actions: Sequence[Any], seed: int, first_row: int | None) -> Record:
    """Replay given actions: observations, then the reward and the end that came with each of them."""
    obs, info = env.reset(seed=seed)
    row = _row(info, bars)
    if row is None and first_row is None:
        raise ConfigError(
            "the bar of the first observation is unknown: put 'row' or 'time' (close of the bar) into info, or say "
            "which one it is (first_row=, FIRST_ROW in the module, --first-row)"
        )
    rows = [row if row is not None else int(first_row or 0)]
    lines = [[*_flat(obs), 0.0, 0.0]]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        row = _row(info, bars)
        rows.append(rows[-1] + 1 if row is None else row)
        lines.append([*_flat(obs), float(reward), TERMINATED if terminated else TRUNCATED * float(truncated)])
        if terminated or truncated:
            break
    names = (*_observation_names(env, obs), "reward", "ended")
    env.close()
    return Record(np.array(lines, np.float64), np.array(rows, np.int64), names)


def _row(info: Mapping[str, Any], bars: Bars) -> int | None:
    if "row" in info:
        return int(info["row"])
    if "time" in info:
        return int(np.searchsorted(bars.close_time, np.datetime64(info["time"], "ns")))
    return None


def _flat(obs: Any) -> list[float]:
    if isinstance(obs, Mapping):
        return [number for key in obs for number in _flat(obs[key])]
    if isinstance(obs, tuple):
        return [number for part in obs for number in _flat(part)]
    values: list[float] = np.asarray(obs, np.float64).ravel().tolist()
    return values


def _observation_names(env: gym.Env[Any, Any], obs: Any) -> tuple[str, ...]:
    """Name the numbers of an observation: by the environment's own names, by keys of a dictionary, by place."""
    if isinstance(obs, Mapping):
        counts = {key: len(_flat(part)) for key, part in obs.items()}
        return tuple(str(key) if count == 1 else f"{key}[{i}]" for key, count in counts.items() for i in range(count))
    names = env.get_wrapper_attr("observation_names") if env.has_wrapper_attr("observation_names") else None
    return _named(names, len(_flat(obs)))


def _extremes(space: gym.Space[Any]) -> tuple[Any, Any] | None:
    """Return two actions that want different positions."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return space.low, space.high
    return None


def _early_fill(make: Make, bars: Bars, actions: Sequence[Any], reference: Record, settings: _Walk) -> Leak | None:
    """Find an action that earns the gap between the close it was decided on and the next open."""
    extremes = _extremes(make(bars).action_space)
    steps = [step for step in range(1, len(reference.rows)) if reference.rows[step] >= max(settings.train_rows, 1)]
    if extremes is None or not steps:
        return None

    def effect(step: int, gap: float, move: float) -> float:
        """Return how much more the step pays for one extreme than for the other."""
        other = gapped(bars, int(reference.rows[step]), gap, move)
        rewards = []
        for action in extremes:
            played = _play(make(other), bars, [*actions[: step - 1], action], settings.seed, settings.first_row)
            if len(played.rows) <= step:
                return np.nan
            rewards.append(played.values[step, -2])
        return float(rewards[1] - rewards[0])

    drawn = np.random.default_rng(settings.seed).choice(steps, FILL_TRIALS).tolist()
    for step in sorted({steps[0], *drawn}):
        jump = abs(effect(step, GAP, 0.0) - effect(step, -GAP, 0.0))
        move = abs(effect(step, 0.0, GAP) - effect(step, 0.0, -GAP))
        if jump > 0.5 * move > 0.0 and jump > 0.25 * abs(effect(step, 0.0, 0.0)):  # beyond what costs can do
            how = "the action earns the gap between the close that it has seen and the next open"
            return Leak(settings.subject, "fill", step, 1, how, int(reference.rows[step]))
    return None


def check_id(env_id: str, bars: Bars, arguments: Mapping[str, Any] | None = None, **settings: Any) -> Leaks:
    """Look for the future in a registered environment: its test split, with dates and fitted statistics held fixed.

    Args:
        env_id: what ``gym.make`` takes.
        bars: the market.
        arguments: of the environment.
        settings: of :func:`check_env`.
    """
    if ":" not in env_id and env_id not in gym.registry:
        raise unknown("environment", env_id, envs.ids())
    if "bars" in (arguments or {}):
        raise ConfigError("bars= is not an argument here: the detector passes its own (--bars on the command line)")
    given = {"split": "test", **(arguments or {})}
    if "train_end" not in given and "validation_end" not in given:
        ends = [bars.close_time[int(fraction * len(bars)) - 1] for fraction in FRACTIONS]
        given |= {"train_end": str(ends[0]), "validation_end": str(ends[1])}
    train_rows = bars.rows_closed_by(given["train_end"]) if given.get("train_end") is not None else 0

    def make(content: Bars) -> Any:
        return gym.make(env_id, bars=register_bars("lookahead", content), **given)

    return check_env(make, bars, subject=env_id, train_rows=train_rows, **settings)


# ---- policies ---------------------------------------------------------------------------------------------------


def check_policy(
    make: Make,
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

    return _search(
        subject, lambda k, how: decide(changed(bars, k, how, seed)), lambda: decide(bars), train_rows, trials, seed
    )


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


# ---- a user's file ----------------------------------------------------------------------------------------------

SUBJECTS = ("table", "make_env", "normalise", "make_policy", "policy")


def load_module(path: Path) -> ModuleType:
    """Run a Python file and return it as a module.

    Raises:
        ConfigError: not a Python file, or it fails.
    """
    name = f"lookahead_subject_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"module {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ConfigError(f"module {str(path)!r} fails: {error!r}") from error
    return module


def check_module(
    path: Path, bars: Bars, *, first_row: int | None = None, trials: int = TRIALS, seed: int = 0
) -> list[Leaks]:
    """Test what a file defines: ``table``, ``make_env``, ``normalise``, ``make_policy`` or a policy.

    ``NAMES`` (column names), ``TRAIN_ROWS`` or ``TRAIN_END`` (what was fitted on) and ``FIRST_ROW`` (bar of the first
    observation) in the file say what the detector cannot know. A policy is ``policy``, or a class with ``predict``.

    Raises:
        ConfigError: none of these is defined.
    """
    module = load_module(path)
    names: Sequence[str] | None = getattr(module, "NAMES", None)
    end = getattr(module, "TRAIN_END", None)
    fitted = int(getattr(module, "TRAIN_ROWS", 0)) if end is None else bars.rows_closed_by(end)
    common: dict[str, Any] = {"train_rows": fitted, "trials": trials, "seed": seed}
    try:
        found = list(_check_parts(module, path.name, bars, first_row, names, common))
    except RegimeGymError:
        raise
    except Exception as error:
        raise ConfigError(f"module {str(path)!r} fails on the bars as they are: {error!r}") from error
    if not found:
        raise ConfigError(f"module {str(path)!r} defines none of {', '.join(SUBJECTS)}, nor a class with predict")
    return found


def _check_parts(
    module: ModuleType,
    file: str,
    bars: Bars,
    first_row: int | None,
    names: Sequence[str] | None,
    common: dict[str, Any],
) -> Iterator[Leaks]:
    if hasattr(module, "table"):
        yield check_table(module.table, bars, subject=f"{file}:table", names=names, **common)
    if hasattr(module, "make_env"):
        row = getattr(module, "FIRST_ROW", first_row)
        yield check_env(module.make_env, bars, subject=f"{file}:make_env", first_row=row, **common)
    if hasattr(module, "normalise"):
        rows = features.raw(bars)[features.warm_up(bars.interval) :]
        called = names or features.NAMES
        yield check_normaliser(module.normalise, rows, subject=f"{file}:normalise", names=called, **common)
    policy = _policy(module)
    if policy is not None:
        yield check_policy(policy[1], bars, subject=f"{file}:{policy[0]}", **common)


def _policy(module: ModuleType) -> tuple[str, Make] | None:
    """Return name and maker of the policy that a module defines."""
    if hasattr(module, "make_policy"):
        return "make_policy", module.make_policy
    if hasattr(module, "policy"):
        return "policy", lambda bars: module.policy
    for name, item in vars(module).items():
        if isinstance(item, type) and item.__module__ == module.__name__ and hasattr(item, "predict"):
            return name, lambda bars, item=item: item()
    return None
