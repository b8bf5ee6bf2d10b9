"""Which sessions the option model's default figures were fitted to, and whether an evaluation is walked on them."""

from __future__ import annotations

import numpy as np

from envs.simulation import Game
from envs.zero_dte_config import ZeroDTEConfig

FITTED_FROM, FITTED_UNTIL = np.datetime64("2023-11-01", "D"), np.datetime64("2025-06-30", "D")  # both included
GENERATED = "synthetic:"  # source of bars that nothing was fitted to


def model_in_sample(game: Game) -> list[str]:
    """Return the arguments of an option game whose defaults were fitted on days of its split: ``smile, vix_ratio``.

    Empty where both are given, for generated bars, for a split on other days, and for games without options. A smile
    counts as given whatever it says; a ratio counts where it is not the default.
    """
    config = game.recipe[1]
    if not isinstance(config, ZeroDTEConfig) or game.bars.source.startswith(GENERATED):
        return []
    first, last = (game.bars.close_time[row].astype("datetime64[D]") for row in (game.first, game.last))
    if last < FITTED_FROM or first > FITTED_UNTIL:
        return []
    smile = ["smile"] if config.smile is None else []
    return smile + (["vix_ratio"] if config.vix_ratio == ZeroDTEConfig.vix_ratio else [])
