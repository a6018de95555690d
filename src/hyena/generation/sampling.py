"""Sampling: the next token from logits, and generation for models without a decoding state.

Dimensions: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyena.generation.protocol import eval_mode


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one token for each row from ``softmax(logits / temperature)``.

    Args:
        logits: ``(B, V)``.
        temperature: below 1 the likely tokens become likelier; 0 takes the likeliest.
        top_k: only the ``top_k`` likeliest tokens can be drawn; all of them if missing, or if V is no more.
        top_p: only the likeliest tokens that together have at least this probability can be drawn (nucleus sampling,
            arXiv 1904.09751), of those that ``top_k`` leaves.
        generator: where the random numbers come from.

    Returns:
        ``(B,)`` int64.

    Raises:
        ValueError: a temperature that is negative or infinite, ``top_k`` below 1, or ``top_p`` outside (0, 1].
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    # The likeliest at 0 and a divisor that float32 has: at no temperature is a quotient infinite, or 0 / 0.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)
    if top_p is None and (top_k is None or top_k >= logits.size(-1)):
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    kept, where = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))  # the likeliest first
    p = kept.softmax(-1)
    if top_p is not None:
        # A token stays if those before it do not reach top_p yet; so the first one always does.
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    drawn = torch.multinomial(p, 1, generator=generator)
    return where.gather(-1, drawn)[:, 0]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ``ValueError`` for numbers that :func:`sample` cannot use."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__float__")):
            raise ValueError(f"{name} must be a number, got {value!r}")
    if temperature is None or not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if temperature == math.inf:
        raise ValueError(f"temperature must be finite, got {temperature}")
    check_integers(top_k=top_k)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def check_integers(**values: int | None) -> None:
    """Raises ``ValueError`` for arguments that are neither integers nor missing."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise ValueError(f"{name} must be an integer, got {value!r}")


@torch.no_grad()
def generate_by_rerun(
    model: nn.Module,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    window: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Continues each row by running the model on the whole window for every token: for any model, and to compare with.

    Args:
        model: ``(B, L) -> logits (B, L, V)``. It runs in eval mode; each of its submodules is left in the mode it was
            in.
        tokens: ``(B, L)``, at least one a row.
        max_new_tokens: how many to add.
        window: how many of the last tokens the model sees, at most its ``l_max``.
        temperature, top_k, top_p, generator: see :func:`sample`.
        vocab_size: only tokens below it are drawn; all there are logits for if missing.

    Returns:
        ``(B, L + max_new_tokens)``.

    Raises:
        ValueError: an empty prompt, or a window below 1.
    """
    if tokens.dim() != 2 or tokens.size(1) < 1:
        raise ValueError(f"tokens must be (B, L) with at least one position, got {tuple(tokens.shape)}")
    check_integers(max_new_tokens=max_new_tokens, window=window, vocab_size=vocab_size)
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    check_sampling(temperature, top_k, top_p)
    with eval_mode(model):
        for _ in range(max_new_tokens):
            logits = model(tokens[:, -window:])[:, -1, :vocab_size]
            drawn = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    return tokens
