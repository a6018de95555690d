"""What the API reference lists: every public name once, by the room of the package that it is in.

Public is what a room's ``__all__`` has. A name that several rooms export has its page in one of them, its home.
"""

import ast
import functools
import importlib
import inspect
import itertools
import pkgutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import hyena
from hyena.models import ModelState

INTERNAL = ("hyena.integrations.adapters",)
"""Rooms whose names are for the rest of the package."""

_KINDS = ("Classes", "Functions", "Configurations", "Decoding states", "Errors", "Constants")
_FOREIGN_BASES = "Module, Exception, tuple, dict, list, Generic, Protocol, ABC, object"  # what others have documented


@functools.cache
def rooms() -> dict[str, ModuleType]:
    """Every module with a list of public names, the package itself first."""
    found = {"hyena": hyena}
    for entry in pkgutil.walk_packages(hyena.__path__, "hyena."):
        hidden = any(part.startswith("_") for part in entry.name.split(".")) or entry.name.startswith(INTERNAL)
        if not hidden and (entry.ispkg or entry.name.count(".") == 1):
            module = importlib.import_module(entry.name)
            if hasattr(module, "__all__"):
                found[entry.name] = module
    return found


@functools.cache
def homes() -> dict[str, tuple[str, str]]:
    """Every public name in full, ``hyena.HyenaOperator``, with the room and the name where its page is.

    That is the room nearest to the package that the thing is defined in, the package itself last. Of two names for one
    thing in one room, the one that it calls itself.
    """
    exported = [(room, name, getattr(module, name)) for room, module in rooms().items() for name in module.__all__]
    places: dict[int, list[tuple[int, bool, str, str]]] = {}
    for room, name, thing in exported:
        inside = room != "hyena" and getattr(thing, "__module__", room).startswith(room)
        places.setdefault(id(thing), []).append(
            (0 if inside else 1, getattr(thing, "__name__", name) != name, room, name)
        )
    return {f"{room}.{name}": min(places[id(thing)])[2:] for room, name, thing in exported if not is_room(thing)}


def is_room(thing: object) -> bool:
    """Whether it is a module, which has a page as a room."""
    return isinstance(thing, ModuleType)


def kind_of(thing: Any) -> str:
    """The heading that it stands under."""
    if not inspect.isclass(thing):
        return "Functions" if callable(thing) else "Constants"
    if issubclass(thing, Exception):
        return "Errors"
    if thing.__name__.endswith("Config"):
        return "Configurations"
    is_state = thing.__name__.endswith("State") or issubclass(thing, ModelState)
    return "Decoding states" if is_state and thing.__name__ != "State" else "Classes"


def first_line(module: ModuleType) -> str:
    """What the module is."""
    return (module.__doc__ or "").strip().splitlines()[0]


def _summary(names: list[str]) -> Iterator[str]:
    yield from ("```{eval-rst}", ".. autosummary::", "   :nosignatures:", "")
    yield from (f"   {name}" for name in names)
    yield from ("```", "")


def room_page(room: str, module: ModuleType, at: dict[str, tuple[str, str]]) -> str:
    """The page of a room: its docstring, and tables of what is at home there."""
    own = {name: getattr(module, name) for name in module.__all__ if at.get(f"{room}.{name}") == (room, name)}
    elsewhere = sorted({".".join(at[f"{room}.{name}"]) for name in module.__all__ if f"{room}.{name}" in at})
    elsewhere = [name for name in elsewhere if name.rpartition(".")[0] != room]
    lines = [f"# {room}", "", "```{eval-rst}", f".. automodule:: {room}", "```", ""]
    for kind in _KINDS:
        names = sorted((name for name, thing in own.items() if kind_of(thing) == kind), key=str.lower)
        if kind == "Constants" and names:
            lines += [f"## {kind}", "", *(f"- [{name}]({room}.{name}.md)" for name in names), ""]
        elif names:
            lines += [f"## {kind}", "", *_summary(names)]
    if elsewhere:
        links = ", ".join(f":py:obj:`~{name}`" for name in elsewhere)
        lines += ["## Also exported here", "", "```{eval-rst}", links, "```", ""]
    return "\n".join(lines)


def name_page(room: str, name: str, thing: Any) -> str:
    """The page of a name."""
    kind = kind_of(thing)
    if kind == "Constants":  # autodoc would print the docstring of its type
        directive = [f".. py:data:: {room}.{name}", "", *(f"   {line}" for line in _comment_on(room, name))]
    elif kind == "Functions":
        directive = [f".. autofunction:: {room}.{name}"]
    else:
        what = "exception" if kind == "Errors" else "class"
        options = ["   :members:", "   :special-members: __call__", "   :show-inheritance:"]
        # What transformers' classes have from their many bases is transformers' to document.
        if not any(base.__module__.startswith("transformers.") for base in thing.__mro__):
            options.insert(1, f"   :inherited-members: {_FOREIGN_BASES}")
        directive = [f".. auto{what}:: {room}.{name}", *options]
    context = [] if kind == "Constants" else [f".. currentmodule:: {room}", ""]
    head = ["---", "orphan: true", "---", "", f"# {name}", "", f"[{room}]({room}.md)", ""]
    return "\n".join([*head, "```{eval-rst}", *context, *directive, "```", ""])


def _comment_on(room: str, name: str) -> list[str]:
    """The string under a constant, where that is defined; its value if there is none."""
    for module, found in list(sys.modules.items()):
        if module.startswith(room):
            body = ast.parse(inspect.getsource(found)).body
            for node, after in itertools.pairwise(body):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
                if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    return inspect.cleandoc(str(after.value.value)).splitlines()
    return [f"``{getattr(rooms()[room], name)!r}``"]


def find(full_name: str) -> Any:
    """The thing of that name, or None; modules on the way are imported.

    ``hyena.conv.distill`` is a function and the file that it is in: the function comes first, then what is in the file.
    """
    parts = full_name.split(".")
    for length in range(1, len(parts) + 1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            return None
        for part in parts[length:]:
            thing = getattr(thing, part, None)
        if thing is not None:
            return thing
    return None
