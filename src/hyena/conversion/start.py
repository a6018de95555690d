"""Hyena's start from what attention computes on average: its values, and filters fitted to its map's diagonals.

Attention is ``W_o A(u) (W_v u)``. Gates of one, the short convolution's tap at lag 0 and filters ``h_k``, the mean
of the map's entries ``k`` below the diagonal, make Hyena ``W_o T(h) (W_v u)``: attention with its map averaged over
all rows and positions. Training then finds what gates add.

Dimensions: B batch, L length, M heads, I inner channels, N order, F long filters, G filter channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hyena.conversion.values import Values
from hyena.mixers import HyenaOperator

# What is left of the gates' random weights: enough that channels differ, and little beside the gates' one.
GATE_SCALE = 0.1

# Adam finds the basin of an implicit filter, and L-BFGS ends exactly where taps are linear in the weights.
FIT_STEPS, FIT_LR, POLISH_STEPS = 300, 1e-2, 50


class Diagonals:
    """Means of attention maps along their diagonals, collected from calls."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (M, 2 l - 1), lags -(l-1) … l-1
        self._pairs: Tensor | None = None

    def add(self, attention: Tensor, start: int, keep: Tensor | None) -> None:
        """Adds some columns of maps.

        Args:
            attention: ``(B, L, M, n)``, of each query the weights of the keys from ``start`` on.
            start: the first of those.
            keep: ``(B, L)``; of positions that it leaves out nothing counts.
        """
        length, columns = attention.size(1), attention.size(3)
        keep = attention.new_ones(attention.shape[:2], dtype=torch.bool) if keep is None else keep
        both = keep[:, :, None] & keep[:, None, start : start + columns]  # (B, L, n)
        at = torch.arange(length, device=attention.device)
        lag = (at[:, None] - at[start : start + columns] + length - 1).flatten()
        found = attention.masked_fill(~both[:, :, None], 0.0).sum(0, dtype=torch.float64)  # (L, M, n)
        found = found.transpose(0, 1).flatten(1)
        sums = found.new_zeros(found.size(0), 2 * length - 1).index_add_(1, lag, found)
        pairs = found.new_zeros(2 * length - 1).index_add_(0, lag, both.sum(0, dtype=torch.float64).flatten())
        if self._sums is None or self._pairs is None:
            self._sums, self._pairs = sums, pairs
            return
        more = max(self._pairs.numel(), pairs.numel())
        self._sums = _centred(self._sums, more) + _centred(sums, more)
        self._pairs = _centred(self._pairs, more) + _centred(pairs, more)

    def means(self, causal: bool) -> Tensor:
        """``(M, L)`` from lag 0 on, two-sided ``(M, 2 L - 1)``, float64."""
        assert self._sums is not None
        assert self._pairs is not None
        found = self._sums / self._pairs.clamp_min(1)
        return found[:, found.size(1) // 2 :] if causal else found


def _centred(t: Tensor, size: int) -> Tensor:
    side = (size - t.size(-1)) // 2
    return nn.functional.pad(t, (side, side))


def why_not(mixer: Any) -> str | None:
    """Why a mixer cannot start from attention, or None if it can."""
    if not isinstance(mixer, HyenaOperator) or type(mixer).forward is not HyenaOperator.forward:
        return f"a {type(mixer).__name__} is no HyenaOperator"
    if mixer.conv.num_filters == 0:
        return f"order={mixer.order} has no long filters"
    if mixer.activation is not None:
        return "its activation is not linear"
    biases: list[Any] = [mixer.short.bias, mixer.in_proj.bias]
    if all(bias is None for bias in biases):
        return "without short_bias and bias gates cannot start at one"
    return None


def start_from(mixer: HyenaOperator, values: Values, means: Tensor, projections: bool = True) -> float:
    """Gives a mixer attention's average as its start.

    Args:
        mixer: changed in place.
        values: of the attention.
        means: ``(M, K)`` of :meth:`Diagonals.means`.
        projections: also its value and output projections, whose widths have to agree, and gates near one.

    Returns:
        How far the filters are from ``means``, relative l2.
    """
    if projections:
        _copy_projections(mixer, values)
    return fit_filters(mixer, means)


@torch.no_grad()
def _copy_projections(mixer: HyenaOperator, values: Values) -> None:
    gates = mixer.order * mixer.width
    weight, bias, short = mixer.in_proj.weight, mixer.in_proj.bias, mixer.short
    out: Any = mixer.out_proj
    one = 1.0 if mixer.num_heads == 1 else (mixer.num_heads / mixer.width) ** 0.5
    weight[:gates] *= GATE_SCALE
    short.weight.zero_()
    short.weight[:, -1] = 1
    start = short.bias if short.bias is not None else bias
    assert start is not None
    if bias is not None:
        bias.zero_()
    if short.bias is not None:
        short.bias.zero_()
    start[:gates] = one
    if mixer.order % 2 == 1:  # with heads too, what multiplies the output alone is no half of a pair
        start[: mixer.width] = 1
    weight[gates:] = values.weight
    if bias is not None and values.bias is not None:
        bias[gates:] += values.bias
    if values.out_weight is not None and out.weight is not None:
        out.weight.copy_(values.out_weight)
        if out.bias is not None:
            out.bias.zero_() if values.out_bias is None else out.bias.copy_(values.out_bias)


def fit_filters(mixer: HyenaOperator, means: Tensor) -> float:
    """Fits the first long filter to ``means`` and the others to none, by a short regression on the taps.

    What is left at lag 0 goes into the weight of the input itself; where there are more filters than one, those let
    their input through.
    """
    conv = mixer.conv
    channels = conv.filter_channels
    head = torch.arange(channels, device=means.device) * means.size(0) // channels
    if channels < means.size(0):  # a filter for several heads
        means = torch.stack([part.mean(0) for part in means.tensor_split(channels)])
        head = torch.arange(channels, device=means.device)
    side = means.size(1) if conv.causal else (means.size(1) + 1) // 2
    target = torch.zeros(conv.num_filters, means.size(1), channels, dtype=means.dtype, device=means.device)
    target[0] = means[head].t()
    at_zero = 0 if conv.causal else side - 1

    def taps() -> Tensor:
        h = conv.matrix_taps(side).double()  # of filters with a support only the first taps
        missing = target.size(1) - h.size(1)
        pad = (0, 0, 0, missing) if conv.causal else (0, 0, missing // 2, missing // 2)
        return nn.functional.pad(h, pad)

    scale = target.square().sum()
    _regress([p for p in conv.filter.parameters() if p.requires_grad], lambda: (taps() - target).square().sum() / scale)
    with torch.no_grad():
        left = target - taps()
        d = left[:, at_zero]  # (F, G)
        d[1:] = 1
        conv.bias.copy_(d.repeat_interleave(conv.bias.size(1) // channels, dim=1))
        left[0, at_zero] = 0
        conv.clear_cache()
        return float((left[0].square().sum() / scale).sqrt())


def _regress(weights: list[nn.Parameter], error: Callable[[], Tensor]) -> None:
    adam = torch.optim.Adam(weights, lr=FIT_LR, betas=(0.9, 0.99))
    polish = torch.optim.LBFGS(weights, max_iter=POLISH_STEPS, history_size=20, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def closure() -> float:
        adam.zero_grad()
        loss = error()
        loss.backward()
        return float(loss.detach())

    for step in range(FIT_STEPS):
        adam.param_groups[0]["lr"] = FIT_LR * (1 - step / FIT_STEPS)
        closure()
        adam.step()
    polish.step(closure)
    adam.zero_grad()
