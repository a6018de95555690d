"""What a Hyena operator remembers of the positions that came before.

Dimensions: B batch, I inner width, N order.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from hyena.conv.online import Online
from hyena.mixers.state import State


@dataclasses.dataclass
class HyenaState(State):
    """The decoding state of one :class:`hyena.HyenaOperator`.

    Args:
        short: ``(B, taps - 1, (N+1) I)``, the last inputs of the short convolution.
        memory: for each long filter what its convolution keeps, ``(B, …)``.
        online: the long filters when the state was made. Changing the operator's weights later does not change them.
    """

    short: Tensor
    memory: list[Tensor]
    online: Online

    @property
    def batch(self) -> int:
        """B."""
        return self.short.size(0)

    def check_fits(self, filters: int, taps: int, channels: int) -> None:
        """Raises ValueError unless it is of an operator of so many long filters, short taps and channels."""
        shape = (taps - 1, channels)
        if len(self.memory) != filters or self.short.shape[1:] != shape:
            raise ValueError(
                f"the state is another operator's: it has {len(self.memory)} long filters and "
                f"{tuple(self.short.shape[1:])} inputs of a short convolution, this operator {filters} and {shape}"
            )
