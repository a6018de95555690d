"""A chromosome as numbers, batches of its training part, and the loss of every held-out base at a given context.

Dimensions: B batch, L length, H held-out bases.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.shared.record import ROOT
from experiments.shared.training import generator
from hyena.genomics import read_fasta

LETTERS = "ACGT"  # a base's complement is 3 minus its number
CHUNK = 65536  # bases of one forward pass of the evaluation


def chromosome(last: int | None = None) -> Tensor:
    """Chromosome 1 of *Cryptosporidium parvum* after its one unknown base, the 24th: ``(875635,)``, 0 to 3.

    Args:
        last: so many bases of its end alone.
    """
    (record,) = read_fasta(ROOT / "examples/dna/cryptosporidium-chr1.fa.gz", alphabet="ACGTN")
    sequence = record.sequence[record.sequence.rfind("N") + 1 :]
    sequence = sequence if last is None else sequence[-last:]
    return torch.tensor([LETTERS.index(letter) for letter in sequence])


def batch(bases: Tensor, rows: int, length: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Rows from anywhere in the training part, half of them as the other strand: tokens and targets, ``(B, L)`` each.

    Args:
        bases: the training part.
        rows: B.
        length: L.
        seed, step: of the run; the same batch for the same two.
    """
    draw = generator(seed, step)
    starts = torch.randint(bases.numel() - length, (rows, 1), generator=draw)
    found = bases[starts + torch.arange(length + 1)]
    other = torch.rand(rows, 1, generator=draw) < 0.5
    found = torch.where(other, 3 - found.flip(1), found)
    return found[:, :-1], found[:, 1:]


@torch.no_grad()
def held_out_bits(model: nn.Module, bases: Tensor, first: int, context: int) -> Tensor:
    """Bits of each base from ``first`` on, ``(H,)``, given between half of ``context`` and all of it.

    Windows of ``context`` inputs end half of it apart, and the later half of a window's predictions counts: the same
    bases are predicted whatever the context is. What comes before the first of them is the training part's end.

    Args:
        model: tokens ``(B, L)`` to logits ``(B, L, 4)``.
        bases: the chromosome.
        first: of the held-out bases; at least ``context``.
        context: L, even.
    """
    if context % 2 or not 2 <= context <= first:
        raise ValueError(f"context must be even, from 2 to the {first} bases before the held-out ones, got {context}")
    half = context // 2
    device = next(model.parameters()).device
    ends = torch.arange(bases.numel(), first, -half)  # of the targets, exclusive
    found = torch.empty(bases.numel() + half)  # the earliest window may score bases before ``first``
    for some in ends.split(max(1, CHUNK // context)):
        tokens = bases[some[:, None] - context - 1 + torch.arange(context + 1)].to(device)
        logits = model(tokens[:, :-1])[:, -half:]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, -half:].flatten(), reduction="none")
        found[some[:, None] - half + torch.arange(half)] = losses.view(-1, half).cpu()
    return found[first : bases.numel()] / math.log(2.0)
