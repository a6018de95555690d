"""What the op tests run on: tiers, dtypes, memory layouts, masks, packed rows; and the comparison with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from helpers.oracle import Rows
from helpers.tolerances import TOLERANCE, error
from hyena import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 2, 3, 17, 63, 64, 65, 127, 1009, 4096, 8209]
LAYOUTS = ["contiguous", "channel_major", "sliced", "every_third", "skipping", "offset", "batch_inside", "expanded"]
# Lengths where a transform, a vector or a tile ends, and any other.
ANY_LENGTH = st.one_of(st.sampled_from([1, 2, 3, 7, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]), st.integers(1, 140))
MASKS = ["none", "random", "left", "right", "empty_row"]


@dataclass(frozen=True)
class Tier:
    """Where and by what the ops are computed."""

    name: str  # fallback, cpu or cuda
    device: str

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.name != "fallback":
            yield
            return
        with ops.fallback_only():
            yield


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal values that every dtype here holds exactly, so that one oracle serves all of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16).to(torch.float16).double()


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` (B, L, C) in memory as ``layout`` says ("expanded": those of its first row, repeated)."""
    if layout == "contiguous":
        return x.contiguous()
    b, length, c = x.shape
    if layout == "channel_major":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":  # the middle of wider rows
        view = x.new_full((b, length, c + 5), torch.nan)[..., 2 : 2 + c]
    elif layout == "every_third":  # no stride is 1
        view = x.new_full((b, length, 3 * c), torch.nan)[..., ::3]
    elif layout == "skipping":  # every second position of longer rows
        view = x.new_full((b, 2 * length, c), torch.nan)[:, 1::2]
    elif layout == "offset":  # an address that no vector load is aligned to
        view = x.new_full((b * length * c + 1,), torch.nan)[1:].view(b, length, c)
    elif layout == "batch_inside":
        view = x.new_full((length, b, c), torch.nan).transpose(0, 1)
    elif layout == "expanded":
        return x[:1].contiguous().expand(b, -1, -1)
    else:
        raise AssertionError(layout)
    return view.copy_(x)


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides of ``x`` where they have a meaning: 0 for a dimension of one entry, and all over an empty tensor."""
    return tuple(step if size > 1 and x.numel() else 0 for step, size in zip(x.stride(), x.shape, strict=True))


def natural_strides(z: Tensor, channels: int) -> tuple[int, ...]:
    """:func:`strides` of a dense (B, L, channels) tensor in the memory order of ``z``."""
    batch, length, c = z.shape
    if length > 1 and c > 1 and z.stride(1) == 1 and z.stride(2) != 1:
        room = -(-length // 8) * 8  # rows of memory order (B, C, L) are aligned
        return strides(z.new_empty(batch, channels, room)[..., :length].transpose(1, 2))
    return strides(z.new_empty(batch, length, channels))


def make_mask(kind: str, batch: int, length: int, seed: int = 0) -> Tensor | None:
    """A (B, L) mask, True = keep."""
    if kind == "none":
        return None
    at = torch.arange(length)
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(0, length + 1, (batch, 1), generator=generator)
    if kind == "left":
        return at >= length - size
    if kind == "right":
        return at < size
    mask = torch.rand(batch, length, generator=generator) < 0.6
    if kind == "empty_row":
        mask[-1] = False
    return mask


def offsets(sizes: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    """``cu_seqlens`` of rows of these sizes."""
    return torch.tensor([0, *sizes]).cumsum(0).to(dtype)


def rows_of(cu_seqlens: Tensor | None) -> Rows | None:
    """(start, end) of each row."""
    if cu_seqlens is None:
        return None
    at = cu_seqlens.tolist()
    return list(pairwise(at))


@dataclass
class Result:
    """An output and the gradient of every floating point input."""

    output: Tensor
    gradients: dict[str, Tensor]

    def dtypes(self) -> dict[str, torch.dtype]:
        """Of the output and of each gradient, under the names that errors have."""
        return {"output": self.output.dtype} | {"d " + name: g.dtype for name, g in self.gradients.items()}


def run(fn: Callable[..., Tensor], inputs: dict[str, Tensor | None], dy: Tensor) -> Result:
    """Calls ``fn`` and differentiates it; ``dy`` is the gradient of its output."""
    leaves = {
        name: t.detach().requires_grad_() if t is not None and t.is_floating_point() else t
        for name, t in inputs.items()
    }
    output = fn(**leaves)
    wanted = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    # Order 1 without a value filter has no taps to reach.
    unused = {name: torch.zeros_like(t) for name, t in wanted.items() if t.numel() == 0}
    wanted = {name: t for name, t in wanted.items() if name not in unused}
    found = torch.autograd.grad(output, list(wanted.values()), dy)
    return Result(output.detach(), dict(zip(wanted, found, strict=True)) | unused)


@dataclass
class Judge:
    """The oracle's output and gradients, and their sizes."""

    want: Result
    size: Result

    @classmethod
    def of(cls, oracle: Callable[..., Tensor], inputs: dict[str, Tensor | None], dy: Tensor) -> Judge:
        """Runs the oracle on float64 CPU inputs, and on their squares."""
        squares = {name: t.square() if t is not None and t.is_floating_point() else t for name, t in inputs.items()}
        return cls(run(oracle, inputs, dy), run(oracle, squares, dy.square()))

    def errors(self, got: Result, measure: Callable[[Tensor, Tensor, Tensor], float] = error) -> dict[str, float]:
        """Error of the output and of each gradient (see ``tolerances.py``)."""
        assert got.gradients.keys() == self.want.gradients.keys()
        result = {"output": measure(got.output, self.want.output, self.size.output)}
        for name, g in got.gradients.items():
            result["d " + name] = measure(g, self.want.gradients[name], self.size.gradients[name])
        return result

    def check(self, got: Result, allowed: dict[str, float] | None = None) -> None:
        """Fails where an error is above the tolerance of the tensor, or of the arithmetic if that is coarser.

        Args:
            allowed: errors that are allowed under some names, if that is more.
        """
        arithmetic = TOLERANCE[torch.promote_types(got.output.dtype, torch.float32)]
        limits = {
            name: max(TOLERANCE[dtype], arithmetic, (allowed or {}).get(name, 0.0))
            for name, dtype in got.dtypes().items()
        }
        wrong = {name: f"{e:.1e} > {limits[name]:.1e}" for name, e in self.errors(got).items() if not e <= limits[name]}
        assert not wrong, wrong


def place(
    inputs: dict[str, Tensor | None],
    tier: Tier,
    dtype: torch.dtype,
    layouts: dict[str, str] | None = None,
    **own: torch.dtype,
) -> dict[str, Tensor | None]:
    """``inputs`` on the tier's device in ``dtype`` (or a dtype of their own), laid out in memory as asked."""
    placed: dict[str, Tensor | None] = {}
    for name, t in inputs.items():
        if t is not None:
            t = t.to(tier.device, own.get(name, dtype) if t.is_floating_point() else t.dtype)
            if layouts and name in layouts:
                t = laid_out(t, layouts[name])
        placed[name] = t
    return placed


def compare(
    fn: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    inputs: dict[str, Tensor | None],
    dy: Tensor,
    tier: Tier,
    dtype: torch.dtype,
    layouts: dict[str, str] | None = None,
    judge: Judge | None = None,
    ordered: bool = True,
    allowed: dict[str, float] | None = None,
    **own: torch.dtype,
) -> Result:
    """``fn`` on a tier against ``oracle``: the output, every gradient, and the memory order of the output.

    Args:
        fn, oracle: take ``inputs`` as keywords; the first of them is the one whose dtype and memory order rule.
        inputs: float64 on the CPU.
        dy: gradient of the output, laid out as ``layouts["dy"]``.
        tier, dtype, layouts, own: as in :func:`place`.
        judge: what ``oracle`` said of these inputs, if it was asked before.
        ordered: whether the output is to have the memory order of the first input.
        allowed: as in :meth:`Judge.check`.
    """
    layouts = layouts or {}
    first = next(iter(inputs))
    if layouts.get(first) == "expanded":
        inputs = {**inputs, first: laid_out(inputs[first], "expanded")}
    judge = judge or Judge.of(oracle, inputs, dy)
    placed = place(inputs, tier, dtype, layouts, **own)
    with tier():
        got = run(fn, placed, laid_out(dy.to(tier.device, dtype), layouts.get("dy", "contiguous")))
    assert got.output.dtype == dtype
    if ordered:
        assert strides(got.output) == natural_strides(placed[first], got.output.size(2))
    for name, g in got.gradients.items():
        assert g.dtype == placed[name].dtype, name
    judge.check(got, allowed)
    return got
