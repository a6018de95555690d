"""Finds the installed torch that the kernels are compiled against, without importing it.

Build tools hide the environment that a package will be installed in: pip takes its ``site-packages`` and the user's
``PYTHONPATH`` out of the build; uv and build run it in an environment of its own. Any torch from 2.11 on will do,
since the kernels use its stable ABI only. So this asks, in order:

1. ``HYENA_TORCH_DIR``, if it is set: the folder of an installed torch package;
2. the interpreter that runs the build;
3. the processes that started the build (pip, uv, build), with the environment and arguments they were started with;
4. the active environment, and the Pythons on ``PATH``.

``python find_torch.py`` prints the folder, the version and where it was found, a line each; or why there is none, with
exit status 3.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST = (2, 11)
"""The oldest torch with the whole stable ABI that the kernels use."""

_HEADER = Path("include", "torch", "csrc", "stable", "library.h")
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.lib")
_ASK = """
import importlib.util, sys
sys.path = [p for p in sys.path if p]
spec = importlib.util.find_spec("torch")
for folder in (spec.submodule_search_locations or []) if spec else []:
    print("torch is in", folder)
"""
_PYTHONS_ON_PATH = 4  # an interpreter takes about 0.1 s to answer


class NotUsableError(Exception):
    """``HYENA_TORCH_DIR`` names a folder without a torch to compile against."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package folder, its version, and who has it."""

    folder: Path
    version: str
    place: str


@dataclass(frozen=True)
class Process:
    """A running process: its arguments, and the environment and folder it was started in."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    pid: int = 0

    @property
    def name(self) -> str:
        """The program's name without folder and suffix."""
        return Path(self.arguments[0]).name.removesuffix(".exe") if self.arguments else ""

    @property
    def is_python(self) -> bool:
        """Whether this is a Python interpreter, by its name."""
        return re.fullmatch(r"python[\d.]*t?", self.name) is not None

    @property
    def is_uv(self) -> bool:
        """Whether this is uv."""
        return self.name in ("uv", "uvx")

    @property
    def installs(self) -> bool:
        """Whether this is pip or uv, whose options say where to install to."""
        return self.is_uv or any(re.fullmatch(r"pip[\d.]*", Path(argument).name) for argument in self.arguments[1:3])

    def program(self) -> str | None:
        """The program's full path."""
        name = self.arguments[0]
        if os.sep in name:
            return str(self.folder / name)
        return shutil.which(name, path=self.environment.get("PATH"))

    def options(self, *names: str) -> Iterator[str]:
        """The values of an option: ``--name value``, ``--name=value``."""
        for argument, following in zip(self.arguments, [*self.arguments[1:], ""]):
            if argument in names and following:
                yield following
            for name in names:
                if name.startswith("--") and argument.startswith(name + "="):
                    yield argument[len(name) + 1 :]


def find(environment: Mapping[str, str] = os.environ) -> tuple[Torch | None, str]:
    """The torch to compile against, and why there is none.

    Returns:
        The torch and an empty text, or None and the places looked at, each with what is wrong with it.

    Raises:
        NotUsableError: ``HYENA_TORCH_DIR`` is set, and there is no usable torch in it.
    """
    if environment.get("HYENA_TORCH_DIR"):
        folder = Path(environment["HYENA_TORCH_DIR"])
        version, fault = examine(folder)
        if fault:
            raise NotUsableError(f"HYENA_TORCH_DIR={folder}: {fault}")
        return Torch(folder.resolve(), version, "HYENA_TORCH_DIR"), ""
    faults: dict[str, str] = {}
    for place, candidate in _candidates(environment):
        if candidate is None:
            faults.setdefault(place, "no torch")
            continue
        version, fault = examine(candidate)
        if not fault:
            return Torch(candidate.resolve(), version, place), ""
        faults[str(candidate)] = fault
    looked = ", ".join(f"{place} ({fault})" for place, fault in faults.items())
    return None, (
        f"no torch {OLDEST[0]}.{OLDEST[1]} or later was found when hyena was built; looked at {looked}. Install torch "
        "first, or set HYENA_TORCH_DIR to the folder of an installed torch package, then install hyena again"
    )


def examine(folder: Path) -> tuple[str, str]:
    """The version of the torch package in a folder, and what keeps it from being compiled against ('' for nothing)."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "", "no torch package, which would have a version.py"
    found = re.search(r"__version__\s*=\s*['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text)
    if found is None:
        return "", "no version in its version.py"
    version = found[1]
    if (int(found[2]), int(found[3])) < OLDEST:
        return version, f"torch {version} is older than {OLDEST[0]}.{OLDEST[1]}"
    if not (folder / _HEADER).exists():
        return version, f"torch {version} without its C++ headers, {_HEADER}"
    if not any((folder / "lib" / name).exists() for name in _LIBRARIES):
        return version, f"torch {version} without its library, lib/{_LIBRARIES[0]}"
    return version, ""


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    """Places to look at, and the folder called torch there."""
    asked = set()

    def ask(
        program: str | None, environment: Mapping[str, str], folder: Path | None = None
    ) -> Iterator[tuple[str, Path | None]]:
        if program is None:
            return
        key = program, environment.get("PYTHONPATH"), environment.get("PYTHONNOUSERSITE")
        if key not in asked:
            asked.add(key)
            folders = _ask(program, environment, folder)
            if not folders:
                yield program, None
            yield from ((program, found) for found in folders)

    yield from ask(sys.executable, environment)
    for process in frontends():
        # Where the package is going, by the options; then what runs the tool.
        if process.installs:
            for target in process.options("--target", "-t"):
                yield str(process.folder / target), _if_there(process.folder / target / "torch")
            for prefix in process.options("--prefix"):
                for packages in sorted((process.folder / prefix).glob("lib*/python3*/site-packages")):
                    yield str(packages), _if_there(packages / "torch")
            for python in process.options("--python", "-p"):
                yield from ask(_interpreter(process.folder / python), process.environment)
        if process.is_python:
            yield from ask(process.program(), process.environment, process.folder)
        if process.is_uv:
            for name in ("UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "VIRTUAL_ENV", "CONDA_PREFIX"):
                if process.environment.get(name):
                    yield from ask(_interpreter(process.folder / process.environment[name]), process.environment)
            for folder in (process.folder, *process.folder.parents):
                yield from ask(_interpreter(folder / ".venv"), process.environment)
    # Where the frontend cannot be looked at: undo what pip does to the environment, and look for an active one.
    plain = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    yield from ask(sys.executable, plain)
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environment.get(name):
            yield from ask(_interpreter(Path(environment[name])), plain)
    yield from ask(_interpreter(Path.cwd() / ".venv"), plain)
    for program in _pythons_on_path(environment.get("PATH", "")):
        yield from ask(program, plain)


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _interpreter(path: Path) -> str | None:
    """The interpreter at a path: itself, or that of an environment's folder."""
    for program in (path, path / "bin" / "python", path / "Scripts" / "python.exe", path / "python.exe"):
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return None


def _ask(program: str, environment: Mapping[str, str], folder: Path | None) -> list[Path]:
    """Where an interpreter would import torch from."""
    try:
        answer = subprocess.run(
            [program, "-c", _ASK],
            env=dict(environment),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    start = "torch is in "
    return [Path(line[len(start) :]) for line in answer.stdout.splitlines() if line.startswith(start)]


def _pythons_on_path(path: str) -> list[str]:
    found: list[str] = []
    for folder in path.split(os.pathsep):
        for name in ("python3", "python"):
            program = shutil.which(name, path=folder) if folder else None
            if program is not None and program not in found:
                found.append(program)
                break
    return found[:_PYTHONS_ON_PATH]


def frontends(processes: Path = Path("/proc")) -> Iterator[Process]:
    """The processes that started this one, nearest first, as far as they are build tools.

    None where the system does not show them: its environment tells, as pip and uv change that of their children only.
    """
    pid = os.getppid()
    while pid > 1:
        try:
            place = processes / str(pid)
            arguments = (place / "cmdline").read_bytes().split(b"\0")[:-1]
            variables = (place / "environ").read_bytes().split(b"\0")
            folder = Path(os.readlink(place / "cwd"))
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        process = Process(
            [os.fsdecode(argument) for argument in arguments],
            dict(os.fsdecode(variable).partition("=")[::2] for variable in variables if b"=" in variable),
            folder,
            pid,
        )
        if process.is_python or process.is_uv:
            yield process
        elif process.name not in ("cmake", "ninja", "make"):
            return
        pid = parent


def main() -> int:
    """Prints what was found, or why there is nothing."""
    try:
        torch, reason = find()
    except NotUsableError as error:
        print(error)
        return 1
    if torch is None:
        print(reason)
        return 3
    print(torch.folder, torch.version, torch.place, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
