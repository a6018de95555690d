"""README, docs and ``help(hyena)``: code in them runs, the Quick start is two commands, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hyena
from helpers.pages import Block, agree, blocks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(set(DOCS.rglob("*.md")) - set((DOCS / "api").glob("*.md")))]
LANGUAGES = {"python", "bash", "sh", "text", "math", "toml", "yaml", "json", "cpp", "cmake", "{toctree}"}
IN_CI = {README: {"bash"}}  # .ci/run reads its commands from there


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def code(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in {"python", "bash", "sh"} - IN_CI.get(page, set())]


def test_quick_start_is_two_commands() -> None:
    quick_start = README.read_text(encoding="utf-8").split("## Quick start")[1].split("\n## ")[0]
    commands = [block.code for block in blocks(README) if block.language == "bash"]
    assert len(commands) == 2
    for command in commands:
        assert f"```bash\n{command}```" in quick_start
        assert len(command.splitlines()) == 1
    goals = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert all(command.split()[0] == "make" and command.split()[1] in goals for command in commands)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_blocks_say_what_they_are(page: Path) -> None:
    """A language that is known, so that none escapes the next test, and reasons only where nothing runs."""
    assert [block.name for block in blocks(page) if block.language not in LANGUAGES] == []
    text = page.read_text(encoding="utf-8")
    assert text.count("\n<!-- not run: ") == sum(block.why_not is not None for block in code(page))
    assert text.count("\n```") == 2 * len(blocks(page))


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=ids)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, later ones with the names of earlier ones; the README's each for itself. As from a checkout's root."""
    if page.name == "export.md":
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="hyena[onnx] is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # as under torchrun
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    names: dict[str, object] = {}
    for block in code(page):
        if page == README:
            names = {}
        if block.why_not is None:
            block.run(names)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_every_page_is_in_the_sidebar() -> None:
    """In a toctree of the front page."""
    trees = "\n".join(block.code for block in blocks(DOCS / "index.md") if block.language == "{toctree}").splitlines()
    pages = [ids(page).removesuffix(".md") for page in PAGES if DOCS in page.parents and page.name != "index.md"]
    assert sorted(set(pages) | {"api/index"}) == sorted(line for line in trees if line and not line.startswith(":"))


def test_scaling_out_runs_on_two_processes(tmp_path: Path) -> None:
    """The page's blocks are a script, which compares itself with one process."""
    page = DOCS / "tutorials" / "scale-out.md"
    script = tmp_path / "train.py"
    script.write_text("\n".join(block.code for block in code(page) if block.language == "python"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script.name]
    paths = os.pathsep.join([str(Path(hyena.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "processes: 2\n" in ran.stdout
    assert "step 40: loss" in ran.stdout


def test_outputs_are_compared() -> None:
    assert agree("loss 1.50, 1,024 rows\n", "loss 1.55, 1024 rows")
    assert not agree("loss 1.50", "loss 1.80")
    assert not agree("loss 1.50", "cost 1.50")
    assert not agree("(16, 10)", "(16, 11)")
    assert not agree("a b", "a")
    with pytest.raises(AssertionError, match="prints\n2"):
        Block("page", "python", "print(2)", prints="3").run({})
    with pytest.raises(AssertionError, match="make cannot be run here"):
        Block("page", "bash", "make test").run({})


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    """API pages are made when the site is built, which complains of links to none."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    links = [link for link in links if "://" not in link and not link.removeprefix("../").startswith("api/")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def resolves(name: str) -> bool:
    thing = hyena
    for part in name.split(".")[1:]:
        if isinstance(thing, ModuleType) and not hasattr(thing, part):
            try:
                importlib.import_module(f"{thing.__name__}.{part}")
            except ImportError:
                return False
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_in_pages_exist(page: Path) -> None:
    """``hyena.conv.LongConv`` and the like, in text and code."""
    names = set(re.findall(r"(?<![\w./-])hyena(?:\.[A-Za-z]\w*)+", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not resolves(name)] == []


def test_names_in_docstrings_exist() -> None:
    """What roles refer to: ``:func:`hyena.functional.fft_conv```."""
    names = set()
    for file in Path(hyena.__file__).parent.rglob("*.py"):
        names |= set(re.findall(r":\w+:`~?(hyena\.[\w.]+)`", file.read_text(encoding="utf-8")))
    assert names
    assert [name for name in sorted(names) if not resolves(name)] == []


def test_help_teaches() -> None:
    """What ``help(hyena)`` opens with has a first line that stands alone, and examples that give what they say."""
    text = hyena.__doc__
    assert re.fullmatch(r"\S.{20,118}\.", text.splitlines()[0])
    assert text.splitlines()[1] == ""
    examples = doctest.DocTestFinder(recurse=False).find(hyena, "hyena")
    assert len(examples[0].examples) >= 5
    runner = doctest.DocTestRunner()
    runner.run(examples[0])
    assert runner.failures == 0
    rooms = {path.parent.name for path in Path(hyena.__file__).parent.glob("*/__init__.py")} - {"ops", "integrations"}
    assert [room for room in sorted(rooms) if f"``hyena.{room}``" not in text] == []
    assert [name for name in hyena.__all__ if name[0].isupper() and not getattr(hyena, name).__doc__] == []
