"""``hyena train``: a language model of characters from a text or FASTA file, which goes on after a kill.

Dimensions: B batch, L context.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hyena
from hyena.command.characters import CHECKPOINT
from hyena.command.corpus import Corpus, random_batch, read_corpus, windows
from hyena.command.devices import device_of
from hyena.command.folder import claimed, replacing
from hyena.genomics.progress import Progress
from hyena.models import CausalLM, CausalLMConfig
from hyena.optim import param_groups

_EVALUATED = 256  # windows of the validation part, spread over it


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides how a run turns out, but for the file."""

    context: int
    width: int
    layers: int
    batch: int
    lr: float
    dropout: float
    mlp: str
    seed: int
    steps: int

    def check(self) -> None:
        """Raises ValueError for a value out of range, by its option."""
        for name in ("context", "width", "layers", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be more than 0, got {self.lr}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must lie in [0, 1), got {self.dropout}")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"--seed must fit 64 bits, got {self.seed}")

    def rate(self, step: int) -> float:
        """The share of the learning rate in a step: a linear rise over a twentieth, then a cosine down to a tenth."""
        rise = self.steps // 20
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (step - rise) / max(self.steps - rise, 1)))


class Run:
    """A run at some step.

    Args:
        settings: of the run.
        corpus: what is read.
        device: where to.
    """

    def __init__(self, settings: Settings, corpus: Corpus, device: torch.device) -> None:
        self.settings, self.corpus, self.device = settings, corpus, device
        torch.manual_seed(settings.seed)
        self.config = CausalLMConfig(
            vocab_size=len(corpus.vocabulary),
            l_max=settings.context,
            d_model=settings.width,
            num_layers=settings.layers,
            dropout=settings.dropout,
            mlp=settings.mlp,
        )
        self.model = CausalLM(self.config).to(device).train()
        groups = param_groups(self.model, lr=settings.lr, weight_decay=0.1)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with a run that goes on from it."""
        return {**dataclasses.asdict(self.settings), "sha256": self.corpus.sha256}

    def advance(self) -> float:
        """Takes a step and returns its loss."""
        began = time.perf_counter()
        s = self.settings
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * s.rate(self.step)
        tokens, targets = random_batch(self.corpus.train, s.batch, s.context, self.generator)
        loss = self.model.loss(tokens.to(self.device), targets.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.append(loss.item())
        self.seconds += time.perf_counter() - began
        if not math.isfinite(self.losses[-1]):
            raise ValueError(f"the loss of step {self.step} is {self.losses[-1]}; a lower --lr than {s.lr} may help")
        return self.losses[-1]

    @torch.no_grad()
    def evaluate(self) -> float:
        """Returns the mean loss, in nats a character, of windows spread over the validation part."""
        self.model.eval()
        tokens, targets = windows(self.corpus.validation, self.settings.context, _EVALUATED)
        total = 0.0
        for x, y in zip(tokens.split(self.settings.batch), targets.split(self.settings.batch), strict=True):
            total += self.model.loss(x.to(self.device), y.to(self.device)).item() * x.numel()
        self.model.train()
        self.validation.append((self.step, total / tokens.numel()))
        return self.validation[-1][1]

    def save(self, path: Path) -> None:
        """Writes everything; whenever the process is killed, a whole checkpoint is there."""
        state = {
            "config": self.config.to_dict(),
            "vocabulary": self.corpus.vocabulary,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "validation": self.validation,
            "batches": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "hyena": hyena.__version__,
        }
        with replacing(path) as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: it is of another run, or none of this command.
        """
        again = "choose another --out, or begin again with --overwrite"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before = {"mlp": "gelu", **state["identity"]}  # what all models had when it was no setting
        except Exception as error:  # whatever a damaged archive leads to
            raise ValueError(f"{path} is no checkpoint of this command ({type(error).__name__}): {again}") from None
        now = self.identity
        if other := [f"{k} {before.get(k)} (now {v})" for k, v in now.items() if before.get(k) != v]:
            raise ValueError(f"{path} is of a run with {', '.join(other)}: {again}")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.losses, self.validation = list(state["losses"]), [tuple(each) for each in state["validation"]]
            self.generator.set_state(state["batches"].cpu())
            torch.set_rng_state(state["random"].cpu())
        except Exception as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): {again}") from None


def run(given: argparse.Namespace) -> None:
    """Trains, or goes on, and leaves checkpoint, plot and numbers in a folder.

    Raises:
        ValueError: bad input or settings.
        OSError: files that cannot be read or written.
        ModuleNotFoundError: no matplotlib for the plot.
    """
    settings = Settings(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)})
    settings.check()
    for name in ("save_every", "eval_every"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(given, name)}")
    if not given.no_plot:
        from hyena.command.plots import plot_losses  # says at once what is missing
    device = device_of(given.device)
    corpus = read_corpus(Path(given.file), settings.context)
    training = Run(settings, corpus, device)
    with claimed(Path(given.out)) as out:
        checkpoint = out / CHECKPOINT
        if checkpoint.exists() and not given.overwrite:
            training.resume(checkpoint)
        _say(training, checkpoint)
        _train(training, checkpoint, given)
        with replacing(out / "metrics.json") as file:
            file.write((json.dumps(_metrics(training), indent=2, ensure_ascii=False) + "\n").encode())
        name, loss = corpus.path.name, training.validation[-1][1]
        if not given.no_plot:
            plot_losses(training.losses, training.validation, name, out / "loss.png")
    rate = training.step * settings.batch * settings.context / max(training.seconds, 1e-9)
    print(f"validation loss {loss:.4f} nats a character, {rate:,.0f} characters/s")
    for what, file_name in (("checkpoint", CHECKPOINT), ("numbers", "metrics.json"), ("plot", "loss.png")):
        if file_name != "loss.png" or not given.no_plot:
            print(f"{what:11}{out / file_name}")
    print(f"to go on from here: hyena generate --model {out} --length 500")


def _say(training: Run, checkpoint: Path) -> None:
    corpus = training.corpus
    parameters = sum(p.numel() for p in training.model.parameters())
    print(
        f"{corpus.path.name}: {corpus.train.numel():,} characters to train on, {corpus.validation.numel():,} to "
        f"validate, {len(corpus.vocabulary)} different; a model of {parameters:,} parameters on {training.device}"
    )
    if training.step:
        print(f"going on from {checkpoint} after step {training.step} of {training.settings.steps}")


def _train(training: Run, checkpoint: Path, given: argparse.Namespace) -> None:
    s = training.settings
    size = s.batch * s.context
    with Progress(s.steps * size, "characters", shown=not given.quiet, done=training.step * size) as bar:
        while training.step < s.steps:
            training.advance()
            bar.add(size)
            last = training.step == s.steps
            if last or training.step % given.eval_every == 0:
                line = f"step {training.step}: validation loss {training.evaluate():.4f}"
                print(("\r\x1b[2K" if bar.shown else "") + line, file=sys.stderr, flush=True)
            if last or training.step % given.save_every == 0:
                training.save(checkpoint)


def _metrics(training: Run) -> dict[str, Any]:
    return {
        "validation_loss": training.validation[-1][1],
        "unit": "nats a character",
        "validation": training.validation,
        "losses": training.losses,
        "seconds": training.seconds,
        "settings": dataclasses.asdict(training.settings),
        "model": training.config.to_dict(),
        "file": training.corpus.path.name,
        "sha256": training.corpus.sha256,
        "versions": {"hyena": hyena.__version__, "torch": torch.__version__},
    }
