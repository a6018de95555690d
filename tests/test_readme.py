"""What the README shows: it runs, and its Quick start has the two blocks that set everything up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_quick_start() -> None:
    bash = blocks("bash")
    quick_start = README.read_text(encoding="utf-8").split("## Quick start")[1].split("\n## ")[0]
    assert len(bash) == 2
    assert all(block in quick_start for block in bash)
    assert "python examples/shakespeare/train.py" in bash[0]
    assert "python -m pytest" in bash[1]


@pytest.mark.parametrize("number", range(4))
def test_usage(number: int) -> None:
    found = blocks("python")
    assert len(found) == 4
    exec(found[number], {})


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not link.startswith("http") and not (README.parent / link).exists()]
    assert missing == []
