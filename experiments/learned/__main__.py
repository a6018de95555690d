"""What Hyena learned: H(u) beside an attention map, filters before and after training, and how far they reach.

    python -m experiments.learned --workers 2       # some minutes; killed, it goes on
    python -m experiments.learned --report          # tables, JSON and plots of the runs there are

Hyena and attention are trained on associative recall, Hyena on Shakespeare's characters and on DNA as well. Does the
last row of H(u) look at what was asked for, as attention's does? By which lag has a filter's energy come, and from
how many taps on does the loss stay what it was, if the trained filters are cut there?
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.defaults.jobs import Job, batches
from experiments.learned import jobs, measures
from experiments.learned.report import report
from experiments.shared import runs
from experiments.shared.models import language_model
from experiments.shared.training import train
from hyena.models import CausalLM

HERE = Path(__file__).resolve().parent
DRAWN = 4  # channels whose taps are kept for the plot, and at most so many lags
DRAWN_LAGS = 256
LOOKED_AT = 256  # examples of recall


def grid(size: str, seeds: list[int]) -> list[runs.Settings]:
    """Hyena on every job and attention on recall; what is drawn is kept of the first seed."""
    looked_at = {"recall": {"looked_at": LOOKED_AT if size != "toy" else 32}}
    return [
        {
            **{"job": name, "mixer": mixer, **dataclasses.asdict(job)},
            **looked_at.get(job.kind, {}),
            **{"drawn": seed == seeds[0], "seed": seed},
        }
        for seed in seeds
        for name, job in jobs.JOBS[size].items()
        for mixer in (("hyena", "attention") if job.kind == "recall" else ("hyena",))
    ]


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Trains a model and looks into it."""
    job = Job(**{field.name: settings[field.name] for field in dataclasses.fields(Job)})
    seed = settings["seed"]
    torch.manual_seed(seed)
    model = language_model(
        settings["mixer"], job.vocabulary, job.length, width=job.width, layers=job.layers, heads=jobs.HEADS
    ).to(place.device)
    is_hyena = bool(measures.operators(model))
    start = measures.taps(model, job.length).cpu() if is_hyena else None
    batch, score = batches(job, seed), jobs.score(job, seed, place.device)
    history = train(
        model,
        lambda step: model.loss(*(t.to(place.device) for t in batch(step))),
        jobs.schedule(job),
        place,
        evaluate=lambda: score(model),
        evaluate_every=job.steps // job.evaluations,
    )
    result: dict[str, Any] = {**score(model), "history": history}
    if start is not None:
        result |= filters(model, start, settings["drawn"])
        lengths = [1 << i for i in range(job.length.bit_length()) if 1 << i < job.length]
        result["cut"] = [{"taps": k, **cut_score(model, k, score)} for k in [*lengths, job.length]]
    if job.kind == "recall":
        result |= where_it_looks(
            model, jobs.recall_examples(job, settings["looked_at"], seed)[0], place.device, settings["drawn"]
        )
    return result


def filters(model: CausalLM, start: Tensor, drawn: bool) -> dict[str, Any]:
    """The filters before and after training."""
    end = measures.taps(model, start.size(1)).cpu()
    found: dict[str, Any] = {"before": measures.of_filters(start), "after": measures.of_filters(end)}
    if drawn:
        for name, h in (("before", start), ("after", end)):
            found[name]["taps"] = [
                [[round(float(x), 5) for x in channel] for channel in layer[:DRAWN_LAGS, :DRAWN].T] for layer in h
            ]
    return found


@torch.no_grad()
def cut_score(model: CausalLM, taps: int, score: Any) -> dict[str, float]:
    """The scores with filters of so many taps."""
    with measures.cut(model, taps):
        found: dict[str, float] = score(model)
    return found


def where_it_looks(model: CausalLM, tokens: Tensor, device: str, drawn: bool) -> dict[str, Any]:
    """How each layer's matrix looks at what was asked for; drawn, the first example's matrices.

    Of all channels together, and of the one that looks most, which is found on one half of the examples and measured on
    the other. What is asked for is in the gate of Hyena's last row, one factor for a channel's whole row: a channel
    weighs places alike whatever is asked for, and only which channels are loud can tell.
    """
    rows: list[list[Tensor]] = []
    for i, part in enumerate(tokens.to(device).split(8)):
        made = measures.matrices(model, part)
        rows.append([matrix[:, :, -1].cpu() for matrix in made])
        if i == 0:
            first = [matrix[0].cpu() for matrix in made]
    found: dict[str, Any] = {"looks": [], "looks_best": []}
    pictures = []
    half = len(tokens) // 2
    for layer, parts in enumerate(zip(*rows, strict=True)):
        whole = torch.cat(parts)
        choice = measures.looks(whole[:half], tokens[:half])  # (C, OFFSETS)
        measured = measures.looks(whole[half:], tokens[half:])
        chosen = measured.gather(0, choice.argmax(0)[None])[0]
        together = measures.looks(whole.square().mean(1, keepdim=True).sqrt(), tokens)[0]
        found["looks"].append([round(float(x), 4) for x in together])
        found["looks_best"].append([round(float(x), 4) for x in chosen])
        best, matrix = int(choice[:, 1].argmax()), first[layer]  # the channel that looks most at the value
        pictures.append({"layer": layer + 1, "what": "all channels", **picture(matrix.square().mean(0).sqrt())})
        pictures.append({"layer": layer + 1, "what": f"channel {best}", **picture(matrix[best])})
    return {**found, "pictures": pictures, "tokens": tokens[0].tolist()} if drawn else found


def picture(matrix: Tensor) -> dict[str, Any]:
    """A matrix in 8 bits: its absolute values over the largest."""
    largest = float(matrix.abs().max())
    levels = (matrix.abs() / largest * 255).round().to(torch.uint8)
    return {"largest": largest, "levels": base64.b64encode(levels.numpy().tobytes()).decode()}


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
