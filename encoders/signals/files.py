"""A fitted signal as text: what a file says of it, and ``signal.zip`` read back without the agent around it.

Files hold plain values (JSON, and xgboost's JSON) and the name of the model in the table of signals, never code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoders.signals import SIGNALS, signal_kind
from encoders.signals.model import SignalModel
from markets import storage
from markets.errors import ArtefactError

FILE = "signal.zip"
FORMAT = 1
SCALER = "scaler.json"  # of the environment it was fitted for; whoever only observes it has one of its own
KINDS = {"signal": str, "settings": dict, "fitted": dict, "symbols": list}


def content(model: SignalModel) -> dict[str, Any]:
    """Return what a file says of a fitted model; ``model.dump()`` goes beside it where the model has a ``member``."""
    return {
        "signal": model.name, "settings": model.settings(), "fitted": model.fitted, "symbols": list(model.symbols),
        "train_end": None if model.train_end is None else str(model.train_end),
    }  # fmt: skip


def restored(said: Mapping[str, Any], parts: Mapping[str, bytes]) -> SignalModel:
    """Make the model that :func:`content` described; ``parts`` hold its ``member``, where it has one, by that name.

    Raises:
        ArtefactError: not the content of a signal, a part is missing, or a signal that this process does not know.
        ConfigError: settings or numbers that no model of that name has.
    """
    for key, kind in KINDS.items():
        if not isinstance(said[key], kind):
            raise ArtefactError(f"{key} is {said[key]!r}, expected {kind.__name__}")
    if said["signal"] not in SIGNALS:
        raise ArtefactError(
            f"signal {said['signal']!r} is of no row here: register it first (encoders.signals.register, or "
            f"--signals module:Class); rows: {', '.join(SIGNALS)}"
        )
    model = signal_kind(said["signal"])(**said["settings"])
    data = parts.get(model.member, b"")
    if model.member and not data:
        raise ArtefactError(f"{model.member} is missing")
    return model.restore(said["fitted"], tuple(said["symbols"]), said["train_end"], data)


def members() -> list[str]:
    """Names of the further parts that models of the table have."""
    return [kind.member for kind in map(signal_kind, SIGNALS) if kind.member]


def find(place: str) -> Path | None:
    """Return the file of a folder or of a file, None where there is neither.

    Raises:
        ArtefactError: a folder without a signal.
    """
    given = Path(place)
    if given.is_file():
        return given
    if not given.is_dir():
        return None
    if not (given / FILE).is_file():
        raise ArtefactError(f"{given} holds no {FILE}: fit one with regimegym signals fit --out {given}")
    return given / FILE


def read(file: Path) -> SignalModel:
    """Load the model of a saved signal.

    Raises:
        ArtefactError: a member is missing, altered or does not fit; or a signal that this process does not know.
    """
    said, parts = storage.read(file, [SCALER], members())
    with storage.naming(file, storage.MANIFEST):
        if said["format"] != FORMAT:
            raise ArtefactError(f"format is {said['format']!r}, this version reads {FORMAT}")
        return restored(said, parts)


# ---- several in the file of an agent that observes them ----------------------------------------------------------


def places(count: int) -> list[str]:
    """Names that the members of up to ``count`` signals have in an agent's file."""
    return [f"signal-{place:02d}" for place in range(count)]


def told(models: Sequence[SignalModel]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return what an agent's manifest says of the signals it observes, and their members; :func:`retold` reads both."""
    rows = [{**content(model), "hash": model.hash} for model in models]
    names = places(len(models))
    return rows, {name: model.dump() for name, model in zip(names, models, strict=True) if model.member}


def retold(rows: Any, parts: Mapping[str, bytes]) -> list[SignalModel]:
    """Make the signals that :func:`told` described.

    Raises:
        ArtefactError: no such rows, a signal that this process does not know, or numbers of another one (its hash
            differs).
    """
    if not isinstance(rows, list):
        raise ArtefactError(f"signals is {rows!r}, expected list")
    models = []
    for name, row in zip(places(len(rows)), rows, strict=True):
        kind = signal_kind(row["signal"]) if row["signal"] in SIGNALS else None
        own = {kind.member: parts[name]} if kind is not None and kind.member and name in parts else {}
        model = restored(row, own)
        if model.hash != row["hash"]:
            raise ArtefactError(f"signal {model.name!r}: the numbers are not those it was saved with (hash differs)")
        models.append(model)
    return models
