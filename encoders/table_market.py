"""Rows of the table on the market with true regimes: the oracle, the belief, encoders, their controls, references.

Every row is trained on the closes of the public training series alone (``supervised`` reads their labels as well and
says so) and scored on the public test series by :func:`encoders.probes.score_and_clusters`. Of a row that gives odds
the cluster is the most likely regime; of every other the clusters are those of k-means, fitted on the training series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders import references
from encoders.channels import bar_returns
from encoders.clustering import cluster_scores
from encoders.defrag_pretrain import DefragPretrain
from encoders.koopman_config import KoopmanConfig, koopman_config
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.koopman_schedule import fit_autoencoder
from encoders.koopman_training import JEPATrainer
from encoders.probes import LAG, score_and_clusters, scored_rows
from encoders.table_defrag import DefragRows
from encoders.table_fits import FitConfig, Fits, Told, odds_of
from encoders.table_rows import Model, Row
from encoders.table_store import Outcome, code_version
from markets.bars import Bars
from markets.errors import unknown
from markets.synthetic_regimes import LEVELS, regime_market, regimes
from markets.synthetic_stress import STRESSES

Floats = NDArray[np.float64]

TRAIN_SEEDS, TEST_SEEDS, BARS = (1, 2, 3, 4), (101, 102, 103, 104), 32_768  # the public series
NAMES = {  # references: on the command line
    "constant": "constant", "rolling 64 mean and volatility": "rolling-64", "27 hand features": "hand-27",
    "wasserstein 64": "wasserstein-64",
}  # fmt: skip
FITTED = {
    "ridge": ("ridge forecast of the next 64 bars", references.ridge, False),
    "jump-model": ("jump model", references.jump_model, True),
    "hmm-slow": ("Gaussian HMM on running mean and volatility", references.slow_hidden_markov, True),
    "hmm": ("Gaussian HMM on returns", references.hidden_markov, True),
}


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """Series and settings.

    Attributes:
        level: of :mod:`markets.synthetic_regimes`, or a law of :mod:`markets.synthetic_stress`, which has no oracle.
        fits: of belief and encoders; the number of regimes is replaced by the true one.
        koopman: of the windowed encoder.
    """

    level: str = "market"
    train_seeds: tuple[int, ...] = TRAIN_SEEDS
    test_seeds: tuple[int, ...] = TEST_SEEDS
    bars: int = BARS
    fits: FitConfig = field(default_factory=FitConfig)
    koopman: KoopmanConfig = field(default_factory=lambda: koopman_config("koopman"))

    def __post_init__(self) -> None:
        if self.level not in (*LEVELS, *STRESSES):
            raise unknown("level", self.level, (*LEVELS, *STRESSES))


class Market:
    """Rows and judge of one level."""

    def __init__(self, config: MarketConfig, folder: Path, told: Told | None = None) -> None:
        self.config, self.told = config, told
        self.stress = config.level if config.level in STRESSES else None
        self.market = regime_market("market" if self.stress else config.level)
        count = len(self.market.names)
        jepa = replace(config.fits.jepa, belief=replace(config.fits.jepa.belief, regimes=count))
        self.fit_config = replace(config.fits, jepa=jepa)
        self.koopman = replace(config.koopman, regimes=count)
        self.train, self.test = (
            [self._series(seed) for seed in own] for own in (config.train_seeds, config.test_seeds)
        )
        self.code = code_version(__name__)
        data = {"train": [one.hash for one in self.train], "test": [one.hash for one in self.test]}
        self.data = {**data, "level": config.level}
        self.settings: Mapping[str, Any] = {
            **self.data, **self.fit_config.encoder_settings(), "koopman": self.koopman.to_json()
        }  # fmt: skip
        self.fits = Fits(self.train, self.fit_config, folder, {"train": data["train"]}, self.code, told)
        defrag = DefragRows(self.train, DefragPretrain(regimes=count), self.data, told)
        self.rows: Sequence[Row] = [
            *self._beliefs(), *self._encoders(), *defrag.rows, *self._koopmans(), *self._references()
        ]  # fmt: skip

    def judge(self, model: Model, seed: int) -> Outcome:
        """Score a row against the true regimes of the test series."""
        train = np.stack([self._rows(model, bars) for bars in self.train])
        began = time.process_time()
        embedded = [model.embed(bars) for bars in self.test]
        spent = time.process_time() - began
        test = np.stack([rows if model.sparse else rows[scored_rows(len(rows))] for rows in embedded])
        truth = np.stack([_labels(bars) for bars in self.test])
        figures, clusters = score_and_clusters(
            train, np.stack([_labels(bars) for bars in self.train]), test, truth, len(self.market.names), seed=seed,
            whiten=model.whiten, spectrum=None if self.stress == "mix" else self.market.spectrum(LAG),
        )  # fmt: skip
        if model.odds:
            clusters = test.argmax(axis=2).ravel()
            figures |= cluster_scores(truth[:, scored_rows(truth.shape[1])].ravel(), clusters)
        cost = {"train_cpu": model.cpu_seconds, "us_per_bar": 1e6 * spent / sum(len(rows) for rows in embedded)}
        return Outcome({**figures, **cost, **model.facts}, clusters)

    def notes(self) -> list[str]:
        """Return the sentences below the table."""
        config, jepa = self.config, self.fit_config.jepa
        oracle = (
            "The oracle is the exact Bayes filter under the generator's true parameters: the ceiling."
            if self.stress is None
            else "No exact answer exists for this law, so there is no oracle row."
        )
        return [
            f"Market `regimes`, level {config.level}: trained on the closes of series {_list(config.train_seeds)}, "
            f"scored on series {_list(config.test_seeds)} (every eighth bar), {config.bars:,} bars each. {oracle}",
            "The belief filter shares the generator's structure (a Markov chain, Student's t, autoregression, a "
            "variance that past returns drive), and recipes were tuned while looking at these very test series: both "
            "flatter. The targets of the future-statistics head are what the regimes differ in. `supervised` reads the "
            "true regimes of the training series.",
            "Clusters: the most likely regime where a row gives odds, k-means with the true number of regimes "
            "elsewhere. Probe: logistic regression. EDMD error: mean distance of the leading moduli of the embedding's "
            f"spectrum at {LAG} bars from those of the chain. Delay: median bars until the probe has a switch. Flips: "
            "changes of the probe's answer for each true one. Agreement: mean adjusted Rand index of all pairs of "
            "seeds. us/bar: CPU time of a whole history at once; of `koopman`, of each window. "
            f"Encoders: {jepa.steps} steps.",
        ]

    def _series(self, seed: int) -> Bars:
        level = "market" if self.stress else self.config.level
        return regimes(seed, bars=self.config.bars, level=level, stress=self.stress)

    def _rows(self, model: Model, bars: Bars) -> Floats:
        rows = model.embed(bars)
        return rows if model.sparse else rows[scored_rows(len(rows))]

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _beliefs(self) -> list[Row]:
        config = self.fit_config
        belief = {**self.data, **config.belief_settings()}
        rows = [Row("belief", "belief filter", self.fits.odds(), belief)]
        if self.stress is None:
            exact = references.oracle(self.market)
            fit = _constant(Model(lambda bars: exact.embed(_returns(bars)), odds=True))
            rows.insert(0, Row("oracle", "oracle: exact posterior", fit, self.data, seeded=False))
        structure = replace(config.jepa.belief, emission="neural", half_lives=None, bank_cap=None)

        def neural(seed: int) -> Model:
            parameters, seconds = self.fits.fit_other_belief(seed, structure)
            return Model(lambda bars: odds_of(parameters, bars), odds=True, cpu_seconds=seconds)

        own = {**belief, "belief": asdict(structure)}
        rows.append(Row("belief-neural", "belief filter, neural emission", neural, own))
        return rows

    def _encoders(self) -> list[Row]:
        settings = {**self.data, **self.fit_config.encoder_settings()}

        def row(name: str, title: str, fit: Callable[[int], Model]) -> Row:
            return Row(name, title, fit, settings)

        return [
            row("default-softmax", "default: softmax", self.fits.softmax("default")),
            row("default", "default: embedding", self.fits.embedding("default")),
            row("belief+embedding", "belief + default embedding", self.fits.belief_and_embedding),
            row("head-only", "future statistics alone: embedding", self.fits.embedding("head-only")),
            row("jepa-only", "JEPA alone: embedding", self.fits.embedding("jepa-only")),
            row("distilled-softmax", "distilled from the belief alone: softmax", self.fits.softmax("distilled")),
            row("distilled", "distilled from the belief alone: embedding", self.fits.embedding("distilled")),
            row("autoencoder", "matched autoencoder: embedding", self.fits.embedding("autoencoder")),
            row("untrained", "untrained: embedding", self.fits.embedding("untrained")),
            row("supervised-softmax", "supervised, true labels: softmax", self.fits.softmax("supervised")),
            row("supervised", "supervised, true labels: embedding", self.fits.embedding("supervised")),
        ]

    def _koopmans(self) -> list[Row]:
        settings = {**self.data, "koopman": self.koopman.to_json()}
        return [
            Row("koopman", "koopman: windows, JEPA alone", self._koopman, settings),
            Row("koopman-autoencoder", "koopman: matched autoencoder", self._koopman_autoencoder, settings),
            Row("koopman-untrained", "koopman: untrained", self._koopman_untrained, settings),
        ]

    def _references(self) -> list[Row]:
        rows = []
        for name, (title, fit, seeded) in FITTED.items():
            rows.append(Row(name, title, self._reference(fit), self.data, seeded))
        for one in references.FEATURES:
            model = Model(_of_returns(one.embed), one.odds, one.whiten)
            rows.append(Row(NAMES[one.name], one.name, _constant(model), self.data, seeded=False))
        return rows

    # ---- fits ---------------------------------------------------------------------------------------------------

    def _koopman(self, seed: int) -> Model:
        dataset = self._windows()
        began = time.process_time()
        model = CryptoKoopmanJEPA.from_config(self.koopman, seed)
        tell = self.told
        progress = None if tell is None else (lambda epoch, epochs, figures: tell(epoch, epochs, dict(figures)))
        JEPATrainer(model, dataset, seed=seed, progress=progress).fit()
        spent = time.process_time() - began
        found = model.analyze_predictor_properties(dataset, seed)
        nested = {"": found, "at_identity_": found["at_identity"], "untrained_": found["untrained"]}
        names = ("identity_deviation", "symmetry_measure", "centroid_action", "eigenvalues_near_one")
        facts = {prefix + name: float(part[name]) for prefix, part in nested.items() for name in names}
        return Model(_windowed(model), sparse=True, cpu_seconds=spent, facts=facts)

    def _koopman_autoencoder(self, seed: int) -> Model:
        dataset = self._windows()
        began = time.process_time()
        model = fit_autoencoder(self.koopman, dataset, seed)
        return Model(_windowed(model), sparse=True, cpu_seconds=time.process_time() - began)

    def _koopman_untrained(self, seed: int) -> Model:
        model = CryptoKoopmanJEPA.from_config(self.koopman, seed)
        model.channels = self._windows().channels
        return Model(_windowed(model), sparse=True)

    def _windows(self) -> CryptoPriceDataset:
        config = self.koopman
        closes = [bars.close[:, 0] for bars in self.train]
        return CryptoPriceDataset(
            closes,
            None,
            config.context_window,
            config.prediction_horizon,
            overlap=config.overlap,
            names=config.channels,
        )

    def _reference(self, fit: Callable[..., references.Reference]) -> Callable[[int], Model]:
        def fitted(seed: int) -> Model:
            began = time.process_time()
            one = fit([_returns(bars) for bars in self.train], len(self.market.names), seed)
            spent = time.process_time() - began
            return Model(_of_returns(one.embed), one.odds, one.whiten, cpu_seconds=spent)

        return fitted


def _windowed(model: CryptoKoopmanJEPA) -> Callable[[Bars], Floats]:
    """Embed the scored rows only: every row reads a window of its own."""
    return lambda bars: model.encode_rows(bars.close[:, 0], scored_rows(len(bars)))[0].astype(np.float64)


def _of_returns(embed: references.Embed) -> Callable[[Bars], Floats]:
    return lambda bars: embed(_returns(bars))


def _constant(model: Model) -> Callable[[int], Model]:
    return lambda seed: model


def _returns(bars: Bars) -> Floats:
    return bar_returns(bars)


def _labels(bars: Bars) -> NDArray[np.int8]:
    assert bars.labels is not None
    return bars.labels


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
