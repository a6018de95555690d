"""The interface of a mixer over grids.

Dimensions: B batch, D channels (d_model), A axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hyena.mixers.deferred import InitializedByTransformers

_OF_ROWS = ("cu_seqlens", "max_seqlen", "state")


class MixerND(InitializedByTransformers, nn.Module, ABC):
    """Base of layers that mix over a grid of one to three axes, ``(B, *space, D) -> (B, *space, D)``.

    They see the whole grid at once: they are not causal, cannot be stepped and take no packed rows, which are what a
    :class:`hyena.mixers.Mixer` along a sequence has beside this.

    Attributes:
        d_model: D.
        size: positions along each axis of the largest grid.
        causal: False.
        no_decay: names of its own parameters that weight decay leaves alone.
    """

    d_model: int
    size: tuple[int, ...]
    causal: bool = False
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
        """Mixes over the grid.

        Args:
            u: ``(B, *space, D)``, along each axis of 1 to ``size`` positions.
            mask: ``(B, *space)`` bool, True = keep. Positions that are not kept take part in nothing, wherever they
                are.
            cu_seqlens, max_seqlen, state: of mixers along a sequence; refused.

        Returns:
            ``(B, *space, D)``.

        Raises:
            ValueError: grids with other axes or larger than ``size``, masks of another shape, packed rows, a state.
        """

    def init_state(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ValueError: there are no steps, so no ``prefill``, ``step`` and ``state_size`` either."""
        raise ValueError(
            f"{type(self).__name__} needs the whole grid at once: it has no init_state, and cannot be stepped"
        )

    prefill = step = state_size = init_state

    def check_grid(self, u: Tensor, mask: Tensor | None, *of_rows: object) -> tuple[int, ...]:
        """The space of an input of :meth:`forward`.

        Args:
            u, mask: of the call.
            of_rows: ``cu_seqlens``, ``max_seqlen`` and ``state`` of the call.

        Raises:
            ValueError: as :meth:`forward`.
        """
        name, size = type(self).__name__, self.size
        given = [key for key, value in zip(_OF_ROWS, of_rows, strict=True) if value is not None]
        if given:
            raise ValueError(
                f"{name} mixes over whole grids (B, *space, {self.d_model}), so it takes no packed rows and no steps: "
                f"got {' and '.join(given)}"
            )
        axes = ", ".join(f"n_{i + 1}" for i in range(len(size)))
        if u.dim() != len(size) + 2 or u.size(-1) != self.d_model:
            raise ValueError(f"expected an input of shape (B, {axes}, {self.d_model}), got {tuple(u.shape)}")
        space = tuple(u.shape[1:-1])
        if any(n < 1 for n in space):
            raise ValueError(f"a grid has at least one position along each axis, got {tuple(u.shape)}")
        if any(n > most for n, most in zip(space, size, strict=True)):
            larger = tuple(max(n, most) for n, most in zip(space, size, strict=True))
            raise ValueError(f"a grid of {space} is larger than this {name}'s size={size}{self._larger_grids(larger)}")
        if mask is not None and (mask.shape != u.shape[:-1] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be a bool tensor of shape {tuple(u.shape[:-1])}, True where a position is kept; got "
                f"{mask.dtype} of shape {tuple(mask.shape)}"
            )
        return space

    def _larger_grids(self, size: tuple[int, ...]) -> str:
        """What would work for a grid that is too large, for the end of an error."""
        return f"; build it with size={size} or more"
