"""Sentiment of headlines: a lexicon baseline, and nothing at all without headlines.

    tone of a headline = (positive words - negative words) / (positive words + negative words), 0 without either
    direction = mean tone of the headlines with a tone in the last ``hours``, confidence = |direction| n / (n + 3)

A row knows headlines that were published strictly before its bar closed. Without headlines the signal is neutral with
confidence 0 and says so; it then has no vote in an ensemble, whose weight for sentiment is 0 unless it is given one.
The word lists are short and made for this baseline; a better model of text is another row of the table.

Headlines: a CSV file with columns ``time`` (UTC) and ``headline``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from encoders.signals.model import Floats, SignalModel, Votes
from markets import sources
from markets.bars import Bars, as_time
from markets.errors import ConfigError, DataError
from markets.sources.files import read_table

POSITIVE = frozenset([
    "adopt", "adoption", "advance", "approval", "approve", "beat", "bullish", "boom", "breakthrough", "climb",
    "gain", "growth", "high", "inflow", "inflows", "jump", "launch", "optimism", "outperform", "partnership",
    "profit", "rally", "rebound", "record", "recover", "recovery", "rise", "soar", "support", "surge", "upgrade",
    "win", "gains", "climbs", "jumps", "rallies", "rebounds", "recovers", "rises", "soars", "surges", "approves",
    "approved", "beats",
])  # fmt: skip
NEGATIVE = frozenset([
    "ban", "bankrupt", "bankruptcy", "bearish", "breach", "collapse", "crackdown", "crash", "decline", "default",
    "delay", "downgrade", "drop", "exploit", "fall", "fear", "fine", "fraud", "hack", "halt", "lawsuit",
    "liquidation", "loss", "low", "outflow", "outflows", "panic", "plunge", "probe", "reject", "risk", "sell-off",
    "selloff", "sink", "slump", "sue", "theft", "tumble", "warning", "bans", "crashes", "declines", "drops",
    "falls", "hacked", "losses", "plunges", "sinks", "slumps", "sues", "tumbles", "rejects", "rejected",
])  # fmt: skip
WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")
DOUBT = 3.0  # headlines at which confidence is half of what many would give


@dataclass(eq=False)
class Sentiment(SignalModel):
    """Lexicon sentiment; see the module.

    Attributes:
        headlines: CSV file of headlines; none, and the signal is neutral.
        hours: how long a headline counts.
    """

    name: ClassVar[str] = "sentiment"
    sessions: ClassVar[bool] = True  # a row knows times, not bars
    described: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = (
        ("direction", "mean tone of the n headlines of the last 24 hours", "exposure", "-1 .. 1", "0"),
        ("confidence", "|direction| n / (n + 3)", "share", "0 .. 1", "0"),
    )

    headlines: str = ""
    hours: float = 24.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._given: tuple[NDArray[np.datetime64], Floats] | None = None

    def check(self) -> None:
        """Raise for a setting that cannot work."""
        if not 0.0 < self.hours <= 24.0 * 365.0:
            raise ConfigError(f"hours={self.hours!r} must lie in (0, 8760]")

    def fit(self, bars: Bars) -> Self:
        """Take note of the symbols; nothing is fitted, so no bars are in its sample."""
        super().fit(bars)
        self.train_end = None
        return self

    def learn(self, bars: Bars) -> dict[str, Any]:
        """Return nothing, the word lists are fixed; a file that cannot be read is told here, not at the first walk."""
        self._read()
        return {}

    @property
    def look_back(self) -> int:
        """A row depends on headlines, and on the time of its own bar alone."""
        return 0

    def give(self, times: Sequence[Any], texts: Sequence[str]) -> Self:
        """Take headlines in memory in place of a file; returns self.

        Raises:
            DataError: not as many texts as times.
        """
        if len(times) != len(texts):
            raise DataError(f"{len(times)} times for {len(texts)} headlines")
        stamps = np.array([as_time(time, "time") for time in times], "datetime64[ns]")
        order = np.argsort(stamps, kind="stable")
        self._given = stamps[order], np.array([tone(str(texts[place])) for place in order], float)
        return self

    def votes(self, bars: Bars) -> Votes:
        """Compute direction and confidence of every bar, the same for all assets."""
        times, tones = self._read()
        said = tones != 0.0
        times, sums = times[said], np.concatenate([[0.0], np.cumsum(tones[said])])
        since = np.searchsorted(times, bars.close_time - np.timedelta64(round(self.hours * 3600.0), "s"), side="left")
        until = np.searchsorted(times, bars.close_time, side="left")
        count = until - since
        direction = np.clip((sums[until] - sums[since]) / np.maximum(count, 1), -1.0, 1.0)
        direction[np.abs(direction) < 1e-12] = 0.0
        confidence = np.abs(direction) * count / (count + DOUBT)
        wide = (1, len(bars.symbols))
        return Votes(np.tile(direction[:, None], wide), np.tile(confidence[:, None], wide), {})

    def outside(self) -> str:
        """Identify the headlines, given in memory or in the file."""
        times, tones = self._read()
        return hashlib.sha256(times.tobytes() + tones.tobytes()).hexdigest()

    def status(self) -> str:
        """Say that there is nothing to read, where there is not."""
        return "" if self.headlines or self._given else "no headlines were given: neutral with confidence 0"

    def _read(self) -> tuple[NDArray[np.datetime64], Floats]:
        if self._given is None and self.headlines:
            path = sources.find(self.headlines)
            table = read_table(path, "csv")
            missing = {"time", "headline"} - set(table.columns)
            if missing:
                raise DataError(f"{path}: column {sorted(missing)[0]!r} is missing; time and headline are needed")
            self.give(table["time"].tolist(), table["headline"].tolist())
        return self._given or (np.empty(0, "datetime64[ns]"), np.empty(0))


def tone(text: str) -> float:
    """Return the tone of a headline, -1 to 1; 0 where it has no word of either list, or as many of both."""
    words = WORD.findall(text.lower())
    good, bad = sum(word in POSITIVE for word in words), sum(word in NEGATIVE for word in words)
    return (good - bad) / (good + bad) if good + bad else 0.0
