"""Loading StripedHyena-7B, Evo 1 and Evo 2, one tensor at a time."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hyena.checkpoints.checks import Shapes, check_shapes, listed
from hyena.checkpoints.files import Source
from hyena.checkpoints.lazy import Stored, config_beside, open_weights
from hyena.checkpoints.placement import Devices, Placement, connect
from hyena.checkpoints.striped.config import Layout, read_settings
from hyena.checkpoints.striped.parts import Part, frequencies_of, optional, parts
from hyena.checkpoints.striped.poles import describe
from hyena.models.striped_hyena import StripedHyena, StripedHyenaConfig

_EMBEDDING = "embedding_layer.weight"
_DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Entries of the published files that no model needs: FP8 scales of Transformer Engine's layers, and the positions that
# Evo 2's long filters were trained at.
_NO_WEIGHT = re.compile(r"\._extra_state$|^(.*\.)?blocks\.\d+\.(mixer\.mixer\.)?filter\.t$")
# Numbers whose being finite is looked at in one go.
_CHECKED = 1 << 24


@dataclasses.dataclass(frozen=True)
class LoadingPlan:
    """Bytes that loading needs, found before anything is read.

    Args:
        model: of the model's weights on each device.
        largest: of the largest tensor of the checkpoint.
        host: at most this much of the host's memory at any time: the model's weights there, and of the tensor that is
            being read what is not mapped from its file.
    """

    model: dict[str, int]
    largest: int
    host: int


def load_striped_hyena(
    path_or_state_dict: Source,
    config: Source | None = None,
    *,
    dtype: torch.dtype | None = None,
    device_map: Devices = "cpu",
    l_max: int | None = None,
) -> StripedHyena:
    """A :class:`hyena.models.StripedHyena` with the weights and outputs of a released model.

    Takes what the codes of StripedHyena-Hessian-7B and -Nous-7B, Evo 1 and Evo 2 (Apache-2.0, all) read: ``.pt``
    files, ``.safetensors``, shards of either with an index, Hugging Face folders. The model is built without memory,
    then each tensor is mapped from its file, converted, and put where it belongs: the host never holds more than the
    model and one tensor (:func:`striped_hyena_plan` says the bytes).

    Args:
        path_or_state_dict: a state dict, or the path of a file, of an index of shards, or of a folder.
        config: the authors' settings, or the name of a published model: see :func:`striped_hyena_config`. Found beside
            the weights (``config.json``) if missing.
        dtype: of the weights: bfloat16, float32, float16 or float64; that of the checkpoint's embedding if missing.
            Filters keep float32 at least.
        device_map: a device for all weights, or devices by the names of modules: ``{"embedding": "cuda:0", "blocks.0":
            "cuda:0", …, "": "cpu"}``. A model on several devices moves its activations along.
        l_max: the longest row, in place of the config's.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: keys of the checkpoint or of the config that fit nowhere, missing tensors, other shapes, all listed
            before anything is read; weights that are not finite in ``dtype``; an output layer that differs from the
            embedding that it is tied to; a damaged file.
        FileNotFoundError: no such file, or missing shards, named.

    Warns:
        UserWarning: poles on or outside the unit circle and poles of zero, with what was done with them; settings that
            the authors compute in FP8; rotary frequencies other than the config's.
    """
    if config is None:
        config = config_beside(path_or_state_dict)
    c, layout = read_settings(config, l_max)
    stored, fp8 = _of_this_model(open_weights(path_or_state_dict))
    reports = {i: Counter[str]() for i in range(c.num_layers)}
    todo = parts(c, layout, reports)
    try:
        _check(stored, c, todo)
    except ValueError as error:
        where = "" if isinstance(path_or_state_dict, Mapping) else f"{path_or_state_dict}: "
        raise ValueError(f"{where}{error}") from None
    c = _with_frequencies(c, layout, stored)
    if dtype is None:
        dtype = stored[_EMBEDDING].dtype
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    model = StripedHyena(c, device="meta", dtype=dtype)
    places = Placement(device_map, _weights(model))
    if c.tie_embeddings and "unembed.weight" in stored:
        _check_tied(stored)
    for part in todo:
        _load(model, part, stored, places)
    model.tie_embeddings()
    connect(model, places.of("embedding.weight"))
    for text in (describe(reports, c.l_max), _about_fp8(layout, stored, fp8, dtype)):
        if text:
            warnings.warn(text, stacklevel=2)
    return model.eval()


def striped_hyena_plan(
    config: Source,
    *,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype = torch.bfloat16,
    device_map: Devices = "cpu",
    l_max: int | None = None,
) -> LoadingPlan:
    """The bytes that :func:`load_striped_hyena` needs, found without a checkpoint.

    Args:
        config, dtype, device_map, l_max: as for that function.
        stored: dtype of the checkpoint's tensors.
    """
    c, layout = read_settings(config, l_max)
    model = StripedHyena(c, device="meta", dtype=dtype)
    weights = _weights(model)
    places = Placement(device_map, weights)
    todo = parts(c, layout, {i: Counter() for i in range(c.num_layers)})
    on: dict[str, int] = {}
    largest = host = 0
    for part in todo:
        for name in part.ours:
            where, t = str(places.of(name)), weights[name]
            on[where] = on.get(where, 0) + t.numel() * t.element_size()
        read = sum(math.prod(shape) for shape in part.theirs.values()) * stored.itemsize
        largest = max(largest, read)
        host = max(host, on.get("cpu", 0) + read)
    return LoadingPlan(on, largest, host)


def _weights(model: StripedHyena) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied output layer once."""
    return {name: t for name, t in [*model.named_parameters(), *model.named_buffers()]}


def _of_this_model(stored: dict[str, Stored]) -> tuple[dict[str, Stored], int]:
    """Names without a prefix (``backbone.``), and without what is no weight; how many entries of scales there were."""
    prefixes = [
        name.removesuffix(_EMBEDDING) for name in stored if name == _EMBEDDING or name.endswith("." + _EMBEDDING)
    ]
    if len(prefixes) > 1:
        raise ValueError(f"the checkpoint holds {len(prefixes)} models, under {', '.join(sorted(prefixes))}; pass one")
    prefix = prefixes[0] if prefixes else ""
    kept = {name.removeprefix(prefix): t for name, t in stored.items() if not _NO_WEIGHT.search(name)}
    return kept, sum(name.endswith("._extra_state") for name in stored)


def _check(stored: Mapping[str, Stored], c: StripedHyenaConfig, todo: list[Part]) -> None:
    """Raises for names and shapes that are not the model's; see :func:`load_striped_hyena`."""
    required: Shapes = {}
    for part in todo:
        required |= part.theirs
    layers = {int(match[1]) for name in stored if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    if layers and max(layers) + 1 != c.num_layers:
        raise ValueError(
            f"the checkpoint does not fit its config: num_layers={c.num_layers}, but the checkpoint has blocks up to "
            f"blocks.{max(layers)}"
        )
    check_shapes({name: t.shape for name, t in stored.items()}, required, optional(c))
    odd = [f"{name} ({t.dtype})" for name, t in stored.items() if not t.dtype.is_floating_point]
    if odd:
        raise ValueError(f"weights are floating-point numbers, but not {listed(odd)}")


def _with_frequencies(c: StripedHyenaConfig, layout: Layout, stored: Mapping[str, Stored]) -> StripedHyenaConfig:
    """The model with the frequencies of rotary positions that the authors' code would use."""
    found: dict[int, Tensor] = {}
    for i, kind in enumerate(c.layers):
        held = stored.get(frequencies_of(i))
        # The first generation's code computes them again, unless float32 ones are stored.
        if kind == "attention" and held is not None and (not layout.first or held.dtype == torch.float32):
            t = held.read()
            if not t.is_meta:
                found[i] = t.double()
    size = c.d_model // c.num_heads
    computed = c.rotary_base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    apart = {i: ((t - computed).abs() / computed).max().item() for i, t in found.items()}
    if all(difference < 1e-5 for difference in apart.values()):
        return c
    first, *others = found.values()
    if any(not torch.equal(first, t) for t in others):
        raise ValueError(
            f"rotary frequencies differ from layer to layer ({listed([frequencies_of(i) for i in found])})"
        )
    warnings.warn(
        f"the checkpoint's rotary frequencies differ from those of rotary_emb_base={c.rotary_base:g} by up to "
        f"{max(apart.values()):.1e}; the authors' code uses the stored ones, and so does this model",
        stacklevel=3,
    )
    return dataclasses.replace(c, rotary_frequencies=tuple(first.tolist()))


def _check_tied(stored: Mapping[str, Stored]) -> None:
    output, table = stored["unembed.weight"].read(), stored[_EMBEDDING].read()
    if not output.is_meta and not table.is_meta and not torch.equal(output, table):
        raise ValueError(
            "unembed.weight differs from the embedding that this model ties it to (tie_embeddings: true in its config)"
        )


@torch.no_grad()
def _load(model: StripedHyena, part: Part, stored: Mapping[str, Stored], places: Placement) -> None:
    """Makes one part of the weights, of tensors that are read for it and forgotten."""
    sources = [stored[name] for name in part.theirs]
    tensors = [source.read() for source in sources]
    made: dict[str, Tensor] = {}
    for name, rows, values in part.pieces(*tensors):
        old = model.get_parameter(name) if _is_parameter(model, name) else model.get_buffer(name)
        if name not in made:
            made[name] = torch.empty(old.shape, dtype=old.dtype, device=places.of(name))
        if values.is_meta and not made[name].is_meta:
            raise ValueError(f"{', '.join(part.theirs)} is on the meta device, where tensors have no values")
        made[name][rows].copy_(values)
    for name, t in made.items():
        _check_finite(name, t, sources)
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if last in module._parameters:
            before = module._parameters[last]
            module._parameters[last] = nn.Parameter(t, requires_grad=before is not None and before.requires_grad)
        else:
            module._buffers[last] = t


def _is_parameter(model: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in model.get_submodule(owner)._parameters


def _check_finite(name: str, t: Tensor, sources: list[Stored]) -> None:
    if t.is_meta:
        return
    bad = sum(part.numel() - int(part.isfinite().sum()) for part in t.view(-1).split(_CHECKED))
    if bad:
        where = ", ".join(sorted({source.where for source in sources}))
        raise ValueError(
            f"{name} has {bad} entries that are NaN or infinite in {t.dtype}, of {t.numel()} (read from {where})"
        )


def _about_fp8(layout: Layout, stored: Mapping[str, Stored], extra: int, dtype: torch.dtype) -> str:
    """What is lost of a model that the authors run in FP8; empty for any other."""
    held = [name for name, t in stored.items() if t.dtype in _FP8]
    texts = []
    if layout.fp8:
        count = sum(name.endswith(".projections.weight") for name in stored)
        unused = f", and the scales in its {extra} _extra_state entries are not used" if extra else ""
        texts.append(
            f"the authors compute the projections of this model's {count} Hyena layers in FP8 (Transformer Engine); "
            f"here they are computed in {dtype}{unused}: FP8's rounding of inputs and weights (up to 1/16 of each), "
            "with which the model was trained, is lost, and outputs differ from the authors' by about as much as "
            "theirs do from unrounded ones"
        )
    if held:
        texts.append(
            f"{len(held)} tensors are stored in FP8 ({listed(held[:3])}{', …' if len(held) > 3 else ''}): they are "
            f"converted to {dtype} exactly, but have no more than FP8's 3 or 2 bits after the point"
        )
    return "; ".join(texts)
