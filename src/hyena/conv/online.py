"""The online form of a long convolution: outputs for inputs that arrive in pieces of any length.

Dimensions: B batch, C channels of a convolution, n new positions.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Online(ABC):
    """The filters of one :class:`hyena.conv.LongConv`, prepared for inputs that arrive in pieces.

    Decoding states share it, and nothing changes it. Subclasses are frozen dataclasses whose other fields are tensors,
    or tuples of them.

    Args:
        max_length: positions of the longest row.
    """

    max_length: int

    @abstractmethod
    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter the memory of its convolution before the first input, ``(B, …)``."""

    @abstractmethod
    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs of convolution ``i``.

        Args:
            i: which filter.
            memory: from :meth:`allocate`; changed in place.
            position: how many inputs came before.
            x: ``(B, n, C)``, the next inputs, in the dtype of the memory.

        Returns:
            ``(B, n, C)``.
        """

    def extend_gated(
        self, i: int, memory: Tensor, position: int, x: Tensor, pre: Tensor | None, post: Tensor | None
    ) -> Tensor:
        """``post * extend(…, pre * x)``, with gates ``(B, n, C)`` or None."""
        y = self.extend(i, memory, position, x if pre is None else pre * x)
        return y if post is None else post * y

    def step_short_and_gated(
        self, z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, memory: Tensor
    ) -> Tensor | None:
        """All that happens to one position between the projections of an operator of order 2; None: not in one call.

        Args:
            z: ``(B, 1, 3 C)``, two gates and a value.
            weight, bias: of the short convolution, in the dtype of ``z``.
            last: the short convolution's memory.
            memory: that of convolution 0; both are changed in place.
        """
        return None

    @abstractmethod
    def to(self, device: torch.device | str) -> Online:
        """The same on another device."""

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor it holds."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Tensor):
                    yield part
