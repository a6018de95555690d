"""The filters and the mixer that ``docs/add-your-own.md`` shows, as a module, so that they pickle."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "add-your-own.md"
_SHOWN = {"PowerLaw", "Exponential", "GatedConvState", "GatedConv"}


def _classes() -> Any:
    """What the page imports, and these classes: not the adapter, which registers itself, nor code that tries them."""
    module = ModuleType("add_your_own")
    sys.modules[module.__name__] = module
    for block in blocks(PAGE):
        if block.language == "python":
            tree = ast.parse(block.code)
            tree.body = [
                statement
                for statement in tree.body
                if isinstance(statement, (ast.Import, ast.ImportFrom)) or getattr(statement, "name", None) in _SHOWN
            ]
            exec(compile(tree, block.name, "exec"), module.__dict__)
    return module


own = _classes()
