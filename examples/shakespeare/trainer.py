"""The run itself: model, optimizer, random numbers and history, saved together, so that it goes on bit for bit."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from corpus import Corpus, random_batch, windows
from settings import Settings
from torch import nn

from hyena.models import HyenaLM
from hyena.optim import param_groups

# Windows that are evaluated at once: few enough to stay in a core's cache.
EVAL_BATCH = 16


class Trainer:
    """A run at some step. :meth:`advance` does the next one."""

    def __init__(self, settings: Settings, corpus: Corpus, device: torch.device) -> None:
        self.settings, self.corpus, self.device = settings, corpus, device
        torch.manual_seed(settings.seed)
        self.model = HyenaLM(settings.model(len(corpus.vocabulary))).to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            groups(self.model, settings), betas=(settings.beta1, settings.beta2), fused=True
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # Batches have random numbers of their own, so that both mixers see the same ones.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step = 0
        self.seconds = 0.0  # spent in advance()
        self.train_losses: list[float] = []
        self.validation_losses: list[tuple[int, float]] = []

    def advance(self) -> float:
        """One optimizer step; returns the loss of its batch."""
        began = time.perf_counter()
        s = self.settings
        factor = s.lr_factor(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        inputs, targets = random_batch(self.corpus.train, s.batch, s.context, self.generator)  # (B, L)
        _, loss = self.model(inputs.to(self.device), targets.to(self.device))
        loss.backward()
        if s.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, s.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.train_losses.append(loss.item())
        self.seconds += time.perf_counter() - began
        return self.train_losses[-1]

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss, in nats a character, over the whole validation split in windows that do not overlap."""
        self.model.eval()
        inputs, targets = windows(self.corpus.validation, self.settings.context)
        total = 0.0
        for x, y in zip(inputs.split(EVAL_BATCH), targets.split(EVAL_BATCH), strict=True):
            total += self.model(x.to(self.device), y.to(self.device))[1].item() * x.numel()
        self.model.train()
        loss = total / inputs.numel()
        self.validation_losses.append((self.step, loss))
        return loss

    @property
    def tokens_per_second(self) -> float:
        done = self.step * self.settings.batch * self.settings.context
        return done / self.seconds if self.seconds > 0 else 0.0

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to belong to this run."""
        return {**dataclasses.asdict(self.settings), "data": self.corpus.sha256}

    def state(self) -> dict[str, Any]:
        """Everything the rest of the run depends on, in types that ``torch.load(weights_only=True)`` takes."""
        return {
            "identity": self.identity(),
            "config": self.model.config.to_dict(),
            "vocabulary": self.corpus.vocabulary,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "step": self.step,
            "seconds": self.seconds,
            "train_losses": self.train_losses,
            "validation_losses": self.validation_losses,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where ``state`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["batches"])
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_device"], self.device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.train_losses, self.validation_losses = state["train_losses"], state["validation_losses"]


def groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """The optimizer's parameter groups."""
    with warnings.catch_warnings():
        if settings.mixer == "attention":  # it has no filters, which is worth a warning only where some are expected
            warnings.filterwarnings("ignore", "the parameter group 'filters' is empty")
        return param_groups(model, settings.lr, settings.weight_decay)


def save(trainer: Trainer, path: Path) -> None:
    """Writes a checkpoint; whenever the process is killed, ``path`` holds a whole one, the old or the new."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        torch.save(trainer.state(), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def resume(trainer: Trainer, path: Path) -> bool:
    """Goes on from the checkpoint at ``path``, if there is one.

    Raises:
        ValueError: it is not a checkpoint, or one of another run.
    """
    if not path.exists():
        return False
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        found = state["identity"]
    except Exception as e:
        raise ValueError(
            f"{path} is not a checkpoint of this program ({type(e).__name__}); --restart begins again"
        ) from e
    mine = trainer.identity()
    differing = [f"{k} {found.get(k)} (now {v})" for k, v in mine.items() if found.get(k) != v]
    if differing:
        raise ValueError(
            f"{path} is of a run with other settings: {', '.join(differing)}. Choose another --out, or --restart to "
            "begin again"
        )
    # Random states live on the CPU, wherever the weights are.
    for key in ("batches", "random", "random_device"):
        state[key] = None if state[key] is None else state[key].cpu()
    trainer.restore(state)
    return True
