"""Perceiver AR: the last positions of a long context attend to all of it, and then to each other.

Dimensions: B batch, L length, N latents, D channels (d_model), M heads, V vocabulary, T room of a state, n new tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.generation import generate
from hyena.mixers import Attention, Mixer, State
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models import options
from hyena.models.blocks import MLP, Block
from hyena.models.causal_lm import next_token_loss
from hyena.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class PerceiverARConfig(ModelConfig):
    """Settings of :class:`PerceiverAR`.

    Args:
        vocab_size: V.
        l_max: longest context.
        d_model: D.
        num_latents: N.
        num_layers: blocks over the latents, after the one that reads the context.
        num_heads: M, of the attention to the context; a divisor of D.
        d_inner: inner width of the MLPs; ``4 D`` if missing.
        dropout: of the embedding and of what is added to the residual stream.
    """

    vocab_size: int
    l_max: int = 8192
    d_model: int = 512
    num_latents: int = 1024
    num_layers: int = 8
    num_heads: int = 8
    d_inner: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values that no layer checks.

        Raises:
            ValueError: numbers out of range, or that do not fit together.
        """
        self._check_sizes("vocab_size", "l_max", "d_model", "num_latents", "num_layers", "num_heads")
        if self.d_inner is not None:
            self._check_sizes("d_inner")
        self._check_probabilities("dropout")
        if self.d_model % self.num_heads != 0:
            raise ValueError(f"d_model={self.d_model} is not a multiple of num_heads={self.num_heads}")
        if self.num_latents > self.l_max:
            raise ValueError(f"num_latents={self.num_latents} are more than the context's l_max={self.l_max}")


@dataclasses.dataclass
class PerceiverARState(State):
    """What one :class:`PerceiverAR` has read; rows end at the right, padding stands on the left.

    Args:
        keys: ``(B, T, 2 D)``, keys and values of the context.
        recent: ``(B, N, D)``, embeddings of its last positions.
        keep: ``(B, T)`` bool, which positions of ``keys`` there are.
        count: ``(B,)``, kept tokens so far.
    """

    keys: Tensor
    recent: Tensor
    keep: Tensor
    count: Tensor


class PerceiverAR(nn.Module):
    """A language model over long contexts (Hawthorne et al. 2022, arXiv 2202.07765, section 3).

    The last N positions, the latents, attend to the whole context, each to what is not after it; causal blocks over the
    N latents follow, and a logit for each. It costs ``L N + num_layers N ** 2``, and gives the next-token logits of the
    last N positions alone.

    Which positions are latents depends on where the row ends, so that what a token's logits are computed from moves on
    with every token. Decoding is exact with that: after each token the logits are those of :meth:`forward` on all so
    far. It keeps keys and values of the context, and computes the latents again at every step.

    Args:
        config: the settings.
        mixer: of the blocks over the latents, called as ``mixer(D, N, device=, dtype=)``; causal.
    """

    def __init__(
        self,
        config: PerceiverARConfig,
        mixer: Any = Attention,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.config = config
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, **at)
        self.positions = nn.Embedding(c.l_max, c.d_model, **at)
        self.dropout = nn.Dropout(c.dropout)
        self.norm_context = nn.LayerNorm(c.d_model, **at)
        self.query = nn.Linear(c.d_model, c.d_model, **at)
        self.key_value = nn.Linear(c.d_model, 2 * c.d_model, **at)
        self.out_proj = nn.Linear(c.d_model, c.d_model, **at)
        self.norm_mlp = nn.LayerNorm(c.d_model, **at)
        self.mlp = MLP(c.d_model, 4 * c.d_model if c.d_inner is None else c.d_inner, **at)
        mixers = [options.build(mixer, c.d_model, c.num_latents, **at) for _ in range(c.num_layers)]
        for each in mixers:
            if isinstance(each, Mixer) and not each.causal:
                raise ValueError(f"a {type(each).__name__} with causal=False sees later latents: pass a causal mixer")
        self.blocks = nn.ModuleList(Block(m, c.d_model, d_inner=c.d_inner, dropout=c.dropout, **at) for m in mixers)
        self.norm = nn.LayerNorm(c.d_model, **at)
        self._start()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in self.children():
            for each in part if isinstance(part, nn.ModuleList) else [part]:
                reset = getattr(each, "reset_parameters", None)
                if reset is not None:
                    reset()
        self._start()

    def _start(self) -> None:
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return self.embedding.weight.device

    def forward(self, tokens: Tensor, mask: Tensor | None = None, state: PerceiverARState | None = None) -> Tensor:
        """Next-token logits of the last N positions.

        Args:
            tokens: ``(B, L)`` int64; with a ``state`` the next ones.
            mask: ``(B, L)``, True or 1 = keep. Padding takes part in nothing, wherever it stands: the logits are of the
                last kept positions, in their order, those of shorter rows at the end.
            state: from :meth:`init_state`, what came before; changed in place.

        Returns:
            ``(B, min(L, N), V)``; with a state ``(B, N, V)``, of which a row that has read fewer tokens has the last.
        """
        longest = self.config.l_max
        if tokens.dim() != 2 or not 1 <= tokens.size(1) <= longest:
            raise ValueError(f"expected tokens (B, L) with L from 1 to l_max={longest}, got {tuple(tokens.shape)}")
        keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else keep_from_tokenizer(mask, tokens.shape)
        place = keep.cumsum(1) - 1
        if state is not None:
            state.check_room(tokens.size(1), f"this model's l_max={longest}")
            place = place + state.count[:, None]
        x = self.dropout(self.embedding(tokens) + self.positions(place.clamp_min(0)))
        keys = ops.linear(self.norm_context(x), self.key_value)
        latents = min(self.config.num_latents, tokens.size(1))
        if state is not None:
            latents = state.recent.size(1)
            x, keys = torch.cat([state.recent, x], dim=1), torch.cat([state.keys, keys], dim=1)
            there = torch.cat([state.keep[:, -latents:], keep], dim=1)
            keep, added = torch.cat([state.keep, keep], dim=1), keep.sum(1)
        else:
            there = keep
        keys, keep = _to_the_right(keys, keep)
        x = _to_the_right(x, there)[0][:, -latents:]
        if state is not None:
            room = state.keys.size(1)
            keys, keep = keys[:, -room:], keep[:, -room:]
            state.keys.copy_(keys)
            state.recent.copy_(x)
            state.keep.copy_(keep)
            state.count += added
            state.position += tokens.size(1)
        return self._read(x, keys, keep)

    def _read(self, x: Tensor, keys: Tensor, keep: Tensor) -> Tensor:
        """Logits ``(B, N, V)`` of latents, which are the last positions of a context that ends at the right."""
        n, length, heads = x.size(1), keys.size(1), self.config.num_heads
        if n > length:  # more latents than the room of a state
            x, n = x[:, n - length :], length
        q, k, v = (
            t.unflatten(2, (heads, -1)).transpose(1, 2)
            for t in (ops.linear(self.norm_context(x), self.query), *keys.chunk(2, dim=2))
        )
        at = torch.arange(length, device=x.device)
        own = at[length - n :, None]
        # Padding may see itself: a row of the softmax with nothing in it would be NaN.
        allowed = (at <= own) & keep[:, None, None] | (at == own)
        y = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=allowed)
        x = x + self.dropout(ops.linear(y.transpose(1, 2).flatten(2), self.out_proj))
        x = x + self.dropout(self.mlp(self.norm_mlp(x)))
        for block in self.blocks:
            x = block(x, mask=keep[:, length - n :])
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, tokens: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the last N positions, in nats; rows without padding or padded on the left.

        Args:
            tokens, mask: as for :meth:`forward`.
            targets: ``(B, L)`` int64, the token that follows each one; -100 where none is to be predicted.
        """
        if targets.shape != tokens.shape:
            raise ValueError(f"targets must be as tokens, {tuple(tokens.shape)}, got {tuple(targets.shape)}")
        if mask is not None and bool((mask[:, :-1] > mask[:, 1:]).any()):
            raise ValueError("the loss takes rows that are padded on the left, and this mask has padding elsewhere")
        logits = self(tokens, mask)
        last = None if mask is None else mask[:, -logits.size(1) :]
        return next_token_loss(logits, targets[:, -logits.size(1) :], last)

    def check_can_decode(self, *, needs_logits: bool) -> None:
        """It can; see :class:`hyena.generation.LanguageModel`."""

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def init_state(self, batch: int, max_length: int | None = None) -> PerceiverARState:
        """The state before the first token; its memory grows with ``max_length``, at most and if missing ``l_max``."""
        c, weight = self.config, self.embedding.weight
        length = c.l_max if max_length is None else max_length
        if batch < 1 or not 1 <= length <= c.l_max:
            raise ValueError(f"need batch of at least 1 and max_length from 1 to {c.l_max}, got {batch} and {length}")
        at: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        keys = torch.zeros(batch, length, 2 * c.d_model, **at)
        recent = torch.zeros(batch, min(c.num_latents, length), c.d_model, **at)
        keep = torch.zeros(batch, length, dtype=torch.bool, device=weight.device)
        return PerceiverARState(
            0, length, keys, recent, keep, torch.zeros(batch, dtype=torch.long, device=weight.device)
        )

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, state: PerceiverARState, mask: Tensor | None = None, *, last: bool = False
    ) -> tuple[Tensor, PerceiverARState]:
        """Reads the next tokens; logits of the last of them, as :meth:`forward` gives them on all so far.

        Returns:
            ``(B, n, V)``, with ``last`` of one position; and the state.

        Raises:
            ValueError: more positions than there are latents, without ``last``.
        """
        n = 1 if last else tokens.size(1)
        if n > state.recent.size(1):
            raise ValueError(
                f"{n} tokens are more than the {state.recent.size(1)} latents that have logits: pass last=True, or "
                "fewer tokens"
            )
        return self(tokens, mask, state)[:, -n:], state

    def step(self, tokens: Tensor, state: PerceiverARState) -> tuple[Tensor, PerceiverARState]:
        """:meth:`prefill` of one token a row: ``(B,)`` in, logits ``(B, V)`` out."""
        logits, state = self.prefill(tokens[:, None], state, last=True)
        return logits[:, 0], state

    def generate(self, prompts: Any, max_new_tokens: int, **settings: Any) -> list[Tensor]:
        """See :func:`hyena.generation.generate`."""
        return generate(self, prompts, max_new_tokens, **settings)


def _to_the_right(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Kept positions of ``(B, L, …)`` moved to the end of their rows, in their order."""
    order = torch.sort(keep.to(torch.uint8), dim=1, stable=True).indices
    return x.gather(1, order[..., None].expand_as(x)), keep.gather(1, order)
