"""Figures of a trained encoder on bars, measured anew: is the embedding alive, does it hold the regimes, is it causal.

Each figure of the embedding stands beside the same one of the untrained net. Rows are every eighth bar from the warm-up
on; where bars carry true regimes, k-means and the linear probe are fitted on the rows of the first half and everything
is scored on those of the second. Letters: T bars, R rows, D dimensions, K regimes of the encoder, r true regimes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray

from encoders.channels import bar_returns
from encoders.clustering import KMeans, adjusted_rand, cluster_scores, purity
from encoders.controls import untrained_of
from encoders.encoder import Encoder
from encoders.jepa import JEPAEncoder
from encoders.probes import edmd_spectrum, effective_rank, linear_probe
from encoders.references import hand_features
from encoders.regimes import VOICES
from encoders.unseen import cautions, seen_rows
from markets.bars import Bars
from markets.errors import ConfigError, DataError, MissingExtraError
from markets.synthetic_regimes import RegimeMarket, posterior, regime_market

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

STRIDE = 8  # bars between rows
LEAST_ROWS = 256  # for a spectrum of tens of dimensions to mean anything
CUTS = 5  # prefixes that are embedded again
STREAMED = 1000  # bars after the warm-up that the live face is compared on
LEADING = 8  # eigenvalues shown
DRAWS, SPELL = 200, 64  # of the bootstrap: blocks of 64 rows, 512 bars, about a regime's spell


def default_encoder(encoder: Encoder) -> JEPAEncoder:
    """Return an encoder as the default one.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(encoder, JEPAEncoder):
        raise ConfigError(
            f"encoder is of kind {encoder.kind!r}: cards and pictures are for {JEPAEncoder.kind!r}; "
            "card.md beside its encoder.zip says what its pretraining measured"
        )
    return encoder


def measure(encoder: JEPAEncoder, bars: Bars, seed: int = 0) -> dict[str, Any]:
    """Measure an encoder on ``bars``: plain values that JSON can hold.

    Args:
        seed: of the places that are checked and of k-means.

    Returns:
        ``bars``, ``cautions``, ``latent``, ``koopman``, ``checks``, ``seconds_per_bar``, ``labels`` (None without true
        regimes), ``untrained_is_the_same`` (None where it is not known, or there is none).

    Raises:
        DataError: fewer bars than the warm-up and some hundreds of rows take.
    """
    lag = encoder.facts["config"]["horizon"] if "config" in encoder.facts else 64
    rows = np.arange(encoder.warm_up, len(bars), STRIDE)
    if len(rows) < LEAST_ROWS + lag // STRIDE:
        least = encoder.warm_up + STRIDE * LEAST_ROWS + lag
        raise DataError(f"{len(bars)} bars are too few to measure this encoder on: {least} are needed")
    untrained = untrained_of(encoder)
    channels = encoder.scaler.of_bars(bars)
    raw = {"trained": encoder.trunk.embed(channels).astype(np.float64)}
    if untrained is not None:
        raw["untrained"] = untrained.trunk.embed(channels).astype(np.float64)
    return {
        "bars": {
            "source": bars.source, "symbol": bars.symbols[0], "count": len(bars), "first": str(bars.time[0]),
            "last": str(bars.close_time[-1]), "in_sample": seen_rows(encoder.provenance, bars),
        },
        "cautions": cautions(encoder.provenance, bars),
        "latent": {name: _latent(values[rows]) for name, values in raw.items()},
        "koopman": _koopman(encoder, bars, raw, lag),
        "checks": _checks(encoder, bars, seed),
        "seconds_per_bar": _speed(encoder, bars),
        "labels": _labels(encoder, bars, raw, rows, seed),
        "untrained_is_the_same": None if untrained is None else untrained.same,
    }  # fmt: skip


def _latent(rows: Floats) -> dict[str, Any]:
    """Deviation of each dimension as the trunk gives it, and the rank of the correlations."""
    deviations = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.maximum(deviations, 1e-12)
    return {
        "std": deviations.tolist(), "std_min": float(deviations.min()), "std_mean": float(deviations.mean()),
        "effective_rank": effective_rank(scaled),
    }  # fmt: skip


def _koopman(encoder: JEPAEncoder, bars: Bars, raw: Mapping[str, Floats], lag: int) -> dict[str, Any]:
    """Spectra at lag D: the chain's, those of frozen rows by least squares, and the true one where it is known."""
    starts = np.arange(encoder.warm_up, len(bars) - lag, STRIDE)
    found: dict[str, Any] = {"lag": lag, "chain": chain_moduli(encoder.belief.transition, lag).tolist()}
    for name, values in {**raw, "belief": encoder.odds(bars, "belief")[:, 1:]}.items():
        moduli, r2 = edmd_spectrum(values[starts], values[starts + lag])
        found[f"edmd_{name}"], found[f"r2_{name}"] = moduli[:LEADING].tolist(), r2
    generator = _generator(bars)
    if generator is not None:
        found["truth"] = generator.spectrum(lag).tolist()
    return found


def _generator(bars: Bars, exact: bool = False) -> RegimeMarket | None:
    """The market of generated bars, where it is known; ``exact``: only if its filter is the exact one of the bars."""
    options = parse_qs(bars.source.partition("?")[2])
    if bars.market != "regimes" or (exact and "stress" in options):
        return None
    return regime_market(options.get("level", ["market"])[0], int(options.get("regimes", ["6"])[0]))


def chain_moduli(transition: Floats, lag: int) -> Floats:
    """Moduli of the eigenvalues of ``P^lag`` but the trivial 1, largest first: ``(K - 1,)``."""
    values = np.linalg.eigvals(np.linalg.matrix_power(transition, lag))
    return np.asarray(np.sort(np.abs(values))[::-1][1:])


def _checks(encoder: JEPAEncoder, bars: Bars, seed: int) -> dict[str, Any]:
    """Embed prefixes again and walk the live face: the largest difference from the table."""
    table, rng = encoder.encode(bars), np.random.default_rng(seed)
    cuts = sorted(int(cut) for cut in rng.integers(encoder.warm_up + 1, len(bars), CUTS))
    prefix = max(_furthest(encoder.encode(bars.between(0, cut)), table[:cut]) for cut in cuts)
    stream, live = encoder.stream(), 0.0
    count = min(len(bars), encoder.warm_up + STREAMED)
    for row, bar in enumerate(_one_by_one(bars, count)):
        out = stream.update(bar)
        if out is not None:
            live = max(live, _furthest(out, table[row]))
    return {
        "prefix_cuts": cuts, "prefix_difference": prefix, "stream_bars": count - encoder.warm_up,
        "stream_difference": live,
    }  # fmt: skip


def _one_by_one(bars: Bars, count: int) -> list[Bars]:
    """Return the first bars as ``Bars`` of one row, which as a market of its own would be too short to pass checks."""
    loose = replace(bars, checked=False)
    return [loose.between(row, row + 1) for row in range(count)]


def _furthest(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.nan_to_num(np.abs(one.astype(np.float64) - other), nan=np.inf).max())


def _speed(encoder: JEPAEncoder, bars: Bars) -> dict[str, float]:
    """CPU seconds a bar of both faces, which were compiled and warm by now."""
    begun = time.process_time()
    encoder.encode(bars)
    table = (time.process_time() - begun) / len(bars)
    stream, parts = encoder.stream(), _one_by_one(bars, min(len(bars), STREAMED))
    begun = time.process_time()
    for part in parts:
        stream.update(part)
    return {"table": table, "stream": (time.process_time() - begun) / len(parts)}


def _labels(
    encoder: JEPAEncoder, bars: Bars, raw: Mapping[str, Floats], rows: NDArray[np.int64], seed: int
) -> dict[str, Any] | None:
    """Score voices and fitted readings against the true regimes of the second half."""
    if bars.labels is None:
        return None
    truth, cut = bars.labels[rows].astype(np.int64), len(rows) // 2
    known, judged = truth[:cut], truth[cut:]
    tables: dict[str, Floats] = {f"{voice} odds": encoder.odds(bars, voice)[rows] for voice in VOICES}
    returns, generator = bar_returns(bars), _generator(bars, exact=True)
    if generator is not None:
        tables["exact filter of the generator, the ceiling"] = posterior(returns, generator)[rows]
    features = {"embedding": raw["trained"]}
    if "untrained" in raw:
        features["embedding of the untrained net"] = raw["untrained"]
    features["27 hand features"] = hand_features(returns)
    found = []
    for name, odds in tables.items():
        probe = _probe(odds[:cut], known, odds[cut:], judged)
        found.append({"of": name, **_scores(judged, odds[cut:].argmax(axis=1), seed), "probe": probe})
    for name, values in features.items():
        points = values[rows]
        clusters = _optional(lambda: KMeans(points[:cut], encoder.regimes, seed)(points[cut:]))  # noqa: B023  called now
        scores = None if clusters is None else _scores(judged, clusters, seed)
        probe = _probe(points[:cut], known, points[cut:], judged)
        found.append({"of": f"{name}, k-means", **(scores or {}), "probe": probe})
    found.append({"of": "a constant", **_scores(judged, np.zeros_like(judged), seed), "probe": _common(known, judged)})
    return {
        "names": list(bars.label_names), "true_regimes": len(np.unique(truth)), "regimes": encoder.regimes,
        "fitted_rows": cut, "scored_rows": len(rows) - cut, "rows": found,
    }  # fmt: skip


def _scores(truth: Integers, clusters: Integers, seed: int) -> dict[str, Any]:
    """Scores of clusters, and 95 % intervals of purity and ARI by a bootstrap over blocks of this one history.

    They say how much the figures owe to the bars; other seeds of the training are another source of doubt.
    """
    rng, count = np.random.default_rng(seed), len(truth)
    length = min(SPELL, count)
    drawn: dict[str, list[float]] = {"purity_interval": [], "ari_interval": []}
    for _ in range(DRAWS):
        starts = rng.integers(0, count - length + 1, -(-count // length))
        rows = (starts[:, None] + np.arange(length)).ravel()[:count]
        drawn["purity_interval"].append(purity(truth[rows], clusters[rows]))
        drawn["ari_interval"].append(adjusted_rand(truth[rows], clusters[rows]))
    return {
        **cluster_scores(truth, clusters),
        **{name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in drawn.items()},
    }


def _probe(known: Floats, labels: Integers, judged: Floats, truth: Integers) -> float | None:
    """Accuracy of the linear probe; None where scikit-learn is absent or the first half knows one regime only."""
    if len(np.unique(labels)) < 2:
        return None
    said = _optional(lambda: linear_probe(known, labels, judged))
    return None if said is None else float(np.mean(said == truth))


def _common(known: Integers, judged: Integers) -> float:
    values, counts = np.unique(known, return_counts=True)
    return float(np.mean(judged == values[counts.argmax()]))


def _optional(work: Callable[[], Any]) -> Any:
    """Return what ``work`` gives, None where the extra it needs is not installed."""
    try:
        return work()
    except MissingExtraError:
        return None
