"""The search for a torch to compile against, in the environments that build tools make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PYTHON = sys.executable
sys.path.insert(0, str(ROOT / "tools"))

import find_torch  # noqa: E402
from find_torch import NotUsableError, Process  # noqa: E402

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its interpreters are shell scripts")


def make_torch(packages: Path, version: str = "2.13.0+cpu") -> Path:
    """A torch package as far as the search looks at it."""
    folder = packages / "torch"
    for file in ("include/torch/csrc/stable/library.h", "lib/libtorch_cpu.so", "__init__.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    return folder


def make_python(folder: Path, packages: Path | None = None) -> Path:
    """An interpreter that has no packages but those in a folder of its own, and heeds PYTHONPATH."""
    own = f"{packages}:" if packages is not None else ""
    python = folder / "bin" / "python3"
    python.parent.mkdir(parents=True)
    script = f'#!/bin/sh\nif [ "$1" = -c ]; then PYTHONPATH="$PYTHONPATH:{own}" exec "{PYTHON}" -S "$@"; fi\n'
    python.write_text(script)
    python.chmod(0o755)
    (folder / "bin" / "python").symlink_to("python3")
    return python


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes that started a build, to fill in; its own interpreter has no torch, nor has any on the PATH."""
    processes: list[Process] = []
    monkeypatch.setattr(find_torch.sys, "executable", str(make_python(tmp_path / "isolated")))
    monkeypatch.setattr(find_torch, "frontends", lambda: iter(processes))
    monkeypatch.chdir(tmp_path)
    return processes


def process(folder: Path, arguments: Sequence[object], **environment: str) -> Process:
    return Process([str(argument) for argument in arguments], {"PATH": "", **environment}, folder)


def find() -> Path | None:
    return (torch := find_torch.find({})[0]) and torch.folder


def test_interpreter_of_the_build(tmp_path: Path, started: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """No isolation: whatever import would find, be it from a site folder, PYTHONPATH or a .pth file."""
    torch = make_torch(tmp_path / "packages")
    assert find() is None
    assert find_torch.find({"PYTHONPATH": str(tmp_path / "packages")})[0].folder == torch
    monkeypatch.setattr(find_torch.sys, "executable", str(make_python(tmp_path / "own", tmp_path / "packages")))
    assert find() == torch


def test_pip(tmp_path: Path, started: list[Process]) -> None:
    """The environment that runs pip, which pip hides from its build."""
    torch = make_torch(tmp_path / "packages")
    python = make_python(tmp_path / "venv", tmp_path / "packages")
    started.append(process(tmp_path, [python, "-m", "pip", "install", "."]))
    assert find() == torch
    started[:] = [process(tmp_path / "venv", ["bin/python3", "bin/pip", "install", "."])]
    assert find() == torch
    started[:] = [process(tmp_path, ["python3", "-m", "build"], PATH=str(python.parent))]
    assert find() == torch


def test_pip_with_pythonpath(tmp_path: Path, started: list[Process]) -> None:
    torch = make_torch(tmp_path / "elsewhere")
    python = make_python(tmp_path / "venv")
    started.append(process(tmp_path, [python, "-m", "pip", "install", "."], PYTHONPATH=str(tmp_path / "elsewhere")))
    assert find() == torch


@pytest.mark.parametrize("form", [["--target", "there"], ["--target=there"], ["-t", "there"]])
def test_pip_with_target(tmp_path: Path, started: list[Process], form: list[str]) -> None:
    torch = make_torch(tmp_path / "there")
    started.append(process(tmp_path, [make_python(tmp_path / "venv"), "-m", "pip", "install", ".", *form]))
    assert find() == torch


def test_pip_with_prefix(tmp_path: Path, started: list[Process]) -> None:
    torch = make_torch(tmp_path / "there" / "lib64" / "python3.12" / "site-packages")
    started.append(process(tmp_path, [make_python(tmp_path / "venv"), "-m", "pip", "install", "--prefix=there", "."]))
    assert find() == torch


@pytest.mark.parametrize(
    "named", ["--python", "-p", "UV_PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT"]
)
def test_uv(tmp_path: Path, started: list[Process], named: str) -> None:
    torch = make_torch(tmp_path / "packages")
    make_python(tmp_path / "venv", tmp_path / "packages")
    option, environment = ([named, "venv"], {}) if named.startswith("-") else ([], {named: str(tmp_path / "venv")})
    started.append(process(tmp_path, ["uv", "pip", "install", *option, "."], **environment))
    assert find() == torch


def test_uv_with_a_venv_above(tmp_path: Path, started: list[Process]) -> None:
    torch = make_torch(tmp_path / "packages")
    make_python(tmp_path / ".venv", tmp_path / "packages")
    (tmp_path / "a" / "b").mkdir(parents=True)
    started.append(process(tmp_path / "a" / "b", ["uv", "pip", "install", "."]))
    assert find() == torch


def test_where_processes_cannot_be_seen(
    tmp_path: Path, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc: what pip did to the environment is undone, then the active environment and the PATH are asked."""
    torch = make_torch(tmp_path / "packages")
    make_python(tmp_path / "venv", tmp_path / "packages")
    assert find_torch.find({"VIRTUAL_ENV": str(tmp_path / "venv")})[0].folder == torch
    assert find_torch.find({"PATH": f"{tmp_path}:{tmp_path / 'venv' / 'bin'}"})[0].folder == torch
    assert find_torch.find({"PATH": str(tmp_path)})[0] is None


def test_named(tmp_path: Path) -> None:
    """HYENA_TORCH_DIR comes before all else, and must be right."""
    torch = make_torch(tmp_path)
    assert find_torch.find({"HYENA_TORCH_DIR": str(torch)})[0].folder == torch
    with pytest.raises(NotUsableError, match=rf"HYENA_TORCH_DIR={tmp_path}: no torch package"):
        find_torch.find({"HYENA_TORCH_DIR": str(tmp_path)})


def test_unusable(tmp_path: Path, started: list[Process]) -> None:
    """One that cannot be compiled against is passed over, and the reason says what is wrong with it."""
    old, bare, broken = tmp_path / "old", tmp_path / "bare", tmp_path / "broken"
    make_torch(old, "2.9.1")
    (make_torch(bare) / "include/torch/csrc/stable/library.h").unlink()
    (make_torch(broken) / "lib/libtorch_cpu.so").unlink()
    (tmp_path / "namespace" / "torch").mkdir(parents=True)
    pips = [make_python(tmp_path / name / "venv", tmp_path / name) for name in ("old", "bare", "broken", "namespace")]
    started += [process(tmp_path, [python, "-m", "pip", "install", "."]) for python in pips]
    torch, reason = find_torch.find({})
    assert torch is None
    assert "no torch 2.11 or later" in reason
    assert f"{old}/torch (torch 2.9.1 is older than 2.11)" in reason
    assert f"{bare}/torch (torch 2.13.0+cpu without its C++ headers" in reason
    assert f"{broken}/torch (torch 2.13.0+cpu without its library" in reason
    assert f"{tmp_path}/isolated/bin/python3 (no torch)" in reason
    usable = make_torch(tmp_path / "usable", "2.11.0")
    started.append(process(tmp_path, [make_python(tmp_path / "venv", tmp_path / "usable"), "-m", "pip"]))
    assert find() == usable


def test_processes_that_started_this_one(tmp_path: Path) -> None:
    """What /proc tells of them: arguments, the environment they were started with, and their folder."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc here")
    ask = (
        f"import json, sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import find_torch; "
        "p = next(find_torch.frontends()); print(json.dumps([p.arguments, p.environment, str(p.folder), p.name]))"
    )
    frontend = (
        f"import os, subprocess, sys; os.environ['MARK'] = 'changed'; subprocess.run([sys.executable, '-c', {ask!r}])"
    )
    answer = subprocess.run(
        [PYTHON, "-c", frontend, "an argument"],
        cwd=tmp_path,
        env={**os.environ, "MARK": "as started"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, environment, folder, name = json.loads(answer.stdout)
    assert arguments[1:] == ["-c", frontend, "an argument"]
    assert environment["MARK"] == "as started"
    assert folder == str(tmp_path)
    assert name.startswith("python")
