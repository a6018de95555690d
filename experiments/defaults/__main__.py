"""Settings of Hyena's filter, operator and MLP on small jobs: which should be the defaults?

    python -m experiments.defaults --workers 2

Recall at two lengths, Shakespeare's characters at contexts 64, 256 and 1024, DNA at 1024 and 8192. Every run states all
settings (variants.py), so that the result does not move with the library's defaults.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from experiments.defaults import jobs
from experiments.defaults.plot import draw
from experiments.defaults.variants import Variant, model
from experiments.shared import runs
from experiments.shared.training import Schedule, train

HERE = Path(__file__).resolve().parent

# What is tried: the changes to a Variant. First the shape of the taps that training starts from, by frequency and
# number of features, then everything else at frequency 3.
CHANGES: list[dict[str, Any]] = [
    *({"freq": freq, "emb_dim": emb_dim} for emb_dim in (33, 5) for freq in (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)),
    {"freq": None},
    {"freq": None, "slow": 0.75, "fast": 0.15},
    {"freq": None, "fast": 0.03},
    {"freq": None, "fast": 0.03, "spacing": "geometric"},
    {"freq": None, "filter_lr": 3.0},
    {"freq": None, "norm": 2.0},
    {"freq": None, "slow": 6.0},
    {"freq": None, "inner_layers": 1},
    {"freq": None, "width": 32},
    {"freq": None, "width": 128},
    {"freq": None, "shift": 0.05},
    {"freq": None, "order": 3},
    {"freq": None, "skip": 2.0},
    {"freq": None, "short": 2.0},
    {"freq": None, "short": 0.5},
    {"freq": None, "mlp": "swiglu"},
    {"freq": None, "mlp": "geglu"},
    {"freq": 10.0, "norm": None},
    {"freq": 3.0, "norm": None},
    {"freq": 3.0, "skip": 0.3},
    {"freq": 3.0, "filter_lr": 0.3},
    {"freq": 3.0, "filter_lr": 3.0},
    {"freq": 3.0, "slow": 0.75, "fast": 0.15},
    {"freq": 3.0, "fast": 0.03},
]


def grid(size: str, seeds: list[int]) -> list[runs.Settings]:
    """Every change on every job."""
    chosen = jobs.TOY if size == "toy" else jobs.JOBS
    changes = CHANGES[:2] if size == "toy" else CHANGES
    # Seed by seed, so that what is there first is a whole look.
    return [
        {"job": job, **change, "seed": seed, "toy": size == "toy"}
        for seed in seeds
        for change in changes
        for job in chosen
    ]


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Trains one variant on one job."""
    settings = dict(settings)
    job = (jobs.TOY if settings.pop("toy") else jobs.JOBS)[settings.pop("job")]
    seed = settings.pop("seed")
    variant = Variant(**settings)
    torch.manual_seed(seed)
    net = model(variant, job.vocabulary, job.length, width=job.width, layers=job.layers).to(place.device)
    batch, score = jobs.batches(job, seed), jobs.held_out(job, seed)
    schedule = Schedule(
        job.steps, job.lr, warmup=job.steps // 20, filter_lr=variant.filter_lr * job.lr, betas=(0.9, 0.98)
    )
    history = train(
        net,
        lambda step: net.loss(*(t.to(place.device) for t in batch(step))),
        schedule,
        place,
        evaluate=lambda: {"score": score(net)},
        evaluate_every=job.steps // job.evaluations,
        until=lambda found: job.kind == "recall" and found["score"] < 0.004,
    )
    scores = [row["score"] for row in history]
    mean = sum(scores) / job.evaluations  # a run that stopped early stays at zero
    return {"score": scores[-1], "mean_score": mean if job.kind == "recall" else scores[-1], "history": history}


def report(found: list[dict[str, Any]], results: Path) -> None:
    """The table: a line a variant, a column a job."""
    rows = runs.by_seed(found, "mean_score")
    names = list(dict.fromkeys(row["settings"]["job"] for row in rows))
    variants: dict[str, dict[str, Any]] = {}
    for row in rows:
        settings = {k: v for k, v in row["settings"].items() if k not in ("job", "toy")}
        variants.setdefault(runs.label_of(settings), {})[row["settings"]["job"]] = row
    print(f"{'':<50}" + "".join(f"{name:>18}" for name in names))
    for label, row in variants.items():
        cells = (f"{row[name]['mean']:.4f} ({row[name]['seeds']})" if name in row else "" for name in names)
        print(f"{label:<50}" + "".join(f"{cell:>18}" for cell in cells))
    what = (
        "held-out nats a token; for recall the share of wrong answers, averaged over the evaluations of a run; the "
        "less the better"
    )
    defaults = dataclasses.asdict(Variant())
    written = runs.write(results / "results.json", what, found, base=defaults, table=variants)
    draw(written, results / "results.png")


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
