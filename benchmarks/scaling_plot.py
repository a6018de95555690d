"""Draws what hyena.distributed predicts of long rows on many GPUs, and writes the plans as a table.

    python benchmarks/scaling_plot.py        # results/scaling-plan.png and results/scaling-plan.json

Left: communication over arithmetic of context parallel between nodes of H100s, without overlap, against the width of
the model: for Hyena it depends neither on the length nor, beyond a few nodes, on the number of GPUs. Middle: the same
for width 4096 against the length, beside attention by heads and around a ring, 64 GPUs in one cp group. Right:
positions a second and GPU of the best plans.
"""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import RESULTS, write

from hyena.distributed import H100, Mesh, Plan, Work, plan
from hyena.distributed.planning import predict

LENGTHS = {"1M": 1 << 20, "2M": 2 << 20, "5M": 5 << 20, "10M": 10 << 20}
GPUS = (64, 128, 256, 512, 1024)


def ratio(work: Work, mesh: Mesh) -> float:
    each: Plan = predict(work, mesh, recompute=True)
    return each.seconds["cp"] / each.arithmetic


def crossover(mixer: str = "hyena") -> int:
    """The width below which context parallel between nodes takes longer than arithmetic."""
    return next(
        width
        for width in range(256, 16384, 64)
        if ratio(Work(1 << 20, 1, width, 32, mixer, num_heads=width // 64), Mesh(cp=128)) < 1
    )


def plans() -> list[dict[str, Any]]:
    """The best mesh for each length and number of GPUs, 64K positions a GPU."""
    rows = []
    for name, length in LENGTHS.items():
        for gpus in GPUS:
            batch = max(1, (gpus << 16) // length)
            row: dict[str, Any] = {"length": name, "GPUs": gpus, "rows": batch}
            try:
                best = plan(Work(length, batch), gpus)[0]
            except ValueError as e:
                rows.append({**row, "why not": str(e)})
                continue
            mesh = {"dp": best.mesh.dp, "cp": best.mesh.cp, "tp": best.mesh.tp}
            sizes = {"GB": best.memory / 1e9, "step": best.step, "arithmetic": best.arithmetic}
            rows.append({**row, **mesh, "recompute": best.recompute, **sizes, "seconds": best.seconds})
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    widths = [512 * i for i in range(1, 17)]
    for cp in (16, 128):
        found = [ratio(Work(1 << 20, 1, width, 32), Mesh(cp=cp)) for width in widths]
        left.plot(widths, found, label=f"Hyena, cp = {cp}")
    left.set(xlabel="width of the model", ylabel="cp over arithmetic", title="Context parallel between nodes")
    lengths = [1 << i for i in range(13, 25)]
    for label, mixer, context in (
        ("Hyena", "hyena", "all-to-all"),
        ("attention by heads", "attention", "all-to-all"),
        ("attention around a ring", "attention", "ring"),
    ):
        found = [ratio(Work(n, 1, mixer=mixer, num_heads=64), Mesh(cp=64, context=context)) for n in lengths]
        middle.plot(lengths, found, label=label)
    middle.set(xlabel="length of a row", ylabel="cp over arithmetic", title="Width 4096, cp = 64", xscale="log")
    middle.set_yscale("log")
    for axes in (left, middle):
        axes.axhline(1, color="0.6", linestyle=":")
    for name in LENGTHS:
        some = [r for r in rows if r["length"] == name and "step" in r]
        per_second = [r["rows"] * LENGTHS[name] / r["step"] / r["GPUs"] for r in some]
        right.plot([r["GPUs"] for r in some], per_second, "o-", label=name)
    right.set(xlabel="GPUs", ylabel="positions a second and GPU", title=f"Best plans, {H100.name}", xscale="log")
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(RESULTS / "scaling-plan.png", dpi=110)


def main() -> None:
    """See the module's docstring."""
    rows = plans()
    draw(rows)
    record = {"machine": H100.name, "model": "32 layers of width 4096", "crossover width": crossover(), "rows": rows}
    print(f"written: {write('scaling-plan', record)} and {RESULTS / 'scaling-plan.png'}")
    print(f"Hyena's context parallel between nodes takes longer than arithmetic below width {crossover()}")
    for r in rows:
        print({k: (round(v, 2) if isinstance(v, float) else v) for k, v in r.items() if k != "seconds"})


if __name__ == "__main__":
    main()
