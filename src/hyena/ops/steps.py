"""``hyena::short_step_``, ``modal_step_``, …: one position of convolutions that remember their inputs.

A decoding step is a few of these on little data: in one call each costs what it reads, where torch's operations one by
one cost a dozen calls. ``gated_…`` are all that happens between the projections of an operator of order 2. Each changes
its memory.

Dimensions: B batch, C channels, K taps, m modes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena.ops._checks import check_like, shown
from hyena.ops._derivatives import call_below_autograd, note_changes
from hyena.ops._library import define, has_kernel


def _short_step(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor) -> Tensor:
    rows = torch.cat([memory, x], dim=1)
    y = (rows * weight.t()).sum(1, keepdim=True)
    memory.copy_(rows[:, 1:])
    return y if bias is None else y + bias


def _modal_step(
    x: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> Tensor:
    now = (x if pre is None else pre * x)[:, 0]
    before = memory.clone() if torch.is_grad_enabled() else memory  # the gradient of poles and residues needs it
    past = (residue * before).sum(-1)
    y = torch.addcmul(past.real if past.is_complex() else past, now, first)[:, None]
    memory.copy_(pole * before + now[..., None])
    return y if post is None else post * y


def _window_step(x: Tensor, pre: Tensor | None, post: Tensor | None, h: Tensor, memory: Tensor) -> Tensor:
    rows = torch.cat([memory, x if pre is None else pre * x], dim=1)
    y = (rows * h.flip(0)).sum(1, keepdim=True)
    memory.copy_(rows[:, 1:])
    return y if post is None else post * y


def _gated_modal_step(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    last: Tensor,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> Tensor:
    post, pre, x = _short_step(z, weight, bias, last).chunk(3, dim=2)
    return _modal_step(x, pre, post, pole, residue, first, memory)


def _gated_window_step(
    z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, h: Tensor, memory: Tensor
) -> Tensor:
    post, pre, x = _short_step(z, weight, bias, last).chunk(3, dim=2)
    return _window_step(x, pre, post, h, memory)


def _check_position(name: str, x: Tensor, gates: tuple[Tensor | None, ...] = ()) -> None:
    if x.dim() != 3 or x.size(1) != 1 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be one position (B, 1, C) in float32 or float64, got {shown(x)}")
    for gate_name, gate in zip(("pre", "post"), gates):
        if gate is not None:
            check_like(gate_name, gate, x.shape, x)


def _check_gates_and_value(z: Tensor) -> None:
    _check_position("z", z)
    if z.size(2) % 3 != 0:
        raise ValueError(f"z of {z.size(2)} channels is not two gates and a value: not 3 C")


def _check_memory(name: str, memory: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> None:
    check_like(name, memory, shape, x, dtype)
    if memory.numel() > 0 and any(step == 0 and size > 1 for step, size in zip(memory.stride(), memory.shape)):
        raise ValueError(
            f"{name} of shape {tuple(memory.shape)} is expanded (strides {memory.stride()}): several of its entries "
            f"are one number, which cannot move on in several ways; pass {name}.clone()"
        )


def _check_short(x: Tensor, weight: Tensor, bias: Tensor | None, name: str, memory: Tensor) -> None:
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.size(1) < 1:
        raise ValueError(f"weight must be (C, K) with at least one tap, got {shown(weight)}")
    check_like("weight", weight, (channels, weight.size(1)), x)
    if bias is not None:
        check_like("bias", bias, (channels,), x)
    _check_memory(name, memory, (batch, weight.size(1) - 1, channels), x.dtype, x)


def _check_states(x: Tensor, channels: int, pole: Tensor, residue: Tensor, first: Tensor, memory: Tensor) -> None:
    check_like("first", first, (channels,), x)
    kinds = (x.dtype, x.dtype.to_complex())
    if pole.dim() != 2 or pole.dtype not in kinds:
        raise ValueError(f"pole must be (C, m) in {kinds[0]} or {kinds[1]}, got {shown(pole)}")
    modes = pole.size(1)
    check_like("pole", pole, (channels, modes), x, pole.dtype)
    check_like("residue", residue, (channels, modes), x, pole.dtype)
    _check_memory("memory", memory, (x.size(0), channels, modes), pole.dtype, x)


def _check_window(x: Tensor, channels: int, h: Tensor, memory: Tensor) -> None:
    if h.dim() != 2 or h.size(0) < 1:
        raise ValueError(f"h must be (K, C) with at least one tap, got {shown(h)}")
    check_like("h", h, (h.size(0), channels), x)
    _check_memory("memory", memory, (x.size(0), h.size(0) - 1, channels), x.dtype, x)


def _check_short_step(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor) -> None:
    _check_position("x", x)
    _check_short(x, weight, bias, "memory", memory)


def _check_modal_step(
    x: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> None:
    _check_position("x", x, (pre, post))
    _check_states(x, x.size(2), pole, residue, first, memory)


def _check_window_step(x: Tensor, pre: Tensor | None, post: Tensor | None, h: Tensor, memory: Tensor) -> None:
    _check_position("x", x, (pre, post))
    _check_window(x, x.size(2), h, memory)


def _check_gated_modal_step(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    last: Tensor,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> None:
    _check_gates_and_value(z)
    _check_short(z, weight, bias, "last", last)
    _check_states(z, z.size(2) // 3, pole, residue, first, memory)


def _check_gated_window_step(
    z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, h: Tensor, memory: Tensor
) -> None:
    _check_gates_and_value(z)
    _check_short(z, weight, bias, "last", last)
    _check_window(z, z.size(2) // 3, h, memory)


def _of_x(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _of_z(z: Tensor, *_: Any) -> Tensor:
    return z.new_empty(z.size(0), 1, z.size(2) // 3)


for _schema, _fallback, _fake, _check in (
    (
        "short_step_(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) memory) -> Tensor",
        _short_step,
        _of_x,
        _check_short_step,
    ),
    (
        "modal_step_(Tensor x, Tensor? pre, Tensor? post, Tensor pole, Tensor residue, Tensor first, "
        "Tensor(a!) memory) -> Tensor",
        _modal_step,
        _of_x,
        _check_modal_step,
    ),
    (
        "window_step_(Tensor x, Tensor? pre, Tensor? post, Tensor h, Tensor(a!) memory) -> Tensor",
        _window_step,
        _of_x,
        _check_window_step,
    ),
    (
        "gated_modal_step_(Tensor z, Tensor weight, Tensor? bias, Tensor(a!) last, Tensor pole, Tensor residue, "
        "Tensor first, Tensor(b!) memory) -> Tensor",
        _gated_modal_step,
        _of_z,
        _check_gated_modal_step,
    ),
    (
        "gated_window_step_(Tensor z, Tensor weight, Tensor? bias, Tensor(a!) last, Tensor h, Tensor(b!) memory) "
        "-> Tensor",
        _gated_window_step,
        _of_z,
        _check_gated_window_step,
    ),
):
    define(_schema, _fallback, _fake, check=_check, plain=_fallback)

# Looked for once: a step is over in the time of some dozens of attributes.
_SHORT = torch.ops.hyena.short_step_.default
_MODAL, _GATED_MODAL = torch.ops.hyena.modal_step_.default, torch.ops.hyena.gated_modal_step_.default
_WINDOW, _GATED_WINDOW = torch.ops.hyena.window_step_.default, torch.ops.hyena.gated_window_step_.default
_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_is_grad_enabled, _is_compiling = torch.is_grad_enabled, torch.compiler.is_compiling
_any_requires_grad = torch._C._any_requires_grad


def short_step_(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor) -> Tensor:
    """One position of a short convolution.

    Args:
        x: ``(B, 1, C)``.
        weight: ``(C, K)``, lag 0 last.
        bias: ``(C,)`` or None.
        memory: ``(B, K - 1, C)``, the last inputs, the oldest first; changed in place.

    Returns:
        ``(B, 1, C)``.
    """
    if _has_a_kernel("short_step_", (x, weight, bias), memory):
        return _call(_SHORT, (memory,), x, weight, bias, memory)
    return _short_step(x, weight, bias, memory)


def modal_step_(
    x: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> Tensor:
    """One position of a recurrence of modes, between gates.

    ``y = post * (Re(sum_k residue_k s_k) + first * pre * x)``, then ``s_k <- pole_k s_k + pre * x``.

    Args:
        x: ``(B, 1, C)``.
        pre, post: gates ``(B, 1, C)`` or None.
        pole, residue: ``(C, m)``, real or complex.
        first: ``(C,)``.
        memory: the states ``s`` ``(B, C, m)``, real or complex as the poles are; changed in place.

    Returns:
        ``(B, 1, C)``.
    """
    if _has_a_kernel("modal_step_", (x, first, pre, post), pole, residue, memory):
        return _call(_MODAL, (memory,), x, pre, post, pole, residue, first, memory)
    return _modal_step(x, pre, post, pole, residue, first, memory)


def window_step_(x: Tensor, pre: Tensor | None, post: Tensor | None, h: Tensor, memory: Tensor) -> Tensor:
    """One position of a convolution with few taps, between gates.

    Args:
        x: ``(B, 1, C)``.
        pre, post: gates ``(B, 1, C)`` or None.
        h: ``(K, C)``, lags ``0 … K-1``.
        memory: ``(B, K - 1, C)``, the last inputs, the oldest first; changed in place.

    Returns:
        ``(B, 1, C)``.
    """
    if _has_a_kernel("window_step_", (x, h, pre, post), memory):
        return _call(_WINDOW, (memory,), x, pre, post, h, memory)
    return _window_step(x, pre, post, h, memory)


def gated_modal_step_(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    last: Tensor,
    pole: Tensor,
    residue: Tensor,
    first: Tensor,
    memory: Tensor,
) -> Tensor:
    """:func:`short_step_` of two gates and a value, and :func:`modal_step_` of them.

    Args:
        z: ``(B, 1, 3 C)``: the gate behind the long convolution, the one before it, the value.
        weight, bias: of the short convolution, ``(3 C, K)`` and ``(3 C,)``.
        last: its memory, ``(B, K - 1, 3 C)``; changed in place.
        pole, residue, first, memory: as in :func:`modal_step_`.

    Returns:
        ``(B, 1, C)``.
    """
    if _has_a_kernel("gated_modal_step_", (z, weight, first, bias), last, pole, residue, memory):
        return _call(_GATED_MODAL, (last, memory), z, weight, bias, last, pole, residue, first, memory)
    return _gated_modal_step(z, weight, bias, last, pole, residue, first, memory)


def gated_window_step_(
    z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, h: Tensor, memory: Tensor
) -> Tensor:
    """:func:`short_step_` of two gates and a value, and :func:`window_step_` of them.

    Args:
        z: ``(B, 1, 3 C)``: the gate behind the long convolution, the one before it, the value.
        weight, bias: of the short convolution, ``(3 C, K)`` and ``(3 C,)``.
        last: its memory, ``(B, K - 1, 3 C)``; changed in place.
        h, memory: as in :func:`window_step_`.

    Returns:
        ``(B, 1, C)``.
    """
    if _has_a_kernel("gated_window_step_", (z, weight, h, bias), last, memory):
        return _call(_GATED_WINDOW, (last, memory), z, weight, bias, last, h, memory)
    return _gated_window_step(z, weight, bias, last, h, memory)


def _call(op: Any, changed: tuple[Tensor, ...], *args: Any) -> Tensor:
    """``op(*args)``, where nothing is differentiated: past autograd, which costs more than a step's arithmetic."""
    found = call_below_autograd(op, args)
    note_changes(changed)
    return found


def _has_a_kernel(op: str, alike: tuple[Tensor | None, ...], *others: Tensor) -> bool:
    """Whether a kernel takes this call; what is differentiated or traced is the same in torch's operations.

    Traced, so that a compiler fuses them with what stands beside them, and other runtimes know them.

    Args:
        op: its name.
        alike: the position, and arguments that have its dtype.
        others: all other tensors, those that are changed too.
    """
    x = alike[0]
    assert x is not None
    dtype = x.dtype
    return (
        (dtype is _FLOAT32 or dtype is _FLOAT64)
        and all(t is None or t.dtype is dtype for t in alike)
        and not _is_compiling()  # first: no trace gets through what follows
        and not (_is_grad_enabled() and _any_requires_grad(*alike, *others))
        and has_kernel(op, x.device)
    )
