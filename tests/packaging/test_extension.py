"""Loading the compiled library, and the reason that is given where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyena.ops import _extension


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder without a library."""
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    monkeypatch.delenv("HYENA_DISABLE_EXT", raising=False)
    return tmp_path


def test_reason_of_the_build(folder: Path) -> None:
    (folder / "_kernels_missing.txt").write_text("there was no C++ compiler when hyena was built\n")
    extension = _extension.Extension()
    with pytest.warns(RuntimeWarning, match="several times slower: there was no C\\+\\+ compiler when hyena was built"):
        extension.load()
    assert extension.instructions is None
    assert extension.reason == "there was no C++ compiler when hyena was built"


def test_reason_in_a_wheel_without_kernels(folder: Path) -> None:
    extension = _extension.Extension()
    with pytest.warns(RuntimeWarning, match=r"several times slower: this is the wheel without kernels, for systems"):
        extension.load()
    assert extension.instructions is None


def test_reason_in_a_source_tree(folder: Path) -> None:
    (folder / "csrc").mkdir()
    extension = _extension.Extension()
    with pytest.warns(RuntimeWarning, match="there is no _kernels.so in .*: a source tree needs .pip install -e"):
        extension.load()


def test_reason_of_the_loader(folder: Path) -> None:
    (folder / "_kernels.so").write_bytes(b"no library")
    extension = _extension.Extension()
    with pytest.warns(RuntimeWarning, match="_kernels.so does not load with torch"):
        extension.load()


def test_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYENA_DISABLE_EXT", "1")
    extension = _extension.Extension()
    extension.load()
    assert extension.reason == "HYENA_DISABLE_EXT is set"


def test_kernels_are_registered_only_where_they_are_in_use() -> None:
    """Also that no test has loaded them while it was collected: the library registers them as it is loaded."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hyena::gated_conv", "CPU") == (
        _extension.EXTENSION.instructions is not None
    )
