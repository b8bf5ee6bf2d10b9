"""Losses of the Koopman encoders: hand-computed values, gradients, and what the source's forms cannot see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from encoders.losses import (
    SOURCE_WEIGHTS,
    TERMS,
    KoopmanOutputs,
    compute_koopman_crypto_loss,
    direction,
    jepa_loss,
    jepa_split,
    linear_conditional_mean,
    regime_consistency,
    source_direction,
    spectral,
    volatility,
)
from markets.errors import ConfigError, UnknownNameError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_jepa_loss_is_a_squared_norm_summed_over_latents() -> None:
    """K7."""
    assert jepa_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == pytest.approx(2.5)


def test_prediction_and_stochasticity_of_a_known_system_add_up_to_the_loss() -> None:
    """K7."""
    z, noise = draw(400_000, 2).double(), draw(400_000, 2, seed=1).double()
    law = torch.tensor([[0.9, 0.1], [0.0, 0.7]], dtype=torch.float64)
    mean = z @ law.T
    target = mean + 0.5 * noise
    error, stochasticity = jepa_split(z, target, mean)  # the predictor is M = I
    assert error + stochasticity == pytest.approx(jepa_loss(z, target).item(), rel=1e-3)
    assert stochasticity == pytest.approx(0.5, rel=0.01)
    assert error == pytest.approx(((torch.eye(2) - law) ** 2).sum().item(), rel=0.01)


def test_split_by_the_estimated_mean_is_exact_for_a_linear_predictor() -> None:
    """K7."""
    z = draw(500, 4) * 0.004 + 1.0  # latents are small and not centred
    target = z + 0.002 * draw(500, 4, seed=1)
    error, noise = jepa_split(0.9 * z, target, linear_conditional_mean(z, target))
    assert float(error + noise) == pytest.approx(jepa_loss(0.9 * z, target).item(), rel=1e-3)
    with pytest.raises(ConfigError, match="4 rows"):
        linear_conditional_mean(z[:4], target[:4])


def test_regime_divergence_of_two_classes_is_the_hand_value() -> None:
    """K8."""
    predicted, context = torch.tensor([[0.0, 0.1 * math.log(3.0)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert regime_consistency(predicted, context, 0.1, "source").item() == pytest.approx(expected, rel=1e-5)
    same = draw(7, 4)
    assert regime_consistency(same, same, 0.1, "source").item() == pytest.approx(0.0, abs=1e-6)


def test_only_the_sound_regime_loss_prefers_regimes_to_a_constant_classifier() -> None:
    """K8."""
    constant, sure = torch.zeros(8, 2), torch.eye(2).repeat(4, 1)
    source = [regime_consistency(x, x, 0.1, "source").item() for x in (constant, sure)]
    sound = [regime_consistency(x, x, 0.1).item() for x in (constant, sure)]
    assert source == pytest.approx([0.0, 0.0], abs=1e-6)
    assert sound[0] == pytest.approx(0.0, abs=1e-6)
    assert sound[1] == pytest.approx(-math.log(2.0), rel=1e-2)


def test_direction_loss_of_the_source_flips_with_one_return_and_is_constant_at_the_identity() -> None:
    """K9."""
    z, ahead = draw(1, 3), draw(1, 3, seed=1)
    up, down = torch.tensor([1.5]), torch.tensor([-0.2])
    assert source_direction(z, ahead, up, up).item() == pytest.approx(-source_direction(z, ahead, up, down).item())
    signs = draw(64, seed=2)
    losses = [source_direction(x, x, signs, signs.roll(1)).item() for x in (draw(64, 3), draw(64, 3, seed=5))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # degenerate: z says nothing


def test_sound_direction_loss_is_the_logistic_loss_of_rows_that_move() -> None:
    """K9."""
    logit, future = torch.tensor([2.0, -1.0, 5.0]), torch.tensor([0.1, 0.3, 0.0])
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(1.0))) / 2
    assert direction(logit, future).item() == pytest.approx(expected, rel=1e-5)
    assert direction(logit, torch.zeros(3)).item() == 0.0


def test_volatility_loss_is_the_hand_value() -> None:
    """K10."""
    ahead, now, future = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert volatility(ahead, now, future, 0.5).item() == pytest.approx(2.0 + 0.5 * 0.5)


def test_source_spectral_loss_passes_rotations_that_the_sound_one_sees() -> None:
    """K11."""
    angle = torch.tensor(1.0)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    assert spectral(torch.eye(4), "source").item() == 0.0
    assert spectral(rotation, "source").item() == pytest.approx(0.0, abs=1e-6)
    assert spectral(torch.eye(4)).item() == 0.0
    assert spectral(rotation).item() == pytest.approx(2.0 * (1.0 - math.cos(1.0)), rel=1e-5)


def test_source_spectral_loss_has_a_finite_gradient_where_eigenvalues_are_complex() -> None:
    """K11."""
    matrix = (torch.eye(6) + 0.5 * draw(6, 6)).requires_grad_()
    assert bool((torch.linalg.eigvals(matrix.detach()).imag != 0.0).any())
    spectral(matrix, "source").backward()
    assert matrix.grad is not None
    assert bool(torch.isfinite(matrix.grad).all())


def outputs(matrix: Tensor | None = None) -> tuple[KoopmanOutputs, dict[str, Tensor]]:
    """Outputs whose every part is a leaf of its own, and a batch."""
    made = KoopmanOutputs(
        **{name: draw(6, 4, seed=i).requires_grad_() for i, name in enumerate(("z_context", "z_prediction"))},
        z_target=draw(6, 4, seed=7),
        **{name: draw(6, 3, seed=i).requires_grad_() for i, name in enumerate(("regime_context", "regime_prediction"))},
        **{
            name: draw(6, seed=i).requires_grad_()
            for i, name in enumerate(("volatility_context", "volatility_prediction", "direction"))
        },
        matrix=matrix,
    )
    return made, {name: draw(6, seed=9) for name in ("past_return", "future_return", "log_volatility")}


def test_combined_loss_is_the_weighted_sum_of_its_five_terms() -> None:
    """K12."""
    assert tuple(SOURCE_WEIGHTS.values()) == (1.0, 0.3, 0.2, 0.5, 0.1)
    for form in ("sound", "source"):
        made, batch = outputs(torch.eye(4) + 0.1 * draw(4, 4))
        terms = compute_koopman_crypto_loss(made, batch, form=form)
        assert set(terms) == {*TERMS, "total"}
        expected = sum(SOURCE_WEIGHTS["alpha_" + name] * terms[name].item() for name in TERMS)
        assert terms["total"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("term", "leaf"),
    [("jepa", "z_prediction"), ("regime", "regime_prediction"), ("direction", "direction"),
     ("volatility", "volatility_prediction"), ("spectral", "matrix")],
)  # fmt: skip
def test_weight_of_zero_removes_a_terms_gradient(term: str, leaf: str) -> None:
    """K12."""
    for weight, has_gradient in ((0.0, False), (0.5, True)):
        made, batch = outputs((torch.eye(4) + 0.1 * draw(4, 4)).requires_grad_())
        other = "alpha_regime" if term == "jepa" else "alpha_jepa"
        off = {name: 0.0 for name in SOURCE_WEIGHTS} | {other: 1.0, "alpha_" + term: weight}
        compute_koopman_crypto_loss(made, batch, off)["total"].backward()
        gradient = getattr(made, leaf).grad
        assert (gradient is not None and bool((gradient != 0.0).any())) == has_gradient


def test_unknown_weights_and_forms_name_the_nearest() -> None:
    made, batch = outputs()
    with pytest.raises(UnknownNameError, match="alpha_regime"):
        compute_koopman_crypto_loss(made, batch, {"alpha_regimes": 1.0})
    with pytest.raises(ConfigError, match="alpha_jepa=-1"):
        compute_koopman_crypto_loss(made, batch, {"alpha_jepa": -1.0})
    with pytest.raises(UnknownNameError, match="sound"):
        compute_koopman_crypto_loss(made, batch, {"alpha_spectral": 0.0}, form="sond")
    with pytest.raises(ConfigError, match="linear"):
        compute_koopman_crypto_loss(made, batch)
