"""What signals say of a game's bars: their causal table, and what it was fitted on.

``signals="garch,mean_reversion"`` of every family: models of :mod:`encoders.signals`, fitted on the training range.
Everything is computed once when a game is prepared, and a step only looks up its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from markets.bars import Bars
from markets.table import CausalTable

if TYPE_CHECKING:
    from encoders.signals.fitted import SignalSet


@dataclass(frozen=True, eq=False)
class Observed:
    """Signals over a set of bars.

    Attributes:
        models: the fitted models. table: ``(T, D)`` what they say.
        fitted: what each was fitted on, for those that were: "signal 'garch'" -> close of the last bar.
    """

    models: SignalSet
    table: CausalTable
    fitted: dict[str, np.datetime64]


def observe(given: str | SignalSet, bars: Bars, train_stop: int, sessions: bool = False) -> Observed | None:
    """Return what the signals ``given`` say of ``bars``, None where none are; see ``encoders.signals.fitted``."""
    if not given:
        return None
    from encoders.signals.fitted import signal_set

    models = signal_set(given, bars, train_stop, sessions)
    fitted = {f"signal {model.name!r}": model.train_end for model in models.models if model.train_end is not None}
    return Observed(models, models.table(bars), fitted)
