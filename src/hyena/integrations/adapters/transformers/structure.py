"""What a self-attention module of ``transformers`` says of itself: widths, direction, dropout, call and results."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, NamedTuple

from torch import nn

from hyena.integrations.adapters.transformers import keywords
from hyena.integrations.sites import CROSS_ATTENTION, AttentionSite, CannotReplaceError

# Names of the projections, by project and age.
_QUERY = ("q_proj", "query", "q_lin", "q")
_FUSED = ("c_attn", "query_key_value", "Wqkv", "qkv_proj")
_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo", "o")
_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_DROPOUT = ("attention_dropout", "attn_dropout", "dropout_prob", "dropout")
_OUTPUT_DROPOUT = ("resid_dropout", "out_drop")
_CROSS_PLACES = ("encoder_attn", "EncDecAttention")

# Results of forwards that are put together at run time, as transformers 5.0 has them.
_RESULTS = {"T5Attention": ("output", "position_bias"), "ModernBertAttention": ("output",)}


class Structure(NamedTuple):
    """See the module.

    Attributes:
        d_model: channels of input and output.
        heads: of the queries.
        causal: whether no output sees a later input.
        dropout: of attention weights.
        bias: whether the projections of the input have a bias.
        has_output: whether the output projection is the module's own.
        output_dropout: a module, if the attention drops entries of its output.
        layer_idx: its place in caches.
        parameters: names of the positional arguments.
        results: see :class:`TransformersAdapter`.
        weight: the name of a weight.
        window: whether it attends to a window.
    """

    d_model: int
    heads: int
    causal: bool
    dropout: float
    bias: bool
    has_output: bool
    output_dropout: nn.Module | None
    layer_idx: int | None
    parameters: tuple[str, ...]
    results: tuple[str, ...]
    weight: str
    window: bool


def is_self_attention(module: nn.Module) -> bool:
    """Whether this is made like the attention of a transformers model: projections, and a known first argument."""
    if not type(module).__module__.startswith("transformers.models."):
        return False
    projections = _named(module, _QUERY + _FUSED)
    return projections is not None and isinstance(getattr(module, projections), nn.Module) and _takes(module)


def read(site: AttentionSite) -> Structure:
    """The structure of the module at ``site``.

    Raises:
        CannotReplaceError: cross-attention, or something that is not known.
    """
    old: Any = site.module
    if is_cross_attention(site):
        raise CannotReplaceError(CROSS_ATTENTION)
    parameters = positional(old)
    strange = keywords.unknown(parameters)
    if strange:
        raise CannotReplaceError(f"its forward takes {', '.join(strange)}, and it is not known what that means")
    projection, out = _named(old, _QUERY + _FUSED), _named(old, _OUTPUT)
    if projection is None:
        raise CannotReplaceError(f"it has none of {', '.join(_QUERY + _FUSED)}: not made as is known here")
    d_model, _ = _features(getattr(old, projection))
    width = getattr(old, "all_head_size", d_model) if out is None else _features(getattr(old, out))[1]
    if width != d_model:
        raise CannotReplaceError(f"its output has {width} channels and its input {d_model}")
    heads = _named(old, _HEADS)
    return Structure(
        d_model=d_model,
        heads=getattr(old, heads) if heads is not None else site.config(*_HEADS) or 1,
        causal=_is_causal(site),
        dropout=_probability(old),
        bias=any(getattr(getattr(old, n), "bias", None) is not None for n in (projection, _value_of(projection))),
        has_output=out is not None,
        output_dropout=next((getattr(old, n) for n in _OUTPUT_DROPOUT if hasattr(old, n)), None),
        layer_idx=getattr(old, "layer_idx", None),
        parameters=parameters,
        results=_results(old),
        weight=f"{projection}.weight",
        window=_has_window(old),
    )


def is_cross_attention(site: AttentionSite) -> bool:
    """Whether the attention at ``site`` is between two sequences."""
    place = site.name.rpartition(".")[2]
    named = "Cross" in type(site.module).__name__ or place in _CROSS_PLACES or "cross" in place.lower()
    return bool(getattr(site.module, "is_cross_attention", False)) or named


def positional(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of ``forward``."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _takes(module: nn.Module) -> bool:
    names = positional(module)
    return bool(names) and names[0] in keywords.INPUTS


def _named(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if getattr(module, name, None) is not None), None)


def _value_of(query: str) -> str:
    """The projection of values beside the one of queries (Whisper has a bias on one and not on the other)."""
    pairs = {"q_proj": "v_proj", "query": "value", "q_lin": "v_lin", "q": "v"}
    return pairs.get(query, query)


def _features(projection: Any) -> tuple[int, int]:
    """Channels in and out; transformers' Conv1D holds its weight the other way round than nn.Linear."""
    if hasattr(projection, "in_features"):
        return projection.in_features, projection.out_features
    return tuple(projection.weight.shape)


def _is_causal(site: AttentionSite) -> bool:
    old: Any = site.module
    if any("CLIPText" in type(parent).__name__ for parent in site.parents):
        return True  # its layers are the image encoder's, which say that they are not
    if site.config("is_causal") is False:
        return False
    return bool(getattr(old, "is_causal", getattr(old, "is_decoder", False)))


def _has_window(module: Any) -> bool:
    config = getattr(module, "config", None)
    return getattr(module, "sliding_window", getattr(config, "sliding_window", None)) is not None


def _probability(module: nn.Module) -> float:
    found: Any = getattr(module, _named(module, _DROPOUT) or "", 0.0)
    return float(found.p if isinstance(found, nn.Dropout) else found)


def _results(module: nn.Module) -> tuple[str, ...]:
    """What ``forward`` returns, read from its source."""
    name = type(module).__name__
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(module).forward)))
    except (OSError, TypeError):
        raise CannotReplaceError("the source of its forward is not there to see what it returns") from None
    returned = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return)]
    if len(returned) == 1 and isinstance(returned[0], ast.Tuple):
        names = [e.id if isinstance(e, ast.Name) else "none" for e in returned[0].elts]
        known = positional(module)
        return ("output", *(n if n in known else "none" for n in names[1:]))
    if name in _RESULTS:
        return _RESULTS[name]
    raise CannotReplaceError("it is not known what its forward returns")
