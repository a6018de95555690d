"""Hyena in place of the attention of timm's vision transformers. torchvision's are made of ``nn.MultiheadAttention``.

Dimensions: B batch, N positions (patches and prefix tokens), D channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hyena.integrations.adapters.grids import patch_grid
from hyena.integrations.masks import keep_from_model_mask
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention


class TimmAdapter(nn.Module):
    """A mixer behind the ``forward`` of ``timm.layers.Attention``.

    Args:
        operator: the mixer inside.
        output_dropout: dropout on the output.
    """

    def __init__(self, operator: nn.Module, output_dropout: nn.Module) -> None:
        super().__init__()
        self.operator, self.output_dropout = operator, output_dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mixes ``x`` ``(B, N, D)``.

        Raises:
            ValueError: a mask that is more than padding, or another direction than the mixer's.
        """
        causal = bool(getattr(self.operator, "causal", False))
        if is_causal and not causal:
            raise ValueError(
                f"is_causal={is_causal} was passed to a mixer with causal={causal}: replace with causal=True"
            )
        keep = None
        if attn_mask is not None:
            keep = keep_from_model_mask(attn_mask, x.size(0), x.size(1), x.size(1), causal=False)
        return self.output_dropout(self.operator(x, keep))


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
    return TimmAdapter(mixer, old.proj_drop)


def _positions(site: AttentionSite) -> int | None:
    for parent in reversed(site.parents):
        patches = getattr(getattr(parent, "patch_embed", None), "num_patches", None)
        if patches is not None:
            return int(patches) + int(getattr(parent, "num_prefix_tokens", 0))
    return None


register_attention("timm.layers.attention.Attention", build_timm)
register_attention("timm.models.vision_transformer.Attention", build_timm)
