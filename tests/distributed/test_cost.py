"""What a step is predicted to cost, against models, definitions by hand and the plans that follow."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hyena.distributed import H100, Mesh, Work, cost, plan
from hyena.distributed.planning import predict
from hyena.models import CausalLM, CausalLMConfig

MATMULS = ("mm", "addmm", "bmm")


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize(("width", "layers", "order", "inner"), [(32, 1, 2, None), (48, 3, 3, 100)])
def test_parameters_are_the_models(width: int, layers: int, order: int, inner: int | None, mlp: str) -> None:
    options = {"order": order}
    config = CausalLMConfig(300, 128, width, layers, mixer_options=options, d_inner=inner, mlp=mlp)
    model = CausalLM(config, device="meta")
    work = Work(128, 4, width, layers, order=order, d_inner=inner, vocab_size=300, mlp=mlp)
    assert work.parameters == sum(p.numel() for p in model.parameters())
    options = {"num_heads": 4, "rotary_base": 1e4}
    config = CausalLMConfig(300, 128, width, layers, mixer="Attention", mixer_options=options, d_inner=inner)
    config = dataclasses.replace(config, mlp=mlp)
    work = Work(128, 4, width, layers, "attention", num_heads=4, d_inner=inner, vocab_size=300, mlp=mlp)
    assert work.parameters == sum(p.numel() for p in CausalLM(config, device="meta").parameters())


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_products_and_kept_bytes_are_the_models(mlp: str) -> None:
    """Against what torch counts, in models that differ in their depth alone: blocks without what is around them."""
    B, L, D = 3, 40, 24
    counted, kept, said = [], [], []
    for layers in (1, 3):
        options = {"num_heads": 4, "rotary_base": 1e4}
        config = CausalLMConfig(50, L, D, layers, mixer="Attention", mixer_options=options, mlp=mlp)
        model = CausalLM(config)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held: dict[int, int] = {}

        def keep(t: torch.Tensor, weights: set[int] = weights, held: dict[int, int] = held) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in weights:
                held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = model(torch.randint(50, (B, L)))
        counted.append(sum(n for op, n in counter.get_flop_counts()["Global"].items() if op.__name__ in MATMULS))
        kept.append(sum(held.values()))
        del out
        said.append(cost(Work(L, B, D, layers, "attention", num_heads=4, vocab_size=50, mlp=mlp), Mesh(), itemsize=4))
    assert said[1].matmul - said[0].matmul == counted[1] - counted[0]
    assert said[1].kept - said[0].kept == pytest.approx(kept[1] - kept[0], rel=0.02)


def test_a_gate_has_a_gradient_of_its_own_in_memory() -> None:
    """Beside what was kept: three arrays of the inner width instead of two, in bfloat16, spread over tp and cp."""
    B, L, D, inner = 2, 512, 64, 96
    for mesh in (Mesh(), Mesh(cp=4), Mesh(tp=2)):
        beside = []
        for mlp in ("gelu", "swiglu"):
            each = predict(Work(L, B, D, 2, d_inner=inner, mlp=mlp), mesh)
            beside.append(each.memory - each.cost.weights - each.cost.kept)
        assert beside[1] - beside[0] == pytest.approx(2 * B * L * inner / mesh.size)


def test_bytes_are_those_of_the_table_in_the_docs() -> None:
    B, L, D, R, s, layers = 4, 1 << 12, 64, 8, 2, 3
    hyena = Work(L, B, D, layers, order=3)
    assert cost(hyena, Mesh(cp=R)).cp == pytest.approx(layers * 2 * (3 + 2) * B * L * D * s * (R - 1) / R**2)
    attention = Work(L, B, D, layers, "attention", num_heads=8)
    assert cost(attention, Mesh(cp=R)).cp == pytest.approx(layers * 2 * 4 * B * L * D * s * (R - 1) / R**2)
    ring = cost(attention, Mesh(cp=R, context="ring")).cp
    assert ring == pytest.approx(layers * (2 + 4) * B * L * D * s * (R - 1) / R)
    ends = (4 * D + 512) * B * L * s * (R - 1) / R
    assert cost(attention, Mesh(tp=R)).tp == pytest.approx(layers * 2 * 4 * B * L * D * s * (R - 1) / R + ends)
    P = attention.parameters
    blocks = layers * attention.layer_parameters
    assert cost(attention, Mesh(dp=4)).dp == pytest.approx((2 * blocks + (P - blocks) + P) * s * 3 / 4)
    again = cost(hyena, Mesh(cp=R), recompute=True).cp / cost(hyena, Mesh(cp=R)).cp
    assert again == pytest.approx(3 / 2)


def test_axes_share_what_they_spread() -> None:
    work = Work(1 << 16, 8, 256, 4)
    whole = cost(work, Mesh())
    for mesh in (Mesh(dp=4), Mesh(cp=4), Mesh(tp=4), Mesh(2, 2, 1), Mesh(2, 2, 2)):
        each = cost(work, mesh)
        assert each.mixed * mesh.size == whole.mixed
        assert whole.matmul / mesh.size < each.matmul < 1.6 * whole.matmul / mesh.size  # filters' FFN is not shared
        assert whole.kept / mesh.size * 0.99 < each.kept
        assert (each.dp > 0, each.cp > 0, each.tp > 0) == (mesh.dp * mesh.cp > 1, mesh.cp > 1, mesh.tp > 1)
    assert cost(work, Mesh(cp=4)).kept < 0.27 * whole.kept
    assert cost(work, Mesh(), recompute=True).kept < 0.4 * whole.kept
    assert whole.dp == whole.cp == whole.tp == 0


def test_plans_fit_and_the_first_is_the_fastest() -> None:
    work = Work(1 << 20, 16)
    found = plan(work, 256)
    assert [each.step for each in found] == sorted(each.step for each in found)
    assert all(each.memory <= H100.memory and each.mesh.size == 256 for each in found)
    assert all(work.rows % each.mesh.dp == 0 and each.mesh.tp <= 8 for each in found)
    best = found[0]
    assert best.step == pytest.approx(sum(best.seconds.values()))
    assert best.mesh.dp * best.mesh.cp > 8
    # Attention of 1M positions computes for much longer, and a ring sends more than all-to-alls.
    attention = Work(1 << 20, 16, mixer="attention")
    heads, ring = plan(attention, 256)[0], plan(attention, 256, context="ring")[0]
    assert heads.step > 10 * best.step
    assert ring.communication > 3 * heads.communication


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"no mesh of 1 processes fits: .* GB at least, and H100 SXM.* has 72"):
        plan(Work(1 << 20, 1), 1)
    with pytest.raises(ValueError, match="6 rows do not divide by dp=4"):
        cost(Work(64, 6), Mesh(dp=4))
    with pytest.raises(ValueError, match="4 positions cannot be spread over cp=8"):
        cost(Work(4, 6), Mesh(cp=8))
    with pytest.raises(ValueError, match="32 heads cannot be spread over cp=16 times tp=4"):
        cost(Work(64, 6, mixer="attention"), Mesh(cp=16, tp=4))
    with pytest.raises(ValueError, match="does not go round a ring"):
        cost(Work(64, 6), Mesh(cp=2, context="ring"))
    with pytest.raises(ValueError, match="dp, cp and tp must be at least 1, got 0, 1 and 1"):
        Mesh(dp=0)
    with pytest.raises(ValueError, match="order must be at least 2, got 1"):
        Work(64, 6, order=1)
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        plan(Work(64, 6), 0)


def test_the_command() -> None:
    command = [sys.executable, "-m", "hyena.distributed", "--length", "1M", "--processes", "64", "--show", "2"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    first, header, *rows = said.stdout.splitlines()
    assert "4 rows of 1,048,576 a step; 64 x H100" in first
    assert header.split()[:3] == ["dp", "cp", "tp"]
    assert len(rows) == 2
    bad = subprocess.run([*command[:-2], "--rows", "1x"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "'1x' is no integer of at least 1, as 1000, 64K or 1M" in bad.stderr
    none = subprocess.run([*command[:4], "10M", "--processes", "8"], capture_output=True, text=True, check=False)
    assert none.returncode == 1
    assert "hyena.distributed: no mesh of 8 processes fits" in none.stderr
