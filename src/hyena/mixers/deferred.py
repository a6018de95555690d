"""Initialisation of modules that were made on the meta device by ``transformers``' ``from_pretrained``.

It gives uninitialised memory to what its checkpoint does not hold, and then initialises the modules of the kinds that
it knows, one after the other. Other modules are only told that they are initialised, by setting
``_is_hf_initialized``; the same attribute of a tensor says that the checkpoint had it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class InitializedByTransformers:
    """Base beside ``nn.Module``: initialises itself when ``transformers`` takes it to be initialised."""

    @property
    def _is_hf_initialized(self) -> bool:
        return self.__dict__.get("_initialized_by_transformers", False)

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        if value and not self._is_hf_initialized:
            initialize_missing(self)
        self.__dict__["_initialized_by_transformers"] = value


def initialize_missing(module: Any, name: str = "") -> None:
    """Initialises the parts of ``module`` that no checkpoint had.

    Raises:
        ValueError: a part of which the checkpoint had some tensors and not others.
    """
    if any(_is_quantised(p) for p in module.parameters(recurse=False)):
        return
    loaded = [_has_values(t) for t in (*module.parameters(), *module.buffers())]
    if all(loaded):
        return
    reset = getattr(module, "reset_parameters", None)
    if not any(loaded) and reset is not None:
        reset()
        return
    own = dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
    missing = [f"{name}{key}" for key, t in own.items() if not _has_values(t)]
    if missing:
        raise ValueError(
            f"the checkpoint holds a part of a {type(module).__name__} and not {', '.join(missing)}: it was saved by "
            "another module; load weights of one kind, or none of it"
        )
    for key, child in module.named_children():
        if isinstance(child, nn.Module):
            initialize_missing(child, f"{name}{key}.")


def _has_values(t: Tensor) -> bool:
    """Whether the checkpoint had a tensor; what is still on the meta device by then is offloaded to a disk."""
    return getattr(t, "_is_hf_initialized", False) or t.is_meta


def _is_quantised(p: Tensor) -> bool:
    """Whether a parameter is of a class of a quantiser's: made from the checkpoint, with what stands beside it."""
    return type(p) is not nn.Parameter and not hasattr(p, "full_tensor")  # which a DTensor has
