"""StripedHyena: Hyena operators of several kinds and a few layers of attention (Poli et al. 2023; arXiv 2503.01868).

Dimensions: B batch, L length, D channels (d_model), M heads, V vocabulary, I inner width of the MLP, m modes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from hyena.filters import ExplicitFilter, ModalFilter
from hyena.mixers import Attention, HyenaOperator, Mixer
from hyena.models.blocks import Block, GatedMLP, RMSNorm
from hyena.models.config import ModelConfig, is_number
from hyena.models.decoder import Decoder
from hyena.models.initial import small_init
from hyena.models.sharding import whole_parameters

KINDS = ("SE", "MR", "LI", "IIR", "attention")
"""What a layer may be; see :class:`StripedHyenaConfig`."""


@dataclasses.dataclass(frozen=True)
class StripedHyenaConfig(ModelConfig):
    """What a :class:`StripedHyena` is built from.

    ``layers`` names the mixer of each block. Hyena operators of order 2: ``"SE"`` short explicit (``se_taps`` trained
    taps), ``"MR"`` medium regularised (``mr_taps`` of them, and a weight of the input itself), ``"LI"`` long implicit
    (``modes`` decaying exponentials), ``"IIR"`` (``modes`` complex poles: StripedHyena-7B and Evo 1). ``"attention"``:
    with rotary positions. StripedHyena-7B is ``("IIR", "attention") * 16``; Evo 2 mixes SE, MR and LI with a few layers
    of attention. :func:`hyena.checkpoints.striped_hyena_config` has the published models' settings.

    Args:
        vocab_size: V.
        l_max: longest row.
        d_model: D.
        layers: one of ``KINDS`` for each block.
        num_heads: M.
        num_kv_heads: heads of keys and values, a divisor of M; M if missing.
        d_inner: I of the gated MLPs; if missing, ``8/3 D`` to a whole number, rounded up to a multiple of
            ``inner_multiple``.
        inner_multiple: see ``d_inner``.
        activation: of the MLPs' gates, ``"silu"`` or ``"gelu"``.
        gated_layers: so many blocks from the first on have that activation, later ones none; all if missing. Evo 2 has
            one.
        se_taps, mr_taps: taps of the explicit filters.
        groups: so many filters in SE and MR layers, each for ``D / groups`` consecutive channels; D if missing.
        modes: m of the modal filters.
        short_taps: of the convolution before the gates.
        in_bias, short_bias, out_bias: whether the Hyena operators' projection, short convolution and output projection
            have a bias.
        qkv_bias, attention_out_bias: the same of attention.
        rotary_base, rotary_scaling, rotary_frequencies: see :class:`hyena.mixers.Attention`.
        norm_eps: of the RMSNorms.
        norm_eps_inside: see :class:`hyena.models.RMSNorm`.
        final_norm: whether there is one after the last block.
        tie_embeddings: the output layer has the embedding's weight.
        gradient_checkpointing: in training, keep only the blocks' inputs and compute the rest again in the backward
            pass.
    """

    vocab_size: int
    l_max: int
    d_model: int
    layers: tuple[str, ...]
    num_heads: int
    num_kv_heads: int | None = None
    d_inner: int | None = None
    inner_multiple: int = 64
    activation: str = "silu"
    gated_layers: int | None = None
    se_taps: int = 7
    mr_taps: int = 128
    groups: int | None = None
    modes: int = 16
    short_taps: int = 3
    in_bias: bool = False
    short_bias: bool = False
    out_bias: bool = True
    qkv_bias: bool = False
    attention_out_bias: bool = True
    rotary_base: float = 10000.0
    rotary_scaling: float = 1.0
    rotary_frequencies: tuple[float, ...] | None = None
    norm_eps: float = 1e-6
    norm_eps_inside: bool = False
    final_norm: bool = True
    tie_embeddings: bool = True
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Checks the values that no layer checks.

        Raises:
            ValueError: an unknown kind of layer or activation, or numbers out of range.
        """
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.rotary_frequencies is not None:
            object.__setattr__(self, "rotary_frequencies", tuple(self.rotary_frequencies))
        self._check_sizes("vocab_size", "l_max", "d_model", "num_heads", "inner_multiple", "modes", "short_taps")
        self._check_sizes("se_taps", "mr_taps")
        for name in ("num_kv_heads", "d_inner", "groups"):
            if getattr(self, name) is not None:
                self._check_sizes(name)
        self._check_flags("in_bias", "short_bias", "out_bias", "qkv_bias", "attention_out_bias", "norm_eps_inside")
        self._check_flags("final_norm", "tie_embeddings", "gradient_checkpointing")
        self._check_numbers("norm_eps")
        self._check_numbers("rotary_base", "rotary_scaling", positive=True)
        if not all(is_number(each) for each in self.rotary_frequencies or ()):
            raise ValueError(f"rotary_frequencies must be finite numbers, got {self.rotary_frequencies!r}")
        if unknown := sorted({str(kind) for kind in self.layers} - set(KINDS)):
            raise ValueError(f"layers holds {', '.join(unknown)}; a layer is one of {', '.join(KINDS)}")
        if not self.layers:
            raise ValueError("layers must name the mixer of at least one block")
        for name, of in (("num_heads", self.d_model), ("groups", self.d_model), ("num_kv_heads", self.num_heads)):
            count = getattr(self, name)
            if count is not None and of % count != 0:
                whole = f"num_heads={of}" if name == "num_kv_heads" else f"d_model={of}"
                raise ValueError(f"{whole} is not a multiple of {name}={count}")
        if self.activation not in ("silu", "gelu"):
            raise ValueError(f"activation must be 'silu' or 'gelu', got {self.activation!r}")
        for kind, taps in (("SE", self.se_taps), ("MR", self.mr_taps)):
            if kind in self.layers and taps > self.l_max:
                raise ValueError(f"the {taps} taps of {kind} layers reach further than rows of l_max={self.l_max}")

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def inner_width(self) -> int:
        """I."""
        if self.d_inner is not None:
            return self.d_inner
        return -(-(self.d_model * 8 // 3) // self.inner_multiple) * self.inner_multiple


class StripedHyena(Decoder):
    """Embedding, pre-norm blocks of Hyena operators and attention with gated MLPs, RMSNorm, output layer.

    Every layer has an exact state: whole rows, chunks and steps give the same numbers. Those of Hyena layers do not
    grow with the context, those of attention do; :meth:`state_size` says the bytes before they are allocated, and
    ``prefill(tokens, state, chunk=4096)`` reads a prompt in memory that grows with the chunk alone.

    Released weights come in with :func:`hyena.checkpoints.load_striped_hyena`. For a loss, call
    :func:`hyena.models.next_token_loss` on the logits.

    Args:
        config: sizes and options.
    """

    head: nn.Linear

    def __init__(
        self, config: StripedHyenaConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        c = self.config = config
        norm = functools.partial(RMSNorm, eps_inside=c.norm_eps_inside)
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, **at)
        self.register_module("positions", None)
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(
            Block(_mixer(c, kind, at), c.d_model, norm_eps=c.norm_eps, norm=norm, mlp=_mlp(c, i, at), **at)
            for i, kind in enumerate(c.layers)
        )
        self.norm = norm(c.d_model, c.norm_eps, **at) if c.final_norm else nn.Identity()
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False, **at)
        self.tie_embeddings()
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter again, also those that ``to_empty`` has left without values, sharded or not."""
        for block in cast("list[Block]", self.blocks):
            with whole_parameters(block, write=True):
                block.reset_parameters()
        if isinstance(self.norm, RMSNorm):
            self.norm.reset_parameters()
        self.tie_embeddings()
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        small_init(self.blocks, (self.embedding, self.head), self.config.d_model)
        for kind, block in zip(self.config.layers, cast("list[Block]", self.blocks), strict=True):
            if kind == "SE":
                without_input_weight(block.mixer)


def _mlp(c: StripedHyenaConfig, layer: int, at: dict[str, Any]) -> GatedMLP:
    gated = c.gated_layers is None or layer < c.gated_layers
    return GatedMLP(c.d_model, c.inner_width, activation=c.activation if gated else None, **at)


def _mixer(c: StripedHyenaConfig, kind: str, at: dict[str, Any]) -> Mixer:
    if kind == "attention":
        return Attention(
            c.d_model,
            c.l_max,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            bias=c.qkv_bias,
            out_bias=c.attention_out_bias,
            rotary_base=c.rotary_base,
            rotary_scaling=c.rotary_scaling,
            rotary_frequencies=c.rotary_frequencies,
            **at,
        )
    # Poles were trained without keeping them inside the unit disc.
    filters: dict[str, Any] = {
        "SE": functools.partial(ExplicitFilter, taps=c.se_taps),
        "MR": functools.partial(ExplicitFilter, taps=c.mr_taps),
        "LI": functools.partial(ModalFilter, modes=c.modes, real=True, growth=True),
        "IIR": functools.partial(ModalFilter, modes=c.modes, growth=True),
    }
    return HyenaOperator(
        c.d_model,
        c.l_max,
        filter=filters[kind],
        filter_groups=c.groups if kind in ("SE", "MR") else None,
        short_taps=c.short_taps,
        bias=c.in_bias,
        short_bias=c.short_bias,
        out_bias=c.out_bias,
        **at,
    )


@torch.no_grad()
def without_input_weight(mixer: Any) -> None:
    """Sets the weight of a convolution's input beside its filter to zero, not to be trained: SE layers have none."""
    bias: Tensor = mixer.conv.bias
    if not bias.is_meta:
        bias.zero_()
    bias.requires_grad_(False)
