"""Config of Hyena models for ``transformers``."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn
from transformers import PretrainedConfig

from hyena.filters.base import is_integer
from hyena.models import CausalLMConfig
from hyena.models.config import is_number
from hyena.models.initial import small_init_std

# What ``PretrainedConfig`` has for models of other kinds; saved configs have it with values that say no.
_OTHER_MODELS = (
    "add_cross_attention", "chunk_size_feed_forward", "cross_attention_hidden_size", "is_decoder", "is_encoder_decoder",
    "pruned_heads", "tie_encoder_decoder", "torchscript",
)  # fmt: skip
_SIZES = ("vocab_size", "l_max", "d_model", "num_layers", "d_inner", "dropout", "mlp")


class OneName:
    """Put before ``PretrainedConfig``: a setting that is given by two names has one value."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Sees what was given apart from defaults, which ``__init__`` cannot."""
        kind: Any = cls
        code = kind.__init__.__code__
        names = code.co_varnames[1 : code.co_argcount]
        check_one_name(kind, dict(zip(names, args, strict=False)) | kwargs)
        return super().__new__(cls)


class HyenaConfig(OneName, PretrainedConfig):
    """Settings of :class:`HyenaModel` and its heads; names of transformers' own (``hidden_size``) are taken too.

    Args:
        vocab_size: V.
        l_max: longest row (``max_position_embeddings``).
        d_model: D (``hidden_size``).
        num_layers: number of blocks (``num_hidden_layers``).
        mixer: the name of a class that ``hyena.mixers`` exports, or the class.
        mixer_options: its keywords, see :class:`hyena.models.CausalLMConfig`.
        d_inner: inner width of the MLPs (``intermediate_size``); as :class:`hyena.models.Block` has it if missing.
        dropout: of the residual branches and the embedding.
        causal: whether no position sees a later one. If missing, the model decides: two-sided with the head for masked
            tokens, else causal.
        pooling: which hidden state classes of a sequence are read from: ``"last"``, of the last kept position, or
            ``"mean"``, over the kept positions.
        classifier_dropout: before the layer of classes, of sequences or tokens.
        tie_word_embeddings: the output layer's weight is the embedding's.
        use_cache: whether a forward that is not told returns a cache. Training makes none.
        bos_token_id, eos_token_id, pad_token_id: of the tokenizer.
        mlp: ``"swiglu"``, ``"geglu"``, ``"gelu"`` or ``"gelu_tanh"``, see :class:`hyena.models.Block`. A saved config
            without it means GELU.
        **kwargs: of ``PretrainedConfig`` (``id2label``, ``num_labels``, ``problem_type``, …).

    Raises:
        TypeError: keywords that are not known, with what they resemble.
        ValueError: sizes, mixers or options that do not fit, by name; two values by two names of one setting.
    """

    model_type = "hyena"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "l_max",
        "intermediate_size": "d_inner",
    }

    d_model: int

    def __init__(
        self,
        vocab_size: int = 256,
        l_max: int = 1024,
        d_model: int = 128,
        num_layers: int = 4,
        mixer: str | type[nn.Module] = "HyenaOperator",
        mixer_options: dict[str, Any] | None = None,
        d_inner: int | None = None,
        dropout: float = 0.0,
        causal: bool | None = None,
        pooling: str = "last",
        classifier_dropout: float = 0.0,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        mlp: str = "swiglu",
        **kwargs: Any,
    ) -> None:
        given: dict[str, Any] = {"l_max": l_max, "d_model": d_model, "num_layers": num_layers, "d_inner": d_inner}
        given = standard_names(self.attribute_map, given, kwargs)
        check_known(type(self), kwargs)
        inner = CausalLMConfig(
            vocab_size, **given, mixer=mixer, mixer_options=mixer_options or {}, dropout=dropout,
            tie_embeddings=tie_word_embeddings, mlp=mlp,
        ).to_dict()  # fmt: skip  # raises for what cannot be saved
        self.vocab_size, self.dropout, self.mlp = vocab_size, dropout, mlp
        self.l_max, self.d_model, self.num_layers, self.d_inner = (given[name] for name in given)
        self.mixer, self.mixer_options = inner["mixer"], inner["mixer_options"]
        self.causal, self.pooling, self.classifier_dropout = causal, pooling, classifier_dropout
        self.use_cache = use_cache
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        super().__init__(**kwargs)
        # Not an argument of every release's PretrainedConfig.
        self.tie_word_embeddings = tie_word_embeddings
        self.check()

    def check(self) -> None:
        """Checks values that may have been set after the config was made.

        Raises:
            ValueError: what does not fit, by name.
        """
        # By type: 1 and 0 equal True and False, and the models ask with ``is``.
        if self.causal is not None and not isinstance(self.causal, bool):
            raise ValueError(f"causal must be True, False or None, got {self.causal!r}")
        check_heads(self)
        self.mixer_factory(causal=True if self.causal is None else self.causal)

    def mixer_factory(self, *, causal: bool) -> Callable[..., nn.Module]:
        """Returns what builds the mixer of a block, called with ``(d_model, l_max)``, ``device`` and ``dtype``.

        Raises:
            ValueError: unknown names and options, or a mixer that takes no ``causal``.
        """
        if "causal" in self.mixer_options:
            raise ValueError(f"mixer_options has causal={self.mixer_options['causal']}: pass causal= to the config")
        sizes = {name: getattr(self, name) for name in _SIZES}
        options = {**self.mixer_options, "causal": causal}
        return CausalLMConfig(**sizes, mixer=self.mixer, mixer_options=options).mixer_factory()

    @property
    def initial_std(self) -> float:
        """Standard deviation of initial weights, as :class:`hyena.models.CausalLM` starts."""
        return small_init_std(self.d_model)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See ``PretrainedConfig.from_dict``; keys that nothing here reads are kept, with a warning."""
        return keep_foreign(cls, super().from_dict, {"mlp": "gelu", **config_dict}, kwargs)


def standard_names(names: dict[str, str], given: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes transformers' standard names out of ``kwargs`` into what was given by ours."""
    return {**given, **{ours: kwargs.pop(theirs) for theirs, ours in names.items() if theirs in kwargs}}


def check_one_name(kind: type[PretrainedConfig], given: dict[str, Any]) -> None:
    """Raises ValueError for a setting that is given twice, by two of its names, with values that differ."""
    first: dict[str, str] = {}
    for name, value in given.items():
        ours = kind.attribute_map.get(name, name)
        other = first.setdefault(ours, name)
        if other != name and given[other] != value:
            raise ValueError(
                f"{other}={given[other]!r} and {name}={value!r} are two names of one setting of a {kind.__name__}: "
                "pass one of them"
            )


def check_known(kind: type[PretrainedConfig], kwargs: dict[str, Any]) -> None:
    """Raises TypeError for keywords that ``PretrainedConfig`` does not have, or that it has for other models."""
    if foreign := [f"{name}={kwargs[name]!r}" for name in _OTHER_MODELS if kwargs.get(name)]:
        raise TypeError(f"a {kind.__name__} has no use for {', '.join(foreign)}")
    if unknown := sorted(set(kwargs) - base_names()):
        own = [*kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount], *kind.attribute_map]
        like = sorted({each for name in unknown for each in difflib.get_close_matches(name, own)})
        hint = f"; did you mean {', '.join(like)}?" if like else f"; it has {', '.join(own)}"
        raise TypeError(f"{kind.__name__} has no keyword {', '.join(map(repr, unknown))}{hint}")


def check_heads(config: Any) -> None:
    """Raises ValueError for settings of heads that do not fit."""
    if config.pooling not in ("last", "mean"):
        raise ValueError(f"pooling must be 'last' or 'mean', got {config.pooling!r}")
    if not is_number(config.classifier_dropout) or not 0 <= config.classifier_dropout < 1:
        raise ValueError(f"classifier_dropout must be a number in [0, 1), got {config.classifier_dropout!r}")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        check_token(name, getattr(config, name), config.vocab_size)


def check_token(name: str, given: Any, vocab_size: int) -> None:
    """Raises ValueError for a special token that is none of the vocabulary; any of several may end a text."""
    several = name == "eos_token_id" and isinstance(given, (list, tuple))
    tokens = given if several else () if given is None else (given,)
    good = (is_integer(token) and 0 <= token < vocab_size for token in tokens)
    if not all(good) or (several and not given):
        kinds = "None, a token or a list of tokens" if name == "eos_token_id" else "None or a token"
        raise ValueError(
            f"{name} must be {kinds}, from 0 to {vocab_size - 1} with vocab_size={vocab_size}, got {given!r}"
        )


def keep_foreign(
    kind: type[PretrainedConfig], load: Callable[..., Any], values: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    """A config of saved values, with what other tools have written among them as attributes."""
    check_one_name(kind, kwargs)
    own = {*kind.__init__.__code__.co_varnames, *kind.attribute_map, *base_names()}
    foreign = {key: value for key, value in values.items() if key not in own}
    loaded = load({key: value for key, value in values.items() if key not in foreign}, **kwargs)
    if foreign:
        warnings.warn(f"a {kind.__name__} reads no {', '.join(sorted(foreign))} of a saved config", stacklevel=4)
        for key, value in foreign.items():
            setattr(loaded[0] if isinstance(loaded, tuple) else loaded, key, value)
    return loaded


@functools.cache
def base_names() -> frozenset[str]:
    """Keywords that any config may have, in the installed release."""
    from transformers import GenerationConfig

    bare = PretrainedConfig()
    names = {name.removeprefix("_") for name in (*vars(bare), *bare.to_dict())}
    names |= {name for name in dir(PretrainedConfig) if isinstance(getattr(PretrainedConfig, name), property)}
    names |= set(GenerationConfig().to_dict())
    return frozenset(
        names
        | {
            "_attn_implementation", "_commit_hash", "_experts_implementation", "_name_or_path", "attn_implementation",
            "auto_map", "base_model_tp_plan", "custom_pipelines", "dtype", "experts_implementation", "finetuning_task",
            "is_decoder", "model_type", "name_or_path", "output_attentions", "quantization_config",
            "task_specific_params", "tie_encoder_decoder", "torch_dtype", "torchscript", "transformers_version",
        }
    )  # fmt: skip
