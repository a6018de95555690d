"""How each kind of layer is split over processes: styles for ``torch.distributed.tensor.parallel.parallelize_module``.

Between two layers that are split every process holds the whole of ``x``, ``(B, L, D)``; or, where a row is spread, its
equal part of the positions, ``(B, n, D)``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn import functional as F

from hyena.distributed.agreement import check_same_model
from hyena.distributed.calls import Calls, same_values
from hyena.distributed.collectives import Processes, gathered, my_part, sum_of_my_part, summed, used_in_part
from hyena.distributed.narrowing import columns, narrow_mixer, put_before, rows, sums_gradients
from hyena.distributed.shards import check_mesh
from hyena.distributed.splits import Parts, equal
from hyena.distributed.whole import ResetsWhole
from hyena.mixers import Mixer
from hyena.models.decoder import Decoder


class Plan:
    """What the styles of one plan share: made when the first of them meets the mesh.

    Args:
        check: see :class:`hyena.distributed.calls.Calls`.
    """

    def __init__(self, check: bool) -> None:
        self.check, self.parts = check, Parts()
        self._calls: Calls | None = None

    def calls(self, mesh: DeviceMesh) -> Calls:
        """Of all layers."""
        check_mesh(mesh)
        if self._calls is None:
            self._calls = Calls(Processes(mesh), self.check)
        return self._calls


class _Style(ParallelStyle):
    """One layer's.

    Args:
        name: the layer's, for errors.
        plan: shared by the styles of a model.
    """

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__()
        self.name, self.plan = name, plan

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        calls = self.plan.calls(device_mesh)
        if calls.processes.size > 1:
            self.split(module, calls)
        return module

    @abstractmethod
    def split(self, module: Any, calls: Calls) -> None:
        """Splits the layer in place."""


class SplitMixer(_Style):
    """Heads or channels: of the projections, and of everything between them."""

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        narrow_mixer(self.name, module, calls.processes, self.plan.parts)
        put_before(module, _SplitMixer)
        _between_layers(self.name, module, "out_proj", calls)


class SplitMLP(_Style):
    """The inner channels of an MLP."""

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        inner, size = module.fc2.in_features, calls.processes.size
        if inner % size != 0:
            raise ValueError(
                f"{self.name} has {inner} inner channels, which do not divide by the {size} processes of the mesh"
            )
        for layer in ("gate", "fc1"):
            if hasattr(module, layer):
                columns(module, layer, calls.processes, self.plan.parts)
        rows(module, "fc2", calls.processes, self.plan.parts)
        _between_layers(self.name, module, "fc2", calls)


class SplitEmbedding(_Style):
    """The vocabulary of an embedding."""

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        processes, size = calls.processes, module.num_embeddings
        self.plan.parts.put(module, "weight", equal(size, processes, 0))
        module.num_embeddings //= processes.size
        module.__dict__["_part"] = processes, size
        put_before(module, _SplitEmbedding)


class SplitHead(_Style):
    """The vocabulary of an output layer; every process has all logits."""

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        processes = calls.processes
        for leaf in ("weight", "bias"):
            if getattr(module, leaf) is not None:
                self.plan.parts.put(module, leaf, equal(module.out_features, processes, 0))
        module.out_features //= processes.size
        module.register_forward_pre_hook(lambda _, args: (used_in_part(processes, args[0])[0], *args[1:]))
        module.register_forward_hook(lambda _, args, y: gathered(y, processes, -1, same=True))


class SpreadNorm(_Style):
    """A norm of this process's positions.

    Args:
        name, plan: as of any style.
        last: after it every process has all positions again.
    """

    def __init__(self, name: str, plan: Plan, last: bool = False) -> None:
        super().__init__(name, plan)
        self.last = last

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        put_before(module, sums_gradients(calls.processes, tuple(n for n, _ in module.named_parameters()), calls))
        if self.last:
            module.register_forward_hook(lambda _, args, y: _positions_together(y, calls, same=True))


class SpreadAfter(_Style):
    """Where positions are spread: what comes into this module are all of them."""

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        module.register_forward_pre_hook(lambda _, args: (_positions_apart(args[0], calls), *args[1:]))


class WholeModel(_Style):
    """The model around the layers: whether processes agree, and how weights are initialised again.

    Args:
        name, plan: as of any style.
        spread: whether positions are spread between layers.
    """

    def __init__(self, name: str, plan: Plan, spread: bool) -> None:
        super().__init__(name, plan)
        self.spread = spread

    def split(self, module: Any, calls: Calls) -> None:
        """See :func:`hyena.distributed.tensor_parallel`."""
        if isinstance(module, Decoder):
            put_before(module, ResetsWhole)
        if self.spread:
            module.__dict__["_calls"] = calls
            put_before(module, _SpreadsPositions)

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.begin(args, kwargs, module.training)

        module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
        module.register_forward_hook(lambda *_: calls.end())


class SameModel(_Style):
    """Before anything is split: whether the processes have the same model."""

    def split(self, module: Any, calls: Calls) -> None:
        """Raises ValueError on every process if not."""
        if any("_splits" in part.__dict__ for part in module.modules()):
            raise ValueError(f"{self.name} is split over processes already")
        if self.plan.check:
            weights: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            check_same_model(module, calls.processes.group, torch.device(calls.processes.mesh.device_type))
            same_values(weights, calls.processes)


class Several(ParallelStyle):
    """Styles of one layer, one after the other."""

    def __init__(self, styles: list[ParallelStyle]) -> None:
        super().__init__()
        self.styles = styles

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for style in self.styles:
            module = style._apply(module, device_mesh)
        return module


class _SplitMixer(ResetsWhole):
    """Put before the class of a mixer."""

    def to_matrix(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ValueError(
            f"this {type(self).__name__} holds a part of its channels: load its weights into a model that is not split "
            "to look at its matrices"
        )


class _SplitEmbedding:
    """Put before the class of an embedding."""

    _part: tuple[Processes, int]

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of all tokens, each from the process that has it."""
        processes, size = self._part
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        good = ((tokens >= 0) & (tokens < size)).all()
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            if not good:
                raise IndexError(f"tokens must be 0 to {size - 1}, got {tokens.min().item()} to {tokens.max().item()}")
        else:
            torch._assert_async(good, f"tokens must be 0 to {size - 1}")
        at = tokens - processes.rank * weight.size(0)
        mine = (at >= 0) & (at < weight.size(0))
        x = F.embedding(torch.where(mine, at, 0), weight)
        return summed(torch.where(mine[..., None], x, 0.0), processes)


class _SpreadsPositions:
    """Put before the class of a decoder whose positions are spread between layers."""

    _calls: Calls

    def hidden_states(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`hyena.models.Decoder.hidden_states`; steps, and calls for the last position, are not spread."""
        parent: Any = super()
        steps = kwargs.get("state", args[3] if len(args) > 3 else None) is not None or kwargs.get("last", False)
        self._calls.length = None if steps else tokens.size(1)
        return parent.hidden_states(tokens, *args, **kwargs)


def _between_layers(name: str, module: nn.Module, last: str, calls: Calls) -> None:
    """Has a layer take what is between layers, and give it: its own outputs are a term of a sum."""
    processes = calls.processes

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        key = next(iter(kwargs), "")
        x = args[0] if args else kwargs[key]
        if calls.length is None:
            (x,) = used_in_part(processes, x)
        else:
            x = _positions_together(x, calls, same=False)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, key: x})

    def leave(module: nn.Module, _: Any, y: Tensor) -> Tensor:
        calls.met(name, y)
        bias: Any = module.get_submodule(last).bias
        if calls.length is None:
            y = summed(y, processes)
        else:
            y = sum_of_my_part(_padded(y, processes.size), processes, 1)
            if bias is not None and torch.is_grad_enabled() and bias.requires_grad:
                (bias,) = used_in_part(processes, bias)
        return y if bias is None else y + bias.to(y.dtype)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)


def _padded(x: Tensor, size: int) -> Tensor:
    """Zeros at the end of rows, so that their positions divide."""
    return F.pad(x, (0, 0, 0, -x.size(1) % size))


def _positions_apart(x: Tensor, calls: Calls) -> Tensor:
    """This process's positions of ``(B, L, D)``, if they are spread."""
    if calls.length is None:
        return x
    return my_part(_padded(x, calls.processes.size), calls.processes, 1)


def _positions_together(x: Tensor, calls: Calls, same: bool) -> Tensor:
    """All positions ``(B, L, D)`` out of parts, if they are spread."""
    if calls.length is None:
        return x
    return gathered(x, calls.processes, 1, same=same)[:, : calls.length]


def is_splittable_table(layer: nn.Module, size: int) -> bool:
    """Whether an embedding has a vocabulary that divides, and does no more than look up rows."""
    if type(layer) is not nn.Embedding or layer.num_embeddings % size != 0:
        return False
    return layer.padding_idx is None and layer.max_norm is None and not (layer.sparse or layer.scale_grad_by_freq)


def outermost_mixers(model: nn.Module) -> dict[str, Mixer]:
    """Mixers by name, without those inside of others."""
    found: dict[str, Mixer] = {}
    for name, part in model.named_modules():
        if isinstance(part, Mixer) and not any(other == "" or name.startswith(f"{other}.") for other in found):
            found[name] = part
    return found
