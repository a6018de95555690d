"""The spectra an operator keeps in eval mode, and when they may be used."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hyena.conv.watch import Watched, is_compared, watch

Kept = TypeVar("Kept")

# Spectra kept for different transform lengths: enough for a few bucketed lengths, and a bound on the memory.
_KEPT = 4


class SpectrumCache:
    """Spectra by transform length, valid as long as the filter is what it was.

    On the CPU the weights are compared by value with a copy (a filter has few: about 20 microseconds for 60K), so even
    a write through ``.data``, which autograd's version counter does not see, is noticed. On other devices a comparison
    would wait for the device; there the version counter and the address of every weight are compared, nothing is kept
    while weights have gradients (a fused optimizer's step moves no version counter), and after a write through
    ``.data`` :meth:`clear` must be called; nothing is kept of weights that FSDP gathers. Which modules the filter is
    made of, their classes and attributes (a window's ``shift``) are compared everywhere; see :mod:`hyena.conv.watch`.

    Copies and pickles of a module start with an empty cache. Threads may share a module, and a process that forks
    while one of them is in here leaves the child an empty cache.
    """

    def __init__(self) -> None:
        self._spectra: OrderedDict[Hashable, Any] = OrderedDict()
        self._settings: list[object] = []
        self._weights: list[tuple[object, Tensor]] = []
        self._lock = threading.Lock()
        _CACHES.add(self)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._spectra.clear()
        self._settings, self._weights = [], []

    def __len__(self) -> int:
        return len(self._spectra)

    def get(self, source: nn.Module | Watched, key: Hashable, compute: Callable[[], Kept]) -> Kept:
        """What is kept under ``key`` (a transform length, say) for a filter as it is now, or else ``compute()``.

        Args:
            source: the filter, one that :func:`may_cache`; or what :func:`watch_for_cache` returned for it.
            key: what to look for.
            compute: makes it; the result is kept.
        """
        found = source if isinstance(source, Watched) else watch(source)
        if found is None:
            return compute()
        with self._lock:
            if found.settings != self._settings or not _unchanged(self._weights, found.weights):
                self._forget()
                self._settings, self._weights = found.settings, [_fingerprint(t) for t in found.weights]
            if key not in self._spectra:
                with torch.inference_mode(False), torch.no_grad():
                    self._spectra[key] = compute()
                if len(self._spectra) > _KEPT:
                    self._spectra.popitem(last=False)
            self._spectra.move_to_end(key)
            return self._spectra[key]

    def _start_in_child(self) -> None:
        # The thread that held the lock is not in this process, and may have been halfway.
        self._lock = threading.Lock()
        self._forget()

    def __deepcopy__(self, memo: dict) -> SpectrumCache:
        return SpectrumCache()

    def __reduce__(self) -> tuple:
        return SpectrumCache, ()


# Every cache there is, for :func:`_start_in_child`.
_CACHES: weakref.WeakSet[SpectrumCache] = weakref.WeakSet()


def _start_in_child() -> None:
    """After ``os.fork``, in the child."""
    for cache in _CACHES:
        cache._start_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_start_in_child)


def _captures() -> bool:
    # What is computed while a CUDA graph is recorded belongs to the graph, and is not there before it runs.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def may_cache(source: nn.Module) -> bool:
    """Whether a spectrum of ``source`` can be kept; see :func:`watch_for_cache`."""
    return watch_for_cache(source) is not None


def watch_for_cache(source: nn.Module) -> Watched | None:
    """What decides the taps of ``source``, if a spectrum of them can be kept; else None.

    So in eager eval mode, if no gradient can be asked of its weights, and if every change would be noticed: not with
    hooks, nor with attributes that cannot be compared. A filter whose taps change with the number of taps asked for has
    an attribute ``depends_on_length = True``: one spectrum cannot serve several lengths then, and none is kept.
    """
    if source.training or torch.compiler.is_compiling() or getattr(source, "depends_on_length", False) or _captures():
        return None
    if getattr(source, "_is_replica", False):  # nn.DataParallel's copies do not list their weights
        return None
    found = watch(source)
    if found is None or (torch.is_grad_enabled() and any(w.requires_grad for w in found.weights)):
        return None
    return found


def _fingerprint(t: Tensor) -> tuple[object, Tensor]:
    """A key, and a tensor: a copy on the CPU, elsewhere an alias that keeps the address from being used again."""
    if is_compared(t):
        return (t.dtype, t.device), t.detach().clone()
    return (t.dtype, t.device, t.data_ptr(), t._version), t.detach()


def _unchanged(state: list[tuple[object, Tensor]], weights: list[Tensor]) -> bool:
    if len(state) != len(weights):
        return False
    for (key, kept), t in zip(state, weights, strict=True):
        if is_compared(t):
            if key != (t.dtype, t.device) or not torch.equal(kept, t):
                return False
        elif key != (t.dtype, t.device, t.data_ptr(), t._version):
            return False
    return True
