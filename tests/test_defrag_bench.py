"""Figures of the defragmentation encoder: the labelled series and its exact filter, what is counted, the verb."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import regimegym
from encoders import defrag_bench, defrag_figures, defrag_series
from encoders.defrag import ChronosDefragEngine
from encoders.defrag_alpha import CHOSEN, alpha_interval
from encoders.defrag_bench import DefragBench, interval
from encoders.defrag_config import DefragConfig
from encoders.defrag_figures import (
    area_above,
    correlation,
    embeddings,
    kendall_distance,
    live_windows,
    order_figures,
    path_length,
    predictor_figures,
    switches,
)
from encoders.defrag_series import DRIFT, FOLLOW, SIZE, block_expectation, block_odds, switching_series
from encoders.student import t_probability, t_quantile
from markets.errors import ConfigError

UNTRAINED = DefragConfig(epochs=0, predictor_epochs=0)  # moments weighted by persistence: what is asked needs no more


def fitted(series, train, config=UNTRAINED):
    engine = ChronosDefragEngine(config)
    length = series.block_len
    known = series.outcomes[: train * length].copy()
    known[-length:] = np.nan
    engine.fit(series.features[: train * length], known)
    return engine


# ---- the series -------------------------------------------------------------------------------------------------


def test_the_series_is_what_its_parameters_say():
    series = switching_series(3000, 8, 5)
    assert np.array_equal(series.features, switching_series(3000, 8, 5).features)
    assert not np.array_equal(series.features, switching_series(3000, 8, 6).features)
    stays = np.diff(np.flatnonzero(np.diff(series.regimes)))
    assert stays.mean() == pytest.approx(8 * 64, rel=0.15)
    for k in range(4):
        pure = (series.windows[:, :, 0])[(series.regimes.reshape(-1, 64) == k).all(1)].astype(float)
        assert pure.mean() == pytest.approx(DRIFT[k], abs=0.03)
        assert pure.std() == pytest.approx(SIZE[k], rel=0.05)
        apart = pure - DRIFT[k]
        assert (apart[:, 1:] * apart[:, :-1]).mean() / pure.var() == pytest.approx(FOLLOW[k], abs=0.03)
        outcomes = series.at_ends(series.outcomes)[:-1][series.at_ends(series.regimes)[:-1] == k]
        expected = series.expected[series.regimes == k][0]
        assert abs(outcomes.mean() - expected) < 4 * outcomes.std() / len(outcomes) ** 0.5
    assert np.isnan(series.outcomes[-64:]).all()
    assert series.outcomes[10] == pytest.approx(series.features[11:75, 0].sum(dtype=np.float64), abs=1e-4)
    with pytest.raises(ConfigError, match=r"dwell=0\.5"):
        switching_series(4, 0.5, 0)


def test_the_filter_of_a_block_is_the_sum_over_all_paths():
    series = switching_series(6, 1.5, 3, block_len=3)
    density, spread = defrag_series._log_density, SIZE * np.sqrt(1 - FOLLOW**2)
    step = np.where(np.eye(4) == 1, 1 - series.leave, series.leave / 3)
    wild = np.array([0, 0, 0.2, 0.2])
    for window, odds in zip(series.windows.astype(float), block_odds(series), strict=True):
        total = np.zeros(4)
        for path in itertools.product(range(4), repeat=3):
            log = 0.0
            for t, k in enumerate(path):
                log += -0.5 * (((window[t, 2] - wild[k]) / 0.5) ** 2 + ((window[t, 4] - wild[k]) / 0.5) ** 2)
                if t == 0:
                    log += density((window[0, 0] - DRIFT[k]) / SIZE[k]) - np.log(SIZE[k])
                    continue
                shock = window[t, 0] - DRIFT[k] - FOLLOW[k] * (window[t - 1, 0] - DRIFT[path[t - 1]])
                log += density(shock / spread[k]) - np.log(spread[k]) + np.log(step[path[t - 1], k])
            total[path[-1]] += np.exp(log)
        assert np.allclose(odds, total / total.sum(), atol=1e-10)


# ---- the interval on alpha --------------------------------------------------------------------------------------


def test_quantiles_of_students_t_are_those_of_the_tables():
    for level, freedom, value in (
        (0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 15, 2.1314), (0.8, 15, 1.3406), (0.99, 30, 2.7500),
        (0.95, 100_000, 1.9600),
    ):  # fmt: skip
        assert t_quantile(level, freedom) == pytest.approx(value, abs=1e-4)
        assert t_probability(t_quantile(level, freedom), freedom) == pytest.approx(level, abs=1e-9)
    with pytest.raises(ConfigError, match=r"level=1\.0"):
        t_quantile(1.0, 5)


def test_the_interval_on_alpha_covers_at_its_nominal_rate():
    """Within 3 points where regimes outlast blocks, over many memories of their own; a halved error does not."""
    hits = {(level, share): [] for level in (0.8, 0.95) for share in (1.0, 0.5)}
    for seed in range(300, 328):
        series = switching_series(512 + 48, (8, 32)[seed % 2], seed)
        engine = fitted(series, 512)
        truth = block_expectation(series)[512:]
        answers = [engine.predict_live(window) for window in live_windows(series, 512, 64)]
        for (level, share), kept in hits.items():
            for answer, value in zip(answers, truth, strict=True):
                error = share * answer.alpha_standard_error
                low, high = alpha_interval(answer.alpha_prediction, answer.alpha_count, error, level)
                kept.append(low <= value <= high)
    for (level, share), kept in hits.items():
        assert (abs(np.mean(kept) - level) <= 0.03) == (share == 1.0), (level, share, np.mean(kept))


def test_an_answer_carries_the_interval_of_its_configuration():
    series = switching_series(64, 8, 0)
    window = series.windows[40]
    wide, narrow = (
        fitted(series, 40, DefragConfig(epochs=0, predictor_epochs=0, interval_level=level)).predict_live(window)
        for level in (0.95, 0.5)
    )
    assert wide.alpha_prediction == narrow.alpha_prediction
    for answer, level in ((wide, 0.95), (narrow, 0.5)):
        reach = CHOSEN * t_quantile(level, answer.alpha_count - 1) * answer.alpha_standard_error
        alpha = answer.alpha_prediction
        assert answer.alpha_interval == pytest.approx((alpha - reach, alpha + reach))
    unlabelled = ChronosDefragEngine(UNTRAINED)
    unlabelled.fit(series.features[: 40 * 64])
    assert np.isnan(unlabelled.predict_live(window).alpha_interval).all()
    with pytest.raises(ConfigError, match="interval_level=95"):
        DefragConfig(interval_level=95)


# ---- what is counted --------------------------------------------------------------------------------------------


def test_distances_of_orders_have_their_hand_computed_values():
    assert kendall_distance(np.arange(9)) == 0.0
    assert kendall_distance(np.arange(9)[::-1]) == 1.0
    assert kendall_distance(np.array([0, 2, 1, 3])) == pytest.approx(1 / 6)
    order = np.random.default_rng(0).permutation(40)
    pairs = sum(order[i] > order[j] for i, j in itertools.combinations(range(40), 2))
    assert kendall_distance(order) == pytest.approx(pairs / 780)
    labels = np.array([0, 0, 1, 1, 0])
    assert switches(labels, np.arange(5)) == 2
    assert switches(labels, np.array([0, 1, 4, 2, 3])) == 1
    z = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert path_length(z, np.array([0, 1, 2])) == pytest.approx(2 * 2**0.5)
    assert path_length(z, np.array([0, 2, 1])) == pytest.approx(2 + 2**0.5)
    assert area_above(np.array([0.5, 0.9]), np.array([0.5, 0.1])) == pytest.approx(0.875)
    assert correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1.0)
    assert correlation(np.ones(5), np.arange(5.0)) == 0.0
    assert interval([1.0, 2.0, 3.0]) == pytest.approx([2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4)


def test_rows_differ_by_what_their_names_say_and_like_blocks_meet_in_the_chain():
    series = switching_series(640, 2, 30)
    engine = fitted(series, 384)
    rows = embeddings(engine, series)
    assert np.array_equal(rows["ours"], rows["untrained"])  # nothing was trained
    widths = {name: z.shape[1] for name, z in rows.items()}
    assert widths == {"ours": 64, "untrained": 64, "learned": 46, "weighted": 18, "moments": 18}
    for z in rows.values():
        assert np.allclose(np.linalg.norm(z, axis=1), 1.0, atol=1e-5)
    share = {name: defrag_figures.embedding_figures(z, series, 384) for name, z in rows.items()}
    assert share["weighted"]["same_regime"] > share["moments"]["same_regime"] + 0.05
    assert share["ours"]["kmeans"] > 0.8
    shuffled = defrag_figures.embedding_figures(np.random.default_rng(0).permutation(rows["ours"]), series, 384)
    assert shuffled["same_regime"] < 0.35  # rows of other blocks
    adjacent = order_figures(series.labels[:384], engine.router.build_pseudo_timeline(rows["ours"][:384]), 0)
    assert adjacent["chain"] > adjacent["time"] + 0.1 > adjacent["random"] + 0.2


def test_a_predictor_trained_on_the_chain_beats_persistence_on_blocks_held_out():
    series = switching_series(768, 2, 31)
    z = embeddings(fitted(series, 512), series)["ours"]
    skill = predictor_figures(z, 512, DefragConfig(seed=31))
    assert skill["chain_on_chain"] > 0.05
    assert skill["chain_on_time"] > 0.0
    assert skill["random_on_chain"] < 0.0  # the twin, trained on neighbours that are nothing to each other
    assert skill["time_on_chain"] < skill["chain_on_chain"]


# ---- the verb ---------------------------------------------------------------------------------------------------


def test_the_verb_prints_and_writes_every_figure(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(defrag_bench, "EPOCHS", 2)
    for name, value in {"FIT_BLOCKS": 8, "CALLS": 5, "CHAIN_BLOCKS": 300, "SMALL": 64, "LARGE": 256}.items():
        monkeypatch.setattr(defrag_bench, name, value)
    words = ["--dwells", "4", "--seeds", "3,4", "--train-blocks", "48", "--test-blocks", "128", "--hierarchy", "1,2"]
    assert regimegym.main(["defrag-bench", *words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for word in ("weighted", "Kendall", "coverage of regime 0.95", "white noise", "chain on time", "ic oracle"):
        assert word in " ".join(printed.split())
    result = json.loads((tmp_path / "defrag-bench.json").read_text())
    assert result["settings"]["engine"]["hierarchy"] == [1, 2]
    assert set(result["quality"]["4"]["seeds"]) == {"3", "4"}
    mean, low, high = result["quality"]["4"]["mean"]["embedding.ours.same_regime"]
    each = [run["embedding"]["ours"]["same_regime"] for run in result["quality"]["4"]["seeds"].values()]
    assert mean == pytest.approx(np.mean(each))
    assert low < mean < high
    assert set(defrag_bench.CLAIMS) <= set(result["cost"])
    assert all(value >= 0.0 for value in result["cost"].values())
    assert regimegym.main(["defrag-bench", "--only", "cost", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["cost"]) == set(result["cost"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dwells", "two"], "--dwells 'two' is not a list of numbers"),
        (["--seeds", "1,1"], "no two alike"),
        (["--test-blocks", "8"], "test_blocks=8 at least 128"),
        (["--hierarchy", "2,4"], "ascend from 1"),
    ],
)
def test_the_verb_says_what_it_cannot_do(words, said, capsys):
    assert regimegym.main(["defrag-bench", "--only", "quality", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_bench_needs_something_to_do():
    with pytest.raises(ConfigError, match="one of each"):
        DefragBench(dwells=())


def test_the_example_of_the_document_runs(tmp_path, monkeypatch):
    text = (Path(regimegym.__file__).parent / "docs" / "defrag.md").read_text()
    names = {}
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)  # it saves
    exec(compile(block, "defrag.md", "exec"), names)
    low, high = names["answer"].alpha_interval
    assert low < names["answer"].alpha_prediction < high


def test_the_document_names_tests_that_exist_and_every_row():
    root = Path(regimegym.__file__).parent
    text = (root / "docs" / "defrag.md").read_text()
    tests = "".join(path.read_text() for path in (root / "tests").glob("test_defrag*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in tests] == []
    rows = set()
    for cell in re.findall(r"^\| (D\d.*?) \|", text, flags=re.M):
        first, _, last = cell.partition(" to ")
        numbers = [int(word.strip(" D")) for word in first.split(",")]
        rows |= set(range(numbers[0], int(last.strip("D")) + 1)) if last else set(numbers)
    assert rows == set(range(1, 34))
