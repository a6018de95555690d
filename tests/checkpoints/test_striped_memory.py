"""Published models at their full size, without their memory: shapes, loading plans, placement, states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.live_memory import LiveBytes
from helpers.striped import first_generation, random_state, second_generation, shapes
from hyena.checkpoints import load_striped_hyena, striped_hyena_config, striped_hyena_plan
from hyena.checkpoints.striped import PUBLISHED
from hyena.models import StripedHyena

# Parameters that the authors name their models by, in billions.
BILLIONS = {"stripedhyena": 7.65, "7b": 6.45, "1b": 1.1, "20b": 20, "40b": 40.3, "evo-1": 6.45}


def fake(name: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A state dict of a published model's names, shapes and dtypes, without values."""
    config = PUBLISHED[name]
    small = ("poles", "residues", "inv_freq")
    return {
        n: torch.empty(shape, dtype=torch.float32 if n.endswith(small) else dtype, device="meta")
        for n, shape in shapes({"interleave": True, **config}).items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:the authors compute")
def test_full_size(name: str) -> None:
    """The whole loading of the real key set, tensor by tensor; the memory at any time is what the plan says."""
    state = fake(name)
    plan = striped_hyena_plan(name, device_map="meta")
    with LiveBytes() as memory:
        model = load_striped_hyena(state, name, dtype=torch.bfloat16, device_map="meta")
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert plan.model == {"meta": weights}
    largest = max(t.numel() * t.element_size() for t in state.values())
    assert plan.largest >= largest
    # Twice the model: here both its empty shell and its weights are counted, which have no memory of their own.
    assert memory.peak <= 2 * weights + largest
    on_host = striped_hyena_plan(name)
    assert on_host.host <= weights + on_host.largest
    params = sum(p.numel() for p in model.parameters()) / 1e9
    size = next(value for part, value in BILLIONS.items() if part in name)
    assert 0.97 * size < params < 1.03 * size
    assert model.config == striped_hyena_config(name)


def test_host_memory_is_the_model_and_one_tensor() -> None:
    config = second_generation()
    state = random_state(config)
    for dtype in (torch.float32, torch.bfloat16):
        plan = striped_hyena_plan(config, dtype=dtype, stored=torch.float32)
        with LiveBytes() as memory:
            model = load_striped_hyena(state, config, dtype=dtype)
        weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        assert sum(plan.model.values()) == weights
        shell = weights  # on the meta device, counted as well
        assert memory.peak <= shell + weights + plan.largest


def test_devices_layer_by_layer() -> None:
    config = first_generation()
    state = random_state(config)
    places = {"": "cpu", "blocks.1": "meta", "blocks.2.mlp": "cpu"}
    model = load_striped_hyena(state, config, device_map=places)
    assert {p.device.type for p in model.blocks[1].parameters()} == {"meta"}
    assert {p.device.type for p in model.blocks[2].parameters()} == {"cpu"}
    plan = striped_hyena_plan(config, dtype=torch.float32, device_map=places)
    on_meta = sum(p.numel() * p.element_size() for p in model.blocks[1].parameters())
    assert plan.model["meta"] == on_meta
    seen: list[str] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, inputs, y: seen.append(y.device.type))
    with pytest.raises(NotImplementedError, match="meta"):  # torch's: values do not come back from there
        model(torch.randint(19, (1, 9)))
    assert seen == ["cpu", "meta"]
    whole = load_striped_hyena(state, config, device_map="meta")
    assert whole(torch.zeros(1, 9, dtype=torch.long, device="meta")).shape == (1, 9, 19)
    with pytest.raises(ValueError, match=r"no device for embedding\.weight"):
        load_striped_hyena(state, config, device_map={"blocks": "cpu", "head": "cpu", "norm": "cpu"})
    with pytest.raises(ValueError, match="device_map has 'gpu', which is no device"):
        load_striped_hyena(state, config, device_map="gpu")
    with pytest.raises(ValueError, match=r"names modules without weights of their own: blocks\.7"):
        load_striped_hyena(state, config, device_map={"": "cpu", "blocks.7": "cpu"})


@pytest.mark.parametrize("name", ["evo2_7b", "evo-1-131k-base", "stripedhyena-nous-7b"])
def test_states_are_known_before_they_are_allocated(name: str) -> None:
    c = striped_hyena_config(name)
    model = StripedHyena(c, device="meta", dtype=torch.bfloat16)
    size = model.state_size(1, c.l_max)
    heads = c.num_kv_heads * (c.d_model // c.num_heads)
    cache = c.layers.count("attention") * c.l_max * (2 * 2 * heads + 1)
    short = (c.num_layers - c.layers.count("attention")) * 2 * 3 * c.d_model * 4
    inner = {"SE": 6, "MR": 127, "LI": c.modes, "IIR": 2 * c.modes, "attention": 0}
    memory = sum(inner[kind] for kind in c.layers) * c.d_model * 4
    assert size.rows == cache + short + memory + 8


def prefill_peak(config: dict[str, Any], length: int, chunk: int) -> int:
    """Most bytes alive in the prefill of a whole row, beyond the state and the tokens."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        model = StripedHyena(striped_hyena_config(config, l_max=length), dtype=torch.bfloat16).eval()
        tokens, state = torch.zeros(1, length, dtype=torch.long), model.init_state(1, length)
        with LiveBytes() as memory:
            model.prefill(tokens, state, chunk=chunk, last=True)
    return memory.peak


@pytest.mark.parametrize("layers", ["hcs hcl", "attn hcm"])
def test_prefill_of_a_long_row_takes_memory_for_a_chunk(layers: str) -> None:
    """Blocks of the 7B model's width; a row of a million positions is measured in benchmarks/striped.py."""
    config = {k: v for k, v in PUBLISHED["evo2_7b"].items() if not k.endswith("_layer_idxs")}
    config |= {"num_layers": 2} | {f"{kind}_layer_idxs": [] for kind in ("attn", "hcs", "hcm", "hcl")}
    config |= {f"{kind}_layer_idxs": [i] for i, kind in enumerate(layers.split())}
    peaks = {
        (length, chunk): prefill_peak(config, length, chunk)
        for length, chunk in ((4096, 1024), (16384, 1024), (4096, 2048))
    }
    assert peaks[16384, 1024] <= 1.01 * peaks[4096, 1024]
    assert peaks[4096, 2048] >= 1.3 * peaks[4096, 1024]
