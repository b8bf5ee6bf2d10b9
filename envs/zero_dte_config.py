"""Arguments of the ZeroDTE environment, checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from encoders.signals.fitted import SignalSet
from envs.rewards import parse_reward
from envs.splits import SPLITS
from envs.zero_dte_columns import TERM_COLUMNS
from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.option_contract import SameDayOption, check_number
from markets.session_features import SessionScaler

DEFAULT_BARS = "synthetic:spy?seed=0&sessions=500"
ACTIONS = ("discrete", "sized")
VOLATILITIES = ("vix", "grid")

_CONTRACT = (
    "strike_spacing", "fee", "entry_cut_off", "forced_exit", "settlement", "variance_premium", "fill", "fill_rate",
    "fill_decay", "selection", "order_life", "order_repegs", "offered",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroDTEConfig:
    """Arguments of ``gym.make("ZeroDTE-v0", ...)``; names and numbers only.

    Attributes:
        bars: source specification of one-minute bars with sessions (or a ``Bars`` where the env is built directly).
        split: ``train``, ``validation`` or ``test``, whole sessions each.
        train_end, validation_end: dates that end the splits (a date includes its day); fractions .6/.2/.2 without.
        scaler: a JSON file with a fitted session scaler; fitted on the training sessions without.
        allow_in_sample: let a validation or test episode begin inside the range that a scaler, encoder or signal was
            fitted on.
        random_start: a session at random (training), or one after the other in their order (evaluation).
        actions: ``discrete``, or ``sized``: a second number chooses 25, 50, 75 or 100 % of the risk budget.
        initial_equity: USD at the opening of every session. risk: the budget of a purchase, as a share of the cash.
        contracts: a fixed number of contracts that every purchase is for, in place of the budget; one that the cash
            does not pay for is not legal. None: the budget decides.
        strike_offset: strikes out of the money from the one nearest to the last price; negative: in the money.
        iv: where the implied volatility comes from. ``vix``: the index's previous close x ``vix_ratio`` / 100 on the
            calendar clock, converted, constant through the day on the variance clock. ``grid``: the bars'
            ``atm_volatility`` (a source's ``grid=FILE``) from the bar on at whose close it is known, and ``vix`` before
            it and in sessions without one.
        vix_ratio: same-day over 30-day implied volatility.
        smile: slope at 10:00 and at 14:00, curvature at 10:00 and at 14:00, as four numbers with commas between them;
            None: those of :class:`markets.option_contract.SameDayOption`, which were fitted on 2023-11 to 2025-06. Of
            what lies before 2024-09 it is ``-0.0461,-0.0404,0.0317,0.0496``.
        reward: terms with weights, see :mod:`envs.rewards`; there is no funding here.
        sharpe_rate: eta of the differential Sharpe ratio.
        cost_scale: multiplies fee and spread; a spread is never less than one tick.
        strike_spacing, fee, entry_cut_off, forced_exit, settlement, variance_premium, fill, fill_rate, fill_decay,
        selection, order_life, order_repegs, offered: of the contract, see
            :class:`markets.option_contract.SameDayOption`.
        encoded: kind of encoder whose columns are appended; none without. encoder: folder of its weights, or the name
            of shipped ones. odds: whose regime odds it serves: ``belief``, ``softmax`` or ``kmeans``.
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
    scaler: str | SessionScaler | None = None
    allow_in_sample: bool = False
    random_start: bool | None = None
    actions: str = "discrete"
    initial_equity: float = 100_000.0
    risk: float = 0.02
    contracts: int | None = None
    strike_offset: int = 0
    iv: str = "vix"
    vix_ratio: float = 1.29
    smile: str | None = None
    reward: str = "log_return"
    sharpe_rate: float = 0.01
    cost_scale: float = 1.0
    strike_spacing: float = SameDayOption.strike_spacing
    fee: float = SameDayOption.fee
    entry_cut_off: float = SameDayOption.entry_cut_off
    forced_exit: float | None = SameDayOption.forced_exit
    settlement: str = SameDayOption.settlement
    variance_premium: float = SameDayOption.variance_premium
    fill: str = SameDayOption.fill
    fill_rate: float = SameDayOption.fill_rate
    fill_decay: float = SameDayOption.fill_decay
    selection: float = SameDayOption.selection
    order_life: float = SameDayOption.order_life
    order_repegs: float = SameDayOption.order_repegs
    offered: float = SameDayOption.offered
    encoded: str = ""
    encoder: str | None = None
    odds: str = "belief"
    signals: str | SignalSet = ""
    hide: str = ""

    def __post_init__(self) -> None:
        for name, valid in (("split", SPLITS), ("actions", ACTIONS), ("iv", VOLATILITIES)):
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid)
        for name, low, high in (
            ("initial_equity", 1.0, 1e12), ("risk", 1e-6, 1.0), ("strike_offset", -50, 50), ("vix_ratio", 0.1, 10.0),
            ("sharpe_rate", 1e-9, 1.0), ("cost_scale", 0.0, 1e3),
        ):  # fmt: skip
            check_number(name, getattr(self, name), low, high)
        if self.contracts is not None:
            check_number("contracts", self.contracts, 1, 1e6, " or None for the budget's")
            if self.contracts != int(self.contracts):
                raise ConfigError(f"contracts={self.contracts!r} must be a whole number: {round(self.contracts)}")
            if self.actions == "sized":
                raise ConfigError(
                    f"contracts={self.contracts!r} leaves no size to choose: pass actions='discrete' with it"
                )
        if self.strike_offset != int(self.strike_offset):
            raise ConfigError(f"strike_offset={self.strike_offset!r} must be a whole number of strikes")
        for name, kinds in (
            ("bars", (str, Bars)), ("train_end", str), ("validation_end", str), ("encoded", str), ("encoder", str),
            ("odds", str), ("hide", str), ("signals", (str, SignalSet)), ("smile", str),
            ("scaler", (str, SessionScaler)),
        ):  # fmt: skip
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kinds):
                hint = "; register bars of your own with regimegym.register_bars" if name == "bars" else ""
                raise ConfigError(f"{name} must be text, not {type(getattr(self, name)).__name__}{hint}")
        if self.random_start not in (None, True, False):
            raise ConfigError(f"random_start={self.random_start!r} must be True, False or None")
        if not isinstance(self.allow_in_sample, bool):
            raise ConfigError(f"allow_in_sample={self.allow_in_sample!r} must be True or False")
        if not isinstance(self.reward, str):
            raise ConfigError(f"reward={self.reward!r} must be text, such as 'log_return=1,drawdown=0.5'")
        for name in parse_reward(self.reward):
            if name not in TERM_COLUMNS:
                raise unknown("reward term of ZeroDTE", name, TERM_COLUMNS)
        if not self.encoded and (self.encoder is not None or self.odds != "belief"):
            name = "encoder" if self.encoder is not None else "odds"
            raise ConfigError(f"{name}={getattr(self, name)!r} needs an encoder: pass encoded='jepa' as well")
        _ = self.contract  # checks its own fields

    @cached_property
    def contract(self) -> SameDayOption:
        """The option contract that these arguments describe."""
        return SameDayOption(**{name: getattr(self, name) for name in _CONTRACT}, **_smile(self.smile))


def _smile(text: str | None) -> dict[str, Any]:
    """Read the four numbers of a smile."""
    if text is None:
        return {}
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ConfigError(
            f"smile={text!r} must be four numbers with commas between them: slope at 10:00 and at 14:00, curvature at "
            "10:00 and at 14:00, such as '-0.0461,-0.0404,0.0317,0.0496'"
        )
    return {"smile_slope": (numbers[0], numbers[1]), "smile_curvature": (numbers[2], numbers[3])}
