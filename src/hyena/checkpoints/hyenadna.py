"""Loading HyenaDNA's released models: the original checkpoints, and their ``-hf`` versions for transformers."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from hyena.checkpoints.checks import Shapes, check_count, check_integer, check_names, check_values
from hyena.checkpoints.files import Source, config_beside, read_config, read_weights, rename, weights_file
from hyena.checkpoints.hyenadna_config import is_hf, read_settings
from hyena.checkpoints.safari.operator import ReleasedOperator
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig

_LAYERS = "backbone.layers."
_LAYER = re.compile(re.escape(_LAYERS) + r"(\d{1,9})\.")
_EMBEDDING = "backbone.embeddings.word_embeddings.weight"
# Parts of a block that have the same names here and there.
_BLOCK_PARTS = [f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]


def load_hyenadna(
    state_dict_or_path: Source,
    config: Source | None = None,
    *,
    head: str | None = "auto",
    num_labels: int | None = None,
    learned_encoding: bool | None = None,
    layout: str = "standalone",
) -> HyenaDNA:
    """A :class:`hyena.models.HyenaDNA` with the weights and outputs of a released model.

    Takes the checkpoints of ``LongSafari/hyenadna-*`` (``weights.ckpt``, a Lightning checkpoint) and of
    ``LongSafari/hyenadna-*-hf`` (``model.safetensors``), and what the HyenaDNA code (HazyResearch/hyena-dna,
    Apache-2.0) saves. Safari's own language models have the same names: give ``layout="safari"`` for them.

    Args:
        state_dict_or_path: a state dict, a checkpoint that holds one under ``"state_dict"``, or the path of a
            ``.safetensors`` file, of one that ``torch.load`` reads with ``weights_only``, of an index of shards, or of
            a folder with one of them. Names may have prefixes (``model.``, ``module.``, ``hyena.``, ``backbone.``) and
            the ``.layer.`` of activation checkpointing.
        config: the settings as a dict, or the path of the ``config.json``; found beside the weights if missing.
            ``num_labels`` and ``id2label`` of an ``-hf`` config count with ``head="classes"`` only.
        head: what the model returns: None for hidden states, ``"lm"`` for next-token logits, ``"classes"`` for class
            logits. ``"auto"`` does what the released code does with the config: classes if it says ``use_head`` or its
            ``architectures`` name a sequence classifier, logits if they name a causal language model, else hidden
            states; and classes also if the weights have ``score.weight``, or if ``num_labels`` is given. Classes are
            read from the mean of the hidden states in an original model, and from the last position in an ``-hf`` one
            (``score.weight``).
        num_labels: how many classes, whatever the config says: for training on a task of one's own, with a head that
            starts at random if the checkpoint has none.
        learned_encoding: as for :func:`load_safari_operator`. The ``-hf`` code makes positions trainable that were not
            trained; by default they are computed unless the checkpoint's have been trained.
        layout: how filters are laid out from order 3 on: ``"standalone"`` as in ``standalone_hyenadna.py``,
            ``"safari"`` as in the training code (and with its window, which decays to 0, not to 0.05). No released
            model has such an order.

    Returns:
        The model, in the dtype and on the device of its weights, in training mode. The filters' weights are float32 at
        least, as in any model of this library.

    Raises:
        ValueError: keys of the weights or of the config that fit nowhere, missing keys, other shapes, all listed;
            weights that are not finite floating-point numbers of one dtype; positions for another ``l_max``; an output
            layer that differs from the embedding it is tied to; a file that is no checkpoint or no config.
        FileNotFoundError: no such file.
    """
    if not isinstance(state_dict_or_path, Mapping):
        weights_file(state_dict_or_path)  # a wrong path is the first thing to say
    if num_labels is not None:
        check_integer("num_labels", num_labels, 1)
        if head not in ("auto", "classes"):
            raise ValueError(f"num_labels={num_labels} is of head='classes', not of head={head!r}")
    values = read_config(config_beside(state_dict_or_path) if config is None else config)
    tensors = _canonical(read_weights(state_dict_or_path))
    of_tokens = "ForTokenClassification" in str(values.get("architectures"))
    if head == "auto" and not of_tokens and (num_labels is not None or "score.weight" in tensors):
        head = "classes"
    model_config, settings = read_settings(values, head, layout)
    if num_labels is not None:
        model_config = dataclasses.replace(model_config, num_classes=num_labels)
    operator = ReleasedOperator(settings, layout, learned_encoding, goes_on=is_hf(values))
    return _build(model_config, operator, _checked(tensors, model_config, operator))


def _checked(tensors: dict[str, Tensor], c: HyenaDNAConfig, operator: ReleasedOperator) -> dict[str, Tensor]:
    """The tensors that the model has a place for, after all checks; see :func:`load_hyenadna` for what it raises."""
    layers = _layers(tensors)
    check_count(f"n_layer={c.num_layers}", c.num_layers, layers, lambda i: f"{_LAYERS}{i}.norm1.weight")
    for part in layers.values():
        operator.check_sizes(part)
    used = dict(tensors)
    # A model without an output layer leaves the checkpoint's out; one that is tied has it as its embedding.
    output = used.pop("lm_head.weight", None) if c.head != "lm" or c.tie_embeddings else None
    check_names(used, *_shapes(c, operator, used))
    check_values(tensors)
    if output is not None and c.head == "lm" and not torch.equal(output, tensors[_EMBEDDING]):
        raise ValueError(
            "lm_head.weight differs from the embedding that this model ties it to; the config of an -hf model says "
            "tie_word_embeddings=False if it is a layer of its own"
        )
    return used


def _build(c: HyenaDNAConfig, operator: ReleasedOperator, tensors: dict[str, Tensor]) -> HyenaDNA:
    """The model of checked tensors, made on the meta device: that draws no random numbers."""
    like, layers = tensors[_EMBEDDING], _layers(tensors)
    positions = [operator.positions(layers[i]) for i in range(c.num_layers)]
    mixers = [operator.build(p, like.dtype) for p in positions]
    model = HyenaDNA(c, mixers, device="meta", dtype=like.dtype).to_empty(device=like.device)
    model.tie_embeddings()
    state = _our_names(tensors, c)
    for i, mixer in enumerate(mixers):
        mixed = operator.state(layers[i], positions[i])
        state |= {f"blocks.{i}.mixer.{name}": t for name, t in mixed.items()}
        operator.freeze(mixer, positions[i])
    if c.head == "classes" and not any(name.startswith("head.") for name in state):
        warnings.warn("the checkpoint has no classification head: the model's starts at random", stacklevel=3)
        model.reset_head()
        assert model.head is not None  # for mypy: there is one with head="classes"
        state |= {f"head.{name}": p.detach().clone() for name, p in model.head.named_parameters()}
    model.load_state_dict(state)
    return model


def _canonical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without prefixes: ``backbone.…``, ``lm_head.weight``, ``score.weight`` and ``head.output_transform.…``."""
    tensors = rename(tensors, lambda name: re.sub(r"\.(mixer|mlp)\.layer\.", r".\1.", name))
    table = _EMBEDDING.removeprefix("backbone.")
    prefixes = [name.removesuffix(table) for name in tensors if name == table or name.endswith("." + table)]
    if len(prefixes) > 1:
        raise ValueError(f"the state dict holds {len(prefixes)} models, under {', '.join(sorted(prefixes))}; pass one")
    backbone = prefixes[0] if prefixes else "backbone."
    heads = re.compile(r"(?:^|.*\.)(lm_head\.weight|score\.weight|head\.output_transform\.(?:weight|bias))")

    def canonical(name: str) -> str:
        if match := heads.fullmatch(name):
            return match[1]
        return "backbone." + name.removeprefix(backbone) if name.startswith(backbone) else name

    return rename(tensors, canonical)


def _layers(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer's mixer, by the names that they have inside it."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if match := _LAYER.match(name):
            part = layers.setdefault(int(match[1]), {})
            inside = name[match.end() :]
            if inside.startswith("mixer."):
                part[inside.removeprefix("mixer.")] = t
    return layers


def _shapes(c: HyenaDNAConfig, operator: ReleasedOperator, held: Container[str]) -> tuple[Shapes, Shapes]:
    """Names and shapes of a model's weights: those that must be there, and those that can be computed.

    The layer of classes may be missing, but not a part of it if another is among the names ``held``.
    """
    d, inner = c.d_model, c.d_inner or 4 * c.d_model
    required: Shapes = {
        _EMBEDDING: (c.padded_vocab_size, d),
        "backbone.ln_f.weight": (d,),
        "backbone.ln_f.bias": (d,),
    }
    optional: Shapes = {}
    needed, computed = operator.shapes()
    for i in range(c.num_layers):
        block = f"{_LAYERS}{i}."
        required |= {f"{block}norm{n}.{kind}": (d,) for n in (1, 2) for kind in ("weight", "bias")}
        required |= {f"{block}mlp.fc1.weight": (inner, d), f"{block}mlp.fc1.bias": (inner,)}
        required |= {f"{block}mlp.fc2.weight": (d, inner), f"{block}mlp.fc2.bias": (d,)}
        required |= {f"{block}mixer.{name}": shape for name, shape in needed.items()}
        optional |= {f"{block}mixer.{name}": shape for name, shape in computed.items()}
    if c.head == "lm" and not c.tie_embeddings:
        required["lm_head.weight"] = (c.padded_vocab_size, d)
    if c.head == "classes":
        shapes = {"weight": (c.num_classes, d), "bias": (c.num_classes,)}
        layer = {theirs: shapes[ours] for ours, theirs in _class_layer(c).items()}
        (required if any(name in held for name in layer) else optional).update(layer)
    return required, optional


def _class_layer(c: HyenaDNAConfig) -> dict[str, str]:
    """Our names of the layer of ``head="classes"``, and the names in the checkpoint."""
    if not c.head_bias:
        return {"weight": "score.weight"}  # of the -hf models
    return {kind: f"head.output_transform.{kind}" for kind in ("weight", "bias")}


def _our_names(tensors: Mapping[str, Tensor], c: HyenaDNAConfig) -> dict[str, Tensor]:
    """Everything but the mixers, by our names."""
    ours = {"embedding.weight": tensors[_EMBEDDING]}
    ours |= {f"norm.{kind}": tensors[f"backbone.ln_f.{kind}"] for kind in ("weight", "bias")}
    for i in range(c.num_layers):
        ours |= {f"blocks.{i}.{part}": tensors[f"{_LAYERS}{i}.{part}"] for part in _BLOCK_PARTS}
    if c.head == "lm":
        ours["head.weight"] = tensors[_EMBEDDING if c.tie_embeddings else "lm_head.weight"]
    if c.head == "classes":
        ours |= {f"head.{kind}": tensors[name] for kind, name in _class_layer(c).items() if name in tensors}
    return ours
