"""What the models are trained on, and their sizes: recall, Shakespeare's characters, DNA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.defaults.jobs import Job, held_out
from experiments.recall.tasks import associative_recall
from experiments.shared.examples import accuracy, last_only, loss
from experiments.shared.training import Schedule, generator
from hyena.models import CausalLM

# The characters' model and schedule are the main job's (examples/shakespeare), with fewer steps.
JOBS = {
    "default": {
        "recall": Job("recall", 10, 128, 32, 64, 2, 10 * 63, 5e-4),
        "characters": Job("characters", 65, 64, 12, 128, 4, 1000, 1e-3, 5),
        "dna": Job("dna", 5, 4096, 2, 64, 2, 200, 2e-3, 2),
    },
    "toy": {
        "recall": Job("recall", 6, 16, 8, 16, 2, 40, 2e-3, 4),
        "characters": Job("characters", 65, 32, 4, 16, 1, 20, 2e-3, 2),
    },
    "full": {
        "recall": Job("recall", 30, 2048, 32, 64, 2, 200 * 63, 5e-4, 20),
        "characters": Job("characters", 65, 1024, 32, 384, 6, 5000, 1e-3),
        "dna": Job("dna", 5, 32768, 8, 128, 4, 5000, 6e-4),
    },
}
HEADS = 4  # of attention


def schedule(job: Job) -> Schedule:
    """The optimizer's numbers."""
    if job.kind == "characters":
        return Schedule(job.steps, job.lr, betas=(0.9, 0.99), warmup=job.steps // 20, floor=0.1)
    return Schedule(job.steps, job.lr, warmup=job.steps // 20)


def recall_examples(job: Job, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Examples that are not trained on."""
    return associative_recall(count, job.length, job.vocabulary, generator(seed, -2))


def score(job: Job, seed: int, device: str) -> Callable[[CausalLM], dict[str, float]]:
    """What is measured of a model: held-out nats a token; of recall those of the answer, and how many are right."""
    if job.kind != "recall":
        measured = held_out(job, seed)
        return lambda model: {"loss": measured(model)}
    tokens, targets = (t.to(device) for t in recall_examples(job, 500, seed))
    targets = last_only(targets)

    @torch.no_grad()
    def measure(model: CausalLM) -> dict[str, float]:
        parts = zip(tokens.split(50), targets.split(50), strict=True)
        nats = [loss(model, x, y).item() for x, y in parts]
        return {"loss": sum(nats) / len(nats), "accuracy": accuracy(model, tokens, targets)["accuracy"]}

    return measure
