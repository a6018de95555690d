"""A mixer, or an MLP, made to hold one process's share of its channels, in place: names and classes stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.conv import LongConv
from hyena.distributed.collectives import Processes, used_in_part
from hyena.distributed.splits import Parts, Split, equal, place, runs
from hyena.filters.narrow import Taken
from hyena.mixers import Mixer

# Of a module's attributes, those that are no settings of its class.
_HELD = {"_parameters", "_buffers", "_modules"}


def narrow_mixer(name: str, mixer: Mixer, processes: Processes, parts: Parts) -> None:
    """Leaves this process's heads or channels of a mixer, and of its projections what belongs to them.

    Raises:
        ValueError: a mixer that has no such parts, or not a multiple of the number of processes.
    """
    size, units = processes.size, mixer.units
    if units == 1 < size:
        try:
            mixer.core(range(1))  # says why not, if there is a reason
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from e
    if units % size != 0:
        few = ", fewer than" if units < size else ", which do not divide by"
        raise ValueError(f"{name} has {units} heads or channels to mix{few} the {size} processes of the mesh")
    layers: Any = mixer
    _check_linear(f"{name}.in_proj", layers.in_proj)
    _check_linear(f"{name}.out_proj", layers.out_proj)
    mine = range(units // size * processes.rank, units // size * (processes.rank + 1))
    core = mixer.core(mine)
    splits, whole = _splits(mixer, core, processes)
    _adopt(mixer, core, {"d_model"})
    for path, split in splits.items():
        parts.put(mixer, path, split)
    for part in mixer.modules():
        if isinstance(part, LongConv):
            part.clear_cache()
    columns(mixer, "in_proj", processes, parts, mixer.parts)
    rows(mixer, "out_proj", processes, parts)
    _sum_gradients_of(name, mixer, whole, processes)


def columns(owner: nn.Module, name: str, processes: Processes, parts: Parts, rows: int = 1) -> None:
    """Leaves this process's outputs of a linear layer, an equal share of each of so many ``rows`` of them."""
    layer: Any = owner.get_submodule(name)
    for leaf in ("weight", "bias"):
        if getattr(layer, leaf) is not None:
            parts.put(owner, f"{name}.{leaf}", equal(layer.out_features, processes, 0, rows))
    layer.out_features //= processes.size


def rows(owner: nn.Module, name: str, processes: Processes, parts: Parts) -> None:
    """Leaves this process's inputs of a linear layer; its bias is added to the sum of all, elsewhere."""
    layer: Any = owner.get_submodule(name)
    parts.put(owner, f"{name}.weight", equal(layer.in_features, processes, 1))
    layer.in_features //= processes.size
    layer.__class__ = ops.LinearWithoutBias


def _check_linear(name: str, layer: nn.Module) -> None:
    if not ops.is_plain(layer, nn.Linear):
        raise ValueError(
            f"{name} is a {type(layer).__name__} with hooks, a parametrisation, sharded weights or code of its own, "
            "and cannot be split: call tensor_parallel before adapters, quantisation and fully_shard"
        )


def _splits(mixer: Mixer, core: Mixer, processes: Processes) -> tuple[dict[str, Split], list[str]]:
    """How weights between the projections are split, and the names of those that every process uses whole.

    The mixer itself says which of its channels' entries a process has: it is asked with the numbers of the entries in
    the weights' places.
    """
    own, local = _between(mixer), _between(core)
    for path in [path for path, part in core.named_modules() if isinstance(part, Taken)]:
        inside = f"{path}.source."
        local = {f"{path}.{n.removeprefix(inside)}" if n.startswith(inside) else n: t for n, t in local.items()}
    axes = {}
    for name, t in own.items():
        differ = [axis for axis in range(t.dim()) if local[name].size(axis) != t.size(axis)]
        if differ:
            (axes[name],) = differ
    numbers = {name: _numbered(own[name], axis) for name, axis in axes.items()}
    marked, each = ops.with_tensors(mixer, numbers), mixer.units // processes.size
    found: dict[str, list[tuple[range, ...]]] = {name: [] for name in axes}
    for rank in range(processes.size):
        entries = _between(marked.core(range(rank * each, (rank + 1) * each)))
        for name, axis in axes.items():
            along = entries[name].movedim(axis, 0)
            found[name].append(runs(along.reshape(along.size(0), -1)[:, 0].tolist()))
    splits = {name: Split(axis, own[name].size(axis), tuple(found[name]), processes) for name, axis in axes.items()}
    parameters = dict(mixer.named_parameters(remove_duplicate=False))
    return splits, [name for name in own if name not in axes and name in parameters]


def _between(mixer: nn.Module) -> dict[str, Tensor]:
    """Weights that are not a projection's."""
    every = [*mixer.named_parameters(remove_duplicate=False), *mixer.named_buffers(remove_duplicate=False)]
    return {name: t for name, t in every if name.partition(".")[0] not in ("in_proj", "out_proj")}


def _numbered(t: Tensor, axis: int) -> Tensor:
    at = torch.arange(t.size(axis)).view([-1 if i == axis else 1 for i in range(t.dim())])
    return at.expand([max(n, 1) for n in t.shape])  # also of a weight without entries


def _adopt(part: nn.Module, twin: nn.Module, leave: set[str]) -> None:
    """Takes over the settings of a part of fewer channels, but its weights."""
    for key, value in twin.__dict__.items():
        if key not in _HELD and key not in leave and part.__dict__.get(key) is not value:
            part.__dict__[key] = value
    for name, child in part._modules.items():
        inner = twin._modules[name]
        if isinstance(inner, Taken) and child is not None:
            put_before(child, _takes(inner.channels))
        elif child is not None and inner is not None and not isinstance(inner, nn.Identity):
            _adopt(child, inner, set())


def _sum_gradients_of(name: str, mixer: nn.Module, whole: list[str], processes: Processes) -> None:
    """Has the gradients of weights that each process uses for its channels alone summed over the processes."""
    filters = [f"{path}.filter" for path, part in mixer.named_modules() if isinstance(part, LongConv)]
    units: dict[str, list[str]] = {}
    for path in whole:
        unit = next((f for f in filters if path.startswith(f"{f}.")), path.rpartition(".")[0].partition(".")[0])
        if not unit:
            raise ValueError(f"{name}.{path} belongs to all channels at once, so that this mixer cannot be split")
        units.setdefault(unit, []).append(path.removeprefix(f"{unit}."))
    for unit, paths in units.items():
        put_before(mixer.get_submodule(unit), sums_gradients(processes, tuple(paths)))


def put_before(module: nn.Module, before: type) -> None:
    """Changes a module's class to one that ``before`` is the first base of: names and weights stay."""
    kind: type = type(module)
    module.__class__ = type(f"{before.__name__}{kind.__name__}", (before, kind), {"__module__": __name__})


# What is put before the class of a filter keeps its settings in a class of its own: attributes of an instance are what
# decides whether its spectra may be kept.


def _takes(channels: range) -> type:
    class Part:
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            parent: Any = super()
            return parent.forward(*args, **kwargs)[..., channels.start : channels.stop]

        def modes(self) -> Any:
            parent: Any = super()
            found = parent.modes() if hasattr(parent, "modes") else None
            return None if found is None else type(found)(*(t[:, channels.start : channels.stop] for t in found))

        def channel_axes(self) -> dict[str, int]:
            return {}

    return Part


def sums_gradients(processes: Processes, paths: tuple[str, ...], calls: Any = None) -> type:
    """A class to put before a module's: the gradients of weights that it uses in part are summed.

    Args:
        processes: of the mesh axis.
        paths: of the weights in the module.
        calls: with it, only where each process holds an equal part of a row (:attr:`Calls.length`).
    """

    class Summing:
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            parent: Any = super()
            module: Any = self
            if not torch.is_grad_enabled() or (calls is not None and calls.length is None):
                return parent.forward(*args, **kwargs)
            places = [place(module, path) for path in paths]
            every: list[tuple[Any, str, Any]] = [(part, leaf, part._parameters[leaf]) for part, leaf in places]
            own = [each for each in every if each[2].requires_grad]
            if not own:
                return parent.forward(*args, **kwargs)
            try:
                for (part, leaf, _), t in zip(own, used_in_part(processes, *(p for *_, p in own)), strict=True):
                    part._parameters[leaf] = t
                return parent.forward(*args, **kwargs)
            finally:
                for part, leaf, p in own:
                    part._parameters[leaf] = p

    return Summing
