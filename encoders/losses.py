"""Losses of the Koopman encoders: each a function with its formula, its source, and what is degenerate about it.

Letters: B batch, k latent dimensions, R regimes, M the linear predictor. "source": the document whose five terms these
are (Koopman-JEPA for crypto trading), itself after Ruiz-Morales et al. 2026, arXiv 2511.09783. Three of its four
additional terms say nothing where the predictor starts at M = I; those forms stay selectable (``form="source"``) and
the sound one is the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from markets.errors import ConfigError, unknown

FORMS = ("sound", "source")
TERMS = ("jepa", "regime", "direction", "volatility", "spectral")
SOURCE_WEIGHTS = {
    "alpha_jepa": 1.0, "alpha_regime": 0.3, "alpha_direction": 0.2, "alpha_volatility": 0.5, "alpha_spectral": 0.1,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class KoopmanOutputs:
    """What a model says of a batch.

    Attributes:
        z_context, z_prediction, z_target: ``(B, k)``; the target without gradient.
        regime_context, regime_prediction: logits ``(B, R)``.
        volatility_context, volatility_prediction: log volatility ``(B,)``. direction: logit ``(B,)`` of a rise.
        matrix: M ``(k, k)``, or None for a predictor that has none.
    """

    z_context: Tensor
    z_prediction: Tensor
    z_target: Tensor
    regime_context: Tensor
    regime_prediction: Tensor
    volatility_context: Tensor
    volatility_prediction: Tensor
    direction: Tensor
    matrix: Tensor | None


def jepa_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """``mean_B || g(f(x_t)) - f'(x_{t+D}) ||^2``: squared norm, summed over k (paper, section 3).

    Degenerate: a constant f is a global minimum; only the slow target keeps training away from it, so the latents'
    deviation has to be watched.
    """
    return (prediction - target).square().sum(1).mean()


def jepa_split(prediction: Tensor, target: Tensor, conditional_mean: Tensor) -> tuple[Tensor, Tensor]:
    """Split the loss (paper, Theorem 3.4): ``E||g(z) - K psi||^2 + E||K psi - psi(x_{t+D})||^2``.

    Args:
        conditional_mean: ``K psi = E[psi(x_{t+D}) | x_t]`` for each row: known where the system is, else estimated by
            :func:`linear_conditional_mean`.

    Returns:
        Prediction error, which learning can lower, and inherent stochasticity, which it cannot without forgetting. They
        add up to the loss in expectation, and exactly for the estimated mean of the same rows and a linear predictor.
    """
    return jepa_loss(prediction, conditional_mean), jepa_loss(conditional_mean, target)


def linear_conditional_mean(context: Tensor, target: Tensor) -> Tensor:
    """Least-squares estimate of ``E[target | context]`` among affine maps: ``(B, k)``; wants B well above k."""
    if context.shape[0] <= context.shape[1] + 1:
        raise ConfigError(f"{context.shape[0]} rows cannot give the mean of a target on {context.shape[1]} latents")
    center, scale = context.double().mean(0), context.double().std(0) + 1e-12
    known = torch.cat([(context.double() - center) / scale, torch.ones_like(context[:, :1], dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(known.cpu(), target.double().cpu(), driver="gelsd").solution.to(known.device)
    return (known @ solution).to(target.dtype)


def regime_consistency(
    prediction: Tensor, context: Tensor, temperature: float = 0.1, form: str = "sound", spread: float = 1.0
) -> Tensor:
    """``KL(p_prediction || p_context)``, ``p = softmax(logits / temperature)``, mean over B (source, loss 1).

    Degenerate as in the source: a constant classifier minimises it, and at M = I both sides are equal, so it is exactly
    0 from the first step on. ``sound`` adds ``- spread I``, ``I = H(mean_B p_context) - mean_B H(p_context)``: mutual
    information of row and regime, which a constant classifier does not have.
    """
    _check(form)
    log_p, log_q = F.log_softmax(prediction / temperature, 1), F.log_softmax(context / temperature, 1)
    loss = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    if form == "source":
        return loss
    q = log_q.exp()
    mean = q.mean(0)
    information = (q * log_q).sum(1).mean() - (mean * mean.clamp_min(1e-12).log()).sum()
    return loss - spread * information


def source_direction(context: Tensor, prediction: Tensor, past_return: Tensor, future_return: Tensor) -> Tensor:
    """``- mean(cos(z_context, z_prediction) sign(r_context) sign(r_target))`` (source, loss 2).

    Degenerate: at M = I the cosine is 1 whatever z is, so the term is a constant whose only gradient moves M, towards I
    where the signs agree and towards -I where they do not; z learns nothing of direction.
    """
    agreement = torch.sign(past_return) * torch.sign(future_return)
    return -(F.cosine_similarity(context, prediction, dim=1) * agreement).mean()


def direction(logit: Tensor, future_return: Tensor) -> Tensor:
    """Logistic loss of the sign of the next return; rows that do not move count for nothing.

    The sound form of the source's direction loss. On real bars nothing we measured foretells that sign.
    """
    moves = (future_return != 0.0).to(logit.dtype)
    every = F.binary_cross_entropy_with_logits(logit, (future_return > 0.0).to(logit.dtype), reduction="none")
    return (every * moves).sum() / moves.sum().clamp_min(1.0)


def volatility(prediction: Tensor, context: Tensor, future: Tensor, alpha: float = 0.1) -> Tensor:
    """``MSE(head(z_pred), log vol_future) + alpha MSE(head(z_context), head(z_pred))`` (source, loss 3).

    The useful one: label-free and not degenerate. Its second half only shrinks. The logarithm is ours: volatility is
    skewed over an order of magnitude. ``future`` may come standardised.
    """
    return F.mse_loss(prediction, future) + alpha * F.mse_loss(context, prediction)


def spectral(matrix: Tensor, form: str = "sound") -> Tensor:
    """``||M - I||_F^2 / k``, or the source's ``mean((|lambda_i(M)| - 1)^2)`` (source, loss 4).

    Degenerate as in the source: 0 for every rotation and reflection, and its gradient is ill-defined where eigenvalues
    repeat, as all k do at M = I. Pulling M to I costs clusters: a market that switches has eigenvalues below 1.
    """
    _check(form)
    if form == "source":
        return (torch.linalg.eigvals(matrix.float()).abs() - 1.0).square().mean()
    return (matrix - torch.eye(len(matrix), device=matrix.device)).square().sum() / len(matrix)


def resolve_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the five weights, the source's where none is given.

    Raises:
        UnknownNameError: a name that is none of them. ConfigError: a weight that is negative or not finite.
    """
    given = dict(weights or {})
    for name, value in given.items():
        if name not in SOURCE_WEIGHTS:
            raise unknown("loss weight", name, SOURCE_WEIGHTS)
        if not 0.0 <= float(value) < float("inf"):
            raise ConfigError(f"{name}={value!r} must be a finite number of at least 0")
    return {**SOURCE_WEIGHTS, **{name: float(value) for name, value in given.items()}}


def compute_koopman_crypto_loss(
    outputs: KoopmanOutputs,
    batch: Mapping[str, Tensor],
    weights: Mapping[str, float] | None = None,
    form: str = "sound",
    temperature: float = 0.1,
) -> dict[str, Tensor]:
    """Return each of the five terms and their weighted sum ``total``.

    Args:
        batch: of :class:`encoders.koopman_data.CryptoPriceDataset`.
        weights: ``alpha_jepa`` (1.0), ``alpha_regime`` (.3), ``alpha_direction`` (.2), ``alpha_volatility`` (.5),
            ``alpha_spectral`` (.1). A term of weight 0 is reported without a gradient.
        form: ``sound`` or ``source``, for the three terms that have both.

    Raises:
        ConfigError: a weighted spectral term with a predictor that has no matrix.
    """
    _check(form)
    alpha = resolve_weights(weights)
    if outputs.matrix is None and alpha["alpha_spectral"] > 0.0:
        raise ConfigError("alpha_spectral > 0 needs a predictor with a matrix: predictor_type='linear', or weight 0")
    terms: dict[str, Tensor] = {}
    for name in TERMS:
        with torch.set_grad_enabled(alpha["alpha_" + name] > 0.0 and torch.is_grad_enabled()):
            terms[name] = _term(name, outputs, batch, form, temperature)
    used = [alpha["alpha_" + name] * terms[name] for name in TERMS if alpha["alpha_" + name] > 0.0]
    terms["total"] = torch.stack(used).sum() if used else torch.zeros_like(terms["jepa"])
    return terms


def _term(name: str, outputs: KoopmanOutputs, batch: Mapping[str, Tensor], form: str, temperature: float) -> Tensor:
    if name == "jepa":
        return jepa_loss(outputs.z_prediction, outputs.z_target)
    if name == "regime":
        return regime_consistency(outputs.regime_prediction, outputs.regime_context, temperature, form)
    if name == "direction":
        if form == "sound":
            return direction(outputs.direction, batch["future_return"])
        return source_direction(outputs.z_context, outputs.z_prediction, batch["past_return"], batch["future_return"])
    if name == "volatility":
        return volatility(outputs.volatility_prediction, outputs.volatility_context, batch["log_volatility"])
    if outputs.matrix is None:
        return torch.zeros((), device=outputs.z_context.device)
    return spectral(outputs.matrix, form)


def _check(form: str) -> None:
    if form not in FORMS:
        raise unknown("form of the losses", form, FORMS)
