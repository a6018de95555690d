"""Hyena in place of the attention of torch, ``transformers`` and nanoGPT-style models, as far as it is known.

Nothing here imports ``transformers``: its classes are found by name.

Dimensions: B batch, L new positions, S all positions, D channels.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from hyena.integrations.attention import HyenaAttention
from hyena.integrations.masks import keep_from_model_mask
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention
from hyena.mixers.hyena import HyenaOperator

# What transformers may hand to attention that Hyena can neither follow nor ignore, and what to do about it.
_REFUSED = {
    "encoder_hidden_states": "Hyena mixes one sequence with itself; keep attention for cross-attention",
    "output_attentions": "there are no attention maps; HyenaOperator.to_matrix(u) gives the matrix in their place",
    "head_mask": "there are no attention heads to mask",
    "cu_seq_lens_q": "packed rows are not taken here; give each row a place of its own in the batch",
    "cu_seq_lens_k": "packed rows are not taken here; give each row a place of its own in the batch",
}


class TransformersAttention(nn.Module):
    """Hyena where a ``transformers`` model has self-attention: ``hidden_states -> (output, None)``.

    The model's padding reaches the operator whatever form its mask has by then. A ``past_key_values`` cache keeps the
    layer's inputs instead of keys and values, and every call with a cache computes the whole sequence again: right, and
    no faster than without one.

    Args:
        operator: the Hyena inside.
        model_causal: whether the module that stood here was causal, and the masks that the model makes for it.
        layer_idx: the layer's place in the cache.
        output_dropout: dropout on the output, where the old module had one.
    """

    def __init__(
        self,
        operator: HyenaOperator,
        *,
        model_causal: bool,
        layer_idx: int | None = None,
        output_dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.operator, self.output_dropout = operator, output_dropout
        self.model_causal, self.layer_idx = model_causal, layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Mixes ``hidden_states`` ``(B, L, D)``.

        Raises:
            ValueError: a mask that is more than padding and causality, or what has no meaning here.
        """
        for name in _REFUSED:
            _refuse(name, kwargs.get(name))
        x = hidden_states if past_key_values is None else self._remember(hidden_states, past_key_values)
        keep = None
        if attention_mask is not None:
            new, seen = hidden_states.size(1), x.size(1)
            keep = keep_from_model_mask(attention_mask, x.size(0), new, seen, self.model_causal)
        y = self.operator(x, keep)[:, x.size(1) - hidden_states.size(1) :]
        return y if self.output_dropout is None else self.output_dropout(y), None

    def _remember(self, new: Tensor, cache: Any) -> Tensor:
        """Puts the new inputs into the cache, and returns all that it holds for this layer: (B, S, D)."""
        cache = getattr(cache, "self_attention_cache", cache)
        if self.layer_idx is None:
            raise ValueError("this layer does not know its place in a past_key_values cache: pass use_cache=False")
        before = cache.get_seq_length(self.layer_idx)
        grows = not isinstance(before, Tensor)
        if grows:
            if before > 0 and not self.operator.causal:
                raise ValueError(
                    f"{before} positions are cached, and a two-sided operator (causal=False) changes their outputs "
                    "with every new one: pass use_cache=False"
                )
            held = cache.update(new[:, None], new[:, None, :, :0], self.layer_idx)[
                0
            ]  # as keys of one head: (B, 1, S, D)
            grows = held.shape == (new.size(0), 1, before + new.size(1), new.size(2))
        if not grows:
            raise ValueError(
                f"Hyena needs the inputs of all positions, which a {type(cache).__name__} does not give back: use a "
                "DynamicCache (cache_implementation='dynamic') or use_cache=False"
            )
        return held[:, 0] if before > 0 else new

    def extra_repr(self) -> str:
        return f"model_causal={self.model_causal}, layer_idx={self.layer_idx}"


class PaddingHook:
    """Hands a ``transformers`` model its ``(B, S)`` padding mask as ``(B, 1, 1, S)``, which it passes on to its layers.

    Left alone the model would build ``(B, 1, L, S)`` masks from it, which take more memory than the whole of Hyena.
    This is a forward pre-hook; it may stand where every self-attention of the model was replaced.
    """

    def __init__(self, position: int) -> None:
        self.position = position

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replaces the ``attention_mask`` argument, given by keyword or as argument number ``position``.

        Raises:
            ValueError: attention maps are asked for, which would come back as an empty tuple.
        """
        _refuse("output_attentions", kwargs.get("output_attentions", getattr(model.config, "output_attentions", None)))
        if len(args) > self.position:
            mask = _as_rows(args[self.position])
            return (*args[: self.position], mask, *args[self.position + 1 :]), kwargs
        if "attention_mask" in kwargs:
            return args, kwargs | {"attention_mask": _as_rows(kwargs["attention_mask"])}
        return args, kwargs

    @classmethod
    def attach(cls, model: nn.Module) -> None:
        """Attaches a hook to a model whose ``forward`` takes an ``attention_mask``, unless it has one."""
        names = list(inspect.signature(model.forward).parameters)
        if "attention_mask" in names and not any(isinstance(h, cls) for h in model._forward_pre_hooks.values()):
            model.register_forward_pre_hook(cls(names.index("attention_mask")), with_kwargs=True)


def _refuse(name: str, value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError(f"{name} was asked of a model whose attention was replaced by Hyena: {_REFUSED[name]}")


def _as_rows(mask: Any) -> Any:
    return mask[:, None, None] != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else mask


class SequenceAttention(nn.Module):
    """Hyena where a module maps ``(B, L, D)`` to ``(B, L, D)`` and takes nothing else, as in nanoGPT.

    Args:
        operator: the Hyena inside.
        output_dropout: dropout on the output, where the old module had one.
    """

    def __init__(self, operator: HyenaOperator, output_dropout: nn.Module | None = None) -> None:
        super().__init__()
        self.operator, self.output_dropout = operator, output_dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.operator(x)
        return y if self.output_dropout is None else self.output_dropout(y)


class NoProjection(nn.Identity):
    """In place of an operator's output projection, where the model has one of its own right after it."""

    weight = bias = None

    def reset_parameters(self) -> None:
        """There are none."""


def build_torch(site: AttentionSite) -> nn.Module:
    """For ``nn.MultiheadAttention``; in an ``nn.TransformerDecoderLayer`` it is causal unless asked otherwise."""
    old = site.module
    assert isinstance(old, nn.MultiheadAttention)
    inside_decoder = bool(site.parents) and isinstance(site.parents[-1], nn.TransformerDecoderLayer)
    place = site.name.rpartition(".")[2]
    if type(old).forward is not nn.MultiheadAttention.forward:
        raise CannotReplaceError("a subclass of nn.MultiheadAttention with a forward of its own")
    if (inside_decoder and place == "multihead_attn") or "cross" in place:
        raise CannotReplaceError("cross-attention, between two sequences")
    if old.kdim != old.embed_dim or old.vdim != old.embed_dim:
        raise CannotReplaceError(
            f"kdim={old.kdim} and vdim={old.vdim} differ from embed_dim={old.embed_dim}: cross-attention"
        )
    if old.bias_k is not None or old.add_zero_attn:
        raise CannotReplaceError("add_bias_kv or add_zero_attn, for which Hyena has nothing")
    settings = site.settings(causal=inside_decoder, dropout=old.dropout, bias=old.in_proj_bias is not None)
    return HyenaAttention(
        old.embed_dim,
        old.num_heads,
        batch_first=old.batch_first,
        l_max=site.longest(),
        multi_head=site.multi_head,
        **settings,
    )


def build_gpt2(site: AttentionSite) -> nn.Module:
    """For ``GPT2Attention``."""
    old: Any = _checked(
        site, "c_attn", "c_proj", "attn_dropout", "resid_dropout", "embed_dim", "num_heads", "layer_idx"
    )
    if old.is_cross_attention:
        raise CannotReplaceError("cross-attention, between two sequences")
    causal = old.is_causal and site.config("is_causal") is not False
    operator = site.operator(old.embed_dim, heads=old.num_heads, causal=causal, dropout=old.attn_dropout.p)
    return TransformersAttention(
        operator, model_causal=causal, layer_idx=old.layer_idx, output_dropout=old.resid_dropout
    )


def build_bert(site: AttentionSite) -> nn.Module:
    """For ``BertSelfAttention``, whose output projection is in the module after it."""
    old: Any = _checked(site, "query", "all_head_size", "dropout", "num_attention_heads", "is_causal", "layer_idx")
    width = old.query.in_features
    if old.all_head_size != width:
        raise CannotReplaceError(f"its output has {old.all_head_size} channels and its input {width}")
    operator = site.operator(width, heads=old.num_attention_heads, causal=old.is_causal, dropout=old.dropout.p)
    if operator.width == width:
        operator.out_proj = NoProjection()  # type: ignore[assignment]  # called and reset like the projection it replaces
    return TransformersAttention(operator, model_causal=old.is_causal, layer_idx=old.layer_idx)


def leave_cross_attention(site: AttentionSite) -> nn.Module:
    """For classes that are cross-attention and nothing else."""
    raise CannotReplaceError("cross-attention, between two sequences")


def build_vit(site: AttentionSite) -> nn.Module:
    """For ``ViTAttention``."""
    old: Any = _checked(site, "q_proj", "o_proj", "attention_dropout", "num_attention_heads")
    operator = site.operator(
        old.q_proj.in_features,
        l_max=_image_positions(site),
        heads=old.num_attention_heads,
        dropout=old.attention_dropout,
    )
    return TransformersAttention(operator, model_causal=False)


def build_nanogpt(site: AttentionSite) -> nn.Module:
    """For nanoGPT's ``CausalSelfAttention`` and modules made like it."""
    old: Any = site.module
    if site.causal is None and "causal" not in type(old).__name__.lower():
        raise CannotReplaceError("made like nanoGPT's, but its name does not say whether it is causal: pass causal=")
    operator = site.operator(
        old.c_attn.in_features,
        heads=old.n_head,
        causal=True,
        dropout=_probability(getattr(old, "attn_dropout", 0.0)),
        bias=old.c_attn.bias is not None,
    )
    return SequenceAttention(operator, getattr(old, "resid_dropout", None))


def is_nanogpt(module: nn.Module) -> bool:
    """Whether ``module`` is made like nanoGPT's attention: ``c_attn`` to 3 D, ``c_proj``, and ``forward(x)``."""
    qkv, out = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(out, nn.Linear) or not hasattr(module, "n_head"):
        return False
    takes = inspect.signature(type(module).forward).parameters
    return qkv.out_features == 3 * qkv.in_features and out.out_features == qkv.in_features and len(takes) == 2


def carry_padding(model: nn.Module, replaced: list[AttentionSite]) -> None:
    """Attaches a :class:`PaddingHook` to each ``transformers`` model in ``model`` that has no self-attention left."""
    for owner in {id(m): m for site in replaced for m in site.parents if _has_config(m)}.values():
        inner = any(m is not owner and _has_config(m) and _holds_hyena(m) for m in owner.modules())
        if not inner and _holds_hyena(owner) and not any(_is_self_attention(m) for m in owner.modules()):
            PaddingHook.attach(owner)


def _has_config(module: nn.Module) -> bool:
    """Whether this is a ``PreTrainedModel`` of transformers."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def _holds_hyena(module: nn.Module) -> bool:
    return any(isinstance(m, TransformersAttention) for m in module.modules())


def _is_self_attention(module: nn.Module) -> bool:
    """Whether this is self-attention of a transformers model, which all say of themselves whether they are causal."""
    crosses = getattr(module, "is_cross_attention", "Cross" in type(module).__name__)
    return hasattr(module, "is_causal") and not crosses


def _checked(site: AttentionSite, *names: str) -> nn.Module:
    missing = [name for name in names if not hasattr(site.module, name)]
    if missing:
        raise CannotReplaceError(
            f"it has no {', '.join(missing)}: made by a version of transformers that is not known here"
        )
    return site.module


def _image_positions(site: AttentionSite) -> int | None:
    """Patches of an image, and the class token."""
    image, patch = site.config("image_size"), site.config("patch_size")
    if image is None or patch is None:
        return None
    sides = [size if isinstance(size, (tuple, list)) else (size, size) for size in (image, patch)]
    return (sides[0][0] // sides[1][0]) * (sides[0][1] // sides[1][1]) + 1


def _probability(dropout: Any) -> float:
    return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)


register_attention(is_nanogpt, build_nanogpt)
register_attention("transformers.models.vit.modeling_vit.ViTAttention", build_vit)
register_attention("transformers.models.bert.modeling_bert.BertSelfAttention", build_bert)
register_attention("transformers.models.bert.modeling_bert.BertCrossAttention", leave_cross_attention)
register_attention("transformers.models.gpt2.modeling_gpt2.GPT2Attention", build_gpt2)
register_attention(nn.MultiheadAttention, build_torch)
