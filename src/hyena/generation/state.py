"""What layers remember while their input comes bit by bit.

Dimensions: B batch, C channels of a convolution, D channels (d_model), M heads, N order, T longest row, W inner width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

Map = Callable[[Tensor], Tensor]


class StateSize(NamedTuple):
    """Bytes of a state: ``rows`` grows with the batch, ``shared`` is the filters', the same for every state."""

    rows: int
    shared: int


class Filters(Protocol):
    """Long filters in a form to step through; shared by states, never changed."""

    @property
    def max_length(self) -> int:
        """T."""

    def allocate(self, batch: int) -> list[Tensor]:
        """The memory of each filter's convolution before the first input, batch first."""

    def extend(self, i: int, memory: Tensor, at: int, x: Tensor) -> Tensor:
        """The outputs ``(B, n, C)`` of convolution ``i`` for its next inputs ``x``; changes ``memory``."""

    def to(self, device: torch.device | str) -> Filters:
        """The same on another device."""


class State(abc.ABC):
    """Plain tensors, batch first, changed in place by steps; and what can be done with them between steps."""

    position: int
    """How many positions came so far, padding included."""

    @property
    @abc.abstractmethod
    def max_length(self) -> int:
        """T: more positions than this raise."""

    @abc.abstractmethod
    def rows(self) -> dict[str, Tensor]:
        """The tensors that belong to rows, each ``(B, …)``."""

    @abc.abstractmethod
    def _replaced(self, rows: Map, device: torch.device | str | None) -> Self:
        """A copy with ``rows`` of each row tensor; and what states share on ``device``, if that is to move."""

    @property
    def batch(self) -> int:
        """B."""
        return next(iter(self.rows().values())).size(0)

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _map(self, rows: Map, device: torch.device | str | None = None) -> Self:
        return self._replaced(rows, device)

    def clone(self) -> Self:
        """A state of its own: going on from one of the two leaves the other as it is."""
        return self._map(Tensor.clone)

    def detach(self) -> Self:
        """The same memory. A state never holds a graph; this is for code that detaches whatever it carries."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> Self:
        """The state on another device, with its filters."""
        return self._map(lambda t: t.to(device), device)

    def reorder(self, rows: Tensor) -> Self:
        """A state whose row ``b`` is this one's row ``rows[b]``: for beam search, or to drop or repeat rows.

        Args:
            rows: ``(B',)`` int64.
        """
        return self._map(lambda t: t.index_select(0, rows))

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors to save, without the filters, which come from the operator."""
        return {"position": torch.tensor(self.position), **self.rows()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` gave, of the same module and sizes.

        Raises:
            ValueError: keys or shapes that are not this state's.
        """
        mine = self.state_dict()
        shapes, given = ({k: tuple(t.shape) for k, t in d.items()} for d in (mine, saved))
        if shapes != given:
            raise ValueError(f"the saved state has {given}, this one {shapes}: make it for the same batch and sizes")
        self._set_position(int(saved["position"]))
        for key in mine.keys() - {"position"}:
            mine[key].copy_(saved[key])

    def _set_position(self, position: int) -> None:
        self.position = position

    def check_room(self, new: int, limit: str) -> None:
        """Raises ValueError if ``new`` more positions do not fit; ``limit`` says where the limit comes from."""
        if self.position + new > self.max_length:
            raise ValueError(
                f"{self.position} positions and {new} more do not fit a state made for {self.max_length} ({limit}); "
                "make it with a larger max_length, or build with a larger l_max"
            )


@dataclasses.dataclass
class HyenaState(State):
    """The state of one operator. :meth:`hyena.HyenaOperator.prefill` and ``step`` change it in place.

    Args:
        position: how many positions came so far, padding included.
        short: ``(B, taps - 1, (N+1) W)``, the last inputs of the short convolution.
        memory: for each long filter what its convolution keeps, ``(B, …)``.
        filters: the long filters when the state was made. Changing the operator's weights later does not change them.
    """

    position: int
    short: Tensor
    memory: list[Tensor]
    filters: Filters

    @property
    def max_length(self) -> int:
        """T."""
        return self.filters.max_length

    def rows(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        return {"short": self.short, **{f"memory.{i}": m for i, m in enumerate(self.memory)}}

    def _replaced(self, rows: Map, device: torch.device | str | None) -> HyenaState:
        filters = self.filters if device is None else self.filters.to(device)
        return HyenaState(self.position, rows(self.short), [rows(m) for m in self.memory], filters)


@dataclasses.dataclass
class AttentionState(State):
    """Keys and values of one :class:`hyena.models.Attention`.

    Args:
        position: how many positions came so far, padding included.
        keys, values: ``(B, M, T, D/M)``.
        keep: ``(B, T)`` bool, which of them are not padding.
    """

    position: int
    keys: Tensor
    values: Tensor
    keep: Tensor

    @property
    def max_length(self) -> int:
        """T."""
        return self.keys.size(2)

    def rows(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        return {"keys": self.keys, "values": self.values, "keep": self.keep}

    def _replaced(self, rows: Map, device: torch.device | str | None) -> AttentionState:
        return AttentionState(self.position, rows(self.keys), rows(self.values), rows(self.keep))


@dataclasses.dataclass
class ModelState(State):
    """The states of all layers of a model, and how many tokens each row has.

    Args:
        layers: one state for each block.
        tokens: ``(B,)`` int64, positions that are not padding.
    """

    layers: list[HyenaState | AttentionState]
    tokens: Tensor

    @property
    def position(self) -> int:  # type: ignore[override]  # a property here, because every layer counts
        """How many positions came so far, padding included."""
        return self.layers[0].position

    @property
    def max_length(self) -> int:
        """T."""
        return self.layers[0].max_length

    def rows(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        each = {f"layers.{i}.{k}": t for i, layer in enumerate(self.layers) for k, t in layer.rows().items()}
        return {"tokens": self.tokens, **each}

    def _replaced(self, rows: Map, device: torch.device | str | None) -> ModelState:
        return ModelState([layer._replaced(rows, device) for layer in self.layers], rows(self.tokens))

    def _set_position(self, position: int) -> None:
        for layer in self.layers:
            layer.position = position
