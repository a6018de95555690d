"""A layer of ``transformers``' caches that holds a mixer's state. Imports ``transformers``."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from hyena.integrations.history import MixerHistory


class MixerCacheLayer(MixerHistory, CacheLayerMixin):
    """One layer's inputs and state, in a cache beside layers of keys and values.

    Beams reorder it, assisted decoding crops it (exactly, from a state that is kept for this), contrastive search
    repeats and selects its rows.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        CacheLayerMixin.__init__(self, **kwargs)
        MixerHistory.__init__(self)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """There are no keys and values to make room for."""
        _refuse_attention()

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes no keys and values."""
        _refuse_attention()

    def get_seq_length(self, *args: Any) -> int:
        """Positions so far."""
        return self.length

    def get_max_length(self) -> int:
        """No limit of its own; the mixer's ``l_max`` holds."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """The length and the start of what the next ``query`` positions (or as many as ``query`` has) see."""
        return self.length + (query.shape[0] if isinstance(query, Tensor) else query), 0

    def reset(self) -> None:
        """See :meth:`MixerHistory.forget`."""
        self.forget()

    def offload(self) -> None:
        """Stays where it is: caches that move their layers are refused."""

    prefetch = offload

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes on with these rows."""
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        if self.rows > 0:
            assert self._inputs is not None
            self.select(torch.arange(self.rows, device=self._inputs.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with these rows."""
        self.select(indices)


def history(cache: Any, layer_idx: int) -> MixerCacheLayer:
    """The layer of ``cache`` for a mixer, made in the place of an empty one of attention.

    Raises:
        ValueError: caches of a fixed or limited size, on another device or quantised, which have no place for a state;
            or one that holds keys and values there.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    advice = "use a DynamicCache (cache_implementation='dynamic') or use_cache=False"
    if not isinstance(cache, Cache):
        raise ValueError(f"a {type(cache).__name__} is no cache of transformers that Hyena's state fits into: {advice}")
    if getattr(cache, "offloading", False):
        raise ValueError(f"Hyena's state stays on its device, and this {type(cache).__name__} is offloaded: {advice}")
    replicate = getattr(cache, "layer_class_to_replicate", None)
    while replicate is not None and len(cache.layers) <= layer_idx:
        cache.layers.append(replicate())
    if len(cache.layers) <= layer_idx:
        raise ValueError(f"the cache has {len(cache.layers)} layers, and this layer's place is {layer_idx}")
    found: Any = cache.layers[layer_idx]
    if isinstance(found, MixerCacheLayer):
        return found
    if type(found) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise ValueError(f"a {type(cache).__name__} ({type(found).__name__}) has no place for Hyena's state: {advice}")
    if found.get_seq_length() > 0:
        raise ValueError(
            f"the cache holds keys and values of {found.get_seq_length()} positions at layer {layer_idx}, which were "
            "made by attention: start with a new cache"
        )
    layer = MixerCacheLayer()
    cache.layers[layer_idx] = layer
    return layer


def _refuse_attention() -> NoReturn:
    raise ValueError(
        "attention's keys and values were passed to a cache layer that holds Hyena's state: a cache serves one model, "
        "with the layers it was made with"
    )
