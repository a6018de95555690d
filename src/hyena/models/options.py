"""Mixers and filters in a config: named by their exported class, with keywords as plain values.

``"HyenaOperator"`` is ``hyena.mixers.HyenaOperator``, and ``{"class": "HyenaFilter", "freq": 1.0}`` stands for
``functools.partial(hyena.filters.HyenaFilter, freq=1.0)``. The export is the registration.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from hyena import filters, mixers

# What a model or an operator says itself; the rest are options.
_SIZES = {"d_model", "channels", "l_max", "num_filters", "device", "dtype"}


def exported(name: str, room: ModuleType, base: type) -> type[nn.Module]:
    """Returns the class of this name that a package exports.

    Raises:
        ValueError: there is none, with those there are.
    """
    names = [each for each in room.__all__ if _is_kind(getattr(room, each), base)]
    if name not in names:
        raise ValueError(f"{room.__name__} exports no {base.__name__} {name!r}, only {', '.join(sorted(names))}")
    return getattr(room, name)


def check_options(factory: Callable[..., Any], options: dict[str, Any]) -> None:
    """Checks that a class or function takes these keywords.

    Raises:
        ValueError: keywords that it does not take, with those it does.
    """
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = sorted(set(parameters) - _SIZES)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name_of(factory)} has no option {', '.join(map(repr, unknown))}, only {', '.join(known)}")


def resolve(value: Any) -> Any:
    """Returns an option's value as a constructor takes it: ``{"class": "HyenaFilter", …}`` becomes a ``partial``."""
    if not isinstance(value, dict) or "class" not in value:
        return value
    options = {key: resolve(each) for key, each in value.items() if key != "class"}
    factory = exported(value["class"], filters, filters.Filter)
    check_options(factory, options)
    return functools.partial(factory, **options)


def named(factory: Any, room: ModuleType, base: type) -> tuple[str, dict[str, Any]] | None:
    """Returns name and keywords of an exported class, or of a ``partial`` of one; None for anything else."""
    options: dict[str, Any] = {}
    if isinstance(factory, functools.partial) and not factory.args:
        factory, options = factory.func, factory.keywords
    name = getattr(factory, "__name__", "")
    if not _is_kind(factory, base) or name not in room.__all__ or getattr(room, name) is not factory:
        return None
    return name, dict(options)


def plain(value: Any) -> Any:
    """Returns an option's value as a config stores it: exported filters, and partials of them, by their name."""
    if (found := named(value, filters, filters.Filter)) is None:
        return value
    return {"class": found[0], **{key: plain(each) for key, each in found[1].items()}}


def mixer_factory(mixer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Returns what a config's ``mixer`` names: an exported :class:`hyena.mixers.Mixer`, or the function it is."""
    return exported(mixer, mixers, mixers.Mixer) if isinstance(mixer, str) else mixer


def build(factory: Callable[..., nn.Module], d_model: int, l_max: int, **at: Any) -> nn.Module:
    """Calls what builds a mixer; one that takes no ``device`` or ``dtype`` is moved there."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {key: value for key, value in at.items() if value is not None}
    taken = {key: value for key, value in given.items() if takes_any or key in parameters}
    mixer = factory(d_model, l_max, **taken)
    return mixer if taken == given else mixer.to(**given)


def name_of(factory: Any) -> str:
    """Returns the name of a class, a function or a ``partial`` of either."""
    if isinstance(factory, functools.partial):
        return name_of(factory.func)
    return getattr(factory, "__name__", type(factory).__name__)


def _is_kind(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base
