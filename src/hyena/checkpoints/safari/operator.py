"""Loading one released Hyena operator.

Dimensions: D channels, N order, F = N - 1 long filters, W width of the filter's FFN, E features of its encoding.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import Shapes, check_count, check_names, check_values
from hyena.checkpoints.files import Source, read_config, read_weights, rename
from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.checkpoints.safari.config import Positions, SafariConfig
from hyena.checkpoints.safari.filters import NoWindow, ReleasedFilter, StoredEncoding
from hyena.filters import ExponentialWindow, HyenaFilter, PositionalEncoding, SineFFN

_FFN = "filter_fn.implicit_filter"
_FFN_WEIGHT = re.compile(rf"{re.escape(_FFN)}\.(\d{{1,9}})\.weight")


def load_safari_operator(
    state_dict: Source, config: Source, layout: str = "safari", *, learned_encoding: bool | None = None
) -> SafariOperator:
    """A :class:`hyena.HyenaOperator` with the weights, outputs and gradients of a released one.

    Several codes give their weights the same names and shapes and compute something else from them, so ``layout`` has
    to say which one it was: a checkpoint cannot be told from another by looking at it.

    With ``num_blocks > 1`` the released operators see the later positions of a block (their transform wraps around); so
    does this one, with a two-sided :class:`hyena.checkpoints.safari.ReleasedFilter`.

    The released operators (HazyResearch/safari, Apache-2.0) store trained positions, which tie a filter to one
    ``l_max``, wherever their ``lr_pos_emb`` is not 0, and it is 1e-5 unless the config says otherwise.

    Args:
        state_dict: the operator's state dict, a checkpoint that holds one, or the path of either (``.safetensors``, or
            what ``torch.load`` reads with ``weights_only``). Names may have a prefix: ``model.layers.0.mixer.``.
        config: keywords of the released ``HyenaOperator``, or the path of a JSON file with them.
        layout: ``"safari"`` for ``src/models/sequence/hyena.py`` of HazyResearch/safari; ``"standalone"`` for its
            ``standalone_hyena.py``, which lays filters out differently from order 3 on; ``"zoology"`` for
            ``zoology/mixers/hyena.py`` of HazyResearch/zoology, whose two gates are stored in the other order.
        learned_encoding: True keeps the checkpoint's table of positions as a parameter; False computes the positions
            instead, and raises if the table has been trained away from them. By default the table is kept if the
            released code trains it (``lr_pos_emb`` is not 0), or if it is not what would be computed.

    Returns:
        The operator, in the dtype and on the device of its weights, in training mode. The filter's weights are float32
        at least, as in any operator of this library.

    Raises:
        ValueError: keys of the state dict or of the config that fit nowhere, missing keys, other shapes, all listed;
            weights that are not finite floating-point numbers of one dtype; a table of positions for another
            ``l_max``; settings that the released code cannot run either; a file that is no checkpoint.
        FileNotFoundError: no such file.
    """
    settings = SafariConfig.from_keywords(read_config(config), layout)
    released = ReleasedOperator(settings, layout, learned_encoding)
    tensors = _without_prefix(read_weights(state_dict))
    released.check_sizes(tensors)
    check_names(tensors, *released.shapes())
    check_values(tensors)
    return released.load(tensors)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that follow the prefix of the one ``in_proj.weight``."""
    last = "in_proj.weight"
    prefixes = sorted(name.removesuffix(last) for name in tensors if name == last or name.endswith("." + last))
    if len(prefixes) > 1:
        raise ValueError(
            f"the state dict holds {len(prefixes)} operators ({', '.join(p.rstrip('.') for p in prefixes)}): pass the "
            "entries of one, or load the whole model with hyena.checkpoints.load_hyenadna"
        )
    prefix = prefixes[0] if prefixes else ""
    return rename(tensors, lambda name: name.removeprefix(prefix))


@dataclasses.dataclass(frozen=True)
class ReleasedOperator:
    """How a released operator becomes one of this library.

    Args:
        config: its settings.
        layout: which code its weights are of, see :func:`load_safari_operator`.
        learned_encoding: the user's wish, see there.
        goes_on: whether a trained table of positions is trained further where its learning rate is 0.
    """

    config: SafariConfig
    layout: str
    learned_encoding: bool | None = None
    goes_on: bool = False

    def check_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Compares the numbers that decide how much is built with the tensors.

        Raises:
            ValueError: a table of positions for another ``l_max``, or more layers than there are.
        """
        c = self.config
        for name in ("z", "t"):
            table = tensors.get(f"filter_fn.pos_emb.{name}")
            if table is not None and table.dim() == 3 and table.size(1) != c.l_max:
                raise ValueError(
                    f"the checkpoint's positions (pos_emb.{name}) are for l_max={table.size(1)}, the config says l_max="
                    f"{c.l_max}: a filter's time runs to 1 at l_max, so it has to be {table.size(1)}"
                )
        # Layers 0, 2, … of the sequence are linear: the first, the inner ones, the last.
        linear = [int(match[1]) // 2 for match in map(_FFN_WEIGHT.fullmatch, tensors) if match]
        setting = f"num_inner_mlps={c.num_inner_mlps}"
        check_count(setting, c.num_inner_mlps + 2, linear, lambda i: f"{_FFN}.{2 * i}.weight")

    def shapes(self) -> tuple[Shapes, Shapes]:
        """Names and shapes of the weights: those that must be there, and those that can be computed."""
        c = self.config
        wide, rows, last = (c.order + 1) * c.d_model, c.num_filters * c.d_model, 2 * (c.num_inner_mlps + 1)
        required: Shapes = {
            "in_proj.weight": (wide, c.d_model),
            "in_proj.bias": (wide,),
            "out_proj.weight": (c.d_model, c.d_model),
            "out_proj.bias": (c.d_model,),
            "short_filter.weight": (wide, 1, c.short_filter_order),
            "short_filter.bias": (wide,),
            "filter_fn.bias": (rows,),
            f"{_FFN}.{last}.weight": (rows, c.filter_order),
        }
        optional: Shapes = {"filter_fn.pos_emb.t": (1, c.l_max, 1)}
        if c.post_order_ffn:
            required["ord_proj_w"] = (c.order, 1, 1)
        for i in range(c.num_inner_mlps + 1):
            required[f"{_FFN}.{2 * i}.weight"] = (c.filter_order, c.emb_dim if i == 0 else c.filter_order)
            required[f"{_FFN}.{2 * i}.bias"] = (c.filter_order,)
            # One freq for all layers; safetensors keeps one of its names only.
            (required if i == 0 and c.train_freq else optional)[f"{_FFN}.{2 * i + 1}.freq"] = (1, c.filter_order)
        keeps_table = c.trains_positions if self.learned_encoding is None else self.learned_encoding
        (required if keeps_table else optional)["filter_fn.pos_emb.z"] = (1, c.l_max, c.emb_dim)
        (required if c.modulation_lr != 0 else optional)["filter_fn.modulation.deltas"] = (1, 1, rows)
        return required, optional

    def load(self, tensors: Mapping[str, Tensor]) -> SafariOperator:
        """The operator of checked weights."""
        like, positions = tensors["in_proj.weight"], self.positions(tensors)
        operator = self.build(positions, like.dtype).to_empty(device=like.device)
        operator.load_state_dict(self.state(tensors, positions))
        self.freeze(operator, positions)
        return operator

    def positions(self, tensors: Mapping[str, Tensor]) -> Positions:
        """What becomes of the table of positions, see :meth:`Positions.of`."""
        return Positions.of(self.config, tensors, self.learned_encoding, self.goes_on)

    def state(self, tensors: Mapping[str, Tensor], positions: Positions) -> dict[str, Tensor]:
        """The whole state of our operator."""
        like = tensors["in_proj.weight"]
        state = self.translate({**self.config.computed(positions, like.device, like.dtype), **tensors}, positions)
        if not self.config.bias:  # The released filter keeps the parameter and multiplies it by 0.
            state["conv.bias"] = torch.zeros_like(state["conv.bias"])
        return state

    def freeze(self, operator: SafariOperator, positions: Positions) -> None:
        """Leaves trainable what the released code trains."""
        frozen = {
            "conv.bias": not self.config.bias,
            self.prefix + "ffn.freq": not self.config.train_freq,
            self.prefix + "encoding.table": positions is Positions.FROZEN,
        }
        for name, p in operator.named_parameters():
            if frozen.get(name, False):
                p.requires_grad_(False)

    def build(self, positions: Positions, dtype: torch.dtype) -> SafariOperator:
        """The operator without values, on the meta device: making it draws no random numbers."""
        c = self.config
        at: dict[str, Any] = {"device": torch.device("meta"), "dtype": dtype}
        # Parts of a filter are made as filters make them: in float32 at least.
        part = {**at, "dtype": HyenaFilter.weight_dtype(dtype)}
        encoding = PositionalEncoding if positions is Positions.COMPUTED else StoredEncoding
        inner = HyenaFilter(
            c.d_model,
            c.l_max,
            c.num_filters,
            encoding=encoding(c.emb_dim, c.l_max, **part),
            ffn=SineFFN(
                c.emb_dim, c.filter_order, c.num_filters * c.d_model, inner_layers=c.num_inner_mlps, freq=c.w, **part
            ),
            window=self._window(part) if c.modulate else NoWindow(),
        )
        wrapped = c.num_blocks > 1
        changed = c.normalized or wrapped
        return SafariOperator(
            c.d_model,
            c.l_max,
            order=c.order,
            short_taps=c.short_filter_order,
            dropout=c.dropout,
            activation=c.activation,
            causal=not wrapped,
            num_blocks=c.num_blocks,
            post_order_ffn=c.post_order_ffn,
            filter=ReleasedFilter(inner, normalized=c.normalized, wrapped=wrapped) if changed else inner,
            **at,
        )

    def _window(self, at: dict[str, Any]) -> ExponentialWindow:
        c = self.config
        return ExponentialWindow(
            c.d_model,
            c.num_filters,
            slow_decay_pct=c.slow_decay_pct,
            fast_decay_pct=c.fast_decay_pct,
            target=c.target,
            shift=c.shift,
            trainable=c.modulation_lr != 0,
            **at,
        )

    @property
    def prefix(self) -> str:
        """Where the filter's parts are inside our operator."""
        return "conv.filter.inner." if self.config.normalized or self.config.num_blocks > 1 else "conv.filter."

    def translate(self, tensors: Mapping[str, Tensor], positions: Positions) -> dict[str, Tensor]:
        """Weights, or gradients, by our names; without those that have no place here, such as computed positions.

        Raises:
            ValueError: several values for the one freq that all layers share.
        """
        ours: dict[str, Tensor] = {}
        rules = self._rules(positions)
        for name, x in tensors.items():
            if name not in rules:
                continue
            new, convert = rules[name]
            x = convert(x)
            if new in ours and not torch.equal(ours[new], x):
                raise ValueError(f"{name} differs from that of other layers, which share one in the released code")
            ours[new] = x
        return ours

    def _rules(self, positions: Positions) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
        """Released name -> our name, and how one tensor becomes the other: by rearranging, as its gradient does."""
        c, ffn = self.config, self.prefix + "ffn."

        def as_it_is(x: Tensor) -> Tensor:
            return x

        def projections(x: Tensor) -> Tensor:
            """Gates and value, ``((N+1) * D, …)``: gate 0 comes last in the recurrence."""
            if self.layout != "zoology":
                return x
            before, after, value = x.chunk(3)
            return torch.cat([after, before, value])

        def filters(x: Tensor) -> Tensor:
            """Channels of all filters, ``(F * D, …)``, filter by filter: only standalone has them like that."""
            if self.layout == "standalone":
                return x
            return x.unflatten(0, (c.d_model, c.num_filters)).transpose(0, 1).flatten(0, 1)

        rules: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
            "in_proj.weight": ("in_proj.weight", projections),
            "in_proj.bias": ("in_proj.bias", projections),
            "out_proj.weight": ("out_proj.weight", as_it_is),
            "out_proj.bias": ("out_proj.bias", as_it_is),
            "short_filter.weight": ("short.weight", lambda x: projections(x[:, 0])),
            "short_filter.bias": ("short.bias", projections),
            "filter_fn.bias": ("conv.bias", lambda x: filters(x).view(c.num_filters, c.d_model)),
            f"{_FFN}.{2 * (c.num_inner_mlps + 1)}.weight": (ffn + "out.weight", filters),
            # The last of the order matrices is never used.
            "ord_proj_w": ("head_mixing", lambda x: x[: c.num_filters]),
        }
        for i in range(c.num_inner_mlps + 1):
            for part in ("weight", "bias"):
                rules[f"{_FFN}.{2 * i}.{part}"] = (f"{ffn}hidden.{i}.{part}", as_it_is)
            rules[f"{_FFN}.{2 * i + 1}.freq"] = (ffn + "freq", lambda x: x[0])
        if positions is not Positions.COMPUTED:
            rules["filter_fn.pos_emb.z"] = (self.prefix + "encoding.table", lambda x: x[0])
            rules["filter_fn.pos_emb.t"] = (self.prefix + "encoding.time", lambda x: x[0, :, 0])
        if c.modulate:
            rules["filter_fn.modulation.deltas"] = (self.prefix + "window.deltas", lambda x: filters(x[0, 0]))
        return rules
