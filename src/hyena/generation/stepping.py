"""An operator's outputs for an input that comes bit by bit.

Dimensions: B batch, C channels of a convolution, D channels (d_model), F long filters, G filter channels, M heads, N
order, T longest row, W inner width, n new positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyena import ops
from hyena.conv.cache import may_cache
from hyena.conv.modal import ModalFilters, chunk_size
from hyena.conv.tiled import BLOCK, TiledFilters, tile_sizes, tile_spectra
from hyena.filters import ModalFilter
from hyena.generation.state import HyenaState, StateSize
from hyena.mixers.hyena import HyenaOperator


# Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
@torch.inference_mode(False)
@torch.no_grad()
def init_state(op: HyenaOperator, batch: int, max_length: int | None = None) -> HyenaState:
    """See :meth:`hyena.HyenaOperator.init_state`."""
    length = _check(op, batch, max_length)
    dtype, device = ops.compute_dtype(op.short_weight), op.short_weight.device
    channels = conv_channels(op)
    bias = tuple(
        op.filter_bias[i].to(dtype).repeat_interleave(c // op.filter_bias.size(1)) for i, c in enumerate(channels)
    )
    short = torch.zeros(batch, op.short_weight.size(1) - 1, op.short_weight.size(0), dtype=dtype, device=device)
    if isinstance(op.filter, ModalFilter):
        modes = ModalFilters.of(op.filter, channels, bias, length)
        return HyenaState(0, short, modes.allocate(batch), modes)
    taps, tiles = _taps_and_tiles(op, length)
    near = torch.nn.functional.pad(taps[:, :BLOCK], (0, 0, 0, max(0, BLOCK - length))).flip(1)
    heads = tuple(near[i].repeat_interleave(c // near.size(2), dim=1).clone() for i, c in enumerate(channels))
    for head, d in zip(heads, bias, strict=True):
        head[BLOCK - 1] += d
    filters = TiledFilters(taps, heads, bias, tuple(tiles))
    return HyenaState(0, short, filters.allocate(batch), filters)


def state_size(op: HyenaOperator, batch: int, max_length: int | None = None) -> StateSize:
    """See :func:`hyena.generation.state_size`."""
    length = _check(op, batch, max_length)
    number = ops.compute_dtype(op.short_weight).itemsize
    channels = conv_channels(op)
    short = (op.short_weight.size(1) - 1) * op.short_weight.size(0)
    if isinstance(op.filter, ModalFilter):
        modes, chunk = op.filter.num_modes, chunk_size(length)
        spectra = op.num_filters * op.filter_channels * 2 * (ops.transform_length(chunk) + 1)
        shared = sum(channels) * (2 * modes * (chunk + 3) + 2) + spectra
        return StateSize(number * batch * (short + 2 * modes * sum(channels)), number * shared)
    spectra = sum(2 * (size + 1) for size in tile_sizes(length, BLOCK))
    filters = op.num_filters * op.filter_channels * (length + spectra) + sum(channels) * (BLOCK + 1)
    return StateSize(rows=number * batch * (short + length * sum(channels)), shared=number * filters)


def conv_channels(op: HyenaOperator) -> list[int]:
    """Channels C of each long convolution: W, or ``W * W / M`` where it runs over an outer product."""
    channels, outer = [], False
    for i in range(op.num_filters):
        gated = i > 0 or not op.value_filter
        outer = op.num_heads > 1 and gated and not outer
        channels.append(op.width * (op.width // op.num_heads) if outer else op.width)
    return channels


def _check(op: HyenaOperator, batch: int, max_length: int | None) -> int:
    if not op.causal:
        raise ValueError("an operator with causal=False needs the whole input at once; only causal ones can be stepped")
    if op.num_blocks > 1:
        raise ValueError(
            f"num_blocks={op.num_blocks} cuts a row into equal blocks, whose borders depend on the whole row's length: "
            "outputs would change as the row grows, so it cannot be stepped"
        )
    if getattr(op.filter, "depends_on_length", False):
        raise ValueError(
            "this filter's taps depend on the length of the input (depends_on_length = True): outputs would change as "
            "the row grows, so it cannot be stepped"
        )
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    length = op.l_max if max_length is None else max_length
    if not 1 <= length <= op.l_max:
        raise ValueError(f"max_length must be 1 to this operator's l_max={op.l_max}, got {length}")
    return length


def _taps_and_tiles(op: HyenaOperator, length: int) -> tuple[Tensor, list[Tensor]]:
    """Taps ``(F, T, G)`` and the spectra of their tiles, in eval mode out of the operator's cache."""
    source = op.filter
    dtype, device = ops.compute_dtype(op.short_weight), op.short_weight.device
    if source is None:  # order 1: gates and the short filter alone
        return torch.zeros(0, length, 1, dtype=dtype, device=device), []
    filters, channels = op.num_filters, op.filter_channels

    def compute() -> Tensor:
        h = source(length)
        if h.shape != (filters, length, channels):
            expected = (filters, length, channels)
            raise ValueError(f"the filter returned taps of shape {tuple(h.shape)}, this operator needs {expected}")
        h = h.to(dtype)
        # Spectra first: they have even sizes, and complex numbers cannot start at an odd place, as behind odd taps.
        return torch.cat([t.reshape(-1) for t in (*tile_spectra(h, BLOCK), h)])

    key = ("tiles", length, BLOCK)
    flat = op._spectra.get(source, key, compute) if may_cache(source) else compute()
    shapes = [(filters, channels, size + 1, 2) for size in tile_sizes(length, BLOCK)] + [(filters, length, channels)]
    *tiles, taps = (
        part.view(shape) for part, shape in zip(flat.split([math.prod(s) for s in shapes]), shapes, strict=True)
    )
    return taps, tiles


@torch.no_grad()
def prefill(op: HyenaOperator, u: Tensor, state: HyenaState, mask: Tensor | None = None) -> tuple[Tensor, HyenaState]:
    """See :meth:`hyena.HyenaOperator.prefill`."""
    _check_input(op, u, state)
    if mask is not None and (mask.shape != u.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be a bool tensor of shape {tuple(u.shape[:2])}, True where a position is kept; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )
    z = op.in_proj(u)
    *x, v = _short_conv(op, z, state, mask).split(op.width, dim=2)
    y = op._recurrence(x, v, lambda i, v: state.filters.extend(i, state.memory[i], state.position, v.flatten(2)))
    state.position += u.size(1)
    y = y.to(z.dtype)
    if op.activation is not None:
        y = op.activation(y)
    return op.out_proj(y), state


def step(op: HyenaOperator, u: Tensor, state: HyenaState, mask: Tensor | None = None) -> tuple[Tensor, HyenaState]:
    """See :meth:`hyena.HyenaOperator.step`."""
    if u.dim() != 2:
        raise ValueError(f"a step takes one position, (B, {op.d_model}), got {tuple(u.shape)}; prefill takes several")
    y, state = prefill(op, u[:, None], state, None if mask is None else mask[:, None])
    return y[:, 0], state


def _check_input(op: HyenaOperator, u: Tensor, state: HyenaState) -> None:
    if u.dim() != 3 or u.size(0) != state.batch or u.size(1) < 1 or u.size(2) != op.d_model:
        raise ValueError(
            f"expected new positions of shape ({state.batch}, n, {op.d_model}), n at least 1, got {tuple(u.shape)}"
        )
    if op.training and op.dropout.p > 0:
        raise ValueError(
            f"this operator is in training mode and drops values (dropout={op.dropout.p}); call eval() before stepping"
        )
    state.check_room(u.size(1), f"this operator's l_max={op.l_max}")


def _short_conv(op: HyenaOperator, z: Tensor, state: HyenaState, mask: Tensor | None) -> Tensor:
    """Gates and value of the new positions, ``(B, n, (N+1) W)`` in the compute dtype."""
    before = state.short.size(1)
    z = z.to(state.short.dtype)
    if mask is not None:
        z = torch.where(mask[..., None], z, 0.0)
    z = torch.cat([state.short, z], dim=1)
    weight, bias = op.short_weight.to(z.dtype), op.short_bias.to(z.dtype)
    if z.size(1) == before + 1:
        x = (z * weight.t()).sum(1, keepdim=True) + bias
    else:
        x = ops.short_conv(z, weight, bias)[:, before:]
    state.short.copy_(z[:, z.size(1) - before :])
    return x if mask is None else torch.where(mask[..., None], x, 0.0)
