"""The build backend: scikit-build-core, plus a search for torch and a display of progress.

scikit-build-core and ``src/hyena/csrc/CMakeLists.txt`` do the work. What is added here:

- If no torch can be found (``find_torch.py``), torch becomes a requirement of the build: pip and uv then bring the one
  that hyena depends on anyway. Without a C++ compiler it does not, since nothing could be compiled against it; nor
  on macOS and Windows, where nothing is compiled (``overrides`` in pyproject.toml).
- pip and uv show nothing of a build that succeeds, and this one takes minutes: its progress goes to their own error
  stream, if that is a terminal or a pipe.
- An editable install is a path to ``src``, where its library is put too.
- The build folder is kept (``build/``), so that installing again compiles only what has changed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scikit_build_core import build as skbuild
from scikit_build_core.build import (  # noqa: F401  (the backend's other hooks, as they are)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import find_torch

TORCH = "torch>=2.11"
"""What hyena depends on, as in pyproject.toml."""

_COMPILED = ("hyena/_kernels.so", "hyena/_kernels_missing.txt")
"""What CMake installs: the library, or why there is none."""

_Settings = dict[str, Any] | None
_HEARTBEAT = 30.0  # seconds without a word
_STEP = re.compile(r"(\[ *(?:\d+/\d+|\d+%)\]) (?:.*CMakeFiles/(.+?)\.dir/(.+)\.o$)?(.*)")  # a line of ninja's or make's
_MESSAGE = "-- hyena: "  # how CMakeLists.txt begins one


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    """The requirements of scikit-build-core, and torch where there is none."""
    return skbuild.get_requires_for_build_wheel(config_settings) + _torch_requirement(config_settings)


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    """The requirements of scikit-build-core, and torch where there is none."""
    return skbuild.get_requires_for_build_editable(config_settings) + _torch_requirement(config_settings)


def build_wheel(directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """Builds the wheel, and says how it goes."""
    return _build(skbuild.build_wheel, directory, config_settings, metadata_directory)


def build_editable(directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """Builds the library into the source tree, and the wheel of an editable install, which has the way there only.

    A path in a ``.pth`` file, not the import hook of scikit-build-core: PYTHONPATH still comes before it, and
    type checkers follow it.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = _build(skbuild.build_wheel, folder, config_settings, metadata_directory)
        _make_editable(Path(folder, name), Path(directory, name), Path.cwd() / "src")
    return name


def _make_editable(built: Path, editable: Path, source: Path) -> None:
    for name in _COMPILED:
        (source / name).unlink(missing_ok=True)
    record = []
    with zipfile.ZipFile(built) as old, zipfile.ZipFile(editable, "w", zipfile.ZIP_DEFLATED) as new:
        kept = {name: old.read(name) for name in old.namelist() if ".dist-info/" in name}
        kept["_hyena_editable.pth"] = f"{source}\n".encode()
        for name, content in kept.items():
            if name.endswith(".dist-info/RECORD"):
                record.append(name)
                continue
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
            new.writestr(name, content)
        (place,) = (name for name in kept if name.endswith(".dist-info/RECORD"))
        new.writestr(place, "".join(f"{line},,\n" if line == place else f"{line}\n" for line in record))
        for name in set(_COMPILED) & set(old.namelist()):
            # By another name first: a program that runs keeps the library that it has loaded.
            part = source / f"{name}.part"
            part.write_bytes(old.read(name))
            part.replace(source / name)


def _torch_requirement(config_settings: _Settings) -> list[str]:
    settings = config_settings or {}
    compiles = str(settings.get("wheel.cmake", sys.platform.startswith("linux"))).lower()
    if "cmake.define.torch_dir" in settings or compiles in ("false", "0", "off"):
        return []
    torch, _ = find_torch.find()
    if torch is not None or not _has_compiler():
        return []
    Console().say(
        f"no {TORCH} is installed here, and the kernels are compiled against it: the build gets one of its own. "
        "With torch installed first, that one is used."
    )
    return [TORCH]


def _has_compiler() -> bool:
    named = os.environ.get("CXX", "").split(" ")[0]
    return any(shutil.which(name) for name in (named, "c++", "g++", "clang++") if name)


def _build(
    build: Callable[..., str], directory: str, config_settings: _Settings, metadata_directory: str | None
) -> str:
    settings = dict(config_settings or {})
    if "build-dir" not in settings and os.access(Path.cwd(), os.W_OK):
        settings["build-dir"] = "build/{wheel_tag}"
    for folder in Path("build").glob("*-*-*"):
        _forget_configuration(folder)
    os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(_cores()))
    console = Console()
    with _progress(console):
        name = build(directory, settings, metadata_directory)
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_configuration(folder: Path) -> None:
    """Removes what CMake found last time (that there is no compiler, say), and keeps what was compiled.

    scikit-build-core would remove both for each new isolated environment, which it knows by ``.skbuild-info.json``.
    """
    for name in ("CMakeCache.txt", ".skbuild-info.json"):
        (folder / name).unlink(missing_ok=True)
    for found in folder.glob("CMakeFiles/[0-9]*.*"):
        shutil.rmtree(found, ignore_errors=True)


class Console:
    """The error stream of the tool that runs this build, where the tool shows nothing of the build itself."""

    def __init__(self) -> None:
        """Opens it, if there is one to write to."""
        self._stream: int | None = None
        for process in find_torch.frontends():
            options, environment = set(process.arguments), process.environment
            shows_all = {"-v", "-vv", "-vvv", "--verbose"} & options or "PIP_VERBOSE" in environment
            shows_all = shows_all or (process.is_uv and process.arguments[1:2] == ["build"])
            if shows_all or {"-q", "-qq", "-qqq", "--quiet"} & options or "PIP_QUIET" in environment:
                return
            if process.installs or "build" in process.arguments:
                self._stream = _open_errors(process.pid)
                return

    def say(self, text: str) -> None:
        """Prints a line there and in the build's own output."""
        print(f"hyena: {text}", flush=True)
        self.tell(text)

    def tell(self, text: str) -> None:
        """Prints a line there only."""
        if self._stream is not None:
            try:
                # A tool's spinner may be on the line: start where the line starts, and clear it.
                start = "\r\033[K" if os.isatty(self._stream) else ""
                os.write(self._stream, f"{start}hyena: {text}\n".encode())
            except OSError:
                self._stream = None


def _open_errors(pid: int) -> int | None:
    try:
        stream = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    theirs, ours = os.fstat(stream), os.fstat(2)
    shown = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    if shown or not (os.isatty(stream) or stat.S_ISFIFO(theirs.st_mode)):
        os.close(stream)
        return None
    return stream


@contextmanager
def _progress(console: Console) -> Iterator[None]:
    """Passes this process's output on, and CMake's messages and the steps of the compilation to the console too."""
    reader, writer = os.pipe()
    output = os.dup(1)
    sys.stdout.flush()
    os.dup2(writer, 1)
    os.close(writer)
    begin = time.monotonic()
    done = threading.Event()
    last = [begin]

    def pass_on() -> None:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                os.write(output, line)
                text = line.decode(errors="replace").strip()
                step = _STEP.match(text)
                if step is not None or text.startswith(_MESSAGE):
                    last[0] = time.monotonic()
                    console.tell(" ".join(filter(None, step.groups())) if step else text.removeprefix(_MESSAGE))

    def beat() -> None:
        while not done.wait(1.0):
            now = time.monotonic()
            if now - last[0] > _HEARTBEAT:
                last[0] = now
                console.tell(f"still compiling, {now - begin:.0f} s")

    threads = [threading.Thread(target=target, daemon=True) for target in (pass_on, beat)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(output, 1)
        done.set()
        for thread in threads:
            thread.join(timeout=5.0)  # a compiler cache's server may have kept the pipe
        os.close(output)
