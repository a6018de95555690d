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
    return run_as_written(module, kind) and has_plain_weights(module)


# These are asked at every decoding step, so they read the module's dict, and not attributes through nn.Module.
def run_as_written(
    module: nn.Module, kind: type[nn.Module], other: nn.Module | None = None, other_kind: type[nn.Module] = nn.Module
) -> bool:
    """:func:`is_plain`, of one module or of two, whatever their weights are."""
    return (
        _runs_its_forward(module, kind)
        and (other is None or _runs_its_forward(other, other_kind))
        and not _has_any_global_hook()
    )


def _runs_its_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    own = module.__dict__
    return not (
        type(module) is not kind
        or kind.forward is not _FORWARDS[kind]
        or "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module may do more than its ``forward``."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or _has_any_global_hook()
    )


def is_plain_tensor(weight: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor whose memory a kernel can read, and no subclass that computes it."""
    return type(weight) is nn.Parameter or type(weight) is Tensor


def has_plain_weights(module: nn.Module) -> bool:
    """Whether the module's own weights are plain tensors, which a kernel can read."""
    own = module.__dict__
    for weights in (own["_parameters"], own["_buffers"]):
        for w in weights.values():
            if w is not None and not is_plain_tensor(w):
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
