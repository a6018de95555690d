"""The run itself: model over the mesh, optimizer, and one step after the other.

Dimensions: B rows of this process, L length of a row, n positions of this process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from data import VOCABULARY, Block, blocks
from processes import Team
from sampler import Place, Sampler, share
from settings import Settings
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from hyena import param_groups
from hyena.distributed import clip_grad_norm_, context_parallel, shard, tensor_parallel
from hyena.models import CausalLM, CausalLMConfig
from hyena.models.causal_lm import IGNORED


class Trainer:
    """A run at some step; :meth:`advance` does the next one.

    Args:
        settings: of the run.
        mesh: of the axes dp, cp and tp.
        team: the processes.
    """

    def __init__(self, settings: Settings, mesh: DeviceMesh, team: Team) -> None:
        s, dp, cp = settings, mesh["dp"].size(), mesh["cp"].size()
        if s.batch % dp:
            raise ValueError(f"--batch {s.batch} blocks do not divide by --dp {dp}")
        if s.start_length < cp:
            raise ValueError(f"--start-length {s.start_length} is shorter than --cp {cp}: one position each at least")
        self.settings, self.mesh, self.team = settings, mesh, team
        self.model = spread(build(settings).to(team.device).train(), mesh, team)
        self.optimizer = torch.optim.AdamW(param_groups(self.model, s.lr, s.weight_decay), betas=(0.9, 0.95))
        self.step, self.tokens, self.sampler = 0, 0, None

    def begin(self, notes: dict[str, Any] | None) -> None:
        """Begins with the data, or goes on where :meth:`notes` were taken."""
        s, then = self.settings, notes or {"step": 0, "tokens": 0, "epoch": 0, "taken": 0}
        self.step, self.tokens = then["step"], then["tokens"]
        place = Place(then["epoch"], then["taken"])
        self.sampler = Sampler(partial(blocks, s.data, s.length), s.shuffle, s.seed, place)

    def advance(self) -> dict[str, Any]:
        """One step; returns what there is to say of it, the same on every process."""
        s = self.settings
        length, lr = s.length_at(self.step), s.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.team.at(f"step {self.step + 1}, reading data")
        batch = self.sampler.take(s.batch)
        self.team.at(f"step {self.step + 1}, computing")
        self.mine = share(batch, self.mesh["dp"].get_local_rank(), self.mesh["dp"].size())
        targets = sum(block.targets for block in batch)
        tokens, wanted = rows(self.mine, s.length, length, self.team.device)  # (B, L)
        loss = self._loss(shard(tokens, self.mesh["cp"]), shard(wanted, self.mesh["cp"])) / targets
        (loss * self.mesh["dp"].size() * self.mesh["cp"].size()).backward()  # fully_shard takes the mean of these
        norm = clip_grad_norm_(self.model, s.clip or math.inf)
        total = loss.detach().double()
        dist.all_reduce(total)
        total /= self.mesh["tp"].size()  # whose processes have the same positions
        if not math.isfinite(total.item()) or not math.isfinite(norm.item()):
            raise ArithmeticError(f"loss {total.item()}, norm of the gradient {norm.item()}: a lower --lr may help")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += targets
        place = self.sampler.place
        said = {"step": self.step, "loss": total.item(), "grad_norm": norm.item(), "lr": lr, "length": length}
        return {**said, "tokens": self.tokens, "epoch": place.epoch}

    def _loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum over this process's positions, ``(B, n)``."""
        low = self.settings.dtype == "bfloat16"
        with torch.autocast(self.team.device.type, torch.bfloat16) if low else nullcontext():
            logits = self.model(tokens).flatten(0, 1)
        logits = logits.float() if low else logits
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def notes(self) -> dict[str, int]:
        """What a checkpoint has besides weights and the optimizer."""
        place = self.sampler.place
        return {"step": self.step, "tokens": self.tokens, "epoch": place.epoch, "taken": place.taken}


def build(settings: Settings) -> CausalLM:
    """The model; the same weights on every process."""
    config = CausalLMConfig(
        vocab_size=VOCABULARY,
        l_max=settings.length,
        d_model=settings.width,
        num_layers=settings.layers,
        mixer=settings.mixer,
        gradient_checkpointing=settings.recompute,
        mlp=settings.mlp,
    )
    torch.manual_seed(settings.seed)
    return CausalLM(config, dtype=torch.float64 if settings.dtype == "float64" else torch.float32)


def spread(model: CausalLM, mesh: DeviceMesh, team: Team) -> CausalLM:
    """Channels over tp, positions over cp, weights over dp and cp: a process of either has gradients of its own."""
    dp, cp, tp = mesh.shape
    if tp > 1:
        tensor_parallel(model, mesh["tp"])
    if dp * cp > 1:
        data = team.mesh(data=dp * cp, tp=tp)["data"]
        for block in model.blocks:
            fully_shard(block, mesh=data)
        fully_shard(model, mesh=data)
    if cp > 1:
        context_parallel(model, mesh["cp"])
    return model


def rows(mine: list[Block], size: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Blocks of ``size`` tokens as rows of ``length``, and the token that follows each: two times (B, L)."""
    tokens = torch.zeros(len(mine), size + 1, dtype=torch.long)
    known = torch.zeros(len(mine), size, dtype=torch.bool)
    for i, block in enumerate(mine):
        tokens[i, : len(block.tokens)] = torch.frombuffer(bytearray(block.tokens), dtype=torch.uint8)
        known[i, : block.targets] = True
    targets = torch.where(known, tokens[:, 1:], IGNORED)
    return tokens[:, :-1].reshape(-1, length).to(device), targets.reshape(-1, length).to(device)


def ids(batch: list[Block]) -> Iterator[int]:
    """Which blocks these are."""
    return (block.index for block in batch)
