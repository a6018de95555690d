"""Filters whose weights belong to a length, ``l_max``, which is part of the state dict."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from hyena.filters._initial import empty, fill
from hyena.filters.base import Filter, check_extension


def unrounded(saved: Tensor, number: int) -> Tensor:
    """A number of positions from a state dict; ``number`` if that is what was saved in a dtype that cannot hold it."""
    if not saved.is_meta and saved.item() == torch.tensor(number, dtype=saved.dtype).item():
        return torch.tensor(number, dtype=torch.promote_types(saved.dtype, torch.float32), device=saved.device)
    return saved


class TiedToLength(Filter):
    """Base of filters that are computed for all ``l_max`` taps at once, from weights that are of that length.

    The length is saved with the weights. Loaded into a filter of another ``l_max``, and in :meth:`extend`, they are
    converted in float64, so that every tap stays what it was and the filter goes on beyond.
    """

    length: Tensor

    def _tie(self, device: Any, dtype: torch.dtype | None) -> None:
        """Registers the length, once sizes are known."""
        self.register_buffer("length", torch.empty((), device=device, dtype=self.weight_dtype(dtype)))
        self._save_length()

    def _save_length(self) -> None:
        fill(self.length, empty(self.length).fill_(self.l_max))

    @abstractmethod
    def _convert(self, old: int, new: int) -> None:
        """Makes weights of length ``old`` those of length ``new``, in place."""

    @torch.no_grad()
    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. ``"stretch"`` is not possible: build a filter of the other length."""
        check_extension(l_max, mode)
        if mode == "stretch":
            raise ValueError(
                f"a {type(self).__name__} made for l_max={self.l_max} cannot be stretched to l_max={l_max}; use "
                "mode='continue', which leaves every tap as it is"
            )
        self._convert(self.l_max, l_max)
        self.l_max = l_max
        self._save_length()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        state_dict.setdefault(prefix + "length", torch.tensor(self.l_max, dtype=self.length.dtype))
        saved = state_dict[prefix + "length"] = unrounded(state_dict[prefix + "length"], self.l_max)
        if local_metadata.get("assign_to_params_buffers", False):  # what is converted below is not the caller's
            for name, t in state_dict.items():
                if name.startswith(prefix) and isinstance(t, Tensor):
                    state_dict[name] = t.clone()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if saved.is_meta or self.length.is_meta:
            return
        length = round(saved.item())
        if length != self.l_max:
            self._convert(length, self.l_max)
            self._save_length()
