"""Comparison: load saved agents, rebuild their environment, and put runs of one recipe into one row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import fit
from agents.artefact import PolicyAgent, load
from agents.by_regime import by_regime, regimes_of
from agents.evaluation import evaluate, over_seeds
from agents.recipe import resolve, whole_split
from agents.significance import deflate, overfitting
from agents.trial_registry import trials_on
from envs.make import game_of
from markets.errors import ArtefactError
from markets.session_calendar import SESSIONS_PER_YEAR

RECIPE = ("env", "algo", "arguments", "settings", "policy", "lanes")  # runs that share these differ by their seed only


def compare(
    paths: Sequence[Path], split: str, changes: dict[str, Any], quiet: bool = True, regimes: bool = False
) -> dict[str, Any]:
    """Evaluate the agents in ``paths`` and every baseline on ``split``.

    Args:
        changes: environment arguments that replace the saved ones. regimes: report by regime as well.

    Returns:
        The result of :func:`agents.evaluation.evaluate`, with ``table``: baselines, one row per recipe over its runs
        (interquartile mean) where there are several, then each run with its deflated Sharpe ratio; ``trials`` and
        ``overfitting`` of :mod:`agents.significance`; ``by_regime`` of :mod:`agents.by_regime` where asked for.

    Raises:
        ArtefactError: the agents were trained on different environments, arguments, feature scalers or fitted signals,
            or ``changes`` make another environment of it than they were trained on.
        ConfigError: a report by regime where nothing tells regimes.
    """
    agents = [load(path) for path in paths]
    first = agents[0]
    for path, agent in zip(paths, agents, strict=True):
        _check_same(path, agent, first)
    family, config = resolve(first.manifest["env"], {**first.manifest["arguments"], **changes})
    kept = {key: value for key, value in fit.carried(first).items() if key == "scaler" or key not in changes}
    config = replace(whole_split(config, split), **kept)
    game = game_of(family, config)
    for agent in agents:
        agent.check(game)
    if regimes:
        regimes_of(game)  # what cannot be reported is said before anything is walked
    paths, agents = _with_members(paths, agents)
    named = _names(agents)
    result = evaluate(dict(zip(named, agents, strict=True)), family, config, quiet=quiet)
    rows = result["rows"]
    baselines = [name for name in rows if name not in named]
    merged = {name: rows[name] for name in baselines}
    for recipe, names in _recipes(named, agents).items():
        if len(names) > 1:
            merged[f"{recipe}, {len(names)} runs (IQM)"] = over_seeds([rows[name] for name in names])
    periods = result["periods_per_year"]
    scored = periods if result["sessions"] is None else SESSIONS_PER_YEAR
    manifests = [agent.manifest for agent in agents]
    known = {game.bars.hash, *(manifest.get("bars", {}).get("hash") for manifest in manifests)}
    trials = deflate(result["walks"], named, trials_on(known, manifests, scored), periods)
    deflated = trials.pop("rows")
    merged |= {name: {**rows[name], "deflated_sharpe": deflated[name]} for name in named}
    return {
        **result,
        "trials": trials,
        "overfitting": overfitting(result["walks"], named, periods),
        **({"by_regime": by_regime(result["walks"], game)} if regimes else {}),
        "env": first.manifest["env"],
        "arguments": {**first.manifest["arguments"], **changes},
        "table": merged,
        "baselines": baselines,
        "agents": {n: str(p) for n, p in zip(named, paths, strict=True)},
        "remarks": [f"{n}: {a.report()}." for n, a in zip(named, agents, strict=True) if hasattr(a, "report")],
    }


def _with_members(paths: Sequence[Path], agents: Sequence[Any]) -> tuple[list[Path], list[Any]]:
    """Put the members of ensembles before the agents themselves, each one once: they are walked alone too."""
    inside: dict[str, tuple[Path, Any]] = {}
    for path, agent in zip(paths, agents, strict=True):
        for member in _members(agent):
            inside.setdefault(repr(member.manifest), (path, member))
    return [*(path for path, _ in inside.values()), *paths], [*(member for _, member in inside.values()), *agents]


def _members(agent: Any) -> Sequence[Any]:
    return tuple(getattr(agent, "members", ()))


def _check_same(path: Path, agent: Any, first: Any) -> None:
    for key in ("env", "arguments"):
        if agent.manifest[key] != first.manifest[key]:
            raise ArtefactError(
                f"{path}: {key} differs from the first agent's ({agent.manifest[key]} against {first.manifest[key]}); "
                "evaluate them in separate calls"
            )
    if agent.scaler.hash != first.scaler.hash:
        raise ArtefactError(f"{path}: its feature scaler differs from the first agent's: it was trained on other bars")
    if getattr(agent, "observed", None) != getattr(first, "observed", None):
        raise ArtefactError(
            f"{path}: its fitted signals differ from the first agent's; evaluate them in separate calls"
        )


def _names(agents: Sequence[Any]) -> list[str]:
    """Name agents by algorithm, and seed where they were trained with one, with a counter where that repeats."""
    names: list[str] = []
    for agent in agents:
        seed = f" seed {agent.manifest['seed']}" if isinstance(agent, PolicyAgent) else ""
        name = f"{agent.manifest['name']}{seed}"
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def _recipes(names: Sequence[str], agents: Sequence[Any]) -> dict[str, list[str]]:
    """Group runs that share everything but the seed."""
    groups: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for name, agent in zip(names, agents, strict=True):
        key = repr([agent.manifest[part] for part in RECIPE])
        label = labels.setdefault(key, str(agent.manifest["name"]) + ("" if not labels else f" #{len(labels) + 1}"))
        groups.setdefault(label, []).append(name)
    return groups
