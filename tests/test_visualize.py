"""Pictures of an encoder: they are drawn, readable in size, the same for the same seed, and of bars it has not seen."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import SPEC

import regimegym
from encoders import encoder as files
from encoders.encoder import Provenance
from encoders.jepa import JEPAEncoder
from encoders.measure import default_encoder
from encoders.unseen import bars_for
from markets.bars import Bars
from markets.errors import ConfigError, DataError, MissingExtraError

pytest.importorskip("matplotlib", reason="pictures need the extra 'viz'")
from encoders import pictures

NAMES = ("embedding.png", "regimes.png", "spectrum.png")


@pytest.fixture(scope="module")
def made(tiny_folder: Path) -> JEPAEncoder:
    return default_encoder(files.load(tiny_folder))


@pytest.fixture(scope="module")
def bars(made: JEPAEncoder) -> Bars:
    return bars_for(made.provenance, count=6000)


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of points costs t-SNE seconds."""
    monkeypatch.setattr(pictures, "POINTS", 130)


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, pixels."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_three_pictures_are_drawn_the_same_for_the_same_seed(made: JEPAEncoder, bars: Bars, tmp_path: Path) -> None:
    """K21."""
    pytest.importorskip("sklearn", reason="t-SNE needs the extra 'models'")
    paths = pictures.draw(made, bars, tmp_path, timeline=500)
    assert [path.name for path in paths] == list(NAMES)
    again, other = (pictures._embedding(made, bars, tmp_path / f"{seed}.png", seed) for seed in (0, 1))
    assert again.read_bytes() == paths[0].read_bytes()
    assert other.read_bytes() != paths[0].read_bytes(), "t-SNE has a seed"
    width, height = size(paths[0])
    assert width >= 2000  # two planes wide, two rows (belief and truth) high
    assert height >= 1500


def test_other_bars_and_another_encoder_are_another_picture(made: JEPAEncoder, bars: Bars, tmp_path: Path) -> None:
    """What is drawn comes from the bars and from the encoder."""
    first = pictures._spectrum(made, bars, tmp_path / "a.png", 64).read_bytes()
    assert pictures._spectrum(made, bars.between(0, 5500), tmp_path / "b.png", 64).read_bytes() != first
    pictures._timeline(made, bars, tmp_path / "d.png", 300)
    unlabelled = replace(bars, labels=None, label_names=())
    assert size(pictures._timeline(made, unlabelled, tmp_path / "f.png", 300))[1] < size(tmp_path / "d.png")[1]


def test_principal_components_find_the_widest_plane_and_keep_their_sign() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(500, 2)) * [5.0, 2.0]
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points = flat @ basis.T + 7.0
    plane, shares = pictures.principal_components(points)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] == pytest.approx(25 / 29, abs=0.03)
    assert np.abs(np.corrcoef(plane[:, 0], flat[:, 0])[0, 1]) > 0.99
    again, _ = pictures.principal_components(points[::-1])
    np.testing.assert_allclose(again[::-1], plane, atol=1e-9)


def test_every_regime_has_a_colour_of_its_own_and_every_spell_its_bars() -> None:
    for count in (2, 6, 12):
        assert len(set(pictures._colours(count))) == len(set(pictures._colours(count, True))) == count

    class Axis:
        spans: list[Any] = []

        def axvspan(self, start: Any, stop: Any, color: str, **_: Any) -> None:
            self.spans.append((start, stop, color))

    pictures._shade(Axis(), np.arange(7), np.array([0, 0, 1, 1, 1, 0, 0]), ["a", "b"], 1.0)  # type: ignore[arg-type]
    assert Axis.spans == [(0, 2, "a"), (2, 5, "b"), (5, 6, "a")]


def test_without_scikit_learn_principal_components_are_drawn_and_the_extra_is_named(
    made: JEPAEncoder, bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = pictures._embedding(made, bars, tmp_path / "both.png", 0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    one = pictures._embedding(made, bars, tmp_path / "one.png", 0)
    assert "regimegym[models]" in caplog.text
    assert size(one)[0] < size(both)[0]


def test_without_matplotlib_the_extra_is_named(
    made: JEPAEncoder, bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"regimegym\[viz\]"):
        pictures.draw(made, bars, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_few_bars_are_refused(made: JEPAEncoder, bars: Bars, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1000 bars are too few"):
        pictures.draw(made, bars.between(0, 1000), tmp_path)
    with pytest.raises(ConfigError, match="timeline=1"):
        pictures.draw(made, bars, tmp_path, timeline=1)


# ---- the command line ---------------------------------------------------------------------------------------------


def test_the_command_draws_unseen_bars_beside_the_encoder(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("encoders.unseen.bars_for", lambda origin, spec: bars_for(origin, spec, 6000))
    with caplog.at_level("INFO"):
        assert regimegym.main(["visualize", str(tiny_folder), "--timeline", "300"]) == 0
    assert sorted(path.name for path in (tiny_folder / "pictures").iterdir()) == sorted(NAMES)
    assert "seed=3" in caplog.text
    assert "in sample" not in caplog.text


def test_bars_that_were_seen_are_drawn_with_a_warning(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["visualize", str(tiny_folder), "--bars", SPEC.format(seed=1, bars=6000), "--out", str(tmp_path / "new")]
    assert regimegym.main(words) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(NAMES)
    assert "in sample" in caplog.text


def test_an_encoder_of_real_bars_needs_bars(
    made: JEPAEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = made.speaking("belief")
    real.provenance = Provenance("crypto", "1h", "2022-12-31T00:00:00", ("parquet:x.parquet",))
    files.save(real, tmp_path)
    assert regimegym.main(["visualize", str(tmp_path)]) == 2
    assert "--bars is needed: this encoder was fitted on bars of market 'crypto'" in capsys.readouterr().err
    assert regimegym.main(["visualize", str(tmp_path), "--seed", "-2"]) == 2
    assert "--seed -2" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()
