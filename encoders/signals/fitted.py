"""Signals that an environment observes: named or saved models, fitted on its training range, as one causal table.

``signals="garch,mean_reversion"`` names models of the table of signals: they are fitted on the training range of the
bars, the same rows for every split. ``signals="runs/pair"`` takes a model that ``regimegym signals fit`` saved, as it
is. Columns are named after the model, and after the coin where there are several: ``garch_direction``,
``ETH_garch_direction``.

A fit is kept per process and on the disk, in ``signals`` under :func:`markets.storage.cache_folder`, by the content of
the bars, the model's settings and its code: lanes, other processes and a resumed run fit nothing again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.signals import SIGNALS, files, make, signal_kind
from encoders.signals.model import SignalModel, SignalStream
from encoders.table_store import HOUSE, code_version
from markets import storage
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError, unknown
from markets.symbols import base_assets
from markets.table import CausalTable, join

MOST = 16  # signals of an environment
KEPT = 32  # fits, and tables, per process
CACHE = "signals"
_log = logging.getLogger(__name__)
_fits: OrderedDict[str, SignalModel] = OrderedDict()
_tables: OrderedDict[tuple[str, str, str], CausalTable] = OrderedDict()


class SignalSet:
    """Fitted models that are observed together; equal where they say the same of the same bars.

    Raises:
        ConfigError: two models of one name, more than 16, or one that is not fitted.
    """

    def __init__(self, models: Sequence[SignalModel]) -> None:
        self.models = tuple(models)
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"signals: two of the models are called {name!r}, and so would their columns be")
        if len(names) > MOST:
            raise ConfigError(f"signals: {len(names)} models; an environment observes at most {MOST}")
        self.hash  # noqa: B018  what is not fitted has none

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all models, in their order."""
        return hashlib.sha256("".join(model.hash for model in self.models).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SignalSet) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"SignalSet({', '.join(model.name for model in self.models)}; {self.hash[:12]})"

    @property
    def hashes(self) -> dict[str, str]:
        """Hash of each model by its name."""
        return {model.name: model.hash for model in self.models}

    @property
    def outside(self) -> str:
        """Identify what the models read beside the bars, as it is now."""
        return " ".join(model.outside() for model in self.models)

    def table(self, bars: Bars) -> CausalTable:
        """Return the rows of all models side by side, ``(T, D)``; computed once for the same models and bars.

        Raises:
            ConfigError: bars of other symbols than a model was fitted on, or a table that is not aligned or bounded.
            DataError: a served number that is not finite or lies outside its bounds.
        """
        key = (bars.hash, self.hash, self.outside)
        if key not in _tables:
            _keep(_tables, key, join(tuple(_named(model, bars) for model in self.models)))
        _tables.move_to_end(key)
        return _tables[key]

    def stream(self) -> SignalSetStream:
        """Return the live face of :meth:`table`."""
        return SignalSetStream(self)


class SignalSetStream:
    """Feed bars as they close, get the row that the table would hold."""

    def __init__(self, signals: SignalSet) -> None:
        self._streams = [SignalStream(model) for model in signals.models]

    def update(self, bar: Bars) -> NDArray[np.float32] | None:
        """Add one closed bar; its ``(D,)`` row, None until every model is warmed up."""
        rows = [stream.update(bar) for stream in self._streams]
        known = [row for row in rows if row is not None]
        return np.concatenate(known) if len(known) == len(rows) else None


def signal_set(given: str | SignalSet, bars: Bars, train_stop: int, sessions: bool = False) -> SignalSet:
    """Return the models that ``given`` names; those without a file are fitted on the first ``train_stop`` bars.

    Args:
        given: names of models, or folders or files of saved ones, with commas between them; or the models.
        bars: all of the environment's bars.
        train_stop: end (exclusive) of the training range.
        sessions: whether the environment plays sessions, which not every model understands.

    Raises:
        UnknownNameError: neither a model's name nor a file.
        ConfigError: an empty or repeated name, or a model that cannot serve these bars.
        DataError: bars on which it cannot be fitted.
        ArtefactError: a file that holds no whole signal.
        MissingExtraError: the library that a fit needs is not installed.
    """
    if isinstance(given, SignalSet):
        found = given
        for model in found.models:
            _check_sessions(model, sessions)
        return found
    models = []
    for name in names_of(given):
        if name in SIGNALS:
            _check_sessions(signal_kind(name), sessions)
            models.append(_fitted(name, bars, train_stop))
        else:
            models.append(files.read(_file(name)))
            _check_sessions(models[-1], sessions)
    return SignalSet(models)


def names_of(given: str) -> list[str]:
    """Return the names between the commas.

    Raises:
        ConfigError: an empty one, or one given twice.
    """
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if not name or names.count(name) > 1:
            what = f"names {name!r} twice" if name else "has an empty name"
            raise ConfigError(
                f"signals={given!r} {what}: it is names of signals, or folders of saved ones, with commas between them"
            )
    return names


def content_of(given: str | SignalSet) -> str:
    """Identify what ``given`` stands for now: a file may be fitted anew, a name registered anew, headlines may grow."""
    if isinstance(given, SignalSet):
        return f"{given.hash} {given.outside}"
    if not given:
        return ""
    said = []
    for name in names_of(given):
        if name in SIGNALS:
            said.append(f"{SIGNALS[name]} {_code(SIGNALS[name])} {make(name).outside()}")
        else:
            file = _file(name)
            said.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()} {files.read(file).outside()}")
    return "\n".join(said)


def _file(name: str) -> Path:
    file = files.find(name)
    if file is None:
        place = "" if Path(name).is_absolute() else f" in {Path.cwd()}"
        raise UnknownNameError(f"{unknown('signal', name, SIGNALS)}; there is no such file or folder{place}")
    return file


def _check_sessions(model: SignalModel | type[SignalModel], sessions: bool) -> None:
    if sessions and not model.sessions:
        able = [name for name in SIGNALS if signal_kind(name).sessions]
        raise ConfigError(
            f"signals: {model.name!r} takes the step over a night for that of one bar, and these bars come in "
            f"sessions; it serves markets without nights (those that say sessions = True: {', '.join(able) or 'none'})"
        )


# ---- fits -------------------------------------------------------------------------------------------------------


def _fitted(name: str, bars: Bars, train_stop: int) -> SignalModel:
    """Return the model ``name`` fitted on the training range, from this process, from the disk, or now."""
    model = make(name)
    training = bars.between(0, train_stop)
    said = [files.FORMAT, name, SIGNALS[name], model.settings(), training.hash, _code(SIGNALS[name])]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if key not in _fits:
        file = storage.cache_folder() / CACHE / f"{name}-{key[:32]}.zip"
        found = _read(file) if said[-1] else None
        if found is None:
            found = _fit(model, training)
            if said[-1]:
                _write(file, found)
        if found.status():
            _log.warning("signal %s: %s", name, found.status())
        _keep(_fits, key, found)
    _fits.move_to_end(key)
    return _fits[key]


def _fit(model: SignalModel, training: Bars) -> SignalModel:
    try:
        model.fit(training)
    except ConfigError as error:
        raise type(error)(
            f"signals: {model.name!r} with its own settings: {error}. Fit one with others by regimegym signals fit "
            f"--signal {model.name} --set KEY=VALUE --out DIR and observe signals='DIR'"
        ) from error
    try:
        json.dumps(model.fitted, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"signals: {model.name!r} fitted a number that is not finite on {len(training)} bars"
        ) from error
    return model


def _read(file: Path) -> SignalModel | None:
    if not file.is_file():
        return None
    try:
        said, parts = storage.read(file, (), files.members())
        with storage.naming(file, storage.MANIFEST):
            return files.restored(said, parts)
    except ArtefactError as error:
        _log.warning("a cached fit is not used: %s", error)
        return None


def _write(file: Path, model: SignalModel) -> None:
    parts = {model.member: model.dump()} if model.member else {}
    try:
        storage.write(file, files.content(model), parts)
    except OSError as error:
        _log.warning("a fit of signal %s is not kept for other processes: %s", model.name, error)


@cache
def _code(place: str) -> str:
    """Identify the code of a model, with what it imports of this package; empty where it stands in no file."""
    module = place.partition(":")[0]
    if module.split(".")[0] in HOUSE:
        return code_version(module)
    kind = signal_kind(next(name for name, own in SIGNALS.items() if own == place))
    try:
        own = Path(inspect.getfile(kind)).read_bytes()
    except (TypeError, OSError):
        return ""
    return hashlib.sha256(own + code_version("encoders.signals.model").encode()).hexdigest()[:16]


# ---- tables -----------------------------------------------------------------------------------------------------


def _named(model: SignalModel, bars: Bars) -> CausalTable:
    """Return a model's table with the columns of several symbols named after their coins, first: ``ETH_garch_z``."""
    table = model.table(bars)
    if len(table) != len(bars) or table.bars_hash != bars.hash:
        raise ConfigError(f"signals: the table of {model.name!r} has {len(table)} rows for {len(bars)} bars")
    if not (np.isfinite(table.low).all() and np.isfinite(table.high).all()):
        raise ConfigError(f"signals: the table of {model.name!r} has a column without finite bounds")
    if len(bars.symbols) == 1:
        return table
    coins = dict(zip(bars.symbols, base_assets(bars.symbols), strict=True))
    ends = sorted(coins, key=len, reverse=True)

    def renamed(name: str) -> str:
        symbol = next((end for end in ends if name.endswith(f"_{end}")), None)
        return name if symbol is None else f"{coins[symbol]}_{name.removesuffix(f'_{symbol}')}"

    return replace(table, names=tuple(renamed(name) for name in table.names), checked=False)


def _keep(store: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    store[key] = value
    while len(store) > KEPT:
        store.popitem(last=False)
