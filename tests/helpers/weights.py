"""What a process of a run with sharded or replicated weights does; imported by the processes that the tests start."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from helpers import split, split_checks
from helpers.processes import in_group
from helpers.split import Check, Mesh, Runs, close, gradients, tokens
from hyena.conv import cache, watch
from hyena.distributed import full_state_dict, tensor_parallel
from hyena.filters import Filter
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig


def _ddp(mesh: Mesh) -> None:
    """Data parallel, alone or around tensor parallel."""
    torch.manual_seed(1)
    whole = split.MODELS["tied"]()
    model = copy.deepcopy(whole)
    if "tp" in mesh:
        tensor_parallel(model, mesh["tp"])
    wrapped = DistributedDataParallel(model, process_group=mesh["dp"].get_group())
    x = tokens(4)
    y = whole(x)
    y.square().sum().backward()
    mine = wrapped(split.mine(x, mesh))
    (mine.square().sum() * mesh["dp"].size()).backward()
    close(split.whole_output(mine, {"dp": mesh["dp"]}), y.detach(), "outputs", 1e-10)
    found = gradients(model)
    for name, p in whole.named_parameters():
        close(found[name], p.grad, f"gradient of {name}", 1e-10)


def _precision(mesh: Mesh) -> None:
    """Weights gathered in bfloat16, those of filters in float32: as a model that was cast."""
    torch.manual_seed(1)
    whole = CausalLM(CausalLMConfig(vocab_size=12, l_max=48, d_model=16, num_layers=2))
    model = copy.deepcopy(whole)
    if "tp" in mesh:
        tensor_parallel(model, mesh["tp"])
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in [part for part in model.modules() if isinstance(part, Filter)]:
        fully_shard(part, mesh=mesh["dp"])
    for part in [*model.blocks, model]:
        fully_shard(part, mesh=mesh["dp"], mp_policy=policy)
    x = tokens(4)
    want = copy.deepcopy(whole).bfloat16()(x)
    y = model(split.mine(x, mesh))
    assert y.dtype == torch.bfloat16
    got = split.whole_output(y, {"dp": mesh["dp"]})
    # One process rounds as this does; parts of sums are rounded before they are added up.
    close(got.float(), want.float().detach(), "outputs", 1e-6 if "tp" not in mesh else 3e-2)
    y.float().square().mean().backward()
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients(model).values())


def _meta(mesh: Mesh) -> None:
    """Initialised where weights are parts, with other random numbers on each process: the first one's everywhere."""
    config = CausalLMConfig(vocab_size=12, l_max=48, d_model=16, num_layers=2)
    dna = HyenaDNAConfig(l_max=48, d_model=16, head="lm")
    for make in (lambda device: CausalLM(config, device=device), lambda device: HyenaDNA(dna, device=device)):
        model: Any = make("meta")
        tensor_parallel(model, mesh["tp"])
        if "dp" in mesh:
            for part in [*model.blocks, model]:
                fully_shard(part, mesh=mesh["dp"])
        model.to_empty(device="cpu")
        torch.manual_seed(torch.distributed.get_rank())
        model.reset_parameters()
        assert model.head.weight is model.embedding.weight
        whole = make("cpu")
        torch.manual_seed(0)
        whole.reset_parameters()
        got, want = full_state_dict(model), whole.state_dict()
        assert list(got) == list(want)
        for name, t in want.items():
            assert torch.equal(got[name], t), name
        close(model.eval()(tokens(2)).detach(), whole.eval()(tokens(2)).detach(), "outputs", 1e-5)


def _cache(mesh: Mesh) -> None:
    """Kept spectra follow the weights, also where changes are looked for by version counters, as on a GPU."""
    for compares in (True, False):
        real = watch.is_compared
        if not compares:
            watch.is_compared = cache.is_compared = lambda t: False
        try:
            torch.manual_seed(1)
            whole = split.MODELS["tied"]().eval()
            model = split.spread(copy.deepcopy(whole), mesh).eval()
            x = tokens(2)
            for scale in (1.0, 1.5, 0.5):
                for m in (whole, model):
                    with torch.no_grad():
                        for p in m.parameters():
                            p.mul_(scale)
                with torch.no_grad():
                    close(model(x), whole(x), f"outputs at {scale}, {compares}", 1e-10)
                    close(model(x), whole(x), f"outputs once more at {scale}, {compares}", 1e-10)
                # Gathered weights may come to lie where others were: no counter tells them apart.
                kept = len(model.blocks[0].mixer.conv._spectra)
                assert (kept > 0) == (compares or "dp" not in mesh), (kept, compares)
        finally:
            watch.is_compared = cache.is_compared = real


def _compiled(mesh: Mesh) -> None:
    """Blocks as one graph each, under tensor parallel; with breaks at the hooks of fully_shard."""
    torch.manual_seed(1)
    whole = split.MODELS["tied"]().train()
    model = copy.deepcopy(whole)
    if "tp" in mesh:
        tensor_parallel(model, mesh["tp"], check=False)
    for block in model.blocks:
        if "dp" in mesh:
            fully_shard(block, mesh=mesh["dp"])
        block.compile(backend="aot_eager", fullgraph="dp" not in mesh)
    if "dp" in mesh:
        fully_shard(model, mesh=mesh["dp"])
    y, want = model(tokens(2)), whole(tokens(2))
    close(y.detach(), want.detach(), "outputs", 1e-10)
    y.square().sum().backward()
    want.square().sum().backward()
    found = gradients(model)
    for name, p in whole.named_parameters():
        close(found[name], p.grad, f"gradient of {name}", 1e-10)


CHECKS: dict[str, Check] = {
    "ddp": _ddp,
    "precision": _precision,
    "meta": _meta,
    "cache": _cache,
    "compiled": _compiled,
    "recomputed": lambda mesh: split_checks.CHECKS["model-recomputed"](mesh),
}


@in_group
def run(rank: int, processes: int, folder: str, runs: Runs) -> None:
    """One process of several."""
    split.run_checks(rank, folder, runs, CHECKS)
