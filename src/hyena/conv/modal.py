"""Filters in modal form, which step in constant time and memory (Laughing Hyena, arXiv 2310.18780, eq. 3.1).

``h_0`` is free, and ``h_t = sum_k Re(R_k p_k^(t-1))`` for ``t >= 1``: the impulse response of ``m`` complex states
``s_k <- p_k s_k + x``.

Dimensions: B batch, C channels of a convolution, F long filters, G filter channels, K taps, m modes, n new positions, P
transform length.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from hyena import ops

# Positions that a chunk is read in at a time: a bound on the table of powers, and long enough to spread the calls over.
_CHUNK = 128


def chunk_size(max_length: int) -> int:
    """Positions that a chunk is read in at a time, in rows of up to ``max_length``."""
    return min(_CHUNK, max_length)


def powers(decay: Tensor, angle: Tensor, count: int) -> Tensor:
    """``p^0 … p^(count-1)`` with ``p = exp(-decay + i angle)``: ``(…)`` -> complex ``(…, count)``."""
    at = torch.arange(count, device=decay.device, dtype=decay.dtype)
    return torch.polar(torch.exp(-decay[..., None] * at), angle[..., None] * at)


def response(decay: Tensor, angle: Tensor, residue: Tensor, count: int) -> Tensor:
    """``sum_k Re(R_k p_k^t)`` for ``t = 0 … count-1``: ``(…, m)`` each -> ``(…, count)``."""
    width = max(1, math.isqrt(count))
    rows = -(-count // width)
    coarse = residue[..., None] * powers(decay * width, angle * width, rows)  # (…, m, rows)
    fine = powers(decay, angle, width)  # (…, m, width)
    return (coarse.transpose(-1, -2) @ fine).real.flatten(-2)[..., :count]


class ModalFilter(nn.Module):
    """A causal filter that is a sum of decaying oscillations. An approximation, made by :func:`hyena.distill`.

    It takes a :class:`hyena.HyenaFilter`'s place in an operator: called with a length it returns taps, and operators
    that have one step in time and memory that do not depend on the context. No pole can leave the unit disc: its
    modulus is ``exp(-exp(log_decay))``.

    Args:
        channels: G.
        num_filters: F.
        order: m.
        l_max: taps that it was fitted to; the operator's own limit.
    """

    error: Tensor

    def __init__(
        self,
        channels: int,
        num_filters: int,
        order: int,
        l_max: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(channels, num_filters, order, l_max) < 1:
            raise ValueError(
                f"channels, num_filters, order and l_max must be at least 1, got {channels}, {num_filters}, {order}, "
                f"{l_max}"
            )
        self.channels, self.num_filters, self.order, self.l_max = channels, num_filters, order, l_max
        shape = (num_filters, channels, order)
        self.log_decay = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.angle = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.residue = nn.Parameter(torch.zeros(*shape, 2, device=device, dtype=dtype))
        self.first = nn.Parameter(torch.zeros(num_filters, channels, device=device, dtype=dtype))
        # Relative l2 error of each filter when it was fitted.
        self.register_buffer("error", torch.zeros(num_filters, channels, device=device, dtype=dtype))

    def modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Decay and angle ``(F, G, m)``, float64 if the weights are, else float32; residues, complex."""
        dtype = ops.compute_dtype(self.angle)
        residue = torch.view_as_complex(self.residue.to(dtype).contiguous())
        return self.log_decay.to(dtype).exp(), self.angle.to(dtype), residue

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        if length > self.l_max:
            raise ValueError(f"a filter of {length} taps is longer than this one's l_max={self.l_max}")
        with torch.autocast(self.angle.device.type, enabled=False):
            decay, angle, residue = self.modes()
            first = self.first.to(decay.dtype)[..., None]
            h = first if length == 1 else torch.cat([first, response(decay, angle, residue, length - 1)], dim=-1)
        return h.transpose(1, 2)

    def extra_repr(self) -> str:
        return (
            f"approximate, order={self.order}, channels={self.channels}, num_filters={self.num_filters}, "
            f"largest relative error {self.error.max().item():.1e}"
        )


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
        decay, angle, residue = source.modes()
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
