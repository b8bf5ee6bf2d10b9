"""Arguments of ``gym.make("PerpFutures-v0", ...)``, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.signals.fitted import SignalSet
from envs.leverage import RegimeAwareLeverageController
from envs.rewards import parse_reward
from envs.splits import SPLITS
from markets import features
from markets.bars import Bars
from markets.errors import ConfigError, unknown

DEFAULT_BARS = "synthetic:crypto?seed=0&interval=1h&bars=40000"
MARGIN_MODES = ("isolated", "cross")
LIQUIDATIONS = ("full", "tiered")


@dataclass(frozen=True, kw_only=True)
class PerpFuturesConfig:
    """Arguments of ``gym.make("PerpFutures-v0", ...)``; names and numbers only.

    Attributes:
        bars: source specification (or a ``Bars`` where the env is built without ``gym.make``).
        split: ``train``, ``validation`` or ``test``.
        train_end, validation_end: dates that end the splits (a date includes its day); fractions .6/.2/.2 without.
        scaler: a JSON file with a fitted feature scaler; fitted on the training range without.
        allow_in_sample: let a validation or test episode begin inside the range that a scaler, encoder or signal was
            fitted on.
        episode_bars: longest episode; 512 in training, the whole split in evaluation. 0 means the whole split.
        random_start: begin anywhere in the split (training) or at its first row (evaluation).
        initial_equity: USDT. ``leverage``: L, exposure bound in units of equity; with ``leverage_control`` its base.
        contract_leverage: leverage of posted margin; min(L, tier maximum) without. Below L it bounds the exposure too:
            an order is cut to what the wallet covers.
        margin_mode: ``isolated`` (the posted margin can be lost) or ``cross`` (the whole wallet backs the position).
        liquidation: ``full``, or ``tiered``: reduce to a lower margin tier where that makes the rest compliant. The
            clearance fee is charged on what is sold; at its default of 1.25 % a tier is seldom enough.
        rebalance_band: smallest change of notional that sends an order, in units of equity.
        ruin: equity below this share of the start ends the episode. ``maximum_drawdown``: so does this drawdown.
        continue_after_liquidation: go on with what is left instead of ending the episode.
        reward: terms with weights, see :mod:`envs.rewards`; ``sharpe_rate``: eta of the differential Sharpe ratio.
        cost_scale: multiplies fee, spread and impact (not funding).
        randomise_costs: r; each training episode draws its own factor on ``cost_scale`` from 1 / (1 + r) to 1 + r,
            log-uniform, from the lane's generator. Validation and test are always at ``cost_scale``.
        taker_fee, half_spread, impact_coefficient, participation, lot_step, tick_size, minimum_notional,
        maximum_quantity, clearance_fee: replace the contract's own value.
        symbol: chooses the contract; the symbol of the bars without.
        encoded: kind of encoder whose columns are appended (``jepa``); none without.
        encoder: folder of its weights, made by ``regimegym pretrain``, or the name of shipped ones.
        odds: whose regime odds it serves: ``belief``, ``softmax`` or ``kmeans``.
        leverage_control: L of each bar from the encoder's regime odds: ``regime``, or with settings
            ``regime?max_leverage=5&multipliers=1.5,1,0.5``; see :mod:`envs.leverage`. Needs ``encoded``.
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
    scaler: str | features.FeatureScaler | None = None
    allow_in_sample: bool = False
    episode_bars: int | None = None
    random_start: bool | None = None
    initial_equity: float = 10_000.0
    leverage: float = 3.0
    contract_leverage: float | None = None
    margin_mode: str = "isolated"
    liquidation: str = "full"
    rebalance_band: float = 0.05
    ruin: float = 0.01
    maximum_drawdown: float | None = None
    continue_after_liquidation: bool = False
    reward: str = "log_return"
    sharpe_rate: float = 0.01
    cost_scale: float = 1.0
    randomise_costs: float = 0.0
    taker_fee: float | None = None
    half_spread: float | None = None
    impact_coefficient: float | None = None
    participation: float | None = None
    lot_step: float | None = None
    tick_size: float | None = None
    minimum_notional: float | None = None
    maximum_quantity: float | None = None
    clearance_fee: float | None = None
    symbol: str | None = None
    encoded: str = ""
    encoder: str | None = None
    odds: str = "belief"
    leverage_control: str = ""
    signals: str | SignalSet = ""
    hide: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.margin_mode not in MARGIN_MODES:
            raise unknown("margin_mode", self.margin_mode, MARGIN_MODES)
        if self.liquidation not in LIQUIDATIONS:
            raise unknown("liquidation", self.liquidation, LIQUIDATIONS)
        for name, low, high in (
            ("initial_equity", 1e-6, 1e15), ("leverage", 1.0, 125.0), ("contract_leverage", 1.0, 125.0),
            ("rebalance_band", 0.0, 10.0), ("ruin", 1e-6, 0.999), ("maximum_drawdown", 1e-6, 1.0),
            ("cost_scale", 0.0, 1e3), ("randomise_costs", 0.0, 100.0), ("sharpe_rate", 1e-9, 1.0),
            ("taker_fee", 0.0, 1.0), ("half_spread", 0.0, 0.5),
            ("impact_coefficient", 0.0, 1e3), ("participation", 1e-9, 1.0), ("lot_step", 0.0, 1e12),
            ("tick_size", 0.0, 1e12), ("minimum_notional", 0.0, 1e12), ("maximum_quantity", 1e-12, 1e300),
            ("clearance_fee", 0.0, 1.0),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), low, high)
        for name, kinds in (
            ("bars", (str, Bars)), ("train_end", str), ("validation_end", str), ("symbol", str),
            ("encoded", str), ("encoder", str), ("odds", str), ("hide", str), ("signals", (str, SignalSet)),
            ("leverage_control", str), ("scaler", (str, features.FeatureScaler)),
        ):  # fmt: skip
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kinds):
                hint = "; register bars of your own with regimegym.register_bars" if name == "bars" else ""
                raise ConfigError(f"{name} must be text, not {type(getattr(self, name)).__name__}{hint}")
        if self.random_start not in (None, True, False):
            raise ConfigError(f"random_start={self.random_start!r} must be True, False or None")
        for name in ("allow_in_sample", "continue_after_liquidation"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False")
        bars = self.episode_bars
        if bars is not None and (isinstance(bars, bool) or not isinstance(bars, int | np.integer) or bars < 0):
            raise ConfigError(
                f"episode_bars={self.episode_bars!r} must be a whole number of at least 0 (0: whole split)"
            )
        if not isinstance(self.reward, str):
            raise ConfigError(f"reward={self.reward!r} must be text, such as 'log_return=1,drawdown=0.5'")
        parse_reward(self.reward)
        if not self.encoded and (self.encoder is not None or self.odds != "belief"):
            name = "encoder" if self.encoder is not None else "odds"
            raise ConfigError(f"{name}={getattr(self, name)!r} needs an encoder: pass encoded='jepa' as well")
        if self.leverage_control:
            RegimeAwareLeverageController.parse(self.leverage_control, self.leverage)
            if not self.encoded:
                raise ConfigError(
                    f"leverage_control={self.leverage_control!r} needs an encoder's regime odds: pass encoded='jepa' "
                    "as well, or make PerpFutures-JEPA-RegimeLeverage-v0"
                )


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not low <= value <= high
    ):
        raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
