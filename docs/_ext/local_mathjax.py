"""Formulas without a network: one file of MathJax, from a package of PyPI, goes with the site."""

import importlib.util
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

FILE = "tex-svg.js"  # draws outlines, so that no fonts go with it


def _copy(app: Sphinx, problem: Exception | None) -> None:
    if problem is None and app.builder.format == "html":
        package = importlib.util.find_spec("sphinx-mathjax-offline")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("pip install sphinx-mathjax-offline, or the extra hyena[docs]")
        copy_asset(Path(package.origin).parent / "static/mathjax" / FILE, app.outdir / "_static")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.config.mathjax_path = FILE
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
