"""Docstrings of ours that napoleon would misread, put right before it sees them.

- A property's first line may have a colon; what is before it is not a type.
- A line may describe several attributes at once: ``old, new: class names.``
- A dataclass's default that a factory makes, ``<factory>``, is no Python, and a signature with it is not understood.
- A letter and a full stop, ``d_model: D.``, is not the first item of a list.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_SEVERAL = re.compile(r"(\s+)(\w+(?:, \w+)+): (.*)")
_LETTER = re.compile(r"(\s+[\w, *]+: )([A-Za-z]\.(?:\s.*)?)")
_kept: dict[str, list[str]] = {}


def before(_app: Sphinx, what: str, name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Hides properties from napoleon, and gives each attribute of a class a line."""
    if what in ("attribute", "property", "data"):
        _kept[name], lines[:] = list(lines), []
        return
    inside, result = False, []
    for line in lines:
        inside = line.strip() == "Attributes:" or (inside and (not line or line.startswith(" ")))
        several = _SEVERAL.fullmatch(line) if inside else None
        line = _LETTER.sub(r"\1\\\2", line) if _LETTER.fullmatch(line) else line
        result += [line] if several is None else [f"{several[1]}{n}: {several[3]}" for n in several[2].split(", ")]
    lines[:] = result


def after(_app: Sphinx, _what: str, name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Gives properties back what they say."""
    lines[:] = _kept.pop(name, lines)


def signature(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, arguments: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Writes ``...`` for defaults that a factory makes."""
    return None if arguments is None else (arguments.replace("<factory>", "..."), returns)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx; napoleon has priority 500."""
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
