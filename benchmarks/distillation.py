"""How close a distilled operator comes, against the number of modes.

    python benchmarks/distillation.py                                                   # untrained filters
    python benchmarks/distillation.py --checkpoint out/shakespeare/hyena-seed0/checkpoint.pt

Relative l2 error of each filter, its mean and its largest, for untrained filters of several lengths; and with the main
job's checkpoint for its filters, and the validation loss of the distilled model beside the original's. Writes
results/distillation.json and results/distillation.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, machine, table, write
from torch import nn

import hyena
from hyena.conv import distillation_errors
from hyena.models import CausalLM, CausalLMConfig

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
ORDERS = (1, 2, 4, 8, 16, 32)
# Windows of the validation split that are evaluated at once.
BATCH = 16


def errors(name: str, module: nn.Module, orders: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for order in orders:
        small = hyena.distill(module, modes=order)
        e = torch.cat([t.flatten() for t in distillation_errors(small).values()])
        rows.append({"filters": name, "order": order, "mean_error": e.mean().item(), "largest_error": e.max().item()})
    return rows


def losses(path: Path, orders: tuple[int, ...]) -> list[dict[str, Any]]:
    """Errors and validation losses of the main job's model."""
    sys.path.insert(0, str(EXAMPLE))
    from corpus import load_corpus, windows

    saved = torch.load(path, weights_only=True)
    model = CausalLM(CausalLMConfig.from_dict(saved["config"])).eval()
    model.load_state_dict(saved["model"])
    corpus = load_corpus(EXAMPLE / "tinyshakespeare.txt", model.config.l_max)
    inputs, targets = windows(corpus.validation, model.config.l_max)

    def loss(m: CausalLM) -> float:
        total = 0.0
        with torch.no_grad():
            for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
                total += m.loss(x, y).item() * x.numel()
        return total / inputs.numel()

    original, rows = loss(model), []
    for order in orders:
        (row,) = errors("main job", model, (order,))
        distilled = loss(hyena.distill(model, modes=order))
        rows.append({**row, "loss": distilled, "original_loss": original, "loss_difference": distilled - original})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(r["filters"] for r in rows):
        mine = [r for r in rows if r["filters"] == name]
        (line,) = axis.loglog([r["order"] for r in mine], [r["mean_error"] for r in mine], marker="o", label=name)
        axis.loglog([r["order"] for r in mine], [r["largest_error"] for r in mine], ls="--", color=line.get_color())
    axis.set(xlabel="modes", ylabel="relative l2 error (mean; dashed: largest)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="of the main job")
    parser.add_argument("--quick", action="store_true", help="few orders of short filters, nothing written")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    orders = ORDERS[2:4] if options.quick else ORDERS
    rows = []
    for l_max in (64,) if options.quick else (64, 1024, 8192):
        rows += errors(f"untrained, {l_max} taps", hyena.HyenaOperator(16, l_max), orders)
    trained = [] if options.checkpoint is None else losses(options.checkpoint, orders)
    print(table(rows))
    if trained:
        print(table(trained))
    if options.quick:
        return
    print(f"wrote {write('distillation', {**machine('cpu'), 'rows': rows + trained})} and distillation.png")
    plot(rows + trained, RESULTS / "distillation.png")


if __name__ == "__main__":
    main()
