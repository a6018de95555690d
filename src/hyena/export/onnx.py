"""Models as ONNX files, with any batch and length."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyena.export.inputs import Inputs, inputs_of, program_of
from hyena.generation.protocol import eval_mode

# What torch.onnx's own functions are written in.
OLDEST_OPSET = 18

# Weights of more than this many bytes are written beside the file: a protocol buffer ends at 2 GiB.
_INSIDE = 1 << 30


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """What :func:`to_onnx` wrote.

    Attributes:
        path: the file. The weights of models above 1 GiB are in another beside it, ``path`` with ``.data`` at its end.
        opset: of its operators, all of ONNX's own domain.
        inputs, outputs: names and shapes, sizes by name where they may be any.
        bytes: of the files.
    """

    path: Path
    opset: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    bytes: int


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    args: tuple[Any, ...] | None = None,
    *,
    mask: bool = False,
    stored_taps: bool = False,
    min_length: int = 1,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OLDEST_OPSET,
) -> OnnxFile:
    """Writes a model as an ONNX file of standard operators, for any batch and length.

    A mixer, a model of :mod:`hyena.models` that reads tokens, and :func:`hyena.export.step_model` need no more than a
    path. A row of more than ``l_max`` positions is an error of the runtime, in a node named ``row_longer_than_l_max``.
    The model is taken in eval mode, and left in its own.

    Args:
        model: to write.
        path: of the file, ``.onnx``.
        args: inputs to trace any other module with; then ``dynamic_shapes`` and names are its own too.
        mask: whether there is a second input ``mask`` ``(B, L)`` bool, True = keep.
        stored_taps: whether all taps up to ``l_max`` are in the file, not the network that makes them: larger, and less
            to compute. Filters that are no :class:`hyena.filters.HyenaFilter` always are.
        min_length: the shortest row. Two-sided operators are traced from 3 on. Shorter rows are errors when it runs.
        dynamic_shapes, input_names, output_names: as in ``torch.onnx.export``.
        opset: version of ONNX's operators, 18 or later.

    Returns:
        What was written.

    Raises:
        ImportError: ``onnx`` or ``onnxscript`` is missing.
        ValueError: an opset that is too old, or a model that cannot be exported, with the mixer.
        TypeError: a module that needs ``args``.
    """
    _require("onnx", "onnxscript")
    if opset < OLDEST_OPSET:
        raise ValueError(f"opset={opset} is too old: torch.onnx writes opset {OLDEST_OPSET} and later")
    own = {"dynamic_shapes": dynamic_shapes, "input_names": input_names, "output_names": output_names}
    given = [name for name, value in own.items() if value is not None]
    if args is None and given:
        raise ValueError(f"{', '.join(given)} came without args, the inputs that they are of")
    if args is not None and (mask or stored_taps or min_length != 1):
        raise ValueError("mask, stored_taps and min_length are for models that need no args, which came too")
    path = Path(path)
    with eval_mode(model):
        if args is None:
            inputs = inputs_of(model, mask, stored_taps, min_length)
        else:
            names, outputs = (None if names is None else list(names) for names in (input_names, output_names))
            inputs = Inputs(model, args, dynamic_shapes, names, outputs)
        program = program_of(inputs, plain=True)
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=inputs.names,
            output_names=inputs.outputs,
        )
    assert written is not None
    graph = written.model.graph
    _rename(graph, inputs)
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    written.save(path, external_data=size > _INSIDE)
    files = [path, path.with_name(path.name + ".data")] if size > _INSIDE else [path]
    total = sum(file.stat().st_size for file in files)
    found = written.model.opset_imports[""]
    if found != opset:
        raise ValueError(f"torch {torch.__version__} wrote opset {found} and not opset={opset}, which it does not know")
    return OnnxFile(path, found, _shapes(graph.inputs), _shapes(graph.outputs), total)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'to write ONNX files, {" and ".join(missing)} must be there: pip install "hyena[onnx]"')


def _rename(graph: Any, inputs: Inputs) -> None:
    """Names for the sizes that may change, in place of a trace's, and for the node that fails on too long rows."""
    if not inputs.limit:
        return
    import onnx_ir

    names = {
        str(size.value): name
        for given in graph.inputs
        for size, name in zip(given.shape, inputs.axes)
        if not isinstance(size, int)
    }
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        for i, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                text = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), str(size.value))
                value.shape[i] = onnx_ir.SymbolicDim(text)
    for node in graph:
        if node.op_type == "Gather" and node.inputs[0] is not None and "room" in (node.inputs[0].name or ""):
            node.name = inputs.limit


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ())
        for value in values
    }
