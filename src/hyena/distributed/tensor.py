"""Tensor parallel: every process holds some channels of each layer, and all positions.

Dimensions: R processes, B batch, L length, D channels, V vocabulary.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from hyena.distributed.shards import check_mesh
from hyena.distributed.styles import (
    Plan,
    SameModel,
    Several,
    SplitEmbedding,
    SplitHead,
    SplitMixer,
    SplitMLP,
    SpreadAfter,
    SpreadNorm,
    WholeModel,
    is_splittable_table,
    outermost_mixers,
)
from hyena.mixers import MixerND
from hyena.models.blocks import MLP, Block, GatedMLP
from hyena.models.decoder import Decoder


def tensor_parallel(
    model: nn.Module, mesh: DeviceMesh, *, sequence_parallel: bool = False, check: bool = True
) -> nn.Module:
    """Spreads the channels of layers over the processes of a mesh axis, in place.

    Afterwards the model is called with the same input on every process, and gives the same output on every process.
    A mixer's ``in_proj``, short convolution, filters, biases and decoding states have this process's heads or channels,
    ``out_proj`` their inputs; an MLP has its share of the inner channels. One all-reduce a mixer and one an MLP
    add up what the processes give, and as many add up gradients. Embedding and output layer are split by the vocabulary
    if it divides. Gradients are whole: those of weights that processes share are summed in the backward pass.

    Weights are plain parameters of fewer channels, under the names of the plain model. Call it before
    ``fully_shard``, ``DistributedDataParallel``, :func:`hyena.distributed.context_parallel` and optimizers, and
    :func:`hyena.distributed.clip_grad_norm_` instead of torch's. :func:`hyena.distributed.full_state_dict` and
    :func:`hyena.distributed.checkpoint_state` give whole weights. States are made and stepped as ever.

    Args:
        model: of :class:`hyena.mixers.Mixer` layers that have ``units`` (heads, or channels) as many as a multiple of
            R, and else of anything: what is not known here is computed on every process. Or one such mixer. The same
            on every process, weights too.
        mesh: of one axis, ``mesh["tp"]``.
        sequence_parallel: between layers each process holds an equal part of the positions, so that norms, dropout and
            the residual stream cost ``1 / R``; a reduce-scatter and an all-gather then stand in the place of each
            all-reduce. For a :class:`hyena.models.Decoder`.
        check: compare the processes' models now and their inputs at each call, and look for values that are not
            finite: 72 bytes a process a call. Without it a process that differs gives wrong results, or waits.

    Returns:
        The model.

    Raises:
        TypeError: arguments of another type.
        ValueError: a mesh of several axes, channels that do not divide, a mixer whose channels cannot be split; models
            that differ between the processes, on all of them.
    """
    check_mesh(mesh)
    return parallelize_module(
        model, mesh, tensor_parallel_plan(model, mesh.size(), sequence_parallel=sequence_parallel, check=check)
    )


def tensor_parallel_plan(
    model: nn.Module, size: int, *, sequence_parallel: bool = False, check: bool = True
) -> dict[str, ParallelStyle]:
    """The plan that :func:`tensor_parallel` carries out, for ``torch.distributed.tensor.parallel.parallelize_module``.

    ``parallelize_module(model, mesh["tp"], plan)``, once, after entries are taken out or put in.

    Args:
        model: see :func:`tensor_parallel`; left as it is.
        size: R.
        sequence_parallel, check: see :func:`tensor_parallel`.

    Returns:
        A style for each layer that is split, by its name; ``""`` is the model itself.

    Raises:
        ValueError: no mixer, or a mixer over a grid.
    """
    plan, mixers = Plan(check), outermost_mixers(model)
    over_grids = [name for name, part in model.named_modules() if isinstance(part, MixerND)]
    if over_grids:
        part = model.get_submodule(over_grids[0])
        raise ValueError(
            f"{over_grids[0] or 'the model'} is a {type(part).__name__}, whose channels cannot be split over processes"
        )
    if not mixers:
        raise ValueError(f"this {type(model).__name__} has no hyena.mixers.Mixer to split over processes")
    if sequence_parallel and not isinstance(model, Decoder):
        raise ValueError(
            f"sequence_parallel is for a hyena.models.Decoder, not for a {type(model).__name__}: norms and dropout of "
            "other models would have to know that they see a part of the positions"
        )
    own = type(model).__name__
    styles: dict[str, ParallelStyle] = {}
    for name, part in model.named_modules():
        if name in mixers:
            styles[name] = SplitMixer(name or own, plan)
        elif isinstance(part, (MLP, GatedMLP)):
            styles[name] = SplitMLP(name, plan)
        elif sequence_parallel and isinstance(part, Block):
            styles |= {f"{name}.{norm}": SpreadNorm(f"{name}.{norm}", plan) for norm in ("norm1", "norm2")}
    if isinstance(model, Decoder):
        table, head = model.embedding, model.head
        if is_splittable_table(table, size):
            styles["embedding"] = SplitEmbedding("embedding", plan)
            if type(head) is nn.Linear and head.out_features == table.num_embeddings:
                styles["head"] = SplitHead("head", plan)
        if sequence_parallel:
            styles["dropout"] = SpreadAfter("dropout", plan)
            styles["norm"] = SpreadNorm("norm", plan, last=True)
    return _around(styles, model, plan, sequence_parallel)


def _around(styles: dict[str, ParallelStyle], model: nn.Module, plan: Plan, spread: bool) -> dict[str, ParallelStyle]:
    """With what comes before the first layer is split, and after the last, which are the model's own."""
    own = type(model).__name__
    around: list[ParallelStyle] = [SameModel(own, plan)]
    if "" in styles:
        around.append(styles.pop(""))
    return {"": Several([*around, WholeModel(own, plan, spread)]), **styles}
