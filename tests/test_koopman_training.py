"""Training of the Koopman encoders: it learns, repeats, watches for collapse, and its checkpoints survive anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from encoders.koopman_checkpoint import load_checkpoint, load_model, save_checkpoint
from encoders.koopman_config import KoopmanConfig, koopman_config
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.koopman_schedule import fit_autoencoder
from encoders.koopman_training import CollapseError, JEPATrainer, past_volatility_r2, ridge_r2
from markets.errors import ArtefactError, ConfigError
from markets.synthetic_regimes import regime_market, simulate

SMALL = koopman_config(
    "koopman", context_window=64, prediction_horizon=16, latent_dim=8, regimes=4, epochs=2, steps_per_epoch=8,
    batch_size=32,
)  # fmt: skip


def prices(bars: int = 1500, seed: int = 3) -> NDArray[np.float64]:
    return 100.0 * np.exp(np.cumsum(simulate(seed, bars, regime_market())[0]) / 100)


def sets(config: KoopmanConfig = SMALL, bars: int = 1500) -> tuple[CryptoPriceDataset, CryptoPriceDataset]:
    window, horizon = config.context_window, config.prediction_horizon
    train = CryptoPriceDataset(prices(bars), None, window, horizon)
    return train, CryptoPriceDataset(prices(bars, 8), None, window, horizon, channels=train.channels)


def trained(directory: Path | None = None, seed: int = 0, **changes: object) -> tuple[CryptoKoopmanJEPA, JEPATrainer]:
    model = CryptoKoopmanJEPA.from_config(koopman_config("koopman", **{**SMALL.to_json(), **changes,
                                          "channels": SMALL.channels}), seed)  # fmt: skip
    trainer = JEPATrainer(model, *sets(model.config), directory=directory, seed=seed, require_volatility=False)
    return model, trainer


def test_training_lowers_the_loss_and_reports_each_epoch(tmp_path: Path) -> None:
    """K14."""
    model, trainer = trained(tmp_path)
    seen: list[int] = []
    trainer.progress = lambda epoch, epochs, figures: seen.append(epoch)
    report = trainer.fit(num_epochs=4)
    losses = [row["jepa"] for row in report.history]
    assert losses[-1] < 0.8 * losses[0]
    assert seen == [1, 2, 3, 4]
    row = report.history[-1]
    assert row["validation_prediction"] + row["validation_stochasticity"] == pytest.approx(
        row["validation_jepa"], rel=1e-2
    )
    assert report.volatility_r2 == max(one["volatility_r2"] for one in report.history)
    assert model.centroids.fitted


def test_best_checkpoint_loads_with_two_lines(tmp_path: Path) -> None:
    """K14: the source's torch.load is replaced, the second line is its own."""
    model, trainer = trained(tmp_path)
    trainer.fit()
    fresh = CryptoKoopmanJEPA.from_config(model.config)
    checkpoint = load_checkpoint(tmp_path)
    fresh.load_state_dict(checkpoint["model_state_dict"])
    x = trainer.train_dataset.contexts(torch.arange(20))
    assert torch.equal(fresh.encode(x), model.encode(x))
    assert torch.equal(load_model(tmp_path).extract_regime_embeddings(x)[1], model.extract_regime_embeddings(x)[1])
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["manifest.json", "weights"]


def test_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, other, third = (trained(seed=seed, dropout=0.2) for seed in (1, 1, 2))
    for _, trainer in (one, other, third):
        trainer.fit(num_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True))
    assert not torch.equal(one[0].encoder.project.weight, third[0].encoder.project.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_mlp_predictor_and_the_five_losses_train() -> None:
    """K5, K12."""
    mlp, trainer = trained(predictor_type="mlp")
    start = mlp.predictor.layers[0].weight.clone()
    trainer.fit(num_epochs=1)
    assert not torch.equal(start, mlp.predictor.layers[0].weight)
    model, trainer = trained(batch_norm=True, dropout=0.1)
    heads = (model.classifier, model.volatility_head, model.direction_head)
    before = [head.weight.clone() for head in heads]
    everything = {"alpha_regime": 0.3, "alpha_direction": 0.2, "alpha_volatility": 0.5, "alpha_spectral": 0.1}
    trainer.fit(num_epochs=1, loss_weights=everything)
    assert not any(torch.equal(old, head.weight) for old, head in zip(before, heads, strict=True))


def test_training_stops_when_validation_no_longer_improves() -> None:
    _, trainer = trained(patience=1, epochs=30, learning_rate=0.05, steps_per_epoch=2)
    report = trainer.fit()
    assert len(report.history) == report.best_epoch + 2 < 30


def test_latents_that_shrink_to_a_point_fail_loudly(tmp_path: Path) -> None:
    """K14: planted collapse, weights decay to nothing."""
    _, trainer = trained(tmp_path, weight_decay=500.0, epochs=4)
    with pytest.raises(CollapseError, match="shrank to a point"):
        trainer.fit()
    assert not (tmp_path / "manifest.json").exists()


def test_latents_that_know_less_than_two_volatilities_fail_loudly(tmp_path: Path) -> None:
    """K14: planted, every latent is the same untrained number."""
    model, _ = trained(steps_per_epoch=2, epochs=1, learning_rate=1e-6)
    with torch.no_grad():
        model.encoder.project.weight.copy_(model.encoder.project.weight[:1].expand(8, -1))
    trainer = JEPATrainer(model, *sets(bars=8000), directory=tmp_path)
    with pytest.raises(CollapseError, match="less than two numbers know"):
        trainer.fit()
    assert not (tmp_path / "manifest.json").exists()


def test_ridge_of_past_volatility_explains_a_market_that_has_volatility_regimes() -> None:
    train, judged = (CryptoPriceDataset(prices(20_000, seed), None, 64, 16) for seed in (3, 8))
    assert past_volatility_r2(train, judged) > 0.4
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert ridge_r2(z, z[:, 0], z, z[:, 0]) > 0.99
    assert ridge_r2(z, z[:, 0], z, -z[:, 0]) < 0.0


def test_validation_with_scales_of_its_own_is_refused() -> None:
    train, _ = sets()
    own = CryptoPriceDataset(prices(1500, 8), None, 64, 16)
    model = CryptoKoopmanJEPA.from_config(SMALL)
    with pytest.raises(ConfigError, match="scales of its own"):
        JEPATrainer(model, train, own)
    with pytest.raises(ConfigError, match="windows: 32 bars"):
        JEPATrainer(model, CryptoPriceDataset(prices(), None, 32, 16))
    with pytest.raises(ConfigError, match="device='gpu'"):
        JEPATrainer(model, train, device="gpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bfloat16_autocast_trains(device: str) -> None:
    """K32."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = CryptoKoopmanJEPA.from_config(SMALL, 0)
    trainer = JEPATrainer(model, *sets(), device=device, amp=True, require_volatility=False)
    kinds: set[torch.dtype] = set()
    model.encoder.project.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
    report = trainer.fit(num_epochs=2)
    assert torch.bfloat16 in kinds  # the network ran in it
    assert report.history[1]["jepa"] < report.history[0]["jepa"]
    assert next(model.parameters()).device.type == device


def test_autoencoder_control_trains_on_the_same_schedule() -> None:
    """K20."""
    train, _ = sets()
    model = fit_autoencoder(SMALL, train, seed=0)
    start = CryptoKoopmanJEPA.from_config(SMALL, 0)
    assert not torch.equal(model.encoder.project.weight, start.encoder.project.weight)
    assert torch.equal(model.predictor.matrix, start.predictor.matrix)


def damaged(folder: Path, how: str) -> None:
    weights = next(folder.glob("weights-*"))
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "missing":
        weights.unlink()
    elif how == "foreign":
        manifest.write_text(json.dumps({**content, "kind": "lejepa"}))
    elif how == "no json":
        manifest.write_text("{")
    elif how == "a list":
        manifest.write_text("[]")
    elif how == "elsewhere":
        manifest.write_text(json.dumps({**content, "weights": "../" + weights.name}))
    elif how == "setting":
        manifest.write_text(json.dumps({**content, "config": {**content["config"], "pooling": "max"}}))
    else:
        import hashlib

        state = load_file(weights)
        if how == "nan":
            state["predictor.matrix"][0, 0] = float("nan")
        elif how == "shape":
            state["predictor.matrix"] = torch.eye(9)
        else:
            del state["predictor.matrix"]
        save_file(state, weights)
        manifest.write_text(json.dumps({**content, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "was altered"), ("missing", "is missing"), ("foreign", "expected"), ("no json", "manifest"),
        ("a list", "manifest"), ("elsewhere", "not a file beside"), ("setting", "pooling"), ("nan", "not finite"),
        ("shape", r"\(9, 9\), expected torch.float32 \(8, 8\)"), ("lacks", "is missing"),
    ],
)  # fmt: skip
def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path, how: str, message: str) -> None:
    save_checkpoint(tmp_path, CryptoKoopmanJEPA.from_config(SMALL, 0))
    load_model(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(ArtefactError, match=message):
        load_model(tmp_path)


def test_kill_while_saving_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import encoders.koopman_checkpoint as module

    one, other = (CryptoKoopmanJEPA.from_config(SMALL, seed) for seed in (1, 2))
    save_checkpoint(tmp_path, one)
    whole = module.replace_file

    def dies_at_the_manifest(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        whole(path, data)

    monkeypatch.setattr(module, "replace_file", dies_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, other)
    assert torch.equal(load_model(tmp_path).encoder.project.weight, one.encoder.project.weight)
    monkeypatch.setattr(module, "replace_file", whole)
    save_checkpoint(tmp_path, other)
    assert len(list(tmp_path.iterdir())) == 2


def kill_after_two(epoch: int, epochs: int, figures: object) -> None:
    if epoch == 2:
        raise KeyboardInterrupt


def killed(directory: Path) -> JEPATrainer:
    """A training of three epochs with dropout, stopped after the second, ready to go on."""
    trainer = trained(directory, dropout=0.2, epochs=3)[1]
    trainer.progress = kill_after_two
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    return trained(directory, dropout=0.2, epochs=3)[1]


def goes_on_to_the_same_bits(directory: Path) -> bool:
    """Whether a training that was killed ends as one that was not."""
    whole = trained(dropout=0.2, epochs=3)[1]
    report, later = whole.fit(), killed(directory)
    resumed = later.fit(resume=True)
    pairs = zip(whole.model.parameters(), later.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and resumed.history == report.history


def test_training_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """K14."""
    assert goes_on_to_the_same_bits(tmp_path)
    assert not (tmp_path / "training.safetensors").exists()


def test_mutant_that_forgets_the_optimiser_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K14."""
    import encoders.koopman_resume as module

    part = module._part
    monkeypatch.setattr(module, "_part", lambda given, name: {} if name == "optimiser." else part(given, name))
    assert not goes_on_to_the_same_bits(tmp_path)


def test_state_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    killed(tmp_path)
    with pytest.raises(ConfigError, match="began with epochs=3, now 4"):
        trained(tmp_path, dropout=0.2, epochs=4)[1].fit(resume=True)
    state = tmp_path / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ArtefactError, match=r"training\.safetensors"):
        trained(tmp_path, dropout=0.2, epochs=3)[1].fit(resume=True)
    with pytest.raises(ConfigError, match="needs the directory"):
        trained()[1].fit(resume=True)


def adjusted_rand(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> float:
    counts = np.zeros((labels.max() + 1, clusters.max() + 1))
    np.add.at(counts, (labels, clusters), 1)
    together, rows, columns = (float((x * (x - 1) / 2).sum()) for x in (counts, counts.sum(1), counts.sum(0)))
    chance = rows * columns / (len(labels) * (len(labels) - 1) / 2)
    return (together - chance) / ((rows + columns) / 2 - chance)


@pytest.mark.slow
def test_short_koopman_training_finds_regimes_that_its_untrained_self_does_not() -> None:
    """K16, K17, K19, K20 in small: M's figures are below their limits, which proves nothing alone; the clusters do."""
    config = koopman_config("koopman", epochs=5, steps_per_epoch=40, batch_size=128)
    market = regime_market()
    series = [100.0 * np.exp(np.cumsum(simulate(seed, 16_384, market)[0]) / 100) for seed in (1, 2)]
    train = CryptoPriceDataset(series, None, 256, 64)
    returns, labels = simulate(101, 32_768, market)
    closes, rows = 100.0 * np.exp(np.cumsum(returns) / 100), np.arange(255, 32_768, 24)

    def score(model: CryptoKoopmanJEPA) -> float:
        return adjusted_rand(labels[rows], model.encode_rows(closes, rows)[1].argmax(1))

    untrained, model = (CryptoKoopmanJEPA.from_config(config, 0) for _ in range(2))
    JEPATrainer(untrained, train).fit(num_epochs=1, loss_weights={"alpha_jepa": 0.0})  # fits centres, moves nothing
    JEPATrainer(model, train).fit()
    figures = model.analyze_predictor_properties(train)
    print(score(untrained), score(model), {name: figures[name] for name in ("identity_deviation", "symmetry_measure")})
    assert score(model) > score(untrained) + 0.05
    assert max(figures["identity_deviation"], figures["symmetry_measure"]) < 0.05
    assert figures["centroid_action"] < 0.03
    assert figures["untrained"]["identity_deviation"] == 0.0
