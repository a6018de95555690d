"""Attention and its replacement side by side: what the one is called with, the other is called with too.

Dimensions: B batch, L length, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.adapters.transformers import TransformersAdapter, keywords
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.sites import AttentionSite
from hyena.mixers import Mixer


@dataclass
class Layer:
    """Attention of a model, and what takes its place.

    Attributes:
        index: its number among the layers that can be replaced.
        sites: where the attention stands, usually one place.
        new: the replacement, which is called as the attention is.
        mixer: the mixer inside.
    """

    index: int
    sites: list[AttentionSite]
    new: nn.Module
    mixer: Any

    @property
    def name(self) -> str:
        """Where it stands, the first place."""
        return self.sites[0].name

    @property
    def old(self) -> nn.Module:
        """The attention."""
        return self.sites[0].module

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensor, Tensor | None]:
        """Calls the replacement with what the attention was called with.

        Returns:
            What it returned, and the mixer's input ``(B, L, D)`` and mask ``(B, L)``, True = keep.
        """
        seen: list[tuple[Tensor, Tensor | None]] = []

        def note(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["u"], args[1] if len(args) > 1 else kwargs.get("mask")))

        with self.mixer.register_forward_pre_hook(note, with_kwargs=True):
            result = self.new(*args, **kwargs)
        return result, *seen[0]


def layers_of(swaps: list[tuple[AttentionSite, nn.Module]]) -> list[Layer]:
    """The layers of a plan, in the model's order; a module that stands in several places is one."""
    found: dict[int, Layer] = {}
    for site, new in swaps:
        if id(new) in found:
            found[id(new)].sites.append(site)
            continue
        mixer = next((m for m in new.modules() if isinstance(m, Mixer)), None)
        if mixer is None:
            raise ValueError(f"what takes the place of {site.name!r} ({type(new).__name__}) has no Mixer in it")
        found[id(new)] = Layer(len(found), [site], new, mixer)
    return list(found.values())


def output_of(result: Any) -> Tensor:
    """The output in what attention returns."""
    return result[0] if isinstance(result, (tuple, list)) else result


def rows_of(layer: Layer, result: Any) -> Tensor:
    """The output in what attention or its replacement returns, as ``(B, L, D)``."""
    y = output_of(result)
    if isinstance(layer.new, AttentionAdapter):
        return y if layer.new.batch_first else y.transpose(0, 1)
    if isinstance(layer.new, HyenaAttention):
        return y[None] if y.dim() == 2 else y if layer.new.batch_first else y.transpose(0, 1)
    return y


Hook = Callable[[Layer, tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def watched(layers: list[Layer], hook: Hook) -> Iterator[None]:
    """Calls ``hook(layer, args, kwargs, result)`` after each attention; what it returns, if not None, is the result.

    The arguments are without the cache of keys and values that a call may bring.
    """
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.old.register_forward_hook(_bound(hook, layer), with_kwargs=True))
        yield


def _bound(hook: Hook, layer: Layer) -> Callable[..., Any]:
    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if isinstance(layer.new, AttentionAdapter):
            args, kwargs = _without_cache(layer.new, args, kwargs)
        return hook(layer, args, kwargs, result)

    return call


def _without_cache(
    new: AttentionAdapter, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with None for a cache."""
    names: tuple[str, ...] = new.arguments.order
    caches: tuple[str | None, ...] = (new.cache,)
    if isinstance(new, TransformersAdapter):
        names, caches = new.parameter_names, keywords.CACHES
    given = dict(zip(names, args, strict=False)) | kwargs
    found = [name for name in caches if name is not None and given.get(name) is not None]
    return ((), given | dict.fromkeys(found)) if found else (args, kwargs)


@contextmanager
def substituted(layers: list[Layer]) -> Iterator[None]:
    """The model computes with these replacements, without being changed."""

    def hook(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        y = output_of(layer.call(args, kwargs)[0])
        return type(result)((y, *result[1:])) if isinstance(result, (tuple, list)) else y

    with watched(layers, hook):
        yield


@contextmanager
def counted(layers: list[Layer]) -> Iterator[list[int]]:
    """Counts the kept positions that reach the first of the mixers, in the one entry of the list."""
    total = [0]

    def count(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        u = args[0] if args else kwargs["u"]
        total[0] += positions(u, args[1] if len(args) > 1 else kwargs.get("mask"))

    with layers[0].mixer.register_forward_pre_hook(count, with_kwargs=True):
        yield total


def positions(u: Tensor, mask: Tensor | None) -> int:
    """Kept positions of a mixer's input."""
    return u.numel() // u.size(-1) if mask is None else int(mask.sum())
