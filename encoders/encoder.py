"""Encoder: a causal transform with weights. What every encoder can do, how it is saved, and which weights fit a market.

An encoder has two faces that agree: ``table(bars)`` embeds a whole history in one dense pass, ``stream()`` takes one
closed bar at a time. Weights are one zip per encoder, ``encoder.zip`` in a folder of its own (manifest, tensors as
safetensors, nothing pickled). Shipped ones are named encoder-market-interval, ``jepa-crypto-1h``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from markets import storage
from markets.bars import Bars, as_time
from markets.errors import ArtefactError, ConfigError, UnknownNameError, unknown
from markets.table import CausalTable

_log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

FILE = "encoder.zip"
TENSORS = "weights.safetensors"
FORMAT = 1
WEIGHTS = Path(__file__).resolve().parent / "weights"
KINDS = {  # name in ids and weights -> class
    "jepa": "encoders.jepa:JEPAEncoder",
    "defrag": "encoders.defrag_market:DefragEncoder",
}
GENERATED = ("synthetic", "regimes")  # markets whose dates mean nothing: a seed is what an encoder may have seen
GENERATOR = "synthetic:"  # sources of such bars; a market such as ``spy`` has real bars and generated ones


@dataclass(frozen=True)
class Provenance:
    """What an encoder was fitted on.

    Attributes:
        market: kind of market. interval: bar length, such as ``1h``.
        train_end: close of the last bar that was fitted on, of the last real one where there are both kinds.
        sources: the bars, as specifications.
        seeds: of generated markets.
    """

    market: str
    interval: str
    train_end: str
    sources: tuple[str, ...]
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what :meth:`fitted_until` cannot compare with: it would say "never seen" of every bar, in silence.

        Raises:
            ConfigError: ``train_end`` is no time, or a seed is no whole number.
        """
        as_time(self.train_end, "train_end")
        for seed in self.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise ConfigError(f"seeds={self.seeds!r} must be whole numbers of at least 0")

    def fitted_until(self, bars: Bars) -> np.datetime64 | None:
        """Close of the last of ``bars`` that the encoder may have seen in training, None where it has seen none.

        Real bars go by date, whatever the symbol: coins move together. Generated ones go by market and seed. An encoder
        that was fitted on both kinds has seen both, each by its own rule.
        """
        if is_generated(bars.market, bars.source):
            seen = bars.market == self.market and seed_of(bars) in self.seeds
            return bars.close_time[-1] if seen else None
        return np.datetime64(self.train_end, "ns") if self.has_real else None

    @property
    def has_real(self) -> bool:
        """Whether any of the bars were real."""
        return not all(is_generated(self.market, source) for source in self.sources)


class EncoderStream(Protocol):
    """The live face of an encoder."""

    def update(self, bar: Bars) -> NDArray[np.float32] | None:
        """Take the last row of ``bar`` as one closed bar; the ``(D,)`` row of the table, None until it is warmed up."""

    def state_dict(self) -> Arrays:
        """Return what has to be kept to go on after a restart."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class Encoder(ABC):
    """Base of all encoders.

    Attributes:
        names: of its D columns. low, high: ``(D,)`` bounds. warm_up: rows before the first that is served.
        regimes: how many of the last columns are regime odds.
        provenance: what it was fitted on. facts: what a card shows beside: seed, command, scores.
    """

    kind: ClassVar[str]
    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    warm_up: int
    regimes: int

    def __init__(self, provenance: Provenance, facts: Mapping[str, Any] | None = None) -> None:
        self.provenance = provenance
        self.facts = dict(facts or {})

    @abstractmethod
    def encode(self, bars: Bars) -> NDArray[np.float32]:
        """Return ``(T, D)`` rows, row t from bars 0..t; rows before ``warm_up`` are never served."""

    @abstractmethod
    def stream(self) -> EncoderStream:
        """Return the live face, at the beginning of a history."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the structure as plain values."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Return every number by name."""

    @classmethod
    @abstractmethod
    def build(
        cls, config: Mapping[str, Any], arrays: Arrays, provenance: Provenance, facts: Mapping[str, Any]
    ) -> Encoder:
        """Make the encoder of a file; raises ``KeyError`` or an ``ArtefactError`` for what does not fit."""

    def table(self, bars: Bars) -> CausalTable:
        """Return :meth:`encode` as a causal table."""
        return CausalTable(
            values=self.encode(bars), names=self.names, low=self.low, high=self.high,
            valid_from=self.warm_up, bars_hash=bars.hash, train_end=self.provenance.fitted_until(bars),
            checked=bars.checked,
        )  # fmt: skip

    @property
    def hash(self) -> str:
        """SHA-256 of structure and numbers: the same weights are the same encoder, wherever they lie."""
        digest = hashlib.sha256(json.dumps([self.kind, self.config()], sort_keys=True).encode())
        for name, value in sorted(self.arrays().items()):
            digest.update(f"{name}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()


def is_generated(market: str, source: str) -> bool:
    """Tell generated bars from real ones, by their kind of market or by where they came from."""
    return market in GENERATED or source.startswith(GENERATOR)


def seed_of(bars: Bars) -> int | None:
    """Read the seed of generated bars from their source; None where it says none."""
    values = parse_qs(bars.source.partition("?")[2]).get("seed", [])
    return int(values[0]) if values and values[0].isdecimal() else None


def interval_name(interval: np.timedelta64) -> str:
    """Write a bar length as ids and weights do: ``1m``, ``15m``, ``1h``, ``1d``."""
    seconds = int(interval / np.timedelta64(1, "s"))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


# ---- files ------------------------------------------------------------------------------------------------------


def save(encoder: Encoder, directory: str | Path) -> Path:
    """Write ``directory/encoder.zip``, atomically, and return its path."""
    manifest = {
        "format": FORMAT, "kind": encoder.kind, "config": encoder.config(), "provenance": asdict(encoder.provenance),
        "facts": encoder.facts, "hash": encoder.hash, "versions": {"regimegym": _version(), "numpy": np.__version__},
    }  # fmt: skip
    tensors = save_tensors({name: np.ascontiguousarray(value) for name, value in encoder.arrays().items()})
    return storage.write(Path(directory) / FILE, manifest, {TENSORS: tensors})


def load(path: str | Path) -> Encoder:
    """Load the encoder in ``path``: a folder, its file, or the name of shipped weights.

    Raises:
        UnknownNameError: no such folder and no shipped weights of that name.
        ArtefactError: incomplete, altered, of another format, or with numbers that do not fit; says what.
    """
    file = find(path)
    manifest, members = storage.read(file, (TENSORS,))
    with storage.naming(file, storage.MANIFEST):
        if manifest["format"] != FORMAT:
            raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
        kind = kind_of(manifest["kind"])
        given = dict(manifest["provenance"])
        provenance = Provenance(**{**given, "sources": tuple(given["sources"]), "seeds": tuple(given["seeds"])})
        facts = dict(manifest["facts"])
    with storage.naming(file, TENSORS, SafetensorError):
        arrays = load_tensors(members[TENSORS])
        for name, value in arrays.items():
            if not np.isfinite(value).all():
                raise ArtefactError(f"tensor {name!r} holds a number that is not finite")
        encoder: Encoder = kind.build(manifest["config"], arrays, provenance, facts)
        foreign = sorted(set(arrays) - set(encoder.arrays()))
        if foreign:
            raise ArtefactError(f"tensor {foreign[0]!r} is not of this encoder")
    if encoder.hash != manifest["hash"]:
        raise ArtefactError(f"{file}: the numbers are not those of the encoder it names (hash differs)")
    return encoder


def find(path: str | Path) -> Path:
    """Return the file of a folder, a file or a shipped name."""
    given = Path(path)
    for file in (given, given / FILE, WEIGHTS / str(path) / FILE):
        if file.is_file():
            return file
    if given.is_dir():
        raise ArtefactError(f"{given} holds no {FILE}: {_instead(given)}")
    place = "" if given.is_absolute() else f" in {Path.cwd()}"
    raise UnknownNameError(f"{unknown('encoder', path, shipped())}; there is no such file or folder{place}")


def _instead(folder: Path) -> str:
    """Say what a folder without an encoder holds."""
    if (folder / "agent.zip").exists():
        return "it holds an agent"
    if (folder / "manifest.json").exists():
        return "it holds a windowed Koopman network, which is not served to environments (docs/encoders.md)"
    return "was its pretraining finished? regimegym pretrain --resume goes on with one that was stopped"


def shipped() -> list[str]:
    """Names of the weights in the package."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob(f"*/{FILE}"))


def resolve(kind: str, bars: Bars, name: str | None = None) -> Encoder:
    """Return the encoder for ``bars``: ``name`` where given, else the shipped weights of their market and interval.

    Raises:
        ConfigError: no weights of that kind for this market and interval (never those of another in silence), or the
            named ones are of another kind; the message lists what exists.
    """
    kind_of(kind)
    if name is not None:
        encoder = load(name)
        if encoder.kind != kind:
            raise ConfigError(f"encoder={name!r} is of kind {encoder.kind!r}, this environment takes {kind!r}")
        mine = (encoder.provenance.market, encoder.provenance.interval)
        theirs = (bars.market, interval_name(bars.interval))
        if mine != theirs:
            _log.warning("encoder %r was fitted on %s bars at %s, and these are %s at %s", name, *mine, *theirs)
        return encoder
    wanted = f"{kind}-{bars.market}-{interval_name(bars.interval)}"
    if wanted not in shipped():
        raise ConfigError(
            f"there are no weights {wanted!r} for these bars ({bars.market}, {interval_name(bars.interval)}); "
            f"existing: {', '.join(shipped()) or 'none'}. Train your own: "
            f"regimegym pretrain --encoder {kind} --bars ... --out DIR, then encoder='DIR'"
        )
    return load(wanted)


def kind_of(name: str) -> type[Encoder]:
    """Import the class of an encoder kind."""
    if name not in KINDS:
        raise unknown("encoder kind", name, KINDS)
    module, _, attribute = KINDS[name].partition(":")
    found: type[Encoder] = getattr(importlib.import_module(module), attribute)
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("regimegym")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
