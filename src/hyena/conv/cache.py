"""The spectra an operator keeps in eval mode, and when they may be used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

# Spectra kept for different transform lengths: enough for a few bucketed lengths, and a bound on the memory.
_KEPT = 4

# Attributes that are compared: what a filter's numbers are kept in.
_PLAIN = {bool, int, float, str, tuple}


class SpectrumCache:
    """Spectra by transform length, valid as long as the filter is what it was.

    On the CPU the weights are compared by value with a copy (a filter has few: about 20 microseconds for 60K), so even
    a write through ``.data``, which autograd's version counter does not see, is noticed. On other devices a comparison
    would wait for the device; there the version counter and the address of every weight are compared, and after a write
    through ``.data`` :meth:`clear` must be called. Which modules the filter is made of and their plain attributes (a
    window's ``shift``) are compared everywhere.

    Copies and pickles of a module start with an empty cache. Threads may share a module.
    """

    def __init__(self) -> None:
        self._spectra: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._settings: list[object] = []
        self._weights: list[tuple[object, Tensor]] = []
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._spectra.clear()
        self._settings, self._weights = [], []

    def __len__(self) -> int:
        return len(self._spectra)

    def get(self, source: nn.Module, size: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The spectrum of transform length ``size`` (or what else is kept under it), from the cache or ``compute``."""
        weights: list[Tensor] = []
        # A filter of the user's own may give other taps under autocast.
        settings: list[object] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
        _look(source, weights, settings)
        with self._lock:
            if settings != self._settings or not _unchanged(self._weights, weights):
                self._forget()
                self._settings, self._weights = settings, [_fingerprint(t) for t in weights]
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


def _captures() -> bool:
    # What is computed while a CUDA graph is recorded belongs to the graph, and is not there before it runs.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def may_cache(source: nn.Module) -> bool:
    """Whether a spectrum of ``source`` can be kept: eager eval mode, and no gradient can be asked of its weights.

    A filter whose taps change with the number of taps asked for has an attribute ``depends_on_length = True``: one
    spectrum cannot serve several lengths then, and none is kept.
    """
    if source.training or torch.compiler.is_compiling() or getattr(source, "depends_on_length", False) or _captures():
        return False
    if getattr(source, "_is_replica", False):  # nn.DataParallel's copies do not list their weights
        return False
    weights: list[Tensor] = []
    _look(source, weights, [])
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        return False
    return all(_can_be_watched(w) for w in weights)


def _can_be_watched(t: Tensor) -> bool:
    """Whether :func:`_unchanged` notices every change: not of subclasses, nor of what has no version counter."""
    if type(t) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(t):
        return False
    return t.device.type == "cpu" or not t.is_inference()


def _look(module: nn.Module, weights: list[Tensor], settings: list[object]) -> None:
    """Collects what decides the taps: weights, the modules themselves and their plain attributes.

    By hand, because ``parameters()``, ``buffers()`` and ``modules()`` take several times as long, at every forward.
    """
    settings.append(module)
    settings += [v for v in module.__dict__.values() if type(v) in _PLAIN]
    weights += [t for t in module._parameters.values() if t is not None]
    weights += [t for t in module._buffers.values() if t is not None]
    for child in module._modules.values():
        if child is not None:
            _look(child, weights, settings)


def _fingerprint(t: Tensor) -> tuple[object, Tensor]:
    """A key, and a tensor: a copy on the CPU, elsewhere an alias that keeps the address from being used again."""
    if t.device.type == "cpu":
        return (t.dtype, t.device), t.detach().clone()
    return (t.dtype, t.device, t.data_ptr(), t._version), t.detach()


def _unchanged(state: list[tuple[object, Tensor]], weights: list[Tensor]) -> bool:
    if len(state) != len(weights):
        return False
    for (key, kept), t in zip(state, weights, strict=True):
        if t.device.type == "cpu":
            if key != (t.dtype, t.device) or not torch.equal(kept, t):
                return False
        elif key != (t.dtype, t.device, t.data_ptr(), t._version):
            return False
    return True
