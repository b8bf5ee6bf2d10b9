"""SignalAgent: a signal under the predict protocol, and its file, ``signal.zip``.

The agent looks its row up in the signal's causal table, so it has to know where an observation stands: ``watch`` gives
it the market (a walk does that; in a loop of one's own it is ``agent.watch(view_of(env))``). Its action is the
direction, for each asset of the bars; a row before the warm-up is neutral. Files hold text (JSON, and xgboost's JSON),
a scaler, and the name of the model in the table of signals, never code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents import fit
from agents.agent import Agent, Observation, Votes
from agents.differences import differences
from agents.market_view import MarketView
from agents.provenance import commit, versions
from agents.recipe import resolve
from encoders.signals import files
from encoders.signals.files import FILE as FILE
from encoders.signals.files import FORMAT, SCALER
from encoders.signals.model import SignalModel
from envs.make import family_of, game_of
from envs.simulation import Game
from envs.splits import split_rows
from markets import storage
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, InSampleError
from markets.features import FeatureScaler
from markets.table import CausalTable

KINDS = {
    "name": str, "env": str, "arguments": dict, "seed": int, "versions": dict, "algo": str, "policy": dict,
    "lanes": int, "action": dict, "requires": dict,
}  # fmt: skip


class SignalAgent(Agent):
    """A fitted signal as an agent.

    Attributes:
        model: the signal. manifest, scaler: what its file says; ``manifest`` is empty for a model of this process.
    """

    def __init__(
        self, model: SignalModel, manifest: Mapping[str, Any] | None = None, scaler: FeatureScaler | None = None
    ) -> None:
        super().__init__()
        self.model, self.manifest, self.scaler = model, dict(manifest or {}), scaler
        self.name = model.name
        self._view: MarketView | None = None
        self._table: CausalTable | None = None

    @property
    def silent(self) -> str:
        """Why the signal is neutral whatever happens, where it is; empty where it may speak."""
        return self.model.status()

    def watch(self, view: MarketView) -> Agent:
        """Compute the table of the view's bars, or keep it where they are the same, and return self."""
        if self._table is None or self._table.bars_hash != view.bars.hash:
            self._table = self.model.table(view.bars)
        self._view = view
        return self

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[Any], Any]:
        """Return the direction of each asset."""
        direction, confidence = self._rows(len(columns))
        return np.where(confidence > 0.0, direction, 0.0).astype(np.float32), state

    def vote(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Votes:
        """Return direction and confidence of the signal; see :meth:`agents.agent.Agent.vote`."""
        return (*self._rows(len(np.atleast_2d(observation))), state)

    def _rows(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._view is None or self._table is None:
            raise ConfigError(
                f"signal {self.name!r} does not know which bars it stands on: call watch(view_of(env)) first "
                "(agents.market_view)"
            )
        rows = np.asarray(self._view.rows())
        if len(rows) != count:
            raise ConfigError(f"{count} observations of {len(rows)} lanes that signal {self.name!r} watches")
        assets = len(self._view.bars.symbols)
        found = np.where((rows >= self._table.valid_from)[:, None], self._table.values[rows, : 2 * assets], 0.0)
        return found[:, :assets].astype(np.float64), found[:, assets:].astype(np.float64)

    def check(self, env: Game | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Raise unless the signal means in ``env`` what it meant where it was fitted.

        Raises:
            ArtefactError: another family, action space or leverage argument; other symbols.
            InSampleError: a validation or test split begins inside the range the signal was fitted on.
        """
        found = fit.description(env, ())
        expected = {"action": self.manifest["action"], "argument": self.manifest["requires"]}
        lines = differences(expected, {name: found.get(name) for name in expected})
        if lines:
            raise ArtefactError(f"signal {self.name!r} was fitted for another environment:\n  " + "\n  ".join(lines))
        inner: Any = env if isinstance(env, Game) else env.unwrapped
        self.check_sample(inner if isinstance(inner, Game) else inner.simulation.game)

    def check_sample(self, game: Game) -> None:
        """Raise where a split that is evaluated begins inside the training range, unless that is allowed."""
        config, end = game.recipe[1], self.model.train_end
        first = game.bars.close_time[game.first]
        allowed = getattr(config, "allow_in_sample", False) or config.split == "train"
        if end is not None and first <= end and not allowed:
            raise InSampleError(
                f"split {config.split!r} begins at {first}, inside what signal {self.name!r} was fitted on, which ends "
                f"at {end}; allow_in_sample=True evaluates in-sample, and says so"
            )


def fit_signal(model: SignalModel, env: str, arguments: dict[str, Any]) -> SignalAgent:
    """Fit a model on the training range of an environment and return it as an agent, with what its file will say.

    Raises:
        ConfigError: an environment whose actions are no exposures in [-1, 1].
    """
    family, config = resolve(env, arguments)
    game = game_of(family, config)
    action = fit.plain_space(family_of(family).action_space(config))
    if "choices" in action or np.min(action["low"]) < -1.0 or np.max(action["high"]) > 1.0:
        raise ConfigError(f"{env}: actions are {action}; a signal's direction is an exposure from -1 to 1")
    model.fit(training_bars(game.bars, config))
    manifest = {
        "name": model.name, "algo": f"signal:{model.name}", "env": env.split(":")[-1], "family": family,
        "arguments": arguments, "requires": fit.requirements(game), "action": action, "seed": 0, "policy": {},
        "lanes": 0, "settings": model.settings(), "signal": model.name, "encoder": None, "git": commit(),
        "bars": {"source": game.bars.source, "hash": game.bars.hash},
    }  # fmt: skip
    return SignalAgent(model, manifest, game.details["scaler"])


def training_bars(bars: Bars, config: Any) -> Bars:
    """Return the bars of the training range."""
    first, stop = split_rows(bars, "train", config.train_end, config.validation_end)
    return bars.between(first, stop)


def save(directory: str | Path, agent: SignalAgent) -> Path:
    """Write ``directory/signal.zip`` and return its path."""
    model = agent.model
    if agent.scaler is None or not agent.manifest:
        raise ConfigError(f"signal {agent.name!r} knows no environment: make it with fit_signal, then save it")
    content = {
        **{key: value for key, value in agent.manifest.items() if key not in ("sha256", "format")},
        "format": FORMAT, **files.content(model), "versions": versions(),
    }  # fmt: skip
    members = {SCALER: json.dumps(agent.scaler.to_json(), indent=1).encode()}
    if model.member:
        members[model.member] = model.dump()
    return storage.write(Path(directory) / FILE, content, members)


def load(file: Path) -> SignalAgent:
    """Load a saved signal.

    Raises:
        ArtefactError: a member is missing, altered or does not fit; or a signal that this process does not know.
    """
    manifest, members = storage.read(file, [SCALER], files.members())
    with storage.naming(file, storage.MANIFEST):
        if manifest["format"] != FORMAT:
            raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
        for key, kind in KINDS.items():
            if not isinstance(manifest[key], kind):
                raise ArtefactError(f"{key} is {manifest[key]!r}, expected {kind.__name__}")
        model = files.restored(manifest, members)
    with storage.naming(file, SCALER):
        scaler = family_of(manifest["requires"]["family"]).scaler.from_json(json.loads(members[SCALER]))
    return SignalAgent(model, manifest, scaler)
