"""Mixers behind ``nn.MultiheadAttention``'s interface.

Dimensions: B batch, L length, E channels (embed_dim), M heads, W inner width of the operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyena.integrations.masks import check_causal_mask, keep_from_padding
from hyena.integrations.sites import MixerFactory, keywords_of, means_heads_of_attention
from hyena.mixers import HyenaOperator

if TYPE_CHECKING:
    from hyena.mixers import State, StateSize


class _NotForFusedAttention(Tensor):
    """Marks a weight, so that ``nn.TransformerEncoder`` does not take its fused attention path.

    An ``nn.TransformerEncoder`` that was built around attention, and given Hyena later, still turns padded batches into
    nested tensors for the fused path of its layers, and zeros at padded positions come back in eval mode alone. It
    does not where a weight has a type of its own.
    """


class HyenaAttention(nn.Module):
    """Self-attention's drop-in: ``nn.MultiheadAttention``'s constructor and ``forward``, and Hyena inside.

    ``output, weights = HyenaAttention(E, M, l_max=L)(x, x, x)``

    It works as ``self_attn`` of ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer``; the encoder's fused
    inference path, which reads the projections and computes attention with them, is turned down.

    Args:
        embed_dim: E.
        num_heads: M. As in attention it groups the channels, here in the returned weights only; with ``multi_head``
            also in the computation.
        dropout: there are no attention weights to drop; it is the operator's, which drops entries of gate-value
            products.
        bias: whether the two projections have a bias.
        add_bias_kv, add_zero_attn: must be False: they add keys, and Hyena has no keys to add to.
        kdim, vdim: must be E: key and value are the query.
        batch_first: inputs are ``(B, L, E)``, else ``(L, B, E)``.
        l_max: longest input. Longer ones raise.
        causal: no output sees a later input; a mask passed to ``forward`` cannot change it.
        multi_head: multi-head Hyena (arXiv 2310.18780) with M heads, at ``E / M`` times the cost in half of the long
            convolutions.
        max_weights_length: the longest input that ``need_weights`` is answered for.
        mixer: what is inside: the class of a :class:`hyena.mixers.Mixer` or a ``functools.partial`` of one.
        **operator: everything else that the mixer takes.

    Raises:
        ValueError: values that Hyena cannot honour.
        TypeError: unknown keywords.
    """

    # nn.TransformerEncoder and nn.TransformerEncoderLayer take this False as "no fused path here", and so they call
    # forward. The projections of query, key and value are indeed not three of the same kind.
    _qkv_same_embed_dim = False
    bias_k: Tensor | None = None
    bias_v: Tensor | None = None
    add_zero_attn = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        l_max: int,
        causal: bool = False,
        multi_head: bool = False,
        max_weights_length: int = 1024,
        mixer: MixerFactory = HyenaOperator,
        **operator: Any,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim={embed_dim} is not a positive multiple of num_heads={num_heads}")
        if add_bias_kv or add_zero_attn:
            raise ValueError(
                f"add_bias_kv={add_bias_kv} and add_zero_attn={add_zero_attn} append keys and values to attend to; "
                "Hyena convolves the sequence and has none: leave them False, or put a learned first position into the "
                "input"
            )
        if kdim not in (None, embed_dim) or vdim not in (None, embed_dim):
            raise ValueError(
                f"kdim={kdim} and vdim={vdim} differ from embed_dim={embed_dim}: that is attention between two "
                "sequences, and Hyena mixes one with itself; keep nn.MultiheadAttention there"
            )
        self.embed_dim = self.kdim = self.vdim = embed_dim
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.batch_first, self.max_weights_length = batch_first, max_weights_length
        takes = keywords_of(mixer)
        settings: dict[str, Any] = {
            "dropout": dropout,
            "bias": bias,
            "causal": causal,
            "device": device,
            "dtype": dtype,
        }
        if multi_head or means_heads_of_attention(takes):
            settings["num_heads"] = num_heads
        if takes is not None:
            unable = [name for name in ("dropout", "bias", "num_heads") if name in settings and name not in takes]
            unable = [name for name in unable if settings[name] != {"dropout": 0.0, "bias": True}.get(name)]
            if unable:
                raise ValueError(f"{mixer} takes no {', '.join(unable)}, which {settings} ask for")
            settings = {name: value for name, value in settings.items() if name in takes}
        self.operator: Any = mixer(embed_dim, l_max, **settings | operator)
        if self.operator.causal != causal:
            raise ValueError(
                f"causal={causal}, and a {type(self.operator).__name__} has causal={self.operator.causal}: choose "
                "another mixer, or the causal= that it has"
            )

    @property
    def in_proj_weight(self) -> Tensor:
        """The mixer's input projection (Hyena's is ``((N + 1) W, E)``), or of a mixer without one any of its weights.

        It has a type that keeps fused attention away from it.
        """
        projection = getattr(self.operator, "in_proj", None)
        weight = next(self.operator.parameters()) if projection is None else projection.weight
        return weight.as_subclass(_NotForFusedAttention)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The bias of the mixer's input projection."""
        return getattr(getattr(self.operator, "in_proj", None), "bias", None)

    @property
    def out_proj(self) -> nn.Module:
        """The mixer's output projection."""
        return self.operator.out_proj

    @property
    def dropout(self) -> float:
        """Probability of dropping an entry of a gate-value product; can be set."""
        found = getattr(self.operator, "dropout", 0.0)
        return found.p if isinstance(found, nn.Dropout) else found

    @dropout.setter
    def dropout(self, p: float) -> None:
        found = getattr(self.operator, "dropout", None)
        if found is None and p != 0:
            raise ValueError(f"a {type(self.operator).__name__} has no dropout that could be {p}")
        if isinstance(found, nn.Dropout):
            found.p = p
        elif found is not None:
            self.operator.dropout = p

    @property
    def causal(self) -> bool:
        """Whether no output sees a later input."""
        return self.operator.causal

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        self.operator.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        state: State | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``nn.MultiheadAttention.forward``, with ``need_weights`` False unless asked for.

        Args:
            query: ``(B, L, E)`` with ``batch_first``, else ``(L, B, E)``; or ``(L, E)``; or a nested tensor, of rows of
                any length, with ``batch_first``.
            key, value: the query again, the same tensor.
            key_padding_mask: ``(B, L)`` (``(L,)`` for an input without a batch): bool, True = ignore; or floating
                point, -inf = ignore and 0 = keep. Ignored positions take part in nothing, on whichever side they stand.
            need_weights: also returns the data-controlled matrix ``H(u)``, which has attention weights' place but is no
                distribution: entries are of either sign and rows do not add up to 1. It costs ``O(L^2)``.
            attn_mask: ``(L, L)`` or ``(B * M, L, L)``, bool or floating point: the causal mask, on a causal module.
            average_attn_weights: averages the returned weights over all channels, else over those of each head.
            is_causal: says that the causal mask is meant, with or without ``attn_mask``; on a causal module.
            state: with it ``query`` holds the next positions, see :meth:`prefill`; changed in place.

        Returns:
            The output in the shape of ``query``, and the weights or None: ``(B, L, L)``, or ``(B, M, L, L)`` without
            averaging; without ``B`` for an input without a batch.

        Raises:
            ValueError: key or value that are not the query, masks that Hyena cannot follow, weights of more than
                ``max_weights_length`` positions, rows longer than ``l_max``. Inside a compiled graph, where values of
                masks cannot be looked at beforehand, these are a ``RuntimeError`` from an assertion in the graph.
        """
        _check_self(query, key, value)
        if state is not None:
            if need_weights or attn_mask is not None:
                raise ValueError("steps take no attn_mask (they are causal) and give no weights: leave both out")
            return self._continue(query, state, key_padding_mask), None
        if query.is_nested:
            return self._forward_nested(query, key_padding_mask, need_weights, attn_mask, is_causal), None
        if query.dim() not in (2, 3):
            raise ValueError(f"query must have 2 or 3 dimensions, got shape {tuple(query.shape)}")
        batched = query.dim() == 3
        x = query[None] if not batched else query if self.batch_first else query.transpose(0, 1)
        batch, length = x.shape[:2]
        keep = None
        if key_padding_mask is not None:
            mask = key_padding_mask if batched else key_padding_mask[None]
            keep = keep_from_padding(mask, batch, length)
        self._check_causality(attn_mask, is_causal, batch, length)
        if need_weights and length > self.max_weights_length:
            raise ValueError(
                f"the weights of {length} positions are {length} x {length} matrices, and this module was built with "
                f"max_weights_length={self.max_weights_length}; pass need_weights=False, or build it with more"
            )
        y = self.operator(x, keep)
        weights = self._weights(x, keep, average_attn_weights) if need_weights else None
        if not batched:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def init_state(self, batch: int, max_length: int | None = None) -> State:
        """See :meth:`hyena.HyenaOperator.init_state`; only causal modules can be stepped."""
        return self.operator.init_state(batch, max_length)

    def prefill(self, query: Tensor, state: State, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """The outputs of the next positions, those of :meth:`forward` with a causal mask on everything that came.

        Args:
            query: ``(B, n, E)`` with ``batch_first``, else ``(n, B, E)``.
            state: what came before; changed in place.
            key_padding_mask: ``(B, n)``, as in :meth:`forward`; rows of different lengths are padded on the left.

        Returns:
            The output in the shape of ``query``, and the state.

        Raises:
            ValueError: more positions than the state was made for, or shapes that do not fit.
        """
        return self(query, query, query, key_padding_mask, state=state)[0], state

    def step(self, query: Tensor, state: State) -> tuple[Tensor, State]:
        """:meth:`prefill` of one position: ``(B, E)`` in and out."""
        if query.dim() != 2:
            raise ValueError(
                f"a step takes one position, (B, {self.embed_dim}), got {tuple(query.shape)}; prefill takes several"
            )
        along = 1 if self.batch_first else 0
        y, state = self.prefill(query.unsqueeze(along), state)
        return y.squeeze(along), state

    def state_size(self, batch: int, max_length: int | None = None) -> StateSize:
        """See :meth:`hyena.mixers.Mixer.state_size`."""
        return self.operator.state_size(batch, max_length)

    def _continue(self, query: Tensor, state: State, key_padding_mask: Tensor | None) -> Tensor:
        if query.dim() != 3:
            raise ValueError(f"query must have 3 dimensions, got shape {tuple(query.shape)}")
        x = query if self.batch_first else query.transpose(0, 1)
        keep = None if key_padding_mask is None else keep_from_padding(key_padding_mask, x.size(0), x.size(1))
        y, _ = self.operator.prefill(x, state, keep)
        return y if self.batch_first else y.transpose(0, 1)

    def _check_causality(self, attn_mask: Tensor | None, is_causal: bool, batch: int, length: int) -> None:
        if not self.causal and (attn_mask is not None or is_causal):
            given = "is_causal=True" if attn_mask is None else f"an attn_mask of shape {tuple(attn_mask.shape)}"
            raise ValueError(
                f"{given} was passed to a module with causal=False, whose filters are two-sided: build it with "
                "causal=True to hide later positions, pass padding as key_padding_mask, and keep attention where any "
                "other mask is needed"
            )
        if attn_mask is not None:
            check_causal_mask(attn_mask, batch, self.num_heads, length)

    def _forward_nested(
        self,
        query: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        """Rows of a nested tensor: the jagged layout as packed rows, the strided one as padded rows."""
        if not self.batch_first:
            raise ValueError("a nested tensor holds rows one after the other: build the module with batch_first=True")
        if key_padding_mask is not None or attn_mask is not None or need_weights:
            raise ValueError(
                "a nested tensor has no padding and no common length: pass no key_padding_mask, no attn_mask "
                "(is_causal=True will do) and need_weights=False"
            )
        self._check_causality(None, is_causal, query.size(0), 0)
        nested: Any = query  # its methods are no part of Tensor's declaration
        if nested.layout == torch.jagged and nested.lengths() is None:
            y = self.operator(nested.values(), cu_seqlens=nested.offsets())
            return torch.nested.nested_tensor_from_jagged(y, nested.offsets())
        sizes = [row.size(0) for row in query.unbind()]
        x = torch.nested.to_padded_tensor(query, 0.0)
        at = torch.arange(x.size(1), device=x.device)
        y = self.operator(x, at < torch.tensor(sizes, device=x.device)[:, None])
        rows = [row[:size] for row, size in zip(y, sizes, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=query.layout)

    def _weights(self, x: Tensor, keep: Tensor | None, average: bool) -> Tensor:
        """``H(u)`` averaged over the channels of each head, or all: (B, M, L, L) or (B, L, L), one head at a time."""
        op = self.operator
        width = getattr(op, "width", self.embed_dim) // self.num_heads
        each = [slice(i * width, (i + 1) * width) for i in range(self.num_heads)]
        heads = [op.to_matrix(x, keep, channels) for channels in each]
        weights = torch.stack([head.mean(1) for head in heads], dim=1)
        if keep is not None:  # with a value filter the last factor is a convolution, which does not vanish there
            weights = weights * keep[:, None, None]
        return (weights.mean(1) if average else weights).to(x.dtype)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _check_self(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Checks that key and value are the query: the same object, or the same view of the same memory."""
    for name, other in (("key", key), ("value", value)):
        if other is query:
            continue
        shapes = " and ".join("nested" if t.is_nested else str(tuple(t.shape)) for t in (query, other))
        message = (
            f"Hyena mixes one sequence with itself, and here query and {name} differ (shapes {shapes}): pass the same "
            "tensor three times, and keep nn.MultiheadAttention for cross-attention, cached keys or positions added to "
            "the query alone"
        )
        if query.is_nested or other.is_nested or query.shape != other.shape or query.dtype != other.dtype:
            raise ValueError(message)
        if torch.compiler.is_compiling():
            # Views that were taken twice are two tensors to the tracer: the values decide, inside the graph.
            torch._assert_async(((query == other) | (query != query)).all(), message)
        elif not _same_view(query, other):
            raise ValueError(message)


def _same_view(a: Tensor, b: Tensor) -> bool:
    try:
        storages = [t.untyped_storage()._cdata for t in (a, b)]
    except RuntimeError:  # inside torch.func's transforms there is no memory to compare
        return False
    same = a.stride() == b.stride() and a.storage_offset() == b.storage_offset() and a.requires_grad == b.requires_grad
    return same and storages[0] == storages[1]
