"""What a release uploads: which systems get kernels, checks of its files, the workflows, and what names the version."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hyena

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import find_torch  # noqa: E402
import hyena_build  # noqa: E402

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WHEEL = ["hyena/__init__.py", "hyena/py.typed", "hyena-0.1.0.dist-info/licenses/LICENSE"]


# Where nothing is compiled


@pytest.mark.parametrize(
    ("system", "compiles"), [("linux", True), ("darwin", False), ("win32", False), ("cygwin", False)]
)
def test_kernels_are_compiled_on_linux_alone(system: str, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("scikit_build_core.settings.skbuild_read_settings")
    monkeypatch.setattr(sys, "platform", system)
    settings = reader.SettingsReader.from_file(str(ROOT / "pyproject.toml"), {}).settings
    assert settings.wheel.cmake is compiles


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_no_torch_is_fetched_to_compile_nothing(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_torch, "find", lambda: (None, "nowhere"))
    monkeypatch.setattr(hyena_build, "_has_compiler", lambda: True)
    monkeypatch.setattr(find_torch, "frontends", lambda: iter(()))
    monkeypatch.setattr(sys, "platform", system)
    assert hyena_build._torch_requirement(None) == []
    assert hyena_build._torch_requirement({"wheel.cmake": "true"}) == ["torch>=2.11"]


# The files


def check(*files: Path) -> str:
    """What the script says of files; "" if they can be uploaded."""
    run = subprocess.run(
        ["bash", str(ROOT / "tools/release.sh"), "check", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    return "" if run.returncode == 0 else run.stderr


def wheel(folder: Path, tag: str, *more: str, without: str = "", size: int = 1) -> Path:
    path = folder / f"hyena-0.1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in (*WHEEL, *more):
            if name != without:
                file.writestr(name, b"0" * size)
    return path


def test_files_that_can_be_uploaded(tmp_path: Path) -> None:
    assert check(wheel(tmp_path, "py3-none-any")) == ""
    path = tmp_path / "hyena-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name in ("pyproject.toml", "README.md", "LICENSE", "tools", "src"):
            file.add(
                ROOT / name, f"hyena-0.1.0/{name}", filter=lambda info: None if "__pycache__" in info.name else info
            )
    assert check(path) == "" or "compiled library" in check(path)  # of a source tree that was built in


@pytest.mark.parametrize(
    ("tag", "more", "without", "says"),
    [
        ("py3-none-linux_x86_64", ("hyena/_kernels.so",), "", "only py3-none-any and py3-none-manylinux wheels"),
        ("py3-none-any", ("hyena/_kernels.so",), "", "has a compiled library"),
        ("py3-none-any", ("hyena/csrc/CMakeLists.txt",), "", "which no wheel should have"),
        ("py3-none-any", (), "hyena/py.typed", "has no hyena/py.typed"),
        ("py3-none-manylinux_2_28_x86_64", (), "", "has no hyena/_kernels.so"),
    ],
)
def test_files_that_cannot(tmp_path: Path, tag: str, more: tuple[str, ...], without: str, says: str) -> None:
    assert says in check(wheel(tmp_path, tag, *more, without=without))


def test_large_files_cannot(tmp_path: Path) -> None:
    path = wheel(tmp_path, "py3-none-any", size=6 << 20)
    assert f"has {path.stat().st_size} bytes, more than {10 << 20}" in check(path)


# The workflows


def steps(path: Path) -> list[dict]:
    yaml = pytest.importorskip("yaml")
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_there(path: Path) -> None:
    commands = "\n".join(step["run"] for step in steps(path) if "run" in step)
    scripts = set(re.findall(r"(?:tools|tests|\.ci)/[\w./]+", commands))
    assert scripts
    assert [name for name in scripts if not (ROOT / name).exists()] == []


def test_releases_are_built_and_checked_by_the_script() -> None:
    commands = [step.get("run", "") for step in steps(ROOT / ".github/workflows/release.yml")]
    ci = (ROOT / ".ci/run").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for step in ("sdist", "pure", "check"):
        assert any(command.startswith(f"tools/release.sh {step} ") for command in commands)
        assert f"tools/release.sh {step} " in ci
    assert "tools/release.sh repair {wheel} {dest_dir}" in project
    assert "tools/release.sh repair " in ci
    assert "tools/try_wheel.py kernels" in project
    assert "tools/try_wheel.py" in ci


def test_the_oldest_torch_is_what_wheels_are_built_with() -> None:
    oldest = ".".join(map(str, find_torch.OLDEST))
    assert f"pip install torch=={oldest}.0 " in (ROOT / "pyproject.toml").read_text()
    assert f'torch: "{oldest}.0"' in (ROOT / ".github/workflows/test.yml").read_text()


def test_what_names_the_version() -> None:
    assert re.search(rf"^version: {re.escape(hyena.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_bug_reports_ask_for_the_report() -> None:
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    (asked,) = [field for field in form["body"] if field["id"] == "report"]
    assert "python -m hyena report" in asked["attributes"]["label"]
    assert "backend_report()" in asked["attributes"]["description"]
    assert asked["validations"]["required"] is True
