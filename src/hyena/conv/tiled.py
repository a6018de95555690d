"""Online long convolution in tiles: any taps, inputs in pieces of any length.

Relaxed (online) convolution, in the tiles of Flash Inference (arXiv 2410.12982, algorithm 2). Positions are counted
from 0 and cut into base blocks of ``b``. After ``t`` inputs, ``t`` a multiple of ``b`` and ``U`` the largest
``b * 2^k`` that divides it, the last ``U`` inputs are convolved into the next ``U`` outputs; what a block gives to
itself is added directly. Every pair of an input and a later output is met exactly once, and ``L`` outputs cost
``O(L log^2 L)``.

One tile is a two-sided convolution of ``U`` positions whose lag ``m`` is the filter's lag ``U + m``, so it is
``hyena::add_conv_``, with whatever kernel that has here. Outputs ``[a, a + S)`` with ``S`` dividing ``a`` need no tile
from inside ``[a, a + S)`` for what came before ``a``: a long chunk is done in such pieces, each one causal convolution.

::

    outputs ->   block   block   block   block       Tile sizes after each block of inputs: U, 2U, U, 4U, … with
    inputs  0    direct  U       2U      2U          U the block. A tile of size 2U takes the last two blocks of
            1            direct  2U      2U          inputs to the next two blocks of outputs.
            2                    direct  U
            3                            direct

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, S piece, T room of a state, U tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from hyena import ops
from hyena.conv.online import Online

# Positions of a base block: inside one, inputs are multiplied by taps directly; beyond, tiles are transformed. A tile
# costs some dozens of microseconds before it computes anything, which a block spreads over its positions, and direct
# sums grow with it (docs/generation.md has the measurements).
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
class Tiles(Online):
    """Online form of any causal filters: direct sums inside a block, transformed tiles beyond it.

    Args:
        max_length: T.
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

    @classmethod
    def of(
        cls, taps: Tensor, tiles: Sequence[Tensor], channels: list[int], bias: tuple[Tensor, ...], block: int
    ) -> Tiles:
        """For filters ``taps`` ``(F, T, G)`` with their :func:`tile_spectra`, and convolutions of so many channels."""
        near = torch.nn.functional.pad(taps[:, :block], (0, 0, 0, max(0, block - taps.size(1)))).flip(1)
        heads = tuple(near[i].repeat_interleave(c // near.size(2), dim=1).clone() for i, c in enumerate(channels))
        for head, d in zip(heads, bias, strict=True):
            head[block - 1] += d
        return cls(taps.size(1), taps, heads, bias, tuple(tiles))

    @property
    def block(self) -> int:
        """Positions of a base block."""
        return self.near[0].size(0)

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter ``(B, T, C)``: inputs up to the current position, from there on what they add to outputs."""
        return [self.taps.new_zeros(batch, self.max_length, bias.numel()) for bias in self.bias]

    def to(self, device: torch.device | str) -> Tiles:
        """The same on another device, with spectra as that one's backend has them."""
        near, bias = (tuple(t.to(device) for t in group) for group in (self.near, self.bias))
        tiles = tuple(ops.move_spectrum(t, device) for t in self.tiles)
        return Tiles(self.max_length, self.taps.to(device), near, bias, tiles)

    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)`` of convolution ``i``; see :meth:`hyena.conv.Online.extend`."""
        if torch.compiler.is_compiling():
            # As one op whose position is a number: traced line by line, every position would have a graph of its own.
            tiles = [t[i] for t in self.tiles]
            return torch.ops.hyena.extend_tiles_(memory, x, self.taps[i], self.near[i], self.bias[i], tiles, position)
        return self._extend(i, memory, position, x)

    def _extend(self, i: int, memory: Tensor, at: int, x: Tensor) -> Tensor:
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


@torch.library.custom_op("hyena::extend_tiles_", mutates_args=("memory",))
def _extend_tiles(
    memory: Tensor, x: Tensor, taps: Tensor, near: Tensor, bias: Tensor, tiles: list[Tensor], position: int
) -> Tensor:
    """:meth:`Tiles.extend` of one filter as an op: ``taps`` ``(T, G)``, a spectrum ``(G, U + 1, 2)`` for each tile."""
    alone = Tiles(memory.size(1), taps[None], (near,), (bias,), tuple(t[None] for t in tiles))
    return alone._extend(0, memory, position, x)


@_extend_tiles.register_fake
def _(
    memory: Tensor, x: Tensor, taps: Tensor, near: Tensor, bias: Tensor, tiles: list[Tensor], position: int
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
