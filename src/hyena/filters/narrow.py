"""Some of the channels of a filter, as a filter that shares its weights.

Dimensions: F filters, G channels of the whole filter, K taps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hyena import ops
from hyena.filters.base import Filter, Modes


def narrow(source: nn.Module, channels: range, of: int) -> nn.Module:
    """A filter of some channels of another, whose gradients reach the other's weights.

    A filter that names its channels' weights (:meth:`hyena.filters.Filter.channel_axes`) makes only these taps; of any
    other all taps are made, and these taken.

    Args:
        source: a filter of ``of`` channels, left as it is.
        channels: which, of step 1.
        of: G.
    """
    axes = source.channel_axes() if isinstance(source, Filter) else {}
    own = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    if not axes or not own.keys() >= axes.keys() or not all(_is_whole(part) for part in source.modules()):
        return Taken(source, channels)
    copy: Any = ops.with_tensors(
        source, {name: narrow_axis(own[name], axis, channels, of) for name, axis in axes.items()}
    )
    copy.channels = len(channels)
    return copy


def narrow_axis(t: Tensor, axis: int, entries: range, of: int) -> Tensor:
    """Some entries of each of the rows of ``of`` entries that an axis holds one after the other.

    Args:
        t: of size ``k * of`` along ``axis``, k any number.
        axis: from 0 on.
        entries: which of each row, of step 1.
        of: the length of a row.
    """
    rows = t.unflatten(axis, (-1, of)).narrow(axis + 1, entries.start, len(entries))
    return rows.flatten(axis, axis + 1)


def _is_whole(part: nn.Module) -> bool:
    """Whether calling the part does no more than its class says, with the weights that it lists."""
    return (
        not ops.is_hooked(part)
        and "forward" not in part.__dict__
        and "parametrizations" not in part._modules
        and ops.has_plain_weights(part)
    )


class Taken(nn.Module):
    """Some channels of the taps of a filter that makes all of them."""

    def __init__(self, source: nn.Module, channels: range) -> None:
        super().__init__()
        self.source, self.channels = source, channels
        self.support = getattr(source, "support", None)
        self.depends_on_length = getattr(source, "depends_on_length", False)
        if hasattr(source, "modes"):
            self.modes = self._modes_of_some

    def forward(self, length: int) -> Tensor:
        """``(F, K, len(channels))``."""
        return self.source(length)[..., self.channels.start : self.channels.stop]

    def _modes_of_some(self) -> Modes | None:
        found: Any = self.source.modes()  # type: ignore[operator]  # forwarded only where there is one
        return None if found is None else Modes(*(t[:, self.channels.start : self.channels.stop] for t in found))
