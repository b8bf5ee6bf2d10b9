"""The shipped Koopman-JEPA encoder: box trunk, its softmax over regimes, and the belief filter beside it; numpy only.

A row is the embedding, standardised with training statistics and clipped to five deviations, then the odds of the K
regimes. The embedding serves what real volatility does on many scales; the belief says which regime it is. Trained by
:mod:`encoders.jepa_training`; inside an environment nothing of torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.box_trunk import LOOK_BACK, BoxTrunk, TrunkWeights
from encoders.change_odds import recent_change, usual_window
from encoders.channels import MEMORY, ChannelScaler, ChannelStream, bar_returns
from encoders.encoder import Arrays, Encoder, Provenance
from encoders.forgetting import LONGEST
from encoders.neural_belief import belief_of
from encoders.odds import Belief
from encoders.regimes import VOICES, KMeansHead, SoftmaxHead, names_of
from markets.bars import Bars
from markets.errors import ArtefactError, DataError, unknown

CLIP = 5.0  # deviations of the training range
WARM_UP = LOOK_BACK + MEMORY + 1  # of the embedding: the first bar has no return


class JEPAEncoder(Encoder):
    """Embedding and regime odds of one symbol's bars.

    Args:
        scaler: of the channels. trunk: weights. mean, deviation: ``(D,)`` of the raw embedding on the training range.
        softmax: head distilled from the smoothed belief. kmeans: centres on the standardised embedding.
        memory: bars after which the belief has forgotten where it began (:mod:`encoders.forgetting`).
        belief: fitted filter, of either emission. voice: whose odds are served: ``belief``, ``softmax`` or ``kmeans``.
    """

    kind = "jepa"

    def __init__(
        self,
        scaler: ChannelScaler,
        trunk: TrunkWeights,
        mean: NDArray[np.float32],
        deviation: NDArray[np.float32],
        softmax: SoftmaxHead,
        kmeans: KMeansHead,
        belief: Belief,
        provenance: Provenance,
        facts: Mapping[str, Any] | None = None,
        voice: str = "belief",
        memory: int = LONGEST,
    ) -> None:
        super().__init__(provenance, facts)
        if voice not in VOICES:
            raise unknown("voice", voice, VOICES)
        latent, regimes = trunk.latent, len(belief)
        if trunk.channels != len(scaler.names):
            raise ArtefactError(f"the trunk reads {trunk.channels} channels, the scaler gives {scaler.names}")
        for name, value, shape in (
            ("mean", mean, (latent,)), ("deviation", deviation, (latent,)),
            ("softmax weight", softmax.weight, (regimes, latent)), ("centres", kmeans.centres, (regimes, latent)),
        ):  # fmt: skip
            if value.shape != shape:
                raise ArtefactError(f"{name} has shape {value.shape}, expected {shape}")
        if memory < 0:
            raise ArtefactError(f"memory={memory!r} must be a number of bars of at least 0")
        if not (deviation > 0.0).all():
            raise ArtefactError("deviation of the embedding holds a number that is not positive")
        self.scaler, self.trunk_weights, self.mean, self.deviation = scaler, trunk, mean, deviation
        self.softmax, self.kmeans, self.belief, self.voice = softmax, kmeans, belief, voice
        self.trunk, self.filter = BoxTrunk(trunk), belief.filter()
        self.names = (*(f"jepa_{d:02d}" for d in range(latent)), *names_of(regimes))
        self.low = np.concatenate([np.full(latent, -CLIP), np.zeros(regimes)]).astype(np.float32)
        self.high = np.concatenate([np.full(latent, CLIP), np.ones(regimes)]).astype(np.float32)
        self.regimes = regimes
        self.memory = memory
        self.warm_up = max(WARM_UP, memory + 1)  # the first bar has no return

    def speaking(self, voice: str) -> JEPAEncoder:
        """Return the same encoder with another voice for its odds."""
        return JEPAEncoder(
            self.scaler, self.trunk_weights, self.mean, self.deviation, self.softmax, self.kmeans, self.belief,
            self.provenance, self.facts, voice, self.memory,
        )  # fmt: skip

    def embed(self, bars: Bars) -> NDArray[np.float32]:
        """Return the standardised embedding, not yet clipped: ``(T, D)``."""
        return np.asarray((self.trunk.embed(self.scaler.of_bars(bars)) - self.mean) / self.deviation)

    def odds(self, bars: Bars, voice: str | None = None) -> NDArray[np.float64]:
        """Return the odds of a voice (its own where None): ``(T, K)``."""
        chosen = self.voice if voice is None else voice
        if chosen == "belief":
            return self._beliefs(bars)
        return self._spoken(self.embed(bars), chosen)

    def change_odds(self, bars: Bars, within: int | None = None) -> NDArray[np.float64]:
        """Return the probability that the regime changed in the last ``within`` bars: ``(T,)``, ready for an info.

        It is the belief's whatever voice is served, defined in :mod:`encoders.change_odds`; row t knows bars 0..t.
        Live, a :class:`~encoders.change_odds.ChangeStream` fed with :attr:`JEPAStream.belief` gives the same numbers.
        """
        return recent_change(self._beliefs(bars), self.belief.transition, within)

    @property
    def chain(self) -> NDArray[np.float64]:
        """P of the belief filter, ``(K, K)``, for :mod:`encoders.change_odds`."""
        return self.belief.transition

    @property
    def change_bars(self) -> int:
        """What is recent where nobody says how many bars."""
        return usual_window(self.belief.transition)

    def _beliefs(self, bars: Bars) -> NDArray[np.float64]:
        returns = bar_returns(bars)[1:]
        odds = self.filter.table(returns, missing=not bars.checked)  # what is behind the checks must not spread back
        return np.concatenate([self.belief.stationary[None], odds])

    def _spoken(self, embedding: NDArray[np.float32], voice: str) -> NDArray[np.float64]:
        head: SoftmaxHead | KMeansHead = self.softmax if voice == "softmax" else self.kmeans
        return head.odds(embedding.astype(np.float64))

    def encode(self, bars: Bars) -> NDArray[np.float32]:
        """Return ``(T, D + K)`` rows: clipped embedding, odds."""
        embedding = self.embed(bars)
        odds = self.odds(bars) if self.voice == "belief" else self._spoken(embedding, self.voice)
        out = np.empty((len(bars), len(self.names)), np.float32)
        latent = embedding.shape[1]
        np.clip(embedding, -CLIP, CLIP, out=out[:, :latent])
        out[:, latent:] = np.clip(odds, 0.0, 1.0)
        return out

    def stream(self) -> JEPAStream:
        """Return the live face."""
        return JEPAStream(self)

    def config(self) -> dict[str, Any]:
        """Return the structure as plain values."""
        scaler = {**asdict(self.scaler), "names": list(self.scaler.names)}
        return {"scaler": scaler, "voice": self.voice, "memory": self.memory}

    def arrays(self) -> Arrays:
        """Return every number by name."""
        return {
            **{f"trunk.{name}": value for name, value in self.trunk_weights.arrays().items()},
            "mean": self.mean, "deviation": self.deviation,
            "softmax.weight": self.softmax.weight, "softmax.bias": self.softmax.bias,
            "kmeans.centres": self.kmeans.centres, "kmeans.width": np.array([self.kmeans.width]),
            **{f"belief.{name}": value for name, value in self.belief.arrays().items()},
        }  # fmt: skip

    @classmethod
    def build(
        cls, config: Mapping[str, Any], arrays: Arrays, provenance: Provenance, facts: Mapping[str, Any]
    ) -> JEPAEncoder:
        """Make the encoder of a file."""

        def part(prefix: str) -> Arrays:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        scaler = ChannelScaler(**{**config["scaler"], "names": tuple(config["scaler"]["names"])})
        trunk = TrunkWeights(**part("trunk."))
        softmax = SoftmaxHead(arrays["softmax.weight"], arrays["softmax.bias"])
        kmeans = KMeansHead(arrays["kmeans.centres"], float(arrays["kmeans.width"][0]))
        belief = belief_of(part("belief."))
        return cls(
            scaler, trunk, arrays["mean"], arrays["deviation"], softmax, kmeans, belief, provenance, facts,
            config["voice"], int(config["memory"]),
        )  # fmt: skip


class JEPAStream:
    """One closed bar in, its row out; equal to the table within rounding of float32."""

    def __init__(self, encoder: JEPAEncoder) -> None:
        self._encoder = encoder
        self._channels = ChannelStream(encoder.scaler)
        self._trunk = encoder.trunk.stream()
        self._belief = encoder.filter.begin()
        self._seen = 0

    def update(self, bar: Bars) -> NDArray[np.float32] | None:
        """Take one closed bar; None until the warm-up is over.

        Raises:
            DataError: a price that is not finite and positive, a volume that is not finite or below 0; the state is as
                it was.
        """
        _check(float(bar.close[-1, 0]), float(bar.volume[-1, 0]))
        return self._add(self._channels.take(bar))

    def push(self, close: float, volume: float) -> NDArray[np.float32] | None:
        """Take the close and the volume of a bar of a market without sessions, as :meth:`update` does."""
        _check(close, volume)
        return self._add(self._channels.update(close, volume))

    def _add(self, channels: NDArray[np.float32]) -> NDArray[np.float32] | None:
        encoder = self._encoder
        raw = self._trunk.update(channels)
        odds = self._belief[: encoder.regimes]
        if self._seen:
            odds = encoder.filter.update(self._belief, self._channels.last_return)
        self._seen += 1
        if self._seen <= encoder.warm_up:
            return None
        embedding = (raw - encoder.mean) / encoder.deviation
        if encoder.voice != "belief":
            odds = encoder._spoken(embedding, encoder.voice)
        row = np.concatenate([np.clip(embedding, -CLIP, CLIP), np.clip(odds, 0.0, 1.0)])
        return np.asarray(row, np.float32)

    @property
    def belief(self) -> NDArray[np.float64]:
        """Odds of the belief filter after the last bar, ``(K,)``, from the first bar on: before any, the stationary."""
        return self._belief[: self._encoder.regimes].copy()

    def state_dict(self) -> Arrays:
        """Return what has to be kept to go on."""
        trunk = {f"trunk.{name}": value for name, value in self._trunk.state().items()}
        return {
            **trunk, "channels": self._channels.state(), "belief": self._belief.copy(), "seen": np.array([self._seen])
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._trunk.restore({k.removeprefix("trunk."): v for k, v in state.items() if k.startswith("trunk.")})
        self._channels.restore(state["channels"])
        self._belief[...] = state["belief"]
        self._seen = int(state["seen"][0])


def _check(close: float, volume: float) -> None:
    if not (math.isfinite(close) and close > 0.0):
        raise DataError(f"close {close!r} is not a finite and positive price")
    if not (math.isfinite(volume) and volume >= 0.0):
        raise DataError(f"volume {volume!r} is not a finite number of at least 0")
