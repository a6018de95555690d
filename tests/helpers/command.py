"""The command ``hyena`` where it is to fail."""

from __future__ import annotations

from typing import Any

import pytest

from hyena.command import main


def error(capsys: pytest.CaptureFixture, given: list[Any]) -> str:
    """What it says, in one line, of arguments that it refuses."""
    capsys.readouterr()
    assert main([str(each) for each in given]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hyena: error: ")
    assert said.count("\n") == 1
    return said
