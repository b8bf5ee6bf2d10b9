"""Encoder channels on markets with sessions: by the calendar's shape, without the night, live as in the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encoders import channels
from encoders.channels import ChannelScaler, ChannelStream, bar_returns, percent_returns
from encoders.encoder import load
from encoders.jepa import JEPAEncoder
from markets import sources
from markets.bars import Bars
from markets.session_calendar import minute_shape
from markets.sessions import sessions_of

SEED = 17
Floats = np.ndarray[Any, Any]


def minutes(sessions: int = 8, early: str = "keep") -> Bars:
    return sources.load(f"synthetic:spy?seed={SEED}&sessions={sessions}&early_close={early}")


def test_a_return_is_divided_by_its_minutes_shape_and_the_first_begins_at_its_own_open() -> None:
    bars = minutes(3)
    moves, plain, shape = bar_returns(bars), percent_returns(bars.close[:, 0]), minute_shape(390)
    assert moves[0] == pytest.approx(100.0 * np.log(bars.close[0, 0] / bars.open[0, 0]) / shape[0])
    assert moves[390] == pytest.approx(100.0 * np.log(bars.close[390, 0] / bars.open[390, 0]) / shape[0])
    np.testing.assert_allclose(moves[391:780], plain[391:780] / shape[1:], rtol=1e-12)


def test_a_market_without_sessions_is_read_as_before() -> None:
    bars = sources.load("synthetic:crypto?seed=1&interval=1h&bars=500")
    np.testing.assert_array_equal(bar_returns(bars), percent_returns(bars.close[:, 0]))


def ratio_of_the_first_half_hour(values: Floats, bars: Bars) -> float:
    """Root mean square of the first thirty minutes over that of the rest."""
    minute = sessions_of(bars).minute
    early, rest = values[(minute >= 0) & (minute < 30)], values[minute >= 30]
    return float(np.sqrt(np.mean(early**2) / np.mean(rest**2)))


def test_neither_the_bell_nor_the_night_is_left_in_the_returns() -> None:
    bars = minutes(200)
    assert ratio_of_the_first_half_hour(bar_returns(bars), bars) == pytest.approx(1.0, abs=0.1)
    assert ratio_of_the_first_half_hour(percent_returns(bars.close[:, 0]), bars) > 1.4  # the twin: as they come


def gap_to_the_table(bars: Bars, scaler: ChannelScaler) -> float:
    """Largest difference of the live channels to those of the table; halfway the stream is put away and restored."""
    stream, rows = ChannelStream(scaler), []
    for row in range(len(bars)):
        if row == len(bars) // 2:
            fresh = ChannelStream(scaler)
            fresh.restore(stream.state())
            stream = fresh
        rows.append(stream.take(bars.one(row)))
    return float(np.abs(np.stack(rows) - scaler.of_bars(bars)).max())


def holed(bars: Bars) -> Bars:
    """Bars of which some are missing: the first of a session, some in the middle, the last ones."""
    keep = np.ones(len(bars), bool)
    keep[[390, 391, 500, 501, 1_100]] = False
    keep[770:780] = False
    columns = {name: value[keep] for name, value in bars.columns.items()}
    assert bars.labels is not None
    return replace(bars, time=bars.time[keep], labels=bars.labels[keep], **columns)


@pytest.mark.parametrize("early", ["keep", "only"])
def test_live_channels_are_those_of_the_table(early: str) -> None:
    """E13. Over nights, an early close, missing minutes and a restart."""
    bars = minutes(6, early)
    bars = holed(bars) if early == "keep" else bars
    scaler = ChannelScaler.fit([bar_returns(bars)], channels.CHANNELS)
    assert gap_to_the_table(bars, scaler) <= 1e-5


def test_mutant_a_stream_that_forgets_the_session_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E13."""
    bars = minutes(4)
    scaler = ChannelScaler.fit([bar_returns(bars)], channels.CHANNELS)
    monkeypatch.setattr(channels, "SESSION_MARKETS", ())
    stream = ChannelStream(scaler)
    live = np.stack([stream.take(bars.one(row)) for row in range(len(bars))])
    monkeypatch.undo()
    assert np.abs(live - scaler.of_bars(bars)).max() > 0.1


def test_an_encoders_stream_is_its_table_on_minutes_of_sessions() -> None:
    """E13. The weights do not matter here."""
    made = load("jepa-crypto-1h")
    assert isinstance(made, JEPAEncoder)
    bars = minutes(6)
    provenance = replace(made.provenance, market="spy", interval="1m")
    scaler = ChannelScaler.fit([bar_returns(bars)], made.scaler.names)
    encoder = JEPAEncoder(
        scaler, made.trunk_weights, made.mean, made.deviation, made.softmax, made.kmeans, made.belief, provenance,
        memory=400,
    )  # fmt: skip
    table, stream, met = encoder.table(bars), encoder.stream(), 0
    for row in range(len(bars)):
        live = stream.update(bars.one(row))
        assert (live is None) == (row < table.valid_from)
        if live is not None:
            np.testing.assert_allclose(live, table.values[row], atol=1e-4)
            met += 1
    assert met > 1_000
