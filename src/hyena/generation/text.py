"""Generation of text: prompts in, new tokens out, one step of the model for each.

Dimensions: B batch, L length of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyena.generation.protocol import LanguageModel, eval_mode
from hyena.generation.sampling import check_integers, check_sampling, sample
from hyena.mixers.masks import keep_from_tokenizer

Prompts = Tensor | Sequence[Sequence[int] | Tensor]

DONE = -1
"""The token of rows that have ended."""

# Characters of an argument that an error repeats.
_SHOWN = 80


def generate(
    model: LanguageModel,
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
    chunk: int | None = None,
    callback: Callable[[Tensor], Any] | None = None,
    progress: bool = False,
) -> list[Tensor]:
    """Continues each prompt; :func:`hyena.generation.stream` does the same as an iterator over the new tokens.

    The model runs in eval mode and without gradients; each of its submodules is left in the mode it was in.

    Args:
        model: a :class:`hyena.models.Decoder`, of which this is a method, or another
            :class:`hyena.generation.LanguageModel`.
        prompts: ``(B, L)``, or a list of prompts of any lengths.
        max_new_tokens: how many tokens to add at most.
        mask: ``(B, L)``, False or 0 where a prompt has padding, on whichever side.
        temperature, top_k, top_p: see :func:`hyena.generation.sample`; temperature 0 takes the likeliest token.
        seed: of the random numbers, for the same text every time; torch's own generator if missing.
        eos: the token that ends a row.
        stop: sequences of tokens that end a row.
        window: below ``l_max``; continues past ``l_max`` by starting again from this many of the last tokens whenever
            ``l_max`` is reached. The model then forgets what came before them.
        chunk: how many positions of a prompt are read at a time, all if missing: memory for a long one is then in
            proportion to it.
        callback: called with the next token of each row, ``(B,)``, as it is drawn; -1 for rows that have ended.
        progress: shows a progress bar (with ``tqdm``).

    Returns:
        For each row the prompt and the new tokens, ``eos`` or the stop sequence included, without padding.

    Raises:
        ValueError: prompts that are no rows of tokens, prompts and new tokens that do not fit ``l_max``, or arguments
            of another kind or out of range.
    """
    pieces: Iterable[Tensor] = stream(
        model,
        prompts,
        max_new_tokens,
        mask=mask,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        eos=eos,
        stop=stop,
        window=window,
        chunk=chunk,
    )
    if progress:
        from tqdm import tqdm

        pieces = tqdm(pieces, total=max_new_tokens, unit="token")
    drawn = []
    for piece in pieces:
        if callback is not None:
            callback(piece)
        drawn.append(piece)
    tokens, keep = left_padded(prompts, mask, model.device)
    new = torch.stack(drawn, dim=1) if drawn else tokens[:, :0]
    return [torch.cat([row[k], more[more != DONE]]) for row, k, more in zip(tokens, keep, new, strict=True)]


def stream(
    model: LanguageModel,
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
    chunk: int | None = None,
) -> Iterator[Tensor]:
    """Yields the tokens that continue the prompts as they are drawn; arguments as for :func:`generate`.

    Yields:
        ``(B,)`` int64, the next token of each row, ``-1`` for rows that have ended. The iterator ends with the last.

    Raises:
        ValueError: as ``generate``, at the call and not at the first token.
    """
    model.check_can_decode(needs_logits=True)
    check_sampling(temperature, top_k, top_p)
    vocab_size, limit = model.config.vocab_size, model.config.l_max
    check_integers(max_new_tokens=max_new_tokens, eos=eos, window=window, chunk=chunk, seed=seed)
    endings = _endings(stop) + ([] if eos is None else [[operator.index(eos)]])
    if unknown := sorted({token for ending in endings for token in ending if not 0 <= token < vocab_size}):
        raise ValueError(f"eos and stop hold tokens from 0 to {vocab_size - 1}, got {', '.join(map(str, unknown))}")
    if seed is not None and not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed must fit 64 bits, got {seed}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    device = model.device
    tokens, keep = left_padded(prompts, mask, device)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens must be 0 to {vocab_size - 1}, got {low} to {high}")
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
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    ends = [torch.tensor(ending, device=device) for ending in endings]
    return _Run(model, tokens, keep, max_new_tokens, window or limit, chunk or limit, ends, sampling).steps()


def _endings(stop: Iterable[Sequence[int]]) -> list[list[int]]:
    """Sequences of tokens that end a row, checked.

    Raises:
        ValueError: something else, or an empty one.
    """
    try:
        endings = [[operator.index(token) for token in ending] for ending in stop]
    except TypeError:  # no sequence, or not of integers
        raise ValueError(
            f"stop must hold sequences of tokens, as [[5, 6], [7]], got {stop!r}; one token that ends a row is eos="
        ) from None
    if any(not ending for ending in endings):
        raise ValueError(f"a stop sequence needs at least one token, got {stop!r}")
    return endings


def left_padded(prompts: Prompts, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns prompts of any lengths as tokens and mask, ``(B, L)`` each, with the padding on the left.

    Padding inside or on the right of a row, where the mask is False, moves to its left.

    Raises:
        ValueError: no prompt, an empty one, or shapes that do not fit.
    """
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2:
            raise ValueError(f"prompts must be (B, L), or a list of rows of any lengths, got {tuple(prompts.shape)}")
        keep = torch.ones_like(prompts, dtype=torch.bool) if mask is None else keep_from_tokenizer(mask, prompts.shape)
        rows = [row[k] for row, k in zip(prompts, keep, strict=True)]
    elif mask is not None:
        raise ValueError("a list of prompts has no padding, so it takes no mask")
    else:
        try:
            rows = [torch.as_tensor(row) for row in prompts]
        except (TypeError, ValueError, RuntimeError):  # text, say
            rows = [torch.empty(())]
        if any(row.dim() != 1 for row in rows):
            raise ValueError(
                f"prompts must be rows of tokens, as [[3, 1, 4], [1, 5]], got {_shown(prompts)}: text goes through a "
                "tokenizer first, and one row is a list of one"
            )
    if not rows or any(row.numel() < 1 for row in rows):
        raise ValueError(f"each of the prompts needs at least one token, got lengths {[row.numel() for row in rows]}")
    if fractions := {str(row.dtype) for row in rows if row.is_floating_point() or row.is_complex()}:
        raise ValueError(f"prompts must be integers, got {', '.join(sorted(fractions))}")
    longest = max(row.numel() for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    keep = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        tokens[i, longest - row.numel() :] = row
        keep[i, longest - row.numel() :] = True
    return tokens, keep


def _shown(value: Any) -> str:
    """A value in an error, of which much may be text."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


@dataclasses.dataclass(frozen=True)
class _Run:
    """One generation, its arguments checked.

    Args:
        model: any.
        tokens, keep: ``(B, L)``, the prompts, padded on the left.
        max_new_tokens: how many tokens to draw at most.
        window: how many of the last tokens to start again from when the state is full.
        chunk: how many positions of the prompts to read at a time.
        ends: sequences of tokens that end a row.
        sampling: keywords for :func:`hyena.generation.sample`.
    """

    model: LanguageModel
    tokens: Tensor
    keep: Tensor
    max_new_tokens: int
    window: int
    chunk: int
    ends: list[Tensor]
    sampling: dict[str, Any]

    def steps(self) -> Iterator[Tensor]:
        """Yields the next token of each row, ``(B,)``."""
        model, (batch, longest) = self.model, self.tokens.shape
        limit, total = model.config.l_max, longest + self.max_new_tokens
        text = torch.cat([self.tokens, self.tokens.new_zeros(batch, self.max_new_tokens)], dim=1)
        keep = torch.cat([self.keep, torch.ones_like(text[:, longest:], dtype=torch.bool)], dim=1)
        padded = not bool(self.keep.all())
        ended = torch.zeros(batch, dtype=torch.bool, device=text.device)
        state, start = None, 0  # the state holds the tokens from ``start`` on
        for at in range(longest, total):
            # Entered anew for each token: a generator that yields inside would leave its caller without gradients.
            with eval_mode(model), torch.no_grad():
                if state is None or at - start > state.max_length:
                    start = 0 if state is None and at <= limit else at - min(self.window, at)
                    state = model.init_state(batch, min(limit, total - 1 - start))
                    logits, state = self._read(text[:, start:at], state, keep[:, start:at] if padded else None)
                else:
                    logits, state = model.prefill(text[:, at - 1 : at], state, last=True)
                # Only what is a token: an output layer may be wider than the vocabulary.
                drawn = sample(logits[:, 0, : model.config.vocab_size], **self.sampling)
                text[:, at] = drawn
                new = torch.where(ended, DONE, drawn)
                ended = self._update_ended(ended, text[:, longest : at + 1])
            yield new
            if self.ends and bool(ended.all()):
                return

    def _read(self, text: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        """Logits after the last position of ``text``, read in chunks."""
        for start in range(0, text.size(1), self.chunk):
            part = slice(start, start + self.chunk)
            logits, state = self.model.prefill(text[:, part], state, None if mask is None else mask[:, part], last=True)
        return logits, state

    def _update_ended(self, ended: Tensor, new: Tensor) -> Tensor:
        """Which rows have ended, given all their new tokens ``(B, n)``."""
        for end in self.ends:
            if new.size(1) >= len(end):
                ended = ended | (new[:, new.size(1) - len(end) :] == end).all(1)
        return ended
