"""The attention map of any attention, found by calling it with values of our own.

Attention is linear in its values. Where values that are one at a single position come out is the map, whatever the
module does to queries and keys, and whichever kernel it runs on.

Dimensions: B batch, L length, M heads, I inner channels (of the values of all heads, as the output projection takes
them), d channels of a head, F features of the projection that makes the values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyena.integrations.sites import AttentionSite

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


class Values(NamedTuple):
    """How an attention module makes and uses its values.

    Attributes:
        heads: M, of the queries.
        weight: ``(I, D)``, each channel's row of the value projection; of grouped queries repeated.
        bias: ``(I,)`` or None.
        out_weight: ``(D, I)`` of the output projection; None if the module has none.
        out_bias: ``(D,)`` or None.
        attend: the map of a call, from its arguments: pairs of a first position ``s`` and columns ``(B, L, M, n)`` for
            the keys ``s … s + n - 1``, a few at a time.
    """

    heads: int
    weight: Tensor
    bias: Tensor | None
    out_weight: Tensor | None
    out_bias: Tensor | None
    attend: Callable[[tuple[Any, ...], dict[str, Any]], Iterator[tuple[int, Tensor]]]


@torch.no_grad()
def find_values(site: AttentionSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values | None:
    """The values of the attention at ``site``, by the arguments of one of its calls; None if they are not found.

    Args:
        site: where the attention stands.
        args, kwargs: what it was called with.
    """
    old: Any = site.module
    if isinstance(old, nn.MultiheadAttention):
        return _of_torch(old)
    heads = next((getattr(old, name) for name in _HEADS if isinstance(getattr(old, name, None), int)), None)
    heads = site.config(*_HEADS) if heads is None else heads
    projections = [m for m in old.modules() if not m._modules and getattr(m, "weight", None) is not None]
    projections = [m for m in projections if m.weight.dim() == 2 and not isinstance(m, nn.Embedding)]
    for source in projections:
        found = _matched(old, source, projections, args, kwargs)
        if found is None:
            continue
        rows, out = found
        if not isinstance(heads, int) or rows.numel() % heads != 0:
            return None
        weight, bias = _rows_first(source, rows)
        out_weight, out_bias = (None, None) if out is None else _rows_first(out, None)
        probe = _Probe(old, source, out, rows, heads)
        return Values(heads, weight, bias, out_weight, out_bias, probe)
    return None


def _of_torch(old: nn.MultiheadAttention) -> Values:
    e = old.embed_dim
    assert old.in_proj_weight is not None
    bias = None if old.in_proj_bias is None else old.in_proj_bias[2 * e :]
    signature = inspect.signature(old.forward)

    def attend(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
        given = signature.bind(*args, **kwargs).arguments
        given |= {"need_weights": True, "average_attn_weights": False}
        weights = old.forward(**given)[1]
        assert weights is not None
        weights = weights if weights.dim() == 4 else weights[None]
        for start in range(0, weights.size(-1), old.head_dim):
            yield start, weights[..., start : start + old.head_dim].transpose(1, 2)

    return Values(old.num_heads, old.in_proj_weight[2 * e :], bias, old.out_proj.weight, old.out_proj.bias, attend)


def _matched(
    old: Any, source: nn.Module, projections: list[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, nn.Module | None] | None:
    """Which features of ``source`` are the values of each inner channel, and the output projection (None if outside).

    Where all positions have the same values, attention gives these back, since its weights add up to one: so every
    channel of what the output projection gets is one of the numbers put in.
    """
    put, reached, y = _with_random_values(old, source, projections, args, kwargs, same_everywhere=True)
    if put is None:
        return None
    for out, x in [*reached, (None, y)]:
        rows = _rows_of(x, put[0, 0])
        if rows is None:
            continue
        if out is None:  # maybe of the output projection, whose own output this is and nothing mixed
            put, _, y = _with_random_values(old, source, projections, args, kwargs, same_everywhere=False)
            if put is None or torch.equal(y, put[..., rows]):
                return None
        return rows, out
    return None


def _with_random_values(
    old: Any,
    source: nn.Module,
    projections: list[nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    same_everywhere: bool,
) -> tuple[Tensor | None, list[tuple[nn.Module, Tensor]], Tensor]:
    """Calls attention with random numbers in place of what ``source`` gives.

    Returns:
        The numbers ``(B, L, F)`` (None if it was not called once, with rows of positions), what reached the other
        projections, and the output.
    """
    given: list[Tensor] = []
    reached: list[tuple[nn.Module, Tensor]] = []

    def replace(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(len(given))
        shape = y.shape[-1:] if same_everywhere else y.shape
        given.append(torch.randn(shape, generator=g).to(y).expand_as(y))
        return given[-1]

    handles = [source.register_forward_hook(replace)]
    others = [m for m in projections if m is not source]
    handles += [m.register_forward_pre_hook(lambda m, inputs: reached.append((m, inputs[0]))) for m in others]
    try:
        result = old.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    y = result[0] if isinstance(result, (tuple, list)) else result
    once = len(given) == 1 and given[0].dim() == 3
    return (given[0] if once else None), reached, y


def _rows_of(x: Tensor, numbers: Tensor) -> Tensor | None:
    """Which of ``numbers`` ``(F,)`` stands in each channel of ``x``, at the last position; None if others do."""
    if x.dim() != 3:
        return None
    near = 1e-3 if x.dtype in (torch.float16, torch.bfloat16) else 1e-5
    last = x[-1, -1, :, None].float()
    least, rows = (last - numbers.float()).abs().min(1)
    return rows if (least <= near * (1 + last[:, 0].abs())).all() else None


def _rows_first(projection: Any, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight ``(out, in)`` and bias of a projection, some rows of them; transformers' Conv1D has ``(in, out)``."""
    weight = projection.weight if hasattr(projection, "in_features") else projection.weight.t()
    bias = getattr(projection, "bias", None)
    return (weight, bias) if rows is None else (weight[rows], None if bias is None else bias[rows])


class _Probe:
    """Columns of the map of a call, d at a time: channel ``j`` of each head has values of one at position ``s + j``."""

    def __init__(self, old: Any, source: nn.Module, out: nn.Module | None, rows: Tensor, heads: int) -> None:
        self.old, self.source, self.out, self.rows, self.heads = old, source, out, rows, heads

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
        size, start = self.rows.numel() // self.heads, 0
        length: int | None = None
        while length is None or start < length:
            columns = self._columns(start, size, args, kwargs)
            length = columns.size(1)
            yield start, columns[..., : length - start]
            start += size

    @torch.no_grad()
    def _columns(self, start: int, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        slot = torch.arange(self.rows.numel(), device=self.rows.device) % size
        caught: list[Tensor] = []

        def put(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
            y = y.clone()
            y[..., self.rows] = 0
            for s in range(start, min(start + size, y.size(-2))):
                y[..., s, self.rows[slot == s - start]] = 1
            return y

        handles = [self.source.register_forward_hook(put)]
        if self.out is not None:
            handles.append(self.out.register_forward_pre_hook(lambda m, inputs: caught.append(inputs[0])))
        try:
            result = self.old.forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if self.out is None:
            caught.append(result[0] if isinstance(result, (tuple, list)) else result)
        return caught[0].unflatten(-1, (self.heads, size))  # (B, L, M, d)
