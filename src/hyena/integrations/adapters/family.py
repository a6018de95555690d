"""Any mixer in place of :class:`hyena.mixers.Attention`, in this library's models and one's own."""

from __future__ import annotations

from torch import nn

from hyena.integrations.adapters.grids import patch_grid
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention
from hyena.mixers import Attention


def build_family(site: AttentionSite) -> nn.Module:
    """Builds the replacement of :class:`hyena.mixers.Attention`: a mixer is called as it is."""
    old = site.module
    assert isinstance(old, Attention)
    if type(old).forward is not Attention.forward:
        raise CannotReplaceError("a subclass of hyena.mixers.Attention with a forward of its own")
    return site.mixer(
        old.d_model,
        l_max=old.l_max,
        heads=old.num_heads,
        causal=old.causal,
        dropout=old.dropout,
        bias=old.in_proj.bias is not None,
        grid=patch_grid(site),
    )


register_attention(Attention, build_family)
