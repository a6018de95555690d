"""Online convolution with a filter in modal form: constant time and memory (Laughing Hyena, arXiv 2310.18780, eq. 3.1).

``h_t = sum_k Re(R_k p_k^(t-1))`` for ``t >= 1`` is the impulse response of ``m`` states ``s_k <- p_k s_k + x``, complex
ones where a pole or a residue is.

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, K taps, m modes, n new positions, P
transform length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from hyena import ops
from hyena.conv.online import Online
from hyena.filters._exponentials import powers
from hyena.filters.base import Modes

# Positions that a chunk is read in at a time: a bound on the table of powers, and long enough to spread the calls over.
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Recurrence(Online):
    """Online form of filters in modal form; its memory is ``m`` states a channel, whatever the row's length.

    Args:
        max_length: longest row; memory does not depend on it.
        pole, residue: for each filter ``(C, m)``, real or complex.
        bias: for each filter ``(C,)``, the weight of the input itself beside the filter.
        first: for each filter ``(C,)``, lag 0 and ``bias`` together.
        powers: for each filter ``(C, m, chunk + 1)``, powers 0, 1, … of the poles.
        spectra: for each filter ``(G, P + 1, 2)``, of its first taps.
    """

    pole: tuple[Tensor, ...]
    residue: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    powers: tuple[Tensor, ...]
    spectra: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        modes: Modes,
        taps_of: Callable[[int], Tensor],
        channels: list[int],
        bias: tuple[Tensor, ...],
        max_length: int,
    ) -> Recurrence:
        """For convolutions of so many channels each, and their inputs' own weights ``bias``, each ``(C,)``.

        ``taps_of`` gives the filters' first taps ``(F, length, G)``.
        """
        chunk = min(_CHUNK, max_length)
        if modes.is_real:
            table = torch.exp(-modes.decay[..., None] * torch.arange(chunk + 1, device=modes.decay.device))
        else:
            table = powers(modes.decay, modes.angle, chunk + 1)
        taps = taps_of(chunk).to(modes.decay.dtype)
        spectra = ops.filter_spectrum(taps, ops.transform_length(chunk))
        repeat = [c // taps.size(2) for c in channels]

        def each(t: Tensor) -> tuple[Tensor, ...]:
            return tuple(t[i].repeat_interleave(r, dim=0) for i, r in enumerate(repeat))

        first = tuple(d + h for d, h in zip(bias, each(taps[:, 0]), strict=True))
        residue = each(modes.residue)
        return cls(max_length, each(table[..., 1]), residue, bias, first, each(table), tuple(spectra.unbind()))

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter its states ``(B, C, m)``."""
        return [pole.new_zeros(batch, *pole.shape) for pole in self.pole]

    def to(self, device: torch.device | str) -> Recurrence:
        """The same on another device, with spectra as that one's backend has them."""
        fields = (self.pole, self.residue, self.bias, self.first, self.powers)
        pole, residue, bias, first, table = (tuple(t.to(device) for t in field) for field in fields)
        spectra = tuple(ops.move_spectrum(t, device) for t in self.spectra)
        return Recurrence(self.max_length, pole, residue, bias, first, table, spectra)

    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)`` of convolution ``i``; see :meth:`hyena.conv.Online.extend`."""
        if x.size(1) == 1:
            return self.extend_gated(i, memory, position, x, None, None)
        chunk = self.powers[i].size(-1) - 1
        return torch.cat([self._chunk(i, memory, part) for part in x.split(chunk, dim=1)], dim=1)

    def extend_gated(
        self, i: int, memory: Tensor, position: int, x: Tensor, pre: Tensor | None, post: Tensor | None
    ) -> Tensor:
        """``post * extend(…, pre * x)``; see :meth:`hyena.conv.Online.extend_gated`."""
        if x.size(1) > 1:
            return super().extend_gated(i, memory, position, x, pre, post)
        return ops.modal_step_(x, pre, post, self.pole[i], self.residue[i], self.first[i], memory)

    def step_short_and_gated(
        self, z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, memory: Tensor
    ) -> Tensor:
        """See :meth:`hyena.conv.Online.step_short_and_gated`."""
        return ops.gated_modal_step_(z, weight, bias, last, self.pole[0], self.residue[0], self.first[0], memory)

    def _chunk(self, i: int, memory: Tensor, x: Tensor) -> Tensor:
        n, table = x.size(1), self.powers[i]
        y = ops.gated_conv(x, self.spectra[i], self.bias[i])
        y = y + _real(torch.einsum("bcm,cmn->bnc", self.residue[i] * memory, table[..., :n]))
        new = torch.einsum("bnc,cmn->bcm", x.to(table.dtype), table[..., :n].flip(-1))
        memory.mul_(table[..., n]).add_(new)
        return y


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x
