"""Models compiled ahead of time, to be run where Python, or this package, is missing.

The kernels are one shared library that knows torch's stable ABI and no Python. It registers implementations; the
schemas, which otherwise are this package's, come from a second library that a few lines of C++ make.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyena.export.inputs import Inputs, inputs_of, program_of
from hyena.export.step import StepModel
from hyena.generation.protocol import eval_mode
from hyena.mixers import Mixer
from hyena.models.decoder import Decoder
from hyena.ops import library_file, op_names

_SOURCE = """\
// Schemas of the ops that _kernels.so implements, for programs that have no Python (or none of this package's).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hyena, m) {{
{lines}
}}
"""


@dataclasses.dataclass(frozen=True)
class Package:
    """What :func:`to_package` wrote.

    Attributes:
        model: the compiled model, for ``torch._inductor.aoti_load_package`` and its C++ counterpart.
        kernels: the library with this library's ops; None if the model has none.
        schemas: C++ source of the library that declares them; None likewise.
    """

    model: Path
    kernels: Path | None
    schemas: Path | None


def library() -> Path:
    """The shared library with the compiled kernels, to be loaded after the schemas (``torch.ops.load_library``).

    Raises:
        RuntimeError: there is none here; the reason is in :func:`hyena.backend_report`.
    """
    found = library_file()
    if found is None:
        raise RuntimeError(
            "there are no compiled kernels here (hyena.backend_report() says why); hyena.export.decompose makes a "
            "program that needs none"
        )
    return found


def schemas() -> list[str]:
    """The schema of every op, without its namespace: what ``torch.library.Library("hyena", "DEF").define`` takes."""
    ops = (getattr(torch.ops.hyena, name).default for name in op_names())
    return [str(op._schema).removeprefix("hyena::") for op in ops]


def write_schemas(path: str | os.PathLike[str]) -> Path:
    """Writes the schemas as a C++ source file against torch's stable ABI (2.11 and later), to be built as a library.

    Args:
        path: of the file, ``.cpp``.
    """
    path = Path(path)
    lines = "\n".join(f'    m.def("{schema}");' for schema in schemas())
    path.write_text(_SOURCE.format(lines=lines), encoding="utf-8")
    return path


def to_package(
    model: nn.Module,
    folder: str | os.PathLike[str],
    args: tuple[Any, ...] | None = None,
    *,
    mask: bool = False,
    stored_taps: bool = False,
    min_length: int = 1,
    dynamic_shapes: Any = None,
    plain: bool = False,
) -> Package:
    """Compiles a model with AOTInductor, and puts what it needs beside it in a folder.

    The model is taken in eval mode, where it is now (CPU or GPU), and left in its own. The package runs with the torch
    that compiled it.

    A row of more than ``l_max`` positions, or a token that is none, is an error when it runs; on several threads an
    error inside a compiled loop ends the process, so check before. The package's metadata has ``l_max``, ``min_length``
    and ``vocab_size``, of a step model ``max_length``: ``get_metadata()``, in Python and C++.

    Args:
        model: a mixer, a model of :mod:`hyena.models` that reads tokens, or :func:`hyena.export.step_model`.
        folder: made if it is missing.
        args: inputs to trace any other module with.
        mask: whether there is a second input, ``(B, L)`` bool, True = keep.
        stored_taps: whether all taps up to ``l_max`` are in the file, not the network that makes them: larger, and less
            to compute. Filters that are no :class:`hyena.filters.HyenaFilter` always are.
        min_length: the shortest row. Two-sided operators are traced from 3 on. Shorter rows are errors when it runs.
        dynamic_shapes: of ``args``, as in ``torch.export.export``.
        plain: without this library's ops (:func:`hyena.export.decompose`): no library to load, several times slower.

    Returns:
        What was written.

    Raises:
        ValueError: a model that cannot be exported, with the mixer.
        TypeError: a module that needs ``args``.
        RuntimeError: no compiled kernels here, and not ``plain``.
    """
    if args is None and dynamic_shapes is not None:
        raise ValueError("dynamic_shapes came without args, the inputs that they are of")
    if args is not None and (mask or stored_taps or min_length != 1):
        raise ValueError("mask, stored_taps and min_length are for models that need no args, which came too")
    kernels = None if plain else library()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with eval_mode(model):
        inputs = (
            inputs_of(model, mask, stored_taps, min_length) if args is None else Inputs(model, args, dynamic_shapes)
        )
        program = program_of(inputs, plain=plain)
        with torch.no_grad():
            written = torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / "model.pt2"),
                inductor_configs={"aot_inductor.metadata": _limits(model, min_length)},
            )
    if kernels is None:
        return Package(Path(written), None, None)
    copied = Path(shutil.copy(kernels, folder))
    return Package(Path(written), copied, write_schemas(folder / "hyena_schemas.cpp"))


def _limits(model: nn.Module, min_length: int) -> dict[str, str]:
    """What inputs must keep to, as far as it is known."""
    found: dict[str, Any] = {}
    if isinstance(model, StepModel):
        found["max_length"], model = model.max_length, model.model
    elif isinstance(model, (Mixer, Decoder)):
        found |= {"l_max": model.l_max if isinstance(model, Mixer) else model.config.l_max, "min_length": min_length}
    if isinstance(model, Decoder):
        found["vocab_size"] = model.config.vocab_size
    return {name: str(value) for name, value in found.items() if value is not None}
