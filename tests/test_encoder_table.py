"""The table of encoders: it resumes after any kill, says what its files say, and fits nothing on what it scores."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regimegym
from encoders import table_fits
from encoders.belief import BeliefConfig
from encoders.belief_training import BeliefTraining
from encoders.box_autoencoder import WINDOW, AutoencoderTraining
from encoders.box_trunk import LOOK_BACK
from encoders.channels import percent_returns
from encoders.clustering import seed_agreement
from encoders.encoder_table import fill, half_width, markdown, plot
from encoders.jepa_training import JEPAConfig, JEPATraining, prepare
from encoders.koopman_config import koopman_config
from encoders.table_bars import RealBars, RealConfig, cluster_figures
from encoders.table_fits import FitConfig
from encoders.table_market import Market, MarketConfig
from encoders.table_rows import Model, Row, chosen
from encoders.table_store import Outcome, Store, _closure, hash_of_code
from encoders.volatility_probes import log_volatility, score_volatility
from markets import storage, synthetic
from markets.bars import Bars
from markets.errors import ConfigError, DataError, UnknownNameError
from markets.synthetic_regimes import regimes

JEPA = JEPAConfig(hidden=4, inner=6, latent=3, steps=2, sequences=1, length=320, horizon=16)
FITS = FitConfig(jepa=JEPA, schedule=BeliefTraining(iterations=2, moves=0, last=0))
TINY = MarketConfig(
    train_seeds=(1,), test_seeds=(101,), bars=1600, fits=FITS,
    koopman=koopman_config(
        "koopman", context_window=64, prediction_horizon=16, latent_dim=8, epochs=1, steps_per_epoch=2, batch_size=16
    ),
)  # fmt: skip
REAL = RealConfig(
    train_end="2020-02-15", test_end="2020-04-01",
    fits=replace(FITS, jepa=replace(JEPA, channels=("return", "volatility", "volume"), belief=BeliefConfig(regimes=3))),
)  # fmt: skip
FEW = ("belief", "default-softmax", "default", "autoencoder", "untrained", "hand-27")

pytest.importorskip("sklearn", reason="k-means and the probe are of the extra 'models'")


# ---- the engine, on rows that cost nothing ----------------------------------------------------------------------


class Cheap:
    """A table of three rows, of which the last does not depend on the seed; counts what is scored."""

    code = "1"

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {"steps": 3}
        self.scored: list[tuple[str, int]] = []
        self.rows: Sequence[Row] = [
            Row("a", "row a", self._fit("a"), self.settings), Row("b", "row b", self._fit("b"), {"bars": 9}),
            Row("c", "row c", self._fit("c"), {"bars": 9}, seeded=False),
        ]  # fmt: skip

    def _fit(self, name: str) -> Any:
        def fit(seed: int) -> Model:
            self.scored.append((name, seed))
            return Model(lambda bars: np.zeros((1, 1)), cpu_seconds=float(ord(name) + seed**2))

        return fit

    def judge(self, model: Model, seed: int) -> Outcome:
        clusters = np.random.default_rng(seed).integers(0, 3, 50)
        return Outcome({"ari": model.cpu_seconds / 300.0, "purity": math.nan, "train_cpu": model.cpu_seconds}, clusters)

    def notes(self) -> list[str]:
        return ["A note."]


WORK = [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def filled(folder: Path, cheap: Cheap) -> dict[str, Any]:
    return fill(cheap, cheap.rows, 3, folder)


@pytest.mark.parametrize("killed", range(len(WORK)))
def test_a_run_that_is_killed_anywhere_goes_on_and_repeats_nothing(
    killed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = filled(tmp_path / "whole", Cheap())
    moved = storage.os.replace

    def dies(source: Path, target: Path) -> None:
        if Path(target).name == "{}-{}.zip".format(*WORK[killed]):
            raise KeyboardInterrupt  # the last moment before the file has its name
        moved(source, target)

    first, second = Cheap(), Cheap()
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            filled(tmp_path / "cut", first)
    assert first.scored == WORK[: killed + 1]
    resumed = filled(tmp_path / "cut", second)
    assert second.scored == WORK[killed:]
    assert resumed == whole
    for name in ("table.json", "table.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [path.name for path in (tmp_path / "cut").rglob("*.tmp")] == []


def test_mutant_a_store_that_forgets_what_it_wrote_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, Cheap())
    monkeypatch.setattr(Store, "read", lambda *_: "")
    again = Cheap()
    filled(tmp_path, again)
    assert again.scored == WORK


def test_other_settings_are_computed_again_and_only_where_a_row_depends_on_them(tmp_path: Path) -> None:
    filled(tmp_path, Cheap())
    other = Cheap({"steps": 4})
    filled(tmp_path, other)
    assert other.scored == [("a", 0), ("a", 1), ("a", 2)]
    same = Cheap({"steps": 4})
    filled(tmp_path, same)
    assert same.scored == []


def test_other_code_and_damaged_files_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, Cheap())
    other = Cheap()
    other.code = "2"
    with caplog.at_level("INFO"):
        filled(tmp_path, other)
    assert other.scored == WORK
    assert "another version of the code" in caplog.text
    path = tmp_path / "rows" / "b-1.zip"
    path.write_bytes(path.read_bytes()[:-30])
    third = Cheap()
    third.code = "2"
    filled(tmp_path, third)
    assert third.scored == [("b", 1)]


def test_the_code_version_sees_code_and_nothing_else() -> None:
    plain = hash_of_code({"m": ast.parse("def f():\n    return 1")})
    assert plain == hash_of_code({"m": ast.parse('"""Doc."""\n\ndef f():  # why\n    """Say."""\n    return (1)\n')})
    assert plain != hash_of_code({"m": ast.parse("def f():\n    return 2")})
    assert plain != hash_of_code({"n": ast.parse("def f():\n    return 1")})
    market, real = _closure("encoders.table_market"), _closure("encoders.table_bars")
    shared = {"encoders.belief_training", "encoders.jepa_training", "encoders.clustering", "markets.bars"}
    assert shared <= set(market) & set(real)
    assert {"encoders.koopman_training", "encoders.references", "markets.synthetic_regimes"} <= set(market) - set(real)
    assert "encoders.encoder_table" not in market


def test_more_seeds_only_add_and_two_processes_do_not_fill_one_table(tmp_path: Path) -> None:
    filled(tmp_path, Cheap())
    more = Cheap()
    fill(more, more.rows, 4, tmp_path)
    assert more.scored == [("a", 3), ("b", 3)]
    with storage.locked(tmp_path / ".encoder-table.lock", "held"), pytest.raises(ConfigError, match="another process"):
        filled(tmp_path, Cheap())
    with pytest.raises(ConfigError, match="seeds=0"):
        fill(more, more.rows, 0, tmp_path)


# ---- what is written --------------------------------------------------------------------------------------------


def test_the_table_says_what_the_json_says(tmp_path: Path) -> None:
    """Means and intervals are computed here anew from the figures of every seed; 4.303 is t of 2 degrees of freedom."""
    filled(tmp_path, Cheap())
    content = json.loads((tmp_path / "table.json").read_text())
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line]
    heads = [column["head"] for column in content["columns"]]
    assert lines[0] == ["row", *heads]
    assert heads == ["ARI", "seeds agree", "train, CPU s"]
    for line, row in zip(lines[2:], content["rows"], strict=True):
        values = [figures["ari"] for figures in row["seeds"].values()]
        cell = f"{np.mean(values):.3f}"
        if row["seeded"]:
            cell += f" ± {4.30265 * np.std(values, ddof=1) / math.sqrt(3):.3f}"
        assert line[0] == row["title"]
        assert line[1] == cell
        assert line[3] == f"{np.mean([figures['train_cpu'] for figures in row['seeds'].values()]):.0f}"
    partitions = [np.random.default_rng(seed).integers(0, 3, 50) for seed in range(3)]
    assert content["rows"][0]["mean"]["agreement"] == pytest.approx(seed_agreement(partitions))
    assert content["rows"][0]["seeds"]["0"]["purity"] is None
    assert (tmp_path / "table.md").read_text() == markdown(content)
    assert "A note." in markdown(content)
    content["rows"][0]["mean"]["ari"] += 0.01
    assert (tmp_path / "table.md").read_text() != markdown(content), "the comparison has no power"


def test_the_interval_is_students() -> None:
    assert half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert math.isnan(half_width([1.0]))


def test_the_plot_is_a_picture_of_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot is of the extra 'viz'")
    assert plot(filled(tmp_path, Cheap()), "ari", tmp_path / "table.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# ---- the market with true regimes -------------------------------------------------------------------------------


def test_every_control_is_in_the_table(tmp_path: Path) -> None:
    names = [row.name for row in Market(TINY, tmp_path).rows]
    controls = {"oracle", "untrained", "autoencoder", "head-only", "jepa-only", "distilled", "supervised", "constant",
                "koopman-untrained", "koopman-autoencoder", "hand-27", "ridge", "hmm", "jump-model"}  # fmt: skip
    assert controls <= set(names)
    assert len(set(names)) == len(names)
    assert ("belief-neural" in names) == ("emission" in BeliefConfig.__dataclass_fields__)
    stressed = Market(replace(TINY, level="sv"), tmp_path)
    assert "oracle" not in [row.name for row in stressed.rows]
    assert "no oracle" in " ".join(stressed.notes())
    assert "shares the generator's structure" in " ".join(stressed.notes())
    real = {row.name for row in RealBars([synthetic.crypto(3, "1h", 2600)], REAL, tmp_path).rows}
    assert {"har", "jepa-only", "head-only", "untrained", "belief-argmax", "belief+embedding", "har+embedding"} <= real
    with pytest.raises(UnknownNameError, match="Did you mean 'belief'"):
        chosen(Market(TINY, tmp_path).rows, ["belif"])
    with pytest.raises(UnknownNameError, match="level 'markt'"):
        MarketConfig(level="markt")


def test_every_row_of_the_market_is_scored(tmp_path: Path) -> None:
    market = Market(TINY, tmp_path)
    table = fill(market, market.rows, 1, tmp_path)
    assert [row["name"] for row in table["rows"]] == [row.name for row in market.rows]
    best = {row["name"]: row["mean"] for row in table["rows"]}
    assert best["oracle"]["ari"] > best["untrained"]["ari"]
    assert best["constant"]["ari"] == 0.0
    for name in ("identity_deviation", "at_identity_centroid_action", "untrained_centroid_action"):
        assert math.isfinite(best["koopman"][name])
    assert "koopman: windows, JEPA alone, untrained" in (tmp_path / "table.md").read_text()
    truth = market.test[0].labels
    assert truth is not None
    model = market.rows[0].fit(0)
    outcome = market.judge(model, 0)
    said = model.embed(market.test[0])[255::8].argmax(axis=1)
    assert np.array_equal(outcome.clusters, said)
    assert outcome.figures["hungarian"] == pytest.approx(np.mean(said == truth[255::8]))


def test_a_fit_that_is_on_disk_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill inside a training leaves the belief; a kill after it leaves the encoder too."""
    first = Market(TINY, tmp_path)
    monkeypatch.setattr(table_fits, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.fits.encoder("default", 0)
    monkeypatch.undo()
    monkeypatch.setattr(table_fits, "fit_belief", lambda *_: pytest.fail("the belief was fitted twice"))
    made = Market(TINY, tmp_path).fits.encoder("default", 0)
    monkeypatch.setattr(table_fits, "prepare", lambda *_, **__: pytest.fail("the encoder was trained twice"))
    assert Market(TINY, tmp_path).fits.encoder("default", 0).hash == made.hash
    monkeypatch.undo()
    fresh = Market(TINY, tmp_path / "fresh").fits
    assert fresh.encoder("default", 0).hash == made.hash, "a belief from the disk gives the same encoder"
    changed = replace(TINY, fits=replace(FITS, jepa=replace(JEPA, steps=3)))
    assert Market(changed, tmp_path).fits.encoder("default", 0).hash != made.hash


@pytest.mark.parametrize("first", ["belief", "default"])
def test_a_belief_costs_once_whichever_row_asks_for_it_first(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves by 1,000 s in the fit of the belief and by 1 s in each step of an encoder."""
    now = [0.0]
    fit, step = table_fits.fit_belief, JEPATraining.step

    def slow(clock: float, function: Any) -> Any:
        def run(*words: Any) -> Any:
            now[0] += clock
            return function(*words)

        return run

    monkeypatch.setattr(table_fits.time, "process_time", lambda: now[0])
    monkeypatch.setattr(table_fits, "fit_belief", slow(1000.0, fit))
    monkeypatch.setattr(JEPATraining, "step", slow(1.0, step))
    market = Market(TINY, tmp_path)
    rows = {row.name: row for row in market.rows}
    rows[first].fit(0)
    costs = [rows[name].fit(0).cpu_seconds for name in ("belief", "default", "default-softmax", "head-only")]
    assert costs == [1000.0, 1002.0, 1002.0, 2.0]


# ---- nothing of the test range is fitted on ---------------------------------------------------------------------


def rows_of(market: Market, names: Sequence[str], probe: Bars) -> dict[str, bytes]:
    return {row.name: row.fit(0).embed(probe).tobytes() for row in chosen(market.rows, names)}


def test_no_row_changes_with_the_series_it_is_scored_on(tmp_path: Path) -> None:
    probe = regimes(55, bars=1000)
    names = (*FEW, "ridge", "hmm-slow", "jump-model", "koopman", "supervised-softmax")
    one = rows_of(Market(TINY, tmp_path / "one"), names, probe)
    other = rows_of(Market(replace(TINY, test_seeds=(102,)), tmp_path / "other"), names, probe)
    assert [name for name in names if one[name] != other[name]] == []


def test_mutant_a_table_that_fits_on_test_series_is_caught(tmp_path: Path) -> None:
    probe = regimes(55, bars=1000)
    found = []
    for seed in (101, 102):
        market = Market(replace(TINY, test_seeds=(seed,)), tmp_path / str(seed))
        market.fits.series += market.test
        market.fits.returns += [percent_returns(bars.close[:, 0]) for bars in market.test]
        market.train += market.test
        found.append(rows_of(market, ("belief", "default", "ridge"), probe))
    assert all(found[0][name] != found[1][name] for name in found[0])


def after(bars: Bars, end: str, factor: float) -> Bars:
    """The same bars up to a date, and others behind it."""
    cut = bars.rows_closed_by(end)
    scale = np.where(np.arange(len(bars)) < cut, 1.0, np.exp(factor * np.sin(np.arange(len(bars)))))[:, None]
    return replace(bars, **{name: value * scale for name, value in bars.columns.items()})


def real_hashes(folder: Path, bars: Bars, leak: bool = False) -> list[str]:
    table = RealBars([bars], REAL, folder)
    if leak:
        table.fits.series = table.known
        table.fits.returns = [percent_returns(one.close[:, 0]) for one in table.known]
    return [table.fits.encoder(name, 0).hash for name in ("default", "jepa-only")]


def test_real_bars_behind_the_training_range_change_no_fit_and_a_mutant_is_caught(tmp_path: Path) -> None:
    bars = synthetic.crypto(3, "1h", 2600)
    other = after(bars, REAL.train_end, 0.01)
    assert real_hashes(tmp_path / "a", bars) == real_hashes(tmp_path / "b", other)
    leaked = zip(real_hashes(tmp_path / "c", bars, True), real_hashes(tmp_path / "d", other, True), strict=True)
    assert all(one != two for one, two in leaked)


def test_real_rows_are_scored_behind_the_training_range_only(tmp_path: Path) -> None:
    bars = synthetic.crypto(3, "1h", 2600)
    table = RealBars([bars], REAL, tmp_path)
    cut, stop = bars.rows_closed_by(REAL.train_end), bars.rows_closed_by(REAL.test_end)
    assert len(table.train[0]) == cut
    assert len(table.known[0]) == stop < len(bars)
    har = table.judge(table.rows[0].fit(0), 0)
    assert har.figures["over_har"] == pytest.approx(0.0)
    assert len(har.clusters) == len(range(255, stop - cut - 64, 8))
    model = next(row for row in table.rows if row.name == "belief-argmax").fit(0)
    said = model.embed(table.known[0])[cut:][255 : stop - cut - 64 : 8].argmax(axis=1)
    assert np.array_equal(table.judge(model, 0).clusters, said)
    behind = RealBars([after(bars, REAL.test_end, 0.01)], REAL, tmp_path)
    assert behind.judge(behind.rows[0].fit(0), 0).figures["r2"] == har.figures["r2"]
    with pytest.raises(ConfigError, match="train_end='2019-01-01' leaves 0 bars"):
        RealBars([bars], replace(REAL, train_end="2019-01-01"), tmp_path)


def test_figures_of_given_clusters_are_those_of_the_probe() -> None:
    moves = [percent_returns(synthetic.crypto(seed, "1h", 1500).close[:, 0]) for seed in (3, 4)]
    columns = [log_volatility(one) for one in moves]
    figures, apart = score_volatility(columns, moves, columns, moves, 4)
    found = cluster_figures(apart, moves, 4)
    assert found == {name: pytest.approx(figures[name]) for name in found}
    assert len(found) == 4


# ---- the control ------------------------------------------------------------------------------------------------


def test_the_autoencoder_is_asked_for_the_last_bars_of_every_embedding_and_starts_where_the_encoder_does() -> None:
    series = [regimes(1, bars=900)]
    material = prepare(series, JEPA)
    control = AutoencoderTraining(material, JEPA)
    first = JEPATraining(material, JEPA).net.trunk.weights().arrays()
    assert all(np.array_equal(value, first[name]) for name, value in control.net.trunk.weights().arrays().items())
    channels = torch.arange(2 * 2 * JEPA.length, dtype=torch.float32).reshape(2, 2, JEPA.length)
    bars = range(LOOK_BACK, JEPA.length)  # the bars that have an embedding
    exact = torch.stack([channels[:, :, t + 1 - WINDOW : t + 1].reshape(2, -1) for t in bars], dim=1)
    embedding, nothing = torch.zeros(2, len(bars), JEPA.latent), torch.empty(0)
    control.net.decoder = torch.nn.Module()
    for shift, expected in ((0.0, 0.0), (1.0, 1.0)):
        control.net.decoder.forward = lambda _, shift=shift: exact + shift
        assert float(control.losses(embedding, channels, nothing, nothing)["reconstruction"]) == expected
    learning = AutoencoderTraining(material, replace(JEPA, steps=40))
    losses = [learning.step()["reconstruction"] for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_belief_that_is_handed_over_is_the_one_that_would_be_fitted(tmp_path: Path) -> None:
    series = [regimes(1, bars=900)]
    moves = [percent_returns(one.close[:, 0])[1:] for one in series]
    fitted = table_fits.fit_belief(moves, JEPA.belief, BeliefTraining(seed=JEPA.seed))
    own, given = prepare(series, JEPA), prepare(series, JEPA, fitted=fitted)
    assert torch.equal(own.posterior[0], given.posterior[0])
    with pytest.raises(DataError, match="not of these series"):
        prepare([regimes(1, bars=901)], JEPA, fitted=fitted)


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--bars", "synthetic:crypto?seed=3&bars=900", "--test-end", "2020-01-20"], ("--train-end DATE",)),
        (["--bars", "synthetic:crypto?seed=3&bars=900", "--level", "sv"], ("--level sv", "--market")),
        (["--market", "regimes", "--train-end", "2020-01-01"], ("--train-end 2020-01-01", "--bars")),
        (["--market", "regimes", "--rows", "belif"], ("row 'belif'", "Did you mean 'belief'")),
        (["--market", "regimes", "--seeds", "0", "--rows", "constant"], ("seeds=0",)),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regimegym.main(["encoder-table", "--out", str(tmp_path), "--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts)


def test_the_command_prints_the_table_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = "synthetic:crypto?seed=3&interval=1h&bars=2600"
    words = ["encoder-table", "--bars", spec, "--train-end", "2020-02-15", "--test-end", "2020-04-01", "--rows", "har"]
    printed = []
    for _ in range(2):
        assert regimegym.main([*words, "--out", str(tmp_path), "--quiet"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == (tmp_path / "table.md").read_text()
    assert "| HAR: log volatility" in printed[0]
