"""Online long convolution in tiles: any taps, inputs in pieces of any length.

Relaxed (online) convolution. Positions are counted from 0 and cut into base blocks of ``b``. What a block gives to
itself is added directly; what blocks give to later ones is transformed, block by block of growing sizes, as
``schedule.py`` says. Every pair of an input and a later output is met exactly once, and ``L`` outputs cost
``O(L log^2 L)``.

What ``U`` inputs give to the ``U`` outputs that come ``k U`` later is a two-sided convolution of ``U`` positions whose
lag ``m`` is the filter's lag ``k U + m``, so it is ``hyena::add_conv_``, with whatever kernel that has here. A long
chunk of inputs is done in pieces of ``S`` positions, ``S`` a power of two of blocks that divides where it starts: each
is one causal convolution, after what earlier inputs give to it.

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
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hyena import ops
from hyena.conv import schedule
from hyena.conv.online import Online
from hyena.conv.schedule import Square

# Positions of a base block: inside one, inputs are multiplied by taps directly; beyond, tiles are transformed. A tile
# costs some dozens of microseconds before it computes anything, which a block spreads over its positions, and direct
# sums grow with it (docs/generation.md has the measurements).
BLOCK = 32

# Channels that are convolved together where not all are: as many as fill the vector registers of any CPU.
_GROUP = 16

# Causal spectra that are kept for further chunks of the same length.
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Tiles(Online):
    """Online form of any causal filters: direct sums inside a block, transformed tiles beyond it.

    Args:
        max_length: T.
        taps: ``(F, T, G)`` of lags ``0 … T-1``.
        near: for each filter ``(block, C)``, its first lags, the last one first; lag 0 with the input's own weight.
        bias: for each filter ``(C,)``, the weight of the input itself.
        tiles: for each of ``schedule.kinds`` a spectrum of lags ``(k-1) U + 1 … (k+1) U - 1``: ``(F, G, U+1, 2)`` of
            tiles; of what is not computed at once ``(F, K, G/K, U+1, 2)``, in K groups of filter channels.
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
        """For filters ``taps`` ``(F, T, G)``, their spectra ``tiles``, and convolutions of so many ``channels``."""
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
            for square in schedule.inside(start, stop, self.block):
                self._add_all(i, memory, square)
            y[:, piece] = memory[:, t:stop]
            memory[:, t:stop] = x[:, piece]
            inside = ops.gated_conv(memory[:, start:stop], self._causal_spectrum(size)[i], self.bias[i])
            y[:, piece] += inside[:, t - start :]
            done += stop - t
            if stop % self.block == 0:
                self._give(i, memory, start, stop)
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
            self._give(i, memory, t - inside, t + 1)
        return y

    def _give(self, i: int, memory: Tensor, start: int, stop: int) -> None:
        """Adds what the inputs before ``stop`` give to later outputs, as far as ``stop`` has to, from ``start`` on."""
        if stop >= self.max_length:
            return
        self._add(i, memory, schedule.tile(stop, self.block))
        for share in schedule.between(start, stop, self.max_length, self.block):
            for part in share.of(self._parts(memory)):
                self._add(i, memory, share.square, part)

    def _parts(self, memory: Tensor) -> int:
        """Into how many parts the channels are cut where not all are convolved at once."""
        if self.taps.size(2) == 1:
            return -(-memory.size(2) // _GROUP)
        return self.tiles[-1].size(1)

    def _add(self, i: int, memory: Tensor, square: Square, part: int | None = None) -> None:
        """Adds what a square gives to its outputs, in some channels or all."""
        spectra, channels = self.tiles[self._kinds[square.size, square.away]][i], memory.size(2)
        each = channels
        if part is not None and self.taps.size(2) == 1:
            each, spectra = _GROUP, spectra[0]
        elif part is not None:
            each, spectra = channels // spectra.size(0), spectra[part]
        some = slice((part or 0) * each, (part or 0) * each + each)
        stop = min(square.output + square.size, self.max_length)
        inputs = slice(square.start, square.start + square.size)
        ops.add_conv_(memory[:, square.output : stop, some], memory[:, inputs, some], spectra)

    def _add_all(self, i: int, memory: Tensor, square: Square) -> None:
        for part in range(self._parts(memory)):
            self._add(i, memory, square, part)

    @functools.cached_property
    def _kinds(self) -> dict[tuple[int, int], int]:
        return {kind: at for at, kind in enumerate(schedule.kinds(self.max_length, self.block))}

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


def group_of(filters: int, channels: int) -> int:
    """Filter channels that are convolved together where not all are, of ``filters`` for so many channels.

    As many as make :data:`_GROUP` channels, or somewhat fewer if that divides them; else all of them.
    """
    width = channels // filters
    fitting = [n for n in range(1, filters + 1) if filters % n == 0 and 2 * n * width >= _GROUP]
    return min(fitting, key=lambda n: abs(n * width - _GROUP), default=filters)


def tile_shapes(filters: int, channels: int, max_length: int, block: int, group: int) -> list[tuple[int, ...]]:
    """The shapes of :func:`tile_spectra` of taps ``(filters, max_length, channels)``."""
    shapes: list[tuple[int, ...]] = []
    for size, away in schedule.kinds(max_length, block):
        groups = (channels,) if away == 1 else (channels // group, group)
        shapes.append((filters, *groups, ops.spectrum_room(size), 2))
    return shapes


def tile_spectra(taps: Tensor, block: int, group: int) -> list[Tensor]:
    """The field ``tiles`` for taps ``(F, T, G)``, in groups of ``group`` filter channels."""
    spectra = []
    for size, away in schedule.kinds(taps.size(1), block):
        # Lags beyond T meet no output, and what stands there would only cost precision.
        h = taps[:, (away - 1) * size + 1 : (away + 1) * size]
        h = torch.nn.functional.pad(h, (0, 0, 0, 2 * size - 1 - h.size(1)))
        if away == 1:
            spectra.append(ops.filter_spectrum(h, size, causal=False))
        else:
            # Each group for itself: kernels mix the channels of a spectrum in memory.
            parts = [ops.filter_spectrum(part, size, causal=False) for part in h.split(group, dim=2)]
            spectra.append(torch.stack(parts, dim=1))
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
