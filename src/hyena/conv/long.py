"""Long convolution with the filters of one module: at once with kept spectra, or as the input arrives.

Dimensions: B batch, L length, C channels of a convolution, F long filters, G filter channels, K taps, P transform
length, Q channels of a condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyena import functional, ops
from hyena.conv.cache import SpectrumCache, watch_for_cache
from hyena.conv.filters import made_filter, reset
from hyena.conv.history import History
from hyena.conv.modal import Recurrence
from hyena.conv.online import Online
from hyena.conv.tiled import BLOCK, Tiles, group_of, tile_shapes, tile_spectra
from hyena.conv.watch import Watched
from hyena.conv.window import Window
from hyena.filters import HyenaFilter
from hyena.filters.base import check_condition, check_extension
from hyena.filters.narrow import narrow, narrow_axis

FilterFactory = Callable[..., nn.Module]

# Filters of up to this many taps are stepped from a window of inputs. A window costs its taps at every step, and tiles
# hardly more for many taps than for few, but their memory is as long as the row: beyond the first number (where tiles
# are as fast at batch 1, 256 channels; at 1024 taps 18 times) a window is for rows of more than four times the taps.
_SHORT_WINDOW = 128
_WINDOW = 1024


def _steps_from_a_window(taps: int, max_length: int) -> bool:
    return taps <= _SHORT_WINDOW or (taps <= _WINDOW and max_length > 4 * taps)


class Prepared(NamedTuple):
    """The filters of a :class:`LongConv` in the form in which rows of one length meet them.

    Taps ``(F, K, G)`` or spectra, of whole rows or of sections; or taps ``(B, F, K, G)`` of each row's own filters.
    """

    taps: Tensor | None = None
    spectra: Tensor | None = None
    sectioned: bool = False
    own: Tensor | None = None


class Past(NamedTuple):
    """The inputs that came before: the online form, one convolution's memory of them, and how many they were."""

    online: Online
    memory: Tensor
    position: int


@ops.fusible
class LongConv(nn.Module):
    """Long convolution ``y = h_i * x + d_i x`` with one of ``F`` filters and a trained weight of the input itself.

    A mixer holds one for all its filters, and need not know what kind they are. In eval mode spectra are kept. Filters
    of few taps (``support``) are applied tap by tap where that is faster, and never padded to the length of the row.

    Args:
        channels: of ``d``; the sequence's channels C are a multiple of it.
        l_max: longest row.
        num_filters: F.
        filter: the filters: a module that returns taps ``(F, length, G)`` (two-sided ``(F, 2 * length - 1, G)``) when
            it is called with a length; or a class, function or ``functools.partial`` that makes one, called as
            ``filter(G, l_max, F, causal=, device=, dtype=)``. None with ``num_filters=0``.
        filter_channels: G, if it is not ``channels``. Channel ``c`` of the sequence uses filter ``c // (C // G)``.
        causal: no output sees a later input; otherwise filters are two-sided.

    Attributes:
        block: positions of a base block of the online form in tiles.
    """

    filter: nn.Module | None
    block: int = BLOCK

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        filter: nn.Module | FilterFactory | None = HyenaFilter,
        filter_channels: int | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        self.l_max, self.num_filters, self.causal = l_max, num_filters, causal
        self.filter_channels = channels if filter_channels is None else filter_channels
        sizes = (self.filter_channels, l_max, num_filters)
        self.filter = made_filter(filter, num_filters, lambda make: make(*sizes, causal=causal, **at))
        self.bias = nn.Parameter(torch.empty(num_filters, channels, **at))
        self._spectra = SpectrumCache()
        nn.init.normal_(self.bias)

    def reset_parameters(self) -> None:
        """Initialises ``d`` and the filters again."""
        reset(self.filter, self.bias)

    def forward(
        self,
        x: Tensor,
        i: int = 0,
        pre: Tensor | None = None,
        post: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        longest: int | None = None,
        prepared: Prepared | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """``post * (h_i * (pre * x) + d_i (pre * x))``.

        Args:
            x: ``(B, L, C)``.
            i: which filter.
            pre, post: gates ``(B, L, C)``.
            cu_seqlens: ``(rows + 1,)`` offsets of packed rows; then ``B = 1``.
            longest: the longest packed row, L if missing.
            prepared: what :meth:`prepare` returned for this length, so that several convolutions make it once.
            past: with it, ``x`` holds the next inputs of rows that have begun; its memory is changed in place.

        Returns:
            ``(B, L, C)`` in the dtype and memory order of ``x``.
        """
        if past is not None:
            return past.online.extend_gated(i, past.memory, past.position, x, pre, post)
        longest = x.size(1) if longest is None else longest
        taps, spectra, sectioned, own = self.prepare(longest) if prepared is None else prepared
        d = self.bias[i].repeat_interleave(x.size(2) // self.bias.size(1))
        if own is not None:
            if cu_seqlens is not None:
                raise ValueError("rows with filters of their own are rows of the batch, not packed: pad them instead")
            return functional.gated_conv(x, own[:, i], d, pre, post, causal=self.causal)
        if taps is not None:
            return ops.direct_conv(x, taps[i], d, pre, post, cu_seqlens, self.causal, longest)
        assert spectra is not None
        return ops.gated_conv(x, spectra[i], d, pre, post, cu_seqlens, sectioned)

    def prepare(self, longest: int, condition: Tensor | None = None) -> Prepared:
        """The filters for rows of up to ``longest`` positions; with a condition ``(B, Q)`` one for each row.

        Raises:
            ValueError: a condition for filters that take none, or of another shape.
        """
        if condition is not None:
            return Prepared(own=self.own_taps(longest, condition))
        if self.is_direct(longest):
            return Prepared(self._taps(min(longest, self._support(longest))))
        return Prepared(spectra=self.spectrum(longest), sectioned=self.section(longest) is not None)

    def is_direct(self, longest: int) -> bool:
        """Whether rows of ``longest`` positions meet these filters faster tap by tap than by transforms."""
        if getattr(self.filter, "support", None) is None or self.section(longest) is not None:
            return False
        taps = self._support(longest)
        device = self.bias.device
        # Of the rows, as far as that can be known before they come.
        dtype = torch.get_autocast_dtype(device.type) if ops.autocasts(device) else self.bias.dtype
        return ops.is_direct(taps if self.causal else 2 * taps - 1, longest, device, dtype)

    def section(self, longest: int) -> int | None:
        """Positions of the sections in which rows meet these filters, None where they do at once."""
        if not self.causal or getattr(self.filter, "support", None) is None:
            return None
        return ops.section_length(self._support(longest), self.filter_channels, longest, self.bias.device)

    def spectrum(self, longest: int) -> Tensor:
        """Spectra ``(F, G, P + 1, 2)`` of all filters for rows of up to ``longest`` positions; kept in eval mode."""
        size, source = self.section(longest) or ops.transform_length(longest), self.filter
        if source is None:  # no long filters: gates and a short filter alone
            return torch.zeros(0, 1, size + 1, 2, dtype=ops.compute_dtype(self.bias), device=self.bias.device)
        watched = self._watch(source)
        if watched is not None:
            # As many taps as the transform holds, so that one spectrum serves every length that has this transform.
            taps = min(size, self.l_max)
            return self._spectra.get(watched, size, lambda: self._compute_spectrum(taps, size))
        return self._compute_spectrum(longest, size)

    def _compute_spectrum(self, taps: int, size: int) -> Tensor:
        return ops.filter_spectrum(self._taps(min(taps, self._support(taps))), size, self.causal)

    def _support(self, length: int) -> int:
        """Taps of one side that may differ from zero, out of ``length``."""
        support = getattr(self.filter, "support", None)
        return length if support is None else min(support, length)

    def _taps(self, length: int) -> Tensor:
        """``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``."""
        assert self.filter is not None
        h = self.filter(length)
        expected = (self.num_filters, length if self.causal else 2 * length - 1, self.filter_channels)
        if h.shape != expected:
            raise ValueError(f"the filter returned taps of shape {tuple(h.shape)}, and {expected} are needed")
        return h

    def own_taps(self, longest: int, condition: Tensor) -> Tensor:
        """Taps ``(B, F, K, G)`` that each row has under its condition ``(B, Q)``; two-sided of ``2 K - 1`` lags."""
        self.check_condition(condition)
        assert self.filter is not None
        taps = self._support(longest)
        h = self.filter(taps, condition)
        sides = taps if self.causal else 2 * taps - 1
        expected = (condition.size(0), self.num_filters, sides, self.filter_channels)
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

    def matrix_taps(self, length: int) -> Tensor:
        """All taps for rows of ``length`` positions, without the weight of the input itself."""
        if self.filter is None:
            return self.bias.new_zeros(0, 1, 1)
        return self._taps(min(length, self._support(length)))

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """Lets rows be longer; see :meth:`hyena.filters.HyenaFilter.extend` for what becomes of the filters.

        Raises:
            TypeError: ``l_max`` is no integer.
            ValueError: numbers out of range, or a filter that cannot be extended.
        """
        check_extension(l_max, mode)
        if self.filter is not None:
            extend = getattr(self.filter, "extend", None)
            if extend is None:
                raise ValueError(
                    f"the filter is a {type(self.filter).__name__}, which has no extend(l_max, mode): build the layer "
                    f"with l_max={l_max}"
                )
            extend(l_max, mode)
        self.l_max = l_max
        self.clear_cache()

    def narrow(self, channels: range, filter_channels: range) -> LongConv:
        """The convolution of some channels, with this one's weights.

        Args:
            channels: of ``d``, of step 1.
            filter_channels: of the filters.

        Raises:
            ValueError: it does more than this class says: hooks, a parametrisation.
        """
        if not ops.is_plain(self, LongConv):
            raise ValueError(
                f"this {type(self).__name__} has hooks, a parametrisation or code of its own: no part can be taken"
            )
        copy = ops.with_tensors(self, {"bias": narrow_axis(self.bias, 1, channels, self.bias.size(1))})
        if self.filter is not None:
            copy.filter = narrow(self.filter, filter_channels, self.filter_channels)
        copy.filter_channels, copy._spectra = len(filter_channels), SpectrumCache()
        return copy

    def why_not_online(self) -> str | None:
        """Why this convolution has no online form, or None if it has one."""
        if not self.causal:
            return "causal=False needs the whole input at once"
        if getattr(self.filter, "depends_on_length", False):
            return (
                "this filter's taps depend on the length of the input (depends_on_length = True): outputs would change "
                "as the row grows"
            )
        return None

    def own_online(self, channels: Sequence[int], max_length: int, condition: Tensor) -> tuple[History, list[Tensor]]:
        """The online form under a condition ``(B, Q)``, and the memory of its rows; see :meth:`online`."""
        why = self.why_not_online()
        if why is not None:
            raise ValueError(why)
        online = History(max_length, self._online_bias(channels))
        return online, online.remember(self.own_taps(max_length, condition).to(ops.compute_dtype(self.bias)))

    def _online_bias(self, channels: Sequence[int]) -> tuple[Tensor, ...]:
        """For each convolution ``(C,)``, the weight of the input itself, in the dtype of the arithmetic."""
        dtype = ops.compute_dtype(self.bias)
        each = zip(self.bias.to(dtype), channels, strict=True)
        return tuple(d.repeat_interleave(c // d.size(0)) for d, c in each)

    def online(self, channels: Sequence[int], max_length: int) -> Online:
        """The online form for rows of up to ``max_length`` positions.

        A filter with ``modes()`` is stepped as a recurrence, one with a short ``support`` from a window of inputs, any
        other in tiles.

        Args:
            channels: C of each of the ``F`` convolutions.
            max_length: longest row, up to ``l_max``.

        Raises:
            ValueError: two-sided filters, and filters whose taps depend on the length.
        """
        why = self.why_not_online()
        if why is not None:
            raise ValueError(why)
        each, dtype = list(channels), ops.compute_dtype(self.bias)
        bias, source = self._online_bias(each), self.filter
        if source is None:
            empty = torch.zeros(0, max_length, 1, dtype=dtype, device=self.bias.device)
            return Tiles.of(empty, (), each, bias, self.block)
        modes = getattr(source, "modes", None)
        found = None if modes is None else modes()
        if found is not None:
            return Recurrence.of(found, self._taps, each, bias, max_length)
        support = self._support(max_length)
        if getattr(source, "support", None) is not None and _steps_from_a_window(support, max_length):
            return Window.of(self._taps(support).to(dtype), each, bias, max_length)
        taps, tiles = self._taps_and_tiles(source, max_length, dtype, group_of(self.filter_channels, min(each)))
        return Tiles.of(taps, tiles, each, bias, self.block)

    def _taps_and_tiles(
        self, source: nn.Module, length: int, dtype: torch.dtype, group: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Taps ``(F, T, G)`` and the spectra of their tiles, in eval mode out of the cache."""

        def compute() -> Tensor:
            h = self._taps(min(length, self._support(length))).to(dtype)
            h = torch.nn.functional.pad(h, (0, 0, 0, length - h.size(1)))
            # Spectra first: they have even sizes, and complex numbers cannot start at an odd place, as behind odd taps.
            return torch.cat([t.reshape(-1) for t in (*tile_spectra(h, self.block, group), h)])

        key = ("tiles", length, self.block, group)
        watched = self._watch(source)
        flat = compute() if watched is None else self._spectra.get(watched, key, compute)
        filters, channels = self.num_filters, self.filter_channels
        shapes = tile_shapes(filters, channels, length, self.block, group)
        shapes.append((filters, length, channels))
        *tiles, taps = (
            part.view(shape) for part, shape in zip(flat.split([math.prod(s) for s in shapes]), shapes, strict=True)
        )
        return taps, tiles

    def _watch(self, source: nn.Module) -> Watched | None:
        """What decides the taps, if their spectra can be kept."""
        found = watch_for_cache(source)
        if found is None:
            if self.bias.device.type != "cpu" and not torch.compiler.is_compiling():
                self._spectra.clear()  # a step of training may follow that leaves no trace on the weights
            return None
        # Under FakeTensorMode (a state's size, a model's memory) a spectrum has no values.
        return None if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None else found

    def clear_cache(self) -> None:
        """Forgets kept spectra, and the tables of transforms that all layers share.

        Needed only for their memory, and after writing through ``.data`` to weights that are not on the CPU.
        """
        self._spectra.clear()
        ops.clear_tables()

    def train(self, mode: bool = True) -> LongConv:
        """As ``nn.Module.train``; kept spectra are forgotten."""
        self._spectra.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"channels={self.bias.size(1)}, l_max={self.l_max}, num_filters={self.num_filters}, causal={self.causal}"
