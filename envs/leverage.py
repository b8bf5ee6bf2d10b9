"""Regime-aware leverage: how much exposure the market of each bar allows, from an encoder's odds of the regimes.

With odds p of K regimes at the close of bar t, r the most likely one and c = p_r its odds, base leverage b, multipliers
m and maximum M::

    L = clip(b m_r, 1, M)              without confidence_scaling
    L = clip(b sum_k p_k m_k, 1, M)    with it: a regime weighs as much as it is likely
    L = max(1, L h)      where the regime has just changed (h = transition_factor, a half)
    L = 1                where c < minimum_confidence, or the bar is unlike what the encoder was trained on
    L = 1                where odds cannot be read, or no multiplier is known for r; such bars are counted

Of these the smallest of the last ``patience_bars`` bars is asked for: a cut acts at once, and leverage rises only when
every one of them allowed it, since odds tremble and each change of L is a trade. It depends on the market alone, so
that it is decided once for every bar (:class:`LeverageControl`), from what is known at its close. An account then gets
the smaller of L and what the margin tiers allow it (:func:`markets.perpetual.bounded_leverage`), inside the compiled
step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from envs.encoding import Encoded
from markets.errors import ConfigError, unknown
from markets.table import CausalTable

Floats = NDArray[np.float64]

MINIMUM = 1.0  # leverage where nothing is known
CUTS = ("", "patience", "transition", "confidence", "novelty", "unknown")  # why a bar has less; a later one overrules
CUT_NAMES = np.array(CUTS, dtype=object)
CALM, WILD = 1.5, 0.5  # multipliers of the calmest and the wildest regime where none are given, the others between
COLUMN = "requested_leverage"
SUM_ERROR = 1e-3  # odds are served as float32, and may be those of merged regimes
KIND = "regime"
LONGEST = 4096  # bars that may be looked back on


@dataclass(frozen=True, eq=False)
class LeverageControl:
    """What a controller asks for, bar by bar.

    Attributes:
        requested: ``(T,)`` leverage of a decision at the close of each bar, before the margin tiers.
        cut: ``(T,)`` why it is lower than its regime's, as a place in ``CUTS``.
        fallbacks: ``(T + 1,)`` how many bars before each one had odds that could not be read.
        table: one observed column, ``requested / maximum``; None where a wrapper scales an environment by hand.
        specification: the settings as text.
    """

    requested: Floats
    cut: NDArray[np.int8]
    fallbacks: NDArray[np.int64]
    table: CausalTable | None
    specification: str

    def facts(self, rows: Any, starts: Any) -> dict[str, Any]:
        """Return what info tells of bars ``rows`` in episodes that began at ``starts``; numbers or ``(N,)`` arrays."""
        return {
            "requested_leverage": self.requested[rows],
            "leverage_cut": CUT_NAMES[self.cut[rows]],
            "leverage_fallbacks": self.fallbacks[rows + 1] - self.fallbacks[starts],
        }


@dataclass(frozen=True)
class RegimeAwareLeverageController:
    """Leverage by regime; the formula stands above.

    Attributes:
        base_leverage: b. max_leverage: M, at most 125; the tiers of a contract may allow less.
        multipliers: of each regime, calmest first (encoders order them by volatility), or regime -> multiplier. A
            regime without one counts as unknown. None: evenly from 1.5 to 0.5, which is a choice and no calibration.
        confidence_scaling: weigh the multipliers by the odds of their regimes; one that is not known weighs as 1 / b.
        minimum_confidence: odds of the most likely regime below which leverage is 1.
        transition_factor: h. transition_odds: odds of a recent change from which it applies (1: never). Where regimes
            overlap, a half is seldom reached: with the shipped weights after 3 % of the switches of
            ``synthetic:crypto`` within 24 bars, and 0.3 after 40 %, in 5 % of all bars.
        transition_bars: what is recent; None is a sixth of the mean spell of the encoder's chain.
        patience_bars: how many bars have to allow a leverage before it is asked for, this one among them.
        novelty_limit: mean square of the standardised embedding, 1 on the encoder's training range, above which a bar
            is unlike that range. It is at most 25, the embedding being clipped at 5 deviations; 25 never cuts.

    Raises:
        ConfigError: a setting outside its range; names it.
    """

    base_leverage: float = 2.0
    max_leverage: float = 5.0
    multipliers: Mapping[int, float] | Sequence[float] | None = None
    confidence_scaling: bool = True
    minimum_confidence: float = 0.3
    transition_factor: float = 0.5
    transition_odds: float = 0.5
    transition_bars: int | None = None
    patience_bars: int = 12
    novelty_limit: float = 6.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("base_leverage", 1.0, 125.0), ("max_leverage", 1.0, 125.0), ("minimum_confidence", 0.0, 1.0),
            ("transition_factor", 0.0, 1.0), ("transition_odds", 0.0, 1.0), ("novelty_limit", 0.0, 25.0),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), low, high)
        if not isinstance(self.confidence_scaling, bool):
            raise ConfigError(f"confidence_scaling={self.confidence_scaling!r} must be True or False")
        for name in ("transition_bars", "patience_bars"):
            bars = getattr(self, name)
            if bars is None and name == "transition_bars":
                continue
            if isinstance(bars, bool) or not isinstance(bars, int | np.integer) or not 1 <= bars <= LONGEST:
                raise ConfigError(f"{name}={bars!r} must be a whole number from 1 to {LONGEST}")
        for regime, value in _items(self.multipliers):
            if isinstance(regime, bool) or not isinstance(regime, int | np.integer) or not 0 <= regime < 1_000:
                raise ConfigError(f"multipliers: regime {regime!r} must be a whole number from 0 to 999")
            _check_number(f"multipliers[{regime}]", value, 0.0, 125.0)

    @classmethod
    def parse(cls, text: str, base_leverage: float) -> RegimeAwareLeverageController:
        """Read ``regime?max_leverage=5&multipliers=1.5,1,0.5``, as the argument ``leverage_control`` has it.

        Raises:
            UnknownNameError: an unknown kind or setting. ConfigError: a value that cannot be read, or out of range.
        """
        kind, _, query = text.partition("?")
        if kind != KIND:
            raise unknown("leverage_control", kind, (KIND,))
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as error:
            raise ConfigError(f"leverage_control={text!r}: settings are name=value with & between them") from error
        settings: dict[str, Any] = {}
        for name, value in pairs:
            if name not in READERS:
                raise unknown("setting of leverage_control", name, READERS)
            if name in settings:
                raise ConfigError(f"leverage_control={text!r} names {name!r} twice")
            try:
                settings[name] = READERS[name](value)
            except ValueError as error:
                raise ConfigError(f"leverage_control: {name}={value!r} cannot be read") from error
        return cls(base_leverage=float(base_leverage), **settings)

    @property
    def specification(self) -> str:
        """The settings that are not the default as text, which :meth:`parse` reads beside the base leverage."""
        told = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "base_leverage" or value == item.default:
                continue
            if item.name == "multipliers":
                pairs = _items(value)
                plain = [regime for regime, _ in pairs] == list(range(len(pairs)))
                value = ",".join(f"{float(m)!r}" if plain else f"{k}:{float(m)!r}" for k, m in pairs)
            told.append(f"{item.name}={value}")
        return KIND + ("?" + "&".join(told) if told else "")

    def compute_optimal_leverage(self, odds: Any) -> Any:
        """Return the leverage of regime odds ``(K,)``, a float, or ``(T, K)``, an array: before changes and novelty.

        Odds that are not finite, negative, all zero or do not add up to 1, and a regime without a multiplier, get 1.
        """
        table = np.atleast_2d(np.asarray(odds, np.float64))
        leverage, _ = self._by_regime(table)
        return float(leverage[0]) if np.ndim(odds) == 1 else leverage

    def should_reduce_exposure(self, change_odds: Any) -> Any:
        """Tell whether the regime has just changed, from the odds that it did (``encoder.change_odds(bars)``).

        Args:
            change_odds: a number, or ``(T,)``; NaN counts as a change.
        """
        if self.transition_odds >= 1.0:
            flags = np.zeros(np.shape(change_odds), bool)
        else:
            flags = ~(np.asarray(change_odds, np.float64) < self.transition_odds)
        return bool(flags) if np.ndim(change_odds) == 0 else flags

    def decide(self, odds: Any, change_odds: Any, novelty: Any) -> tuple[Floats, NDArray[np.int8]]:
        """Return the leverage of each bar ``(T,)``, and why it is cut: ``(T,)``, places in ``CUTS``.

        Row t knows bars 0..t, and before ``patience_bars`` have passed those that there were.

        Args:
            odds: ``(T, K)`` of the regimes. change_odds: ``(T,)`` that the regime changed lately.
            novelty: ``(T,)`` mean square of the standardised embedding; NaN counts as unlike the training range.
        """
        table = np.asarray(odds, np.float64)
        leverage, cut = self._by_regime(table)
        known = cut != CUTS.index("unknown")
        changed = self.should_reduce_exposure(np.asarray(change_odds, np.float64))
        leverage = np.where(changed, np.maximum(leverage * self.transition_factor, MINIMUM), leverage)
        cut[known & changed & (cut == 0)] = CUTS.index("transition")
        unlike = ~(np.asarray(novelty, np.float64) <= self.novelty_limit)
        leverage[unlike] = MINIMUM
        cut[known & unlike] = CUTS.index("novelty")
        patient = leverage.copy()
        for back in range(1, min(self.patience_bars, len(leverage))):
            np.minimum(patient[back:], leverage[:-back], out=patient[back:])
        cut[(cut == 0) & (patient < leverage)] = CUTS.index("patience")
        return patient, cut

    def control(self, encoded: Encoded) -> LeverageControl:
        """Decide every bar of an encoded market.

        Raises:
            ConfigError: the encoder's odds have fewer regimes than there are multipliers, or say nothing of changes.
        """
        values, count = encoded.table.values, encoded.regimes
        beyond = [regime for regime, _ in _items(self.multipliers) if regime >= count]
        if beyond:
            raise ConfigError(
                f"multipliers name regime {beyond[0]}, and encoder {encoded.name!r} has {count}, counted from 0"
            )
        if encoded.change is None:
            raise ConfigError(
                f"encoder {encoded.name!r} has no odds of a change of regime: leverage_control needs them"
            )
        embedding = values[:, :-count].astype(np.float64)
        novelty = np.mean(embedding * embedding, axis=1)
        requested, cut = self.decide(values[:, -count:], encoded.change(self.transition_bars), novelty)
        back = self.patience_bars - 1 + (self.transition_bars or encoded.change_bars)  # bars that a decision looks back
        table = encoded.table
        unknown_rows = cut == CUTS.index("unknown")
        unknown_rows[: table.valid_from] = False  # never served
        column = (requested / self.max_leverage).astype(np.float32)[:, None]
        served = CausalTable(
            values=np.ascontiguousarray(column), names=(COLUMN,), low=np.zeros(1, np.float32),
            high=np.ones(1, np.float32), valid_from=min(table.valid_from + back, len(table)), bars_hash=table.bars_hash,
            train_end=table.train_end,
        )  # fmt: skip
        fallbacks = np.concatenate([[0], np.cumsum(unknown_rows)])
        return LeverageControl(requested, cut, fallbacks, served, self.specification)

    def _by_regime(self, odds: Floats) -> tuple[Floats, NDArray[np.int8]]:
        """Return leverage by regime and confidence ``(T,)``, and the cuts that these two made."""
        count = odds.shape[1]
        multipliers = self._of_regimes(count)
        with np.errstate(invalid="ignore"):
            valid = np.isfinite(odds).all(axis=1) & (odds >= 0.0).all(axis=1)
            valid &= np.abs(odds.sum(axis=1) - 1.0) <= SUM_ERROR
        safe = np.where(valid[:, None], odds, 0.0)
        regime = safe.argmax(axis=1)
        confidence = np.minimum(safe[np.arange(len(safe)), regime], 1.0)
        multiplier = multipliers[regime]
        valid &= np.isfinite(multiplier)
        if self.confidence_scaling:
            weights = np.where(np.isfinite(multipliers), multipliers, MINIMUM / self.base_leverage)
            multiplier = np.sum(safe * weights, axis=1)  # no matrix product: its last bit may depend on T
        wanted = np.where(valid, self.base_leverage * multiplier, MINIMUM)
        leverage = np.clip(wanted, MINIMUM, self.max_leverage)
        doubtful = confidence < self.minimum_confidence
        cut = np.zeros(len(odds), np.int8)
        cut[doubtful] = CUTS.index("confidence")
        cut[~valid] = CUTS.index("unknown")
        return np.where(valid & ~doubtful, leverage, MINIMUM), cut

    def _of_regimes(self, count: int) -> Floats:
        """Return the multiplier of each of ``count`` regimes, NaN where none is known."""
        if self.multipliers is None:
            return np.linspace(CALM, WILD, count)
        known = dict(_items(self.multipliers))
        return np.array([known.get(regime, np.nan) for regime in range(count)], np.float64)


def _items(multipliers: Mapping[int, float] | Sequence[float] | None) -> list[tuple[int, float]]:
    if multipliers is None:
        return []
    if isinstance(multipliers, Mapping):
        return sorted(multipliers.items())
    if isinstance(multipliers, str) or not isinstance(multipliers, Sequence | np.ndarray):
        raise ConfigError(f"multipliers={multipliers!r} must be numbers, or regime -> number")
    return list(enumerate(multipliers))


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}")


def _multipliers_of(text: str) -> dict[int, float]:
    """Read ``1.5,1,0.5``, or with the regimes named ``0:1.5,2:0.5``."""
    found: dict[int, float] = {}
    for place, part in enumerate(text.split(",")):
        regime, separator, value = part.rpartition(":")
        key = int(regime) if separator else place
        if key in found:
            raise ValueError(f"regime {key} twice")
        found[key] = float(value)
    return found


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("neither True nor False")
    return text.lower() == "true"


READERS: dict[str, Any] = {
    "max_leverage": float, "multipliers": _multipliers_of, "confidence_scaling": _truth, "minimum_confidence": float,
    "transition_factor": float, "transition_odds": float, "transition_bars": int, "patience_bars": int,
    "novelty_limit": float,
}  # fmt: skip
