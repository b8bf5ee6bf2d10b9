"""The benchmark measures what it says: ratios in one run, never an asserted time."""

from __future__ import annotations

import json

import pytest

import regimegym
from agents import benchmark


@pytest.mark.slow
def test_the_benchmark_prints_every_row_with_its_ratio_and_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SINGLE_STEPS", 300)
    monkeypatch.setattr(benchmark, "LANE_STEPS", 4_096)
    monkeypatch.setattr(benchmark, "_construction", lambda env_id: {"bars": 0.0})
    monkeypatch.setattr(benchmark, "_scaling", lambda env_id: {"series": 1.0})
    assert regimegym.main(["benchmark", "--rounds", "1", "--no-training", "--json"]) in (0, 1)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 8
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference"] / row["nanoseconds"])
        assert row["holds"] == (None if row["bound"] is None else row["ratio"] >= row["bound"])


def test_construction_over_a_hundred_thousand_bars_shares_its_tables_between_environments() -> None:
    facts = benchmark._construction("PerpFutures-v0", bars=100_000)
    assert facts["bytes_of_a_second_env"] < 100_000
    assert facts["memory_over_bars_plus_tables"] <= 1.5


def test_mutant_an_environment_that_copies_its_tables_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import envs.make

    honest = envs.make.game_of
    monkeypatch.setattr(benchmark, "build", lambda *args, **more: _copied(honest, *args, **more))
    with pytest.raises(AssertionError):
        benchmark._construction("PerpFutures-v0", bars=20_000)


def _copied(honest, family, **arguments):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    from envs.make import build

    env = build(family, **arguments)
    game = env.simulation.game
    env.simulation.game = replace(game, table=game.table.copy(), market=game.market.copy())
    return env
