"""Weights of an ensemble: where they begin, what recent returns and resemblance make of them, and the combined vote.

Pure functions. Letters: M members, A assets, B lanes, n returns.

*Base weights* by role: rl .30, tft .25, lstm_cnn .20, mean_reversion .10, garch .10, boosting .05; sentiment 0, as its
baseline reads nothing unless headlines are given. Members of one role share its weight; absent roles are left out and
the rest is scaled to sum to 1.

*Recent skill.* Paper returns of the last 30 days, per bar, after a cost on what the vote changes; the Sharpe ratio
``S = mean / sd * sqrt(bars a year)`` (risk-free rate zero, sd with n - 1). Its standard error over n bars is
``sqrt(bars a year / n)``, 3.5 over 30 days, so S is shrunk to ``S tau^2 / (tau^2 + error^2)``, the posterior mean of a
normal prior of deviation tau = 1 around 0; the weight is multiplied by ``exp(shrunk S)`` within [1/3, 3]. Without
variance S is 0: neither an infinite score nor a reward for doing nothing.

*Resemblance.* A cluster of alike members carries the weight of its heaviest one: with likeness R (1 on the diagonal),
``w_i -> w_i max_j(R_ij w_j) / sum_j(R_ij w_j)``, then scaled to sum to 1. R is 1 where two members have voted and never
disagreed, else the square of the positive part of ``c n / (n + 100)``, c the cosine of their paper returns.

*The vote.* Per asset: ``direction = sum(w c d) / sum(w c)`` and ``confidence = |sum(w c d)| / sum(w)``, c each member's
confidence: whoever abstains (c = 0) has no say in the direction, and makes the ensemble less sure.

Sources: Lo, Financial Analysts Journal 58 (2002) for the error of a Sharpe ratio; James-Stein shrinkage as posterior
mean of a normal prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError

Floats = NDArray[np.float64]

ROLES = {
    "rl": 0.30, "tft": 0.25, "lstm_cnn": 0.20, "mean_reversion": 0.10, "garch": 0.10, "boosting": 0.05,
    "sentiment": 0.0,
}  # fmt: skip
OTHER = 0.05  # of a role that is not in the table
DAYS = 30.0
TAU = 1.0  # deviation of annual Sharpe ratios around 0 that is believed beforehand
WIDEST = 3.0  # factor by which recent skill may change a weight, up or down
LIKENESS_DOUBT = 100.0  # returns after which a cosine counts half
SMALLEST = 1e-12  # deviation of returns that counts as none


def base_weights(roles: Sequence[str], given: Mapping[str, float] | None = None) -> Floats:
    """Return the weights that members of these roles begin with, ``(M,)``, summing to 1.

    Args:
        given: weights of roles in place of the table's.

    Raises:
        ConfigError: no member, a weight that is negative or no number, a role in ``given`` that no member has, or no
            weight left.
    """
    table = {**ROLES, **(given or {})}
    for role, weight in (given or {}).items():
        if role not in roles:
            raise ConfigError(f"weight of role {role!r}: no member has it; roles: {', '.join(dict.fromkeys(roles))}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 <= weight < np.inf:
            raise ConfigError(f"weight of role {role!r} is {weight!r}, it must be a number from 0")
    weights = np.array([table.get(role, OTHER) / list(roles).count(role) for role in roles], float)
    if not weights.sum() > 0.0:
        raise ConfigError(f"an ensemble of {', '.join(roles) or 'no members'} has no weight: add one, or give weights")
    return np.asarray(weights / weights.sum())


def shrunk_sharpe(returns: Floats, periods_per_year: float) -> Floats:
    """Return the shrunk annual Sharpe ratio of ``(n, M)`` returns: ``(M,)``; 0 without variance or with n < 2."""
    count = len(returns)
    if count < 2:
        return np.zeros(returns.shape[1])
    spread = returns.std(axis=0, ddof=1)
    ratio = np.divide(returns.mean(axis=0), spread, out=np.zeros_like(spread), where=spread > SMALLEST)
    error = periods_per_year / count
    return np.asarray(ratio * np.sqrt(periods_per_year) * TAU**2 / (TAU**2 + error))


def skilled(base: Floats, returns: Floats, periods_per_year: float) -> Floats:
    """Return the base weights times what recent skill makes of them, ``(M,)``, summing to 1."""
    bound = np.log(WIDEST)
    factor = np.exp(np.clip(shrunk_sharpe(returns, periods_per_year), -bound, bound))
    weights = base * factor
    return np.asarray(weights / weights.sum())


def likeness(returns: Floats) -> Floats:
    """Return how alike ``(n, M)`` paper returns are, ``(M, M)`` from 0 to 1, 1 on the diagonal."""
    count, members = returns.shape
    products = returns.T @ returns
    sizes = np.sqrt(np.diag(products))
    scale = np.outer(sizes, sizes)
    cosine = np.divide(products, scale, out=np.zeros_like(products), where=scale > SMALLEST**2)
    alike = np.clip(cosine * count / (count + LIKENESS_DOUBT), 0.0, 1.0) ** 2
    alike[np.arange(members), np.arange(members)] = 1.0
    return np.asarray(alike)


def without_echoes(weights: Floats, alike: Floats) -> Floats:
    """Return weights ``(B, M)`` after likeness ``(B, M, M)``, each row summing to 1 where it has any weight.

    A member of weight 0 (one that failed) is nobody's echo.
    """
    shares = alike * weights[:, None, :]
    total, heaviest = shares.sum(axis=2), shares.max(axis=2)
    kept = weights * np.divide(heaviest, total, out=np.zeros_like(total), where=total > 0.0)
    sums = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, sums, out=np.zeros_like(kept), where=sums > 0.0)


def combine(weights: Floats, direction: Floats, confidence: Floats) -> tuple[Floats, Floats]:
    """Return the combined direction and confidence, ``(B, A)`` each, of votes ``(B, M, A)``; 0 where nobody votes."""
    each = weights[:, :, None] * confidence
    pull, said, present = (each * direction).sum(axis=1), each.sum(axis=1), weights.sum(axis=1, keepdims=True)
    combined = np.divide(pull, said, out=np.zeros_like(pull), where=said > 0.0)
    sure = np.divide(np.abs(pull), present, out=np.zeros_like(pull), where=present > 0.0)
    return np.clip(combined, -1.0, 1.0), np.clip(sure, 0.0, 1.0)
