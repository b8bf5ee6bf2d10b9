"""What a lookahead detector is asked about: things that see the future, and clean twins of them.

Every fixture says which columns leak, on which row that can first be seen, and (where it is exact) by how many bars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from lookahead_toys import (
    FIRST,
    LENGTH,
    DictEnv,
    Floats,
    InfoOfOneLanePeeks,
    Lanes,
    LastObservationPeeks,
    NextReturn,
    OneLanePeeks,
    RunningNormaliser,
    Tells,
    ToyEnv,
    next_close,
    past_only,
    returns,
    whole_series,
)

from markets.bars import Bars

DAY = 24  # bars
TRAINED = 150  # rows that the clean scaler is fitted on
LATE = 257  # row on which the whispered leak begins


@dataclass(frozen=True)
class Fixture:
    """What to test and what must be found: ``leaks`` maps a column to (first offending step, bars ahead or None)."""

    name: str
    kind: str  # table, normaliser, env, vector or policy
    subject: Callable[..., Any]
    leaks: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    lane: int | None = None  # in which alone it leaks


def shifted(values: Floats, by: int) -> Floats:
    """pandas' shift: positive looks back, negative looks ahead; the ends are NaN."""
    result = np.full_like(values, np.nan)
    if by > 0:
        result[by:] = values[:-by]
    elif by < 0:
        result[:by] = values[-by:]
    return result


# ---- features ---------------------------------------------------------------------------------------------------


def windows(values: Floats, before: int, after: int) -> Floats:
    """Mean of rows t-before..t+after, of those there are."""
    return np.array([values[max(0, t - before) : t + after + 1].mean() for t in range(len(values))])


def centred(bars: Bars) -> Floats:
    change = returns(bars)
    ahead = np.log(shifted(bars.close[:, 0], -24) / bars.close[:, 0])
    return np.column_stack([change, windows(bars.close[:, 0], 6, 6), np.where(np.isnan(ahead), 0, np.sign(ahead))])


def trailing(bars: Bars) -> Floats:
    change = returns(bars)
    past = np.log(bars.close[:, 0] / shifted(bars.close[:, 0], 24))
    return np.column_stack([change, windows(bars.close[:, 0], 12, 0), np.sign(past)])


def whispered(bars: Bars) -> Floats:
    """A next return, from row ``LATE`` on, so faint (a millionth of a millionth) that tolerance does not hear it."""
    change = returns(bars)
    ahead = np.clip(np.nan_to_num(shifted(change, -1)), -1.0, 1.0)
    ahead[:LATE] = 0.0
    return np.column_stack([change, change + 1e-12 * ahead])


def remembered(bars: Bars) -> Floats:
    change = returns(bars)
    return np.column_stack([change, change + 1e-12 * np.nan_to_num(shifted(change, 1))])


def filled_back(bars: Bars) -> Any:
    """A warm-up of a rolling mean filled from its first value, and a threshold over the whole series."""
    import pandas as pd

    close, volume = pd.Series(bars.close[:, 0]), pd.Series(bars.volume[:, 0])
    busy = (volume > volume.quantile(0.9)).astype(float)
    return pd.DataFrame({"mean_20": close.rolling(20).mean().bfill(), "busy": busy, "volume": volume})


def filled_forward(bars: Bars) -> Any:
    import pandas as pd

    close, volume = pd.Series(bars.close[:, 0]), pd.Series(bars.volume[:, 0])
    busy = (volume > volume.expanding(30).quantile(0.9)).astype(float)
    return pd.DataFrame({"mean_20": close.rolling(20).mean().ffill(), "busy": busy, "volume": volume})


def unfinished_day(bars: Bars) -> Floats:
    """The close of the day that every one of its hours belongs to, as a resample that is joined by its label."""
    rows = np.arange(len(bars))
    ends = np.minimum(rows // DAY * DAY + DAY - 1, len(bars) - 1)
    return np.column_stack([returns(bars), bars.close[ends, 0]])


def finished_day(bars: Bars) -> Floats:
    rows = np.arange(len(bars))
    ends = (rows + 1) // DAY * DAY - 1
    return np.column_stack([returns(bars), np.where(ends >= 0, bars.close[np.maximum(ends, 0), 0], np.nan)])


def switched_by_holes(bars: Bars) -> Floats:
    """Another formula for the whole series where a value is missing anywhere in it: whether there will be a hole."""
    change = returns(bars)
    whole = bool(np.isfinite(bars.close).all())
    return np.column_stack([change, change if whole else np.sign(change)])


def holes_from_the_past(bars: Bars) -> Any:
    """Missing prices are the last ones known, row by row."""
    import pandas as pd

    close = pd.Series(bars.close[:, 0]).ffill()
    return pd.DataFrame({"change": close.pct_change(), "mean": close.expanding().mean()})


# ---- normalisers, encoders, policies ----------------------------------------------------------------------------


def full_score(values: Floats) -> Floats:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def trained_score(values: Floats) -> Floats:
    head = values[:TRAINED]
    return (values - head.mean(axis=0)) / head.std(axis=0)


KERNEL = np.random.default_rng(5).normal(size=9)


def same_conv(bars: Bars) -> Floats:
    """A convolution with padding on both sides (four bars ahead), and a smoothing that runs there and back."""
    change = returns(bars)
    return np.column_stack(
        [np.convolve(np.pad(change, 4), KERNEL, "valid"), smooth(smooth(change)[::-1])[::-1], change]
    )


def valid_conv(bars: Bars) -> Floats:
    change = returns(bars)
    return np.column_stack([np.convolve(np.pad(change, (8, 0)), KERNEL, "valid"), smooth(change), change])


def smooth(values: Floats) -> Floats:
    result = np.array(values, np.float64)
    for t in range(1, len(result)):
        result[t] = 0.9 * result[t - 1] + 0.1 * result[t]
    return result


class Momentum:
    """Follows the last return of the history; with ``peek`` the next one, which it looks up in the bars."""

    def __init__(self, bars: Bars, peek: int) -> None:
        self.returns, self.peek = returns(bars), peek

    def predict(self, history: Floats) -> Any:
        row = min(len(history) - 1 + self.peek, len(self.returns) - 1)
        return np.array([np.sign(self.returns[row])]), None


def first_hours(bars: Bars) -> Floats:
    return returns(bars)[:, None]


ENV = {"steps": 100}
LANE = {"steps": 45}
POLICY = {"observe": first_hours}

LEAKY = (
    Fixture(
        "env: fills at the observed close", "env", lambda b: ToyEnv(b, fill="observed close"),
        {"fill": (1, 1)}, settings=ENV,
    ),
    Fixture(
        "env: reward of the next bar", "env", lambda b: ToyEnv(b, reward="next bar"), {"reward": (1, 1)}, settings=ENV
    ),
    Fixture(
        "wrapper: appends the next return", "env", lambda b: NextReturn(ToyEnv(b)), {"momentum": (0, 1)}, settings=ENV
    ),
    Fixture(
        "table: centred mean, label of the next day", "table", centred,
        {"mean_13": (0, 6), "label": (0, 24)}, ("return_1", "mean_13", "label"),
    ),
    Fixture("table: shift(-1), whispered", "table", whispered, {"noisy": (LATE, 1)}, ("return_1", "noisy")),
    Fixture("table: bfill and percentile of the series", "table", filled_back, {"mean_20": (0, 19), "busy": (0, None)}),
    Fixture("table: day that is not finished", "table", unfinished_day, {"day": (0, 23)}, ("return_1", "day")),
    Fixture("normaliser: whole series", "normaliser", full_score, {"a": (0, 299), "b": (0, 299)}, ("a", "b")),
    Fixture(
        "encoder: same padding, there and back", "table", same_conv,
        {"conv": (0, 4), "smooth": (0, None)}, ("conv", "smooth", "return_1"),
    ),
    Fixture("policy: peeks", "policy", lambda b: Momentum(b, 1), {"action": (0, 1)}, settings=POLICY),
    Fixture(
        "table: another formula where data is missing", "table", switched_by_holes, {"switched": (1, None)},
        ("return_1", "switched"),
    ),
    Fixture(
        "info: next close", "env", lambda b: Tells(ToyEnv(b), next_close), {"info[hint.target]": (0, 1)}, settings=ENV
    ),
    Fixture(
        "info: all prices", "env", lambda b: Tells(ToyEnv(b), whole_series), {"info[prices][:]": (0, None)},
        settings=ENV,
    ),
    Fixture("vector: one lane peeks", "vector", OneLanePeeks, {"return_1": (0, 1)}, settings=LANE, lane=2),
    Fixture(
        "vector: last observation peeks", "vector", LastObservationPeeks, {"return_1": (LENGTH, 1)}, settings=LANE
    ),
    Fixture(
        "vector: info of one lane peeks", "vector", InfoOfOneLanePeeks, {"info[hint]": (0, 1)}, settings=LANE, lane=1
    ),
    Fixture(
        "vector: fills at the observed close", "vector", lambda b: Lanes(b, fill="observed close"), {"fill": (1, 1)},
        settings=LANE,
    ),
)  # fmt: skip

CLEAN = (
    Fixture("env: fills at the next open", "env", ToyEnv, settings=ENV),
    Fixture("env: dictionary, fills at the next close", "env", DictEnv, settings={**ENV, "first_row": FIRST}),
    Fixture("wrapper: running statistics", "env", lambda b: RunningNormaliser(ToyEnv(b)), settings=ENV),
    Fixture("table: trailing mean, label of the past day", "table", trailing),
    Fixture("table: shift(1), whispered", "table", remembered),
    Fixture("table: ffill and running percentile", "table", filled_forward),
    Fixture("table: last finished day", "table", finished_day),
    Fixture("normaliser: training range", "normaliser", trained_score, settings={"train_rows": TRAINED}),
    Fixture("encoder: valid convolution", "table", valid_conv),
    Fixture("policy: follows the past", "policy", lambda b: Momentum(b, 0), settings=POLICY),
    Fixture("table: holes are filled from the past", "table", holes_from_the_past),
    Fixture("info: own label, past prices, a clock", "env", lambda b: Tells(ToyEnv(b), past_only), settings=ENV),
    Fixture("vector: episodes one after the other", "vector", Lanes, settings=LANE),
    Fixture("vector: next-step autoreset", "vector", lambda b: Lanes(b, AutoresetMode.NEXT_STEP), settings=LANE),
)
