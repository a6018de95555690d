"""Models over a mesh beside the model in one piece; imported by the processes that the tests start."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from helpers.mixers import D
from helpers.models import L_MAX, build
from hyena.distributed import (
    clip_grad_norm_,
    context_parallel,
    full_state_dict,
    gather,
    shard,
    sum_gradients,
    tensor_parallel,
)
from hyena.distributed.splits import splits_of
from hyena.models import CausalLM, CausalLMConfig, StripedHyena, StripedHyenaConfig

LENGTH = 23
Mesh = dict[str, DeviceMesh]
Check = Callable[[Mesh], None]


def close(got: Any, want: Any, what: str, bound: float) -> None:
    assert got.shape == want.shape, (what, got.shape, want.shape)
    if want.numel():
        error = (got - want).abs().max().item()
        assert error <= bound * max(1.0, want.abs().max().item()), f"{what}: off by {error:.1e}"


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Whole gradients by name."""
    splits, found = splits_of(model), {}
    for name, p in model.named_parameters():
        grad: Any = p.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        found[name] = splits[name].gather(grad) if name in splits and grad is not None else grad
    return found


def spread(model: nn.Module, mesh: Mesh, **options: Any) -> nn.Module:
    """A model over every axis that the mesh has."""
    if "tp" in mesh:
        tensor_parallel(model, mesh["tp"], **options)
    if "dp" in mesh:
        for block in getattr(model, "blocks", ()):
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    if "cp" in mesh:
        context_parallel(model, mesh["cp"])
    return model


def mine(x: Tensor | None, mesh: Mesh) -> Tensor | None:
    """What one process is called with."""
    if x is None:
        return None
    if "dp" in mesh:
        x = x.chunk(mesh["dp"].size())[mesh["dp"].get_local_rank()]
    return shard(x, mesh["cp"]).contiguous() if "cp" in mesh else x


def whole_output(y: Tensor, mesh: Mesh) -> Tensor:
    y = gather(y.detach(), mesh["cp"]) if "cp" in mesh else y.detach()
    return gather(y, mesh["dp"], 0) if "dp" in mesh else y


def same_as_one_process(
    make: Callable[[], nn.Module],
    x: Tensor,
    mesh: Mesh,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    bound: float = 1e-10,
    **options: Any,
) -> None:
    """Outputs, every gradient, their norm and one step of an optimizer, against the module in one piece."""
    torch.manual_seed(1)
    whole = make()
    model = spread(copy.deepcopy(whole), mesh, **options)
    packing = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens, "max_seqlen": int(cu_seqlens.diff().max())}
    x = x.clone().requires_grad_(x.is_floating_point())
    given = mine(x.detach().clone().requires_grad_(x.requires_grad), mesh)
    want = whole(x, mask=mask, **packing)
    weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(2))
    kept = weight if mask is None else torch.where(mask[..., None], weight, 0.0)
    (want * kept).sum().backward()
    y = model(given, mask=mine(mask, mesh), **packing)
    # fully_shard takes the mean over its processes
    ((y * mine(kept, mesh)).sum() * (mesh["dp"].size() if "dp" in mesh else 1)).backward()
    if "cp" in mesh:
        sum_gradients(model, mesh["cp"])
    got = whole_output(y, mesh)
    close(got if mask is None else got[mask], want.detach() if mask is None else want.detach()[mask], "outputs", bound)
    if x.requires_grad:
        close(given.grad, x.grad, "gradient of the input", bound)
    found = gradients(model)
    for name, p in whole.named_parameters():
        assert (p.grad is None) == (found[name] is None), name
        if p.grad is not None:
            close(found[name], p.grad, f"gradient of {name}", bound)
    norm = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    close(clip_grad_norm_(model, 0.5).to(norm.dtype), norm, "norm of the gradients", bound)
    for module in (whole, model):
        torch.optim.AdamW(module.parameters(), lr=1e-2, foreach=False).step()
    after = full_state_dict(model)
    assert list(after) == list(whole.state_dict())
    for name, t in whole.state_dict().items():
        # A step divides by the gradient's size: where that is rounding, so is the step.
        close(after[name], t, f"{name} after a step", max(bound, 1e-2 if bound > 1e-8 else 1e-6))


def inputs(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, LENGTH, D, dtype=dtype, generator=torch.Generator().manual_seed(0))


def tokens(batch: int = 2, length: int = LENGTH, vocabulary: int = 12) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


def _causal_lm(**options: Any) -> nn.Module:
    config = CausalLMConfig(vocab_size=12, l_max=L_MAX, d_model=16, num_layers=2, **options)
    model = CausalLM(config, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def _striped() -> nn.Module:
    layers = ("SE", "MR", "LI", "IIR", "attention")
    sizes: dict[str, Any] = {"num_heads": 4, "se_taps": 3, "mr_taps": 9, "groups": 8, "modes": 3, "inner_multiple": 8}
    return StripedHyena(StripedHyenaConfig(12, L_MAX, 16, layers, **sizes), dtype=torch.float64)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "hyena": lambda: build("hyena"),  # of 13 tokens, which divide by nothing
    "attention": lambda: build("attention"),
    "dna": lambda: build("dna"),
    "tied": _causal_lm,
    "untied": partial(_causal_lm, tie_embeddings=False, mixer_options={"num_heads": 4}),
    "recomputed": lambda: _causal_lm(gradient_checkpointing=True).train(),
    "striped": _striped,
}


def expect(run: Callable[[], Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        run()


Runs = list[tuple[dict[str, int], list[str]]]


def run_checks(rank: int, folder: str, runs: Runs, checks: dict[str, Check]) -> None:
    """For each mesh its checks in turn, and what failed into a file of its own."""
    failed = []
    try:
        for sizes, names in runs:
            axes = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
            mesh = {axis: axes[axis] for axis in sizes}
            for name in names:
                try:
                    checks[name](mesh)
                except Exception:
                    failed.append(f"{name} over {sizes} on rank {rank}:\n{traceback.format_exc()}")
                dist.barrier()
    finally:
        (Path(folder) / f"failed-{rank}.txt").write_text("\n".join(failed))
