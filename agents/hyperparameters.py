"""Ranges of hyperparameters: what a value must be before an algorithm is built with it.

Stable-Baselines3 takes almost any number; a discount of 1.5 or a learning rate below 0 trains without a word and
yields weights that mean nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markets.errors import ConfigError

AUTOMATIC = re.compile(r"auto(_\d+(\.\d+)?([eE][+-]?\d+)?)?")  # SB3: a coefficient that is tuned, and its beginning


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` (without it, where ``beyond``) to ``most``; ``whole`` ones only, or any."""

    least: float
    most: float = math.inf
    whole: bool = False
    beyond: bool = False

    def holds(self, value: Any) -> bool:
        """Say whether a value is a finite number in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.whole and not isinstance(value, int):
            return False
        return (value > self.least if self.beyond else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if math.isfinite(self.most):
            return f"{kind} from {self.least:g} to {self.most:g}"
        return f"{kind} above {self.least:g}" if self.beyond else f"{kind} of at least {self.least:g}"


SHARE, POSITIVE, NOT_NEGATIVE = Range(0, 1), Range(0, beyond=True), Range(0)
COUNT, FROM_ZERO, FROM_MINUS_ONE = Range(1, whole=True), Range(0, whole=True), Range(-1, whole=True)
RANGES = {
    "gamma": SHARE,
    "gae_lambda": SHARE,
    "tau": SHARE,
    "learning_rate": POSITIVE,
    "clip_range": POSITIVE,
    "clip_range_vf": POSITIVE,
    "target_kl": POSITIVE,
    "rms_prop_eps": POSITIVE,
    "ent_coef": NOT_NEGATIVE,
    "vf_coef": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "batch_size": COUNT,
    "n_steps": COUNT,
    "n_epochs": COUNT,
    "buffer_size": COUNT,
    "train_freq": COUNT,
    "target_update_interval": COUNT,
    "stats_window_size": COUNT,
    "learning_starts": FROM_ZERO,
    "top_quantiles_to_drop_per_net": FROM_ZERO,
    "gradient_steps": FROM_MINUS_ONE,  # -1: as many as steps were taken
    "sde_sample_freq": FROM_MINUS_ONE,  # -1: once a rollout
}


def check_ranges(algo: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the values of hyperparameters whose names are known.

    Args:
        algo: named in messages.
        given: what the user set.
        defaults: the algorithm's own value of each; where that is None, true or false, or a word, so may be the given.

    Raises:
        ConfigError: names field, value and range.
    """
    for key, value in given.items():
        default, wanted = defaults.get(key), RANGES.get(key)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ConfigError(f"hyperparameter {key}={value!r} of {algo} must be true or false")
        elif wanted is not None and not (wanted.holds(value) or _may_be(value, default)):
            word = ", or a word such as auto or auto_0.1" if default == "auto" else ""
            raise ConfigError(f"hyperparameter {key}={value!r} of {algo} must be {wanted}{word}")


def _may_be(value: Any, default: Any) -> bool:
    """Say whether a value that is no number stands for one, as the default does."""
    if default == "auto":
        return isinstance(value, str) and AUTOMATIC.fullmatch(value) is not None
    return value is None and default is None
