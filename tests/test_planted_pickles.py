"""C06. A pickle in any file that a public function loads is refused, and never executed.

Left out is what is code by purpose: ``regimegym lookahead --module FILE`` runs the module it is given.
"""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted_pickles import KINDS, payloads

import agents
import regimegym
from agents import checkpoint
from agents.recipe import TrainingConfig
from agents.training import train
from envs.make import build
from markets import storage
from markets.errors import RegimeGymError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"


def config(out: Path, **changes: bool) -> TrainingConfig:
    return TrainingConfig(
        env="PerpFutures-v0", algo="tqc", steps=256, seed=7, out=out, lanes=4, quiet=True, evaluations=2, device="cpu",
        arguments={"bars": BARS}, settings={"learning_starts": 64, "buffer_size": 512, "gradient_steps": 1}, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file there is: an agent, and a checkpoint with a best policy and a replay buffer."""
    folder = tmp_path_factory.mktemp("run")
    train(config(folder))
    return folder


def candles(folder: Path) -> pd.DataFrame:
    time = pd.date_range("2024-01-01", periods=48, freq="h", tz="UTC")
    return pd.DataFrame({"time": time, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.0, "volume": 5.0})


def load_bars(kind: str, name: str, folder: Path) -> None:
    """Read candles and funding of which one file is the planted one."""
    files = {"bars": folder / f"bars.{kind}", "funding": folder / f"funding.{kind}"}
    table = candles(folder)
    funding = pd.DataFrame({"timestamp": table["time"].iloc[::8], "funding_rate": 1e-4})
    for key, content in (("bars", table), ("funding", funding)):
        if key != name:
            content.to_csv(files[key], index=False) if kind == "csv" else content.to_parquet(files[key])
    shutil.copy(folder / "planted", files[name])
    regimegym.load_bars(f"{kind}:{files['bars']}?interval=1h&symbol=BTCUSDT&funding={files['funding']}")


def load_agent(member: str, folder: Path) -> None:
    zipped(folder / "run" / "agent.zip", member, (folder / "planted").read_bytes())
    agents.load(folder / "run")


def resume(member: str, folder: Path) -> None:
    (path,) = checkpoint.files(folder / "run" / "checkpoints")[:1]
    for other in checkpoint.files(folder / "run" / "checkpoints")[1:]:
        other.unlink()
    zipped(path, member, (folder / "planted").read_bytes())
    train(config(folder / "run", resume=True))


def zipped(path: Path, member: str, payload: bytes) -> None:
    """Plant a member with a hash that fits; an unknown name is added, an empty one replaces the whole file."""
    if not member:
        path.write_bytes(payload)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if member == storage.MANIFEST:
        parts[member] = payload
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return
    import json

    manifest = json.loads(parts.pop(storage.MANIFEST))
    storage.write(path, manifest, {**parts, member: payload})


def read_scaler(folder: Path) -> None:
    build("PerpFutures", bars=BARS, split="test", scaler=str(folder / "planted"))


LOADS: dict[str, Callable[[Path], None]] = {
    **{
        f"agents.load, {member or 'the file'}": lambda folder, member=member: load_agent(member, folder)  # type: ignore[misc]
        for member in ("", "manifest.json", "policy.safetensors", "scaler.json", "data.pkl")
    },
    **{
        f"resume, {member or 'the file'}": lambda folder, member=member: resume(member, folder)  # type: ignore[misc]
        for member in ("", "manifest.json", "state.safetensors", "best.safetensors", "replay.safetensors", "data.pkl")
    },
    "scaler of an environment": read_scaler,
    **{
        f"{kind}, {name}": lambda folder, kind=kind, name=name: load_bars(kind, name, folder)  # type: ignore[misc]
        for kind in ("csv", "parquet")
        for name in ("bars", "funding")
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", LOADS)
def test_a_planted_pickle_is_refused_and_never_executed(load: str, kind: str, run: Path, tmp_path: Path) -> None:
    """C06."""
    marker = tmp_path / "executed"
    (tmp_path / "planted").write_bytes(payloads(marker)[kind])
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(RegimeGymError):
        LOADS[load](tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_doctor_does_not_execute_a_planted_pickle(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C06."""
    marker = tmp_path / "executed"
    for suffix in ("csv", "parquet"):
        file = tmp_path / f"bars.{suffix}"
        file.write_bytes(payloads(marker)[kind])
        assert regimegym.main(["data-doctor", str(file)]) != 0
        assert not marker.exists()


def test_a_parquet_file_whose_column_type_is_a_pickle_is_refused(tmp_path: Path) -> None:
    """C06. Arrow once unpickled the metadata of extension types (CVE-2023-47248)."""
    pa = pytest.importorskip("pyarrow", reason="the extra data is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    marker = tmp_path / "executed"
    table = pa.Table.from_pandas(candles(tmp_path))
    planted = pa.field(
        "close", pa.binary(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payloads(marker)["pickle"],
        },
    )  # fmt: skip
    table = table.set_column(table.column_names.index("close"), planted, pa.array([b"one"] * len(table)))
    pq.write_table(table, tmp_path / "bars.parquet")
    with pytest.raises(RegimeGymError):
        regimegym.load_bars(f"parquet:{tmp_path / 'bars.parquet'}?interval=1h&symbol=BTCUSDT")
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_unpickles_would_have_left_the_mark(kind: str, tmp_path: Path) -> None:
    """Twin of C06."""
    marker = tmp_path / "executed"
    data = payloads(marker)[kind]
    {
        "pickle": pickle.loads, "protocol 0": pickle.loads,
        "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "numpy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
    }[kind](data)  # fmt: skip
    assert marker.exists()
