"""Named reward terms: each a compiled scalar, in money terms first, that adds up to the reward.

A reward is written as text, ``"log_return"`` or ``"log_return=1,drawdown=0.5,costs=0.1"``: terms with weights. Every
active term appears in ``info["reward_terms"]``, weighted, and the terms add up to the reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from markets.compiled import compiled
from markets.errors import ConfigError, unknown

TERMS = {
    "log_return": "ln(V' / V), equity floored at 1e-6 of the start",
    "simple_return": "(V' - V) / V_0",
    "differential_sharpe": "differential Sharpe ratio of V' / V - 1 (Moody and Saffell 2001)",
    "drawdown": "-max(0, dd' - dd), dd = 1 - V / max V",
    "costs": "-(fee + spread + impact + clearance fee) / V",
    "funding": "-funding paid / V",
}
FLOOR = 1e-6  # of the start equity, inside the logarithm
SMALLEST_VARIANCE = 1e-12  # below it the differential Sharpe ratio is 0 (start-up)


@compiled
def log_equity(equity: float, start: float) -> float:
    """``ln V`` with V floored at 1e-6 of the start equity, so that ruin stays finite.

    The log return of a step is the difference of two of these: one logarithm a step, and the sum telescopes exactly.
    """
    return math.log(max(equity, FLOOR * start))


@compiled
def differential_sharpe(value: float, mean: float, square: float, rate: float) -> tuple[float, float, float]:
    """Differential Sharpe ratio of a return R with moving moments A and B: returns D, A', B'.

    ``D = (B dA - A dB / 2) / (B - A^2)^(3/2)`` with ``dA = R - A``, ``dB = R^2 - B``, moments before the update;
    0 while the variance is below 1e-12. Source: "Learning to Trade via Direct Reinforcement".
    """
    change = value - mean
    change_square = value * value - square
    variance = square - mean * mean
    ratio = 0.0
    if variance > SMALLEST_VARIANCE:
        ratio = (square * change - 0.5 * mean * change_square) / (variance * math.sqrt(variance))
    return ratio, mean + rate * change, square + rate * change_square


@compiled
def drawdown_increase(before: float, peak_before: float, after: float, peak_after: float) -> float:
    """``max(0, dd' - dd)`` of two equities and their running peaks."""
    return max(0.0, before / peak_before - after / peak_after)


def parse_reward(text: str, terms: Mapping[str, str] = TERMS) -> dict[str, float]:
    """Read ``"term=weight,term=weight"``, of ``terms``; a term alone has weight 1.

    Raises:
        UnknownNameError: unknown term, with the nearest valid one.
        ConfigError: a weight that is no finite number, a term given twice, or no term.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in str(text).split(","))):
        name, _, number = part.partition("=")
        name = name.strip()
        if name not in terms:
            raise unknown("reward term", name, terms)
        if name in weights:
            raise ConfigError(f"reward={text!r}: term {name!r} is given twice")
        try:
            weights[name] = float(number or 1.0)
        except ValueError as error:
            raise ConfigError(f"reward={text!r}: {number!r} is not a number") from error
        if not math.isfinite(weights[name]):
            raise ConfigError(f"reward={text!r}: the weight of {name!r} is not finite")
    if not weights:
        raise ConfigError(f"reward={text!r} names no term; valid: {', '.join(terms)}")
    return weights
