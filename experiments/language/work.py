"""The runs of the experiment: models trained, n-grams counted, steps timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.language import flops, texts
from experiments.language.models import MODELS, build
from experiments.language.ngrams import fits, log_probabilities
from experiments.shared.models import parameters
from experiments.shared.runs import Place, Settings, name_of
from experiments.shared.training import Schedule, generator, train
from hyena.models import CausalLM
from hyena.optim import param_groups

SAMPLE = 64  # windows of the test part that are evaluated on the way; at the end all are
AT_ONCE = 16  # windows
ORDERS = (1, 3, 5)  # of the n-grams


def work(settings: Settings, place: Place) -> dict[str, Any]:
    """Does one run, by its "part"."""
    text = texts.load(settings["text"], settings.get("limit"))
    part: Callable[..., dict[str, Any]] = {"train": _trained, "n-grams": _counted, "speed": _timed}[settings["part"]]
    return part(settings, place, text)


def model_of(settings: Settings, vocabulary: int, name: str | None = None) -> CausalLM:
    """The untrained model of a run, or the one of another name at its sizes."""
    shape = {key: settings[key] for key in ("width", "layers", "heads", "dropout")}
    return build(name or settings["model"], vocabulary, settings["length"], **shape)


def state_file(settings: Settings, folder: Path) -> Path:
    """Where the weights of a training run are kept when it is done."""
    return folder / f"{name_of(settings)}.weights.pt"


def _trained(settings: Settings, place: Place, text: texts.Text) -> dict[str, Any]:
    torch.manual_seed(settings["seed"])
    model = model_of(settings, text.vocabulary).to(place.device)
    length, rows = settings["length"], settings["rows"]
    sample = sampled(text.test, length)
    history = train(
        model,
        lambda step: _step_loss(model, text.train, settings, place.device, step),
        Schedule(settings["steps"], settings["lr"], warmup=settings["steps"] // 20, floor=0.1),
        place,
        evaluate=lambda: {"loss": mean_loss(model, *sample)},
        evaluate_every=max(1, settings["steps"] // 12),
    )
    loss = mean_loss(model, *texts.windows(text.test, length))
    torch.save(model.cpu().state_dict(), state_file(settings, place.state.parent))
    found = {"loss": loss, "bits_a_byte": text.bits_a_byte(loss)}
    if text.test_words is not None:
        found["word_perplexity"] = text.word_perplexity(loss)
    return {
        **found,
        "parameters": parameters(model),
        "inner": model.blocks[0].mlp.fc1.out_features,
        "flops": settings["steps"] * flops.training(model, length, rows),
        "history": history,
    }


def _step_loss(model: CausalLM, tokens: Tensor, settings: Settings, device: str, step: int) -> Tensor:
    """The loss of a step; where rows do not fit at once, all parts but the last are done with when it returns."""
    length, rows, part = settings["length"], settings["rows"], settings.get("rows_at_once", settings["rows"])
    inputs, targets = (t.to(device) for t in texts.batch(tokens, rows, length, generator(settings["seed"], step)))
    before = torch.zeros((), device=device)
    pieces = list(zip(inputs.split(part), targets.split(part)))
    for i, (x, y) in enumerate(pieces):
        with torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext():
            loss = model.loss(x, y) * (len(x) / rows)
        if i < len(pieces) - 1:
            loss.backward()
            before += loss.detach()
    return loss + before


def sampled(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Windows at equal distances over the whole text."""
    inputs, targets = texts.windows(tokens, length)
    at = torch.linspace(0, len(inputs) - 1, min(SAMPLE, len(inputs))).round().long()
    return inputs[at], targets[at]


@torch.no_grad()
def mean_loss(model: CausalLM, inputs: Tensor, targets: Tensor) -> float:
    """Mean loss over windows, nats a token."""
    parts = zip(inputs.split(AT_ONCE), targets.split(AT_ONCE))
    total = math.fsum(model.loss(x.to(model.device), y.to(model.device)).item() * len(x) for x, y in parts)
    return total / len(inputs)


def _counted(settings: Settings, place: Place, text: texts.Text) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for order in ORDERS:
        if fits(text.vocabulary, order):
            loss = -log_probabilities(text.train, text.test, text.vocabulary, order).mean().item()
            found[str(order)] = {"loss": loss, "bits_a_byte": text.bits_a_byte(loss)}
            if text.test_words is not None:
                found[str(order)]["word_perplexity"] = text.word_perplexity(loss)
    return {"orders": found}


def _timed(settings: Settings, place: Place, text: texts.Text) -> dict[str, Any]:
    """Median seconds of a training step. Models take turns, so that a slow minute meets all of them."""
    torch.manual_seed(0)
    models = {name: model_of(settings, text.vocabulary, name).to(place.device).train() for name in MODELS}
    optimizers = {name: torch.optim.AdamW(param_groups(m, 1e-3), fused=True) for name, m in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in MODELS}
    for turn in range(settings["rounds"] + 1):  # the first does not count
        for name, model in models.items():
            began = time.perf_counter()
            _step_loss(model, text.train, {**settings, "seed": 0}, place.device, turn).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            if place.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {"seconds_a_step": {name: statistics.median(each) for name, each in seconds.items()}}
