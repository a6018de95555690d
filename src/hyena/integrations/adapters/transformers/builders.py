"""Builders for the self-attention of ``transformers`` models: one for all that are made alike, small ones beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hyena.integrations.adapters.grids import pair, patch_grid
from hyena.integrations.adapters.transformers import structure
from hyena.integrations.adapters.transformers.adapter import TransformersAdapter
from hyena.integrations.adapters.transformers.padding import is_pretrained
from hyena.integrations.sites import AttentionSite, register_attention
from hyena.mixers.hyena import HyenaOperator


class NoProjection(nn.Identity):
    """In place of a mixer's output projection, where the model has one of its own right after it."""

    weight = bias = None

    def reset_parameters(self) -> None:
        """There are none."""


def build_self_attention(site: AttentionSite) -> nn.Module:
    """Builds the replacement of an attention module with projections of its own, whatever they are called."""
    return _build(site, structure.read(site), None)


def build_in_image(site: AttentionSite) -> nn.Module:
    """The same in models of images, whose rows are the patches and some tokens more."""
    return _build(site, structure.read(site), _image_positions(site))


def build_in_whisper(site: AttentionSite) -> nn.Module:
    """The same in Whisper, whose encoder and decoder have limits of their own."""
    found = structure.read(site)
    return _build(site, found, site.config("max_target_positions" if found.causal else "max_source_positions"))


def _build(site: AttentionSite, found: structure.Structure, l_max: int | None) -> TransformersAdapter:
    mixer = site.mixer(
        found.d_model,
        l_max=l_max,
        heads=found.heads,
        causal=found.causal,
        dropout=found.dropout,
        bias=found.bias,
        grid=patch_grid(site, l_max),
    )
    out = getattr(mixer, "out_proj", None)
    if not found.has_output and isinstance(out, nn.Linear) and out.in_features == found.d_model:
        mixer.out_proj = NoProjection()  # called and reset like the projection it replaces
    return TransformersAdapter(
        mixer,
        model_causal=found.causal,
        layer_idx=found.layer_idx,
        output_dropout=found.output_dropout,
        parameters=found.parameters,
        results=found.results,
        window=found.window,
        record=(found.weight, _settings(site)),
    )


def _settings(site: AttentionSite) -> dict[str, Any]:
    return {
        "name": site.name,
        "mixer": None if site.kind is HyenaOperator else site.kind,
        "multi_head": site.multi_head,
        "options": dict(site.options),
    }


def check_kept(kept: list[AttentionSite], replaced: list[AttentionSite]) -> None:
    """Raises ValueError where attention that stays would lose what a replaced layer computes for it."""
    givers = [site for site in replaced if getattr(site.module, "has_relative_attention_bias", False)]
    for giver in givers:
        stack = next((part for part in reversed(giver.parents) if is_pretrained(part)), giver.parents[0])
        losers = [s.name for s in kept if stack in s.parents and hasattr(s.module, "relative_attention_num_buckets")]
        losers = [name for name in losers if "EncDecAttention" not in name]
        if losers:
            raise ValueError(
                f"{giver.name} computes the relative positions for {', '.join(losers)}, which would stay without them: "
                "replace all self-attention of the stack, or keep its first"
            )


def _image_positions(site: AttentionSite) -> int | None:
    """Patches of an image and the tokens before them."""
    for parent in reversed(site.parents):
        embeddings: Any = getattr(parent, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        if isinstance(table, Tensor):
            return table.shape[1]
        count = getattr(embeddings, "num_positions", None)
        if isinstance(count, int):
            return count
    image, patch = site.config("image_size"), site.config("patch_size")
    if image is None or patch is None:
        return None
    height, width = (a // b for a, b in zip(pair(image), pair(patch), strict=True))
    return height * width + 1


def _is_image_attention(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return structure.is_self_attention(module) and hasattr(config, "image_size") and hasattr(config, "patch_size")


def _is_whisper(module: nn.Module) -> bool:
    return structure.is_self_attention(module) and type(module).__name__.startswith("Whisper")


register_attention(structure.is_self_attention, build_self_attention)
register_attention(_is_image_attention, build_in_image)
register_attention(_is_whisper, build_in_whisper)
