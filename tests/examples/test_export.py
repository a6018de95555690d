"""examples/export: a compiled model in processes without the package, in Python and in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyena import ops

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "export"


def run(*command: object, **environment: str) -> str:
    """What a program prints, which must succeed. ``hyena`` cannot be imported there, unless the path says so."""
    names = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=names, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder, and the line about the logits."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    if not ops.has_kernel("recurrence", torch.device("cpu")):
        pytest.skip("no kernels here to package")
    folder = tmp_path_factory.mktemp("export")
    out = run(sys.executable, EXAMPLE / "export.py", "--folder", folder, PYTHONPATH=os.pathsep.join(sys.path))
    wrote, logits = out.splitlines()
    assert wrote.split()[1:] == [str(folder / name) for name in ("model.pt2", "_kernels.so", "hyena_schemas.cpp")]
    return folder, logits


def close(a: str, b: str) -> bool:
    """Of two lines that end in a number."""
    (text, x), (other, y) = a.rsplit(" ", 1), b.rsplit(" ", 1)
    return text == other and abs(float(x) - float(y)) < 0.02


REFUSED = [
    "1025 tokens from 0 to 0: the model takes up to 1024, from 0 to 64",
    "3 tokens from 65 to 65: the model takes up to 1024, from 0 to 64",
]

# Runs a script where the package cannot be imported, installed or not.
WITHOUT = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hyena":
            raise ImportError("hyena is not here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_in_python(exported: tuple[Path, str]) -> None:
    folder, logits = exported
    script = EXAMPLE / "run.py"
    out = run(sys.executable, "-c", WITHOUT, script, folder).splitlines()
    assert close(out[0], logits)
    assert out[1:] == REFUSED


def test_in_cpp(exported: tuple[Path, str], tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder, logits = exported
    torch_cmake = torch.utils.cmake_prefix_path
    run("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DFOLDER={folder}", f"-DCMAKE_PREFIX_PATH={torch_cmake}")
    run("cmake", "--build", tmp_path)
    out = run(tmp_path / "hyena_export", folder).splitlines()
    assert close(out[0], logits)
    assert out[1:] == REFUSED
