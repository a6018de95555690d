"""What a model is traced with, and its program for any batch and length.

Dimensions: B batch, L length, D channels (d_model).
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hyena.export.decompose import decompose
from hyena.export.step import StepModel
from hyena.export.stored import with_stored_taps
from hyena.mixers import Mixer
from hyena.models.decoder import Decoder

# The length that a model is traced with: nothing about it is special.
_TRACED = 19


class Bounded(nn.Module):
    """A model that fails where a row is longer or shorter than it takes, in every runtime."""

    room: Tensor

    def __init__(self, model: nn.Module, l_max: int, min_length: int = 1) -> None:
        super().__init__()
        self.model, self.min_length = model, min_length
        # An index beyond it is an error everywhere, where a check of a shape is left out of most programs.
        self.register_buffer("room", torch.zeros(l_max, dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.model(x, mask)
        # As a sum, whose range a compiler does not know: it leaves checks out that a row within l_max passes.
        last = torch.ones(x.size(1), dtype=torch.int64, device=x.device).sum(0, keepdim=True) - 1
        if self.min_length > 1:
            last = last + (last < self.min_length - 1).to(last.dtype) * self.room.size(0)
        return y + self.room.to(x.device).index_select(0, last).to(y.dtype)


@dataclasses.dataclass
class Inputs:
    """What a module is traced with.

    Attributes:
        module: to trace.
        args: its inputs.
        shapes: which of their sizes may change, as ``torch.export.export`` takes it.
        names, outputs: of its inputs and outputs; None where they are not known.
        axes: what sizes of inputs are called, from the first axis on.
        limit: what the node is called that fails on too long rows.
        lengths: the shortest row and the longest, None for any, that the program must be right for; None unless it is
            known which sizes are lengths.
    """

    module: nn.Module
    args: tuple[Any, ...]
    shapes: Any
    names: list[str] | None = None
    outputs: list[str] | None = None
    axes: tuple[str, ...] = ()
    limit: str = ""
    lengths: tuple[int, int | None] | None = None


def inputs_of(model: nn.Module, mask: bool = False, stored_taps: bool = False, min_length: int = 1) -> Inputs:
    """The inputs of a mixer, a model that reads tokens or a step of one.

    Args:
        model: which.
        mask: whether a mask of kept positions is one of them.
        stored_taps: whether every filter is a table in the program.
        min_length: the shortest row.

    Raises:
        TypeError: a module of another kind.
        ValueError: a mask for a step.
    """
    batch: Any = {0: Dim.DYNAMIC}
    if isinstance(model, StepModel):
        if mask or stored_taps or min_length != 1:
            raise ValueError("mask, stored_taps and min_length are for rows: a step has one position, and its filters")
        x, (position, *rows) = _example(model.model)[:, 0], model.initial_state(2)
        shapes: Any = {"x": batch, "position": None, "rows": tuple(batch for _ in rows)}
        ids = not x.is_floating_point()
        return Inputs(
            model,
            (x, position, *rows),
            shapes,
            ["tokens" if ids else "u", *model.state_names],
            ["logits" if ids else "y", *(f"next_{name}" for name in model.state_names)],
            ("batch",),
            "more_steps_than_max_length",
            (1, 1),
        )
    if not isinstance(model, (Mixer, Decoder)):
        raise TypeError(
            f"what a {type(model).__name__} is called with is not known: pass args, and dynamic_shapes with the sizes "
            "that may change"
        )
    module = with_stored_taps(model, every=stored_taps)
    l_max = model.l_max if isinstance(model, Mixer) else model.config.l_max
    if not 1 <= min_length <= (min_length if l_max is None else l_max):
        raise ValueError(f"min_length must be 1 to l_max={l_max}, got {min_length}")
    x = _example(model, min_length)
    args: tuple[Tensor, ...] = (x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)) if mask else (x,)
    sizes = {**batch, 1: Dim.DYNAMIC} if x.size(1) > 1 else batch
    if isinstance(model, Mixer):
        names, outputs = ["u"], ["y"]
    else:
        names, outputs = ["tokens"], ["hidden" if model.head is None else "logits"]
    return Inputs(
        module if l_max is None else Bounded(module, l_max, min_length).train(model.training),
        args,
        tuple(sizes for _ in args),
        [*names, "mask"] if mask else names,
        outputs,
        ("batch", "length"),
        "row_longer_than_l_max" if min_length == 1 else "row_longer_than_l_max_or_shorter_than_min_length",
        (min_length, l_max),
    )


def _example(model: Any, min_length: int = 1) -> Tensor:
    """Tokens ``(2, L)`` or inputs ``(2, L, D)`` of short rows."""
    l_max = model.l_max if isinstance(model, Mixer) else model.config.l_max
    length = max(_TRACED, min_length + 1)  # not the shortest: a trace is of the code that most rows take
    length = length if l_max is None else min(length, l_max)
    if isinstance(model, Mixer):
        weight = next(model.parameters())
        return torch.randn(2, length, model.d_model, device=weight.device, dtype=weight.dtype)
    return torch.zeros(2, length, dtype=torch.int64, device=model.device)


def program_of(inputs: Inputs, *, plain: bool) -> ExportedProgram:
    """The program of a module, if it is ``plain`` without this library's ops.

    Raises:
        ValueError: it cannot be exported, with the mixer that cannot.
    """
    try:
        return _program(inputs, plain)
    except Exception as error:
        outer = inputs.module.model if isinstance(inputs.module, Bounded) else inputs.module
        parts = [(name, part) for name, part in outer.named_modules() if isinstance(part, Mixer) and part is not outer]
        shortest = 1 if inputs.lengths is None else inputs.lengths[0]
        for name, part in [] if isinstance(outer, StepModel) else parts:
            try:
                _program(inputs_of(part, min_length=shortest), plain)
            except Exception as why:
                raise ValueError(f"{name}, a {type(part).__name__}, cannot be exported: {_line(why)}") from error
        raise ValueError(f"this {type(outer).__name__} cannot be exported: {_line(error)}") from error


def _program(inputs: Inputs, plain: bool) -> ExportedProgram:
    with torch.no_grad():
        program = torch.export.export(inputs.module, inputs.args, dynamic_shapes=inputs.shapes)
    _check_lengths(program, inputs)
    return decompose(program) if plain else program


class _Sizes:
    """Stands for every input in the conditions that a trace has been made under."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __getitem__(self, name: Any) -> _Sizes:
        return self

    def size(self) -> tuple[int, ...]:
        return self.sizes


def _check_lengths(program: ExportedProgram, inputs: Inputs) -> None:
    """Whether a program is right for every batch and length: outside of torch nothing looks at its conditions.

    Raises:
        ValueError: it is for some lengths only, with the condition.
    """
    if inputs.lengths is None:
        return
    shortest, longest = inputs.lengths
    last = 8192 if longest is None else longest
    tried = sorted({*range(shortest, min(last, 300) + 1), *(n for n in (511, 512, 513, 1000, 4097, last) if n <= last)})
    rest = inputs.args[0].shape[2:]
    for condition in getattr(program, "_guards_code", ()):
        code = compile(condition, "<condition>", "eval")
        wrong = []
        for batch in (1, 2, 3):
            names = {"L": _Sizes(batch, 0, *rest), "min": min, "max": max, "math": math, "torch": torch}
            for length in tried:
                names["L"] = _Sizes(batch, length, *rest)
                if not eval(code, {"__builtins__": {}}, names):
                    wrong.append(length)
        if wrong:
            more = max(wrong) + 1
            hint = f"; min_length={more} would do" if more <= min(last, 300) else ""
            text = re.sub(r"L\['\w+'\]\.size\(\)\[1\]", "length", condition)
            raise ValueError(f"it computes rows of {wrong[0]} otherwise, a program only those with {text}{hint}")


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
