"""Judges and plots what generation.py has measured.

python benchmarks/generation_report.py                           # results/generation.json
python benchmarks/generation_report.py results/other.json        # and beside it results/other.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from measure import RESULTS

METHODS = ("exact", "naive", "distilled", "rerun", "attention")
# So that lines that lie on each other are seen.
STYLES = {"exact": "C0o-", "naive": "C1s--", "distilled": "C2^--", "rerun": "C3x:", "attention": "C4o-"}
# What is asked of the numbers: the sign, and how a value is compared.
LIMITS: dict[str, Callable[[float], bool]] = {
    ">= 10": lambda value: value >= 10,
    "> 1": lambda value: value > 1,
    "<= 2.5": lambda value: value <= 2.5,
    "<= 1.1": lambda value: value <= 1.1,
}


def checks(rows: list[dict]) -> list[dict]:
    """Each target with its value, for every batch size: ``what``, ``value``, ``limit`` and whether it ``holds``."""
    found = []
    for batch in sorted({r["batch"] for r in rows}):
        for what, value, limit in _values({r["context"]: r for r in rows if r["batch"] == batch}):
            found.append(
                {"what": f"batch {batch}: {what}", "value": value, "limit": limit, "holds": LIMITS[limit](value)}
            )
    return found


def _values(rows: dict[int, dict]) -> list[tuple[str, float, str]]:
    """What, its value and its limit, of the rows of one batch size by their context."""
    first, last = rows[min(rows)], rows[max(rows)]
    start = rows.get(4096, first)
    middle = rows.get(32768, last)
    long = [r for c, r in rows.items() if c >= start["context"]]
    distilled = [r["distilled_ms"] for r in rows.values()]
    return [
        (
            f"mixing time of a decode of {middle['context']} tokens, naive / exact",
            middle["naive_over_exact_mixing"],
            ">= 10",
        ),
        (
            f"step at the context, attention / mean exact, least from {start['context']} on",
            min(r["attention_over_exact"] for r in long),
            "> 1",
        ),
        (
            f"whole decode, attention / exact, least from {start['context']} on",
            min(r["attention_over_exact_total"] for r in long),
            "> 1",
        ),
        (
            f"exact cost of a token, {last['context']} / {start['context']}",
            last["exact_ms"] / start["exact_ms"],
            "<= 2.5",
        ),
        ("distilled step, largest / smallest over contexts", max(distilled) / min(distilled), "<= 1.1"),
    ]


def report(rows: list[dict]) -> None:
    """Prints the targets, and the worst step of the longest decodes."""
    for check in checks(rows):
        print(f"{'yes' if check['holds'] else 'NO ':3} {check['value']:8.2f} {check['limit']:7} {check['what']}")
    longest = max(r["context"] for r in rows)
    for r in rows:
        if r["context"] == longest:
            print(
                f"batch {r['batch']}: the worst of {r['context']} steps is number {r['exact_worst_at']}, "
                f"{r['worst_over_median']:.0f} x the median and {r['worst_over_rerun']:.2f} x a run over the context"
            )


def plot(rows: list[dict], path: Path) -> None:
    """Draws time a token and state bytes against the context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({r["batch"] for r in rows})
    figure, axes = plt.subplots(1, len(batches) + 1, figsize=(5 * (len(batches) + 1), 4))
    for axis, batch in zip(axes, batches):
        mine = [r for r in rows if r["batch"] == batch]
        for name in METHODS:
            axis.loglog([r["context"] for r in mine], [r[f"{name}_ms"] for r in mine], STYLES[name], label=name)
        worst = [r["exact_worst_ms"] for r in mine]
        axis.loglog([r["context"] for r in mine], worst, "C0o:", label="exact, worst step", alpha=0.6)
        axis.set(title=f"batch {batch}", xlabel="context (tokens)", ylabel="ms per token")
        axis.grid(alpha=0.3)
    mine = [r for r in rows if r["batch"] == batches[0]]
    for name in METHODS:
        axes[-1].loglog([r["context"] for r in mine], [r[f"{name}_bytes"] for r in mine], STYLES[name], label=name)
    axes[-1].set(title=f"state, batch {batches[0]}", xlabel="context (tokens)", ylabel="bytes")
    axes[-1].grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, nargs="?", default=RESULTS / "generation.json", help="what was measured")
    record = parser.parse_args().record
    rows = json.loads(record.read_text())["rows"]
    report(rows)
    plot(rows, record.with_suffix(".png"))


if __name__ == "__main__":
    main()
