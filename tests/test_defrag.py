"""The defragmentation engine: fit, live answers, what may be known when, checkpoints."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_adapter import DefragAdapter
from encoders.defrag_alpha import weighted_outcome
from encoders.defrag_config import DefragConfig
from encoders.defrag_router import Neighbours
from markets.errors import ArtefactError, DataError, InSampleError, NotFittedError

L, F = 64, 4
QUICK = DefragConfig(
    input_dim=F, latent_dim=24, hidden=8, epochs=3, predictor_epochs=10, registry_capacity=200, label_horizon=L
)


def ticks(blocks, seed=0, dwell=6):
    """Two regimes, quiet and wild, whose drift differs: features ``(T, F)``, outcomes ``(T,)``, labels by block."""
    rng = np.random.default_rng(seed)
    labels = np.cumsum(rng.random(blocks) < 1 / dwell) % 2
    wild = np.repeat(labels, L)[:, None]
    x = ((0.5 + wild) * rng.standard_normal((blocks * L, F))).astype(np.float32)
    outcomes = np.where(wild[:, 0] == 1, -1.0, 1.0) + 0.1 * rng.standard_normal(blocks * L)
    outcomes[-L:] = np.nan
    return x, outcomes, labels


@pytest.fixture(scope="module")
def engine():
    x, outcomes, _ = ticks(96)
    one = ChronosDefragEngine(QUICK)
    one.fit(x, outcomes, feature_names=("r", "v", "o", "s"))
    return one


def test_the_quickstart_of_the_source_runs():
    data = torch.randn(4096, 6, generator=torch.Generator().manual_seed(0))
    engine = ChronosDefragEngine(DefragConfig(epochs=2, predictor_epochs=2))
    engine.fit(data)
    result = engine.predict_live(data[:64] + 0.1)
    assert f"{result.alpha_prediction.item():.5f}" == "nan"  # no outcomes: absent, not invented
    assert (result.alpha_count, np.isnan(result.alpha_standard_error)) == (0, True)
    assert 0.0 < result.regime_confidence <= 1.0
    assert result.system_latency_ms > 0.0


def test_alpha_is_the_weighted_mean_of_what_followed_the_neighbours(engine):
    x, _, labels = ticks(120, seed=5)
    windows = x.reshape(-1, L, F)
    answers = [engine.predict_live(window) for window in windows]
    for answer in answers[:5]:
        found = answer.neighbours
        known = ~np.isnan(found.outcomes)
        assert answer.alpha_count == known.sum()
        expected = np.average(found.outcomes[known], weights=found.weights[known])
        assert answer.alpha_prediction == pytest.approx(expected)
    alphas = np.array([answer.alpha_prediction for answer in answers])
    assert (np.sign(alphas) == np.where(labels == 1, -1, 1)).mean() > 0.95
    swapped = np.where(labels == 1, 1, -1)
    assert (np.sign(alphas) == swapped).mean() < 0.05


def test_the_standard_error_has_its_hand_computed_value():
    def found(weights, outcomes):
        rows = np.arange(len(weights))
        return Neighbours(rows, np.ones(len(rows), np.float32), np.array(weights), np.array(outcomes))

    mean, count, error = weighted_outcome(found([0.25] * 4, [1.0, 2.0, 3.0, 4.0]))
    assert (mean, count) == (2.5, 4)
    assert error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)  # equal weights: the ordinary one
    mean, count, error = weighted_outcome(found([0.5, 0.3, 0.2], [1.0, np.nan, 3.0]))
    assert (mean, count) == (pytest.approx((0.5 + 0.6) / 0.7), 2)
    assert np.isnan(weighted_outcome(found([1.0], [2.0]))[2])
    assert weighted_outcome(found([], []))[1] == 0


def test_nothing_is_trained_on_outcomes(engine):
    x, outcomes, _ = ticks(96)
    other = ChronosDefragEngine(QUICK)
    other.fit(x, -outcomes)
    assert np.array_equal(other.router.registry, engine.router.registry)
    assert other.predict_live(x[:L]).alpha_prediction == -engine.predict_live(x[:L]).alpha_prediction


def test_a_time_inside_the_training_range_is_refused(engine):
    x, _, _ = ticks(96)
    end = engine.fitted.train_end
    assert end == 96 * L - 1
    for time in (0, end - 1, end):
        with pytest.raises(InSampleError, match=f"ends at tick {end}"):
            engine.predict_live(x[:L], time)
    assert engine.predict_live(x[:L], end + 1).alpha_count > 0
    with pytest.raises(DataError, match="whole number"):
        engine.predict_live(x[:L], 1e9)


def test_what_is_not_yet_known_changes_nothing():
    """Prefix invariance of the memory: outcomes of rows that are not visible may be anything; visible ones may not."""
    x, outcomes, _ = ticks(24)
    answers, later = [], []
    for value in (1.0, 1e6):
        engine = ChronosDefragEngine(QUICK)
        engine.fit(x, outcomes)
        end = engine.fitted.train_end
        engine.remember(x[-L:], end + L, value)
        answers.append(engine.predict_live(x[-L:], end + 2 * L - 1).alpha_prediction)
        later.append(engine.predict_live(x[-L:], end + 2 * L).alpha_prediction)
    assert answers[0] == answers[1]
    assert later[0] != later[1]  # the twin: one tick on, the outcome is known and counts
    with pytest.raises(DataError, match="order of time"):
        engine.remember(x[:L], end + 1, 0.0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: w[:-1], r"shape \(63, 4\), expected \(64, 4\)"),
        (lambda w: w[:, :3], r"shape \(64, 3\)"),
        (lambda w: np.where(np.arange(F) == 2, np.nan, w), r"nan at \(0, 2\)"),
        (lambda w: w + np.float32(1e30), "training deviations"),
    ],
)
def test_a_window_that_cannot_be_right_is_refused(engine, spoil, said):
    window = ticks(4)[0][:L]
    with pytest.raises(DataError, match=said):
        engine.predict_live(spoil(window))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x, y: (x[: 3 * L], None), "Need at least 4 blocks"),
        (lambda x, y: (x[:, :2], None), r"expected \(any, 4\)"),
        (lambda x, y: (np.where(x == x[7, 1], np.nan, x), None), "nan at"),
        (lambda x, y: (x, y[:-1]), "outcomes have shape"),
        (lambda x, y: (x, np.where(np.isnan(y), np.inf, y)), "infinite number"),
    ],
)
def test_a_fit_on_what_cannot_be_right_is_refused(spoil, said):
    x, outcomes, _ = ticks(8)
    with pytest.raises(DataError, match=said):
        ChronosDefragEngine(QUICK).fit(*spoil(x, outcomes))


def test_an_unfitted_engine_says_so():
    engine = ChronosDefragEngine(QUICK)
    with pytest.raises(NotFittedError, match=r"must be fit\(\) before predict_live") as caught:
        engine.predict_live(np.zeros((L, F)))
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(NotFittedError):
        engine.save("never")


@pytest.mark.parametrize("blocks", [4, 5, 65])
def test_any_number_of_blocks_from_four_on_can_be_fitted(blocks):
    x, _, _ = ticks(blocks)
    config = DefragConfig(input_dim=F, latent_dim=24, hidden=8, epochs=1, predictor_epochs=1, batch_size=32)
    log = ChronosDefragEngine(config).fit(np.concatenate([x, x[:17]]))
    assert (log.blocks, log.unused_ticks) == (blocks, 17)


def test_a_fit_depends_on_its_seed_alone_and_leaves_global_states(engine):
    x, outcomes, _ = ticks(96)
    legacy, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    other = ChronosDefragEngine(QUICK)
    other.fit(x, outcomes)
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.random.get_rng_state())
    torch.rand(3)
    other.fit(x, outcomes)  # a second fit begins anew
    assert np.array_equal(other.router.registry, engine.router.registry)
    seeded = ChronosDefragEngine(DefragConfig(**{**QUICK.to_json(), "seed": 1}))
    seeded.fit(x, outcomes)
    assert not np.array_equal(seeded.router.registry, engine.router.registry)


def test_the_ragged_tail_is_read_by_nothing(engine):
    x, outcomes, _ = ticks(96)
    other = ChronosDefragEngine(QUICK)
    other.fit(np.concatenate([x, np.full((17, F), 1e3, np.float32)]), np.concatenate([outcomes, np.ones(17)]))
    assert np.array_equal(other.router.registry, engine.router.registry)
    assert other.fitted.train_end == engine.fitted.train_end + 17  # yet it is part of what was given


def test_confidence_falls_on_novel_data_only(engine):
    windows = ticks(200, seed=8)[0].reshape(-1, L, F)

    def confidence(values):
        return np.array([engine.predict_live(window).regime_confidence for window in values])

    known, wild, again = confidence(windows[:100]), confidence(5 * windows[:50]), confidence(windows[100:])
    area = (known[:, None] > wild).mean() + 0.5 * (known[:, None] == wild).mean()
    same = (known[:, None] > again).mean() + 0.5 * (known[:, None] == again).mean()
    assert area > 0.95
    assert 0.35 < same < 0.65
    assert confidence(np.zeros((1, L, F), np.float32))[0] < 0.05


def test_the_fit_log_tells_collapse_from_health(caplog):
    longer = DefragConfig(**{**QUICK.to_json(), "epochs": 30, "predictor_epochs": 30, "hidden": 16})
    with caplog.at_level(logging.WARNING):
        log = ChronosDefragEngine(longer).fit(ticks(96)[0])
    assert not log.collapsed
    assert not caplog.text
    assert 0.0 < log.timeline_entropy <= 1.0
    assert log.encoder[-1]["info_nce"] < log.encoder[0]["info_nce"]
    assert log.predictor[-1] < log.predictor[0]
    assert log.predictor[-1] < log.persistence
    x, _, _ = ticks(8)
    with caplog.at_level(logging.WARNING):
        still = ChronosDefragEngine(DefragConfig(**{**QUICK.to_json(), "epochs": 0})).fit(np.ones_like(x))
    assert still.collapsed
    assert "collapsed" in caplog.text


def test_similar_blocks_become_neighbours_in_the_pseudo_timeline(engine):
    _, _, labels = ticks(96)
    order = engine.router.build_pseudo_timeline(engine.router.registry[:96])
    switches = [(np.diff(labels[o]) != 0).sum() for o in (order, np.arange(96))]
    shuffled = np.random.default_rng(0).permutation(96)
    assert switches[0] < switches[1] < (np.diff(labels[shuffled]) != 0).sum()


def test_a_checkpoint_answers_as_the_engine_did_without_torch_or_pandas(engine, tmp_path):
    path = engine.save(tmp_path / "one.zip")
    window = ticks(4, seed=3)[0][:L]
    np.save(tmp_path / "window.npy", window)
    program = (
        "import sys; sys.modules['pandas'] = sys.modules['torch'] = None\n"
        "import numpy as np\nfrom encoders.defrag import ChronosDefragEngine\n"
        f"engine = ChronosDefragEngine.from_checkpoint({str(path)!r})\n"
        f"answer = engine.predict_live(np.load({str(tmp_path / 'window.npy')!r}))\n"
        "print(repr([float(answer.alpha_prediction), answer.regime_confidence, engine.fitted.feature_names,"
        " engine.fitted.train_end, float(answer.continuation.sum())]))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    answer = engine.predict_live(window)
    here = [float(answer.alpha_prediction), answer.regime_confidence, ("r", "v", "o", "s"), 96 * L - 1]
    assert out.strip() == repr([*here, float(answer.continuation.sum())])


def test_another_registry_size_keeps_the_newest_rows_and_another_structure_is_refused(engine, tmp_path):
    path = engine.save(tmp_path / "one.zip")
    small = ChronosDefragEngine(DefragConfig(**{**QUICK.to_json(), "registry_capacity": 10})).load_checkpoint(path)
    assert np.array_equal(small.router.arrays()["registry.rows"], engine.router.registry[86:96])
    with pytest.raises(ArtefactError, match="hidden=8, this engine 16"):
        ChronosDefragEngine(DefragConfig(**{**QUICK.to_json(), "hidden": 16})).load_checkpoint(path)


def test_an_altered_checkpoint_is_refused(engine, tmp_path):
    path = engine.save(tmp_path / "one.zip")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])

    def rewrite(**members):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {**parts, **members}.items():
                archive.writestr(name, data)

    tensors = parts["weights.safetensors"]
    rewrite(**{"weights.safetensors": tensors[:-1] + bytes([tensors[-1] ^ 1])})
    with pytest.raises(ArtefactError, match="altered"):
        ChronosDefragEngine.from_checkpoint(path)
    for changes, said in (({"kind": "other"}, "kind and format"), ({"config": {"seed": 1}}, "lack")):
        rewrite(**{"manifest.json": json.dumps({**manifest, **changes}).encode()})
        with pytest.raises(ArtefactError, match=said):
            ChronosDefragEngine.from_checkpoint(path)
    rewrite()
    assert ChronosDefragEngine.from_checkpoint(path).is_fitted


def test_the_adapter_speaks_the_verbs_of_a_bench():
    x, _, _ = ticks(40)
    adapter = DefragAdapter(n_feat=F, latent_dim=24, capacity=64, top_k=4, epochs=1, seed=0)
    assert adapter.embed(x.reshape(-1, L, F)).shape == (40, 24)
    adapter.fit(x)
    z = adapter.embed(x.reshape(-1, L, F))
    assert np.allclose(z, adapter.engine.router.registry[:40], atol=1e-6)
    before = adapter.predict(x[:L])
    adapter.fill(z, np.arange(40) * L)
    assert adapter.predict(x[:L]) == pytest.approx(before, rel=1e-4)
    assert adapter.neighbours(z[:3]).shape == (3, 4)
    outcome = adapter.engine.router.outcomes
    assert outcome[0] == pytest.approx(x[L : 2 * L, 0].sum(dtype=np.float64), rel=1e-5)
    assert np.isnan(outcome[39])
