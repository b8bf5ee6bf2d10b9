"""Source ``synthetic:``: seeded regime-switching markets with true labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from markets import synthetic, synthetic_basket, synthetic_regimes, synthetic_spy
from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.sources import reject_unknown
from markets.synthetic_spy_parameters import SPYParameters

REGIMES_OPTIONS = ("seed", "interval", "bars", "level", "regimes", "start", "stress")


def load_synthetic(path: str, options: dict[str, str], specification: str) -> Bars:
    """Generate the bars of ``synthetic:NAME?...``, NAME one of ``MARKETS``; each generator has its own options.

    Raises:
        UnknownNameError: another market or option. ConfigError: naming the option and its value.
    """
    if path not in MARKETS:
        raise unknown("synthetic market", path, MARKETS)
    return MARKETS[path](options)


def _crypto(options: dict[str, str]) -> Bars:
    """Read ``seed=0&interval=1h&bars=40000`` plus any number of the generator's parameters."""
    numbers = tuple(item.name for item in fields(synthetic.CryptoParameters) if item.type == "float")
    reject_unknown(options, ("seed", "interval", "bars", *numbers), "synthetic")
    seed = _integer("seed", options.pop("seed", "0"), 0)
    bars = _integer("bars", options.pop("bars", "40000"), 2)
    interval = options.pop("interval", "1h")
    chosen = {name: _number(name, value) for name, value in options.items()}
    parameters = synthetic.CryptoParameters(**chosen)  # type: ignore[arg-type]
    return synthetic.crypto(seed=seed, interval=interval, bars=bars, parameters=parameters)


def _basket(options: dict[str, str]) -> Bars:
    """Read ``seed=0&interval=1h&bars=40000&assets=3&own=1`` plus any number of the common market's parameters."""
    numbers = tuple(item.name for item in fields(synthetic.CryptoParameters) if item.type == "float")
    numbers = tuple(name for name in numbers if name != "volume_per_hour")  # each coin has its own
    reject_unknown(options, ("seed", "interval", "bars", "assets", "own", *numbers), "synthetic:basket")
    seed = _integer("seed", options.pop("seed", "0"), 0)
    bars = _integer("bars", options.pop("bars", "40000"), 2)
    assets = _integer("assets", options.pop("assets", str(synthetic_basket.ASSETS)), 1)
    interval, own = options.pop("interval", "1h"), _number("own", options.pop("own", "1"))
    parameters = synthetic.CryptoParameters(**{name: _number(name, value) for name, value in options.items()})  # type: ignore[arg-type]
    return synthetic_basket.basket(seed, interval, bars, assets, own, parameters)


def _regimes(options: dict[str, str]) -> Bars:
    """Read ``seed=0&interval=1h&bars=32768&level=market&regimes=6&start=2020-01-01`` and ``stress=sv`` or ``mix``."""
    reject_unknown(options, REGIMES_OPTIONS, "synthetic:regimes")
    least = {"seed": 0, "bars": 2, "regimes": 2}
    chosen = {name: _integer(name, value, least[name]) if name in least else value for name, value in options.items()}
    return synthetic_regimes.regimes(**chosen)  # type: ignore[arg-type]


def _spy(options: dict[str, str]) -> Bars:
    """Read ``seed=0&sessions=500&start=2020-01-02&early_close=keep`` plus any number of the generator's parameters."""
    numbers = tuple(item.name for item in fields(SPYParameters) if item.type == "float")
    reject_unknown(options, ("seed", "sessions", "start", "early_close", *numbers), "synthetic:spy")
    seed = _integer("seed", options.pop("seed", "0"), 0)
    sessions = _integer("sessions", options.pop("sessions", str(synthetic_spy.SESSIONS)), 1)
    words = {name: options.pop(name) for name in ("start", "early_close") if name in options}
    parameters = SPYParameters(**{name: _number(name, value) for name, value in options.items()})  # type: ignore[arg-type]
    return synthetic_spy.spy(seed, sessions, **words, parameters=parameters)


MARKETS: dict[str, Callable[[dict[str, str]], Bars]] = {
    "crypto": _crypto, "basket": _basket, "regimes": _regimes, "spy": _spy,
}  # fmt: skip


def _integer(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text!r} is not a whole number of at least {least}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} is not a number") from error
