"""Hyena in place of the attention of timm's vision transformers. torchvision's are made of ``nn.MultiheadAttention``.

Dimensions: B batch, N positions (patches and prefix tokens), D channels.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from torch import nn

from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.adapters.grids import patch_grid
from hyena.integrations.adapters.nanogpt import SequenceAdapter
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention


class TimmAdapter(AttentionAdapter):
    """A mixer behind the ``forward`` of ``timm.layers.Attention``."""

    masks: ClassVar[dict[str, str]] = {"attn_mask": "keep"}


def build_timm(site: AttentionSite) -> nn.Module:
    """Builds the replacement of ``timm.layers.Attention``."""
    old: Any = site.module
    if old.proj.out_features != old.qkv.in_features:
        raise CannotReplaceError(f"its output has {old.proj.out_features} channels and its input {old.qkv.in_features}")
    mixer = site.mixer(
        old.qkv.in_features,
        l_max=_positions(site),
        heads=old.num_heads,
        dropout=old.attn_drop.p,
        bias=old.qkv.bias is not None,
        grid=patch_grid(site),
    )
    takes_mask = "attn_mask" in inspect.signature(type(old).forward).parameters  # since timm 1.0
    adapter = TimmAdapter if takes_mask else SequenceAdapter
    return adapter(mixer, old, output_dropout=old.proj_drop)


def _positions(site: AttentionSite) -> int | None:
    for parent in reversed(site.parents):
        patches = getattr(getattr(parent, "patch_embed", None), "num_patches", None)
        if patches is not None:
            return int(patches) + int(getattr(parent, "num_prefix_tokens", 0))
    return None


register_attention("timm.layers.attention.Attention", build_timm)
register_attention("timm.models.vision_transformer.Attention", build_timm)
