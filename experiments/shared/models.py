"""Language models of any mixer by a short name, and Hyena's operator with any filter of the ablation.

A name is a mixer, or ``hyena/FILTER``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hyena import mixers
from hyena.models import CausalLM, CausalLMConfig

# Mixer classes and their options. Attention learns its positions, as in the published comparisons.
MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "hyena": ("HyenaOperator", {}),
    "attention": ("Attention", {}),
    "h3": ("H3", {}),
    "gss": ("GSS", {}),
    "aft-conv": ("AFTConv", {}),
    "linear-attention": ("LinearAttention", {}),
    "s5": ("S5", {}),
    "mega": ("Mega", {}),
}

# The filters that arXiv 2302.10866 compares inside one operator, at the sizes of its table A.1.
FILTERS: dict[str, dict[str, Any]] = {
    "conv1d": {"class": "ExplicitFilter", "taps": 64},
    "fno": {"class": "FourierFilter", "modes": 64},
    "ckconv": {"class": "CKConv", "width": 32},
    "s4d": {"class": "S4D", "modes": 32},  # 64 real states
    "transfer": {"class": "TransferFunctionFilter", "order": 64},
}


def mixer(name: str, heads: int = 4, **options: Any) -> tuple[str, dict[str, Any]]:
    """The class and the options that a name stands for; ``options`` are added."""
    kind, _, filter_name = name.partition("/")
    if kind not in MIXERS or (filter_name and (kind != "hyena" or filter_name not in FILTERS)):
        raise ValueError(f"no mixer {name!r}; there are {', '.join(MIXERS)}, and hyena/ with {', '.join(FILTERS)}")
    class_name, found = MIXERS[kind]
    found = {**found, **options}
    if kind == "attention":
        found.setdefault("num_heads", heads)
    if filter_name:
        found["filter"] = FILTERS[filter_name]
    return class_name, found


def language_model(
    name: str,
    vocabulary: int,
    length: int,
    *,
    width: int,
    layers: int,
    heads: int = 4,
    d_inner: int | None = None,
    attention_layers: tuple[int, ...] = (),
    gradient_checkpointing: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> CausalLM:
    """A :class:`hyena.models.CausalLM` with a mixer of this name.

    Args:
        name: of the mixer, see above.
        vocabulary: tokens.
        length: longest input.
        width, layers, d_inner: as ``d_model``, ``num_layers`` and ``d_inner`` of the config.
        heads: of attention.
        attention_layers: of a hybrid: blocks that have attention with rotary positions instead.
        gradient_checkpointing: keep only the blocks' inputs, for long rows.
        dropout: of the residual branches and the embedding.
        options: of the mixer.
    """
    class_name, mixer_options = mixer(name, heads, **options)
    config = CausalLMConfig(
        vocab_size=vocabulary,
        l_max=length,
        d_model=width,
        num_layers=layers,
        mixer=class_name,
        mixer_options=mixer_options,
        d_inner=d_inner,
        gradient_checkpointing=gradient_checkpointing,
        dropout=dropout,
        mlp="gelu",  # that of the papers whose claims these are
    )
    model = CausalLM(config)
    for i in attention_layers:
        model.blocks[i].mixer = mixers.Attention(width, length, num_heads=heads, rotary_base=10000.0)
    if attention_layers:
        model.reset_parameters()  # the new layers start as the others do
    return model


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())
