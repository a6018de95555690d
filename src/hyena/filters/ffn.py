"""The FFN with sine activations that turns features of time into filter taps.

Dimensions: B batch, K taps, E features, W width, O outputs, S sine layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hyena import ops
from hyena.filters._initial import empty, fill
from hyena.filters.base import check_finite, check_integers

# Positions to a wave of the taps that training starts from; and the highest frequency that is chosen for it.
WAVELENGTH = 8.0
HIGHEST = 15.0


def start_frequency(positions: float, emb_dim: int, sine_layers: int) -> float:
    """Chooses the frequency at which a :class:`SineFFN` starts with taps of waves about eight positions long.

    A sine layer with weights of ``nn.Linear``'s initialisation makes waves ``sqrt(6) / freq`` times as long as those of
    its input, so S layers turn encodings of ``b`` cycles in a unit of time (root mean square over the features) into
    taps of ``b (freq / sqrt(6))^S``; measured, that is within a few percent from two sine layers and 20 cycles on. At
    one frequency for all lengths short filters start as noise and long ones without detail; both train worse
    (docs/results.md).

    Args:
        positions: in a unit of time.
        emb_dim: features E of a :class:`hyena.filters.PositionalEncoding`.
        sine_layers: S.
    """
    bands = (emb_dim - 1) // 2
    cycles = math.sqrt(max(1.0, (bands - 1) * (2 * bands - 1) / 6))  # of the bands 0, 1, … bands - 1, at least one
    return min(HIGHEST, math.sqrt(6.0) * (max(1.0, positions / WAVELENGTH) / cycles) ** (1.0 / max(1, sine_layers)))


@ops.fusible
class FilterLinear(NonDynamicallyQuantizableLinear):
    """An ``nn.Linear`` in a filter: it computes in the dtype of its input, whatever its weights' own.

    Its base class marks layers that quantisation shall leave alone, which ``torch.ao`` and torchao's ``quantize_`` do:
    rounding these weights to 8 bits moves the taps by 15 %, and saves nothing, because a filter runs once for a whole
    batch. Adapters (LoRA), pruning and parametrisations work as on any ``nn.Linear``.
    """

    after_reset: Callable[[], None] | None = None
    """Called at the end of :meth:`reset_parameters`; a filter scales its last layer then."""

    def reset_parameters(self) -> None:
        """``nn.Linear``'s own initialisation."""
        if self.weight.is_meta:
            return
        bound = self.in_features**-0.5
        for p in (self.weight, self.bias):
            if p is not None:
                fill(p, empty(p).uniform_(-bound, bound))
        if self.after_reset is not None:
            self.after_reset()

    def forward(self, input: Tensor) -> Tensor:
        """``(K, in) -> (K, out)`` in the dtype of ``input``."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class SineLayers(nn.Module):
    """The layers of a :class:`SineFFN` without a frequency of their own, which they are called with.

    Args:
        emb_dim, width, outputs, inner_layers, freq: as :class:`SineFFN`.
    """

    def __init__(
        self,
        emb_dim: int,
        width: int,
        outputs: int,
        *,
        inner_layers: int = 2,
        freq: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_finite(freq=freq)
        check_integers(width=width, inner_layers=inner_layers)
        if width < 1 or inner_layers < 0:
            raise ValueError(f"width must be at least 1 and inner_layers at least 0, got {width} and {inner_layers}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = [emb_dim] + [width] * (1 + inner_layers)
        self.hidden = nn.ModuleList(FilterLinear(a, b, **at) for a, b in pairwise(sizes))
        self.out = FilterLinear(width, outputs, bias=False, **at)
        self.initial_freq = freq

    def reset_parameters(self) -> None:
        """``nn.Linear``'s own initialisation, as in the released code."""
        for layer in [*self.hidden, self.out]:
            layer.reset_parameters()

    def forward(self, features: Tensor, freq: Tensor, film: Tensor | None = None) -> Tensor:
        """``(K, E) -> (K, O)`` in the dtype of ``features``, whatever the weights' own.

        With ``film`` ``(B, S, 2, W)`` ``(B, K, O)``: for each row of a batch what is added to the scale of a sine
        layer's input, which is 1, and its shift.
        """
        x, freq = features, freq.to(features.dtype)
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            if film is not None:
                scale, shift = film[:, i, :, None].unbind(1)  # (B, 1, W) each
                x = x + scale * x + shift
            x = torch.sin(freq * x)
        return self.out(x)


@ops.fusible
class SineFFN(SineLayers):
    """``E -> W -> … -> W -> O`` with ``sin(freq * x)`` between (arXiv 2302.10866, sec. 3.3; SIREN, arXiv 2006.09661).

    One trainable ``freq`` vector is shared by all layers, as in the released code. The last layer has no bias.

    Args:
        emb_dim: features E.
        width: hidden width W.
        outputs: O, one for each filter channel.
        inner_layers: hidden layers after the first.
        freq: start of ``freq``.
    """

    def __init__(self, emb_dim: int, width: int, outputs: int, **settings: Any) -> None:
        super().__init__(emb_dim, width, outputs, **settings)
        self.freq = nn.Parameter(self.out.weight.new_empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``nn.Linear``'s own initialisation, as in the released code, and ``freq`` at its start."""
        super().reset_parameters()
        fill(self.freq, empty(self.freq).fill_(self.initial_freq))

    def forward(self, features: Tensor, film: Tensor | None = None) -> Tensor:  # type: ignore[override]  # has its freq
        """``(K, E) -> (K, O)``, with ``film`` ``(B, K, O)``; see ``SineLayers``."""
        return super().forward(features, self.freq, film)

    def extra_repr(self) -> str:
        return f"freq={self.initial_freq:.4g}"
