"""Does longer context lower the loss of the next nucleotide? (arXiv 2306.15794, section 4.1).

    python -m experiments.dna            # two cores: 2 layers, width 32, contexts 1K, 8K and 32K
    python -m experiments.dna --full     # a GPU: HyenaDNA's 2 layers of width 128, up to 128K

One chromosome of 0.88 million bases, its last tenth held out. Every model is trained on as many bases in as many steps,
in rows of its context, from either strand, and predicts the same held-out bases: each one with between half of the
context and all of it before it, for the context that it was trained at and for shorter ones. Beside them are bases
drawn evenly (2 bits), by their frequencies (order 0), and Markov models with interpolated counts. Long contexts are
trained three times: from the first step, after more than half of the steps on short rows (the paper's warm-up of
lengths), and with the time of the filters measured in short rows, whatever the context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.dna import data, markov
from experiments.dna.plot import draw
from experiments.shared import runs
from experiments.shared.models import language_model, parameters
from experiments.shared.runs import Place, Settings
from experiments.shared.training import Schedule, train
from hyena.models import next_token_loss

WHAT = "bits of a held-out base, from half of the context to all of it before each; smaller is better"

# Rotary positions need no training, of which there is little here.
OPTIONS: dict[str, dict[str, Any]] = {"hyena": {}, "attention": {"rotary_base": 10000.0}}
START_SHARE = 0.6  # of the steps, on short rows where a run starts with them
CHECKPOINT_FROM = 131072  # positions in a row from which blocks are computed again in the backward pass
SHORT = (16, 64, 256)  # contexts of the evaluation below those of the training

SIZES: dict[str, dict[str, Any]] = {
    "toy": {
        "contexts": {"hyena": [64, 256], "attention": [64]},
        "long": {"contexts": [256], "starts_at": 64, "time_unit": 64},
        "order": 4,
        "part": {"bases": 40000, "held_out": 4000},
        "model": {"width": 16, "layers": 1, "lr": 1e-2, "steps": 24, "bases_a_step": 1024},
    },
    "default": {
        "contexts": {"hyena": [1024, 8192, 32768], "attention": [1024]},
        "long": {"contexts": [8192, 32768], "starts_at": 1024, "time_unit": 1024},
        "order": 12,
        "part": {"bases": None, "held_out": 87563},
        "model": {"width": 32, "layers": 2, "lr": 3e-3, "steps": 200, "bases_a_step": 32768},
    },
    "full": {
        "contexts": {"hyena": [1024, 8192, 32768, 131072], "attention": [1024, 4096, 8192]},
        "long": {"contexts": [8192, 32768, 131072], "starts_at": 1024, "time_unit": 1024},
        "order": 16,
        "part": {"bases": None, "held_out": 87563},
        "model": {"width": 128, "layers": 2, "lr": 6e-4, "steps": 3000, "bases_a_step": 131072},
    },
}


def grid(size: str, seeds: list[int]) -> list[Settings]:
    """Markov models once, each mixer at each of its contexts, and Hyena at long ones in two more ways."""
    of = SIZES[size]
    long = of["long"]
    found: list[Settings] = [{"mixer": "markov", "order": of["order"], **of["part"]}]
    for seed in seeds:
        common = {**of["model"], **of["part"], "seed": seed}
        for mixer, contexts in of["contexts"].items():
            found += [{"mixer": mixer, "context": c, **common} for c in contexts]
        for way in ("starts_at", "time_unit"):
            found += [{"mixer": "hyena", "context": c, way: long[way], **common} for c in long["contexts"]]
    return found


def work(settings: Settings, place: Place) -> dict[str, Any]:
    """Trains one model, or counts, and predicts the held-out bases."""
    bases = data.chromosome(settings["bases"])
    first = bases.numel() - settings["held_out"]
    if settings["mixer"] == "markov":
        orders = markov.held_out_bits(bases, first, settings["order"])
        return {"bits": min(each["bits"] for each in orders), "orders": orders}
    s, context = settings, settings["context"]
    torch.manual_seed(s["seed"])
    options = dict(OPTIONS[s["mixer"]])
    if "time_unit" in s:
        options["filter"] = {"class": "HyenaFilter", "time_unit": s["time_unit"]}
    sizes = {"width": s["width"], "layers": s["layers"], "gradient_checkpointing": context >= CHECKPOINT_FROM}
    model = language_model(s["mixer"], 4, context, **sizes, **options).to(place.device)

    def loss(step: int) -> Tensor:
        length = s["starts_at"] if "starts_at" in s and step < START_SHARE * s["steps"] else context
        tokens, targets = data.batch(bases[:first], s["bases_a_step"] // length, length, s["seed"], step)
        return next_token_loss(model(tokens.to(place.device)), targets.to(place.device))

    def bits(given: int) -> float:
        return data.held_out_bits(model, bases, first, given).mean().item()

    schedule = Schedule(s["steps"], s["lr"], warmup=s["steps"] // 20, floor=0.1)
    every = max(1, s["steps"] // 10)
    history = train(model, loss, schedule, place, evaluate=lambda: {"bits": bits(context)}, evaluate_every=every)
    given = [c for c in (*SHORT, *SIZES["full"]["contexts"]["hyena"]) if c < context]
    return {
        "bits": history[-1]["bits"],
        "by_context": [{"context": c, "bits": bits(c)} for c in given]
        + [{"context": context, "bits": history[-1]["bits"]}],
        "parameters": parameters(model),
        "bases": s["steps"] * s["bases_a_step"],
        "training_seconds": history[-1]["seconds"],
        "history": history,
    }


def report(found: list[dict[str, Any]], folder: Path) -> None:
    """Prints the tables, and writes them with every run, and the plot."""
    counted = [run for run in found if run["settings"]["mixer"] == "markov"]
    trained = [run for run in found if run["settings"]["mixer"] != "markov"]
    orders = counted[0]["result"]["orders"] if counted else []
    print(
        f"{WHAT}\n\n{'model':<24}{'context':>8}{'mean':>9}{'least':>9}{'largest':>9}{'parameters':>12}{'s a step':>10}"
    )
    print(f"{'even':<24}{0:>8}{2.0:>9.4f}")
    for each in orders:
        print(f"{'Markov':<24}{each['order']:>8}{each['bits']:>9.4f}")
    table = []
    for row in runs.by_seed(trained, "bits"):
        alike = [r for r in trained if {k: v for k, v in r["settings"].items() if k != "seed"} == row["settings"]]
        seconds = runs.spread(r["result"]["training_seconds"] / r["settings"]["steps"] for r in alike)
        by_context = [
            {"context": points[0]["context"], **runs.spread(point["bits"] for point in points)}
            for points in zip(*(r["result"]["by_context"] for r in alike), strict=True)
        ]
        histories = zip(*(r["result"]["history"] for r in alike), strict=True)
        history = [{"step": at[0]["step"], **runs.spread(each["bits"] for each in at)} for at in histories]
        name = row["settings"]["mixer"]
        if "starts_at" in row["settings"]:
            name += ", after short rows"
        if "time_unit" in row["settings"]:
            name += f", time unit {row['settings']['time_unit']}"
        count = alike[0]["result"]["parameters"]
        table.append({"name": name, **row, "parameters": count, "seconds_a_step": seconds, "by_context": by_context})
        table[-1]["history"] = history
        numbers = "".join(f"{row[key]:>9.4f}" for key in ("mean", "least", "largest"))
        print(f"{name:<24}{row['settings']['context']:>8}{numbers}{count:>12,}{seconds['mean']:>10.2f}")
    print("\nmean bits by the context that is given, and the context of the training")
    for row in table:
        points = "  ".join(f"{point['context']}: {point['mean']:.4f}" for point in row["by_context"])
        print(f"{row['name']:<24}{row['settings']['context']:>8}   {points}")
    runs.write(folder / "results.json", WHAT, found, markov=orders, models=table)
    print(f"\nresults  {folder / 'results.json'}")
    draw(orders, table, folder / "results.png")


if __name__ == "__main__":
    runs.command(__doc__ or "", here=Path(__file__).parent, grid=grid, work=work, report=report)
