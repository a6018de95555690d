"""Attention's masks, read for what Hyena can do with them: leave positions out (padding), and be causal.

Values are checked, because a mask that Hyena cannot follow must not pass silently. On the CPU that happens at every
call. On other devices a check waits for the device, so there a mask that passed is remembered until autograd's version
counter says that it was written to: the layers of a model, which get the same tensor, check once. (Writes through
``.data`` do not count as writes there.) Under ``torch.compile`` and ``torch.export`` the condition becomes an assertion
inside the graph, which waits for nothing.

Dimensions: B batch, L length, S keys, Q queries, M heads.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Checked(NamedTuple):
    mask: weakref.ref
    version: int
    question: str


# Masks on a GPU that passed recently: enough for the two or three masks of an encoder-decoder model.
_CHECKED: deque[_Checked] = deque(maxlen=8)


def keep_from_padding(mask: Tensor, batch: int, length: int, name: str = "key_padding_mask") -> Tensor:
    """``nn.MultiheadAttention``'s ``key_padding_mask`` as ``(B, L)`` bool, True = keep.

    Args:
        mask: ``(B, L)`` bool, True = ignore, or floating point, ``-inf`` = ignore and 0 = keep.
        batch: B.
        length: L.
        name: of the argument, for messages.

    Raises:
        ValueError: another shape or dtype, or a number that is neither 0 nor ``-inf``.
    """
    if mask.shape != (batch, length):
        raise ValueError(f"{name} must be of shape {(batch, length)}, got {tuple(mask.shape)}")
    _bool_or_float(mask, name)
    if mask.dtype == torch.bool:
        return ~mask
    require(
        lambda: ((mask == 0) | (mask == -torch.inf)).all(),
        f"Hyena can leave a position out or keep it, not weigh it: a floating point {name} holds -inf "
        "(ignore) and 0 (keep) only; use a bool mask",
        mask,
        "padding",
        lambda: f"; got {_other_value(mask)}",
    )
    return mask == 0


def check_causal_mask(mask: Tensor, batch: int, heads: int, length: int) -> None:
    """Checks that an ``attn_mask`` is the causal one, which is the only one that Hyena can follow.

    Args:
        mask: ``(L, L)`` or ``(B * M, L, L)``, bool (True = may not attend) or floating point (``-inf`` and 0).
        batch: B.
        heads: M.
        length: L.

    Raises:
        ValueError: another shape or dtype, or anything else masked.
    """
    if mask.shape not in ((length, length), (batch * heads, length, length)):
        raise ValueError(
            f"attn_mask must be of shape {(length, length)} or {(batch * heads, length, length)}, got "
            f"{tuple(mask.shape)}"
        )
    _bool_or_float(mask, "attn_mask")

    def is_causal() -> Tensor:
        above = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
        if mask.dtype == torch.bool:
            return (mask == above).all()
        return torch.where(above, mask == -torch.inf, mask == 0).all()

    require(
        is_causal,
        "Hyena cannot follow an attn_mask other than the causal one (everything above the diagonal and nothing else): "
        "its convolution has the same reach from every position. Pass padding as key_padding_mask, rows that must not "
        "see each other as rows of the batch or as cu_seqlens of a HyenaOperator, and keep attention where another "
        "pattern is needed",
        mask,
        "causal",
    )


def keep_from_causal_mask(name: str, mask: Tensor, batch: int, queries: int, keys: int, causal: bool) -> Tensor:
    """All positions of ``(B, S)``, True = keep, after a check that a mask of who sees whom is the causal one.

    Args:
        name: of the argument, for messages.
        mask: ``(Q, S)``, any number of axes of length 1 before them, floating point (0 = attend, ``-inf`` or the
            dtype's lowest number = not) or bool: True = attend or True = may not, which tell a causal mask alike.
        batch: B.
        queries: Q, the last positions of S.
        keys: S.
        causal: whether the mixer is causal.

    Raises:
        ValueError: another mask.
    """
    if mask.shape[-2:] != (queries, keys) or mask.numel() != queries * keys:
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} does not fit {queries} new positions out of {keys}: expected "
            f"{(queries, keys)}"
        )
    _bool_or_float(mask, name)
    if not causal:
        raise ValueError(f"{name} of shape {tuple(mask.shape)} was passed to a mixer with causal=False, which sees all")
    rows = mask.reshape(queries, keys)

    def is_causal() -> Tensor:
        below = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
        if mask.dtype == torch.bool:
            return (rows == below).all() | (rows == ~below).all()
        return torch.where(below, rows == 0, rows <= torch.finfo(mask.dtype).min).all()

    require(
        is_causal,
        f"{name} of shape {tuple(mask.shape)} is not the causal mask, which is all that a causal mixer can follow: "
        "pass padding as (B, S), and keep attention where another pattern is needed",
        mask,
        f"pattern {queries}",
    )
    return torch.ones(batch, keys, dtype=torch.bool, device=mask.device)


def keep_from_model_mask(
    mask: Tensor, batch: int, queries: int, keys: int, causal: bool, window: bool = False
) -> Tensor:
    """The ``(B, S)`` padding, True = keep, inside the mask that a ``transformers`` model hands its attention.

    Args:
        mask: ``(B, S)`` with 0 = padding; or ``(B or 1, …, Q or 1, S)`` bool (True = attend) or floating point (0 =
            attend, the dtype's lowest number or ``-inf`` = not), with any number of heads, all alike.
        batch: B.
        queries: Q, the last positions of S.
        keys: S.
        causal: whether the model's attention is causal, and the mask with it.
        window: whether the model's attention here had a window, which may be in the mask as well and is ignored: what
            takes the place of local attention need not be local.

    Raises:
        ValueError: a mask that is more than padding and causality.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"Hyena cannot read an attention mask of type {type(mask).__name__}; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    if mask.dim() == 2 and mask.shape == (batch, keys):
        return mask != 0
    fits = mask.dim() == 4 and mask.size(3) == keys and mask.size(0) in (1, batch) and mask.size(2) in (1, queries)
    if not fits:
        raise ValueError(
            f"an attention mask of shape {tuple(mask.shape)} does not fit {batch} rows of {queries} new positions out "
            f"of {keys}: expected {(batch, keys)} or {(batch, 1, queries, keys)}"
        )
    attend = mask if mask.dtype == torch.bool else mask == 0
    window = window and mask.size(2) == keys
    # The last position may attend to all that is kept, and with a window every position to itself.
    keep = (attend[:, 0].diagonal(dim1=1, dim2=2) if window else attend[:, 0, -1]).expand(batch, -1)  # (B, S)

    def is_padding() -> Tensor:
        want = keep[:, None, None]
        if causal and mask.size(2) > 1:
            want = want & torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
        if window:
            at = torch.arange(keys, device=mask.device)
            distance = (at - at[:, None]).abs()
            want = want & (distance <= (attend * distance).amax())
        good = (attend == want).all()
        if mask.dtype != torch.bool:
            good = good & (attend | (mask <= torch.finfo(mask.dtype).min)).all()
        return good

    if mask.size(1) > 1 or mask.size(2) > 1 or mask.dtype != torch.bool:
        require(
            is_padding,
            f"an attention mask of shape {tuple(mask.shape)} is more than padding{' and causality' if causal else ''} "
            "(packed rows, a window, a prefix, a bias?), which is all that Hyena can follow: give packed rows a place "
            "of their own in the batch, and pass attention_mask as (B, L)",
            mask,
            f"model {causal} {queries}",
        )
    return keep


def require(
    good: Callable[[], Tensor], message: str, tensor: Tensor, question: str, detail: Callable[[], str] | None = None
) -> None:
    """Raises ``ValueError`` unless ``good()``, a question about ``tensor``.

    Inside a compiled or exported graph it is an assertion, a ``RuntimeError`` of the running graph, without ``detail``.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(good(), message)
        return
    remembers = tensor.device.type != "cpu" and not tensor.is_inference()
    if remembers and any(
        c.mask() is tensor and (c.version, c.question) == (tensor._version, question) for c in tuple(_CHECKED)
    ):
        return
    if not good():
        raise ValueError(message + (detail() if detail is not None else ""))
    if remembers:
        _CHECKED.append(_Checked(weakref.ref(tensor), tensor._version, question))


def _bool_or_float(mask: Tensor, name: str) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name} must be bool or floating point, got {mask.dtype}")


def _other_value(mask: Tensor) -> float:
    """The first entry that is neither 0 nor ``-inf``."""
    return float(mask[(mask != 0) & (mask != -torch.inf)][0])
