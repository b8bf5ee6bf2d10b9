"""Signals: models of a market that say buy or sell, and how sure they are. One file each, and one row here.

They are causal transforms like the encoders and stand before the environments, which may observe them
(:mod:`encoders.signals.fitted`, ``gym.make(id, signals="garch")``); as agents they act in :mod:`agents.signals`.

A new one is a file with a subclass of :class:`encoders.signals.model.SignalModel` and a row in ``SIGNALS``; one that
lives outside the package is registered under a name with :func:`register`, or on the command line with
``--signals module:Class``. Artefacts hold names of this table, never code.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from markets.errors import ConfigError, unknown

if TYPE_CHECKING:
    from encoders.signals.model import SignalModel

SIGNALS: dict[str, str] = {
    "mean_reversion": "encoders.signals.mean_reversion:MeanReversion",
    "garch": "encoders.signals.garch_momentum:GarchMomentum",
    "boosting": "encoders.signals.gradient_boosting:GradientBoosting",
    "sentiment": "encoders.signals.sentiment:Sentiment",
}


def register(place: str) -> str:
    """Add the model at ``module:Class`` under its own name for this process, and return that name.

    Raises:
        ConfigError: not of that form, no such class, no signal model, or its name is taken by another one.
    """
    kind = _imported(place)
    if SIGNALS.get(kind.name, place) != place:
        raise ConfigError(f"signals={place!r}: the name {kind.name!r} belongs to {SIGNALS[kind.name]}")
    SIGNALS[kind.name] = place
    return kind.name


def signal_kind(name: str) -> type[SignalModel]:
    """Return the model class of a row.

    Raises:
        UnknownNameError: no such row.
    """
    if name not in SIGNALS:
        raise unknown("signal", name, SIGNALS)
    return _imported(SIGNALS[name])


def make(name: str, /, **settings: Any) -> SignalModel:
    """Make the model ``name``, not fitted yet.

    Raises:
        UnknownNameError: no such signal or setting.
        ConfigError: a setting that cannot work.
    """
    kind = signal_kind(name)
    valid = tuple(item.name for item in fields(kind))
    for key in settings:
        if key not in valid:
            raise unknown(f"setting of signal {name!r}", key, valid)
    return kind(**settings)


def _imported(place: str) -> type[SignalModel]:
    from encoders.signals.model import SignalModel

    module, colon, attribute = place.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"signals={place!r} is not of the form module:Class")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"signals={place!r} cannot be imported: {error}") from error
    if not isinstance(kind, type) or not issubclass(kind, SignalModel) or not hasattr(kind, "__dataclass_fields__"):
        raise ConfigError(f"signals={place!r} is no dataclass that extends SignalModel")
    return kind
