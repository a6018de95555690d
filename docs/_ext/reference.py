"""The API reference: a page for each room of the package, and one for each public name (``public_names.py``).

Pages are written into ``docs/api`` before Sphinx looks for documents, so that nothing public can be missing. Rooms
stand in the sidebar and names in their tables: with all names there, drawing sidebars would take longer than the rest.
"""

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from public_names import find, first_line, homes, name_page, room_page, rooms


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(app: Sphinx, _config: object) -> None:
    """Writes ``docs/api``, and leaves what has not changed as it is."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    found, at = rooms(), homes()
    pages = {room: room_page(room, module, at) for room, module in found.items()}
    for room, name in set(at.values()):
        pages[f"{room}.{name}"] = name_page(room, name, getattr(found[room], name))
    table = [f"| [{room}]({room}.md) | {first_line(module)} |" for room, module in found.items()]
    head = ["# API reference", "", "Every public name, by the room of the package that it is in.", ""]
    toctree = ["```{toctree}", ":hidden:", "", *found, "```", ""]
    pages["index"] = "\n".join([*head, "| room | |", "|---|---|", *table, "", *toctree])
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        _write_if_new(folder / f"{name}.md", text)


@functools.cache
def _by_identity() -> dict[int, tuple[str, str]]:
    return {id(find(".".join(place))): place for place in homes().values()}


@functools.cache
def _by_short_name() -> dict[str, str]:
    """Names that one thing alone has, with its name in full."""
    places = sorted(set(homes().values()))
    counts = Counter(name for _, name in places)
    return {name: f"{room}.{name}" for room, name in places if counts[name] == 1}


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Links what is not written as on its page: ``hyena.HyenaOperator``, or ``HyenaOperator`` in another room."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py":
        return None
    first, _, rest = target.partition(".")
    if first in _by_short_name():
        target = _by_short_name()[first] + (f".{rest}" if rest else "")
    if not target.startswith("hyena."):
        return None
    whole, _, member = target.rpartition(".")
    for owner, rest in ((find(target), ""), (find(whole), f".{member}")):
        place = _by_identity().get(id(owner))
        name = "" if owner is None or place is None else ".".join(place)
        if name and f"{name}{rest}" in env.domains.python_domain.objects:
            uri = app.builder.get_relative_uri(str(node.get("refdoc", env.docname)), f"api/{name}")
            return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{name}{rest}")
    return content if find(target) is not None else None  # it is there, and has no place on a page


def public_bases(_app: Sphinx, _name: str, _thing: object, _options: object, bases: list[type]) -> None:
    """Names the nearest public classes in the place of private ones."""

    def nearest(base: type) -> list[type]:
        if not base.__module__.startswith("hyena.") or id(base) in _by_identity():
            return [base]
        return [found for above in base.__bases__ for found in nearest(above)]

    bases[:] = list(dict.fromkeys(found for base in bases for found in nearest(base)))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("config-inited", write_pages)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", public_bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
