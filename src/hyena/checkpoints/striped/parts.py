"""Names and shapes of StripedHyena's weights in files, and what becomes of them in our model.

Dimensions: D channels, V vocabulary, I inner width of the MLP, M heads, H heads of keys and values, d channels of a
head, K taps, G filter groups, m modes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from hyena.checkpoints.checks import Shapes
from hyena.checkpoints.striped.config import Layout
from hyena.checkpoints.striped.poles import complex_modes, real_modes
from hyena.models.striped_hyena import StripedHyenaConfig

Piece = tuple[str, slice, Tensor]
"""Where a tensor goes: the name of one of our weights, and which of its rows."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Tensors of a checkpoint that become weights of ours together.

    Args:
        ours: names of the weights.
        theirs: names and shapes of the tensors.
        pieces: the weights' values, given the tensors in that order; views of them, or copies of a part at a time.
    """

    ours: tuple[str, ...]
    theirs: Shapes
    pieces: Callable[..., Iterator[Piece]]


def parts(c: StripedHyenaConfig, layout: Layout, reports: Mapping[int, Counter[str]]) -> list[Part]:
    """Every part of a model, in the order of its layers.

    Args:
        c: the model.
        layout: of the files.
        reports: for each layer what is found out about its poles.
    """
    d = c.d_model
    found = [_same("embedding.weight", "embedding_layer.weight", (c.vocab_size, d))]
    for i, kind in enumerate(c.layers):
        found += _block(c, layout, i, kind, reports)
    if c.final_norm:
        found.append(_same("norm.weight", "norm.scale", (d,)))
    if not c.tie_embeddings:
        found.append(_same("head.weight", "unembed.weight", (c.vocab_size, d)))
    return found


def optional(c: StripedHyenaConfig) -> Shapes:
    """Tensors that files may hold beside those of :func:`parts`, and that are checked or not needed."""
    shapes: Shapes = {"unembed.weight": (c.vocab_size, c.d_model)} if c.tie_embeddings else {}
    for i, kind in enumerate(c.layers):
        if kind == "attention":
            shapes[frequencies_of(i)] = (c.d_model // c.num_heads // 2,)
    return shapes


def frequencies_of(layer: int) -> str:
    """The name of the frequencies of a layer's rotary positions."""
    return f"blocks.{layer}.inner_mha_cls.rotary_emb.inv_freq"


def _block(c: StripedHyenaConfig, layout: Layout, i: int, kind: str, reports: Mapping) -> list[Part]:
    at, d, inner = f"blocks.{i}.", c.d_model, c.inner_width
    found = [
        _same(f"{at}norm1.weight", f"{at}pre_norm.scale", (d,)),
        _same(f"{at}norm2.weight", f"{at}post_norm.scale", (d,)),
        _same(f"{at}mlp.gate.weight", f"{at}mlp.l1.weight", (inner, d)),
        _same(f"{at}mlp.fc1.weight", f"{at}mlp.l2.weight", (inner, d)),
        _same(f"{at}mlp.fc2.weight", f"{at}mlp.l3.weight", (d, inner)),
    ]
    if kind == "attention":
        return found + _attention(c, layout, at)
    return found + _hyena(c, layout, at, kind, reports[i])


def _attention(c: StripedHyenaConfig, layout: Layout, at: str) -> list[Part]:
    d, size = c.d_model, c.d_model // c.num_heads
    rows = torch.arange(d + 2 * (c.num_kv_heads or c.num_heads) * size)
    if layout.column_split_qkv:  # (head, part, channel)
        rows = rows.view(c.num_heads, 3, size).transpose(0, 1).flatten()
    ours, theirs = f"{at}mixer.", f"{at}inner_mha_cls."
    found = [
        _rows(f"{ours}in_proj.weight", f"{theirs}Wqkv.weight", rows, (d,)),
        _same(f"{ours}out_proj.weight", f"{theirs}out_proj.weight", (d, d)),
    ]
    if c.qkv_bias:
        found.append(_rows(f"{ours}in_proj.bias", f"{theirs}Wqkv.bias", rows, ()))
    if c.attention_out_bias:
        found.append(_same(f"{ours}out_proj.bias", f"{theirs}out_proj.bias", (d,)))
    return found


def hyena_rows(c: StripedHyenaConfig, layout: Layout) -> Tensor:
    """Which row of a Hyena block's projections in a file is each of ours: gate after, gate before, value."""
    d = c.d_model
    rows = torch.arange(3 * d)
    if layout.interleave:  # (channel, part)
        rows = rows.view(d, 3).transpose(0, 1).flatten()
    if layout.column_split:  # (head, part, channel)
        rows = rows.view(c.num_heads, 3, d // c.num_heads).transpose(0, 1).flatten()
    if layout.flip:
        rows = torch.cat([rows[d : 2 * d], rows[:d], rows[2 * d :]])
    return rows


def _hyena(c: StripedHyenaConfig, layout: Layout, at: str, kind: str, report: Counter[str]) -> list[Part]:
    d, rows, ours = c.d_model, hyena_rows(c, layout), f"{at}mixer."
    found = [
        _rows(f"{ours}in_proj.weight", f"{at}projections.weight", rows, (d,)),
        _rows(f"{ours}short.weight", f"{at}filter.short_filter_weight", rows, (1, c.short_taps)),
        _same(f"{ours}out_proj.weight", f"{at}out_filter_dense.weight", (d, d)),
    ]
    if c.in_bias:
        found.append(_rows(f"{ours}in_proj.bias", f"{at}projections.bias", rows, ()))
    if c.short_bias:
        found.append(_rows(f"{ours}short.bias", f"{at}filter.short_filter_bias", rows, ()))
    if c.out_bias:
        found.append(_same(f"{ours}out_proj.bias", f"{at}out_filter_dense.bias", (d,)))
    conv, filters = f"{ours}conv.", f"{at}filter."
    if kind == "SE":
        found.append(Part((f"{conv}bias",), {}, partial(_zeros, f"{conv}bias")))
    else:
        found.append(_same(f"{conv}bias", f"{filters}D", (d,)))
    modal = ("log_decay", "growth", "residue", "first", "error")
    if kind in ("SE", "MR"):
        taps = c.se_taps if kind == "SE" else c.mr_taps
        name = f"{conv}filter.weight"
        shapes: Shapes = {f"{filters}h": (c.groups or d, 1, taps)}
        found.append(Part((name,), shapes, partial(_taps, name, kind == "SE")))
    elif kind == "LI":
        shapes = {f"{filters}log_poles": (d, c.modes, 1), f"{filters}residues": (d, c.modes)}
        names = tuple(f"{conv}filter.{part}" for part in modal)
        found.append(Part(names, shapes, partial(_modes, f"{conv}filter.", real_modes, c.l_max, report)))
    else:
        shapes = {f"{filters}{part}": (d, c.modes, 1, 2) for part in ("poles", "residues")}
        names = tuple(f"{conv}filter.{part}" for part in (*modal, "angle"))
        found.append(Part(names, shapes, partial(_modes, f"{conv}filter.", complex_modes, c.l_max, report)))
    return found


def _same(ours: str, theirs: str, shape: tuple[int, ...]) -> Part:
    """A weight that is a tensor of the checkpoint as it is."""

    def pieces(t: Tensor) -> Iterator[Piece]:
        yield ours, slice(None), t

    return Part((ours,), {theirs: shape}, pieces)


def _rows(ours: str, theirs: str, rows: Tensor, rest: tuple[int, ...]) -> Part:
    """A weight whose rows are a tensor's in another order; a middle dimension of 1 is left out."""

    def pieces(t: Tensor) -> Iterator[Piece]:
        for start in range(0, rows.numel(), -(-rows.numel() // 3)):  # a third of it copied at a time
            part = slice(start, start + -(-rows.numel() // 3))
            values = t[rows[part].to(t.device)]
            yield ours, part, values[:, 0] if len(rest) == 2 else values

    return Part((ours,), {theirs: (rows.numel(), *rest)}, pieces)


def _zeros(ours: str) -> Iterator[Piece]:
    yield ours, slice(None), torch.zeros(())


def _taps(ours: str, last_first: bool, h: Tensor) -> Iterator[Piece]:
    """Taps ``(1, K, G)`` of ``(G, 1, K)``, which are in ``conv1d``'s order if there are few."""
    h = h[:, 0]
    yield ours, slice(None), (h.flip(1) if last_first else h).t()[None]


def _modes(ours: str, convert: Callable, l_max: int, report: Counter[str], *theirs: Tensor) -> Iterator[Piece]:
    for name, t in convert(*theirs, l_max, report).items():
        yield ours + name, slice(None), t
