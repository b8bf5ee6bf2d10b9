"""Arguments of ``gym.make("SpotCrypto-v0", ...)``, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.signals.fitted import SignalSet
from envs.rewards import parse_reward
from envs.splits import SPLITS
from envs.spot_columns import REWARDS, TERM_COLUMNS
from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.features import FeatureScaler

DEFAULT_BARS = "synthetic:basket?seed=0&interval=1h&bars=40000"


@dataclass(frozen=True, kw_only=True)
class SpotCryptoConfig:
    """Arguments of ``gym.make("SpotCrypto-v0", ...)``; names and numbers only.

    Attributes:
        bars: source specification of several coins (or a ``Bars`` where the env is built without ``gym.make``).
        split: ``train``, ``validation`` or ``test``.
        train_end, validation_end: dates that end the splits (a date includes its day); fractions .6/.2/.2 without.
        scaler: a JSON file with a fitted feature scaler; fitted on the training range without.
        allow_in_sample: let a validation or test episode begin inside the range that a scaler, encoder or signal was
            fitted on.
        episode_bars: longest episode; 512 in training, the whole split in evaluation. 0 means the whole split.
        random_start: begin anywhere in the split (training) or at its first row (evaluation).
        initial_equity: USDT, in cash.
        allow_short: negative numbers of an action sell short; without they count as 0.
        gross_limit: largest sum of absolute weights with ``allow_short``; it is 1 without.
        borrow_rate: interest per year (365 days) on what is borrowed, accrued each bar; only with ``allow_short``.
        rebalance_band: smallest change of a coin's weight that sends an order; a target of 0 always sells.
        ruin: equity below this share of the start ends the episode. ``maximum_drawdown``: so does this drawdown.
        reward: terms with weights: profit, sharpe, costs, drawdown, simple_return (:data:`envs.spot_columns.REWARDS`);
            ``sharpe_rate``: eta of the differential Sharpe ratio.
        cost_scale: multiplies fee, spread and impact (not the interest).
        randomise_costs: r; each training episode draws its own factor on ``cost_scale`` from 1 / (1 + r) to 1 + r,
            log-uniform, from the lane's generator. Validation and test are always at ``cost_scale``.
        taker_fee, impact_coefficient, participation, minimum_notional: of every coin.
        half_spread, lot_step, tick_size: replace every coin's own value.
        encoded: kind of encoder whose columns are appended, for every coin (``jepa``); none without.
        encoder: folder of its weights, made by ``regimegym pretrain``, or the name of shipped ones.
        odds: whose regime odds it serves: ``belief``, ``softmax`` or ``kmeans``.
        signals: what signals say is appended: names of models (``garch``, ``mean_reversion``), which are fitted on the
            training range, or folders that ``regimegym signals fit`` saved, with commas between them; see
            :mod:`encoders.signals.fitted`.
        hide: names of observation columns, with commas between them, that are served as a constant (0 where that is
            within their bounds): see :mod:`envs.wrappers.hide`.
    """

    bars: str | Bars = DEFAULT_BARS
    split: str = "train"
    train_end: str | None = None
    validation_end: str | None = None
    scaler: str | FeatureScaler | None = None
    allow_in_sample: bool = False
    episode_bars: int | None = None
    random_start: bool | None = None
    initial_equity: float = 10_000.0
    allow_short: bool = False
    gross_limit: float = 1.5
    borrow_rate: float = 0.08
    rebalance_band: float = 0.05
    ruin: float = 0.01
    maximum_drawdown: float | None = None
    reward: str = "profit"
    sharpe_rate: float = 0.01
    cost_scale: float = 1.0
    randomise_costs: float = 0.0
    taker_fee: float = 0.001
    impact_coefficient: float = 1.0
    participation: float = 0.1
    minimum_notional: float = 5.0
    half_spread: float | None = None
    lot_step: float | None = None
    tick_size: float | None = None
    encoded: str = ""
    encoder: str | None = None
    odds: str = "belief"
    signals: str | SignalSet = ""
    hide: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        for name, low, high in (
            ("initial_equity", 1e-6, 1e15), ("gross_limit", 1e-6, 2.0), ("borrow_rate", 0.0, 10.0),
            ("rebalance_band", 0.0, 10.0), ("ruin", 1e-6, 0.999), ("maximum_drawdown", 1e-6, 1.0),
            ("sharpe_rate", 1e-9, 1.0), ("cost_scale", 0.0, 1e3), ("randomise_costs", 0.0, 100.0),
            ("taker_fee", 0.0, 1.0), ("impact_coefficient", 0.0, 1e3), ("participation", 1e-9, 1.0),
            ("minimum_notional", 0.0, 1e12), ("half_spread", 0.0, 0.5), ("lot_step", 0.0, 1e12),
            ("tick_size", 0.0, 1e12),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), low, high, may_be_none=name in _OPTIONAL)
        for name, kinds in (
            ("bars", (str, Bars)), ("train_end", str), ("validation_end", str), ("encoded", str), ("encoder", str),
            ("odds", str), ("hide", str), ("signals", (str, SignalSet)), ("scaler", (str, FeatureScaler)),
        ):  # fmt: skip
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kinds):
                hint = "; register bars of your own with regimegym.register_bars" if name == "bars" else ""
                raise ConfigError(f"{name} must be text, not {type(getattr(self, name)).__name__}{hint}")
        if self.random_start not in (None, True, False):
            raise ConfigError(f"random_start={self.random_start!r} must be True, False or None")
        for name in ("allow_in_sample", "allow_short"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False")
        bars = self.episode_bars
        if bars is not None and (isinstance(bars, bool) or not isinstance(bars, int | np.integer) or bars < 0):
            raise ConfigError(
                f"episode_bars={self.episode_bars!r} must be a whole number of at least 0 (0: whole split)"
            )
        if not isinstance(self.reward, str):
            raise ConfigError(f"reward={self.reward!r} must be text, such as 'profit=1,drawdown=0.5'")
        self._check_reward()
        if not self.encoded and (self.encoder is not None or self.odds != "belief"):
            name = "encoder" if self.encoder is not None else "odds"
            raise ConfigError(f"{name}={getattr(self, name)!r} needs an encoder: pass encoded='jepa' as well")

    def _check_reward(self) -> None:
        names = list(parse_reward(self.reward, REWARDS))
        columns = [TERM_COLUMNS[name] for name in names]
        for place, column in enumerate(columns):
            first = columns.index(column)
            if first != place:
                raise ConfigError(f"reward={self.reward!r}: {names[first]!r} and {names[place]!r} are the same term")

    @property
    def exposure_limit(self) -> float:
        """Largest gross exposure: 1 without short selling."""
        return float(self.gross_limit) if self.allow_short else 1.0


_OPTIONAL = frozenset({"maximum_drawdown", "half_spread", "lot_step", "tick_size"})


def _check_number(name: str, value: object, low: float, high: float, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not low <= value <= high
    ):
        raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
