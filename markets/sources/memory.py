"""Source ``memory:NAME``: bars that were registered under a name in this process (notebooks, tests)."""

from __future__ import annotations

from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.sources import reject_unknown

_registered: dict[str, Bars] = {}


def register_bars(name: str, bars: Bars) -> str:
    """Keep ``bars`` under ``name`` for ``gym.make(..., bars="memory:NAME")`` and return that specification.

    A name can be reused; the newest bars win. Worker processes that were *spawned* do not see it: give them a file.
    """
    if not isinstance(bars, Bars):
        raise ConfigError(f"bars must be Bars, not {type(bars).__name__}; use Bars.from_frame for a DataFrame")
    if not name or not set(name).isdisjoint("?:&"):
        raise ConfigError(f"name={name!r} must be a word without '?', ':' and '&'")
    _registered[name] = bars
    return f"memory:{name}"


def load_memory(path: str, options: dict[str, str], specification: str) -> Bars:
    """Return the bars registered under ``path``."""
    reject_unknown(options, (), "memory")
    if path not in _registered:
        raise unknown("bars in this process's memory", path, _registered)
    return _registered[path]
