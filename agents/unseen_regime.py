"""A regime that nobody has seen: bars of a generated market whose last part is wilder than anything before it.

Up to a row the bars are those of ``synthetic:crypto`` as they were; from there on they are of another seed of the same
generator at a volatility of its own, begun at the last close. So scaler, encoder, policy and every calibration are
what they would be on the plain market, bit for bit, and only what comes after them is new.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from encoders.encoder import seed_of
from markets import synthetic
from markets.bars import Bars
from markets.errors import ConfigError
from markets.sources import parse
from markets.synthetic_parameters import CryptoParameters

NAME = "unseen"  # label of the bars
SEED = 50_000  # is added to the market's seed
COLUMNS = (
    "time", "open", "high", "low", "close", "volume", "mark_open", "mark_high", "mark_low", "mark_close",
)  # fmt: skip


def is_crypto(source: str) -> bool:
    """Tell whether bars are of the generator that can be gone on with."""
    return source.startswith("synthetic:crypto?")


def with_unseen_regime(bars: Bars, row: int, length: int, annual_volatility: float) -> Bars:
    """Return ``bars[:row]`` followed by ``length`` bars at ``annual_volatility`` (per square root of a year).

    Raises:
        ConfigError: bars of another source than ``synthetic:crypto``, or a row outside them.
    """
    seed = seed_of(bars)
    if not is_crypto(bars.source) or seed is None or bars.labels is None:
        raise ConfigError(f"bars {bars.source!r} cannot be gone on with: only those of synthetic:crypto can")
    if not 2 <= row <= len(bars) or length < 2:
        raise ConfigError(f"row={row} must lie from 2 to {len(bars)}, and length={length} be at least 2")
    _, _, options = parse(bars.source)
    known = {item.name for item in fields(CryptoParameters)}
    begin = bars.close_time[row - 1]
    given: dict[str, Any] = {name: float(value) for name, value in options.items() if name in known}
    given |= {"start": str(begin), "start_price": float(bars.close[row - 1, 0]), "annual_volatility": annual_volatility}
    minutes = int(bars.interval / np.timedelta64(1, "m"))
    wild = synthetic.crypto(seed + SEED, f"{minutes}m", length, CryptoParameters(**given))
    before = bars.between(0, row)
    joined: dict[str, Any] = {name: np.concatenate([getattr(before, name), getattr(wild, name)]) for name in COLUMNS}
    kept, new = before.funding_time < begin, wild.funding_time >= begin
    mark = np.full(length, len(bars.label_names), bars.labels.dtype)
    return replace(
        before,
        **joined,
        funding_time=np.concatenate([before.funding_time[kept], wild.funding_time[new]]),
        funding_rate=np.concatenate([before.funding_rate[kept], wild.funding_rate[new]]),
        labels=np.concatenate([before.labels, mark]),
        label_names=(*bars.label_names, NAME),
        source=f"{bars.source}&from={row}&unseen_volatility={annual_volatility:g}&unseen_bars={length}",
    )
