"""Saved ensembles: one file, ``ensemble.zip``, that holds its members' files, so that it can be moved by itself.

The manifest has roles, weights and settings; each member's file is read by the reader of its kind, with all its checks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import artefact, fit
from agents.agent import Agent
from agents.ensemble import EnsembleAgent
from agents.ensemble_settings import EnsembleSettings, plain, settings_of
from agents.provenance import commit, versions
from agents.recipe import resolve, whole_split
from agents.signals.agent import FILE as SIGNAL_FILE
from agents.signals.agent import SignalAgent
from envs.make import family_of, game_of
from markets import storage
from markets.errors import ArtefactError, ConfigError

FILE = "ensemble.zip"
FORMAT = 1
SCALER = "scaler.json"
MOST = 64  # members
NAMES = {"vote": "ensemble", "select": "ensemble (select)"}
KINDS = {
    "name": str, "algo": str, "env": str, "arguments": dict, "settings": dict, "weights": dict, "members": list,
    "seed": int, "policy": dict, "lanes": int, "requires": dict, "action": dict, "versions": dict,
}  # fmt: skip


def build(
    paths: Sequence[Path],
    settings: EnsembleSettings | None = None,
    weights: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    env: str | None = None,
) -> EnsembleAgent:
    """Load saved agents and put them into an ensemble for one environment.

    Args:
        paths: of policies and signals. weights: role -> weight. roles: path as given -> role, in place of its own.
        env, arguments: where it acts. Without: as the first policy that observes an encoder, else the first policy,
            else the first member.

    Raises:
        ArtefactError: a member does not fit the environment, or their scalers differ.
        ConfigError: no members, an ensemble among them, or an environment whose actions are no exposures.
    """
    if not paths or len(paths) > MOST:
        raise ConfigError(f"{len(paths)} members: an ensemble has 1 to {MOST}")
    roles = {str(Path(name)): role for name, role in (roles or {}).items()}  # dir/ is dir
    for name in roles:
        if name not in map(str, paths):
            raise ConfigError(f"role of {name!r}: it is no member; members: {', '.join(map(str, paths))}")
    members = [artefact.load(path) for path in paths]
    for path, member in zip(paths, members, strict=True):
        if isinstance(member, EnsembleAgent):
            raise ConfigError(f"{path} is an ensemble: name its members instead")
    policies = [member for member in members if isinstance(member, artefact.PolicyAgent)]
    # One that was trained beside an encoder needs its columns; the others act there as well.
    encoded = [member for member in policies if member.manifest.get("encoder")]
    first: Any = (encoded or policies or members)[0]
    where = env or str(first.manifest["env"])
    given = {**first.manifest["arguments"], **(arguments or {})}
    family, config = resolve(where, given)
    action = fit.plain_space(family_of(family).action_space(config))
    if "choices" in action:
        raise ConfigError(
            f"{where}: actions are choices {action['choices']}; an ensemble votes on exposures in [-1, 1]"
        )
    for path, member in zip(paths, members, strict=True):
        if isinstance(member, artefact.PolicyAgent) and member.scaler.hash != first.scaler.hash:
            raise ArtefactError(
                f"{path}: its feature scaler differs from {first.name!r}'s: it was trained on other bars"
            )
    observed = next((found for found in (getattr(member, "observed", None) for member in members) if found), None)
    kept = {**fit.carried(first), **({} if observed is None else {"signals": observed})}
    game = game_of(family, replace(whole_split(config, "train"), **kept))
    own = [roles.get(str(path)) or role_of(member) for path, member in zip(paths, members, strict=True)]
    ensemble = EnsembleAgent(members, own, settings, weights)
    ensemble.check(game)
    ensemble.scaler = first.scaler
    ensemble.manifest = {
        "name": NAMES[ensemble.settings.combine], "algo": "ensemble", "env": where.split(":")[-1], "family": family,
        "arguments": given,
        "requires": fit.requirements(game), "action": action, "encoder": fit.encoder(game), "seed": 0, "policy": {},
        "lanes": 0, "git": commit(), "bars": {"source": game.bars.source, "hash": game.bars.hash},
    }  # fmt: skip
    _name(members)
    return ensemble


def role_of(member: Agent) -> str:
    """Return the role of a saved agent: a signal's own name, ``rl`` for a policy."""
    return member.model.name if isinstance(member, SignalAgent) else "rl"


def save(directory: str | Path, ensemble: EnsembleAgent, paths: Sequence[Path]) -> Path:
    """Write ``directory/ensemble.zip`` with the files of its members, which lie at ``paths``, and return its path."""
    parts, rows = {SCALER: json.dumps(ensemble.scaler.to_json(), indent=1).encode()}, []
    for place, (path, member) in enumerate(zip(paths, ensemble.members, strict=True)):
        own = SIGNAL_FILE if isinstance(member, SignalAgent) else artefact.FILE
        data = (path if path.is_file() else path / own).read_bytes()
        name = f"member-{place:02d}.zip"
        parts[name] = data
        rows.append({
            "file": name, "kind": own, "name": member.name, "role": ensemble.roles[place],
            "sha256": hashlib.sha256(data).hexdigest(),
        })  # fmt: skip
    content = {
        **{key: value for key, value in ensemble.manifest.items() if key != "sha256"},
        "format": FORMAT, "settings": plain(ensemble.settings), "members": rows,
        "weights": {role: float(sum(ensemble.base[k] for k, own in enumerate(ensemble.roles) if own == role))
                    for role in ensemble.roles},
        "versions": versions(),
    }  # fmt: skip
    return storage.write(Path(directory) / FILE, content, parts)


def load(file: Path) -> EnsembleAgent:
    """Load a saved ensemble.

    Raises:
        ArtefactError: a member is missing, altered or does not fit; it is named.
    """
    manifest, parts = storage.read(file, [SCALER], [f"member-{place:02d}.zip" for place in range(MOST)])
    with storage.naming(file, storage.MANIFEST):
        if manifest["format"] != FORMAT:
            raise ArtefactError(f"format is {manifest['format']!r}, this version reads {FORMAT}")
        for key, kind in KINDS.items():
            if not isinstance(manifest[key], kind):
                raise ArtefactError(f"{key} is {manifest[key]!r}, expected {kind.__name__}")
        settings = settings_of(manifest["settings"])
        rows = [(row["file"], row["kind"], str(row["name"]), str(row["role"])) for row in manifest["members"]]
        if sorted(row[0] for row in rows) != sorted(name for name in parts if name != SCALER):
            raise ArtefactError("its members are not those that the file holds")
    members: list[Agent] = []
    with tempfile.TemporaryDirectory() as folder:
        for part, kind, name, _ in rows:
            if kind not in (SIGNAL_FILE, artefact.FILE):
                raise ArtefactError(f"{file}: {part} is a {kind!r}, expected {artefact.FILE} or {SIGNAL_FILE}")
            place = Path(folder) / part.removesuffix(".zip")
            place.mkdir()
            (place / kind).write_bytes(parts[part])
            try:
                member = artefact.load(place)
            except ArtefactError as error:
                raise ArtefactError(f"{file}: {part} ({name}): {error}") from error
            member.name = name
            members.append(member)
    with storage.naming(file, storage.MANIFEST):
        ensemble = EnsembleAgent(members, [row[3] for row in rows], settings, manifest["weights"])
        kind = family_of(manifest["requires"]["family"]).scaler
    with storage.naming(file, SCALER):
        ensemble.scaler = kind.from_json(json.loads(parts[SCALER]))
    ensemble.manifest = manifest
    return ensemble


def _name(members: Sequence[Agent]) -> None:
    """Give members names that differ: what they are, where trained (if that differs), a seed, then a number."""
    taken: set[str] = set()
    several = len({member.manifest["env"] for member in members if isinstance(member, artefact.PolicyAgent)}) > 1
    for member in members:
        manifest: Mapping[str, Any] = getattr(member, "manifest", {})
        title = str(manifest["name"])
        if isinstance(member, artefact.PolicyAgent):
            title += f"{' on ' + manifest['env'] if several else ''} seed {manifest['seed']}"
        name, number = title, 2
        while name in taken:
            name, number = f"{title} ({number})", number + 1
        taken.add(name)
        member.name = name
