"""What an encoder says of a game's bars: its causal table, and the regime of each bar for info.

The market does not depend on the account, so everything is embedded once when a game is prepared, and a step only looks
up its row. Nothing here knows a network: :mod:`encoders.encoder` finds the weights when an environment is made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.symbols import base_asset, base_assets
from markets.table import CausalTable, join

if TYPE_CHECKING:
    from encoders.encoder import Encoder

KEPT = 8  # encoded markets per process

_encoded: OrderedDict[tuple[str, ...], Encoded] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoder's view of a set of bars.

    Attributes:
        table: ``(T, E)`` embedding and odds. name, sha256: of the encoder.
        facts: info key -> ``(T,)`` array: regime and its confidence, by symbol.
        regimes: how many of the last columns are odds, of one symbol.
        change_bars: bars of a recent change where nobody says how many. change: odds ``(T,)`` that the regime changed
            within that many last bars (None: ``change_bars``); None of an encoder without, and of several symbols.
    """

    table: CausalTable
    name: str
    sha256: str
    facts: dict[str, NDArray[Any]]
    regimes: int = 0
    change_bars: int = 0
    change: Callable[[int | None], NDArray[np.float64]] | None = None


def encode(kind: str, bars: Bars, name: str | None, voice: str) -> Encoded:
    """Embed ``bars`` with the weights of ``kind`` that fit them, or with those that ``name`` names.

    Of several symbols each is embedded by itself; its columns are named after it: ``ETH_jepa_00``, ``ETH_regime_0``.
    """
    if len(bars.symbols) > 1:
        return _of_basket([encode(kind, bars.asset(i), name, voice) for i in range(len(bars.symbols))], bars)
    from encoders.encoder import interval_name, resolve

    encoder = resolve(kind, bars, name)
    if hasattr(encoder, "speaking"):
        encoder = encoder.speaking(voice)
    called = name or f"{kind}-{bars.market}-{interval_name(bars.interval)}"
    # neither hash knows where bars or weights come from, which is what decides whether they were trained on
    key = (bars.hash, encoder.hash, str(encoder.provenance.fitted_until(bars)), called)
    if key not in _encoded:
        _encoded[key] = _view(encoder, bars, called)
        while len(_encoded) > KEPT:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


def _of_basket(views: list[Encoded], bars: Bars) -> Encoded:
    """Put what an encoder says of each symbol side by side."""
    tables = [
        replace(
            view.table, names=tuple(f"{asset}_{name}" for name in view.table.names), bars_hash=bars.hash, checked=False
        )
        for view, asset in zip(views, base_assets(bars.symbols), strict=True)
    ]
    facts = {name: values for view in views for name, values in view.facts.items()}
    return Encoded(join(tuple(tables)), views[0].name, views[0].sha256, facts)


def _view(encoder: Encoder, bars: Bars, name: str) -> Encoded:
    table = encoder.table(bars)
    odds = table.values[:, -encoder.regimes :]
    base = base_asset(bars.symbols[0])
    facts = {f"{base}_regime": odds.argmax(axis=1), f"{base}_regime_confidence": odds.max(axis=1).astype(np.float64)}
    if not hasattr(encoder, "change_odds"):
        return Encoded(table, name, encoder.hash, facts, encoder.regimes)
    change = partial(encoder.change_odds, bars)
    return Encoded(table, name, encoder.hash, facts, encoder.regimes, encoder.change_bars, change)  # type: ignore[attr-defined]
