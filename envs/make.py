"""The one place that resolves names and builds environments: ``build`` for one, ``build_vector`` for N lanes."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym

from encoders.signals.fitted import content_of
from envs.simulation import Game
from envs.trading_env import TradingEnv
from envs.wrappers.encode import EncodeObservation, EncodeObservationVector
from envs.wrappers.hide import HideObservations, HideObservationsVector
from envs.wrappers.leverage import ScaleLeverage, ScaleLeverageVector
from markets.compiled import is_cached
from markets.errors import ConfigError, unknown

FAMILIES = {
    "PerpFutures": "envs.perp_futures:PerpFutures",
    "ZeroDTE": "envs.zero_dte:ZeroDTE",
    "SpotCrypto": "envs.spot_crypto:SpotCrypto",
}
OWN_ARGUMENTS = ("info", "render_mode", "on_bad_action")  # of every environment, beside its family's configuration
GAMES = 16  # prepared games kept per process

_games: OrderedDict[tuple[Any, ...], Game] = OrderedDict()
_announced: set[str] = set()
_log = logging.getLogger(__name__)


def build(family: str, **arguments: Any) -> Any:
    """Build one environment; what ``gym.make`` calls. ``bars`` and ``scaler`` may also be objects here.

    Raises:
        UnknownNameError: unknown family or argument, with the nearest valid one.
    """
    kind, config, own = _resolve(family, arguments, ())
    game = game_of(family, config)
    env: gym.Env[Any, Any] = kind.env(game, kind.action_space(config), **own)
    env = env if game.appended is None else EncodeObservation(env)
    env = env if game.control is None else ScaleLeverage(env)
    return env if game.hidden is None else HideObservations(env)


def build_vector(family: str, num_envs: int = 1, **arguments: Any) -> Any:
    """Build N lanes natively; what ``gym.make_vec`` calls. ``autoreset_mode`` is NEXT_STEP unless given."""
    _, config, own = _resolve(family, arguments, ("autoreset_mode",))
    return lanes_of(game_of(family, config), num_envs, **own)


def lanes_of(game: Game, num_envs: int, **own: Any) -> Any:
    """Build N lanes of a prepared game, such as one that a study has changed; ``own`` are the lanes' own arguments."""
    family, config = game.recipe
    kind = family_of(family)
    env: gym.vector.VectorEnv[Any, Any, Any] = kind.vector_env(game, kind.action_space(config), num_envs, **own)
    env = env if game.appended is None else EncodeObservationVector(env)
    env = env if game.control is None else ScaleLeverageVector(env)
    return env if game.hidden is None else HideObservationsVector(env)


build.metadata = TradingEnv.metadata  # type: ignore[attr-defined]


def game_of(family: str, config: Any) -> Game:
    """Return the prepared game of a configuration; equal ones share tables, so that lanes and splits cost no copy."""
    kind = family_of(family)
    key = (family, config, _content(config.bars), _written(config.scaler), _weights(config), content_of(config.signals))
    try:
        if key in _games:
            _games.move_to_end(key)
            return _games[key]
    except TypeError:  # an object that cannot be hashed stays out of the cache
        return _made(kind, config)
    game = _made(kind, config)
    if family not in _announced and not is_cached(game.kernel):
        _announced.add(family)
        _log.info("compiling the %s step once for this machine; later runs load it from the cache", family)
    _games[key] = game
    while len(_games) > GAMES:
        _games.popitem(last=False)
    return game


def _made(kind: Any, config: Any) -> Game:
    game: Game = kind.game(config)
    _ = game.hidden  # checks the names
    return game


def family_of(name: str) -> Any:
    """Import the family ``name``."""
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    module, attribute = FAMILIES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _content(bars: Any) -> str:
    """Identify the present content of the bars: a name may be registered anew, a file may change."""
    from markets.sources import load

    return bars.hash if hasattr(bars, "hash") else load(bars).hash


def _written(scaler: Any) -> bytes | None:
    """Return the content of a scaler file: a retrained one must not be served from the cache."""
    if not isinstance(scaler, str):
        return None
    try:
        return Path(scaler).read_bytes()
    except OSError:
        return None  # reading it again for the game says what is wrong


def _weights(config: Any) -> bytes | None:
    """Return the content of an encoder's file: one that was trained anew must not be served from the cache."""
    if not config.encoded or config.encoder is None:
        return None
    from encoders.encoder import find

    return hashlib.sha256(find(config.encoder).read_bytes()).digest()


def _resolve(family: str, arguments: dict[str, Any], more: tuple[str, ...]) -> tuple[Any, Any, dict[str, Any]]:
    kind = family_of(family)
    names = tuple(item.name for item in fields(kind.config))
    for name in arguments:
        if name not in (*names, *OWN_ARGUMENTS, *more):
            raise unknown(f"argument of {family}", name, (*names, *OWN_ARGUMENTS, *more))
    own = {name: arguments.pop(name) for name in (*OWN_ARGUMENTS, *more) if name in arguments}
    if "autoreset_mode" in more and own.pop("render_mode", None) is not None:
        raise ConfigError("render_mode must be None for the vector environment: render a single one")
    return kind, kind.config(**arguments), own
