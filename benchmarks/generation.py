"""What a token costs when text is made one token at a time, against the context that came before.

    python benchmarks/generation.py                      # 1K to 64K, batch 1 and 16, and base blocks
    python benchmarks/generation.py --longest 8192       # contexts up to 8K; nothing is written
    python benchmarks/generation.py --resume             # keeps the batch sizes that an interrupted run has finished
    python benchmarks/generation.py --device cuda

One layer of D channels, from the input of a position to its output, on one CPU thread: Hyena by exact steps (every
step of three decodes is timed and the shortest time counts; for the mean, steps with tiles of one size count as their
median), by a dot product over the history (naive, the fastest of three ways to write it), distilled, and run again
over the whole context; and attention with a cache of keys and values. The projections, which all of them have, are
timed alone and subtracted for the ratio of mixing times. Totals of a decode are sums of all its steps for exact, and
for the others integrals over the contexts measured. Then exact decodes with other base blocks than the library's.
Writes results/generation.json after each batch size, and results/generation.png (generation-cuda on a GPU);
generation_report.py has the targets and the plot.

Dimensions: B batch, C context, D channels, T longest context.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from generation_report import checks, plot, report
from measure import RESULTS, interleaved, machine, write
from torch import Tensor

from hyena import HyenaOperator
from hyena.conv.tiled import BLOCK
from hyena.filters import ModalFilter
from hyena.mixers import Attention
from hyena.ops import backend_report

HEADS = 4
# The layouts of the naive way's history.
NAIVE = ("channels last", "time last", "channels first")
BLOCKS = (8, 16, 32, 64, 128)
# Of the decodes that base blocks are compared by: seven tile sizes or more, for any of them.
BLOCKS_CONTEXT = 4096
DECODES = 3


class Naive:
    """Cached decoding of an order-2 operator as others have it: a dot product of taps and history for each token."""

    def __init__(self, op: HyenaOperator, batch: int, length: int) -> None:
        self.op, self.length = op, length
        h = op.conv.filter(length)[0]  # (T, D)
        h[0] += op.conv.bias[0]
        self.taps = h.flip(0).contiguous()  # (T, D), the last lag first
        self.taps_last = self.taps.t().contiguous()[..., None]  # (D, T, 1)
        # Three layouts of one block of memory; whichever is fastest at a context is taken.
        memory = torch.randn(batch * length * op.width, device=h.device)
        self.history = memory.view(batch, length, op.width)
        self.history_last = memory.view(batch, op.width, length)
        self.history_channels = memory.view(op.width, batch, length)
        self.short = torch.zeros(batch, op.short.weight.size(1) - 1, op.short.weight.size(0), device=h.device)

    def step(self, u: Tensor, t: int, how: str) -> Tensor:
        op, first = self.op, self.length - t - 1
        z = torch.cat([self.short, op.in_proj(u)[:, None]], dim=1)
        self.short.copy_(z[:, 1:])
        x, gate, v = ((z * op.short.weight.t()).sum(1) + op.short.bias).chunk(3, dim=1)
        p = gate * v
        if how == "channels first":
            self.history_channels[..., t] = p.t()
            y = torch.bmm(self.history_channels[..., : t + 1], self.taps_last[:, first:])[..., 0].t()
        elif how == "time last":
            self.history_last[..., t] = p
            y = torch.linalg.vecdot(self.history_last[..., : t + 1], self.taps_last[:, first:, 0])
        else:  # channels last
            self.history[:, t] = p
            y = (self.history[:, : t + 1] * self.taps[first:]).sum(1)
        return op.out_proj(x * y)


def say(what: str) -> None:
    """Progress, beside the table."""
    print(f"  {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def device() -> str:
    return torch.get_default_device().type


def wait() -> None:
    """Until the device has done what it was asked to."""
    if device() != "cpu":
        torch.cuda.synchronize()


def medians_ms(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each; fewer repeats where one round takes long."""
    start = time.perf_counter()
    for function in functions.values():
        function()
    wait()
    repeats = min(repeats, max(3, int(2.0 / (time.perf_counter() - start))))
    return {name: 1e3 * seconds for name, seconds in interleaved(functions, repeats=repeats, device=device()).items()}


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of one function."""
    return medians_ms({"": function}, repeats)[""]


def decode_ms(op: HyenaOperator, batch: int, length: int) -> list[float]:
    """Milliseconds of every step of a decode of ``length`` tokens."""
    state, u = op.init_state(batch, length), torch.randn(batch, op.d_model)
    times = []
    for _ in range(length):
        start = time.perf_counter()
        op.step(u, state)
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def crossover(batch: int, width: int) -> dict:
    """What a token costs with each base block, in units of the library's choice."""
    op, times = HyenaOperator(width, BLOCKS_CONTEXT).eval(), defaultdict(list)
    for _ in range(3):
        for op.conv.block in BLOCKS:  # they take turns, so that a slow minute meets all of them
            times[op.conv.block].append(mean_ms(decode_ms(op, batch, BLOCKS_CONTEXT), op.conv.block))
    medians = {block: statistics.median(each) for block, each in times.items()}
    return {"batch": batch, "context": BLOCKS_CONTEXT, **{str(b): ms / medians[BLOCK] for b, ms in medians.items()}}


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


def measure(batch: int, contexts: list[int], width: int, order: int) -> Iterator[dict]:
    longest, repeats = contexts[-1], 30
    op = HyenaOperator(width, longest).eval()
    small = HyenaOperator(width, longest, filter=ModalFilter(width, longest, modes=order)).eval()
    attention = Attention(width, longest, num_heads=HEADS).eval()
    u = torch.randn(batch, width)
    projections = median_ms(lambda: op.out_proj(op.in_proj(u)[:, :width]), 300)

    say(f"batch {batch}: {DECODES} decodes of {longest} tokens, every step timed")
    steps = [min(each) for each in zip(*(decode_ms(op, batch, longest) for _ in range(DECODES)), strict=True)]
    naive = Naive(op, batch, longest)
    distilled = small.init_state(batch)
    cache = attention.init_state(batch, longest)
    cache.keys.normal_()
    cache.values.normal_()
    cache.keep.fill_(True)

    def attention_step(c: int) -> Tensor:
        cache.position = c - 1
        return attention.step(u, cache)[0]

    def distilled_step(c: int) -> Tensor:
        distilled.position = c - 1
        return small.step(u, distilled)[0]

    flat = medians_ms({str(c): lambda c=c: distilled_step(c) for c in contexts}, 20 * repeats)
    rows = []
    for c in contexts:
        say(f"batch {batch}, context {c}: naive, attention and the whole context again")
        ways = {how: lambda c=c, how=how: naive.step(u, c - 1, how) for how in NAIVE}
        cached = medians_ms({**ways, "attention": lambda c=c: attention_step(c)}, repeats)
        # On one thread rows cost alike; one is enough, and sixteen of the longest would be most of the time of all.
        alike = batch if device() == "cpu" else 1
        whole = torch.randn(batch // alike, c, width)
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
                "exact_worst_at": upto.index(max(upto)) + 1,
                "naive_ms": min(cached[how] for how in ways),
                "distilled_ms": flat[str(c)],
                "rerun_ms": alike * median_ms(lambda w=whole: op(w), 3),
                "attention_ms": cached["attention"],
                "exact_bytes": op.state_size(batch, c).rows,
                "exact_shared_bytes": op.state_size(batch, c).shared,
                "naive_bytes": 4 * batch * width * c,
                "distilled_bytes": small.state_size(batch, c).rows,
                "rerun_bytes": 4 * batch * width * c,
                "attention_bytes": 8 * batch * width * c,
            }
        )
        row = rows[-1]
        before = [r["context"] for r in rows]
        for name in ("naive", "distilled", "rerun", "attention"):
            row[f"{name}_total_ms"] = total_ms(before, [r[f"{name}_ms"] for r in rows], c)
        row["exact_total_ms"] = c * row["exact_ms"]
        mixing = {m: row[f"{m}_total_ms"] - c * projections for m in ("exact", "naive")}
        row["naive_over_exact_mixing"] = mixing["naive"] / mixing["exact"]
        row["attention_over_exact"] = row["attention_ms"] / row["exact_ms"]
        row["attention_over_exact_total"] = row["attention_total_ms"] / row["exact_total_ms"]
        row["worst_over_median"] = row["exact_worst_ms"] / row["exact_median_ms"]
        row["worst_over_rerun"] = row["exact_worst_ms"] / row["rerun_ms"]
        yield row


def name() -> str:
    """Of the files that are written."""
    return "generation" if device() == "cpu" else f"generation-{device()}"


def settings(options: argparse.Namespace, contexts: list[int]) -> dict:
    """What rows of two runs must have in common to stand in one table."""
    return {
        **machine(device()),
        "dtype": "float32",
        "contexts": contexts,
        "width": options.width,
        "order": options.order,
        "heads": HEADS,
        "block": BLOCK,
        "backend": backend_report().splitlines()[1],
        "baseline": "attention with a cache of keys and values, and a dot product over the history, in the same run",
    }


def finished(record: dict) -> tuple[list[dict], list[dict]]:
    """Rows and base blocks of an interrupted run with the same settings, on the same commit."""
    path = RESULTS / f"{name()}.json"
    if not path.exists():
        sys.exit(f"generation.py: there is no {path} to resume")
    before = json.loads(path.read_text())
    other = [key for key in record if key != "date" and before.get(key) != record[key]]
    if other:
        sys.exit(f"generation.py: {path} differs from this run in {', '.join(other)}; start again without --resume")
    return before["rows"], before["blocks"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=65536, help="longest context, from 1024 on in powers of two")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="rows decoded together")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--order", type=int, default=16, help="modes of the distilled form")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has finished")
    options = parser.parse_args()
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    contexts = [1 << k for k in range(10, options.longest.bit_length())]
    if not contexts:
        parser.error(f"--longest must be at least 1024, got {options.longest}")
    recorded = options.longest == parser.get_default("longest")
    record = settings(options, contexts)
    rows, blocks = finished(record) if options.resume else ([], [])

    def save() -> None:
        if recorded:
            write(name(), {**record, "rows": rows, "blocks": blocks, "bars": checks(rows)})

    print(record["backend"])
    print("batch context    exact (median, worst)    naive  distilled    rerun  attention   ms per token; exact state")
    with torch.inference_mode():
        for batch in options.batch:
            before = [r for r in rows if r["batch"] == batch]
            new = []
            for r in before or measure(batch, contexts, options.width, options.order):
                new.append(r)
                print(
                    f"{r['batch']:>5} {r['context']:>7} {r['exact_ms']:>8.3f} ({r['exact_median_ms']:.3f}, "
                    f"{r['exact_worst_ms']:7.2f}) {r['naive_ms']:>8.3f} {r['distilled_ms']:>10.3f} "
                    f"{r['rerun_ms']:>8.1f} {r['attention_ms']:>10.3f}  {r['exact_bytes'] / 2**20:.1f} MiB",
                    flush=True,
                )
            if not before:
                rows += new
                save()
        print(f"\nbase blocks, cost of a token over {BLOCKS_CONTEXT} as a share of that with {BLOCK}")
        print("batch" + "".join(f"{block:>7}" for block in BLOCKS))
        for batch in options.batch:
            found = next((b for b in blocks if b["batch"] == batch), None)
            if found is None:
                say(f"batch {batch}: decodes of {BLOCKS_CONTEXT} tokens with base blocks of {BLOCKS}")
                found = crossover(batch, options.width)
                blocks.append(found)
                save()
            print(f"{batch:>5}" + "".join(f"{found[str(block)]:>7.2f}" for block in BLOCKS))
    print()
    report(rows)
    if recorded:
        plot(rows, RESULTS / f"{name()}.png")
        print(f"wrote {RESULTS / name()}.json and {name()}.png")


if __name__ == "__main__":
    main()
