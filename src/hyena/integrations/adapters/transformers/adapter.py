"""A mixer where a ``transformers`` model has self-attention.

Dimensions: B batch, L new positions, S all positions, D channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.adapters.transformers import keywords
from hyena.integrations.adapters.transformers.record import ReplacementRecord, encode
from hyena.integrations.history import MixerHistory
from hyena.integrations.masks import keep_from_model_mask
from hyena.mixers.deferred import InitializedByTransformers


class TransformersAdapter(InitializedByTransformers, AttentionAdapter):
    """A mixer behind the ``forward`` of a ``transformers`` model's self-attention.

    Arguments have the names and the order of the module that was replaced. The padding of the model's mask reaches the
    mixer whatever form the mask has by then; rotary and other positions are accepted and unused; arguments that are not
    known raise. A cache holds the mixer's state (:mod:`hyena.integrations.adapters.transformers.cache`), so that a
    token costs a step.

    Args:
        operator: the mixer inside.
        model_causal: whether the replaced module was causal, and the masks that the model makes for it.
        layer_idx: the layer's place in the cache.
        output_dropout: dropout on the output, where the replaced module had one.
        parameters: names of the positional arguments.
        record: how the replacement was made, and the name of a weight of the replaced module, under which a checkpoint
            holds it (see :mod:`hyena.integrations.adapters.transformers.record`).
        window: whether the replaced module attended to a window, which its masks may contain.
        results: what ``forward`` returns: "output", "none", or the name of an argument that is handed on.
    """

    inputs, masks, cache = "hidden_states", {"attention_mask": "keep"}, "past_key_values"

    def __init__(
        self,
        operator: nn.Module,
        *,
        model_causal: bool,
        layer_idx: int | None = None,
        output_dropout: nn.Module | None = None,
        parameters: tuple[str, ...] = ("hidden_states",),
        results: tuple[str, ...] = ("output", "none"),
        window: bool = False,
        record: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(operator, output_dropout=output_dropout)
        self.model_causal, self.layer_idx = model_causal, layer_idx
        self.parameter_names, self.results, self.window = parameters, results, window
        self.record = record
        if record is not None:
            self.register_state_dict_pre_hook(_write_record)
            self.register_load_state_dict_pre_hook(_pass_record)
            if not _is_meta(self):
                self._update_record()

    def keep(self, name: str, mask: Any, x: Tensor, seen: int) -> Tensor:
        """The padding in a mask that the model makes."""
        return keep_from_model_mask(mask, x.size(0), x.size(1), seen, self.model_causal, self.window)

    def history(self, cache: Any) -> MixerHistory:
        """This layer's place in a cache of ``transformers``."""
        from hyena.integrations.adapters.transformers.cache import history  # imports transformers, as its user has

        if self.layer_idx is None:
            raise ValueError("this layer does not know its place in a past_key_values cache: pass use_cache=False")
        return history(cache, self.layer_idx)

    def result(self, y: Tensor, given: dict[str, Any]) -> tuple[Any, ...]:
        """What the replaced module returned, with nothing where there is nothing."""
        return tuple(y if name == "output" else given.get(name) for name in self.results)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = keywords.bind(self.parameter_names, args, kwargs)
        for name, names in ((self.inputs, keywords.INPUTS), ("attention_mask", keywords.MASKS)):
            given[name] = keywords.first(given, names)
        given["past_key_values"] = keywords.first(given, keywords.CACHES)
        if given[self.inputs] is None:
            raise TypeError(f"missing argument {self.inputs!r}")
        self._check_direction(given.get("is_causal"))
        return given

    def _check_direction(self, is_causal: bool | None) -> None:
        if is_causal is not None and is_causal != self.model_causal:
            raise ValueError(
                f"is_causal={is_causal} was passed to a layer that was built for causal={self.model_causal}: replace "
                "the model's attention again with the direction it has now"
            )

    def _update_record(self) -> None:
        if self.record is None:
            return
        place, _, leaf = self.record[0].rpartition(".")
        now = {"l_max": getattr(self.operator, "l_max", None), "causal": getattr(self.operator, "causal", None)}
        text = encode(self.record[1] | now)
        found = self._modules.get(place)
        if isinstance(found, ReplacementRecord):
            found.write(text)
        else:
            self.add_module(place, ReplacementRecord(text, leaf))

    def extra_repr(self) -> str:
        return f"model_causal={self.model_causal}, layer_idx={self.layer_idx}"


def _is_meta(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())


def _write_record(adapter: Any, prefix: str, keep_vars: bool) -> None:
    """Puts the record of now into a state dict.

    Not on the meta device: there a class that replaces its attention is about to load a checkpoint, maybe of attention,
    whose weight under this name it does not want.
    """
    if not _is_meta(adapter):
        adapter._update_record()


def _pass_record(adapter: Any, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Loads no record over the adapter's own, which says what it is."""
    key = prefix + adapter.record[0]
    place, _, leaf = adapter.record[0].rpartition(".")
    record = adapter._modules.get(place)
    if record is None:
        state_dict.pop(key, None)
    else:
        state_dict[key] = getattr(record, leaf)
