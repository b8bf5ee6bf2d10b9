"""Report of the classical signals: what they find in the training range of some bars, and how sure that is.

Cointegration of the first two assets (p value, half-life), GARCH(1,1) of each asset (alpha, beta with 95 % intervals),
gradient boosting (accuracy against the majority, on the end of the training range and on validation, importance).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.signals.garch_momentum import GarchMomentum
from encoders.signals.gradient_boosting import GradientBoosting
from encoders.signals.mean_reversion import MeanReversion
from encoders.signals.model import SignalModel
from envs.splits import split_rows
from markets.bars import Bars

MOST_IMPORTANT = 5  # features that are shown


def report(bars: Bars, train_end: str | None = None, validation_end: str | None = None) -> dict[str, Any]:
    """Fit every classical signal on the training range of ``bars`` and describe what came out.

    Votes are counted on the validation range, which nothing was fitted on.

    Returns:
        facts of the bars, and ``mean_reversion`` (of two assets or more), ``garch``, ``boosting``.
    """
    first, stop = split_rows(bars, "train", train_end, validation_end)
    last = split_rows(bars, "validation", train_end, validation_end)[1]
    training = bars.between(first, stop)
    result: dict[str, Any] = {
        "symbols": list(bars.symbols), "interval_hours": float(bars.interval / np.timedelta64(1, "h")),
        "bars": len(training), "first": str(training.time[0]), "train_end": str(training.close_time[-1]),
        "validation_end": str(bars.close_time[last - 1]), "source": bars.source,
    }  # fmt: skip
    if len(bars.symbols) > 1:
        pair = MeanReversion().fit(training)
        result["mean_reversion"] = {**pair.report(), "status": pair.status(), **_voted(pair, bars, stop, last)}
    garch = GarchMomentum().fit(training)
    result["garch"] = {
        "assets": dict(zip(bars.symbols, garch.report()["assets"], strict=True)),
        **_voted(garch, bars, stop, last),
    }
    boosting = GradientBoosting().fit(training)
    result["boosting"] = {
        **boosting.report(),
        **_validation(boosting, bars, stop, last),
        **_voted(boosting, bars, stop, last),
    }
    return result


def text(result: Mapping[str, Any]) -> str:
    """Write a report as lines."""
    names = "/".join(result["symbols"])
    lines = [f"{names}, {result['bars']} bars from {result['first'][:16]} to {result['train_end'][:16]} UTC (training)"]
    if "mean_reversion" in result:
        pair = result["mean_reversion"]
        life = "none" if pair["half_life"] is None else f"{pair['half_life']:.1f} bars"
        lines.append(
            f"mean reversion   cointegration p = {pair['p_value']:.4f} (statistic {pair['statistic']:.2f}), half-life "
            f"{life}, hedge ratio {pair['hedge_ratio']:.3f}; {_votes(pair)}"
        )
        if pair["status"]:
            lines.append(f"                 {pair['status']}")
    for symbol, item in result["garch"]["assets"].items():
        bounds = item["intervals"]
        lines.append(
            f"GARCH(1,1)       {symbol} alpha = {item['alpha']:.4f} {_interval(bounds['alpha'])}, beta = "
            f"{item['beta']:.4f} {_interval(bounds['beta'])}, sum {item['persistence']:.4f}"
            f"{' (cut to be stationary)' if item['cut'] else ''}{'' if item['converged'] else ' (did not converge)'}"
        )
    lines.append(f"                 {_votes(result['garch'])}")
    trees = result["boosting"]
    top = ", ".join(f"{name} {share:.2f}" for name, share in trees["importance"][:MOST_IMPORTANT])
    lines += [
        f"boosting         {trees['trees']} trees on {trees['rows']} rows; accuracy on validation "
        f"{trees['validation_accuracy']:.3f}, majority of training {trees['validation_majority']:.3f} "
        f"({trees['validation_rows']} rows); {_votes(trees)}",
        f"                 most important: {top or 'nothing was split'}",
    ]
    return "\n".join(lines) + "\n"


def _voted(model: SignalModel, bars: Bars, first: int, stop: int) -> dict[str, float]:
    """Return the share of bars on which a signal votes in rows ``first..stop-1``, and how sure it is there."""
    assets = len(bars.symbols)
    confidence = model.table(bars).values[first:stop, assets : 2 * assets]
    votes = confidence > 0.0
    return {"voted": float(votes.mean()), "confidence": float(confidence[votes].mean()) if votes.any() else 0.0}


def _validation(model: GradientBoosting, bars: Bars, first: int, stop: int) -> dict[str, Any]:
    right, majority, count = 0, 0, 0
    for place in range(len(bars.symbols)):
        close = bars.close[:, place]
        rows = np.arange(first, stop - model.horizon)
        up = close[rows + model.horizon] > close[rows]
        seen = np.arange(first - model.horizon)
        often = bool(np.mean(close[seen + model.horizon] > close[seen]) >= 0.5)
        right += int(np.sum((model.probability(bars, place)[rows] > 0.5) == up))
        majority += int(np.sum(up == often))
        count += len(rows)
    return {"validation_accuracy": right / count, "validation_majority": majority / count, "validation_rows": count}


def _votes(part: Mapping[str, Any]) -> str:
    return f"votes on {100 * part['voted']:.1f} % of validation bars, mean confidence {part['confidence']:.2f}"


def _interval(bounds: list[float]) -> str:
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"
