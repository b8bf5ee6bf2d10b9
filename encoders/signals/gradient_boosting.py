"""Gradient boosting: will the price be higher in ``horizon`` bars? Trees over the market's causal features.

    label_t = 1 where c_(t+h) > c_t,   p_t = P(label_t = 1 | features at the close of t)
    direction = sign(p - 0.5) where |p - 0.5| >= margin, else 0;   confidence = |2 p - 1| there

Labels look h bars ahead, so the last h bars of the training range have none (the purge). The number of trees is chosen
on the last fifth of the training range, h bars after the rest, and at least one is kept. Assets share one model: the
features of each are its own, and have no unit of price. The features served here are raw, trees need no scaling.

Source: Chen & Guestrin, KDD 2016. Extra ``models`` (xgboost), for fitting and for prediction; the trees are saved in
xgboost's own JSON. One thread and a fixed seed: the same bars give the same trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from encoders.signals.model import Floats, SignalModel, Votes, asset
from markets import features
from markets.bars import Bars
from markets.errors import ConfigError, DataError, require

FEWEST = 300  # labelled rows to fit on
HELD_OUT = 0.2  # of the training range, to choose the number of trees on
LARGEST_SEED = 2**31 - 1  # of xgboost
PATIENCE = 20  # trees without gain


@dataclass(eq=False)
class GradientBoosting(SignalModel):
    """Boosted trees over the market features; see the module.

    Attributes:
        horizon: h in bars. margin: distance of p from one half from which on it votes.
        trees, depth, rate, rows: most trees, their depth, the learning rate, the share of rows each tree sees.
    """

    name: ClassVar[str] = "boosting"
    member: ClassVar[str] = "trees.json"
    described: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = (
        ("direction", "sign(p - 0.5) where |p - 0.5| >= 0.02", "exposure", "-1 .. 1", "the market features'"),
        ("confidence", "|2 p - 1| where it votes", "share", "0 .. 1", "the market features'"),
        ("probability", "p of c_(t+4) > c_t, boosted trees over the market features", "probability", "0 .. 1",
         "the market features'"),
    )  # fmt: skip

    horizon: int = 4
    margin: float = 0.02
    trees: int = 200
    depth: int = 3
    rate: float = 0.05
    rows: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._booster: Any = None

    def check(self) -> None:
        """Raise for a setting that cannot work."""
        for name in ("horizon", "trees", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a whole number from 1")
        if not 0.0 <= self.margin < 0.5:
            raise ConfigError(f"margin={self.margin!r} must lie in [0, 0.5)")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ConfigError(f"seed={self.seed!r} must be a whole number from 0 to {LARGEST_SEED}")
        if not 0.0 < self.rate <= 1.0 or not 0.0 < self.rows <= 1.0:
            raise ConfigError(f"rate={self.rate!r} and rows={self.rows!r} must lie in (0, 1]")

    def learn(self, bars: Bars) -> dict[str, Any]:
        """Grow the trees and measure them on the held-out end of the training range."""
        xgboost = require("xgboost", "models")
        parts = [self._labelled(bars, place) for place in range(len(bars.symbols))]
        cut = int((1.0 - HELD_OUT) * len(parts[0][1]))
        early = [(x[: cut - self.horizon], y[: cut - self.horizon]) for x, y in parts]
        late = [(x[cut:], y[cut:]) for x, y in parts]
        grown = self._matrix(xgboost, early), self._matrix(xgboost, late)
        if len(np.unique(grown[0].get_label())) < 2:
            raise DataError("all labels of the training range are the same: there is no direction to learn")
        parameters = {
            "objective": "binary:logistic", "eval_metric": "logloss", "max_depth": self.depth, "eta": self.rate,
            "subsample": self.rows, "seed": self.seed, "nthread": 1, "tree_method": "hist",
        }  # fmt: skip
        trial = xgboost.train(
            parameters, grown[0], self.trees, evals=[(grown[1], "late")], early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )  # fmt: skip
        best = int(trial.best_iteration) + 1
        held = trial.predict(grown[1], iteration_range=(0, best))
        labels = grown[1].get_label()
        whole = self._matrix(xgboost, parts)
        self._booster = xgboost.train(parameters, whole, best)
        up = float(grown[0].get_label().mean() >= 0.5)
        return {
            "warm_up": features.warm_up(bars.interval), "trees": best, "rows": int(whole.num_row()),
            "held_out_rows": len(labels),
            "held_out_accuracy": float(np.mean((held > 0.5) == (labels > 0.5))),
            "held_out_majority": float(np.mean(labels == up)),
            "importance": self._importance(),
        }  # fmt: skip

    @property
    def look_back(self) -> int:
        """Bars before a row that its features need; a day of them, for funding stamps, as environments wait."""
        return int(self._learned()["warm_up"])

    def votes(self, bars: Bars) -> Votes:
        """Compute direction, confidence and p of every bar."""
        columns = [self.probability(bars, place) for place in range(len(bars.symbols))]
        p = np.stack(columns, axis=1)
        speaks = np.abs(p - 0.5) >= self.margin
        direction = np.where(speaks, np.sign(p - 0.5), 0.0)
        return Votes(direction, np.where(direction != 0.0, np.abs(2.0 * p - 1.0), 0.0), {"probability": (p, 0.0, 1.0)})

    def probability(self, bars: Bars, place: int = 0) -> Floats:
        """Return p of every bar for one asset, ``(T,)``."""
        values = features.raw(asset(bars, place))
        values[~np.isfinite(values)] = 0.0
        return np.asarray(self._trees().inplace_predict(values.astype(np.float32)), np.float64)

    def dump(self) -> bytes:
        """Return the trees in xgboost's own JSON."""
        return bytes(self._trees().save_raw("json"))

    def check_fitted(self, data: bytes) -> None:
        """Read the trees."""
        self._part("trees", int)
        self._part("warm_up", int)
        xgboost = require("xgboost", "models")
        self._booster = xgboost.Booster({"nthread": 1})
        try:
            self._booster.load_model(bytearray(data))
            width = int(self._booster.num_features())
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ConfigError(f"signal 'boosting': {self.member} holds no trees: {str(error)[:200]}") from error
        if width != len(features.NAMES):
            raise ConfigError(f"signal 'boosting': trees over {width} features, there are {len(features.NAMES)}")

    def _trees(self) -> Any:
        self._learned()
        return self._booster

    def _labelled(self, bars: Bars, place: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        first, last = features.warm_up(bars.interval), len(bars) - self.horizon
        if last - first < FEWEST:
            raise DataError(f"{len(bars)} bars leave {max(last - first, 0)} labelled rows; {FEWEST} are needed")
        close = bars.close[:, place]
        rows = np.arange(first, last)
        values = features.raw(asset(bars, place))[rows].astype(np.float32)
        return values, (close[rows + self.horizon] > close[rows]).astype(np.float32)

    def _matrix(self, xgboost: Any, parts: list[tuple[Any, Any]]) -> Any:
        x, y = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return xgboost.DMatrix(x, label=y, feature_names=list(features.NAMES), nthread=1)

    def _importance(self) -> list[list[Any]]:
        gains = self._booster.get_score(importance_type="gain")
        total = sum(gains.values()) or 1.0
        return [[name, float(gain / total)] for name, gain in sorted(gains.items(), key=lambda pair: -pair[1])]
