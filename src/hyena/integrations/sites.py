"""Where attention stands in a model, and the registry of what is known about replacing it there."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from hyena.mixers import HyenaOperator, Mixer

CROSS_ATTENTION = "cross-attention, between two sequences"

MixerFactory = Callable[..., Any]
"""A mixer's class, a ``functools.partial`` of it, or a function called alike: ``(d_model, l_max, **keywords)``."""


class PatchGrid(NamedTuple):
    """Patches of an image, row by row, and tokens before them.

    Attributes:
        size: patches ``(rows, columns)``.
        prefix_tokens: positions before the patches: a class token, registers.
    """

    size: tuple[int, int]
    prefix_tokens: int


class CannotReplaceError(Exception):
    """Raised by a builder for a module that has to stay as it is; the message is the reason that is reported."""


@dataclass(frozen=True)
class AttentionSite:
    """A module to replace, and what is wanted in its place.

    Attributes:
        name: the module's name in the model, as ``named_modules`` gives it.
        module: the attention that stands there.
        parents: the modules around it, the model itself first.
        l_max, causal: as the caller of :func:`hyena.replace_attention` gave them; None = as the module has it.
        multi_head: whether the caller wants multi-head Hyena.
        options: the caller's keywords for the mixer.
        kind: makes the mixer.
    """

    name: str
    module: nn.Module
    parents: tuple[nn.Module, ...] = ()
    l_max: int | None = None
    causal: bool | None = None
    multi_head: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    kind: MixerFactory = HyenaOperator

    def config(self, *names: str) -> Any:
        """The first of ``names`` that a ``config`` of the module or of one around it, the nearest first, has set."""
        for owner in (self.module, *reversed(self.parents)):
            config = getattr(owner, "config", None)
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def longest(self, default: int | None = None) -> int:
        """``l_max`` as the caller gave it, else ``default``, else the length that the model's config names.

        Raises:
            ValueError: nobody knows.
        """
        known = (self.l_max, default, self.config("block_size", "n_positions", "max_position_embeddings"))
        for length in known:
            if length is not None:
                return int(length)
        raise ValueError(
            f"the longest input of {self.name!r} ({type(self.module).__name__}) is not known from a config: pass l_max"
        )

    def settings(
        self,
        *,
        heads: int = 1,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        grid: PatchGrid | None = None,
    ) -> dict[str, Any]:
        """Keywords of the mixer for this place: the caller's, else of what is given here those that it takes.

        Args:
            heads: heads of the module, for multi-head Hyena and for mixers that cannot do without heads.
            causal: whether the module is causal.
            dropout: its dropout on attention weights.
            bias: whether its projections have a bias.
            grid: the patches that its positions are, for mixers that take ``grid`` and ``prefix_tokens``.

        Returns:
            Keywords, with the device and dtype of the module. Modules among them are copies of the caller's.

        Raises:
            ValueError: the mixer takes the ``grid`` of patches, and nobody knows it.
        """
        weight = next(self.module.parameters(), None)
        found: dict[str, Any] = {
            "dropout": dropout,
            "bias": bias,
            "causal": causal if self.causal is None else self.causal,
        }
        takes = keywords_of(self.kind)
        if (self.multi_head and heads > 1) or means_heads_of_attention(takes):
            found["num_heads"] = heads
        if takes is not None and "grid" in takes and "grid" not in self.options:
            if grid is None:
                raise ValueError(
                    f"the patches around {self.name!r} ({type(self.module).__name__}) are not known, and the mixer "
                    "works on their grid: pass grid=(rows, columns) and prefix_tokens="
                )
            found["grid"], found["prefix_tokens"] = grid
        if weight is not None:
            found["device"] = weight.device
            found["dtype"] = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        if takes is not None:
            found = {name: value for name, value in found.items() if name in takes}
        return found | copy.deepcopy(self.options)

    def mixer(self, d_model: int, *, l_max: int | None = None, **module: Any) -> Mixer:
        """A mixer for this place: a :class:`HyenaOperator`, or what the caller of ``replace_attention`` asked for.

        Args:
            d_model: channels of the module's input and output.
            l_max: the longest input of the module, if it knows; see :meth:`longest`.
            **module: what the module says of itself; see :meth:`settings`.

        Raises:
            ValueError: the mixer has another direction than is needed here.
        """
        settings = self.settings(**module)
        built = self.kind(d_model, self.longest(l_max), **settings)
        wanted = module.get("causal", False) if self.causal is None else self.causal
        if "causal" not in self.options and getattr(built, "causal", wanted) != wanted:
            raise ValueError(
                f"{self.name!r} needs causal={wanted}, and a {type(built).__name__} has causal={built.causal}: choose "
                "another mixer, leave the module out with where=, or pass causal="
            )
        return built

    def operator(self, d_model: int, *, l_max: int | None = None, **module: Any) -> Mixer:
        """:meth:`mixer`, by its former name."""
        return self.mixer(d_model, l_max=l_max, **module)


def keywords_of(kind: MixerFactory) -> dict[str, Any] | None:
    """A constructor's arguments with their defaults (``inspect.Parameter.empty`` without); None if it takes any."""
    given = kind.keywords if isinstance(kind, functools.partial) else {}
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {name: p.default for name, p in parameters.items() if name not in given}


def means_heads_of_attention(takes: dict[str, Any] | None) -> bool:
    """Whether a mixer's ``num_heads`` is what attention's is, and not, as Hyena's, a way to mix that is off at 1."""
    return takes is not None and takes.get("num_heads", 1) != 1


Match = type[nn.Module] | str | Callable[[nn.Module], bool]
Builder = Callable[[AttentionSite], nn.Module]

_BUILDERS: list[tuple[Match, Builder]] = []


def register_attention(match: Match, builder: Builder) -> None:
    """Teaches :func:`hyena.replace_attention` a kind of attention. The last registration is asked first.

    Args:
        match: which modules: a class, the name of one (``"MyAttention"`` or ``"package.module.MyAttention"``; its
            subclasses are meant too), or a function of the module.
        builder: takes the :class:`AttentionSite` and returns a module that can be called, and returns, as the old one,
            best a :class:`hyena.integrations.AttentionAdapter`, which loses no mask and no cache;
            :meth:`AttentionSite.mixer` makes the Hyena inside it. Raises :class:`CannotReplaceError` with the reason
            why a module has to stay.
    """
    _BUILDERS.append((match, builder))


def find_builder(module: nn.Module) -> Builder | None:
    """The builder for ``module`` that was registered last, or None."""
    for match, builder in reversed(_BUILDERS):
        if _matches(match, module):
            return builder
    return None


def _matches(match: Match, module: nn.Module) -> bool:
    if isinstance(match, type):
        return isinstance(module, match)
    if isinstance(match, str):
        return any(match in (c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(module).__mro__)
    return match(module)
