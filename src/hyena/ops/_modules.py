"""Whether an op may stand in for calling a module: known code, no hooks, plain weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

Kind = TypeVar("Kind", bound=type[nn.Module])
Module = TypeVar("Module", bound=nn.Module)

# What `forward` of each class was when it was defined: the code that ops know how to stand in for.
_FORWARDS: dict[type[nn.Module], Callable] = {nn.Linear: nn.Linear.forward}


def fusible(kind: Kind) -> Kind:
    """Class decorator: an op computes what ``forward`` of this class does, see :func:`is_plain`."""
    _FORWARDS[kind] = kind.forward
    return kind


def is_plain(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Whether calling the module runs ``kind``'s own ``forward`` on plain weights, and nothing else.

    So an op may read the weights instead. Not so with hooks (global ones too), a ``forward`` replaced on the instance
    (accelerate's offloading) or on the class, a subclass (parametrisations, FSDP2), a module in its place (adapters,
    quantised layers), or weights that are tensor subclasses.

    Args:
        module: the module that would be called.
        kind: ``nn.Linear`` or a class marked with :func:`fusible`.
    """
    return (
        type(module) is kind
        and kind.forward is _FORWARDS[kind]
        and "forward" not in module.__dict__
        and not is_hooked(module)
        and has_plain_weights(module)
    )


# Both are asked at every decoding step, so they read the module's dict, and not attributes through nn.Module.
def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module may do more than its ``forward``."""
    own = module.__dict__
    return bool(
        own.get("_forward_hooks")
        or own.get("_forward_pre_hooks")
        or own.get("_backward_hooks")
        or own.get("_backward_pre_hooks")
        or _has_any_global_hook()
    )


def has_plain_weights(module: nn.Module) -> bool:
    """Whether the module's own weights are plain tensors, which a kernel can read."""
    own = module.__dict__
    for weights in (own["_parameters"], own["_buffers"]):
        for w in weights.values():
            if w is not None and type(w) is not nn.Parameter and type(w) is not Tensor:
                return False
    return True


def with_tensors(module: Module, tensors: dict[str, Tensor]) -> Module:
    """A copy of a module and of its parts that shares everything with it but what is given.

    Gradients of the given tensors go where they come from: views of the module's own weights bring them there.

    Args:
        module: stays as it is.
        tensors: by the names that parameters and buffers have in the state dict.
    """
    copy = _sharing_copy(module)
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        part = copy.get_submodule(path)
        owner: dict[str, Any] = part._parameters if leaf in part._parameters else part._buffers
        if leaf not in owner:
            raise ValueError(f"{type(module).__name__} has no parameter or buffer {name!r}")
        owner[leaf] = tensor
        if isinstance(part, nn.Linear) and leaf == "weight":
            part.out_features, part.in_features = tensor.shape
    return copy


def _sharing_copy(module: Module) -> Module:
    copy = type(module).__new__(type(module))
    copy.__dict__ = dict(module.__dict__)
    copy._parameters, copy._buffers = dict(module._parameters), dict(module._buffers)
    copy._modules = {name: None if part is None else _sharing_copy(part) for name, part in module._modules.items()}
    return copy


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device's kind."""
    # The meta device knows no autocast. (torch.amp.is_autocast_available would tell, but torch 2.11 cannot trace it.)
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast for a device's kind."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()
