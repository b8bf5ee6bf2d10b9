"""Rows of the table on real bars: what each knows of the volatility to come, fitted before a date and scored after it.

Real bars have no true regimes, so nothing here is a purity. Every row is fitted on bars that closed by ``train_end``
and scored on those up to ``test_end`` by :func:`encoders.volatility_probes.score_volatility`; an embedding of the test
range may read the bars before it, as it would live. Nothing is claimed about the direction of prices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.belief import BeliefConfig
from encoders.channels import CHANNELS, bar_returns
from encoders.clustering import self_persistence
from encoders.defrag_pretrain import DefragPretrain
from encoders.jepa_training import JEPAConfig
from encoders.probes import scored_rows
from encoders.table_defrag import DefragRows
from encoders.table_fits import FitConfig, Fits, Told
from encoders.table_rows import Model, Row
from encoders.table_store import Outcome, code_version
from encoders.volatility_probes import (
    CLUSTERS,
    HORIZON,
    STRIDE,
    explained_by_clusters,
    future_log_volatility,
    log_volatility,
    score_volatility,
)
from markets.bars import Bars
from markets.errors import ConfigError

Floats = NDArray[np.float64]

RECIPE = JEPAConfig(  # jitter and steps: chosen on rows held out inside the training range
    channels=CHANNELS,
    belief=BeliefConfig(regimes=6, bank_cap=0.5, dwell_floor=250.0),
    steps=800,
    scale_jitter=0.4,
)
DEFRAG = DefragPretrain(channels=CHANNELS, regimes=6)
ENCODERS = {
    "embedding": ("default", "embedding: JEPA + future statistics + belief"),
    "jepa-only": ("jepa-only", "embedding, JEPA alone"),
    "head-only": ("head-only", "embedding, future statistics alone"),
    "untrained": ("untrained", "embedding, untrained"),
}


@dataclass(frozen=True, kw_only=True)
class RealConfig:
    """Ranges and recipe.

    Attributes:
        train_end: last day (or time) that is fitted on. test_end: last that is scored.
        fits: of beliefs and encoders. clusters: of k-means.
    """

    train_end: str
    test_end: str
    fits: FitConfig = field(default_factory=lambda: FitConfig(jepa=RECIPE))
    clusters: int = CLUSTERS


class RealBars:
    """Rows and judge of S series of real bars.

    Raises:
        ConfigError: a series has no bars in one of the two ranges.
    """

    def __init__(self, series: Sequence[Bars], config: RealConfig, folder: Path, told: Told | None = None) -> None:
        self.config = config
        self.cuts, self.known = [], []
        for bars in series:
            cut = bars.rows_closed_by(config.train_end, "train_end")
            stop = bars.rows_closed_by(config.test_end, "test_end")
            if not 0 < cut < stop:
                raise ConfigError(
                    f"{bars.source or bars.symbols[0]}: train_end={config.train_end!r} leaves {cut} bars to fit on and "
                    f"test_end={config.test_end!r} {stop - cut} to score"
                )
            self.cuts.append(cut)
            self.known.append(bars.between(0, stop))  # nothing behind the test range is ever read
        self.train = [bars.between(0, cut) for bars, cut in zip(self.known, self.cuts, strict=True)]
        self.code = code_version(__name__)
        data = {
            "train": [bars.hash for bars in self.train], "test": [bars.hash for bars in self.known],
            "clusters": config.clusters,
        }  # fmt: skip
        self.settings: Mapping[str, Any] = {**data, **config.fits.encoder_settings()}
        self.fits = Fits(self.train, config.fits, folder, {"train": data["train"]}, self.code, told)
        belief, encoder = ({**data, **part} for part in (config.fits.belief_settings(), config.fits.encoder_settings()))
        self.rows: Sequence[Row] = [
            Row("har", "HAR: log volatility of the last 4, 24, 168, 256 bars", lambda seed: Model(_har), data, False),
            *(Row(name, title, self.fits.embedding(variant), encoder) for name, (variant, title) in ENCODERS.items()),
            Row("belief", "belief", self.fits.odds(clusters=False), belief),
            Row("belief-argmax", "belief, its most likely regime", self.fits.odds(), belief),
            Row("belief+embedding", "belief + embedding", self.fits.belief_and_embedding, encoder),
            Row("har+embedding", "HAR + embedding", self.fits.embedding("default", _har), encoder),
            *DefragRows(self.train, DEFRAG, data, told).rows,
        ]

    def judge(self, model: Model, seed: int) -> Outcome:
        """Score a row: R2 of the log volatility of the next 64 bars, and its clusters."""
        embedded = [model.embed(bars) for bars in self.known]
        early, late, early_moves, late_moves = [], [], [], []
        for rows, bars, cut in zip(embedded, self.known, self.cuts, strict=True):
            moves = bar_returns(bars)
            early.append(rows[:cut])
            late.append(rows[cut:])
            early_moves.append(moves[:cut])
            late_moves.append(moves[cut:])
        figures, apart = score_volatility(early, early_moves, late, late_moves, self.config.clusters, seed)
        if model.odds:
            apart = [rows[scored_rows(len(rows) - HORIZON, stride=STRIDE)].argmax(axis=1) for rows in late]
            figures |= cluster_figures(apart, late_moves, late[0].shape[1])
        figures["over_har"] = figures["r2"] - figures["har_r2"]
        return Outcome({**figures, "train_cpu": model.cpu_seconds, **model.facts}, np.concatenate(apart))

    def notes(self) -> list[str]:
        """Return the sentences below the table."""
        config = self.config
        recipe = config.fits.jepa
        return [
            f"Fitted on bars up to {config.train_end}, scored on those after it up to {config.test_end}: "
            + "; ".join(f"{bars.symbols[0]} {cut:,} and {len(bars) - cut:,} bars" for bars, cut in self._sizes())
            + ".",
            f"R2: ridge forecast of the log volatility of the next {HORIZON} bars. eta2: its share between clusters. "
            f"Persistence: share of bars still in their cluster {HORIZON} bars later, chance removed. Dwell: mean bars "
            "in a cluster. Agreement: mean adjusted Rand index of all pairs of seeds. Clusters: "
            f"{config.clusters} of k-means, fitted on the training range; of 'belief-argmax' the most likely of "
            f"{recipe.belief.regimes} regimes.",
            f"Recipe: channels {', '.join(recipe.channels)}; {recipe.belief.regimes} regimes, bank_cap "
            f"{recipe.belief.bank_cap}, dwell_floor {recipe.belief.dwell_floor:g}; {recipe.steps} steps, "
            f"scale jitter {recipe.scale_jitter:g}.",
            "The future-statistics head is trained for nearly the quantity that R2 scores; JEPA alone is not. No row "
            "says anything about the direction of prices, and none is scored for it.",
        ]

    def _sizes(self) -> list[tuple[Bars, int]]:
        return list(zip(self.known, self.cuts, strict=True))


def cluster_figures(apart: Sequence[NDArray[np.int64]], returns: Sequence[Floats], count: int) -> dict[str, float]:
    """Return what :func:`score_volatility` says of its clusters for given ones of the scored rows, a series each."""
    found = np.concatenate(apart)
    target = np.concatenate(
        [future_log_volatility(one)[scored_rows(len(one) - HORIZON, stride=STRIDE)] for one in returns]
    )
    changes = sum(int((np.diff(one) != 0).sum()) for one in apart)
    return {
        "eta2": explained_by_clusters(target, found),
        "persistence": float(np.mean([self_persistence(one, HORIZON // STRIDE) for one in apart])),
        "dwell": len(found) * STRIDE / (changes + len(apart)),
        "least_share": float(np.bincount(found, minlength=count).min() / len(found)),
    }


def _har(bars: Bars) -> Floats:
    return log_volatility(bar_returns(bars))
