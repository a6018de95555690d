"""The models that are compared, with as many parameters as Hyena has: what a mixer saves, its MLPs get."""

from __future__ import annotations

from typing import Any

from experiments.shared.models import language_model, parameters
from hyena.models import CausalLM

# Mixer, options and how many layers have attention instead. Attention alone learns its positions, as GPT-2 does and the
# published comparisons do, or has rotary ones, as the attention of the hybrids does.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "hyena": ("hyena", {}, 0),
    "h3": ("h3", {}, 0),
    "attention": ("attention", {}, 0),
    "attention-rotary": ("attention", {"rotary_base": 10000.0}, 0),
    "hybrid-1": ("hyena", {}, 1),
    "hybrid-2": ("hyena", {}, 2),
}
WORDS = {
    "hyena": "Hyena",
    "h3": "H3",
    "attention": "attention, learned positions",
    "attention-rotary": "attention, rotary positions",
    "hybrid-1": "Hyena, one layer of attention",
    "hybrid-2": "Hyena, two layers of attention",
}


def attention_layers(count: int, layers: int) -> tuple[int, ...]:
    """Where a hybrid has attention: from the second layer on, at equal distances (as H3's hybrids do)."""
    return tuple(1 + i * layers // count for i in range(count))


def build(name: str, vocabulary: int, length: int, *, width: int, layers: int, heads: int, **more: Any) -> CausalLM:
    """A model by its name, of about as many parameters as the Hyena model of the same width and depth.

    Args:
        name: one of MODELS.
        vocabulary, length, width, layers, heads: of the model.
        more: ``dropout``, and what else :func:`experiments.shared.models.language_model` takes.
    """
    shape = {"width": width, "layers": layers, "heads": heads}
    mixer, options, count = MODELS[name]
    options = {**shape, **options, "attention_layers": attention_layers(count, layers), **more}
    wanted = parameters(language_model("hyena", vocabulary, length, **shape))
    inner = 4 * width
    there = parameters(language_model(mixer, vocabulary, length, d_inner=inner, **options))
    inner += round((wanted - there) / (layers * (2 * width + 1)))  # a unit has 2 D weights and a bias
    return language_model(mixer, vocabulary, length, d_inner=inner, **options)
