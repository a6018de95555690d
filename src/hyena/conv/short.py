"""Short depthwise causal convolution, at once or as the input arrives.

Dimensions: B batch, L length, C channels, K taps, n new positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters.narrow import narrow_axis


@ops.fusible
class ShortConv(nn.Module):
    """Depthwise causal convolution of a few taps: ``y_t = sum_j weight[:, K-1-j] x_{t-j} + bias``.

    Args:
        channels: C.
        taps: K.
        bias: whether there is a bias.
    """

    bias: Tensor | None

    def __init__(
        self,
        channels: int,
        taps: int = 3,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or taps < 1:
            raise ValueError(f"channels and taps must be at least 1, got {channels} and {taps}")
        self.weight = nn.Parameter(torch.empty(channels, taps, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @property
    def taps(self) -> int:
        """K."""
        return self.weight.size(1)

    def reset_parameters(self) -> None:
        """``nn.Conv1d``'s initialisation."""
        bound = self.taps**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """Convolves along the sequence.

        Args:
            x: ``(B, L, C)``; with ``memory`` the next positions of its rows.
            mask: ``(B, L)`` bool, True = keep: applied to ``x`` and to the result, so that the bias does not leak into
                padding.
            cu_seqlens: ``(rows + 1,)`` offsets of packed rows; then ``B = 1``.
            memory: from :meth:`allocate`, the last ``K - 1`` inputs; changed in place.

        Returns:
            ``(B, L, C)``, in the dtype of ``x``, or of ``memory``.
        """
        if memory is None:
            return ops.short_conv(x, self.weight, self.bias, mask, cu_seqlens)
        x = x.to(memory.dtype)
        if mask is not None:
            x = torch.where(mask[..., None], x, 0.0)
        y = self._extend(x, memory)
        return y if mask is None else torch.where(mask[..., None], y, 0.0)

    def _extend(self, x: Tensor, memory: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)``, in the dtype of both."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        before, n = memory.size(1), x.size(1)
        if n == 1:
            return ops.short_step_(x, weight, bias, memory)
        x = torch.cat([memory, x], dim=1)
        y = ops.short_conv(x, weight, bias)[:, before:]
        memory.copy_(x[:, n:])
        return y

    def narrow(self, channels: range, of: int) -> ShortConv:
        """The convolution of some channels of each part of ``of`` channels, with this one's weights.

        Raises:
            ValueError: it does more than this class says: hooks, a parametrisation.
        """
        if not ops.is_plain(self, ShortConv):
            raise ValueError(
                f"this {type(self).__name__} has hooks, a parametrisation or code of its own: no part can be taken"
            )
        tensors = {name: narrow_axis(t, 0, channels, of) for name, t in self.named_parameters()}
        return ops.with_tensors(self, tensors)

    def allocate(self, batch: int) -> Tensor:
        """The memory before the first input, ``(B, K - 1, C)`` in the dtype of the arithmetic."""
        weight = self.weight
        shape = (batch, weight.size(1) - 1, weight.size(0))
        return torch.zeros(shape, dtype=ops.compute_dtype(weight), device=weight.device)

    def extra_repr(self) -> str:
        return f"channels={self.weight.size(0)}, taps={self.taps}, bias={self.bias is not None}"
