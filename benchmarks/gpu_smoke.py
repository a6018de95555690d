"""Whether the CUDA kernels are right: every op, dtype and kind of plan against float64, in about a minute.

    python gpu_smoke.py [--tiny] [--dry-run]

Each case compares the output and every gradient with the fallback's in float64, beside the error of the fallback in
the case's own dtype; memory that an op leaves unwritten is NaN. Then: the same call twice (same bits), another stream,
a CUDA graph, packed rows at unaligned offsets, a masked row. Prints a line a case and, last, GO or what is wrong; the
exit status is the number of wrong cases.

``--tiny`` is for compute-sanitizer, which slows kernels down a hundred times. ``--dry-run`` runs on the CPU.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hyena import ops

LENGTHS = [
    1,
    17,
    63,
    64,
    65,
    1000,
    1024,
    2048,
    4096,
    4099,
    8192,
    8640,
    12288,
    16384,
    20000,
    24576,
    30000,
    65536,
    100000,
]
TINY = [64, 1000, 4096, 30000]
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# A kernel's error may be so many times twice the fallback's and an eps: sums of a few entries need it.
FACTOR = 4

Inputs = dict[str, Tensor]


def rand(*shape: int, device: str) -> Tensor:
    """Normal numbers that every dtype holds exactly."""
    return torch.randn(*shape, device=device).to(torch.bfloat16).to(torch.float16).double()


def rows(batch: int, length: int, channels: int, device: str) -> Tensor:
    """``(B, L, C)`` in memory as ``(B, C, L)``."""
    return rand(batch, channels, length, device=device).transpose(1, 2)


def gated_conv(x: Inputs, size: int, **more: Tensor) -> Tensor:
    """The op and the spectrum it needs, so that the gradient arrives at the taps."""
    spectrum = ops.filter_spectrum(x["h"], size)
    return ops.gated_conv(x["v"], spectrum[0], x["d"], x["pre"], x["post"], **more)


def recurrence(x: Inputs, size: int, **more: Tensor) -> Tensor:
    """A mixing step of order 2."""
    spectrum = ops.filter_spectrum(x["h"], size)
    return ops.recurrence(x["z"], x["weight"], x["bias"], spectrum, x["d"][None], **more)


def direct_conv(x: Inputs, size: int, **more: Tensor) -> Tensor:
    """The convolution tap by tap."""
    return ops.direct_conv(x["v"], x["h"][0, :size], x["d"], x["pre"], x["post"], **more)


def inputs(op: str, batch: int, length: int, channels: int, device: str) -> Inputs:
    """Float64 inputs of an op; filters of norm about 1."""
    make = partial(rows, batch, length, device=device)
    x: Inputs = {"h": rand(1, length, channels, device=device) * 2.0 ** -round(math.log2(length) / 2)}
    x["d"] = rand(channels, device=device)
    if op == "recurrence":
        x |= {"z": make(3 * channels), "weight": rand(3 * channels, 3, device=device)}
        x["bias"] = rand(3 * channels, device=device)
    else:
        x |= {name: make(channels) for name in ("v", "pre", "post")}
    return x


PARAMETERS = ("h", "d", "weight", "bias")


def both_ways(call: Callable[[Inputs], Tensor], x: Inputs, dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The output and the gradient of each input, computed in a dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {n: t.to(wide if n in PARAMETERS else dtype).requires_grad_() for n, t in x.items()}
    y = call(leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))
    return {"y": y.detach()} | {"d " + n: g for n, g in zip(leaves, grads, strict=True)}


def error(got: Tensor, want: Tensor) -> float:
    """Root mean square error, as a share of the size."""
    size = want.square().mean().sqrt().item()
    return (got.double() - want).square().mean().sqrt().item() / max(size, 1e-300)


def compare(call: Callable[[Inputs], Tensor], x: Inputs, dy: Tensor, dtype: torch.dtype) -> str:
    """What is wrong, or nothing."""
    got = both_ways(call, x, dy, dtype)
    with ops.fallback_only():
        exact, plain = both_ways(call, x, dy, torch.float64), both_ways(call, x, dy, dtype)
    wrong = []
    for name, t in got.items():
        # The direct kernels' gradients of parameters are as exact as operands rounded to float16.
        limit = FACTOR * (2 * error(plain[name], exact[name]) + torch.finfo(t.dtype).eps)
        if name in ("d h", "d d") and dtype != torch.float32:
            limit = max(limit, torch.finfo(torch.float16).eps)
        found = error(t, exact[name])
        if not found <= limit:
            wrong.append(f"{name} {found:.2g} > {limit:.2g}")
    return ", ".join(wrong)


def cases(lengths: list[int], tiny: bool, device: str) -> list[tuple[str, Callable[[], str]]]:
    """Every case with its name."""
    found: list[tuple[str, Callable[[], str]]] = []
    batch, channels = (2, 3) if tiny else (3, 5)
    calls = {"gated_conv": gated_conv, "recurrence": recurrence}
    direct = device == "cpu" or ops.has_kernel("direct_conv", torch.device(device))

    def whole(op: str, length: int, dtype: torch.dtype) -> str:
        x, dy = inputs(op, batch, length, channels, device), rows(batch, length, channels, device)
        return compare(partial(calls[op], size=ops.transform_length(length)), x, dy, dtype)

    def few_taps(length: int, taps: int, dtype: torch.dtype, many: int) -> str:
        x, dy = inputs("direct_conv", many, length, channels, device), rows(many, length, channels, device)
        return compare(partial(direct_conv, size=taps), x, dy, dtype)

    def special(kind: str, length: int, dtype: torch.dtype) -> str:
        return SPECIAL[kind](length, dtype, device)

    for dtype in (torch.bfloat16,) if tiny else (torch.bfloat16, torch.float16, torch.float32):
        for length in lengths:
            for op in calls:
                found.append((f"{op} {NAMES[dtype]} L={length}", partial(whole, op, length, dtype)))
        if direct:
            for length, taps, many in DIRECT[:4] if tiny or device == "cpu" else DIRECT:
                what = f"direct_conv {NAMES[dtype]} {many} x {length}, {taps} taps"
                found.append((what, partial(few_taps, length, taps, dtype, many)))
    if not tiny:
        for kind in SPECIAL:
            for length in (1000, 4096, 30000) if device != "cpu" else (100,):
                for dtype in (torch.bfloat16, torch.float32):
                    found.append((f"{kind} {NAMES[dtype]} L={length}", partial(special, kind, length, dtype)))
    return found


DIRECT = [(1, 1, 3), (17, 17, 3), (127, 7, 16), (128, 128, 17), (129, 129, 3), (200, 7, 3), (256, 100, 3),
          (1000, 1000, 16), (1024, 1024, 20), (2048, 2048, 16), (2048, 512, 1), (4099, 7, 3), (4099, 128, 3),
          (16384, 512, 1), (30000, 129, 2)]  # fmt: skip


def again(length: int, dtype: torch.dtype, device: str) -> str:
    """The same call twice: the same bits."""
    x, dy = inputs("recurrence", 3, length, 5, device), rows(3, length, 5, device)
    first, second = (both_ways(partial(recurrence, size=ops.transform_length(length)), x, dy, dtype) for _ in range(2))
    return ", ".join(f"{n} differs" for n in first if not torch.equal(first[n], second[n]))


def stream(length: int, dtype: torch.dtype, device: str) -> str:
    """In another stream, behind work that makes its input."""
    if device == "cpu":
        return ""
    x, size = inputs("gated_conv", 3, length, 5, device), ops.transform_length(length)
    cast = {n: t.to(torch.float32 if n in PARAMETERS else dtype) for n, t in x.items()}
    want, late, side = gated_conv(cast, size), torch.zeros_like(cast["v"]), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(cast["v"])
        got = gated_conv(cast | {"v": late}, size)
    side.synchronize()
    return "" if torch.equal(got, want) else "differs"


def graph(length: int, dtype: torch.dtype, device: str) -> str:
    """Captured and replayed on other numbers."""
    if device == "cpu":
        return ""
    x, size = inputs("gated_conv", 3, length, 5, device), ops.transform_length(length)
    cast = {n: t.to(torch.float32 if n in PARAMETERS else dtype) for n, t in x.items()}
    gated_conv(cast, size)
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        y = gated_conv(cast, size)
    cast["v"].copy_(torch.randn_like(cast["v"]))
    recorded.replay()
    want = gated_conv(cast, size)
    return "" if torch.equal(y, want) else "differs"


def packed(length: int, dtype: torch.dtype, device: str) -> str:
    """Packed rows at offsets that are no multiples of 8."""
    third = length // 3
    at = torch.tensor([0, 1, 1 + third, 1 + third, length], device=device)
    x, dy = inputs("recurrence", 1, length, 5, device), rows(1, length, 5, device)
    return compare(partial(recurrence, size=ops.transform_length(length), cu_seqlens=at), x, dy, dtype)


def masked(length: int, dtype: torch.dtype, device: str) -> str:
    """Rows with positions that do not count."""
    mask = torch.rand(3, length, device=device) < 0.7
    x, dy = inputs("recurrence", 3, length, 5, device), rows(3, length, 5, device)
    return compare(partial(recurrence, size=ops.transform_length(length), mask=mask), x, dy, dtype)


SPECIAL = {f.__name__: f for f in (again, stream, graph, packed, masked)}


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few cases, for compute-sanitizer")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    print(ops.backend_report(), flush=True)
    lengths = TINY if args.tiny else LENGTHS
    wrong, began = 0, time.perf_counter()
    every = [c for c in cases(lengths[:2] if args.dry_run else lengths, args.tiny, device) if args.only in c[0]]
    for what, run in every:
        try:
            found = run()
            if device != "cpu":
                torch.cuda.synchronize()
        except Exception as failed:
            found = f"{type(failed).__name__}: {failed}"[:400]
        wrong += found != ""
        print(f"{time.perf_counter() - began:6.1f} s  {what}: {found or 'ok'}", flush=True)
        if "CUDA error" in found:
            print("the device is not to be relied on after this")
            break
    print(f"STOP: {wrong} wrong" if wrong else f"GO ({len(every)} cases)")
    sys.exit(min(wrong, 100))


if __name__ == "__main__":
    main()
