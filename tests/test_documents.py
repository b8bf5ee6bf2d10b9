"""The generated documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import envs
import regimegym

ROOT = Path(__file__).resolve().parent.parent


def test_the_column_table_is_what_the_command_prints(capsys):
    assert regimegym.main(["envs", "--columns"]) == 0
    printed = capsys.readouterr().out
    assert (ROOT / "docs" / "observation-columns.md").read_text() == printed, (
        "run: regimegym envs --columns > docs/observation-columns.md"
    )


def test_the_readme_lists_every_registered_id():
    text = (ROOT / "README.md").read_text()
    assert [name for name in envs.ids() if f"`{name}`" not in text] == []


def test_the_python_blocks_of_the_readme_run_as_they_stand(tmp_path, monkeypatch):
    """The blocks run in order in one folder that holds the candles.csv they speak of; the saved agent is left out."""
    frame = regimegym.load_bars("synthetic:crypto?seed=3&bars=3000")
    lines = ["timestamp,open,high,low,close,volume"]
    for row in range(len(frame)):
        numbers = (frame.columns[name][row, 0] for name in ("open", "high", "low", "close", "volume"))
        lines.append(f"{frame.time[row]}," + ",".join(map(repr, map(float, numbers))))
    (tmp_path / "candles.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    names: dict[str, object] = {}
    ran = 0
    for block in blocks:
        if "agents.load" in block:
            continue
        exec(compile(block.replace("learn(10_000)", "learn(4_096)"), "README.md", "exec"), names)
        ran += 1
    assert ran == 8
