"""The run itself: model, optimizer, random numbers and history, saved together, so that it goes on bit for bit."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from corpus import Corpus, random_batch, windows
from settings import Settings
from torch import nn

from hyena.models import CausalLM
from hyena.optim import param_groups

# Windows that are evaluated at once: few enough to stay in a core's cache.
EVAL_BATCH = 16


class Trainer:
    """A run at some step. :meth:`advance` does the next one."""

    def __init__(self, settings: Settings, corpus: Corpus, device: torch.device) -> None:
        self.settings, self.corpus, self.device = settings, corpus, device
        torch.manual_seed(settings.seed)
        self.model = CausalLM(settings.model(len(corpus.vocabulary))).to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            param_groups(self.model, settings.lr, settings.weight_decay),
            betas=(settings.beta1, settings.beta2),
            fused=True,
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
        loss = self.model.loss(inputs.to(self.device), targets.to(self.device))
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
            total += self.model.loss(x.to(self.device), y.to(self.device)).item() * x.numel()
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
        """Goes to where ``state`` was taken. It is believed: see checkpoint.py for what is checked before."""
        self.model.load_state_dict(state["model"])
        # The groups' numbers follow from the settings; what was learned is in the rest.
        groups = self.optimizer.state_dict()["param_groups"]
        # Copies: the optimizer would keep these very tensors, and a fused one takes them for contiguous.
        moments = {
            i: {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in held.items()}
            for i, held in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(state["batches"])
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_device"], self.device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.train_losses, self.validation_losses = state["train_losses"], state["validation_losses"]
