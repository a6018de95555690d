"""Context parallel: every process holds some positions of each row, and mixes some channels of all positions.

Dimensions: R processes, B batch, L length of the whole row, n positions of one process, P parts of a projection, C
channels of each.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hyena import ops
from hyena.distributed.agreement import Finite, check_same, check_same_model
from hyena.distributed.exchange import ToChannels, ToPositions
from hyena.distributed.shards import check_mesh, evenly, gather_numbers, gather_uneven
from hyena.mixers import Mixer
from hyena.models.decoder import Decoder


def context_parallel(model: nn.Module, mesh: DeviceMesh, *, chunks: int = 2, check: bool = True) -> nn.Module:
    """Spreads the positions of rows over the processes of a mesh axis, in place.

    Afterwards the model is called with this process's positions of each row (:func:`shard`; shards may differ in size)
    and returns its outputs there. In each mixer one all-to-all brings this process some channels of all positions, they
    are mixed as ever, exactly, and another brings its positions back; everything else sees its own positions alone. The
    gradients of a process are what its own work contributed to the sum of all processes' losses: added over the mesh
    (:func:`sum_gradients`) they are the whole gradient.

    Masks come in shards as the rows do; packed rows have the ``cu_seqlens`` of the whole row, the same on every
    process. Weights are the same everywhere, and their names stay. A model is decoded without it.

    Args:
        model: of :class:`hyena.mixers.Mixer` layers that have ``units`` (heads, or channels), and else of parts that
            see each position alone; or one such mixer.
        mesh: of one axis, ``mesh["cp"]``.
        chunks: into how many parts the channels of a process are cut, so that some are sent while others are mixed.
        check: compare the processes' models now and their inputs at each call, and look for values that are not
            finite: 64 bytes a process twice a call. Without it a process that differs leaves the others waiting.

    Returns:
        The model.

    Raises:
        TypeError: arguments of another type.
        ValueError: a mesh of several axes, a mixer whose channels cannot be spread or are fewer than processes, a
            model with outputs for whole rows; and models that differ between the processes, on all of them.
    """
    check_mesh(mesh)
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"chunks must be an integer of at least 1, got {chunks!r}")
    found = {name: part for name, part in model.named_modules() if isinstance(part, Mixer)}
    inner = [name for name in found if any(name != other and _is_under(name, other) for other in found)]
    mixers = {name: part for name, part in found.items() if name not in inner}
    if not mixers:
        raise ValueError(f"this {type(model).__name__} has no hyena.mixers.Mixer, so nothing would see the whole row")
    for name, mixer in mixers.items():
        _check_can_spread(name or type(mixer).__name__, mixer, mesh)
    if isinstance(model, Decoder):
        model.check_can_decode(needs_logits=False)
    context = Context(mesh, chunks, check)
    if check:
        check_same_model(model, context.group, torch.device(mesh.device_type))
    for name, mixer in mixers.items():
        mixer.__dict__["_context"], mixer.__dict__["_name"] = context, name or type(mixer).__name__
        _put_before(mixer, _MixesChannels)
    if isinstance(model, Decoder) and model.positions is not None:
        model.__dict__["_context"] = context
        _put_before(model, _CountsPositions)
    model.register_forward_pre_hook(lambda *_: context.begin())
    model.register_forward_hook(lambda *_: context.end())
    return model


@torch.no_grad()
def sum_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Adds up every parameter's gradient over the processes of a mesh axis, in place: after ``backward``.

    A gradient that some of the processes have not counts as zero; one that none has stays None.
    """
    check_mesh(mesh)
    group, found = mesh.get_group(), [p for p in model.parameters() if p.requires_grad]
    if not found:
        return
    has = torch.tensor([p.grad is not None for p in found], dtype=torch.int32, device=_device(model))
    dist.all_reduce(has, op=dist.ReduceOp.MAX, group=group)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p, wanted in zip(found, has.tolist(), strict=True):
        if wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            local = cast(Any, p.grad).to_local() if hasattr(p.grad, "to_local") else p.grad
            by_dtype.setdefault(local.dtype, []).append(local)
    for grads in by_dtype.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat, group=group)
        for g, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(summed.view_as(g))


class Context:
    """What the mixers of one model share: the processes, and what they have agreed on for the current call.

    Args:
        mesh: of one axis.
        chunks, check: as for :func:`context_parallel`.
    """

    def __init__(self, mesh: DeviceMesh, chunks: int, check: bool) -> None:
        self.group, self.chunks, self.check = mesh.get_group(), chunks, check
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self.begin()

    def begin(self) -> None:
        """A call of the model begins: nothing is known of its input."""
        self._lengths: list[int] = []
        self._mask: tuple[Tensor, Tensor] | None = None
        self._finite = Finite()

    def end(self) -> None:
        """A call of the model ends: every process raises ValueError if one of them met values that are not finite."""
        if self.check:
            self._finite.end(self.group, "what a projection gave to be mixed")

    def lengths(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int | None) -> list[int]:
        """Positions of each process, agreed on once a call.

        Raises:
            ValueError: on every process, if batch, dtype, packing or masking differ between them; or here, if this
                mixer's input has another length than the model's had.
        """
        if not self._lengths:
            packing = None if cu_seqlens is None else zlib.crc32(cu_seqlens.cpu().long().numpy().tobytes())
            numbers = {
                "positions": x.size(1),
                "batch size": x.size(0),
                "dtype (bytes)": x.dtype.itemsize,
                "a mask": int(mask is not None),
                "cu_seqlens (checksum)": -1 if packing is None else packing,
                "max_seqlen": -1 if longest is None else longest,
                "training": int(torch.is_grad_enabled()),
            }
            if self.check:
                self._lengths = check_same(numbers, self.group, x.device, each="positions")
            else:
                self._lengths = gather_numbers([x.size(1)], self.group, x.device)[:, 0].tolist()
        if self._lengths[self.rank] != x.size(1):
            raise ValueError(
                f"rank {self.rank} had {self._lengths[self.rank]} positions in this call of the model, and now "
                f"{x.size(1)}: call the model itself, or the mixer alone after context_parallel(mixer, mesh)"
            )
        return self._lengths

    def whole(self, mask: Tensor | None) -> Tensor | None:
        """The mask of whole rows, gathered once a call."""
        if mask is None:
            return None
        if self._mask is None or self._mask[0] is not mask:
            gathered = gather_uneven(mask.to(torch.uint8), self._lengths, self.group).bool()
            self._mask = mask, gathered
        return self._mask[1]

    def mix(self, name: str, mixer: Mixer, u: Tensor, mask: Tensor | None, **packing: Any) -> Tensor:
        """A mixer's outputs ``(B, n, D)`` for this process's positions."""
        lengths = self.lengths(u, mask, packing["cu_seqlens"], packing["max_seqlen"])
        keep = self.whole(mask)
        layers: Any = mixer
        z = ops.project(u, layers.in_proj, mask=mask)
        if self.check:
            self._finite.met(name, z)
        each = z.size(2) // mixer.parts // mixer.units
        pieces = self._pieces(mixer.units)
        channels = [[range(u.start * each, u.stop * each) for u in piece] for piece in pieces]
        coming = [ToChannels(z, mixer.parts, some, lengths, self.group, name) for some in channels]
        going = []
        for piece, some, arriving in zip(pieces, channels, coming, strict=True):
            core: Any = mixer.core(piece[self.rank])
            # Its class before it was spread; without hooks, which belong to the whole mixer.
            classes = type(mixer).__mro__
            before: Any = classes[classes.index(_MixesChannels) + 1]
            y = before.forward(core, arriving.wait(), mask=keep, **packing)
            going.append(ToPositions(y, some, lengths, self.group, name))
        back = [piece.wait() for piece in going]
        y = torch.cat([piece[rank] for rank in range(self.size) for piece in back], dim=2)
        return ops.project(y, layers.out_proj)

    def _pieces(self, units: int) -> list[list[range]]:
        """For each chunk, the units of each process in it."""
        shares = evenly(units, self.size)
        chunks = min(self.chunks, units // self.size)
        cut = [[range(s.start + p.start, s.start + p.stop) for p in evenly(len(s), chunks)] for s in shares]
        return [[share[chunk] for share in cut] for chunk in range(chunks)]


class _MixesChannels:
    """Put before the class of a mixer."""

    _context: Context
    _name: str

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """This process's positions; see :func:`context_parallel`."""
        if condition is not None:
            raise ValueError(f"{self._name} is spread over processes by context_parallel and takes no condition")
        if state is not None:
            raise ValueError(
                f"{self._name} is spread over processes by context_parallel and takes no state: decode with a model "
                "of the same weights that is not"
            )
        flat = u.dim() == 2 and cu_seqlens is not None
        x = u[None] if flat else u
        mixer: Any = self
        if x.dim() != 3 or x.size(2) != mixer.d_model or x.size(1) < 1:
            raise ValueError(f"{self._name}: expected (B, n, {mixer.d_model}) with n at least 1, got {tuple(u.shape)}")
        y = self._context.mix(self._name, mixer, x, mask, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return y[0] if flat else y


class _CountsPositions:
    """Put before the class of a model with learned positions."""

    _context: Context

    def _count(
        self, tokens: Tensor, keep: Tensor | None, cu_seqlens: Tensor | None, longest: int | None, state: Any
    ) -> Tensor:
        context = self._context
        lengths = context.lengths(tokens, keep, cu_seqlens, longest)
        whole = tokens.new_empty(()).expand(tokens.size(0), sum(lengths))
        parent: Any = super()
        at = parent._count(whole, context.whole(keep), cu_seqlens, longest, state)
        return at.narrow(-1, sum(lengths[: context.rank]), lengths[context.rank])


def _put_before(module: Any, before: type) -> None:
    """Changes a module's class to one that ``before`` is the first base of: names and weights stay."""
    kind: type = type(module)
    module.__class__ = _class_with(before, kind)


@functools.cache
def _class_with(before: type, kind: type) -> type:
    return type(f"ContextParallel{kind.__name__}", (before, kind), {"__module__": kind.__module__})


def _is_under(name: str, other: str) -> bool:
    return other == "" or name.startswith(other + ".")


def _check_can_spread(name: str, mixer: Mixer, mesh: DeviceMesh) -> None:
    if "_context" in mixer.__dict__:
        raise ValueError(f"{name} is spread over processes already")
    if mixer.units == 1:
        try:
            mixer.core(range(1))  # says why not, if there is a reason: on one process too, where a call would fail
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from e
    if mixer.units < mesh.size():
        raise ValueError(
            f"{name} has {mixer.units} heads or channels to mix, fewer than the {mesh.size()} processes of the mesh"
        )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
