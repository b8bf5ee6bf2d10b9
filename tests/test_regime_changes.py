"""Changes of regime: the causal detector never sees the future, and it finds a change that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.encoder import Encoder, load
from encoders.koopman_config import koopman_config
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.regime_changes import (
    RegimeChanges,
    RunningQuantile,
    change_scores,
    delays,
    detect_regime_changes,
    onsets,
)
from markets import sources
from markets.errors import ConfigError, DataError, UnknownNameError

Floats = NDArray[np.float64]
Detector = Callable[[Floats, Floats], RegimeChanges]
BARS = 3000


def market(seed: int = 0, spell: int = 500) -> tuple[Floats, NDArray[np.int64]]:
    """Closes whose volatility alternates between .2 and 1.5 percent, and the bars at which it does."""
    rng = np.random.default_rng(seed)
    wild = np.arange(BARS) // spell % 2 == 1
    closes = 100.0 * np.exp(np.cumsum(rng.standard_normal(BARS) * np.where(wild, 0.015, 0.002)))
    return closes, np.flatnonzero(np.diff(wild)) + 1


def log_volatility(closes: Floats, bars: int = 50) -> Floats:
    """A one-column embedding: log deviation of the last ``bars`` returns."""
    squares = np.cumsum(np.diff(np.log(closes), prepend=np.log(closes[0])) ** 2)
    total = squares.copy()
    total[bars:] -= squares[:-bars]
    return 0.5 * np.log(total / bars + 1e-12)[:, None]


def causal(closes: Floats, table: Floats) -> RegimeChanges:
    return detect_regime_changes(closes, table, 50, lag=25)


def offline(closes: Floats, table: Floats) -> RegimeChanges:
    return detect_regime_changes(closes, table, 50, lag=25, mode="offline")


def sees_the_future(detect: Detector, cut: int = 2000) -> bool:
    """Whether other bars from ``cut`` on change anything before it."""
    closes, _ = market()
    changed = closes.copy()
    changed[cut:] *= np.exp(np.cumsum(np.random.default_rng(9).normal(0.0, 0.08, BARS - cut)))
    one, other = (detect(series, log_volatility(series)) for series in (closes, changed))
    return not all(
        np.array_equal(getattr(one, name)[:cut], getattr(other, name)[:cut], equal_nan=True)
        for name in ("flags", "distance", "threshold", "regime")
    )


def centred(closes: Floats, table: Floats) -> RegimeChanges:
    return causal(closes, np.roll(table, -10, axis=0))  # an embedding of a centred window


def test_causal_detector_never_sees_the_future() -> None:
    """K24."""
    assert not sees_the_future(causal)


@pytest.mark.parametrize("mutant", [offline, centred])
def test_detector_that_sees_the_future_is_caught(mutant: Detector) -> None:
    """K24: the source's percentile of the whole series, an embedding of centred windows."""
    assert sees_the_future(mutant)


def test_causal_detector_with_a_model_never_sees_the_future() -> None:
    """K24, K3."""
    config = koopman_config("koopman", context_window=64, prediction_horizon=16, latent_dim=8, regimes=4)
    model = CryptoKoopmanJEPA.from_config(config, 0)
    model.channels = CryptoPriceDataset(market()[0], None, 64, 16).channels

    def detect(closes: Floats, table: Floats) -> RegimeChanges:
        return detect_regime_changes(closes, model)

    assert not sees_the_future(detect)
    found = detect(market()[0], np.empty(0))
    assert found.regime[98] == -1
    assert set(found.regime[99:]) <= set(range(4))
    assert np.isnan(found.distance[:100]).all()
    assert np.isfinite(found.distance[100:]).all()


@pytest.mark.parametrize("detect", [causal, offline])
def test_known_changes_are_found(detect: Detector) -> None:
    """K24: the score on known change points, printed; a permuted truth is the chance level."""
    closes, true = market()
    scores = change_scores(onsets(detect(closes, log_volatility(closes))), true[true > 300], 60)
    chance = change_scores(onsets(detect(closes, log_volatility(closes))), true[true > 300] - 220, 60)
    print(detect.__name__, scores, "elsewhere:", chance)
    assert scores["recall"] >= 0.8
    assert scores["f1"] > chance["f1"] + 0.3


def test_offline_flags_the_share_that_the_percentile_leaves() -> None:
    """K24: as the source has it."""
    closes, _ = market()
    found = detect_regime_changes(closes, log_volatility(closes), 100, mode="offline")
    known = found.distance[~np.isnan(found.distance)]
    assert np.array_equal(found.points, np.flatnonzero(found.distance > np.percentile(known, 95)))
    assert len(found.points) == pytest.approx(0.05 * (BARS - 100), abs=2)
    assert (found.regime == -1).all()


def test_running_quantile_is_that_of_the_last_values() -> None:
    values = np.random.default_rng(0).normal(size=300)
    values[50:60] = 0.5  # equal values leave one at a time
    quantile = RunningQuantile(90.0, memory=40, warm=5)
    for count, value in enumerate(values):
        expected = np.percentile(values[max(0, count - 40) : count], 90.0) if count >= 5 else np.nan
        assert quantile.value() == pytest.approx(expected, nan_ok=True)
        quantile.add(float(value))


def test_scores_count_one_point_for_a_change_and_none_before_it() -> None:
    found, true = np.array([95, 105, 110, 400]), np.array([100, 300])
    assert change_scores(found, true, 20) == pytest.approx({"precision": 0.25, "recall": 0.5, "f1": 1 / 3})
    assert change_scores(np.empty(0, np.int64), true, 20)["f1"] == 0.0


def test_bad_settings_and_embeddings_are_refused() -> None:
    closes, _ = market()
    table = log_volatility(closes)
    for keyword, value in (("window", 0), ("lag", 0), ("percentile", 100.0), ("warm", 5000)):
        with pytest.raises(ConfigError, match=keyword):
            detect_regime_changes(closes, table, **{keyword: value})
    flat = CryptoKoopmanJEPA.from_config(koopman_config("paper", context_window=64), 0)
    with pytest.raises(ConfigError, match="reads exactly 64 bars"):
        detect_regime_changes(closes, flat)
    with pytest.raises(UnknownNameError, match="causal"):
        detect_regime_changes(closes, table, mode="casual")
    with pytest.raises(DataError, match="100 prices"):
        detect_regime_changes(closes[:100], table[:100])
    with pytest.raises(DataError, match="a row a bar"):
        detect_regime_changes(closes, table[1:])
    table[1000] = np.nan
    with pytest.raises(DataError, match="row 1000"):
        detect_regime_changes(closes, table)


# ---- encoders of the package --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Encoder:
    return load(tiny_folder)


@pytest.mark.parametrize("read", ["embedding", "odds"])
def test_any_encoder_is_read_from_its_warm_up_on_and_never_sees_the_future(encoder: Encoder, read: str) -> None:
    """K24."""
    bars = sources.load("synthetic:regimes?seed=9&bars=6000&level=clear&regimes=3")
    found = detect_regime_changes(bars, encoder, read=read, lag=24)
    first = encoder.warm_up + 24
    assert np.isnan(found.distance[:first]).all()
    assert np.isfinite(found.distance[first:]).all()
    assert (found.regime[: encoder.warm_up] == -1).all()
    table = encoder.table(bars).values
    rows = table[:, -encoder.regimes :] if read == "odds" else table[:, : -encoder.regimes]
    by_hand = detect_regime_changes(bars, rows, encoder.warm_up + 1, lag=24)
    assert np.array_equal(found.flags, by_hand.flags)
    assert len(found.points) > 0
    prefix = detect_regime_changes(bars.between(0, 5500), encoder, read=read, lag=24)
    assert np.array_equal(prefix.flags, found.flags[:5500])
    offline = [detect_regime_changes(one, encoder, read=read, mode="offline") for one in (bars, bars.between(0, 5500))]
    assert not np.array_equal(offline[1].threshold, offline[0].threshold[:5500], equal_nan=True)


def test_what_an_encoder_or_a_table_cannot_be_asked_is_refused(encoder: Encoder) -> None:
    closes, _ = market()
    with pytest.raises(DataError, match="embeds Bars"):
        detect_regime_changes(closes, encoder)
    with pytest.raises(DataError, match="0 rows after the warm-up"):
        detect_regime_changes(sources.load(f"synthetic:regimes?seed=9&bars={encoder.warm_up}"), encoder)
    with pytest.raises(ConfigError, match="read='odds'"):
        detect_regime_changes(closes, log_volatility(closes), read="odds")
    with pytest.raises(UnknownNameError, match="odds"):
        detect_regime_changes(closes, log_volatility(closes), read="odd")


def test_delays_are_those_of_the_points_that_count() -> None:
    assert delays(np.array([95, 105, 110, 400]), np.array([100, 300, 390]), 20).tolist() == [5, 10]
