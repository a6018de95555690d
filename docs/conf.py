"""Sphinx's settings: ``make docs`` builds the site into out/docs, and so does Read the Docs.

Nothing is fetched while it builds, and pages need nothing from elsewhere.
"""

import sys
import warnings
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "src")]
warnings.filterwarnings("ignore", message=".*compiled extension", category=RuntimeWarning)

import hyena  # noqa: E402  (found by the lines above)

project = "hyena"
author = "the hyena developers"
copyright = author
release = version = hyena.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "local_mathjax",
    "outside",
    "prose",
    "reference",
]
exclude_patterns = ["_*"]
nitpicky = True

# Markdown as GitHub shows it: $…$, fences of ``math``, links to headings.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autosummary_generate = False  # the extension ``reference`` writes a page for each name
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "hyena"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
