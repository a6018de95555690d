"""What a process of a sharded run does; imported by the processes that the tests start."""

from __future__ import annotations

import copy

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from helpers.models import V, build
from helpers.processes import in_group

PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]


def shard(model: nn.Module, units: str) -> nn.Module:
    """FSDP2 over the blocks and the model, the model alone, or also the mixers."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        if units == "mixers":
            fully_shard(block.mixer, mesh=mesh)
        if units in ("blocks", "mixers"):
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def check_generation(name: str, units: str) -> None:
    """A sharded model writes the text of the whole one, and goes on training."""
    torch.manual_seed(0)
    whole = build(name)
    model = shard(copy.deepcopy(whole), units)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, whole)]
    for _ in range(2):
        want = whole.generate(PROMPTS, 12, temperature=0)
        got = model.generate(PROMPTS, 12, temperature=0)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (got, want)
        sampled, expected = (m.generate(PROMPTS, 12, seed=3, top_k=5) for m in (model, whole))
        assert all(torch.equal(a, b) for a, b in zip(sampled, expected, strict=True))
        tokens = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(1))
        for m, optimizer in zip((model, whole), optimizers, strict=True):
            m.train()(tokens).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert model.state_size(2, 30) == whole.state_size(2, 30)


@in_group
def run(rank: int, processes: int, folder: str, cases: list[tuple[str, str]]) -> None:
    """One process of several."""
    for name, units in cases:
        check_generation(name, units)
