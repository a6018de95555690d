"""What a Hyena layer remembers while its input comes bit by bit.

Dimensions: B batch, C channels of a convolution, N order, T longest row, W inner width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Filters(Protocol):
    """Long filters in a form to step through; shared by states, never changed."""

    @property
    def max_length(self) -> int:
        """T."""

    def allocate(self, batch: int) -> list[Tensor]:
        """The memory of each filter's convolution before the first input, batch first."""

    def extend(self, i: int, memory: Tensor, at: int, x: Tensor) -> Tensor:
        """The outputs ``(B, n, C)`` of convolution ``i`` for its next inputs ``x``; changes ``memory``."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Filters:
        """Every tensor replaced by ``fn`` of it."""


class StateSize(NamedTuple):
    """Bytes of a state: ``rows`` grows with the batch, ``shared`` is the filters', the same for every state."""

    rows: int
    shared: int


@dataclasses.dataclass
class HyenaState:
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
    def batch(self) -> int:
        """B."""
        return self.short.size(0)

    @property
    def max_length(self) -> int:
        """T: more positions than this raise."""
        return self.filters.max_length

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _map(self, fn: Callable[[Tensor], Tensor], filters: Filters) -> HyenaState:
        return HyenaState(self.position, fn(self.short), [fn(m) for m in self.memory], filters)

    def clone(self) -> HyenaState:
        """A state of its own: going on from one of the two leaves the other as it is."""
        return self._map(Tensor.clone, self.filters)

    def detach(self) -> HyenaState:
        """The same memory. A state never holds a graph; this is for code that detaches whatever it carries."""
        return self._map(Tensor.detach, self.filters)

    def to(self, device: torch.device | str) -> HyenaState:
        """The state on another device, with its filters."""

        def move(t: Tensor) -> Tensor:
            return t.to(device)

        return self._map(move, self.filters.map(move))

    def reorder(self, rows: Tensor) -> HyenaState:
        """A state whose row ``b`` is this one's row ``rows[b]``: for beam search, or to drop or repeat rows.

        Args:
            rows: ``(B',)`` int64.
        """
        return self._map(lambda t: t.index_select(0, rows), self.filters)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors to save, without the filters, which come from the operator."""
        memory = {f"memory.{i}": m for i, m in enumerate(self.memory)}
        return {"position": torch.tensor(self.position), "short": self.short, **memory}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` gave, of the same operator and sizes.

        Raises:
            ValueError: keys or shapes that are not this state's.
        """
        mine = self.state_dict()
        shapes = {k: tuple(t.shape) for k, t in mine.items()}
        given = {k: tuple(t.shape) for k, t in saved.items()}
        if shapes != given:
            raise ValueError(
                f"the saved state has {given}, and this one {shapes}: make it for the same batch and sizes"
            )
        self.position = int(saved["position"])
        for key in mine.keys() - {"position"}:
            mine[key].copy_(saved[key])
