"""Hyena over the patches of an image and the class tokens before them, as a mixer of rows.

Dimensions: B batch, L length, D channels (d_model), N order, T tokens, R and S rows and columns of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.conv.long_nd import FilterFactoryND, LongConvND
from hyena.conv.short_nd import ShortConvND
from hyena.filters import HyenaFilterND
from hyena.mixers._arguments import check
from hyena.mixers.base import Mixer
from hyena.mixers.rows import take, unpacked


class HyenaPatches(Mixer):
    """Two-dimensional Hyena in a vision transformer: ``T`` class tokens, then patches row by row, ``(B, T + R S, D)``.

    Patches are gated and convolved over their grid as by :class:`hyena.mixers.HyenaND` (arXiv 2302.10866, 2309.13600).
    A token has no place in the grid, so that a filter has one number for it in each channel: what it gives to every
    patch, what the mean of the patches gives to it, and what tokens give to each other. For filter ``h`` and weight
    ``d``, on gated values ``x`` of patches and tokens, ``y_patch = (h * x)_patch + d x_patch + sum_t a_t x_t`` and
    ``y_t = b_t mean(x_patch) + sum_s c_ts x_s``.

    A shorter row is an image of fewer patches: rows of ``S`` from the first one on. A row begins at its first position
    that ``mask`` keeps; other positions that it hides are holes in the image. The boundary is that of the whole grid,
    wherever a mask ends.

    Args:
        d_model: D.
        l_max: longest row, at most ``T + R S``.
        grid: patches ``(R, S)``.
        prefix_tokens: T.
        order: N, 1 to 8. There are ``N - 1`` filters.
        filter: the long filters, as in :class:`hyena.conv.LongConvND`.
        short_taps: of the centred short convolution, along either axis.
        boundary: what is beyond the image, ``"zero"``, ``"circular"`` or ``"reflect"``, of both axes or of each.
        causal: must be False.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Attributes:
        takes_grid: ``forward`` takes the ``grid`` of an image of other proportions.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range or that do not fit together, or ``causal=True``.
    """

    takes_grid = True
    no_decay = ("to_patches", "from_patches", "between")  # as the weights d of a convolution's own input

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        grid: Sequence[int],
        prefix_tokens: int = 1,
        order: int = 2,
        filter: nn.Module | FilterFactoryND = HyenaFilterND,
        short_taps: int = 3,
        boundary: str | Sequence[str] = "zero",
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"d_model": d_model, "l_max": l_max, "order": order, "short_taps": short_taps}
        flags = {"causal": causal, "bias": bias}
        check(**sizes, num_heads=1, dropout=dropout, filter_groups=None, inner_factor=1, flags=flags)
        if causal:
            raise ValueError("causal=True is not possible: there is no order in which patches come")
        if isinstance(prefix_tokens, bool) or not isinstance(prefix_tokens, int) or prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be an integer of at least 0, got {prefix_tokens!r}")
        self.d_model, self.causal, self.order, self.prefix_tokens = d_model, False, order, prefix_tokens
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, (order + 1) * d_model, bias=bias, **at)
        self.short = ShortConvND((order + 1) * d_model, 2, short_taps, boundary=boundary, **at)
        self.conv = LongConvND(d_model, grid, order - 1, filter=filter, boundary=boundary, **at)
        self.grid = _pair(self.conv.size)
        self._check_l_max(l_max)
        self.l_max = l_max
        filters, tokens = order - 1, prefix_tokens
        self.to_patches = nn.Parameter(torch.empty(filters, tokens, d_model, **at))
        self.from_patches = nn.Parameter(torch.empty(filters, tokens, d_model, **at))
        self.between = nn.Parameter(torch.empty(filters, tokens, tokens, d_model, **at))
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)
        self._reset_links()

    def _check_l_max(self, l_max: int) -> None:
        rows, columns = self.grid
        if l_max > self.prefix_tokens + rows * columns:
            raise ValueError(
                f"l_max={l_max} positions are more than {self.prefix_tokens} tokens and the patches of "
                f"grid={self.grid}, {self.prefix_tokens + rows * columns} in all"
            )

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.in_proj, self.short, self.conv, self.out_proj):
            part.reset_parameters()
        self._reset_links()

    def _reset_links(self) -> None:
        for links in (self.to_patches, self.from_patches, self.between):
            nn.init.normal_(links, std=max(self.prefix_tokens, 1) ** -0.5)

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
        grid: Sequence[int] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Mixes tokens and patches; see :meth:`hyena.mixers.Mixer.forward`.

        Args:
            u, mask, cu_seqlens, max_seqlen: as there.
            state: must be None.
            grid: patches ``(R, S)`` of every row, within those it was built for; by default rows of as many patches.
            condition: ``(B, Q)``, of packed rows ``(rows, Q)``: each row's filters are those of its condition (filters
                that take one, :class:`hyena.filters.FiLMFilterND`).

        Raises:
            ValueError: shapes that do not fit, a grid that is another number of patches, or larger than it was built
                for (:meth:`extend`).
        """
        if state is not None:
            raise ValueError("a HyenaPatches needs the whole image at once: it takes no state")
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        longest = self.check_rows(u, cu_seqlens, max_seqlen)
        ops.check_row(u, mask, cu_seqlens)
        columns = self.grid[1] if grid is None else self._columns(grid, longest)
        if cu_seqlens is not None and self.conv.boundaries[0] != "zero":
            raise ValueError(
                f"boundary={self.conv.boundaries} joins the first and the last row of an image, and packed images have "
                "rows of their own each: pass one at a time, or images of one size as a batch"
            )
        if cu_seqlens is None:
            y = self._mix(u, mask, columns, condition)
        else:
            index, keep, back = unpacked(cu_seqlens, u.size(1), longest)
            keep = keep if mask is None else keep & mask[0][index]
            y = self._mix(u[0][index], keep, columns, condition)[back][None]
        y = ops.linear(self.dropout(y), self.out_proj)
        return y[0] if flat else y

    def _columns(self, grid: Sequence[int], length: int) -> int:
        rows, columns = _pair(grid)
        if rows > self.grid[0] or columns > self.grid[1]:
            raise ValueError(f"grid={(rows, columns)} is larger than {self.grid}, which it was built for; see extend")
        if length != self.prefix_tokens + rows * columns:
            raise ValueError(
                f"{length} positions are not {self.prefix_tokens} tokens and {rows} x {columns} patches, "
                f"{self.prefix_tokens + rows * columns} in all"
            )
        return columns

    def _mix(self, u: Tensor, mask: Tensor | None, columns: int, condition: Tensor | None) -> Tensor:
        """Mixed values ``(B, L, D)`` before the output projection."""
        if condition is not None:
            self.conv.check_condition(condition, u.size(0))
        length, order = u.size(1), None
        if mask is not None:  # a NaN in the padding would reach the rest as 0 x NaN
            first = mask.to(torch.uint8).argmax(1, keepdim=True)
            order = (torch.arange(length, device=u.device) + first) % max(length, 1)
            u, mask = take(torch.where(mask[..., None], u, 0.0), order), mask.gather(1, order)
        z, tokens = ops.linear(u, self.in_proj), min(self.prefix_tokens, length)
        count = length - tokens
        rows = -(-count // columns)
        missing = rows * columns - count
        keep = None if mask is None and missing == 0 else self._kept(mask, u, tokens, missing, (rows, columns))
        patches = F.pad(z[:, tokens:], (0, 0, 0, missing)).unflatten(1, (rows, columns))
        patches = self.short(patches, keep) if rows > 0 else patches
        heads = z[:, :tokens] if mask is None else torch.where(mask[:, :tokens, None], z[:, :tokens], 0.0)
        prepared = self.conv.prepare((rows, columns), condition) if self.order > 1 and rows > 0 else None
        v, w = self._recurrence(patches.split(self.d_model, 3), heads.split(self.d_model, 2), keep, prepared)
        y = torch.cat([w.to(z.dtype), v.flatten(1, 2)[:, :count].to(z.dtype)], dim=1)
        return y if order is None else take(y, order.argsort(dim=1))

    def _kept(self, mask: Tensor | None, u: Tensor, tokens: int, missing: int, size: tuple[int, int]) -> Tensor:
        """Which places of the grid there are patches at, ``(B, R, S)``."""
        if mask is None:
            mask = torch.ones(u.shape[:2], dtype=torch.bool, device=u.device)
        return F.pad(mask[:, tokens:], (0, missing)).unflatten(1, size)

    def _recurrence(
        self, patches: Sequence[Tensor], tokens: Sequence[Tensor], keep: Tensor | None, prepared: Any
    ) -> tuple[Tensor, Tensor]:
        """Gates and filters in turn: ``x^0 … x^{N-1}, v`` of patches ``(B, R, S, D)`` and of tokens ``(B, T, D)``."""
        v, w = patches[-1], tokens[-1]
        for i in range(self.conv.num_filters):
            gate = self.order - 1 - i
            v, w = patches[gate] * v, tokens[gate] * w
            y = v if prepared is None else self.conv(v, i, prepared)
            if w.size(1) > 0:
                given, w = self._tokens(i, v, w, keep)
                y = y + given[:, None, None].to(y.dtype)
            v = y
        return patches[0] * v, tokens[0] * w

    def _tokens(self, i: int, v: Tensor, w: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """What tokens give to each patch under filter ``i``, ``(B, D)``, and what they become, ``(B, T, D)``."""
        dtype, count = ops.compute_dtype(w), w.size(1)
        tokens, patches = w.to(dtype), v.to(dtype).flatten(1, 2)
        to, back = self.to_patches[i, :count].to(dtype), self.from_patches[i, :count].to(dtype)
        between = self.between[i, :count, :count].to(dtype)
        there = patches.size(1) if keep is None else keep.flatten(1).sum(1, keepdim=True).clamp(min=1)
        mean = patches.sum(1) / (there if isinstance(there, Tensor) else max(there, 1))
        new = back * mean[:, None] + torch.einsum("tsd,bsd->btd", between, tokens)
        return torch.einsum("td,btd->bd", to, tokens), new.to(w.dtype)

    def extend(self, grid: Sequence[int], mode: str = "continue") -> None:
        """Lets a trained one take larger images, or images of another resolution; in place.

        Args:
            grid: patches ``(R, S)`` from now on.
            mode: what becomes of the filters: ``"continue"``, patches as far apart as before and more of them;
                ``"stretch"``, the same extent in other steps. See :meth:`hyena.filters.FilterND.extend`.

        Raises:
            ValueError: filters that cannot be extended.
        """
        self.conv.extend(grid, mode)
        self.grid = _pair(self.conv.size)
        self.l_max = self.prefix_tokens + math.prod(self.grid)

    def clear_cache(self) -> None:
        """Forgets kept spectra and tables; see :meth:`hyena.conv.LongConv.clear_cache`."""
        self.conv.clear_cache()

    def _longer_rows(self, longest: int) -> str:
        return f" (grid={self.grid} and {self.prefix_tokens} tokens); extend(grid) lets it take larger images"

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, grid={self.grid}, prefix_tokens={self.prefix_tokens}, "
            f"order={self.order}"
        )


def _pair(grid: Sequence[int]) -> tuple[int, int]:
    if len(grid) != 2:
        raise ValueError(f"grid must be (rows, columns) of patches, got {tuple(grid)}")
    return int(grid[0]), int(grid[1])
