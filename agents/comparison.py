"""Comparison: load saved agents, rebuild their environment, and put runs of one recipe into one row of the table.

Which agent to go on with is chosen on the validation split, never on the one that is reported as a test: agents and an
idle account, by the classes of :mod:`agents.selection`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import fit
from agents.artefact import PolicyAgent, load
from agents.baselines import baselines_of
from agents.by_regime import by_regime, regimes_of
from agents.evaluation import Walk, evaluate, over_seeds, walk
from agents.recipe import resolve, whole_split
from agents.significance import best_by_validation, deflate, overfitting
from agents.trial_registry import record_evaluated, trials_on
from envs.make import game_of
from markets.errors import ArtefactError
from markets.session_calendar import SESSIONS_PER_YEAR

_log = logging.getLogger(__name__)
RECIPE = ("env", "algo", "arguments", "settings", "policy", "lanes")  # runs that share these differ by their seed only


def compare(
    paths: Sequence[Path],
    split: str,
    changes: dict[str, Any],
    quiet: bool = True,
    regimes: bool = False,
    choose: bool = False,
) -> dict[str, Any]:
    """Evaluate the agents in ``paths`` and every baseline on ``split``.

    Args:
        changes: environment arguments that replace the saved ones. regimes: report by regime as well. choose: walk the
            validation split too and choose there; a report of the validation split chooses where there are two agents.

    Returns:
        The result of :func:`agents.evaluation.evaluate`, with ``table``: baselines, one row per recipe over its runs
        (interquartile mean) where there are several, then each run with its deflated Sharpe ratio; ``trials`` and
        ``overfitting`` of :mod:`agents.significance`; ``selection``, the best by validation, or None; ``by_regime`` of
        :mod:`agents.by_regime` where asked for.

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
    players = dict(zip(named, agents, strict=True))
    chosen = _chosen(players, family, config) if choose and split != "validation" else None
    result = evaluate(players, family, config, quiet=quiet)
    if split == "validation" and (choose or len(agents) > 1):
        chosen = _chosen(players, family, config, result["walks"])
    rows = result["rows"]
    baselines = [name for name in rows if name not in named]
    merged = {name: rows[name] for name in baselines}
    for recipe, names in _recipes(named, agents).items():
        if len(names) > 1:
            merged[f"{recipe}, {len(names)} runs (IQM)"] = over_seeds([rows[name] for name in names])
    periods = result["periods_per_year"]
    scored = periods if result["sessions"] is None else SESSIONS_PER_YEAR
    manifests = [{"bars": {"hash": game.bars.hash}, **agent.manifest} for agent in agents]
    record_evaluated(manifests)
    known = {game.bars.hash, *(manifest["bars"]["hash"] for manifest in manifests)}
    trials = deflate(result["walks"], named, trials_on(known, manifests, scored), periods)
    deflated = trials.pop("rows")
    merged |= {name: {**rows[name], "deflated_sharpe": deflated[name]} for name in named}
    return {
        **result,
        "trials": trials,
        "overfitting": overfitting(result["walks"], named, periods),
        "selection": chosen,
        **({"by_regime": by_regime(result["walks"], game)} if regimes else {}),
        "env": first.manifest["env"],
        "arguments": {**first.manifest["arguments"], **changes},
        "table": merged,
        "baselines": baselines,
        "agents": {n: str(p) for n, p in zip(named, paths, strict=True)},
        "remarks": [f"{n}: {a.report()}." for n, a in zip(named, agents, strict=True) if hasattr(a, "report")],
    }


def _chosen(
    agents: dict[str, Any], family: str, config: Any, walks: Mapping[str, Walk] | None = None
) -> dict[str, Any] | None:
    """Choose among agents and an idle account by their walks through the validation split; None where it is too short.

    ``seen_by`` names the agents whose own weights were chosen on validation already, which flatters them here.
    """
    game = game_of(family, replace(config, split="validation"))
    players = {"idle": baselines_of(family)["idle"](), **agents}
    if walks is None:
        walks = {name: walk(player, game) for name, player in players.items()}
    found = best_by_validation(walks, list(players), game.bars.periods_per_year)
    if found is None:
        return None
    first = game.bars.close_time[game.first]
    return {
        **found,
        "first": str(first),
        "last": str(game.bars.close_time[game.last]),
        "in_sample": bool(first <= game.fitted_until),
        "seen_by": [name for name, agent in agents.items() if _seen(agent)],
    }


def _seen(agent: Any) -> bool:
    """Say whether weights of the agent, or of a member of it, were chosen on validation."""
    return bool(agent.manifest.get("chosen_on_validation")) or any(_seen(member) for member in _members(agent))


def _with_members(paths: Sequence[Path], agents: Sequence[Any]) -> tuple[list[Path], list[Any]]:
    """Put the members of ensembles before the agents themselves, each one once: they are walked alone too.

    What is given twice, or is named beside an ensemble that holds it, would count as several runs and several trials.
    """
    given = {repr(agent.manifest): (path, agent) for path, agent in zip(paths, agents, strict=True)}
    if len(given) < len(agents):
        _log.warning("%d of %d agents are the same as another one: left out", len(agents) - len(given), len(agents))
    inside: dict[str, tuple[Path, Any]] = {}
    for path, agent in given.values():
        for member in _members(agent):
            if repr(member.manifest) not in given:
                inside.setdefault(repr(member.manifest), (path, member))
    found = [*inside.values(), *given.values()]
    return [path for path, _ in found], [agent for _, agent in found]


def _members(agent: Any) -> Sequence[Any]:
    return tuple(getattr(agent, "members", ()))


def _check_same(path: Path, agent: Any, first: Any) -> None:
    for key in ("env", "arguments"):
        if agent.manifest[key] != first.manifest[key]:
            raise ArtefactError(
                f"{path}: {key} differs from the first agent's ({agent.manifest[key]} against {first.manifest[key]}); "
                "evaluate them in separate calls, or train arms of several ids beside each other: regimegym compare"
            )
    if agent.scaler.hash != first.scaler.hash:
        raise ArtefactError(f"{path}: its feature scaler differs from the first agent's: it was trained on other bars")
    if getattr(agent, "observed", None) != getattr(first, "observed", None):
        raise ArtefactError(
            f"{path}: its fitted signals differ from the first agent's; evaluate them in separate calls"
        )


def _names(agents: Sequence[Any]) -> list[str]:
    """Name agents by recipe, and seed where they were trained with one, with a counter where that repeats."""
    names: list[str] = []
    counts: Counter[str] = Counter()
    for agent, title in zip(agents, _titles(agents), strict=True):
        name = title + (f" seed {agent.manifest['seed']}" if isinstance(agent, PolicyAgent) else "")
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def _titles(agents: Sequence[Any]) -> list[str]:
    """Name what agents are; policies say where they were trained, if members were on several environments."""
    policies = [agent for agent in agents if isinstance(agent, PolicyAgent)]
    several = len({agent.manifest["env"] for agent in policies}) > 1
    return [
        f"{agent.manifest['name']}{' on ' + agent.manifest['env'] if several and agent in policies else ''}"
        for agent in agents
    ]


def _recipes(names: Sequence[str], agents: Sequence[Any]) -> dict[str, list[str]]:
    """Group runs that share everything but the seed."""
    groups: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for name, title, agent in zip(names, _titles(agents), agents, strict=True):
        key = repr([agent.manifest[part] for part in RECIPE])
        label = labels.setdefault(key, title if title not in labels.values() else f"{title} #{len(labels) + 1}")
        groups.setdefault(label, []).append(name)
    return groups
