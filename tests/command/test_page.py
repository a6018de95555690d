"""``docs/command.md``: the commands in it run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hyena.command import main
from hyena.command.arguments import parser

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
# What makes a command quick; the rest is as it stands on the page.
QUICK = {
    "train": ["--steps", "2", "--context", "16", "--width", "16", "--layers", "1"],
    "bench": ["--lengths", "16,32", "--width", "64"],
}


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("Once upon a time there was a long sequence. " * 20)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        program, command, *rest = shlex.split(line)
        assert program == "hyena"
        assert main([command, *rest, *QUICK.get(command, [])]) == 0, line
    assert "Once" in capsys.readouterr().out
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoint.pt", "loss.png", "metrics.json", "run.lock",
    ]  # fmt: skip
    assert sorted(path.name for path in Path("bench").iterdir()) == ["bench.json", "bench.png"]


def test_every_command_is_on_the_page() -> None:
    (commands,) = (action for action in parser()._actions if action.dest == "command")
    table = PAGE.split("```sh")[0]
    assert [name for name in commands.choices if f"`{name}`" not in table] == []
