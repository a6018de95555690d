"""The arguments that attention of ``transformers`` is called with, and what becomes of each."""

from __future__ import annotations

from typing import Any

INPUTS = ("hidden_states",)
MASKS = ("attention_mask", "mask")
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")

# Positions, which Hyena knows from the order of its input; and flags that attention does not use either.
UNUSED = frozenset(
    {
        "position_embeddings",
        "position_ids",
        "position_bias",
        "cache_position",
        "cos",
        "sin",
        "rotary_pos_emb",
        "sliding_window_mask",
        "query_length",
        "encoder_attention_mask",
        "use_cache",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
    }
)

_PACKED = "packed rows are not taken here; give each row a place of its own in the batch"
_HEADS = "there are no attention heads to mask"
_CROSS = "Hyena mixes one sequence with itself; keep attention for cross-attention"

# What Hyena can neither follow nor ignore, and what to do about it.
REFUSED = {
    "encoder_hidden_states": _CROSS,
    "key_value_states": _CROSS,
    "output_attentions": "there are no attention maps; HyenaOperator.to_matrix(u) gives the matrix in their place",
    "head_mask": _HEADS,
    "layer_head_mask": _HEADS,
    "cu_seq_lens_q": _PACKED,
    "cu_seq_lens_k": _PACKED,
    "cu_seqlens": _PACKED,
    "max_length_q": _PACKED,
    "max_length_k": _PACKED,
    "max_seqlen": _PACKED,
}

_KNOWN = frozenset({*INPUTS, *MASKS, *CACHES, *UNUSED, *REFUSED, "is_causal"})


def unknown(names: Any) -> list[str]:
    """Those of ``names`` that nothing is known about."""
    return [name for name in names if name not in _KNOWN]


def bind(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, as a call of a module with these positional ``parameters`` means them.

    Raises:
        TypeError: too many arguments, one given twice, or a keyword that is not known.
    """
    if len(args) > len(parameters):
        raise TypeError(f"expected at most {len(parameters)} positional arguments {parameters}, got {len(args)}")
    given = dict(zip(parameters, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise TypeError(f"got two values for {name}")
        given[name] = value
    for name in unknown(given):
        raise TypeError(
            f"unexpected keyword argument {name!r} for Hyena in place of attention: it is not known what it means, and "
            "so it is not ignored; if a newer transformers passes it, use a release of hyena that knows it"
        )
    for name, reason in REFUSED.items():
        refuse(name, given.get(name), reason)
    return given


def first(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of ``names`` that was given and is not None."""
    return next((given[name] for name in names if given.get(name) is not None), None)


def refuse(name: str, value: Any, reason: str) -> None:
    """Raises ValueError if ``value`` asks for something."""
    if value is not None and value is not False:
        raise ValueError(f"{name} was asked of a model whose attention was replaced by Hyena: {reason}")
