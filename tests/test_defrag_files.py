"""Files of the defragmentation encoder of bars that do not hold together, and trainings that cannot come to anything.

Every case is one that was once served, or failed with a traceback: the numbers of a file are checked beside its hash.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from encoders import encoder as files
from encoders.defrag_market import DefragEncoder
from encoders.defrag_numbers import Settings
from encoders.defrag_pretrain import DefragPretrain, fit, pretrain
from encoders.encoder import Arrays
from encoders.regimes import KMeansHead
from markets import sources, synthetic
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, DataError

PLAN = DefragPretrain(
    regimes=3, components=4, block={"epochs": 0, "hidden": 4, "latent_dim": 12, "block_len": 32}, horizon=32,
    own_blocks=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> DefragEncoder:
    return fit([synthetic.crypto(7101, "1h", 4000)], PLAN)[0]


def changed(arrays: Arrays, name: str, change: str) -> Arrays:
    value = arrays[name].copy()
    other: Any = {
        "float64": lambda: value.astype(np.float64), "complex": lambda: value.astype(complex),
        "zero": lambda: 0 * value,
        "int32": lambda: value.astype(np.int32), "minus": lambda: -value, "twice": lambda: value * 2,
        "reversed": lambda: value[::-1].copy(), "scalar": lambda: value.reshape(()), "none": lambda: value[:0],
        "late": lambda: value + 10**18, "other kind": lambda: 1 - value, "tiny": lambda: value * 1e-200,
    }[change]()  # fmt: skip
    return {**arrays, name: other}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("head.width", "zero", "width"), ("head.width", "minus", "width"), ("head.width", "tiny", "width"),
        ("head.width", "scalar", "head.width"), ("head.width", "int32", "head.width"),
        ("chain", "complex", "chain"), ("memory.outcomes", "complex", "memory.outcomes"),
        ("moments.persistence", "zero", "persistence"), ("moments.persistence", "minus", "persistence"),
        ("moments.mean", "float64", "moments.mean"), ("novelty.distances", "minus", "ascending"),
        ("novelty.distances", "reversed", "ascending"), ("memory.rows", "zero", "unit length"),
        ("memory.rows", "twice", "unit length"), ("memory.visible_from", "float64", "visible_from"),
        ("memory.visible_from", "late", None), ("memory.real", "other kind", "memory.real"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_hold_together_are_refused(
    made: DefragEncoder, name: str, change: str, said: str | None
) -> None:
    """C08."""
    arrays, config = made.arrays(), made.config()
    DefragEncoder.build(config, arrays, made.provenance, {})
    if said is None:  # dates of generated bars mean nothing
        DefragEncoder.build(config, changed(arrays, name, change), made.provenance, {})
        return
    with pytest.raises(ArtefactError, match=said):
        DefragEncoder.build(config, changed(arrays, name, change), made.provenance, {})


def test_a_memory_of_real_bars_that_is_later_than_its_training_or_undated_is_refused() -> None:
    """A file that calls real rows generated would show every one of them at any time: lookahead."""
    bars = replace(synthetic.crypto(7101, "1h", 4000), market="crypto", source="memory:real")
    real = fit([bars], PLAN)[0]
    arrays, config = real.arrays(), real.config()
    for name, change, said in (("memory.visible_from", "late", "train_end"), ("memory.real", "other kind", "kind")):
        with pytest.raises(ArtefactError, match=said):
            DefragEncoder.build(config, changed(arrays, name, change), real.provenance, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_len": 28}, {"block_len": 1}, {"block_len": 10**9}, {"neighbours": 10**12}, {"memory": 2**20 + 1},
        {"moments_weight": True}, {"moments_weight": "x"}, {"moments_weight": float("nan")}, {"evidence": None},
        {"evidence": 0.0}, {"evidence": "0.5"},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_name_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=f"{next(iter(wrong))}=.* must be"):
        Settings(**wrong)
    assert Settings(block_len=32, moments_weight=0, evidence=1).block_len == 32


def test_a_width_whose_square_vanishes_is_refused() -> None:
    for width in (0.0, 1e-170, float("nan"), float("inf"), -1.0):
        with pytest.raises(ArtefactError, match="width"):
            KMeansHead(np.zeros((2, 3)), width)


def test_an_encoder_without_moments_in_its_memory_is_trained_and_streams() -> None:
    """``moments_weight=0`` trained to the end and was then refused."""
    plan = replace(PLAN, block={**PLAN.block, "moments_weight": 0.0})
    bars = synthetic.crypto(7101, "1h", 4000)
    made = fit([bars], plan)[0]
    assert made.numbers.kept.rows.shape[1] == 12
    other = synthetic.crypto(9, "1h", made.warm_up + 120)
    table, stream = made.table(other).values, made.stream()
    rows = [stream.update(other.one(row)) for row in range(len(other))]
    last = rows[-1]
    assert last is not None
    assert np.abs(last - table[-1]).max() <= 2e-4
    with pytest.raises(ArtefactError, match=r"memory\.rows"):
        DefragEncoder.build({**made.config(), "moments_weight": 0.5}, made.arrays(), made.provenance, {})


def test_trainings_that_leave_nothing_to_score_say_so_at_once() -> None:
    bars = [synthetic.crypto(7101, "1h", 4000)]
    for plan in (replace(PLAN, validation=0.001), replace(PLAN, horizon=395, own_blocks=0)):
        with pytest.raises(DataError, match=r"validation=.* horizon"):
            pretrain(bars, plan, Path("unused"))
    with pytest.raises(ConfigError, match="regimes=200 are more than"):
        fit(bars, replace(PLAN, regimes=200))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "validation=x"], "validation='x'"), (["--set", "evidence=x"], "evidence='x'"),
        (["--set", "hierarchy=[1,4]"], "hierarchy"), (["--set", "interval_level=0.5"], "interval_level"),
        (["--channels", "return,return"], "twice"), (["--channels", ""], "unknown channel"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_would_do_nothing_or_fail(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = ["--bars", "synthetic:crypto?seed=7102&interval=1h&bars=4000", "--out", str(tmp_path / "a"), "--quiet"]
    assert regimegym.main(["pretrain", "--encoder", "defrag", *bars, "--set", "epochs=0", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_state_that_is_not_of_this_stream_is_refused_and_nothing_is_lost(made: DefragEncoder) -> None:
    """One of a scalar, of NaN, or of own rows without their times was taken."""
    bars = synthetic.crypto(9, "1h", 40)
    stream: Any = made.stream()
    for row in range(40):
        stream.update(bars.one(row))
    good = stream.state_dict()
    spoilt: dict[str, Any] = {
        "back": np.array(1.0), "filter": np.full(3, np.nan), "own.ends": np.arange(5), "dense.ticks": None,
        "seen": np.array([1.5]),
    }  # fmt: skip
    for name, value in spoilt.items():
        state = {**good, name: value}
        if value is None:
            del state[name]
        with pytest.raises(ArtefactError, match="state of a defrag stream"):
            made.stream().load_state_dict(state)
        with pytest.raises(ArtefactError):
            stream.load_state_dict(state)
    assert all(np.array_equal(value, good[name]) for name, value in stream.state_dict().items())
    stream.load_state_dict(good)


@pytest.mark.parametrize("name", ["defrag-spy-1m", "jepa-spy-1m"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_a_session_that_opens_at_no_price_is_refused_and_the_state_is_as_it_was(name: str, value: float) -> None:
    """NaN went into the running means for good, and a price below 0 was a traceback."""
    bars = sources.load("synthetic:spy?seed=4&sessions=2")
    first = bars.one(0)
    columns = {key: column.copy() for key, column in first.columns.items()}
    columns["open"][:] = value
    stream: Any = files.load(name).stream()
    before = stream.state_dict()
    with pytest.raises(DataError, match="open"):
        stream.update(Bars.unchecked(
            time=first.time, interval=bars.interval, symbols=bars.symbols, market=bars.market,
            funding_time=first.funding_time, funding_rate=first.funding_rate, source=bars.source, **columns,
        ))  # fmt: skip
    assert all(np.array_equal(kept, before[key]) for key, kept in stream.state_dict().items())
