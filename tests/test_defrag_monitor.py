"""The drift monitor: false alarms, delays, state, and the verb that watches a table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import regimegym
from encoders import defrag_monitor as module
from encoders.defrag import ChronosDefragEngine
from encoders.defrag_config import DefragConfig
from encoders.defrag_monitor import Calibration, DriftMonitor, Reading, calibration_of, watch
from encoders.drift_streams import DRIFTS, FEATURES, REGIMES, drifted, regime_stream
from markets.errors import ArtefactError, ConfigError, DataError, InSampleError, NotFittedError, UnknownNameError

L, TRAINING, STREAM = 64, 200, 150
UNTRAINED = DefragConfig(input_dim=4, latent_dim=24, hidden=8, epochs=0, predictor_epochs=0)  # confidences need no net
RATE = 0.05
WITHIN = {("scale", 2.0): 60, ("scale", 3.0): 30, ("scale", 5.0): 20, ("unseen", 1.0): 20}  # blocks until the flag


def fitted(training: np.ndarray) -> ChronosDefragEngine:
    engine = ChronosDefragEngine(UNTRAINED)
    engine.fit(training, feature_names=FEATURES)
    return engine


def confidences(engine: ChronosDefragEngine, ticks: np.ndarray) -> list[float]:
    windows = engine.fitted.scaler.apply(ticks).reshape(-1, L, 4)
    return [engine.fitted.novelty.confidence(row) for row in engine.fitted.encoder.moments(windows)]


@pytest.fixture(scope="module")
def streams() -> list[tuple[Calibration, list[float], dict[tuple[str, float], list[float]]]]:
    """Of 50 seeds: the calibration, confidences of a stationary continuation, and of drifted ones."""
    found = []
    for seed in range(50):
        ticks, _ = regime_stream(TRAINING + STREAM, L, seed=seed)
        engine, after = fitted(ticks[: TRAINING * L]), ticks[TRAINING * L :]
        calibration = calibration_of(engine, None, RATE, STREAM)
        drifts = {}
        if seed < 25:
            for kind, factor in WITHIN:
                drifts[kind, factor] = confidences(engine, drifted(after[: 70 * L], kind, factor))
        found.append((calibration, confidences(engine, after), drifts))
    return found


def flagged(make: Callable[[Calibration], DriftMonitor], calibration: Calibration, stream: list[float]) -> float:
    monitor = make(calibration)
    for confidence in stream:
        monitor.update(confidence)
    return math.inf if monitor.flagged is None else monitor.flagged + 1


def check_no_false_alarms(make: Callable[[Calibration], DriftMonitor], streams: list) -> None:
    alarms = sum(flagged(make, calibration, calm) < math.inf for calibration, calm, _ in streams)
    assert alarms <= RATE * len(streams) + 2.0 * math.sqrt(len(streams) * RATE * (1.0 - RATE)), alarms


def check_drift_is_flagged(make: Callable[[Calibration], DriftMonitor], streams: list) -> None:
    for drift, most in WITHIN.items():
        late = [flagged(make, calibration, drifts[drift]) > most for calibration, _, drifts in streams if drifts]
        assert sum(late) <= 1, (drift, sum(late))


class Deaf(DriftMonitor):
    """Ignores the statistic."""

    refit = property(lambda self: False)

    def update(self, confidence: float) -> Reading:
        reading = super().update(confidence)
        self.flagged = None
        return reading


class Nervous(DriftMonitor):
    """Flags a single low confidence."""

    def update(self, confidence: float) -> Reading:
        reading = super().update(confidence)
        if confidence < RATE and self.flagged is None:
            self.flagged = reading.block
        return reading


class Contrary(DriftMonitor):
    """Takes what is ordinary for drift."""

    def update(self, confidence: float) -> Reading:
        return super().update(max(1.0 - confidence, 1e-3))


def test_a_stationary_stream_is_flagged_as_seldom_as_stated(streams) -> None:
    check_no_false_alarms(DriftMonitor, streams)
    with pytest.raises(AssertionError):
        check_no_false_alarms(Nervous, streams)


def test_drift_is_flagged_within_the_stated_blocks(streams) -> None:
    check_drift_is_flagged(DriftMonitor, streams)
    for mutant in (Deaf, Contrary):
        with pytest.raises(AssertionError):
            check_drift_is_flagged(mutant, streams)


def test_a_threshold_that_ignores_dependence_has_too_many_false_alarms(streams, monkeypatch) -> None:
    """The twin without calibration on held-out parts: exactly uniform, independent confidences."""
    monkeypatch.setattr(module, "_inflation", lambda _: 1.0)
    monkeypatch.setattr(module, "_held_out", lambda rows: (np.arange(len(rows)) + 1.0) / len(rows))
    naive = Calibration.fit(np.random.default_rng(0).standard_normal((1000, 12)), RATE, STREAM)
    assert naive.threshold < 0.7 * np.median([calibration.threshold for calibration, _, _ in streams])
    with pytest.raises(AssertionError):
        check_no_false_alarms(lambda _: DriftMonitor(naive), streams)


def test_the_statistic_is_what_one_computes_by_hand() -> None:
    calibration = Calibration(1.0, 1.0, 100, 3.0, 0.05, 100)
    monitor = DriftMonitor(calibration)
    found = [monitor.update(confidence) for confidence in (1.0, math.exp(-4.0), math.exp(-1.0), math.exp(-4.5), 1.0)]
    assert [reading.statistic for reading in found] == pytest.approx([0.0, 2.0, 1.0, 3.5, 1.5])
    assert [reading.refit for reading in found] == [False, False, False, True, True]  # the flag stays
    assert (monitor.flagged, [reading.block for reading in found]) == (3, [0, 1, 2, 3, 4])


def test_thresholds_rise_with_dependence_and_horizon_and_fall_with_the_rate() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, 12))
    base = Calibration.fit(points)
    spells = Calibration.fit(points[np.argsort(np.abs(points).sum(1) + 0.5 * rng.standard_normal(300))])
    assert spells.inflation > 5.0 > 1.5 > base.inflation
    assert spells.threshold > base.threshold
    assert spells.mean > base.mean  # the calmest fifth in one part and the wildest in another: unlike each other
    assert Calibration.fit(points, horizon=2000).threshold > base.threshold > Calibration.fit(points, 0.3).threshold
    assert Calibration.fit(points) == base


def test_a_short_training_range_is_told(caplog: pytest.LogCaptureFixture) -> None:
    points = np.random.default_rng(0).standard_normal((25, 12))
    assert Calibration.fit(points).effective <= 25.0
    assert "false alarms are more frequent" in caplog.text
    with pytest.raises(DataError, match="at least 20"):
        Calibration.fit(points[:19])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"false_alarm": 0.0}, ConfigError, "false_alarm"),
        ({"false_alarm": 0.9}, ConfigError, "false_alarm"),
        ({"horizon": 0}, ConfigError, "horizon"),
        ({"horizon": 1.5}, ConfigError, "horizon"),
        ({"moments": np.full((30, 4), np.nan)}, DataError, "finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(given, error, words) -> None:
    with pytest.raises(error, match=words):
        Calibration.fit(**{"moments": np.zeros((30, 4)), **given})


def test_a_sample_of_the_training_range_needs_the_range_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, _ = regime_stream(60, L, seed=1)
    engine = fitted(ticks)
    whole = calibration_of(engine)
    monkeypatch.setattr("encoders.defrag_novelty.REFERENCE", 30)
    sampled = fitted(ticks)
    with pytest.raises(ConfigError, match="30 of its 60 training blocks"):
        calibration_of(sampled)
    with pytest.raises(DataError, match="59 whole blocks"):
        calibration_of(sampled, ticks[L:])
    assert calibration_of(sampled, ticks).blocks == 60
    monkeypatch.undo()
    assert calibration_of(engine, ticks) == whole
    with pytest.raises(NotFittedError):
        calibration_of(ChronosDefragEngine(UNTRAINED))


# State


def test_a_resumed_monitor_equals_an_uninterrupted_one(streams) -> None:
    calibration, calm, drifts = streams[0]
    stream = [*calm[:40], *drifts["scale", 3.0]]
    whole = DriftMonitor(calibration)
    expected = [whole.update(confidence) for confidence in stream]
    monitor, found = DriftMonitor(calibration), []
    for confidence in stream:
        state = json.loads(json.dumps(monitor.state_dict(), allow_nan=False))
        monitor = DriftMonitor(calibration)
        monitor.load_state_dict(state)
        found.append(monitor.update(confidence))
    assert found == expected
    assert expected[-1].refit
    assert {*monitor.state_dict()} == {"blocks", "statistic", "flagged", "calibration"}  # as much after any stream


@pytest.mark.parametrize(
    "spoil",
    [
        {"blocks": -1}, {"blocks": True}, {"statistic": math.nan}, {"statistic": -1.0}, {"flagged": 7},
        {"blocks": None}, {"calibration": None}, {"statistic": "1"},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused_and_nothing_is_lost(spoil) -> None:
    monitor = DriftMonitor(Calibration(1.0, 1.0, 100, 3.0, 0.05, 100))
    monitor.update(0.01)
    before = monitor.state_dict()
    with pytest.raises(ArtefactError):
        monitor.load_state_dict({**before, **spoil})
    with pytest.raises(ArtefactError, match="'blocks'"):
        monitor.load_state_dict({})
    with pytest.raises(ArtefactError, match="one fit"):
        DriftMonitor(replace(monitor.calibration, threshold=4.0)).load_state_dict(before)
    assert monitor.state_dict() == before


@pytest.mark.parametrize("confidence", [math.nan, 0.0, -0.1, 1.01, math.inf, None, 1])
def test_a_confidence_that_cannot_be_is_refused_and_nothing_is_lost(confidence) -> None:
    monitor = DriftMonitor(Calibration(1.0, 1.0, 100, 3.0, 0.05, 100))
    monitor.update(0.01)
    before = monitor.state_dict()
    with pytest.raises(DataError, match="of block 1 must be"):
        monitor.update(confidence)
    assert monitor.state_dict() == before


# Ticks


def test_ticks_are_read_in_whole_blocks_as_the_engine_reads_them() -> None:
    ticks, _ = regime_stream(70, L, seed=2)
    engine, after = fitted(ticks[: 60 * L]), ticks[60 * L :]
    monitor = DriftMonitor(calibration_of(engine))
    found = list(watch(engine, monitor, after[: 9 * L + 5]))
    assert [reading.confidence for reading in found] == pytest.approx(confidences(engine, after[: 9 * L]))
    with pytest.raises(InSampleError):
        next(watch(engine, monitor, after, first_tick=0))
    with pytest.raises(DataError, match="shape"):
        next(watch(engine, monitor, after[:, :3]))


def collect(found: list[Reading], readings: Iterator[Reading]) -> None:
    for reading in readings:
        found.append(reading)


def test_a_bad_block_is_named_and_the_monitor_stands_before_it() -> None:
    ticks, _ = regime_stream(70, L, seed=2)
    engine, after = fitted(ticks[: 60 * L]), ticks[60 * L :].copy()
    monitor, whole = DriftMonitor(calibration_of(engine)), DriftMonitor(calibration_of(engine))
    expected = list(watch(engine, whole, after))
    spoilt = after.copy()
    spoilt[4 * L + 3, 2] = np.nan
    found: list[Reading] = []
    with pytest.raises(DataError, match=rf"block 4, ticks {64 * L} to {65 * L - 1}: .*nan at \(3, 2\)"):
        collect(found, watch(engine, monitor, spoilt))
    assert (monitor.blocks, found) == (4, expected[:4])
    found += watch(engine, monitor, after[4 * L :], 64 * L)
    assert found == expected


def test_streams_have_the_regimes_that_they_say() -> None:
    ticks, labels = regime_stream(600, L, seed=3)
    again, _ = regime_stream(600, L, seed=3)
    assert np.array_equal(ticks, again)
    assert 1.0 / np.mean(labels[1:] != labels[:-1]) == pytest.approx(6.0, rel=0.25)
    blocks = ticks.reshape(600, L, 4)
    for number, (deviation, rho) in enumerate(REGIMES.values()):
        here = blocks[labels == number]
        assert here.std() == pytest.approx(deviation, rel=0.05)
        assert (here[:, 1:] * here[:, :-1]).mean() / np.square(here).mean() == pytest.approx(rho, abs=0.05)
    smooth = drifted(ticks, "unseen")
    assert smooth.std(axis=0) == pytest.approx(ticks.std(axis=0), rel=1e-3)
    assert np.array_equal(drifted(ticks, "scale", 2.0), 2.0 * ticks)
    with pytest.raises(UnknownNameError):
        drifted(ticks, "scales")
    with pytest.raises(ConfigError):
        regime_stream(0)


# The verb


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, the ticks after its training range, and the same with drift after 20 blocks."""
    folder = tmp_path_factory.mktemp("deployed")
    ticks, _ = regime_stream(140, L, dwell=2.0, seed=4)
    fitted(ticks[: 100 * L]).save(folder / "engine.zip")
    after = ticks[100 * L :]
    for name, values in (
        ("calm", after), ("drift", np.concatenate([after[: 20 * L], drifted(after[20 * L :], "unseen")])),
    ):  # fmt: skip
        frame = pd.DataFrame(values, columns=list(FEATURES)).assign(remark="x")
        frame[list(reversed(frame.columns))].to_csv(folder / f"{name}.csv", index=False)
    return folder


def words(files: Path, name: str, *more: str) -> list[str]:
    return [
        "defrag-monitor",
        "--checkpoint",
        str(files / "engine.zip"),
        "--features",
        str(files / f"{name}.csv"),
        *more,
    ]


def test_the_exit_status_says_whether_a_refit_is_due(files, capsys) -> None:
    assert regimegym.main(words(files, "calm")) == 0
    text = capsys.readouterr().out
    assert text.startswith("calibrated on 100 training blocks")
    assert "stream: 40 blocks, 40 read now: no refit is due" in text
    assert regimegym.main(words(files, "drift", "--json")) == 1
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["block"] for row in rows] == list(range(40))
    assert [row["refit"] for row in rows] == [row["block"] >= last["summary"]["flagged"] for row in rows]
    assert 20 <= last["summary"]["flagged"] < 36


def test_a_later_call_goes_on_where_the_last_one_stopped(files, tmp_path, capsys) -> None:
    assert regimegym.main(words(files, "drift", "--out", str(tmp_path / "whole"), "--json")) == 1
    whole = (tmp_path / "whole" / "monitor-readings.jsonl").read_text()
    frame = pd.read_csv(files / "drift.csv")
    frame.iloc[: 15 * L + 7].to_csv(tmp_path / "grows.csv", index=False)
    spoilt = frame.copy()
    spoilt.loc[18 * L + 1, "spread"] = np.nan
    call = ["defrag-monitor", "--checkpoint", str(files / "engine.zip"), "--features", str(tmp_path / "grows.csv")]
    call += ["--out", str(tmp_path / "parts"), "--json"]
    assert regimegym.main(call) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]["ticks_left"] == 7
    spoilt.to_csv(tmp_path / "grows.csv", index=False)
    assert regimegym.main(call) == 2  # says where, and keeps the three good blocks before it
    told = capsys.readouterr()
    assert f"block 18, ticks {118 * L} to" in told.err
    assert [json.loads(line)["block"] for line in told.out.splitlines()] == [15, 16, 17]
    frame.to_csv(tmp_path / "grows.csv", index=False)
    assert regimegym.main(call) == 1
    assert (tmp_path / "parts" / "monitor-readings.jsonl").read_text() == whole
    assert regimegym.main(call) == 1  # nothing new: the flag stays
    assert (tmp_path / "parts" / "monitor-readings.jsonl").read_text() == whole
    assert regimegym.main([*call, "--horizon", "300"]) == 2
    assert regimegym.main([*call, "--first-tick", str(500 * L)]) == 2
    assert "goes on at tick" in capsys.readouterr().err
    fitted(regime_stream(100, L, seed=9)[0]).save(tmp_path / "other.zip")
    assert regimegym.main([*call, "--checkpoint", str(tmp_path / "other.zip")]) == 2
    assert "another fit" in capsys.readouterr().err


def test_a_picture_is_drawn_and_a_missing_extra_named(files, tmp_path, monkeypatch, caplog) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert regimegym.main(words(files, "calm", "--out", str(tmp_path))) == 0
    assert "regimegym[viz]" in caplog.text
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    assert regimegym.main(words(files, "calm", "--out", str(tmp_path))) == 0
    assert (tmp_path / "monitor.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("call", "words_"),
    [
        (["--features", "x.csv"], "goes with --checkpoint"),
        (["--checkpoint", "nowhere.zip", "--features", "x.csv"], "nowhere.zip"),
        (["--checkpoint", "nowhere.zip"], "needs --features"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_calls_are_explained(call, words_, capsys) -> None:
    assert regimegym.main(["defrag-monitor", *call]) == 2
    assert words_ in capsys.readouterr().err


def test_columns_that_are_missing_or_no_numbers_are_named(files, tmp_path, capsys) -> None:
    frame = pd.read_csv(files / "calm.csv").head(2 * L)
    for broken, said in (
        (frame.rename(columns={"spread": "spraed"}), "spraed"), (frame.assign(spread="wide"), "not a number"),
    ):  # fmt: skip
        broken.to_csv(tmp_path / "broken.csv", index=False)
        call = ["defrag-monitor", "--checkpoint", str(files / "engine.zip"), "--features", str(tmp_path / "broken.csv")]
        assert regimegym.main(call) == 2
        assert said in capsys.readouterr().err


def test_the_demonstration_flags_the_drifts_and_nothing_else(capsys) -> None:
    assert regimegym.main(["defrag-monitor", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summaries = [row["summary"] for row in rows if "summary" in row]
    assert [row["refit"] for row in summaries] == [False, *[True] * len(DRIFTS)]
    assert all(50 <= row["flagged"] < 70 for row in summaries[1:])
    assert len(rows) == 3 * STREAM + 3


def test_an_engine_of_several_scales_is_watched_block_by_block(tmp_path: Path) -> None:
    """Its live windows are longer than a block, and every block was refused; the confidence reads the block alone."""
    ticks, _ = regime_stream(70, L, seed=1)
    engine = ChronosDefragEngine(replace(UNTRAINED, hierarchy=(1, 2)))
    engine.fit(ticks[: 60 * L], feature_names=FEATURES)
    after = ticks[60 * L :]
    readings = list(watch(engine, DriftMonitor(calibration_of(engine)), after))
    assert len(readings) == 10
    for block in (1, 9):
        window = after[(block - 1) * L : (block + 1) * L]
        answer = engine.predict_live(window, engine.fitted.train_end + (block + 1) * L)
        assert readings[block].confidence == pytest.approx(answer.regime_confidence)
    with pytest.raises(InSampleError):
        engine.confidence(after[:L], engine.fitted.train_end)


def test_a_state_whose_next_tick_is_no_number_is_refused(files, tmp_path, capsys) -> None:
    """It was a traceback."""
    call = words(files, "calm", "--out", str(tmp_path), "--json")
    assert regimegym.main(call) == 0
    state = tmp_path / "monitor-state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "next_tick": "soon"}))
    assert regimegym.main(call) == 2
    assert "next_tick='soon'" in capsys.readouterr().err


def test_the_study_tells_drift_from_none_and_not_from_a_monitor_that_never_flags(monkeypatch) -> None:
    from encoders import drift_study

    (row,) = drift_study.study(streams=3, cases=((100, 2),))
    assert row["false_alarms"] <= 1 / 3
    assert all(one["median"] < 20 for one in row["drifts"].values())
    assert drift_study.line(row).startswith("| 100, 2 | ")
    monkeypatch.setattr(drift_study.DriftMonitor, "update", lambda self, confidence: None)
    (deaf,) = drift_study.study(streams=3, cases=((100, 2),))
    assert all(one["median"] == drift_study.NEVER for one in deaf["drifts"].values())
