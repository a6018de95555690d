"""The interface of a mixer, and the decoding state that it keeps between calls.

Dimensions: B batch, L length, D channels (d_model), T room of a state, n new positions.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hyena import ops
from hyena.conv.online import Online
from hyena.mixers._arguments import check_counts
from hyena.mixers.deferred import InitializedByTransformers

Map = Callable[[Tensor], Tensor]


class StateSize(NamedTuple):
    """Bytes of a decoding state: ``rows`` grows with the batch, ``shared`` is the filters' alone."""

    rows: int
    shared: int


@dataclasses.dataclass
class State:
    """A mixer's memory of the positions that came before; subclasses are dataclasses that add fields.

    A field that is a tensor, or a list of tensors, has a row for each row of the batch. A field that is an
    :class:`hyena.conv.Online` is shared by all copies of the state. A list of states nests (a model's layers). Steps
    change a state in place.

    Args:
        position: how many positions came so far, padding included.
        max_length: T: more positions than this raise.
    """

    position: int
    max_length: int

    def rows(self) -> dict[str, Tensor]:
        """Every tensor that belongs to rows, each ``(B, …)``, by its name."""
        found: dict[str, Tensor] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for name, part in _parts(field.name, value):
                if isinstance(part, Tensor):
                    found[name] = part
                elif isinstance(part, State):
                    found |= {f"{name}.{inner}": t for inner, t in part.rows().items()}
        return found

    def shared(self) -> list[Online]:
        """What copies of this state have in common."""
        found: list[Online] = []
        for field in dataclasses.fields(self):
            for _, part in _parts(field.name, getattr(self, field.name)):
                if isinstance(part, Online):
                    found.append(part)
                elif isinstance(part, State):
                    found += part.shared()
        return found

    @property
    def batch(self) -> int:
        """B."""
        for field in dataclasses.fields(self):
            for _, part in _parts(field.name, getattr(self, field.name)):
                if isinstance(part, Tensor):
                    return part.size(0)
                if isinstance(part, State):
                    return part.batch
        raise ValueError(f"a {type(self).__name__} without tensors has no rows")

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _map(self, rows: Map, shared: Callable[[Online], Online] = lambda online: online) -> Self:
        def convert(part: Any) -> Any:
            if isinstance(part, Tensor):
                return rows(part)
            if isinstance(part, Online):
                return shared(part)
            if isinstance(part, State):
                return part._map(rows, shared)
            if isinstance(part, list):
                return [convert(entry) for entry in part]
            return part

        changes = {field.name: convert(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **changes)

    def clone(self) -> Self:
        """A state of its own: going on from one of the two leaves the other as it is."""
        return self._map(Tensor.clone)

    def detach(self) -> Self:
        """The same memory. A state never holds a graph; this is for code that detaches whatever it carries."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> Self:
        """The state on another device, with its filters."""
        return self._map(lambda t: t.to(device), lambda online: online.to(device))

    def reorder(self, rows: Tensor) -> Self:
        """A state whose row ``b`` is this one's row ``rows[b]``: for beam search, or to drop or repeat rows.

        Args:
            rows: ``(B',)`` int32 or int64.

        Raises:
            ValueError: rows that there are not; on a GPU they stop its kernel instead.
        """
        if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"rows must be (B',) int32 or int64, got {rows.dtype} of shape {tuple(rows.shape)}")
        # Looked at where that waits for no device.
        if rows.device.type == "cpu" and rows.numel() > 0 and self.rows() and not torch.compiler.is_compiling():
            least, most = int(rows.min()), int(rows.max())
            if least < 0 or most >= self.batch:
                raise ValueError(f"rows must be 0 to {self.batch - 1}, got {least} to {most}")
        return self._map(lambda t: t.index_select(0, rows))

    def size(self) -> StateSize:
        """Bytes of its tensors."""
        rows = sum(t.numel() * t.element_size() for t in self.rows().values())
        shared = sum(t.numel() * t.element_size() for online in self.shared() for t in online.tensors())
        return StateSize(rows, shared)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors to save, without the filters, which come from the mixer."""
        return {"position": torch.tensor(self.position), **self.rows()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` gave, of the same module and sizes.

        Raises:
            ValueError: names, shapes, dtypes or a position that are not this state's.
        """
        mine = self.state_dict()
        own, given = ({k: (tuple(t.shape), t.dtype) for k, t in d.items() if k != "position"} for d in (mine, saved))
        if own != given:
            raise ValueError(
                f"the saved state has {given}, this one {own}: make it for the same module, batch and sizes"
            )
        position = saved.get("position")
        if position is None or position.numel() != 1 or position.is_floating_point() or position.is_complex():
            raise ValueError(f"the saved state's position must be one integer, got {position}")
        if not 0 <= int(position) <= self.max_length:
            raise ValueError(f"the saved state's position must be 0 to {self.max_length}, got {int(position)}")
        self._set_position(int(position))
        for name in own:
            mine[name].copy_(saved[name])

    def _set_position(self, position: int) -> None:
        self.position = position
        for field in dataclasses.fields(self):
            for _, part in _parts(field.name, getattr(self, field.name)):
                if isinstance(part, State):
                    part._set_position(position)

    def check_room(self, new: int, limit: str) -> None:
        """Raises ValueError if ``new`` more positions do not fit; ``limit`` says where the limit comes from."""
        if self.position + new > self.max_length:
            raise ValueError(
                f"{self.position} positions and {new} more do not fit a state made for {self.max_length} ({limit}); "
                "make it with a larger max_length, or build with a larger l_max"
            )


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """A field's value, or the entries of a list, each with a name."""
    return [(f"{name}.{i}", entry) for i, entry in enumerate(value)] if isinstance(value, list) else [(name, value)]


def size_of(make: Callable[[], State]) -> StateSize:
    """Bytes of the state that ``make`` makes, without allocating them."""
    # Imported here because it costs a third of a second, and only this needs it.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return make().size()


class Mixer(InitializedByTransformers, nn.Module, ABC):
    """Base of layers that mix along the sequence, ``(B, L, D) -> (B, L, D)``; what models know of them.

    A subclass sets the attributes and writes :meth:`forward`; to decode it also writes :meth:`init_state` and takes a
    ``state`` in ``forward``. Everything else follows. ``docs/add-your-own.md`` has an example.

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
            u: ``(B, L, D)``; with a ``state`` the next positions of its rows.
            mask: ``(B, L)`` bool, True = keep. Positions that are not kept take part in nothing.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one, as in flash-attention's varlen functions; then
                ``B = 1``, and no row sees another.
            max_seqlen: longest packed row.
            state: from :meth:`init_state`, what came before; changed in place, without gradients.

        Returns:
            ``(B, L, D)``.
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
