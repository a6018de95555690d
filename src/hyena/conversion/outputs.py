"""What a model makes of a batch: logits, the loss of true labels, and which positions count.

Dimensions: B batch, L length, V classes or vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.integrations.attention import HyenaAttention

IGNORED = -100
"""Labels with this value do not count: ``F.cross_entropy``'s own default."""

# Names of masks that say where a position is kept, and of those that say where it is not.
_KEEP = ("attention_mask", "mask")
_IGNORE = ("src_key_padding_mask", "key_padding_mask")

Forward = Callable[[nn.Module, Any], Any]


class Outcome(NamedTuple):
    """What came of a batch.

    Attributes:
        logits: ``(…, V)``.
        loss: of the true labels, None where there are none.
    """

    logits: Tensor
    loss: Tensor | None


def outcome(model: nn.Module, batch: Any, forward: Forward | None = None) -> Outcome:
    """Calls ``model`` with a batch; see :func:`hyena.convert` for what a batch may be.

    Raises:
        ValueError: no logits to be found, or labels that do not fit them.
    """
    with without_fused_attention():
        result, labels = _called(model, batch, forward)
    logits, loss = _logits_and_loss(result)
    if loss is None and labels is not None:
        loss = label_loss(logits, labels)
    return Outcome(logits, loss)


def _called(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[Any, Tensor | None]:
    """What the model returns, and the labels of the batch."""
    if forward is not None:
        return forward(model, batch), None
    if isinstance(batch, Tensor):
        return model(batch), None
    if isinstance(batch, Mapping):
        given, labels = dict(batch), batch.get("labels")
        takes = inspect.signature(model.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        if "labels" not in takes and not takes_any:
            given.pop("labels", None)
        if "use_cache" in takes:  # keys and values of whole rows are of no use here
            given.setdefault("use_cache", False)
        return model(**given), labels
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return model(batch[0]), batch[1]
    size = f" of {len(batch)} parts" if isinstance(batch, (tuple, list)) else ""
    raise ValueError(
        f"a batch is a {type(batch).__name__}{size}; expected a tensor, a pair (inputs, labels) or a dict of the "
        "model's keywords: pass forward=, a function of the model and the batch that returns logits"
    )


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """``nn.TransformerEncoder`` calls its modules, and keeps its rows padded, in eval mode too."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _logits_and_loss(result: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(result, Tensor):
        return result, None
    if isinstance(result, (tuple, list)):
        parts = [part for part in result if isinstance(part, Tensor)]
        logits = next((part for part in parts if part.dim() > 0), None)
        loss = next((part for part in parts if part.dim() == 0), None)
    else:
        read = result.get if isinstance(result, Mapping) else lambda name: getattr(result, name, None)
        logits, loss = read("logits"), read("loss")
    if logits is None:
        raise ValueError(
            f"the model returned a {type(result).__name__} without logits: convert the model with its head, or pass "
            "forward=, a function of the model and the batch that returns what is to be matched"
        )
    return logits, loss


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, in nats, of labels that stand where the logits that predict them do.

    Raises:
        ValueError: shapes that do not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: one label for "
            "each vector of logits is needed"
        )
    return F.cross_entropy(_wide(logits.flatten(0, -2)), labels.flatten(), ignore_index=IGNORED)


def kept(model: nn.Module, batch: Any, logits: Tensor, forward: Forward | None = None) -> Tensor | None:
    """Which positions of ``(B, L, V)`` logits (or ``(L, B, V)``) count, bool; None for all, as of a ``forward``.

    Raises:
        ValueError: the batch has a mask, and the logits are of another shape.
    """
    if forward is not None or not isinstance(batch, Mapping) or logits.dim() != 3:
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        mask, labels = batch.get("decoder_attention_mask"), batch.get("labels")
        return mask != 0 if mask is not None else None if labels is None else labels != IGNORED
    given = [(name, batch[name]) for name in (*_KEEP, *_IGNORE) if isinstance(batch.get(name), Tensor)]
    if not given:
        return None
    name, mask = given[0]
    keep = mask == 0 if name in _IGNORE else mask != 0
    if name in _IGNORE and keep.dim() == 2 and _is_time_first(model):
        keep = keep.t()
    if keep.shape != logits.shape[:2]:
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} does not say which positions of logits of shape "
            f"{tuple(logits.shape)} count: pass forward=, a function of the model and the batch that returns logits "
            "of the positions that do"
        )
    return keep


def _is_time_first(model: nn.Module) -> bool:
    """Whether a model of PyTorch's own layers takes ``(L, B, D)``."""
    layers = (nn.MultiheadAttention, HyenaAttention)
    return any(isinstance(m, layers) and not m.batch_first for m in model.modules())


def divergence(student: Tensor, teacher: Tensor, keep: Tensor | None, temperature: float = 1.0) -> Tensor:
    """``T² KL(teacher || student)`` of softmaxes at a temperature, the mean over kept positions, in nats.

    The factor keeps gradients as large as at temperature 1 (arXiv 1503.02531, section 2.1).

    Args:
        student, teacher: ``(…, V)``.
        keep: which of the leading positions count, None for all.
        temperature: T.
    """
    if keep is not None:
        student, teacher = student[keep], teacher[keep]
    log_p = (_wide(teacher) / temperature).log_softmax(-1)
    log_q = (_wide(student) / temperature).log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * each.mean()


def relative_error(student: Tensor, teacher: Tensor, keep: Tensor | None) -> Tensor:
    """``|student - teacher|² / |teacher|²`` over kept positions."""
    if keep is not None:
        student, teacher = student[keep], teacher[keep]
    teacher = _wide(teacher)
    return (student.to(teacher.dtype) - teacher).square().sum() / teacher.square().sum().clamp_min(1e-30)


def _wide(t: Tensor) -> Tensor:
    """In float32 at least, which sums need."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
