"""Source ``synthetic:``: seeded regime-switching markets with true labels."""

from __future__ import annotations

from dataclasses import fields

from markets import synthetic
from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.sources import reject_unknown

MARKETS = ("crypto",)


def load_synthetic(path: str, options: dict[str, str], specification: str) -> Bars:
    """Generate ``synthetic:crypto?seed=0&interval=1h&bars=40000`` plus any number of the generator's parameters."""
    if path not in MARKETS:
        raise unknown("synthetic market", path, MARKETS)
    numbers = tuple(item.name for item in fields(synthetic.CryptoParameters) if item.type == "float")
    reject_unknown(options, ("seed", "interval", "bars", *numbers), "synthetic")
    seed = _integer("seed", options.pop("seed", "0"), 0)
    bars = _integer("bars", options.pop("bars", "40000"), 2)
    interval = options.pop("interval", "1h")
    chosen = {name: _number(name, value) for name, value in options.items()}
    parameters = synthetic.CryptoParameters(**chosen)  # type: ignore[arg-type]
    return synthetic.crypto(seed=seed, interval=interval, bars=bars, parameters=parameters)


def _integer(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text!r} is not a whole number of at least {least}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} is not a number") from error
