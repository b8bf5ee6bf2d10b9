"""EnsembleAgent: members under one ``predict``; their votes, weighed by recent skill and resemblance, become one order.

At the close of bar t every member votes on what it sees at t. Weights come from paper returns up to that close: what
a member voted for at t-1 (direction times confidence), times the assets' returns from close t-1 to close t, less a cost
on what its vote changed. They are refreshed once a day of bars; see :mod:`agents.ensemble_weights` for the formulas.

*Decision*, per asset: BUY where ``direction > threshold`` and ``confidence >= floor``, SELL where ``direction <
-threshold`` and so, else HOLD. *Size* ``= max_size min(confidence / full, 1)``, 0 for HOLD; the action is the size with
the sign. HOLD keeps the exposure that is held, which sends no order (``unsure="flat"`` closes it instead).

*Who fails* (raises, answers late, with a wrong shape or a number that is not finite) is left out of that vote and the
weights of the rest are scaled up; where everybody fails, the ensemble holds. Numbers beyond [-1, 1] are clipped. A
member that says of itself that it has nothing to say (``silent``: no pair was found, no headlines were given) is left
out in the same way; one that merely abstains on a bar makes the ensemble less sure.

``combine="select"`` follows one member at a time, chosen once a day by the paper returns of the window up to that
close, costs included: the best by its lower bound (:func:`agents.selection.best_of`). It stands aside (flat) where no
bound is above 0.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation, Votes
from agents.ensemble_memory import DAY, EnsembleMemory
from agents.ensemble_settings import EnsembleSettings, position_size
from agents.ensemble_weights import base_weights, combine, without_echoes
from agents.market_view import MarketView
from markets.errors import ConfigError

Floats = NDArray[np.float64]
LABELS = ("SELL", "HOLD", "BUY")  # of decisions -1, 0, 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What the ensemble made of a vote: ``label`` -1 SELL, 0 HOLD, 1 BUY, ``confidence`` and ``size``, ``(B, A)`` each.

    Attributes:
        direction: combined direction. weights: ``(B, M)`` of the members in this vote, 0 for who failed.
    """

    label: NDArray[np.int64]
    confidence: Floats
    size: Floats
    direction: Floats
    weights: Floats


class EnsembleAgent(Agent):
    """Several agents as one.

    Attributes:
        members, roles, base: the M members, what each is, and the weight it begins with.
        last: the decision of the last ``predict``. failures: how often each member failed, by name.
        counts: BUY, SELL, HOLD and high-confidence signals of lane 0 and its first asset. spoke: on how many of its
            bars each member voted on any asset. All since the last ``bind``.
    """

    name = "ensemble"

    def __init__(
        self, members: Sequence[Agent], roles: Sequence[str], settings: EnsembleSettings | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(members) != len(roles):
            raise ConfigError(f"{len(members)} members have {len(roles)} roles")
        self.members, self.roles = tuple(members), tuple(roles)
        self.settings = settings or EnsembleSettings()
        self.base = base_weights(roles, weights)
        self.manifest: dict[str, Any] = {}
        self.scaler: Any = None
        self.last: Decision | None = None
        self.failures: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.spoke: Counter[str] = Counter()
        self._view: MarketView | None = None
        self._held: list[int] = []
        self._asked: list[_Question | None] = [None] * len(members)

    @property
    def observed(self) -> Any:
        """The fitted signals that its members were trained with, None where none was."""
        return next((found for found in (getattr(member, "observed", None) for member in self.members) if found), None)

    def bind(self, observation_names: Sequence[str]) -> Agent:
        """Bind every member, and find the columns that say what is held."""
        names = list(observation_names)
        for member in self.members:
            member.bind(names)
        weights = [k for k, name in enumerate(names) if name.endswith("_weight") and name != "cash_weight"]
        self._held = [names.index("exposure")] if "exposure" in names else weights
        self.counts.clear()
        self.spoke.clear()
        self.failures.clear()
        return super().bind(names)

    def watch(self, view: MarketView) -> Agent:
        """Watch the market, and let the members do so."""
        self._view = view
        for member in self.members:
            member.watch(view)
        return self

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[NDArray[Any], Any]:  # fmt: skip
        """Choose actions; see :meth:`agents.agent.Agent.predict`. ``state`` remembers votes and paper returns.

        Raises:
            ConfigError: not bound, not watching, or an observation of another width.
        """
        if self._columns is None or self._view is None:
            raise ConfigError(
                f"agent {self.name!r} is not ready: call bind(names) and watch(view_of(env)) first (agents.market_view)"
            )
        seen = self._numbers(observation)
        if seen.ndim not in (1, 2) or seen.shape[-1] != self._width:
            raise ConfigError(f"observation has shape {seen.shape}; {self.name!r} is bound to {self._width} columns")
        batch = np.atleast_2d(seen)
        memory = self._memory(state, len(batch), episode_start)
        direction, confidence, alive = self._votes(batch, memory, episode_start, deterministic)
        memory.close(self._view, direction, confidence, alive)
        self.last = decision = self._decide(memory, direction, confidence, alive)
        held = self._exposure(batch, memory)
        rest = np.zeros_like(held) if self.settings.unsure == "flat" else held
        anybody = np.asarray(alive.any(axis=1))[:, None]
        rest = np.where(anybody, rest, held)
        if self.settings.combine == "select":  # none to follow is a decision to stand aside, not a doubt
            rest = np.where((memory.chosen < 0)[:, None] & anybody, 0.0, rest)
        actions = np.where(decision.label == 0, rest, decision.label * decision.size).astype(np.float32)
        memory.asked = actions.astype(np.float64)
        self._count(decision, (direction[0] * confidence[0] != 0.0).any(axis=1))
        return (actions[0] if seen.ndim == 1 else actions), memory

    def vote(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Votes:
        """Return the combined vote, so that an ensemble can be a member too."""
        _, state = self.predict(observation, state, episode_start, deterministic)
        assert self.last is not None
        sure = np.where(self.last.label == 0, 0.0, self.last.confidence)
        return self.last.label.astype(np.float64), sure, state

    def report(self) -> str:
        """Say in a sentence what it did since it was bound: signals of the first asset, high-confidence ones a day, who
        voted how often, failures."""
        bars = self.counts["bars"]
        days = bars * float(self._view.bars.interval / DAY) if self._view is not None else 0.0
        said = ", ".join(f"{label} {self.counts[label]}" for label in ("BUY", "SELL", "HOLD"))
        failed = ", ".join(f"{name} {count}" for name, count in self.failures.items()) or "none"
        rate = self.counts["new"] / days if days else 0.0
        high = self.counts["high"] / days if days else 0.0
        shares = ", ".join(f"{member.name} {self.spoke[member.name] / max(bars, 1):.0%}" for member in self.members)
        settings, silent = self.settings, ""
        if bars and not self.counts["BUY"] + self.counts["SELL"]:
            silent = f" (no direction beyond {settings.threshold:g} with a confidence of {settings.floor:g})"
        symbols = () if self._view is None else self._view.bars.symbols
        asset = f", {symbols[0]}" if len(symbols) > 1 else ""
        return (
            f"{bars} bars of the first lane{asset}: {said}{silent}; confidence >= {self.settings.high:g} on "
            f"{high:.2f} bars a day, "
            f"{rate:.2f} of them new signals; bars with a vote of {shares}; failures: {failed}"
        )

    def check(self, env: Any) -> None:
        """Raise unless every member that can tell means in ``env`` what it meant where it was trained.

        A member that was trained without an encoder or signals may act beside them: it does not read their columns.
        """
        from agents.artefact import PolicyAgent

        for member in self.members:
            if isinstance(member, PolicyAgent):
                member.check(env, beside_encoder=True)
            elif hasattr(member, "check"):
                member.check(env)

    def _memory(self, state: Any, lanes: int, episode_start: Any) -> EnsembleMemory:
        if state is None:
            assert self._view is not None
            return EnsembleMemory(self.base, self.settings, lanes, self._view)
        if not isinstance(state, EnsembleMemory) or len(state.row) != lanes:
            raise ConfigError(
                f"state is {type(state).__name__}; {self.name!r} wants what its last predict returned for {lanes} "
                "lane(s), or None to begin anew"
            )
        if episode_start is not None:
            state.forget(np.broadcast_to(np.atleast_1d(np.asarray(episode_start, bool)), (lanes,)))
        return state

    def _votes(
        self, batch: Observation, memory: EnsembleMemory, episode_start: Any, deterministic: bool
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Ask everybody: direction and confidence ``(B, M, A)``, and who answered ``(B, M)``."""
        shape = (len(batch), len(self.members), memory.assets)
        direction, confidence = np.zeros(shape), np.zeros(shape)
        alive = np.zeros(shape[:2], bool)
        for place, member in enumerate(self.members):
            try:
                if getattr(member, "silent", ""):
                    continue
                answer = self._ask(place, batch, memory.states[place], episode_start, deterministic)
                says, sure = (np.asarray(part, np.float64) for part in answer[:2])
                if says.shape != (shape[0], shape[2]) or sure.shape != says.shape:
                    raise ConfigError(
                        f"votes have shapes {says.shape} and {sure.shape}, expected {(shape[0], shape[2])}"
                    )
            except Exception as error:
                self._failed(member, repr(error))
                memory.states[place] = None  # whatever it remembered may be half an answer
                continue
            memory.states[place] = answer[2]
            fine: NDArray[np.bool_] = np.isfinite(np.concatenate([says, sure], axis=1)).all(axis=1)
            if not fine.all():
                self._failed(member, "its vote is not finite")
            alive[:, place] = fine
            direction[:, place] = np.where(fine[:, None], np.clip(says, -1.0, 1.0), 0.0)
            confidence[:, place] = np.where(fine[:, None], np.clip(sure, 0.0, 1.0), 0.0)
        return direction, confidence, alive

    def _ask(self, place: int, batch: Observation, state: Any, episode_start: Any, deterministic: bool) -> Any:
        member = self.members[place]
        if not self.settings.timeout:
            return member.vote(batch.copy(), state, episode_start, deterministic)  # who writes into it, does to its own
        earlier = self._asked[place]
        if earlier is not None and earlier.is_alive():
            raise TimeoutError("it still works on an earlier question")
        self._asked[place] = question = _Question(member, batch.copy(), state, episode_start, deterministic)
        question.start()
        question.join(self.settings.timeout)
        return question.answer()

    def _failed(self, member: Agent, why: str) -> None:
        if not self.failures[member.name]:
            _log.warning("member %r failed and is left out of this vote (told once): %s", member.name, why)
        self.failures[member.name] += 1

    def _decide(
        self, memory: EnsembleMemory, direction: Floats, confidence: Floats, alive: NDArray[np.bool_]
    ) -> Decision:
        settings = self.settings
        if settings.combine == "select":
            weights = (np.arange(len(self.members)) == memory.chosen[:, None]) * alive.astype(np.float64)
        else:
            weights = without_echoes(memory.weights * alive, memory.alike())
        combined, sure = combine(weights, direction, confidence)
        speaks = (np.abs(combined) > settings.threshold) & (sure >= settings.floor)
        label = np.where(speaks, np.sign(combined), 0.0).astype(np.int64)
        size = np.where(label != 0, position_size(sure, settings), 0.0)
        return Decision(label, sure, size, combined, weights)

    def _exposure(self, batch: Observation, memory: EnsembleMemory) -> Floats:
        """Return what is held: the exposure columns where there is one per asset, else what was asked for last."""
        if len(self._held) != memory.assets:
            return memory.asked
        held = batch[:, self._held].astype(np.float64)
        return np.clip(np.where(np.isfinite(held), held, memory.asked), -1.0, 1.0)

    def _count(self, decision: Decision, spoke: NDArray[np.bool_]) -> None:
        self.spoke.update(member.name for member, voted in zip(self.members, spoke, strict=True) if voted)
        label = int(decision.label[0, 0])
        high = bool(label and decision.confidence[0, 0] >= self.settings.high)
        before = self.counts["before"]
        self.counts.update({"bars": 1, LABELS[label + 1]: 1, "high": int(high)})
        self.counts["new"] += int(high and label != before)
        self.counts["before"] = label if high else 0


class _Question(threading.Thread):
    """One question to a member, in a thread that does not keep the process from ending."""

    def __init__(self, member: Agent, *words: Any) -> None:
        super().__init__(daemon=True)
        self._member, self._words = member, words
        self._answer: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        """Ask."""
        try:
            self._answer = self._member.vote(*self._words)
        except Exception as error:
            self._error = error

    def answer(self) -> Any:
        """Return the answer, or raise what it ended with; ``TimeoutError`` where it has not ended."""
        if self.is_alive():
            raise TimeoutError("no answer in time")
        if self._error is not None:
            raise self._error
        return self._answer
