"""The defragmentation encoder of bars: its two faces, its memory and what that may know, training and files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from test_jepa import dearer_from, extreme_market

import regimegym
from agents import lookahead_tables
from encoders import defrag_market, defrag_numbers, defrag_recall
from encoders import encoder as files
from encoders.defrag_bars_monitor import watch_bars
from encoders.defrag_dense import DenseBlocks
from encoders.defrag_encoder import block_moments
from encoders.defrag_market import DefragEncoder, outcomes_of, remembered
from encoders.defrag_pretrain import DefragPretrain, fit, pretrain
from encoders.defrag_recall import ALWAYS, Kept, Own, recall
from encoders.encoder import Provenance
from markets import sources, synthetic
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError

TRAINED = 7101  # seed of the market that was trained on
PLAN = DefragPretrain(
    channels=("return", "volatility", "volume"), regimes=3, components=4,
    block={"epochs": 1, "hidden": 6, "latent_dim": 20, "block_len": 32}, horizon=32, own_blocks=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> DefragEncoder:
    return fit([synthetic.crypto(TRAINED, "1h", 5000)], PLAN)[0]


@pytest.fixture(scope="module")
def bars() -> Bars:
    return synthetic.crypto(5, "1h", 3000)


# ---- two faces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", defrag_numbers.VOICES)
def test_stream_equals_table_and_goes_on_after_a_restart(made: DefragEncoder, bars: Bars, voice: str) -> None:
    encoder = made.speaking(voice)
    table = encoder.table(bars).values
    embedded = [place for place, name in enumerate(encoder.names) if not name.startswith("recall_")]
    stream: Any = encoder.stream()
    for row in range(1600):
        if row == 1111:
            kept = {name: value.copy() for name, value in stream.state_dict().items()}
            stream = encoder.stream()
            stream.load_state_dict(kept)
        out = stream.update(bars.one(row))
        assert (out is None) == (row < encoder.warm_up)
        if out is not None:
            assert np.abs(out - table[row])[embedded].max() <= 2e-5, row
            assert np.abs(out - table[row]).max() <= 2e-4, row  # weights of a recall are small differences


def test_mutant_a_stream_that_forgets_its_own_blocks_at_a_restart_is_found(made: DefragEncoder, bars: Bars) -> None:
    """Twin of the equality of both faces: what a restart loses shows."""
    table, stream, apart = made.table(bars).values, made.stream(), 0.0
    place = made.names.index("recall_volatility")
    for row in range(1400):
        if row == 1111:
            stream._z, stream._ends, stream._sums = stream._z[:0], stream._ends[:0], stream._sums[:0]
        out = stream.update(bars.one(row))
        if row > 1111:
            assert out is not None
            apart = max(apart, float(abs(out[place] - table[row, place])))
    assert apart > 1e-2


def test_a_stream_that_is_handed_a_broken_bar_says_so_and_is_as_it_was(made: DefragEncoder, bars: Bars) -> None:
    stream: Any = made.stream()
    stream.update(bars.one(0))
    before = {name: value.copy() for name, value in stream.state_dict().items()}
    for name, value in (("close", np.nan), ("close", -1.0), ("volume", -5.0)):
        broken = bars.one(1)
        columns = {key: column.copy() for key, column in broken.columns.items()}
        columns[name][:] = value
        with pytest.raises(DataError, match=name):
            stream.update(Bars.unchecked(
                time=broken.time, interval=bars.interval, symbols=bars.symbols, market=bars.market,
                funding_time=broken.funding_time, funding_rate=broken.funding_rate, source=bars.source, **columns,
            ))  # fmt: skip
    for name, value in stream.state_dict().items():
        assert np.array_equal(value, before[name]), name


def test_the_dense_pass_says_of_each_block_what_the_block_encoder_does(made: DefragEncoder, bars: Bars) -> None:
    dense, length = made.dense, made.settings.block_len
    ticks = made.numbers.scaler.of_bars(bars)
    learned, moments = dense.embed(ticks)
    ends = np.arange(length - 1, len(bars), 53)
    blocks = dense.scaler.apply(np.stack([ticks[end - length + 1 : end + 1] for end in ends]))
    z = dense.encoder.embed(blocks)
    assert np.abs(dense.encoder.moments(blocks) - moments[ends]).max() < 2e-4
    assert np.abs(z - made.past(bars).z[ends]).max() < 2e-5
    assert np.abs(np.linalg.norm(learned, axis=1) - 1.0).max() < 1e-5
    mutant = DenseBlocks(dense.scaler, dense.encoder, length + 1)
    assert np.abs(mutant.embed(ticks)[1][ends] - moments[ends]).max() > 1e-2


def test_a_block_that_stands_still_has_moments_of_ordinary_size() -> None:
    still = block_moments(np.full((1, 64, 2), 3.0, np.float32))
    assert np.abs(still).max() < 5.0
    assert np.isfinite(still).all()


# ---- causality --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [700, 2048, 2999])
def test_nothing_before_a_changed_bar_is_another_bit(made: DefragEncoder, bars: Bars, k: int) -> None:
    """E13. The series' own memory among it."""
    table = made.table(bars).values
    other = made.table(dearer_from(bars, k)).values
    assert other[:k].tobytes() == table[:k].tobytes()
    assert not np.array_equal(other[k:], table[k:])
    assert made.table(bars.between(0, k)).values.tobytes() == table[:k].tobytes(), "a prefix has the same bits"


def test_rows_do_not_depend_on_history_before_the_declared_warm_up(made: DefragEncoder) -> None:
    """E15. Of the series' own memory, of the filter, and of the channels; half of it is not enough."""
    at = made.warm_up + 1_000
    long = synthetic.crypto(8, "1h", at + 2_000)
    table = made.table(long).values
    for cut in (at, at + 17, at + 301):
        short = made.table(long.between(cut - made.warm_up, len(long))).values
        assert np.abs(short[made.warm_up :] - table[cut:]).max() <= 1e-6
    early = made.encode(long.between(at - 130, len(long)))
    assert np.abs(early[130:300] - table[at : at + 170]).max() > 1e-3, "the test has no power"


@pytest.mark.parametrize("kind", ["still", "no volume", "wild"])
def test_markets_at_the_edge_give_finite_rows_within_bounds(made: DefragEncoder, kind: str) -> None:
    """E03, E04."""
    values = made.table(extreme_market(kind, 2500)).values  # checks bounds and finiteness of every served row
    assert np.isfinite(values[made.warm_up :]).all()


def leaks_of(made: DefragEncoder, bars: Bars) -> list[Any]:
    return list(lookahead_tables.check_table(made.table, bars, trials=12, seed=3))


def test_the_instrument_finds_the_encoder_clean(made: DefragEncoder, bars: Bars) -> None:
    """E13."""
    assert leaks_of(made, bars) == []


def test_mutant_own_blocks_that_are_seen_before_their_outcome_are_found(
    made: DefragEncoder, bars: Bars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E13. A block is remembered as soon as it ends, with what followed it."""
    monkeypatch.setattr(
        defrag_market, "recall",
        lambda z, closes, kept, own, k: recall(
            z, closes, kept, replace(own, horizon=0, outcomes=np.nan_to_num(own.outcomes)), k
        ),
    )  # fmt: skip
    assert any("recall" in str(leak) for leak in leaks_of(made, bars))


def test_kept_blocks_are_seen_from_the_close_of_their_last_outcome_on() -> None:
    """Real bars by date, generated ones by seed."""
    rows = np.eye(4, dtype=np.float32)
    outcomes = np.arange(8.0).reshape(4, 2)
    kept = Kept(rows, outcomes, np.array([40, 10, 30, 20]), np.array([True, False, True, False]))
    real = kept.seen_by(generated=False, in_sample=True)
    assert real.visible_from.tolist() == [ALWAYS, ALWAYS, 30, 40]
    assert real.outcomes[2:, 0].tolist() == [4.0, 0.0]
    foreign = kept.seen_by(generated=True, in_sample=False)
    assert (foreign.visible_from == ALWAYS).all()
    own = kept.seen_by(generated=True, in_sample=True)
    assert own.visible_from.tolist() == [ALWAYS, ALWAYS, 10, 20]
    nothing = Own(np.zeros((0, 4), np.float32), np.zeros((0, 2)), np.zeros(0, np.int64), 5, 50)
    z = np.tile(rows[:1], (3, 1))
    counted = recall(z, np.array([29, 30, 40]), real, nothing, 2)[:, 3]
    assert counted.tolist() == [2.0, 3.0, 4.0]


def test_the_training_range_of_real_bars_is_recalled_by_date() -> None:
    """A bar of the training range sees the blocks before it, and none that has its own future in it."""
    series = replace(synthetic.crypto(TRAINED, "1h", 5000), market="crypto", source="memory:real")
    made = fit([series], PLAN)[0]
    kept = made.kept(series)
    at = 2000
    seen = int(
        np.searchsorted(kept.visible_from, defrag_market.nanoseconds(series.close_time[at : at + 1])[0], "right")
    )
    ends = np.arange(576 + 32, 5000 - 32, 32)
    assert seen == int((ends + 32 <= at).sum())


def test_a_recall_is_the_weighted_mean_of_its_nearest_blocks_and_moves_without_leaps() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    outcomes = random.normal(size=(50, 2))
    kept = Kept(rows, outcomes, np.full(50, ALWAYS), np.ones(50, bool))
    own = Own(rows[:3], 10.0 + outcomes[:3], np.array([0, 1, 2]), 2, 100)
    z = np.tile(rows[7:8] + 0.1 * rows[8:9], (6, 1)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    found = recall(z, np.arange(6), kept, own, 5)
    assert found[:, 3].tolist() == [50, 50, 51, 52, 53, 53]  # own blocks count two bars after their end
    cosines = z[0].astype(float) @ rows.T.astype(float)
    best = np.argsort(-cosines)[:6]
    weights = cosines[best[:5]] - cosines[best[5]]
    weights /= weights.sum()
    mean = weights @ outcomes[best[:5]]
    assert found[0, :2] == pytest.approx(mean, abs=1e-5)
    error = np.sqrt(5 / 4 * np.sum((weights * (outcomes[best[:5], 0] - mean[0])) ** 2))
    assert found[0, 2] == pytest.approx(error, abs=1e-5)
    path = np.linspace(rows[7], rows[20], 4000).astype(np.float32)
    path /= np.linalg.norm(path, axis=1, keepdims=True)
    none = replace(own, rows=rows[:0], outcomes=outcomes[:0], ends=own.ends[:0])
    steps = np.abs(np.diff(recall(path, np.zeros(4000, np.int64), kept, none, 5)[:, 0]))
    plain = [np.mean(outcomes[np.argsort(-(one @ rows.T))[:5], 0]) for one in path]  # the mutant: equal weights
    assert steps.max() < 0.02
    assert np.abs(np.diff(plain)).max() > 0.1


def test_outcomes_are_what_followed(made: DefragEncoder, bars: Bars) -> None:
    returns, scaler = 100.0 * np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.close[0, 0])), made.numbers.scaler
    found = outcomes_of(returns, np.array([100, 2968, 2967]), scaler, 32)
    after = returns[101:133]
    assert found[0, 0] == pytest.approx(after.sum() / (scaler.deviation * 32**0.5))
    level = 0.5 * np.log(np.mean(after**2))
    assert found[0, 1] == pytest.approx((level - scaler.level) / scaler.spread)
    assert np.isnan(found[1]).all()  # one of its bars has not closed
    assert np.isfinite(found[2]).all()


def test_a_series_remembers_by_the_clock_wherever_it_begins(bars: Bars) -> None:
    whole = np.flatnonzero(remembered(bars, 32))
    assert np.all(np.diff(whole) == 32)
    later = 77 + np.flatnonzero(remembered(bars.between(77, 3000), 32))
    assert later.tolist() == whole[whole >= 77].tolist()


# ---- files, training, ids ---------------------------------------------------------------------------------------


def test_a_saved_encoder_is_the_same_encoder(made: DefragEncoder, bars: Bars, tmp_path: Path) -> None:
    files.save(made, tmp_path)
    again = files.load(tmp_path)
    assert isinstance(again, DefragEncoder)
    assert again.hash == made.hash
    assert again.encode(bars).tobytes() == made.encode(bars).tobytes()


def test_numbers_that_do_not_fit_are_refused(made: DefragEncoder) -> None:
    arrays, config = made.arrays(), made.config()
    for name, value, said in (
        ("chain", arrays["chain"] * 2.0, "chain"), ("components", arrays["components"][:, 1:], "components"),
        ("memory.rows", arrays["memory.rows"][:, 1:], "memory.rows"),
        ("scale.deviation", -arrays["scale.deviation"], "deviation"),
        ("memory.outcomes", arrays["memory.outcomes"] * np.nan, "outcome"),
    ):  # fmt: skip
        with pytest.raises(ArtefactError, match=said):
            DefragEncoder.build(config, {**arrays, name: value}, made.provenance, {})
    with pytest.raises(ArtefactError, match="settings"):
        DefragEncoder.build({**config, "surprise": 1}, arrays, made.provenance, {})
    with pytest.raises(ArtefactError, match="neighbours"):
        DefragEncoder.build({**config, "neighbours": 0}, arrays, made.provenance, {})


def test_two_trainings_with_a_seed_are_the_same_and_global_randomness_is_left_alone() -> None:
    series = [synthetic.crypto(TRAINED, "1h", 3500)]
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    first, second = (fit(series, PLAN)[0] for _ in range(2))
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]  # noqa: NPY002
    assert first.hash == second.hash
    assert fit(series, replace(PLAN, seed=1))[0].hash != first.hash


def test_no_pair_of_training_straddles_two_series(monkeypatch: pytest.MonkeyPatch) -> None:
    from encoders import defrag_training

    starts, lasts = defrag_training._pairs((4, 3), 1, 10)
    assert starts.tolist() == [0, 10, 20, 40, 50]
    assert lasts.tolist() == [20, 20, 20, 50, 50]  # shifted so far, the later window of a pair ends with its series


def test_validation_rows_move_nothing_but_the_memory() -> None:
    bars = synthetic.crypto(TRAINED, "1h", 4000)
    wild = bars.close.copy()
    wild[3600:] *= np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.05, (400, 1)), axis=0))
    columns = {name: np.where(np.arange(4000)[:, None] < 3600, bars.columns[name], wild) for name in bars.columns}
    columns["volume"] = bars.volume
    first, second = (fit([one], PLAN)[0] for one in (bars, replace(bars, **columns)))  # type: ignore[arg-type]
    mine, theirs = first.arrays(), second.arrays()
    moved = [name for name in mine if not np.array_equal(mine[name], theirs[name])]
    assert moved == ["memory.rows", "memory.outcomes"]


def test_the_command_trains_and_an_environment_takes_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--encoder", "defrag", "--bars", "synthetic:crypto?seed=7102&interval=1h&bars=4000", "--out"]
    small = ["--set", "epochs=1", "--set", "hidden=6", "--set", "latent_dim=16", "--set", "components=4", "--quiet"]
    assert regimegym.main([*words, str(tmp_path / "a"), "--regimes", "3", *small]) == 0
    card = (tmp_path / "a" / "card.md").read_text()
    assert "--set components=4" in card
    assert "the row without the learned columns" in card
    env = gym.make(
        "PerpFutures-Defrag-v0", encoder=str(tmp_path / "a"), bars="synthetic:crypto?seed=3&interval=1h&bars=6000"
    )
    observation, info = env.reset(seed=0)
    names = env.get_wrapper_attr("observation_names")
    assert {"block_return_mean", "defrag_03", "recall_return", "familiarity", "regime_2"} <= set(names)
    assert observation.shape == (len(names),)
    assert 0 <= info["BTC_regime"] < 3
    assert regimegym.main([*words, str(tmp_path / "a"), *small]) == 2  # holds an encoder
    assert regimegym.main([*words, str(tmp_path / "b"), "--resume", *small]) == 2
    assert "--resume is not of --encoder defrag" in capsys.readouterr().err
    assert regimegym.main([*words, str(tmp_path / "b"), "--set", "epoch=3"]) == 2
    assert "'epochs'" in capsys.readouterr().err


def test_the_card_measures_anew_beside_what_learns_nothing(
    made: DefragEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.save(made, tmp_path)
    words = ["encoder-card", str(tmp_path), "--bars", "synthetic:crypto?seed=9&interval=1h&bars=3500"]
    assert regimegym.main([*words, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["checks"]["prefix_difference"] == 0.0
    assert measured["checks"]["stream_difference"] < 1e-3
    readings = [row["of"] for row in measured["labels"]["rows"]]
    assert "weighted moments, nothing learned, k-means" in readings
    assert "the untrained embedding alone, k-means" in readings
    assert regimegym.main(words) == 0
    assert "weighted moments, nothing learned" in capsys.readouterr().out


def test_what_cannot_be_trained_says_why() -> None:
    with pytest.raises(DataError, match="are needed"):
        fit([synthetic.crypto(1, "1h", 1000)], PLAN)
    for wrong in ({"regimes": 1}, {"components": 0}, {"components": 99}, {"validation": 0.6}, {"neighbours": 1}):
        with pytest.raises((ConfigError, ArtefactError)):
            replace(PLAN, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="validation"):
        pretrain([synthetic.crypto(1, "1h", 5000)], replace(PLAN, validation=0.0), Path("unused"))


def test_a_collapsed_training_is_told_and_a_healthy_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """D20."""
    caplog.set_level(logging.WARNING)
    series = [synthetic.crypto(TRAINED, "1h", 5000)]
    plan = replace(PLAN, block={**PLAN.block, "epochs": 12, "hidden": 16})
    healthy = fit(series, plan)[0]
    assert healthy.facts["effective_dimension"] > 1.5
    assert "collapsed" not in caplog.text


def test_voices_that_do_not_exist_are_named(made: DefragEncoder) -> None:
    with pytest.raises(UnknownNameError, match="kmeans"):
        made.speaking("softmax")


@pytest.mark.parametrize("name", ["defrag-synthetic-1h", "defrag-crypto-1h", "defrag-spy-1m"])
def test_shipped_weights_are_those_of_the_ids(name: str) -> None:
    encoder = files.load(name)
    assert isinstance(encoder, DefragEncoder)
    assert isinstance(encoder.provenance, Provenance)
    assert encoder.warm_up < 1_500
    assert encoder.numbers.kept.rows.shape[0] > 1_000
    assert (files.WEIGHTS / name / "card.md").read_text().count(encoder.hash[:16]) == 1


def test_real_weights_remember_nothing_after_their_training_range() -> None:
    """The memory of a shipped encoder ends where its provenance says."""
    for name in ("defrag-crypto-1h", "defrag-spy-1m"):
        encoder = files.load(name)
        assert isinstance(encoder, DefragEncoder)
        kept = encoder.numbers.kept
        end = np.datetime64(encoder.provenance.train_end, "ns").astype(np.int64)
        assert kept.visible_from[kept.real].max() <= end


def test_a_market_of_several_coins_has_a_memory_each() -> None:
    bars = sources.load("synthetic:basket?seed=1&interval=1h&bars=4000")
    env = gym.make("SpotCrypto-Defrag-v0", bars="synthetic:basket?seed=1&interval=1h&bars=4000")
    names = env.get_wrapper_attr("observation_names")
    assert sum(name.endswith("_recall_return") for name in names) == len(bars.symbols)


def test_mutant_a_recall_without_the_count_of_what_may_be_seen_is_another() -> None:
    """Twin of the rule of visibility: the kernel reads rows in the order in which they may be seen."""
    kept = Kept(
        np.eye(3, dtype=np.float32), np.array([[1.0, 0], [2.0, 0], [3.0, 0]]), np.array([5, 9, 1]), np.ones(3, bool)
    )
    own = Own(np.zeros((0, 3), np.float32), np.zeros((0, 2)), np.zeros(0, np.int64), 1, 1)
    ordered = kept.seen_by(generated=False, in_sample=False)
    z = np.array([[0.9, 0.3, 0.3]], np.float32)
    assert recall(z, np.array([0]), ordered, own, 2)[0].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert recall(z, np.array([1]), ordered, own, 2)[0, 0] == pytest.approx(3.0)
    assert defrag_recall.recall(z, np.array([1]), kept, own, 2)[0, 3] != 1.0  # not in order: counts the wrong ones


# ---- watching bars ----------------------------------------------------------------------------------------------


def test_bars_like_those_before_raise_no_flag_and_wilder_ones_do(
    made: DefragEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D29, over bars."""
    calm = synthetic.crypto(11, "1h", 6000)
    until = str(calm.close_time[4499])
    moves = np.diff(np.log(calm.close[:, 0]), prepend=np.log(calm.close[0, 0]))
    moves[4800:] *= 4.0
    close = calm.close[0, 0] * np.exp(np.cumsum(moves))[:, None]
    opened = np.concatenate([close[:1], close[:-1]])
    columns = {name: close for name in calm.columns} | {"volume": calm.volume, "open": opened}
    columns |= {"high": np.maximum(opened, close), "low": np.minimum(opened, close)}
    wild = replace(calm, **columns)  # type: ignore[arg-type]
    quiet, flagged = (watch_bars(made, bars, until) for bars in (calm, wild))
    assert quiet.monitor.flagged is None
    assert flagged.monitor.flagged is not None
    assert flagged.closes[flagged.monitor.flagged] > calm.close_time[4800]
    assert flagged.readings[:9] == quiet.readings[:9]  # of the bars before anything changed
    longer = watch_bars(made, calm.between(0, 5500), until)
    assert longer.readings == quiet.readings[: len(longer.readings)]
    files.save(made, tmp_path)
    spec = "synthetic:crypto?seed=11&interval=1h&bars=6000"
    words = ["defrag-monitor", "--encoder", str(tmp_path), "--bars", spec]
    assert regimegym.main([*words, "--until", until, "--out", str(tmp_path / "watch")]) == 0
    assert "no refit is due" in capsys.readouterr().out
    assert len((tmp_path / "watch" / "monitor-readings.jsonl").read_text().splitlines()) == len(quiet.readings)
    assert regimegym.main(words) == 2
    assert "--until" in capsys.readouterr().err
    assert regimegym.main(["defrag-monitor", "--encoder", "jepa-synthetic-1h", "--bars", spec, "--until", until]) == 2
    assert "'jepa'" in capsys.readouterr().err
    assert regimegym.main([*words, "--until", str(calm.close_time[-5])]) == 2
    assert "no block of 32 to watch" in capsys.readouterr().err
