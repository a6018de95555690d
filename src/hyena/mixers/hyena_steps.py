"""Decoding of Hyena operators: states, and the next positions of rows that have begun.

Dimensions: B batch, D channels (d_model), I inner width, N order, n new positions, Q channels of a condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena import ops
from hyena.conv.long import LongConv, Past
from hyena.conv.short import ShortConv
from hyena.mixers._gates import Gated
from hyena.mixers.base import Mixer
from hyena.mixers.hyena_state import HyenaState


class HyenaSteps(Gated, Mixer):
    """What :class:`hyena.HyenaOperator` does with a state."""

    activation: Any

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def init_state(self, batch: int, max_length: int | None = None, condition: Tensor | None = None) -> HyenaState:
        """The state before the first position.

        Args:
            batch: B.
            max_length: how many positions may come, at most and if missing ``l_max``. Memory is in proportion to it,
                unless the filters have few taps or a modal form.
            condition: ``(B, Q)``, see :meth:`forward`. The state then holds each row's filters, and a step costs as
                much as there were positions.

        Raises:
            ValueError: operators whose outputs are not known until the whole input is: ``causal=False``, and filters
                whose taps depend on the length.
        """
        why = self.conv.why_not_online()
        if why is not None:
            raise ValueError(f"{why}, so this operator cannot be stepped")
        length, channels = self.room(batch, max_length), self._conv_channels()
        short = self.short.allocate(batch)
        if condition is not None:
            self.conv.check_condition(condition, batch)
            own, memory = self.conv.own_online(channels, length, condition)
            return HyenaState(0, length, short, memory, own)
        online = self.conv.online(channels, length)
        return HyenaState(0, length, short, online.allocate(batch), online)

    def _go_on(
        self,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        state: HyenaState,
        condition: Tensor | None,
    ) -> Tensor:
        """``forward`` with a state."""
        if condition is not None:
            raise ValueError(
                f"a condition of shape {tuple(condition.shape)} came with a state, which holds the filters that its "
                "rows began with: pass it to init_state(batch, condition=...)"
            )
        if not torch.is_grad_enabled():  # as in prefill and step
            return self._continue(u, mask, cu_seqlens, max_seqlen, state)
        with torch.no_grad():
            return self._continue(u, mask, cu_seqlens, max_seqlen, state)

    def _continue(
        self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None, state: HyenaState
    ) -> Tensor:
        """:meth:`forward` of the next positions."""
        if not isinstance(state, HyenaState):
            raise ValueError(f"expected a HyenaState from this operator's init_state, got a {type(state).__name__}")
        state.check_fits(self.conv.num_filters, self.short.taps, (self.order + 1) * self.width)
        self.check_next(u, state, mask, cu_seqlens, max_seqlen)
        if self.training and self.dropout.p > 0:
            raise ValueError(
                f"this operator is in training mode and drops values (dropout={self.dropout.p}); call eval() before "
                "stepping"
            )
        z = self.in_proj(u)
        y = self._continue_between(z, mask, state)
        state.position += u.size(1)
        y = y.to(z.dtype)
        if self.activation is not None:
            y = self.activation(y)
        return self.out_proj(y)

    def _continue_between(self, z: Tensor, mask: Tensor | None, state: HyenaState) -> Tensor:
        """What happens to the next positions between the projections."""
        y = self._step_at_once(z, state) if mask is None and z.size(1) == 1 else None
        return self._continue_in_parts(z, mask, state) if y is None else y

    # A step's arithmetic takes less time than a few attributes that nn.Module looks for, so parts and weights are read
    # from where they are.
    def _step_at_once(self, z: Tensor, state: HyenaState) -> Tensor | None:
        """One position between the projections in one call, if the convolutions are no more than that."""
        if self.order != 2 or self._has_heads:
            return None
        short: Any = self._modules["short"]
        conv: Any = self._modules["conv"]
        if conv.num_filters != 1 or not ops.run_as_written(short, ShortConv, conv, LongConv):
            return None
        weight, bias = short._parameters.get("weight"), short._parameters.get("bias", short)
        if not (ops.is_plain_tensor(weight) and (bias is None or ops.is_plain_tensor(bias))):
            return None
        dtype = state.short.dtype
        if z.dtype is not dtype or weight.dtype is not dtype:
            z, weight, bias = z.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return state.online.step_short_and_gated(z, weight, bias, state.short, state.memory[0])

    def _continue_in_parts(self, z: Tensor, mask: Tensor | None, state: HyenaState) -> Tensor:
        *x, v = self.short(z, mask, memory=state.short).split(self.width, dim=2)
        past = [Past(state.online, memory, state.position) for memory in state.memory]

        def convolve(i: int, v: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
            return self.conv(v, i, pre, post, past=past[i])

        return self._recurrence(x, v, convolve) if self._has_heads else self._gated_in_turn(x, v, convolve)
