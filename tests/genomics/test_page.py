"""docs/genomics.md: its commands run, after its Python code, which makes what they read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hyena.command import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "genomics.md"


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), names)
    commands = [shlex.split(line) for language, block in blocks if language == "bash" for line in block.splitlines()]
    assert [command[:2] for command in commands] == [
        ["hyena", name] for name in ("score", "score", "embed", "classify", "generate")
    ]
    capsys.readouterr()
    for command in commands:
        assert main(command[1:]) == 0, capsys.readouterr().err
        output = command[command.index("--output") + 1]
        assert capsys.readouterr().err.startswith(f"{output}: ")
        assert Path(output).stat().st_size > 0
