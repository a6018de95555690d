"""The arguments of a replaced ``forward``: what an adapter declares of them, and what a call gives."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("keep", "ignore", "causal")
"""What a mask may say, see :class:`hyena.integrations.AttentionAdapter`."""

# Names of what changes a result if nobody looks at it, and of what only sounds alike.
_MATTERS = re.compile(r"mask|(^|_)pad|cache|past|kv|seq_?len|segment|document", re.IGNORECASE)
_HARMLESS = frozenset({"cache_position"})


@dataclass(frozen=True)
class Arguments:
    """Names of an adapter's arguments.

    Attributes:
        owner: of the adapter, for messages.
        replaced: class of the replaced module, for messages; "" if there was none.
        order: names of the positional arguments.
        defaults: of those that have one.
        inputs: the argument that has to be there.
        declared: every name that has a meaning; is_causal always has one.
        ignored: those of them whose values go unread.
    """

    owner: str
    replaced: str
    order: tuple[str, ...]
    defaults: dict[str, Any]
    inputs: str
    declared: frozenset[str]
    ignored: frozenset[str]

    @classmethod
    def of(cls, adapter: type[Any], replaced: nn.Module | None) -> Arguments:
        """Those of an adapter's class in the place of a module.

        Raises:
            TypeError: the two do not fit.
        """
        roles = [adapter.inputs, *adapter.masks, *adapter.ignored, *adapter.used]
        roles += [] if adapter.cache is None else [adapter.cache]
        declared = frozenset(roles) | {"is_causal"}
        if replaced is None:
            return cls(
                adapter.__name__, "", (adapter.inputs,), {}, adapter.inputs, declared, frozenset(adapter.ignored)
            )
        kind = type(replaced).__name__
        parameters = list(inspect.signature(type(replaced).forward).parameters.values())[1:]
        named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        strange = [name for name in roles if name not in named]
        if strange and (not takes_any or adapter.inputs in strange):
            raise TypeError(
                f"{adapter.__name__} declares {', '.join(map(repr, strange))}, and {kind}.forward has the arguments "
                f"{', '.join(named)}"
            )
        for name, p in named.items():
            if name not in declared and p.default is p.empty:
                raise TypeError(
                    f"{kind}.forward has the argument {name!r} without a default, and {adapter.__name__} does not say "
                    f"what it means: {_HOW}"
                )
        order = tuple(name for name, p in named.items() if p.kind is not p.KEYWORD_ONLY)
        defaults = {name: p.default for name, p in named.items() if p.default is not p.empty}
        return cls(adapter.__name__, kind, order, defaults, adapter.inputs, declared, frozenset(adapter.ignored))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a call gives, by name, without what is left at its default.

        Raises:
            TypeError: an argument that is missing, given twice, or not declared; a mask or a cache under a name that
                is ignored.
        """
        if len(args) > len(self.order):
            raise TypeError(
                f"{self.owner} takes {len(self.order)} positional arguments ({', '.join(self.order)}), got {len(args)}"
            )
        given = dict(zip(self.order, args, strict=False))
        if twice := sorted(given.keys() & kwargs.keys()):
            raise TypeError(f"{self.owner} got two values for {', '.join(twice)}")
        given |= kwargs
        given = {name: value for name, value in given.items() if not self._asks_nothing(name, value)}
        if given.get(self.inputs) is None:
            raise TypeError(f"{self.owner} is missing its argument {self.inputs!r}")
        for name, value in given.items():
            if name not in self.declared:
                raise TypeError(
                    f"{name}={_short(value)} was passed to {self.owner}, which does not say what it means, and so it "
                    f"is not ignored: {_HOW}"
                )
            if name in self.ignored and (sort := _mask_or_cache(value)):
                raise TypeError(
                    f"{self.owner} ignores {name!r}, and got {_short(value)} there, which looks like a {sort}: "
                    f"declare it as one"
                )
        return given

    def _asks_nothing(self, name: str, value: Any) -> bool:
        default = self.defaults.get(name)
        if value is None or (value is False and default in (None, False)):
            return True
        return (
            default is not None and type(value) is type(default) and not isinstance(value, Tensor) and value == default
        )


_HOW = "name it in masks, cache, ignored or used of the adapter's class"


def check_declaration(adapter: type[Any]) -> None:
    """Raises TypeError where a class of adapters ignores what may not be ignored, or declares a name twice."""
    unknown = {name: kind for name, kind in adapter.masks.items() if kind not in KINDS}
    if unknown:
        raise TypeError(f"{adapter.__name__}.masks has {unknown}: a mask says one of {', '.join(KINDS)}")
    for name in (*adapter.ignored, *adapter.used):
        if name == "use_cache" and adapter.cache is not None:
            continue
        if _MATTERS.search(name) and name not in _HARMLESS:
            raise TypeError(
                f"{adapter.__name__} has {name!r} among what it ignores or uses in its result, and by its name it is a "
                "mask or a cache: declare it in masks or as cache; or leave it out, and a call that gives it raises"
            )
    roles = [adapter.inputs, *adapter.masks, *adapter.ignored, *adapter.used, adapter.cache]
    twice = sorted({name for name in roles if name is not None and roles.count(name) > 1})
    if twice:
        raise TypeError(f"{adapter.__name__} declares {', '.join(twice)} more than once")


def _mask_or_cache(value: Any) -> str:
    """What a value is that must not be ignored; "" for others."""
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return "mask"
    methods = ("update", "get_seq_length", "extend")
    return "cache" if not isinstance(value, (Tensor, str)) and any(hasattr(value, name) for name in methods) else ""


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor ({str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)})"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
