"""The grid of patches around attention in a vision transformer, of whichever project."""

from __future__ import annotations

from typing import Any

from hyena.integrations.sites import AttentionSite, PatchGrid


def patch_grid(site: AttentionSite, positions: int | None = None) -> PatchGrid | None:
    """The patches ``(rows, columns)`` of the model around ``site`` and the tokens before them; None if it has none.

    Args:
        site: where attention stands.
        positions: of a row, where the caller knows it; what is more than the patches are tokens.
    """
    for parent in reversed(site.parents):
        found = _of_module(parent)
        if found is not None:
            return found
    image, patch = site.config("image_size"), site.config("patch_size")
    if image is None or patch is None or positions is None or site.config("depths", "window_size") is not None:
        return None  # the last of them in models of several resolutions, whose rows are windows
    height, width = (a // b for a, b in zip(pair(image), pair(patch), strict=True))
    return PatchGrid((height, width), positions - height * width) if positions >= height * width else None


def _of_module(module: Any) -> PatchGrid | None:
    """What a module says itself: this library's ViT, timm's, torchvision's."""
    config: Any = getattr(module, "config", None)
    if type(module).__module__.startswith("hyena.models.") and hasattr(config, "prefix_tokens"):
        return PatchGrid(config.grid, config.prefix_tokens)
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if grid is not None:
        return PatchGrid(pair(grid), int(getattr(module, "num_prefix_tokens", 0)))
    length = getattr(module, "seq_length", None)
    if type(module).__module__.startswith("torchvision.") and length is not None:
        side = module.image_size // module.patch_size
        return PatchGrid((side, side), int(length) - side * side)
    return None


def pair(size: Any) -> tuple[int, int]:
    """A size along both axes, of one number or two."""
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)
