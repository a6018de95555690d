"""Online convolution with filters in modal form: a step in constant time and memory (arXiv 2310.18780, eq. 3.1).

``s_k <- p_k s_k + x`` for each of ``m`` complex states.

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, K taps, m modes, n new positions, P
transform length.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena import ops
from hyena.filters.modal import ModalFilter, powers

# Positions that a chunk is read in at a time: a bound on the table of powers, and long enough to spread the calls over.
_CHUNK = 128


def chunk_size(max_length: int) -> int:
    """Positions that a chunk is read in at a time, in rows of up to ``max_length``."""
    return min(_CHUNK, max_length)


@dataclasses.dataclass(frozen=True)
class ModalFilters:
    """Modal filters to step through: what :class:`hyena.conv.tiled.TiledFilters` is for exact ones.

    Args:
        max_length: T, the operator's limit; memory does not depend on it.
        pole, residue: for each filter complex ``(C, m)``.
        bias: for each filter ``(C,)``, the weight of the input itself beside the filter.
        first: for each filter ``(C,)``, lag 0 and ``bias`` together.
        powers: for each filter complex ``(C, m, chunk)``, powers 0, 1, … of the poles.
        spectra: for each filter ``(G, P + 1, 2)``, of its first taps.
    """

    max_length: int
    pole: tuple[Tensor, ...]
    residue: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    powers: tuple[Tensor, ...]
    spectra: tuple[Tensor, ...]

    @classmethod
    def of(cls, source: ModalFilter, channels: list[int], bias: tuple[Tensor, ...], max_length: int) -> ModalFilters:
        """For convolutions of so many channels each, and their inputs' own weights ``bias``, each ``(C,)``."""
        decay, angle, residue, _ = source.modes()
        chunk = chunk_size(max_length)
        taps = source(min(chunk, source.l_max))
        table, size = powers(decay, angle, chunk + 1), ops.transform_length(chunk)
        repeat = [c // source.channels for c in channels]
        spectra = ops.filter_spectrum(taps, size)

        def each(t: Tensor) -> tuple[Tensor, ...]:
            return tuple(t[i].repeat_interleave(r, dim=0) for i, r in enumerate(repeat))

        first = tuple(d + h for d, h in zip(bias, each(taps[:, 0]), strict=True))
        return cls(max_length, each(table[..., 1]), each(residue), bias, first, each(table), tuple(spectra.unbind()))

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter its states, complex ``(B, C, m)``."""
        return [pole.new_zeros(batch, *pole.shape) for pole in self.pole]

    def to(self, device: torch.device | str) -> ModalFilters:
        """The same on another device, with spectra as that one's backend has them."""
        fields = (self.pole, self.residue, self.bias, self.first, self.powers)
        pole, residue, bias, first, powers = (tuple(t.to(device) for t in field) for field in fields)
        spectra = tuple(ops.move_spectrum(t, device) for t in self.spectra)
        return ModalFilters(self.max_length, pole, residue, bias, first, powers, spectra)

    def extend(self, i: int, memory: Tensor, at: int, x: Tensor) -> Tensor:
        """The outputs ``(B, n, C)`` of convolution ``i`` for its next inputs ``x``; changes ``memory``."""
        if x.size(1) == 1:
            now = x[:, 0]
            y = torch.addcmul((self.residue[i] * memory).real.sum(-1), now, self.first[i])
            memory.mul_(self.pole[i]).add_(now[..., None])
            return y[:, None]
        chunk = self.powers[i].size(-1) - 1
        return torch.cat([self._chunk(i, memory, part) for part in x.split(chunk, dim=1)], dim=1)

    def _chunk(self, i: int, memory: Tensor, x: Tensor) -> Tensor:
        n, table = x.size(1), self.powers[i]
        y = ops.gated_conv(x, self.spectra[i], self.bias[i])
        y = y + torch.einsum("bcm,cmn->bnc", self.residue[i] * memory, table[..., :n]).real
        new = torch.einsum("bnc,cmn->bcm", x.to(table.dtype), table[..., :n].flip(-1))
        memory.mul_(table[..., n]).add_(new)
        return y
