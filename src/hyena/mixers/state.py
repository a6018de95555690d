"""The decoding state that a mixer keeps between calls: what it remembers of the positions that came before.

Dimensions: B batch, T room of a state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from hyena.conv.online import Online

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
