"""Saved agents: what comes back is what was saved, and whatever was altered, cut or planted is refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted_pickles import payloads
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import agents
from agents import artefact, fit, provenance
from agents.sb3 import ALGORITHMS, algorithm, build_model, net_settings
from agents.vec_env import NativeVecEnv
from envs.make import game_of
from envs.perp_futures import PerpFuturesConfig
from markets import storage
from markets.errors import ArtefactError, UnknownNameError
from tests.algorithm_markets import market

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
SEED = 17
MEMBERS = ("manifest.json", "policy.safetensors", "scaler.json")


@dataclass
class Saved:
    """An agent on disk and what it was made from."""

    folder: Path
    policy: Any
    names: tuple[str, ...]

    @property
    def file(self) -> Path:
        return self.folder / "agent.zip"


def save_agent(folder: Path, algo: str = "ppo", **settings: Any) -> Saved:
    """Save an untrained agent whose weights are drawn so that every output depends on every input."""
    where = market(algo)
    game = where.game()
    vector = gym.make_vec(
        where.env,
        num_envs=2,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        bars=where.bars,
        info="none",
    )
    small = {"a2c": {"n_steps": 4}, "tqc": {"buffer_size": 1000}}.get(algo, {"n_steps": 4, "batch_size": 8})
    policy = build_model(algo, NativeVecEnv(vector), SEED, "cpu", None, {**small, **settings}).policy
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for value in policy.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    manifest = {
        "name": algo, "algo": algo, "seed": SEED, "env": where.env, "family": where.family,
        "arguments": {"bars": where.bars}, "observation_names": game.names, "lanes": 2,
        "policy": net_settings(algo, settings), "settings": {**algorithm(algo).settings, **settings},
        "requires": fit.requirements(game), "encoder": None,
    }  # fmt: skip
    artefact.save(folder, policy, game.details["scaler"], manifest)
    return Saved(folder, policy, game.names)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def saved(original: Saved, tmp_path: Path) -> Saved:
    """A copy that a test may spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(original.file, folder / "agent.zip")
    return Saved(folder, original.policy, original.names)


def observations(count: int = 200, algo: str = "ppo") -> NDArray[np.float32]:
    return market(algo).observations(count, SEED)


def contents(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, members: dict[str, bytes], rehash: bool = True) -> None:
    """Write a well-formed zip, with the manifest's hashes made to fit unless told otherwise."""
    members = dict(members)
    if rehash:
        manifest = json.loads(members["manifest.json"])
        manifest["sha256"] = {
            name: hashlib.sha256(members[name]).hexdigest() for name in manifest["sha256"] if name in members
        }
        members["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit_manifest(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    members = contents(file)
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    write(file, {**members, "manifest.json": json.dumps(manifest).encode()}, rehash=False)


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    members = contents(file)
    tensors = load_tensors(members["policy.safetensors"])
    change(tensors)
    write(file, {**members, "policy.safetensors": save_tensors(tensors)})


def refused(file: Path, *words: str) -> str:
    """Check that the file is refused with a message that holds the words, and return it."""
    with pytest.raises(ArtefactError) as caught:
        artefact.load(file)
    text = str(caught.value)
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    return text


# What was saved comes back


def check_round_trip(saved: Saved, algo: str = "ppo") -> None:
    loaded, where = artefact.load(saved.folder), market(algo)
    data = observations(algo=algo)
    expected, _ = saved.policy.predict(data, deterministic=True, **where.masks(len(data)))
    got, _ = loaded.predict(data, **where.masks(len(data)))
    assert got.dtype == (np.int64 if where.width else np.float32)
    assert np.array_equal(got, expected)
    least = 1 if where.width else 10
    assert len(np.unique(expected)) > least, "the policy hardly depends on what it sees: the test is empty"
    for row in data[:10]:
        mine, _ = loaded.predict(row, **where.masks())
        assert np.array_equal(mine, saved.policy.predict(row, deterministic=True, **where.masks())[0])
        assert mine in saved.policy.action_space


def test_a_loaded_agent_acts_like_the_saved_one_to_the_last_bit(saved: Saved) -> None:
    check_round_trip(saved)


def test_one_weight_moved_by_its_last_bits_is_noticed(saved: Saved) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["action_net.weight"][0, 0] *= 1.0 + 1e-5

    edit_tensors(saved.file, nudge)
    with pytest.raises(AssertionError):
        check_round_trip(saved)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(
    "settings",
    [
        {"use_sde": True},
        {"net_arch": [8], "activation_fn": "relu"},
        {"net_arch": {"pi": [8, 4], "vf": [16], "qf": [8]}, "activation_fn": "silu"},
    ],
    ids=["state-dependent noise", "one small layer", "separate nets"],
)
def test_agents_of_every_policy_setting_come_back(tmp_path: Path, algo: str, settings: dict[str, Any]) -> None:
    if "use_sde" in settings and algorithm(algo).masked:
        pytest.skip("choices from a list have no noise that depends on the state")
    saved = save_agent(tmp_path, algo, **settings)
    check_round_trip(saved, algo)
    ours, theirs = artefact.load(tmp_path).policy.state_dict(), saved.policy.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_agent_is_loaded_from_its_folder_from_its_file_and_by_the_package(saved: Saved) -> None:
    data = observations(5)
    places = (saved.folder, saved.file)
    answers = [load(place).predict(data)[0] for load in (artefact.load, agents.load) for place in places]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert np.array_equal(agents.load(str(saved.folder)).predict(data)[0], answers[0])


def test_a_loaded_agent_finds_its_columns_by_name(saved: Saved) -> None:
    data = observations()
    order = np.random.default_rng(SEED).permutation(len(saved.names))
    expected, _ = artefact.load(saved.file).predict(data)
    moved = artefact.load(saved.file).bind([saved.names[place] for place in order])
    assert np.array_equal(moved.predict(data[:, order])[0], expected)
    with pytest.raises(UnknownNameError, match=saved.names[3]):
        moved.bind([name for name in saved.names if name != saved.names[3]])


def test_the_manifest_says_what_the_agent_is(saved: Saved) -> None:
    members = contents(saved.file)
    assert tuple(members) == MEMBERS
    manifest = json.loads(members["manifest.json"])
    game = game_of("PerpFutures", PerpFuturesConfig(bars=BARS))
    assert manifest["format"] == artefact.FORMAT
    assert tuple(manifest["observation"]["names"]) == game.names
    assert np.array_equal(np.array(manifest["observation"]["low"], np.float32), game.low)
    assert np.array_equal(np.array(manifest["observation"]["high"], np.float32), game.high)
    assert manifest["observation"]["shape"] == [len(game.names)]
    assert manifest["action"] == {"low": [-1.0], "high": [1.0], "shape": [1], "dtype": "float32"}
    assert manifest["requires"] == {
        "family": "PerpFutures", "leverage": 3.0, "contract_leverage": None, "margin_mode": "isolated",
        "liquidation": "full",
    }  # fmt: skip
    assert manifest["encoder"] is None
    assert manifest["seed"] == SEED
    assert manifest["sha256"] == {n: hashlib.sha256(members[n]).hexdigest() for n in MEMBERS if n != "manifest.json"}
    for library in ("regimegym", "gymnasium", "stable-baselines3", "torch", "numpy", "python"):
        assert manifest["versions"][library][0].isdigit()
    assert artefact.load(saved.file).manifest == manifest


def test_the_scaler_comes_back_exactly(saved: Saved) -> None:
    scaler = game_of("PerpFutures", PerpFuturesConfig(bars=BARS)).details["scaler"]
    assert artefact.load(saved.file).scaler.hash == scaler.hash


OTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np
import agents
import agents.artefact
found = []
sys.addaudithook(lambda event, details: found.append(details) if event == "pickle.find_class" else None)
data = np.load(Path({folder!r}) / "observations.npy", allow_pickle=False)
actions, _ = agents.load({folder!r}).predict(data)
np.save(Path({folder!r}) / "actions.npy", actions, allow_pickle=False)
print("unpickled", found)
import pickle
pickle.loads(pickle.dumps(Path))
print("noticed", len(found))
"""


def test_another_process_loads_the_same_agent_and_unpickles_nothing(
    saved: Saved, run_python: Callable[..., str]
) -> None:
    np.save(saved.folder / "observations.npy", observations(), allow_pickle=False)
    printed = run_python(OTHER_PROCESS.format(folder=str(saved.folder)))
    assert "unpickled []" in printed
    assert "noticed 0" not in printed, "the hook sees no unpickling: the test is empty"
    expected, _ = saved.policy.predict(observations(), deterministic=True)
    assert np.array_equal(np.load(saved.folder / "actions.npy", allow_pickle=False), expected)


# Files that are not what was saved


def flip(file: Path, position: int, bit: int = 0x10) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= bit
    file.write_bytes(bytes(data))


def place_of(file: Path, member: str) -> tuple[int, int]:
    """Where a stored member's bytes begin in the file, and how many there are."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(member)
    head = file.read_bytes()[info.header_offset : info.header_offset + 30]
    name, extra = struct.unpack("<HH", head[26:30])
    return info.header_offset + 30 + name + extra, info.file_size


@pytest.mark.parametrize("share", [0.0, 0.37, 0.99])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_flipped_bit_is_noticed_in_every_member(saved: Saved, member: str, share: float) -> None:
    begin, size = place_of(saved.file, member)
    flip(saved.file, begin + int(share * size))
    refused(saved.file, member)


def check_altered_in_a_well_formed_zip(saved: Saved, member: str) -> None:
    members = contents(saved.file)
    data = bytearray(members[member])
    place = data.index(b"1", len(data) // 2) if member == "scaler.json" else len(data) - 4
    data[place] ^= 0x02 if member == "policy.safetensors" else 0x03  # a digit of the scaler stays a digit
    write(saved.file, {**members, member: bytes(data)}, rehash=False)
    refused(saved.file, member, "hash")


@pytest.mark.parametrize("member", ["policy.safetensors", "scaler.json"])
def test_an_altered_member_in_a_well_formed_zip_is_noticed_by_its_hash(saved: Saved, member: str) -> None:
    """C03."""
    check_altered_in_a_well_formed_zip(saved, member)


@pytest.mark.parametrize("member", ["policy.safetensors", "scaler.json"])
def test_without_the_hash_nobody_would_have_noticed(saved: Saved, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C03."""

    class Blind:
        """Planted fault: any content has the same hash."""

        def __init__(self, _: bytes) -> None:
            pass

        def hexdigest(self) -> str:
            return "x"

    edit_manifest(saved.file, lambda manifest: manifest.update(sha256=dict.fromkeys(manifest["sha256"], "x")))
    monkeypatch.setattr(storage.hashlib, "sha256", Blind)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_altered_in_a_well_formed_zip(saved, member)


@pytest.mark.parametrize("kept", [(), ("scaler.json",), ("policy.safetensors",)], ids=str)
def test_a_manifest_that_leaves_out_the_hash_of_a_member_is_refused(saved: Saved, kept: tuple[str, ...]) -> None:
    def drop(manifest: dict[str, Any]) -> None:
        manifest["sha256"] = {name: digest for name, digest in manifest["sha256"].items() if name in kept}

    edit_manifest(saved.file, drop)
    refused(saved.file, "manifest.json")


def test_a_bit_flipped_anywhere_is_refused_or_changes_nothing(saved: Saved) -> None:
    whole = saved.file.read_bytes()
    directory = whole.rindex(b"PK\x05\x06")
    begin = struct.unpack("<I", whole[directory + 16 : directory + 20])[0]
    places = {*np.linspace(0, len(whole) - 1, 120).astype(int).tolist(), *range(begin, len(whole))}
    heads = [place_of(saved.file, member)[0] for member in MEMBERS]
    places |= {head + offset for head in heads for offset in range(-64, 0)}
    data = observations(5)
    expected, _ = saved.policy.predict(data, deterministic=True)
    noticed = 0
    for position in sorted(place for place in places if 0 <= place < len(whole)):
        for bit in (0x01, 0x80):
            saved.file.write_bytes(whole)
            flip(saved.file, position, bit)
            try:
                got, _ = artefact.load(saved.file).predict(data)
            except ArtefactError:
                noticed += 1
            except Exception as error:
                pytest.fail(f"bit {bit:#x} of byte {position} of {len(whole)}: {type(error).__name__}: {error}")
            else:
                assert np.array_equal(got, expected), f"bit {bit:#x} of byte {position}"
    assert noticed > 200


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_is_refused(saved: Saved, sixteenth: int) -> None:
    whole = saved.file.read_bytes()
    saved.file.write_bytes(whole[: len(whole) * sixteenth // 16])
    refused(saved.file, "not a complete file")


def test_a_file_without_its_last_byte_is_refused(saved: Saved) -> None:
    saved.file.write_bytes(saved.file.read_bytes()[:-1])
    refused(saved.file)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_missing_member_is_named(saved: Saved, member: str) -> None:
    members = contents(saved.file)
    del members[member]
    write(saved.file, members, rehash=False)
    refused(saved.file, f"{member} is missing")


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("data", [b"", b"\x00" * 9, b"[]", b"{}", b"null", b"\xff\xfe\x00"], ids=repr)
def test_a_member_with_other_content_is_named(saved: Saved, member: str, data: bytes) -> None:
    if member == "manifest.json":
        write(saved.file, {**contents(saved.file), member: data}, rehash=False)
    else:
        write(saved.file, {**contents(saved.file), member: data})
    refused(saved.file, member)


def test_a_missing_file_says_how_to_train_one(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "agent.zip", tmp_path / "nowhere"):
        with pytest.raises(ArtefactError, match="regimegym train"):
            artefact.load(place)


@pytest.mark.parametrize("version", [artefact.FORMAT + 1, 0, "1", None, [1]], ids=repr)
def test_another_format_is_refused_with_the_one_that_is_read(saved: Saved, version: Any) -> None:
    edit_manifest(saved.file, lambda manifest: manifest.update(format=version))
    refused(saved.file, "manifest.json", "format", str(artefact.FORMAT))


def test_an_unknown_algorithm_is_refused_with_the_nearest_one(saved: Saved) -> None:
    edit_manifest(saved.file, lambda manifest: manifest.update(algo="pp0"))
    refused(saved.file, "algo", "'pp0'", "Did you mean 'ppo'")


@pytest.mark.parametrize(
    "key", ["format", "algo", "name", "observation", "action", "sha256", "settings", "policy", "observation.names"]
)
def test_a_manifest_without_a_field_is_refused_and_both_are_named(saved: Saved, key: str) -> None:
    def drop(manifest: dict[str, Any]) -> None:
        *outer, last = key.split(".")
        for part in outer:
            manifest = manifest[part]
        del manifest[last]

    edit_manifest(saved.file, drop)
    refused(saved.file, "manifest.json", key.split(".")[-1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", []), ("settings", []), ("policy", 3), ("observation", "x"), ("action", {"low": [1], "high": [0, 0]}),
        ("policy", {"net_arch": "wide", "activation_fn": "tanh", "log_std_init": 0}), ("algo", ["ppo"]), ("algo", None),
        ("policy", {"net_arch": [64, 64], "activation_fn": "__import__", "log_std_init": 0}),
        ("policy", {"net_arch": [8], "activation_fn": "tanh", "log_std_init": 0, "features_extractor_class": "os"}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_manifest_with_a_field_of_another_kind_is_refused(saved: Saved, key: str, value: Any) -> None:
    edit_manifest(saved.file, lambda manifest: manifest.update({key: value}))
    refused(saved.file)


def test_an_observation_of_another_width_than_the_weights_is_refused(saved: Saved) -> None:
    def narrow(manifest: dict[str, Any]) -> None:
        seen = manifest["observation"]
        for name in ("names", "low", "high"):
            seen[name].pop()
        seen["shape"] = [len(seen["names"])]

    edit_manifest(saved.file, narrow)
    refused(saved.file, "policy.safetensors", "_net.0.weight")  # of the policy or of the value: both are too wide


def test_names_that_do_not_fit_the_observation_space_are_refused(saved: Saved) -> None:
    edit_manifest(saved.file, lambda manifest: manifest["observation"]["names"].pop())
    refused(saved.file, "manifest.json")


# Weights


Tensors = dict[str, torch.Tensor]


def reshaped(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def reshape(tensors: Tensors) -> None:
        tensors["action_net.weight"] = change(tensors["action_net.weight"]).contiguous()  # (1, width)

    return reshape


def spoiled(value: float) -> Callable[[Tensors], None]:
    def spoil(tensors: Tensors) -> None:
        tensors["value_net.weight"][0, 1] = value

    return spoil


WRONG_TENSORS: dict[str, tuple[Callable[[Tensors], Any], tuple[str, ...]]] = {
    **{str(value): (spoiled(value), ("value_net.weight", "not finite")) for value in (np.nan, np.inf, -np.inf)},
    "missing": (lambda tensors: tensors.pop("log_std"), ("log_std", "missing")),
    "too many": (lambda tensors: tensors.update(stowaway=torch.zeros(3)), ("stowaway",)),
    "narrow": (reshaped(lambda whole: whole[:, :3]), ("action_net.weight",)),
    "two rows": (reshaped(lambda whole: whole.repeat(2, 1)), ("action_net.weight",)),
    "flat": (reshaped(lambda whole: whole[0]), ("action_net.weight",)),
    "transposed": (reshaped(lambda whole: whole.T), ("action_net.weight",)),
    "empty": (reshaped(lambda whole: whole[:0]), ("action_net.weight",)),
    **{
        str(kind): (reshaped(lambda whole, kind=kind: whole.to(kind)), ("action_net.weight",))  # type: ignore[misc]
        for kind in (torch.float64, torch.float16, torch.int32, torch.bool)
    },
}


def check_wrong_tensor_refused(saved: Saved, what: str) -> None:
    change, said = WRONG_TENSORS[what]
    edit_tensors(saved.file, change)
    refused(saved.file, "policy.safetensors", *said)


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_a_tensor_that_is_missing_unknown_not_finite_or_of_another_shape_or_type_is_named(
    saved: Saved, what: str
) -> None:
    """C08."""
    check_wrong_tensor_refused(saved, what)


def fill_loosely(policy: torch.nn.Module, tensors: Tensors) -> None:
    """Planted fault: takes every tensor that is known, as much of it as there is room for."""
    for name, room in policy.state_dict().items():
        given = tensors.get(name, room).flatten()[: room.numel()]
        room.flatten()[: given.numel()].copy_(given)


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_a_load_that_is_not_strict_is_caught(saved: Saved, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C08."""
    monkeypatch.setattr(artefact, "_fill", fill_loosely)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_wrong_tensor_refused(saved, what)


def test_a_scaler_that_is_not_finite_is_refused(saved: Saved) -> None:
    members = contents(saved.file)
    scaler = json.loads(members["scaler.json"])
    scaler["mean"][2] = float("nan")
    write(saved.file, {**members, "scaler.json": json.dumps(scaler).encode()})
    refused(saved.file, "scaler.json", "finite")


# Hostile files


def test_a_member_that_leads_out_of_the_folder_is_never_written(saved: Saved, tmp_path: Path) -> None:
    members = contents(saved.file)
    outside = {"../evil.txt": b"x", "/evil.txt": b"x", "..\\evil.txt": b"x", "a/../../evil.txt": b"x"}
    write(saved.file, {**members, **outside})
    before = sorted(tmp_path.rglob("*"))
    with contextlib.suppress(ArtefactError):
        artefact.load(saved.file)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/evil.txt").exists()


def test_members_under_a_leading_path_do_not_pass_for_ours(saved: Saved) -> None:
    write(saved.file, {f"../{name}": data for name, data in contents(saved.file).items()}, rehash=False)
    refused(saved.file, "manifest.json is missing")


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_that_claims_ten_gigabytes_is_refused_unread(
    saved: Saved, member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = contents(saved.file)
    with zipfile.ZipFile(saved.file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.getinfo(member).file_size = 10 * 2**30
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("a member was read"))
    refused(saved.file, member, str(10 * 2**30))


@pytest.mark.parametrize("honest", [True, False], ids=["its size is declared", "a small size is declared"])
def test_a_member_that_inflates_beyond_the_limit_is_refused(saved: Saved, honest: bool) -> None:
    members = contents(saved.file)
    size = storage.LARGEST + 1 if honest else 2**26
    with zipfile.ZipFile(saved.file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            bomb = name == "policy.safetensors"
            archive.writestr(name, bytes(size) if bomb else data, None if bomb else zipfile.ZIP_STORED)
        if not honest:
            archive.getinfo("policy.safetensors").file_size = 1000
    assert saved.file.stat().st_size < 2**20
    refused(saved.file, "policy.safetensors")


@pytest.mark.parametrize("kind", ["pickle", "protocol 0", "torch", "numpy"])
def test_a_planted_pickle_is_refused_in_every_member_and_never_executed(
    saved: Saved, tmp_path: Path, kind: str
) -> None:
    marker = tmp_path / "executed"
    payload = payloads(marker)[kind]
    whole = contents(saved.file)
    for member in MEMBERS:
        write(saved.file, {**whole, member: payload}, rehash=member != "manifest.json")
        refused(saved.file, member)
    saved.file.write_bytes(payload)
    refused(saved.file)
    for extra in ("data.pkl", "policy.pth", "pytorch_variables.pth"):  # where Stable-Baselines3 keeps pickles
        write(saved.file, {**whole, extra: payload})
        with contextlib.suppress(ArtefactError):
            artefact.load(saved.file)
    assert not marker.exists()


def test_nothing_is_unpickled_while_loading(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a load path unpickles")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    artefact.load(saved.file)
    with pytest.raises(AssertionError, match="unpickles"):
        torch.load("x")


# Writing


def failing(code: int = errno.ENOSPC) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def fail_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after the first member."""
    honest, calls = zipfile.ZipFile.writestr, []

    def writestr(self: zipfile.ZipFile, *arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            failing()()
        honest(self, *arguments, **more)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", writestr)


def save_naively(directory: Path, policy: Any, scaler: Any, manifest: dict[str, Any]) -> Path:
    """Planted fault: writes over the old agent."""
    path = directory / "agent.zip"
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", b"{}")
        archive.writestr("policy.safetensors", b"")
    os.replace(path, path)
    return path


FAILURES = {
    "os.replace": lambda patch: patch.setattr(os, "replace", failing(errno.EACCES)),
    "os.fsync": lambda patch: patch.setattr(os, "fsync", failing()),
    "disk full": fail_in_the_middle,
}


def check_a_failing_write_leaves_the_old_agent(saved: Saved, save: Callable[..., Path], how: str) -> None:
    before = saved.file.read_bytes()
    loaded = artefact.load(saved.file)
    manifest = {**loaded.manifest, "observation_names": saved.names, "seed": SEED + 1}
    with pytest.MonkeyPatch.context() as patch:
        FAILURES[how](patch)
        with pytest.raises(OSError, match=r"space|denied"):
            save(saved.folder, loaded.policy, loaded.scaler, manifest)
    assert [item.name for item in saved.folder.iterdir()] == ["agent.zip"]
    assert saved.file.read_bytes() == before
    save(saved.folder, loaded.policy, loaded.scaler, manifest)
    assert artefact.load(saved.file).manifest["seed"] == SEED + 1


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_write_leaves_the_old_agent_and_no_temporary_file(saved: Saved, how: str) -> None:
    """C04."""
    check_a_failing_write_leaves_the_old_agent(saved, artefact.save, how)


def test_a_writer_that_writes_over_the_old_agent_is_caught(saved: Saved) -> None:
    """Twin of C04."""
    with pytest.raises(AssertionError):
        check_a_failing_write_leaves_the_old_agent(saved, save_naively, "os.replace")


def test_a_setting_that_json_cannot_hold_leaves_the_old_agent(saved: Saved) -> None:
    before = saved.file.read_bytes()
    loaded = artefact.load(saved.file)
    for wrong in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            artefact.save(
                saved.folder, loaded.policy, loaded.scaler,
                {**loaded.manifest, "observation_names": saved.names, "extra": wrong},
            )  # fmt: skip
    assert saved.file.read_bytes() == before
    assert [item.name for item in saved.folder.iterdir()] == ["agent.zip"]


def test_what_a_killed_process_left_is_ignored_by_load_and_removed_by_the_next_save(saved: Saved) -> None:
    """C02."""
    loaded = artefact.load(saved.file)
    left = saved.folder / ".agent.zip.99999.tmp"
    left.write_bytes(saved.file.read_bytes()[:1000])
    assert artefact.load(saved.folder).manifest == loaded.manifest
    artefact.save(saved.folder, loaded.policy, loaded.scaler, {**loaded.manifest, "observation_names": saved.names})
    assert [item.name for item in saved.folder.iterdir()] == ["agent.zip"]


KILLED = """
import os, signal, sys, warnings, zipfile
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from agents import artefact
folder = {folder!r}
loaded = artefact.load(folder)
calls, armed = 0, False
def counted(honest):
    def call(*arguments, **more):
        global calls
        calls += 1
        if armed and calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments, **more)
    return call
for owner, name in ((os, "replace"), (os, "fsync"), (zipfile.ZipFile, "writestr"), (zipfile.ZipFile, "close")):
    setattr(owner, name, counted(getattr(owner, name)))
seed, status, kill_at = loaded.manifest["seed"], None, 0
while status != 0:
    kill_at += 1
    child = os.fork()
    if child == 0:
        calls, armed = 0, True
        manifest = {{**loaded.manifest, "observation_names": loaded.reads, "seed": seed + 1}}
        artefact.save(folder, loaded.policy, loaded.scaler, manifest)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = artefact.load(folder).manifest["seed"]
    assert found in (seed, seed + 1), (found, seed)
    assert found == seed + 1 or status != 0
    seed = found
print("kills", kill_at - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_killed_at_any_step_of_a_save_leaves_the_old_agent_or_the_new_one(
    saved: Saved, run_python: Callable[..., str]
) -> None:
    """C01. At every call that touches the disk, each in a process of its own."""
    kills = int(run_python(KILLED.format(folder=str(saved.folder))).split()[-1])
    print(f"killed at {kills} places")
    assert kills > 5
    assert [item.name for item in saved.folder.iterdir()] == ["agent.zip"]


def test_an_agent_of_other_versions_is_loaded_with_a_warning_that_names_them(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    """C09."""
    with caplog.at_level(logging.WARNING):
        artefact.load(saved.file)
    assert caplog.text == ""
    edit_manifest(saved.file, lambda manifest: manifest["versions"].update(torch="1.2.3", pandas="0.1"))
    with caplog.at_level(logging.WARNING):
        check_round_trip(saved)
    assert "torch: expected '1.2.3', found" in caplog.text
    assert "pandas: expected '0.1', found" in caplog.text


def check_answers_alike(folder: Path, algo: str, load: Callable[[Path], Any]) -> None:
    saved, data = save_agent(folder, algo), observations(1_000, algo)
    masks = market(algo).masks(len(data))
    expected, _ = saved.policy.predict(data, deterministic=True, **masks)
    loaded = load(folder)
    assert np.array_equal(loaded.predict(data, **masks)[0], expected), "after loading"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = loaded.predict(data, **masks)[0]
    finally:
        torch.set_num_threads(threads)
    assert np.allclose(found, expected, rtol=0.0, atol=1e-6), "on two threads"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_thousand_observations_are_answered_alike_after_loading_and_on_two_threads(tmp_path: Path, algo: str) -> None:
    """C11. To the last bit with one thread, to 1e-6 with two."""
    check_answers_alike(tmp_path, algo, artefact.load)


def load_rounded(folder: Path) -> Any:
    """Planted fault: weights lose half of their bits."""
    agent = artefact.load(folder)
    with torch.no_grad():
        for value in agent.policy.parameters():
            value.copy_(value.bfloat16())
    return agent


def load_dependent_on_threads(folder: Path) -> Any:
    """Planted fault: two threads add up to something else."""
    agent = artefact.load(folder)
    honest, threads = agent.act, torch.get_num_threads()

    def act(*given: Any) -> Any:
        actions, state = honest(*given)
        return actions + 2e-6 * (torch.get_num_threads() != threads), state

    agent.act = act  # type: ignore[assignment,method-assign]
    return agent


@pytest.mark.parametrize(
    ("load", "said"), [(load_rounded, "after loading"), (load_dependent_on_threads, "on two threads")]
)
def test_a_load_that_rounds_and_an_agent_that_depends_on_threads_are_caught(
    tmp_path: Path, load: Callable[[Path], Any], said: str
) -> None:
    """Twin of C11."""
    with pytest.raises(AssertionError, match=said):
        check_answers_alike(tmp_path, "ppo", load)


def test_the_manifest_holds_the_commit_of_a_checkout_and_none_of_an_installed_package(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) is None
    found = provenance.commit()
    if (provenance.HOME / ".git").exists() and shutil.which("git"):
        assert found is not None
        assert len(found.removesuffix("-dirty")) == 40
    else:
        assert found is None
