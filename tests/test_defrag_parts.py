"""Parts of the defragmentation encoder: blocks, losses, chain, registry, forward passes against their torch twins."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch

from encoders.defrag_blocks import BlockScaler, checked, slice_blocks
from encoders.defrag_chain import _edge, _greedy, pseudo_timeline, timeline_entropy
from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import (
    STILL,
    EncoderWeights,
    MomentScale,
    RegimeEncoder,
    _convolve,
    block_moments,
    unit,
)
from encoders.defrag_losses import continuity_reg, gram_entropy, info_nce, temporal_entropy_reg
from encoders.defrag_predictor import PredictorWeights, TemporalPredictor
from encoders.defrag_predictor_training import PredictorNetwork
from encoders.defrag_router import VectorDefragRouter
from encoders.defrag_training import RegimeNetwork, augmented
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError


def unit_rows(count, width, seed=0, noise=0.4):
    """Unit rows in four blobs."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4, width))[rng.integers(0, 4, count)] + noise * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ---- settings and blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_len": 20}, "block_len=20"),
        ({"decay": 0.0}, "decay=0.0"),
        ({"moments_weight": 1.0}, "moments_weight=1.0"),
        ({"input_dim": 30}, "take at least 94, or moments_weight=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changes, said):
    with pytest.raises(ConfigError, match=said):
        DefragConfig(**changes)


def test_settings_round_trip_and_refuse_what_is_missing_or_foreign():
    config = DefragConfig(latent_dim=48, decay=0.9)
    assert DefragConfig.from_json(config.to_json()) == config
    with pytest.raises(ArtefactError, match="lack 'seed'"):
        DefragConfig.from_json({k: v for k, v in config.to_json().items() if k != "seed"})
    with pytest.raises(ArtefactError, match="foreign"):
        DefragConfig.from_json({**config.to_json(), "foreign": 1})
    with pytest.raises(UnknownNameError, match="greedy"):
        DefragConfig(chain="greedi")


def test_blocks_use_no_tick_twice_and_know_their_own():
    ticks = np.arange(10 * 64 + 17, dtype=np.float32)[:, None]
    blocks = slice_blocks(ticks, 64, first_tick=1000)
    assert len(blocks) == 10
    assert blocks.unused == 17
    assert np.array_equal(blocks.values.ravel(), ticks[:640, 0])
    assert np.array_equal(blocks.starts, 1000 + 64 * np.arange(10))
    assert np.array_equal(blocks.ends, blocks.values[:, -1, 0] + 1000)
    with pytest.raises(DataError, match="Need at least 4 blocks"):
        slice_blocks(ticks[: 4 * 64 - 1], 64)


def test_input_that_is_not_numbers_of_the_shape_is_refused_by_place():
    values = np.zeros((5, 2))
    values[3, 1] = np.inf
    with pytest.raises(DataError, match=r"inf at \(3, 1\)"):
        checked(values, (None, 2), "features")
    with pytest.raises(DataError, match=r"\(any, 3\)"):
        checked(values, (None, 3), "features")
    with pytest.raises(DataError, match="cannot be read"):
        checked([["a"]], (None, 1), "features")


def test_the_robust_scaler_shrugs_at_an_outlier_that_moves_the_standard_one():
    values = np.random.default_rng(0).standard_normal((2000, 2)).astype(np.float32)
    wild = values.copy()
    wild[0, 0] = 1e5
    robust = [BlockScaler.fit(v, "robust").scale[0] for v in (values, wild)]
    standard = [BlockScaler.fit(v, "standard").scale[0] for v in (values, wild)]
    assert abs(robust[0] - 1.0) < 0.1
    assert abs(robust[1] - robust[0]) < 0.01
    assert standard[1] > 100 * standard[0]


def test_a_still_feature_is_not_divided_by_zero_and_absurd_numbers_are_refused():
    scaler = BlockScaler.fit(np.full((300, 1), 7.0, np.float32), "standard")
    assert scaler.apply(np.full((1, 1), 7.5, np.float32))[0, 0] == pytest.approx(0.5)
    with pytest.raises(DataError, match="training deviations"):
        scaler.apply(np.full((1, 1), 1e30, np.float32))


# ---- losses -----------------------------------------------------------------------------------------------------


def test_info_nce_has_its_hand_computed_value_for_two_rows():
    eye, zero = torch.eye(2), torch.tensor(0.0)
    assert float(info_nce(eye, eye, zero)) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert float(info_nce(eye, eye.flip(0), zero)) == pytest.approx(math.log(1 + math.exp(1)), abs=1e-6)
    half = torch.tensor(math.log(0.5))
    assert float(info_nce(eye, eye, half)) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    with pytest.raises(ConfigError, match="at least 2 rows"):
        info_nce(eye[:1], eye[:1], zero)


def test_the_temperature_stays_positive_where_a_raw_one_would_not():
    log, raw = torch.tensor(0.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.SGD([log, raw], 0.5)
    for _ in range(1000):
        optimizer.zero_grad()
        (torch.exp(log) + raw).backward()
        optimizer.step()
    assert float(torch.exp(log.detach())) > 0.0
    assert float(raw.detach()) < 0.0  # the twin


def source_entropy_term(z):
    """The document's form: row entropy of a softmax of cosines, short of log(B) / 2."""
    p = torch.softmax(z @ z.T, 1)
    return torch.relu(0.5 * math.log(len(z)) + (p * p.log()).sum(1).mean())


def collapse(z, keep):
    """Move unit rows towards their first one; 0 is total collapse."""
    return torch.nn.functional.normalize(z[:1] + keep * (z - z[:1]), dim=1)


def test_the_entropy_term_rises_in_collapse_and_has_a_gradient():
    spread = torch.from_numpy(unit(np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)))
    values = [float(temporal_entropy_reg(collapse(spread, keep))) for keep in (1.0, 0.3, 0.1, 0.0)]
    assert values[0] == 0.0
    assert values[1] < values[2] < values[3]
    assert values[3] == pytest.approx(0.5 * math.log(16), abs=1e-5)
    near = collapse(spread, 0.1).requires_grad_()
    temporal_entropy_reg(near).backward()
    assert float(near.grad.abs().max()) > 1e-4
    assert [float(source_entropy_term(collapse(spread, keep))) for keep in (1.0, 0.0)] == [0.0, 0.0]  # the twin is dead
    assert float(gram_entropy(torch.eye(8))) == pytest.approx(math.log(8), abs=1e-6)


def test_the_continuity_term_rises_in_collapse_and_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 6, 200)
    walk = torch.stack([angle.cos(), angle.sin()], 1)
    smooth = float(continuity_reg(walk[:-1], walk[1:]))
    shuffled = walk[torch.randperm(200, generator=generator)]
    assert smooth < 0.01
    assert 0.8 < float(continuity_reg(shuffled[:-1], shuffled[1:])) < 1.2
    still = torch.ones(10, 2)
    assert float(continuity_reg(still, still)) == pytest.approx(1.0)
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(continuity_reg(a, b)) == pytest.approx(1.0, abs=1e-5)  # jumps 2, 0; distances 2, 2, 0, 0
    rows = walk.clone().requires_grad_()
    continuity_reg(rows[:-1], rows[1:]).backward()
    assert float(rows.grad.abs().max()) > 1e-6
    plain = [float((z[1:] - z[:-1]).square().sum(1).mean()) for z in (walk, still)]
    assert plain[1] < plain[0]  # the twin, the document's form, pays for collapse


def test_a_cyclic_shift_keeps_the_values_of_each_feature_in_their_cyclic_order():
    x = torch.arange(2 * 3 * 40, dtype=torch.float32).reshape(2, 3, 40)
    config = DefragConfig(positives="augmented", jitter=0.0)
    moved = augmented(x, config, np.random.default_rng(1))
    assert torch.equal(moved.sort(2).values, x)
    shifts = {int((moved[b, 0] == x[b, 0, 0]).nonzero()) for b in range(2)}
    assert all(min(s, 40 - s) <= config.max_shift for s in shifts)
    assert all(torch.equal(torch.roll(x[b], int((moved[b, 0] == x[b, 0, 0]).nonzero()), 1), moved[b]) for b in range(2))
    noisy = augmented(x, DefragConfig(positives="augmented", jitter=0.1, max_shift=0), np.random.default_rng(1))
    assert 0.05 < float((noisy - x).std()) < 0.2


# ---- chain ------------------------------------------------------------------------------------------------------


def unchunked(z):
    """The chain from the whole N x N matrix, in float64."""
    wide = z.astype(np.float64)
    products, free, order = wide @ wide.T, np.ones(len(z), bool), [0]
    for _ in range(len(z) - 1):
        free[order[-1]] = False
        order.append(int(np.where(free, products[order[-1]], -np.inf).argmax()))
    return np.array(order)


def path(z, order):
    return float(np.linalg.norm(z[order[1:]] - z[order[:-1]], axis=1).sum())


@pytest.mark.parametrize("noise", [0.1, 0.4, 5.0])
def test_the_greedy_chain_is_the_unchunked_one_in_little_memory(noise):
    z = unit_rows(2000, 64, noise=noise)
    pseudo_timeline(z[:10])
    tracemalloc.start()
    order = pseudo_timeline(z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(order, unchunked(z))
    assert peak < 8 * z.nbytes < z.shape[0] ** 2 * 4  # a float32 matrix of all pairs would be 16 MB


def test_a_bound_that_is_too_tight_would_be_caught(monkeypatch):
    monkeypatch.setattr("encoders.defrag_chain.SLACK", -0.2)
    z = unit_rows(2000, 64)
    assert not np.array_equal(_greedy(z), unchunked(z))


def test_equal_blocks_are_taken_in_order_of_time():
    kinds = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 6))
    order = pseudo_timeline(unit_rows(5, 8)[kinds])
    runs = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)
    assert len(runs) == 5
    assert all((np.diff(run) > 0).all() for run in runs)


@pytest.mark.parametrize("method", ["greedy", "edge"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 17, 600])
def test_every_chain_is_a_permutation_from_block_0(method, count):
    z = unit_rows(count, 12, seed=count)
    order = pseudo_timeline(z, method)
    assert order[0] == 0
    assert np.array_equal(np.sort(order), np.arange(count))
    if count == 600:
        assert path(z, order) < 0.8 * path(z, np.arange(count))


def test_edges_give_a_path_no_longer_than_greedy_on_many_blocks():
    z = unit_rows(1500, 16)
    assert path(z, _edge(z)) < path(z, _greedy(z))


def test_greedy_is_near_the_best_of_all_orders_of_eight():
    ratios = []
    for seed in range(5):
        z = unit_rows(8, 6, seed)
        best = min(path(z, np.array((0, *rest))) for rest in itertools.permutations(range(1, 8)))
        ratios.append(path(z, pseudo_timeline(z)) / best)
    assert min(ratios) >= 1.0 - 1e-6
    assert np.mean(ratios) < 1.25


def test_the_chain_refuses_rows_that_are_not_unit():
    with pytest.raises(DataError, match="unit length"):
        pseudo_timeline(2 * unit_rows(5, 4))
    with pytest.raises(UnknownNameError, match="edge"):
        pseudo_timeline(unit_rows(5, 4), "edg")


def test_timeline_entropy_is_zero_in_order_and_high_for_a_shuffle():
    assert timeline_entropy(np.arange(500)) == 0.0
    assert timeline_entropy(np.random.default_rng(0).permutation(500)) > 0.6


# ---- registry ---------------------------------------------------------------------------------------------------


def router(capacity=50, **changes):
    return VectorDefragRouter(
        DefragConfig(latent_dim=32, registry_capacity=capacity, top_k=5, label_horizon=10, **changes)
    )


def test_the_registry_keeps_the_last_rows_however_they_came():
    z, ends = unit_rows(55, 32), 64 * np.arange(55)
    at_once, one_by_one = router(), router()
    at_once.add(z, ends)
    for row, end in zip(z, ends, strict=True):
        one_by_one.add(row[None], np.array([end]))
    for memory in (at_once, one_by_one):
        assert memory.size == 50
        assert np.array_equal(memory.arrays()["registry.rows"], z[5:])
        assert np.array_equal(memory.arrays()["registry.ends"], ends[5:])
    assert VectorDefragRouter(DefragConfig(registry_capacity=65536)).nbytes == 65536 * 64 * 4


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_retrieval_is_that_of_the_whole_product(decay):
    memory, z = router(400, decay=decay), unit_rows(400, 32)
    ends = 64 * np.arange(400)
    memory.add(z, ends)
    now = int(ends[-1]) + 200
    for query in unit_rows(30, 32, seed=9):
        cosine = z.astype(np.float64) @ query
        scores = np.where(cosine > 0, cosine * decay ** ((now - ends) / 64 / 400), cosine)
        best = np.argsort(-scores, kind="stable")[:5]
        found = memory.query(query, now)
        assert np.array_equal(found.rows, best)
        assert np.allclose(found.scores, scores[best], atol=1e-6)


def test_decay_has_its_hand_computed_value_in_blocks():
    memory = router(decay=0.5)
    row = np.eye(32, dtype=np.float32)
    memory.add(row[:2], np.array([0, 64]))
    found = memory.query(row[0], 128)  # two rows, two blocks ago: delta^(2 / 2)
    assert found.scores[0] == pytest.approx(0.5)
    assert memory.query(row[1], 128).scores[0] == pytest.approx(0.5**0.5)
    opposite = memory.query(-row[0], 128)
    assert opposite.scores[list(opposite.rows).index(0)] == pytest.approx(-1.0)  # age does not raise it


def test_a_row_is_seen_only_when_its_outcome_is_known():
    memory, z = router(), unit_rows(10, 32)
    ends = 64 * np.arange(10)
    memory.add(z, ends)
    assert len(memory.query(z[0], 9).rows) == 0
    assert memory.query(z[0], 10).rows.tolist() == [0]
    leaky = router()
    leaky.add(z, ends, visible_from=np.zeros(10, np.int64))  # the planted leak
    assert len(leaky.query(z[0], 9).rows) == 5
    for now in range(0, 700, 7):
        assert (ends[memory.query(z[9], now).rows] + 10 <= now).all()


def test_the_context_is_the_weighted_mean_of_the_best_rows():
    memory, z = router(decay=1.0), unit_rows(40, 32)
    memory.add(z, np.arange(40) * 64)
    query = unit_rows(1, 32, seed=5)[0]
    found = memory.query(query, 10**6)
    cosine = z @ query
    best = np.argsort(-cosine)[:5]
    weights = np.maximum(cosine[best], 0) / np.maximum(cosine[best], 0).sum()
    assert found.weights.sum() == pytest.approx(1.0)
    assert np.allclose(memory.reconstruct_context(found), weights @ z[best], atol=1e-6)
    assert not router().reconstruct_context(router().query(query, 5)).any()


def test_the_registry_refuses_what_would_spoil_it():
    memory, z = router(), unit_rows(3, 32)
    memory.add(z, np.array([10, 20, 30]))
    with pytest.raises(DataError, match="order of time"):
        memory.add(z[:1], np.array([29]))
    with pytest.raises(DataError, match="unit length"):
        memory.add(2 * z, np.array([40, 50, 60]))
    with pytest.raises(DataError, match="expected"):
        memory.add(z, np.array([40, 50]))
    assert memory.size == 3


# ---- forward passes ---------------------------------------------------------------------------------------------


def test_the_numpy_encoder_is_the_torch_network():
    config = DefragConfig(latent_dim=48)
    rng = np.random.default_rng(0)
    weights, x = EncoderWeights.initial(config, rng), rng.standard_normal((7, 64, 6)).astype(np.float32)
    network = RegimeNetwork(weights, 0.1, rng)
    plain = RegimeEncoder(weights, MomentScale.neutral(6), 0.0)
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 2, 1).copy())).numpy()
    assert np.allclose(plain.embed(x), expected, atol=1e-5)
    joined = RegimeEncoder(weights, MomentScale.fit(block_moments(x)), 0.3).embed(x)
    assert np.allclose(np.linalg.norm(joined, axis=1), 1.0, atol=1e-5)
    assert np.allclose((joined[:, :18] ** 2).sum(1), 0.3, atol=1e-5)


def test_a_convolution_reads_nothing_that_comes_later():
    rng = np.random.default_rng(0)
    x, taps = rng.standard_normal((1, 40, 3)).astype(np.float32), rng.standard_normal((5, 3, 4)).astype(np.float32)
    changed = x.copy()
    changed[0, 25:] += 1.0
    before, after = (_convolve(v, taps, 2, np.zeros(4, np.float32))[0] for v in (x, changed))
    assert np.array_equal(before[: 25 - 8], after[: 25 - 8])  # position p ends at tick p + 8
    assert not np.array_equal(before[25 - 8], after[25 - 8])


def test_a_moment_counts_for_as_much_as_it_persists():
    rng = np.random.default_rng(0)
    regime = np.repeat(rng.integers(0, 2, 60), 10)[:, None]
    moments = np.concatenate([2 * regime + 0.1 * rng.standard_normal((600, 1)), rng.standard_normal((600, 2))], 1)
    persistence = MomentScale.fit(moments.astype(np.float32)).persistence
    assert persistence[0] > 0.8
    assert (persistence[1:] < 0.15).all()
    shuffled = MomentScale.fit(rng.permutation(moments).astype(np.float32)).persistence
    assert shuffled[0] < 0.15  # the same numbers in another order of time


def test_moments_are_what_they_are_called():
    x = np.random.default_rng(0).standard_normal((2, 64, 1)).astype(np.float32)
    mean, log_deviation, follow = block_moments(x)[0]
    row = x[0, :, 0].astype(np.float64)
    apart = row - row.mean()
    assert mean == pytest.approx(row.mean(), abs=1e-6)
    assert log_deviation == pytest.approx(math.log(row.std() + STILL), abs=1e-5)
    assert follow == pytest.approx((apart[1:] * apart[:-1]).mean() / (row.std() + STILL) ** 2, abs=1e-5)


def test_the_numpy_predictor_is_the_torch_network():
    rng = np.random.default_rng(0)
    weights, z = PredictorWeights.initial(20, rng), unit_rows(9, 20)
    with torch.no_grad():
        expected = PredictorNetwork(weights)(torch.from_numpy(z[None])).numpy()[0, -1]
    assert np.allclose(TemporalPredictor(weights).infer(z), expected, atol=1e-5)
