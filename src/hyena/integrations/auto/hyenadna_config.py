"""Config of HyenaDNA's published ``-hf`` folders for ``transformers``."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

from hyena.checkpoints.hyenadna_config import read_settings
from hyena.checkpoints.safari.config import SafariConfig
from hyena.integrations.auto.config import OneName, check_known, keep_foreign, standard_names
from hyena.models import hyenadna
from hyena.models.config import is_number

# Settings that say what is computed, by their published names.
_READ = (
    "vocab_size", "d_model", "d_inner", "max_seq_len", "n_layer", "emb_dim", "num_inner_mlps", "hyena_order",
    "short_filter_order", "filter_order", "activation_freq", "train_freq", "embed_dropout", "resid_dropout",
    "hyena_dropout", "hyena_filter_dropout", "layer_norm_epsilon", "pad_vocab_size_multiple", "residual_in_fp32",
    "tie_word_embeddings",
)  # fmt: skip


class HyenaDNAConfig(OneName, PretrainedConfig):
    """Settings of a HyenaDNA model by the names of its published ``config.json``.

    Args:
        vocab_size: of the tokenizer.
        d_model: D (``hidden_size``).
        d_inner: inner width of the MLPs, ``4 * d_model`` if missing (``intermediate_size``).
        max_seq_len: longest row (``max_position_embeddings``).
        n_layer: number of blocks (``num_hidden_layers``).
        emb_dim: features of the filters' positional encoding.
        num_inner_mlps: inner layers of the filters' FFN.
        filter_order: width of that FFN.
        activation_freq: frequency of its sines.
        train_freq: whether that is trained.
        hyena_order, short_filter_order, layer_norm_epsilon: 2, 3 and 1e-5: the published code works with no other.
        embed_dropout, resid_dropout, hyena_dropout: of the embedding, the residual branches, the gated values.
        hyena_filter_dropout, use_bias: read by no published layer, and by none here.
        initializer_range: standard deviation of initial weights.
        pad_vocab_size_multiple: the embedding has a multiple of so many rows.
        residual_in_fp32: keeps the residual stream in float32 when the weights are in half precision.
        tie_word_embeddings: the output layer's weight is the embedding's.
        use_cache: see :class:`HyenaConfig`.
        bos_token_id, eos_token_id, pad_token_id, sep_token_id: of the tokenizer.
        **kwargs: of ``PretrainedConfig``.

    Raises:
        TypeError: keywords that are not known, with what they resemble.
        ValueError: values that the published code cannot run, by name; two values by two names of one setting.
    """

    model_type = "hyenadna"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_layers": "n_layer",
        "max_position_embeddings": "max_seq_len",
        "l_max": "max_seq_len",
        "intermediate_size": "d_inner",
    }

    def __init__(
        self,
        vocab_size: int = 12,
        d_model: int = 256,
        d_inner: int | None = None,
        max_seq_len: int = 1024,
        n_layer: int = 12,
        emb_dim: int = 3,
        num_inner_mlps: int = 2,
        filter_order: int = 64,
        activation_freq: float = 1,
        train_freq: bool = True,
        hyena_order: int = 2,
        short_filter_order: int = 3,
        layer_norm_epsilon: float = 1e-5,
        embed_dropout: float = 0.1,
        resid_dropout: float = 0.0,
        hyena_dropout: float = 0.0,
        hyena_filter_dropout: float = 0.0,
        use_bias: bool = True,
        initializer_range: float = 0.02,
        pad_vocab_size_multiple: int = 8,
        residual_in_fp32: bool = True,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = 2,
        eos_token_id: int | None = 1,
        pad_token_id: int | None = 4,
        sep_token_id: int | None = 1,
        **kwargs: Any,
    ) -> None:
        values = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        values = standard_names(self.attribute_map, values, kwargs)
        check_known(type(self), kwargs)
        for name, value in values.items():
            setattr(self, name, value)
        super().__init__(**kwargs)
        # Not arguments of every release's PretrainedConfig, and set by some.
        self.tie_word_embeddings = tie_word_embeddings
        self.check()

    def check(self) -> None:
        """Checks values that may have been set after the config was made.

        Raises:
            ValueError: what does not fit, by name.
        """
        self.read(None)
        if not is_number(self.initializer_range) or self.initializer_range < 0:
            raise ValueError(f"initializer_range must be a finite number, not negative, got {self.initializer_range!r}")

    def read(self, head: str | None) -> tuple[hyenadna.HyenaDNAConfig, SafariConfig]:
        """The settings of the model, and those of its operators; see :func:`hyena.checkpoints.load_hyenadna`."""
        return read_settings(self.released(), head, "standalone")

    def released(self) -> dict[str, Any]:
        """The settings that say what is computed, by their published names."""
        values = {name: getattr(self, name) for name in _READ}
        return {name: value for name, value in values.items() if name != "d_inner" or value is not None}

    @property
    def causal(self) -> bool:
        """Published models are causal."""
        return True

    @property
    def pooling(self) -> str:
        """Classes of a sequence are read from its last kept position."""
        return "last"

    @property
    def classifier_dropout(self) -> float:
        """Before the layer of classes there is none."""
        return 0.0

    @property
    def initial_std(self) -> float:
        """Standard deviation of initial weights."""
        return self.initializer_range

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See ``PretrainedConfig.from_dict``; keys that nothing here reads are kept, with a warning."""
        return keep_foreign(cls, super().from_dict, config_dict, kwargs)
