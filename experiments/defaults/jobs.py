"""The small jobs that a setting is tried on: recall, characters at three contexts, DNA.

Each gives ``batch(step)`` and a held-out score, the lower the better: nats a token, or for recall the share of wrong
answers, averaged over the evaluations of a run, so that learning earlier counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments.recall.tasks import associative_recall
from experiments.shared.examples import accuracy, epochs, last_only
from experiments.shared.training import generator
from hyena.genomics import read_fasta
from hyena.models import CausalLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES_OF_RECALL = 2000


@dataclasses.dataclass(frozen=True)
class Job:
    """A task with the size of its model.

    Attributes:
        vocabulary, length, batch: of the data.
        width, layers: of the model.
        steps: as many as a run has.
        lr: highest learning rate.
        kind: "recall", "characters" or "dna".
    """

    kind: str
    vocabulary: int
    length: int
    batch: int
    width: int
    layers: int
    steps: int
    lr: float
    evaluations: int = 10


JOBS = {
    "recall-128": Job("recall", 10, 128, 32, 64, 2, 20 * 63, 5e-4, 20),
    "recall-256": Job("recall", 20, 256, 32, 64, 2, 20 * 63, 5e-4, 20),
    "characters-64": Job("characters", 65, 64, 12, 128, 4, 1000, 1e-3),
    "characters-256": Job("characters", 65, 256, 8, 128, 4, 500, 1e-3),
    "characters-1024": Job("characters", 65, 1024, 2, 128, 4, 500, 1e-3),
    "characters-8192": Job("characters", 65, 8192, 1, 64, 2, 300, 2e-3, 3),
    "dna-1024": Job("dna", 5, 1024, 4, 64, 2, 500, 2e-3),
    "dna-8192": Job("dna", 5, 8192, 1, 64, 2, 300, 2e-3),
}
TOY = {
    "recall-128": Job("recall", 10, 16, 8, 16, 1, 40, 2e-3, 2),
    "characters-64": Job("characters", 65, 32, 4, 16, 1, 20, 2e-3, 2),
}


@functools.cache
def corpus(kind: str) -> tuple[Tensor, Tensor]:
    """Ids of the text to train on and of the last tenth, which is held out."""
    if kind == "characters":
        text = (EXAMPLES / "shakespeare" / "tinyshakespeare.txt").read_text(encoding="utf-8")
        letters = sorted(set(text))
    else:
        text = next(read_fasta(EXAMPLES / "dna" / "cryptosporidium-chr1.fa.gz", alphabet="ACGTN")).sequence
        letters = list("ACGTN")
    number = {letter: i for i, letter in enumerate(letters)}
    ids = torch.tensor([number[letter] for letter in text])
    split = len(ids) * 9 // 10
    return ids[:split], ids[split:]


def batches(job: Job, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Tokens and targets of a step."""
    if job.kind == "recall":
        first = torch.Generator().manual_seed(seed)
        return epochs(*associative_recall(EXAMPLES_OF_RECALL, job.length, job.vocabulary, first), job.batch, seed)
    ids = corpus(job.kind)[0]

    def drawn(step: int) -> tuple[Tensor, Tensor]:
        first = torch.randint(len(ids) - job.length, (job.batch, 1), generator=generator(seed, step))
        at = first + torch.arange(job.length)
        return ids[at], ids[at + 1]

    return drawn


def held_out(job: Job, seed: int) -> Callable[[CausalLM], float]:
    """What a model scores on data that it is not trained on."""
    if job.kind == "recall":
        tokens, targets = associative_recall(500, job.length, job.vocabulary, generator(seed, -1))
        return lambda model: 1 - accuracy(model, tokens, last_only(targets), 50)["accuracy"]
    ids = corpus(job.kind)[1]
    rows = min(60_000, len(ids) - 1) // job.length
    tokens, targets = (ids[i : i + rows * job.length].view(rows, job.length) for i in (0, 1))
    each = max(1, 4096 // job.length)

    def loss(model: CausalLM) -> float:
        parts = zip(tokens.split(each), targets.split(each), strict=True)
        return sum(model.loss(x, y).item() * x.numel() for x, y in parts) / tokens.numel()

    return loss
