"""How an op is registered: schema, checks, fallback, fake and derivatives in one call; and which ops have kernels.

Schemas live in Python so that the ops exist with or without the compiled extension; a kernel only adds an
implementation for its device (``CPU`` or ``CUDA``) under the same name, and the dispatcher takes it from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyena.ops._checks import check_storage
from hyena.ops._derivatives import Backward, Rule, make_autograd_kernel, make_transform_kernel
from hyena.ops._extension import EXTENSION

LIBRARY = torch.library.Library("hyena", "DEF")
OP_NAMES: list[str] = []
# Kinds of device that have a kernel of each op.
_KERNELS: dict[str, frozenset[str]] = {}


def define(
    schema: str,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    check: Callable[..., None],
    rule: Rule | None = None,
    backward: Backward | None = None,
    plain: Callable[..., Any] | None = None,
) -> None:
    """Registers ``hyena::<name>`` with everything that eager, ``torch.compile``, autograd and ``torch.func`` ask of it.

    Args:
        schema: ``name(Tensor a, Tensor? b) -> Tensor``.
        fallback: plain PyTorch, any device and dtype.
        fake: shapes and strides only.
        check: raises for arguments that do not fit, before fallback and fake. Kernels check for themselves.
        rule: how the op is differentiated by calls of ops; or
        plain: the same function in operations that can be differentiated, which takes the op's place in forward mode
            and under ``torch.func``; with
        backward: its backward pass otherwise. An op without it has no gradient, and raises where one is asked for.
    """
    name = schema[: schema.index("(")]

    arguments = [part.rpartition(" ") for part in schema[len(name) + 1 : schema.index(") ->")].split(", ")]

    def check_all(*args: Any) -> None:
        for (kind, _, argument), value in zip(arguments, args, strict=True):
            if value is None and "?" not in kind:
                raise ValueError(f"{argument} must be a tensor, got None")
        check(*args)

    def checked_fallback(*args: Any) -> Any:
        check_all(*args)
        for (_, _, argument), value in zip(arguments, args, strict=True):
            if isinstance(value, Tensor):
                check_storage(argument, value)
        return fallback(*args)

    def checked_fake(*args: Any) -> Any:
        check_all(*args)
        return fake(*args)

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, checked_fallback, "CompositeExplicitAutograd")
    # Under a name of its own too, for a kernel to call with what it does not take.
    LIBRARY.define(f"{name}_fallback{schema[len(name) :]}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(f"{name}_fallback", checked_fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hyena::{name}", checked_fake, lib=LIBRARY)
    op = getattr(torch.ops.hyena, name).default
    LIBRARY.impl(name, make_autograd_kernel(op, rule, backward, plain), "Autograd")
    LIBRARY.impl(name, make_transform_kernel(op, rule, plain), "FuncTorchDynamicLayerFrontMode")
    OP_NAMES.append(name)


def find_kernels() -> None:
    """Looks up which ops the extension implements, for :func:`has_kernel`: once, after it is loaded."""
    for name in OP_NAMES:
        keys = {"cpu": "CPU", "cuda": "CUDA"}
        _KERNELS[name] = frozenset(
            kind for kind, key in keys.items() if torch._C._dispatch_has_kernel_for_dispatch_key(f"hyena::{name}", key)
        )


def has_kernel(op: str, device: torch.device, dtype: torch.dtype | None = None) -> bool:
    """Whether ``hyena::<op>`` runs a compiled kernel on this device.

    Args:
        op: its name, without the namespace.
        device: only its kind is looked at, if ``dtype`` is missing; ``torch.compile`` can trace the call then, and CUDA
            is not started.
        dtype: also asks whether the kernel takes tensors of this dtype on this very device.
    """
    if device.type not in _KERNELS[op] or _LOCAL.fallback_only:
        return False
    return dtype is None or EXTENSION.takes(device, dtype)


class _Local(threading.local):
    fallback_only = False


_LOCAL = _Local()


class _FallbackMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.namespace != "hyena":
            return func(*args, **(kwargs or {}))
        with fallback_only():  # for ops inside the op, in the thread that runs it, which may be autograd's
            return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))


@contextmanager
def fallback_only() -> Iterator[None]:
    """Runs the ops called inside by their plain PyTorch version, whatever kernels there are: for tests and benchmarks.

    Spectra made outside by a kernel do not fit inside, nor the other way round.
    """
    before, _LOCAL.fallback_only = _LOCAL.fallback_only, True
    try:
        with _FallbackMode():
            yield
    finally:
        _LOCAL.fallback_only = before
