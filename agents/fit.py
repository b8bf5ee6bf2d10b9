"""Whether an agent and an environment fit: what a policy was trained on, and what an environment offers, as tables.

A policy is only as good as the meaning of its numbers. A column that is scaled otherwise, or an action that stands for
another exposure, is no error to any library; it is silently another strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from envs.make import family_of
from envs.simulation import Game
from markets.errors import ArtefactError, ConfigError
from markets.features import FeatureScaler

# Arguments that decide what an action stands for, as far as the family has them.
ACTION_ARGUMENTS = ("leverage", "contract_leverage", "margin_mode", "liquidation", "risk", "contracts", "strike_offset")
MOST_CHOICES = 1_000_000


def plain_space(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a space as plain values.

    A Box: low, high, shape, dtype; a list of choices: ``choices``, how many values each number has, with ``kind``.
    """
    if isinstance(space, gym.spaces.Discrete):
        return {"kind": "Discrete", "choices": [int(space.n)], "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "choices": space.nvec.tolist(), "start": space.start.tolist()}
    if not isinstance(space, gym.spaces.Box):
        raise ConfigError(f"space {space} is not a Box, Discrete or MultiDiscrete")
    return {
        "low": space.low.tolist(), "high": space.high.tolist(), "shape": list(space.shape), "dtype": str(space.dtype)
    }  # fmt: skip


def space(plain: Mapping[str, Any]) -> gym.Space[Any]:
    """Rebuild a space that :func:`plain_space` described.

    Raises:
        ArtefactError: bounds of another shape, a number type that is not a float, or no list of choices.
    """
    if "choices" in plain:
        return _choices(plain)
    kind = np.dtype(plain["dtype"])
    low, high = np.array(plain["low"], kind), np.array(plain["high"], kind)
    if kind.kind != "f" or low.shape != tuple(plain["shape"]) or high.shape != low.shape:
        raise ArtefactError(f"a space of {kind} {plain['shape']} has bounds of shape {low.shape} and {high.shape}")
    return gym.spaces.Box(low, high, dtype=kind.type)


def _choices(plain: Mapping[str, Any]) -> gym.Space[Any]:
    choices, kind = plain["choices"], plain["kind"]
    whole = isinstance(choices, list) and all(type(count) is int and 0 < count <= MOST_CHOICES for count in choices)
    starts = plain["start"]
    if not whole or not choices or starts not in (0, [0] * len(choices)):
        raise ArtefactError(f"a space has choices {choices!r} from {starts!r} on, expected whole numbers from 0 on")
    if kind == "Discrete" and len(choices) == 1:
        return gym.spaces.Discrete(choices[0])
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(choices)
    raise ArtefactError(f"a space is a {kind!r} of {len(choices)} numbers, expected Discrete or MultiDiscrete")


def requirements(game: Game) -> dict[str, Any]:
    """Return what decides the meaning of the numbers beside their spaces: the family, its arguments of size, how
    leverage follows the regimes and the columns that are hidden, where that is so."""
    family, config = game.recipe
    sizes = {name: getattr(config, name) for name in ACTION_ARGUMENTS if hasattr(config, name)}
    if getattr(config, "allow_short", False):  # a negative weight sells short; without it it is no position
        sizes |= {"allow_short": True, "gross_limit": float(config.gross_limit)}
    hidden = {} if game.hidden is None else {"hide": ",".join(sorted(game.all_names[k] for k in game.hidden[0]))}
    scaled = {} if game.control is None else {"leverage_control": game.control.specification}
    return {"family": family, **sizes, **scaled, **hidden}


def expectation(manifest: Mapping[str, Any], scaler: FeatureScaler) -> dict[str, Any]:
    """Return what an agent expects of an environment, in the form of :func:`description`."""
    observation = manifest["observation"]
    bounds = zip(observation["low"], observation["high"], strict=True)
    return {
        "observation": dict(zip(observation["names"], ([low, high] for low, high in bounds), strict=True)),
        "observation dtype": observation["dtype"],
        "action": dict(manifest["action"]),
        "argument": dict(manifest["requires"]),
        "scaler": scaler.hash,
        "encoder": manifest["encoder"],
        "signals": {row["signal"]: row["hash"] for row in manifest.get("signals", ())},
    }


def description(env: Any, reads: Sequence[str]) -> dict[str, Any]:
    """Describe a game, an environment or a vector of them, as far as an agent that reads columns ``reads`` sees it.

    What an environment does not tell (a foreign one has no names, arguments or scaler) is left out, and so differs.
    """
    game = env if isinstance(env, Game) else _game(env)
    if isinstance(env, Game):
        names, seen = env.all_names, gym.spaces.Box(*env.all_bounds)
        acts = family_of(env.recipe[0]).action_space(env.recipe[1])
    else:
        names = _names(env)
        vector = isinstance(env, gym.vector.VectorEnv)
        seen = env.single_observation_space if vector else env.observation_space
        acts = env.single_action_space if vector else env.action_space
    observation, action = plain_space(seen), plain_space(acts)
    bounds = dict(zip(names, zip(observation["low"], observation["high"], strict=False), strict=False))
    found: dict[str, Any] = {
        "observation": {name: list(bounds[name]) for name in reads if name in bounds},
        "observation dtype": observation["dtype"],
        "action": action,
    }
    if game is not None:
        found["argument"] = requirements(game)
        found["scaler"] = game.details["scaler"].hash if "scaler" in game.details else None
        found["encoder"] = encoder(game)
        found["signals"] = signals(game)
    return found


def carried(agent: Any) -> dict[str, Any]:
    """Return the arguments by which an environment takes over what an agent was trained with: scaler and signals."""
    models = getattr(agent, "observed", None)
    return {"scaler": agent.scaler, **({} if models is None else {"signals": models})}


def told(lines: list[str], manifest: Mapping[str, Any]) -> list[str]:
    """Sort differences for a reader: an encoder or signals that are missing first, with the way out, instead of their
    columns."""
    models = [line for line in lines if line.startswith("signals.")]
    if models:
        own = {line.removeprefix("signals.").partition(":")[0] for line in models}
        rest = [
            line for line in lines
            if line not in models and not any(f"{name}_" in line.partition(":")[0] for name in own)
        ]  # fmt: skip
        way = "make the environment with the agent's own arguments, or with signals=agent.observed"
        return [*models[:-1], f"{models[-1]}: {way}", *told(rest, manifest)]
    missing = [line for line in lines if line.startswith("observation.") and line.endswith("found nothing")]
    eyes = [line for line in lines if line.startswith("encoder:")]
    if not eyes or not manifest.get("encoder") or not missing:
        return lines
    rest = [line for line in lines if line not in missing and line not in eyes]
    return [
        f"{eyes[0]}: make the environment as {manifest['env']!r} with the agent's own arguments",
        f"{len(missing)} columns of the encoder are missing", *rest,
    ]  # fmt: skip


def encoder(game: Game) -> dict[str, str] | None:
    """Return name and hash of the encoder whose columns a game serves, or None."""
    value = game.details.get("encoder")
    return None if value is None else {"name": str(value["name"]), "sha256": str(value["sha256"])}


def signals(game: Game) -> dict[str, str]:
    """Return the hash of each fitted signal whose columns a game serves, by its name."""
    models = game.details.get("signals")
    return {} if models is None else dict(models.hashes)


def _game(env: Any) -> Game | None:
    found = getattr(getattr(env.unwrapped, "simulation", None), "game", None)
    return found if isinstance(found, Game) else None


def _names(env: Any) -> tuple[str, ...]:
    try:
        if hasattr(env, "get_wrapper_attr"):
            return tuple(env.get_wrapper_attr("observation_names"))
        return tuple(env.observation_names)
    except AttributeError:
        return ()
