"""How fast is the Hyena operator, beside its own projections, its fallback, and attention?

    python benchmarks/speed.py [--device cpu] [--shapes 256x1024 768x8192 …] [--quick]

Prints a table, writes ``results/speed-<processor>.json`` (``speed-amd-epyc``) and draws a plot of it beside it. Every
speed is a ratio of medians of calls that took turns in this run. A batch holds 16K tokens, or one longer row.

Columns: ``op/proj`` the operator over its two projections alone, as ``nn.Linear`` has them, in eval mode (filters
cached) and in training (forward and backward, filters generated); ``op/own proj`` the same over its projections by
``hyena::project``, which has a matrix product of its own where torch's is slow; ``fallback/kernel`` the mixing step;
``sdpa/op`` causal attention with heads of 64 and projections of the same width over the operator; ``bf16/fp32`` the
operator's time; ``recurrence bound/time`` how near the mixing step is to what the machine's matrix products and copies
allow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import interleaved, machine, peak_bytes, table, write
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import HyenaOperator, ops

TOKENS = 16384
HEAD = 64
MODES = ("eval", "train")
SHAPES = [(256, n) for n in (256, 512, 1024, 2048, 4096, 8192, 16384, 65536)] + [(768, n) for n in (1024, 8192, 65536)]
# Attention beyond this length is timed in eval mode only, once, and not beyond width 256: it takes minutes.
LONG = 16384


class Attention(nn.Module):
    """Causal self-attention with a query, key and value projection and an output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(u).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, 64)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def fallback(op: Any, *args: Any) -> Any:
    """The plain PyTorch version of an op, whatever kernels are registered."""
    with ops.fallback_only():
        return op(*args)


def cases(width: int, length: int, device: str, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    batch = max(1, TOKENS // length)
    op = HyenaOperator(width, length, device=device)
    attention = Attention(width).to(device)
    u = torch.randn(batch, length, width, device=device)
    row: dict[str, Any] = {"D": width, "L": length, "B": batch}

    def projections() -> None:
        op.in_proj(u)
        op.out_proj(u)

    def own_projections() -> None:
        ops.project(u, op.in_proj)
        ops.project(u, op.out_proj)

    op.eval()
    attention.eval()
    with torch.no_grad():
        # As the operator's mixing step gets it, and the fallback, which has no order of its own.
        (z, z_bias), rows = ops.project_for_mixing(u, op.in_proj, width), op.in_proj(u)
        spectrum = op.conv.spectrum(length)
        arguments = (op.short.weight, op.short.bias, spectrum, op.conv.bias, None, None, z_bias, False)
        plain = fallback(torch.ops.hyena.filter_spectrum, op.conv.filter(length), ops.transform_length(length), True)
        plain_args = (op.short.weight, op.short.bias, plain, op.conv.bias, None, None, None, False)
        times = interleaved(
            {
                "projections": projections,
                "own projections": own_projections,
                "operator": lambda: op(u),
                "recurrence": lambda: torch.ops.hyena.recurrence(z, *arguments),
            },
            repeats=repeats,
            device=device,
        )
        slow = interleaved(
            {
                "operator": lambda: op(u),
                "recurrence": lambda: torch.ops.hyena.recurrence(z, *arguments),
                "fallback": lambda: fallback(torch.ops.hyena.recurrence, rows, *plain_args),
            },
            repeats=max(1, repeats // 2),
            device=device,
        )
        attend = length <= LONG or width <= 256
        against = interleaved(
            {"operator": lambda: op(u)} | ({"sdpa": lambda: attention(u)} if attend else {}),
            repeats=1 if length > LONG else max(1, repeats // 2),
            device=device,
        )
        if length > LONG:  # one call is enough of attention, and too little of the operator
            against["operator"] = times["operator"]
        row |= {
            "recurrence ms": times["recurrence"] * 1e3,
            "eval op/proj": times["operator"] / times["projections"],
            "eval op/own proj": times["operator"] / times["own projections"],
            "eval fallback/kernel": slow["fallback"] / slow["recurrence"],
            "eval sdpa/op": against["sdpa"] / against["operator"] if attend else None,
            "eval ktok/s": batch * length / times["operator"] / 1e3,
            "eval MB": _megabytes(peak_bytes(lambda: op(u), device)),
            "eval sdpa MB": _megabytes(peak_bytes(lambda: attention(u), device)) if attend else None,
        }
        half, u_half = HyenaOperator(width, length, device=device, dtype=torch.bfloat16).eval(), u.bfloat16()
        both = interleaved(
            {"float": lambda: op(u), "half": lambda: half(u_half)}, repeats=max(1, repeats // 2), device=device
        )
        row["bf16/fp32"] = both["half"] / both["float"]
    mixing = ((z, z_bias, spectrum), (rows, None, plain))
    return row | training(op, attention, u, mixing, device, repeats)


def training(
    op: HyenaOperator,
    attention: Attention,
    u: Tensor,
    mixing: tuple[tuple[Tensor, Tensor | None, Tensor], ...],
    device: str,
    repeats: int,
) -> dict[str, Any]:
    """Forward and backward; ``mixing``: ``z``, its bias and spectra of the kernel, and of the fallback."""
    op.train()
    attention.train()
    length = u.size(1)
    u = u.detach().requires_grad_()
    grad, grad_z = torch.randn_like(u), torch.randn(*u.shape[:2], 3 * u.size(2), device=device)

    def projections() -> None:
        torch.autograd.backward((op.in_proj(u), op.out_proj(u)), (grad_z, grad))

    def own_projections() -> None:
        torch.autograd.backward((ops.project(u, op.in_proj), ops.project(u, op.out_proj)), (grad_z, grad))

    def step(layer: nn.Module) -> Callable[[], None]:
        return lambda: layer(u).backward(grad)

    short, d = (op.short.weight.detach(), op.short.bias.detach()), op.conv.bias.detach()

    def both(call: Callable[..., Any], z: Tensor, z_bias: Tensor | None, s: Tensor) -> Callable[[], None]:
        arguments, dy = (z, *short, s, d, None, None, z_bias, False), ops.to_order_of(grad, z)

        def run() -> None:
            call(torch.ops.hyena.recurrence, *arguments)
            call(torch.ops.hyena.recurrence_backward, dy, *arguments)

        return run

    kernel, plain = both(lambda f, *a: f(*a), *mixing[0]), both(fallback, *mixing[1])
    times = interleaved(
        {"projections": projections, "own projections": own_projections, "operator": step(op)},
        repeats=repeats,
        device=device,
    )
    few = max(1, repeats // 2)
    slow = interleaved({"recurrence": kernel, "fallback": plain}, repeats=few, device=device)
    attend = length <= LONG
    against = interleaved(
        {"operator": step(op)} | ({"sdpa": step(attention)} if attend else {}),
        repeats=few,
        device=device,
    )
    return {
        "train op/proj": times["operator"] / times["projections"],
        "train op/own proj": times["operator"] / times["own projections"],
        "train fallback/kernel": slow["fallback"] / slow["recurrence"],
        "train sdpa/op": against["sdpa"] / against["operator"] if attend else None,
        "train MB": _megabytes(peak_bytes(step(op), device)),
    }


def threads(width: int, length: int, repeats: int) -> float:
    """Time of the mixing step on one thread over that on two: medians of runs of calls that took turns."""
    op = HyenaOperator(width, length).eval()
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {1: [], 2: []}
    with torch.no_grad():
        u = torch.randn(max(1, TOKENS // length), length, width)
        z, z_bias = ops.project_for_mixing(u, op.in_proj, width)
        short, spectrum = (op.short.weight, op.short.bias), op.conv.spectrum(length)

        def run() -> None:
            torch.ops.hyena.recurrence(z, *short, spectrum, op.conv.bias, None, None, z_bias, False)

        for _ in range(repeats):
            for count, found in times.items():
                # A change of the number of threads makes new ones, which come to the first call.
                torch.set_num_threads(count)
                found.append(interleaved({"recurrence": run}, repeats=repeats)["recurrence"])
    torch.set_num_threads(before)
    return median(times[1]) / median(times[2])


def roofline(device: str) -> dict[str, float]:
    """Rates the machine reaches: matrix products (GFLOP/s) and copies (GB/s, read and written)."""
    a = torch.randn(2048, 2048, device=device)
    long = torch.randn(1 << 25, device=device)
    to = torch.empty_like(long)
    times = interleaved({"matmul": lambda: a @ a, "copy": lambda: to.copy_(long)}, repeats=5, device=device)
    return {"matmul GFLOP/s": 2 * 2048**3 / times["matmul"] / 1e9, "copy GB/s": 8 * long.numel() / times["copy"] / 1e9}


def mixing_bound(row: dict[str, Any], rates: dict[str, float]) -> float:
    """Milliseconds that the mixing step of a row takes at least, at the machine's own rates.

    Two complex transforms of ``P >= L`` points for each row and channel, ``5 P log2 P`` operations each, at the rate of
    matrix products; and three reads and one write of ``B L D`` numbers, at that of copies.
    """
    channels, points = row["B"] * row["D"], ops.transform_length(row["L"])
    arithmetic = channels * 2 * 5 * points * math.log2(points) / (rates["matmul GFLOP/s"] * 1e9)
    traffic = channels * row["L"] * 4 * 4 / (rates["copy GB/s"] * 1e9)
    return max(arithmetic, traffic) * 1e3


def crossover(rows: list[dict[str, Any]], width: int, mode: str) -> int | None:
    """The least length measured from which on the operator is faster than attention."""
    found = None
    for row in sorted((r for r in rows if r["D"] == width), key=lambda r: -r["L"]):
        ratio = row[f"{mode} sdpa/op"]
        if ratio is not None and ratio <= 1:
            break
        found = row["L"] if ratio is not None else found
    return found


def import_seconds(repeats: int) -> float:
    """What ``import hyena`` takes beyond ``import torch``, with the bytecode that an installation has."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)

    times = interleaved({"torch": run("import torch"), "hyena": run("import torch, hyena")}, repeats=repeats)
    return times["hyena"] - times["torch"]


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def plot(path: Path) -> Path:
    """Draws the record at ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    record = json.loads(path.read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for width in sorted({row["D"] for row in record["rows"]}):
        rows = [row for row in record["rows"] if row["D"] == width]
        lengths = [row["L"] for row in rows]
        left.plot(lengths, [row["eval op/proj"] for row in rows], marker="o", label=f"eval, D={width}")
        left.plot(lengths, [row["train op/proj"] for row in rows], marker="o", ls="--", label=f"training, D={width}")
        for mode, style in zip(MODES, ("-", "--"), strict=True):
            pairs = [(row["L"], row[f"{mode} sdpa/op"]) for row in rows if row[f"{mode} sdpa/op"] is not None]
            right.plot(*zip(*pairs, strict=True), marker="o", ls=style, label=f"{mode}, D={width}")
    left.set(title="operator over its two projections alone", xlabel="length", ylabel="time ratio", xscale="log")
    right.set(title="attention over operator", xlabel="length", ylabel="time ratio", xscale="log", yscale="log")
    right.axhline(1, color="grey", lw=0.8)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle(f"{record['machine']['device']}, {record['machine']['threads']} threads")
    figure.tight_layout()
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=110)
    return out


def file_name(device: str) -> str:
    """``Intel(R) Xeon(R) Processor`` as ``intel-xeon``."""
    words = re.sub(r"\((R|TM)\)|processor|cpu|@.*", " ", device, flags=re.IGNORECASE)
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()))


def main() -> None:
    """Measures, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", help="width x length, as 256x1024")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two shapes, three repeats")
    args = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes] if args.shapes else SHAPES
    if args.quick:
        shapes, args.repeats = [(256, 512), (256, 1024)], 3
    print(ops.backend_report())
    rows = []
    for i, (width, length) in enumerate(shapes, 1):
        rows.append(cases(width, length, args.device, args.repeats))
        print(f"-- {i} of {len(shapes)}\n{table(rows[-1:])}", flush=True)
    rates = roofline(args.device)
    for row in rows:
        row["recurrence bound/time"] = mixing_bound(row, rates) / row["recurrence ms"]
    record: dict[str, Any] = {"machine": machine(args.device), "roofline": rates, "rows": rows}
    record["faster than attention from L"] = {
        f"D={width} {mode}": crossover(rows, width, mode) for width in sorted({d for d, _ in shapes}) for mode in MODES
    }
    record["import s"] = import_seconds(args.repeats)
    if args.device == "cpu" and torch.get_num_threads() >= 2:
        record["threads 1->2"] = {f"D={d} L={n}": threads(d, n, args.repeats) for d, n in shapes if n >= 1024}
    path = write(f"speed-{file_name(record['machine']['device'])}", record)
    print("\n" + table(rows))
    print({k: v for k, v in record.items() if k != "rows"})
    print(f"\nwrote {path} and {plot(path)}")


if __name__ == "__main__":
    main()
