"""The base of adapters: a mixer behind the ``forward`` of the attention that it replaces.

Dimensions: B batch, L new positions, S all positions, D channels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hyena.integrations.arguments import Arguments, check_declaration
from hyena.integrations.history import MixerHistory
from hyena.integrations.masks import keep_from_causal_mask, keep_from_model_mask, keep_from_padding


class AttentionAdapter(nn.Module):
    """A mixer in the place of attention of your own: the base class of its adapter.

    A subclass says what each argument of the replaced module's ``forward`` means, in class attributes; ``forward``
    itself is here, and cannot be replaced. What is not declared may be left at its default and nothing else: a mask
    that nobody reads and a cache that nobody knows raise, where they would change the result.

    ``register_attention(MyAttention, lambda site: MyAdapter(site.mixer(64, heads=4, causal=True), site.module))``

    Args:
        mixer: what is inside, a :class:`hyena.mixers.Mixer`.
        replaced: the module that stood here, whose ``forward`` names the arguments and their order; nothing of it is
            kept. None: the arguments are ``inputs`` alone and what is given by keyword.
        output_dropout: dropout on the output, where the replaced module had one.

    Attributes:
        inputs: the name of the argument that is mixed, ``(B, L, D)``.
        batch_first: False where it is ``(L, B, D)``.
        masks: names of masks, and what each says. ``"keep"``: padding, True or 1 (or 0 in an additive mask) at what
            is kept, ``(B, S)`` or ``(B or 1, heads, L or 1, S)``. ``"ignore"``: padding, True (or ``-inf``) at what is
            not. ``"causal"``: ``(L, S)``, who sees whom, which may say nothing but that the module is causal.
        cache: the name of the argument that holds the past of a sequence, for which :meth:`history` is asked.
        ignored: names of arguments that change nothing here, as rotary and other positions. Masks and caches cannot
            be among them.
        used: names of arguments that :meth:`result` uses.

    Raises:
        TypeError: a declaration of names that the replaced ``forward`` does not have, an argument without a default
            that is not declared, or a mask or a cache among what is ignored; a subclass with a ``forward``.
    """

    inputs: ClassVar[str] = "x"
    batch_first: ClassVar[bool] = True
    masks: ClassVar[dict[str, str]] = {}
    cache: ClassVar[str | None] = None
    ignored: ClassVar[tuple[str, ...]] = ()
    used: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "__call__", "_mix"):
            if name in cls.__dict__:
                raise TypeError(
                    f"{cls.__name__}.{name} would take the place of AttentionAdapter.{name}, which sees to it that no "
                    "mask and no cache is lost: declare the arguments (inputs, masks, cache, ignored, used), and "
                    "define keep, history or result"
                )
        if cls.cache is not None and cls.history is AttentionAdapter.history:
            raise TypeError(
                f"{cls.__name__} declares the cache {cls.cache!r} and has no history(cache), which would return the "
                "MixerHistory that is in it"
            )
        check_declaration(cls)

    def __init__(
        self, mixer: nn.Module, replaced: nn.Module | None = None, *, output_dropout: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.operator, self.output_dropout = mixer, output_dropout
        self.arguments = Arguments.of(type(self), replaced)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Mixes the input, as the module that was replaced is called.

        Raises:
            TypeError: arguments that are not declared, or not known.
            ValueError: a mask that is more than padding and causality, a cache that has no place for a state, or
                another direction than the mixer's.
        """
        given = self._bind(args, kwargs)
        x = given[self.inputs]
        x = x if self.batch_first else x.transpose(0, 1)
        cache = None if self.cache is None else given.get(self.cache)
        y = self._mix(x, given, cache)
        y = y if self.output_dropout is None else self.output_dropout(y)
        return self.result(y if self.batch_first else y.transpose(0, 1), given)

    def keep(self, name: str, mask: Any, x: Tensor, seen: int) -> Tensor:
        """Reads a mask: ``(B, S)`` bool, True = keep.

        Args:
            name: of the argument, one of ``masks``.
            mask: its value.
            x: the input ``(B, L, D)``.
            seen: S, the positions of the cache and L more.

        Raises:
            ValueError: it is more than padding and causality.
        """
        kind, batch, length = self.masks[name], x.size(0), x.size(1)
        if not isinstance(mask, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(mask).__name__}: define keep() to read it")
        if kind == "causal":
            return keep_from_causal_mask(name, mask, batch, length, seen, self._is_causal)
        if kind == "ignore" and mask.dim() == 2:
            return keep_from_padding(mask, batch, seen, name)
        if kind == "ignore" and mask.dtype == torch.bool:
            mask = ~mask
        return keep_from_model_mask(mask, batch, length, seen, self._is_causal)

    def history(self, cache: Any) -> MixerHistory:
        """Returns what this layer has seen, out of a cache of the model; ``extend`` of it goes on.

        A model's cache of a dictionary a layer, say: ``return cache.setdefault("history", MixerHistory())``.
        """
        raise TypeError(f"{type(self).__name__} declares no cache")

    def result(self, y: Tensor, given: dict[str, Any]) -> Any:
        """Makes what the replaced module returns of the output ``y``, shaped as the input.

        Args:
            y: the output.
            given: the arguments by name, without those left at their defaults.
        """
        return y

    @property
    def _is_causal(self) -> bool:
        return bool(getattr(self.operator, "causal", False))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = self.arguments.bind(args, kwargs)
        asked = given.get("is_causal")
        if asked is not None and bool(asked) != self._is_causal:
            raise ValueError(
                f"is_causal={asked} was passed to a mixer with causal={self._is_causal}: replace with causal={asked}"
            )
        return given

    def _mix(self, x: Tensor, given: dict[str, Any], cache: Any) -> Tensor:
        past = None if cache is None else self.history(cache)
        if past is not None and not isinstance(past, MixerHistory):
            raise TypeError(f"{type(self).__name__}.history must return a MixerHistory, got {type(past).__name__}")
        seen = x.size(1) + (0 if past is None else past.length)
        named = [name for name in self.masks if given.get(name) is not None]
        keep: Tensor | None = None
        for name in named:
            found = self.keep(name, given[name], x, seen)
            self._check_keep(name, found, (x.size(0), seen))
            keep = found if keep is None else keep & found
        if past is None:
            return self.operator(x, keep)
        return past.extend(self.operator, x, keep, given[named[0]] if len(named) == 1 else None)

    def _check_keep(self, name: str, keep: Any, shape: tuple[int, int]) -> None:
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != shape:
            got = f"{keep.dtype} of shape {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
            raise TypeError(
                f"{type(self).__name__}.keep must return a bool tensor of shape {shape} for {name}, True where a "
                f"position is kept, got {got}"
            )
