"""The interface of long filters over grids: a size in, taps out.

Dimensions: F filters, G filter channels, A axes, n positions of an axis.
"""

from __future__ import annotations

import abc
import numbers
from collections.abc import Sequence

from torch import Tensor

from hyena.filters.base import EXTENSIONS, FilterBase, check_sizes, is_integer

MAX_AXES = 3


class FilterND(FilterBase):
    """Base of filters over grids of one, two or three axes: a module that is called with a size and returns taps.

    With a ``condition_dim`` it also takes a condition ``(B, Q)``, and then returns taps ``(B, F, …)``, a filter for
    each row.

    The lags of every axis have both signs. Constructors of this library's are ``(channels, size, num_filters=1, *, ...,
    device=None, dtype=None)``. Weights stay float32 as those of a :class:`hyena.filters.Filter`.

    Args:
        channels: G.
        size: positions along each axis of the largest grid, ``(n_1, …, n_A)``, or a number for a grid of one axis.
        num_filters: F.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: a size below 1, no axes or more than three.
    """

    def __init__(self, channels: int, size: int | Sequence[int], num_filters: int = 1) -> None:
        super().__init__()
        check_sizes(channels=channels, num_filters=num_filters)
        self.channels, self.num_filters = channels, num_filters
        self.size = grid_size(size)

    @abc.abstractmethod
    def forward(self, size: Sequence[int]) -> Tensor:
        """Taps for grids of ``size``.

        Returns:
            ``(F, 2 n_1 - 1, …, 2 n_A - 1, G)``, along each axis of lags ``-(n-1) … n-1``; float64 if the weights are,
            else float32.

        Raises:
            ValueError: a ``size`` beyond that of the filter, along any axis.
        """

    def factors(self, size: Sequence[int]) -> list[Tensor] | None:
        """Taps of each axis, ``(F, 2k-1, G)`` of lags ``-(k-1) … k-1``, of a filter that is their product; else None.

        A convolution then goes along one axis after the other.
        """
        return None

    def extend(self, size: int | Sequence[int], mode: str = "continue") -> None:
        """Changes the largest grid, in place.

        Args:
            size: of as many axes.
            mode: ``"continue"`` leaves every tap as it is and goes on after the old limit: a larger grid of positions
                that lie as far apart. ``"stretch"`` is the same extent at another resolution: lags that are the same
                part of an axis have the same taps, times the old number of positions over the new one, so that sums
                over more positions stay what they were.

        Raises:
            ValueError: a filter that cannot do that, with the reason.
        """
        raise ValueError(
            f"a {type(self).__name__} made for size={self.size} does not say how it is used at size={grid_size(size)} "
            f"(mode={mode!r}): its class would have to define extend(size, mode)"
        )

    def taps_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of the taps that ``forward(size)`` returns."""
        return (self.num_filters, *(2 * n - 1 for n in size), self.channels)

    def check_size(self, size: Sequence[int]) -> None:
        """Raises ValueError for a grid with other axes or larger than this filter's, TypeError for no integers."""
        if not isinstance(size, Sequence) or not all(is_integer(n) for n in size):
            raise TypeError(f"a filter over grids is called with a number of positions for each axis, got {size!r}")
        if len(size) != len(self.size) or any(n < 1 or n > most for n, most in zip(size, self.size, strict=True)):
            raise ValueError(
                f"a filter of size={self.size} has taps for grids of 1 to so many positions, not {tuple(size)}"
            )

    def check_extension(self, size: int | Sequence[int], mode: str) -> tuple[int, ...]:
        """The new size of :meth:`extend`; raises TypeError or ValueError for arguments that are none."""
        new = grid_size(size)
        if len(new) != len(self.size):
            raise ValueError(f"a filter of {len(self.size)} axes, {self.size}, cannot be extended to {len(new)}, {new}")
        if mode not in EXTENSIONS:
            raise ValueError(f"mode must be one of {', '.join(map(repr, EXTENSIONS))}, got {mode!r}")
        return new

    def extra_repr(self) -> str:
        return f"channels={self.channels}, size={self.size}, num_filters={self.num_filters}"


def grid_size(size: int | Sequence[int]) -> tuple[int, ...]:
    """A grid's size as a tuple: a number is one axis.

    Raises:
        TypeError: something else than integers.
        ValueError: a size below 1, no axes or more than three.
    """
    sizes = (size,) if isinstance(size, numbers.Integral) else size
    if isinstance(sizes, (str, bytes, bool)) or not isinstance(sizes, Sequence):
        raise TypeError(f"size must be an int or a sequence of ints, got {size!r}")
    if not 1 <= len(sizes) <= MAX_AXES:
        raise ValueError(f"a grid has 1 to {MAX_AXES} axes, got size={tuple(sizes)}")
    check_sizes(**{f"size[{i}]": n for i, n in enumerate(sizes)})
    return tuple(int(n) for n in sizes)
