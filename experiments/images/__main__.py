"""Images with long convolutions and with attention (arXiv 2302.10866, section 4.5 and table 4.7).

    python -m experiments.images                    # two cores: small models; 14 x 14 pixels, but in the ViT
    python -m experiments.images --only task=vit    # sequential, permuted, vit or grid
    python -m experiments.images --full             # a GPU: 28 x 28 pixels, the published depths and epochs

Four tasks on digits, 8,000 to train on and 2,000 to test on. *sequential*, *permuted*: a causal model reads one pixel
after the other, row by row or in one random order, and the mean of its outputs gives the class. *vit*: a vision
transformer, and the same after ``hyena.replace_attention``. *grid*: Hyena-ISO, S4ND-ISO and plain ConvNets at equal
size. CIFAR and ImageNet, on which the published figures are, cannot be had without a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.images import digits, models
from experiments.images.plot import draw
from experiments.shared import runs
from experiments.shared.examples import epochs, steps_of_epoch
from experiments.shared.models import parameters
from experiments.shared.runs import Place, Settings
from experiments.shared.training import Schedule, train

WHAT = "share of the 2,000 test digits that get another class than theirs, in percent; smaller is better"

SIZES: dict[str, dict[str, Any]] = {
    "toy": {
        "training": {"training": 160, "test": 40, "batch": 16},
        "sequential": {"side": 7, "width": 8, "layers": 1, "epochs": 2},
        "permuted": {"side": 7, "width": 8, "layers": 1, "epochs": 2},
        "vit": {"side": 14, "width": 8, "layers": 1, "patch": 2, "epochs": 2},
        "grid": {"side": 7, "width": 8, "layers": 2, "dropout": 0.0, "epochs": 2},
    },
    "default": {
        "training": {"training": 8000, "test": 2000, "batch": 32},
        "sequential": {"side": 14, "width": 32, "layers": 2, "epochs": 4},
        "permuted": {"side": 14, "width": 32, "layers": 2, "epochs": 4},
        "vit": {"side": 28, "width": 48, "layers": 3, "patch": 4, "epochs": 4},
        "grid": {"side": 14, "width": 32, "layers": 3, "dropout": 0.1, "epochs": 8},
    },
    "full": {
        "training": {"training": 8000, "test": 2000, "batch": 64},
        "sequential": {"side": 28, "width": 128, "layers": 6, "epochs": 100},
        "permuted": {"side": 28, "width": 128, "layers": 6, "epochs": 100},
        "vit": {"side": 28, "width": 192, "layers": 12, "patch": 2, "epochs": 300},
        "grid": {"side": 28, "width": 128, "layers": 4, "dropout": 0.1, "epochs": 100},
    },
}
CHUNK = 500  # digits of one forward pass of the evaluation


def grid(size: str, seeds: list[int]) -> list[Settings]:
    """Every model of every task."""
    of = SIZES[size]
    return [
        {"task": task, "model": name, **of[task], "lr": 3e-3, "weight_decay": 0.05, **of["training"], "seed": seed}
        for seed in seeds
        for task, names in models.MODELS.items()
        for name in names
    ]


def work(settings: Settings, place: Place) -> dict[str, Any]:
    """Trains one model and tests it after every epoch."""
    s = settings
    images, classes, test_images, test_classes = digits.load(s["side"], s["training"], s["test"])
    torch.manual_seed(s["seed"])
    sizes = {name: s[name] for name in ("width", "layers", "patch", "dropout") if name in s}
    model = models.make(s["task"], s["model"], s["side"], **sizes).to(place.device)

    chosen = epochs(images, classes, s["batch"], s["seed"])

    def loss(step: int) -> Tensor:
        some, their_classes = chosen(step)
        return F.cross_entropy(model(some.to(place.device)), their_classes.to(place.device))

    def evaluate() -> dict[str, float]:
        logits = torch.cat([model(part.to(place.device)).cpu() for part in test_images.split(CHUNK)])
        wrong = (logits.argmax(1) != test_classes).double().mean().item()
        return {"error": 100 * wrong, "test_loss": F.cross_entropy(logits, test_classes).item()}

    epoch = steps_of_epoch(s["training"], s["batch"])
    steps = s["epochs"] * epoch
    schedule = Schedule(steps, s["lr"], weight_decay=s["weight_decay"], warmup=steps // 10)
    history = train(model, loss, schedule, place, evaluate=evaluate, evaluate_every=epoch)
    return {
        "error": history[-1]["error"],
        "parameters": parameters(model),
        "training_seconds": history[-1]["seconds"],
        "history": history,
    }


def report(found: list[dict[str, Any]], folder: Path) -> None:
    """Prints the table, and writes it with every run, and the plot."""
    titles = ("task", "model", "mean", "least", "largest", "parameters", "s an epoch")
    print(WHAT + "\n\n{:<12}{:<24}{:>7}{:>7}{:>9}{:>12}{:>12}".format(*titles))
    table = []
    for row in runs.by_seed(found, "error"):
        s = row["settings"]
        alike = [r for r in found if {k: v for k, v in r["settings"].items() if k != "seed"} == s]
        seconds = runs.spread(r["result"]["training_seconds"] / s["epochs"] for r in alike)
        table.append({**row, "parameters": alike[0]["result"]["parameters"], "seconds_an_epoch": seconds})
        print(
            f"{s['task']:<12}{s['model']:<24}{row['mean']:>7.2f}{row['least']:>7.2f}{row['largest']:>9.2f}"
            f"{table[-1]['parameters']:>12,}{seconds['mean']:>12.1f}"
        )
    runs.write(folder / "results.json", WHAT, found, models=table)
    print(f"\nresults  {folder / 'results.json'}")
    draw(found, folder / "results.png")


if __name__ == "__main__":
    runs.command(__doc__ or "", here=Path(__file__).parent, grid=grid, work=work, report=report)
