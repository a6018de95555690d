"""How an op is registered: schema, fallback, fake and backward in one call.

Schemas live in Python so that the ops exist with or without the compiled extension; a kernel only adds an
implementation for its device (``CPU`` or ``CUDA``) under the same name, and the dispatcher takes it from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
    backward: Callable[..., Any] | None = None,
    differentiable: Callable[..., Any] | None = None,
    in_place: bool = False,
) -> None:
    """Registers ``hyena::<name>`` with everything that eager, ``torch.compile`` and autograd ask of it.

    Args:
        schema: ``name(Tensor a, Tensor? b) -> Tensor``.
        fallback: plain PyTorch, any device and dtype.
        fake: shapes and strides only.
        backward: ``(inputs, grads, needs) -> grads of inputs``, ``needs`` saying which are asked for. Without it the op
            is taken to be a backward op itself, and its derivative is autograd's, of ``differentiable``.
        differentiable: the same function as ``fallback``, in operations that autograd can differentiate, for any
            backend's spectra; ``fallback`` itself if missing.
        in_place: the op changes an argument, and has no derivative.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")
    # Under a name of its own too, for a kernel to call with what it does not take.
    LIBRARY.define(f"{name}_fallback{schema[len(name) :]}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(f"{name}_fallback", fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hyena::{name}", fake, lib=LIBRARY)
    OP_NAMES.append(name)
    if in_place:
        return
    derivative = backward if backward is not None else _derivative_of(differentiable or fallback)

    def run_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = _restore(ctx)
        if all(g is None for g in grads):
            return (None,) * len(inputs)
        out = derivative(inputs, grads, ctx.needs_input_grad)
        return tuple(g if need else None for g, need in zip(out, ctx.needs_input_grad, strict=True))

    torch.library.register_autograd(f"hyena::{name}", run_backward, setup_context=_save, lib=LIBRARY)


def _save(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.is_tensor = [isinstance(a, Tensor) for a in inputs]
    ctx.others = [None if t else a for a, t in zip(inputs, ctx.is_tensor, strict=True)]
    ctx.save_for_backward(*[a for a, t in zip(inputs, ctx.is_tensor, strict=True) if t])


def _restore(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if t else a for t, a in zip(ctx.is_tensor, ctx.others, strict=True)]


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
        with _without_kernels():  # in the thread that runs the op, which may be autograd's
            return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))


@contextmanager
def _without_kernels() -> Iterator[None]:
    before, _LOCAL.fallback_only = _LOCAL.fallback_only, True
    try:
        yield
    finally:
        _LOCAL.fallback_only = before


@contextmanager
def fallback_only() -> Iterator[None]:
    """Runs the ops called inside by their plain PyTorch version, whatever kernels there are: for tests and benchmarks.

    Spectra made outside by a kernel do not fit inside, nor the other way round.
    """
    with _without_kernels(), _FallbackMode():
        yield


def _derivative_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Differentiates a backward op by differentiating plain PyTorch (used for double backward only)."""

    def derivative(inputs: Sequence[Any], grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "hyena ops have first and second derivatives, but no third: create_graph=True was nested twice"
            )
        with torch.enable_grad():
            leaves = [
                a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in inputs
            ]
            outputs = function(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            wanted = [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in pairs], [leaves[i] for i in wanted], [g for _, g in pairs], allow_unused=True
            )
        result: list[Tensor | None] = [None] * len(inputs)
        for i, g in zip(wanted, found, strict=True):
            result[i] = g
        return result

    return derivative
