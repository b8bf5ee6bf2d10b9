"""Defragmentation over time and scale: levels of blocks, the memory that forgets, gradients and first weights."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from torch import nn

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import EncoderWeights
from encoders.defrag_hierarchy import BlockHierarchy, histories
from encoders.defrag_predictor import MATRICES, PredictorWeights
from encoders.defrag_router import VectorDefragRouter
from encoders.defrag_series import switching_series
from encoders.defrag_training import RegimeNetwork
from markets.errors import ArtefactError, ConfigError, DataError

L = 64
QUICK = {"latent_dim": 24, "hidden": 8, "epochs": 1, "predictor_epochs": 1, "registry_capacity": 60}


def fitted(**changes):
    engine = ChronosDefragEngine(DefragConfig(**{**QUICK, **changes}))
    series = switching_series(40, 4, 2)
    engine.fit(series.features, np.where(np.isnan(series.outcomes), 0.0, series.outcomes))
    return engine, series


@pytest.fixture(scope="module")
def levels():
    return fitted(hierarchy=(1, 3))


# ---- scales -----------------------------------------------------------------------------------------------------


def test_one_level_is_the_encoder_of_blocks_to_the_bit(levels):
    engine, series = fitted()
    scaled = engine.fitted.scaler.apply(series.windows)
    assert np.array_equal(engine.router.registry[:40], engine.encoder.embed(scaled))
    assert np.array_equal(engine.predict_live(series.windows[5]).embedding, engine.encoder.embed(scaled[5:6])[0])
    assert not np.allclose(levels[0].router.registry[:40], engine.router.registry[:40], atol=0.01)
    assert levels[0].router.registry.shape == engine.router.registry.shape


def test_a_live_window_of_several_blocks_gives_the_row_that_the_fit_had(levels):
    engine, series = levels
    for i in (2, 3, 20, 39):
        window = series.features[(i - 2) * L : (i + 1) * L]
        assert np.allclose(engine.predict_live(window).embedding, engine.router.registry[i], atol=1e-5)
    with pytest.raises(DataError, match=r"shape \(64, 6\), expected \(192, 6\)"):
        engine.predict_live(series.windows[0])
    engine.remember(window, 100 * L, 1.0)
    assert np.allclose(engine.router.registry[40], engine.router.registry[39], atol=1e-5)


def test_a_level_reaches_back_and_never_ahead(levels, monkeypatch):
    engine, series = levels
    hierarchy, values = engine.fitted.hierarchy, series.windows.copy()
    before, _ = hierarchy.embed_blocks(values)
    values[20] += 1.0
    after, _ = hierarchy.embed_blocks(values)
    moved = np.abs(after - before).max(1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [20, 21, 22]

    def ahead(given, level):  # the planted leak: windows that begin with their block
        return iter([histories_of_reversed(given, level)])

    def histories_of_reversed(given, level):
        padded = np.concatenate([given, np.repeat(given[-1:], level - 1, 0)])
        return np.concatenate(list(histories(padded, level))[level - 1 :])[: len(given)]

    monkeypatch.setattr("encoders.defrag_hierarchy.histories", ahead)
    leaky, _ = hierarchy.embed_blocks(series.windows)
    spoiled, _ = hierarchy.embed_blocks(values)
    assert np.flatnonzero(np.abs(spoiled - leaky).max(1) > 1e-6).tolist() == [18, 19, 20]


def test_the_levels_are_averaged_and_the_first_blocks_use_what_there_is(levels):
    engine, series = levels
    hierarchy = engine.fitted.hierarchy
    scaled = engine.fitted.scaler.apply(series.windows)
    one, three = hierarchy.encoders
    assert one.weights is three.weights
    assert not np.array_equal(one.scale.mean, three.scale.mean)
    for i, history in ((0, scaled[:1]), (1, scaled[:2]), (7, scaled[5:8])):
        both = one.embed(scaled[i : i + 1])[0] + three.embed(history.reshape(1, -1, 6))[0]
        assert np.allclose(hierarchy.embed_blocks(scaled)[0][i], both / np.linalg.norm(both), atol=1e-5)
    few = BlockHierarchy.fit((1, 9), one.weights, 0.5, scaled[:4])
    assert few.embed_blocks(scaled[:4])[0].shape == (4, 24)


@pytest.mark.parametrize("given", [(), (2,), (1, 1), (1, 4, 2), (1, 2.0), 1])
def test_a_hierarchy_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError, match="ascend from 1"):
        DefragConfig(hierarchy=given)


def test_a_checkpoint_keeps_the_levels_and_reads_files_from_before_them(levels, tmp_path):
    engine, series = levels
    window = series.features[: 3 * L]
    again = ChronosDefragEngine.from_checkpoint(engine.save(tmp_path / "levels.zip"))
    assert again.config.hierarchy == (1, 3)
    assert np.array_equal(again.predict_live(window).embedding, engine.predict_live(window).embedding)
    with pytest.raises(ArtefactError, match=r"hierarchy=\(1, 3\), this engine \(1,\)"):
        ChronosDefragEngine(DefragConfig(**QUICK)).load_checkpoint(tmp_path / "levels.zip")
    plain, _ = fitted()
    path = plain.save(tmp_path / "plain.zip")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])
    for name in ("hierarchy", "interval_level"):
        del manifest["config"][name]
    for name in ("encoder_gradient", "predictor_gradient"):
        del manifest["log"][name]
    parts["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    old = ChronosDefragEngine.from_checkpoint(path)
    assert old.config == plain.config
    assert np.array_equal(old.predict_live(window[:L]).embedding, plain.predict_live(window[:L]).embedding)


# ---- the memory that forgets ------------------------------------------------------------------------------------


def test_what_is_remembered_pushes_the_oldest_out_and_its_outcome_with_it():
    engine, series = fitted(registry_capacity=40, label_horizon=L)
    end = engine.fitted.train_end
    before = engine.router.registry.copy()
    for i in range(45):
        engine.remember(series.windows[i % 40], end + (i + 1) * L, 100.0 + i)
    assert engine.router.size == 40
    assert set(engine.router.outcomes) == {100.0 + i for i in range(5, 45)}
    assert np.allclose(engine.router.registry[5], before[5], atol=1e-6)  # written again where it had stood
    answer = engine.predict_live(series.windows[0], end + 47 * L)
    assert 105.0 <= answer.alpha_prediction <= 144.0
    unseen = engine.predict_live(series.windows[0], end + 45 * L)
    assert not np.isin(144.0, unseen.neighbours.outcomes)  # the newest outcome is not known yet


@pytest.mark.parametrize(("decay", "older"), [(0.5, 0.6), (1.0, 1.0)])
def test_age_takes_weight_unless_nothing_is_forgotten(decay, older):
    memory = VectorDefragRouter(DefragConfig(latent_dim=32, registry_capacity=9, top_k=9, label_horizon=0, decay=decay))
    memory.add(np.repeat(np.eye(1, 32, dtype=np.float32), 9, 0), L * np.arange(9))
    weights = memory.query(np.eye(1, 32, dtype=np.float32)[0], 8 * L).weights
    assert weights[-1] / weights[0] == pytest.approx(0.5 ** (8 / 9) if decay < 1 else older)
    assert (np.diff(weights) < 0).all() == (decay < 1)


def test_the_registry_of_65536_rows_of_64_is_16_mib():
    assert VectorDefragRouter(DefragConfig(registry_capacity=65_536)).nbytes == 16_777_216


# ---- gradients and first weights --------------------------------------------------------------------------------


def test_both_trainers_clip_their_gradients_and_the_log_says_so(monkeypatch):
    for clip in (1.0, 1e-3):
        log = fitted(clip=clip)[0].fitted.log
        assert log.encoder_gradient[0] > 1.0  # the bound was needed
        assert log.encoder_gradient[1] <= clip * (1 + 1e-4)
        assert log.predictor_gradient[1] <= clip * (1 + 1e-4)
    assert log.predictor_gradient[0] > clip
    honest = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, limit: honest(parameters, 1e9))
    log = fitted(clip=1e-3)[0].fitted.log  # the twin that does not clip
    assert log.encoder_gradient[1] == pytest.approx(log.encoder_gradient[0])
    assert log.predictor_gradient[1] > 1e-3


def xavier(weight, size=1.0):
    """Whether a weight fills the interval of Xavier's uniform distribution evenly, and not more."""
    fans = (weight.shape[0] + weight.shape[1]) * (weight.shape[2] if weight.ndim == 3 else 1)
    bound = size * (6.0 / fans) ** 0.5
    inside = np.abs(weight).max() <= bound * (1 + 1e-6)
    return bool(inside and abs(weight.std() / (bound / 3**0.5) - 1.0) < 0.1)


def test_every_first_weight_is_xavier_uniform():
    rng, config = np.random.default_rng(0), DefragConfig()
    weights = EncoderWeights.initial(config, rng)
    network = RegimeNetwork(weights, 0.1, rng)
    parts = [value for name, value in weights.arrays().items() if name.endswith("weight")]
    parts += [network.project_in.detach().numpy(), network.project_out.detach().numpy()]
    assert len(parts) == 6
    assert all(xavier(part) for part in parts)
    predictor = PredictorWeights.initial(64, rng)
    sizes = {"out": 0.1}  # small: the predictor begins as persistence
    assert all(xavier(getattr(predictor, name), sizes.get(name, 1.0)) for name in MATRICES)
    normal = rng.standard_normal((64, 64)).astype(np.float32) * (2 / 128) ** 0.5
    assert not xavier(normal)  # the twins: Xavier's normal, and a uniform one half as wide
    assert not xavier(rng.uniform(-0.1, 0.1, (64, 64)))
    assert all(not value.any() for name, value in weights.arrays().items() if name.endswith("bias"))
