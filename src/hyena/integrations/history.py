"""What a layer has seen of a sequence, and the state from which its mixer goes on.

Dimensions: B batch, L new positions, S all positions, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena.integrations.masks import require

_LEAST_ROOM = 128  # positions; making a smaller state again would cost more than the memory it saves


class MixerHistory:
    """The inputs of one layer so far, and its mixer's state after them.

    With the state a new position costs a step. The inputs are kept beside it, a small part of its memory, to make the
    state again where it cannot serve: after :meth:`crop`, when a sequence outgrows it (room doubles each time), and
    where gradients are wanted, which no state carries: then the mixer runs over all inputs.
    """

    def __init__(self) -> None:
        self.length = 0
        self._inputs: Tensor | None = None  # (B, room, D)
        self._kept: Tensor | None = None  # (B, S) bool; None = all
        self._state: Any = None
        # A state and how many positions it has seen, from which to go on after a crop. Whoever crops does it again and
        # again (drafts of assisted decoding), never behind an earlier crop.
        self._restart: tuple[int, Any] | None = None
        self._was_cropped = False

    def extend(
        self, mixer: Any, x: Tensor, keep: Tensor | None, mask: Tensor | None = None, *, continues: bool = True
    ) -> Tensor:
        """The mixer's outputs ``(B, L, D)`` for its next inputs.

        Args:
            mixer: the layer's mixer, the same at every call.
            x: ``(B, L, D)``.
            keep: ``(B, S)`` bool, True = keep, of the positions before as well; None = all.
            mask: the tensor that ``keep`` was made from, to check it once for all layers.
            continues: whether something will follow. Otherwise the first positions cost what they cost without a
                state, which is made if something follows all the same.

        Raises:
            ValueError: a two-sided mixer that has seen something, a mixer that cannot step, more positions than its
                ``l_max``, another batch, or padding that has changed.
        """
        before, total = self.length, self.length + x.size(1)
        self._check(mixer, x, keep, mask)
        at_once = torch.compiler.is_compiling() or mixer.training or (before == 0 and not continues)
        if at_once or _wants_gradient(mixer, x, self._inputs):
            inputs = x if self._inputs is None else torch.cat([self._inputs[:, :before], x], dim=1)
            y = mixer(inputs, keep)[:, before:]
            self._inputs, self._state, self._restart = inputs, None, None
        else:
            y = self._step(mixer, x, keep)
            self._write(x)
        self._kept, self.length = keep, total
        return y

    def _check(self, mixer: Any, x: Tensor, keep: Tensor | None, mask: Tensor | None) -> None:
        before, total = self.length, self.length + x.size(1)
        if self._inputs is not None and self._inputs.size(0) != x.size(0):
            raise ValueError(f"the cache holds {self._inputs.size(0)} rows, and {x.size(0)} go on")
        if before > 0 and not mixer.causal:
            raise ValueError(
                f"{before} positions are cached, and a two-sided mixer (causal=False) changes their outputs with every "
                "new one: pass use_cache=False"
            )
        if mixer.l_max is not None and total > mixer.l_max:
            raise ValueError(
                f"{before} positions and {total - before} more are longer than this layer's l_max={mixer.l_max}; "
                f"replace the attention with l_max={total} or more"
            )
        if before == 0 or (keep is None and self._kept is None) or torch.compiler.is_compiling():
            return
        everything = torch.ones(x.size(0), before, dtype=torch.bool, device=x.device)
        now, then = (everything if k is None else k[:, :before] for k in (keep, self._kept))
        require(
            lambda: (now == then).all(),
            f"the mask of the {before} cached positions differs from the one they were computed with: pass the same "
            "padding at every call, as one attention_mask of all positions",
            now if mask is None else mask,
            f"{before} cached",
        )

    def _step(self, mixer: Any, x: Tensor, keep: Tensor | None) -> Tensor:
        before, total = self.length, self.length + x.size(1)
        if before == 0 and not mixer.causal:
            return mixer(x, keep)
        if self._state is None or self._state.max_length < total:
            try:
                self._restore(mixer, x.size(0), total)
            except ValueError:
                if before > 0:
                    raise
                return mixer(x, keep)  # it has no state, and whether one is needed shows when something follows
        y, self._state = mixer.prefill(x, self._state, None if keep is None else keep[:, before:])
        return y

    def _restore(self, mixer: Any, rows: int, total: int) -> None:
        """Makes the state after the ``length`` positions that came, with room for ``total``."""
        start, state = self._restart or (0, None)
        if state is None or state.max_length < total:
            start, state = 0, mixer.init_state(rows, _room(total + 1, mixer.l_max))
        else:
            state = state.clone()
        if start < self.length:
            assert self._inputs is not None
            keep = None if self._kept is None else self._kept[:, start:]
            _, state = mixer.prefill(self._inputs[:, start : self.length], state, keep)
        self._restart = (self.length, state.clone()) if self._was_cropped else None
        self._state = state

    @torch.no_grad()
    def _write(self, x: Tensor) -> None:
        before, total = self.length, self.length + x.size(1)
        old = self._inputs
        if old is None or old.size(1) < total or old.requires_grad:
            with torch.inference_mode(False):  # memory that was made in inference mode could not be written to later
                self._inputs = x.new_empty(x.size(0), _room(total, None), x.size(2))
                if old is not None:
                    self._inputs[:, :before] = old[:, :before]
        assert self._inputs is not None
        self._inputs[:, before:total] = x

    def crop(self, positions: int) -> None:
        """Forgets the last positions.

        Args:
            positions: how many to forget, as a negative number; a positive one is how many to keep.
        """
        length = self.length + positions if positions <= 0 else min(positions, self.length)
        if length < 0:
            raise ValueError(f"{-positions} positions cannot be forgotten of {self.length}")
        if length == self.length:
            return
        if self._restart is not None and self._restart[0] > length:
            self._restart = None
        self._kept = None if self._kept is None else self._kept[:, :length]
        self.length, self._state, self._was_cropped = length, None, True

    def select(self, rows: Tensor) -> None:
        """Goes on with ``rows`` of the batch: ``(B',)`` indices in any order, or ``(B,)`` bool."""
        if self._inputs is None:
            return
        rows = rows.to(self._inputs.device)
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        with torch.inference_mode(False):
            rows = rows.clone()
            self._inputs = self._inputs.index_select(0, rows)
            self._kept = None if self._kept is None else self._kept.index_select(0, rows)
            self._state = None if self._state is None else self._state.reorder(rows)
            if self._restart is not None:
                self._restart = (self._restart[0], self._restart[1].reorder(rows))

    def forget(self) -> None:
        """Starts again, with nothing seen."""
        MixerHistory.__init__(self)

    @property
    def rows(self) -> int:
        """B, 0 before the first input."""
        return 0 if self._inputs is None else self._inputs.size(0)


def _room(positions: int, limit: int | None) -> int:
    """The next power of two; at most ``limit``."""
    room = max(_LEAST_ROOM, 1 << (positions - 1).bit_length())
    return room if limit is None else min(room, limit)


def _wants_gradient(mixer: Any, x: Tensor, inputs: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = (x, *([] if inputs is None else [inputs]), *mixer.parameters())
    return any(t.requires_grad for t in tensors)
