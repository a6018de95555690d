"""A model that decodes by steps as a module of plain tensors: state in, state out.

Dimensions: B batch, C channels of a convolution, D channels (d_model), T room of a state, V vocabulary, m modes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena.conv import LongConv, Online, Recurrence, Tiles, Window
from hyena.mixers import Mixer, State
from hyena.models.decoder import Decoder

# Positions at which a mixer's step is compared with its step at position 0.
_COMPARED = 128


@dataclasses.dataclass(frozen=True)
class RealRecurrence(Online):
    """:class:`hyena.conv.Recurrence` of complex modes in real numbers, one position at a time.

    Args:
        max_length: longest row; memory does not depend on it.
        pole, residue: for each filter ``(C, m, 2)``.
        first: for each filter ``(C,)``, lag 0 with the weight of the input itself.
    """

    pole: tuple[Tensor, ...]
    residue: tuple[Tensor, ...]
    first: tuple[Tensor, ...]

    @classmethod
    def of(cls, online: Recurrence) -> RealRecurrence:
        """The same filters."""
        pole, residue = (tuple(map(torch.view_as_real, each)) for each in (online.pole, online.residue))
        return cls(online.max_length, pole, residue, online.first)

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter its states ``(B, C, m, 2)``."""
        return [pole.new_zeros(batch, *pole.shape) for pole in self.pole]

    def to(self, device: torch.device | str) -> RealRecurrence:
        """The same on another device."""
        fields = (tuple(t.to(device) for t in field) for field in (self.pole, self.residue, self.first))
        return RealRecurrence(self.max_length, *fields)

    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)``, one after the other; see :meth:`hyena.conv.Online.extend`."""
        pole, residue, first = self.pole[i], self.residue[i], self.first[i]
        outputs = []
        for now in x.unbind(1):
            real, imag = memory.unbind(-1)
            y = (real * residue[..., 0] - imag * residue[..., 1]).sum(-1) + first * now
            moved = real * pole[..., 0] - imag * pole[..., 1] + now[..., None]
            memory.copy_(torch.stack([moved, real * pole[..., 1] + imag * pole[..., 0]], dim=-1))
            outputs.append(y)
        return torch.stack(outputs, dim=1)


def _portable(conv: LongConv, channels: Sequence[int], max_length: int) -> Online:
    """The online form of a convolution whose step is the same at every position, in real numbers."""
    found = LongConv.online(conv, channels, max_length)
    if isinstance(found, Tiles):
        return Window.of(found.taps, list(channels), found.bias, max_length)
    if isinstance(found, Recurrence) and any(pole.is_complex() for pole in found.pole):
        return RealRecurrence.of(found)
    return found


def _with_tensors(online: Online, tensors: Iterator[Tensor]) -> Online:
    """The same with the next of these in the place of each of its tensors."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(online):
        value = getattr(online, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = next(tensors)
        elif isinstance(value, tuple):
            changes[field.name] = tuple(next(tensors) for _ in value)
    return dataclasses.replace(online, **changes)


class StepModel(nn.Module):
    """One step of a model or mixer, ``(tokens, *state) -> (logits, *state)``, all plain tensors.

    The state's tensors have the same shapes at every step. Filters in modal form (:func:`hyena.distill`) and of few
    taps keep what they keep in :meth:`hyena.models.Decoder.init_state`; any other is stepped by a dot product with all
    its taps, whose state is the last ``T - 1`` inputs: exact, at a cost in proportion to ``T``.

    Attributes:
        model: a copy, in eval mode and without gradients.
        batch: B of the state that :meth:`initial_state` makes; others work too.
        max_length: T. More steps raise (an index out of range, in whatever runs them).
        state_names: a name for each tensor of the state.
    """

    model: Any
    room: Tensor

    def __init__(self, model: Decoder | Mixer, batch: int, max_length: int | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)  # a program of it has no backward pass
        for part in self.model.modules():
            if isinstance(part, LongConv):
                part.online = functools.partial(_portable, part)  # type: ignore[method-assign]  # of this copy alone
        _check_steps(self.model, max_length)
        self._begin: State = self.model.init_state(batch, max_length)
        self.batch, self.max_length = batch, self._begin.max_length
        self.state_names = ("state.position", *(f"state.{name}" for name in self._begin.rows()))
        # As buffers, so that they move with the module and are no constants of a trace.
        for i, t in enumerate(t for online in self._begin.shared() for t in online.tensors()):
            self.register_buffer(f"filter_{i}", t, persistent=False)
        # An index beyond it is an error in every runtime, where a wrong answer would be none.
        self.register_buffer("room", torch.zeros(self.max_length, dtype=torch.uint8), persistent=False)

    def initial_state(self, batch: int | None = None) -> tuple[Tensor, ...]:
        """The state before the first position: ``state.position``, an int64, and the rows' tensors.

        Args:
            batch: B, if it is another than the module was made with.
        """
        begin = self._begin if batch is None else self.model.init_state(batch, self.max_length)
        position = torch.zeros(1, dtype=torch.int64, device=self.room.device)
        return (position, *(t.clone() for t in begin.rows().values()))

    @torch.no_grad()
    def prefill(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the model has read after a prompt: outputs of its last position, and the state.

        Args:
            x: tokens ``(B, n)``, of a mixer ``(B, n, D)``; n at most T.
        """
        state = self.model.init_state(x.size(0), self.max_length)
        y, state = self.model.prefill(x, state)
        position = torch.full((1,), x.size(1), dtype=torch.int64, device=self.room.device)
        return (y[:, -1], position, *state.rows().values())

    def forward(self, x: Tensor, position: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """One position.

        Args:
            x: the next token of each row ``(B,)``, of a mixer its next input ``(B, D)``.
            position: ``(1,)`` int64, how many came before.
            rows: the rest of the state, see ``state_names``.

        Returns:
            Logits ``(B, V)``, of a mixer ``(B, D)``; then the next state, in the order of the old one.

        Raises:
            ValueError: another number of tensors than the state has.
            IndexError: more than T steps.
        """
        if len(rows) + 1 != len(self.state_names):
            raise ValueError(
                f"the state has {len(self.state_names)} tensors ({', '.join(self.state_names)}), got {len(rows) + 1}"
            )
        given = iter(rows)
        filters = (t for name, t in self.named_buffers(recurse=False) if name.startswith("filter_"))
        state = self._begin._map(lambda _: next(given).clone(), lambda online: _with_tensors(online, filters))
        y = self.model(x[:, None], state=state)[:, 0]
        y = y + self.room.index_select(0, position).to(y.dtype)
        return (y, position + 1, *state.rows().values())


def step_model(model: Decoder | Mixer, batch: int = 1, max_length: int | None = None) -> StepModel:
    """One step of decoding as a module of plain tensors, for ``torch.export``, :func:`hyena.export.to_onnx` and others.

    Args:
        model: a language model or a mixer that can be stepped, whose step does not depend on the position: Hyena's
            operator and every other mixer of long convolutions. It is copied.
        batch: B of the first state; the exported step takes any.
        max_length: T, how many positions may come, ``l_max`` if missing.

    Returns:
        The module; its ``initial_state()`` is what goes in first.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: it cannot be stepped, or its state is not of one shape; the mixer is named.
    """
    if not isinstance(model, (Decoder, Mixer)):
        raise TypeError(f"step_model takes a hyena.models.Decoder or a hyena.mixers.Mixer, got {type(model).__name__}")
    return StepModel(model, batch, max_length)


def _check_steps(model: Any, max_length: int | None) -> None:
    if isinstance(model, Mixer):
        _check_mixer("this mixer", model, max_length)
        return
    model.check_can_decode(needs_logits=False)
    for i, block in enumerate(model.blocks):
        _check_mixer(f"blocks.{i}.mixer", block.mixer, max_length)


@torch.no_grad()
def _check_mixer(name: str, mixer: Any, max_length: int | None) -> None:
    """Whether a mixer's step is the same at every position, and its state real.

    Raises:
        ValueError: it is not, or the mixer has no steps.
    """
    kind = type(mixer).__name__
    if not isinstance(mixer, Mixer):
        raise ValueError(f"{name} is a {kind}, which is no hyena.mixers.Mixer and has no state")
    try:
        state = mixer.init_state(1, max_length)
    except ValueError as e:
        raise ValueError(f"{name} ({kind}) cannot be stepped: {e}") from e
    rows = state.rows()
    odd = [key for key, t in rows.items() if t.is_complex()]
    if odd:
        raise ValueError(f"{name} ({kind}) has a complex state ({', '.join(odd)}), which few runtimes take")
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(*(shape or like.shape), generator=generator).to(like)

    for t in rows.values():
        if t.is_floating_point():
            t.copy_(random(t))
    weight = next(mixer.parameters())
    u = random(weight, 1, mixer.d_model)
    want: Tensor | None = None
    room = state.max_length
    for position in {*range(min(room, _COMPARED)), room - 1}:
        now = state.clone()
        now._set_position(position)
        y, now = mixer.step(u, now)
        found = torch.cat([t.flatten().to(y) for t in (y, *now.rows().values())])
        if want is None:
            want = found
        if not torch.equal(found, want):
            raise ValueError(
                f"the step of {name} ({kind}) is another one at position {position} than at 0: only mixers whose steps "
                "are all alike have a step model (of long convolutions; not attention, whose history grows)"
            )
