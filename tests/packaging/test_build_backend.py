"""The build backend: when it asks for a torch, what it passes on, what it shows, what it keeps."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import find_torch  # noqa: E402
import hyena_build  # noqa: E402


@pytest.fixture
def torch_is(monkeypatch: pytest.MonkeyPatch):
    def choose(found: bool) -> None:
        torch = find_torch.Torch(Path("/packages/torch"), "2.13.0", "here")
        monkeypatch.setattr(find_torch, "find", lambda: (torch, "") if found else (None, "nowhere"))

    monkeypatch.setattr(find_torch, "frontends", lambda: iter(()))
    return choose


@pytest.mark.parametrize(
    "hook", [hyena_build.get_requires_for_build_wheel, hyena_build.get_requires_for_build_editable]
)
def test_torch_is_required_where_there_is_none(torch_is, monkeypatch: pytest.MonkeyPatch, hook) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hyena_build, "_has_compiler", lambda: True)
    torch_is(False)
    assert "torch>=2.11" in hook()
    assert "torch>=2.11" not in hook({"wheel.cmake": "false"})
    assert "torch>=2.11" not in hook({"cmake.define.torch_dir": "/packages/torch"})
    torch_is(True)
    assert "torch>=2.11" not in hook()
    torch_is(False)
    monkeypatch.setattr(hyena_build, "_has_compiler", lambda: False)
    assert "torch>=2.11" not in hook()


def test_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not hyena_build._has_compiler()
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++ -m64")
    assert hyena_build._has_compiler()


class Heard(hyena_build.Console):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, text: str) -> None:
        self.lines.append(text)


def test_progress(capfd: pytest.CaptureFixture[str]) -> None:
    """CMake's messages of ours, the steps of ninja and make; all of it still goes where it went."""
    console = Heard()
    output = [
        "-- The CXX compiler identification is GNU 12.2.0",
        "-- hyena: compiling the kernels against torch 2.13.0",
        "[3/13] Building CXX object CMakeFiles/kernels_avx2.dir/cpu/kernels/kernels.cpp.o",
        "[ 50%] Building CXX object CMakeFiles/_kernels.dir/cpu/fft/plan.cpp.o",
        "[13/13] Linking CXX shared module _kernels.so",
    ]
    with hyena_build._progress(console):
        subprocess.run(["cat"], input="\n".join(output) + "\n", text=True, check=True)
    assert console.lines == [
        "compiling the kernels against torch 2.13.0",
        "[3/13] kernels_avx2 cpu/kernels/kernels.cpp",
        "[ 50%] _kernels cpu/fft/plan.cpp",
        "[13/13] Linking CXX shared module _kernels.so",
    ]
    print("and after it")
    assert capfd.readouterr().out.splitlines() == [*output, "and after it"]


def test_progress_of_a_silent_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyena_build, "_HEARTBEAT", 0.5)
    console = Heard()
    with hyena_build._progress(console):
        subprocess.run(["sleep", "1.5"], check=True)
    assert console.lines
    assert all(line.startswith("still compiling, ") for line in console.lines)


FRONTEND = """
import subprocess, sys
build = "import sys; sys.path.insert(0, {tools!r}); import hyena_build; hyena_build.Console().say('a word')"
hidden = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True)
assert hidden.stdout == "hyena: a word\\n", hidden
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(("arguments", "shown"), [([], True), (["-v"], False), (["--quiet"], False)])
def test_console(tmp_path: Path, arguments: list[str], shown: bool) -> None:
    """What a build says reaches the error stream of the pip that hides its output, unless pip is told otherwise."""
    pip = tmp_path / "pip"
    pip.write_text(FRONTEND.format(tools=str(ROOT / "tools")))
    command = [sys.executable, str(pip), "install", ".", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ("hyena: a word\n" if shown else "")
    with open(tmp_path / "log", "w+") as log:  # a file has no room for a second writer
        subprocess.run(command, stderr=log, check=True)
        log.seek(0)
        assert log.read() == ""


def test_kept_build_folder(tmp_path: Path) -> None:
    """What was compiled stays; what CMake found, or did not find, is looked for again."""
    for name in (
        "CMakeCache.txt",
        ".skbuild-info.json",
        "CMakeFiles/3.25.1/CMakeCXXCompiler.cmake",
        "CMakeFiles/k.dir/a.o",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    hyena_build._forget_configuration(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == [
        "CMakeFiles/k.dir/a.o"
    ]


@pytest.mark.parametrize(("settings", "want"), [(None, "build/{wheel_tag}"), ({"build-dir": "mine"}, "mine")])
def test_build_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_is, settings, want: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    hyena_build._build(lambda *arguments: asked.append(arguments) or "a.whl", "dist", settings, None)
    assert asked == [("dist", {"build-dir": want}, None)]
    if os.geteuid() != 0 and settings is None:  # root may write anywhere
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        hyena_build._build(lambda *arguments: asked.append(arguments) or "a.whl", "dist", None, None)
        assert asked[-1] == ("dist", {}, None)


def test_editable(tmp_path: Path) -> None:
    """The library is put into the source tree, whatever was there before; the wheel has the way there."""
    built, editable, source = tmp_path / "built.whl", tmp_path / "editable.whl", tmp_path / "src"
    (source / "hyena").mkdir(parents=True)
    (source / "hyena" / "_kernels_missing.txt").write_text("there was no compiler last time")
    with zipfile.ZipFile(built, "w") as wheel:
        for name in (
            "hyena/__init__.py",
            "hyena/_kernels.so",
            "hyena-0.1.0.dist-info/METADATA",
            "hyena-0.1.0.dist-info/RECORD",
        ):
            wheel.writestr(name, f"the text of {name}")
    hyena_build._make_editable(built, editable, source)
    assert (source / "hyena" / "_kernels.so").read_text() == "the text of hyena/_kernels.so"
    assert [file.name for file in (source / "hyena").iterdir()] == ["_kernels.so"]
    with zipfile.ZipFile(editable) as wheel:
        metadata, record, path = "hyena-0.1.0.dist-info/METADATA", "hyena-0.1.0.dist-info/RECORD", "_hyena_editable.pth"
        assert set(wheel.namelist()) == {metadata, record, path}
        assert wheel.read(path).decode() == f"{source}\n"
        lines = dict(line.split(",", 1) for line in wheel.read(record).decode().splitlines())
        assert set(lines) == {metadata, record, path}
        assert lines[record] == ","
        digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(metadata)).digest()).decode().rstrip("=")
        assert lines[metadata] == f"sha256={digest},{len(wheel.read(metadata))}"
