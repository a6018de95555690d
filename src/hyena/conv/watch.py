"""What decides the taps of a filter, collected so that a change can be noticed.

Weights (parameters, buffers, tensors among the attributes), the modules themselves, their classes, and every attribute:
numbers, strings, containers and functions, with what those hold. An attribute of any other kind, a hook, or a weight
that can change unseen means that the filter cannot be watched. Global variables that a filter reads are not seen.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections import OrderedDict, defaultdict

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

# Values that never change: compared as they are.
_ATOMS = {
    *(bool, int, float, complex, str, bytes, type(None), type(...), range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# What every module has: its weights and parts are looked at by name, and hooks of state dicts change no taps. Nor does
# what a filter's layers call when they are initialised.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"} | {"after_reset"}

# Of a class's attributes, those that Python itself writes.
_OF_EVERY_CLASS = frozenset(type("Empty", (nn.Module,), {}).__dict__) | {
    *("__qualname__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl"),
    *("__abstractmethods__", "__slots__", "__parameters__", "__orig_bases__", "__firstlineno__"),
    *("__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__"),
}


class Watched:
    """What decides a filter's taps: ``weights`` to compare by value, ``settings`` to compare by ``==``."""

    __slots__ = ("_gathers", "_seen", "settings", "weights")

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        # A filter of the user's own may give other taps under autocast.
        self.settings: list[object] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
        # By identity, and kept alive, so that no other object gets the same one.
        self._seen: dict[int, object] = {}
        self._gathers = False

    def module(self, module: nn.Module) -> bool:
        """Collects a module and its parts; False if it cannot be watched.

        By hand, because ``parameters()``, ``buffers()`` and ``modules()`` take several times as long, at every call.
        """
        seen, settings, attributes = self._seen, self.settings, module.__dict__
        # FSDP gathers other values into the same memory, where no version counter moves.
        self._gathers = self._gathers or "_is_fsdp_managed_module" in attributes
        settings.append(module)
        if id(module) in seen:
            return True
        seen[id(module)] = module
        for name in _HOOKS:
            if attributes[name]:
                return False
        kind = type(module)
        settings += (kind, kind.forward)
        bases = _bases_to_watch(kind)  # type: ignore[arg-type]  # a class is hashable
        if bases and not all(self._class(base) for base in bases):
            return False
        for name, value in attributes.items():
            if name not in _OF_EVERY_MODULE:
                settings.append(name)
                if type(value) in _ATOMS:
                    settings.append(value)
                elif not self._value(value):
                    return False
        self.weights += [t for t in attributes["_parameters"].values() if t is not None]
        self.weights += [t for t in attributes["_buffers"].values() if t is not None]
        for name, child in attributes["_modules"].items():
            settings.append(name)
            if child is not None and not self.module(child):
                return False
        return True

    def _class(self, base: type) -> bool:
        """Code and attributes of a class."""
        if id(base) in self._seen:
            return True
        self._seen[id(base)] = base
        for name, value in base.__dict__.items():
            if name not in _OF_EVERY_CLASS:
                self.settings.append(name)
                if not self._value(value):
                    return False
        return True

    def _atom(self, value: object) -> bool:
        self.settings.append(value)
        return True

    def _value(self, value: object) -> bool:
        kind = type(value)
        if kind in _ATOMS or isinstance(value, (type, enum.Enum, types.ModuleType)):
            return self._atom(value)
        if isinstance(value, Tensor):
            self.weights.append(value)
            return True
        if isinstance(value, nn.Module):
            return self.module(value)
        if id(value) in self._seen:
            return self._atom([*self._seen].index(id(value)))
        self._seen[id(value)] = value
        self.settings.append(kind)
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return self._values(value)  # type: ignore[arg-type]
        if kind in (dict, OrderedDict, defaultdict, types.MappingProxyType):
            return self._values([*value.keys()]) and self._values([*value.values()])  # type: ignore[attr-defined]
        if kind in (set, frozenset):
            return all(type(v) in _ATOMS for v in value) and self._atom(frozenset(value))  # type: ignore[attr-defined, call-overload]
        if dataclasses.is_dataclass(value) or kind is types.SimpleNamespace:
            return hasattr(value, "__dict__") and self._values([*vars(value)]) and self._values([*vars(value).values()])
        return self._function(value)

    def _values(self, values: list | tuple) -> bool:
        self.settings.append(len(values))
        return all(self._value(v) for v in values)

    def _function(self, value: object) -> bool:
        """A function with its defaults, closure and attributes; or what consists of functions and values."""
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)]
            held = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, value.__dict__)
            self.settings += (value, held[0])
            return all(self._value(part) for part in held[1:])
        if isinstance(value, types.MethodType):
            return self._value(value.__func__) and self._value(value.__self__)
        if isinstance(value, types.BuiltinFunctionType):
            self.settings.append(value)
            return self._value(value.__self__)
        if isinstance(value, functools.partial):
            return self._value(value.func) and self._values(value.args) and self._value(value.keywords)
        if isinstance(value, property):
            return self._values([value.fget, value.fset, value.fdel])
        if isinstance(value, (classmethod, staticmethod)):
            return self._value(value.__func__)
        return False


def watch(source: nn.Module) -> Watched | None:
    """What decides the taps of ``source``; None if it cannot be watched."""
    found = Watched()
    if _has_any_global_hook() or not found.module(source):
        return None
    return found if all(_can_be_watched(w, found._gathers) for w in found.weights) else None


@functools.lru_cache(256)
def _bases_to_watch(kind: type) -> tuple[type, ...]:
    """A module's classes, apart from torch's and this library's, of which only ``forward`` may be replaced."""
    return tuple(b for b in kind.__mro__ if b.__module__.partition(".")[0] not in ("torch", "hyena", "builtins", "abc"))


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def is_compared(t: Tensor) -> bool:
    """Whether a change of ``t`` is looked for in its values, which elsewhere would wait for the device."""
    return t.device.type == "cpu"


def _can_be_watched(t: Tensor, gathers: bool) -> bool:
    """Whether every change is noticed: not of subclasses, of memory elsewhere, nor where no version counter moves."""
    if type(t) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(t):
        return False
    if is_compared(t):
        return True
    if gathers or t.is_meta:
        return False
    # A fused optimizer's step on a GPU moves no version counter; only what has a gradient is stepped.
    return not t.is_inference() and not (t.requires_grad and t.is_leaf and t.grad is not None)
