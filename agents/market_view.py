"""MarketView: the bars an environment stands on, and the row of each observation that it showed last.

Signals are causal tables over bars (one row per bar), so an agent that looks one up has to know where its observations
stand. It reads the row and nothing after it: the tables are made by transforms whose row t knows bars 0..t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.simulation import Simulation
from markets.bars import Bars
from markets.errors import ConfigError


@dataclass(frozen=True)
class MarketView:
    """What an agent may look up beside its observation.

    Attributes:
        bars: the market. rows: gives the bar index of each observation just returned, ``(B,)``.
    """

    bars: Bars
    rows: Callable[[], NDArray[np.int64]]


def view_of(env: Any) -> MarketView:
    """Return the view of an environment of this package, or of a vector of them, through any wrappers.

    Raises:
        ConfigError: another environment, which does not tell its bars.
    """
    simulation = getattr(env.unwrapped, "simulation", None)
    if not isinstance(simulation, Simulation):
        raise ConfigError(f"{env} does not tell which bars it stands on; signals need an environment of regimegym")
    return MarketView(simulation.game.bars, lambda: simulation.rows)
