"""Parts of weights as ``torch.distributed.checkpoint`` saves and loads them: rectangles of whole weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from hyena.distributed.splits import Split


class Pieces(Tensor):
    """A whole weight of which this process holds some rectangles, as views of its own memory.

    A ``DTensor`` holds one rectangle, and a process's channels of each part of a projection are several. Saved, it is a
    plain tensor of the whole shape; loaded, what belongs here is written into the views.

    Args:
        local: the entries of this process: a part of a weight, or under ``fully_shard`` a shard of that.
        split: how the weight is split along one axis.
    """

    __slots__ = ("_offsets", "_views")
    _views: list[Tensor]
    _offsets: list[tuple[int, ...]]

    @staticmethod
    def __new__(cls: type[Pieces], local: Any, split: Split) -> Pieces:
        shape = split.whole_shape(local)
        start = [0] * len(shape)
        if hasattr(local, "placements"):
            (chunk,) = local.__create_chunk_list__()
            start, local = list(chunk.offsets), local.to_local()
        local = local.detach()
        found = cls._of(shape, local)
        at = start[split.axis]
        for a, to, count in split.rectangles(at, at + local.size(split.axis)):
            if local.numel():
                found._views.append(local.narrow(split.axis, a - at, count))
                found._offsets.append((*start[: split.axis], to, *start[split.axis + 1 :]))
        return found

    @classmethod
    def _of(cls, shape: Any, like: Tensor) -> Pieces:
        found = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=like.dtype, device=like.device)
        found._views, found._offsets = [], []
        return found

    def __create_write_items__(self, fqn: str, whole: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offset), sizes=view.size())
            for offset, view in zip(self._offsets, self._views, strict=True)
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self._views[self._offsets.index(tuple(index.offset or ()))]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        if func is torch.ops.aten.new_empty.default:  # for an asynchronous checkpoint, which fills in the views then
            return cls._of(args[0].shape, torch.empty(0, dtype=args[0].dtype))
        raise TypeError(f"{func} on a weight of which a process holds pieces: it is for checkpoints alone")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pieces({tuple(self.shape)} at {self._offsets})"
