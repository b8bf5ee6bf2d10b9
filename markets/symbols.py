"""What a symbol prices: ``BTC`` of ``BTCUSDT``, ``BTC/USDT:USDT`` and ``BTC-USD``."""

from __future__ import annotations

from collections.abc import Sequence

from markets.errors import ConfigError

QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "USD", "EUR", "BTC")


def base_asset(symbol: str) -> str:
    """Return the asset that a symbol prices: ``BTC`` of ``BTCUSDT``, ``BTC/USDT:USDT`` and ``BTC-USD``."""
    plain = symbol.split(":")[0].replace("/", "").replace("-", "").upper()
    for quote in QUOTES:
        if plain.endswith(quote) and len(plain) > len(quote):
            return plain.removesuffix(quote)
    return plain


def base_assets(symbols: Sequence[str]) -> tuple[str, ...]:
    """Name the assets of several symbols, for columns.

    Raises:
        ConfigError: two symbols price the same asset.
    """
    names = tuple(base_asset(symbol) for symbol in symbols)
    for symbol, name in zip(symbols, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"two of the symbols {', '.join(symbols)} price {name}; {symbol!r} is one of them")
    return names
