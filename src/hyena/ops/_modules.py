"""What an op must know of a module before it computes in its place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module may do more than its ``forward``."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return _has_any_global_hook() or any(getattr(module, name, None) for name in hooks)


def has_plain_weights(module: nn.Module) -> bool:
    """Whether the module's own weights are plain tensors, which a kernel can read."""
    weights = [*module._parameters.values(), *module._buffers.values()]
    return all(w is None or type(w) in (Tensor, nn.Parameter) for w in weights)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device's kind."""
    # The meta device knows no autocast. (torch.amp.is_autocast_available would tell, but torch 2.11 cannot trace it.)
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast for a device's kind."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()
