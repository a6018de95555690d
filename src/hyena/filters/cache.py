"""The spectra an operator keeps in eval mode, and when they may be used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Spectra kept for different transform lengths: enough for a few bucketed lengths, and a bound on the memory.
_KEPT = 4


class SpectrumCache:
    """Spectra by transform length, valid as long as the filter's weights are what they were.

    On the CPU the weights are compared by value with a copy (a filter has few: about 20 microseconds for 60K), so even
    a write through ``.data``, which autograd's version counter does not see, is noticed. On other devices a comparison
    would wait for the device; there the version counter and the address of every weight are compared, and after a write
    through ``.data`` :meth:`clear` must be called.

    Copies and pickles of a module start with an empty cache.
    """

    def __init__(self) -> None:
        self._spectra: OrderedDict[int, Tensor] = OrderedDict()
        self._state: list[tuple[object, Tensor | None]] | None = None

    def clear(self) -> None:
        """Forgets everything."""
        self._spectra.clear()
        self._state = None

    def __len__(self) -> int:
        return len(self._spectra)

    def get(self, source: nn.Module, size: int, compute: Callable[[], Tensor]) -> Tensor:
        """The spectrum of transform length ``size``, from the cache or from ``compute``."""
        tensors = [*source.parameters(), *source.buffers()]
        if self._state is None or not _unchanged(self._state, tensors):
            self.clear()
            self._state = [_fingerprint(t) for t in tensors]
        if size not in self._spectra:
            with torch.inference_mode(False), torch.no_grad():
                self._spectra[size] = compute()
            if len(self._spectra) > _KEPT:
                self._spectra.popitem(last=False)
        self._spectra.move_to_end(size)
        return self._spectra[size]

    def __deepcopy__(self, memo: dict) -> SpectrumCache:
        return SpectrumCache()

    def __reduce__(self) -> tuple:
        return SpectrumCache, ()


def may_cache(source: nn.Module) -> bool:
    """Whether a spectrum of ``source`` can be kept: eager eval mode, and no gradient can be asked of its weights.

    A filter whose taps change with the number of taps asked for has an attribute ``depends_on_length = True``: one spectrum
    cannot serve several lengths then, and none is kept.
    """
    if source.training or torch.compiler.is_compiling() or getattr(source, "depends_on_length", False):
        return False
    weights = [*source.parameters(), *source.buffers()]
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        return False
    return all(
        type(w) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(w) for w in weights
    )


def _fingerprint(t: Tensor) -> tuple[object, Tensor | None]:
    if t.device.type == "cpu":
        return (t.dtype, t.device), t.detach().clone()
    return (t.dtype, t.device, t.data_ptr(), None if t.is_inference() else t._version), None


def _unchanged(state: list[tuple[object, Tensor | None]], tensors: list[Tensor]) -> bool:
    if len(state) != len(tensors):
        return False
    for (key, copy), t in zip(state, tensors, strict=True):
        if copy is None:
            if key != _fingerprint(t)[0]:
                return False
        elif key != (t.dtype, t.device) or not torch.equal(copy, t):
            return False
    return True
