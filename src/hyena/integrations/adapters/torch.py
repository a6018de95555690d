"""Hyena in place of ``nn.MultiheadAttention``."""

from __future__ import annotations

from typing import Any

from torch import nn

from hyena.integrations.adapters.grids import patch_grid
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.sites import CROSS_ATTENTION, AttentionSite, CannotReplaceError, register_attention


def build_torch(site: AttentionSite) -> nn.Module:
    """Builds the replacement of ``nn.MultiheadAttention``; in an ``nn.TransformerDecoderLayer`` it is causal."""
    old = site.module
    assert isinstance(old, nn.MultiheadAttention)
    inside_decoder = bool(site.parents) and isinstance(site.parents[-1], nn.TransformerDecoderLayer)
    place = site.name.rpartition(".")[2]
    if type(old).forward is not nn.MultiheadAttention.forward:
        raise CannotReplaceError("a subclass of nn.MultiheadAttention with a forward of its own")
    if (inside_decoder and place == "multihead_attn") or "cross" in place:
        raise CannotReplaceError(CROSS_ATTENTION)
    if old.kdim != old.embed_dim or old.vdim != old.embed_dim:
        raise CannotReplaceError(
            f"kdim={old.kdim} and vdim={old.vdim} differ from embed_dim={old.embed_dim}: cross-attention"
        )
    if old.bias_k is not None or old.add_zero_attn:
        raise CannotReplaceError("add_bias_kv or add_zero_attn, for which Hyena has nothing")
    grid = patch_grid(site)
    settings = site.settings(causal=inside_decoder, dropout=old.dropout, bias=old.in_proj_bias is not None, grid=grid)
    settings.pop("num_heads", None)
    settings.setdefault("causal", inside_decoder if site.causal is None else site.causal)
    return HyenaAttention(
        old.embed_dim,
        old.num_heads,
        batch_first=old.batch_first,
        l_max=site.longest(_image_positions(site)),
        multi_head=site.multi_head,
        mixer=site.kind,
        **settings,
    )


def _image_positions(site: AttentionSite) -> int | None:
    """Positions of torchvision's VisionTransformer around the module, the class token included."""
    for parent in site.parents:
        length: Any = getattr(parent, "seq_length", None)
        if type(parent).__module__.startswith("torchvision.") and length is not None:
            return int(length)
    return None


register_attention(nn.MultiheadAttention, build_torch)
