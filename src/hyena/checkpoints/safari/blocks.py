"""The Hyena operator with what only released checkpoints have: blocks of a row, and heads mixed by matrices.

Dimensions: B batch, L length, I inner width, F long filters, M heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena.mixers import HyenaOperator, HyenaState
from hyena.mixers._arguments import check_counts, check_flags


class SafariOperator(HyenaOperator):
    """A :class:`hyena.HyenaOperator` with ``num_blocks`` and ``post_order_ffn`` of the released code.

    Args:
        d_model, l_max, options: as :class:`hyena.HyenaOperator`.
        num_blocks: cuts rows into this many blocks of equal length; the long filters do not reach across their borders
            (the short filter does). Input lengths must be a multiple. A filter that is passed as a module is that of
            one block.
        post_order_ffn: after each long convolution a trained ``M x M`` matrix mixes the heads; it starts as the
            identity.

    Raises:
        ValueError: ``l_max`` is not a multiple of ``num_blocks``, and as :class:`hyena.HyenaOperator`.
    """

    head_mixing: Tensor | None
    no_decay = ("head_mixing",)

    def __init__(
        self, d_model: int, l_max: int, *, num_blocks: int = 1, post_order_ffn: bool = False, **options: Any
    ) -> None:
        check_counts(l_max=l_max, num_blocks=num_blocks)
        check_flags(post_order_ffn=post_order_ffn)
        if l_max % num_blocks != 0:
            raise ValueError(f"l_max={l_max} is not a multiple of num_blocks={num_blocks}")
        self.num_blocks = num_blocks
        super().__init__(d_model, l_max // num_blocks, **options)
        shape = (self.conv.num_filters, self.num_heads, self.num_heads)
        mixing = torch.empty(shape, device=self.conv.bias.device, dtype=self.conv.bias.dtype)
        self.register_parameter("head_mixing", nn.Parameter(mixing) if post_order_ffn else None)
        self._reset_head_mixing()

    @property
    def l_max(self) -> int:  # type: ignore[override]
        """The longest input."""
        return self.num_blocks * self.conv.l_max

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        super().reset_parameters()
        self._reset_head_mixing()

    @torch.no_grad()
    def _reset_head_mixing(self) -> None:
        if self.head_mixing is not None:
            self.head_mixing.copy_(torch.eye(self.num_heads, device=self.head_mixing.device))

    def check_rows(self, u: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> int:
        if cu_seqlens is not None and self.num_blocks > 1:
            raise ValueError(
                f"packed rows cannot be cut into num_blocks={self.num_blocks} equal blocks; pad them instead"
            )
        longest = super().check_rows(u, cu_seqlens, max_seqlen)
        if longest % self.num_blocks != 0:
            raise ValueError(f"{longest} positions cannot be cut into num_blocks={self.num_blocks} equal blocks")
        return longest

    def _is_fused(self, longest: int) -> bool:
        return self.num_blocks == 1 and self.head_mixing is None and super()._is_fused(longest)

    def _mix_in_parts(
        self,
        z: Tensor,
        longest: int,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        condition: Tensor | None = None,
    ) -> Tensor:
        *x, v = self.short(z, mask, cu_seqlens).split(self.width, dim=2)
        blocks = self.num_blocks
        size = longest // blocks
        if condition is not None:
            condition = condition.repeat_interleave(blocks, dim=0)
        prepared = self.conv.prepare(size, condition) if self.conv.num_filters > 0 else None

        def convolve(i: int, v: Tensor) -> Tensor:
            rows = v.reshape(v.size(0) * blocks, v.size(1) // blocks, v.size(2))
            return self.conv(rows, i, cu_seqlens=cu_seqlens, longest=size, prepared=prepared).reshape(v.shape)

        return self._recurrence(x, v, convolve)

    def _recurrence(self, x: Sequence[Tensor], v: Tensor, convolve: Callable[[int, Tensor], Tensor]) -> Tensor:
        return super()._recurrence(x, v, lambda i, v: self._mix_heads(convolve(i, v), i))

    def _mix_heads(self, v: Tensor, i: int) -> Tensor:
        if self.head_mixing is None:
            return v
        heads = v.unflatten(2, (self.num_heads, -1))
        return torch.einsum("hk,blhc->blkc", self.head_mixing[i].to(v.dtype), heads).reshape(v.shape)

    def init_state(self, batch: int, max_length: int | None = None, condition: Tensor | None = None) -> HyenaState:
        """See :meth:`hyena.HyenaOperator.init_state`; rows cut into blocks cannot be stepped."""
        if self.num_blocks > 1:
            raise ValueError(
                f"num_blocks={self.num_blocks} cuts a row into equal blocks, whose borders depend on the whole row's "
                "length: outputs would change as the row grows, so it cannot be stepped"
            )
        return super().init_state(batch, max_length, condition)

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`hyena.HyenaOperator.extend`."""
        if l_max % self.num_blocks != 0:
            raise ValueError(f"l_max={l_max} is not a multiple of num_blocks={self.num_blocks}")
        super().extend(l_max // self.num_blocks, mode)

    def to_matrix(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        channels: slice = slice(None),
        condition: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`hyena.HyenaOperator.to_matrix`; with blocks it is block-diagonal.

        Raises:
            ValueError: with ``post_order_ffn``, which mixes heads, so that no such matrix exists.
        """
        if self.head_mixing is not None:
            raise ValueError("with post_order_ffn heads mix between the convolutions: H(u) does not act on one channel")
        longest = self.check_rows(u, None, None)
        size = longest // self.num_blocks
        *x, _ = self.short(self.in_proj(u), mask).split(self.width, dim=2)
        gates = torch.stack(x, dim=1)
        parts = [self._matrix(part, channels, condition) for part in gates.split(size, dim=2)]
        whole = parts[0].new_zeros(*parts[0].shape[:2], longest, longest)
        for i, part in enumerate(parts):
            at = slice(i * size, (i + 1) * size)
            whole[..., at, at] = part
        return whole

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_blocks={self.num_blocks}, post_order_ffn={self.head_mixing is not None}"
