"""The interface of a mixer.

Dimensions: B batch, L length, D channels (d_model), T room of a state, n new positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.mixers._arguments import check_counts
from hyena.mixers.deferred import InitializedByTransformers
from hyena.mixers.state import State, StateSize, size_of


class Mixer(InitializedByTransformers, nn.Module, ABC):
    """Base of layers that mix along the sequence, ``(B, L, D) -> (B, L, D)``; what models know of them.

    A subclass sets the attributes and writes :meth:`forward`; to decode it also writes :meth:`init_state` and takes a
    ``state`` in ``forward``. Its :meth:`forward` calls :meth:`check_rows` or :meth:`check_next`. :class:`RowMixer` does
    that, pads, packs and counts for subclasses that mix the rows of a batch; ``docs/add-your-own.md`` has an example.

    Attributes:
        d_model: D.
        l_max: longest row, None for any.
        causal: whether no output sees a later input.
        needs_positions: whether it does not know the order of its inputs, so that a model adds learned positions.
        takes_grid: whether its rows are the patches of an image, of whose grid ``forward`` takes the size,
            ``grid=(rows, columns)``.
        no_decay: names of its own parameters that weight decay leaves alone.
    """

    d_model: int
    l_max: int | None
    causal: bool
    needs_positions: bool = False
    takes_grid: bool = False
    no_decay: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
    ) -> Tensor:
        """Mixes along the sequence.

        Args:
            u: ``(B, L, D)``; packed rows also ``(T, D)``; with a ``state`` the next positions of its rows.
            mask: ``(B, L)`` bool, True = keep. Positions that are not kept take part in nothing.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one, as in flash-attention's varlen functions; then
                ``B = 1``, and no row sees another.
            max_seqlen: longest packed row.
            state: from :meth:`init_state`, what came before; changed in place, without gradients.

        Returns:
            In the shape of ``u``.
        """

    def init_state(self, batch: int, max_length: int | None = None) -> State:
        """The state before the first position.

        Args:
            batch: B.
            max_length: positions that may come, at most and if missing ``l_max``.

        Raises:
            ValueError: this mixer's outputs are not known until the whole input is, or numbers out of range.
        """
        raise ValueError(f"{type(self).__name__} needs the whole input at once: it has no init_state")

    def room(self, batch: int, max_length: int | None) -> int:
        """T of a new state: ``max_length``, or ``l_max`` if that is None.

        Raises:
            TypeError: arguments that are no integers.
            ValueError: numbers out of range, with what would fit.
        """
        check_counts(batch=batch)
        length = self.l_max if max_length is None else max_length
        if isinstance(length, bool) or not isinstance(length, (int, torch.SymInt, type(None))):
            raise TypeError(f"max_length must be an integer, got {length!r}")
        if length is None:
            raise ValueError(f"this {type(self).__name__} has no l_max: pass max_length")
        if length < 1 or (self.l_max is not None and length > self.l_max):
            limit = "at least 1" if self.l_max is None else f"1 to this {type(self).__name__}'s l_max={self.l_max}"
            raise ValueError(f"max_length must be {limit}, got {length}")
        return length

    @torch.no_grad()
    def prefill(self, u: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """The outputs of the next positions, exactly those of :meth:`forward` on everything that came.

        Any number of positions, also after steps; no gradient passes through. The module is called, so hooks run.

        Args:
            u: ``(B, n, D)``, the next positions.
            state: what came before; changed in place.
            mask: ``(B, n)`` bool, True = keep. Rows of different lengths are padded on the left, if they are to go on.

        Returns:
            ``(B, n, D)``, and the state.

        Raises:
            ValueError: more positions than the state was made for, or shapes that do not fit.
        """
        return self(u, mask=mask, state=state), state

    def step(self, u: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """:meth:`prefill` of one position: ``u`` ``(B, D)``, ``mask`` ``(B,)``, output ``(B, D)``."""
        if u.dim() != 2:
            raise ValueError(
                f"a step takes one position, (B, {self.d_model}), got {tuple(u.shape)}; prefill takes several"
            )
        y, state = self.prefill(u[:, None], state, None if mask is None else mask[:, None])
        return y[:, 0], state

    def state_size(self, batch: int, max_length: int | None = None) -> StateSize:
        """Bytes that ``init_state(batch, max_length)`` allocates, found without allocating them.

        Returns:
            ``rows``, which grows with the batch, and ``shared``, the filters', which states of a mixer in eval mode
            have in common.

        Raises:
            ValueError: as :meth:`init_state`.
        """
        return size_of(lambda: self.init_state(batch, max_length))

    def to_matrix(self, u: Tensor, mask: Tensor | None = None, channels: slice = slice(None)) -> Tensor:
        """The matrix ``(B, C, L, L)`` that the mixer applies to the value of each of its ``channels``.

        Raises:
            ValueError: this mixer does not act linearly on a value.
        """
        raise ValueError(f"{type(self).__name__} does not act linearly on a value, so it has no such matrix")

    @property
    def units(self) -> int:
        """How many parts of its channels meet in its projections alone: heads, or channels. 1: it is not said.

        Between ``in_proj`` and ``out_proj`` such parts can be mixed by different processes.
        """
        return 1

    @property
    def parts(self) -> int:
        """P, how many times the channels that are mixed are in what ``in_proj`` gives: query, key and value, say."""
        return 3

    def core(self, units: range) -> Mixer:
        """The mixing of some of the :attr:`units`, without projections, by this mixer's own weights.

        Args:
            units: which, of step 1.

        Returns:
            A mixer from their channels of what ``in_proj`` gives, ``(B, L, P c)`` (``c`` channels of each of its P
            parts), to theirs of what ``out_proj`` takes, ``(B, L, c)``. Gradients reach this mixer's weights.

        Raises:
            ValueError: it has no such units, or parts that do more than their class says (hooks, parametrisations).
        """
        raise ValueError(
            f"the channels of a {type(self).__name__} meet between its projections: it cannot be spread over processes"
        )

    def _core(self, width: int, tensors: dict[str, Tensor] | None = None) -> Any:
        """A copy that takes ``width`` channels and has no projections, with these tensors in place of its own."""
        copy: Any = ops.with_tensors(self, tensors or {})
        copy.in_proj, copy.out_proj, copy.d_model = nn.Identity(), nn.Identity(), width
        return copy

    def check_rows(self, u: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> int:
        """The longest row of an input of :meth:`forward`, which waits for the device if ``max_seqlen`` is missing.

        Raises:
            TypeError: arguments of another type.
            ValueError: shapes that do not fit, no positions, ``max_seqlen`` without ``cu_seqlens``, or rows longer than
                ``l_max``.
        """
        _check_floating(u)
        if u.dim() != 3 or u.size(2) != self.d_model:
            raise ValueError(f"expected an input of shape (B, L, {self.d_model}), got {tuple(u.shape)}")
        if u.size(1) == 0:
            raise ValueError(f"a row needs at least one position, got length=0: an input of shape {tuple(u.shape)}")
        ops.check_cu_seqlens(cu_seqlens, u)
        longest = ops.longest_row(u, cu_seqlens, max_seqlen)
        if cu_seqlens is not None and max_seqlen is None:
            longest = min(longest, max(int(cu_seqlens.diff().max()), 1))
        ops.check_bounds(cu_seqlens, u.size(1), longest)
        if self.l_max is not None and longest > self.l_max:
            raise ValueError(
                f"a row of {longest} positions is longer than this {type(self).__name__}'s l_max={self.l_max}"
                + self._longer_rows(longest)
            )
        return longest

    def _longer_rows(self, longest: int) -> str:
        """What would work for a row that is too long, for the end of an error."""
        return f"; build it with l_max={longest} or more"

    def check_next(
        self,
        u: Tensor,
        state: State,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None = None,
    ) -> None:
        """Checks the arguments of a :meth:`forward` with a state.

        Raises:
            ValueError: shapes that do not fit, packed rows, or more positions than there is room for.
        """
        if cu_seqlens is not None or max_seqlen is not None:
            raise ValueError(
                "packed rows cannot be continued: a state has one row for each row of the batch, so it takes no "
                f"cu_seqlens and no max_seqlen (got {max_seqlen})"
            )
        _check_floating(u)
        if u.dim() != 3 or u.size(0) != state.batch or u.size(1) < 1 or u.size(2) != self.d_model:
            raise ValueError(
                f"expected new positions of shape ({state.batch}, n, {self.d_model}), n at least 1, got "
                f"{tuple(u.shape)}"
            )
        if mask is not None and (mask.shape != u.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be a bool tensor of shape {tuple(u.shape[:2])}, True where a position is kept; got "
                f"{mask.dtype} of shape {tuple(mask.shape)}"
            )
        if state.position + u.size(1) > state.max_length:  # so that a step that fits forms no message
            state.check_room(u.size(1), f"this {type(self).__name__}'s l_max={self.l_max}")


def _check_floating(u: Tensor) -> None:
    if not u.is_floating_point():
        raise ValueError(f"expected a floating point input, got {u.dtype} of shape {tuple(u.shape)}")
