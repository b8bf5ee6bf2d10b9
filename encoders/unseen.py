"""Bars to look at an encoder with: generated ones that it has not seen, and what is to be said about any others."""

from __future__ import annotations

from urllib.parse import parse_qsl

import numpy as np

from encoders.encoder import Provenance, interval_name, is_generated
from markets.bars import Bars
from markets.errors import ConfigError
from markets.session_calendar import MINUTES
from markets.sources import load

COUNT = 32_000  # generated bars


def bars_for(provenance: Provenance, specification: str | None = None, count: int = COUNT) -> Bars:
    """Load ``specification``, or where there is none generate ``count`` bars of a seed the encoder was not fitted on.

    Raises:
        ConfigError: no specification for an encoder of real bars: none come with the package.
    """
    if specification is not None:
        return load(specification)
    generated = [source for source in provenance.sources if is_generated(provenance.market, source)]
    if not generated:
        raise ConfigError(
            f"--bars is needed: this encoder was fitted on bars of market {provenance.market!r} at "
            f"{provenance.interval} up to {provenance.train_end[:16]}, and no real bars come with the package. Name "
            "later ones: --bars kind:path?key=value"
        )
    path, _, query = generated[0].partition("?")
    options = {**dict(parse_qsl(query)), "seed": str(max(provenance.seeds, default=0) + 1)}
    length = {"sessions": -(-count // MINUTES)} if path == "synthetic:spy" else {"bars": count}
    options |= {name: str(value) for name, value in length.items()}
    return load(f"{path}?" + "&".join(f"{name}={value}" for name, value in options.items()))


def seen_rows(provenance: Provenance, bars: Bars) -> int:
    """Return how many of the bars, from the first on, the encoder may have been fitted on."""
    until = provenance.fitted_until(bars)
    return 0 if until is None else int(np.searchsorted(bars.close_time, until, side="right"))


def cautions(provenance: Provenance, bars: Bars) -> list[str]:
    """Return a sentence for each reason not to read figures on these bars as those of unseen bars of its market."""
    found = []
    seen = seen_rows(provenance, bars)
    if seen:
        found.append(f"{seen:,} of {len(bars):,} bars lie in the range that the encoder was fitted on: in sample.")
    mine, theirs = (provenance.market, provenance.interval), (bars.market, interval_name(bars.interval))
    if mine != theirs:
        found.append(f"The bars are {theirs[0]!r} at {theirs[1]}, the encoder was fitted on {mine[0]!r} at {mine[1]}.")
    return found
