"""Text from a language model: prompts in, tokens out one by one.

Dimensions: B batch, L length of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyena.generation.model import advance, init_state
from hyena.generation.sampling import check_sampling, sample
from hyena.mixers.masks import keep_from_tokenizer

if TYPE_CHECKING:
    from hyena.models import Decoder

Prompts = Tensor | Sequence[Sequence[int] | Tensor]

DONE = -1
"""What a row that has ended gets in place of a token."""


def left_padded(prompts: Prompts, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as tokens and mask, ``(B, L)`` each, with the padding on the left.

    Padding inside or on the right of a row, where the mask is False, moves to its left.

    Raises:
        ValueError: no prompt, an empty one, or shapes that do not fit.
    """
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2:
            raise ValueError(f"prompts must be (B, L), or a list of rows of any lengths, got {tuple(prompts.shape)}")
        keep = torch.ones_like(prompts, dtype=torch.bool)
        if mask is not None:
            keep = keep_from_tokenizer(mask, prompts.shape)
        rows = [row[k] for row, k in zip(prompts, keep, strict=True)]
    elif mask is not None:
        raise ValueError("a list of prompts has no padding, so it takes no mask")
    else:
        rows = [torch.as_tensor(row) for row in prompts]
    if not rows or any(row.dim() != 1 or row.numel() < 1 for row in rows):
        raise ValueError(f"each of the prompts needs at least one token, got lengths {[row.numel() for row in rows]}")
    longest = max(row.numel() for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    keep = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        tokens[i, longest - row.numel() :] = row
        keep[i, longest - row.numel() :] = True
    return tokens, keep


def stream(
    model: Decoder,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos: int | None = None,
    stop: Iterable[Sequence[int]] = (),
    window: int | None = None,
) -> Iterator[Tensor]:
    """The tokens that continue the prompts, as they come; arguments as for :meth:`hyena.models.Decoder.generate`.

    Yields:
        ``(B,)`` int64, the next token of each row, ``-1`` for rows that have ended. It ends with the last of them.

    Raises:
        ValueError: as ``generate``, at the call and not at the first token.
    """
    model.check_decodes(logits=True)
    check_sampling(temperature, top_k, top_p)
    endings = [list(ending) for ending in stop]
    if any(not ending for ending in endings):
        raise ValueError("a stop sequence needs at least one token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    device, limit = model.embedding.weight.device, model.config.l_max
    tokens, keep = left_padded(prompts, mask, device)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(f"tokens must be 0 to {model.config.vocab_size - 1}, got {low} to {high}")
    longest = tokens.size(1)
    # The last token drawn is never read.
    if window is None and longest + max_new_tokens - 1 > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit this model's l_max={limit}; pass "
            f"window= (below {limit}) to start again from that many of the last tokens whenever it is full"
        )
    if window is not None and not 1 <= window < max(limit, 2):
        raise ValueError(f"window must be 1 to {max(limit - 1, 1)}, below this model's l_max={limit}, got {window}")
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return _stream(model, tokens, keep, max_new_tokens, options, eos, endings, window)


def _stream(
    model: Decoder,
    tokens: Tensor,
    keep: Tensor,
    new: int,
    options: dict[str, Any],
    eos: int | None,
    endings: list[list[int]],
    window: int | None,
) -> Iterator[Tensor]:
    batch, longest = tokens.shape
    limit = model.config.l_max
    text = torch.cat([tokens, tokens.new_zeros(batch, new)], dim=1)
    kept = torch.cat([keep, torch.ones_like(text[:, longest:], dtype=torch.bool)], dim=1)
    ended = torch.zeros(batch, dtype=torch.bool, device=tokens.device)
    state, start = None, 0
    training = model.training
    for at in range(longest, longest + new):
        # Entered anew for each token: a generator that yields inside would leave its caller in inference mode.
        model.eval()
        try:
            with torch.inference_mode():
                if state is None or at - start > state.max_length:
                    start = 0 if at <= limit and state is None else at - min(window or limit, at)
                    state = init_state(model, batch, min(limit, longest + new - 1 - start))
                    logits = advance(model, text[:, start:at], state, kept[:, start:at], last=True)
                else:
                    logits = advance(model, text[:, at - 1 : at], state, last=True)
                # Only what is a token: HyenaDNA's output layer is wider than its vocabulary.
                drawn = sample(logits[:, 0, : model.config.vocab_size], **options)
                text[:, at] = drawn
                given = torch.where(ended, DONE, drawn)
                if eos is not None:
                    ended = ended | (drawn == eos)
                for ending in endings:
                    if at + 1 - longest >= len(ending):
                        tail = text[:, at + 1 - len(ending) : at + 1]
                        ended = ended | (tail == torch.tensor(ending, device=tail.device)).all(1)
        finally:
            model.train(training)
        yield given.clone()
        if (eos is not None or endings) and bool(ended.all()):
            return


def generate(
    model: Decoder,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    callback: Callable[[Tensor], Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> list[Tensor]:
    """See :meth:`hyena.models.Decoder.generate`."""
    device = model.embedding.weight.device
    pieces: Iterable[Tensor] = stream(model, prompts, max_new_tokens, **options)
    if progress:
        from tqdm import tqdm

        pieces = tqdm(pieces, total=max_new_tokens, unit="token")
    drawn = []
    for piece in pieces:
        if callback is not None:
            callback(piece)
        drawn.append(piece)
    tokens, keep = left_padded(prompts, options.get("mask"), device)
    new = torch.stack(drawn, dim=1) if drawn else tokens[:, :0]
    return [torch.cat([row[k], more[more != DONE]]) for row, k, more in zip(tokens, keep, new, strict=True)]
