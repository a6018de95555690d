"""What pyproject.toml says against what the code needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hyena

ROOT = Path(__file__).parent.parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OF_TORCH = {"typing_extensions"}  # torch's own dependencies
EXTRAS = {
    "matplotlib",
    "onnx_ir",
    "peft",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "tqdm",
    "transformers",
    "yaml",
}  # of features with an extra of their own, or an error that says what to install; never imported by `import hyena`


def dependencies() -> dict[str, str]:
    listed = re.search(r"^dependencies = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)[1]
    return dict(re.match(r"([\w-]+)(.*)", entry).groups() for entry in re.findall(r'"([^"]+)"', listed))


def imported() -> set[str]:
    names = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"hyena"}


def test_every_import_is_declared() -> None:
    assert imported() - OF_TORCH - EXTRAS <= set(dependencies())


def test_every_dependency_is_imported() -> None:
    assert set(dependencies()) <= imported()


def test_oldest_torch() -> None:
    """One number in the metadata, in the search for torch, in the build backend and in the stable ABI compiled for."""
    sys.path.insert(0, str(ROOT / "tools"))
    import find_torch

    oldest = f">={find_torch.OLDEST[0]}.{find_torch.OLDEST[1]}"
    assert dependencies()["torch"] == oldest
    assert f'TORCH = "torch{oldest}"' in (ROOT / "tools/hyena_build.py").read_text(encoding="utf-8")
    target = re.search(
        r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)", (ROOT / "src/hyena/csrc/CMakeLists.txt").read_text(encoding="utf-8")
    )
    assert (int(target[1], 16), int(target[2], 16)) == find_torch.OLDEST


def test_version() -> None:
    assert f'version = "{hyena.__version__}"' in PROJECT


def test_typed() -> None:
    assert (Path(hyena.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", ["transformers", "safetensors", "numpy", "matplotlib"])
def test_lean_import(name: str) -> None:
    code = f"import torch, sys; before = set(sys.modules); import hyena; print({name!r} in set(sys.modules) - before)"
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
