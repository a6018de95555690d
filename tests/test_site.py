"""The documentation as a site: the API reference has every public name once, and what was built holds together."""

from __future__ import annotations

import html
import importlib
import re
import sys
import urllib.parse
from collections import Counter
from pathlib import Path

import pytest

import hyena

pytest.importorskip("transformers", reason="a room of the package needs it")

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "out" / "docs"  # by make docs
sys.path.append(str(ROOT / "docs" / "_ext"))
public_names = importlib.import_module("public_names")

was_built = pytest.mark.skipif(not (BUILT / "index.html").exists(), reason="make docs builds the site")


def listed() -> Counter[str]:
    """Names in the tables and lists of all rooms, with their room."""
    at, names = public_names.homes(), Counter()
    for room, module in public_names.rooms().items():
        page = public_names.room_page(room, module, at).split("## Also exported here")[0]
        tables = re.findall(r":nosignatures:\n\n(.*?)```", page, re.DOTALL)
        names.update(f"{room}.{name}" for table in tables for name in table.split())
        names.update(re.findall(r"^- \[\w+\]\((.+)\.md\)$", page, re.MULTILINE))
    return names


def test_every_public_name_is_listed_once() -> None:
    """Names that several rooms export count as one thing."""
    names = listed()
    assert [name for name, times in names.items() if times > 1] == []
    rooms = public_names.rooms()
    things = [public_names.find(name) for name in names]
    assert len({id(thing) for thing in things}) == len(things)
    exported = {
        f"{room}.{name}": thing
        for room, module in rooms.items()
        for name in module.__all__
        if not public_names.is_room(thing := getattr(module, name))
    }
    missing = [name for name, thing in exported.items() if not any(thing is other for other in things)]
    assert missing == []
    assert len(names) > 150


def test_first_lines_stand_alone() -> None:
    """In a room's table no class is around them, so what they refer to has its whole name."""
    alone = re.compile(r":(?:meth|attr):`~?\w+`")
    first = {name: (public_names.find(name).__doc__ or "").partition("\n\n")[0] for name in listed()}
    assert {name: line for name, line in first.items() if alone.search(line)} == {}


def test_rooms_are_those_of_the_package() -> None:
    """Every folder that says what it exports, and no folder's name has to be written down for it."""
    folders = {
        "hyena." + ".".join(path.parent.relative_to(Path(hyena.__file__).parent).parts)
        for path in Path(hyena.__file__).parent.glob("*/__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert folders <= set(public_names.rooms())


def test_things_are_where_they_are_at_home() -> None:
    at = public_names.homes()
    assert at["hyena.HyenaOperator"] == ("hyena.mixers", "HyenaOperator")
    assert at["hyena.distill"] == ("hyena.conv", "distill")
    assert at["hyena.param_groups"] == ("hyena", "param_groups")
    assert at["hyena.checkpoints.hyenadna"] == ("hyena.checkpoints", "load_hyenadna")  # an earlier name
    assert at["hyena.checkpoints.safari.load_safari_operator"] == ("hyena.checkpoints", "load_safari_operator")


def test_every_page_says_what_it_is_of() -> None:
    for room, name in set(public_names.homes().values()):
        thing = getattr(public_names.rooms()[room], name)
        page = public_names.name_page(room, name, thing)
        assert f"# {name}\n" in page
        assert f":: {room}.{name}\n" in page


@was_built
def test_site_needs_nothing_from_elsewhere() -> None:
    for page in BUILT.rglob("*.html"):
        loads = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
        assert [url for url in loads if "://" in url or url.startswith("//")] == [], page
    assert (BUILT / "_static" / "tex-svg.js").stat().st_size > 1e6


@was_built
def test_links_inside_the_site_lead_somewhere() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in BUILT.rglob("*.html")}
    anchors = {page: set(re.findall(r"\bid=\"([^\"]+)\"", text)) for page, text in texts.items()}
    wrong = []
    for page, text in texts.items():
        for link in set(re.findall(r"<a [^>]*href=\"([^\"]+)\"", text)):
            where, _, anchor = html.unescape(link).partition("#")
            if "://" in where or where.startswith("mailto:"):
                continue
            target = (page.parent / urllib.parse.unquote(where)).resolve() if where else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                wrong.append(f"{page.relative_to(BUILT)}: {link}")
    assert wrong == []


@was_built
def test_every_public_name_has_its_place_in_the_site() -> None:
    for name in listed():
        page = BUILT / "api" / f"{name}.html"
        assert f'id="{name}"' in page.read_text(encoding="utf-8"), name
