"""What a model is traced with, and its program for any batch and length.

Dimensions: B batch, L length, D channels (d_model).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hyena.export.decompose import decompose
from hyena.export.step import StepModel
from hyena.mixers import Mixer
from hyena.models.decoder import Decoder

# The length that a model is traced with: nothing about it is special.
_TRACED = 19


class Bounded(nn.Module):
    """A model that fails where a row is longer than it takes, in every runtime."""

    def __init__(self, model: nn.Module, l_max: int) -> None:
        super().__init__()
        self.model = model
        # An index beyond it is an error everywhere, where a check of a shape is left out of most programs.
        self.register_buffer("room", torch.zeros(l_max, dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.model(x, mask)
        last = torch.arange(x.size(1), device=x.device)[-1:]
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
    """

    module: nn.Module
    args: tuple[Any, ...]
    shapes: Any
    names: list[str] | None = None
    outputs: list[str] | None = None
    axes: tuple[str, ...] = ()
    limit: str = ""


def inputs_of(model: nn.Module, mask: bool = False) -> Inputs:
    """The inputs of a mixer, a model that reads tokens or a step of one.

    Args:
        model: which.
        mask: whether a mask of kept positions is one of them.

    Raises:
        TypeError: a module of another kind.
        ValueError: a mask for a step.
    """
    batch: Any = {0: Dim.DYNAMIC}
    if isinstance(model, StepModel):
        if mask:
            raise ValueError("mask=True: a step takes no mask, every row has a token")
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
        )
    if not isinstance(model, (Mixer, Decoder)):
        raise TypeError(
            f"what a {type(model).__name__} is called with is not known: pass args, and dynamic_shapes with the sizes "
            "that may change"
        )
    x = _example(model)
    args: tuple[Tensor, ...] = (x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)) if mask else (x,)
    l_max = model.l_max if isinstance(model, Mixer) else model.config.l_max
    sizes = {**batch, 1: Dim.DYNAMIC} if x.size(1) > 1 else batch
    if isinstance(model, Mixer):
        names, outputs = ["u"], ["y"]
    else:
        names, outputs = ["tokens"], ["hidden" if model.head is None else "logits"]
    return Inputs(
        model if l_max is None else Bounded(model, l_max).train(model.training),
        args,
        tuple(sizes for _ in args) if l_max is None else {"x": sizes, "mask": sizes if mask else None},
        [*names, "mask"] if mask else names,
        outputs,
        ("batch", "length"),
        "row_longer_than_l_max",
    )


def _example(model: Any) -> Tensor:
    """Tokens ``(2, L)`` or inputs ``(2, L, D)`` of short rows."""
    l_max = model.l_max if isinstance(model, Mixer) else model.config.l_max
    length = _TRACED if l_max is None else min(_TRACED, l_max)
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
        for name, part in [] if isinstance(outer, StepModel) else parts:
            try:
                _program(inputs_of(part), plain)
            except Exception as why:
                raise ValueError(f"{name}, a {type(part).__name__}, cannot be exported: {_line(why)}") from error
        raise ValueError(f"this {type(outer).__name__} cannot be exported: {_line(error)}") from error


def _program(inputs: Inputs, plain: bool) -> ExportedProgram:
    with torch.no_grad():
        program = torch.export.export(inputs.module, inputs.args, dynamic_shapes=inputs.shapes)
        return decompose(program) if plain else program


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
