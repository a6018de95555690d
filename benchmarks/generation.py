"""What a token costs when text is made one token at a time, against the context that came before.

    python benchmarks/generation.py            # 1K to 64K, batch 1 and 16
    python benchmarks/generation.py --quick    # 1K to 8K

One layer of D channels, from the input of a position to its output, on one thread: Hyena by exact steps (every step of
one decode is timed, and steps with tiles of one size count as their median), by a dot product over the history (naive),
distilled, and run again over the whole context; and attention with a cache of keys and values. The projections, which
all of them have, are timed alone and subtracted for the ratio of mixing times. Totals of a decode are sums of all its
steps for exact, and for the others integrals over the contexts measured. Writes results/generation.json and
results/generation.png.

Dimensions: B batch, C context, D channels, T longest context.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from measure import RESULTS, interleaved, machine, write
from torch import Tensor

from hyena import HyenaOperator
from hyena.generation import ModalFilter, state_size
from hyena.generation.filters import BLOCK
from hyena.generation.model import attend, init_attention
from hyena.models import Attention
from hyena.ops import backend_report

HEADS = 4
METHODS = ("exact", "naive", "distilled", "rerun", "attention")


class Naive:
    """Cached decoding of an order-2 operator as others have it: a dot product of taps and history for each token."""

    def __init__(self, op: HyenaOperator, batch: int, length: int) -> None:
        self.op, self.length = op, length
        h = op.filter(length)[0]  # (T, D)
        h[0] += op.filter_bias[0]
        self.taps = h.flip(0).contiguous()
        self.history = torch.randn(batch, length, op.width)
        # The same with time last; whichever order is faster at a context is taken.
        self.taps_last, self.history_last = self.taps.t().contiguous(), self.history.transpose(1, 2).contiguous()
        self.short = torch.zeros(batch, op.short_weight.size(1) - 1, op.short_weight.size(0))

    def step(self, u: Tensor, t: int, *, time_last: bool) -> Tensor:
        op = self.op
        z = torch.cat([self.short, op.in_proj(u)[:, None]], dim=1)
        self.short.copy_(z[:, 1:])
        x, gate, v = ((z * op.short_weight.t()).sum(1) + op.short_bias).chunk(3, dim=1)
        p = gate * v
        if time_last:
            self.history_last[..., t] = p
            y = torch.linalg.vecdot(self.history_last[..., : t + 1], self.taps_last[:, self.length - t - 1 :])
        else:
            self.history[:, t] = p
            y = (self.history[:, : t + 1] * self.taps[self.length - t - 1 :]).sum(1)
        return op.out_proj(x * y)


def medians_ms(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each; fewer repeats where one round takes long."""
    start = time.perf_counter()
    for function in functions.values():
        function()
    repeats = min(repeats, max(3, int(2.0 / (time.perf_counter() - start))))
    return {name: 1e3 * seconds for name, seconds in interleaved(functions, repeats=repeats).items()}


def decode_ms(op: HyenaOperator, batch: int, length: int) -> list[float]:
    """Milliseconds of every step of a decode of ``length`` tokens."""
    state, u = op.init_state(batch, length), torch.randn(batch, op.d_model)
    times = []
    for _ in range(length):
        start = time.perf_counter()
        op.step(u, state)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def mean_ms(steps: list[float], block: int) -> float:
    """Mean of a decode's steps, each counted as the median of those with a tile of the same size.

    Steps with the same tile do the same work; what differs between them is what else the machine does.
    """
    same = defaultdict(list)
    for i, ms in enumerate(steps):
        blocks = (i + 1) // block if (i + 1) % block == 0 else 0
        same[blocks & -blocks].append(ms)
    return sum(len(group) * statistics.median(group) for group in same.values()) / len(steps)


def total_ms(contexts: list[int], each: list[float], length: int) -> float:
    """A decode's total from per-token costs at some contexts, linear between them and proportional below the first."""
    points = [(0, each[0]), *zip(contexts, each)]
    total = 0.0
    for (a, x), (b, y) in pairwise(points):
        stop = min(b, length)
        if stop > a:
            total += (stop - a) * (x + (x + (y - x) * (stop - a) / (b - a))) / 2
    return total


def measure(batch: int, contexts: list[int], width: int, order: int, quick: bool) -> list[dict]:
    longest, repeats = contexts[-1], 10 if quick else 30
    op = HyenaOperator(width, longest).eval()
    small = HyenaOperator(width, longest, filter=ModalFilter(width, 1, order, longest)).eval()
    attention = Attention(width, HEADS).eval()
    u = torch.randn(batch, width)
    projections = medians_ms({"": lambda: op.out_proj(op.in_proj(u)[:, :width])}, 300)[""]

    steps = decode_ms(op, batch, longest)
    naive = Naive(op, batch, longest)
    distilled = small.init_state(batch)
    cache = init_attention(attention, batch, longest)
    cache.keys.normal_()
    cache.values.normal_()
    cache.keep.fill_(True)

    def attention_step(c: int) -> Tensor:
        cache.position = c - 1
        return attend(attention, u[:, None], cache)

    def distilled_step(c: int) -> Tensor:
        distilled.position = c - 1
        return small.step(u, distilled)[0]

    flat = medians_ms({str(c): lambda c=c: distilled_step(c) for c in contexts}, 20 * repeats)
    rows = []
    for c in contexts:
        cached = medians_ms(
            {
                "naive": lambda c=c: naive.step(u, c - 1, time_last=False),
                "naive, time last": lambda c=c: naive.step(u, c - 1, time_last=True),
                "attention": lambda c=c: attention_step(c),
            },
            repeats,
        )
        whole = torch.randn(1, c, width)
        upto = steps[:c]
        rows.append(
            {
                "batch": batch,
                "context": c,
                "projections_ms": projections,
                "exact_ms": mean_ms(upto, BLOCK),
                "exact_mean_ms": sum(upto) / c,
                "exact_median_ms": statistics.median(upto),
                "exact_worst_ms": max(upto),
                "naive_ms": min(cached["naive"], cached["naive, time last"]),
                "distilled_ms": flat[str(c)],
                # Rows cost alike; one is enough, and sixteen of the longest would be most of this benchmark's time.
                "rerun_ms": batch * medians_ms({"": lambda w=whole: op(w)}, 3)[""],
                "attention_ms": cached["attention"],
                "exact_bytes": state_size(op, batch, c).rows,
                "exact_shared_bytes": state_size(op, batch, c).shared,
                "naive_bytes": 4 * batch * width * c,
                "distilled_bytes": state_size(small, batch, c).rows,
                "rerun_bytes": 4 * batch * width * c,
                "attention_bytes": 8 * batch * width * c,
            }
        )
    for i, row in enumerate(rows):
        c = row["context"]
        before = [r["context"] for r in rows[: i + 1]]
        for name in ("naive", "distilled", "rerun", "attention"):
            row[f"{name}_total_ms"] = total_ms(before, [r[f"{name}_ms"] for r in rows[: i + 1]], c)
        row["exact_total_ms"] = c * row["exact_ms"]
        mixing = {m: row[f"{m}_total_ms"] - c * projections for m in ("exact", "naive")}
        row["naive_over_exact_mixing"] = mixing["naive"] / mixing["exact"]
        row["attention_over_exact"] = row["attention_ms"] / row["exact_ms"]
        row["attention_over_exact_total"] = row["attention_total_ms"] / row["exact_total_ms"]
    return rows


def bars(rows: list[dict]) -> list[tuple[str, float, str, bool]]:
    """What is asked of these numbers: (what, value, limit, whether it holds)."""
    out = []
    for batch in sorted({r["batch"] for r in rows}):
        mine = {r["context"]: r for r in rows if r["batch"] == batch}
        first, last = mine[min(mine)], mine[max(mine)]
        start = mine.get(4096, first)
        middle = mine.get(32768, last)
        growth = last["exact_ms"] / start["exact_ms"]
        flat = max(r["distilled_ms"] for r in mine.values()) / min(r["distilled_ms"] for r in mine.values())
        ratio = min(r["attention_over_exact_total"] for c, r in mine.items() if c >= start["context"])
        now = min(r["attention_over_exact"] for c, r in mine.items() if c >= start["context"])
        label = f"batch {batch}: "
        naive = middle["naive_over_exact_mixing"]
        out += [
            (
                f"{label}mixing time of a decode of {middle['context']} tokens, naive / exact",
                naive,
                ">= 10",
                naive >= 10,
            ),
            (
                f"{label}step at the context, attention / mean exact, least from {start['context']} on",
                now,
                "> 1",
                now > 1,
            ),
            (f"{label}whole decode, attention / exact, least from {start['context']} on", ratio, "> 1", ratio > 1),
            (
                f"{label}exact cost of a token, {last['context']} / {start['context']}",
                growth,
                "<= 2.5",
                growth <= 2.5,
            ),
            (f"{label}distilled step, largest / smallest over contexts", flat, "<= 1.1", flat <= 1.1),
        ]
    return out


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({r["batch"] for r in rows})
    figure, axes = plt.subplots(1, len(batches) + 1, figsize=(5 * (len(batches) + 1), 4))
    for axis, batch in zip(axes, batches):
        mine = [r for r in rows if r["batch"] == batch]
        for name in METHODS:
            axis.loglog([r["context"] for r in mine], [r[f"{name}_ms"] for r in mine], marker="o", label=name)
        axis.set(title=f"batch {batch}", xlabel="context (tokens)", ylabel="ms per token")
        axis.grid(alpha=0.3)
    mine = [r for r in rows if r["batch"] == batches[0]]
    for name in METHODS:
        axes[-1].loglog([r["context"] for r in mine], [r[f"{name}_bytes"] for r in mine], marker="o", label=name)
    axes[-1].set(title=f"state, batch {batches[0]}", xlabel="context (tokens)", ylabel="bytes")
    axes[-1].grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="contexts up to 8K, fewer repeats, nothing written")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--order", type=int, default=16, help="modes of the distilled form")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    contexts = [1 << k for k in range(10, 14 if options.quick else 17)]
    rows: list[dict] = []
    print(backend_report().splitlines()[1])
    print("batch context    exact (median, worst)    naive  distilled   rerun  attention   ms per token; exact state")
    with torch.inference_mode():
        for batch in options.batch:
            new = measure(batch, contexts, options.width, options.order, options.quick)
            for r in new:
                print(
                    f"{r['batch']:>5} {r['context']:>7} {r['exact_ms']:>8.3f} ({r['exact_median_ms']:.3f}, "
                    f"{r['exact_worst_ms']:7.2f}) {r['naive_ms']:>8.3f} {r['distilled_ms']:>10.3f} "
                    f"{r['rerun_ms']:>8.1f} {r['attention_ms']:>9.3f}  {r['exact_bytes'] / 2**20:.1f} MiB",
                    flush=True,
                )
            rows += new
    checks = bars(rows)
    for what, value, limit, holds in checks:
        print(f"{'yes' if holds else 'NO ':3} {value:8.2f} {limit:7} {what}")
    if options.quick:
        return
    record = {
        **machine("cpu"),
        "dtype": "float32",
        "width": options.width,
        "order": options.order,
        "heads": HEADS,
        "backend": backend_report().splitlines()[1],
        "baseline": "attention with a cache of keys and values, and a dot product over the history, in the same run",
        "rows": rows,
        "bars": [{"what": w, "value": v, "limit": limit, "holds": ok} for w, v, limit, ok in checks],
    }
    path = write("generation", record)
    plot(rows, RESULTS / "generation.png")
    print(f"wrote {path} and generation.png")


if __name__ == "__main__":
    main()
