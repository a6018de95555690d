"""What the mixers around a recurrence or blocks share: packed rows, padding, dropout and states in one place.

Dimensions: B batch, L length, D channels (d_model), I inner width, T positions of all packed rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.conv.long import LongConv
from hyena.mixers._arguments import check_counts, check_flags
from hyena.mixers.base import Mixer
from hyena.mixers.state import State


class RowMixer(Mixer):
    """A mixer that writes ``mix`` for the rows of a batch; this class makes rows of everything else.

    Inputs are checked, padding is zeroed, packed rows are taken apart into padded batches (on the CPU one for each
    power of two of the length, so that padding at most doubles the work), a state is checked and counted on. Mixed
    values are dropped out and go through ``out_proj``, which the subclass makes. States are made by :meth:`new_state`,
    where nothing stands against steps.

    Args:
        d_model: D.
        l_max: longest row, None for any.
        causal: no output sees a later input.
        dropout: of the mixed values before the output projection.
        bias: whether the subclass's projections have a bias.

    Attributes:
        state_class: of its state.
        packs: whether :meth:`mix` takes ``cu_seqlens`` itself.
        compacts: whether places in the row matter, so that kept positions are moved together before :meth:`mix` and
            back after it.
    """

    state_class: ClassVar[type[State]]
    packs: ClassVar[bool] = False
    compacts: ClassVar[bool] = False
    in_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, d_model: int, l_max: int | None, *, causal: bool, dropout: float, bias: bool) -> None:
        super().__init__()
        check_counts(d_model=d_model)
        if l_max is not None:
            check_counts(l_max=l_max)
        check_flags(causal=causal, bias=bias)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")
        self.d_model, self.l_max, self.causal = d_model, l_max, causal
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, I)`` of rows ``(B, L, D)``.

        Args:
            u: zero where a position is not kept.
            mask: ``(B, L)`` bool; in a class that ``compacts`` the kept positions come first.
            cu_seqlens: None, unless the class ``packs``.
            longest: L, or the longest packed row.
            state: what came before, to be changed in place all but its position; None without.
        """

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in self.children():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
    ) -> Tensor:
        """Mixes along the sequence; see :meth:`hyena.mixers.Mixer.forward`."""
        if state is not None:
            with torch.no_grad():
                self._check_state(u, mask, cu_seqlens, max_seqlen, state)
                u = _kept(u, mask)
                y = self._finish(u, self._rows(u, mask, None, u.size(1), state), self.out_proj)
            state.position += u.size(1)
            return y
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        longest = self.check_rows(u, cu_seqlens, max_seqlen)
        ops.check_row(u, mask, cu_seqlens)
        u = _kept(u, mask)
        if cu_seqlens is None or self.packs:
            y = self._rows(u, mask, cu_seqlens, longest, None)
        else:
            y = self._packed(u, mask, cu_seqlens, longest)
        y = self._finish(u, y, lambda y: ops.project(y, self.out_proj))
        return y[0] if flat else y

    def _finish(self, u: Tensor, y: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's output, of mixed values; ``project`` is ``out_proj``, called or by an op that is faster."""
        return project(self.dropout(y.to(u.dtype)))

    def _check_state(
        self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None, state: Any
    ) -> None:
        if not isinstance(state, self.state_class):
            raise ValueError(
                f"this {type(self).__name__} takes a {self.state_class.__name__} from its init_state, got a "
                f"{type(state).__name__}"
            )
        self.check_next(u, state, mask, cu_seqlens, max_seqlen)
        if self.training and self.dropout.p > 0:
            raise ValueError(
                f"this {type(self).__name__} is in training mode and drops values (dropout={self.dropout.p}); call "
                "eval() before stepping"
            )

    def _rows(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """:meth:`mix`, with the padding moved to the end where places matter."""
        if mask is None or not self.compacts:
            return self.mix(u, mask, cu_seqlens, longest, state)
        order = together(mask)
        y = self.mix(take(u, order), mask.gather(1, order), cu_seqlens, longest, state)
        return take(y, order.argsort(dim=1))

    def _project(self, u: Tensor, state: Any) -> Tensor:
        """``in_proj``, of whole rows in the memory order in which a convolution is fastest."""
        return self.in_proj(u) if state is not None else ops.project(u, self.in_proj, channel_major=None)

    def _packed(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor, longest: int) -> Tensor:
        """:meth:`_rows` of packed rows, ``(1, T, I)``."""

        def mix(keep: Tensor, u: Tensor, mask: Tensor | None) -> Tensor:
            return self._rows(_kept(u, keep), keep if mask is None else keep & mask, None, u.size(1), None)

        if in_groups(u):
            bounds = ops.row_bounds(cu_seqlens, u.size(1), longest)
            return ops.map_rows(mix, (u, mask), bounds)[0] if bounds else self._rows(u, mask, None, longest, None)
        index, keep, back = unpacked(cu_seqlens, u.size(1), longest)
        return mix(keep, u[0][index], None if mask is None else mask[0][index])[back][None]

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def init_state(self, batch: int, max_length: int | None = None) -> State:
        """The state before the first position; see :meth:`hyena.mixers.Mixer.init_state`.

        Of what is kept for each row, only tiles of long convolutions and caches of keys grow with ``max_length``.
        """
        why = self._why_no_steps()
        if why is not None:
            raise ValueError(f"{why}, so this {type(self).__name__} cannot be stepped")
        return self.new_state(batch, self.room(batch, max_length))

    def _why_no_steps(self) -> str | None:
        """Why outputs are not known until the whole input is; None where they are."""
        if not self.causal:
            return "causal=False needs the whole input at once"
        reasons = (part.why_not_online() for part in self.children() if isinstance(part, LongConv))
        return next((why for why in reasons if why is not None), None)

    @abstractmethod
    def new_state(self, batch: int, length: int) -> State:
        """The state of so many rows before the first of up to ``length`` positions."""


def unpacked(cu_seqlens: Tensor, length: int, longest: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """How packed rows become padded ones of ``longest`` positions, and how their outputs are packed again.

    Returns:
        ``index`` and ``keep`` ``(rows, longest)``: ``x[0][index]`` are the padded rows, of which ``keep`` marks what
        belongs to them. And ``back``: ``y[back]`` are their outputs packed, without a batch.
    """
    start, size = cu_seqlens[:-1], cu_seqlens.diff()
    place = torch.arange(longest, device=cu_seqlens.device)
    keep = place < size[:, None]
    index = torch.where(keep, start[:, None] + place, 0)
    at = torch.arange(length, device=cu_seqlens.device)
    row = torch.searchsorted(cu_seqlens.to(at.dtype), at, right=True) - 1
    return index, keep, (row, at - start[row])


def in_groups(u: Tensor) -> bool:
    """Whether packed rows are padded in groups: that looks at their lengths, for which a device would be waited."""
    return u.device.type == "cpu" and not torch.compiler.is_compiling()


def _kept(u: Tensor, mask: Tensor | None) -> Tensor:
    # A NaN in the padding would reach the rest as 0 x NaN.
    return u if mask is None else torch.where(mask[..., None], u, 0.0)


def together(mask: Tensor) -> Tensor:
    """Indices ``(B, L)`` that move the kept positions of each row to its start, in their order."""
    return torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices


def take(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b, i]]`` for ``(B, L, …)`` and ``(B, n)``."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))
