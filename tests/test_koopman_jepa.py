"""The Koopman network: shapes, layers, the slow target, the predictors, and encoding of price histories."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from encoders.centroids import CentroidHead, kmeans
from encoders.diagnostics import eigenvalues_near_one, figures, symmetry_measure
from encoders.koopman_config import CONFIGS, KoopmanConfig, koopman_config
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA, encode_multiple_tokens
from encoders.layers import Autoencoder, StridedTrunk
from markets.errors import ConfigError, DataError, UnknownNameError
from markets.synthetic_regimes import regime_market, simulate

SMALL = koopman_config(
    "koopman", context_window=64, prediction_horizon=16, latent_dim=8, regimes=4, epochs=2, steps_per_epoch=8,
    batch_size=32,
)  # fmt: skip


def prices(bars: int = 600, seed: int = 3) -> NDArray[np.float64]:
    return 100.0 * np.exp(np.cumsum(simulate(seed, bars, regime_market())[0]) / 100)


def ready(config: KoopmanConfig = SMALL, seed: int = 0) -> CryptoKoopmanJEPA:
    """An untrained model that can encode prices."""
    model = CryptoKoopmanJEPA.from_config(config, seed)
    model.channels = CryptoPriceDataset(prices(), None, 64, 16).channels
    return model.eval()


def test_constructor_of_the_source_gives_its_shapes() -> None:
    """K1."""
    model = CryptoKoopmanJEPA(input_channels=3, latent_dim=32, predictor_type="linear", init_identity=True)
    assert model(torch.zeros(8, 3, 768)).shape == (8, 32)
    assert CryptoKoopmanJEPA(input_channels=1)(torch.zeros(2, 1, 768)).shape == (2, 32)
    with pytest.raises(ConfigError, match=r"\(B, 3, 768\)"):
        model(torch.zeros(8, 3, 700))
    with pytest.raises(ConfigError, match="input_channels=4"):
        CryptoKoopmanJEPA(input_channels=4)
    with pytest.raises(UnknownNameError, match="linear"):
        CryptoKoopmanJEPA(predictor_type="liner")


def test_trunk_has_the_layers_of_the_source_and_of_the_paper() -> None:
    """K2."""
    source, paper = (CryptoKoopmanJEPA.from_config(CONFIGS[name]).encoder for name in ("source", "paper"))
    for trunk in (source, paper):
        convolutions = [layer for layer in trunk.convolutions if isinstance(layer, nn.Conv1d)]
        assert [layer.out_channels for layer in convolutions] == [16, 32, 64, 128]
        assert [layer.kernel_size[0] for layer in convolutions] == [7, 5, 3, 3]
        assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 2]
        assert (trunk.project.in_features, trunk.project.out_features) == (6144, 32)
    kinds = [type(layer) for layer in source.convolutions]
    assert kinds == [nn.Conv1d, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 4
    assert [type(layer) for layer in paper.convolutions] == [nn.Conv1d, nn.ReLU] * 4


def test_mix_pooling_reads_windows_of_any_length_and_averages_their_ends() -> None:
    trunk = StridedTrunk(1, 4, 64, "mix")
    assert trunk(torch.zeros(2, 1, 100)).shape == (2, 4)
    seen: list[torch.Tensor] = []
    trunk.project.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0))
    trunk(x)
    features = trunk.convolutions(x)
    for part, bars in zip(seen[0].split(128, 1), (16, 8, 4, 2), strict=True):
        assert torch.allclose(part, features[:, :, -bars:].mean(2), atol=1e-6)


def test_bars_after_the_window_leave_the_latent_bit_identical() -> None:
    """K3."""
    model, closes = ready(), prices()
    changed = closes.copy()
    changed[400:] *= np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.05, 200)))
    one, other = (model.encode_rows(series)[0] for series in (closes, changed))
    assert np.array_equal(one[: 400 - 63], other[: 400 - 63])
    assert not np.allclose(one[400:], other[400:])


def test_encoding_runs_in_evaluation_mode_whatever_the_training_mode() -> None:
    """K3: BatchNorm and dropout would make a latent depend on its batch."""
    model = ready(koopman_config("source", context_window=64, prediction_horizon=16)).train()
    x = torch.randn(6, 3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.encode(x)[:2], model.encode(x[:2]), atol=1e-6)
    assert model.training


def test_linear_predictor_starts_at_the_identity_unless_told_otherwise() -> None:
    """K4."""
    properties = CryptoKoopmanJEPA().analyze_predictor_properties()
    assert properties["identity_deviation"] == properties["symmetry_measure"] == 0.0
    assert properties["eigenvalues_near_one"] == 32
    drawn = CryptoKoopmanJEPA(init_identity=False, seed=0).analyze_predictor_properties()
    assert drawn["identity_deviation"] > 0.5


def test_mlp_predictor_is_two_hidden_layers_of_2k_and_refuses_eigen_analysis() -> None:
    """K5."""
    model = CryptoKoopmanJEPA(predictor_type="mlp")
    sizes = [layer.out_features for layer in model.predictor.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [64, 64, 32]
    for analyse in (model.predictor.get_eigenvalues, model.analyze_predictor_properties):
        with pytest.raises(ConfigError, match="predictor_type='linear'"):
            analyse()


def moves_as_it_must(update: Callable[[CryptoKoopmanJEPA], None]) -> bool:
    """Whether an update of the target is .996 of the old and .004 of the new, buffers copied, no gradient."""
    model = CryptoKoopmanJEPA(seed=0)
    old = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.add_(1.0)
        for value in model.encoder.buffers():
            value.add_(2)
    update(model)
    new, slow = model.encoder.state_dict(), model.target_encoder.state_dict()
    learnt = dict(model.encoder.named_parameters())
    right = all(
        torch.allclose(slow[name], 0.996 * old[name] + 0.004 * new[name], atol=1e-6)
        if name in learnt
        else torch.equal(slow[name], new[name])
        for name in old
    )
    return right and not any(value.requires_grad for value in model.target_encoder.parameters())


def forgets_buffers(model: CryptoKoopmanJEPA) -> None:
    with torch.no_grad():
        for slow, fast in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
            slow.lerp_(fast, 0.004)


def test_target_follows_slowly_with_its_buffers_and_without_gradient() -> None:
    """K6."""
    assert moves_as_it_must(CryptoKoopmanJEPA.update_target)
    model = CryptoKoopmanJEPA.from_config(SMALL, 0)
    data = CryptoPriceDataset(prices(), None, 64, 16)
    model.compute_koopman_crypto_loss(data.batch(torch.arange(8)))["total"].backward()
    assert all(value.grad is None for value in model.target_encoder.parameters())
    assert model.encoder.project.weight.grad is not None


@pytest.mark.parametrize("mutant", [forgets_buffers, lambda model: None])
def test_mutant_target_is_caught(mutant: Callable[[CryptoKoopmanJEPA], None]) -> None:
    """K6."""
    assert not moves_as_it_must(mutant)


def test_regime_odds_add_up_to_one_and_a_batch_equals_single_windows() -> None:
    """K22."""
    model, data = ready(), CryptoPriceDataset(prices(), None, 64, 16)
    x = data.contexts(torch.arange(0, 500, 5))
    for fitted in (False, True):
        if fitted:
            model.centroids.fit(model.encode(x), data.past_volatility(torch.arange(0, 500, 5), 32))
        z, odds = model.extract_regime_embeddings(x)
        assert torch.allclose(odds.sum(1), torch.ones(100), atol=1e-6)
        for row in (0, 57):
            single = model.extract_regime_embeddings(x[row : row + 1])
            assert torch.allclose(single[0][0], z[row], atol=1e-6)
            assert torch.allclose(single[1][0], odds[row], atol=1e-4)


def test_regimes_are_ordered_by_volatility() -> None:
    head, points = CentroidHead(2, 3), torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    points[:100, 0] += 5.0
    points[100:200, 1] += 5.0
    level = torch.tensor([3.0, 1.0, 2.0]).repeat_interleave(100)
    with pytest.raises(ConfigError, match="train the encoder"):
        head(points)
    head.fit(points, level)
    assert head(points).argmax(1).tolist() == [2] * 100 + [0] * 100 + [1] * 100
    with pytest.raises(DataError, match="2 points"):
        kmeans(points[:2], 3)


def test_price_history_gives_the_last_row_of_the_table() -> None:
    """K23."""
    model, closes = ready(), prices()
    z, odds = model.encode_price_history(closes, np.arange(len(closes)))
    table, every = model.encode_rows(closes)
    assert np.allclose(z, table[-1], atol=1e-6)
    assert np.allclose(odds, every[-1], atol=1e-4)
    prefix = model.encode_price_history(closes[:300])[0]
    assert np.allclose(prefix, table[299 - 63], atol=1e-6)
    with pytest.raises(ConfigError, match="rows must be from 63"):
        model.encode_rows(closes, [10])
    with pytest.raises(ConfigError, match="no scales"):
        CryptoKoopmanJEPA.from_config(SMALL).encode_price_history(closes)


def test_tokens_encoded_together_equal_tokens_encoded_one_by_one() -> None:
    """K31."""
    model = ready()
    tokens = {f"T{seed}": (prices(64 + 20 * seed, seed + 1), None) for seed in range(12)}
    begun = time.perf_counter()
    together = encode_multiple_tokens(model, tokens)
    middle = time.perf_counter()
    alone = {name: model.encode_price_history(*given) for name, given in tokens.items()}
    print(f"loop / batch: {(time.perf_counter() - middle) / (middle - begun):.1f}")
    assert list(together) == list(tokens)
    for name, (z, odds) in together.items():
        assert np.allclose(z, alone[name][0], atol=1e-6)
        assert np.allclose(odds, alone[name][1], atol=1e-4)
    assert encode_multiple_tokens(model, {}) == {}


def test_properties_stand_beside_the_identity_and_the_untrained_net() -> None:
    """K15."""
    model = ready()
    with torch.no_grad():
        model.predictor.matrix.mul_(0.5)
    found = model.analyze_predictor_properties(CryptoPriceDataset(prices(), None, 64, 16))
    keys = {"identity_deviation", "symmetry_measure", "eigenvalues_near_one", "centroid_action", "edmd_spectrum",
            "edmd_r2", "effective_rank", "latent_std"}  # fmt: skip
    assert set(found) == keys | {"at_identity", "untrained"}
    assert set(found["at_identity"]) == set(found["untrained"]) == keys
    assert found["identity_deviation"] == pytest.approx(1.0)
    assert found["centroid_action"] == pytest.approx(0.5)
    assert found["eigenvalues_near_one"] == 0
    assert found["untrained"]["identity_deviation"] == found["at_identity"]["centroid_action"] == 0.0
    assert found["edmd_spectrum"] == found["at_identity"]["edmd_spectrum"]
    assert len(CryptoKoopmanJEPA().predictor.get_eigenvalues()) == 32


def test_eigenvalues_are_counted_by_complex_distance() -> None:
    """K15: a rotation has moduli of 1 and no eigenvalue near 1."""
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert eigenvalues_near_one(rotation) == 0
    assert eigenvalues_near_one(torch.eye(2)) == 2
    assert symmetry_measure(rotation) == pytest.approx(2.0)


def test_spectrum_of_frozen_latents_finds_the_law_that_made_them() -> None:
    """K15."""
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    later = z * torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    found = figures(torch.eye(3, dtype=torch.float64), (z, later * 7.0))  # in deviations of now
    assert found["edmd_spectrum"] == pytest.approx([6.3, 3.5, 0.7], rel=0.02)
    assert found["edmd_r2"] == pytest.approx(1.0, abs=1e-4)
    assert found["effective_rank"] == pytest.approx(3.0, abs=0.01)


def test_every_knob_is_a_setting_and_too_few_latents_warn() -> None:
    """K33."""
    with pytest.warns(UserWarning, match="latent_dim=4 is below regimes=6"):
        koopman_config("koopman", latent_dim=4)
    for setting in ("init_identity", "alpha_spectral", "ema_decay", "context_window", "latent_dim"):
        assert setting in KoopmanConfig.__dataclass_fields__
    with pytest.raises(UnknownNameError, match="ema_decay"):
        koopman_config("koopman", ema_decai=0.9)
    with pytest.raises(UnknownNameError, match="koopman"):
        koopman_config("kopman")
    for name, value in (("ema_decay", 1.0), ("batch_size", 0), ("dropout", 1.0), ("temperature", 0.0)):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            CryptoKoopmanJEPA.from_config(koopman_config("koopman", **{name: value}))
    for config in CONFIGS.values():
        assert KoopmanConfig.from_json(config.to_json()) == config


def test_starting_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other, third = (CryptoKoopmanJEPA.from_config(SMALL, seed).encoder.project.weight for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(before, torch.get_rng_state())


def test_autoencoder_control_has_the_same_trunk_and_gives_windows_back() -> None:
    """K20."""
    model = CryptoKoopmanJEPA.from_config(SMALL, 0)
    control = Autoencoder(model.encoder, 8)
    assert control(torch.zeros(2, 3, 64)).shape == (2, 3, 64)
    with pytest.raises(ConfigError, match="multiple of 16"):
        Autoencoder(StridedTrunk(3, 8, 100), 8)
