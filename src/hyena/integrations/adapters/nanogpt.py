"""Hyena in place of nanoGPT's ``CausalSelfAttention`` and of modules made like it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention


class SequenceAdapter(AttentionAdapter):
    """A mixer where a module maps ``(B, L, D)`` to ``(B, L, D)`` and takes nothing else."""


def build_nanogpt(site: AttentionSite) -> nn.Module:
    """Builds the replacement of nanoGPT's ``CausalSelfAttention`` and of modules made like it."""
    old: Any = site.module
    if site.causal is None and "causal" not in type(old).__name__.lower():
        raise CannotReplaceError("made like nanoGPT's, but its name does not say whether it is causal: pass causal=")
    dropout = getattr(old, "attn_dropout", 0.0)
    mixer = site.mixer(
        old.c_attn.in_features,
        heads=old.n_head,
        causal=True,
        dropout=float(dropout.p if isinstance(dropout, nn.Dropout) else dropout),
        bias=old.c_attn.bias is not None,
    )
    return SequenceAdapter(mixer, output_dropout=getattr(old, "resid_dropout", None))


def is_nanogpt(module: nn.Module) -> bool:
    """Whether ``module`` is made like nanoGPT's attention: ``c_attn`` to 3 D, ``c_proj``, and ``forward(x)``."""
    qkv, out = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(out, nn.Linear) or not hasattr(module, "n_head"):
        return False
    takes = inspect.signature(type(module).forward).parameters
    return qkv.out_features == 3 * qkv.in_features and out.out_features == qkv.in_features and len(takes) == 2


register_attention(is_nanogpt, build_nanogpt)
