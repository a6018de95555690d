"""Code blocks of Markdown pages: found, run in order, and compared with what a page says that they print.

A block that cannot run has ``<!-- not run: why -->`` right above it. A ``text`` block right after a Python block is
what that prints; decimals in it may be off by a tenth, for they depend on the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
from pathlib import Path

from hyena.command import main

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WHY_NOT = re.compile(r"<!-- not run: (.+?) -->\n\Z")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclasses.dataclass
class Block:
    """A fenced block, and where it stands.

    Attributes:
        name: page and line, for messages.
        language: what follows the fence's backticks.
        code: what is in it.
        why_not: why it is not run, if the page says so.
        prints: the output that the page shows for it.
    """

    name: str
    language: str
    code: str
    why_not: str | None = None
    prints: str | None = None

    def run(self, names: dict[str, object]) -> None:
        """Runs Python, or lines of the command ``hyena``, and compares what is printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if self.language == "python":
                exec(compile(self.code, self.name, "exec"), names)
            else:
                for line in self.code.splitlines():
                    program, *arguments = shlex.split(line)
                    assert program == "hyena", f"{self.name}: {program} cannot be run here; <!-- not run: why -->"
                    assert main(arguments) == 0, f"{self.name}: {line}"
        if self.prints is not None:
            assert agree(self.prints, printed.getvalue()), f"{self.name} prints\n{printed.getvalue()}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        between = text[end : match.start()]
        end = match.end()
        reason = _WHY_NOT.search(between)
        line = text.count("\n", 0, match.start()) + 1
        block = Block(f"{page.name}, line {line}", match[1], match[2], reason and reason[1])
        if match[1] == "text" and found and found[-1].language == "python" and not between.strip():
            found[-1].prints = match[2]
        found.append(block)
    return found


def agree(shown: str, printed: str) -> bool:
    """Whether two outputs have the same words and integers, and decimals within a tenth of each other."""
    if _NUMBER.sub("#", shown).split() != _NUMBER.sub("#", printed).split():
        return False
    pairs = zip(*([n.replace(",", "") for n in _NUMBER.findall(text)] for text in (shown, printed)), strict=True)
    return all(a == b or ("." in a and abs(float(a) - float(b)) <= 0.1 * abs(float(a))) for a, b in pairs)
