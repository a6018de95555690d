"""Long convolutions that take their input bit by bit.

Relaxed (online) convolution, in the tiles of Flash Inference (arXiv 2410.12982, algorithm 2). Positions are counted
from 0 and cut into base blocks of ``b``. After ``t`` inputs, ``t`` a multiple of ``b`` and ``U`` the largest
``b * 2^k`` that divides it, the last ``U`` inputs are convolved into the next ``U`` outputs; what a block gives to
itself is added directly. Every pair of an input and a later output is met exactly once, and ``L`` outputs cost
``O(L log^2 L)``.

One tile is a two-sided convolution of ``U`` positions whose lag ``m`` is the filter's lag ``U + m``, so it is
``hyena::add_conv_``, with whatever kernel that has here. Outputs ``[a, a + S)`` with ``S`` dividing ``a`` need no tile
from inside ``[a, a + S)`` for what came before ``a``: a long chunk is done in such pieces, each one causal convolution.

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, S piece, T longest row, U tile.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena import ops

# Positions of a base block: inside one, inputs are multiplied by taps directly; beyond, tiles are transformed. A tile
# costs some dozens of microseconds before it computes anything, which a block spreads over its positions, and direct
# sums grow with it. What a token cost over 4096, 256 channels, as a share of that with 32, for blocks of 8, 16, 64 and
# 128 (`python benchmarks/generation.py` prints it): with kernels 1.00, 1.01, 1.00, 1.01 for one row and 1.11, 1.01,
# 1.03, 1.14 for 16; without them 1.48, 1.05, 0.98, 0.97 and 1.11, 1.07, 1.16, 1.17.
BLOCK = 32

# Causal spectra that are kept for further chunks of the same length.
_KEPT = 2


def tile_sizes(max_length: int, block: int) -> list[int]:
    """Tiles that rows of up to ``max_length`` positions meet: ``block, 2 block, …``, those with an output behind."""
    sizes, size = [], block
    while size < max_length:
        sizes.append(size)
        size *= 2
    return sizes


@dataclasses.dataclass(frozen=True)
class TiledFilters:
    """What stepping through an operator's long filters needs besides the past: the same for every row and state.

    Args:
        taps: ``(F, T, G)`` of lags ``0 … T-1``.
        near: for each filter ``(block, C)``, its first lags, the last one first; lag 0 with the input's own weight.
        bias: for each filter ``(C,)``, the weight of the input itself.
        tiles: for each tile size ``(F, G, U+1, 2)``, a spectrum of lags ``1 … 2U-1``.
    """

    taps: Tensor
    near: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    tiles: tuple[Tensor, ...]
    _causal: dict[int, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def max_length(self) -> int:
        """T."""
        return self.taps.size(1)

    @property
    def block(self) -> int:
        """Positions of a base block."""
        return self.near[0].size(0)

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter ``(B, T, C)``: inputs up to the current position, from there on what they add to outputs."""
        return [self.taps.new_zeros(batch, self.max_length, bias.numel()) for bias in self.bias]

    def to(self, device: torch.device | str) -> TiledFilters:
        """The same on another device, with spectra as that one's backend has them."""
        near, bias = (tuple(t.to(device) for t in group) for group in (self.near, self.bias))
        return TiledFilters(self.taps.to(device), near, bias, tuple(ops.move_spectrum(t, device) for t in self.tiles))

    def extend(self, i: int, memory: Tensor, at: int, x: Tensor) -> Tensor:
        """The next outputs of convolution ``i``.

        Args:
            i: which filter.
            memory: from :meth:`allocate`; changed in place.
            at: positions that came before.
            x: ``(B, n, C)``, the next inputs.

        Returns:
            ``(B, n, C)``.
        """
        if x.size(1) == 1:
            return self._one(i, memory, at, x[:, 0])[:, None]
        y = torch.empty_like(x)
        done = 0
        while done < x.size(1):
            t, left = at + done, x.size(1) - done
            start, size = _piece(t, left, self.block)
            stop = min(start + size, t + left)
            piece = slice(done, done + stop - t)
            y[:, piece] = memory[:, t:stop]
            memory[:, t:stop] = x[:, piece]
            inside = ops.gated_conv(memory[:, start:stop], self._causal_spectrum(size)[i], self.bias[i])
            y[:, piece] += inside[:, t - start :]
            done += stop - t
            if stop % self.block == 0:
                self._tile(i, memory, stop)
        return y

    def _one(self, i: int, memory: Tensor, t: int, x: Tensor) -> Tensor:
        near, block = self.near[i], self.block
        inside = t % block
        now = memory[:, t]
        y = torch.addcmul(now, x, near[block - 1])
        if inside:
            y += (memory[:, t - inside : t] * near[block - 1 - inside : block - 1]).sum(1)
        now.copy_(x)
        if inside == block - 1:
            self._tile(i, memory, t + 1)
        return y

    def _tile(self, i: int, memory: Tensor, t: int) -> None:
        """Adds what the inputs before ``t`` give to later outputs, as far as ``t`` has to."""
        ahead = self.max_length - t
        if ahead <= 0:
            return
        blocks = t // self.block
        level = (blocks & -blocks).bit_length() - 1  # the largest k with block * 2^k dividing t
        size = self.block << level
        ops.add_conv_(memory[:, t : t + min(size, ahead)], memory[:, t - size : t], self.tiles[level][i])

    def _causal_spectrum(self, size: int) -> Tensor:
        found = self._causal.get(size)
        if found is None:
            found = ops.filter_spectrum(self.taps[:, :size], size)
            while len(self._causal) >= _KEPT:
                self._causal.pop(next(iter(self._causal)))
            self._causal[size] = found
        return found


def _piece(t: int, left: int, block: int) -> tuple[int, int]:
    """Where the piece that ``t`` belongs to starts, and how long it may be, with ``left`` inputs to come."""
    inside = t % block
    if inside or left < block:
        return t - inside, block
    size = block
    while 2 * size <= left and t % (2 * size) == 0:
        size *= 2
    return t, size


def tile_spectra(taps: Tensor, block: int) -> list[Tensor]:
    """``(F, T, G)`` taps -> for each tile size ``(F, G, U+1, 2)``."""
    spectra = []
    for size in tile_sizes(taps.size(1), block):
        # Lags beyond T meet no output, and what stands there would only cost precision.
        h = taps[:, 1 : 2 * size]
        h = torch.nn.functional.pad(h, (0, 0, 0, 2 * size - 1 - h.size(1)))
        spectra.append(ops.filter_spectrum(h, size, causal=False))
    return spectra
