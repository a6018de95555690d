"""The runs of the experiment: a trained model distilled, tokens timed."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hyena
from experiments.language import texts
from experiments.language import work as language
from experiments.shared.models import language_model
from experiments.shared.runs import Place, Settings
from hyena.conv import distillation_errors
from hyena.models import CausalLM

LANGUAGE = Path("out/experiments/language")  # the default folder of that experiment's runs
VOCABULARY = 65
ROUNDS = 3  # of each timed decode; the shortest of each piece counts
PIECES = 8  # that a decode is timed in, so that a slow second meets all models


def work(settings: Settings, place: Place) -> dict[str, Any]:
    """Does one run, by its "part"."""
    part: Callable[..., dict[str, Any]] = {"distill": _distilled, "speed": _timed}[settings["part"]]
    return part(settings, place)


def trained(settings: Settings, size: str, place: Place) -> CausalLM:
    """The model of a run of ``experiments.language``; it is trained if it has not been."""
    text = texts.load(settings["text"], settings.get("limit"))
    folders = (LANGUAGE / size, place.state.parent)
    found = [path for folder in folders if (path := language.state_file(settings, folder)).exists()]
    if not found:
        language.work(settings, dataclasses.replace(place, label=f"training: {place.label}"))
        found = [language.state_file(settings, place.state.parent)]
    model = language.model_of(settings, text.vocabulary)
    model.load_state_dict(torch.load(found[0], weights_only=True))
    return model.eval()


def _distilled(settings: Settings, place: Place) -> dict[str, Any]:
    model = trained(settings["trained"], settings["size"], place).to(place.device)
    text = texts.load(settings["trained"]["text"], settings["trained"].get("limit"))
    windows = texts.windows(text.test, settings["trained"]["length"])
    rows = []
    for modes in tqdm(settings["modes"], desc=f"distilling, seed {settings['seed']}", unit="size", leave=False):
        small = hyena.distill(model, modes=modes, progress=False)
        errors = torch.cat([each.flatten() for each in distillation_errors(small).values()])
        rows.append(
            {
                "modes": modes,
                "mean_error": errors.mean().item(),
                "largest_error": errors.max().item(),
                "loss": language.mean_loss(small, *windows),
            }
        )
    return {"loss": language.mean_loss(model, *windows), "distilled": rows}


@torch.inference_mode()
def _timed(settings: Settings, place: Place) -> dict[str, Any]:
    """Milliseconds a token over the second half of a context, of one row or several at once.

    Weights are untrained, which costs the same.
    """
    context, batch = settings["context"], settings["batch"]
    shape = {name: settings[name] for name in ("width", "layers", "heads")}
    models = {name: language_model(name, VOCABULARY, context, **shape) for name in ("hyena", "h3", "attention")}
    modal = {"class": "ModalFilter", "modes": settings["modes"]}
    models["distilled"] = language_model("hyena", VOCABULARY, context, filter=modal, **shape)
    for model in models.values():
        model.to(place.device).eval()
    tokens = torch.randint(VOCABULARY, (batch, context), device=place.device)
    names = {"exact": "hyena", "distilled": "distilled", "h3": "h3", "attention": "attention"}
    best: dict[str, list[float]] = {}
    for _ in tqdm(range(ROUNDS), desc=place.label, unit="round", leave=False):
        decodes = {name: _decode(models[model], tokens) for name, model in names.items()}
        decodes["rerun"] = _rerun(models["hyena"], tokens)
        pieces: dict[str, list[float]] = {name: [] for name in decodes}
        for _ in range(PIECES):
            for name, decode in decodes.items():
                pieces[name].append(next(decode))
        for name, each in pieces.items():
            best[name] = [min(pair) for pair in zip(each, best.get(name, each))]
    return {name: 1e3 * sum(each) / len(each) for name, each in best.items()}


def _decode(model: CausalLM, tokens: torch.Tensor) -> Iterator[float]:
    """Seconds a token of each piece of the second half, step by step."""
    half = tokens.size(1) // 2
    state = model.init_state(tokens.size(0), tokens.size(1))
    model.prefill(tokens[:, :half], state, last=True)
    edges = [half + (tokens.size(1) - half) * i // PIECES for i in range(PIECES + 1)]
    for start, stop in itertools.pairwise(edges):
        _wait(tokens)
        began = time.perf_counter()
        for t in range(start, stop):
            model.step(tokens[:, t], state)
        _wait(tokens)
        yield (time.perf_counter() - began) / (stop - start)


def _rerun(model: CausalLM, tokens: torch.Tensor) -> Iterator[float]:
    """Seconds of a token that is had by running all before it, at the middle of each piece of the second half."""
    half = tokens.size(1) // 2
    for i in range(PIECES):
        length = half + (tokens.size(1) - half) * (2 * i + 1) // (2 * PIECES)
        _wait(tokens)
        began = time.perf_counter()
        model(tokens[:, :length], last=True)
        _wait(tokens)
        yield time.perf_counter() - began


def _wait(tokens: torch.Tensor) -> None:
    if tokens.is_cuda:
        torch.cuda.synchronize()
