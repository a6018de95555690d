"""The padding mask of a ``transformers`` model on its way to the layers.

Dimensions: B batch, L new positions, S all positions.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from hyena.integrations.adapters.transformers import keywords
from hyena.integrations.adapters.transformers.adapter import TransformersAdapter
from hyena.integrations.sites import AttentionSite

# Models that hand their attention_mask to transformers' mask functions and use it for nothing else. In others (OPT
# counts positions with it, ESM scales embeddings) the layers read the padding out of the masks that the model makes.
_HANDS_ON = frozenset(
    {"bart", "bert", "distilbert", "gemma", "gpt2", "gpt_neox", "llama", "mistral", "qwen3", "roberta", "t5"}
)


class PaddingHook:
    """Hands a ``transformers`` model its ``(B, S)`` padding mask as ``(B, 1, 1, S)``, which it passes on to its layers.

    Without it the model builds ``(B, 1, L, S)`` masks, which take more memory than the whole of Hyena. This is a
    forward pre-hook; it may be attached where every self-attention of the model was replaced.
    """

    def __init__(self, position: int) -> None:
        self.position = position

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replaces the ``attention_mask`` argument, given by keyword or as argument number ``position``.

        Raises:
            ValueError: attention maps are asked for, which would come back as an empty tuple.
        """
        asked = kwargs.get("output_attentions", getattr(model.config, "output_attentions", None))
        keywords.refuse("output_attentions", asked, keywords.REFUSED["output_attentions"])
        if len(args) > self.position:
            mask = _as_rows(args[self.position])
            return (*args[: self.position], mask, *args[self.position + 1 :]), kwargs
        if "attention_mask" in kwargs:
            return args, kwargs | {"attention_mask": _as_rows(kwargs["attention_mask"])}
        return args, kwargs

    @classmethod
    def attach(cls, model: nn.Module) -> None:
        """Attaches a hook to a model whose ``forward`` takes an ``attention_mask``, unless it has one."""
        names = list(inspect.signature(model.forward).parameters)
        if "attention_mask" in names and not any(isinstance(h, cls) for h in model._forward_pre_hooks.values()):
            model.register_forward_pre_hook(cls(names.index("attention_mask")), with_kwargs=True)


def carry_padding(replaced: list[AttentionSite]) -> None:
    """Attaches a :class:`PaddingHook` to each model around ``replaced`` that has no self-attention left."""
    for owner in {id(m): m for site in replaced for m in site.parents if is_pretrained(m)}.values():
        if getattr(owner.config, "model_type", None) not in _HANDS_ON or not _holds_adapter(owner):
            continue
        inner = any(m is not owner and is_pretrained(m) and _holds_adapter(m) for m in owner.modules())
        if not inner and not any(_is_self_attention(m) for m in owner.modules()):
            PaddingHook.attach(owner)


def is_pretrained(module: nn.Module) -> bool:
    """Whether this is a ``PreTrainedModel`` of transformers."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def _holds_adapter(module: nn.Module) -> bool:
    return any(isinstance(m, TransformersAdapter) for m in module.modules())


def _is_self_attention(module: nn.Module) -> bool:
    """Whether this is self-attention of a transformers model, which all say of themselves whether they are causal."""
    crosses = getattr(module, "is_cross_attention", "Cross" in type(module).__name__)
    return hasattr(module, "is_causal") and not crosses


def _as_rows(mask: Any) -> Any:
    return mask[:, None, None] != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else mask
