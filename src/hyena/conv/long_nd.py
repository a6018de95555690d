"""Long convolution over a grid with the filters of one module, with kept spectra.

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, A axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.conv.cache import SpectrumCache, watch_for_cache
from hyena.conv.filters import made_filter, reset
from hyena.filters import Filter, HyenaFilterND
from hyena.filters.base import EXTENSIONS, check_condition
from hyena.filters.base_nd import grid_size
from hyena.functional.grid import along, check_boundaries, fft_conv_nd
from hyena.functional.layout import Layout

FilterFactoryND = Callable[..., nn.Module]


class Pass(NamedTuple):
    """A convolution of all rows that a layout makes of a grid: over all axes (``axis`` -1), or along one of them."""

    layout: Layout
    axis: int
    causal: bool
    taps: Tensor | None
    spectra: Tensor | None


class LongConvND(nn.Module):
    """Long convolution over a grid, ``y = h_i * x + d_i x``: one of ``F`` filters, and a trained weight of the input.

    :func:`hyena.functional.fft_conv_nd` has how. In eval mode spectra are kept, for the last few sizes of grids.

    Args:
        channels: of ``d``; the grid's channels C are a multiple of it.
        size: positions along each axis of the largest grid.
        num_filters: F.
        filter: the filters: a module that returns taps ``(F, 2 n_1 - 1, …, 2 n_A - 1, G)`` when it is called with a
            size; or a class, function or ``functools.partial`` that makes one, called as ``filter(G, size, F, device=,
            dtype=)``. None with ``num_filters=0``.
        filter_channels: G, if it is not ``channels``. Channel ``c`` of the grid uses filter ``c // (C // G)``.
        boundary: what is beyond the grid, of all axes or of each.

    Raises:
        ValueError: a filter that is none, sizes or boundaries that do not fit.
    """

    filter: nn.Module | None

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        num_filters: int = 1,
        *,
        filter: nn.Module | FilterFactoryND | None = HyenaFilterND,
        filter_channels: int | None = None,
        boundary: str | Sequence[str] = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        self.size, self.num_filters = grid_size(size), num_filters
        self.filter_channels = channels if filter_channels is None else filter_channels
        self.boundaries = check_boundaries(boundary, len(self.size))
        self.filter = made_filter(filter, num_filters, lambda make: self._make(make, at))
        self.bias = nn.Parameter(torch.empty(num_filters, channels, **at))
        self._spectra = SpectrumCache()
        nn.init.normal_(self.bias)

    def _make(self, filter: FilterFactoryND, at: dict[str, Any]) -> Any:
        kind = getattr(filter, "func", filter)
        if isinstance(kind, type) and issubclass(kind, Filter):
            raise ValueError(
                f"{kind.__name__} is a filter along a sequence: for a grid of size={self.size} take "
                f"partial(SeparableFilter, filter={kind.__name__})"
            )
        return filter(self.filter_channels, self.size, self.num_filters, **at)

    def reset_parameters(self) -> None:
        """Initialises ``d`` and the filters again."""
        reset(self.filter, self.bias)

    def forward(self, x: Tensor, i: int = 0, prepared: Sequence[Pass] | Tensor | None = None) -> Tensor:
        """``h_i * x + d_i x``.

        Args:
            x: ``(B, *space, C)``.
            i: which filter.
            prepared: what :meth:`prepare` returned for this space, so that several convolutions make it once.

        Returns:
            ``(B, *space, C)`` in the dtype of ``x``.
        """
        passes = self.prepare(x.shape[1:-1]) if prepared is None else prepared
        d = self.bias[i].repeat_interleave(x.size(-1) // self.bias.size(1))
        if isinstance(passes, Tensor):
            return fft_conv_nd(x, passes[:, i], d, boundary=self.boundaries)
        if len(passes) == 1 and passes[0].axis < 0:
            return _convolve(x, passes[0], i, d)
        y = x.to(ops.compute_dtype(x))
        for one in passes:
            y = along(y, one.axis, partial(_convolve, one=one, i=i))
        return (y + d.to(y.dtype) * x.to(y.dtype)).to(x.dtype)

    def prepare(self, space: Sequence[int], condition: Tensor | None = None) -> list[Pass] | Tensor:
        """The filters for grids of one size: one pass over all axes, or one along each, if they are separable.

        With a condition ``(B, Q)`` the taps of each row, ``(B, F, 2 n_1 - 1, …, 2 n_A - 1, G)``.

        Raises:
            ValueError: a condition for filters that take none, or of another shape.
        """
        source, space = self.filter, tuple(space)
        assert source is not None
        if condition is not None:
            return self._own_taps(source, space, condition)
        watched = watch_for_cache(source)
        if watched is None and self.bias.device.type != "cpu" and not torch.compiler.is_compiling():
            self._spectra.clear()  # a step of training may follow that leaves no trace on the weights
        # Under FakeTensorMode a spectrum has no values.
        if watched is None or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return self._passes(source, space)
        return self._spectra.get(watched, space, lambda: self._passes(source, space))

    def _own_taps(self, source: nn.Module, space: tuple[int, ...], condition: Tensor) -> Tensor:
        self.check_condition(condition)
        h = source(space, condition)
        expected = (condition.size(0), self.num_filters, *(2 * n - 1 for n in space), self.filter_channels)
        if h.shape != expected:
            raise ValueError(f"the filter returned taps of shape {tuple(h.shape)}, and {expected} are needed")
        return h

    def check_condition(self, condition: Tensor, rows: int | None = None) -> None:
        """Checks a condition of the filters.

        Raises:
            ValueError: there is no filter that takes one, or it is not ``(rows, Q)``.
        """
        if self.filter is None:
            raise ValueError(f"a condition of shape {tuple(condition.shape)} was given where there is no long filter")
        check_condition(self.filter, condition, rows)

    def _passes(self, source: nn.Module, space: tuple[int, ...]) -> list[Pass]:
        factors = getattr(source, "factors", lambda _: None)(space)
        if factors is not None and len(space) > 1:
            sides = enumerate(zip(factors, space, self.boundaries, strict=True))
            return [self._pass(h, (n,), (boundary,), axis) for axis, (h, n, boundary) in sides]
        h = source(space) if factors is None else factors[0]
        expected = (self.num_filters, *(2 * n - 1 for n in space), self.filter_channels)
        if factors is None and h.shape != expected:
            raise ValueError(f"the filter returned taps of shape {tuple(h.shape)}, and {expected} are needed")
        return [self._pass(h, space, self.boundaries, -1)]

    def _pass(self, h: Tensor, space: tuple[int, ...], boundaries: Sequence[str], axis: int) -> Pass:
        layout = Layout.of(space, h.shape[1:-1], (False,) * len(space), boundaries)
        taps, causal = layout.taps(h)
        if ops.is_direct(taps.size(1), layout.length, taps.device, self.bias.dtype):
            return Pass(layout, axis, causal, taps, None)
        spectra = ops.filter_spectrum(taps, ops.transform_length(layout.length), causal)
        return Pass(layout, axis, causal, None, spectra)

    def extend(self, size: int | Sequence[int], mode: str = "continue") -> None:
        """Lets grids be larger, or of another resolution; see :meth:`hyena.filters.FilterND.extend`.

        Raises:
            ValueError: a filter that cannot be extended.
        """
        new = grid_size(size)
        if mode not in EXTENSIONS:
            raise ValueError(f"mode must be one of {', '.join(map(repr, EXTENSIONS))}, got {mode!r}")
        if len(new) != len(self.size):
            raise ValueError(f"a convolution of {len(self.size)} axes, {self.size}, cannot be extended to {new}")
        if self.filter is not None:
            extend = getattr(self.filter, "extend", None)
            if extend is None:
                raise ValueError(
                    f"the filter is a {type(self.filter).__name__}, which has no extend(size, mode): build the layer "
                    f"with size={new}"
                )
            extend(new, mode)
        self.size = new
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets kept spectra, and the tables of transforms that all layers share."""
        self._spectra.clear()
        ops.clear_tables()

    def train(self, mode: bool = True) -> LongConvND:
        """As ``nn.Module.train``; kept spectra are forgotten."""
        self._spectra.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        channels = self.bias.size(1)
        return f"channels={channels}, size={self.size}, num_filters={self.num_filters}, boundary={self.boundaries}"


def _convolve(x: Tensor, one: Pass, i: int, d: Tensor | None = None) -> Tensor:
    """Filter ``i`` of a pass, on the grids or rows that it is for."""
    row = one.layout.row(x)
    if one.taps is not None:
        y = ops.direct_conv(row, one.taps[i], d, None, None, None, one.causal, one.layout.length)
    else:
        assert one.spectra is not None
        y = ops.gated_conv(row, one.spectra[i], d)
    return one.layout.grid(y).contiguous()
