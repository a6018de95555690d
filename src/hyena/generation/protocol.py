"""The interface of a model that text can be generated with, and its mode while it generates.

Dimensions: B batch, n new positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class LanguageModel(Protocol):
    """What :func:`hyena.generation.generate` asks of a module: logits for the next tokens, given a state.

    ``config`` has ``l_max`` and ``vocab_size``. A state has ``max_length``, how many tokens fit it.
    :class:`hyena.models.Decoder` is such a model.
    """

    config: Any

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""

    def check_can_decode(self, *, needs_logits: bool) -> None:
        """Raises ``ValueError`` if this model has no output for each position; with ``needs_logits``, if no logits."""

    def init_state(self, batch: int, max_length: int | None = None) -> Any:
        """The state before the first token."""

    def prefill(self, tokens: Tensor, state: Any, mask: Tensor | None = None, *, last: bool = False) -> tuple[Any, Any]:
        """Logits ``(B, n, V)`` after each of the next tokens ``(B, n)``; with ``last`` of one position, the last."""

    def modules(self) -> Iterator[nn.Module]:
        """As ``nn.Module.modules``."""


@contextmanager
def eval_mode(model: LanguageModel | nn.Module) -> Iterator[None]:
    """Puts a model into eval mode; afterwards each of its submodules has the mode that it had before."""
    training = [(module, module.training) for module in model.modules()]  # parents before their children
    changed = any(mode for _, mode in training)
    if changed:
        training[0][0].eval()
    try:
        yield
    finally:
        if changed:
            for module, mode in training:
                if module.training != mode:
                    module.train(mode)  # and its children, whose own turn comes later
