"""The rooms of the library import each other in one direction, and ``import hyena`` little else than itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import hyena

SOURCE = Path(hyena.__file__).parent

# What each room may import besides itself.
ALLOWED: dict[str, set[str]] = {
    "ops": set(),
    "functional": {"ops"},
    "filters": {"ops"},
    "conv": {"ops", "functional", "filters"},
    "mixers": {"ops", "functional", "filters", "conv"},
    "optim": {"ops", "functional", "filters", "conv", "mixers"},
    "generation": {"mixers"},
    "models": {"ops", "functional", "filters", "conv", "mixers", "generation"},
}
BELOW_THE_TOP = set(ALLOWED)
ALLOWED |= {"conversion": BELOW_THE_TOP | {"integrations"}}
TOP = {"checkpoints", "export", "integrations", "distributed", "genomics"}
# Reads published folders for other people's classes: between the two, which do not know each other.
ALLOWED["integrations/auto"] = BELOW_THE_TOP | {"checkpoints", "genomics", "integrations"}
# Programs, which nothing imports.
ALLOWED |= {"command": BELOW_THE_TOP | {"checkpoints", "genomics", "integrations"}, "__main__": {"command"}}


def room_of(path: Path) -> str:
    """The folder or module right under the package, or a folder in it that may import more."""
    parts = path.relative_to(SOURCE).parts
    inner = "/".join(parts[:2])
    return inner if inner in ALLOWED else parts[0].removesuffix(".py")


def modules_imported(path: Path) -> set[str]:
    """Every module of the library that a file imports, wherever in it, ``TYPE_CHECKING`` included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "hyena" or name.startswith("hyena.")}


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the library, and not something in one."""
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()


def test_arrows_point_down() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        allowed = ALLOWED.get(room, BELOW_THE_TOP) | {room}
        assert room in ALLOWED or room in TOP, f"{path}: say here what the room {room} may import"
        for name in modules_imported(path):
            if name != "hyena" and exists(name) and name.split(".")[1] not in allowed:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle_of_files() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        module = "hyena." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        names = {name for name in modules_imported(path) if exists(name) and name != "hyena"}
        # A room's __init__ imports its files, and a file may be imported from its room by others: only files count.
        graph[module] = {name for name in names if SOURCE.joinpath(*name.split(".")[1:]).with_suffix(".py").exists()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for name in graph.get(module, ()):
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        if not module.endswith("__init__"):
            visit(module, ())


def test_a_file_does_not_import_the_room_it_is_in() -> None:
    """Which would be a circle through the room's ``__init__``."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        parts = path.relative_to(SOURCE).parts[:-1]
        around = {"hyena." + ".".join(parts[: i + 1]) for i in range(len(parts))}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in around:
                names = [a.name for a in node.names if not exists(f"{node.module}.{a.name}")]
                if names:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {names} from {node.module}")
    assert not wrong, "\n".join(wrong)


IMPORTED = """
import sys
import torch
before = set(sys.modules)
import hyena
print(*sorted(set(sys.modules) - before))
"""


def test_what_the_package_imports() -> None:
    """Beside itself one small dependency: not torch's compiler, which takes a second, and no optional package."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTED], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert {name.partition(".")[0] for name in names} - {"hyena", "torch"} <= {"einops"}
    assert [name for name in names if name.startswith(("torch._dynamo", "torch._inductor"))] == []
